"""What changes our own repositories: manifests and tags pushed, blobs mounted, everything deleted. And purging.

A file gets its kept name before its row, and loses it after: under the lease of that name, so a push, a mount and
a delete of one digest come one after the other. What is checked of the rows is checked in the transaction that
changes them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from mirror.metadata.base import Condition, MetadataStore
from mirror.oci.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    RegistryError,
    Unsupported,
)
from mirror.oci.manifest import Manifest, parse_pushed
from mirror.oci.names import Digest, Repository, Tag, digest_of
from mirror.packages.base import Packages
from mirror.registry.sharing import take_lease
from mirror.store.base import BlobStore, Leases, kept_lease
from mirror.store.threads import in_thread

log = logging.getLogger("mirror.pushes")

READ_INLINE = 64 * 1024
"""Longest manifest hashed and parsed on the event loop, in bytes."""


class PushService:
    """Changes of repositories. local: the patterns of our own names, for messages.

    read_only, delete: what the configuration allows. missing_blobs: whether manifests may name blobs that are not
    here. largest: bytes of a manifest. clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        store: BlobStore,
        leases: Leases,
        metadata: MetadataStore,
        packages: Packages | None,
        local: Sequence[str],
        read_only: bool,
        delete: bool,
        missing_blobs: Literal["reject", "accept"],
        largest: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._packages = packages
        self._local = tuple(local)
        self._read_only = read_only
        self._deletable = delete
        self._missing_blobs = missing_blobs
        self._largest = largest
        self._clock = clock

    def check_writable(self, repository: Repository | None, name: str) -> None:
        """Make sure that a repository is one of ours that can be written to.

        repository: None when the name means none. name: as the client says it. Raises: Unsupported (405).
        """
        self._check_not_read_only()
        if repository is None or repository.source is not None:
            names = ", ".join(self._local) or "none"
            whose = f"it is {repository.source}'s" if repository is not None else "it is no upstream's either"
            raise Unsupported(
                f"{name[:255]!r} cannot be pushed to ({whose}); names of our own: {names}. Push to one of those, or "
                "add a pattern under local in the configuration",
                detail={"name": name[:255], "local": list(self._local)},
            )
        if self._packages is not None and self._packages.owns(repository.name):
            raise Unsupported(f"{repository} is served from the packages folder; put a file there to change it")

    def check_deletable(self, repository: Repository) -> None:
        """Make sure that things may be deleted from a repository. Raises: Unsupported (405)."""
        self._check_not_read_only()
        if not self._deletable:
            raise Unsupported("deleting is switched off (delete: false)")
        if repository.source is None:
            self.check_writable(repository, repository.name)

    def _check_not_read_only(self) -> None:
        if self._read_only:
            raise Unsupported("this registry is read-only (read_only: true)")

    # ---- pushing ----

    async def put(
        self,
        repository: Repository,
        target: Tag | Digest,
        raw: bytes,
        *,
        content_type: str | None,
        tags: Sequence[Tag] = (),
        condition: Condition | None = None,
    ) -> Manifest:
        """Store a manifest as it is, and move tags to it (end-7a, end-7b); durable when it returns.

        target: its tag, or its digest and then ``tags`` may name many. condition: of the tag, of each of ``tags``, or
        of the manifest when there are none.
        Raises: ManifestTooLarge (413); ManifestInvalid, DigestInvalid, ManifestBlobUnknown (400);
        PreconditionFailed (412); StorageFull, StorageFailed.
        """
        if len(raw) > self._largest:
            raise too_large(self._largest)
        asked = target if isinstance(target, Digest) else None
        if len(raw) <= READ_INLINE:
            manifest = _read(raw, content_type, asked)
        else:
            manifest = await in_thread(_read, raw, content_type, asked)
        digest = manifest.descriptor.digest
        required = [blob.digest for blob in manifest.blobs if not blob.foreign]
        lease = await take_lease(self._leases, kept_lease(digest), digest)
        try:
            fresh = await self._store.keep(digest, raw)
            try:
                await self._metadata.push_manifest(
                    repository,
                    manifest,
                    tags=tags if asked else (Tag(str(target)),),
                    required=required if self._missing_blobs == "reject" else (),
                    condition=condition,
                    at=self._clock(),
                )
            except RegistryError:
                if fresh:
                    await self._remove_if_unused(digest)
                raise
        finally:
            lease.release()
        return manifest

    async def mount(self, repository: Repository, digest: Digest, source: Repository | None, *, anywhere: bool) -> bool:
        """Make a blob of one repository one of another as well (end-11), without any transfer.

        source: the repository it is in, which the caller may pull from. anywhere: with none named, look for it
        among what was pushed to our own. Returns False when it cannot be had that way.
        """
        lease = await take_lease(self._leases, kept_lease(digest), digest)
        try:
            found = self._metadata.may_read(repository, digest)
            if not found and source is not None:
                found = self._metadata.may_read(source, digest)
            elif not found and anywhere:
                found = self._metadata.pushed_somewhere(digest)
            if not found or not await self._store.pin(digest):
                return False
            try:
                await self._metadata.push_blob(repository, digest)
            except RegistryError:
                await self._remove_if_unused(digest)
                raise
            return True
        finally:
            lease.release()

    # ---- deleting ----

    async def delete_manifest(
        self, repository: Repository, target: Tag | Digest, condition: Condition | None = None
    ) -> None:
        """Delete a tag, or a manifest with the tags on it (end-9); of what was pulled through, purge it.

        Raises: ManifestUnknown (404); PreconditionFailed (412).
        """
        if repository.source is not None:
            found = await self._purge_manifest(repository, target, condition)
        elif isinstance(target, Digest):
            found = await self._delete(
                target,
                lambda: self._metadata.delete_manifest(repository, target, condition=condition, at=self._clock()),
            )
        else:
            found = await self._metadata.delete_tag(repository, target, condition=condition, at=self._clock())
        if not found:
            raise ManifestUnknown(f"{repository} has no manifest {target}", detail={"reference": str(target)})

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """Take a blob out of a repository (end-10); of what was pulled through, purge it. Raises: BlobUnknown (404)."""
        if repository.source is not None:
            found = self._store.stat(digest) is not None and self._metadata.may_read(repository, digest)
            if found:
                await self._purge(repository, digest)
        else:
            found = await self._delete(digest, lambda: self._metadata.delete_blob(repository, digest))
        if not found:
            raise BlobUnknown(f"{repository} has no blob {digest}", detail={"digest": str(digest)})

    async def _delete(self, digest: Digest, delete: Callable[[], Awaitable[bool]]) -> bool:
        """Delete a row of a digest, and its kept name with the last one."""
        lease = await take_lease(self._leases, kept_lease(digest), digest)
        try:
            found = await delete()
            if found:
                await self._remove_if_unused(digest)
            return found
        finally:
            lease.release()

    async def _remove_if_unused(self, digest: Digest) -> None:
        if await self._metadata.unused(digest):
            await self._store.unkeep(digest)

    async def _purge_manifest(self, repository: Repository, target: Tag | Digest, condition: Condition | None) -> bool:
        """Purge a manifest; a tag with the manifest it points at, or the next pull would not fetch it."""
        if isinstance(target, Digest):
            here = self._metadata.media_type(target) is not None and self._metadata.may_read(repository, target)
            digest = target if here else None
        else:
            record = self._metadata.tag(repository, target)
            digest = record.digest if record else None
        if condition is not None:
            condition.check(digest)
        if digest is None:
            return False
        await self._purge(repository, digest)
        return True

    async def _purge(self, repository: Repository, digest: Digest) -> None:
        lease = await take_lease(self._leases, str(digest), digest)
        try:
            await self._metadata.purge(repository, digest)
            await self._store.evict(digest)
        finally:
            lease.release()
        log.info("%s was purged from the cache of %s", digest, repository)


def too_large(largest: int) -> ManifestTooLarge:
    """Return the error for a manifest that is larger than ``largest`` bytes."""
    return ManifestTooLarge(f"the manifest is larger than {largest} bytes (limits.manifest)")


def _read(raw: bytes, content_type: str | None, asked: Digest | None) -> Manifest:
    """Parse what a client pushes. asked: the digest it gave, None for a tag."""
    digest = digest_of(raw, asked.algorithm if asked else "sha256")
    if asked is not None and digest != asked:
        raise DigestInvalid(
            f"the manifest's {len(raw)} bytes are those of {digest}, not of {asked}",
            detail={"digest": str(asked), "actual": str(digest)},
        )
    return parse_pushed(raw, content_type=content_type, digest=digest)
