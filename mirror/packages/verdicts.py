"""Which bytes have been found right or wrong, so that no blob is hashed twice; shared with the other workers.

A verdict is about bytes at a place in a file in a state: device, inode, size and times. In memory it is a short hash of
all that. Good ones are also appended to a file, a line each, which the other workers read. They hold until the machine
is started anew: after a loss of power a file can have its times and not its bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from cachetools import LRUCache

from mirror.oci.names import Digest
from mirror.packages.files import OpenBytes

MAX_KNOWN = 250_000
MAX_FILE = 8 * 1024 * 1024
"""Bytes of the shared file from which on it is begun anew."""

_KEY = 16
"""Bytes of a key, which is written in hexadecimal."""


class Verdicts:
    """What is known. ``get`` and ``add`` are for the event loop, ``share`` and ``read`` block and are for threads."""

    def __init__(self, path: Path | None) -> None:
        """path: of the shared file, None for none."""
        self._known: LRUCache[bytes, bool] = LRUCache(MAX_KNOWN)
        self._path = path
        self._offset = 0
        self._boot = b""

    def key(self, opened: OpenBytes, digest: Digest) -> bytes:
        file = opened.file
        place = (file.device, file.inode, file.size, file.modified, file.changed, opened.offset, opened.size)
        text = f"{place} {digest} ".encode()
        return hashlib.blake2b(text + self._boot, digest_size=_KEY).hexdigest().encode()

    def get(self, key: bytes) -> bool | None:
        """Return whether the bytes are right, None when that is not known."""
        return self._known.get(key)

    def add(self, keys: Iterable[bytes], verdict: bool) -> None:
        for key in keys:
            self._known[key] = verdict

    def start(self, *, leading: bool) -> None:
        """Find out which start of the machine this is; begin a file anew that has become too large. Blocks."""
        try:
            self._boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        except OSError:
            self._path = None  # nothing could tell old verdicts from new ones
        try:
            if leading and self._path is not None and self._path.stat().st_size > MAX_FILE:
                os.truncate(self._path, 0)
        except OSError:
            pass  # there is none yet

    def share(self, key: bytes) -> None:
        """Let the other workers know that bytes are right. One that fails costs them the hashing, not more."""
        if self._path is None:
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, key + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass

    def read(self) -> list[bytes]:
        """Return what other workers have found right since the last time."""
        if self._path is None:
            return []
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            size = os.fstat(fd).st_size
            if size < self._offset:
                self._offset = 0
            data = os.pread(fd, size - self._offset, self._offset)
        except OSError:
            return []
        finally:
            os.close(fd)
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        return [line for line in data[:whole].split(b"\n") if len(line) == 2 * _KEY]
