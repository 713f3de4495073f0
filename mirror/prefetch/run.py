"""Going through a list of images: two at a time, their blobs a few at a time, each asked for once.

An image that cannot be had is a problem of its own, and the others are fetched all the same; only a mirror that is
gone ends everything. What is done stays done: whoever runs it again goes on where this ended.

Rights belong to a repository (see the map): a layer that several repositories share is asked for in each of them,
one after the other. Of the second on that is an answer without a body.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mirror.oci.manifest import (
    DOCKER_LIST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    Descriptor,
    Manifest,
)
from mirror.oci.names import Digest, Tag
from mirror.prefetch.client import Broken, Found, Refused, Service, Unreachable
from mirror.prefetch.platforms import Entry, Platform, choose, entries, suits
from mirror.prefetch.references import Image

AT_ONCE = 2
"""Images on their way at the same time: while the last blobs of one arrive, the next begins."""
DEPTH = 4
"""Indexes within indexes that are followed."""
MOST_MANIFESTS = 1000
"""Manifests of one image that are fetched."""
_INDEXES = (OCI_INDEX, DOCKER_LIST)
_FAILURES = (Refused, Broken)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What became of an image.

    digest: of what its reference means, None when that could not be found out. fetched: bytes the mirror did not
    have. here: bytes it had. problems: why not all of it is there. warning: why it may not be the newest.
    """

    image: Image
    digest: Digest | None
    fetched: int
    here: int
    problems: tuple[str, ...] = ()
    warning: str | None = None


class Watcher(Protocol):
    """Is told how it goes, on the event loop."""

    def begin(self, image: Image) -> None: ...

    def expect(self, nbytes: int) -> None:
        """More bytes are to come; fewer than none: they need not."""

    def receive(self, nbytes: int) -> None: ...

    def end(self, pulled: Pulled) -> None: ...


@dataclass(slots=True)
class _Tally:
    """What is found out of an image."""

    digest: Digest | None = None
    warning: str | None = None
    fetched: int = 0
    here: int = 0
    manifests: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, nbytes: int, *, hit: bool) -> None:
        if hit:
            self.here += nbytes
        else:
            self.fetched += nbytes


class Puller:
    """Pulls images through a mirror. For one ``run``."""

    def __init__(
        self, service: Service, platforms: Sequence[Platform] | None, *, watcher: Watcher, jobs: int = 4
    ) -> None:
        """platforms: those to choose from indexes, None for all. jobs: transfers at the same time."""
        self._service = service
        self._platforms = platforms
        self._watcher = watcher
        self._jobs = asyncio.Semaphore(jobs)
        self._asked: dict[tuple[str, Digest], asyncio.Task[bool | Exception]] = {}
        self._busy: dict[Digest, asyncio.Lock] = {}
        self._gone: Unreachable | None = None  # why there is nobody to ask any more

    async def run(self, images: Iterable[Image]) -> None:
        """Pull them all; ``watcher.end`` hears of each."""
        waiting = deque(images)
        workers = [asyncio.create_task(self._work(waiting)) for _ in range(AT_ONCE)]
        try:
            await asyncio.gather(*workers)
        finally:
            left: list[asyncio.Task[Any]] = [*workers, *self._asked.values()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _work(self, waiting: deque[Image]) -> None:
        while waiting:
            image = waiting.popleft()
            tally = _Tally()
            if self._gone is None:
                self._watcher.begin(image)
                try:
                    await self._pull(image, tally)
                except Unreachable as error:
                    self._gone = error
                    tally.problems.append(str(error))
                except _FAILURES as error:
                    tally.problems.append(str(error))
            else:
                tally.problems.append("not tried, as the mirror is gone")
            self._watcher.end(
                Pulled(
                    image=image,
                    digest=tally.digest,
                    fetched=tally.fetched,
                    here=tally.here,
                    problems=tuple(dict.fromkeys(tally.problems)),
                    warning=tally.warning,
                )
            )

    async def _pull(self, image: Image, tally: _Tally) -> None:
        top = await self._manifest(image, image.target, tally)
        tally.digest = top.descriptor.digest
        index = bool(top.manifests) or top.descriptor.media_type in _INDEXES
        manifests = await self._choose(image, top, tally) if index else [top]
        blobs: dict[Digest, Descriptor] = {}
        for manifest in manifests:
            if manifest.descriptor.media_type in (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED):
                tally.problems.append(
                    f"{manifest.descriptor.digest} has the format of 2015 (schema 1), whose layers are not fetched; "
                    "push the image anew with a newer docker"
                )
            blobs |= {blob.digest: blob for blob in manifest.blobs if not blob.foreign}
        await _all(self._blob(image, blob, tally) for blob in blobs.values())

    # ---- manifests ----

    async def _manifest(self, image: Image, target: Tag | Digest, tally: _Tally) -> Manifest:
        tally.manifests += 1
        if tally.manifests > MOST_MANIFESTS:
            raise Broken(f"it has more than {MOST_MANIFESTS} manifests; pull the platforms you need")
        found = await self._within(lambda: self._service.manifest(image, target))
        tally.count(len(found.manifest.raw), hit=found.hit)
        tally.warning = tally.warning or found.warning
        return found.manifest

    async def _within(self, ask: Callable[[], Awaitable[Found]]) -> Found:
        async with self._jobs:
            return await ask()

    async def _choose(self, image: Image, index: Manifest, tally: _Tally) -> list[Manifest]:
        """Return the manifests of an index that are wanted; a platform that is missing is a problem."""
        listed = await self._listed(image, index, tally, depth=1)
        chosen: dict[Digest, Descriptor] = {}
        for wanted in self._platforms if self._platforms is not None else ():
            matching = choose(listed, wanted)
            if not matching:
                tally.problems.append(f"has nothing for {wanted}; there is {_platforms(listed)}")
            chosen |= {entry.descriptor.digest: entry.descriptor for entry in matching}
        if self._platforms is None:
            chosen = {entry.descriptor.digest: entry.descriptor for entry in listed}
        found: list[Manifest] = []

        async def get(digest: Digest) -> None:
            try:
                found.append(await self._manifest(image, digest, tally))
            except _FAILURES as error:
                tally.problems.append(f"its manifest {digest}: {error}")

        await _all(get(digest) for digest in chosen)
        return found

    async def _listed(self, image: Image, index: Manifest, tally: _Tally, *, depth: int) -> list[Entry]:
        """Return what an index lists, that of the indexes in it in their place."""
        found: list[Entry] = []
        for entry in entries(index):
            if entry.descriptor.media_type not in _INDEXES:
                found.append(entry)
            elif self._may_matter(entry.platform):
                if depth >= DEPTH:
                    raise Broken(f"its indexes stand in each other more than {DEPTH} deep")
                inner = await self._manifest(image, entry.descriptor.digest, tally)
                found += await self._listed(image, inner, tally, depth=depth + 1)
        return found

    def _may_matter(self, platform: Platform | None) -> bool:
        """Say whether an index for a platform may hold something that is wanted."""
        wanted = self._platforms
        return wanted is None or platform is None or any(suits(platform, one) for one in wanted)

    # ---- blobs ----

    async def _blob(self, image: Image, blob: Descriptor, tally: _Tally) -> None:
        """Have a blob in an image's repository: whoever asks first asks for all."""
        key = (image.name, blob.digest)
        first = key not in self._asked
        if first:
            self._asked[key] = asyncio.create_task(self._ask(image, blob))
        found = await asyncio.shield(self._asked[key])
        if isinstance(found, Unreachable):
            raise found
        if isinstance(found, Exception):
            tally.problems.append(f"its blob {blob.digest}: {found}")
        else:
            tally.count(blob.size, hit=found or not first)

    async def _ask(self, image: Image, blob: Descriptor) -> bool | Exception:
        """Return whether a blob was there, or why it cannot be had: that may be of several images."""
        async with self._busy.setdefault(blob.digest, asyncio.Lock()), self._jobs:
            if self._gone is not None:
                return self._gone
            received = 0

            def receive(nbytes: int) -> None:
                nonlocal received
                received += nbytes
                self._watcher.receive(nbytes)

            self._watcher.expect(blob.size)
            try:
                return await self._service.blob(image, blob, receive)
            except (*_FAILURES, Unreachable) as error:
                return error
            finally:
                self._watcher.expect(received - blob.size)


async def _all(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of it, and only then raise the first error."""
    for found in await asyncio.gather(*work, return_exceptions=True):
        if found is not None:
            raise found


def _platforms(listed: Sequence[Entry]) -> str:
    """Return what there is to choose from, in words."""
    there = sorted({str(entry.platform) for entry in listed if entry.platform and entry.platform.os != "unknown"})
    return ", ".join(there) or "nothing that says its platform"
