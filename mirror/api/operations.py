"""Signs of life: none of them ever depends on an upstream."""

from __future__ import annotations

import asyncio
from typing import Literal

from aiohttp import web

from mirror.worker import WorkerContext

TEXT = "text/plain; version=0.0.4; charset=utf-8"


async def operate(operation: Literal["healthz", "readyz", "metrics"], worker: WorkerContext) -> web.Response:
    """Answer ``/healthz`` (the process answers), ``/readyz`` (send it clients) or ``/metrics`` (of all workers)."""
    match operation:
        case "healthz":
            return web.Response(text="ok\n")
        case "readyz":
            if worker.stopping():
                return web.Response(status=503, text="stopping\n")
            return web.Response(text="ready\n")
        case "metrics":
            read = worker.metrics.read()
            body = await asyncio.get_running_loop().run_in_executor(None, worker.metrics.render, read)
            return web.Response(body=body, headers={"Content-Type": TEXT})
