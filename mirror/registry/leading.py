"""Leading a download: one repository's upstream after the other, until the content is here and right.

The leader holds the digest's lease. It alone writes the part file and the shared state; whoever follows, in any
process, sees what it publishes. A body that breaks off is continued by Range; bytes that turn out wrong are void,
and the next attempt is a new generation in a new file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import deque
from typing import Protocol

from mirror.metadata.base import MetadataStore
from mirror.oci.errors import (
    RegistryError,
    Unknown,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamTimeout,
)
from mirror.oci.names import Digest, Repository
from mirror.registry.body import SharedFile
from mirror.registry.errors import to_record
from mirror.registry.origin import Origin
from mirror.store.base import BlobStore
from mirror.store.ingest import TAIL, Ingest
from mirror.store.state import Phase, State
from mirror.store.threads import in_thread
from mirror.upstream.base import BlobSource

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


class Audience(Protocol):
    """Those in this process who want the content, each with an origin."""

    digest: Digest
    error: RegistryError | None
    failed: dict[Repository, RegistryError]

    def untried(self, *, but: Origin | None = None) -> Origin | None:
        """Return the origin to ask next, other than ``but``."""
        ...

    def another_waits(self, origin: Origin) -> bool:
        """Say whether somebody's origin is of another upstream, and was not tried."""
        ...

    def fail(self, repository: Repository, error: RegistryError) -> None:
        """Take an error as the answer for one repository."""
        ...

    def observe(self, state: State, file: SharedFile | None = None) -> None:
        """Take over a new state; ``file``: the part file, when it is another than before."""
        ...


class WrongContent(Protocol):
    """Counts content that is not that of its digest."""

    def wrong_content(self, upstream: str, kind: str) -> None:
        """Count one. upstream: its name. kind: "manifest" or "blob"."""
        ...


class Leader:
    """One leader's tenure. Close it, however it ends. asked: the upstream that was asked last, None before."""

    def __init__(
        self, audience: Audience, ingest: Ingest, store: BlobStore, metadata: MetadataStore, wrong: WrongContent
    ) -> None:
        self.digest = audience.digest
        self.asked: str | None = None
        self._wrong = wrong
        self._audience = audience
        self._ingest = ingest
        self._store = store
        self._metadata = metadata
        self._disk = asyncio.Lock()  # one thread at a time has the file and the hash

    async def close(self) -> None:
        """Close the files. What can be continued stays."""
        async with self._disk:
            if not self._ingest.state.written and not self._ingest.state.ended:
                await in_thread(self._ingest.discard, Phase.FAILED)
            await in_thread(self._ingest.close)

    async def run(self, resumed: bool) -> bool:
        """Bring the content in from whichever origin gives it. Returns True when it is stored.

        resumed: there is a part that another leader left.
        """
        pieced = resumed  # put together from several transfers: a wrong digest need not be the upstream's fault
        fresh_starts = 1  # left, for content that turns out not to fit together
        last: Origin | None = None
        slow: Origin | None = None  # given up for another that may be faster
        patient = False
        catching_up: asyncio.Task[None] | None = None
        try:
            while True:
                if resumed and catching_up is None:
                    catching_up = asyncio.create_task(self._hash_existing())
                state = self._ingest.state
                if state.size is None or state.written < state.size:
                    last = self._audience.untried(but=slow) or slow
                    if last is None:
                        return await self._give_up()
                    self.asked = last.upstream.name
                    if last is slow:
                        slow, patient = None, True  # nobody else has it: better slow than not
                    try:
                        pieced |= await self._receive(last, patient=patient)
                    except (Unknown, UpstreamError) as error:
                        if isinstance(error, _TooSlow):
                            log.warning("%s", error.message)
                            slow = last
                            continue
                        if not isinstance(error, UpstreamInvalid):
                            self._source_failed(last, error)
                            continue
                        if isinstance(error, _Restart) and (liar := last.distrust()):
                            # Whether it was right or who began, the next one says; what is here may be of use.
                            log.warning("%s; going on without %s", error.message, liar)
                            continue
                        await _cancel(catching_up)
                        catching_up, resumed, pieced = None, False, False
                        if liar := last.distrust():
                            log.info("%s is fetched anew, without %s", self.digest, liar)
                        elif isinstance(error, _Restart) and fresh_starts:
                            fresh_starts -= 1
                            log.warning("%s; starting over", error.message)
                        else:
                            self._source_failed(last, error)
                            if not await self._void(error):
                                return False
                        await self._restart()
                        continue
                if catching_up is not None:
                    await catching_up
                    catching_up = None
                    resumed = False
                await self._hash_existing()
                if self._ingest.verify():
                    await self._complete()
                    return True
                if last is not None and (liar := last.distrust()):
                    self._wrong.wrong_content(last.upstream.name, "blob")
                    log.error(
                        "%s sent bytes of %s for %s; starting over without it", liar, self._ingest.actual(), self.digest
                    )
                    pieced = False
                    await self._restart()
                    continue
                if last is None or (pieced and fresh_starts):
                    fresh_starts, pieced = max(fresh_starts - 1, 0), False
                    log.warning("the continued bytes of %s are wrong; starting over", self.digest)
                    await self._restart()
                    continue
                wrong = UpstreamInvalid(
                    f"{last.upstream.name} sent bytes of {self._ingest.actual()} ({self._ingest.state.written}) "
                    f"for {self.digest}; nothing of it is kept",
                    upstream=last.upstream.name,
                )
                self._wrong.wrong_content(last.upstream.name, "blob")
                log.error("%s", wrong.message)
                self._source_failed(last, wrong)
                if not await self._void(wrong):
                    return False
                await self._restart()
        finally:
            await _cancel(catching_up)

    async def _receive(self, origin: Origin, *, patient: bool) -> bool:
        """Receive from one origin until everything is there. Returns whether it took more than one transfer.

        A body that breaks off is continued by Range, each time asked of the registry anew. patient: however slow.
        """
        tries, transfers, opened = 0, 0, False
        whole = False  # asked for from the start, as the upstream cannot continue: what we have is skipped
        while True:
            start = self._ingest.state.written
            opened = False
            try:
                async with origin.open(0 if whole else start) as source:
                    opened = True
                    transfers += 1
                    self._headers(origin, source)
                    await self._copy(origin, source, skip=start - source.offset, patient=patient)
                if self._ingest.state.size is None:
                    self._publish(size=self._ingest.state.written)
                if self._ingest.state.written < (self._ingest.state.size or 0):
                    short = UpstreamFailed(
                        f"{origin.upstream.name} ended {self.digest} after {self._ingest.state.written} of "
                        f"{self._ingest.state.size} bytes",
                        upstream=origin.upstream.name,
                    )
                    log.warning("%s", short.message)  # by itself the body was whole: nobody else has said it
                    raise short
                return transfers > 1 or start > 0
            except UpstreamInvalid as error:
                if whole and not opened:
                    # Neither the rest nor the whole: no reason to doubt what is here.
                    raise UpstreamFailed(error.message, upstream=error.upstream) from error
                if opened or not start:
                    raise
                log.info("%s cannot be continued; asking for the whole again", self.digest)
                whole = True
            except _TooSlow:
                raise
            except UpstreamError as error:
                tries = 0 if self._ingest.state.written > start else tries + 1
                if not transfers:
                    raise
                if whole and tries:
                    raise UpstreamInvalid(
                        f"{origin.upstream.name} says that {self.digest} has {self._ingest.state.size} bytes, "
                        f"and ends after {self._ingest.state.written}",
                        upstream=origin.upstream.name,
                    ) from error
                if tries >= CONTINUE_TRIES:
                    raise
                log.info("continuing %s at byte %d", self.digest, self._ingest.state.written)
                await asyncio.sleep(0.1 * 4**tries if tries else 0)

    def _headers(self, origin: Origin, source: BlobSource) -> None:
        """Take over what the headers say, and let the clients begin."""
        state = self._ingest.state
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
        self._publish(phase=Phase.RUNNING, size=size, sources=sources, public=public)

    async def _copy(self, origin: Origin, source: BlobSource, *, skip: int, patient: bool) -> None:
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

        pace = _Pace(self._audience, origin, self._ingest.state.written)
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
                        pace.check(self._ingest.state.written)
                    continue
                batch, taken = [], 0
                most = BATCH if self._ingest.state.written else FIRST_BATCH
                while pending and taken < most:
                    chunk = pending.popleft()
                    batch.append(chunk)
                    taken += len(chunk)
                amount -= taken
                room.set()
                state = self._ingest.state
                if state.size is not None and state.written + taken > state.size:
                    raise UpstreamInvalid(
                        f"{origin.upstream.name} sent more than the {state.size} bytes of {self.digest}",
                        upstream=origin.upstream.name,
                    )
                async with self._disk:
                    written = await in_thread(self._ingest.append_in_thread, batch, state.written)
                known = state.size if state.size is not None else written
                self._publish(written=written, committed=max(state.committed, min(written, known - TAIL), 0))
        finally:
            if not receiver.done():
                receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)
        receiver.result()

    async def _hash_existing(self) -> None:
        """Hash what is on disk and was not hashed as it came, while more may be arriving."""
        more = True
        while more:
            async with self._disk:
                more = await in_thread(self._ingest.hash_step_in_thread, self._ingest.state.written)

    async def _complete(self) -> None:
        """Let everybody have the rest, then give it its final name. Nobody waits for the disk."""
        state = self._ingest.state
        assert state.size is not None
        self._publish(phase=Phase.VERIFIED, committed=state.size)
        await in_thread(self._ingest.sync_in_thread)
        await self._store.admit(self.digest, state.size)
        for key in state.sources:
            await self._metadata.grant(Repository.from_key(key), self.digest, public=state.public)
        await in_thread(self._ingest.finish_in_thread)
        self._audience.observe(self._ingest.state)

    def _publish(self, **changes: object) -> None:
        """Tell every process, and everybody here."""
        self._ingest.publish(**changes)
        self._audience.observe(self._ingest.state)

    async def _restart(self) -> None:
        """Start a new generation; the clients of the old one are told."""
        self._publish(phase=Phase.WRONG)  # first: what follows may fail, and they must not resume
        async with self._disk:
            await in_thread(self._ingest.restart)
        self._audience.observe(self._ingest.state, SharedFile(os.dup(self._ingest.fd)))

    def _source_failed(self, origin: Origin, error: RegistryError) -> None:
        self._audience.fail(origin.repository, error)
        self._ingest.publish(failures=self._ingest.state.failures | {origin.repository.key: to_record(error)})

    async def _void(self, error: RegistryError) -> bool:
        """Drop wrong bytes. Returns whether another origin is left to try."""
        if self._audience.untried():
            return True
        self._audience.error = error
        await in_thread(self._ingest.discard, Phase.WRONG)
        self._audience.observe(self._ingest.state)
        return False

    async def _give_up(self) -> bool:
        """End without the content; what is right so far stays to be continued."""
        self._audience.error = next(reversed(self._audience.failed.values()), None) or UpstreamFailed(
            f"nobody is left to get {self.digest} from", upstream=""
        )
        if self._ingest.state.written:
            self._ingest.publish(phase=Phase.FAILED)
        else:
            await in_thread(self._ingest.discard, Phase.FAILED)
        self._audience.observe(self._ingest.state)
        return False


class _Restart(UpstreamInvalid):
    """What is on disk cannot be continued with what the upstream says now."""


class _TooSlow(UpstreamTimeout):
    """A source that hardly moves, when there is another."""


class _Pace:
    """Notices a source that hardly moves while somebody waits whose own upstream is another."""

    def __init__(self, audience: Audience, origin: Origin, written: int) -> None:
        self._audience = audience
        self._origin = origin
        self._time = asyncio.get_running_loop().time()
        self._written = written

    def check(self, written: int) -> None:
        """Raises: _TooSlow, for the other one to be asked."""
        now = asyncio.get_running_loop().time()
        elapsed = now - self._time
        if elapsed < SLOW_FOR:
            return
        if written - self._written < SLOW * elapsed and self._audience.another_waits(self._origin):
            raise _TooSlow(
                f"{self._origin.upstream.name} sent {written - self._written} bytes of {self._audience.digest} in "
                f"{elapsed:.0f} s; another upstream is asked",
                upstream=self._origin.upstream.name,
            )
        self._time, self._written = now, written


async def _cancel(task: asyncio.Task[None] | None) -> None:
    """Cancel a task, if there is one, and wait for its end."""
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
