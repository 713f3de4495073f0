"""One doing for all who wait: within a process by sharing a task, across processes by a lease."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

from mirror.oci.errors import Busy
from mirror.store.base import Lease, Leases

T = TypeVar("T")

HEADERS_WITHIN = 20.0
"""Seconds a client waits for headers or an error; containerd gives up at 30."""

LEASE_WITHIN = 20.0
"""Seconds to wait for a lease: of a kept name nobody has it for longer than a commit, of a download for ever."""


class Shared:
    """Tasks by key. Whoever asks for a key under way waits for the same task, errors included.

    A task belongs to nobody's request: a waiter that is cancelled leaves it running.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[Any]] = {}

    def start(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        """Return the task of a key, started when there is none."""
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(self._run(key, make))
            task.add_done_callback(_take_error)
            self._tasks[key] = task
        return task

    async def once(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        """Wait for the key's task and return its result."""
        return await asyncio.shield(self.start(key, make))

    async def close(self) -> None:
        """End every task, and those that ending ones start."""
        while self._tasks:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Hashable, make: Callable[[], Awaitable[T]]) -> T:
        try:
            return await make()
        finally:
            self._tasks.pop(key, None)


async def wait_for_lease(leases: Leases, key: str, done: Callable[[], bool]) -> Lease | None:
    """Wait for the lease of a key, or until ``done`` says that another holder did what was wanted.

    Returns None in that case. A lease is polled for: its holder may be any process, and may die.
    """
    pause = 0.002
    while True:
        lease = leases.try_acquire(key)
        if lease is not None:
            return lease
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.025)
        if done():
            return None


async def take_lease(leases: Leases, key: str, what: object) -> Lease:
    """Wait for a lease that nobody has for long. what: it is of, for the message. Raises: Busy (503)."""
    try:
        async with asyncio.timeout(LEASE_WITHIN):
            lease = await wait_for_lease(leases, key, lambda: False)
    except TimeoutError:
        raise Busy(f"{what} is being stored or deleted by others; try again") from None
    assert lease is not None, "there is no other end to wait for"
    return lease


def _take_error(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # waiters were told; with none left nobody else will ask
