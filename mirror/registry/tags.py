"""What a tag points at: from memory while it is fresh, else by one HEAD for all who wait, in all processes.

fresh            → answered at once, no upstream
stale            → one HEAD, waited for at most ``revalidate_wait``; then the kept answer goes out
check failed     → the kept answer, with a warning, for as long as ``stale_for``; no new check for a while
upstream's 404   → by ``on_not_found``: forgotten, or kept
nothing kept     → whatever the upstream answers; a 404 is remembered briefly
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from mirror.config import Tags
from mirror.metadata.base import MetadataStore, TagRecord
from mirror.oci.errors import (
    ManifestUnknown,
    RegistryError,
    Unknown,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)
from mirror.oci.manifest import Manifest, is_manifest_type
from mirror.oci.names import Digest, Repository, Tag
from mirror.registry.errors import from_record, to_record
from mirror.registry.sharing import Shared, wait_for_lease
from mirror.store.base import Leases, Memo
from mirror.upstream.base import FetchedManifest, Upstream

log = logging.getLogger("mirror.tags")

RETRY_AFTER = 5.0
"""Seconds without a new check after one that failed."""
REMEMBER_404 = 10.0
"""Longest time in seconds that a 404 is remembered when nothing is kept."""
SHARE = 2.0
"""Seconds for which processes that waited together share a failure when nothing is kept."""
WITHIN = 20.0
"""Seconds a client with nothing to fall back on waits for a check; containerd gives up at 30."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagAnswer:
    """What a tag points at. hit: no upstream was asked. warning: why it is stale, when it is."""

    record: TagRecord
    hit: bool
    warning: str | None = None


Complete = Callable[[Repository, Digest], Awaitable[bool]]
Keep = Callable[[Repository, FetchedManifest], Awaitable[Manifest]]


class TagResolver:
    """The tags of every upstream's repositories. settings: upstream name → its ``tags`` section."""

    def __init__(
        self,
        *,
        leases: Leases,
        metadata: MetadataStore,
        memo: Memo,
        upstreams: Mapping[str, Upstream],
        settings: Mapping[str, Tags],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._leases = leases
        self._metadata = metadata
        self._memo = memo
        self._upstreams = upstreams
        self._settings = settings
        self._clock = clock
        self._shared = Shared()
        self._complete: Complete
        self._keep: Keep

    def bind(self, *, complete: Complete, store: Keep) -> None:
        """Say how to tell whether an image is all here, and how to keep a manifest that came with a tag."""
        self._complete = complete
        self._keep = store

    async def resolve(self, repository: Repository, tag: Tag) -> TagAnswer:
        """Return what a tag points at.

        Raises: ManifestUnknown (404 MANIFEST_UNKNOWN); UpstreamError when nothing usable is kept.
        """
        record = self._metadata.tag(repository, tag)
        now = self._clock()
        if record is not None and (now < record.fresh_until or repository.source is None):
            return TagAnswer(record=record, hit=True)
        upstream = self._upstreams.get(repository.source) if repository.source else None
        if upstream is None:
            raise ManifestUnknown(f"{repository} has no tag {tag}", detail={"tag": tag})
        if record is None:
            return await self._first(upstream, repository, tag)
        return await self._stale(upstream, record, now)

    async def settle(self, record: TagRecord) -> None:
        """Note what was learnt of the manifest a tag points at, unless the tag moved meanwhile."""
        current = self._metadata.tag(record.repository, record.tag)
        if current is not None and current.digest == record.digest:
            await self._metadata.put_tag(
                replace(current, media_type=record.media_type, size=record.size, previous=record.previous)
            )

    async def close(self) -> None:
        await self._shared.close()

    async def _first(self, upstream: Upstream, repository: Repository, tag: Tag) -> TagAnswer:
        """Ask about a tag of which nothing is kept."""
        await self._raise_remembered(f"404 {repository.key}:{tag}")
        try:
            async with asyncio.timeout(WITHIN):
                record = await self._check(upstream, repository, tag)
        except TimeoutError:
            raise UpstreamTimeout(
                f"{upstream.name} did not answer for {repository.name}:{tag} within {WITHIN:.0f} s",
                upstream=upstream.name,
            ) from None
        return TagAnswer(record=record, hit=False)

    async def _stale(self, upstream: Upstream, record: TagRecord, now: float) -> TagAnswer:
        """Answer for a tag whose record is not fresh."""
        repository, tag = record.repository, record.tag
        settings = self._settings[upstream.name]
        usable = settings.stale_for is None or now < record.fresh_until + settings.stale_for
        if usable and now < record.retry_at and record.trouble is not None:
            kept = await self._kept(record)
            if kept is not None:
                return _stale_answer(kept, from_record(json.loads(record.trouble)))
        check = asyncio.ensure_future(self._check(upstream, repository, tag))
        check.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            whole = usable and await self._complete(repository, record.digest)
            async with asyncio.timeout(settings.revalidate_wait if whole else WITHIN):
                fresh = await asyncio.shield(check)
            return TagAnswer(record=fresh, hit=False)
        except TimeoutError:
            trouble: UpstreamError = UpstreamTimeout(f"{upstream.name} has not answered yet", upstream=upstream.name)
        except UpstreamError as error:
            trouble = error
        if not usable:
            raise trouble
        kept = await self._kept(record)
        if kept is None:
            raise UpstreamFailed(
                f"not all of {repository.name}:{tag} is kept, and {upstream.name} cannot be asked: {trouble.message}",
                upstream=upstream.name,
            ) from trouble
        return _stale_answer(kept, trouble)

    async def _kept(self, record: TagRecord) -> TagRecord | None:
        """Return what a tag pointed at when a client can still get an image from it, None when it cannot."""
        if await self._complete(record.repository, record.digest):
            return record
        before = record.previous
        if before is not None and await self._complete(record.repository, before):
            return replace(record, digest=before, media_type="", size=0, previous=None)
        return None

    async def _check(self, upstream: Upstream, repository: Repository, tag: Tag) -> TagRecord:
        """Ask the upstream, once for all who wait in this process."""
        return await self._shared.once((repository, tag), lambda: self._check_once(upstream, repository, tag))

    async def _check_once(self, upstream: Upstream, repository: Repository, tag: Tag) -> TagRecord:
        """Ask the upstream, once for all processes: they wait for the lease, then read the record again."""
        before = self._metadata.tag(repository, tag)

        def answered() -> TagRecord | None:
            record = self._metadata.tag(repository, tag)
            if record is None or record == before:
                return None
            if record.retry_at > self._clock() and record.trouble is not None:
                raise from_record(json.loads(record.trouble))
            return record if record.fresh_until > self._clock() else None

        key = f"tag {repository.key}:{tag}"
        lease = self._leases.try_acquire(key)
        waited = lease is None
        if lease is None:
            lease = await wait_for_lease(self._leases, key, lambda: answered() is not None)
        try:
            found = answered()
            if found is not None:
                return found
            if waited:  # another process asked meanwhile: a bad answer is ours as well
                await self._raise_remembered(f"404 {repository.key}:{tag}")
                await self._raise_remembered(f"trouble {repository.key}:{tag}")
            try:
                return await self._ask(upstream, repository, tag, before)
            except Unknown as error:
                await self._not_found(upstream, repository, tag, before, error)
                raise
            except UpstreamError as error:
                if before is not None:
                    log.warning("%s:%s cannot be checked: %s", repository, tag, error.message)
                    await self._metadata.note_trouble(
                        repository, tag, retry_at=self._clock() + RETRY_AFTER, trouble=json.dumps(to_record(error))
                    )
                else:
                    await self._memo.remember(f"trouble {repository.key}:{tag}", json.dumps(to_record(error)), SHARE)
                raise
        finally:
            if lease is not None:
                lease.release()

    async def _ask(self, upstream: Upstream, repository: Repository, tag: Tag, before: TagRecord | None) -> TagRecord:
        head = await upstream.resolve(repository.name, tag)
        digest, media_type, size = head.digest, head.media_type, head.size
        if digest is None or size is None or not is_manifest_type(media_type):
            if digest is None:
                manifest = await self._keep(repository, await upstream.manifest(repository.name, tag))
                found = manifest.descriptor
                digest, media_type, size = found.digest, found.media_type, found.size
            else:
                # Enough to fetch it by digest; the rest is then read from the body.
                media_type, size = "", 0
        now = self._clock()
        previous = None
        if before is not None and before.digest != digest:
            here = await self._complete(repository, before.digest)
            previous = before.digest if here else before.previous
            log.info("%s:%s moved from %s to %s", repository, tag, before.digest, digest)
        elif before is not None:
            previous = before.previous
            if not is_manifest_type(media_type):
                media_type, size = before.media_type, before.size
        record = TagRecord(
            repository=repository,
            tag=tag,
            digest=digest,
            media_type=media_type or "",
            size=size or 0,
            origin="pulled",
            checked_at=now,
            fresh_until=now + self._settings[upstream.name].fresh_for,
            previous=previous,
        )
        await self._metadata.put_tag(record)
        return record

    async def _not_found(
        self, upstream: Upstream, repository: Repository, tag: Tag, before: TagRecord | None, error: Unknown
    ) -> None:
        """Act on an upstream's 404: forget the tag, or raise what makes the kept answer go out."""
        settings = self._settings[upstream.name]
        if before is not None and settings.on_not_found == "keep":
            kept = UpstreamFailed(
                f"{upstream.name} no longer has {repository.name}:{tag}; it is kept by on_not_found: keep",
                upstream=upstream.name,
            )
            await self._metadata.note_trouble(
                repository, tag, retry_at=self._clock() + settings.fresh_for, trouble=json.dumps(to_record(kept))
            )
            raise kept from error
        if before is not None:
            log.info("%s no longer has %s:%s; forgotten", upstream.name, repository.name, tag)
            await self._metadata.forget_tag(repository, tag)
        seconds = min(settings.fresh_for, REMEMBER_404)
        if seconds > 0:
            await self._memo.remember(f"404 {repository.key}:{tag}", json.dumps(to_record(error)), seconds)

    async def _raise_remembered(self, key: str) -> None:
        known = await self._memo.recall(key)
        if known is not None:
            raise from_record(json.loads(known))


def _stale_answer(record: TagRecord, trouble: RegistryError) -> TagAnswer:
    return TagAnswer(record=record, hit=True, warning=f"stale since {_when(record.fresh_until)}: {trouble.message}")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
