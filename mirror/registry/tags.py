"""What a tag points at: from memory while it is fresh, else by one HEAD for all who wait, in all processes.

fresh            → answered at once, no upstream
stale            → one HEAD, waited for at most ``revalidate_wait``; then the kept answer goes out
check failed     → the kept answer, with a warning, for as long as ``stale_for``; no new check for a while
moved            → the new digest; the one before is kept beside it until the new manifest is here, and comes back
                   when that cannot be had
upstream's 404   → by ``on_not_found``: forgotten, or kept
nothing kept     → whatever the upstream answers; a 404 is remembered briefly

All changes of a tag's record are made under its lease: what one process learnt never overwrites what another
learnt later.
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
    StorageFailed,
    Unknown,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamOffline,
    UpstreamRateLimited,
    UpstreamTimeout,
)
from mirror.oci.manifest import Manifest, is_manifest_type
from mirror.oci.names import Digest, Repository, Tag
from mirror.registry.errors import from_record, reason_of, to_record
from mirror.registry.sharing import Shared, wait_for_lease
from mirror.store.base import Leases, Memo
from mirror.upstream.base import FetchedManifest, Resolved, Upstream

log = logging.getLogger("mirror.tags")

RETRY_AFTER = 5.0
"""Seconds without a new check after one that failed."""
LONGEST_RETRY = 300.0
"""Most seconds without a new check that an upstream's ``Retry-After`` can ask for."""
REMEMBER_404 = 10.0
"""Longest time in seconds that a 404 is remembered when nothing is kept."""
SHARE = 2.0
"""Seconds for which processes that waited together share a failure when nothing is kept."""
LONGEST_WAIT = 10.0
"""Most seconds a client that has something to fall back on waits for a check, whatever ``revalidate_wait``."""
SLOW = "slow"
"""Why an answer is stale when the upstream did not say in that time; it may still, for who comes later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TagAnswer:
    """What a tag points at. hit: what was kept is the answer. warning: why it is stale, when it is.

    For the counts: stale: the same in a word; missed: why what was kept is not the answer.
    """

    record: TagRecord
    hit: bool
    warning: str | None = None
    stale: str | None = None
    missed: str = "absent"


Complete = Callable[[Repository, Digest], Awaitable[bool]]
Keep = Callable[[Repository, FetchedManifest], Awaitable[Manifest]]


class TagResolver:
    """The tags of every upstream's repositories. settings: upstream name → its ``tags`` section.

    clock: Unix seconds.
    """

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
        """Return what a tag points at. With nothing kept this takes as long as the upstream does.

        Raises: ManifestUnknown (404 MANIFEST_UNKNOWN); UpstreamError when nothing usable is kept.
        """
        record = self._metadata.tag(repository, tag)
        if record is not None and (repository.source is None or self._clock() < record.fresh_until):
            return TagAnswer(record=record, hit=True)
        upstream = self._upstreams.get(repository.source or "")
        if upstream is None:
            raise ManifestUnknown(f"{repository} has no tag {tag}", detail={"tag": tag})
        if record is not None:
            return await self._stale(upstream, record)
        await self._raise_remembered(f"404 {repository.key}:{tag}")
        found = await asyncio.shield(self._check(upstream, repository, tag))
        return TagAnswer(record=found, hit=False)

    def patience(self, repository: Repository) -> float:
        """Return for how many seconds a client that has something to fall back on is made to wait."""
        settings = self._settings.get(repository.source or "")
        return min(settings.revalidate_wait, LONGEST_WAIT) if settings else LONGEST_WAIT

    async def settle(self, record: TagRecord) -> None:
        """Note what was learnt of the manifest a tag points at, unless the tag moved or is being checked."""

        def settled(current: TagRecord) -> TagRecord:
            return replace(current, media_type=record.media_type, size=record.size, previous=record.previous)

        await self._amend(record, settled)

    async def revert(self, record: TagRecord, error: RegistryError) -> None:
        """Take back a move to a manifest that cannot be had, unless the tag moved on or is being checked.

        The tag then points at what it did before, stale, and is checked again after a while. With nothing before,
        a tag whose manifest the upstream does not have, or has not right, is forgotten.
        """

        def reverted(current: TagRecord) -> TagRecord | None:
            if current.previous is None:
                return None if isinstance(error, (Unknown, UpstreamInvalid)) else current
            return replace(
                current,
                digest=current.previous,
                media_type="",
                size=0,
                previous=None,
                # The upstream was last asked then, and from then on this was not its answer.
                fresh_until=current.checked_at,
                retry_at=self._clock() + pause_after(error),
                trouble=json.dumps(to_record(error)),
            )

        await self._amend(record, reverted)

    async def close(self) -> None:
        await self._shared.close()

    async def _amend(self, record: TagRecord, change: Callable[[TagRecord], TagRecord | None]) -> None:
        """Change a tag that still points at the record's digest; None drops it. Best effort."""
        lease = self._leases.try_acquire(_lease_key(record.repository, record.tag))
        if lease is None:
            return
        try:
            current = self._metadata.tag(record.repository, record.tag)
            if current is None or current.digest != record.digest:
                return
            changed = change(current)
            if changed is None:
                await self._metadata.forget_tag(record.repository, record.tag)
            elif changed != current:
                await self._metadata.put_tag(changed)
        finally:
            lease.release()

    async def _stale(self, upstream: Upstream, record: TagRecord) -> TagAnswer:
        """Answer for a tag whose record is not fresh."""
        repository, tag = record.repository, record.tag
        settings = self._settings[upstream.name]
        now = self._clock()
        usable = settings.stale_for is None or now < record.fresh_until + settings.stale_for
        kept = await self._kept(record) if usable else None
        if kept is not None and now < record.retry_at and record.trouble is not None:
            return _stale_answer(kept, from_record(json.loads(record.trouble)))
        trouble: RegistryError
        try:
            async with asyncio.timeout(None if kept is None else self.patience(repository)):
                fresh = await asyncio.shield(self._check(upstream, repository, tag))
            missed = "expired" if fresh.digest == record.digest else "moved"
            return TagAnswer(record=fresh, hit=False, missed=missed)
        except TimeoutError:
            trouble = UpstreamTimeout(f"upstream {upstream.name} has not answered yet", upstream=upstream.name)
            if kept is not None:
                return _stale_answer(kept, trouble, SLOW)
        except Unknown as error:
            if settings.on_not_found == "forget":
                raise
            trouble = error
        except (UpstreamError, StorageFailed) as error:  # a full disk cannot note an answer, and can give one
            trouble = error
        if kept is not None:
            return _stale_answer(kept, trouble)
        if usable and isinstance(trouble, UpstreamError) and self._metadata.media_type(record.digest) is not None:
            # A client that got the manifest could not get its blobs.
            kind = UpstreamRateLimited if isinstance(trouble, UpstreamRateLimited) else UpstreamFailed
            raise kind(
                f"not all of {repository.name}:{tag} is kept, and its upstream cannot be asked: {trouble.brief}",
                upstream=upstream.name,
                retry_after=trouble.retry_after,
                brief=trouble.brief,
            ) from trouble
        raise trouble

    async def _kept(self, record: TagRecord) -> TagRecord | None:
        """Return what a tag pointed at when a client can still get an image from it, None when it cannot."""
        if await self._complete(record.repository, record.digest):
            return record
        before = record.previous
        if before is not None and await self._complete(record.repository, before):
            return replace(record, digest=before, media_type="", size=0, previous=None)
        return None

    def _check(self, upstream: Upstream, repository: Repository, tag: Tag) -> asyncio.Task[TagRecord]:
        """Ask the upstream, once for all who wait in this process."""
        return self._shared.start((repository, tag), lambda: self._check_once(upstream, repository, tag))

    async def _check_once(self, upstream: Upstream, repository: Repository, tag: Tag) -> TagRecord:
        """Ask the upstream, once for all processes: they wait for the lease, then read the record again."""
        before = self._metadata.tag(repository, tag)
        if before is not None and self._clock() < before.fresh_until:
            return before  # another process did it since our caller looked

        def answered() -> TagRecord | None:
            record = self._metadata.tag(repository, tag)
            if record is None or record == before:
                return None
            if record.trouble is not None and (before is None or record.retry_at != before.retry_at):
                raise from_record(json.loads(record.trouble))
            return record if before is None or record.checked_at != before.checked_at else None

        key = _lease_key(repository, tag)
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
            except UpstreamOffline:
                raise  # to find that out again costs nothing
            except UpstreamError as error:
                if before is not None:
                    log.info("%s:%s cannot be checked: %s", repository, tag, error.brief)
                    await self._note(before, error, pause_after(error))
                else:
                    await self._memo.remember(f"trouble {repository.key}:{tag}", json.dumps(to_record(error)), SHARE)
                raise
        finally:
            if lease is not None:
                lease.release()

    async def _ask(self, upstream: Upstream, repository: Repository, tag: Tag, before: TagRecord | None) -> TagRecord:
        """Ask what a tag points at, by HEAD where the upstream can do that; note and return it."""
        head = await self._head(upstream, repository, tag)
        if before is not None and (saving := upstream.saving()) is not None:
            # A GET would be spent on what can be answered as it was: HEADs cost nothing.
            moved = head is None or head.digest is None or not self._metadata.may_read(repository, head.digest)
            if moved and await self._kept(before) is not None:
                raise saving
        if head is not None and head.digest is not None:
            digest, media_type, size = head.digest, head.media_type, head.size
            if self._metadata.may_read(repository, digest):
                # What was read in the manifest itself is better than what a header says of it.
                media_type = self._metadata.media_type(digest) or media_type
        else:
            manifest = await self._keep(repository, await upstream.manifest(repository.name, tag))
            found = manifest.descriptor
            digest, media_type, size = found.digest, found.media_type, found.size
        if before is not None and before.digest == digest and is_manifest_type(before.media_type):
            media_type, size = before.media_type, before.size
        if size is None or not is_manifest_type(media_type):
            # Enough to fetch it by digest; the rest is then read from the body.
            media_type, size = "", 0
        previous = None
        if before is not None:
            previous = before.previous
            if before.digest != digest:
                log.info("%s:%s moved from %s to %s", repository, tag, before.digest, digest)
                if previous is None or await self._complete(repository, before.digest):
                    previous = before.digest
        now = self._clock()
        record = TagRecord(
            repository=repository,
            tag=tag,
            digest=digest,
            media_type=media_type or "",
            size=size,
            origin="pulled",
            checked_at=now,
            fresh_until=now + self._settings[upstream.name].fresh_for,
            previous=previous if previous != digest else None,
        )
        await self._metadata.put_tag(record)
        return record

    async def _head(self, upstream: Upstream, repository: Repository, tag: Tag) -> Resolved | None:
        """Ask by HEAD; None when the upstream makes no sense of that: some answer 405."""
        try:
            return await upstream.resolve(repository.name, tag)
        except UpstreamInvalid as error:
            log.info("%s; asking by GET", error.message)
            return None

    async def _not_found(
        self, upstream: Upstream, repository: Repository, tag: Tag, before: TagRecord | None, error: Unknown
    ) -> None:
        """Act on an upstream's 404: forget the tag, or note that it is kept all the same."""
        settings = self._settings[upstream.name]
        if before is not None and settings.on_not_found == "keep":
            await self._note(before, error, settings.fresh_for)
            return
        if before is not None:
            log.info("%s no longer has %s:%s; forgotten", upstream.name, repository.name, tag)
            await self._metadata.forget_tag(repository, tag)
        seconds = min(settings.fresh_for, REMEMBER_404)
        if seconds > 0:
            await self._memo.remember(f"404 {repository.key}:{tag}", json.dumps(to_record(error)), seconds)

    async def _note(self, record: TagRecord, error: RegistryError, pause: float) -> None:
        """Note why a tag could not be checked, and that it need not be again for ``pause`` seconds."""
        await self._metadata.note_trouble(
            record.repository, record.tag, retry_at=self._clock() + pause, trouble=json.dumps(to_record(error))
        )

    async def _raise_remembered(self, key: str) -> None:
        known = await self._memo.recall(key)
        if known is not None:
            raise from_record(json.loads(known))


def _lease_key(repository: Repository, tag: Tag) -> str:
    return f"tag {repository.key}:{tag}"


def pause_after(error: RegistryError) -> float:
    """Return the seconds without a new check of what is kept after this error."""
    asked = error.retry_after if isinstance(error, UpstreamError) else None
    return max(RETRY_AFTER, min(asked or 0.0, LONGEST_RETRY))


def _stale_answer(record: TagRecord, trouble: RegistryError, reason: str = "") -> TagAnswer:
    said = trouble.brief if isinstance(trouble, UpstreamError) else trouble.message
    warning = f"stale since {moment(record.fresh_until)}: {said}"
    return TagAnswer(record=record, hit=True, warning=warning, stale=reason or reason_of(trouble))


def moment(seconds: float) -> str:
    """Return Unix seconds as a date and time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
