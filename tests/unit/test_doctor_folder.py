"""mirror doctor: the folder, its disk, its room, its database. Each check with the fault it is for."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.doctor import Case, Finding, Outcome, database, disk, root, space
from mirror.metadata import proof
from mirror.metadata.database import open_writer
from mirror.metadata.schema import VERSION
from mirror.server.owner import owner_of, take_root
from mirror.store import trial
from mirror.store.root import Root, open_root
from tests.doctor import case_of, only

PROJECT = Path(__file__).parents[2]
GIB = 1024**3


def tree(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    """Return everything in a folder: mode, time of the last change, content."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (path.stat().st_mode, path.stat().st_mtime, content)
    return found


def looked_at(path: Path) -> list[Finding]:
    """Return what every check of this file finds of a root."""

    async def look() -> list[Finding]:
        case = case_of(path)
        return [finding for check in (root, disk, space, database) for finding in await check.look(case)]

    return asyncio.run(look())


def laid_out(path: Path) -> Root:
    """Make a root with a database, closed as a service does."""
    made = open_root(path)
    open_writer(made.metadata, made.database).close()
    return made


# ---- a folder as it should be ----


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no disk slow: that of this machine may have much to do."""
    monkeypatch.setattr(disk, "SLOW", float("inf"))


def test_a_root_that_is_to_be_made_is_not_made(tmp_path: Path, busy: None) -> None:
    path = tmp_path / "deep" / "root"
    before = sorted(tmp_path.rglob("*"))
    found = looked_at(path)
    assert only(found, "root").text == f"{path} is made at the first start, in {tmp_path}"
    assert only(found, "root format").text == "new: nothing is kept yet"
    assert only(found, "disk").outcome is Outcome.OK
    assert only(found, "metadata").outcome is Outcome.SKIPPED
    assert sorted(tmp_path.rglob("*")) == before


def test_a_root_is_left_as_it_is(tmp_path: Path, busy: None) -> None:
    path = tmp_path / "root"
    laid_out(path)
    before = tree(path / "blobs") | tree(path / "ingest")
    names = sorted(path.rglob("*"))
    found = looked_at(path)
    assert {one.outcome for one in found if one.name not in ("space", "inodes")} == {Outcome.OK}
    assert only(found, "root format").facts == {"layout": 1}
    assert only(found, "metadata").facts["tables"] == VERSION
    assert only(found, "disk").facts["sync_seconds"] > 0
    assert sorted(path.rglob("*")) == names
    assert tree(path / "blobs") | tree(path / "ingest") == before


# ---- the folder ----


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "root"):
        found = looked_at(path)
        first = only(found, "root")
        assert (first.outcome, first.text) == (Outcome.PROBLEM, f"{tmp_path}/file is a file")
        assert first.advice == "move it away, or choose another folder with storage.root"
        assert only(found, "disk").outcome is Outcome.SKIPPED


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    found = only(looked_at(tmp_path), "root format")
    assert (found.outcome, found.text) == (Outcome.WARNING, f"{tmp_path} has files in it, and none of a mirror's")


def test_a_folder_that_everybody_can_change(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    found = only(looked_at(tmp_path), "root")
    assert (found.outcome, found.advice) == (Outcome.WARNING, f"chmod 700 {tmp_path}")
    assert found.facts["mode"] == "0777"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "root"
    path.mkdir()
    os.chown(path, 65534, 65534)
    found = only(looked_at(path), "root")
    assert found.outcome is Outcome.WARNING
    assert f"chown -R {os.geteuid()}:{os.getegid()} {path}" in found.advice


AS_NOBODY = """
import asyncio, json, os, sys
from pathlib import Path
from mirror.doctor import disk, root
from tests.doctor import case_of

async def main(case):
    os.setgid(65534), os.setuid(65534)  # what is imported may be where this user cannot read
    return [*await root.look(case), *await disk.look(case)]

found = asyncio.run(main(case_of(Path(sys.argv[1]))))
print(json.dumps({one.name: [one.outcome.value, one.text, one.advice] for one in found}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a process of another user is needed, which root can start")
def test_a_folder_this_user_may_not_write() -> None:
    """Looked at by a user who is not root, whom modes do not bind."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        command = [sys.executable, "-c", AS_NOBODY, f"{folder}/root"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    outcome, text, advice = found["root"]
    assert outcome == "problem"
    assert text.startswith(f"{folder}/root is to be made: {folder} cannot be written by this user (nobody)")
    assert advice.startswith(f"make it and give it to that user: install -d -m 700 -o 65534 -g 65534 {folder}/root")
    outcome, text, advice = found["disk"]
    assert (outcome, text) == ("problem", f"in {folder} the service cannot make a folder: Permission denied")
    assert advice == "give this user the right to write there, or choose another folder with storage.root"


@pytest.mark.parametrize(
    ("kind", "outcome", "said"),
    [
        ("nfs4", Outcome.PROBLEM, "is on a network file system (nfs4)"),
        ("tmpfs", Outcome.WARNING, "is on tmpfs, which is gone when the machine restarts"),
        ("overlay", Outcome.WARNING, "is on overlay, which is the container's own layer"),
        ("ext4", Outcome.OK, "ext4"),
        ("", Outcome.OK, "of a kind that cannot be told"),
    ],
)
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, outcome: Outcome, said: str) -> None:
    """There is no network file system to be had here, so the system's word is what is made up."""
    monkeypatch.setattr("mirror.doctor.root.file_system", lambda path: kind)
    found = only(looked_at(tmp_path), "root file system")
    assert (found.outcome, said in found.text) == (outcome, True)
    assert bool(found.advice) is (outcome is not Outcome.OK)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "format is damaged"),
        ('{"layout": 99, "database": "x", "secret": "00"}', "was written by a newer version (layout 99"),
    ],
    ids=["damaged", "newer"],
)
def test_a_layout_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "format").write_text(content)
    found = looked_at(tmp_path)
    judged = only(found, "root format")
    assert (judged.outcome, said in judged.text, bool(judged.advice)) == (Outcome.PROBLEM, True, True)
    assert only(found, "metadata").outcome is Outcome.SKIPPED


def test_who_serves_it_is_said_and_not_disturbed(tmp_path: Path) -> None:
    laid_out(tmp_path)
    assert only(looked_at(tmp_path), "root owner").text == "nobody serves it now"
    owned = take_root(tmp_path)
    try:
        found = only(looked_at(tmp_path), "root owner")
        assert found.text.startswith(f"served by pid {os.getpid()} (")
        assert owner_of(tmp_path) == found.facts["holder"]
    finally:
        os.close(owned)
    os.close(take_root(tmp_path))  # nothing was kept of the looks


# ---- its disk ----


class Broken:
    """An operating system in which one call does not do its work, here and in whatever is tried."""

    @staticmethod
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    @staticmethod
    def refuse_for(kind: Callable[[int], bool]) -> Callable[[int], None]:
        real = os.fsync

        def sync(fd: int) -> None:
            if kind(os.fstat(fd).st_mode):
                Broken.refuse()
            real(fd)

        return sync

    @staticmethod
    def nothing(*_: Any, **__: Any) -> Any:
        return None


def _another_gets_it(what: str) -> Any:
    """Return what asks the other process, which got a lock, or does not share memory."""
    real = trial._ask_another

    def ask(folder: Path) -> dict[str, bool]:
        if what == "map":
            return {"flock": True, "lease": True, "map": True}  # and wrote to a file of its own
        return {**real(folder), what: False}

    return ask


def _torn(fd: int, chunks: Sequence[bytes], offset: int) -> int:
    return os.pwrite(fd, b"\0" * len(chunks[0]), offset)


FAULTS: Mapping[str, tuple[str, Any, str]] = {
    "sync": ("os.fsync", Broken.refuse_for(stat.S_ISREG), "sync: Operation not supported"),
    "sync-folder": ("os.fsync", Broken.refuse_for(stat.S_ISDIR), "sync: Operation not supported"),
    "read-back": ("mirror.store.trial.write_all", _torn, "read back: what was written is not what is read"),
    "link": ("os.link", Broken.refuse, "make a hard link: Operation not supported"),
    "rename": ("os.rename", Broken.refuse, "rename: Operation not supported"),
    "flock": ("fcntl.flock", Broken.refuse, "lock a file (flock): Operation not supported"),
    "flock-alone": ("fcntl.flock", Broken.nothing, "lock a file (flock): another process gets the same lock"),
    "lease": ("fcntl.fcntl", Broken.refuse, "lock a part of a file: Operation not supported"),
    "lease-alone": ("fcntl.fcntl", Broken.nothing, "lock a part of a file: another process gets the same lock"),
    "map": ("mmap.mmap", Broken.refuse, "map a file: Operation not supported"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_disk_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """A lock that is not taken here is one that the other process, a real one, does get."""
    name, replaced, said = FAULTS[fault]
    monkeypatch.setattr(name, replaced)
    found = disk._look(tmp_path)
    assert found.outcome is Outcome.PROBLEM
    assert found.text == f"in {tmp_path} the service cannot {said}"
    assert "choose" in found.advice
    assert list(tmp_path.iterdir()) == []


def test_memory_that_another_process_does_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_ask_another", _another_gets_it("map"))
    assert disk._look(tmp_path).text.endswith("cannot map a file: what another process writes is not seen")
    assert list(tmp_path.iterdir()) == []


def test_a_slow_disk_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "try_folder", lambda _: trial.Tried(sync=1.5))
    found = disk._look(tmp_path)
    assert (found.outcome, "synced (1.5 s)" in found.text) == (Outcome.WARNING, True)


# ---- its room ----


@pytest.mark.parametrize(
    ("free", "whole", "outcome"),
    [
        (900 * GIB, 1000 * GIB, Outcome.OK),
        (100 * GIB, 1000 * GIB, Outcome.OK),
        (99 * GIB, 1000 * GIB, Outcome.WARNING),
        (4 * GIB, 20 * GIB, Outcome.WARNING),
        (10 * GIB, 1000 * GIB, Outcome.WARNING),
        (9 * GIB, 1000 * GIB, Outcome.PROBLEM),
        (0, 1000 * GIB, Outcome.PROBLEM),
        (0, 0, Outcome.OK),
    ],
)
def test_bytes(free: int, whole: int, outcome: Outcome) -> None:
    assert space.judge_bytes(free=free, whole=whole).outcome is outcome


@pytest.mark.parametrize(
    ("free", "whole", "outcome"),
    [(50, 100, Outcome.OK), (9, 100, Outcome.WARNING), (0, 100, Outcome.PROBLEM), (0, 0, Outcome.OK)],
)
def test_inodes(free: int, whole: int, outcome: Outcome) -> None:
    assert space.judge_inodes(free=free, whole=whole).outcome is outcome


# ---- its database ----


def test_a_database_that_was_closed_is_read_without_a_trace(tmp_path: Path) -> None:
    laid_out(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert database._look(tmp_path).outcome is Outcome.OK
    assert sorted(tmp_path.iterdir()) == before


def test_a_database_in_use(tmp_path: Path) -> None:
    """What only the log has is read as well."""
    made = open_root(tmp_path)
    writer = open_writer(made.metadata, made.database)
    try:
        assert (tmp_path / "metadata.db-wal").stat().st_size > 0
        found = proof.prove(made.metadata, made.database, in_use=True, within=10)
        assert (found.complete, found.version) == (True, VERSION)
    finally:
        writer.close()


@pytest.mark.parametrize("index", [True, False], ids=["with-its-index", "index-gone"])
def test_a_database_that_was_left_in_a_crash(tmp_path: Path, index: bool) -> None:
    """Its log holds what was written last; where reading it would write, it is not read."""
    (tmp_path / "live").mkdir()
    made = open_root(tmp_path / "live")
    writer = open_writer(made.metadata, made.database)
    left = tmp_path / "left"
    left.mkdir()
    for name in ("metadata.db", "metadata.db-wal", *(["metadata.db-shm"] if index else [])):
        (left / name).write_bytes((made.path / name).read_bytes())
    writer.close()
    before = {path.name: path.stat().st_size for path in left.iterdir()}
    if index:
        assert proof.prove(left / "metadata.db", made.database, in_use=False, within=10).complete
    else:
        with pytest.raises(proof.Unread, match="the next start puts it in order"):
            proof.prove(left / "metadata.db", made.database, in_use=False, within=10)
    assert {path.name: path.stat().st_size for path in left.iterdir()} == before


def _garbled(made: Root) -> None:
    """Overwrite all pages but the first with noise."""
    size = made.metadata.stat().st_size
    with made.metadata.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))


def _no_database(made: Root) -> None:
    made.metadata.write_bytes(b"not a database" * 100)


def _newer(made: Root) -> None:
    connection = sqlite3.connect(made.metadata)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _other_root(made: Root) -> None:
    described = json.loads((made.path / "format").read_text())
    (made.path / "format").write_text(json.dumps(described | {"database": "another"}))


def _index_lost(made: Root) -> None:
    """Take rows out of an index behind the table's back, which reading alone does not notice."""
    connection = sqlite3.connect(made.metadata, isolation_level=None)
    connection.execute("INSERT INTO link VALUES ('|a', 'sha256:b')")
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'tag')"
                       " WHERE name = 'link'")  # fmt: skip
    connection.close()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_garbled, "it cannot be read: "),
        (_no_database, "it cannot be read: file is not a database"),
        (_newer, "it was written by a newer version of mirror (tables 99"),
        (_other_root, "it belongs to another root than the file 'format' beside it"),
        (_index_lost, "it is damaged: "),
    ],
    ids=["garbled", "no-database", "newer", "of-another-root", "index-lost"],
)
def test_a_database_that_cannot_be_used(tmp_path: Path, harm: Any, said: str) -> None:
    harm(laid_out(tmp_path))
    found = database._look(tmp_path)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith(f"{tmp_path}/metadata.db: {said}")
    assert found.advice


def test_a_large_database_is_read_as_far_as_there_is_time(tmp_path: Path) -> None:
    made = laid_out(tmp_path)
    connection = sqlite3.connect(made.metadata)
    rows = ((f"r{number}", f"sha256:{number:064x}") for number in range(5000))
    connection.executemany("INSERT INTO link VALUES (?, ?)", rows)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert proof.prove(made.metadata, made.database, in_use=False, within=60).complete
    assert not proof.prove(made.metadata, made.database, in_use=False, within=-1).complete


def test_the_case_is_absolute() -> None:
    assert Case(config=case_of(Path("relative")).config).root == Path.cwd() / "relative"
