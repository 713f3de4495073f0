"""Leases between processes: open-file-description locks on single bytes of one file.

Each held lease has a descriptor of its own. Process-owned POSIX locks would be granted twice within a
process, and closing any descriptor of the file would drop them all. A key's byte is a keyed hash, so that
nobody can make up a digest whose lease collides with another's. A process that dies loses its descriptors,
and so its leases, at once. Source: fcntl_locking(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")


class FileLease:
    """One held lease."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileLeases:
    """Leases in one lock file. secret: of this root, at least 16 bytes, the same in all its processes."""

    def __init__(self, path: Path, secret: bytes) -> None:
        self._path = os.fspath(path)
        self._secret = secret

    def try_acquire(self, key: str) -> FileLease | None:
        """Take the lease of a key; None when anybody has it, this process included. Two system calls."""
        place = hashlib.blake2b(key.encode(), key=self._secret, digest_size=8).digest()
        start = int.from_bytes(place, "big") >> 2
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
        return FileLease(fd)
