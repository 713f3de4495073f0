"""The parent: owns the root, forks workers, replaces those that die or hang, changes and ends them in order.

It has neither an event loop nor threads, so that fork is safe at any time; it does nothing but wait in ``poll``, and
read the configuration again.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from mirror import metrics
from mirror.config import Config
from mirror.server.board import Board, Phase
from mirror.server.certificates import LOOK_EVERY
from mirror.server.child import AppFactory
from mirror.server.doors import Door, close_doors, open_doors
from mirror.server.generation import make_generation
from mirror.server.generations import Generations, Step
from mirror.server.notify import Manager
from mirror.server.owner import take_root
from mirror.server.reload import NotReloaded, read_again
from mirror.server.saying import Saying, facts
from mirror.server.signals import Signals
from mirror.server.spawn import Common
from mirror.worker import StartupError

HANG_LIMIT = 10.0
"""Seconds without a tick after which a worker is killed."""

log = logging.getLogger("mirror.server")


def serve(
    config: Config,
    build_app: AppFactory,
    *,
    reload: Callable[[], Config],
    settle: Callable[[Config], None] = lambda _: None,
    announce: Callable[[Sequence[str]], None] | None = None,
    hang_limit: float = HANG_LIMIT,
    look_every: float = LOOK_EVERY,
) -> int:
    """Run the service until a signal ends it, and return the exit code.

    build_app: called in every worker, in its event loop. reload: reads the configuration again, on SIGHUP; may raise
    ConfigError and StartupError. settle: called with a configuration in each of its workers before anything else, and
    in the parent when it takes over from another: for what is a matter of the whole process, such as logging.
    announce: called once, when all workers listen, with the URLs clients are answered at. hang_limit: seconds;
    look_every: between two looks at certificates, in seconds.
    Raises: StartupError when it cannot start, or no worker can be kept running, for a reason to tell the operator.
    """
    manager = Manager.of(os.environ)
    with ExitStack() as stack:
        root = config.storage.root.absolute()
        owned = take_root(root)
        stack.callback(os.close, owned)
        doors = open_doors(config)
        stack.callback(close_doors, doors)
        folder = root / "run" / "metrics"
        try:
            metrics.prepare(folder, 0)
        except OSError as error:
            raise StartupError(f"cannot write to {folder}: {error.strerror}") from error
        counts = metrics.ParentMetrics(folder)
        stack.callback(counts.close)
        common = Common(
            build_app=build_app,
            settle=settle,
            root=root.resolve(),
            owned=owned,
            board=Board(),
            folder=folder,
            counts=counts,
            signals=Signals(),
            hang_limit=hang_limit,
            look=look_every,
        )
        generations = Generations(common, make_generation(config, doors, taken=set(), folder=folder))
        return _Supervisor(common, generations, manager, lambda now: read_again(reload, now, owned), announce).run()


class _Supervisor:
    """The parent's state; ``run`` is its whole life."""

    def __init__(
        self,
        common: Common,
        generations: Generations,
        manager: Manager,
        reload: Callable[[Config], Config],
        announce: Callable[[Sequence[str]], None] | None,
    ) -> None:
        self._settle = common.settle
        self._board = common.board
        self._signals = common.signals
        self._turn = min(1.0, common.hang_limit / 4)
        self._generations = generations
        self._manager = manager
        self._reload = reload
        self._announce = announce
        self._asked = False  # to read the configuration again
        self._stop_at = float("inf")
        self._saying = Saying()
        self._refused = ""

    @property
    def _config(self) -> Config:
        return self._generations.current.config

    @property
    def _doors(self) -> Sequence[Door]:
        return self._generations.current.doors

    def run(self) -> int:
        """Start the workers and mind them until a signal has ended the last; return the exit code."""
        generations = self._generations
        gc.collect()
        gc.freeze()  # a collection would write to the pages the workers share with us, and so copy them
        try:
            with self._signals.heard():
                while not (self._board.phase is Phase.DRAINING and not generations.living()):
                    if self._board.phase is not Phase.DRAINING:
                        generations.start_due()
                    self._wait()
                    generations.reap()
                    if (code := self._obey()) is not None:
                        return code
                    self._follow(generations.advance())
                    generations.watch()
                    self._tell()
            log.info("stopped")
            return 0
        finally:
            generations.end()

    def _wait(self) -> None:
        """Wait for a signal, a worker's report or the next thing that is due."""
        now = time.monotonic()
        due = [self._stop_at, now + self._turn]
        if (told := self._manager.due()) > now:  # else it is not to be told that we are alive, as nobody is served
            due.append(told)
        if self._board.phase is not Phase.DRAINING:
            due += [slot.due for slot in self._generations.current.slots if slot.worker is None]
        poller = select.poll()
        poller.register(self._signals.wakeup, select.POLLIN)
        for worker in self._generations.living():
            if not worker.left:
                poller.register(worker.report, select.POLLIN)
        poller.poll(max(0.0, min(due) - now) * 1000 + 1)
        self._signals.awake()

    # ---- signals ----

    def _obey(self) -> int | None:
        """Act on the signals that came, and on what is due; return the exit code when one says: at once."""
        while number := self._signals.take():
            if number == signal.SIGHUP:
                self._asked = True  # while it is being done: to be done once more
            elif self._board.phase is not Phase.RUNNING:
                log.warning("%s again: ending at once", number.name)
                return 128 + number
            elif number == signal.SIGTERM and self._config.shutdown_delay > 0:
                self._board.phase = Phase.STOPPING
                self._stop_at = time.monotonic() + self._config.shutdown_delay
                log.info("SIGTERM: not ready any more, accepting for another %g s", self._config.shutdown_delay)
                self._manager.stopping("not ready any more, still accepting")
                self._generations.abandon()
            else:
                self._drain()
        if self._board.phase is Phase.STOPPING and time.monotonic() >= self._stop_at:
            self._drain()
        if self._asked and self._generations.up and not (self._generations.changing or self._generations.crowded):
            self._asked = False
            if self._board.phase is Phase.RUNNING:
                self._read_again()
        return None

    def _drain(self) -> None:
        """Have every worker stop listening, end its requests and exit."""
        limit = self._config.drain_timeout
        log.info("draining: running requests have up to %g s", limit)
        self._board.phase = Phase.DRAINING
        self._stop_at = float("inf")
        self._generations.drain(time.monotonic() + limit)
        self._manager.stopping(f"draining: running requests have up to {limit:g} s")

    # ---- reading the configuration again ----

    def _read_again(self) -> None:
        log.info("SIGHUP: reading the configuration again")
        self._manager.reloading()
        try:
            self._generations.propose(self._reload(self._config))
        except (NotReloaded, StartupError) as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        log.error("the configuration is not reloaded, the one of before stays in force: %s", reason)
        self._board.reloaded(successful=False)
        self._refused = reason
        self._ready()

    def _ready(self) -> None:
        if self._board.phase is Phase.RUNNING:
            self._manager.ready(self._status())

    def _follow(self, step: Step | None) -> None:
        """Say what has come of the workers."""
        match step:
            case Step.UP:
                self._say(told=self._announce is not None)
                self._ready()
                if self._announce is not None:
                    self._announce([door.url for door in self._doors if not door.admin])
            case Step.TAKEN_OVER:
                self._settle(self._config)
                self._board.reloaded(successful=True)
                self._refused = ""
                log.info(
                    "the configuration is reloaded",
                    extra={"fields": facts(self._config, self._generations.current.size)},
                )
                self._say()
                self._ready()
            case Step.FAILED:
                self._refuse(self._generations.failure)
            case None:
                pass

    def _say(self, *, told: bool = False) -> None:
        """Say where we are. told: people are told the rest by other means."""
        self._saying.where(self._doors, {} if told else facts(self._config, self._generations.current.size))
        self._saying.advise(self._config, self._doors)

    # ---- what the service manager is told ----

    def _tell(self) -> None:
        """Say how things are."""
        if self._board.phase is not Phase.RUNNING:
            self._manager.alive()
        elif self._generations.up:
            if self._generations.serving():
                self._manager.alive()
            if not self._generations.changing:
                self._manager.status(self._status())

    def _status(self) -> str:
        earlier = sum(len(one.living()) for one in self._generations.leaving)
        urls = ", ".join(door.url for door in self._doors)
        size = self._generations.current.size
        status = f"{size} worker{'' if size == 1 else 's'} on {urls}"
        if earlier:
            status += f"; {earlier} earlier ones end what they have begun"
        return f"{status}; the file was refused when it was read again: {self._refused}" if self._refused else status
