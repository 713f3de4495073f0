"""Files of the folder: which one it is, and opening, reading and hashing it without surprises."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mirror.oci.names import Digest
from mirror.packages.problems import Problem, Stopped

RECENT = 1.0
"""Seconds. Two changes this close together can leave the same times on a file (of some file systems)."""

PIECE = 1024 * 1024
"""Bytes read at a time while hashing."""

CUT_OFF = "is cut off, or still being copied; copy it there anew"

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class FileId:
    """Which file, in which state. size: bytes; modified, changed: nanoseconds since the epoch."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileId:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def same_file(self, other: FileId) -> bool:
        """Say whether both are one file with the same bytes, as far as its own times tell.

        ``changed`` is left out, which a new hard link or mode moves, too. Verdicts are bound to it all the same, as
        tools can set ``modified`` back.
        """
        return (self.device, self.inode, self.size, self.modified) == (
            other.device,
            other.inode,
            other.size,
            other.modified,
        )

    @property
    def recent(self) -> bool:
        """Say whether a further change could leave no trace, as the last one has only just been."""
        return abs(time.time() - self.changed / 1e9) < RECENT


@dataclass(slots=True)
class OpenBytes:
    """Bytes inside an open file, not verified. offset, size: bytes."""

    fd: int
    offset: int
    size: int
    file: FileId

    def close(self) -> None:
        """Close it; doing so twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def open_file(path: str, *, follow: bool = True) -> tuple[int, FileId]:
    """Open a regular file for reading; a pipe or device is not waited for. Returns descriptor and identity.

    Raises: OSError; Problem when it is no regular file.
    """
    fd = os.open(path, _FLAGS if follow else _FLAGS | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Problem("is no regular file")
    except BaseException:
        os.close(fd)
        raise
    return fd, FileId.of(found)


def read_exactly(fd: int, size: int, offset: int) -> bytes:
    """Read so many bytes. Raises: OSError; Problem when the file ends before."""
    pieces = []
    while size:
        piece = os.pread(fd, size, offset)
        if not piece:
            raise Problem(CUT_OFF)
        pieces.append(piece)
        size -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def hash_bytes(fd: int, offset: int, size: int, hasher: Any, stopping: Callable[[], bool] = lambda: False) -> None:
    """Add bytes of a file to a hash object, a piece at a time.

    Raises: OSError; Problem when the file ends before; Stopped.
    """
    view = memoryview(bytearray(min(PIECE, size)))
    while size:
        if stopping():
            raise Stopped
        count = os.preadv(fd, [view[: min(len(view), size)]], offset)
        if not count:
            raise Problem(CUT_OFF)
        hasher.update(view[:count])
        offset += count
        size -= count


def digest_of_bytes(fd: int, offset: int, size: int, stopping: Callable[[], bool]) -> Digest:
    """Return the sha256 digest of bytes of a file. Raises: as ``hash_bytes``."""
    hasher = Digest("sha256", "").hasher()
    hash_bytes(fd, offset, size, hasher, stopping)
    return Digest("sha256", hasher.hexdigest())
