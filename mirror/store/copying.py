"""Content copied from one file to another, checked on the way. Everything here blocks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.names import Digest
from mirror.store.files import unlink_quietly, write_all

Step = Callable[[int], None]
"""Is told of bytes as they are done."""

_STEP = 1024 * 1024


def copy(source: str, target: str, digest: Digest, step: Step) -> str | None:
    """Copy a file to a new one and sync that; nothing of it stays when its bytes are wrong.

    Returns what is wrong with the source, None when the copy is right. Raises: OSError of writing.
    """
    unlink_quietly(target)  # of an attempt that was killed
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        offset = 0

        def write(data: bytes) -> None:
            nonlocal offset
            offset = write_all(fd, [data], offset)
            step(len(data))

        found = problem(source, digest, write)
        if found is None:
            os.fsync(fd)
    except BaseException:
        unlink_quietly(target)
        raise
    finally:
        os.close(fd)
    if found is not None:
        unlink_quietly(target)
    return found


def problem(path: str, digest: Digest, use: Callable[[bytes], None] | None = None) -> str | None:
    """Read a file and return what is wrong with it, None when its bytes are those of the digest.

    use: is given the bytes as they are read; what it raises is not taken for a problem of the file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be opened: {error.strerror}"
    hasher = digest.hasher()
    try:
        while True:
            try:
                data = os.read(fd, _STEP)
            except OSError as error:
                return f"the file cannot be read: {error.strerror}"
            if not data:
                break
            hasher.update(data)
            if use is not None:
                use(data)
    finally:
        os.close(fd)
    actual = Digest(digest.algorithm, hasher.hexdigest())
    return None if actual == digest else f"the file has other bytes, those of {actual}"


def check_space(folder: Path, sizes: Sequence[int]) -> None:
    """Make sure that files of these sizes, in bytes, can be written to a folder.

    Raises: StorageFull, StorageFailed.
    """
    with copy_errors(f"looking at {folder}"):
        found = os.statvfs(folder)
    block = found.f_frsize or 4096
    needed = sum(-(-size // block) * block for size in sizes)
    free = found.f_bavail * block
    if needed > free:
        raise StorageFull(
            f"{folder} has no room: {needed} bytes are to be written, {free} are free; nothing was written"
        )


@contextmanager
def copy_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into StorageFull or StorageFailed. doing: "writing /backup/…", for the message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the disk is full: {doing}; free some space there") from error
        raise StorageFailed(f"{doing}: {error.strerror}") from error
