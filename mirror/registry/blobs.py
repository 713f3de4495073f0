"""Blobs: whether a repository may read one, and where its bytes come from.

Knowing a digest is not permission. A local repository reads what was put into it. An upstream's repository
reads what was fetched without credentials through any of them, and what its own upstream gave or confirmed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from mirror.metadata.base import MetadataStore
from mirror.oci.errors import BlobUnknown, StorageFailed, UpstreamFailed, UpstreamInvalid, UpstreamTimeout
from mirror.oci.names import Digest, Repository
from mirror.packages.base import Packages
from mirror.registry.body import Body, StoredBody
from mirror.registry.inflight import Inflight
from mirror.registry.origin import Origin
from mirror.registry.packaged import PackagedBody
from mirror.registry.sharing import HEADERS_WITHIN, Shared
from mirror.registry.view import DownloadBody, Gone, Stored
from mirror.registry.windows import RangedDownload, Windows
from mirror.store.base import BlobStore
from mirror.upstream.base import Resolved, Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobAnswer:
    """A blob to send. hit: its bytes were all here. follows: another client's request had begun the transfer."""

    body: Body
    hit: bool
    follows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobStat:
    """What HEAD says of a blob. size: bytes, None while nobody knows."""

    size: int | None
    hit: bool


class BlobService:
    """Blobs of every repository, local and pulled through.

    unverified_ranges: upstream name → whether ranges may be sent before the verdict over the whole.
    """

    def __init__(
        self,
        *,
        store: BlobStore,
        metadata: MetadataStore,
        inflight: Inflight,
        upstreams: Mapping[str, Upstream],
        unverified_ranges: Mapping[str, bool],
        packages: Packages | None = None,
    ) -> None:
        self._packages = packages
        self._store = store
        self._metadata = metadata
        self._inflight = inflight
        self._upstreams = upstreams
        self._unverified_ranges = unverified_ranges
        self._windows = Windows(store)
        self._shared = Shared()

    async def open(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """Open a blob for reading (end-2); the caller closes the body.

        Raises: BlobUnknown (404 BLOB_UNKNOWN); UpstreamError when it is not here and cannot be fetched.
        """
        try:
            async with asyncio.timeout(HEADERS_WITHIN):
                return await self._open(repository, digest)
        except TimeoutError:
            raise UpstreamTimeout(
                f"{repository.source} did not begin to send {digest} within {HEADERS_WITHIN:.0f} s",
                upstream=repository.source or "",
            ) from None

    async def _open(self, repository: Repository, digest: Digest) -> BlobAnswer:
        if self._packages is not None and self._packaged(repository):
            packaged = await self._packages.open(repository.name, digest)
            if packaged is None:
                raise _unknown(repository, digest)
            return BlobAnswer(body=PackagedBody(packaged), hit=True)
        for _ in range(8):
            blob = self._store.open(digest)
            if blob is not None:
                try:
                    await self._confirm(repository, digest, blob.size)
                except BaseException:
                    blob.close()
                    raise
                self._store.touch(digest)
                return BlobAnswer(body=StoredBody(blob), hit=True)
            origin = self._origin(repository, digest)
            follows = self._inflight.find(digest) is not None
            try:
                download = await self._inflight.join(origin)
            except Stored:
                continue
            try:
                if not download.readable():
                    await self._confirm_in_flight(repository, digest, download)
                # An error before the first byte is still a clean answer.
                await download.ready(0)
            except Gone:
                download.close()
                continue
            except BaseException:
                download.close()
                raise
            ranged = RangedDownload(download, self._windows, origin) if origin.unverified_ranges else download
            return BlobAnswer(body=ranged, hit=False, follows=follows or not download.led_here)
        raise UpstreamFailed(f"{digest} could not be got in one piece; try again", upstream=repository.source or "")

    async def stat(self, repository: Repository, digest: Digest) -> BlobStat:
        """Say whether there is a blob, and its size (end-2, HEAD). At most one upstream HEAD, and no body.

        Raises: as ``open``.
        """
        if self._packages is not None and self._packaged(repository):
            size = self._packages.size(repository.name, digest)
            if size is None:
                raise _unknown(repository, digest)
            return BlobStat(size=size, hit=True)
        size = self._store.stat(digest)
        if size is not None:
            await self._confirm(repository, digest, size)
            return BlobStat(size=size, hit=True)
        size = self._inflight.size_of(digest)
        if size is not None:
            await self._confirm(repository, digest, size)
            return BlobStat(size=size, hit=False)
        resolved = await self._ask(repository, digest)
        return BlobStat(
            size=resolved.size if resolved.size is not None else self._metadata.expected_size(repository, digest),
            hit=False,
        )

    async def confirm(self, repository: Repository, digest: Digest) -> bool:
        """Make sure that a repository may read content that is here, asking its upstream once.

        Returns False when it is not here any more: then there is nothing to compare the answer with.
        Raises: BlobUnknown when it may not; UpstreamError when nobody can say.
        """
        if not self._packaged(repository):
            size = self._store.stat(digest)
            if size is None:
                return False
            await self._confirm(repository, digest, size)
        return True

    def touch(self, digest: Digest) -> None:
        """Note that a client still uses content, though it did not need the bytes."""
        self._store.touch(digest)

    def present(self, digest: Digest) -> bool:
        """Say whether the bytes are here, whoever may read them."""
        return self._store.stat(digest) is not None

    def has(self, repository: Repository, digest: Digest) -> bool:
        """Say whether the bytes are here for a repository, if it may read them."""
        if self._packages is not None and self._packaged(repository):
            return self._packages.size(repository.name, digest) is not None
        return self.present(digest)

    def look(self, repository: Repository, digest: Digest) -> tuple[bool, bool]:
        """Say whether the bytes are here, and whether the repository may read them as it is. Nobody is asked."""
        if self._packaged(repository):
            here = self.has(repository, digest)
            return here, here
        return self.present(digest), self._metadata.may_read(repository, digest)

    async def close(self) -> None:
        await self._shared.close()
        await self._windows.close()

    async def _confirm(self, repository: Repository, digest: Digest, size: int | None) -> None:
        """Make sure that a repository may read bytes that are here or in flight; ``size`` of them, as far as known.

        A 200 alone is no confirmation: login pages and captive portals answer that to everything. It has to be
        the content's size, or its digest, and neither may be another.
        """
        if self._metadata.may_read(repository, digest):
            return
        resolved = await self._ask(repository, digest, confirming=True)
        same = resolved.digest == digest if resolved.size is None else resolved.size == size
        if not same or resolved.digest not in (None, digest):
            raise UpstreamInvalid(
                f"{repository.source} answers for {digest} of {repository.name} with something of "
                f"{resolved.size} bytes that is not it; nobody is given the bytes that are here",
                upstream=repository.source or "",
            )
        # Confirmed for this repository. That it was confirmed without credentials does not make it public:
        # only bytes that were fetched without are.
        await self._metadata.grant(repository, digest, public=False)

    async def _confirm_in_flight(self, repository: Repository, digest: Digest, download: DownloadBody) -> None:
        try:
            await self._confirm(repository, digest, download.size)
        except UpstreamInvalid:
            if download.complete:
                raise
            # Until the verdict the size is only what another upstream claims.
            await download.verdict()
            await self._confirm(repository, digest, download.size)
        download.confirmed()

    async def _ask(self, repository: Repository, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask the repository's own upstream for a blob by HEAD: once for all who wait for the answer.

        confirming: a right depends on it.
        """
        upstream = self._upstream(repository, digest)
        return await self._shared.once(
            (repository, digest, confirming),
            lambda: upstream.stat_blob(repository.name, digest, confirming=confirming),
        )

    def _origin(self, repository: Repository, digest: Digest) -> Origin:
        return Origin(
            repository=repository,
            upstream=self._upstream(repository, digest),
            digest=digest,
            expected=self._metadata.expected_size(repository, digest),
            unverified_ranges=self._unverified_ranges.get(repository.source or "", False),
        )

    def _upstream(self, repository: Repository, digest: Digest) -> Upstream:
        upstream = self._upstreams.get(repository.source or "")
        if upstream is None:
            if repository.source is None and self._lost(repository, digest):
                raise StorageFailed(f"the blob {digest} of {repository} is not on the disk any more")
            raise _unknown(repository, digest)
        return upstream

    def _lost(self, repository: Repository, digest: Digest) -> bool:
        """Say whether a blob that was pushed has no file: not one that is being pushed or deleted just now."""
        may_read = self._metadata.may_read
        return may_read(repository, digest) and not self.present(digest) and may_read(repository, digest)

    def _packaged(self, repository: Repository) -> bool:
        return repository.source is None and self._packages is not None and self._packages.owns(repository.name)


def _unknown(repository: Repository, digest: Digest) -> BlobUnknown:
    return BlobUnknown(f"{repository} has no blob {digest}", detail={"digest": str(digest)})
