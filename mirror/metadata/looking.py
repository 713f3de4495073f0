"""Looking at a root's databases from outside, whether anybody has them open or not: nothing is written, ever.

A database in WAL mode is three files while it is open, and one when it was closed. Who merely reads it would make the
other two, and might own them then. So:

    there is a log (-wal)    somebody has it open, or was killed: its shared memory is read, and never written;
                             without anybody in it, SQLite puts together in memory what the log says
    there is none            nobody has it open, so it is read as a file that does not change; when it turns out that
                             somebody opened it meanwhile, what was read is void, and it is read again
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from mirror.metadata.database import Database, Write, database_errors
from mirror.metadata.files import not_a_file
from mirror.metadata.schema import SCHEMA, VERSION
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed
from mirror.oci.names import Digest, Repository

T = TypeVar("T")

_ATTEMPTS = 5


class _State(NamedTuple):
    """quiet: nobody has a database open. modified, size: what changes when somebody writes to it."""

    quiet: bool
    modified: int = 0
    size: int = 0


class Look:
    """A read-only connection to one database, and others attached to it."""

    def __init__(self, path: Path, identity: str, *, beside: Mapping[str, Path] = {}) -> None:
        """Open it. identity: the id it must have. beside: further databases by the name they get in it.

        Raises: StorageFailed when it is not there, another root's, or of another version.
        """
        if not path.exists():
            raise StorageFailed(f"{path} is not there: start the service once, which makes it")
        self._files = {one: _state(one) for one in (path, *beside.values())}
        with database_errors("opening"):
            self.connection = sqlite3.connect(_address(path), uri=True, isolation_level=None, check_same_thread=False)
        try:
            with database_errors("opening"):
                for name, other in beside.items():
                    self.connection.execute(f"ATTACH ? AS {name}", (_address(other),))
            _check(self.connection, path, identity)
        except BaseException:
            self.connection.close()
            raise

    def holds(self) -> bool:
        """Say whether what was read holds: nobody opened a database that nobody had open."""
        return not any(before.quiet and _state(path) != before for path, before in self._files.items())

    def close(self) -> None:
        """Close it; doing so twice is harmless."""
        self.connection.close()


class LookingDatabase(Database):
    """A ``Database`` for who only looks: what it would note is forgotten, as nobody needs to know that."""

    def __init__(self, path: Path, identity: str) -> None:
        super().__init__(path, identity)
        self._looks: list[Look] = []

    async def start(self) -> None:
        """Open it; with an identity of "" there is none, and so nothing in it.

        Raises: StorageFailed when it is not there, another root's, or of another version.
        """
        loop = asyncio.get_running_loop()
        if not self._identity:
            self._reader = await loop.run_in_executor(self._listing, _nothing)
            self._lister = await loop.run_in_executor(self._listing, _nothing)
            return
        for _ in range(2):
            self._looks.append(await loop.run_in_executor(self._listing, Look, self._path, self._identity))
        self._reader, self._lister = (found.connection for found in self._looks)

    async def unchanged(self) -> bool:
        """Say whether all that was read holds: nobody opened a database that nobody had open."""
        loop = asyncio.get_running_loop()
        return all([await loop.run_in_executor(self._listing, found.holds) for found in self._looks])

    async def write(self, write: Write[T], *, durable: bool = False) -> T:
        """Do nothing."""
        return cast("T", None)


class LookingMetadata(SqliteMetadata):
    """The metadata of one root, for who only looks; and what only people ask."""

    def __init__(self, path: Path, database: str) -> None:
        super().__init__(path, database, opener=self._opened)

    def _opened(self, path: Path, database: str) -> Database:
        self._looking = LookingDatabase(path, database)
        return self._looking

    async def unchanged(self) -> bool:
        """Say whether all that was read holds; else it has to be read again, by another one of these."""
        return await self._looking.unchanged()

    def is_public(self, digest: Digest) -> bool:
        """Say whether content was fetched without credentials, and so is read through any upstream's repository."""
        return self._looking.one("SELECT 1 FROM public WHERE digest = ?", (str(digest),)) is not None

    async def readers(self, digest: Digest, *, n: int) -> list[str]:
        """Return up to ``n`` repositories that have shown a right to content, or had it pushed to them."""
        rows = await self._looking.many(
            "SELECT repository FROM link WHERE digest = ? UNION SELECT repository FROM pushed WHERE digest = ?"
            " ORDER BY repository LIMIT ?",
            (str(digest), str(digest), n),
        )
        return [str(Repository.from_key(key)) for (key,) in rows]


def look(make: Callable[[], Look], read: Callable[[Look], T]) -> T:
    """Read from databases, again when somebody began to write to them meanwhile. Blocks.

    Raises: StorageFailed; what ``read`` does.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with contextlib.closing(make()) as found:
                result = read(found)
                if found.holds():
                    return result
        except StorageFailed:
            if attempt == _ATTEMPTS - 1:
                raise  # a file that was closed, or opened, between two looks at it may have been the reason
    raise StorageFailed("the metadata is opened and closed all the time; try again")


def _nothing() -> sqlite3.Connection:
    """Return a connection to a database without rows, in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    for statement in filter(str.strip, SCHEMA.split(";")):
        connection.execute(statement)
    return connection


def _address(path: Path) -> str:
    """Return what opens a database without writing. Raises: StorageFailed when it cannot be one."""
    if (other := not_a_file(path)) is not None:
        raise StorageFailed(f"{other} is no file; put back what was there")
    if not os.path.exists(f"{path}-wal"):
        return f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    if not os.path.exists(f"{path}-shm"):
        raise StorageFailed(f"{path} was copied while it was in use: start the service on it once, which mends it")
    return f"{path.absolute().as_uri()}?mode=ro&readonly_shm=1"


def _state(path: Path) -> _State:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return _State(quiet=True)
    return _State(not os.path.exists(f"{path}-wal"), found.st_mtime_ns, found.st_size)


def _check(connection: sqlite3.Connection, path: Path, identity: str) -> None:
    with database_errors("opening"):
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            raise StorageFailed(f"{path} was written by a newer version of mirror; use that one")
        if version < VERSION:
            raise StorageFailed(f"{path} is of an older version; start the service once, which brings it up to date")
        mine = connection.execute("SELECT value FROM meta WHERE key = 'database'").fetchone()
    if mine is None or mine[0] != identity:
        raise StorageFailed(f"{path} belongs to another root; put what belongs together back in one place")
