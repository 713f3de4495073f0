"""The folder everything is kept in: there or to be made, ours, on a disk that can be relied on, and whose it is now."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Sequence
from pathlib import Path

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.folders import standing_for
from mirror.doctor.threads import in_thread
from mirror.oci.errors import StorageFailed
from mirror.server.owner import owner_of
from mirror.store.root import LAYOUT, NETWORK, RootAbsent, file_system, find_root

FOLDER, FILE_SYSTEM, FORMAT, SERVED = "root", "root file system", "root format", "root owner"

_PASSING = {
    "tmpfs": "is gone when the machine restarts, and takes memory",
    "ramfs": "is gone when the machine restarts, and takes memory",
    "overlay": "is the container's own layer: gone with it, and slow",
    "aufs": "is the container's own layer: gone with it, and slow",
}
"""File systems that work and are seldom meant → why."""


async def look(case: Case) -> Sequence[Finding]:
    """Look at the folder without touching it."""
    return await in_thread(_look, case.root)


def _look(root: Path) -> list[Finding]:
    there = standing_for(root)
    try:
        return [_folder(root, there), _file_system(root, there), *_inside(root)]
    except OSError as error:
        return [
            problem(
                FOLDER,
                f"{error.filename or root} cannot be looked at: {error.strerror}",
                f"give {_me()} the right to, or choose another folder with storage.root",
                path=str(root),
            )
        ]


def _folder(root: Path, there: Path) -> Finding:
    """Judge whether it is, or can become, a folder of ours."""
    facts = {"path": str(root), "exists": there == root}
    found = there.stat()
    owner = _user(found.st_uid)
    where = f"{root}" if there == root else f"{root} is to be made: {there}"
    if not stat.S_ISDIR(found.st_mode):
        return problem(
            FOLDER, f"{there} is a file", "move it away, or choose another folder with storage.root", **facts
        )
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        if os.statvfs(there).f_flag & os.ST_RDONLY:
            text, advice = f"{where} is mounted read-only", f"mount it for writing: mount -o remount,rw {_mount(there)}"
        else:
            text = f"{where} cannot be written by {_me()}; it is {owner}'s, mode {stat.filemode(found.st_mode)}"
            advice = f"chown -R {os.geteuid()}:{os.getegid()} {there}"
            if there != root:
                advice = (
                    f"make it and give it to that user: install -d -m 700 -o {os.geteuid()} -g {os.getegid()} {root}"
                )
        return problem(FOLDER, text, f"{advice}; or choose another folder with storage.root", **facts)
    if there != root:
        return ok(FOLDER, f"{root} is made at the first start, in {there}", **facts)
    facts |= {"owner": found.st_uid, "mode": f"{stat.S_IMODE(found.st_mode):04o}"}
    if found.st_uid != os.geteuid():
        return warning(
            FOLDER,
            f"{root} is {owner}'s and this is {_me()}: a service that runs as the other cannot use what this one makes",
            f"run both as one user: mirror doctor as {owner}, or chown -R {os.geteuid()}:{os.getegid()} {root}",
            **facts,
        )
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return warning(FOLDER, f"{root} can be changed by every user here", f"chmod 700 {root}", **facts)
    return ok(FOLDER, f"{root}, {owner}'s, mode {facts['mode']}", **facts)


def _file_system(root: Path, there: Path) -> Finding:
    kind = file_system(there)
    facts = {"kind": kind or None}
    if kind in NETWORK:
        return problem(
            FILE_SYSTEM,
            f"{there} is on a network file system ({kind}), whose locks and links cannot be relied on",
            "choose a folder on a local disk with storage.root",
            **facts,
        )
    if kind in _PASSING:
        return warning(
            FILE_SYSTEM,
            f"{there} is on {kind}, which {_PASSING[kind]}",
            "mount a disk, or a volume, at it; or choose another folder with storage.root",
            **facts,
        )
    return ok(FILE_SYSTEM, kind or "of a kind that cannot be told", **facts)


def _inside(root: Path) -> list[Finding]:
    """Judge what it is laid out as, and by whom it is served."""
    try:
        find_root(root)
    except RootAbsent:
        if root.is_dir() and any(root.iterdir()):
            return [
                warning(
                    FORMAT,
                    f"{root} has files in it, and none of a mirror's",
                    "give the mirror a folder of its own with storage.root",
                    layout=None,
                )
            ]
        return [ok(FORMAT, "new: nothing is kept yet", layout=None)]
    except StorageFailed as error:
        text, _, advice = error.message.partition("; ")
        return [problem(FORMAT, text, advice)]
    holder = owner_of(root)
    served = f"served by {holder}" if holder else "nobody serves it now"
    return [ok(FORMAT, f"layout {LAYOUT}", layout=LAYOUT), ok(SERVED, served, holder=holder)]


def _mount(path: Path) -> Path:
    while not path.is_mount():
        path = path.parent
    return path


def _me() -> str:
    return f"this user ({_user(os.geteuid())})"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # usual in containers
        return f"uid {number}"
