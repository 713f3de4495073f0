"""The access log: one line per request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from mirror.logs.output import Output
from mirror.logs.people import beginning, is_coloured, is_human, plain, request_line

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


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

    def __init__(self, fd: int = 2, *, human: bool | None = None, enabled: bool = True) -> None:
        """fd: where lines go. human: None asks whether that is a terminal. enabled: False writes none."""
        self.enabled = enabled
        self._fd = fd
        self._human = is_human(human, fd)
        self._colour = self._human and is_coloured(fd)
        self._lines: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None
        self._output: Output | None = None
        self._second = -1
        self._stamp = ""

    def write(self, fields: Mapping[str, Any]) -> None:
        """Append one line: the time, then the fields in their order. Values: anything JSON holds, else their str."""
        if not self.enabled:
            return
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
            self._output = Output(self._fd)
        rest = self._output.write(b"".join(self._lines))
        self._lines = [rest] if rest else []
        self._size = len(rest)

    def _format(self, fields: Mapping[str, Any]) -> bytes:
        now = time.time()
        if self._human:
            return f"{self._for_people(now, fields)}\n".encode("utf-8", "backslashreplace")
        second = int(now)
        if second != self._second:
            # Made once per second: formatting a date costs more than the rest of the line.
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        stamp = f"{self._stamp}.{int((now - second) * 1000):03d}Z"
        return f'{{"time":"{stamp}",{_encode(dict(fields))[1:]}\n'.encode()

    def _for_people(self, now: float, fields: Mapping[str, Any]) -> str:
        if "status" in fields:
            return request_line(now, fields, colour=self._colour)
        text = " ".join(str(value) if key == "message" else f"{key}={value}" for key, value in fields.items())
        return beginning(now, "warning", colour=self._colour) + plain(text)
