"""Kept content held on disk by links of our own while it is copied, whoever deletes it meanwhile.

<root>/ingest/backup.<id>/<algorithm>/<hex>   a link to blobs/<algorithm>/<hex>

The folder is locked for as long as who made it lives; what a killed one left is removed by whoever comes next.
Everything here blocks.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.oci.names import ALGORITHMS, Digest
from mirror.store.failures import disk_errors
from mirror.store.root import Root

_PREFIX = "backup."


class Held:
    """Links to content, in a folder of one holder."""

    def __init__(self, root: Root, folder: str) -> None:
        self._root = root
        self._folder = folder
        self._digests: set[Digest] = set()

    def hold(self, digests: set[Digest]) -> set[Digest]:
        """Hold content from now on. Returns what is not there. Raises: StorageFailed, StorageFull."""
        missing = set()
        for digest in digests - self._digests:
            with disk_errors(f"linking {digest}"):
                try:
                    os.link(self._root.kept(digest), self.path(digest))
                except FileNotFoundError:
                    missing.add(digest)
                else:
                    self._digests.add(digest)
        return missing

    def size(self, digest: Digest) -> int | None:
        """Return the size in bytes of content that is held, else None."""
        return os.stat(self.path(digest)).st_size if digest in self._digests else None

    def path(self, digest: Digest) -> str:
        return f"{self._folder}/{digest.algorithm}/{digest.encoded}"


@contextmanager
def holding(root: Root) -> Iterator[Held]:
    """Make links until the end. Raises: StorageFailed, StorageFull."""
    remove_leftovers(root)
    with disk_errors("making a folder for links"):
        folder, lock = _locked_folder(root)
    try:
        with disk_errors("making a folder for links"):
            for algorithm in ALGORITHMS:
                os.mkdir(f"{folder}/{algorithm}", 0o700)
        yield Held(root, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_leftovers(root: Root) -> None:
    """Remove the links of holders that were killed. What another user's left stays: that user comes back."""
    for folder in Path(root.path, "ingest").glob(f"{_PREFIX}*"):
        lock = _try_lock(str(folder))
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked_folder(root: Root) -> tuple[str, int]:
    while True:
        folder = f"{root.path}/ingest/{_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(folder, 0o700)
        lock = _try_lock(folder)
        if lock is not None:
            if os.path.exists(folder):
                return folder, lock
            os.close(lock)  # somebody took it for a leftover before it was locked


def _try_lock(folder: str) -> int | None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
