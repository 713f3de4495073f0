"""Ranges sent before the verdict over the whole: from the download itself, or, far ahead of it, passed through.

They are unverified: nobody can know that bytes in the middle of content are right. They are therefore marked in
the answer, kept nowhere, and never given to a whole download. Clients of one process that ask for the same range
share one upstream request. An open-ended range is fetched only a little ahead of its fastest reader: parallel
fetchers ask for "from here on", read a piece and close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from mirror.oci.errors import RegistryError, ShuttingDown, StorageFailed, UpstreamError, UpstreamFailed
from mirror.oci.names import Digest, Repository
from mirror.oci.ranges import ByteRange
from mirror.registry.body import Extent, Part, SharedFile
from mirror.registry.origin import Origin
from mirror.registry.view import Changed, DownloadBody
from mirror.store.base import BlobStore
from mirror.store.files import write_all
from mirror.store.ingest import TAIL
from mirror.store.threads import in_thread

log = logging.getLogger("mirror.download")

AHEAD = 8 * 1024 * 1024
"""Bytes between what a download has and the start of a range from which on the range is passed through."""
MOST = 32
"""Windows open at a time in one process."""
LEAD = 4 * 1024 * 1024
"""Bytes fetched ahead of the fastest reader of a window."""


class Window:
    """One range on its way from an upstream into a nameless file."""

    def __init__(self, origin: Origin, wanted: ByteRange, file: SharedFile) -> None:
        self.wanted = wanted
        self.file = file
        self.written = 0
        self.read = 0
        self.users = 0
        self.error: RegistryError | None = None
        self.changed = Changed()
        self.task = asyncio.create_task(self._run(origin), name=f"window {wanted.first} of {origin.digest}")

    async def _run(self, origin: Origin) -> None:
        try:
            async with origin.open(self.wanted.first, self.wanted) as source:
                async for chunk in source.chunks():
                    while self.written - self.read > LEAD:
                        await self.changed.wait()
                    end = await in_thread(write_all, self.file.fd, [chunk], self.written)
                    self.written = end
                    self.changed.notify()
            if self.written < len(self.wanted):
                raise UpstreamFailed(
                    f"{origin.upstream.name} ended a range of {origin.digest} early", upstream=origin.upstream.name
                )
        except RegistryError as error:
            self.error = error
        except OSError as error:
            log.error("a window of %s cannot be written: %s", origin.digest, error)
            self.error = StorageFailed("the disk failed or is full; see the log")
        except asyncio.CancelledError:
            self.error = ShuttingDown("this process is stopping")
            raise
        finally:
            self.changed.notify()

    def end(self) -> None:
        """Stop fetching, and let go of the file when that has stopped."""
        self.task.cancel()
        self.task.add_done_callback(lambda task: self.file.release())


class Windows:
    """The windows of this process."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._open: dict[tuple[Digest, Repository, ByteRange], Window] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """Say whether no more may be opened: each holds a connection that downloads need as well."""
        return len(self._open) >= MOST

    def enter(self, origin: Origin, wanted: ByteRange) -> Window:
        """Take part in a window; pair with ``leave``."""
        key = (origin.digest, origin.repository, wanted)
        window = self._open.get(key)
        if window is None or window.error is not None:
            window = self._open[key] = Window(origin, wanted, SharedFile(self._store.scratch()))
        window.users += 1
        return window

    def leave(self, origin: Origin, window: Window) -> None:
        """Leave a window; with the last one its upstream request ends."""
        window.users -= 1
        if window.users:
            return
        key = (origin.digest, origin.repository, window.wanted)
        if self._open.get(key) is window:
            del self._open[key]
        self._ending.add(window.task)
        window.task.add_done_callback(self._ending.discard)
        window.end()

    async def close(self) -> None:
        windows = list(self._open.values())
        self._open.clear()
        for window in windows:
            window.end()
        await asyncio.gather(*(window.task for window in windows), *self._ending, return_exceptions=True)


class WindowBody:
    """A range of a download: from the download's own bytes where they are there, else from a window."""

    verified = False

    def __init__(self, download: DownloadBody, windows: Windows, origin: Origin, wanted: ByteRange) -> None:
        self._download = download
        self._windows = windows
        self._origin = origin
        self._wanted = wanted
        self._window: Window | None = None
        self._whole: Part | None = None
        self._sent = False

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        if self._whole is not None:
            return await self._whole.extent(position, stop)
        if self._download.complete or self._download.committed > position:
            self._leave()
            return await self._download.extent(position, stop)
        if self._window is None:
            self._window = self._windows.enter(self._origin, ByteRange(position, self._wanted.last))
        window = self._window
        at = position - window.wanted.first
        if at > window.read:
            window.read = at
            window.changed.notify()
        while window.written <= at:
            if isinstance(window.error, UpstreamError) and not self._sent:
                # It cannot give this range; the download will have it.
                self._whole = self._download.part(self._wanted)
                self._leave()
                return await self._whole.extent(position, stop)
            if window.error is not None:
                raise window.error
            if window.task.done():
                return None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):  # the download may get here first
                    await window.changed.wait()
            if self._download.committed > position:
                self._leave()
                return await self._download.extent(position, stop)
        self._sent = True
        end = window.written if stop is None else min(window.written, stop - window.wanted.first)
        return Extent(window.file.fd, at, end - at)

    def close(self) -> None:
        self._leave()

    def _leave(self) -> None:
        window, self._window = self._window, None
        if window is not None:
            self._windows.leave(self._origin, window)


class _EarlyPart:
    """A range of what a download has or soon has, sent without waiting for the verdict over the whole."""

    verified = False

    def __init__(self, download: DownloadBody) -> None:
        self._download = download

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        return await self._download.extent(position, stop)


class RangedDownload:
    """A download whose ranges need not wait for the verdict, for upstreams where that is allowed."""

    def __init__(self, download: DownloadBody, windows: Windows, origin: Origin) -> None:
        self._download = download
        self._windows = windows
        self._origin = origin
        self._parts: list[WindowBody] = []

    @property
    def size(self) -> int | None:
        return self._download.size

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        return await self._download.extent(position, stop)

    def part(self, wanted: ByteRange) -> Part:
        size = self.size
        if self._download.complete or size is None:
            return self._download
        if wanted.first <= self._download.committed + AHEAD:
            if wanted.last >= size - TAIL:
                return self._download.part(wanted)
            return _EarlyPart(self._download)
        if self._windows.full:
            return self._download.part(wanted)
        body = WindowBody(self._download, self._windows, self._origin, wanted)
        self._parts.append(body)
        return body

    def close(self) -> None:
        for part in self._parts:
            part.close()
        self._download.close()
