"""The parent: owns the root and the addresses, forks workers, replaces those that die or hang, ends them in order.

It has neither an event loop nor threads, so that fork is safe at any time; it does nothing but wait in ``poll``.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import NoReturn

from mirror import metrics
from mirror.access.advice import advice
from mirror.config import Config
from mirror.server import child
from mirror.server.board import Board, Phase
from mirror.server.cpus import worker_count
from mirror.server.owner import take_root
from mirror.server.slots import LONGEST_PAUSE, Slot, Worker
from mirror.server.sockets import Reservation, reserve, tls_context
from mirror.upstream.advice import warnings
from mirror.worker import StartupError

HANG_LIMIT = 10.0
"""Seconds without a tick after which a worker is killed."""

_START_LIMIT = 60.0  # seconds a worker may take to build its application
_STEADY = 5.0  # seconds: a worker that lived as long did not die "at once"
_GIVE_UP = 3  # deaths at once before the service has ever run
_END_TIME = 5.0  # seconds workers get to end after drain_timeout
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

log = logging.getLogger("mirror.server")


def serve(config: Config, build_app: child.AppFactory, *, hang_limit: float = HANG_LIMIT) -> int:
    """Run the service until a signal ends it, and return the exit code.

    build_app: called in every worker, in its event loop. hang_limit: seconds, for tests.
    Raises: StartupError when it cannot start, or no worker can be kept running, for a reason to tell the operator.
    """
    with ExitStack() as stack:
        root = config.storage.root.absolute()
        stack.callback(os.close, take_root(root))
        contexts = {tls: tls_context(tls) for tls in {one.tls for one in config.listen} if tls}
        reservations = []
        for listener in config.listen:
            reservation = reserve(listener.address)
            stack.callback(reservation.held.close)
            reservations.append(replace(reservation, tls=contexts[listener.tls] if listener.tls else None))
        workers = worker_count(config.workers)
        folder = root / "run" / "metrics"
        try:
            metrics.prepare(folder, workers)
        except OSError as error:
            raise StartupError(f"cannot write to {folder}: {error.strerror}") from error
        return _Supervisor(config, build_app, workers, reservations, folder, hang_limit).run()


class _Supervisor:
    """The parent's state; ``run`` is its whole life."""

    def __init__(
        self,
        config: Config,
        build_app: child.AppFactory,
        workers: int,
        reservations: list[Reservation],
        folder: Path,
        hang_limit: float,
    ) -> None:
        self._config = config
        self._build_app = build_app
        self._reservations = reservations
        self._folder = folder
        self._hang_limit = hang_limit
        self._board = Board(workers)
        self._slots = [Slot(number) for number in range(workers)]
        self._signals: list[int] = []
        self._announced = False
        self._deadline = float("inf")  # when the phase ends
        self._grace = self._watched = time.monotonic()

    def run(self) -> int:
        """Start the workers and mind them until a signal has ended the last; return the exit code."""
        gc.collect()
        gc.freeze()  # a collection would write to the pages the workers share with us, and so copy them
        self._life, self._life_end = os.pipe()
        try:
            with self._listening_to_signals():
                while not (self._board.phase is Phase.DRAINING and not self._living()):
                    self._start_due()
                    self._wait()
                    self._reap()
                    if (code := self._obey()) is not None:
                        return code
                    self._announce()
                    self._watch()
                    self._advance()
            log.info("stopped")
            return 0
        finally:
            self._end_all()
            os.close(self._life)
            self._close_life()

    # ---- starting ----

    def _start_due(self) -> None:
        if self._board.phase is Phase.DRAINING:
            return
        now = time.monotonic()
        for slot in self._slots:
            if slot.worker is None and slot.due <= now:
                try:
                    self._start(slot)
                except OSError as error:  # no more processes, descriptors or memory
                    if not self._announced:
                        raise StartupError(f"cannot start worker {slot.number}: {error.strerror}") from error
                    log.error("cannot start worker %d: %s", slot.number, error.strerror)
                    slot.due = now + LONGEST_PAUSE

    def _start(self, slot: Slot) -> None:
        parent = os.getpid()
        report, report_end = os.pipe()
        os.set_blocking(report, False)
        self._board.tick(slot.number)
        # A signal that reached the child while it still has our handlers would be told to us as our own.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._be_worker(slot.number, parent, report_end)
        except OSError:
            os.close(report)
            raise
        finally:
            os.close(report_end)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        slot.worker = Worker(pid=pid, report=report, started=time.monotonic())

    def _be_worker(self, number: int, parent: int, report: int) -> NoReturn:
        """Go on as a worker; in the forked process, which must never return into the parent's stack."""
        code = 1
        try:
            wakeup = signal.set_wakeup_fd(-1)
            for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # Not SIG_IGN: programs a worker starts would inherit that.
                signal.signal(one, lambda *_: None)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(wakeup)
            os.close(self._wakeup)
            self._close_life()
            for reservation in self._reservations:
                reservation.held.close()
            for worker in self._living():
                os.close(worker.report)
            code = child.run(
                child.Job(
                    config=self._config,
                    build_app=self._build_app,
                    slot=number,
                    workers=len(self._slots),
                    board=self._board,
                    reservations=self._reservations,
                    metrics=self._folder,
                    life=self._life,
                    report=report,
                    parent=parent,
                    tick=min(0.5, self._hang_limit / 4),
                )
            )
        except BaseException:
            log.exception("worker %d failed", number)
        finally:
            os._exit(code)

    def _announce(self) -> None:
        """Say once that the service is up: when all workers listen."""
        if self._announced or not all(slot.worker and slot.worker.ready for slot in self._slots):
            return
        self._announced = True
        for reservation in self._reservations:
            fields = {
                "root": str(self._config.storage.root.absolute()),
                "workers": len(self._slots),
                "upstreams": list(self._config.upstreams),
            }
            log.info("listening on %s", reservation.url, extra={"fields": fields})
        config = self._config
        lines = advice(config.access, config.upstreams, config.listen)
        for line in chain(lines, *(warnings(name, upstream) for name, upstream in config.upstreams.items())):
            log.warning("%s", line)

    # ---- waiting and minding ----

    def _wait(self) -> None:
        """Wait for a signal, a worker's report or the next thing that is due."""
        now = time.monotonic()
        due = [self._deadline, now + min(1.0, self._hang_limit / 4)]
        if self._board.phase is not Phase.DRAINING:
            due += [slot.due for slot in self._slots if slot.worker is None]
        poller = select.poll()
        poller.register(self._wakeup, select.POLLIN)
        for worker in self._living():
            if not worker.ready:
                poller.register(worker.report, select.POLLIN)
        poller.poll(max(0.0, min(due) - now) * 1000 + 1)
        with suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        for worker in self._living():
            worker.hear()

    def _reap(self) -> None:
        # Any child: as process 1 of a container we are given orphans that are not ours.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for slot in self._slots:
                if slot.worker is not None and slot.worker.pid == pid:
                    self._bury(slot, slot.worker, os.waitstatus_to_exitcode(status))

    def _bury(self, slot: Slot, worker: Worker, code: int) -> None:
        """Close what a worker left, and decide when its place is filled again.

        Raises: StartupError when it could not start for a reason outside the program and nobody else is serving,
        or the service never came up.
        """
        worker.hear()
        os.close(worker.report)
        slot.worker = None
        with suppress(OSError):
            metrics.reset_gauges(self._folder, slot.number)
        if self._board.phase is Phase.DRAINING:
            return
        reason = worker.failure
        if reason and not (self._announced and any(other.ready for other in self._living())):
            raise StartupError(reason)
        now = time.monotonic()
        slot.deaths = 0 if now - worker.started >= _STEADY else slot.deaths + 1
        if not self._announced and slot.deaths >= _GIVE_UP:
            raise StartupError("the workers end as soon as they start; the log above says why")
        slot.due = now + slot.pause
        how = reason or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        log.error("worker %d (pid %d) ended: %s; replaced in %g s", slot.number, worker.pid, how, slot.pause)

    def _watch(self) -> None:
        """Kill workers whose loop does not go round."""
        now = time.monotonic()
        if now - self._watched > self._hang_limit / 2:
            self._grace = now  # we stood still ourselves (stopped and continued): so did they
        self._watched = now
        for slot in self._slots:
            worker = slot.worker
            if worker is None or worker.killed:
                continue
            limit = self._hang_limit if worker.ready else max(self._hang_limit, _START_LIMIT)
            if now - max(self._board.ticked(slot.number), self._grace) > limit:
                log.error("worker %d (pid %d) has hung for %g s and is killed", slot.number, worker.pid, limit)
                worker.kill()

    # ---- ending ----

    def _obey(self) -> int | None:
        """Act on the signals that came; return the exit code when one says: at once."""
        while self._signals:
            number = signal.Signals(self._signals.pop(0))
            if number == signal.SIGHUP:
                log.info("SIGHUP is ignored: restart the service to have it read its configuration again")
            elif self._board.phase is not Phase.RUNNING:
                log.warning("%s again: ending at once", number.name)
                return 128 + number
            elif number == signal.SIGTERM and self._config.shutdown_delay > 0:
                self._board.phase = Phase.STOPPING
                self._deadline = time.monotonic() + self._config.shutdown_delay
                log.info("SIGTERM: not ready any more, accepting for another %g s", self._config.shutdown_delay)
            else:
                self._drain()
        return None

    def _advance(self) -> None:
        if time.monotonic() < self._deadline:
            return
        if self._board.phase is Phase.STOPPING:
            self._drain()
        elif self._board.phase is Phase.DRAINING:
            self._deadline = float("inf")
            for worker in self._living():
                log.warning("the worker with pid %d did not end in time and is killed", worker.pid)
                worker.kill()

    def _drain(self) -> None:
        """Have every worker stop listening, end its requests and exit."""
        limit = self._config.drain_timeout
        log.info("draining: running requests have up to %g s", limit)
        self._board.phase = Phase.DRAINING  # before the pipe ends: a worker looks here to know why it ended
        self._deadline = time.monotonic() + limit + _END_TIME
        for reservation in self._reservations:
            reservation.held.close()
        self._close_life()

    def _end_all(self) -> None:
        for worker in self._living():
            worker.kill()
        for worker in self._living():
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            os.close(worker.report)

    def _close_life(self) -> None:
        if self._life_end >= 0:
            os.close(self._life_end)
            self._life_end = -1

    # ---- little helpers ----

    def _living(self) -> list[Worker]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    @contextmanager
    def _listening_to_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGCHLD:
                self._signals.append(number)

        self._wakeup, wakeup_end = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wakeup_end, False)
        before = {one: signal.signal(one, note) for one in _SIGNALS}
        signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(self._wakeup)
            os.close(wakeup_end)
