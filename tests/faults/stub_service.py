"""A service of real processes around a small application, for tests: ``python stub_service.py '<json>'``.

Settings: config (as of ``Config``), reload (the file that SIGHUP has it read), hang_limit, look_every, longest_end (of
workers of an earlier configuration, in seconds), level, and how it is to fail at its start: refuse, crash.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from mirror.api.keys import ADMIN
from mirror.config import Config, load_config
from mirror.logs import level_of, setup_logging
from mirror.server import generations, serve
from mirror.worker import StartupError, WorkerContext

SETTINGS: dict[str, Any] = json.loads(sys.argv[1])


async def build_app(config: Config, worker: WorkerContext) -> web.Application:
    while not worker.leading and SETTINGS.get("gate") and not Path(SETTINGS["gate"]).exists():
        await asyncio.sleep(0.01)
    failure = SETTINGS.get("fail")
    if failure and (not SETTINGS.get("fail_if") or Path(SETTINGS["fail_if"]).exists()):
        if failure == "refuse":
            raise StartupError("the stub does not like it here")
        if failure == "oserror":
            raise PermissionError(13, "Permission denied", "/some/where")
        os._exit(3)

    async def who(request: web.Request) -> web.Response:
        worker.metrics.requests.labels("GET", "who", "200").inc()
        return web.json_response(
            {
                "pid": os.getpid(),
                "slot": worker.slot,
                "workers": worker.workers,
                "leading": worker.leading,
                "root": str(config.storage.root),
                "mark": config.names[0] if config.names else None,
                "secure": request.secure,
            }
        )

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(request: web.Request) -> web.Response:
        return web.Response(status=503 if worker.stopping() else 200)

    async def slow(request: web.Request) -> web.StreamResponse:
        """Send "started", then "finished" when the file of that name exists."""
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"started\n")
        while not os.path.exists(request.query["until"]):
            await asyncio.sleep(0.01)
        await response.write(b"finished\n")
        return response

    async def large(request: web.Request) -> web.StreamResponse:
        """Send as much as the kernel takes and a little more; write into the file how many bytes that was."""
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        assert request.transport is not None
        sent = 0
        while not request.transport.get_write_buffer_size():
            await response.write(bytes(32 * 1024))
            sent += 32 * 1024
        await response.write_eof()
        Path(request.query["done"]).write_text(str(sent))
        return response

    async def upload(request: web.Request) -> web.Response:
        """Count what is sent."""
        return web.json_response({"pid": os.getpid(), "bytes": len(await request.read())})

    async def block(request: web.Request) -> web.Response:
        time.sleep(3600)
        return web.Response()

    async def hold(request: web.Request) -> web.Response:
        worker.metrics.downloads.inc()
        return web.json_response({"pid": os.getpid()})

    async def orphan(request: web.Request) -> web.Response:
        """Undo what the kernel was told about our parent."""
        ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)
        return web.json_response({"pid": os.getpid()})

    async def log(request: web.Request) -> web.Response:
        worker.access_log.write({"path": request.query["mark"], "pid": os.getpid()})
        return web.Response()

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(worker.metrics.render, worker.metrics.read()))

    app = web.Application()
    for handler in (who, healthz, readyz, slow, large, block, hold, orphan, log, metrics):
        app.router.add_get(f"/{handler.__name__}", handler)
    app.router.add_post("/upload", upload)
    app[ADMIN] = web.Application()
    app[ADMIN].router.add_get("/slow", slow)
    app[ADMIN].router.add_get("/admin", who)
    return app


def reload() -> Config:
    """Read the file that the settings name."""
    return load_config(Path(SETTINGS["reload"]), again=True)


if __name__ == "__main__":
    generations.LONGEST_END = SETTINGS.get("longest_end", generations.LONGEST_END)
    setup_logging(level=level_of(SETTINGS.get("level", "info")))
    try:
        sys.exit(
            serve(
                Config.model_validate(SETTINGS["config"]),
                build_app,
                reload=reload,
                hang_limit=SETTINGS.get("hang_limit", 10.0),
                look_every=SETTINGS.get("look_every", 2.0),
            )
        )
    except StartupError as error:
        sys.exit(f"mirror: {error}")
