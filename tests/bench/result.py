"""What a benchmark found: rows of two numbers side by side, as a table for people and as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing measured on the mirror, and the same thing beside it.

    beside: None when there is nothing to put there. met: whether the target holds, None without one.
    counted: a claim about bytes, digests, requests or memory, which fails the run; speed never does.
    """

    what: str
    mirror: float
    beside: float | None = None
    unit: str = ""
    target: str = ""
    met: bool | None = None
    counted: bool = False

    @property
    def ratio(self) -> float | None:
        return self.mirror / self.beside if self.beside else None

    @property
    def verdict(self) -> str:
        if self.met is None:
            return ""
        if self.counted:
            return "ok" if self.met else "FAILED"
        return "met" if self.met else "missed"


@dataclass(slots=True, kw_only=True)
class Result:
    """One benchmark's rows. beside: what the second column is. notes: what was left out and why."""

    name: str
    beside: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(row.counted and row.met is False for row in self.rows)

    def table(self) -> str:
        """Return the rows as aligned text."""
        lines = [("", "mirror", self.beside, "", "ratio", "target", "")]
        for row in self.rows:
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            lines.append((row.what, _number(row.mirror), _number(row.beside), row.unit, ratio, row.target, row.verdict))
        widths = [max(len(line[column]) for line in lines) for column in range(7)]
        text = [
            "  ".join(
                cell.rjust(width) if 1 <= column <= 2 or column == 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([f"# {self.name}", *text, *(f"  {note}" for note in self.notes)])

    def write(self, folder: Path, *, quick: bool) -> Path:
        """Write ``<name>.json`` into a folder, and return its path."""
        rows = [{**asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in self.rows]
        machine = {
            "cpus": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        }
        found = {"name": self.name, "quick": quick, "ok": self.ok, "machine": machine, "beside": self.beside}
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps({**found, "rows": rows, "notes": self.notes}, indent=2) + "\n")
        return path


def count(what: str, found: float, wanted: float, unit: str = "") -> Row:
    """Return the row of a claim that a count is exactly what it should be."""
    target = "= 1.00" if wanted else "none"
    return Row(what=what, mirror=found, beside=wanted, unit=unit, target=target, met=found == wanted, counted=True)


def median(values: Iterable[float]) -> float:
    """Return the middle value, the lower one of two."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
