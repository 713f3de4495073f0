"""Leaving a host alone that does not answer, so that it costs one time-out a window, of all workers together.

    closed ── failures, below ──▶ open ── window over, one trial claims it ──▶ probing ── success ──▶ closed
                                   ▲                                              │
                                   └───────────── failure: another window ────────┘

What opens it, with no success in between: one time-out, unless the host answered somebody since that trial began;
3 times no connection, or one that ended without an answer; 10 failures of any of these kinds or 5xx. What was under way
when it opened can close it by a success, but does not prolong it by a failure. Nothing is written while all is
well but the time of the last success, now and then. A clock that is set back lets a probe through early.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from mirror.upstream.base import Numbers

REFUSALS, FAILURES = 3, 10
"""How many failures open it: of no connection or no answer, of any kind but time-outs."""
NOTED_EVERY = 0.1
"""Seconds between two notes of a success, while there is nothing to reset."""

_ANSWERED, _DOWN_SINCE, _RESTS_FROM, _CAUSE, _REFUSALS, _FAILURES, _PROBE_FROM, _PROBE = range(8)
"""The numbers of a host. Times are 0 for never; _PROBE is a random number that says whose probe it is."""


class Cause(IntEnum):
    """How a trial failed."""

    TIMEOUT = 1
    """No answer in time."""
    UNREACHABLE = 2
    """No connection: refused, no route, no such name, no TLS."""
    BROKEN = 3
    """The connection ended without an answer."""
    STATUS = 4
    """A 5xx."""

    @property
    def words(self) -> str:
        """Say it for a message, after the host's name."""
        return _WORDS[self]


_WORDS = {
    Cause.TIMEOUT: "did not answer in time",
    Cause.UNREACHABLE: "could not be reached",
    Cause.BROKEN: "closed the connection without an answer",
    Cause.STATUS: "answered with server errors",
}


class Phase(Enum):
    """What a breaker does with requests."""

    CLOSED = "closed"
    """Lets them through."""
    OPEN = "open"
    """Refuses them."""
    PROBING = "probing"
    """Refuses all but the one that finds out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """The state of a host. cause: why it is not closed. seconds: since it was first found down."""

    phase: Phase
    cause: Cause | None = None
    seconds: float = 0.0


class BreakerOpen(Exception):
    """The host is left alone.

    cause: what it did, for a message, after its name. since: seconds ago that it did so last. wait: seconds until it is
    worth asking again.
    """

    def __init__(self, host: str, cause: str, *, since: float, wait: float) -> None:
        super().__init__(f"{host} {cause} {since:.0f} s ago; it is left alone for another {wait:.0f} s")
        self.host = host
        self.cause = cause
        self.since = since
        self.wait = wait


class Breaker:
    """The breakers of all hosts, the same in all processes that share the numbers."""

    def __init__(
        self, numbers: Numbers, *, window: float, probe: float, clock: Callable[[], float] = time.time
    ) -> None:
        """window: seconds a host is left alone, 0 for never. probe: seconds a probe has. clock: Unix seconds."""
        self._numbers = numbers
        self._window = window
        self._probe = probe
        self._clock = clock

    async def enter(self, host: str) -> Trial:
        """Begin a trial of a host, "scheme://host:port". The caller ends it, whatever happens.

        Raises: BreakerOpen.
        """
        if not self._window:
            return Trial(self, host, self._clock(), probe=0.0)
        found = self._numbers.read(_key(host))
        if found[_RESTS_FROM] and self._left(found, self._clock()) <= 0:
            return await self._numbers.update(_key(host), lambda numbers: self._claim(host, numbers))
        return self._admit(host, found)

    def state(self, host: str) -> Condition:
        """Return the state of a host; "open" lasts until somebody asks after the window."""
        found, now = self._numbers.read(_key(host)), self._clock()
        if not self._window or not found[_RESTS_FROM]:
            return Condition(phase=Phase.CLOSED)
        phase = Phase.PROBING if found[_PROBE] else Phase.OPEN
        return Condition(phase=phase, cause=_cause(found), seconds=max(0.0, now - found[_DOWN_SINCE]))

    def wait(self, host: str) -> float:
        """Return the seconds until a host may be asked, 0 for now."""
        found, now = self._numbers.read(_key(host)), self._clock()
        return max(0.0, self._left(found, now)) if self._window and found[_RESTS_FROM] else 0.0

    # ---- what a trial says ----

    async def note_success(self, host: str) -> None:
        """Note an answer of a host."""
        if not self._window:
            return
        found, now = self._numbers.read(_key(host)), self._clock()
        troubled = found[_RESTS_FROM] or found[_FAILURES] or found[_REFUSALS]
        if troubled or not 0 <= now - found[_ANSWERED] < NOTED_EVERY:
            await self._numbers.update(_key(host), self._reset)

    async def note_failure(self, trial: Trial, cause: Cause) -> None:
        """Note that a host did not answer, or with a 5xx."""
        if self._window:
            await self._numbers.update(_key(trial.host), lambda numbers: self._count(numbers, trial, cause))

    async def give_up(self, trial: Trial) -> None:
        """Let another have the probe, if this trial has it."""
        if trial.probe:
            await self._numbers.update(_key(trial.host), lambda numbers: _free(numbers, trial.probe))

    # ---- the numbers; each with no other update between ----

    def _admit(self, host: str, numbers: Sequence[float], *, probe: float = 0.0) -> Trial:
        now = self._clock()
        if numbers[_RESTS_FROM] and not probe:
            since, wait = max(0.0, now - numbers[_RESTS_FROM]), max(0.0, self._left(numbers, now))
            raise BreakerOpen(host, _cause(numbers).words, since=since, wait=wait)
        return Trial(self, host, now, probe=probe)

    def _claim(self, host: str, numbers: list[float]) -> Trial:
        now = self._clock()
        if not numbers[_RESTS_FROM] or self._left(numbers, now) > 0:
            return self._admit(host, numbers)  # another process was here first
        numbers[_PROBE_FROM], numbers[_PROBE] = now, random.uniform(1, 2**40)
        return self._admit(host, numbers, probe=numbers[_PROBE])

    def _left(self, numbers: Sequence[float], now: float) -> float:
        """Return the seconds until the next probe may be made."""
        if numbers[_PROBE]:
            begun, lasts = numbers[_PROBE_FROM], self._probe
        else:
            begun, lasts = numbers[_RESTS_FROM], self._window
        return begun + lasts - now if begun <= now else 0.0

    def _reset(self, numbers: list[float]) -> None:
        numbers[:] = [0.0] * len(numbers)
        numbers[_ANSWERED] = self._clock()

    def _count(self, numbers: list[float], trial: Trial, cause: Cause) -> None:
        now = self._clock()
        if numbers[_RESTS_FROM]:
            if numbers[_PROBE] and numbers[_PROBE] == trial.probe:
                _open(numbers, cause, now)
            return
        if cause is Cause.TIMEOUT:
            if not trial.begun <= numbers[_ANSWERED] <= now:
                _open(numbers, cause, now)
            return
        numbers[_FAILURES] += 1
        if cause is not Cause.STATUS:
            numbers[_REFUSALS] += 1
        if numbers[_REFUSALS] >= REFUSALS or numbers[_FAILURES] >= FAILURES:
            _open(numbers, cause, now)


class Trial:
    """A request under way. It ends once: what is said after that is not heard."""

    def __init__(self, breaker: Breaker, host: str, begun: float, *, probe: float) -> None:
        """begun: Unix seconds. probe: the number of the probe this is, 0 for none."""
        self.host = host
        self.begun = begun
        self.probe = probe
        self._breaker: Breaker | None = breaker

    async def succeeded(self) -> None:
        """Say that the host answered, whatever but 5xx."""
        if breaker := self._end():
            await breaker.note_success(self.host)

    async def failed(self, cause: Cause) -> None:
        """Say that it did not."""
        if breaker := self._end():
            await breaker.note_failure(self, cause)

    async def abandon(self) -> None:
        """Say that nobody will know: the request was cancelled, or never sent."""
        if breaker := self._end():
            await breaker.give_up(self)

    def _end(self) -> Breaker | None:
        breaker, self._breaker = self._breaker, None
        return breaker


def _key(host: str) -> str:
    return f"breaker {host}"


def _cause(numbers: Sequence[float]) -> Cause:
    return Cause(int(numbers[_CAUSE]))


def _open(numbers: list[float], cause: Cause, now: float) -> None:
    if not numbers[_RESTS_FROM]:
        numbers[_DOWN_SINCE] = now
    numbers[_RESTS_FROM], numbers[_CAUSE] = now, cause
    numbers[_PROBE_FROM] = numbers[_PROBE] = 0.0


def _free(numbers: list[float], probe: float) -> None:
    if numbers[_PROBE] == probe:
        numbers[_PROBE_FROM] = numbers[_PROBE] = 0.0
