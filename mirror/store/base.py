"""What the registry layer asks of a blob store and of leases."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.names import Digest, Repository
from mirror.store.ingest import Ingest
from mirror.store.state import StateReader


@dataclass(slots=True)
class OpenBlob:
    """Verified bytes, open for reading; the reader closes it. size: bytes."""

    fd: int
    size: int

    def close(self) -> None:
        """Close it; doing so twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Lease(Protocol):
    """A right that only one holder in all processes has."""

    def release(self) -> None:
        """Give it up; doing so twice is harmless."""
        ...


class Leases(Protocol):
    """Exclusive rights by key, across processes. A holder that dies loses its leases at once."""

    def try_acquire(self, key: str) -> Lease | None:
        """Take the lease of a key; None when anybody has it, this process included."""
        ...


def kept_lease(digest: Digest) -> str:
    """Return the key of the lease for changes of a digest's kept name.

    Another than that of its download, which may take for ever: a push of the same content need not wait for it.
    """
    return f"kept {digest}"


class BlobStore(Protocol):
    """Verified content by digest. The calls that are not ``async`` are a few system calls on local files."""

    def open(self, digest: Digest) -> OpenBlob | None:
        """Open content for reading, None when it is not here."""
        ...

    def stat(self, digest: Digest) -> int | None:
        """Return the size in bytes, None when it is not here."""
        ...

    async def put(self, digest: Digest, data: bytes) -> None:
        """Store verified bytes, durably. The caller holds the digest's lease and has checked the digest.

        Raises: StorageFull, StorageFailed.
        """
        ...

    async def keep(self, digest: Digest, data: bytes) -> bool:
        """Store verified bytes under their kept name, durably. The caller holds the lease of that name.

        Returns False when they were there already. Raises: StorageFull, StorageFailed.
        """
        ...

    async def pin(self, digest: Digest) -> bool:
        """Give cached content its kept name as well. The caller holds the lease of the kept name.

        Returns whether it has that name now; it has not when the content is not here.
        """
        ...

    async def unkeep(self, digest: Digest) -> None:
        """Take the kept name away. The caller holds its lease and knows that nobody needs it."""
        ...

    async def evict(self, digest: Digest) -> None:
        """Take the cached name away. The caller holds the digest's lease."""
        ...

    async def admit(self, digest: Digest, size: int) -> None:
        """Note that content is about to get its final name. size: bytes."""
        ...

    def touch(self, digest: Digest) -> None:
        """Note that the content was used."""
        ...

    def ingest(self, digest: Digest) -> Ingest:
        """Begin or continue a download. The caller holds the digest's lease."""
        ...

    def tidy(self, digest: Digest) -> None:
        """Remove what nobody will continue: parts of void generations; everything of content that is here.

        The caller holds the digest's lease. Blocks.
        """
        ...

    def follow(self, digest: Digest) -> StateReader | None:
        """Open the state of a download that another process leads, None when there is none."""
        ...

    def open_part(self, digest: Digest, generation: int) -> int | None:
        """Open the growing file of a generation for reading, None when it is gone. Returns a descriptor."""
        ...

    def scratch(self) -> int:
        """Open a nameless file for bytes that are not kept. Returns a descriptor. Raises: as ``put``."""
        ...


class Memo(Protocol):
    """Small answers worth remembering for seconds, shared by all processes. Not for the way of a hit."""

    async def recall(self, key: str) -> str | None:
        """Return an answer that has not expired."""
        ...

    async def remember(self, key: str, answer: str, seconds: float) -> None:
        """Remember an answer."""
        ...


class Usage(Protocol):
    """What repositories are used for, counted. For the way of a hit: costs some dictionary entries."""

    def note(self, repository: Repository, *, pulled: str | None, hit: bool, nbytes: int) -> None:
        """Count an answer with content. pulled: the digest of a manifest that was got. nbytes: of bodies, sent."""
        ...
