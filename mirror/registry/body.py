"""Bytes to send: where they are, and when they may be sent."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.ranges import ByteRange
from mirror.store.base import OpenBlob


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of an open file that may be sent now."""

    fd: int
    offset: int
    length: int


class Extents(Protocol):
    """Bytes by position, as they become available."""

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        """Wait until bytes of the content from ``position`` on may be sent, and say where they are.

        stop: the first position that is not wanted. Returns None at the end of the content.
        Raises: UpstreamInvalid when what was sent so far is wrong and the client must not take it for a
        prefix; another RegistryError when no more comes for now.
        """
        ...


class Part(Extents, Protocol):
    """A range of content."""

    @property
    def verified(self) -> bool:
        """Say whether what is sent is known to be right, or its end is withheld until it is."""
        ...


class Body(Extents, Protocol):
    """Content to send, whole or still arriving. size: of the whole in bytes, None while nobody knows."""

    @property
    def size(self) -> int | None: ...

    def part(self, wanted: ByteRange) -> Part:
        """Return what is best for one range; it ends with the body."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class StoredBody:
    """Content that is here, verified."""

    verified = True

    def __init__(self, blob: OpenBlob) -> None:
        self._blob = blob
        self.size = blob.size

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        end = self.size if stop is None else min(stop, self.size)
        return Extent(self._blob.fd, position, end - position) if position < end else None

    def part(self, wanted: ByteRange) -> Part:
        return self

    def close(self) -> None:
        self._blob.close()


class SharedFile:
    """A descriptor with several users; the last one to release it closes it."""

    __slots__ = ("_users", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._users = 1

    def retain(self) -> SharedFile:
        self._users += 1
        return self

    def release(self) -> None:
        self._users -= 1
        if not self._users:
            os.close(self.fd)
