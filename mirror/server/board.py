"""What parent and workers tell each other at once: a few numbers in shared anonymous memory.

    [phase][slot 0: last tick][slot 1: last tick] …     doubles; each has one writer, and a store of 8 bytes is whole

Ticks are ``time.monotonic``, which on one machine is one clock for all processes.
"""

from __future__ import annotations

import mmap
import time
from enum import IntEnum


class Phase(IntEnum):
    """What the service as a whole is doing; written by the parent."""

    RUNNING = 0
    STOPPING = 1
    """Going to stop: not ready any more, still accepting."""
    DRAINING = 2
    """Not accepting; running requests end."""


class Board:
    """Shared by all processes forked after it was made."""

    def __init__(self, slots: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * (slots + 1))).cast("d")

    @property
    def phase(self) -> Phase:
        return Phase(int(self._cells[0]))

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._cells[0] = float(phase)

    def stopping(self) -> bool:
        """Say whether the service is going to stop."""
        return self._cells[0] != 0.0

    def tick(self, slot: int) -> None:
        """Say that the slot's event loop is going round."""
        self._cells[1 + slot] = time.monotonic()

    def ticked(self, slot: int) -> float:
        """Return when the slot's event loop last went round."""
        return self._cells[1 + slot]
