"""How many workers: as many as processors may really be used here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def worker_count(
    setting: int | str,
    *,
    affinity: int | None = None,
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """Return the number of workers for the ``workers`` setting.

    "auto": the processors this process may run on, at most the CPU limit of its control group (rounded up: a limit
    of 1.5 is worth two workers), at least 1. affinity, proc and cgroups: where to look, for tests.
    """
    if setting != "auto":
        return int(setting)
    count = float(affinity or _affinity())
    for limit in _limits(proc, cgroups):
        count = min(count, limit)
    return max(1, math.ceil(count))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _limits(proc: Path, cgroups: Path) -> Iterator[float]:
    """Give the CPU limits that bind us, in processors: of our control group and of each above it, versions 1 and 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            # The unified hierarchy; beside version 1 it is mounted one level down.
            for folder in (*_upwards(cgroups, path), *_upwards(cgroups / "unified", path)):
                quota, _, period = _read(folder / "cpu.max").partition(" ")
                yield from _ratio(quota, period)
        elif "cpu" in controllers.split(","):
            for mount in {controllers, "cpu"}:
                for folder in _upwards(cgroups / mount, path):
                    yield from _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Give the group's folder and all above it.

    Inside a container the path is often the host's while the mount shows only our part of the tree: the folders
    that do not exist then say nothing, and the mount itself is our group.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ratio(quota: str, period: str) -> Iterator[float]:
    # "max" (version 2) and -1 (version 1) mean: no limit.
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        yield int(quota) / int(period)
