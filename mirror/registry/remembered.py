"""Lists that upstreams gave, remembered for all workers and through restarts, for as long as tags are.

fresh            → answered at once, no upstream
stale            → asked for anew, waited for at most ``revalidate_wait``; then the remembered one goes out
check failed     → the remembered one, with a warning, for as long as ``stale_for``; no new check for a while
upstream's 404   → by ``on_not_found``: forgotten, or kept
nothing here     → whatever the upstream answers; a 404 is remembered briefly

What is remembered of a list is under one key of the memo, and changed by whoever has the key's lease: those who wait
for it, in all processes, look there again. A list or a 404 is written over what was there before; a failure is noted
beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cachetools import LRUCache

from mirror.config import Tags
from mirror.oci.errors import RegistryError, StorageFailed, Unknown, UpstreamError, UpstreamOffline, UpstreamTimeout
from mirror.oci.names import Repository
from mirror.registry.errors import from_record, reason_of, to_record
from mirror.registry.sharing import HEADERS_WITHIN, Shared, wait_for_lease
from mirror.registry.tags import LONGEST_WAIT, REMEMBER_404, RETRY_AFTER, SHARE, SLOW, moment, pause_after
from mirror.store.base import Leases, Memo
from mirror.store.threads import in_thread

E = TypeVar("E")

KEPT = 30 * 86_400.0
"""Longest time in seconds that a list is remembered."""
KEPT_EMPTY = 86_400.0
"""The same of one without entries: anybody can ask for the referrers of any number of digests that nobody has."""
FETCH_WITHIN = 60.0
"""Seconds for all pages of a list. Longer than clients wait: a long list is there for the next who asks."""
MEMORY = 16 * 1024 * 1024
"""Bytes of lists of one kind each process keeps in memory, about."""
INLINE = 64 * 1024
"""Longest list turned into values on the event loop, in bytes of JSON."""
INLINE_ENTRIES = 1_000
"""Most entries of a list handled on the event loop at once."""


@dataclass(frozen=True, slots=True)
class Given(Generic[E]):
    """A list an upstream gave. warning: why it may not be its latest, when it may not."""

    entries: tuple[E, ...]
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted(Generic[E]):
    """A list of an upstream's repository. what: it lists, such as "tags". ask: gets it from the upstream.

    Another process may ask instead: what it gets is the same.
    """

    what: str
    repository: Repository
    ask: Callable[[], Awaitable[Given[E]]]

    @property
    def key(self) -> str:
        return f"list of {self.what} in {self.repository.key}"

    @property
    def upstream(self) -> str:
        return self.repository.source or ""

    def late(self, seconds: float) -> UpstreamTimeout:
        """Return the error for a list that is not here after so many seconds."""
        return UpstreamTimeout(
            f"upstream {self.upstream} has not sent all {self.what} in {self.repository.name} within {seconds:g} s; "
            "try again later",
            upstream=self.upstream,
            brief=f"upstream {self.upstream} has not answered yet",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled(Generic[E]):
    """A list to answer with. hit: what was remembered is the answer. warning: why it is stale, when it is.

    stale: the same in a word.
    """

    entries: tuple[E, ...]
    hit: bool
    warning: str | None = None
    stale: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record(Generic[E]):
    """What an upstream answered last: a list, or that there is none. unknown: its 404. Times are Unix seconds."""

    entries: tuple[E, ...]
    unknown: dict[str, Any] | None
    warning: str | None
    checked_at: float
    fresh_until: float


class RememberedLists(Generic[E]):
    """The lists of one kind, such as tags. settings: upstream name → its ``tags`` section.

    encode, decode: an entry to what JSON can hold, and back. clock: Unix seconds.
    """

    def __init__(
        self,
        *,
        leases: Leases,
        memo: Memo,
        settings: Mapping[str, Tags],
        encode: Callable[[E], Any],
        decode: Callable[[Any], E],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._leases = leases
        self._memo = memo
        self._settings = settings
        self._encode = encode
        self._decode = decode
        self._clock = clock
        self._shared = Shared()
        # Only while a record is fresh: nobody asks before that is over, so no process can know better.
        self._memory: LRUCache[str, tuple[_Record[E], int]] = LRUCache(MEMORY, getsizeof=lambda item: item[1])

    async def get(self, wanted: Wanted[E], *, otherwise: bool = False) -> Recalled[E]:
        """Return a list of an upstream's repository.

        otherwise: the caller has something to answer without it, so that a check which failed is not repeated
        for a while. Raises: NameUnknown (404); UpstreamError when nothing usable is remembered. Within 20 s.
        """
        settings = self._settings[wanted.upstream]
        now = self._clock()
        record = await self._recall(wanted.key)
        kept = None
        if record is not None:
            if now < record.fresh_until:
                return _answer(record, hit=True)
            # One that came with a warning was stale then.
            stale_for = 0.0 if record.warning else settings.stale_for
            if record.unknown is None and (stale_for is None or now < record.fresh_until + stale_for):
                kept = record
        trouble: RegistryError | None = None
        reason = ""
        if kept is not None or otherwise:
            trouble = await self._noted(wanted.key, record, lambda noted_at, retry_at: now < retry_at)
        if trouble is None:
            wait = HEADERS_WITHIN if kept is None else min(settings.revalidate_wait, LONGEST_WAIT)
            try:
                async with asyncio.timeout(wait):
                    return _answer(await asyncio.shield(self._check(wanted, record)), hit=False)
            except TimeoutError:
                trouble, reason = wanted.late(wait), SLOW
            except Unknown as error:
                if settings.on_not_found == "forget":
                    raise
                trouble = error
            except (UpstreamError, StorageFailed) as error:
                trouble = error
        if kept is None:
            raise trouble
        warning = f"stale since {moment(kept.fresh_until)}: {said(trouble)}"
        return Recalled(entries=kept.entries, hit=True, warning=warning, stale=reason or reason_of(trouble))

    async def close(self) -> None:
        await self._shared.close()

    def _check(self, wanted: Wanted[E], before: _Record[E] | None) -> asyncio.Task[_Record[E]]:
        """Ask the upstream, once for all who wait in this process. before: what was remembered."""
        return self._shared.start(wanted.key, lambda: self._check_once(wanted, before))

    async def _check_once(self, wanted: Wanted[E], before: _Record[E] | None) -> _Record[E]:
        """Ask the upstream, once for all processes: they wait for the lease, then look again."""
        key = wanted.key
        began = self._clock()
        lease = self._leases.try_acquire(key)
        waited = lease is None
        if lease is None:
            lease = await wait_for_lease(self._leases, key, lambda: False)
        assert lease is not None, "there is no other end to wait for"
        try:
            found = await self._recall(key)
            if found is not None and (before is None or found.checked_at != before.checked_at):
                return _known(found)
            if waited:  # another process asked meanwhile: a bad answer is ours as well
                trouble = await self._noted(key, found, lambda noted_at, retry_at: began <= noted_at)
                if trouble is not None:
                    raise trouble
            return await self._ask(wanted, before)
        finally:
            lease.release()

    async def _ask(self, wanted: Wanted[E], before: _Record[E] | None) -> _Record[E]:
        """Ask the upstream; remember and return what it says."""
        key, settings = wanted.key, self._settings[wanted.upstream]
        try:
            async with asyncio.timeout(FETCH_WITHIN):
                given = await wanted.ask()
        except TimeoutError:
            late = wanted.late(FETCH_WITHIN)
            await self._note(key, late, pause_after(late))
            raise late from None
        except UpstreamOffline:
            raise  # to find that out again costs nothing
        except UpstreamError as failure:
            await self._note(key, failure, pause_after(failure))
            raise
        except Unknown as unknown:
            if settings.on_not_found == "keep" and before is not None and before.unknown is None:
                await self._note(key, unknown, settings.fresh_for)
                raise
            seconds = min(settings.fresh_for, REMEMBER_404)
            await self._remember(key, (), seconds=seconds, keep=seconds, unknown=to_record(unknown))
            raise
        seconds = min(settings.fresh_for, RETRY_AFTER) if given.warning else settings.fresh_for
        most = KEPT if given.entries else KEPT_EMPTY
        stale = most if settings.stale_for is None else min(settings.stale_for, most)
        keep = min(seconds + stale, KEPT)
        return await self._remember(key, given.entries, seconds=seconds, keep=keep, warning=given.warning)

    # ---- the memo ----

    async def _recall(self, key: str) -> _Record[E] | None:
        """Return what is remembered, fresh or not."""
        found = self._memory.get(key)
        if found is not None and self._clock() < found[0].fresh_until:
            return found[0]
        text = await self._memo.recall(key)
        if text is None:
            return None
        record = self._read(text) if len(text) <= INLINE else await in_thread(self._read, text)
        self._memorize(key, record, len(text))
        return record

    def _read(self, text: str) -> _Record[E]:
        written = json.loads(text)
        return _Record(
            entries=tuple(map(self._decode, written["entries"])),
            unknown=written["unknown"],
            warning=written["warning"],
            checked_at=written["checked_at"],
            fresh_until=written["fresh_until"],
        )

    def _write(self, record: _Record[E]) -> str:
        return json.dumps(
            {
                "entries": list(map(self._encode, record.entries)),
                "unknown": record.unknown,
                "warning": record.warning,
                "checked_at": record.checked_at,
                "fresh_until": record.fresh_until,
            }
        )

    async def _remember(
        self,
        key: str,
        entries: tuple[E, ...],
        *,
        seconds: float,
        keep: float,
        unknown: dict[str, Any] | None = None,
        warning: str | None = None,
    ) -> _Record[E]:
        """Write over what was remembered. seconds: it is fresh for; keep: it is remembered for."""
        now = self._clock()
        record = _Record(entries=entries, unknown=unknown, warning=warning, checked_at=now, fresh_until=now + seconds)
        inline = len(entries) <= INLINE_ENTRIES
        text = self._write(record) if inline else await in_thread(self._write, record)
        # At least for as long as those who wait in other processes take to look.
        await self._memo.remember(key, text, max(keep, SHARE))
        self._memorize(key, record, len(text))
        return record

    def _memorize(self, key: str, record: _Record[E], length: int) -> None:
        weight = 4 * length + 1024  # as values a list is several times as large as its JSON
        if weight <= MEMORY // 4:
            self._memory[key] = (record, weight)

    async def _note(self, key: str, error: RegistryError, pause: float) -> None:
        """Note why a list could not be had, and that whoever has another need not ask for ``pause`` seconds."""
        now = self._clock()
        note = {"error": to_record(error), "noted_at": now, "retry_at": now + pause}
        await self._memo.remember(f"trouble with {key}", json.dumps(note), max(pause, SHARE))

    async def _noted(
        self, key: str, record: _Record[E] | None, holds: Callable[[float, float], bool]
    ) -> RegistryError | None:
        """Return the error of the last check, unless a good one came after it.

        holds: says whether one of that time still counts; is given when it was noted and when to try again.
        """
        text = await self._memo.recall(f"trouble with {key}")
        if text is None:
            return None
        note = json.loads(text)
        if record is not None and note["noted_at"] < record.checked_at:
            return None
        return from_record(note["error"]) if holds(note["noted_at"], note["retry_at"]) else None


def said(error: RegistryError) -> str:
    """Return what an error says beside content that is kept."""
    return error.brief if isinstance(error, UpstreamError) else error.message


def _known(record: _Record[E]) -> _Record[E]:
    if record.unknown is not None:
        raise from_record(record.unknown)
    return record


def _answer(record: _Record[E], *, hit: bool) -> Recalled[E]:
    """Return a record as an answer. Raises: NameUnknown (404) when it is that there is none."""
    return Recalled(entries=_known(record).entries, hit=hit, warning=record.warning)
