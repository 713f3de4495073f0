"""How the service speaks: log lines for people on a terminal, JSON lines for everything else; the access log.

Both go to one descriptor shared by several processes, so every line is written whole: one write for a file,
pieces of whole lines of at most PIPE_BUF bytes for anything else (POSIX makes those atomic on a pipe).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


class JsonFormatter(logging.Formatter):
    """Make one JSON object of a record: time, level, logger, pid, message, ``fields``, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class HumanFormatter(logging.Formatter):
    """Make one short line of a record, its ``fields`` as key=value at the end; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        facts = (f"{key}={','.join(value) if isinstance(value, list) else value}" for key, value in fields.items())
        text = " ".join([record.getMessage(), *facts])
        # What clients and upstreams sent may be quoted in it: it must not steer the terminal.
        line = f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname.lower():7} "
        line += text.translate(_ESCAPES)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup_logging(*, human: bool | None = None, level: int = logging.INFO) -> None:
    """Send every log record to stderr: human lines when it is a terminal, else JSON lines.

    A record's further facts come as ``extra={"fields": {…}}``. Calling it again replaces what was set up.
    """
    _open_standard_streams()
    handler = _Handler()
    handler.setFormatter(HumanFormatter() if _is_human(human, handler.fd) else JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Handler(logging.Handler):
    """Writes records to stderr; one nobody reads costs the record, not the service."""

    fd = 2
    patience = 0.1  # seconds

    def __init__(self) -> None:
        super().__init__()
        self._output = _Output(self.fd)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception as error:  # a wrong format string must not end the request that logs
            line = f"a log record of {record.name} could not be formatted: {error}\n".encode()
        rest = self._output.write(line)
        if rest and self._output.wait(self.patience):
            self._output.write(rest)


def _open_standard_streams() -> None:
    """Open /dev/null where a standard descriptor is closed: else the next file we open would get its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class AccessLog:
    """One line per request, collected in memory and written together.

    Lines go out when 64 KiB have come together, 200 ms after the first of them, and at ``close``. Writing never
    waits for a slow reader: what does not fit is kept, up to 4 MiB, and beyond that lines are dropped, counted,
    and the count logged. Belongs to one event loop and its thread.
    """

    batch = 64 * 1024  # bytes
    delay = 0.2  # seconds
    limit = 4 * 1024 * 1024  # bytes
    patience = 0.5  # seconds ``close`` waits for a slow reader

    def __init__(self, fd: int = 2, *, human: bool | None = None) -> None:
        """fd: where lines go. human: None asks whether that is a terminal."""
        self._fd = fd
        self._human = _is_human(human, fd)
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._output: _Output | None = None
        self._second = -1
        self._stamp = ""

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append one line: the time, then the fields in their order. Values: anything JSON holds, else their str."""
        if self._size >= self.limit:
            self._dropped += 1
            return
        line = self._format(fields)
        self._lines.append(line)
        self._size += len(line)
        if self._size >= self.batch:
            # While the reader is slow the timer tries again; every further line trying too would only cost.
            if self._timer is None or self._size - len(line) < self.batch:
                self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.delay, self.flush)

    def flush(self) -> None:
        """Write what can be written without waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()
        if self._lines:
            self._timer = asyncio.get_running_loop().call_later(self.delay, self.flush)

    def close(self) -> None:
        """Write the rest, waiting for a slow reader at most ``patience`` seconds. Needs no running loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = time.monotonic() + self.patience
        self._write()
        while self._lines and self._output and self._output.wait(deadline - time.monotonic()):
            self._write()
        self._lines.clear()
        self._size = 0
        if self._output is not None:
            self._output.close()
            self._output = None

    def _write(self) -> None:
        if self._dropped and self._size < self.limit:
            note = self._format({"message": "access log lines dropped: stderr is not read", "lines": self._dropped})
            self._lines.append(note)
            self._dropped = 0
        if not self._lines:
            return
        if self._output is None:
            self._output = _Output(self._fd)
        rest = self._output.write(b"".join(self._lines))
        self._lines = [rest] if rest else []
        self._size = len(rest)

    def _format(self, fields: Mapping[str, Any]) -> bytes:
        now = time.time()
        second = int(now)
        if second != self._second:
            # Made once per second: formatting a date costs more than the rest of the line.
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stamp = f"{self._stamp}.{int((now - second) * 1000):03d}Z"
        if self._human:
            text = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
            return f"{stamp} {text.translate(_ESCAPES)}\n".encode("utf-8", "backslashreplace")
        return f'{{"time":"{stamp}",{_encode(dict(fields))[1:]}\n'.encode()


class _Output:
    """A descriptor written to without waiting, and without changing the flags of what other processes share."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._own: int | None = None
        self._socket: socket.socket | None = None
        self._whole = False
        try:
            mode = os.fstat(fd).st_mode
            if stat.S_ISREG(mode):
                self._whole = True
            elif stat.S_ISSOCK(mode):
                self._socket = socket.socket(fileno=os.dup(fd))
            else:
                # O_NONBLOCK belongs to the open file description, which our parent's shell shares: so a new one.
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            pass  # closed, or not ours to open again: plain writes it is

    def write(self, data: bytes) -> bytes:
        """Write whole lines; return those that would have to wait. A broken reader swallows everything."""
        try:
            if self._whole:
                while data:
                    data = data[os.write(self._fd, data) :]
                return b""
            send = self._sender()
            start = 0
            while start < len(data):
                piece = data[start : _cut(data, start)]
                try:
                    start += send(piece)
                except BlockingIOError:
                    return data[start:]
        except OSError:
            pass  # EPIPE, EIO, ENOSPC, EBADF: nobody reads the log, which is no reason to stop serving
        return b""

    def wait(self, seconds: float) -> bool:
        """Wait until something can be written; False after that time."""
        poller = select.poll()
        poller.register(self._fd, select.POLLOUT)
        return seconds > 0 and bool(poller.poll(seconds * 1000))

    def close(self) -> None:
        if self._own is not None:
            os.close(self._own)
            self._own = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _sender(self) -> Callable[[bytes], int]:
        if self._socket is not None:
            connection = self._socket
            return lambda piece: connection.send(piece, socket.MSG_DONTWAIT)
        fd = self._fd if self._own is None else self._own
        return lambda piece: os.write(fd, piece)


def _cut(data: bytes, start: int) -> int:
    """Return where a piece of whole lines from ``start`` ends: PIPE_BUF bytes at most, unless one line is longer."""
    if len(data) - start <= select.PIPE_BUF:
        return len(data)
    end = data.rfind(b"\n", start, start + select.PIPE_BUF)
    return (data.find(b"\n", start) if end < 0 else end) + 1


def _is_human(human: bool | None, fd: int) -> bool:
    return os.isatty(fd) if human is None else human


def _timestamp(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
