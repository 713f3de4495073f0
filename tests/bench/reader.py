"""A load generator that reads at most 64 KiB at a time: one thread, many connections, one path over and over.

python -m tests.bench.reader PORT PATH CONNECTIONS SECONDS
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

PIECE = 64 * 1024


class _Client:
    """One keep-alive connection: asks again when an answer is whole."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self._request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._head = b""
        self._left = 0
        self.whole = self.failed = self.bytes = 0
        self.socket.sendall(self._request)

    def read(self, buffer: memoryview) -> bool:
        """Read once; False when the connection has ended."""
        if self._left:
            count = self.socket.recv_into(buffer, min(PIECE, self._left))
        else:
            count = self._read_head()
        if not count:
            self.failed += 1
            return False
        self.bytes += count
        if self._left:
            self._left -= count
            if not self._left:
                self.whole += 1
                self.socket.sendall(self._request)
        elif self._head.endswith(b"\r\n\r\n"):
            lines = self._head.decode("latin-1").lower().split("\r\n")
            self.failed += " 200 " not in lines[0]
            self._left = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
            self._head = b""
        return True

    def _read_head(self) -> int:
        seen = self.socket.recv(4096, socket.MSG_PEEK)
        end = (self._head + seen).find(b"\r\n\r\n")
        taken = self.socket.recv(len(seen) if end < 0 else end + 4 - len(self._head)) if seen else b""
        self._head += taken
        return len(taken)


def main() -> None:
    port, path, connections, seconds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    clients = [_Client(port, path) for _ in range(connections)]
    buffer = memoryview(bytearray(PIECE))
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
        begun = now = time.monotonic()
        while (now := time.monotonic()) < begun + seconds and selector.get_map():
            for key, _ in selector.select(0.1):
                if not key.data.read(buffer):
                    selector.unregister(key.fileobj)
    found = {
        "requests": sum(client.whole for client in clients),
        "bytes": sum(client.bytes for client in clients),
        "microseconds": int((now - begun) * 1e6),
        "failed": sum(client.failed for client in clients),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
