"""Manifests: by digest for ever, by tag for as long as the tag is fresh.

By digest: memory, then store, then the repository's own upstream; verified, never changed. By tag: see
``tags.py`` for what a tag points at, then by digest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cachetools import LRUCache, TTLCache

from mirror.metadata.base import MetadataStore, TagRecord
from mirror.oci.errors import (
    BlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    RegistryError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
)
from mirror.oci.manifest import Descriptor, Manifest, is_manifest_type, parse_manifest
from mirror.oci.names import Digest, Reference, Repository, Tag, digest_of
from mirror.registry.blobs import BlobService
from mirror.registry.sharing import Shared, wait_for_lease
from mirror.registry.tags import TagAnswer, TagResolver
from mirror.store.base import BlobStore, Leases
from mirror.store.reading import read_at
from mirror.upstream.base import FetchedManifest, TagPage, Upstream

log = logging.getLogger("mirror.manifests")

MEMORY = 64 * 1024 * 1024
"""Bytes of manifests each process keeps in memory."""
TOUCH_EVERY = 60.0
"""Seconds within which a manifest's blobs are noted as used once."""
WITHIN = 20.0
"""Seconds a client waits for a manifest; containerd gives up at 30."""
CONFIRM_AT_ONCE = 4
"""Children of a new manifest confirmed at the same time, in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestAnswer:
    """A manifest to send. manifest: None when only its descriptor was asked. hit: no upstream was asked for it.

    warning: why it is stale, when it is.
    """

    descriptor: Descriptor
    manifest: Manifest | None
    hit: bool
    warning: str | None = None


class ManifestService:
    """Manifests and tag lists of every repository, local and pulled through."""

    def __init__(
        self,
        *,
        store: BlobStore,
        leases: Leases,
        metadata: MetadataStore,
        blobs: BlobService,
        tags: TagResolver,
        upstreams: Mapping[str, Upstream],
    ) -> None:
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._blobs = blobs
        self._tags = tags
        self._upstreams = upstreams
        self._memory: LRUCache[Digest, Manifest] = LRUCache(MEMORY, getsizeof=lambda manifest: len(manifest.raw) + 1024)
        self._touched: TTLCache[Digest, bool] = TTLCache(65536, TOUCH_EVERY)
        self._shared = Shared()
        self._background: set[asyncio.Task[None]] = set()
        self._confirming = asyncio.Semaphore(CONFIRM_AT_ONCE)
        tags.bind(complete=self._complete, store=self._keep_fetched)

    async def get(self, reference: Reference, *, body: bool = True) -> ManifestAnswer:
        """Return a manifest (end-3), or with ``body=False`` (HEAD) no more than is needed for its headers.

        Raises: ManifestUnknown (404 MANIFEST_UNKNOWN); UpstreamError when it is not here, or not all of a tag's
        image is, and its upstream fails.
        """
        repository, target = reference.repository, reference.target
        if isinstance(target, Digest):
            manifest, hit = await self._by_digest(repository, target)
            self._touch(manifest)
            return ManifestAnswer(descriptor=manifest.descriptor, manifest=manifest, hit=hit)
        tag = await self._tags.resolve(repository, target)
        record = tag.record
        if not body and is_manifest_type(record.media_type):
            descriptor = Descriptor(media_type=record.media_type, digest=record.digest, size=record.size)
            return ManifestAnswer(descriptor=descriptor, manifest=None, hit=tag.hit, warning=tag.warning)
        return await self._tagged(record, tag)

    async def tags(self, repository: Repository, *, n: int | None, last: str | None) -> TagPage:
        """Return one page of an upstream repository's tags, as the upstream lists them (end-8a, end-8b).

        Raises: NameUnknown (404 NAME_UNKNOWN); UpstreamError.
        """
        return await self._shared.once(
            ("tags", repository, n, last),
            lambda: self._upstream(repository, "tags").tags(repository.name, n=n, last=last),
        )

    async def close(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._shared.close()

    # ---- by tag ----

    async def _tagged(self, record: TagRecord, tag: TagAnswer) -> ManifestAnswer:
        """Return the manifest a tag points at; while the one it moved to cannot be had, the one before."""
        repository = record.repository
        try:
            manifest, hit = await self._by_digest(repository, record.digest)
        except (UpstreamError, ManifestUnknown) as error:
            before = await self._local(record.previous) if record.previous else None
            if before is None or not await self._complete(repository, before.descriptor.digest):
                if isinstance(error, ManifestUnknown) and repository.source:
                    raise UpstreamInvalid(
                        f"{repository.source} says that {repository.name}:{record.tag} is {record.digest}, and does "
                        "not have that manifest",
                        upstream=repository.source,
                    ) from error
                raise
            warning = f"{record.tag} moved to {record.digest}, which cannot be had: {error.message}"
            return ManifestAnswer(descriptor=before.descriptor, manifest=before, hit=True, warning=warning)
        found = manifest.descriptor
        if record.previous or (record.media_type, record.size) != (found.media_type, found.size):
            settled = replace(record, media_type=found.media_type, size=found.size, previous=None)
            await self._tags.settle(settled)
        self._touch(manifest)
        return ManifestAnswer(descriptor=found, manifest=manifest, hit=hit and tag.hit, warning=tag.warning)

    # ---- by digest ----

    async def _by_digest(self, repository: Repository, digest: Digest) -> tuple[Manifest, bool]:
        """Return a manifest the repository may read, and whether it was here."""
        manifest = self._memory.get(digest)
        if manifest is not None and self._metadata.may_read(repository, digest):
            return manifest, True
        manifest = manifest or await self._local(digest)
        if manifest is not None and self._metadata.may_read(repository, digest):
            return manifest, True
        fetched = await self._shared.once((repository, digest), lambda: self._obtain(repository, digest))
        return fetched, False

    async def _local(self, digest: Digest) -> Manifest | None:
        """Return a manifest that is here, whoever may read it."""
        found = self._memory.get(digest)
        if found is not None:
            return found
        media_type = self._metadata.media_type(digest)
        blob = self._store.open(digest) if media_type is not None else None
        if blob is None:
            return None
        try:
            raw = bytearray(blob.size)
            with memoryview(raw) as view:
                done = 0
                while done < len(view) and (count := await read_at(blob.fd, view[done:], done)):
                    done += count
        finally:
            blob.close()
        data = bytes(raw)
        if digest_of(data, digest.algorithm) != digest:
            log.error("the stored manifest %s is damaged on disk; fetching it anew", digest)
            return None
        return self._remember(parse_manifest(data, content_type=media_type, digest=digest))

    async def _obtain(self, repository: Repository, digest: Digest) -> Manifest:
        """Get a manifest the repository has not shown a right to, or that is not here."""
        upstream = self._upstream(repository, str(digest))
        try:
            async with asyncio.timeout(WITHIN):
                lease = await wait_for_lease(self._leases, str(digest), lambda: self._settled(repository, digest))
        except TimeoutError:
            raise UpstreamTimeout(
                f"{upstream.name} did not give {repository.name}@{digest} within {WITHIN:.0f} s", upstream=upstream.name
            ) from None
        try:
            manifest = await self._local(digest)
            if manifest is not None:
                if not self._metadata.may_read(repository, digest):
                    await upstream.resolve(repository.name, digest)
                    await self._metadata.grant(repository, digest, public=False)
                return manifest
            fetched = await upstream.manifest(repository.name, digest)
            return await self._keep(repository, digest, fetched)
        finally:
            if lease is not None:
                lease.release()

    def _settled(self, repository: Repository, digest: Digest) -> bool:
        """Say whether another process did what we wait to do."""
        return (
            self._metadata.media_type(digest) is not None
            and self._metadata.may_read(repository, digest)
            and self._store.stat(digest) is not None
        )

    async def _keep_fetched(self, repository: Repository, fetched: FetchedManifest) -> Manifest:
        """Keep what an upstream answered for a tag without naming its digest."""
        digest = fetched.digest or digest_of(fetched.raw)
        lease = await wait_for_lease(self._leases, str(digest), lambda: self._settled(repository, digest))
        try:
            return await self._local(digest) or await self._keep(repository, digest, fetched)
        finally:
            if lease is not None:
                lease.release()

    async def _keep(self, repository: Repository, digest: Digest, fetched: FetchedManifest) -> Manifest:
        """Verify what an upstream sent, and store it. The caller holds the digest's lease."""
        name = repository.source or ""
        actual = digest_of(fetched.raw, digest.algorithm)
        if actual != digest:
            message = f"{name} sent a manifest of {actual} for {repository.name}@{digest}; nothing of it is kept"
            log.error("%s", message)
            raise UpstreamInvalid(message, upstream=name)
        try:
            manifest = parse_manifest(fetched.raw, content_type=fetched.content_type, digest=digest)
        except ManifestInvalid as error:
            message = f"{name} sent no manifest for {repository.name}@{digest}: {error.message}"
            log.error("%s", message)
            raise UpstreamInvalid(message, upstream=name) from error
        await self._store.put(digest, fetched.raw)
        await self._metadata.put_manifest(repository, manifest, public=fetched.anonymous)
        self._confirm_children(repository, manifest)
        return self._remember(manifest)

    def _remember(self, manifest: Manifest) -> Manifest:
        if len(manifest.raw) + 1024 <= MEMORY // 8:
            self._memory[manifest.descriptor.digest] = manifest
        return manifest

    # ---- what a manifest names ----

    def _touch(self, manifest: Manifest) -> None:
        """Note a manifest and its blobs as used: nodes that hold a base layer never ask for it again."""
        digest = manifest.descriptor.digest
        if digest in self._touched:
            return
        self._touched[digest] = True
        self._store.touch(digest)
        for blob in manifest.blobs:
            self._store.touch(blob.digest)

    def _confirm_children(self, repository: Repository, manifest: Manifest) -> None:
        """Confirm, in the background, the repository's right to blobs that are here already.

        Shared layers stay readable in an outage. The list alone proves nothing: anybody can name any digest.
        """
        for child in manifest.blobs:
            if self._blobs.present(child.digest) and not self._metadata.may_read(repository, child.digest):
                task = asyncio.create_task(self._confirm_child(repository, child.digest))
                self._background.add(task)
                task.add_done_callback(self._background.discard)

    async def _confirm_child(self, repository: Repository, digest: Digest) -> None:
        async with self._confirming:
            try:
                await self._blobs.confirm(repository, digest)
            except BlobUnknown:
                log.info("%s does not have %s, which a manifest of it names", repository, digest)
            except RegistryError as error:
                log.warning("the right of %s to %s is not confirmed: %s", repository, digest, error.message)

    async def _complete(self, repository: Repository, digest: Digest) -> bool:
        """Say whether a client that gets this manifest can get an image from what is here.

        An image: all its blobs that registries distribute. An index: at least one of its images.
        """
        manifest = await self._local(digest)
        if manifest is None or not self._metadata.may_read(repository, digest):
            return False
        if manifest.manifests:
            for child in manifest.manifests:
                if self._metadata.media_type(child.digest) and await self._complete(repository, child.digest):
                    return True
            return False
        return all(
            blob.foreign or (self._blobs.present(blob.digest) and self._metadata.may_read(repository, blob.digest))
            for blob in manifest.blobs
        )

    def _upstream(self, repository: Repository, what: str | Tag) -> Upstream:
        upstream = self._upstreams.get(repository.source) if repository.source else None
        if upstream is None:
            raise ManifestUnknown(f"{repository} has no manifest {what}", detail={"reference": what})
        return upstream
