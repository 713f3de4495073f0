"""One SQLite database in WAL mode, shared by all processes: opened, laid out, written in batches.

Reads by primary key run on the event loop, through one read-only connection; lists in a thread, through another.
Writes run in one thread; what is asked while a transaction runs goes into the next one together, and one that
must survive a loss of power takes the others with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mirror.metadata.schema import SCHEMA, VERSION, migrate
from mirror.oci.errors import RegistryError, StorageFailed, StorageFull

T = TypeVar("T")
Write = Callable[[sqlite3.Connection], T]
Row = tuple[Any, ...]


@dataclass(slots=True)
class _Waiting:
    write: Write[Any]
    done: asyncio.Future[Any]
    durable: bool


class Database:
    """The database of one root. Made and used on one event loop."""

    def __init__(self, path: Path, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="metadata")
        self._listing = ThreadPoolExecutor(1, thread_name_prefix="metadata lists")
        self._waiting: list[_Waiting] = []
        self._batch: asyncio.Task[None] | None = None
        self._reader: sqlite3.Connection | None = None
        self._lister: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None

    async def start(self) -> None:
        """Open the database, laying it out when it is new.

        Raises: StorageFailed when it is another root's, of a newer version, or damaged.
        """
        loop = asyncio.get_running_loop()
        self._writer = await loop.run_in_executor(self._writing, open_writer, self._path, self._identity)
        self._reader = await loop.run_in_executor(self._writing, open_reader, self._path)
        self._lister = await loop.run_in_executor(self._listing, open_reader, self._path)

    async def close(self) -> None:
        if self._batch:
            await asyncio.gather(self._batch, return_exceptions=True)
        loop = asyncio.get_running_loop()
        if self._reader:
            self._reader.close()
        if self._lister:
            await loop.run_in_executor(self._listing, self._lister.close)
        if self._writer:
            await loop.run_in_executor(self._writing, self._writer.close)
        for thread in (self._writing, self._listing):
            thread.shutdown(wait=False)  # idle: all they did was waited for

    def one(self, query: str, values: Sequence[object]) -> Row | None:
        """Return the first row, on the event loop: for reads by primary key."""
        assert self._reader is not None
        with database_errors("reading"):
            row: Row | None = self._reader.execute(query, values).fetchone()
        return row

    async def many(self, query: str, values: Sequence[object], *, room: int | None = None) -> list[Row]:
        """Return all rows of a query, in a thread. room: characters of text; the row that exceeds it is the last."""
        loop = asyncio.get_running_loop()
        if room is not None:
            return await loop.run_in_executor(self._listing, self._within, query, values, room)
        return await loop.run_in_executor(self._listing, self._many, query, values)

    async def write(self, write: Write[T], *, durable: bool = False) -> T:
        """Run a function in a transaction and return what it does once that is committed.

        What it raises ends the transaction, and takes no other's write with it. durable: survives a loss of power;
        who is cancelled waits for its end all the same, as the lease it is written under is released next.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(write, done, durable))
        if self._batch is None or self._batch.done():
            self._batch = asyncio.create_task(self._write_batches(), name="metadata write")
        if not durable:
            return await done
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await asyncio.gather(done, return_exceptions=True)
            raise

    def _many(self, query: str, values: Sequence[object]) -> list[Row]:
        assert self._lister is not None
        with database_errors("reading"):
            return self._lister.execute(query, values).fetchall()

    def _within(self, query: str, values: Sequence[object], room: int) -> list[Row]:
        assert self._lister is not None
        rows: list[Row] = []
        with database_errors("reading"), contextlib.closing(self._lister.execute(query, values)) as cursor:
            for row in cursor:
                rows.append(row)
                room -= sum(len(value) for value in row if isinstance(value, str))
                if room < 0:
                    break
        return rows

    async def _write_batches(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            results = await self._try(batch)
            if len(batch) > 1 and isinstance(results, Exception) and not isinstance(results, StorageFailed):
                results = await self._one_by_one(batch)  # one that cannot be done takes no other with it
            for at, one in enumerate(batch):
                result = results if isinstance(results, Exception) else results[at]
                if one.done.cancelled():
                    continue
                if isinstance(result, Exception):
                    one.done.set_exception(result)
                else:
                    one.done.set_result(result)

    async def _one_by_one(self, batch: list[_Waiting]) -> list[Any]:
        found: list[Any] = []
        for one in batch:
            result = await self._try([one])
            found.append(result if isinstance(result, Exception) else result[0])
        return found

    async def _try(self, batch: list[_Waiting]) -> list[Any] | Exception:
        """Commit writes together. Returns what they returned, or what went wrong."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._writing, self._commit, batch)
        except Exception as error:
            return error

    def _commit(self, batch: list[_Waiting]) -> list[Any]:
        assert self._writer is not None
        database = self._writer
        with database_errors("writing"):
            level = "FULL" if any(one.durable for one in batch) else "NORMAL"
            database.execute(f"PRAGMA synchronous={level}")  # FULL: the log is synced by each commit
            database.execute("BEGIN IMMEDIATE")
            try:
                results = [one.write(database) for one in batch]
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise
        return results


def open_writer(path: Path, identity: str) -> sqlite3.Connection:
    """Open a connection that writes, laying the database out when it is new. Raises: as ``Database.start``."""
    with database_errors("opening"):
        try:
            path.touch(mode=0o600)  # a newly made file appears with its mode already narrow
        except OSError as error:
            raise StorageFailed(f"{path} cannot be used: {error.strerror}; check who owns it") from error
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            _prepare(connection, path, identity)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, identity: str) -> None:
    """Lay out a new database, or make sure that it is this root's and of a version we know."""
    _enable_wal(connection)
    connection.execute("PRAGMA mmap_size=0")
    connection.execute("BEGIN IMMEDIATE")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise StorageFailed(f"{path} was written by a newer version of mirror; run that one, or choose another root")
    for statement in SCHEMA.split(";"):
        if statement.strip():
            connection.execute(statement)
    migrate(connection, found)
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('database', ?)", (identity,))
    mine = connection.execute("SELECT value FROM meta WHERE key = 'database'").fetchone()[0]
    if mine != identity:
        raise StorageFailed(
            f"{path} belongs to another root (it has id {mine}, the file 'format' beside it says {identity}); "
            "put the database and the root that belong together back in one place"
        )
    connection.execute("COMMIT")


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a read-only connection, which may be used in another thread than this."""
    with database_errors("opening"):
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
def database_errors(doing: str) -> Iterator[None]:
    """Turn what SQLite says into StorageFull or StorageFailed. doing: "writing", for the message."""
    try:
        yield
    except RegistryError:
        raise
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull("the disk is full: free some space under storage.root") from error
        raise StorageFailed(f"the metadata failed while {doing}: {error}; see the log") from error
