"""A few numbers that all workers share, in one mapped file.

    <root>/run/numbers
    [page 0: what the file is]
    [page 1: a bucket of 16 slots][page 2: another] …                   a key's hash says which bucket it may be in
      slot    [copy][copy]                                              256 bytes
      copy    [checksum 4][unused 4][turn 8][key's hash 16][12 doubles]   128 bytes

An update writes the older of a slot's two copies with the next turn, so the newest whole copy is always a record
somebody meant: a reader sees one or the other, and so does everybody after a process was killed while it wrote.
Turns are nanoseconds of Unix time and grow within a slot whatever the clock does. A new key takes the slot of its
bucket that was changed longest ago: who makes up keys costs others what they remembered, nothing more.

Updates exclude each other by an open-file-description lock on a byte per bucket, held for some microseconds and never
across an ``await``. If a holder is stopped, others go on without it after a moment: what is shared is advice, and an
update that is lost then is better than a service that waits.

The file has all its blocks before it is mapped, since a store into a hole of a full disk would be a SIGBUS. It
is only ever repaired in place, so that all who have it mapped share it; truncating it would kill them. It is not
synced: after a power cut there are zeros or older numbers. What numbers mean is their users' matter, who take another
key when that changes; a file of another layout begins anew.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import mmap
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mirror.store.failures import disk_errors
from mirror.store.files import write_all

T = TypeVar("T")

NUMBERS = 12
"""How many numbers a key has."""
BUCKETS, SLOTS = 64, 16
"""How many buckets there are, and keys in each."""
PATIENCE = 0.05
"""Seconds to wait for a lock before going on without it."""

_HEAD = struct.Struct("<IxxxxQ16s")
_BODY = struct.Struct(f"<{NUMBERS}d")
_COPY = _HEAD.size + _BODY.size
_SLOT = 2 * _COPY
_PAGE = SLOTS * _SLOT
_CHECKED = 4
"""Where the bytes begin that the checksum is over."""
SIZE = _PAGE * (1 + BUCKETS)
_TITLE = struct.pack("<24s4I", b"oci-mirror numbers 1\n", BUCKETS, SLOTS, _SLOT, NUMBERS)
_ZEROS = (0.0,) * NUMBERS
_PLACES_KEPT = 4096
_FLOCK = struct.Struct("hhqqi4x")


class _Record(NamedTuple):
    """A copy as it was read. turn: 0 when there is none. other: where the slot's other copy is, to be written next."""

    turn: int
    digest: bytes
    numbers: tuple[float, ...]
    other: int


class _Slots:
    """Where keys have their numbers in the file, and what they are. _map: all of its bytes."""

    _map: mmap.mmap | bytes

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._places: dict[str, tuple[bytes, int]] = {}

    def read(self, key: str) -> Sequence[float]:
        """Return the numbers of a key, zeros when it has none. No system call."""
        found = self._find(*self._place(key))
        return _ZEROS if found is None else found.numbers

    def _place(self, key: str) -> tuple[bytes, int]:
        """Return a key's hash, and where its bucket begins."""
        place = self._places.get(key)
        if place is None:
            digest = hashlib.blake2b(key.encode(), key=self._secret, digest_size=16).digest()
            place = digest, _PAGE * (1 + digest[0] % BUCKETS)
            if len(self._places) >= _PLACES_KEPT:
                self._places.clear()
            self._places[key] = place
        return place

    def _find(self, digest: bytes, page: int) -> _Record | None:
        at = page
        while (at := self._map.find(digest, at, page + _PAGE)) >= 0:
            slot = at - at % _SLOT
            found = self._newest(slot)
            if found.digest == digest:
                return found
            at = slot + _SLOT  # another key has it now
        return None

    def _longest_ago(self, page: int) -> _Record:
        """Return the record of the slot of a bucket that is free, or was changed longest ago."""
        return min((self._newest(slot) for slot in range(page, page + _PAGE, _SLOT)), key=lambda record: record.turn)

    def _newest(self, slot: int) -> _Record:
        """Return the newest whole copy of a slot."""
        for _ in range(3):  # none is whole only if both were written while they were read
            raw = self._map[slot : slot + _SLOT]
            one, two = (_HEAD.unpack_from(raw), 0), (_HEAD.unpack_from(raw, _COPY), _COPY)
            for (checksum, turn, digest), at in (one, two) if one[0][1] >= two[0][1] else (two, one):
                if turn and zlib.crc32(raw[at + _CHECKED : at + _COPY]) == checksum:
                    return _Record(turn, digest, _BODY.unpack_from(raw, at + _HEAD.size), slot + _COPY - at)
        return _Record(0, b"", _ZEROS, other=slot)


class SharedNumbers(_Slots):
    """``Numbers`` of all processes that open the same file. Used on one event loop, which need not run yet."""

    def __init__(self, path: Path, secret: bytes, *, patience: float = PATIENCE) -> None:
        """Open the file, making or repairing it as needed. Blocks. To be made after a fork, not before it.

        secret: of this root, so that nobody can make up keys that fall into another's bucket. patience: seconds.
        Raises: StorageFull, StorageFailed.
        """
        super().__init__(secret)
        self._patience = patience
        with disk_errors(f"preparing {path}"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _prepare(self._fd)
                self._map: mmap.mmap = mmap.mmap(self._fd, SIZE)
            except BaseException:
                os.close(self._fd)
                raise

    async def update(self, key: str, change: Callable[[list[float]], T]) -> T:
        """Let ``change`` alter the numbers in place, and return its result; if it raises, nothing is altered.

        No other update comes between, unless a process was stopped in the middle of its own.
        """
        digest, page = self._place(key)
        locked = await self._lock(page)
        try:
            found = self._find(digest, page)
            last = found or self._longest_ago(page)
            turn = max(last.turn + 1, time.time_ns())
            before = found.numbers if found else _ZEROS
            numbers = list(before)
            result = change(numbers)
            if tuple(numbers) != before:
                checked = _HEAD.pack(0, turn, digest)[_CHECKED:] + _BODY.pack(*numbers)
                self._map[last.other : last.other + _COPY] = struct.pack("<I", zlib.crc32(checked)) + checked
            return result
        finally:
            if locked:
                self._flock(fcntl.F_UNLCK, page)

    def close(self) -> None:
        """Unmap the file; doing so twice is harmless."""
        self._map.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- exclusion ----

    async def _lock(self, page: int) -> bool:
        """Wait for the lock of a bucket; False when its holder does not go on."""
        if self._flock(fcntl.F_WRLCK, page):
            return True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        while loop.time() < deadline:
            await asyncio.sleep(random.uniform(0.0005, 0.002))
            if self._flock(fcntl.F_WRLCK, page):
                return True
        return False

    def _flock(self, kind: int, page: int) -> bool:
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, page, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


class ViewedNumbers(_Slots):
    """The numbers of a file, for who looks at it from outside: what is changed here, only this process sees."""

    def __init__(self, path: Path, secret: bytes) -> None:
        """Map the file as it is; one that is not there, or of another layout, has zeros. Blocks.

        Raises: StorageFailed.
        """
        super().__init__(secret)
        self._map = bytes(SIZE)
        self._changed: dict[str, Sequence[float]] = {}
        with disk_errors(f"reading {path}"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
            except FileNotFoundError:
                return
            try:
                if os.fstat(fd).st_size >= SIZE and os.pread(fd, len(_TITLE), 0) == _TITLE:
                    self._map = mmap.mmap(fd, SIZE, prot=mmap.PROT_READ)
            finally:
                os.close(fd)

    def read(self, key: str) -> Sequence[float]:
        """Return the numbers of a key, zeros when it has none."""
        changed = self._changed.get(key)
        return super().read(key) if changed is None else changed

    async def update(self, key: str, change: Callable[[list[float]], T]) -> T:
        """Let ``change`` alter the numbers, for this process alone."""
        numbers = list(self.read(key))
        result = change(numbers)
        self._changed[key] = numbers
        return result

    def close(self) -> None:
        """Unmap the file; doing so twice is harmless."""
        if isinstance(self._map, mmap.mmap):
            self._map.close()
        self._map = bytes(SIZE)


def _prepare(fd: int) -> None:
    """Give the file all its blocks, and its layout when it has another; for one process at a time."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    try:
        os.posix_fallocate(fd, 0, SIZE)
        if os.pread(fd, len(_TITLE), 0) != _TITLE:
            write_all(fd, [bytes(SIZE - _PAGE)], _PAGE)
            write_all(fd, [_TITLE.ljust(_PAGE, b"\0")], 0)  # last, so that half of this is done again
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0))
