"""Room on the disk: bytes and inodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.folders import standing_for
from mirror.doctor.threads import in_thread
from mirror.logs.amounts import size

BYTES, INODES = "space", "inodes"
GIB = 1024**3
LOW, LOW_BYTES, NONE = 0.10, 5 * GIB, 0.01
"""Shares of the whole, and bytes, below which there is a warning, or a problem."""

_ADVICE = "free some space there, make the disk larger, or choose a folder on another one with storage.root"


async def look(case: Case) -> Sequence[Finding]:
    """Judge what is free for this user."""
    return await in_thread(_look, case.root)


def _look(root: Path) -> list[Finding]:
    there = standing_for(root)
    try:
        found = os.statvfs(there)
    except OSError as error:
        return [problem(BYTES, f"{there} cannot be looked at: {error.strerror}", _ADVICE)]
    return [
        judge_bytes(free=found.f_bavail * found.f_frsize, whole=found.f_blocks * found.f_frsize),
        judge_inodes(free=found.f_favail, whole=found.f_files),
    ]


def judge_bytes(*, free: int, whole: int) -> Finding:
    """Judge the bytes this user may still write. whole: of the file system; 0 when it does not say."""
    share = free / whole if whole else 1.0
    text = f"{size(free)} of {size(whole)} free ({share:.1%})"
    facts = {"free_bytes": free, "whole_bytes": whole}
    if share < NONE:
        return problem(BYTES, text, _ADVICE, **facts)
    if whole and (share < LOW or free < LOW_BYTES):
        return warning(BYTES, text, _ADVICE, **facts)
    return ok(BYTES, text, **facts)


def judge_inodes(*, free: int, whole: int) -> Finding:
    """Judge the files this user may still make. whole: 0 where there is no such limit."""
    if not whole:
        return ok(INODES, "the file system sets no limit", free=None, whole=None)
    share = free / whole
    text, facts = f"{free} of {whole} free ({share:.1%})", {"free": free, "whole": whole}
    advice = "remove small files there, or make the file system anew with more inodes (mkfs.ext4 -N)"
    if share < NONE:
        return problem(INODES, text, advice, **facts)
    if share < LOW:
        return warning(INODES, text, advice, **facts)
    return ok(INODES, text, **facts)
