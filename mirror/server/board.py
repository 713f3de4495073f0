"""What parent and workers tell each other at once: numbers in shared anonymous memory.

    Board        [phase][last reload][when one succeeded][succeeded][failed]     of the service; written by the parent
    Generation's [retired: deadline][index 0: last tick][index 1: last tick] …   of one generation of workers

All are doubles; each has one writer, and a store of 8 bytes is whole. Ticks and deadlines are ``time.monotonic``,
which on one machine is one clock for all processes.
"""

from __future__ import annotations

import mmap
import time
from enum import IntEnum

from mirror.metrics import Metrics


class Phase(IntEnum):
    """What the service as a whole is doing."""

    RUNNING = 0
    STOPPING = 1
    """Going to stop: not ready any more, still accepting."""
    DRAINING = 2
    """Not accepting; running requests end."""


class Board:
    """Shared by all processes of the service: those forked after it was made."""

    def __init__(self) -> None:
        self._cells = _cells(5)
        self._cells[1], self._cells[2] = 1.0, time.time()  # the configuration it starts with was read

    @property
    def phase(self) -> Phase:
        return Phase(int(self._cells[0]))

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._cells[0] = float(phase)

    def stopping(self) -> bool:
        """Say whether the service is going to stop."""
        return self._cells[0] != 0.0

    def reloaded(self, *, successful: bool) -> None:
        """Note how reading the configuration again went."""
        self._cells[1] = float(successful)
        if successful:
            self._cells[2] = time.time()
        self._cells[3 if successful else 4] += 1

    def show(self, metrics: Metrics) -> None:
        """Have a worker show what the parent has counted."""
        cells = self._cells
        metrics.reading(
            "mirror_config_last_reload_successful",
            "1 when the configuration could be used the last time it was read, else 0.",
            (),
            lambda: [((), cells[1])],
        )
        metrics.reading(
            "mirror_config_last_reload_success_timestamp_seconds",
            "When the configuration in use was read, in Unix seconds.",
            (),
            lambda: [((), cells[2])],
        )
        metrics.reading(
            "mirror_config_reloads",
            "Times the configuration was read again.",
            ("result",),
            lambda: [(("success",), cells[3]), (("failure",), cells[4])],
            counter=True,
        )


class Ticks:
    """Shared by the parent and the workers of one generation."""

    def __init__(self, workers: int) -> None:
        self._cells = _cells(1 + workers)

    @property
    def retired(self) -> bool:
        """Whether these workers are to end."""
        return self._cells[0] != 0.0

    @property
    def deadline(self) -> float:
        """When what they have begun is cut off."""
        return self._cells[0]

    def retire(self, deadline: float) -> None:
        """Have them end, or end earlier. For the parent."""
        self._cells[0] = min(deadline, self._cells[0] or deadline)

    def tick(self, index: int) -> None:
        """Say that the worker's event loop is going round."""
        self._cells[1 + index] = time.monotonic()

    def ticked(self, index: int) -> float:
        """Return when the worker's event loop last went round."""
        return self._cells[1 + index]


def _cells(count: int) -> memoryview[float]:
    return memoryview(mmap.mmap(-1, 8 * count)).cast("d")
