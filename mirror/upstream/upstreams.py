"""Every upstream by its name: those configured by name are there from the start, those of patterns when asked.

There is no end to the names a pattern matches, and each has connections and threads of its own. So what the registry
layer holds of one is only a handle. What does the asking is lent to a request for as long as it takes, made when it
is not there, and closed when there are too many and nobody uses it: a handle stays good whatever happens to that.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from mirror import config
from mirror.oci.errors import UpstreamError
from mirror.oci.manifest import Descriptor
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.oci.ranges import ByteRange
from mirror.upstream.base import BlobSource, FetchedManifest, Resolved, TagPage, Upstream
from mirror.upstream.configured import ByName, concrete, is_pattern

MOST = 64
"""How many upstreams of patterns stay open, unless more are in use: each may have threads that look up names."""

Make = Callable[[str, config.Upstream], Upstream]


class Upstreams(Mapping[str, Upstream]):
    """The upstreams of one worker. Iterates over those configured by name. Used on one event loop."""

    def __init__(self, configured: Mapping[str, config.Upstream], make: Make, *, most: int = MOST) -> None:
        """configured: by name or pattern. make: is given the concrete name, and settings whose url is a URL."""
        self._make = make
        self._most = most
        self._settings = ByName(configured)
        self._named = {name: make(name, settings) for name, settings in configured.items() if not is_pattern(name)}
        self._handles: WeakValueDictionary[str, _Handle] = WeakValueDictionary()
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def __getitem__(self, name: str) -> Upstream:
        found = self._named.get(name)
        if found is not None:
            return found
        handle = self._handles.get(name)
        if handle is None:
            if is_pattern(name) or name not in self._settings:
                raise KeyError(name)
            # The same one for all who hold it: some ask whether two of them are one upstream.
            handle = self._handles[name] = _Handle(name, self._lend)
        return handle

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    async def close(self) -> None:
        """Close every connection of all of them."""
        for upstream in (*self._named.values(), *(found.upstream for found in self._open.values())):
            await upstream.close()
        self._open.clear()
        await asyncio.gather(*self._closing)

    @contextmanager
    def _lend(self, name: str) -> Iterator[Upstream]:
        """Give what asks the upstream of a pattern; it is not closed before it is given back."""
        found = self._open.get(name)
        if found is None:
            found = self._open[name] = _Open(self._make(name, concrete(self._settings[name], name)))
        self._open.move_to_end(name)
        found.users += 1
        self._close_idle()
        try:
            yield found.upstream
        finally:
            found.users -= 1
            self._close_idle()

    def _close_idle(self) -> None:
        """While too many are open, close the one that nobody uses and nobody asked for longest."""
        while len(self._open) > self._most:
            idle = next((name for name, found in self._open.items() if not found.users), None)
            if idle is None:
                return
            closing = asyncio.create_task(self._open.pop(idle).upstream.close(), name=f"closing upstream {idle}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


@dataclass(slots=True)
class _Open:
    """What asks an upstream of a pattern. users: requests it is lent to."""

    upstream: Upstream
    users: int = 0


class _Handle:
    """An ``Upstream`` (see ``base``) of a pattern: every request borrows what does the asking."""

    __slots__ = ("__weakref__", "_lend", "name")

    def __init__(self, name: str, lend: Callable[[str], AbstractContextManager[Upstream]]) -> None:
        self.name = name
        self._lend = lend

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a manifest by HEAD (end-3)."""
        with self._lend(self.name) as upstream:
            return await upstream.resolve(repository, target, confirming=confirming)

    async def manifest(
        self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False
    ) -> FetchedManifest:
        """Get a manifest (end-3)."""
        with self._lend(self.name) as upstream:
            return await upstream.manifest(repository, target, confirming=confirming)

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a blob by HEAD (end-2)."""
        with self._lend(self.name) as upstream:
            return await upstream.stat_blob(repository, digest, confirming=confirming)

    @asynccontextmanager
    async def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AsyncIterator[BlobSource]:
        """Get a blob (end-2), from ``offset`` on, or just the bytes of ``window``."""
        with self._lend(self.name) as upstream:
            async with upstream.blob(repository, digest, offset=offset, window=window) as source:
                yield source

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        """Get one page of the repository's tags (end-8a, end-8b)."""
        with self._lend(self.name) as upstream:
            return await upstream.tags(repository, n=n, last=last)

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Get every manifest that has a subject (end-12a)."""
        with self._lend(self.name) as upstream:
            return await upstream.referrers(repository, subject)

    def saving(self) -> UpstreamError | None:
        """Say why requests that count should be saved."""
        with self._lend(self.name) as upstream:
            return upstream.saving()

    def distrust(self, digest: Digest) -> str | None:
        """Take note that the bytes it gave for a blob are wrong. Returns who did, when it has somebody else to ask."""
        with self._lend(self.name) as upstream:
            return upstream.distrust(digest)

    async def close(self) -> None:
        """Close nothing: whoever lends it closes what is lent."""
