"""The application in this very process, for nobody but this process: on loopback, behind a word only we know.

Whoever has the root may do with it what a service does, for as long as the command takes. What the configuration
lets clients do is not asked, as there are none: others on this machine find the port, and are refused.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mirror import metrics
from mirror.config import Access, Config, ListenAddress, Listener
from mirror.logs import AccessLog
from mirror.server.child import AppFactory
from mirror.server.protocol import Runner
from mirror.worker import StartupError, WorkerContext

HEADER = "X-Mirror-Alone"
_LOOPBACK = "127.0.0.1"
_CANCEL_TIME = 0.5  # seconds for requests to end, twice


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Where the application answers. headers: what it answers to, a secret."""

    url: str
    headers: Mapping[str, str] = field(repr=False)


@asynccontextmanager
async def serve_alone(config: Config, build_app: AppFactory) -> AsyncIterator[Alone]:
    """Run the application. The caller owns the root.

    Raises: StartupError when the root cannot be used.
    """
    word = secrets.token_urlsafe(32)
    own = config.model_copy(
        update={
            "access": Access(),
            "listen": (Listener(address=ListenAddress(_LOOPBACK, 0)),),
            "admin_listen": (),
            "tls": None,
            "trusted_proxies": (),
            "packages": None,
            "workers": 1,
        }
    )
    folder = config.storage.root.absolute() / "run" / "metrics"
    async with AsyncExitStack() as stack:
        try:
            await asyncio.to_thread(metrics.prepare, folder, 1)
            counts = await asyncio.to_thread(metrics.Metrics, folder, 0)
        except OSError as error:
            raise StartupError(f"cannot write to {folder}: {error.strerror}") from error
        stack.callback(counts.close)
        context = WorkerContext(
            slot=0, workers=1, leading=True, metrics=counts, stopping=lambda: False, access_log=_NoLog()
        )
        app = await build_app(own, context)
        app.middlewares.append(_only_with(word))
        runner = Runner(app, access_log=None, auto_decompress=False, shutdown_timeout=_CANCEL_TIME)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, _LOOPBACK, 0).start()
        yield Alone(url=f"http://{_LOOPBACK}:{runner.addresses[0][1]}", headers={HEADER: word})


class _NoLog(AccessLog):
    """Who asks knows."""

    def write(self, fields: Mapping[str, Any]) -> None:
        pass


def _only_with(word: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return what refuses every request that does not have the word."""

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        said = request.headers.get(HEADER, "")
        if not secrets.compare_digest(said.encode("utf-8", "replace"), word.encode()):
            return web.Response(status=403, text="a command of this machine's owner runs here, for itself\n")
        return await handler(request)

    return check
