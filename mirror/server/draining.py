"""The end of what a worker serves: it stops listening, running requests go on to their end, then nothing is left.

A client that has just connected and not asked yet would see a connection that ends for no reason, and so would one
that asks again on a connection kept open: where another worker has taken over, both get some seconds to ask, and are
told that this answer is the last one here. And a download that this worker leads is not broken off, as clients of
other workers may be following it. When the service stops nobody is waited for who has not asked.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from mirror.server.handshake import going_on
from mirror.server.protocol import Protocol, Runner

_FIRST, _NEXT = 5.0, 1.0  # seconds of patience with clients that do not ask: anything, anything more
_OFTEN, _SELDOM = 0.02, 0.2  # seconds between two looks

log = logging.getLogger("mirror.server")


async def stop_listening(runners: Sequence[Runner], sockets: Iterable[socket.socket]) -> None:
    """Accept no more. sockets: those the runners accept from; others may go on with them."""
    loop = asyncio.get_running_loop()
    for one in sockets:
        loop.remove_reader(one.fileno())
    await asyncio.sleep(0)  # what was accepted in this very round: asyncio would drop it if its server was closed
    for runner in runners:
        for site in list(runner.sites):
            await site.stop()


async def drain(
    runners: Sequence[Runner],
    *,
    deadline: Callable[[], float],
    patient: Callable[[], bool],
    leading: Callable[[], bool],
) -> None:
    """Return when every request has ended, or been cut off.

    deadline: when that is, as the loop tells the time; it may change. patient: whether to wait for who has not asked,
    and for what others follow. leading: whether others may be following something.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        open_ = [one for runner in runners for one in _connections(runner) if not one.ended]
        now = loop.time()
        for connection in open_:
            connection.leave()
            idle_since = connection.idle_since
            patience = 0.0 if not patient() else _NEXT if connection.begun else _FIRST
            if idle_since is not None and now - max(idle_since, began) >= patience:
                connection.force_close()
        arriving = patient() and (now - began < _SELDOM or (going_on() and now - began < _FIRST))
        if not open_ and not arriving and not (patient() and leading()):
            break
        if now >= deadline():
            if open_:
                log.warning("%d requests did not end within drain_timeout and are cut off", len(open_))
            break
        await asyncio.sleep(min(_OFTEN if now - began < _FIRST else _SELDOM, max(0.0, deadline() - now)))
    for runner in runners:
        await runner.cleanup()


def _connections(runner: Runner) -> list[Protocol]:
    return cast("list[Protocol]", runner.server.connections) if runner.server is not None else []
