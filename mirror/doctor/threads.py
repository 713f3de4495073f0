"""Blocking looks in threads that the process need not wait for: a disk that hangs would never let them go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")

CLEAN_UP = 5.0
"""Seconds that a look which is not waited for any more is given to remove what it made."""


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run a function that blocks. A cancelled caller still gives it ``CLEAN_UP`` seconds to end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(settle: Callable[[V], None], value: V) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.cancelled() else settle(value))
        except RuntimeError:
            pass  # nobody waited for it, and the loop is closed

    def work() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            tell(done.set_exception, error)
        else:
            tell(done.set_result, result)

    threading.Thread(target=work, name=f"look {function.__name__}", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done}, timeout=CLEAN_UP)
        if done.done():
            done.exception()  # seen
        raise
