"""How often images are pulled, and how much of what repositories answer was here: counted for as long as it is kept.

``cache.index/usage.db``, one SQLite database for all processes:

    pull      repository and digest → how often its manifest was given out by GET
    traffic   repository → answers and bytes from what was kept, and those an upstream was needed for;
              ``upstream|`` without a repository is all of an upstream, ``|`` all of our own
    meta      since when there are counts

A request costs some dictionary entries. They are added to the tables every few seconds, in the batch that notes what
was used, as one transaction, so processes never lose each other's counts; a process that is killed loses what it had
not written yet. There is an end to the rows: those with least go first. Nothing depends on these numbers.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from mirror.oci.names import Repository

log = logging.getLogger("mirror.store")

FILE = "usage.db"
"""Its name in the folder of the index."""
MOST_ROWS = 20_000
"""Rows of each table. When there are more, a tenth of them goes."""
MOST_WAITING = 20_000
"""Rows counted in memory between two writes; what is beyond is not counted."""
PULLS = "SELECT repository, digest, pulls, last FROM {schema}.pull"
TRAFFIC = "SELECT repository, hits, misses, hit_bytes, miss_bytes FROM {schema}.traffic"
SINCE = "SELECT value FROM {schema}.meta WHERE key = 'since'"
"""What is in it, for who adds up."""
NO_PULLS = "SELECT '' AS repository, '' AS digest, 0 AS pulls, 0.0 AS last WHERE 0"
NO_TRAFFIC = "SELECT '' AS repository, 0 AS hits, 0 AS misses, 0 AS hit_bytes, 0 AS miss_bytes WHERE 0"
NO_SINCE = "SELECT 0.0 WHERE 0"
"""The same, where there is none."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pull (
    repository TEXT NOT NULL, digest TEXT NOT NULL, pulls INTEGER NOT NULL, last REAL NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traffic (
    repository TEXT PRIMARY KEY, hits INTEGER NOT NULL, misses INTEGER NOT NULL, hit_bytes INTEGER NOT NULL,
    miss_bytes INTEGER NOT NULL, last REAL NOT NULL) WITHOUT ROWID;
"""


_Answers = list[int]
"""Of a repository: hits, misses, and the bytes of either."""


class Tally:
    """The counts of one process, and the tables of all. ``note`` is for the event loop, the rest for one thread."""

    def __init__(self, path: Path, *, most: int = MOST_ROWS, clock: Callable[[], float] = time.time) -> None:
        """path: of the database. most: rows of each table. clock: Unix seconds."""
        self._path = path
        self._most = most
        self._clock = clock
        self._pulls: dict[tuple[str, str], int] = {}
        self._answers: dict[str, _Answers] = {}
        self._database: sqlite3.Connection | None = None

    def note(self, repository: Repository, *, pulled: str | None, hit: bool, nbytes: int) -> None:
        """Count an answer with content, in memory. pulled: the digest of a manifest that was got. nbytes: sent."""
        answers, pulls, key = self._answers, self._pulls, repository.key
        found = answers.get(key)
        if found is None:
            if len(answers) >= MOST_WAITING:
                return
            found = answers[key] = [0, 0, 0, 0]
        at = 0 if hit else 1
        found[at] += 1
        found[at + 2] += nbytes
        if pulled is not None and ((key, pulled) in pulls or len(pulls) < MOST_WAITING):
            pulls[key, pulled] = pulls.get((key, pulled), 0) + 1

    def take(self) -> Counted | None:
        """Return what was counted since, and begin anew; None when there was nothing."""
        if not self._answers:
            return None
        found = Counted(self._pulls, self._answers)
        self._pulls, self._answers = {}, {}
        return found

    # ---- in one thread ----

    def open(self) -> None:
        """Open the tables, laying them out when they are new. Raises: sqlite3.Error."""
        self._path.touch(mode=0o600)
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
        _enable_wal(self._database)
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("BEGIN IMMEDIATE")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            self._database.execute(statement)
        self._database.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('since', ?)", (self._clock(),))
        self._database.execute("COMMIT")

    def add(self, counted: Counted) -> None:
        """Add counts to the tables: all of them or none. Raises: sqlite3.Error."""
        assert self._database is not None
        database, now = self._database, self._clock()
        sums: dict[str, _Answers] = {}
        for key, answers in counted.answers.items():
            whole = f"{key.partition('|')[0]}|"
            sums[whole] = [sum(pair) for pair in zip(sums.get(whole, (0, 0, 0, 0)), answers, strict=True)]
        database.execute("BEGIN IMMEDIATE")
        try:
            database.executemany(
                "INSERT INTO pull (repository, digest, pulls, last) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " pulls = pulls + excluded.pulls, last = excluded.last",
                [(key, digest, pulls, now) for (key, digest), pulls in counted.pulls.items()],
            )
            database.executemany(
                "INSERT INTO traffic (repository, hits, misses, hit_bytes, miss_bytes, last) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET hits = hits + excluded.hits, misses = misses + excluded.misses,"
                " hit_bytes = hit_bytes + excluded.hit_bytes, miss_bytes = miss_bytes + excluded.miss_bytes,"
                " last = excluded.last",
                [(key, *answers, now) for key, answers in (*counted.answers.items(), *sums.items())],
            )
            self._bound(database, "pull", "repository, digest", "pulls")
            self._bound(database, "traffic", "repository", "hits + misses")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the tables; doing so twice is harmless."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _bound(self, database: sqlite3.Connection, table: str, key: str, amount: str) -> None:
        """Drop the rows with least, of those the ones that were longest not added to."""
        (rows,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
        if rows > self._most:
            leave = self._most - self._most // 10  # so that what is new has room to grow
            database.execute(
                f"DELETE FROM {table} WHERE ({key}) IN"
                f" (SELECT {key} FROM {table} ORDER BY {amount}, last LIMIT {rows - leave})"
            )


class Counted(NamedTuple):
    """What a process counted for a while. pulls: by repository and digest. answers: by repository."""

    pulls: Mapping[tuple[str, str], int]
    answers: Mapping[str, _Answers]


def _enable_wal(database: sqlite3.Connection) -> None:
    """Switch to WAL. Several processes doing so at the start of a new database collide: ask again."""
    for attempt in range(100):
        try:
            database.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(0.02)
