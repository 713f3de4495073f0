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
import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from mirror.metadata.base import MetadataStore
from mirror.oci.errors import (
    RegistryError,
    ShuttingDown,
    StorageFailed,
    Unknown,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamTimeout,
)
from mirror.oci.names import Digest, Repository
from mirror.oci.ranges import ByteRange
from mirror.registry.body import Extent, Part, SharedFile
from mirror.registry.errors import from_record, to_record
from mirror.store.base import BlobStore, Lease, Leases
from mirror.store.ingest import TAIL, Ingest
from mirror.store.state import Phase, State, StateReader
from mirror.store.threads import in_thread
from mirror.upstream.base import BlobSource, Upstream

log = logging.getLogger("mirror.download")

BATCH = 1024 * 1024
"""Most bytes hashed and written in one thread hop."""
FIRST_BATCH = 64 * 1024
"""The same for the first one: the first byte is waited for."""
BACKLOG = 4 * 1024 * 1024
"""Bytes received and not yet written at which the upstream is made to wait."""
CONTINUE_TRIES = 3
"""Times in a row a broken body is continued without getting a byte further."""
SLOW, SLOW_FOR = 16 * 1024, 5.0
"""Bytes per second below which, after so many seconds, another upstream somebody waits for is asked instead."""
COMMIT_WITHIN = 3.0
"""Seconds a process that stops waits for verified content to get its name; its parent is not patient for ever."""
LEASE_EVERY = 0.05
"""Seconds between a follower's looks at whether the leader is still there."""


_END = 1 << 62  # beyond any content


class Stored(Exception):
    """The content has its final name: look again."""


class Gone(Exception):
    """The generation a client follows is void and it was sent nothing of it: look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A repository's own way to get a blob. expected: size in bytes a manifest gave, used when the upstream is silent.

    unverified_ranges: whether windows may be passed through ahead of a download.
    """

    repository: Repository
    upstream: Upstream
    digest: Digest
    expected: int | None = None
    unverified_ranges: bool = True

    def open(self, offset: int, window: ByteRange | None = None) -> AbstractAsyncContextManager[BlobSource]:
        return self.upstream.blob(self.repository.name, self.digest, offset=offset, window=window)


class Observer(Protocol):
    """Counts the downloads this process leads."""

    def download_started(self) -> None: ...
    def download_ended(self) -> None: ...


class NoObserver:
    def download_started(self) -> None: ...
    def download_ended(self) -> None: ...


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


class DownloadBody:
    """One client's view of a download: a generation of it. Made by ``Download.join``."""

    def __init__(self, download: Download, file: SharedFile, repository: Repository) -> None:
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


class Download:
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
        self.digest = digest
        self.state = State()
        self.changed = Changed()
        self.error: RegistryError | None = None
        self.views = 0
        self.leading = False
        self._store = store
        self._leases = leases
        self._metadata = metadata
        self._observer = observer
        self._on_end = on_end
        self._origins: dict[Repository, Origin] = {}
        self._failed: dict[Repository, RegistryError] = {}
        self._waiters: list[tuple[Repository, asyncio.Future[DownloadBody]]] = []
        self._file: SharedFile | None = None
        self._disk = asyncio.Lock()
        self.task = asyncio.create_task(self._run(), name=f"download {digest}")

    async def join(self, origin: Origin) -> DownloadBody:
        """Wait until the headers are in, and return a view to be closed.

        Raises: Stored when there is nothing to wait for any more, or what the origin's upstream answered. The
        caller limits the time.
        """
        self._origins[origin.repository] = origin
        self._failed.pop(origin.repository, None)
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
            other.upstream is not origin.upstream and repository not in self._failed
            for repository, other in self._origins.items()
        )

    def failure_of(self, repository: Repository) -> RegistryError | None:
        """Return what the repository's own upstream answered, None when it was not asked or gave it."""
        return self._failed.get(repository)

    def error_for(self, repository: Repository) -> RegistryError:
        """Return why no more comes, in words that are the repository's own: another's are not for its clients."""
        own = self._failed.get(repository)
        if own is not None:
            return own
        if self.error is None or isinstance(self.error, (Unknown, UpstreamError)):
            return UpstreamFailed(f"the download of {self.digest} broke off; try again", upstream="")
        return self.error

    def wrong(self) -> RegistryError:
        """Return the error for a client that was sent bytes of a void generation."""
        for error in self._failed.values():
            if isinstance(error, UpstreamInvalid):
                return error
        return UpstreamInvalid(f"the bytes of {self.digest} sent so far were wrong", upstream="")

    # ---- the life of a download in this process ----

    async def _run(self) -> None:
        try:
            while True:
                lease = self._leases.try_acquire(str(self.digest)) or await self._follow()
                if lease is None:
                    return
                self.leading = True
                self._observer.download_started()
                try:
                    if await self._lead():
                        return
                finally:
                    self.leading = False
                    self._observer.download_ended()
                    lease.release()
                if not self._untried():
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
                failed = self.error is not None or repository in self._failed
                waiter.set_exception(self.error_for(repository) if failed else Stored())
        self._waiters.clear()
        file, self._file = self._file, None
        if file:
            file.release()

    def _untried(self, *, but: Origin | None = None) -> Origin | None:
        """Return the origin to try next: one somebody waits for, before those of clients that are served."""
        waited_for = [self._origins[repository] for repository, waiter in self._waiters if not waiter.done()]
        others = list(self._origins.values()) if self.views or not self._failed else []
        for origin in (*waited_for, *others):
            if origin.repository not in self._failed and origin is not but:
                return origin
        return None

    def _fail(self, repository: Repository, error: RegistryError) -> None:
        """Take an error as the answer for one repository."""
        self._failed[repository] = error
        for waiting, waiter in self._waiters:
            if waiting == repository and not waiter.done():
                waiter.set_exception(error)
        self._waiters = [entry for entry in self._waiters if not entry[1].done()]

    def _observe(self, state: State, file: SharedFile | None = None) -> None:
        """Take over a new state: ``file`` is the open part file if it is another than before."""
        if file is not None:
            old, self._file = self._file, file
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
            if not stale and repository in self._origins and repository not in self._failed:
                self._fail(repository, from_record(record))
        file = None
        if state.phase in (Phase.RUNNING, Phase.VERIFIED, Phase.DONE) and (
            self._file is None or state.generation != self.state.generation
        ):
            fd = self._store.open_part(self.digest, state.generation)
            if fd is None:
                return  # renamed or void since: the next look says which
            file = SharedFile(fd)
        self._observe(state, file)

    # ---- leading ----

    async def _lead(self) -> bool:
        """Fetch what is missing. Returns True when the content is stored."""
        if self._store.stat(self.digest) is not None:
            if self.state.phase not in (Phase.VERIFIED, Phase.DONE) and self.views:
                # Another process finished it, in a generation that is not the one our clients saw.
                self._observe(replace(self.state, phase=Phase.WRONG))
            await in_thread(self._store.tidy, self.digest)
            return True
        if not self._untried():
            self.error = next(reversed(self._failed.values()), None)
            return False
        self.error = None
        ingest = await in_thread(self._store.ingest, self.digest)
        try:
            resumed = await in_thread(ingest.begin)
            self._observe(ingest.state, SharedFile(os.dup(ingest.fd)))
            return await self._transfer(ingest, resumed)
        finally:
            async with self._disk:
                if not ingest.state.written and not ingest.state.ended:
                    await in_thread(ingest.discard, Phase.FAILED)
                await in_thread(ingest.close)

    async def _transfer(self, ingest: Ingest, resumed: bool) -> bool:
        """Bring the content in from whichever origin gives it. Returns True when it is stored."""
        pieced = resumed  # put together from several transfers: a wrong digest need not be the upstream's fault
        fresh_starts = 1  # left, for content that turns out not to fit together
        last: Origin | None = None
        slow: Origin | None = None  # given up for another that may be faster
        patient = False
        catching_up: asyncio.Task[None] | None = None
        try:
            while True:
                if resumed and catching_up is None:
                    catching_up = asyncio.create_task(self._hash_existing(ingest))
                state = ingest.state
                if state.size is None or state.written < state.size:
                    last = self._untried(but=slow) or slow
                    if last is None:
                        return await self._give_up(ingest)
                    if last is slow:
                        slow, patient = None, True  # nobody else has it: better slow than not
                    try:
                        pieced |= await self._receive(ingest, last, patient=patient)
                    except (Unknown, UpstreamError) as error:
                        if isinstance(error, _TooSlow):
                            log.warning("%s", error.message)
                            slow = last
                            continue
                        if not isinstance(error, UpstreamInvalid):
                            self._source_failed(ingest, last, error)
                            continue
                        await _cancel(catching_up)
                        catching_up, resumed, pieced = None, False, False
                        if isinstance(error, _Restart) and fresh_starts:
                            fresh_starts -= 1
                            log.warning("%s; starting over", error.message)
                        else:
                            self._source_failed(ingest, last, error)
                            if not await self._void(ingest, error):
                                return False
                        await self._restart(ingest)
                        continue
                if catching_up is not None:
                    await catching_up
                    catching_up = None
                    resumed = False
                await self._hash_existing(ingest)
                if ingest.verify():
                    await self._complete(ingest)
                    return True
                if last is None or (pieced and fresh_starts):
                    fresh_starts, pieced = max(fresh_starts - 1, 0), False
                    log.warning("the continued bytes of %s are wrong; starting over", self.digest)
                    await self._restart(ingest)
                    continue
                wrong = UpstreamInvalid(
                    f"{last.upstream.name} sent bytes of {ingest.actual()} ({ingest.state.written} bytes) for "
                    f"{self.digest}; nothing of it is kept",
                    upstream=last.upstream.name,
                )
                log.error("%s", wrong.message)
                self._source_failed(ingest, last, wrong)
                if not await self._void(ingest, wrong):
                    return False
                await self._restart(ingest)
        finally:
            await _cancel(catching_up)

    async def _receive(self, ingest: Ingest, origin: Origin, *, patient: bool) -> bool:
        """Receive from one origin until everything is there. Returns whether it took more than one transfer.

        A body that breaks off is continued by Range, each time asked of the registry anew. patient: however slow.
        """
        tries, transfers, opened = 0, 0, False
        whole = False  # asked for from the start, as the upstream cannot continue: what we have is skipped
        while True:
            start = ingest.state.written
            opened = False
            try:
                async with origin.open(0 if whole else start) as source:
                    opened = True
                    transfers += 1
                    self._headers(ingest, origin, source)
                    await self._copy(ingest, origin, source, skip=start - source.offset, patient=patient)
                if ingest.state.size is None:
                    self._publish(ingest, size=ingest.state.written)
                if ingest.state.written < (ingest.state.size or 0):
                    raise UpstreamFailed(
                        f"{origin.upstream.name} ended {self.digest} after {ingest.state.written} of "
                        f"{ingest.state.size} bytes",
                        upstream=origin.upstream.name,
                    )
                return transfers > 1 or start > 0
            except UpstreamInvalid as error:
                if whole and not opened:
                    # Neither the rest nor the whole: no reason to doubt what is here.
                    raise UpstreamFailed(error.message, upstream=error.upstream) from error
                if opened or not start:
                    raise
                log.warning("%s; asking for the whole again", error.message)
                whole = True
            except _TooSlow:
                raise
            except UpstreamError as error:
                tries = 0 if ingest.state.written > start else tries + 1
                if not transfers:
                    raise
                if whole and tries:
                    raise UpstreamInvalid(
                        f"{origin.upstream.name} says that {self.digest} has {ingest.state.size} bytes, and ends after "
                        f"{ingest.state.written}",
                        upstream=origin.upstream.name,
                    ) from error
                if tries >= CONTINUE_TRIES:
                    raise
                log.warning(
                    "%s broke off %s at %d bytes (%s); continuing",
                    origin.upstream.name,
                    self.digest,
                    ingest.state.written,
                    error.message,
                )
                await asyncio.sleep(0.1 * 4**tries if tries else 0)

    def _headers(self, ingest: Ingest, origin: Origin, source: BlobSource) -> None:
        """Take over what the headers say, and let the clients begin."""
        state = ingest.state
        size = source.size if source.size is not None else (state.size or origin.expected)
        if state.size is not None and size != state.size:
            raise _Restart(
                f"{origin.upstream.name} says {self.digest} has {size} bytes, before it was {state.size}",
                upstream=origin.upstream.name,
            )
        sources = state.sources if origin.repository.key in state.sources else (*state.sources, origin.repository.key)
        # Public is what was fetched without credentials from its first byte to its last: an upstream that
        # merely goes on where another broke off has not shown that it may give the rest to anybody.
        public = source.anonymous and (state.public or not state.written)
        self._publish(ingest, phase=Phase.RUNNING, size=size, sources=sources, public=public)

    async def _copy(self, ingest: Ingest, origin: Origin, source: BlobSource, *, skip: int, patient: bool) -> None:
        """Write the body as it comes: while one batch is hashed and written, the next is received.

        skip: bytes at the start that are on disk already, as the server ignored our Range.
        """
        pending: deque[bytes] = deque()
        amount = 0
        arrived, room = asyncio.Event(), asyncio.Event()
        room.set()

        async def receive() -> None:
            nonlocal amount, skip
            try:
                async for chunk in source.chunks():
                    if skip:
                        dropped = min(skip, len(chunk))
                        skip -= dropped
                        chunk = chunk[dropped:]
                    if chunk:
                        pending.append(chunk)
                        amount += len(chunk)
                        arrived.set()
                    if amount >= BACKLOG:
                        room.clear()
                        await room.wait()
            finally:
                arrived.set()

        pace = _Pace(self, origin, ingest.state.written)
        receiver = asyncio.create_task(receive())
        try:
            while True:
                if not pending:
                    if receiver.done():
                        break
                    arrived.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await arrived.wait()
                    if not patient:
                        pace.check(ingest.state.written)
                    continue
                batch, taken = [], 0
                most = BATCH if ingest.state.written else FIRST_BATCH
                while pending and taken < most:
                    chunk = pending.popleft()
                    batch.append(chunk)
                    taken += len(chunk)
                amount -= taken
                room.set()
                state = ingest.state
                if state.size is not None and state.written + taken > state.size:
                    raise UpstreamInvalid(
                        f"{origin.upstream.name} sent more than the {state.size} bytes of {self.digest}",
                        upstream=origin.upstream.name,
                    )
                async with self._disk:
                    written = await in_thread(ingest.append_in_thread, batch, state.written)
                known = state.size if state.size is not None else written
                self._publish(ingest, written=written, committed=max(state.committed, min(written, known - TAIL), 0))
        finally:
            if not receiver.done():
                receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
        receiver.result()

    async def _hash_existing(self, ingest: Ingest) -> None:
        """Hash what is on disk and was not hashed as it came, while more may be arriving."""
        more = True
        while more:
            async with self._disk:
                more = await in_thread(ingest.hash_step_in_thread, ingest.state.written)

    async def _complete(self, ingest: Ingest) -> None:
        """Let everybody have the rest, then give it its final name. Nobody waits for the disk."""
        state = ingest.state
        assert state.size is not None
        self._publish(ingest, phase=Phase.VERIFIED, committed=state.size)
        await in_thread(ingest.sync_in_thread)
        await self._store.admit(self.digest, state.size)
        for key in state.sources:
            await self._metadata.grant(Repository.from_key(key), self.digest, public=state.public)
        await in_thread(ingest.finish_in_thread)
        self._observe(ingest.state)

    def _publish(self, ingest: Ingest, **changes: object) -> None:
        """Tell every process, and everybody here."""
        ingest.publish(**changes)
        self._observe(ingest.state)

    async def _restart(self, ingest: Ingest) -> None:
        """Start a new generation; the clients of the old one are told."""
        self._publish(ingest, phase=Phase.WRONG)  # first: what follows may fail, and they must not resume
        async with self._disk:
            await in_thread(ingest.restart)
        self._observe(ingest.state, SharedFile(os.dup(ingest.fd)))

    def _source_failed(self, ingest: Ingest, origin: Origin, error: RegistryError) -> None:
        self._fail(origin.repository, error)
        ingest.publish(failures=ingest.state.failures | {origin.repository.key: to_record(error)})

    async def _void(self, ingest: Ingest, error: RegistryError) -> bool:
        """Drop wrong bytes. Returns whether another origin is left to try."""
        if self._untried():
            return True
        self.error = error
        await in_thread(ingest.discard, Phase.WRONG)
        self._observe(ingest.state)
        return False

    async def _give_up(self, ingest: Ingest) -> bool:
        """End without the content; what is right so far stays to be continued."""
        self.error = next(reversed(self._failed.values()), None) or UpstreamFailed(
            f"nobody is left to get {self.digest} from", upstream=""
        )
        if ingest.state.written:
            ingest.publish(phase=Phase.FAILED)
        else:
            await in_thread(ingest.discard, Phase.FAILED)
        self._observe(ingest.state)
        return False


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


class _Restart(UpstreamInvalid):
    """What is on disk cannot be continued with what the upstream says now."""


class _TooSlow(UpstreamTimeout):
    """A source that hardly moves, when there is another."""


class _Pace:
    """Notices a source that hardly moves while somebody waits whose own upstream is another."""

    def __init__(self, download: Download, origin: Origin, written: int) -> None:
        self._download = download
        self._origin = origin
        self._time = asyncio.get_running_loop().time()
        self._written = written

    def check(self, written: int) -> None:
        """Raises: _TooSlow, for the other one to be asked."""
        now = asyncio.get_running_loop().time()
        elapsed = now - self._time
        if elapsed < SLOW_FOR:
            return
        if written - self._written < SLOW * elapsed and self._download.another_waits(self._origin):
            raise _TooSlow(
                f"{self._origin.upstream.name} sent {written - self._written} bytes of {self._download.digest} in "
                f"{elapsed:.0f} s; another upstream is asked",
                upstream=self._origin.upstream.name,
            )
        self._time, self._written = now, written


def _discard(waiter: asyncio.Future[DownloadBody]) -> None:
    """Close a view that came just as its client stopped waiting."""
    if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
        waiter.result().close()


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, if there is one, and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
