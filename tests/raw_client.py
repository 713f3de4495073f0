"""A client that sees how a connection ends, which HTTP libraries hide."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit


class Client:
    """One GET whose body is read as it comes.

    ended: "clean" (all that was announced), "short" (a FIN before that) or "reset". status: 0 before the headers.
    resume: cleared, it stops reading.
    """

    def __init__(self, url: str, **headers: str) -> None:
        self.body = bytearray()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = ""
        self.resume = asyncio.Event()
        self.resume.set()
        self._url = urlsplit(url)
        self._sent = headers
        self.task = asyncio.create_task(self._run())

    async def has(self, count: int, seconds: float = 30) -> None:
        """Wait until that many bytes of the body are here."""
        async with asyncio.timeout(seconds):
            while len(self.body) < count:
                assert not self.task.done(), f"ended ({self.ended}, {self.status}) after {len(self.body)} bytes"
                await asyncio.sleep(0.005)

    async def _run(self) -> Client:
        reader, writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        try:
            lines = [f"GET {self._url.path}{'?' + self._url.query if self._url.query else ''} HTTP/1.1"]
            lines += [f"Host: {self._url.netloc}", *(f"{key}: {value}" for key, value in self._sent.items())]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
            try:
                self.ended = await self._receive(reader)
            except ConnectionResetError:
                self.ended = "reset"
            except asyncio.IncompleteReadError:
                self.ended = "short"
        finally:
            writer.close()
        return self

    async def _receive(self, reader: asyncio.StreamReader) -> str:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in head[1:])}
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                await self._take(reader, size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            return "clean"
        return await self._take(reader, int(self.headers["content-length"]))

    async def _take(self, reader: asyncio.StreamReader, size: int) -> str:
        while size:
            await self.resume.wait()
            data = await reader.read(min(size, 65536))
            if not data:
                raise asyncio.IncompleteReadError(b"", size)
            self.body += data
            size -= len(data)
        return "clean"
