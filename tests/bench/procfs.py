"""What Linux says of processes: whose children they are, what they hold open, how much memory they take."""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")


def children(pid: int) -> list[int]:
    """Return the processes a process started, the workers of a mirror."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # The name in brackets may hold anything; the parent is the second field after it.
                if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                    found.append(int(entry.name))
    return sorted(found)


def part_holders(pids: list[int], encoded: str) -> dict[int, bool]:
    """Return which processes hold a digest's part file open, and whether for writing: that one leads."""
    found: dict[int, bool] = {}
    for pid in pids:
        with suppress(OSError):
            for fd in os.listdir(_PROC / str(pid) / "fd"):
                with suppress(OSError):
                    target = os.readlink(_PROC / str(pid) / "fd" / fd)
                    if f"/{encoded}." in target and target.endswith(".part"):
                        info = (_PROC / str(pid) / "fdinfo" / fd).read_text()
                        flags = re.search(r"flags:\s*(\d+)", info)
                        writes = flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY
                        found[pid] = found.get(pid, False) or writes
    return found


def memory(pid: int, name: str) -> int:
    """Return a memory field of /proc/PID/status in bytes: VmHWM (peak resident), VmRSS, RssAnon …"""
    status = (_PROC / str(pid) / "status").read_text()
    found = re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE)
    if not found:
        raise LookupError(f"this kernel does not tell {name}")
    return int(found[1]) * 1024


def cpu_seconds(pid: int) -> float:
    """Return the CPU time a process has used, its own and the kernel's for it, in seconds."""
    fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Peak:
    """The highest value of a memory field, sampled every few milliseconds within a ``with``. value: bytes."""

    def __init__(self, pid: int, name: str, every: float = 0.02) -> None:
        self.value = 0
        self._pid, self._name, self._every = pid, name, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._over.is_set():
            with suppress(OSError):
                self.value = max(self.value, memory(self._pid, self._name))
            self._over.wait(self._every)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
