"""A descriptor that several processes write lines to: each line whole, and never waited for longer than it may take.

One write for a file, pieces of whole lines of at most PIPE_BUF bytes for anything else (POSIX makes those atomic on a
pipe).
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable


class Output:
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
