"""All generations: the current one, perhaps one being prepared, and earlier ones that end what they have begun.

    propose → next ──all could listen──▶ current ──all do──▶ the one before is retired ──▶ leaving ──▶ gone
                └── any fails: abandoned, the current one goes on

Nobody is refused meanwhile: sockets are handed on (``sockets.py``), and the one before listens until the next one does.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from contextlib import suppress
from enum import Enum, auto

from mirror.config import Config
from mirror.server.board import Phase
from mirror.server.doors import close_doors, open_doors, reservations
from mirror.server.generation import Generation, make_generation
from mirror.server.slots import LONGEST_PAUSE, Slot, Worker
from mirror.server.spawn import Common, spawn
from mirror.worker import StartupError

LONGEST_END = 3600.0
"""Seconds that workers of an earlier configuration have for what they have begun."""
MOST_LEAVING = 4
"""Earlier configurations whose workers may have so long. The oldest beyond has to end soon: else somebody who reloads
again and again while clients take their time would fill the machine with workers.
"""

_START_LIMIT = 60.0  # seconds a worker may take to build its application
_STEADY = 5.0  # seconds: a worker that lived as long did not die "at once"
_SOON = 10.0  # seconds for the oldest of too many, or drain_timeout, if that is less
_GIVE_UP = 3  # deaths at once before the service has ever run
_END_TIME = 5.0  # seconds workers get to end after their deadline

log = logging.getLogger("mirror.server")


class Step(Enum):
    """What ``advance`` may find."""

    UP = auto()
    """The first generation listens."""
    TAKEN_OVER = auto()
    """The next one is the current one; it listens, and the one before does no more."""
    FAILED = auto()
    """The next one could not start: ``failure`` says why."""


class Generations:
    """The parent's workers. first: the generation to begin with."""

    def __init__(self, common: Common, first: Generation) -> None:
        self._common = common
        self.current = first
        self.next: Generation | None = None
        self.before: Generation | None = None
        self.leaving: list[Generation] = []
        self.up = False
        self.failure = ""
        self._proposed = 0.0
        self._grace = self._watched = time.monotonic()
        first.serve()

    def all(self) -> list[Generation]:
        """Return every generation there is."""
        return [one for one in (self.current, self.next, self.before, *self.leaving) if one is not None]

    def living(self) -> list[Worker]:
        return [worker for generation in self.all() for worker in generation.living()]

    @property
    def changing(self) -> bool:
        """Whether one generation is about to take over from another."""
        return self.next is not None or self.before is not None

    @property
    def crowded(self) -> bool:
        """Whether there are so many that the next has to wait; never for long."""
        return len(self._ending()) > MOST_LEAVING

    def _ending(self) -> list[Generation]:
        """Return those that end what they have begun, the oldest first."""
        return [one for one in self.leaving if any(not worker.killed for worker in one.living())]

    # ---- starting ----

    def start_due(self) -> None:
        """Fill the current one's places whose time has come.

        Raises: StartupError when that cannot be done, and the service never came up.
        """
        now = time.monotonic()
        for slot in self.current.slots:
            if slot.worker is None and slot.due <= now:
                try:
                    self._spawn(self.current, slot)
                except OSError as error:  # no more processes, descriptors or memory
                    if not self.up:
                        raise StartupError(f"cannot start worker {slot.number}: {error.strerror}") from error
                    log.error("cannot start worker %d: %s", slot.number, error.strerror)
                    slot.due = now + LONGEST_PAUSE

    def propose(self, config: Config) -> None:
        """Start the workers of another configuration. Raises: StartupError when it cannot be used."""
        doors = open_doors(config, self.current.doors)
        try:
            taken = set().union(*(one.numbers() for one in self.all()))
            self.next = make_generation(config, doors, taken=taken, folder=self._common.folder)
        except StartupError:
            close_doors(doors, keep=self.current.doors)
            raise
        self.failure = ""
        self._proposed = time.monotonic()
        gc.collect()
        gc.freeze()  # a collection would write to the pages the workers share with us, and so copy them
        try:
            for slot in self.next.slots:
                self._spawn(self.next, slot)
        except OSError as error:
            self.abandon()
            raise StartupError(f"cannot start workers: {error.strerror}") from error

    def abandon(self) -> None:
        """Give up the one being prepared, which has answered nobody yet."""
        if self.next is not None:
            self.next.kill()
            close_doors(self.next.doors, keep=self.current.doors)
            self.leaving.append(self.next)
            self.next = None

    def _spawn(self, generation: Generation, slot: Slot) -> None:
        spawn(self._common, generation, slot, [one for one in self.all() if one is not generation])

    # ---- going on ----

    def advance(self) -> Step | None:
        """Let the one being prepared take over when it can, retire the one before, forget those that are gone."""
        for one in self.all():
            one.hear()
        now = time.monotonic()
        for one in [one for one in self.leaving if not one.living()]:
            one.close()
            self.leaving.remove(one)
        if self.next is not None:
            if not self.failure and now - self._proposed > _START_LIMIT:
                self.failure = f"its workers were not ready within {_START_LIMIT:g} s"
            if self.failure:
                self.abandon()
                return Step.FAILED
            if self.next.prepared:
                self.before, self.current, self.next = self.current, self.next, None
                self.current.serve()
        elif self.before is not None and self.before.ticks.retired:
            if all(worker.left for worker in self.before.living()):
                self.leaving.append(self.before)
                self.before = None
                self._hurry(now)
                return Step.TAKEN_OVER
        elif self.before is not None and self.current.arrived:
            self.before.retire(now + LONGEST_END)
            close_doors(self.before.doors, keep=self.current.doors)
        elif not self.up and self.current.ready:
            self.up = True
            return Step.UP
        return None

    def _hurry(self, now: float) -> None:
        """Have the oldest end soon when there are too many."""
        limit = min(_SOON, self.current.config.drain_timeout)
        for one in self._ending()[:-MOST_LEAVING]:
            if one.ticks.deadline > now + limit:
                log.warning(
                    "workers of more than %d earlier configurations are left; the oldest ones have %g s to end",
                    MOST_LEAVING,
                    limit,
                )
                one.retire(now + limit)

    def serving(self) -> bool:
        """Say whether anybody is answered."""
        limit = time.monotonic() - self._common.hang_limit
        return any(
            worker.ready and one.ticks.ticked(slot.index) > limit
            for one in (self.current, self.before)
            if one is not None
            for slot, worker in one.filled()
        )

    # ---- minding ----

    def reap(self) -> None:
        """Bury who has ended. Raises: StartupError, see ``_bury``."""
        # Any child: as process 1 of a container we are given orphans that are not ours.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for generation in self.all():
                for slot, worker in list(generation.filled()):
                    if worker.pid == pid:
                        self._bury(generation, slot, worker, os.waitstatus_to_exitcode(status))

    def _bury(self, generation: Generation, slot: Slot, worker: Worker, code: int) -> None:
        """Close what a worker left, and decide when its place is filled again.

        Raises: StartupError when it could not start for a reason outside the program and nobody else is serving,
        or the service never came up.
        """
        generation.bury(slot, self._common.folder)
        reason = worker.failure
        how = reason or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")
        if generation is self.next:
            self.failure = self.failure or reason or f"a worker with it ended: {how}"
            return
        if generation is not self.current:
            if code and not worker.killed:
                log.error("worker %d (pid %d) of an earlier configuration ended: %s", slot.number, worker.pid, how)
            return
        if self._common.board.phase is Phase.DRAINING:
            return
        others = [*generation.living(), *(self.before.living() if self.before else ())]
        if reason and not (self.up and any(other.ready for other in others)):
            raise StartupError(reason)
        now = time.monotonic()
        slot.deaths = 0 if now - worker.started >= _STEADY else slot.deaths + 1
        if not self.up and slot.deaths >= _GIVE_UP:
            raise StartupError("the workers end as soon as they start; the log above says why")
        slot.due = now + slot.pause
        if not self.changing:  # else another worker has its socket too
            for reservation in reservations(generation.doors):
                reservation.drop(slot.index)
        self._common.counts.restarts.labels("hung" if worker.killed else "signal" if code < 0 else "exit").inc()
        log.error("worker %d (pid %d) ended: %s; replaced in %g s", slot.number, worker.pid, how, slot.pause)

    def watch(self) -> None:
        """Kill workers whose loop does not go round, and those that do not end."""
        now = time.monotonic()
        limit = self._common.hang_limit
        if now - self._watched > limit / 2:
            self._grace = now  # we stood still ourselves (stopped and continued): so did they
        self._watched = now
        for generation in self.all():
            for slot, worker in generation.filled():
                if worker.killed:
                    continue
                patience = limit if worker.ready else max(limit, _START_LIMIT)
                if now - max(generation.ticks.ticked(slot.index), self._grace) > patience:
                    log.error("worker %d (pid %d) has hung for %g s and is killed", slot.number, worker.pid, patience)
                    worker.kill()
                elif generation.ticks.retired and now > generation.ticks.deadline + _END_TIME:
                    log.warning("the worker with pid %d did not end in time and is killed", worker.pid)
                    worker.kill()

    # ---- ending ----

    def drain(self, deadline: float) -> None:
        """Have every worker stop listening, end its requests until then, and exit."""
        self.abandon()
        for generation in self.all():
            generation.retire(deadline)
            close_doors(generation.doors)
        if self.before is not None:
            self.leaving.append(self.before)
            self.before = None

    def end(self) -> None:
        """Kill whoever is left, and let go of everything."""
        for worker in self.living():
            worker.kill()
        for generation in self.all():
            for slot, worker in list(generation.filled()):
                with suppress(ChildProcessError):
                    os.waitpid(worker.pid, 0)
                generation.bury(slot, self._common.folder)
            close_doors(generation.doors)
            generation.close()
