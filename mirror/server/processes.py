"""What the processes of the service use, by what the kernel says of them: the parent, and all its workers.

Whichever worker is asked reads it of all. A process that ends meanwhile is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from mirror.metrics import Metrics

Numbers = Iterable[tuple[Sequence[str], float]]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
_NO_LABELS: tuple[str, ...] = ()


class Processes:
    """The processes of one service. parent: its process id. All calls block a little: system calls on /proc."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def declare(self, metrics: Metrics) -> None:
        """Have them shown."""
        for name, text, read in (
            (
                "mirror_process_resident_memory_bytes",
                "Resident memory of all processes; pages they share are counted in each.",
                self._memory,
            ),
            ("mirror_process_open_fds", "Open descriptors of all processes.", self._descriptors),
            ("mirror_process_max_fds", "Descriptors one worker may have.", self._most_descriptors),
            (
                "mirror_process_fds_used_ratio",
                "Open descriptors as a share of what a process may have, of the one that is nearest to it.",
                self._descriptors_used,
            ),
            ("mirror_process_start_time_seconds", "When the service was started, in Unix seconds.", self._started),
        ):
            metrics.reading(name, text, _NO_LABELS, read, blocks=True)
        metrics.reading(
            "mirror_process_cpu_seconds",
            "CPU time of all processes, those that ended included.",
            _NO_LABELS,
            self._cpu,
            counter=True,
            blocks=True,
        )

    def _memory(self) -> Numbers:
        return _sum(lambda pid: float(_words(pid, "statm")[1]) * _PAGE, self._pids())

    def _descriptors(self) -> Numbers:
        return _sum(_open_descriptors, self._pids())

    def _most_descriptors(self) -> Numbers:
        return [(_NO_LABELS, _most_descriptors(os.getpid()))]

    def _descriptors_used(self) -> Numbers:
        shares = []
        for pid in self._pids():
            with suppress(OSError):
                shares.append(_open_descriptors(pid) / _most_descriptors(pid))
        return [(_NO_LABELS, max(shares))] if shares else []

    def _cpu(self) -> Numbers:
        def spent(pid: int) -> float:
            # user and system time; of the parent also that of children it has buried
            fields = _stat(pid)
            return sum(map(int, fields[11:15] if pid == self._parent else fields[11:13])) / _TICK

        return _sum(spent, self._pids())

    def _started(self) -> Numbers:
        with suppress(OSError):
            up = time.clock_gettime(time.CLOCK_BOOTTIME)
            return [(_NO_LABELS, time.time() - up + int(_stat(self._parent)[19]) / _TICK)]
        return []

    def _pids(self) -> Iterator[int]:
        yield self._parent
        with suppress(OSError):
            text = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text()
            yield from map(int, text.split())


def _sum(number: Callable[[int], float], pids: Iterable[int]) -> Numbers:
    """Add a number up over processes."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += number(pid)
    return [(_NO_LABELS, total)]


def _stat(pid: int) -> Sequence[str]:
    """Return the fields of ``/proc/<pid>/stat`` after the name, which may hold anything. Source: proc(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _words(pid: int, name: str) -> Sequence[str]:
    return Path(f"/proc/{pid}/{name}").read_text().split()


def _open_descriptors(pid: int) -> float:
    return float(len(os.listdir(f"/proc/{pid}/fd")))


def _most_descriptors(pid: int) -> float:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith("Max open files"):
            text = line.split()[3]
            return float("inf") if text == "unlimited" else float(text)
    return float("inf")
