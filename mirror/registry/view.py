"""What a client sees of a download: its bytes up to where they may be sent, and how it ends.

A view is bound to one generation of the bytes. If they turn out wrong, a client that was sent some of them is told
so by ``UpstreamInvalid``; one that was not begins anew.
"""

from __future__ import annotations

import asyncio

from mirror.oci.errors import RegistryError, Unknown, UpstreamError, UpstreamFailed, UpstreamInvalid
from mirror.oci.names import Digest, Repository
from mirror.oci.ranges import ByteRange
from mirror.registry.body import Extent, Part, SharedFile
from mirror.store.ingest import TAIL
from mirror.store.state import Phase, State

_END = 1 << 62  # beyond any content


class Stored(Exception):
    """The content has its final name: look again."""


class Gone(Exception):
    """The generation a client follows is void and it was sent nothing of it: look again."""


class Changed:
    """Wakes everybody who waits for the next change."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        waiting, self._next = self._next, None
        if waiting and not waiting.done():
            waiting.set_result(None)

    async def wait(self) -> None:
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)


class Progress:
    """How far a download is, as this process knows it.

    error: why no more comes, once it ended without the content. failed: repository → what its own upstream
    answered. views: clients that follow. leading: whether this process leads the transfer.
    """

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.state = State()
        self.changed = Changed()
        self.error: RegistryError | None = None
        self.failed: dict[Repository, RegistryError] = {}
        self.views = 0
        self.leading = False

    def failure_of(self, repository: Repository) -> RegistryError | None:
        """Return what the repository's own upstream answered, None when it was not asked or gave it."""
        return self.failed.get(repository)

    def error_for(self, repository: Repository) -> RegistryError:
        """Return why no more comes, in words that are the repository's own: another's are not for its clients."""
        own = self.failed.get(repository)
        if own is not None:
            return own
        if self.error is None or isinstance(self.error, (Unknown, UpstreamError)):
            return UpstreamFailed(f"the download of {self.digest} broke off; try again", upstream="")
        return self.error

    def wrong(self) -> RegistryError:
        """Return the error for a client that was sent bytes of a void generation."""
        for error in self.failed.values():
            if isinstance(error, UpstreamInvalid):
                return error
        return UpstreamInvalid(f"the bytes of {self.digest} sent so far were wrong", upstream="")


class DownloadBody:
    """One client's view of a download: a generation of it. Made by ``Download.join``."""

    def __init__(self, download: Progress, file: SharedFile, repository: Repository) -> None:
        self._download = download
        self._file: SharedFile | None = file.retain()
        self._repository = repository
        self._sent = False
        self._by_public = False
        self.generation = download.state.generation
        self.led_here = download.leading
        """Whether this process leads the transfer."""
        download.views += 1

    @property
    def size(self) -> int | None:
        return self._download.state.size

    @property
    def verified(self) -> bool:
        return True  # the tail is withheld

    @property
    def committed(self) -> int:
        """Bytes from the start that may be sent now."""
        state = self._download.state
        return state.committed if state.generation == self.generation else 0

    @property
    def complete(self) -> bool:
        return self._download.state.phase in (Phase.VERIFIED, Phase.DONE)

    def readable(self) -> bool:
        """Say whether the transfer itself proves the repository's right to the bytes.

        The right of the public ends when a source goes on that was asked with credentials: see ``extent``.
        """
        state, repository = self._download.state, self._repository
        self._by_public = repository.key not in state.sources and repository.source is not None
        return state.public if self._by_public else repository.key in state.sources

    def confirmed(self) -> None:
        """Note that the repository has a right of its own to the bytes."""
        self._by_public = False

    async def verdict(self) -> None:
        """Wait until the bytes are known to be right, whoever may read them. Raises: as ``ready``."""
        await self.ready(_END, rights=False)

    async def ready(self, position: int, *, rights: bool = True) -> None:
        """Wait until the byte at a position may be sent, or everything may.

        Raises: as ``extent``; and Gone, when the transfer begins anew and this client was sent nothing yet.
        """
        download = self._download
        while True:
            state = download.state
            void = state.generation != self.generation or state.phase is Phase.WRONG
            if void or (rights and self._by_public and not state.public):
                if self._sent:
                    raise download.wrong()
                raise download.failure_of(self._repository) or Gone
            if position < state.committed or state.phase in (Phase.VERIFIED, Phase.DONE):
                return
            if download.error is not None:
                raise download.error_for(self._repository)
            await download.changed.wait()

    async def _begun(self, position: int) -> None:
        """As ``ready``, for a client that can no longer begin anew."""
        try:
            await self.ready(position)
        except Gone:
            raise UpstreamFailed(
                f"the download of {self._download.digest} began anew; try again", upstream=""
            ) from None

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        await self._begun(position)
        committed = self._download.state.committed
        end = committed if stop is None else min(stop, committed)
        if position >= end:
            return None
        self._sent = True
        assert self._file is not None, "closed"
        return Extent(self._file.fd, position, end - position)

    def part(self, wanted: ByteRange) -> Part:
        """Return what withholds the end of a range until the digest is right, as this does for the whole."""
        return self if self.complete else _HeldPart(self, wanted)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.release()
            self._download.views -= 1


class _HeldPart:
    """A range of a download. Its last bytes wait for the verdict: else it could be complete, and wrong."""

    verified = True

    def __init__(self, whole: DownloadBody, wanted: ByteRange) -> None:
        self._whole = whole
        self._held = max(wanted.first, wanted.last + 1 - TAIL)

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        if position < self._held:
            return await self._whole.extent(position, self._held if stop is None else min(stop, self._held))
        await self._whole.extent(_END, None)
        return await self._whole.extent(position, stop)
