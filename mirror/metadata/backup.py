"""The rows of what was pushed, copied into a database of their own and merged back from it.

A copy is taken while others write: one transaction of reading sees the rows of one moment. What content they
need has to be held before they are copied, for its files may be deleted meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.metadata.database import database_errors, open_writer
from mirror.metadata.schema import SCHEMA, VERSION
from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.names import Digest, parse_digest

_OURS = "repository >= '|' AND repository < '}'"
"""Keys of our own repositories begin with the bar."""

_TABLES = {
    "link": ("repository, digest", _OURS),
    "pushed": ("repository, digest, media_type, size, artifact_type, annotations, subject, pushed_at", _OURS),
    "tag": (
        "repository, tag, digest, media_type, size, origin, checked_at, fresh_until, retry_at, trouble, previous",
        _OURS,
    ),
    "repository": ("name, key", _OURS.replace("repository", "key")),
}
"""Tables whose rows are copied: columns, and which rows are of our own repositories."""

_MOVES = "repository, tag, digest, origin, at"

_HOLDERS = ("link", "pushed", "tag")
"""Tables that say what content a repository has."""

_ATTEMPTS = 25
_PAUSE = 0.02  # seconds between two attempts, and longer each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a copy has: repositories, manifests in them, and tags."""

    repositories: int
    manifests: int
    tags: int


class SqliteBackup:
    """The database of one root, for copies of what was pushed. identity: the id it must have. Blocks."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self.identity = identity

    def copy_pushed(self, target: Path, hold: Callable[[set[Digest]], set[Digest]]) -> None:
        """Copy the rows of our own repositories, as they are at one moment, into a new database.

        hold: is given the content those rows need, makes sure that it stays, and returns what is not there. That may
        have been deleted since: a later moment is tried then, a few times. What is missing in all of them was lost.
        Raises: StorageFailed, StorageFull.
        """
        with _copy_errors(target), _created(target) as database:
            database.execute("PRAGMA journal_mode=MEMORY")
            database.execute("PRAGMA synchronous=OFF")  # synced as a whole when it is complete
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {VERSION}")
            _attach(database, "root", self._path)
            for attempt in range(_ATTEMPTS):
                database.execute("BEGIN")
                self._check(database)
                if not hold(_needed(database, "root")):
                    break
                if attempt < _ATTEMPTS - 1:
                    database.execute("COMMIT")
                    time.sleep(_PAUSE * (attempt + 1))  # a command of its own: there is no event loop
            for table, (columns, which) in _TABLES.items():
                database.execute(
                    f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM root.{table} WHERE {which}"
                )
            database.execute(
                f"INSERT INTO main.history (number, {_MOVES}) SELECT number, {_MOVES} FROM root.history WHERE {_OURS}"
            )
            database.execute("COMMIT")

    def merge(self, source: Path, *, at: float) -> int:
        """Put the rows of a copy into the database, in one transaction that survives a loss of power.

        What else is there stays. A tag that both have gets what the copy says. at: Unix seconds, of the entry in a
        tag's history that this makes. Returns how many tags pointed elsewhere before.
        Raises: StorageFailed, StorageFull.
        """
        database = open_writer(self._path, self.identity)
        try:
            with database_errors("restoring"):
                database.execute("PRAGMA temp_store=MEMORY")
                database.execute("PRAGMA synchronous=FULL")
                _attach(database, "backup", source, immutable=True)
                database.execute("BEGIN IMMEDIATE")
                moved = int(database.execute(_MOVED).fetchone()[0])
                for table, (columns, which) in _TABLES.items():
                    database.execute(
                        f"INSERT OR REPLACE INTO main.{table} ({columns})"
                        f" SELECT {columns} FROM backup.{table} WHERE {which}"
                    )
                database.execute(_SAME_TYPE)
                for statement in _MERGE_HISTORY:
                    database.execute(statement)
                database.execute(_NOTE_MOVES, (at,))
                database.execute("COMMIT")
        finally:
            database.close()
        return moved

    def _check(self, database: sqlite3.Connection) -> None:
        """Make sure that the attached database is the root's, and of the version we know."""
        found = database.execute("PRAGMA root.user_version").fetchone()[0]
        if found != VERSION:
            todo = "run that one" if found > VERSION else "start the service on it once, which brings it up to date"
            raise StorageFailed(
                f"{self._path} was written by {'a newer' if found > VERSION else 'an older'} version of mirror; {todo}"
            )
        row = database.execute("SELECT value FROM root.meta WHERE key = 'database'").fetchone()
        if row is None or row[0] != self.identity:
            raise StorageFailed(
                f"{self._path} belongs to another root than the file 'format' beside it; put the database and the "
                "root that belong together back in one place"
            )


class PushedCopy:
    """A database that ``copy_pushed`` made. Blocks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def problem(self) -> str | None:
        """Say why it cannot be restored from, None when it can."""
        try:
            with _opened(self.path) as database:
                if database.execute("PRAGMA user_version").fetchone()[0] > VERSION:
                    return f"{self.path} was written by a newer version of mirror; restore with that one"
                for (answer,) in database.execute("PRAGMA integrity_check").fetchall():
                    if answer != "ok":
                        return f"{self.path} is damaged: {answer}"
                for table, (columns, _) in (*_TABLES.items(), ("history", (_MOVES, ""))):
                    database.execute(f"SELECT {columns} FROM {table} LIMIT 0")
        except sqlite3.Error as error:
            return f"{self.path} is damaged: {error}"
        return None

    def digests(self) -> set[Digest]:
        """Return the content its rows need. Raises: StorageFailed; DigestInvalid for what is no digest."""
        with _copy_errors(self.path), _opened(self.path) as database:
            return _needed(database, "main")

    def counts(self) -> Counts:
        """Count its rows. Raises: StorageFailed."""
        with _copy_errors(self.path), _opened(self.path) as database:
            numbers = [
                int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
                for table in ("repository", "pushed", "tag")
            ]
        return Counts(repositories=numbers[0], manifests=numbers[1], tags=numbers[2])

    def leave_out(self, digests: Iterable[Digest]) -> None:
        """Take out the rows that need content which cannot be had. Raises: StorageFailed, StorageFull."""
        lost = [(str(digest),) for digest in digests]
        with _copy_errors(self.path), _opened(self.path, write=True) as database:
            database.execute("PRAGMA journal_mode=MEMORY")
            database.execute("BEGIN")
            for table in _HOLDERS:
                database.executemany(f"DELETE FROM {table} WHERE digest = ?", lost)
            left = " UNION ".join(f"SELECT repository FROM {table}" for table in _HOLDERS)
            database.execute(f"DELETE FROM repository WHERE key NOT IN ({left})")
            database.execute("COMMIT")


_MOVED = (
    "SELECT count(*) FROM main.tag AS mine JOIN backup.tag AS theirs USING (repository, tag)"
    " WHERE mine.digest <> theirs.digest"
)

_SAME_TYPE = (
    "UPDATE main.tag SET media_type = theirs.media_type FROM backup.pushed AS theirs"
    " WHERE tag.repository = theirs.repository AND tag.digest = theirs.digest"
    f" AND {_OURS.replace('repository', 'theirs.repository')}"
    " AND tag.media_type <> theirs.media_type"
)
"""Tags say the media type of the manifest they are on; what the copy has of that took the place of ours."""

_SINCE = "max(at) OVER (PARTITION BY repository, tag ORDER BY number)"
"""When a move was, by a clock that never goes back: moves of one tag keep their order even where ours did."""

_MERGE_HISTORY = (
    # What the copy knows and we do not; then all that we know of the same tags, written again in one order.
    "CREATE TEMP TABLE moves AS SELECT repository, tag, digest, origin, at, since, 1 AS whose, number FROM"
    f" (SELECT *, {_SINCE} AS since FROM backup.history WHERE {_OURS}) AS theirs WHERE NOT EXISTS"
    " (SELECT 1 FROM main.history AS mine WHERE mine.repository = theirs.repository AND mine.tag = theirs.tag"
    " AND mine.digest IS theirs.digest AND mine.origin = theirs.origin AND mine.at = theirs.at)",
    "CREATE TEMP TABLE moved AS SELECT DISTINCT repository, tag FROM moves",
    "INSERT INTO temp.moves SELECT repository, tag, digest, origin, at, since, 0, number FROM"
    f" (SELECT *, {_SINCE} AS since FROM main.history WHERE (repository, tag) IN (SELECT * FROM temp.moved))",
    "DELETE FROM main.history WHERE (repository, tag) IN (SELECT * FROM temp.moved)",
    f"INSERT INTO main.history ({_MOVES}) SELECT {_MOVES} FROM temp.moves ORDER BY since, whose, number",
)

_NOTE_MOVES = (
    f"INSERT INTO main.history ({_MOVES}) SELECT repository, tag, digest, origin, ? FROM backup.tag AS theirs"
    f" WHERE {_OURS} AND theirs.digest IS NOT (SELECT mine.digest FROM main.history AS mine"
    " WHERE mine.repository = theirs.repository AND mine.tag = theirs.tag ORDER BY mine.number DESC LIMIT 1)"
)


def _needed(database: sqlite3.Connection, schema: str) -> set[Digest]:
    query = " UNION ".join(f"SELECT digest FROM {schema}.{table} WHERE {_OURS}" for table in _HOLDERS)
    return {parse_digest(text) for (text,) in database.execute(query)}


def _attach(database: sqlite3.Connection, schema: str, path: Path, *, immutable: bool = False) -> None:
    database.execute(f"ATTACH ? AS {schema}", (f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' * immutable}",))


@contextmanager
def _created(path: Path) -> Iterator[sqlite3.Connection]:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with _opened(path, write=True) as database:
        yield database


@contextmanager
def _opened(path: Path, *, write: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a copy. What is only read may be on a medium that cannot be written."""
    how = "mode=rw" if write else "mode=ro&immutable=1"
    database = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None, timeout=30)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _copy_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a copy into StorageFull or StorageFailed."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror}") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull(f"the disk is full: writing {path}; free some space there") from error
        raise StorageFailed(f"the rows cannot be copied: {error}; by way of {path}") from error
