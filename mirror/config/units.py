"""From a value back to how people write it: what ``values`` reads, so that it reads the same again."""

from __future__ import annotations

from decimal import Decimal

UNLIMITED = "unlimited"

_TIMES = (("d", Decimal(86400), 1), ("h", Decimal(3600), 1), ("m", Decimal(60), 2), ("s", Decimal(1), 1))
"""Unit, seconds in it, and from how many on it is used: one minute is 60s."""
_SIZES = [(f"{letter}iB", 1024**power) for power, letter in enumerate("KMGTP", start=1)]
_SIZES += [("kB" if letter == "K" else f"{letter}B", 1000**power) for power, letter in enumerate("KMGTP", start=1)]


def duration(seconds: float | None) -> str:
    """Write a duration: ``500ms``, ``60s``, ``2h``; None is ``unlimited``."""
    if seconds is None:
        return UNLIMITED
    exact = Decimal(repr(float(seconds)))
    for unit, length, least in _TIMES:
        if exact >= length * least and exact % length == 0:
            return f"{int(exact / length)}{unit}"
    if exact < 1 and exact * 1000 == (exact * 1000).to_integral_value():
        return f"{int(exact * 1000)}ms" if exact else "0s"
    return f"{exact.normalize():f}s"


def size(count: int) -> str:
    """Write a size by the unit that makes it shortest: ``4MiB``, ``10GB``; what fits none as a number."""
    fitting = [f"{count // length}{unit}" for unit, length in _SIZES if count and count % length == 0]
    return min(fitting or [str(count)], key=lambda text: (len(text), "i" not in text))


def rate(count: int | None) -> str:
    """Write bytes a second; None is ``unlimited``."""
    return UNLIMITED if count is None else f"{size(count)}/s"


def share(part: float) -> str:
    """Write a share from 0 to 1 as a percentage."""
    return f"{Decimal(repr(round(part * 100, 6))).normalize():f}%"


def count(number: int | None) -> int | str:
    """Write a number; None is ``unlimited``."""
    return UNLIMITED if number is None else number
