"""Upstreams that note what they are asked, and cannot be reached: to find out what would be asked of them.

What is offline by configuration says so itself, and is not asked; nor is what is left alone. Beside them what else a
service alone has no need of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager

from mirror.oci.errors import UpstreamError, UpstreamResting, UpstreamUnreachable
from mirror.oci.manifest import Descriptor
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.oci.ranges import ByteRange
from mirror.store.base import Lease
from mirror.upstream.base import BlobSource, FetchedManifest, Resolved, TagPage, Upstream

Rests = Callable[[str, Tag | Digest | None], str | None]
"""Says why nobody is asked for something of an upstream now, None when somebody is. The target of lists is None."""


class Listening(Mapping[str, Upstream]):
    """Stands for upstreams. asked: what would have been asked, in order."""

    def __init__(self, upstreams: Mapping[str, Upstream], *, offline: Mapping[str, bool], rests: Rests) -> None:
        self._rests = rests
        self.asked: list[str] = []
        self._upstreams = upstreams
        self._offline = offline

    def __getitem__(self, name: str) -> Upstream:
        upstream = self._upstreams[name]
        return upstream if self._offline[name] else _Unreachable(upstream, self.asked, self._rests)

    def __iter__(self) -> Iterator[str]:
        return iter(self._upstreams)

    def __len__(self) -> int:
        return len(self._upstreams)


class _Unreachable:
    """An ``Upstream`` (see ``base``) that cannot be reached."""

    def __init__(self, upstream: Upstream, asked: list[str], rests: Rests) -> None:
        self.name = upstream.name
        self._upstream = upstream
        self._asked = asked
        self._rests = rests

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        raise self._down(f"HEAD manifests/{target}", target)

    async def manifest(
        self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False
    ) -> FetchedManifest:
        raise self._down(f"GET manifests/{target}", target)

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        raise self._down(f"HEAD blobs/{digest}", digest)

    def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AbstractAsyncContextManager[BlobSource]:
        raise self._down(f"GET blobs/{digest}", digest)

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        raise self._down("GET tags/list", None)

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        raise self._down(f"GET referrers/{subject}", None)

    def saving(self) -> UpstreamError | None:
        return self._upstream.saving()

    def distrust(self, digest: Digest) -> None: ...

    async def close(self) -> None:
        pass

    def _down(self, question: str, target: Tag | Digest | None) -> UpstreamError:
        if (rests := self._rests(self.name, target)) is not None:
            return UpstreamResting(rests, upstream=self.name)
        self._asked.append(question)
        return UpstreamUnreachable(f"{self.name} cannot be reached", upstream=self.name)


class _Free:
    """A lease that keeps nobody out."""

    def release(self) -> None:
        pass


class NoLeases:
    """``Leases`` for who changes nothing: each is there."""

    def try_acquire(self, key: str) -> Lease | None:
        return _Free()


class NoMemo:
    """A ``Memo`` that forgets: what is remembered for seconds is no answer to what would happen."""

    async def recall(self, key: str) -> str | None:
        return None

    async def remember(self, key: str, answer: str, seconds: float) -> None:
        pass
