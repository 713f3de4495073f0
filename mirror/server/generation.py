"""A generation: the workers of one configuration, and what they share with the parent.

It is prepared, then it serves, then it is retired: ends of two pipes, ``go`` and ``life``, tell the workers at once,
and those that take the place of dead ones as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from pathlib import Path

from mirror import metrics
from mirror.config import Config
from mirror.server.board import Ticks
from mirror.server.cpus import worker_count
from mirror.server.doors import Door
from mirror.server.slots import Slot, Worker
from mirror.worker import StartupError


def make_generation(config: Config, doors: Sequence[Door], *, taken: set[int], folder: Path) -> Generation:
    """Return a generation without workers.

    folder: of the metrics. taken: numbers in it that others count under; those free are used again, as what was counted
    stays. Raises: StartupError when the disk or the system does not let us.
    """
    numbers = list(islice((one for one in count() if one not in taken), worker_count(config.workers)))
    try:
        for number in numbers:
            metrics.add_slot(folder, number)
    except OSError as error:
        raise StartupError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        return Generation(config, doors, numbers)
    except OSError as error:
        raise StartupError(f"cannot start workers: {error.strerror}") from error


class Generation:
    """What the parent knows of it. numbers: where its workers count, one for each of them."""

    def __init__(self, config: Config, doors: Sequence[Door], numbers: Sequence[int]) -> None:
        self.config = config
        self.doors = doors
        self.slots = [Slot(index, number) for index, number in enumerate(numbers)]
        self.ticks = Ticks(len(numbers))
        self.life, self.life_end = os.pipe()
        self.go, self.go_end = os.pipe()

    @property
    def size(self) -> int:
        return len(self.slots)

    def living(self) -> list[Worker]:
        return [slot.worker for slot in self.slots if slot.worker is not None]

    def filled(self) -> Iterator[tuple[Slot, Worker]]:
        for slot in self.slots:
            if slot.worker is not None:
                yield slot, slot.worker

    def numbers(self) -> set[int]:
        """Return where its workers count."""
        return {slot.number for slot in self.slots}

    @property
    def prepared(self) -> bool:
        """Whether every worker could listen."""
        return all(slot.worker and slot.worker.prepared for slot in self.slots)

    @property
    def ready(self) -> bool:
        """Whether every worker listens."""
        return all(slot.worker and slot.worker.ready for slot in self.slots)

    @property
    def arrived(self) -> bool:
        """Whether every place has had a worker that listened."""
        return all(slot.served for slot in self.slots)

    def hear(self) -> None:
        """Take what the workers have reported."""
        for slot, worker in self.filled():
            worker.hear()
            slot.served |= worker.ready

    def serve(self) -> None:
        """Have the workers listen, and those to come."""
        self.go_end = _closed(self.go_end)

    def retire(self, deadline: float) -> None:
        """Have the workers stop listening and end what they have begun until then; or earlier than told before."""
        self.ticks.retire(deadline)  # before the pipe ends: a worker looks here to know why it ended
        self.life_end = _closed(self.life_end)

    def kill(self) -> None:
        for worker in self.living():
            worker.kill()

    def close(self) -> None:
        """Let go of the pipes, when there are no workers any more; or in a process that is none of them."""
        self.life, self.go = _closed(self.life), _closed(self.go)
        self.let_go()

    def let_go(self) -> None:
        """Close the parent's ends, in a worker."""
        self.life_end, self.go_end = _closed(self.life_end), _closed(self.go_end)
        for worker in self.living():
            os.close(worker.report)

    def bury(self, slot: Slot, folder: Path) -> None:
        """Close what a worker left, which has ended. folder: of the metrics."""
        assert slot.worker is not None
        slot.worker.hear()
        os.close(slot.worker.report)
        slot.worker = None
        with suppress(OSError):
            metrics.reset_gauges(folder, slot.number)


def _closed(fd: int) -> int:
    if fd >= 0:
        os.close(fd)
    return -1
