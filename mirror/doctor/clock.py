"""The time: not before this program was installed, not moved while we look, and what others say it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import mirror
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.threads import in_thread

NAME, OTHERS = "clock", "clock of others"
RELEASED = datetime(2025, 1, 1, tzinfo=UTC).timestamp()
"""No version of this program is older."""
TOLERATED = 86_400.0
"""Seconds that files may be newer than now: time zones are mistaken in images, too."""
MOVED = 1.0
FAR = 60.0
"""Seconds from which on a clock counts as moved, or as wrong: tokens and certificates are good for minutes."""

_SET = "set it right, and keep it so: timedatectl set-ntp true, or chronyd; in a container it is the host's"
_BEGAN = time.time() - time.monotonic()


async def look(case: Case) -> Sequence[Finding]:
    """Judge our own clock. It is the last check, so that the others are what happens meanwhile."""
    installed = await in_thread(_installed)
    return [judge(time.time(), installed=installed, moved=time.time() - time.monotonic() - _BEGAN)]


def judge(now: float, *, installed: float, moved: float) -> Finding:
    """Judge a time in Unix seconds. installed: when this program was. moved: seconds the clock was set meanwhile."""
    shown = _shown(now)
    if now < max(RELEASED, installed - TOLERATED):
        return problem(NAME, f"{shown} is before this program was made ({_shown(installed)})", _SET, time=now)
    if abs(moved) > MOVED:
        return warning(NAME, f"{shown}; it was set by {moved:+.1f} s meanwhile", _SET, time=now, moved_seconds=moved)
    return ok(NAME, shown, time=now)


def compared(ahead: Mapping[str, float]) -> list[Finding]:
    """Judge our clock by those of others. ahead: seconds by which each is ahead of us."""
    if not ahead:
        return []
    middle = statistics.median(ahead.values())  # one that is wrong itself decides nothing
    facts = {"ahead_seconds": {who: round(seconds, 1) for who, seconds in ahead.items()}}
    if abs(middle) > FAR:
        text = f"{abs(middle):.0f} s {'ahead of' if middle > 0 else 'behind'} ours"
        return [warning(OTHERS, text, _SET, **facts)]
    return [ok(OTHERS, f"as ours, within {max(1.0, abs(middle)):.0f} s", **facts)]


def _installed() -> float:
    """Return when the files of this program were written, or what is certain without them."""
    try:
        return Path(mirror.__file__).stat().st_mtime
    except OSError:
        return RELEASED


def _shown(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
