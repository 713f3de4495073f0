"""What the registry layer asks of the metadata.

Reads are by primary key, a few microseconds, and see at once what any process committed; they are the one
thing allowed to read a file on the event loop. Writes return when they are committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from mirror.oci.manifest import Manifest
from mirror.oci.names import Digest, Repository, Tag


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
    origin: Literal["pulled", "pushed"]
    checked_at: float
    fresh_until: float
    retry_at: float = 0.0
    trouble: str | None = None
    previous: Digest | None = None


class MetadataStore(Protocol):
    """Raises StorageFull or StorageFailed, in every method."""

    def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return what is known of a tag."""
        ...

    def media_type(self, digest: Digest) -> str | None:
        """Return the media type content has as a manifest, None when it is not known to be one."""
        ...

    def may_read(self, repository: Repository, digest: Digest) -> bool:
        """Say whether content that is here may be read through a repository.

        An upstream's repository may read what is public and what it was granted; a local one only the latter.
        """
        ...

    def expected_size(self, repository: Repository, digest: Digest) -> int | None:
        """Return the size in bytes a manifest of the repository gives for a blob. Proves nothing."""
        ...

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
