"""The outcome table as the suite prints it: one line a cell, and one for what each row becomes without its code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import pytest

from tests.api.outcome_stage import Cell, Seen

COLUMNS = (
    *(("upstream did", 30), ("kept", 5), ("asked for", 9), ("answer", 20), ("retry", 5), ("warning", 7)),
    *(("Cache-Status", 30), ("s", 5), ("stored", 15), ("requests to the upstream", 0)),
)


class Table:
    """Lines, by row, in the order they come."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, row: str, cells: Iterable[tuple[Cell, Seen | None]]) -> None:
        """Add what was seen in the cells of a row; None where there is nothing to see."""
        self._lines.setdefault(row, []).extend(_line(row, cell, seen) for cell, seen in cells)

    def add_without(self, row: str, what: str, failing: int, of: int) -> None:
        """Add how many cells of a row fail without the code that decides it."""
        self._lines.setdefault(row, []).append(f"{row:30}   without {what}: {failing} of {of} cells fail")

    def lines(self) -> list[str]:
        """Return the whole table; nothing when it is empty."""
        if not self._lines:
            return []
        head = _columns([name for name, _ in COLUMNS])
        return [head, "-" * len(head), *(line for lines in self._lines.values() for line in lines)]


TABLE = pytest.StashKey[Table]()


def _line(row: str, cell: Cell, seen: Seen | None) -> str:
    if seen is None:
        return _columns([row, cell.kept, cell.kind, "no such case"])
    answer = f"{seen.status} {seen.code or seen.content}"
    counts = Counter(seen.asked)
    asked = ", ".join(f"{count} {word}" for word, count in sorted(counts.items())) or "none"
    if seen.asked != seen.reached:
        asked += f" ({len(seen.reached)} arrived)"
    cache = seen.cache.removeprefix("mirror; ")
    warned = "stale" if seen.warned else "-"
    stored = " ".join(seen.stored) or "-"
    times = f"{seen.seconds:.2f}"
    return _columns(
        [row, cell.kept, cell.kind, answer, str(seen.retry_after or "-"), warned, cache or "-", times, stored, asked]
    )


def _columns(texts: Sequence[str]) -> str:
    widths = [width for _, width in COLUMNS]
    return " ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=False)).rstrip()
