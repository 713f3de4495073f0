"""A client that pushes blobs over one connection, by POST and one PUT each: ``python -m tests.bench.pusher``.

Arguments: port, repository, number of blobs, bytes of each, seed. Prints JSON: the microseconds it took from the
first request to the last answer, and how many blobs were taken.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from http.client import HTTPResponse

from tests.bench.content import Content


def main(port: int, repository: str, blobs: int, size: int, seed: int) -> None:
    contents = [Content(size, seed + number) for number in range(blobs)]
    for content in contents:
        _ = content.digest  # taken before the clock runs
    connection = socket.create_connection(("127.0.0.1", port), 60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    taken = 0
    began = time.perf_counter()
    for content in contents:
        _, location = _ask(connection, port, "POST", f"/v2/{repository}/blobs/uploads/", None)
        path = location[location.index("/v2/") :]
        status, _ = _ask(
            connection, port, "PUT", f"{path}{'&' if '?' in path else '?'}digest={content.digest}", content
        )
        taken += status == 201
    print(json.dumps({"microseconds": (time.perf_counter() - began) * 1e6, "taken": taken}))


def _ask(connection: socket.socket, port: int, method: str, path: str, content: Content | None) -> tuple[int, str]:
    size = content.size if content else 0
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {size}\r\n"
    connection.sendall(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode())
    for piece in content.pieces() if content else ():
        connection.sendall(piece)
    response = HTTPResponse(connection, method=method)
    response.begin()
    response.read()
    return response.status, response.headers.get("Location", "")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
