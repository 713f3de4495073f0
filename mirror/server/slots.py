"""What the parent knows of each worker, and of the place it fills."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass

from mirror.server import child

_BACK_OFF = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds before a worker is replaced, by how many before it in a row had died at once."""

LONGEST_PAUSE = _BACK_OFF[-1]


@dataclass(slots=True)
class Worker:
    pid: int
    report: int
    started: float
    heard: bytes = b""
    killed: bool = False

    @property
    def prepared(self) -> bool:
        """Whether it could listen at once."""
        return self.heard.startswith(child.PREPARED)

    @property
    def ready(self) -> bool:
        """Whether it listens."""
        return self.heard.startswith(child.PREPARED + child.READY)

    @property
    def left(self) -> bool:
        """Whether it listens no more."""
        return self.heard.endswith(child.READY + child.LEFT)

    @property
    def failure(self) -> str | None:
        """The one line that says why it cannot start."""
        _, failed, reason = self.heard.partition(child.FAILED)
        return reason.decode("utf-8", "replace").strip() if failed else None

    def hear(self) -> None:
        """Take what it has reported."""
        with suppress(BlockingIOError):
            self.heard += os.read(self.report, 4096)

    def kill(self) -> None:
        self.killed = True
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Slot:
    """A place for one worker. index: among those of its generation. number: of its metrics, no other place's.

    deaths: how many in a row died at once; due: when the next one starts. served: whether one ever listened.
    """

    index: int
    number: int
    served: bool = False
    worker: Worker | None = None
    deaths: int = 0
    due: float = 0.0

    @property
    def pause(self) -> float:
        """How long the place stays empty after its last death, in seconds."""
        return _BACK_OFF[min(max(self.deaths - 1, 0), len(_BACK_OFF) - 1)]
