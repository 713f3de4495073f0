"""How big a run is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.bench.processes import cores

T = TypeVar("T")

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """quick: small enough for every change; says nothing about speed."""

    quick: bool

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@contextmanager
def workspace() -> Iterator[Path]:
    """Make an empty folder on local disk for the length of a benchmark."""
    with tempfile.TemporaryDirectory(prefix="mirror-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def one_core_each() -> tuple[list[int], list[int]]:
    """Return the core of the server measured and the one of everything else; the same one if there is no other."""
    found = cores()
    return found[:1], found[1:2] or found[:1]
