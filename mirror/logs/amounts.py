"""Amounts of bytes, for people."""

from __future__ import annotations


def size(nbytes: int) -> str:
    """Return an amount of bytes as people read it: ``0 B``, ``3.4 MiB``, ``12 MiB``."""
    amount, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1000 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.1f} {unit}" if unit != "B" and amount < 9.95 else f"{amount:.0f} {unit}"
