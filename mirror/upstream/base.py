"""What the registry layer asks of an upstream registry.

Every method raises the meanings of ``oci.errors``: ``ManifestUnknown``, ``BlobUnknown`` or ``NameUnknown`` when
the upstream's answer is "not there" (a 404; or 401/403 to us without credentials, after the token dance), else a
subclass of ``UpstreamError``. Headers or an error come within the client's ``headers`` time limit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from mirror.oci.errors import UpstreamError
from mirror.oci.manifest import Descriptor
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.oci.ranges import ByteRange

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a HEAD said of a manifest or blob; every field but ``anonymous`` as far as it was said.

    anonymous: the request that succeeded carried no credentials of ours, nor a token got with them.
    """

    digest: Digest | None
    media_type: str | None
    size: int | None
    anonymous: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedManifest:
    """A manifest as received, not yet verified by the caller beyond its size limit."""

    raw: bytes
    content_type: str | None
    digest: Digest | None
    """The answer's ``Docker-Content-Digest``."""
    anonymous: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TagPage:
    """One page of ``tags/list``. next_n, next_last: what asks for the next page, None at the end."""

    tags: tuple[str, ...]
    next_n: int | None
    next_last: str | None


class BlobSource(Protocol):
    """The body of a blob GET, from ``offset`` on.

    offset: of the first byte that ``chunks`` gives: what was asked, or 0 when the server ignored the Range.
    size: of the whole blob in bytes, None when the server did not say. anonymous: as in ``Resolved``.
    """

    offset: int
    size: int | None
    anonymous: bool

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives, in pieces of any length.

        Raises: UpstreamFailed or UpstreamTimeout when it breaks off short of the announced length.
        """
        ...


class Upstream(Protocol):
    """One configured upstream registry. ``name`` is the one it is configured under."""

    name: str

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a manifest by HEAD (end-3). confirming: a right depends on it, so the upstream itself is asked."""
        ...

    async def manifest(
        self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False
    ) -> FetchedManifest:
        """Get a manifest (end-3). confirming: as in ``resolve``. Raises UpstreamInvalid when it is over the limit."""
        ...

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a blob by HEAD (end-2). confirming: as in ``resolve``."""
        ...

    def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AbstractAsyncContextManager[BlobSource]:
        """Get a blob (end-2), from ``offset`` on, or just the bytes of ``window``.

        A 206 whose Content-Range is not what was asked raises UpstreamInvalid. With ``window`` a server that
        ignores Range raises UpstreamInvalid as well.
        """
        ...

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        """Get one page of the repository's tags (end-8a, end-8b)."""
        ...

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Get every manifest that has a subject (end-12a): all pages, unfiltered.

        Malformed descriptors are left out. None when the upstream does not know this API (404): its clients then
        list them under a tag. Raises UpstreamInvalid when the answer is no index, or is over the limits.
        """
        ...

    def saving(self) -> UpstreamError | None:
        """Say why requests that count against a quota should not be spent on what can be answered stale."""
        ...

    def distrust(self, digest: Digest) -> str | None:
        """Take note that the bytes it gave for a blob are wrong.

        Returns who gave them, in words, when it has somebody else to ask; else None.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


class Numbers(Protocol):
    """A few numbers under a key, the same for all workers; zeros at first. Times in them are Unix seconds.

    They are for what is worth knowing in all workers at once, and can be lost without harm.
    """

    def read(self, key: str) -> Sequence[float]:
        """Return the numbers of a key, ``NUMBERS`` of them. Costs some microseconds; never blocks."""
        ...

    async def update(self, key: str, change: Callable[[list[float]], T]) -> T:
        """Let ``change`` alter the numbers in place, with no other update of any process between; return its result."""
        ...


NUMBERS = 12
"""How many numbers a key has."""
