"""Small doings with files that the operating system leaves half done."""

from __future__ import annotations

import os
from collections.abc import Sequence


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
