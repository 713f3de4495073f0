"""A worker is forked: in the parent it is a process id and a pipe, in the child everything else is closed."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NoReturn

from mirror.config import Config
from mirror.metrics import ParentMetrics
from mirror.server import child
from mirror.server.board import Board
from mirror.server.doors import Door, certificates, reservations
from mirror.server.generation import Generation
from mirror.server.signals import Signals, held_back
from mirror.server.slots import Slot, Worker

log = logging.getLogger("mirror.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all workers have in common, whatever their configuration.

    build_app, settle: see ``child.Job``. root: the folder as no link in its path can change it; owned: its lock.
    folder: of the metrics; counts: those of the parent. hang_limit: seconds without a tick after which a worker is
    killed. look: seconds between two looks at certificates.
    """

    build_app: child.AppFactory
    settle: Callable[[Config], None]
    root: Path
    owned: int
    board: Board
    folder: Path
    counts: ParentMetrics
    signals: Signals
    hang_limit: float
    look: float


def spawn(common: Common, generation: Generation, slot: Slot, others: Iterable[Generation]) -> None:
    """Fill a place. others: every other generation there is. Raises: OSError."""
    for certificate in certificates(generation.doors):
        certificate.refresh()
    sockets = [(door, door.reservation.share(slot.index, generation.size)) for door in generation.doors]
    parent = os.getpid()
    report, report_end = os.pipe()
    os.set_blocking(report, False)
    generation.ticks.tick(slot.index)
    try:
        with held_back():
            pid = os.fork()
            if pid == 0:
                _be_worker(common, generation, slot, others, sockets, parent=parent, report=report_end)
    except OSError:
        os.close(report)
        raise
    finally:
        os.close(report_end)
    slot.worker = Worker(pid=pid, report=report, started=time.monotonic())


def _with_root(root: Path, config: Config) -> Config:
    """Return a configuration with another root."""
    return config.model_copy(update={"storage": config.storage.model_copy(update={"root": root})})


def _be_worker(
    common: Common,
    generation: Generation,
    slot: Slot,
    others: Iterable[Generation],
    sockets: Sequence[tuple[Door, Sequence[socket.socket]]],
    *,
    parent: int,
    report: int,
) -> NoReturn:
    """Go on as a worker; in the forked process, which must never return into the parent's stack."""
    code = 1
    try:
        common.signals.unheard()
        generation.let_go()
        for other in others:
            other.close()
        own = [one for _, shared in sockets for one in shared]
        for reservation in reservations(chain(generation.doors, *(other.doors for other in others))):
            reservation.close(keep=own)
        code = child.run(
            child.Job(
                config=_with_root(common.root, generation.config),
                owned=common.owned,
                build_app=common.build_app,
                settle=common.settle,
                index=slot.index,
                slot=slot.number,
                workers=generation.size,
                board=common.board,
                ticks=generation.ticks,
                sockets=sockets,
                metrics=common.folder,
                life=generation.life,
                go=generation.go,
                report=report,
                parent=parent,
                tick=min(0.5, common.hang_limit / 4),
                look=common.look,
            )
        )
    except BaseException:
        log.exception("worker %d failed", slot.number)
    finally:
        os._exit(code)
