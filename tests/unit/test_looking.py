"""Looking at databases from outside: whoever has them open or not, nothing is written, and what is read holds."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mirror.metadata.database import open_writer
from mirror.metadata.looking import Look, LookingMetadata, look
from mirror.oci.errors import StorageFailed
from mirror.oci.names import Repository, RepositoryName, Tag
from tests.metadata import HERE, ID, LOCAL, some_tag

State = dict[str, tuple[int, int, bytes]]


def state(folder: Path) -> State:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_size, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder / "metadata.db"


def add(database: sqlite3.Connection, name: str) -> None:
    database.execute("INSERT INTO repository (name, key) VALUES (?, ?)", (f"up/{name}", f"up|{name}"))


def names(found: Look) -> list[str]:
    return [name for (name,) in found.connection.execute("SELECT name FROM repository ORDER BY name")]


def in_another_process(path: Path, *, kill: bool) -> None:
    """Add a repository as a service does; kill: which then dies and leaves the log behind."""
    program = (
        "import os, pathlib, signal, sys; from mirror.metadata.database import open_writer\n"
        f"d = open_writer(pathlib.Path({str(path)!r}), {ID!r})\n"
        "d.execute(\"INSERT INTO repository VALUES ('up/late', 'up|late')\")\n"
        f"{'os.kill(os.getpid(), signal.SIGKILL)' if kill else 'd.close()'}"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == (-signal.SIGKILL if kill else 0)


@pytest.mark.parametrize("how", ["closed", "killed", "open"])
def test_a_database_is_read_and_not_written(path: Path, how: str) -> None:
    with closing(open_writer(path, ID)) as database:
        add(database, "early")
    in_another_process(path, kill=how != "closed")
    opened = sqlite3.connect(path, isolation_level=None) if how == "open" else None
    if opened is not None:
        opened.execute("SELECT * FROM repository").fetchall()
    files = {entry.name for entry in path.parent.iterdir()}
    assert files == ({path.name} if how == "closed" else {path.name, f"{path.name}-wal", f"{path.name}-shm"})
    before = state(path.parent)
    assert look(lambda: Look(path, ID), names) == ["up/early", "up/late"]
    assert state(path.parent) == before
    if opened is not None:
        opened.close()


def test_what_was_read_while_somebody_began_to_write_is_read_again(path: Path) -> None:
    with closing(open_writer(path, ID)) as database:
        add(database, "early")
    seen: list[list[str]] = []

    def read(found: Look) -> list[str]:
        seen.append(names(found))
        if len(seen) == 1:
            in_another_process(path, kill=False)
        return seen[-1]

    assert look(lambda: Look(path, ID), read) == ["up/early", "up/late"]
    assert len(seen) == 2


def test_who_never_stops_is_told(path: Path) -> None:
    with closing(open_writer(path, ID)):
        pass

    def read(found: Look) -> None:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    with pytest.raises(StorageFailed, match="opened and closed all the time; try again"):
        look(lambda: Look(path, ID), read)


def older(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 1")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def others(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE meta SET value = 'another'")
        database.commit()


def copied(path: Path) -> None:
    in_another_process(path, kill=True)
    os.unlink(f"{path}-shm")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (os.unlink, "is not there: start the service once"),
        (older, "older version; start the service once"),
        (newer, "newer version of mirror; use that one"),
        (others, "belongs to another root"),
        (copied, "was copied while it was in use"),
        (lambda path: path.write_bytes(b"nonsense" * 1000), "file is not a database"),
    ],
    ids=["absent", "older", "newer", "another root's", "copied", "damaged"],
)
def test_what_cannot_be_read_is_said(path: Path, change: Callable[[Path], None], said: str) -> None:
    with closing(open_writer(path, ID)):
        pass
    change(path)
    with pytest.raises(StorageFailed, match=said):
        look(lambda: Look(path, ID), names)


@pytest.fixture
def early(path: Path) -> Path:
    with closing(open_writer(path, ID)) as database:
        add(database, "early")
    return path


async def test_metadata_that_is_looked_at_answers_and_forgets(early: Path) -> None:
    path, before = early, state(early.parent)
    found = LookingMetadata(path, ID)
    await found.start()
    try:
        assert found.exists(Repository("up", RepositoryName("early")))
        await found.put_tag(some_tag())
        assert found.tag(HERE, Tag("v1")) is None
        assert await found.repositories(n=5) == ["up/early"]
        assert await found.unchanged()
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)
        assert not await found.unchanged()
    finally:
        await found.close()
    assert state(path.parent)[path.name][1:] == before[path.name][1:]


async def test_without_a_root_there_is_nothing(tmp_path: Path) -> None:
    found = LookingMetadata(tmp_path / "none" / "metadata.db", "")
    await found.start()
    try:
        assert found.tag(HERE, Tag("v1")) is None
        assert not found.exists(LOCAL)
        assert await found.unchanged()
    finally:
        await found.close()
    assert not (tmp_path / "none").exists()
