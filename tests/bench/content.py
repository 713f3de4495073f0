"""Content that costs neither memory nor disk: a random block, over and over.

The block's length has no common measure with pages or pieces, so bytes in the wrong place are wrong bytes.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from functools import cached_property

BLOCK = (1 << 20) + 7


class Content:
    """Incompressible bytes. size: bytes; the same seed gives the same bytes."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._block = memoryview(random.Random(seed).randbytes(min(size, BLOCK)))

    def pieces(self, start: int = 0, stop: int | None = None, most: int = BLOCK) -> Iterator[memoryview]:
        """Return the bytes from start to stop in pieces of at most ``most`` bytes."""
        position, stop = start, self.size if stop is None else stop
        while position < stop:
            offset = position % len(self._block)
            piece = self._block[offset : offset + min(most, stop - position)]
            yield piece
            position += len(piece)

    @cached_property
    def digest(self) -> str:
        hasher = hashlib.sha256()
        for piece in self.pieces():
            hasher.update(piece)
        return f"sha256:{hasher.hexdigest()}"
