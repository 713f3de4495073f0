"""Blocking calls in threads, safe to cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that blocks in a thread.

    A cancelled caller waits for its end all the same: it may use a descriptor that is closed next, whose number
    another file may then have.
    """
    return await run_in(None, function, *arguments)


async def run_in(executor: Executor | None, function: Callable[..., T], *arguments: object) -> T:
    """Do as ``in_thread``, in a thread of an executor."""
    running = asyncio.get_running_loop().run_in_executor(executor, function, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise
