"""A client on a raw socket that reads pieces of 64 KiB, as containerd and Go's HTTP client do."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

PIECE = 64 * 1024
TIMEOUT = 60.0  # seconds without a byte
_PAUSE = 0.05  # seconds before a broken pull is resumed


class Connection:
    """One GET on a connection of its own. status, size (of this body, bytes) and headers are there at once."""

    def __init__(self, port: int, path: str, *, start: int = 0, accept: str = "*/*") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        try:
            asked = f"Range: bytes={start}-\r\n" if start else ""
            request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {accept}\r\n{asked}\r\n"
            self._socket.sendall(request.encode())
            head = self._read_head()
        except BaseException:
            self._socket.close()
            raise
        self.status = int(head.split(" ", 2)[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        self.size = int(self.headers.get("content-length", 0))

    def _read_head(self) -> str:
        data = b""
        while b"\r\n\r\n" not in data:
            # Peeked first, so that no body is taken with the head: it belongs into the caller's buffer.
            seen = self._socket.recv(PIECE, socket.MSG_PEEK)
            if not seen:
                raise ConnectionResetError("closed before the headers")
            end = (data + seen).find(b"\r\n\r\n")
            data += self._socket.recv(len(seen) if end < 0 else end + 4 - len(data))
        return data[:-4].decode("latin-1")

    def read_into(self, buffer: memoryview) -> int:
        """Read at most a piece; 0 at the end of the connection."""
        return self._socket.recv_into(buffer, min(len(buffer), PIECE))

    def close(self) -> None:
        self._socket.close()


class Puller(threading.Thread):
    """A client that pulls one blob, and when cut off goes on by Range, as containerd does.

    hashed: take the digest. leave_at: bytes after which it leaves. rate: bytes per second it reads at most.
    resumes: how often it may be cut off. Afterwards: received (bytes), digest, seconds, cut (how often it was),
    failure (None: it has the whole blob, or left as it was told to), left.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        hashed: bool = True,
        leave_at: int | None = None,
        rate: int | None = None,
        resumes: int = 0,
        accept: str = "*/*",
    ) -> None:
        super().__init__(daemon=True)
        self._port, self._path, self._accept = port, path, accept
        self._leave_at, self._rate, self._resumes = leave_at, rate, resumes
        self._hash = hashlib.sha256() if hashed else None
        self._leaving = threading.Event()
        self.size: int | None = None
        self.received = 0
        self.cut = 0
        self.seconds = 0.0
        self.failure: str | None = None
        self.left = False

    @property
    def digest(self) -> str | None:
        return f"sha256:{self._hash.hexdigest()}" if self._hash else None

    def leave(self) -> None:
        """Make it close its connection, wherever it is."""
        self._leaving.set()

    def run(self) -> None:
        begun = time.monotonic()
        while not self._finished():
            try:
                self._pull()
                if self._finished():
                    break
                reason = f"ended after {self.received} of {self.size} bytes"
            except _Refused as error:
                self.failure = str(error)
                break
            except OSError as error:
                reason = f"{type(error).__name__} after {self.received} bytes: {error}"
            self.cut += 1
            if self.cut > self._resumes:
                self.failure = reason
                break
            time.sleep(_PAUSE)
        self.seconds = time.monotonic() - begun

    def _finished(self) -> bool:
        return self.left or self.received == self.size

    def _pull(self) -> None:
        begun, before = time.monotonic(), self.received
        connection = Connection(self._port, self._path, start=self.received, accept=self._accept)
        try:
            self._check(connection)
            buffer = memoryview(bytearray(PIECE))
            while self.received != self.size and (count := connection.read_into(buffer)):
                if self._hash:
                    self._hash.update(buffer[:count])
                self.received += count
                if self._leaving.is_set() or (self._leave_at is not None and self.received >= self._leave_at):
                    self.left = True
                    return
                if self._rate:
                    self._leaving.wait(max(0.0, begun + (self.received - before) / self._rate - time.monotonic()))
        finally:
            connection.close()

    def _check(self, connection: Connection) -> None:
        """Take the size from the first answer; see that a later one goes on where the last ended."""
        if not self.received:
            if connection.status != 200:
                raise _Refused(f"status {connection.status}")
            self.size = connection.size
            return
        found = re.match(r"bytes (\d+)-", connection.headers.get("content-range", ""))
        if connection.status != 206 or not found or int(found[1]) != self.received:
            raise _Refused(f"a resume at {self.received} was answered by {connection.status}")


class _Refused(Exception):
    """An answer that a client does not try again after."""


def pull(port: int, path: str, buffer: memoryview) -> tuple[float, float]:
    """Pull a blob into a buffer of its size. Returns seconds to the first byte and to the last, from connecting on."""
    begun = time.perf_counter()
    connection = Connection(port, path)
    try:
        if connection.status != 200 or connection.size != len(buffer):
            raise RuntimeError(f"{path}: status {connection.status}, {connection.size} bytes")
        received, first = 0, 0.0
        while received < len(buffer):
            count = connection.read_into(buffer[received:])
            if not count:
                raise RuntimeError(f"{path}: ended after {received} of {len(buffer)} bytes")
            first = first or time.perf_counter()
            received += count
        return first - begun, time.perf_counter() - begun
    finally:
        connection.close()


def run_all(pullers: Sequence[Puller]) -> None:
    """Start clients at once."""
    for puller in pullers:
        puller.start()


def wait_all(pullers: Sequence[Puller], seconds: float = 600.0) -> None:
    """Wait for every client's end; those that do not end are told to leave, and count as failed."""
    deadline = time.monotonic() + seconds
    for puller in pullers:
        puller.join(max(0.0, deadline - time.monotonic()))
        if puller.is_alive():
            puller.failure = f"not done within {seconds:.0f} s"
            puller.leave()
    with suppress(RuntimeError):
        for puller in pullers:
            puller.join(5)
