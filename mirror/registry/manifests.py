"""Manifests: by digest for ever, by tag for as long as the tag is fresh.

By digest: memory, then store, then the repository's own upstream; verified, never changed. By tag: see
``tags.py`` for what a tag points at, then by digest.

Bytes are shared, rights and failures are not: each repository asks its own upstream, once for all who wait in
all processes, and none waits for what another's upstream does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from cachetools import LRUCache, TTLCache

from mirror.metadata.base import MetadataStore, TagRecord
from mirror.oci.errors import (
    BlobUnknown,
    ManifestInvalid,
    ManifestUnknown,
    RegistryError,
    StorageFailed,
    Unknown,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
)
from mirror.oci.manifest import Descriptor, Manifest, is_manifest_type, parse_manifest, parse_pushed
from mirror.oci.names import Digest, Reference, Repository, Tag, digest_of
from mirror.packages.base import Packages
from mirror.registry.blobs import BlobService
from mirror.registry.errors import from_record, reason_of, to_record
from mirror.registry.leading import WrongContent
from mirror.registry.sharing import HEADERS_WITHIN, Shared, wait_for_lease
from mirror.registry.tags import SHARE, SLOW, TagAnswer, TagResolver
from mirror.store.base import BlobStore, Leases, Memo
from mirror.store.reading import read_at
from mirror.store.threads import in_thread
from mirror.upstream.base import FetchedManifest, Resolved, Upstream

log = logging.getLogger("mirror.manifests")

MEMORY = 64 * 1024 * 1024
"""Bytes of manifests each process keeps in memory."""
READ_INLINE = 64 * 1024
"""Longest manifest hashed and parsed on the event loop, in bytes."""
MOST_CHILDREN = 500
"""Children of one manifest looked at: real ones have tens, and the event loop has other things to do."""
TOUCH_EVERY = 60.0
"""Seconds within which a manifest's blobs are noted as used once."""
STORE_WITHIN = 1.0
"""Seconds a new manifest waits for the lease of its digest, which a download of it as a blob may hold for long."""
CONFIRM_AT_ONCE = 4
"""Children of a new manifest confirmed at the same time, in the background."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestAnswer:
    """A manifest to send. manifest: None when only its descriptor was asked. hit: what was kept is the answer.

    warning: why it is stale, when it is. stale, missed: as of ``TagAnswer``.
    """

    descriptor: Descriptor
    manifest: Manifest | None
    hit: bool
    warning: str | None = None
    stale: str | None = None
    missed: str = "absent"


class ManifestService:
    """Manifests of every repository, local and pulled through."""

    def __init__(
        self,
        *,
        store: BlobStore,
        leases: Leases,
        metadata: MetadataStore,
        memo: Memo,
        blobs: BlobService,
        tags: TagResolver,
        upstreams: Mapping[str, Upstream],
        packages: Packages | None = None,
        wrong: WrongContent | None = None,
    ) -> None:
        self._packages = packages
        self._wrong = wrong
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._memo = memo
        self._blobs = blobs
        self._tags = tags
        self._upstreams = upstreams
        self._memory: LRUCache[Digest | tuple[Digest, str], Manifest] = LRUCache(
            MEMORY, getsizeof=lambda manifest: len(manifest.raw) + 1024
        )
        self._touched: TTLCache[Digest, bool] = TTLCache(65536, TOUCH_EVERY)
        self._shared = Shared()
        self._confirming = asyncio.Semaphore(CONFIRM_AT_ONCE)
        tags.bind(complete=self._complete, store=self._keep_tagged)

    async def get(self, reference: Reference, *, body: bool = True) -> ManifestAnswer:
        """Return a manifest (end-3), or with ``body=False`` (HEAD) no more than is needed for its headers.

        Raises: ManifestUnknown (404 MANIFEST_UNKNOWN); UpstreamError when it is not here, or not all of a tag's
        image is, and its upstream fails. Within 20 s, whatever the upstream does.
        """
        repository, target = reference.repository, reference.target
        if repository.source is None and self._packages is not None and self._packages.owns(repository.name):
            return self._packaged(self._packages, repository, target)
        try:
            async with asyncio.timeout(HEADERS_WITHIN):
                if isinstance(target, Digest):
                    return await self._get_by_digest(repository, target, body=body)
                return await self._get_by_tag(repository, target, body=body)
        except TimeoutError:
            message = (
                f"upstream {repository.source} did not give {repository.name} {target} within {HEADERS_WITHIN:.0f} s"
            )
            raise UpstreamTimeout(message, upstream=repository.source or "") from None

    async def look(self, repository: Repository, digest: Digest) -> tuple[Manifest | None, bool]:
        """Return a manifest that is here, and whether the repository may read it. Nobody is asked.

        Of our own repositories what may not be read is not here.
        """
        if repository.source is None and self._packages is not None and self._packages.owns(repository.name):
            found = self._packages.manifest(repository.name, digest)
            return found, found is not None
        found = await self._readable(repository, digest)
        if found is not None or repository.source is None:
            return found, found is not None
        return await self._local(digest), False

    async def close(self) -> None:
        await self._shared.close()

    def _packaged(self, packages: Packages, repository: Repository, target: Tag | Digest) -> ManifestAnswer:
        """Return a manifest of the packages folder."""
        if isinstance(target, Digest):
            digest = target
        else:
            descriptor = packages.tag(repository.name, target)
            if descriptor is None:
                raise ManifestUnknown(f"{repository} has no tag {target}", detail={"tag": target})
            digest = descriptor.digest
        manifest = packages.manifest(repository.name, digest)
        if manifest is None:
            raise ManifestUnknown(f"{repository} has no manifest {digest}", detail={"reference": str(digest)})
        return ManifestAnswer(descriptor=manifest.descriptor, manifest=manifest, hit=True)

    # ---- by tag ----

    async def _get_by_tag(self, repository: Repository, tag: Tag, *, body: bool) -> ManifestAnswer:
        found = await self._tags.resolve(repository, tag)
        record = found.record
        if body or not is_manifest_type(record.media_type):
            return await self._tagged(record, found)
        if repository.source is not None and record.digest not in self._touched:
            manifest = await self._local(record.digest)
            if manifest is not None:
                self._touch(manifest)
        descriptor = Descriptor(media_type=record.media_type, digest=record.digest, size=record.size)
        return ManifestAnswer(
            descriptor=descriptor,
            manifest=None,
            hit=found.hit,
            warning=found.warning,
            stale=found.stale,
            missed=found.missed,
        )

    async def _tagged(self, record: TagRecord, tag: TagAnswer) -> ManifestAnswer:
        """Return the manifest a tag points at; while the one it moved to cannot be had, the one before."""
        repository = record.repository
        before = await self._readable(repository, record.previous) if record.previous else None
        whole = before is not None and await self._complete(repository, before.descriptor.digest)
        error: RegistryError
        reason = ""
        try:
            async with asyncio.timeout(self._tags.patience(repository) if whole else None):
                manifest, hit = await self._by_digest(repository, record.digest)
        except TimeoutError:
            error = UpstreamTimeout(f"{repository.source} has not sent it yet", upstream=repository.source or "")
            reason = SLOW
        except (UpstreamInvalid, ManifestUnknown) as failure:
            error = _broken_promise(record, failure) if repository.source else failure
            whole = before is not None  # the upstream is there: the rest of what was before can be had from it
            if repository.source:
                # What it sent instead has been told of where it was read.
                log.log(logging.ERROR if isinstance(failure, ManifestUnknown) else logging.INFO, "%s", error.message)
                await self._tags.revert(record, error)
        except UpstreamError as failure:
            error = _of_tag(record, failure)
            if whole:
                await self._tags.revert(record, error)
        else:
            if not tag.hit:
                self._confirm_children(repository, manifest)
            descriptor = manifest.descriptor
            known = (record.previous, record.media_type, record.size)
            # Tags of our own say what was pushed, and are changed by pushes alone.
            if repository.source is not None and known != (None, descriptor.media_type, descriptor.size):
                settled = replace(record, media_type=descriptor.media_type, size=descriptor.size, previous=None)
                await self._tags.settle(settled)
            self._touch(manifest)
            return ManifestAnswer(
                descriptor=descriptor,
                manifest=manifest,
                hit=hit and tag.hit,
                warning=tag.warning,
                stale=tag.stale,
                missed=tag.missed,
            )
        if before is None or not whole:
            raise error
        warning = f"{record.tag} moved to {record.digest}, which cannot be had: {error.message}"
        return ManifestAnswer(
            descriptor=before.descriptor, manifest=before, hit=True, warning=warning, stale=reason or reason_of(error)
        )

    # ---- by digest ----

    async def _get_by_digest(self, repository: Repository, digest: Digest, *, body: bool) -> ManifestAnswer:
        if not body and repository.source is not None and await self._local(digest) is None:
            descriptor = await self._shared.once(("head", repository, digest), lambda: self._head(repository, digest))
            if descriptor is not None:
                return ManifestAnswer(descriptor=descriptor, manifest=None, hit=False)
        manifest, hit = await self._by_digest(repository, digest)
        self._touch(manifest)
        return ManifestAnswer(descriptor=manifest.descriptor, manifest=manifest, hit=hit)

    async def _by_digest(self, repository: Repository, digest: Digest) -> tuple[Manifest, bool]:
        """Return a manifest the repository may read, and whether it was here and it might."""
        manifest = await self._readable(repository, digest)
        if manifest is not None:
            return manifest, True
        self._upstream(repository, str(digest))  # of our own repositories there is nobody else to ask
        return await self._shared.once((repository, digest), lambda: self._obtain(repository, digest)), False

    async def _readable(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return a manifest that is here and that the repository may read."""
        if repository.source is None:
            return await self._pushed(repository, digest)
        return await self._local(digest) if self._metadata.may_read(repository, digest) else None

    async def _local(self, digest: Digest) -> Manifest | None:
        """Return a manifest that is here, whoever may read it."""
        found = self._memory.get(digest)
        if found is not None:
            return found if self._store.stat(digest) is not None else None  # another process may have purged it
        media_type = self._metadata.media_type(digest)
        raw = await self._stored(digest) if media_type is not None else None
        if raw is None:
            return None
        try:
            return self._remember(digest, await _read(raw, media_type, digest))
        except (_WrongDigest, ManifestInvalid) as error:
            log.error("the stored manifest %s is damaged on disk: %s; fetching it anew", digest, error)
            return None

    async def _pushed(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Return a manifest that was pushed to one of our own repositories, as what it was pushed."""
        media_type = self._metadata.holds(repository, digest)
        if media_type is None:
            return None
        found = self._memory.get((digest, media_type))
        if found is not None:
            return found
        raw = await self._stored(digest)
        if raw is None and self._metadata.holds(repository, digest) is None:
            return None  # deleted just now
        try:
            if raw is None:
                raise _WrongDigest("it is not there, or cannot be read")
            manifest = await _read(raw, media_type, digest, parse_pushed)
        except (_WrongDigest, ManifestInvalid) as error:
            raise StorageFailed(f"the manifest {digest} of {repository} is damaged on disk: {error}") from error
        return self._remember((digest, media_type), manifest)

    async def _stored(self, digest: Digest) -> bytes | None:
        """Return the bytes a digest has on disk; None when it has none that can be read."""
        blob = self._store.open(digest)
        if blob is None:
            return None
        try:
            raw = bytearray(blob.size)
            with memoryview(raw) as view:
                done = 0
                while done < len(view) and (count := await read_at(blob.fd, view[done:], done)):
                    done += count
            return bytes(raw)
        except OSError as error:
            log.error("%s cannot be read: %s", digest, error)
            return None
        finally:
            blob.close()

    async def _head(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Ask the repository's upstream for a manifest that is not here; None when only a GET can tell.

        Gives no right: nobody has seen that the digest is a manifest's, and a blob of it may be here.
        """
        found = await self._resolve(self._upstream(repository, str(digest)), repository, digest)
        if found is None or found.size is None or not is_manifest_type(found.media_type):
            return None
        return Descriptor(media_type=found.media_type or "", digest=digest, size=found.size)

    async def _obtain(self, repository: Repository, digest: Digest) -> Manifest:
        """Get a manifest the repository has not shown a right to, or that is not here."""
        upstream = self._upstream(repository, str(digest))
        key = f"manifest {repository.key}@{digest}"
        lease = self._leases.try_acquire(key)
        waited = lease is None
        if lease is None:
            lease = await wait_for_lease(self._leases, key, lambda: self._settled(repository, digest))
        try:
            manifest = await self._local(digest)
            if manifest is not None:
                right = self._metadata.may_read(repository, digest)
                if not right and (right := await self._confirmed(upstream, repository, digest)):
                    await self._metadata.grant(repository, digest, public=False)
                if right:
                    self._confirm_children(repository, manifest)
                    return manifest
            if waited and (known := await self._memo.recall(f"trouble with {key}")) is not None:
                raise from_record(json.loads(known))  # another process asked meanwhile: its bad answer is ours as well
            try:
                # What is here, though perhaps not for this repository, is for its upstream itself to give.
                fetched = await upstream.manifest(repository.name, digest, confirming=manifest is not None)
                return await self._keep(repository, digest, fetched)
            except (Unknown, UpstreamError) as error:
                await self._memo.remember(f"trouble with {key}", json.dumps(to_record(error)), SHARE)
                raise
        finally:
            if lease is not None:
                lease.release()

    def _settled(self, repository: Repository, digest: Digest) -> bool:
        """Say whether another process did what we wait to do."""
        return self._here(digest) and self._metadata.may_read(repository, digest)

    def _here(self, digest: Digest) -> bool:
        """Say whether content is here and known to be a manifest, whoever may read it."""
        return self._metadata.media_type(digest) is not None and self._store.stat(digest) is not None

    async def _confirmed(self, upstream: Upstream, repository: Repository, digest: Digest) -> bool:
        """Ask the repository's own upstream by HEAD whether it has a manifest that is here.

        An answer that does not name the digest proves nothing: a login page is 200 as well. A GET then shows it.
        """
        found = await self._resolve(upstream, repository, digest, confirming=True)
        return found is not None and found.digest == digest

    async def _resolve(
        self, upstream: Upstream, repository: Repository, digest: Digest, *, confirming: bool = False
    ) -> Resolved | None:
        """Ask for a manifest by HEAD; None when the answer makes no sense: some upstreams say 405."""
        try:
            found = await upstream.resolve(repository.name, digest, confirming=confirming)
        except UpstreamInvalid as error:
            log.info("%s; asking by GET", error.message)
            return None
        return found if found.digest in (None, digest) else None

    async def _keep_tagged(self, repository: Repository, fetched: FetchedManifest) -> Manifest:
        """Keep what an upstream answered for a tag without naming its digest before."""
        return await self._keep(repository, fetched.digest or digest_of(fetched.raw), fetched)

    async def _keep(self, repository: Repository, digest: Digest, fetched: FetchedManifest) -> Manifest:
        """Verify what an upstream sent, store it if it is not here, and note the repository's right to it."""
        name = repository.source or ""
        try:
            manifest = await _read(fetched.raw, fetched.content_type, digest)
        except (_WrongDigest, ManifestInvalid) as error:
            message = f"upstream {name} sent no manifest for {repository.name}@{digest}: {error}; nothing of it is kept"
            log.error("%s", message)
            if self._wrong is not None and isinstance(error, _WrongDigest):
                self._wrong.wrong_content(name, "manifest")
            raise UpstreamInvalid(message, upstream=name) from error
        await self._store_verified(manifest)
        await self._metadata.put_manifest(repository, manifest, public=fetched.anonymous)
        self._confirm_children(repository, manifest)
        return self._remember(digest, manifest)

    async def _store_verified(self, manifest: Manifest) -> None:
        """Store a manifest that is not here.

        Whoever holds the lease of its digest is about to store the very same content, or may take for ever: then
        it is served from memory, and stored when it is fetched the next time.
        """
        digest = manifest.descriptor.digest
        try:
            async with asyncio.timeout(STORE_WITHIN):
                lease = await wait_for_lease(self._leases, str(digest), lambda: self._store.stat(digest) is not None)
        except TimeoutError:
            log.info("%s is not stored now: another download of it is under way", digest)
            return
        if lease is None:
            return
        try:
            if self._store.stat(digest) is None or await self._local(digest) is None:
                await self._store.put(digest, manifest.raw)
        finally:
            lease.release()

    def _remember(self, key: Digest | tuple[Digest, str], manifest: Manifest) -> Manifest:
        if len(manifest.raw) + 1024 <= MEMORY // 8:
            self._memory[key] = manifest
        return manifest

    # ---- what a manifest names ----

    def _touch(self, manifest: Manifest) -> None:
        """Note a manifest and its blobs as used: nodes that hold a base layer never ask for it again."""
        digest = manifest.descriptor.digest
        if digest in self._touched:
            return
        self._touched[digest] = True
        self._store.touch(digest)
        for blob in manifest.blobs[:MOST_CHILDREN]:
            self._store.touch(blob.digest)

    def _confirm_children(self, repository: Repository, manifest: Manifest) -> None:
        """Confirm, in the background, the repository's right to children of a manifest that are here already.

        Shared layers stay readable in an outage. The list alone proves nothing: anybody can name any digest.
        """
        images = {child.digest for child in manifest.manifests}
        for digest in {child.digest for child in manifest.children[:MOST_CHILDREN]}:
            here = self._here(digest) if digest in images else self._blobs.present(digest)
            if here and not self._metadata.may_read(repository, digest):
                confirm = partial(self._confirm_child, repository, digest, image=digest in images)
                self._shared.start(("confirm", repository, digest), confirm)

    async def _confirm_child(self, repository: Repository, digest: Digest, *, image: bool) -> None:
        async with self._confirming:
            try:
                if image:
                    await self._by_digest(repository, digest)
                else:
                    await self._blobs.confirm(repository, digest)
            except (BlobUnknown, ManifestUnknown):
                log.info("%s does not have %s, which a manifest of it names", repository, digest)
            except RegistryError as error:
                told = isinstance(error, UpstreamError)  # already, as a failure
                log.log(
                    logging.INFO if told else logging.WARNING,
                    "the right of %s to %s is not confirmed: %s",
                    repository,
                    digest,
                    error.message,
                )

    async def _complete(self, repository: Repository, digest: Digest, seen: set[Digest] | None = None) -> bool:
        """Say whether a client that gets this manifest can get an image from what is here.

        An image: all that it needs. An index: at least one of its images. seen: manifests looked at before on the
        way, so that indexes which name each other many times cost no more than once.
        """
        seen = set() if seen is None else seen
        if (
            len(seen) >= MOST_CHILDREN
            or digest in seen
            or not self._here(digest)
            or not self._metadata.may_read(repository, digest)
        ):
            return False
        seen.add(digest)
        manifest = await self._local(digest)
        if manifest is None:
            return False
        if manifest.manifests:
            for child in manifest.manifests:
                if await self._complete(repository, child.digest, seen):
                    return True
            return False
        return all(
            self._blobs.present(blob.digest) and self._metadata.may_read(repository, blob.digest)
            for blob in manifest.needed
        )

    def _upstream(self, repository: Repository, what: str | Tag) -> Upstream:
        upstream = self._upstreams.get(repository.source or "")
        if upstream is None:
            raise ManifestUnknown(f"{repository} has no manifest {what}", detail={"reference": what})
        return upstream


class _WrongDigest(Exception):
    """The bytes are not those of the digest."""


Parse = Callable[..., Manifest]


async def _read(raw: bytes, content_type: str | None, digest: Digest, parse: Parse = parse_manifest) -> Manifest:
    """Check bytes against their digest and parse them: long ones in a thread. Raises: _WrongDigest, ManifestInvalid."""
    if len(raw) <= READ_INLINE:
        return _read_now(raw, content_type, digest, parse)
    return await in_thread(_read_now, raw, content_type, digest, parse)


def _read_now(raw: bytes, content_type: str | None, digest: Digest, parse: Parse) -> Manifest:
    actual = digest_of(raw, digest.algorithm)
    if actual != digest:
        raise _WrongDigest(f"its {len(raw)} bytes are those of {actual}")
    return parse(raw, content_type=content_type, digest=digest)


def _of_tag(record: TagRecord, error: UpstreamError) -> UpstreamError:
    """Return a failure that names the tag, as the client did, and not what was asked for on its behalf."""
    name = record.repository.name
    message = error.message.replace(f"{name}@{record.digest}", f"{name}:{record.tag}")
    return type(error)(message, upstream=error.upstream, retry_after=error.retry_after, brief=error.brief)


def _broken_promise(record: TagRecord, error: RegistryError) -> UpstreamInvalid:
    """Return the error for a tag whose manifest its own upstream does not have, or not right."""
    repository = record.repository
    return UpstreamInvalid(
        f"upstream {repository.source} says that {repository.name}:{record.tag} is {record.digest}, which cannot be "
        f"had from it: {error.message}",
        upstream=repository.source or "",
    )
