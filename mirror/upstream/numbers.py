"""Numbers of one process alone: for a client that shares nothing, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mirror.upstream.base import NUMBERS, T


class LocalNumbers:
    """``Numbers`` (see ``base``) that only this process has."""

    def __init__(self) -> None:
        self._numbers: dict[str, tuple[float, ...]] = {}

    def read(self, key: str) -> Sequence[float]:
        return self._numbers.get(key, (0.0,) * NUMBERS)

    async def update(self, key: str, change: Callable[[list[float]], T]) -> T:
        numbers = list(self.read(key))
        result = change(numbers)
        self._numbers[key] = tuple(numbers)  # only now: a change that raises alters nothing
        return result
