"""The upstream: a registry that gives content at a set rate and counts every byte, in a process of its own.

A thread per connection and nothing else, so that it costs less than what it measures. Any repository has everything.

    GET HEAD  /v2/…/blobs/<digest>, /v2/…/manifests/<tag or digest>    as a registry; single ranges of blobs
    POST      /bench/blob?size=N&seed=N                                make content; answers its digest
    PUT       /bench/manifest/<tag>                                    take a manifest (its Content-Type kept)
    POST      /bench/rate?bytes=N                                      bytes per second of each connection; 0: no limit
    GET       /bench/log                                               every registry request, with body bytes sent
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.bench.content import Content

RATED_PIECE = 64 * 1024
FREE_PIECE = 1024 * 1024


class _Registry(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Connection)
        self.rate = 0
        self.blobs: dict[str, Content] = {}
        self.manifests: dict[str, tuple[bytes, str, str]] = {}  # tag or digest → bytes, media type, digest
        self.log: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Connection(socketserver.StreamRequestHandler):
    server: _Registry
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while line := self.rfile.readline(8192):
            method, target, _ = line.decode("latin-1").split(" ")
            headers = dict(self._headers())
            body = self.rfile.read(int(headers.get("content-length", 0)))
            if target.startswith("/bench/"):
                self._control(method, target, headers, body)
            else:
                self._serve(method, target, headers)

    def _headers(self) -> Iterator[tuple[str, str]]:
        while line := self.rfile.readline(8192).decode("latin-1").rstrip("\r\n"):
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()

    def _control(self, method: str, target: str, headers: dict[str, str], body: bytes) -> None:
        parts, server = urlsplit(target), self.server
        values = {name: int(value[0]) for name, value in parse_qs(parts.query).items()}
        answer: Any = {}
        match method, parts.path:
            case "POST", "/bench/blob":
                content = Content(values["size"], values["seed"])
                server.blobs[content.digest] = content
                answer = {"digest": content.digest}
            case "POST", "/bench/rate":
                server.rate = values["bytes"]
            case "GET", "/bench/log":
                with server.lock:
                    answer = [dict(entry) for entry in server.log]
            case "PUT", path if path.startswith("/bench/manifest/"):
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                found = (body, headers["content-type"], digest)
                server.manifests[path.rpartition("/")[2]] = server.manifests[digest] = found
                answer = {"digest": digest}
        data = json.dumps(answer).encode()
        self._head(200, {"Content-Length": str(len(data))})
        self.request.sendall(data)

    def _serve(self, method: str, target: str, headers: dict[str, str]) -> None:
        path = urlsplit(target).path
        asked = headers.get("range", "")
        entry = {"method": method, "path": path, "range": asked, "sent": 0}
        with self.server.lock:
            self.server.log.append(entry)
        kind, _, name = path.removeprefix("/v2/").rpartition("/")
        if kind.endswith("/manifests") and name in self.server.manifests:
            raw, media_type, digest = self.server.manifests[name]
            self._head(
                200,
                {"Content-Type": media_type, "Docker-Content-Digest": digest, "Content-Length": str(len(raw))},
            )
            if method == "GET":
                self._send(memoryview(raw), entry)
        elif kind.endswith("/blobs") and name in self.server.blobs:
            self._blob(method, self.server.blobs[name], asked, entry)
        else:
            self._head(200 if path == "/v2/" else 404, {"Content-Length": "0"})

    def _blob(self, method: str, content: Content, asked: str, entry: dict[str, Any]) -> None:
        start, stop = 0, content.size
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": content.digest}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        if found:
            start, stop = int(found[1]), min(int(found[2]) + 1, stop) if found[2] else stop
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
        self._head(206 if found else 200, {**headers, "Content-Length": str(stop - start)})
        if method != "GET":
            return
        rate, begun, sent = self.server.rate, time.monotonic(), 0
        for piece in content.pieces(start, stop, RATED_PIECE if rate else FREE_PIECE):
            self._send(piece, entry)
            sent += len(piece)
            if rate and (ahead := begun + sent / rate - time.monotonic()) > 0:
                time.sleep(ahead)

    def _send(self, data: memoryview, entry: dict[str, Any]) -> None:
        while data:
            count = self.request.send(data)
            entry["sent"] += count
            data = data[count:]

    def _head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Bench", *(f"{name}: {value}" for name, value in headers.items())]
        self.request.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())


def main() -> None:
    """Serve on the loopback port given as the only argument, until killed."""
    with _Registry(int(sys.argv[1])) as server:
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.serve_forever()


if __name__ == "__main__":
    main()
