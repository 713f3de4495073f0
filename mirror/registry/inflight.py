"""Downloads in flight: one upstream transfer per digest, whatever the number of clients and processes.

A download belongs to nobody's request. In each process one ``Download`` per digest stands for it; the one whose
process holds the digest's lease *leads*: it fetches, hashes and writes a growing file. The others *follow* the
shared state. Clients of either copy the file to their sockets, up to ``committed``.

Bytes are shared by digest; rights and errors belong to a repository. Each waiter brings its repository's own
``Origin``. When the leader's origin fails, that is the answer for the waiters of that repository only; another
waiter's origin is tried next, here or in another process.

A view is bound to one *generation* of the bytes. If they turn out wrong, whoever was sent some of them is told
so by ``UpstreamInvalid``, and the next attempt is a new generation in a new file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from mirror.metadata.base import MetadataStore
from mirror.oci.errors import RegistryError, ShuttingDown, StorageFailed, Unknown, UpstreamFailed, UpstreamInvalid
from mirror.oci.names import Digest, Repository
from mirror.registry.body import SharedFile
from mirror.registry.errors import from_record
from mirror.registry.leading import Leader, WrongContent
from mirror.registry.origin import Origin
from mirror.registry.view import DownloadBody, Progress, Stored
from mirror.store.base import BlobStore, Lease, Leases
from mirror.store.state import Phase, State, StateReader
from mirror.store.threads import in_thread

log = logging.getLogger("mirror.download")

COMMIT_WITHIN = 3.0
"""Seconds a process that stops waits for verified content to get its name; its parent is not patient for ever."""
LEASE_EVERY = 0.05
"""Seconds between a follower's looks at whether the leader is still there."""


class Observer(WrongContent, Protocol):
    """Counts the downloads this process leads."""

    def download_started(self) -> None: ...
    def download_ended(self, upstream: str | None, result: str) -> None:
        """Count an end. upstream: who was asked last, None for nobody. result: of ``mirror_downloads_total``."""
        ...


class NoObserver:
    def download_started(self) -> None: ...
    def download_ended(self, upstream: str | None, result: str) -> None: ...
    def wrong_content(self, upstream: str, kind: str) -> None: ...


class Download(Progress):
    """One digest in flight, as this process sees it. Runs from the first ``join`` until it ended."""

    def __init__(
        self,
        digest: Digest,
        *,
        store: BlobStore,
        leases: Leases,
        metadata: MetadataStore,
        observer: Observer,
        on_end: Callable[[Download], None],
    ) -> None:
        super().__init__(digest)
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._observer = observer
        self._on_end = on_end
        self._origins: dict[Repository, Origin] = {}
        self._waiters: list[tuple[Repository, asyncio.Future[DownloadBody]]] = []
        self._file: SharedFile | None = None
        self._file_of = 0  # its generation
        self._asked: str | None = None  # the upstream this process asked last
        self.task = asyncio.create_task(self._run(), name=f"download {digest}")

    async def join(self, origin: Origin) -> DownloadBody:
        """Wait until the headers are in, and return a view to be closed.

        Raises: Stored when there is nothing to wait for any more, or what the origin's upstream answered. The
        caller limits the time.
        """
        self._origins[origin.repository] = origin
        self.failed.pop(origin.repository, None)
        if self._file is not None and self.state.phase in (Phase.RUNNING, Phase.VERIFIED, Phase.DONE):
            return DownloadBody(self, self._file, origin.repository)
        waiter: asyncio.Future[DownloadBody] = asyncio.get_running_loop().create_future()
        self._waiters.append((origin.repository, waiter))
        try:
            return await waiter
        except asyncio.CancelledError:
            _discard(waiter)
            raise
        finally:
            self._waiters = [entry for entry in self._waiters if entry[1] is not waiter]

    async def stop(self) -> None:
        """End it here; what is on disk stays to be continued by another process or after a restart."""
        if self.state.phase in (Phase.VERIFIED, Phase.DONE):
            await asyncio.wait({self.task}, timeout=COMMIT_WITHIN if self.leading else 1)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def another_waits(self, origin: Origin) -> bool:
        """Say whether there is a client whose repository is of another upstream, one that was not tried."""
        return any(
            other.upstream is not origin.upstream and repository not in self.failed
            for repository, other in self._origins.items()
        )

    # ---- the life of a download in this process ----

    async def _run(self) -> None:
        try:
            while True:
                lease = self._leases.try_acquire(str(self.digest)) or await self._follow()
                if lease is None:
                    return
                self.leading = True
                self._asked, result = None, "storage"
                self._observer.download_started()
                try:
                    if await self._lead():
                        result = "completed"
                        return
                    result = _result(self.error)
                except asyncio.CancelledError:
                    result = "interrupted"
                    raise
                finally:
                    self.leading = False
                    self._observer.download_ended(self._asked, result)
                    lease.release()
                if not self.untried():
                    return
        except asyncio.CancelledError:
            self.error = ShuttingDown(f"this process is stopping; the download of {self.digest} goes on with the next")
            raise
        except RegistryError as error:
            log.error("download of %s: %s", self.digest, error.message)
            self.error = error
        except OSError as error:
            log.exception("download of %s", self.digest)
            self.error = StorageFailed(f"the disk failed: {error.strerror}; see the log")
        except Exception:
            log.exception("download of %s", self.digest)
            self.error = StorageFailed(f"the download of {self.digest} failed; see the log")
        finally:
            self._on_end(self)
            self._end()

    def _end(self) -> None:
        """Leave nobody waiting."""
        if self.error is None and self.views and self.state.phase not in (Phase.VERIFIED, Phase.DONE):
            self.error = UpstreamFailed(f"the download of {self.digest} ended", upstream="")
        self.changed.notify()
        for repository, waiter in self._waiters:
            if not waiter.done():
                failed = self.error is not None or repository in self.failed
                waiter.set_exception(self.error_for(repository) if failed else Stored())
        self._waiters.clear()
        file, self._file = self._file, None
        if file:
            file.release()

    def untried(self, *, but: Origin | None = None) -> Origin | None:
        """Return the origin to try next: one somebody waits for, before those of clients that are served."""
        waited_for = [self._origins[repository] for repository, waiter in self._waiters if not waiter.done()]
        others = list(self._origins.values()) if self.views or not self.failed else []
        for origin in (*waited_for, *others):
            if origin.repository not in self.failed and origin is not but:
                return origin
        return None

    def fail(self, repository: Repository, error: RegistryError) -> None:
        """Take an error as the answer for one repository."""
        self.failed[repository] = error
        for waiting, waiter in self._waiters:
            if waiting == repository and not waiter.done():
                waiter.set_exception(error)
        self._waiters = [entry for entry in self._waiters if not entry[1].done()]

    def observe(self, state: State, file: SharedFile | None = None) -> None:
        """Take over a new state: ``file`` is the open part file if it is another than before."""
        if file is not None:
            old, self._file, self._file_of = self._file, file, state.generation
            if old:
                old.release()
        self.state = state
        if self._file is not None and state.phase in (Phase.RUNNING, Phase.VERIFIED, Phase.DONE):
            for repository, waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(DownloadBody(self, self._file, repository))
            self._waiters.clear()
        self.changed.notify()

    # ---- following another process ----

    async def _follow(self) -> Lease | None:
        """Follow the leader. Returns the lease once it is free, None when there is nothing left to do."""
        loop = asyncio.get_running_loop()
        reader: StateReader | None = None
        baseline: State | None = None
        pause, look = 0.002, loop.time() + LEASE_EVERY
        try:
            while True:
                if reader is None and (reader := self._store.follow(self.digest)):
                    baseline = reader.read()
                state = reader.read() if reader else None
                pause = min(pause * 1.3, 0.01)
                if state is not None and state != self.state:
                    self._take(state, baseline)
                    pause = 0.002
                if loop.time() >= look or (state is not None and state.ended):
                    look = loop.time() + LEASE_EVERY
                    lease = self._leases.try_acquire(str(self.digest))
                    if lease is not None:
                        # What the leader published last, between our last look and its end.
                        last = reader.read() if reader else None
                        if last is not None and last != self.state:
                            self._take(last, baseline)
                        return lease
                    if state is not None and state.ended and reader is not None:
                        reader.close()  # the next leader may use a new file
                        reader = None
                # Verified content is seen to its name, should its leader die on the way there.
                if not self._waiters and not self.views and self.state.phase not in (Phase.VERIFIED, Phase.DONE):
                    return None
                await asyncio.sleep(pause)
        finally:
            if reader:
                reader.close()

    def _take(self, state: State, baseline: State | None) -> None:
        """Take over what the leader published."""
        for key, record in state.failures.items():
            stale = baseline is not None and baseline.tenure == state.tenure and key in baseline.failures
            repository = Repository.from_key(key)
            # A failure from before we came is not ours: the question was asked before.
            if not stale and repository in self._origins and repository not in self.failed:
                self.fail(repository, from_record(record))
        file = None
        if state.phase in (Phase.RUNNING, Phase.VERIFIED, Phase.DONE) and (
            self._file is None or state.generation != self._file_of
        ):
            fd = self._store.open_part(self.digest, state.generation)
            if fd is None:
                return  # renamed or void since: the next look says which
            file = SharedFile(fd)
        self.observe(state, file)

    # ---- leading ----

    async def _lead(self) -> bool:
        """Fetch what is missing. Returns True when the content is stored."""
        if self._store.stat(self.digest) is not None:
            if self.state.phase not in (Phase.VERIFIED, Phase.DONE) and self.views:
                # Another process finished it, in a generation that is not the one our clients saw.
                self.observe(replace(self.state, phase=Phase.WRONG))
            await in_thread(self._store.tidy, self.digest)
            return True
        if not self.untried():
            self.error = next(reversed(self.failed.values()), None)
            return False
        self.error = None
        ingest = await in_thread(self._store.ingest, self.digest)
        leader = Leader(self, ingest, self._store, self._metadata, self._observer)
        try:
            resumed = await in_thread(ingest.begin)
            self.observe(ingest.state, SharedFile(os.dup(ingest.fd)))
            return await leader.run(resumed)
        finally:
            self._asked = leader.asked
            await leader.close()


class Inflight:
    """The downloads of this process."""

    def __init__(
        self, *, store: BlobStore, leases: Leases, metadata: MetadataStore, observer: Observer | None = None
    ) -> None:
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._observer = observer or NoObserver()
        self._downloads: dict[Digest, Download] = {}

    def find(self, digest: Digest) -> Download | None:
        """Return the download of a digest this process takes part in."""
        return self._downloads.get(digest)

    async def join(self, origin: Origin) -> DownloadBody:
        """Take part in the download of a digest, started when there is none. Raises: as ``Download.join``."""
        download = self._downloads.get(origin.digest)
        if download is None:
            download = Download(
                origin.digest,
                store=self._store,
                leases=self._leases,
                metadata=self._metadata,
                observer=self._observer,
                on_end=self._ended,
            )
            self._downloads[origin.digest] = download
        return await download.join(origin)

    def size_of(self, digest: Digest) -> int | None:
        """Return the size in bytes of verified content that is about to get its name, None for anything else."""
        download = self._downloads.get(digest)
        if download is None or download.state.phase not in (Phase.VERIFIED, Phase.DONE):
            return None
        return download.state.size

    async def close(self) -> None:
        """Stop all downloads; what is on disk stays to be continued."""
        await asyncio.gather(*(download.stop() for download in list(self._downloads.values())))

    def _ended(self, download: Download) -> None:
        if self._downloads.get(download.digest) is download:
            del self._downloads[download.digest]


def _result(error: RegistryError | None) -> str:
    """Return what came of a download that ended without the content, as a label."""
    match error:
        case Unknown():
            return "missing"
        case UpstreamInvalid():
            return "wrong"
        case _:
            return "failed"


def _discard(waiter: asyncio.Future[DownloadBody]) -> None:
    """Close a view that came just as its client stopped waiting."""
    if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
        waiter.result().close()
