"""The state of a download in flight, shared by all processes through a small mapped file.

Only the leader, who holds the digest's lease, writes it. Each update is one copy of a whole record with its
length and checksum, so a reader in another process sees one record or another, or knows that it saw half of
one and looks again. The file is written out in full before it is mapped: a store into a hole of a full disk
would be a SIGBUS. It is never truncated.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from mirror.store.files import write_all

SIZE = 16384
_HEAD = struct.Struct("<IIQQqQQBB6x")
_JSON_ROOM = SIZE - _HEAD.size


class Phase(IntEnum):
    OPENING = 0
    """A leader asks for headers."""
    RUNNING = 1
    """Headers are in; bytes arrive."""
    VERIFIED = 2
    """Size and digest are right; everything may be sent."""
    DONE = 3
    """It has its final name."""
    FAILED = 4
    """The leader gave up; what is on disk can be continued."""
    WRONG = 5
    """The bytes of this generation are wrong; nobody may be left thinking they are a prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One record. tenure: counts leaders. size: bytes, None while unknown. written: contiguous bytes on disk.
    committed: what followers may send. sources: repositories whose upstream gave it; public: fetched without
    credentials from its first byte to its last. failures: repository → the error its upstream answered during
    this tenure."""

    generation: int = 0
    tenure: int = 0
    phase: Phase = Phase.OPENING
    size: int | None = None
    written: int = 0
    committed: int = 0
    public: bool = False
    sources: tuple[str, ...] = ()
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.phase >= Phase.DONE


def encode(state: State) -> bytes:
    extra = json.dumps({"sources": state.sources, "failures": state.failures}).encode()
    if len(extra) > _JSON_ROOM:
        extra = json.dumps({"sources": state.sources[-8:], "failures": {}}).encode()[:_JSON_ROOM]
    head = _HEAD.pack(
        0,
        _HEAD.size + len(extra),
        state.generation,
        state.tenure,
        -1 if state.size is None else state.size,
        state.written,
        state.committed,
        state.phase,
        state.public,
    )
    body = head[4:] + extra
    return struct.pack("<I", zlib.crc32(body)) + body


def decode(record: bytes) -> State | None:
    """Read a record; None when it is half of one, or nothing."""
    checksum, length, generation, tenure, size, written, committed, phase, public = _HEAD.unpack_from(record)
    if not _HEAD.size <= length <= len(record) or zlib.crc32(record[4:length]) != checksum:
        return None
    extra = json.loads(record[_HEAD.size : length])
    return State(
        generation=generation,
        tenure=tenure,
        phase=Phase(phase),
        size=None if size < 0 else size,
        written=written,
        committed=committed,
        public=bool(public),
        sources=tuple(extra["sources"]),
        failures=extra["failures"],
    )


class _Mapped:
    def __init__(self, fd: int, access: int) -> None:
        try:
            self._map = mmap.mmap(fd, SIZE, access=access)
        finally:
            os.close(fd)

    def read(self) -> State | None:
        """Return the record as it is now, None when none could be read whole."""
        return decode(self._map[:SIZE])

    def close(self) -> None:
        self._map.close()


class StateReader(_Mapped):
    """A follower's view. Raises FileNotFoundError when there is no state."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(fd).st_size < SIZE:
            os.close(fd)
            raise FileNotFoundError(path)  # its leader is just making it
        super().__init__(fd, mmap.ACCESS_READ)


class StateWriter(_Mapped):
    """The leader's view. ``state`` is what a leader before left, or an empty record."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < SIZE:
                write_all(fd, [bytes(SIZE)], 0)
            found = decode(os.pread(fd, SIZE, 0))
        except BaseException:
            os.close(fd)
            raise
        super().__init__(fd, mmap.ACCESS_WRITE)
        self.state = found or State()

    def publish(self, **changes: Any) -> None:
        """Change some fields of the record, for every process at once."""
        self.state = replace(self.state, **changes)
        record = encode(self.state)
        self._map[: len(record)] = record
