"""What the folder must be able to do, tried: to write and keep, to link and rename, to lock, to share memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, skipped, warning
from mirror.doctor.folders import standing_for
from mirror.doctor.threads import in_thread
from mirror.store.trial import SIZE, TrialFailed, try_folder

NAME = "disk"
SLOW = 1.0
"""Seconds for one sync above which pushes, and the ends of pulls, are slow for everybody."""

_FULL = "free some space there, or choose a folder on another disk with storage.root"
_UNABLE = "choose a folder on a local disk (ext4, xfs, btrfs, zfs) with storage.root"
_WRITES = "give this user the right to write there, or choose another folder with storage.root"


async def look(case: Case) -> Sequence[Finding]:
    """Try it in a folder that is removed again."""
    return [await in_thread(_look, case.root)]


def _look(root: Path) -> Finding:
    there = standing_for(root)
    if not there.is_dir():
        return skipped(NAME, f"not tried: {there} is no folder")
    try:
        tried = try_folder(there)
    except TrialFailed as failed:
        advice = _FULL if failed.full else _WRITES if failed.doing in ("make a folder", "write") else _UNABLE
        return problem(
            NAME, f"in {there} the service cannot {failed.doing}: {failed.reason}", advice, doing=failed.doing
        )
    facts = {"sync_seconds": round(tried.sync, 6), "bytes": SIZE}
    text = f"written, synced ({_time(tried.sync)}), read back, linked, renamed, locked and shared"
    if tried.sync > SLOW:
        return warning(NAME, text, "give it a faster disk: each push, and each pull's end, waits for this", **facts)
    return ok(NAME, text, **facts)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
