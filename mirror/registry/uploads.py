"""Push sessions: from a client's bytes to a blob under its digest.

A session is a file, so any worker can go on with it. Who writes holds its lease, reads the offset after taking it,
and gives way to a newer request when its own client falls silent. Each worker keeps the running hash of sessions
it saw; one that takes a session over, or learns another algorithm, hashes what is there once, in the background,
from its first request on. The commit: size and digest right → file synced → lease of the kept name → rename →
folder synced → row committed → answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from mirror.metadata.base import MetadataStore
from mirror.oci.errors import (
    BlobTooLarge,
    BlobUploadInvalid,
    BlobUploadUnknown,
    ChunkOutOfOrder,
    DigestInvalid,
    RegistryError,
    SessionBusy,
    SizeInvalid,
    StorageFull,
)
from mirror.oci.names import Digest, Repository
from mirror.registry.sharing import take_lease, wait_for_lease
from mirror.store.base import Lease, Leases, kept_lease
from mirror.store.threads import run_in
from mirror.store.uploads import RunningHash, UploadFile, UploadStore, algorithm_of, is_session, lease_key

log = logging.getLogger("mirror.uploads")
T = TypeVar("T")

PIECE = 512 * 1024
"""Bytes collected before they are hashed and written, in one thread; as many again arrive meanwhile."""
SYNC_EVERY = 64 * 1024 * 1024
"""Bytes after which what was written is sent on to the disk: the last sync must not take longer than clients wait."""
SILENT = 1.0
"""Seconds without a byte after which a request lets a newer one of the same session have it."""
RECEIVE_WITHIN = 60.0
"""Seconds without a byte after which a request is given up. Its session stays."""
TAKE_WITHIN = 15.0
"""Seconds a request waits for one before it on the same session."""
LOOK_WITHIN = 3.0
"""Seconds a question where a session stands waits for a request that sends to it."""
THREADS = 8
"""Uploads of one worker that hash, write or sync at the same time."""
REMEMBER = 300.0
"""Seconds without a request after which a worker forgets a session's hash."""


class Incoming(Protocol):
    """The body of a request. length: bytes it is said to have, None when that is not said."""

    @property
    def length(self) -> int | None: ...

    async def read(self) -> bytes:
        """Return the next bytes, none at the end. Raises: BlobUploadInvalid (400) when it breaks off."""
        ...


class _Seen:
    """What this worker remembers of a session. used: when its last request ended, infinite while one is going on."""

    __slots__ = ("catching_up", "hash", "used")

    def __init__(self, algorithm: str) -> None:
        self.hash = RunningHash(algorithm)
        self.catching_up: asyncio.Task[None] | None = None
        self.used = math.inf


class _Writer:
    """Hashes and writes what arrives, a piece in a thread while the next one is collected."""

    def __init__(self, threads: Executor, upload: UploadFile, running: RunningHash) -> None:
        self._threads = threads
        self._upload = upload
        self._hash = running
        self._pieces: list[bytes] = []
        self._collected = 0
        self._writing: asyncio.Task[None] | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._synced = upload.size

    async def add(self, data: bytes) -> None:
        """Take bytes. Raises: StorageFull, StorageFailed for those before."""
        self._pieces.append(data)
        self._collected += len(data)
        if self._collected >= PIECE:
            await self._hand_over()

    async def close(self) -> None:
        """Write what is left and wait for all. Raises: as ``add``; then nothing more of it is written."""
        try:
            await self._hand_over()
            await self._written()
        finally:
            # No thread may use the file once it is closed, whoever is cancelled meanwhile.
            left = [task for task in (self._writing, self._syncing) if task is not None]
            await asyncio.gather(*left, return_exceptions=True)
        if self._syncing is not None:
            self._syncing.result()

    async def _hand_over(self) -> None:
        await self._written()
        if self._syncing is not None and self._syncing.done():
            self._syncing.result()
        pieces, self._pieces, self._collected = self._pieces, [], 0
        if pieces:
            self._writing = asyncio.create_task(run_in(self._threads, self._write_in_thread, pieces))
        if self._upload.size - self._synced >= SYNC_EVERY and (self._syncing is None or self._syncing.done()):
            self._synced = self._upload.size
            self._syncing = asyncio.create_task(run_in(self._threads, self._upload.sync_in_thread))

    async def _written(self) -> None:
        if self._writing is not None:
            await asyncio.shield(self._writing)

    def _write_in_thread(self, pieces: list[bytes]) -> None:
        offset = self._upload.size
        self._upload.append_in_thread(pieces)
        self._hash.add_in_thread(pieces, offset)


class UploadService:
    """Push sessions of our own repositories. largest: bytes of a blob. expires: seconds a session is kept unused."""

    def __init__(
        self,
        *,
        uploads: UploadStore,
        leases: Leases,
        metadata: MetadataStore,
        largest: int,
        expires: float,
    ) -> None:
        self._uploads = uploads
        self._leases = leases
        self._metadata = metadata
        self._largest = largest
        self._expires = expires
        self._seen: dict[str, _Seen] = {}
        self._catching_up: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="uploads")
        self._tidying: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to remove sessions that expired."""
        self._tidying = asyncio.create_task(self._tidy(), name="expired uploads")

    async def close(self) -> None:
        tasks = list(self._catching_up)
        if self._tidying:
            tasks.append(self._tidying)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)  # idle: what they did was waited for

    # ---- the endpoints ----

    def begin(self, repository: Repository, algorithm: str = "sha256") -> str:
        """Begin a session (end-4a, end-4c). Returns its id."""
        return self._uploads.create(repository, algorithm)

    async def offset(self, repository: Repository, session: str) -> int:
        """Return how many bytes a session has (end-13). Raises: BlobUploadUnknown (404).

        Who asks is about to go on: a request before, whose client is gone, has first to write what it got.
        """
        try:
            (await self._take(repository, session, LOOK_WITHIN)).release()
        except SessionBusy:
            pass  # it is being sent to
        return self._size(repository, session)

    async def receive(
        self, repository: Repository, session: str, body: Incoming, span: tuple[int, int] | None = None
    ) -> int:
        """Add a chunk to a session (end-5). span: first and last byte the client says it is.

        Returns how many bytes the session has now. What arrived before a failure stays.
        Raises: BlobUploadUnknown (404); ChunkOutOfOrder (416); SizeInvalid (400) when there is more or less than the
        span says; BlobTooLarge (413); SessionBusy (409); StorageFull, StorageFailed.
        """
        async with self._turn(repository, session) as upload:
            known = self._seen.get(session)
            seen = self._remember(session, upload, known.hash.algorithm if known else algorithm_of(session))
            await self._append(session, seen, upload, body, span)
            return upload.size

    async def finish(
        self,
        repository: Repository,
        session: str,
        digest: Digest,
        body: Incoming,
        span: tuple[int, int] | None = None,
    ) -> None:
        """Close a session with its last bytes, if any (end-6): it is a blob of the repository afterwards, durably.

        Raises: as ``receive``; DigestInvalid (400), and the session is over.
        """
        try:
            async with self._turn(repository, session) as upload:
                seen = self._remember(session, upload, digest.algorithm)
                await self._append(session, seen, upload, body, span)
                await self._commit(repository, session, digest, seen, upload)
        except BlobUploadUnknown:
            if not await self._finished(repository, session, digest):
                raise

    async def push(self, repository: Repository, digest: Digest, body: Incoming) -> None:
        """Take a whole blob in one request (end-4b). Raises: as ``finish``; nothing of a failure stays."""
        session = self._uploads.create(repository, digest.algorithm)
        try:
            await self.finish(repository, session, digest, body)
        except BaseException:
            await self._end(repository, session)
            raise

    async def cancel(self, repository: Repository, session: str) -> None:
        """End a session (end-14). Raises: BlobUploadUnknown (404); SessionBusy (409)."""
        lease = await self._take(repository, session)
        try:
            self._size(repository, session)
            await self._end(repository, session)
        finally:
            lease.release()

    # ---- one request's turn ----

    @asynccontextmanager
    async def _turn(self, repository: Repository, session: str) -> AsyncIterator[UploadFile]:
        """Have a session to oneself. Raises: BlobUploadUnknown (404); SessionBusy (409)."""
        lease = await self._take(repository, session)
        try:
            upload = self._uploads.open(repository, session)
            if upload is None:  # it ended while we waited for its lease
                raise _unknown(repository, session)
            try:
                yield upload
            finally:
                upload.close()
                if upload.lost:
                    await self._end(repository, session)
        finally:
            lease.release()
            if (seen := self._seen.get(session)) is not None:
                seen.used = time.monotonic()

    def _size(self, repository: Repository, session: str) -> int:
        size = self._uploads.size(repository, session)
        if size is None:
            raise _unknown(repository, session)
        return size

    async def _take(self, repository: Repository, session: str, within: float | None = None) -> Lease:
        """Wait for the lease of a session; who has it and hears nothing from its client gives it up."""
        self._size(repository, session)

        def still_waiting() -> bool:
            self._uploads.want(session)  # again and again: others who waited take theirs away
            return False

        try:
            async with asyncio.timeout(within or TAKE_WITHIN):
                lease = await wait_for_lease(self._leases, lease_key(session), still_waiting)
        except TimeoutError:
            raise SessionBusy(f"another request is sending to the upload session {session}; wait for its end") from None
        finally:
            self._uploads.unwant(session)
        assert lease is not None, "there is no other end to wait for"
        return lease

    async def _finished(self, repository: Repository, session: str, digest: Digest) -> bool:
        """Say whether a request before, whose answer got lost, made the blob of a session that is not here."""
        if not is_session(session) or await self._run(self._uploads.is_anyones_in_thread, session):
            return False
        if self._metadata.may_read(repository, digest):
            return True
        try:
            async with asyncio.timeout(TAKE_WITHIN):  # it may be on its way from the blob's name to its row
                lease = await wait_for_lease(self._leases, lease_key(session), lambda: False)
        except TimeoutError:
            return False
        if lease is not None:
            lease.release()
        return self._metadata.may_read(repository, digest)

    async def _append(
        self, session: str, seen: _Seen, upload: UploadFile, body: Incoming, span: tuple[int, int] | None
    ) -> None:
        """Write what arrives at the end of a session; while a piece is written the next one is collected."""
        if span is not None and span[0] != upload.size:
            raise ChunkOutOfOrder(
                f"the chunk begins at {span[0]}, the session has {upload.size} bytes; go on from there",
                offset=upload.size,
            )
        left = self._largest - upload.size if span is None else span[1] - span[0] + 1
        if (span is not None and span[1] >= self._largest) or (span is None and (body.length or 0) > left):
            raise self._too_large()
        writer = _Writer(self._threads, upload, seen.hash)
        try:
            while data := await self._next(session, body):
                await writer.add(data[:left])
                if len(data) > left:
                    raise (
                        self._too_large() if span is None else SizeInvalid("the chunk is longer than its Content-Range")
                    )
                left -= len(data)
        finally:
            await writer.close()  # whatever ended the body, what arrived stays
        if span is not None and left:
            raise SizeInvalid("the chunk is shorter than its Content-Range")

    async def _next(self, session: str, body: Incoming) -> bytes:
        """Return the next bytes of a body; give up when somebody newer waits and the client is silent."""
        waited = 0.0
        while True:
            try:
                async with asyncio.timeout(SILENT):
                    return await body.read()
            except TimeoutError:
                waited += SILENT
                if self._uploads.wanted(session):
                    raise SessionBusy("a newer request of this upload session takes over") from None
                if waited >= RECEIVE_WITHIN:
                    raise BlobUploadInvalid(f"the client sent nothing for {RECEIVE_WITHIN:.0f} s") from None

    async def _commit(
        self, repository: Repository, session: str, digest: Digest, seen: _Seen, upload: UploadFile
    ) -> None:
        """Make a blob of what a session has."""
        await self._catch_up(seen, upload)
        actual = seen.hash.digest()
        if seen.hash.hashed != upload.size or actual != digest:
            await self._end(repository, session)
            raise DigestInvalid(
                f"the {upload.size} bytes sent are those of {actual}, not of {digest}; begin a new upload",
                detail={"digest": str(digest), "actual": str(actual), "size": upload.size},
            )
        await self._run(upload.sync_in_thread)
        lease = await take_lease(self._leases, kept_lease(digest), digest)
        try:
            fresh = await self._run(self._uploads.keep_in_thread, upload, digest)
            try:
                await self._metadata.push_blob(repository, digest)
            except StorageFull:
                if fresh:  # there is no row, and there is one more try when there is space again
                    await self._run(self._uploads.take_back_in_thread, upload, digest)
                raise
        finally:
            lease.release()
        await self._end(repository, session)

    async def _end(self, repository: Repository, session: str) -> None:
        self._forget(session)
        await self._run(self._uploads.remove_in_thread, repository, session)

    def _too_large(self) -> BlobTooLarge:
        return BlobTooLarge(f"the blob is larger than {self._largest} bytes (limits.blob)")

    # ---- hashes ----

    def _remember(self, session: str, upload: UploadFile, algorithm: str) -> _Seen:
        """Return the running hash of a session, and begin to hash what this worker has not seen of it."""
        seen = self._seen.get(session)
        if seen is None or seen.hash.algorithm != algorithm or seen.hash.hashed > upload.size:
            self._forget(session)
            seen = self._seen[session] = _Seen(algorithm)
        seen.used = math.inf
        seen.hash.known = upload.size
        if seen.hash.hashed < upload.size and seen.catching_up is None:
            seen.catching_up = asyncio.create_task(self._catch_up_alone(seen, upload.path), name="upload hash")
            self._catching_up.add(seen.catching_up)
            seen.catching_up.add_done_callback(self._catching_up.discard)
        return seen

    async def _catch_up_alone(self, seen: _Seen, path: str) -> None:
        """Hash what a session's file has, whether or not a request is under way."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while await self._run(seen.hash.step_in_thread, fd):
                    pass
            finally:
                os.close(fd)
        except FileNotFoundError:
            pass  # it ended
        except (OSError, RegistryError) as error:
            log.warning("an upload cannot be hashed yet: %s", error)  # whoever finishes it will hear of it
        finally:
            seen.catching_up = None

    async def _catch_up(self, seen: _Seen, upload: UploadFile) -> None:
        """Hash all that a session has."""
        if seen.catching_up is not None:
            await asyncio.wait([seen.catching_up])
        while seen.hash.hashed < upload.size and await self._run(seen.hash.step_in_thread, upload.fd):
            pass

    def _forget(self, session: str) -> None:
        seen = self._seen.pop(session, None)
        if seen is not None and seen.catching_up is not None:
            seen.catching_up.cancel()

    # ---- around ----

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await run_in(self._threads, function, *arguments)

    async def _tidy(self) -> None:
        """Remove sessions that expired, in whichever worker gets there first, and hashes nobody asks for."""
        while True:
            try:
                removed = await self._run(self._uploads.sweep_in_thread, self._leases, self._expires)
                if removed:
                    log.info("%d upload sessions expired", removed)
            except RegistryError as error:
                log.error("%s", error.message)
            stale = time.monotonic() - REMEMBER
            for session, seen in list(self._seen.items()):
                if seen.used < stale and seen.catching_up is None:
                    self._forget(session)
            await asyncio.sleep(min(max(self._expires / 4, 1.0), 60.0))


def _unknown(repository: Repository, session: str) -> BlobUploadUnknown:
    return BlobUploadUnknown(
        f"{repository} has no upload session {session[:80]!r}: it ended, expired or is another repository's",
        detail={"session": session[:80]},
    )
