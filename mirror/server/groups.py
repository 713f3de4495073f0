"""The control groups this process is in, versions 1 and 2: whose limits bind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED = 2**60
"""Bytes: version 1 says "no limit" by a number as large as its arithmetic allows."""


def control_groups(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> Iterator[tuple[int, Path]]:
    """Give version and folder of our control group and of each above it. controller: ``cpu``, ``memory`` …"""
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
                yield 2, folder
        elif controller in controllers.split(","):
            for mount in sorted({controllers, controller}):
                for folder in _upwards(cgroups / mount, path):
                    yield 1, folder


def read_setting(path: Path) -> str:
    """Return the text of a file of a control group, "" when there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def memory_limit(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the bytes of memory that our control groups leave us, None when they set no limit."""
    found = []
    for version, folder in control_groups("memory", proc, cgroups):
        text = read_setting(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _UNLIMITED:
            found.append(int(text))
    return min(found, default=None)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Give the group's folder and all above it.

    Inside a container the path is often the host's while the mount shows only our part of the tree: the folders
    that do not exist then say nothing, and the mount itself is our group.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:length])
