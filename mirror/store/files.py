"""Small doings with files that the operating system leaves half done."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path


def write_all(fd: int, chunks: Sequence[bytes], offset: int) -> int:
    """Write chunks at an offset, however often the kernel takes only a part. Returns the new end."""
    views = [memoryview(chunk) for chunk in chunks if chunk]
    while views:
        count = os.pwritev(fd, views[:512], offset)
        offset += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if count:
            views[0] = views[0][count:]
    return offset


def read_plain(path: Path, limit: int, *, flags: int = 0) -> bytes:
    """Read a file that anybody may have put there: a pipe in its place is not waited for. limit: bytes.

    flags: further ones to open it with. Raises: OSError, also when it is none or is longer.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is no file")
        with open(fd, "rb", closefd=False) as file:
            raw = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(raw) > limit:
        raise OSError(errno.EFBIG, f"{path.name} is longer than {limit} bytes")
    return raw


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unlink_quietly(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
