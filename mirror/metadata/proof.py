"""Whether the database of a root is whole: read, and never written, for a bounded time."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from mirror.metadata.files import not_a_file
from mirror.metadata.schema import VERSION

_STEPS = 10_000
"""Instructions of SQLite between two looks at the clock: about a millisecond."""


class Damaged(Exception):
    """The database cannot be used. advice: what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


class Unread(Exception):
    """The database cannot be judged without changing something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """What was found. complete: all of it was read in the time there was. version: of its tables."""

    complete: bool
    version: int


def prove(path: Path, identity: str, *, in_use: bool, within: float) -> Whole:
    """Read a database. Blocks for at most about ``within`` seconds.

    identity: of the root it must belong to. in_use: a service has it open.
    Raises: Damaged; Unread.
    """
    if (other := not_a_file(path)) is not None:
        raise Damaged(f"{other.name} is no file", _ADVICE)
    log, shared = path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")
    unfinished = log.exists() and log.stat().st_size > 0
    if in_use or (unfinished and shared.exists()):
        options = "mode=ro"
    elif unfinished:
        raise Unread("it was not closed, and its index is gone: the next start puts it in order")
    else:
        options = "mode=ro&immutable=1"  # else a log and an index would be made beside it
    deadline = time.monotonic() + within
    complete = True
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=1)
        ) as database:
            version = int(database.execute("PRAGMA user_version").fetchone()[0])
            if version > VERSION:
                raise Damaged(
                    f"it was written by a newer version of mirror (tables {version}, this one knows {VERSION})",
                    "run that version, or choose another storage.root",
                )
            mine = database.execute("SELECT value FROM meta WHERE key = 'database'").fetchone()
            if mine is None or mine[0] != identity:
                raise Damaged(
                    "it belongs to another root than the file 'format' beside it",
                    "put the database and the root that belong together back in one place",
                )
            database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            try:
                problems = [str(row[0]) for row in database.execute("PRAGMA quick_check(3)")]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                complete, problems = False, []
    except sqlite3.Error as error:
        raise Damaged(f"it cannot be read: {error}", _ADVICE) from error
    if problems not in ([], ["ok"]):
        raise Damaged(f"it is damaged: {problems[0].splitlines()[-1][:160]}", _ADVICE)
    return Whole(complete=complete, version=version)


_ADVICE = 'stop the service, keep a copy of the folder, and restore a backup into a new one with "mirror store restore"'
