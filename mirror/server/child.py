"""One worker process, from fork to exit: its loop, its sockets, its end.

It obeys its parent alone: the boards, and the ends of two pipes. Signals of the terminal or of
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
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from mirror.api.keys import ADMIN
from mirror.config import Config
from mirror.logs import AccessLog, human_of, level_of
from mirror.metrics import Metrics
from mirror.oci.errors import RegistryError
from mirror.server import pulse
from mirror.server.board import Board, Phase, Ticks
from mirror.server.certificates import watch
from mirror.server.doors import Door, certificates, show_certificates
from mirror.server.draining import drain, stop_listening
from mirror.server.owner import still_owned
from mirror.server.protocol import Runner
from mirror.server.sockets import BACKLOG
from mirror.worker import StartupError, WorkerContext

AppFactory = Callable[[Config, WorkerContext], Awaitable[web.Application]]

PREPARED = b"prepared\n"
READY = b"ready\n"
LEFT = b"left\n"
FAILED = b"failed "
"""What a worker writes to its parent: that it could listen, that it does, that it does no more; or the one line that
says why it cannot.
"""

_PR_SET_PDEATHSIG = 1
_CANCEL_TIME = 0.5  # seconds, twice: for requests to end after the limit, before and after they are cancelled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a worker needs from its parent.

    owned: the lock of its root. index: its place in its generation, of so many workers; slot: the place where it
    counts. settle: called with the configuration before anything else. sockets: to accept from, at each door. metrics:
    the folder. life, go: read ends of pipes whose other ends only the parent has: when they end, the worker has to, or
    may listen. report: write end of a pipe the parent reads. tick, look: seconds between two ticks, and between two
    looks at certificates.
    """

    config: Config
    owned: int
    build_app: AppFactory
    settle: Callable[[Config], None]
    index: int
    slot: int
    workers: int
    board: Board
    ticks: Ticks
    sockets: Sequence[tuple[Door, Sequence[socket.socket]]]
    metrics: Path
    life: int
    go: int
    report: int
    parent: int
    tick: float
    look: float


def run(job: Job) -> int:
    """Be a worker until the parent ends it; return the exit code."""
    if not _end_with(job.parent):
        return 1
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client takes three descriptors
    try:
        job.settle(job.config)
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
    access_log = AccessLog(
        human=human_of(job.config.log.format), enabled=level_of(job.config.log.level) <= logging.INFO
    )
    try:
        context = _context(job, access_log)
        runners = await _prepare(job, context)
        gc.collect()
        gc.freeze()  # what exists now lives as long as the worker: collections need not look at it
        os.write(job.report, PREPARED)
        await _allowed(job.go)
        await _listen(job, runners)
        os.write(job.report, READY)
        watched = certificates(door for door, _ in job.sockets)
        watching = asyncio.create_task(watch(watched, every=job.look, telling=context.leading))
        await ended
        watching.cancel()
        await stop_listening(runners.every, [one for _, sockets in job.sockets for one in sockets])
        os.write(job.report, LEFT)
        await drain(
            runners.every,
            deadline=lambda: job.ticks.deadline,
            patient=lambda: job.board.phase is not Phase.DRAINING,
            leading=lambda: context.metrics.downloads.number > 0,
        )
    finally:
        loop.remove_reader(job.life)
        access_log.close()


def _context(job: Job, access_log: AccessLog) -> WorkerContext:
    try:
        metrics = Metrics(job.metrics, job.slot)
    except OSError as error:
        raise _Refused from error
    job.board.show(metrics)
    show_certificates(metrics, [door for door, _ in job.sockets])
    context = WorkerContext(
        slot=job.slot,
        workers=job.workers,
        leading=job.index == 0,
        metrics=metrics,
        stopping=job.board.stopping,
        retired=lambda: job.ticks.retired,
        access_log=access_log,
    )
    pulse.show(context, job.parent)
    return context


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runners:
    """What runs the application, and the one for administrators."""

    clients: Runner
    administrators: Runner | None

    @property
    def every(self) -> list[Runner]:
        return [self.clients] if self.administrators is None else [self.clients, self.administrators]


async def _prepare(job: Job, context: WorkerContext) -> _Runners:
    """Do everything that can fail before somebody is answered."""
    root = job.config.storage.root
    try:
        if not still_owned(root, job.owned):
            raise StartupError(f"{root} is no longer the folder the service was started with; put that back")
        app = await job.build_app(job.config, context)
        clients, administrators = await _runner(app), None
        if any(door.admin for door, _ in job.sockets):
            if (admin := app.get(ADMIN)) is None:
                raise StartupError("admin_listen: there is nothing for administrators; leave it out")
            administrators = await _runner(admin)
    except (StartupError, RegistryError, OSError) as error:
        raise _Refused from error
    return _Runners(clients=clients, administrators=administrators)


async def _runner(app: web.Application) -> Runner:
    runner = Runner(
        app,
        access_log=None,  # the default one halves the requests per second
        auto_decompress=False,  # digests are of the bytes as sent
        handler_cancellation=False,
        keepalive_timeout=75,  # the only timer there is for request headers
        shutdown_timeout=_CANCEL_TIME,  # after our own wait
    )
    await runner.setup()
    return runner


async def _allowed(go: int) -> None:
    """Wait until the parent lets its workers listen: all at once, when all could."""
    loop = asyncio.get_running_loop()
    allowed = loop.create_future()
    loop.add_reader(go, allowed.cancel)
    try:
        await asyncio.wait({allowed})
    finally:
        loop.remove_reader(go)


async def _listen(job: Job, runners: _Runners) -> None:
    try:
        for door, sockets in job.sockets:
            runner = runners.administrators if door.admin else runners.clients
            assert runner is not None
            context = door.certificate.front if door.certificate else None
            for one in sockets:
                await web.SockSite(runner, one, ssl_context=context, backlog=BACKLOG).start()
    except OSError as error:
        raise _Refused from error


def _keep_ticking(loop: asyncio.AbstractEventLoop, job: Job) -> None:
    job.ticks.tick(job.index)
    loop.call_later(job.tick, _keep_ticking, loop, job)


def _life_ended(job: Job, ended: asyncio.Future[None]) -> None:
    if not job.ticks.retired:
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
