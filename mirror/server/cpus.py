"""How many workers: as many as processors may really be used here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from mirror.server.groups import control_groups, read_setting


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
    """Give the CPU limits that bind us, in processors."""
    for version, folder in control_groups("cpu", proc, cgroups):
        if version == 2:
            quota, _, period = read_setting(folder / "cpu.max").partition(" ")
            yield from _ratio(quota, period)
        else:
            yield from _ratio(read_setting(folder / "cpu.cfs_quota_us"), read_setting(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> Iterator[float]:
    # "max" (version 2) and -1 (version 1) mean: no limit.
    if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
        yield int(quota) / int(period)
