"""An upstream as it is configured: the registry itself, its mirrors before it, or nobody at all.

    content by digest      each mirror in order, then the registry; last, mirrors that broke the content off before
    what a tag points at   mirrors that ``resolve``, then the registry: a mirror that lags would move tags back
    lists                  as tags
    a right to content     the registry; when it cannot be asked, mirrors that give the content itself, see below
    offline                nobody

Whatever a mirror does but give what was asked for means the next one, and only the registry's own "not there" is an
answer. What a mirror gives is never public: it may show to everybody what the registry shows to some.

A mirror is trusted with as little as can be. Its bytes are checked against their digest. For content that is not here
it is believed that the repository has it: it gives the bytes. For content that is here, another repository's perhaps,
its word is worth nothing, as many a cache says 200 to any repository, and any page for a login to anything: there the
registry decides. While that cannot be asked, a mirror has to show all of the content, which is read through and
dropped; so nobody gets from us what no mirror would have given him. That costs a transfer where a HEAD would do, but
only in an outage, and only for what was not confirmed before.

What a mirror gave wrong is noted in each process for itself. Another process that comes to lead asks it once more:
only when nobody else had the content, as it would be here otherwise.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from cachetools import LRUCache, TTLCache

from mirror import config
from mirror.config import Timeouts
from mirror.oci.errors import (
    ManifestInvalid,
    NameUnknown,
    Unknown,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamOffline,
)
from mirror.oci.manifest import Descriptor, media_type_of, parse_manifest
from mirror.oci.names import Digest, RepositoryName, Tag, digest_of
from mirror.oci.ranges import ByteRange
from mirror.upstream.base import BlobSource, FetchedManifest, Resolved, TagPage, Upstream

log = logging.getLogger("mirror.upstream")

T = TypeVar("T")

DOUBTED_FOR = 3600.0
"""Seconds for which a mirror is not asked again for content it gave wrong, and asked last for what it broke off."""
REMEMBERED = 4096
"""How many digests are remembered of each kind."""
INLINE = 64 * 1024
"""Most bytes hashed or parsed on the event loop."""
MIRROR_WITHIN = 5.0
"""Longest time in seconds a mirror has for its headers: there are others to ask."""


def share_of_time(timeouts: Timeouts, mirrors: int) -> tuple[Timeouts, Timeouts]:
    """Share the time for headers out among a registry and its mirrors; return the limits of each, and of a mirror.

    All of them together have no more time than one registry alone, and the registry has at least half of it.
    """
    if not mirrors:
        return timeouts, timeouts
    theirs = min(MIRROR_WITHIN, timeouts.headers / 2 / mirrors)
    own = timeouts.headers - mirrors * theirs
    return (
        timeouts.model_copy(update={"headers": own}),
        timeouts.model_copy(update={"headers": theirs, "connect": min(timeouts.connect, theirs)}),
    )


def as_upstream(settings: config.Upstream, mirror: config.Mirror, timeouts: Timeouts) -> config.Upstream:
    """Return the settings by which a mirror is asked: what is secret or trusted is its own, never its upstream's."""
    return settings.model_copy(
        update={
            "url": mirror.url,
            "credentials": mirror.credentials,
            "realms": mirror.realms,
            "ca_file": mirror.ca_file,
            "insecure": mirror.insecure,
            "client_certificate": None,
            "mirrors": (),
            "timeouts": timeouts,
            "retries": 0,  # after a mirror there is somebody else to ask
            "connections": None,
            "rate": None,
            "quota_floor": 0.0,
        }
    )


@dataclass(frozen=True, slots=True)
class Link:
    """A mirror. resolve: whether it is asked what tags point at."""

    upstream: Upstream
    resolve: bool = False


class Chain:
    """An ``Upstream`` (see ``base``) made of several. Used on one event loop."""

    def __init__(
        self,
        name: str,
        registry: Upstream,
        mirrors: Sequence[Link] = (),
        *,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wrong: Callable[[str], None] | None = None,
    ) -> None:
        """name: the one it is configured under. registry: the upstream itself. clock: seconds, ages doubts.

        wrong: counts a manifest or blob ("manifest", "blob") of a mirror that is not that of its digest.
        """
        self._count_wrong = wrong or (lambda kind: None)
        self.name = name
        self._registry = registry
        self._mirrors = mirrors
        self._offline = offline
        # By digest and the mirror's place in the order.
        self._wrong: TTLCache[tuple[Digest, int], bool] = TTLCache(REMEMBERED, DOUBTED_FOR, timer=clock)
        self._broken: TTLCache[tuple[Digest, int], bool] = TTLCache(REMEMBERED, DOUBTED_FOR, timer=clock)
        self._gave: LRUCache[Digest, int] = LRUCache(REMEMBERED)

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a manifest by HEAD (end-3). confirming: only for a digest."""
        self._check_online(_manifest(repository, target))

        async def of_mirror(at: int) -> Resolved:
            found = await self._mirrors[at].upstream.resolve(repository, target)
            if found.digest is None or (isinstance(target, Digest) and found.digest != target):
                raise self._useless(at, _manifest(repository, target), f"and names {found.digest or 'no digest'}")
            return replace(found, anonymous=False)

        async def shown(at: int) -> Resolved:
            found = await self._manifest_of(at, repository, target)
            media_type = media_type_of(found.content_type)
            return Resolved(digest=found.digest, media_type=media_type, size=len(found.raw), anonymous=False)

        if confirming:
            return await self._confirmed(target, lambda: self._registry.resolve(repository, target), shown)
        return await self._first(self._asked(target), of_mirror, lambda: self._registry.resolve(repository, target))

    async def manifest(
        self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False
    ) -> FetchedManifest:
        """Get a manifest (end-3). confirming: only for a digest."""
        self._check_online(_manifest(repository, target))

        def of_registry() -> Awaitable[FetchedManifest]:
            # Its bytes are looked at by who stores them, who can tell what is wrong with them.
            return self._registry.manifest(repository, target)

        def of_mirror(at: int) -> Awaitable[FetchedManifest]:
            return self._manifest_of(at, repository, target)

        if confirming:
            return await self._confirmed(target, of_registry, of_mirror)
        return await self._first(self._asked(target), of_mirror, of_registry)

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a blob by HEAD (end-2)."""
        of = f"blob {digest} of {repository}"
        self._check_online(of)

        async def of_mirror(at: int) -> Resolved:
            found = await self._mirrors[at].upstream.stat_blob(repository, digest)
            if found.digest not in (None, digest):
                raise self._useless(at, of, f"and names {found.digest}")
            return replace(found, anonymous=False)

        if confirming:
            return await self._confirmed(
                digest,
                lambda: self._registry.stat_blob(repository, digest),
                lambda at: self._blob_of(at, repository, digest),
            )
        return await self._first(self._asked(digest), of_mirror, lambda: self._registry.stat_blob(repository, digest))

    @asynccontextmanager
    async def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AsyncIterator[BlobSource]:
        """Get a blob (end-2), from ``offset`` on, or just the bytes of ``window``."""
        self._check_online(f"blob {digest} of {repository}")

        def opened(upstream: Upstream) -> AbstractAsyncContextManager[BlobSource]:
            return upstream.blob(repository, digest, offset=offset, window=window)

        asked = self._asked(digest)
        unreliable = [at for at in asked if (digest, at) in self._broken]
        async with AsyncExitStack() as stack:

            async def of_mirror(at: int) -> BlobSource:
                source = await stack.enter_async_context(opened(self._mirrors[at].upstream))
                if window is None:
                    self._gave[digest] = at
                return _Watched(source, lambda: self._note_broken(digest, at))

            async def of_registry() -> BlobSource:
                if window is None:
                    self._gave.pop(digest, None)
                try:
                    return await stack.enter_async_context(opened(self._registry))
                except UpstreamError as error:
                    return await self._rather(error, unreliable, of_mirror)

            yield await self._first([at for at in asked if at not in unreliable], of_mirror, of_registry)

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        """Get one page of the repository's tags (end-8a, end-8b)."""
        self._check_online(f"the tags of {repository}")
        return await self._first(
            self._asked(None),
            lambda at: self._mirrors[at].upstream.tags(repository, n=n, last=last),
            lambda: self._registry.tags(repository, n=n, last=last),
        )

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Get every manifest that has a subject (end-12a); None when the upstream does not know this API."""
        self._check_online(f"the referrers of {repository}@{subject}")

        async def of_mirror(at: int) -> tuple[Descriptor, ...] | None:
            found = await self._mirrors[at].upstream.referrers(repository, subject)
            if found is None:
                raise NameUnknown(f"mirror {at + 1} of {self.name} does not list referrers")
            return found

        return await self._first(self._asked(None), of_mirror, lambda: self._registry.referrers(repository, subject))

    def saving(self) -> UpstreamError | None:
        """Say why requests that count against a quota should not be spent on what can be answered stale."""
        return self._registry.saving()

    def distrust(self, digest: Digest) -> str | None:
        """Take note that bytes a mirror gave are wrong: it is not asked for them for a while. Returns which it was."""
        at = self._gave.pop(digest, None)
        if at is None:
            return None
        self._note_wrong(digest, at)
        return f"mirror {at + 1} of {self.name}"

    async def close(self) -> None:
        """Close every connection."""
        for upstream in (self._registry, *(mirror.upstream for mirror in self._mirrors)):
            await upstream.close()

    def order(self, target: Tag | Digest) -> tuple[int | None, ...]:
        """Return who is asked for a manifest, or a blob, in order: mirrors by their place, None the registry itself."""
        return () if self._offline else (*self._asked(target), None)

    # ---- one after the other ----

    def _asked(self, target: Tag | Digest | None) -> list[int]:
        """Return which mirrors are asked, in order. target: None for a list."""
        by_digest = isinstance(target, Digest)
        return [
            at
            for at, mirror in enumerate(self._mirrors)
            if (by_digest or mirror.resolve) and (target, at) not in self._wrong
        ]

    async def _first(
        self, places: Iterable[int], of_mirror: Callable[[int], Awaitable[T]], of_registry: Callable[[], Awaitable[T]]
    ) -> T:
        """Return what the first mirror gives that gives it, else what the registry does."""
        for at in places:
            try:
                return await of_mirror(at)
            except (Unknown, UpstreamError):
                continue  # it was logged where it happened, unless it is just not there
        return await of_registry()

    async def _rather(self, error: UpstreamError, places: Iterable[int], of_mirror: Callable[[int], Awaitable[T]]) -> T:
        """Return what the first mirror gives that gives it. Raises: the registry's error, when none does."""

        async def of_registry() -> T:
            raise error

        return await self._first(places, of_mirror, of_registry)

    async def _confirmed(
        self,
        target: Tag | Digest,
        of_registry: Callable[[], Awaitable[T]],
        shown: Callable[[int], Awaitable[T]],
    ) -> T:
        """Ask the registry; when it cannot be asked, let a mirror show the content."""
        try:
            return await of_registry()
        except (UpstreamDenied, UpstreamInvalid):
            raise
        except UpstreamError as error:
            return await self._rather(error, self._asked(target) if isinstance(target, Digest) else (), shown)

    # ---- what a mirror gives, looked at ----

    async def _manifest_of(self, at: int, repository: RepositoryName, target: Tag | Digest) -> FetchedManifest:
        """Get a manifest from a mirror. Raises: UpstreamInvalid when it is none, or another; and as ``manifest``."""
        found = await self._mirrors[at].upstream.manifest(repository, target)
        expected = target if isinstance(target, Digest) else found.digest
        long = len(found.raw) > INLINE
        if not (await asyncio.to_thread(_is, found, expected) if long else _is(found, expected)):
            if isinstance(target, Digest):
                self._note_wrong(target, at)
                self._count_wrong("manifest")
            raise self._useless(at, _manifest(repository, target), "and sends something else for it")
        return replace(found, digest=expected, anonymous=False)

    async def _blob_of(self, at: int, repository: RepositoryName, digest: Digest) -> Resolved:
        """Read a blob of a mirror through. Raises: UpstreamInvalid when it is another; and as ``blob``."""
        hasher, size = hashlib.new(digest.algorithm), 0
        async with self._mirrors[at].upstream.blob(repository, digest) as source:
            async for piece in source.chunks():
                size += len(piece)
                if len(piece) <= INLINE:
                    hasher.update(piece)
                else:
                    await asyncio.to_thread(hasher.update, piece)
        if hasher.hexdigest() != digest.encoded:
            self._note_wrong(digest, at)
            self._count_wrong("blob")
            raise self._useless(at, f"blob {digest} of {repository}", "and sends something else for it")
        return Resolved(digest=digest, media_type=None, size=size, anonymous=False)

    # ---- what is noted ----

    def _note_wrong(self, digest: Digest, at: int) -> None:
        self._wrong[digest, at] = True

    def _note_broken(self, digest: Digest, at: int) -> None:
        self._broken[digest, at] = True

    def _useless(self, at: int, of: str, did: str) -> UpstreamInvalid:
        """Log that a mirror's answer is of no use; return the error that means the next one."""
        message = f"mirror {at + 1} of {self.name} was asked for {of}, {did}; the next one is asked"
        log.warning("%s", message)
        return UpstreamInvalid(message, upstream=self.name)

    def _check_online(self, of: str) -> None:
        if self._offline:
            brief = f"{self.name} is offline by configuration"
            raise UpstreamOffline(
                f"{brief} and nothing is kept of {of}; switch offline off to have it fetched",
                upstream=self.name,
                brief=brief,
            )


class _Watched:
    """A mirror's ``BlobSource``, never public; notices when it breaks off."""

    anonymous = False

    def __init__(self, source: BlobSource, broke: Callable[[], None]) -> None:
        self.offset = source.offset
        self.size = source.size
        self._source = source
        self._broke = broke

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._source.chunks():
                yield chunk
        except UpstreamError:
            self._broke()
            raise


def _is(found: FetchedManifest, digest: Digest | None) -> bool:
    """Say whether something is a manifest, and the one of a digest if that is known."""
    if digest is not None:
        return digest_of(found.raw, digest.algorithm) == digest
    try:
        parse_manifest(found.raw, content_type=found.content_type)
    except ManifestInvalid:
        return False
    return True


def _manifest(repository: RepositoryName, target: Tag | Digest) -> str:
    return f"{repository}{'@' if isinstance(target, Digest) else ':'}{target}"
