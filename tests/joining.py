"""Who takes part in the downloads of mirrors in this process, which no request shows from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mirror.registry.inflight import Inflight
from mirror.wiring import answering


def count_joined(patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return what counts the clients that wait for a download or are sent one, of mirrors started from now on."""
    made: list[Inflight] = []

    class Seen(Inflight):
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            made.append(self)

    patch.setattr(answering, "Inflight", Seen)
    return lambda: sum(
        one.views + sum(not waiter.done() for _, waiter in one._waiters)
        for inflight in made
        for one in inflight._downloads.values()
    )
