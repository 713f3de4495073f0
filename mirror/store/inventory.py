"""What is in the folder but in no index: pushed files, what is on its way in, the room there is. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirror.config.plain import read_plain
from mirror.oci.names import ALGORITHMS, Digest
from mirror.store.failures import disk_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What is on its way in, or was left there. oldest: when somebody last sent to the one that waits longest."""

    count: int
    bytes: int
    oldest: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system, in bytes. free: for whoever runs the service."""

    size: int
    free: int


def pushed_files(root: Path) -> Iterator[tuple[str, int]]:
    """Give digest and size of each file that was pushed. Raises: StorageFailed."""
    with disk_errors("looking at what was pushed"):
        for algorithm in ALGORITHMS:
            for name, found in _files(root / "blobs" / algorithm):
                if len(name) == ALGORITHMS[algorithm]:
                    yield f"{algorithm}:{name}", found.st_size


def cached_bytes(root: Path, digest: Digest, *, limit: int) -> bytes | None:
    """Return what was pulled through, None when it is not there, or is longer than ``limit`` bytes."""
    try:
        return read_plain(root / "cache" / digest.algorithm / digest.encoded, limit, flags=os.O_NOFOLLOW)
    except OSError:
        return None


def downloads(root: Path) -> Progress:
    """Return what is being fetched, or was when a service ended: the next who asks goes on with it."""
    with disk_errors("looking at downloads"):
        parts = [
            found
            for algorithm in ALGORITHMS
            for name, found in _files(root / "ingest" / algorithm)
            if name.endswith(".part")
        ]
    return _progress(parts)


def uploads(root: Path) -> Progress:
    """Return the sessions of clients that push."""
    with disk_errors("looking at uploads"):
        return _progress([found for name, found in _files(root / "ingest" / "uploads") if not name.endswith(".want")])


def disk_of(root: Path) -> Disk:
    """Return the file system of the root. Raises: StorageFailed."""
    with disk_errors("looking at the file system"):
        found = os.statvfs(root)
    return Disk(size=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give the files of a folder; what goes meanwhile is left out, and so is a folder that is not there."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            try:
                yield entry.name, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _progress(found: list[os.stat_result]) -> Progress:
    sizes = [min(one.st_size, one.st_blocks * 512) for one in found]  # a file with holes has less than its length
    return Progress(count=len(found), bytes=sum(sizes), oldest=min((one.st_mtime for one in found), default=None))
