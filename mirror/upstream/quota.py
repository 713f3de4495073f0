"""What is left of each account's pulls, as the registry itself says, and which account to ask as.

Registries that count pulls answer with ``ratelimit-limit`` and ``ratelimit-remaining`` (``100;w=21600``: so many in
that many seconds), and with 429 when there are none left, or when they are asked too often. What one worker reads, all
know. Between two readings each request that counts is taken off; the next reading corrects that. When none seem left,
one is let through now and then to find out: however many ask at once, hardly more are sent than are left.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from mirror.upstream.base import Numbers
from mirror.upstream.report import retry_after

WINDOW = 21_600.0
"""Seconds a reading counts for when the registry does not say; Docker Hub's six hours."""
LONGEST_WINDOW = 31 * 86_400.0
"""Longest window believed, in seconds."""
MOST = 10**9
"""Largest number of pulls believed."""
PULLS_PAUSE, PAUSE = 60.0, 5.0
"""Seconds an account rests after a 429 that does not say: to a request that counts, to any other."""
LONGEST_PAUSE = 3600.0
"""Longest time an account rests, in seconds, whatever the registry says."""

_LIMIT, _REMAINING, _AT, _WINDOW, _PAUSED, _PULLS_PAUSED, _TRIED = range(7)
"""The numbers of an account. _AT: when _REMAINING was read, 0 for never. _LIMIT: 0 when it was never said. _TRIED: when
a request that counts was let through last although none seemed left.
"""

_COUNT = re.compile(r"\s*([0-9]+)\s*(?:[;,]|\Z)")
_SECONDS = re.compile(r";\s*w\s*=\s*([0-9]+)\s*(?:[;,]|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of an account; None is unknown.

    limit, remaining: pulls. at: Unix seconds when they were read. window: seconds they are over. paused_until,
    pulls_paused_until: Unix seconds before which nothing, or nothing that counts, is to be asked; 0 for no pause.
    """

    limit: int | None = None
    remaining: int | None = None
    at: float | None = None
    window: float | None = None
    paused_until: float = 0.0
    pulls_paused_until: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The same for metrics. paused: seconds until requests that count may be sent, 0 for now."""

    limit: int | None
    remaining: int | None
    paused: float


class Choice(NamedTuple):
    """Which accounts may be asked, by their place in the settings, the best first.

    wait: seconds until the first of them may be, when there is none now.
    """

    order: tuple[int, ...]
    wait: float


class Quota:
    """The quota of one account of an upstream, the same in all processes that share the numbers."""

    def __init__(
        self, numbers: Numbers, upstream: str, account: str, *, clock: Callable[[], float] = time.time
    ) -> None:
        """account: what tells it from the others of this upstream. clock: Unix seconds."""
        self._numbers = numbers
        self._key = f"quota {upstream} {account}"
        self._clock = clock

    def reading(self) -> Reading:
        """Return what is known now. A reading is forgotten with its window, a pause when it is over."""
        found, now = self._numbers.read(self._key), self._clock()
        paused, pulls_paused = _pause(found[_PAUSED], now), _pause(found[_PULLS_PAUSED], now)
        if not _known(found, now):
            return Reading(paused_until=paused, pulls_paused_until=pulls_paused)
        return Reading(
            limit=int(found[_LIMIT]) or None,
            remaining=int(found[_REMAINING]),
            at=found[_AT],
            window=found[_WINDOW],
            paused_until=paused,
            pulls_paused_until=pulls_paused,
        )

    def wait(self, *, counted: bool) -> float:
        """Return the seconds until the account may be asked, 0 for now. counted: for something that counts."""
        reading, now = self.reading(), self._clock()
        until = max(reading.paused_until, reading.pulls_paused_until if counted else 0.0)
        if counted and reading.remaining == 0:
            until = max(until, _tried(self._numbers.read(self._key), now) + PULLS_PAUSE)
        return max(0.0, until - now)

    def told_to_rest(self) -> bool:
        """Say whether a 429 is why a request that counts may not be sent now."""
        reading = self.reading()
        return bool(reading.paused_until or reading.pulls_paused_until)

    def exported(self) -> Exported:
        """Return what metrics show."""
        reading = self.reading()
        return Exported(limit=reading.limit, remaining=reading.remaining, paused=self.wait(counted=True))

    async def spend(self) -> bool:
        """Take a request that counts off what is left, as far as that is known. Returns whether it may be sent."""
        if not _known(self._numbers.read(self._key), self._clock()):
            return True
        return await self._numbers.update(self._key, self._take_one)

    async def note(self, headers: Mapping[str, str], status: int, *, counted: bool) -> None:
        """Read an answer. counted: it was to a request that counts.

        A 429 to such a request rests those alone: what does not count may still be let in. A 429 to another one rests
        all. Nonsense in headers is passed over.
        """
        limit, remaining = headers.get("ratelimit-limit", ""), headers.get("ratelimit-remaining", "")
        left = _count(remaining)
        if left is None and status != 429:
            return
        most, window = _count(limit), _window(remaining) or _window(limit) or WINDOW
        wait = self._asked_to_rest(headers, counted=counted) if status == 429 else 0.0

        def change(numbers: list[float]) -> None:
            now = self._clock()
            if left is not None:
                numbers[_LIMIT] = most or numbers[_LIMIT]
                numbers[_REMAINING], numbers[_AT], numbers[_WINDOW] = left, now, window
            if wait:
                which = _PULLS_PAUSED if counted else _PAUSED
                numbers[which] = max(now + wait, _pause(numbers[which], now))
                if counted:  # its word is better than our own time between two tries
                    numbers[_TRIED] = min(now, numbers[which] - PULLS_PAUSE)

        await self._numbers.update(self._key, change)

    def _take_one(self, numbers: list[float]) -> bool:
        if numbers[_REMAINING] >= 1:
            numbers[_REMAINING] -= 1
            return True
        now = self._clock()
        if now - _tried(numbers, now) < PULLS_PAUSE:
            return False
        numbers[_TRIED] = now
        return True

    def _asked_to_rest(self, headers: Mapping[str, str], *, counted: bool) -> float:
        """Return the seconds a 429 asks for."""
        asked = retry_after(headers.get("Retry-After"), now=datetime.fromtimestamp(self._clock(), UTC))
        if asked is None:
            return PULLS_PAUSE if counted else PAUSE
        return min(asked, LONGEST_PAUSE)


def pick(quotas: Sequence[Quota], *, counted: bool) -> Choice:
    """Choose among accounts: those that do not rest, first the one with most left, unknown being most of all.

    counted: for a request that counts. Ties are in the order given.
    """
    waits = [quota.wait(counted=counted) for quota in quotas]
    ready = [at for at, wait in enumerate(waits) if not wait]
    if not ready:
        return Choice((), min(waits, default=0.0))
    return Choice(tuple(sorted(ready, key=lambda at: -_left(quotas[at]))), 0.0)


def low(quotas: Sequence[Quota], floor: float) -> bool:
    """Say whether no account has more left than is to be kept. floor: share of the limit, from 0 to 1.

    An account of which nothing is known has enough; one that rests has nothing.
    """
    return bool(quotas) and all(_low(quota, floor) for quota in quotas)


def _low(quota: Quota, floor: float) -> bool:
    if quota.wait(counted=True):
        return True
    reading = quota.reading()
    return reading.remaining is not None and reading.remaining < floor * (reading.limit or 1)


def _left(quota: Quota) -> float:
    remaining = quota.reading().remaining
    return float("inf") if remaining is None else remaining


def _known(numbers: Sequence[float], now: float) -> bool:
    return bool(numbers[_AT]) and 0 <= now - numbers[_AT] < numbers[_WINDOW]


def _pause(until: float, now: float) -> float:
    """Return the end of a pause, 0 when it is over, or further away than any: the clock was set back."""
    return until if now < until <= now + LONGEST_PAUSE else 0.0


def _tried(numbers: Sequence[float], now: float) -> float:
    """Return when one was let through last; long ago, when that would be in the future: the clock was set back."""
    return numbers[_TRIED] if numbers[_TRIED] <= now else 0.0


def _count(header: str) -> int | None:
    found = _COUNT.match(header)
    return min(int(found[1][:20]), MOST) if found else None


def _window(header: str) -> float | None:
    """Return the seconds after ``w=``, None when there are none."""
    found = _SECONDS.search(header)
    seconds = min(float(found[1][:20]), LONGEST_WINDOW) if found else 0.0
    return seconds or None
