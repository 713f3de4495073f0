"""A mirror under test: real applications on real sockets, in front of whatever upstream a test has.

Several of them on one root behave as several processes do: they share nothing but the disk, and leases exclude
each other within a process as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl as ssl_module
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from mirror.config import Config, Upstream
from mirror.logs import AccessLog
from mirror.metrics import Metrics, prepare
from mirror.server.protocol import Runner
from mirror.wiring import build_app
from mirror.worker import WorkerContext


def make_config(root: Path, upstreams: Mapping[str, Any], **settings: Any) -> Config:
    """Return a configuration with these upstreams; the first is the default unless one is given.

    What an upstream does shows at once and once: nothing is repeated, no host is left alone, unless a test says so.
    """
    settings.setdefault("default_upstream", next(iter(upstreams), None))
    found = {
        name: value if isinstance(value, Upstream) else Upstream(**{"retries": 0, "breaker_window": 0} | value)
        for name, value in upstreams.items()
    }
    return Config(storage={"root": root}, upstreams=found, **settings)


class Mirror:
    """One running worker. url: where it answers. app: the application. lines: its access log."""

    def __init__(self, app: web.Application, runner: Runner, port: int, lines: Lines, scheme: str) -> None:
        self.app = app
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.lines = lines.written
        self.stopping = False
        self._runner = runner
        self.session = aiohttp.ClientSession(auto_decompress=False)

    async def get(self, path: str, **arguments: Any) -> Answer:
        return await self.ask("GET", path, **arguments)

    async def head(self, path: str, **arguments: Any) -> Answer:
        return await self.ask("HEAD", path, **arguments)

    async def ask(self, method: str, path: str, **arguments: Any) -> Answer:
        async with self.session.request(method, self.url + path, **arguments) as response:
            return Answer(response.status, response.headers.copy(), await response.read())

    async def stop(self) -> None:
        """Stop it as SIGTERM does; doing so twice is harmless."""
        if self.session.closed:
            return
        await self.session.close()
        await self._runner.cleanup()


class Lines(AccessLog):
    """An access log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.written: list[dict[str, Any]] = []

    def write(self, fields: Mapping[str, Any]) -> None:
        self.written.append(dict(fields))


class Answer:
    """A whole response."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str:
        import json

        code: str = json.loads(self.body)["errors"][0]["code"]
        return code

    def __repr__(self) -> str:
        return f"<{self.status} {len(self.body)} bytes {self.body[:200]!r} {dict(self.headers)}>"


async def start_mirror(config: Config, *, slot: int = 0, ssl: ssl_module.SSLContext | None = None) -> Mirror:
    """Start one worker. ssl: what it speaks TLS with."""
    metrics = await asyncio.to_thread(Metrics, config.storage.root / "run" / "metrics", slot)
    lines = Lines()
    context = WorkerContext(
        slot=slot,
        workers=4,
        leading=slot == 0,
        metrics=metrics,
        stopping=lambda: started.stopping,
        access_log=lines,
    )
    app = await build_app(config, context)

    async def close(_: web.Application) -> None:
        lines.close()
        metrics.close()

    app.on_cleanup.append(close)
    runner = Runner(app, auto_decompress=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl)
    await site.start()
    port = runner.addresses[0][1]
    started = Mirror(app, runner, port, lines, "https" if ssl else "http")
    return started


@contextlib.asynccontextmanager
async def mirrors(
    config: Config, count: int = 1, *, ssl: ssl_module.SSLContext | None = None
) -> AsyncIterator[list[Mirror]]:
    """Run ``count`` workers on one root."""
    await asyncio.to_thread(prepare, config.storage.root / "run" / "metrics", count)
    started: list[Mirror] = []
    try:
        for slot in range(count):
            started.append(await start_mirror(config, slot=slot, ssl=ssl))
        yield started
    finally:
        await asyncio.gather(*(mirror.stop() for mirror in started))


@contextlib.asynccontextmanager
async def mirror(config: Config, *, ssl: ssl_module.SSLContext | None = None) -> AsyncIterator[Mirror]:
    """Run one worker."""
    async with mirrors(config, ssl=ssl) as (one,):
        yield one
