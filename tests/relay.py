"""A way to a server that is not there yet: a port of its own that hands connections on to wherever it is told."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import urlsplit


class Relay:
    """Listens on loopback. url: its own. connections: how many came so far. open: while cleared, they are held."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.open = asyncio.Event()
        self.open.set()
        self._target = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def lead_to(self, url: str) -> None:
        """Hand connections on to the server at this URL."""
        self._target = url

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to: asyncio.StreamWriter | None = None
        try:
            await self.open.wait()
            target = urlsplit(self._target)
            back, to = await asyncio.open_connection(target.hostname, target.port)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, to))
                both.create_task(_pump(back, writer))
        finally:
            self._tasks.discard(task)
            for end in (writer, to):
                if end is not None:
                    end.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy until the source ends, and say so."""
    with contextlib.suppress(ConnectionError):
        while piece := await source.read(1 << 16):
            sink.write(piece)
            await sink.drain()
        sink.write_eof()
