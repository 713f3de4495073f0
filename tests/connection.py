"""One HTTP/1.x connection, request by request: what is on it byte by byte, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl as ssl_module
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    """A response. headers: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The one error of an error response; checks its shape (distribution-spec, "Error Codes")."""
        assert self.headers["content-type"] == "application/json"
        found = json.loads(self.body)
        assert set(found) == {"errors"}
        assert len(found["errors"]) == 1
        error: dict[str, Any] = found["errors"][0]
        assert set(error) <= {"code", "message", "detail"}
        assert error["message"]
        return error

    @property
    def code(self) -> str:
        code: str = self.error["code"]
        return code


class Connection:
    """Requests and responses, one after the other. Nothing is read that was not asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader = reader
        self.writer = writer
        self._host = host

    def send(
        self, method: str, target: str, *, version: str = "1.1", body: bytes = b"", **headers: str | bytes | None
    ) -> None:
        """Send a request; a header of None is left out. Underscores of names are dashes."""
        fields: dict[str, Any] = {"Host": self._host}
        if body:
            fields["Content-Length"] = str(len(body))
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        data = f"{method} {target} HTTP/{version}\r\n".encode("utf-8", "surrogateescape")
        for name, value in fields.items():
            if value is not None:
                data += f"{name}: ".encode() + (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
        self.writer.write(data + b"\r\n" + body)

    async def head(self) -> Answer:
        """Read a status line and headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in filter(None, lines[1:]):
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} is there twice"
            headers[name.lower()] = value.strip()
        return Answer(int(lines[0].split()[1]), headers, b"")

    async def ask(self, method: str, target: str, **arguments: Any) -> Answer:
        """Send a request and read the whole response."""
        self.send(method, target, **arguments)
        async with asyncio.timeout(20):
            answer = await self.head()
            if method == "HEAD" or answer.status in (204, 304):
                return answer
            if answer.headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readuntil(b"\r\n"), 16):
                    answer.body += (await self.reader.readexactly(size + 2))[:-2]
                assert await self.reader.readexactly(2) == b"\r\n"
            elif "content-length" in answer.headers:
                answer.body = await self.reader.readexactly(int(answer.headers["content-length"]))
            else:
                answer.body = await self.reader.read()
        return answer

    async def end(self) -> tuple[bytes, str]:
        """Read up to the end. Returns the rest, and "fin" or "reset"."""
        rest = bytearray()
        async with asyncio.timeout(20):
            try:
                while data := await self.reader.read(65536):
                    rest += data
            except ConnectionResetError:
                return bytes(rest), "reset"
        return bytes(rest), "fin"


@contextlib.asynccontextmanager
async def connect(
    url: str, *, rcvbuf: int | None = None, limit: int = 65536, ssl: ssl_module.SSLContext | None = None
) -> AsyncIterator[Connection]:
    """Connect to a server. rcvbuf: bytes the kernel keeps for us, limit: bytes kept in memory."""
    host = url.split("/")[2]
    name, _, port = host.rpartition(":")
    sock = socket.socket()
    if rcvbuf is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (name, int(port)))
    reader, writer = await asyncio.open_connection(
        sock=sock, limit=limit, ssl=ssl, server_hostname="localhost" if ssl else None
    )
    try:
        yield Connection(reader, writer, host)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
