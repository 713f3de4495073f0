"""An HTTP proxy that does what a test tells it to: CONNECT and absolute-form, names only it knows, logins, a log.

async with FakeProxy(names={"hub.test": "127.0.0.1"}) as proxy:
    ...
    assert proxy.targets() == ["CONNECT hub.test:443"]
    assert proxy.carried(hub)          # everything the hub was asked came from here
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl as ssl_module
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.fake_upstream import FakeUpstream

PIECE = 64 * 1024


@dataclass
class Asked:
    """A request as the proxy read it. down: bytes sent back to the client. status: what the proxy itself said."""

    method: str
    target: str
    headers: dict[str, str]
    status: int = 200
    down: int = 0


@dataclass
class FakeProxy:
    """The proxy. Every field may be changed while it runs.

    names: the hosts it can reach, and their addresses. login: "user:password" it wants. refuse: status it gives to
    everything instead. says: headers of its own answers. hang: it never answers. drop: it hangs up without an
    answer. cut_after: bytes down after which a connection is cut, ``cuts`` times. ssl: what it speaks TLS with.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    login: str | None = None
    refuse: int | None = None
    says: Sequence[str] = ("X-Squid-Error: ERR_OF_SOME_KIND 0",)
    hang: bool = False
    drop: bool = False
    cut_after: int | None = None
    cuts: int = 0
    ssl: ssl_module.SSLContext | None = None
    log: list[Asked] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    port: int = 0

    async def __aenter__(self) -> FakeProxy:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, ssl=self.ssl)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl else 'http'}://127.0.0.1:{self.port}"

    def targets(self) -> list[str]:
        """Return what it was asked for: ``["CONNECT hub.test:443", "GET http://hub.test/v2/"]``."""
        return [f"{asked.method} {asked.target}" for asked in self.log]

    def hosts(self) -> set[str]:
        """Return the hosts it was asked for."""
        return {urlsplit(a.target if "://" in a.target else f"//{a.target}").hostname or "" for a in self.log}

    def carried(self, hub: FakeUpstream) -> bool:
        """Say whether everything that the hub was asked came by way of this proxy."""
        return bool(hub.log) and all(request.peer[1] in self.ports for request in hub.log)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over; asyncio's server would log a cancelled handler
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        asked = Asked(method, target, headers)
        self.log.append(asked)
        if self.hang:
            await asyncio.Event().wait()
        if self.drop:
            return
        asked.status = self._verdict(asked)
        split = urlsplit(target if "://" in target else f"//{target}")
        if asked.status == 200:
            try:
                from_host, to_host = await asyncio.open_connection(self.names[split.hostname or ""], split.port or 80)
            except (OSError, KeyError):
                asked.status = 503
        if asked.status != 200:
            head = (f"HTTP/1.1 {asked.status} No", *self.says, "Content-Length: 0", "", "")
            writer.write("\r\n".join(head).encode())
            await writer.drain()
            return
        self.ports.add(to_host.get_extra_info("sockname")[1])
        try:
            if method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                path = target.split(split.netloc, 1)[1]
                kept = [line for line in lines if line and not line.lower().startswith(("proxy-", "connection:"))]
                head = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""])
                to_host.write(head.encode("latin-1"))
            await self._carry(asked, reader, writer, from_host, to_host)
        finally:
            to_host.transport.abort()

    def _verdict(self, asked: Asked) -> int:
        if self.refuse is not None:
            return self.refuse
        if self.login is not None:
            expected = f"Basic {base64.b64encode(self.login.encode()).decode()}"
            if asked.headers.get("proxy-authorization") != expected:
                return 407
        return 200

    async def _carry(
        self,
        asked: Asked,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_host: asyncio.StreamReader,
        to_host: asyncio.StreamWriter,
    ) -> None:
        async def up() -> None:
            while data := await reader.read(PIECE):
                to_host.write(data)
                await to_host.drain()

        async def down() -> None:
            while data := await from_host.read(PIECE):
                asked.down += len(data)
                writer.write(data)
                await writer.drain()
                if self.cuts and self.cut_after is not None and asked.down >= self.cut_after:
                    self.cuts -= 1
                    return
            # what was carried to its end is read to its end
            writer.write_eof() if writer.can_write_eof() else writer.close()
            await writer.wait_closed()

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
