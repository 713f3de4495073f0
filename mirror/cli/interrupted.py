"""Ctrl-C and SIGTERM for commands that have something to clear up, and something to say of what they did until then."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


def run(work: Coroutine[Any, Any, None]) -> int | None:
    """Run to the end, or until a signal, by which the work is cancelled; return its number.

    A second signal ends the process at once.
    """
    ended: int | None = None

    async def watched() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            nonlocal ended
            ended = number
            for one in watching:
                loop.remove_signal_handler(one)
            task.cancel()

        # A shell that starts it in the background has it ignore Ctrl-C, and so it does.
        watching = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
        for one in watching:
            loop.add_signal_handler(one, stop, one)
        try:
            await work
        except asyncio.CancelledError:
            if ended is None:
                raise
        finally:
            for one in watching:
                loop.remove_signal_handler(one)

    asyncio.run(watched())
    return ended
