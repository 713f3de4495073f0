"""Backups: what is in them, when they are refused, and that a root restored from one has what the other had."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.logs.amounts import size
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed
from mirror.oci.names import Digest, Repository, RepositoryName, Tag, digest_of
from mirror.server.owner import take_root
from mirror.store import backup as backup_module
from mirror.store.backup import BackupFolder
from mirror.store.holding import Held, holding, remove_leftovers
from mirror.store.root import open_root
from tests.metadata import HERE, push, some_artifact, some_manifest, some_tag

PROJECT = Path(__file__).parents[2]
A = Repository(None, RepositoryName("local/a"))
B = Repository(None, RepositoryName("local/b"))
COPIED = ("link", "pushed", "tag", "repository", "history")


def in_loop(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine on an event loop in a thread of its own."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work())))  # type: ignore[arg-type]
    thread.start()
    thread.join()
    return found[0]


class PushedRoot:
    """A root, and pushes to it as the service does them: file first, then rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = open_root(path)

    def change(self, *changes: Callable[[SqliteMetadata], Awaitable[Any]]) -> None:
        async def work() -> bool:
            metadata = SqliteMetadata(self.root.metadata, self.root.database)
            await metadata.start()
            try:
                for change in changes:
                    await change(metadata)
            finally:
                await metadata.close()
            return True

        assert in_loop(work), "it raised"

    def keep(self, data: bytes, algorithm: str = "sha256") -> Digest:
        digest = digest_of(data, algorithm)
        Path(self.root.kept(digest)).write_bytes(data)
        return digest

    def push(self, repository: Repository, tag: str | None, *blobs: bytes, at: float = 50.0, **more: Any) -> Digest:
        """Push an image of these blobs. Returns the digest of its manifest."""
        digests = [self.keep(blob) for blob in blobs]
        manifest = some_manifest(*((digest, len(blob)) for digest, blob in zip(digests, blobs, strict=True)), **more)
        self.keep(manifest.raw)

        async def work(metadata: SqliteMetadata) -> None:
            for digest in digests:
                await metadata.push_blob(repository, digest)
            await push(metadata, repository, manifest, *([tag] if tag else []), at=at)

        self.change(work)
        return manifest.descriptor.digest

    def delete_blob(self, repository: Repository, digest: Digest) -> None:
        self.change(lambda metadata: metadata.delete_blob(repository, digest))
        os.unlink(self.root.kept(digest))

    def delete_tag(self, repository: Repository, tag: str, at: float) -> None:
        self.change(lambda metadata: metadata.delete_tag(repository, Tag(tag), condition=None, at=at))

    def pull_through(self, data: bytes = b"pulled") -> Digest:
        """Have something of an upstream: content, a tag, and rights to it."""
        digest = digest_of(data)
        Path(self.root.cached(digest)).write_bytes(data)
        manifest = some_manifest((digest, len(data)))
        self.change(
            lambda metadata: metadata.put_manifest(HERE, manifest, public=True),
            lambda metadata: metadata.grant(HERE, digest, public=True),
            lambda metadata: metadata.put_tag(some_tag(digest=manifest.descriptor.digest)),
        )
        return digest

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        return rows(self.root.metadata, table)

    def history(self, repository: Repository, tag: str) -> list[tuple[str | None, float]]:
        """Return a tag's moves, the oldest first: digest, time."""
        with closing(sqlite3.connect(self.root.metadata)) as database:
            return database.execute(
                "SELECT digest, at FROM history WHERE repository = ? AND tag = ? ORDER BY number", (repository.key, tag)
            ).fetchall()

    def kept(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.glob("blobs/*/*")}

    def leftovers(self) -> list[str]:
        """Return what a backup or a restore has left under ingest/."""
        return [str(path) for path in self.path.glob("ingest/**/*") if path.is_file()] + [
            str(path) for path in self.path.glob("ingest/backup.*")
        ]


def rows(database: Path, table: str) -> list[tuple[Any, ...]]:
    """Return the rows of our own repositories in a table; moves in their order, without their numbers."""
    key = "key" if table == "repository" else "repository"
    columns = "repository, tag, digest, origin, at" if table == "history" else "*"
    order = "number" if table == "history" else "1, 2"
    with closing(sqlite3.connect(database)) as connection:
        query = f"SELECT {columns} FROM {table} WHERE {key} LIKE '|%' ORDER BY {order}"
        return connection.execute(query).fetchall()


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["store", *map(str, arguments)], prog_name="mirror")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def back_up(root: Path, target: Path, code: int = 0) -> dict[str, Any]:
    """Back up; return what it says of it in JSON."""
    result = run("backup", target, "--root", root, "--json")
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def restored(source: Path, root: Path) -> PushedRoot:
    result = run("restore", source, "--root", root)
    assert result.exit_code == 0, result.output
    return PushedRoot(root)


def refused(*arguments: object) -> str:
    """Return what a command that exits with 1 says."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    return result.stderr


def database_of(target: Path) -> Path:
    (found,) = target.glob("metadata-*.db")
    return found


def blob_path(target: Path, digest: Digest) -> Path:
    return target / "blobs" / digest.algorithm / digest.encoded


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return every file below a folder, with its time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> PushedRoot:
    """Two repositories, a shared blob, tags that moved and went, a referrer, and something pulled through."""
    root = PushedRoot(tmp_path / "root")
    first = root.push(A, "latest", b"layer", b"config", at=10.0)
    root.push(A, "latest", b"layer", b"config 2", at=20.0)
    root.push(A, "gone", b"layer", at=30.0)
    root.delete_tag(A, "gone", 40.0)
    root.push(B, "v1", b"layer", at=50.0)
    artifact = some_artifact(first, kind="a/b")
    root.keep(artifact.raw)
    wide = root.keep(b"wide", "sha512")
    root.change(lambda metadata: push(metadata, A, artifact), lambda metadata: metadata.push_blob(B, wide))
    root.pull_through()
    return root


@pytest.fixture
def target(tmp_path: Path, root: PushedRoot) -> Path:
    """A backup of the root."""
    back_up(root.path, tmp_path / "backup")
    return tmp_path / "backup"


# ---- there and back ----


def test_a_new_root_has_what_the_other_had(tmp_path: Path, root: PushedRoot) -> None:
    said = back_up(root.path, tmp_path / "backup")
    new = restored(tmp_path / "backup", tmp_path / "new")
    for table in COPIED:
        assert root.rows(table), table
        assert new.rows(table) == root.rows(table), table
    assert new.kept() == root.kept()
    assert new.root.database != root.root.database
    assert new.leftovers() == root.leftovers() == []
    described = json.loads((tmp_path / "backup" / "backup.json").read_text())
    assert described["format"] == 1
    assert described["source"] == root.root.database
    assert said["backup"] == {name: value for name, value in described.items() if name != "format"}
    counts = {name: described[name] for name in ("repositories", "manifests", "tags", "blobs", "bytes")}
    whole = sum(map(len, root.kept().values()))
    assert counts == {"repositories": 2, "manifests": 5, "tags": 2, "blobs": len(root.kept()), "bytes": whole}
    assert (said["copied"], said["copied_bytes"], said["problems"]) == (len(root.kept()), whole, [])


def test_nothing_that_was_pulled_through_is_in_it(target: Path, root: PushedRoot) -> None:
    pulled = digest_of(b"pulled")
    assert not blob_path(target, pulled).exists()
    content = database_of(target).read_bytes()
    assert pulled.encoded.encode() not in content
    assert HERE.key.encode() not in content
    for there in (HERE.key, pulled.encoded):
        assert there.encode() in root.root.metadata.read_bytes() + wal_of(root)


def wal_of(root: PushedRoot) -> bytes:
    path = root.path / "metadata.db-wal"
    return path.read_bytes() if path.exists() else b""


def test_only_its_owner_may_read_a_backup_or_a_restored_root(target: Path, tmp_path: Path) -> None:
    restored(target, tmp_path / "new")
    looked_at = [target, *target.rglob("*"), *(tmp_path / "new").rglob("blobs/*")]
    assert len(looked_at) > 10
    for path in looked_at:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_an_umask_that_gives_away_makes_no_difference(tmp_path: Path, root: PushedRoot) -> None:
    before = os.umask(0)
    try:
        back_up(root.path, tmp_path / "backup")
    finally:
        os.umask(before)
    test_only_its_owner_may_read_a_backup_or_a_restored_root(tmp_path / "backup", tmp_path)


def test_restored_twice_is_restored_once(target: Path, tmp_path: Path) -> None:
    first = restored(target, tmp_path / "new")
    before = {table: first.rows(table) for table in COPIED}, first.kept()
    result = run("restore", target, "--root", tmp_path / "new", "--json")
    said = json.loads(result.stdout)
    assert (said["copied"], said["tags_moved"], said["problems"]) == (0, 0, [])
    assert ({table: first.rows(table) for table in COPIED}, first.kept()) == before


# ---- what the root has besides ----


def test_what_the_root_has_besides_stays(target: Path, tmp_path: Path) -> None:
    other = PushedRoot(tmp_path / "other")
    other.push(A, "mine", b"mine", at=5.0)
    other.push(Repository(None, RepositoryName("local/c")), "v1", b"mine too", at=5.0)
    pulled = other.pull_through()
    kept, before = other.kept(), {table: other.rows(table) for table in COPIED}
    theirs = sqlite_rows(other, "SELECT * FROM tag WHERE repository NOT LIKE '|%'")
    restored(target, other.path)
    assert kept.items() <= other.kept().items()
    for table in COPIED:
        assert set(before[table]) <= set(other.rows(table)), table
    assert len(theirs) == 1
    assert sqlite_rows(other, "SELECT * FROM tag WHERE repository NOT LIKE '|%'") == theirs
    assert sqlite_rows(other, f"SELECT 1 FROM public WHERE digest = '{pulled}'")
    assert Path(other.root.cached(pulled)).read_bytes() == b"pulled"


def sqlite_rows(root: PushedRoot, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(root.root.metadata)) as database:
        return database.execute(query).fetchall()


def test_a_tag_in_both_gets_the_backups_and_its_history_says_so(tmp_path: Path, root: PushedRoot, target: Path) -> None:
    shared = root.history(A, "latest")
    newer = root.push(A, "latest", b"newer", at=60.0)
    result = run("restore", target, "--root", root.path)
    assert result.exit_code == 0, result.output
    assert "1 tag pointed elsewhere" in result.stdout
    found = root.history(A, "latest")
    assert found[:-1] == [*shared, (str(newer), 60.0)]
    assert found[-1][0] == shared[-1][0]
    assert found[-1][1] > 1_000_000_000
    (row,) = [row for row in root.rows("tag") if row[:2] == (A.key, "latest")]
    assert row[2] == shared[-1][0]
    run("restore", target, "--root", root.path)
    assert root.history(A, "latest") == found, "restored again it has not moved"


def test_a_tag_deleted_since_comes_back_with_a_move(root: PushedRoot, target: Path) -> None:
    root.delete_tag(B, "v1", 70.0)
    restored(target, root.path)
    ((pushed, _), (gone, _), (back, _)) = root.history(B, "v1")
    assert (gone, back) == (None, pushed)


def test_a_tag_that_stays_says_the_media_type_that_was_restored(root: PushedRoot, target: Path) -> None:
    """Of the manifest it is on, which the backup knows by another."""
    (pushed,) = [row for row in root.rows("pushed") if row[0] == B.key]
    with closing(sqlite3.connect(root.root.metadata)) as database:
        database.execute("UPDATE pushed SET media_type = 'other/type' WHERE repository = ?", (B.key,))
        database.execute(
            "INSERT INTO tag (repository, tag, digest, media_type, size, origin, checked_at, fresh_until, retry_at)"
            " SELECT repository, 'stays', digest, 'other/type', size, origin, 0, 0, 0 FROM tag WHERE tag = 'v1'"
        )
        database.commit()
    restored(target, root.path)
    assert [row for row in root.rows("pushed") if row[0] == B.key] == [pushed]
    found = {row[1]: row[3] for row in root.rows("tag") if row[0] == B.key}
    assert found == {"stays": pushed[2], "v1": pushed[2]}


def test_histories_of_two_roots_become_one_in_the_order_of_time(target: Path, tmp_path: Path) -> None:
    other = PushedRoot(tmp_path / "other")
    between = other.push(A, "latest", b"between", at=15.0)
    after = other.push(A, "latest", b"after", at=25.0)
    restored(target, other.path)
    found = other.history(A, "latest")
    assert [at for _, at in found[:-1]] == [10.0, 15.0, 20.0, 25.0]
    assert [found[1][0], found[3][0]] == [str(between), str(after)]
    assert found[4][0] == found[2][0]


def test_moves_keep_their_order_where_the_clock_went_back(tmp_path: Path) -> None:
    root = PushedRoot(tmp_path / "root")
    digests = [root.push(A, "latest", f"{at}".encode(), at=at) for at in (100.0, 50.0, 120.0)]
    back_up(root.path, tmp_path / "backup")
    new = restored(tmp_path / "backup", tmp_path / "new")
    assert [digest for digest, _ in new.history(A, "latest")] == [str(digest) for digest in digests]


def test_damaged_content_of_the_root_is_healed(target: Path, root: PushedRoot) -> None:
    layer, config = digest_of(b"layer"), digest_of(b"config")
    Path(root.root.kept(layer)).write_bytes(b"loyer")
    os.link(root.root.kept(layer), root.root.cached(layer))
    Path(root.root.cached(config)).write_bytes(b"konfig")
    restored(target, root.path)
    for digest, data in ((layer, b"layer"), (config, b"config")):
        assert Path(root.root.kept(digest)).read_bytes() == data
        assert Path(root.root.cached(digest)).read_bytes() == data, "readers take it first"
    assert root.leftovers() == []


# ---- once more into the same folder ----


def test_an_earlier_backup_is_brought_up_to_date(target: Path, tmp_path: Path, root: PushedRoot) -> None:
    layer, config = digest_of(b"layer"), digest_of(b"config")
    before = blob_path(target, layer).stat().st_ino
    root.push(B, "v2", b"fresh", at=80.0)
    root.delete_blob(A, config)
    said = back_up(root.path, target)
    assert said["copied"] == 2, "a blob and its manifest"
    assert said["copied_bytes"] == sum(
        blob_path(target, Digest("sha256", row[1].partition(":")[2])).stat().st_size
        for row in root.rows("pushed")
        if row[7] == 80.0
    ) + len(b"fresh")
    assert blob_path(target, layer).stat().st_ino == before
    assert not blob_path(target, config).exists()
    assert database_of(target).name == json.loads((target / "backup.json").read_text())["database"]
    assert restored(target, tmp_path / "new").kept() == root.kept()


def test_content_of_another_length_is_copied_again(target: Path, root: PushedRoot) -> None:
    layer = digest_of(b"layer")
    blob_path(target, layer).write_bytes(b"lay")
    assert back_up(root.path, target)["copied"] == 1
    assert blob_path(target, layer).read_bytes() == b"layer"


@pytest.mark.parametrize("name", ["copy_pushed", "add", "commit"])
def test_a_backup_that_fails_leaves_the_earlier_one(
    target: Path, tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = root.kept()
    root.push(B, "v2", b"fresh", at=80.0)
    root.delete_blob(A, digest_of(b"config"))

    def fail(*_: Any) -> None:
        raise StorageFailed("the disk is gone")

    owner = "mirror.metadata.backup.SqliteBackup" if name == "copy_pushed" else "mirror.store.backup.BackupFolder"
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{name}", fail)
        assert refused("backup", target, "--root", root.path) == "mirror: the disk is gone\n"
    assert root.leftovers() == []
    assert restored(target, tmp_path / "new").kept() == expected
    back_up(root.path, target)
    assert len(list(target.glob("metadata-*"))) == 1
    assert restored(target, tmp_path / "newer").kept() == root.kept()


def test_what_a_killed_backup_left_is_used_and_tidied(tmp_path: Path, root: PushedRoot) -> None:
    target = tmp_path / "backup"
    back_up(root.path, target)
    (target / "backup.json").unlink()
    (target / "backup.json.part").write_text("{")
    (target / "metadata-0123456789abcdef.db").write_bytes(b"x")
    (target / "metadata-0123456789abcdef.db-journal").write_bytes(b"x")
    (target / "blobs" / "sha256" / f"{'0' * 64}.part").write_bytes(b"x")
    (target / "blobs" / "sha256" / "README").write_text("somebody's")
    assert back_up(root.path, target)["copied"] == 0
    names = {path.name for path in target.rglob("*") if path.is_file()} - set(root.kept())
    assert names == {"backup.json", "backup.lock", "README", database_of(target).name}


# ---- while others write ----


def test_what_is_deleted_while_it_is_copied_is_in_it(
    tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = digest_of(b"layer")
    real, expected = BackupFolder.check_space, root.kept()

    def check_space(folder: BackupFolder, sizes: list[int]) -> None:
        for repository in (A, B):
            root.change(lambda metadata, repository=repository: metadata.delete_blob(repository, layer))
        os.unlink(root.root.kept(layer))
        real(folder, sizes)

    monkeypatch.setattr(BackupFolder, "check_space", check_space)
    assert back_up(root.path, tmp_path / "backup")["problems"] == []
    assert layer.encoded not in root.kept()
    assert restored(tmp_path / "backup", tmp_path / "new").kept() == expected


def test_what_is_deleted_before_it_is_held_is_not_in_it(
    tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real, calls = digest_of(b"config"), Held.hold, []

    def hold(held: Held, digests: set[Digest]) -> set[Digest]:
        calls.append(config in digests)
        if len(calls) == 1:
            root.delete_blob(A, config)
        return real(held, digests)

    monkeypatch.setattr(Held, "hold", hold)
    assert back_up(root.path, tmp_path / "backup")["problems"] == []
    assert calls == [True, False]
    new = restored(tmp_path / "backup", tmp_path / "new")
    assert config.encoded not in new.kept()
    assert new.rows("link") == root.rows("link")


def test_rows_and_content_are_of_one_moment(tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is pushed once the content is held is of a later moment, in every table."""
    before, real = {table: root.rows(table) for table in COPIED}, Held.hold

    def hold(held: Held, digests: set[Digest]) -> set[Digest]:
        found = real(held, digests)
        root.push(A, "latest", b"later", at=99.0)
        return found

    monkeypatch.setattr(Held, "hold", hold)
    back_up(root.path, tmp_path / "backup")
    assert {table: rows(database_of(tmp_path / "backup"), table) for table in before} == before
    assert root.rows("tag") != before["tag"]


def test_two_backups_of_one_root_at_once_do_not_meet(tmp_path: Path, root: PushedRoot) -> None:
    with holding(root.root) as held:
        assert held.hold({digest_of(b"layer")}) == set()
        back_up(root.path, tmp_path / "backup")
        assert Path(held.path(digest_of(b"layer"))).read_bytes() == b"layer"
    assert root.leftovers() == []


@pytest.mark.parametrize("comes", ["a backup", "a worker"])
def test_links_a_killed_backup_left_are_removed(tmp_path: Path, root: PushedRoot, comes: str) -> None:
    folder = root.path / "ingest" / "backup.0123456789abcdef" / "sha256"
    folder.mkdir(parents=True)
    os.link(root.root.kept(digest_of(b"layer")), folder / "x")
    if comes == "a backup":
        back_up(root.path, tmp_path / "backup")
    else:
        remove_leftovers(root.root)
    assert root.leftovers() == []


# ---- what survives a loss of power ----


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Give what is synced and renamed, in order: ``sync``, ``name`` and ``commit``, with the path."""
    seen: list[tuple[str, str]] = []
    fsync, rename, connect = os.fsync, os.rename, sqlite3.connect

    def traced_fsync(fd: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def traced_rename(source: Any, target: Any) -> None:
        seen.append(("name", f"{source} {target}"))
        rename(source, target)

    def traced_connect(name: Any, *arguments: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(name, *arguments, **more)

        def trace(statement: str) -> None:
            if statement in ("COMMIT", "PRAGMA synchronous=FULL"):
                seen.append((statement, str(name)))

        connection.set_trace_callback(trace)
        return connection

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    monkeypatch.setattr(sqlite3, "connect", traced_connect)
    return seen


def in_order(seen: list[tuple[str, str]], *expected: tuple[str, str]) -> None:
    """Make sure that these came in this order, whatever came between."""
    rest = iter(seen)
    for one in expected:
        assert one in rest, f"{one} in its place in {seen}"


def test_a_backup_is_synced_before_it_is_one(tmp_path: Path, root: PushedRoot, traced: list[tuple[str, str]]) -> None:
    target = tmp_path / "backup"
    back_up(root.path, target)
    described = str(target / "backup.json")
    last = [
        ("sync", f"{described}.part"),
        ("name", f"{described}.part {described}"),
        ("sync", str(target)),
        ("sync", str(tmp_path)),
    ]
    for digest in (digest_of(b"layer"), digest_of(b"wide", "sha512")):
        blob = str(blob_path(target, digest))
        folders = [os.path.dirname(blob), str(target / "blobs"), str(target)]
        named = ("name", f"{blob}.part {blob}")
        in_order(traced, ("sync", f"{blob}.part"), named, *(("sync", folder) for folder in folders), *last)
    in_order(traced, ("sync", str(database_of(target))), ("sync", str(target)), *last)


def test_content_is_synced_before_the_rows_of_a_restore(
    target: Path, tmp_path: Path, traced: list[tuple[str, str]]
) -> None:
    new = restored(target, tmp_path / "new")
    database = str(new.root.metadata)
    for digest in (digest_of(b"layer"), digest_of(b"wide", "sha512")):
        kept = new.root.kept(digest)
        fresh = f"{new.path}/ingest/{digest.algorithm}/{digest.encoded}.kept"
        in_order(
            traced,
            ("sync", fresh),
            ("name", f"{fresh} {kept}"),
            ("sync", os.path.dirname(kept)),
            ("PRAGMA synchronous=FULL", database),
            ("COMMIT", database),
        )


# ---- a root that is damaged ----


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.metadata.backup._PAUSE", 0.0)


def damage(path: Path, how: str) -> None:
    match how:
        case "missing":
            path.unlink()
        case "wrong":
            path.write_bytes(path.read_bytes()[::-1])
        case "shorter":
            path.write_bytes(path.read_bytes()[:-1])
        case "a link":
            path.rename(path.with_name("elsewhere"))
            path.symlink_to("elsewhere")
        case "a folder":
            path.unlink()
            path.mkdir()


@pytest.mark.parametrize("how", ["missing", "wrong", "shorter"])
@pytest.mark.usefixtures("no_pause")
def test_damaged_content_is_reported_and_the_rest_backed_up(tmp_path: Path, root: PushedRoot, how: str) -> None:
    config, only = digest_of(b"config"), root.rows("tag")[-1]
    assert only[0] == B.key
    manifest = Digest("sha256", only[2].partition(":")[2])
    for digest in (config, manifest):
        damage(Path(root.root.kept(digest)), how)
    said = back_up(root.path, tmp_path / "backup", code=1)
    assert len(said["problems"]) == 2
    for digest in (config, manifest):
        (line,) = [line for line in said["problems"] if line.startswith(f"{digest}: the file ")]
        assert ("is missing in the root" if how == "missing" else "has other bytes") in line
        assert line.endswith("; left out")
    assert said["backup"]["left_out"] == sorted(map(str, (config, manifest)))
    new = restored(tmp_path / "backup", tmp_path / "new")
    assert new.kept() == {
        name: data for name, data in root.kept().items() if name not in (config.encoded, manifest.encoded)
    }
    assert new.rows("tag") == [row for row in root.rows("tag") if row != only]
    assert new.rows("link") == [row for row in root.rows("link") if row[1] != str(config)]
    assert {row[0] for row in new.rows("tag")} == {A.key}
    assert new.rows("repository") == root.rows("repository"), "the other one still has blobs"


@pytest.mark.usefixtures("no_pause")
def test_a_repository_with_nothing_left_is_left_out(tmp_path: Path) -> None:
    root = PushedRoot(tmp_path / "root")
    root.push(A, "v1", b"a")
    for lost in (root.push(B, "v1", b"b"), digest_of(b"b")):
        damage(Path(root.root.kept(lost)), "missing")
    said = back_up(root.path, tmp_path / "backup", code=1)
    assert said["backup"]["repositories"] == 1
    new = restored(tmp_path / "backup", tmp_path / "new")
    for table in ("repository", "pushed", "tag"):
        assert len(new.rows(table)) == 1, table


@pytest.mark.parametrize("how", ["missing", "shorter"])
@pytest.mark.usefixtures("no_pause")
def test_what_an_earlier_backup_has_of_damaged_content_is_kept(target: Path, root: PushedRoot, how: str) -> None:
    config = digest_of(b"config")
    damage(Path(root.root.kept(config)), how)
    said = back_up(root.path, target, code=1)
    (line,) = said["problems"]
    assert line.startswith(f"{config}: ")
    assert line.endswith("; what an earlier backup has of it is kept")
    assert said["backup"]["left_out"] == []
    restored(target, root.path)
    assert Path(root.root.kept(config)).read_bytes() == b"config", "healed"


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("PRAGMA user_version = 99", "newer version of mirror; run that one"),
        ("PRAGMA user_version = 1", "older version of mirror; start the service on it once"),
        ("UPDATE meta SET value = 'other' WHERE key = 'database'", "belongs to another root"),
    ],
    ids=["newer", "older", "another"],
)
def test_a_database_that_is_not_the_roots_is_refused(
    tmp_path: Path, root: PushedRoot, statement: str, says: str
) -> None:
    with closing(sqlite3.connect(root.root.metadata)) as database:
        database.execute(statement)
        database.commit()
    assert says in refused("backup", tmp_path / "backup", "--root", root.path)


@pytest.mark.parametrize("there", [False, True], ids=["no-folder", "another-folder"])
def test_what_is_no_root_is_not_backed_up(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "root").mkdir()
    said = refused("backup", tmp_path / "backup", "--root", tmp_path / "root")
    assert "no root of a mirror" in said
    assert (tmp_path / "root").exists() is there
    assert not (tmp_path / "backup").exists()


# ---- where a backup goes ----


def test_a_folder_with_something_else_is_refused(tmp_path: Path, root: PushedRoot) -> None:
    target = tmp_path / "backup"
    (target / "blobs").mkdir(parents=True)
    assert "has something else in it" in refused("backup", target, "--root", root.path)
    assert os.listdir(target) == ["blobs"]


@pytest.mark.parametrize("names", [[], ["lost+found"]], ids=["empty", "a-new-disk"])
def test_an_empty_folder_is_taken(tmp_path: Path, root: PushedRoot, names: list[str]) -> None:
    (tmp_path / "backup").mkdir()
    for name in names:
        (tmp_path / "backup" / name).mkdir()
    back_up(root.path, tmp_path / "backup")


@pytest.mark.parametrize("inside", [".", "backup", "blobs/backup"])
def test_the_root_itself_is_refused(root: PushedRoot, inside: str) -> None:
    assert "is in the folder that is backed up" in refused("backup", root.path / inside, "--root", root.path)
    assert not (root.path / inside / "backup.lock").exists()


def test_a_backup_of_another_root_is_refused(target: Path, tmp_path: Path) -> None:
    other = PushedRoot(tmp_path / "other")
    other.push(A, "v1", b"other")
    before = tree(target)
    assert "is a backup of another root" in refused("backup", target, "--root", other.path)
    assert tree(target) == before


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "backup.json", "backup.lock"])
def test_symbolic_links_are_refused(target: Path, tmp_path: Path, root: PushedRoot, name: str) -> None:
    (target / name).rename(tmp_path / "elsewhere")
    (target / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere") if (tmp_path / "elsewhere").is_dir() else {}
    root.push(B, "v2", b"fresh", at=80.0)
    for said in (
        refused("backup", target, "--root", root.path),
        refused("restore", target, "--root", tmp_path / "new"),
    ):
        assert f"{target / name} is a symbolic link" in said
    assert (tree(tmp_path / "elsewhere") if before else {}) == before


def test_a_blob_that_is_a_link_is_replaced_not_followed(target: Path, tmp_path: Path, root: PushedRoot) -> None:
    layer = digest_of(b"layer")
    (tmp_path / "precious").write_bytes(b"other")
    blob_path(target, layer).unlink()
    blob_path(target, layer).symlink_to(tmp_path / "precious")
    assert back_up(root.path, target)["copied"] == 1
    assert not blob_path(target, layer).is_symlink()
    assert (tmp_path / "precious").read_bytes() == b"other"


def test_one_backup_at_a_time_is_written_to_a_folder(target: Path, tmp_path: Path, root: PushedRoot) -> None:
    with (target / "backup.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is in use" in refused("backup", target, "--root", root.path)
        assert "is in use" in refused("restore", target, "--root", tmp_path / "new")
    with (target / "backup.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        restored(target, tmp_path / "new")
        assert "is in use" in refused("backup", target, "--root", root.path)
    back_up(root.path, target)


def test_a_file_system_without_locks_is_taken(
    tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, kind: int) -> None:
        raise OSError(95, "Operation not supported")

    made = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX, LOCK_SH=fcntl.LOCK_SH, LOCK_NB=fcntl.LOCK_NB)
    monkeypatch.setattr(backup_module, "fcntl", made)
    back_up(root.path, tmp_path / "backup")
    restored(tmp_path / "backup", tmp_path / "new")


@pytest.mark.parametrize("free", [0, 3, 1000])
def test_room_is_made_sure_of_before(
    tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Three blocks are not enough for what has eight files; a thousand are."""
    target = tmp_path / "backup"
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=4096, f_bavail=free))
    result = run("backup", target, "--root", root.path)
    if free == 1000:
        assert result.exit_code == 0
        return
    assert result.exit_code == 1
    assert (
        f"{target} has no room: {4096 * len(root.kept())} bytes are to be written, {4096 * free} are" in result.stderr
    )
    assert list(target.glob("blobs/*/*")) == []
    assert not (target / "backup.json").exists()


def test_room_is_made_sure_of_before_restoring(
    target: Path, tmp_path: Path, root: PushedRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.unlink(root.root.kept(digest_of(b"layer")))
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=4096, f_bavail=1))
    assert "has no room" in refused("restore", target, "--root", tmp_path / "new")
    assert list((tmp_path / "new").glob("blobs/*/*")) == []
    assert run("restore", target, "--root", root.path).exit_code == 0, "one file is all it takes there"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
def test_a_disk_that_fills_up_is_said_and_the_earlier_backup_stays(tmp_path: Path, root: PushedRoot) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        back_up(root.path, disk / "backup")
        expected = root.kept()
        root.push(B, "big", os.urandom(2_000_000), at=90.0)
        assert f"{disk / 'backup'} has no room" in refused("backup", disk / "backup", "--root", root.path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BackupFolder, "check_space", lambda *_: None)
            said = refused("backup", disk / "backup", "--root", root.path)
            assert said.startswith("mirror: the disk is full: writing ")
        assert restored(disk / "backup", tmp_path / "new").kept() == expected
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- backups that are not restored ----


@pytest.mark.parametrize("how", ["missing", "wrong", "shorter", "a link", "a folder"])
def test_damaged_content_is_listed_and_nothing_restored(target: Path, tmp_path: Path, how: str) -> None:
    damaged = [digest_of(b"layer"), digest_of(b"config"), digest_of(b"wide", "sha512")]
    for digest in damaged:
        damage(blob_path(target, digest), how)
    result = run("restore", target, "--root", tmp_path / "new", "--json")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[-1] == f"mirror: {target} is damaged: nothing was restored"
    assert sorted(line.partition(": ")[0] for line in lines[:-1]) == sorted(map(str, damaged))
    assert json.loads(result.stdout) == {"problems": lines[:-1]}
    assert not (tmp_path / "new").exists()


def test_nothing_is_changed_in_a_root_by_a_damaged_backup(target: Path, tmp_path: Path, root: PushedRoot) -> None:
    damage(blob_path(target, digest_of(b"wide", "sha512")), "wrong")
    os.unlink(root.root.kept(digest_of(b"layer")))
    root.push(A, "latest", b"newer", at=60.0)
    before = {table: root.rows(table) for table in COPIED}, root.kept()
    refused("restore", target, "--root", root.path)
    assert ({table: root.rows(table) for table in COPIED}, root.kept()) == before


@pytest.mark.parametrize("how", ["missing", "wrong", "shorter"])
def test_a_damaged_database_is_refused(target: Path, tmp_path: Path, how: str) -> None:
    damage(database_of(target), how)
    said = refused("restore", target, "--root", tmp_path / "new")
    assert said.startswith("metadata-")
    assert "the file is missing" in said if how == "missing" else "the file has other bytes" in said


def resealed(target: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    """Change the database of a backup, and say in backup.json that it is right."""
    path = database_of(target)
    with closing(sqlite3.connect(path)) as database:
        change(database)
        database.commit()
    rewritten(target, database_digest=str(digest_of(path.read_bytes())))


def rewritten(target: Path, **changes: object) -> None:
    described = json.loads((target / "backup.json").read_text())
    (target / "backup.json").write_text(json.dumps(described | changes))


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("PRAGMA user_version = 99", "newer version"),
        (
            "UPDATE tag SET digest = '../../etc/passwd' WHERE tag = 'v1'",
            "is damaged: '../../etc/passwd' is not a digest",
        ),
        ("DELETE FROM tag WHERE tag = 'v1'", "does not have what backup.json says"),
        ("DROP TABLE history", "is damaged: no such table: history"),
    ],
    ids=["newer", "no-digest", "fewer-rows", "no-table"],
)
def test_rows_that_make_no_sense_are_refused(target: Path, tmp_path: Path, statement: str, says: str) -> None:
    resealed(target, lambda database: database.execute(statement))
    assert says in refused("restore", target, "--root", tmp_path / "new")


def test_rows_of_upstreams_are_not_taken_from_a_backup(target: Path, tmp_path: Path) -> None:
    resealed(
        target,
        lambda database: database.executescript(
            "INSERT INTO history (repository, tag, digest, origin, at) VALUES ('up|x', 'v1', 'd', 'pulled', 1);"
            f"INSERT INTO child VALUES ('up|x', '{digest_of(b'layer')}', 5);"
            f"INSERT INTO link VALUES ('up|x', '{digest_of(b'layer')}');"
        ),
    )
    new = restored(target, tmp_path / "new")
    for table in ("history", "child", "link"):
        assert sqlite_rows(new, f"SELECT * FROM {table} WHERE repository LIKE 'up|%'") == []
        assert new.rows(table) or table == "child", "what is ours is"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "is of a newer format (2, this version of mirror knows 1)"),
        ({"format": "x"}, "is damaged"),
        ({"database": "../metadata.db"}, "is damaged"),
        ({"database_digest": "md5:0"}, "is damaged"),
        ({"unknown": 1}, "is damaged"),
    ],
    ids=["newer", "no-number", "elsewhere", "no-digest", "another-field"],
)
def test_a_description_that_is_not_understood_is_refused(
    target: Path, tmp_path: Path, root: PushedRoot, changes: dict[str, object], says: str
) -> None:
    rewritten(target, **changes)
    before = tree(target)
    assert says in refused("restore", target, "--root", tmp_path / "new")
    assert says in refused("backup", target, "--root", root.path)
    assert tree(target) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"format": 1, "left_out": 3}'])
def test_a_description_that_is_not_one_is_refused(target: Path, tmp_path: Path, text: bytes) -> None:
    (target / "backup.json").write_bytes(text)
    assert "backup.json is damaged" in refused("restore", target, "--root", tmp_path / "new")


def test_a_folder_without_a_description_is_no_backup(tmp_path: Path, root: PushedRoot) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a backup" in refused("restore", tmp_path / "empty", "--root", root.path)


def test_a_backup_copied_elsewhere_is_restored(target: Path, tmp_path: Path, root: PushedRoot) -> None:
    """To a medium that cannot be written, without the lock."""
    shutil.copytree(target, tmp_path / "copy", ignore=shutil.ignore_patterns("backup.lock"))
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    assert restored(tmp_path / "copy", tmp_path / "new").kept() == root.kept()


# ---- whose root it is ----


def test_an_owned_root_is_not_restored_into(target: Path, root: PushedRoot) -> None:
    before = root.kept()
    owner = take_root(root.path)
    try:
        said = refused("restore", target, "--root", root.path)
        assert f"the folder {root.path} is in use by another mirror, pid {os.getpid()}" in said
        assert root.kept() == before
        back_up(root.path, target)
    finally:
        os.close(owner)
    restored(target, root.path)


def test_nobody_can_own_it_while_it_is_restored(target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def check_space(folder: Path, sizes: list[int]) -> None:
        with (tmp_path / "new" / "owner.lock").open() as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            seen.append(folder)

    monkeypatch.setattr("mirror.store.restoring.check_space", check_space)
    restored(target, tmp_path / "new")
    assert seen == [tmp_path / "new"]
    os.close(take_root(tmp_path / "new"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_another_users_root_is_not_restored_into(target: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    os.chown(tmp_path / "new", 12345, 12345)
    assert "belongs to the user with id 12345; restore as that user" in refused(
        "restore", target, "--root", tmp_path / "new"
    )
    assert list((tmp_path / "new").glob("blobs/*/*")) == []


# ---- the command ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["backup"],
        ["restore"],
        ["backup", "x", "y"],
        ["backup", "--nonsense", "x"],
        ["restore", "/no/such"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: mirror store" in result.output


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_help_names_every_option(command: str) -> None:
    assert command in run("--help").output
    said = run(command, "--help").output
    for option in ("--config FILE", "--root DIR", "--json"):
        assert option in said


def test_the_root_is_that_of_the_configuration(tmp_path: Path, root: PushedRoot) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("storage: {root: root}\n")
    result = run("backup", tmp_path / "backup", "--config", file)
    assert (result.exit_code, result.stderr) == (0, "")
    amount = size(sum(map(len, root.kept().values())))
    assert result.stdout == (
        f"backed up 2 repositories with 5 manifests and 2 tags, 8 files of {amount} (8 copied, {amount}) to "
        f"{tmp_path / 'backup'}\n"
    )
    result = run("restore", tmp_path / "backup", "--config", file, "--root", tmp_path / "new")
    assert result.exit_code == 0
    assert result.stdout.startswith("restored 2 repositories with ")
    assert (tmp_path / "new" / "blobs").exists()


@pytest.mark.parametrize("command", ["backup", "restore"])
def test_problems_of_the_configuration_are_said(tmp_path: Path, command: str) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("storage: {rot: root}\n")
    target = tmp_path / "backup"
    if command == "restore":
        PushedRoot(tmp_path / "root").push(A, "v1", b"a")
        back_up(tmp_path / "root", target)
    assert f"{file}:1:11: storage.rot: unknown key" in refused(command, target, "--config", file)


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_progress_is_for_terminals(tmp_path: Path, root: PushedRoot, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    command = [sys.executable, "-m", "mirror", "store", "backup", "--root", str(root.path)]
    piped = subprocess.run([*command, str(tmp_path / "a")], cwd=PROJECT, capture_output=True, text=True)
    assert (piped.returncode, piped.stderr) == (0, "")
    shown = subprocess.run([*command, str(tmp_path / "b")], cwd=PROJECT, stdout=subprocess.PIPE, stderr=theirs)
    assert shown.returncode == 0
    assert select.select([ours], [], [], 10)[0], "something was shown"
    assert b"copying 0 % of " in os.read(ours, 65536)
    assert shown.stdout.startswith(b"backed up ")
