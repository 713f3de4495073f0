"""The metadata: read through, as far as it goes in some seconds, and never written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, skipped
from mirror.doctor.threads import in_thread
from mirror.logs.amounts import size
from mirror.metadata.proof import Damaged, Unread, prove
from mirror.oci.errors import StorageFailed
from mirror.server.owner import owner_of
from mirror.store.root import RootAbsent, find_root

NAME = "metadata"
WITHIN = 10.0
"""Seconds it is read for."""


async def look(case: Case) -> Sequence[Finding]:
    """Judge the database of the root, if there is one."""
    return [await in_thread(_look, case.root)]


def _look(path: Path) -> Finding:
    try:
        root = find_root(path)
    except RootAbsent:
        return skipped(NAME, "there is none yet")
    except StorageFailed:
        return skipped(NAME, "not read: the root is not a usable one")
    if not root.metadata.exists():
        return skipped(NAME, "there is none yet")
    try:
        found = prove(root.metadata, root.database, in_use=owner_of(path) is not None, within=WITHIN)
    except Damaged as damaged:
        return problem(NAME, f"{root.metadata}: {damaged}", damaged.advice)
    except Unread as unread:
        return skipped(NAME, f"not read: {unread}")
    except OSError as error:
        return problem(NAME, f"{root.metadata}: {error.strerror}", "give this user the right to read it")
    length = root.metadata.stat().st_size
    much = "" if found.complete else f", as far as it was read in {WITHIN:g} s"
    return ok(NAME, f"{size(length)}, whole{much}", bytes=length, complete=found.complete, tables=found.version)
