"""The metadata in SQLite: one database in WAL mode, shared by all processes.

Reads run on the event loop, through one read-only connection. Writes run in one thread; what is asked while
a transaction runs goes into the next one together. One transaction per acknowledged change.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirror.metadata.base import TagRecord
from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.manifest import Manifest
from mirror.oci.names import Digest, Repository, Tag, parse_digest, try_digest

VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifest (
    digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, size INTEGER NOT NULL,
    artifact_type TEXT, subject TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS public (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS link (
    repository TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS child (
    repository TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tag (
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL,
    size INTEGER NOT NULL, origin TEXT NOT NULL, checked_at REAL NOT NULL, fresh_until REAL NOT NULL,
    retry_at REAL NOT NULL, trouble TEXT, previous TEXT, PRIMARY KEY (repository, tag)) WITHOUT ROWID;
"""

Write = Callable[[sqlite3.Connection], None]


class SqliteMetadata:
    """The metadata of one root. Made and used on one event loop."""

    def __init__(self, path: Path, database: str) -> None:
        self._path = path
        self._database = database
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="metadata")
        self._waiting: list[tuple[Write, asyncio.Future[None]]] = []
        self._batch: asyncio.Task[None] | None = None
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Open the database, laying it out when it is new.

        Raises: StorageFailed when it is another root's, of a newer version, or damaged.
        """
        loop = asyncio.get_running_loop()
        self._writer = await loop.run_in_executor(self._thread, _open_writer, self._path, self._database)
        self._reader = await loop.run_in_executor(self._thread, _open_reader, self._path)

    async def close(self) -> None:
        if self._batch:
            await asyncio.gather(self._batch, return_exceptions=True)
        if self._reader:
            self._reader.close()
        if self._writer:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._writer.close)
        self._thread.shutdown(wait=False)  # it is idle: all it did was waited for

    # ---- reads ----

    def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        row = self._one(
            "SELECT digest, media_type, size, origin, checked_at, fresh_until, retry_at, trouble, previous"
            " FROM tag WHERE repository = ? AND tag = ?",
            (repository.key, tag),
        )
        if row is None:
            return None
        return TagRecord(
            repository=repository,
            tag=tag,
            digest=parse_digest(row[0]),
            media_type=row[1],
            size=row[2],
            origin=row[3],
            checked_at=row[4],
            fresh_until=row[5],
            retry_at=row[6],
            trouble=row[7],
            previous=try_digest(row[8]),
        )

    def media_type(self, digest: Digest) -> str | None:
        row = self._one("SELECT media_type FROM manifest WHERE digest = ?", (str(digest),))
        return row[0] if row else None

    def may_read(self, repository: Repository, digest: Digest) -> bool:
        text = str(digest)
        if self._one("SELECT 1 FROM link WHERE repository = ? AND digest = ?", (repository.key, text)):
            return True
        return repository.source is not None and self._one("SELECT 1 FROM public WHERE digest = ?", (text,)) is not None

    def expected_size(self, repository: Repository, digest: Digest) -> int | None:
        row = self._one("SELECT size FROM child WHERE repository = ? AND digest = ?", (repository.key, str(digest)))
        return row[0] if row else None

    # ---- writes ----

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, public: bool) -> None:
        descriptor = manifest.descriptor
        key = repository.key

        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT OR REPLACE INTO manifest (digest, media_type, size, artifact_type, subject)"
                " VALUES (?, ?, ?, ?, ?)",
                (
                    str(descriptor.digest),
                    descriptor.media_type,
                    descriptor.size,
                    descriptor.artifact_type,
                    str(manifest.subject.digest) if manifest.subject else None,
                ),
            )
            database.executemany(
                "INSERT OR REPLACE INTO child (repository, digest, size) VALUES (?, ?, ?)",
                [(key, str(child.digest), child.size) for child in manifest.children],
            )
            _grant(database, key, descriptor.digest, public)

        await self._write(write)

    async def put_tag(self, record: TagRecord) -> None:
        key = record.repository.key

        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "INSERT OR REPLACE INTO tag (repository, tag, digest, media_type, size, origin, checked_at,"
                " fresh_until, retry_at, trouble, previous) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key,
                    record.tag,
                    str(record.digest),
                    record.media_type,
                    record.size,
                    record.origin,
                    record.checked_at,
                    record.fresh_until,
                    record.retry_at,
                    record.trouble,
                    str(record.previous) if record.previous else None,
                ),
            )

        await self._write(write)

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        row = (repository.key, tag)
        await self._write(lambda db: _do(db, "DELETE FROM tag WHERE repository = ? AND tag = ?", row))

    async def note_trouble(self, repository: Repository, tag: Tag, *, retry_at: float, trouble: str) -> None:
        row = (retry_at, trouble, repository.key, tag)
        await self._write(
            lambda db: _do(db, "UPDATE tag SET retry_at = ?, trouble = ? WHERE repository = ? AND tag = ?", row)
        )

    async def grant(self, repository: Repository, digest: Digest, *, public: bool) -> None:
        await self._write(lambda db: _grant(db, repository.key, digest, public))

    # ---- one transaction after the other ----

    async def _write(self, write: Write) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, done))
        if self._batch is None or self._batch.done():
            self._batch = asyncio.create_task(self._write_batches(), name="metadata write")
        await done

    async def _write_batches(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error = await self._try([write for write, _ in batch])
            for write, done in batch:
                failed = error
                if len(batch) > 1 and error is not None and not isinstance(error, StorageFailed):
                    failed = await self._try([write])  # one that cannot be done takes no other with it
                if done.cancelled():
                    continue
                if failed is None:
                    done.set_result(None)
                else:
                    done.set_exception(failed)

    async def _try(self, writes: list[Write]) -> Exception | None:
        """Commit writes together. Returns what went wrong."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, writes)
        except Exception as error:
            return error
        return None

    def _commit(self, writes: list[Write]) -> None:
        assert self._writer is not None
        with _database_errors("writing"):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for write in writes:
                    write(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise

    def _one(self, query: str, values: tuple[str, ...]) -> tuple[Any, ...] | None:
        assert self._reader is not None
        with _database_errors("reading"):
            row: tuple[Any, ...] | None = self._reader.execute(query, values).fetchone()
        return row


def _do(database: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> None:
    database.execute(statement, values)


def _grant(database: sqlite3.Connection, key: str, digest: Digest, public: bool) -> None:
    _do(database, "INSERT OR IGNORE INTO link (repository, digest) VALUES (?, ?)", (key, str(digest)))
    if public:
        _do(database, "INSERT OR IGNORE INTO public (digest) VALUES (?)", (str(digest),))


def _open_writer(path: Path, database: str) -> sqlite3.Connection:
    with _database_errors("opening"):
        try:
            path.touch(mode=0o600)  # a newly made file appears with its mode already narrow
        except OSError as error:
            raise StorageFailed(f"{path} cannot be used: {error.strerror}; check who owns it") from error
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            _prepare(connection, path, database)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, database: str) -> None:
    """Lay out a new database, or make sure that it is this root's and of a version we know."""
    _enable_wal(connection)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA mmap_size=0")
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise StorageFailed(f"{path} was written by a newer version of mirror; run that one, or choose another root")
    for statement in _SCHEMA.split(";"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('database', ?)", (database,))
    mine = connection.execute("SELECT value FROM meta WHERE key = 'database'").fetchone()[0]
    if mine != database:
        raise StorageFailed(
            f"{path} belongs to another root (it has id {mine}, the file 'format' beside it says {database}); "
            "put the database and the root that belong together back in one place"
        )
    connection.execute("COMMIT")


def _open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, to be used on the event loop."""
    with _database_errors("opening"):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=1, check_same_thread=False
        )
        connection.execute("PRAGMA mmap_size=0")
        connection.execute("SELECT 1 FROM meta").fetchone()  # opens the files, which the first read would otherwise
    return connection


def _enable_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. Several processes doing so at the start of a new database collide: ask again."""
    for attempt in range(100):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == 99:
                raise
            time.sleep(0.02)  # in the writer's own thread


@contextmanager
def _database_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull("the disk is full: free some space under storage.root") from error
        raise StorageFailed(f"the metadata failed while {doing}: {error}; see the log") from error
