"""How what a root has is shown: amounts, ages, tables; plain text where nobody looks at a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from mirror.logs.amounts import size

__all__ = ["Screen", "age", "moment", "percent", "plural", "size", "span"]

_WIDE = 10_000
"""Columns where there is no terminal: nothing is cut, so that it can be searched."""


class Screen:
    """Standard output: headings, lines and tables."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(highlight=False, markup=False, width=None if terminal else _WIDE)

    def head(self, text: str) -> None:
        """Begin a part."""
        self._console.print()
        self._console.print(text, style="bold")

    def say(self, text: str, *, indent: int = 0) -> None:
        """Say a line; a long one goes on below its beginning."""
        self._console.print(f"{'  ' * indent}{text}", soft_wrap=True)

    def field(self, name: str, text: str) -> None:
        """Say a line of its name and what it is."""
        self._console.print(f"{name:<11}{text}", soft_wrap=True)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show rows under heads. Those whose name begins with ">" are numbers, and never cut; names go on below."""
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for head in heads:
            if head.startswith(">"):
                table.add_column(head.removeprefix(">"), justify="right", no_wrap=True)
            else:
                table.add_column(head, overflow="fold")
        for row in rows:
            table.add_row(*row)
        with self._console.capture() as captured:
            self._console.print(table)
        for line in captured.get().splitlines():
            click.echo(line.rstrip())


def plural(count: int, one: str, many: str = "") -> str:
    """Return a number of things."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def percent(part: float, whole: float) -> str:
    """Return a share, "-" of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def moment(at: float) -> str:
    """Return a time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def span(seconds: float) -> str:
    """Return a time span in its largest unit: ``12 s``, ``5 min``, ``3 h``, ``40 d``."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "d" and seconds >= length):
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def age(at: float | None, now: float) -> str:
    """Return how long ago something was."""
    return "-" if at is None else span(now - at)
