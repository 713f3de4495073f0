"""What the registry layer asks of the metadata.

Reads that are not ``async`` are by primary key, a few microseconds, and see at once what any process committed;
they are the one thing allowed to read a file on the event loop. Writes return when they are committed; those of
pushed content when they would also survive a loss of power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from mirror.oci.errors import PreconditionFailed
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.names import Digest, Repository, Tag

Origin = Literal["pulled", "pushed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRecord:
    """What a tag pointed at when it was last asked about. Times are Unix seconds.

    size: of the manifest in bytes. retry_at: no check before this time, after one that failed; trouble: why.
    previous: the digest before, for as long as the manifest of the new one may not be here yet.
    """

    repository: Repository
    tag: Tag
    digest: Digest
    media_type: str
    size: int
    origin: Origin
    checked_at: float
    fresh_until: float
    retry_at: float = 0.0
    trouble: str | None = None
    previous: Digest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMove:
    """One entry of a tag's history. digest: what it points at since then; None when it was deleted.

    number: grows with each move of any tag. at: Unix seconds.
    """

    number: int
    at: float
    digest: Digest | None
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a tag or manifest must be for a change of it to happen (RFC 9110 sections 13.1.1 and 13.1.2).

    match: digests as text of which it must be one. none: digests of which it must be none. ``*`` is any.
    """

    match: frozenset[str] | None = None
    none: frozenset[str] | None = None

    def check(self, current: Digest | None) -> None:
        """Raises: PreconditionFailed (412)."""
        if self.match is not None and not _among(current, self.match):
            raise PreconditionFailed(f"If-Match does not hold: it is {current or 'not here'}")
        if self.none is not None and _among(current, self.none):
            raise PreconditionFailed(f"If-None-Match does not hold: it is {current}")


def _among(current: Digest | None, digests: frozenset[str]) -> bool:
    return current is not None and ("*" in digests or str(current) in digests)


class MetadataStore(Protocol):
    """Raises StorageFull or StorageFailed, in every method."""

    def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return what is known of a tag."""
        ...

    def media_type(self, digest: Digest) -> str | None:
        """Return the media type content has as a manifest of upstreams, None when it is not known to be one."""
        ...

    def may_read(self, repository: Repository, digest: Digest) -> bool:
        """Say whether content that is here may be read through a repository.

        An upstream's repository may read what is public and what it was granted. A local one only the latter,
        and only blobs: its manifests are those it ``holds``.
        """
        ...

    def holds(self, repository: Repository, digest: Digest) -> str | None:
        """Return the media type of a manifest pushed to a local repository, None when it was not."""
        ...

    def exists(self, repository: Repository) -> bool:
        """Say whether anything is known of a repository."""
        ...

    def pushed_somewhere(self, digest: Digest) -> bool:
        """Say whether any local repository has a blob."""
        ...

    def expected_size(self, repository: Repository, digest: Digest) -> int | None:
        """Return the size in bytes a manifest of the repository gives for a blob. Proves nothing."""
        ...

    # ---- lists; a page of each costs the same wherever it begins ----

    async def tags(self, repository: Repository, *, n: int, last: str = "") -> list[Tag]:
        """Return up to ``n`` tags after ``last``, in ASCII order."""
        ...

    async def repositories(self, *, n: int, last: str = "") -> list[str]:
        """Return up to ``n`` names after ``last``, in ASCII order; an upstream's with the upstream before them."""
        ...

    async def referrers(
        self,
        repository: Repository,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str = "",
        room: int | None = None,
    ) -> list[Descriptor]:
        """Return up to ``n`` manifests pushed with a subject, after the digest ``last``, in the order of digests.

        room: bytes of annotations; the one that exceeds it is the last.
        """
        ...

    async def history(self, repository: Repository, tag: Tag, *, n: int, before: int | None = None) -> list[TagMove]:
        """Return up to ``n`` moves of a tag, the newest first, those with a smaller number than ``before``."""
        ...

    # ---- pulled through ----

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, public: bool) -> None:
        """Note a manifest that is stored, and the repository's right to it."""
        ...

    async def put_tag(self, record: TagRecord) -> None:
        """Note what a tag points at. Gives no right to it: a tag is no more than what an upstream says."""
        ...

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        """Drop a tag."""
        ...

    async def note_trouble(self, repository: Repository, tag: Tag, *, retry_at: float, trouble: str) -> None:
        """Note that a check of a tag failed. retry_at: Unix seconds."""
        ...

    async def grant(self, repository: Repository, digest: Digest, *, public: bool) -> None:
        """Note that the repository's own upstream gave or confirmed content; public: without credentials."""
        ...

    async def purge(self, repository: Repository, digest: Digest) -> None:
        """Forget content that was pulled through: every upstream repository's right to it, and the tags here on it."""
        ...

    # ---- pushed: durable when they return ----

    async def push_blob(self, repository: Repository, digest: Digest) -> None:
        """Note a blob that is stored under its kept name. The caller holds its lease."""
        ...

    async def push_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        *,
        tags: Sequence[Tag],
        required: Sequence[Digest],
        condition: Condition | None,
        at: float,
    ) -> None:
        """Note a manifest that is stored under its kept name, and move tags to it: all of it or nothing.

        required: blobs that have to be in the repository. condition: of each tag, or of the manifest when there
        is none. at: Unix seconds. The caller holds the manifest's lease.
        Raises: ManifestBlobUnknown (400) naming all that are missing; PreconditionFailed (412).
        """
        ...

    async def delete_tag(self, repository: Repository, tag: Tag, *, condition: Condition | None, at: float) -> bool:
        """Delete a pushed tag. Returns whether it was there. Raises: PreconditionFailed (412)."""
        ...

    async def delete_manifest(
        self, repository: Repository, digest: Digest, *, condition: Condition | None, at: float
    ) -> bool:
        """Delete a pushed manifest and the tags on it. Returns whether it was there."""
        ...

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        """Take a blob out of a local repository. Returns whether it was there."""
        ...

    async def unused(self, digest: Digest) -> bool:
        """Say whether no local repository has content any more. True only once that is durable."""
        ...
