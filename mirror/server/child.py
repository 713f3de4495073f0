"""One worker process, from fork to exit: its loop, its sockets, its end.

It obeys its parent alone: the phase on the board, and the end of the ``life`` pipe. Signals of the terminal or of
a service manager reach the whole process group and are the parent's to interpret.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from mirror.config import Config
from mirror.logs import AccessLog
from mirror.metrics import Metrics
from mirror.oci.errors import RegistryError
from mirror.server.board import Board, Phase
from mirror.server.protocol import Runner
from mirror.server.sockets import BACKLOG, Reservation
from mirror.worker import StartupError, WorkerContext

AppFactory = Callable[[Config, WorkerContext], Awaitable[web.Application]]

READY = b"ready\n"
FAILED = b"failed "
"""What a worker writes to its parent: that it listens, or the one line that says why it cannot."""

_PR_SET_PDEATHSIG = 1
_CANCEL_TIME = 0.5  # seconds, twice: for requests to end after the limit, before and after they are cancelled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs from its parent.

    life: read end of a pipe whose other end only the parent has. report: write end of one the parent reads.
    tick: seconds between two ticks. metrics: the folder.
    """

    config: Config
    build_app: AppFactory
    slot: int
    workers: int
    board: Board
    reservations: Sequence[Reservation]
    metrics: Path
    life: int
    report: int
    parent: int
    tick: float


def run(job: Job) -> int:
    """Be a worker until the service stops; return the exit code."""
    if not _end_with(job.parent):
        return 1
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client takes three descriptors
    try:
        asyncio.run(_work(job))
    except _Refused as error:
        # The parent says it, once, however many workers it hits.
        os.write(job.report, FAILED + str(error.__cause__).replace("\n", " ").encode()[:2000] + b"\n")
        return 1
    except Exception:
        log.exception("worker %d failed", job.slot)
        return 1
    return 0


class _Refused(Exception):
    """Starting failed for a reason outside the program: its cause is what to tell the operator."""


async def _work(job: Job) -> None:
    loop = asyncio.get_running_loop()
    _keep_ticking(loop, job)
    ended = loop.create_future()
    loop.add_reader(job.life, _life_ended, job, ended)
    access_log = AccessLog()
    try:
        runner = await _start(job, access_log)
        gc.collect()
        gc.freeze()  # what exists now lives as long as the worker: collections need not look at it
        os.write(job.report, READY)
        await ended
        await _drain(runner, job.config.drain_timeout)
    finally:
        loop.remove_reader(job.life)
        access_log.close()


async def _start(job: Job, access_log: AccessLog) -> Runner:
    try:
        context = WorkerContext(
            slot=job.slot,
            workers=job.workers,
            metrics=Metrics(job.metrics, job.slot),
            stopping=job.board.stopping,
            access_log=access_log,
        )
        runner = Runner(
            await job.build_app(job.config, context),
            access_log=None,  # the default one halves the requests per second
            auto_decompress=False,  # digests are of the bytes as sent
            handler_cancellation=False,
            keepalive_timeout=75,  # the only timer there is for request headers
            shutdown_timeout=_CANCEL_TIME,  # after our own wait
        )
        await runner.setup()
        for reservation in job.reservations:
            await web.SockSite(runner, reservation.open(), ssl_context=reservation.tls, backlog=BACKLOG).start()
    except (StartupError, RegistryError, OSError) as error:
        raise _Refused from error
    return runner


async def _drain(runner: Runner, timeout: float) -> None:
    """Stop listening, let running requests end for at most ``timeout`` seconds, then close everything."""
    for site in list(runner.sites):
        await site.stop()
    await asyncio.sleep(0)  # what was accepted in this very round gets its handler
    server = runner.server
    if server is not None:
        deadline = asyncio.get_running_loop().time() + timeout
        transports = [handler.transport for handler in server.connections if handler.transport is not None]
        server.pre_shutdown()  # without it ``shutdown`` would wait for idle connections as for busy ones
        # Idle connections close now, busy ones after their response. Its own second half, which waits as long
        # again for handlers that do not end, is left to the cleanup and its shorter time.
        ending = asyncio.create_task(server.shutdown(timeout))
        await asyncio.wait({ending}, timeout=timeout)
        if not ending.done():
            log.warning("%d requests did not end within drain_timeout and are cut off", len(server.connections))
            ending.cancel()
            await asyncio.wait({ending})
        # A response that is finished may have its last bytes in our memory still; they would go with the process.
        while any(one.get_write_buffer_size() for one in transports) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
    await runner.cleanup()


def _keep_ticking(loop: asyncio.AbstractEventLoop, job: Job) -> None:
    job.board.tick(job.slot)
    loop.call_later(job.tick, _keep_ticking, loop, job)


def _life_ended(job: Job, ended: asyncio.Future[None]) -> None:
    if job.board.phase is not Phase.DRAINING:
        os._exit(1)  # the parent did not close it, it died
    if not ended.done():
        ended.set_result(None)
    asyncio.get_running_loop().remove_reader(job.life)


def _end_with(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; False when it has ended already."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        pass  # not Linux: the end of the life pipe has to do
    return os.getppid() == parent
