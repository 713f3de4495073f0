"""How much is asked of a registry at once and how fast, of all workers together; and how slow it may be.

``Connections`` are leases, so that those of a worker that dies are free at once. ``Rate`` is a line everybody stands
in: a number says when it will be empty, and who joins adds the time its own bytes take. ``Pace`` watches one body.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from mirror.upstream.base import Numbers

SOONEST, LATEST = 0.002, 0.025
"""Seconds between two looks for a free connection."""
FIRST_FOR = 1.0
"""Seconds for which who is first in line is waited for."""
LOOKS = 32
"""How many connections are looked at before others have a turn on the event loop."""
BURST_SECONDS, BURST_BYTES = 0.25, 65_536
"""What may come at once after a pause: the rate for so long, or so many bytes when that is more."""
MARKS = 8
"""How many times within the time judged a body's progress is noted."""


class Lease(Protocol):
    """A right that only one holder in all processes has."""

    def release(self) -> None:
        """Give it up."""
        ...


TryAcquire = Callable[[str], Lease | None]
"""Takes the lease of a key; None when anybody has it, this process included."""


class Connections:
    """At most so many requests at a time to one upstream. Used on one event loop.

    Each ``async with`` holds one of them, and waits for it first; who cannot wait for ever has a time limit around it.
    """

    def __init__(self, try_acquire: TryAcquire | None, upstream: str, most: int | None) -> None:
        """most: in all processes whose leases are the same; None, or no leases, for any number."""
        self._try_acquire = try_acquire
        self._upstream = upstream
        self._most = most
        self._turn = asyncio.Lock()
        self._held: list[Lease] = []  # any of them is as good as another

    async def __aenter__(self) -> None:
        if self._try_acquire is not None and self._most is not None:
            self._held.append(await self._wait(self._try_acquire, self._most))

    async def __aexit__(self, *_: object) -> None:
        if self._held:
            self._held.pop().release()

    async def _wait(self, try_acquire: TryAcquire, most: int) -> Lease:
        """Wait for a free one: first come, first served in this process; between processes one is first in line."""
        async with self._turn:
            first = await self._first(try_acquire)
            try:
                pause = SOONEST
                while True:
                    start = random.randrange(most)
                    for n in range(most):
                        lease = try_acquire(f"connection {self._upstream} {(start + n) % most}")
                        if lease is not None:
                            return lease
                        if n % LOOKS == LOOKS - 1:
                            await asyncio.sleep(0)
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, LATEST)
            finally:
                if first is not None:
                    first.release()

    async def _first(self, try_acquire: TryAcquire) -> Lease | None:
        """Wait to be first in line, so that who has just let go does not take it again before who waits.

        Returns None when somebody else is that for long: its process may be stopped.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + FIRST_FOR
        while True:
            lease = try_acquire(f"connection {self._upstream} next")
            if lease is not None or loop.time() > deadline:
                return lease
            await asyncio.sleep(random.uniform(SOONEST, LATEST))


class Rate:
    """At most so many bytes a second from one upstream, in all processes that share the numbers.

    After a pause a burst is let through at once (``BURST_SECONDS``, ``BURST_BYTES``), never more.
    """

    def __init__(
        self,
        numbers: Numbers,
        upstream: str,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """bytes_per_second: None for any number. clock: Unix seconds."""
        self._numbers = numbers
        self._key = f"rate {upstream}"
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep

    async def take(self, nbytes: int) -> None:
        """Wait until so many bytes more are in the rate. Many are taken in pieces, so that others get theirs."""
        if self._rate is None:
            return
        burst = max(int(self._rate * BURST_SECONDS), BURST_BYTES)
        for first in range(0, nbytes, burst):
            piece = min(burst, nbytes - first)
            wait = await self._numbers.update(self._key, partial(self._join, self._rate, burst, piece))
            if wait > 0:
                await self._sleep(wait)

    def _join(self, rate: int, burst: int, nbytes: int, numbers: list[float]) -> float:
        """Join the line; return the seconds until these bytes are through, less what may come at once."""
        now = self._clock()
        empty, seen = numbers[0], numbers[1]
        if now < seen:
            empty -= seen - now  # the clock was set back, and the line with it
        numbers[0], numbers[1] = max(empty, now) + nbytes / rate, now
        return numbers[0] - now - burst / rate


class TooSlow(Exception):
    """A body came more slowly than it must. received: bytes in so many seconds."""

    def __init__(self, received: int, seconds: float, minimum: int) -> None:
        super().__init__(f"{received} bytes in {seconds:.0f} s, less than {minimum} bytes a second")
        self.received = received
        self.seconds = seconds
        self.minimum = minimum


class Pace:
    """How fast a body comes, judged over the last seconds that were spent waiting for it."""

    def __init__(self, minimum: int | None, over: float, clock: Callable[[], float] = time.monotonic) -> None:
        """minimum: bytes a second, None for any. over: seconds. clock: seconds."""
        self._minimum = minimum
        self._over = over
        self._clock = clock
        self._started = clock()
        self._paused: float | None = None
        self._marks = deque([(0.0, 0)])

    def pause(self) -> None:
        """Stop the time: nobody reads now."""
        if self._paused is None:
            self._paused = self._clock()

    def resume(self) -> None:
        """Let the time run on."""
        if self._paused is not None:
            self._started += self._clock() - self._paused
            self._paused = None

    def check(self, received: int) -> None:
        """Judge the last ``over`` seconds, when there were as many. received: bytes since the beginning.

        Raises: TooSlow.
        """
        if self._minimum is None:
            return
        now = (self._clock() if self._paused is None else self._paused) - self._started
        marks = self._marks
        while len(marks) > 1 and marks[1][0] <= now - self._over:
            marks.popleft()
        since, before = marks[0]
        if now - since >= self._over and received - before < self._minimum * self._over:
            raise TooSlow(received - before, now - since, self._minimum)
        if now - marks[-1][0] >= self._over / MARKS:
            marks.append((now, received))
