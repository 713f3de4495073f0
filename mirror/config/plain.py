"""A file that anybody may have put there: never waited for, never read without end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class NoFile(OSError):
    """There is something, and it is no file: a folder, a pipe, a device."""


class TooLong(OSError):
    """It is longer than whoever asks takes."""


def check_plain(path: Path) -> None:
    """See that a path leads to a file, for a library that will open it by its name. Raises: NoFile, OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise NoFile(errno.EINVAL, "it is not a file")


def read_plain(path: Path, limit: int, *, flags: int = 0) -> bytes:
    """Read a file; a pipe in its place is not waited for.

    limit: bytes. flags: further ones to open it with. Raises: NoFile, TooLong and every other OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NoFile(errno.EINVAL, "it is not a file")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(raw) > limit:
        raise TooLong(errno.EFBIG, f"it is longer than {limit} bytes")
    return raw
