"""How the metadata is kept: what is synced, which index answers each question, older databases."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.metadata.base import Condition, MetadataStore
from mirror.metadata.database import _Waiting
from mirror.metadata.schema import VERSION
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed
from mirror.oci.names import Repository, RepositoryName, Tag
from tests.metadata import (
    ELSEWHERE,
    HERE,
    ID,
    IMAGE,
    LOCAL,
    OTHER_LOCAL,
    TAG,
    THERE,
    Open,
    push,
    some_artifact,
    some_digest,
    some_manifest,
    some_tag,
)

ANY = Condition(match=frozenset(["*"]))
NORMAL, FULL = 1, 2
MANIFEST = some_manifest((some_digest(), 1))
DIGEST = MANIFEST.descriptor.digest
KIND = "application/vnd.example.sbom"

Call = Callable[[SqliteMetadata], Awaitable[Any]]

PULLED: dict[str, Call] = {
    "put_manifest": lambda m: m.put_manifest(HERE, MANIFEST, public=True),
    "put_tag": lambda m: m.put_tag(some_tag(digest=DIGEST)),
    "note_trouble": lambda m: m.note_trouble(HERE, TAG, retry_at=1.0, trouble="{}"),
    "grant": lambda m: m.grant(THERE, DIGEST, public=False),
    "purge": lambda m: m.purge(HERE, DIGEST),
    "forget_tag": lambda m: m.forget_tag(HERE, TAG),
}
PUSHED: dict[str, Call] = {
    "push_blob": lambda m: m.push_blob(LOCAL, some_digest()),
    "push_manifest": lambda m: push(
        m, LOCAL, some_artifact(DIGEST, 1, KIND), "v1", "v2", required=[some_digest()], condition=Condition()
    ),
    "delete_tag": lambda m: m.delete_tag(LOCAL, TAG, condition=ANY, at=1.0),
    "delete_manifest": lambda m: m.delete_manifest(
        LOCAL, some_artifact(DIGEST, 1, KIND).descriptor.digest, condition=ANY, at=1.0
    ),
    "delete_blob": lambda m: m.delete_blob(LOCAL, some_digest()),
}


# ---- durable ----


@pytest.fixture
async def synced(metadata: SqliteMetadata, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is in force in each transaction, from within it, just before it is committed."""
    seen: list[int] = []
    real = metadata._database._commit

    def look(database: sqlite3.Connection) -> None:
        assert database.in_transaction
        seen.append(database.execute("PRAGMA synchronous").fetchone()[0])

    def commit(batch: list[_Waiting]) -> list[Any]:
        nobody: asyncio.Future[None] = asyncio.Future(loop=loop)
        return real([*batch, _Waiting(look, nobody, False)])[:-1]

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(metadata._database, "_commit", commit)
    return seen


async def test_what_is_pushed_is_synced_and_what_is_pulled_is_not(metadata: SqliteMetadata, synced: list[int]) -> None:
    """With FULL the log is synced by each commit, with NORMAL when it is moved into the database."""
    for _ in range(2):
        for level, calls in ((FULL, PUSHED), (NORMAL, PULLED)):
            for name, call in calls.items():
                synced.clear()
                await call(metadata)
                assert synced == [level], name


async def test_a_transaction_with_something_pushed_in_it_is_synced(metadata: SqliteMetadata, synced: list[int]) -> None:
    await asyncio.gather(
        metadata.grant(HERE, some_digest(1), public=False),
        metadata.push_blob(LOCAL, some_digest(2)),
        metadata.grant(HERE, some_digest(3), public=False),
    )
    assert synced == [FULL]
    await asyncio.gather(*(metadata.grant(HERE, some_digest(n), public=False) for n in range(3)))
    assert synced == [FULL, NORMAL]


async def test_what_is_pushed_is_synced_though_another_write_of_its_transaction_failed(
    metadata: SqliteMetadata, synced: list[int]
) -> None:
    await asyncio.gather(
        metadata.put_tag(some_tag(size=2**70)),
        metadata.push_blob(LOCAL, some_digest(2)),
        metadata.grant(HERE, some_digest(3), public=False),
        return_exceptions=True,
    )
    assert synced == [FULL, NORMAL]  # those that failed do not come to the look


async def test_the_log_is_what_is_synced(metadata: SqliteMetadata, tmp_path: Path) -> None:
    """Synced is not synced in every journal mode: in the others a commit is not one write to one log."""
    await metadata.push_blob(LOCAL, some_digest())
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


# ---- every question has an index ----

ASKED: dict[str, Call] = {
    "tags": lambda m: m.tags(LOCAL, n=3, last="a"),
    "repositories": lambda m: m.repositories(n=3, last="a"),
    "referrers": lambda m: m.referrers(LOCAL, DIGEST, artifact_type=None, n=3, last="a"),
    "referrers of a kind": lambda m: m.referrers(LOCAL, DIGEST, artifact_type=KIND, n=3, last="a"),
    "history": lambda m: m.history(LOCAL, TAG, n=3),
    "history before": lambda m: m.history(LOCAL, TAG, n=3, before=10**6),
}
BEGINS = {
    "tags": "repository=? AND tag>?",
    "repositories": "name>?",
    "referrers": "repository=? AND subject=? AND digest>?",
    "referrers of a kind": "repository=? AND subject=? AND artifact_type=? AND digest>?",
    "history": "repository=? AND tag=? AND number<?",
    "history before": "repository=? AND tag=? AND number<?",
}
"""What is looked up in the index: where the page begins, and nothing of it is passed over."""

SCANS = ("SCAN", "TEMP B-TREE", "AUTOMATIC")
"""What a plan says of reading a whole table, of sorting, and of an index made for one question."""


def plan(database: sqlite3.Connection, query: str, values: Any = ()) -> str:
    rows = database.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
    return "; ".join(row[3] for row in rows)


@contextmanager
def statements(metadata: SqliteMetadata, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Give every statement that the metadata lets SQLite run meanwhile, with its values."""
    seen: list[tuple[str, Any]] = []
    database = metadata._database
    writer, one, many = database._writer, database.one, database._many
    assert writer is not None

    def note_one(query: str, values: Any) -> Any:
        seen.append((query, values))
        return one(query, values)

    def note_many(query: str, values: Any) -> Any:
        seen.append((query, values))
        return many(query, values)

    def trace(statement: str) -> None:
        seen.append((statement, ()))  # with its values in it

    with monkeypatch.context() as patch:
        patch.setattr(database, "one", note_one)
        patch.setattr(database, "_many", note_many)
        database._writing.submit(writer.set_trace_callback, trace).result(20)
        yield seen
        database._writing.submit(writer.set_trace_callback, None).result(20)


@pytest.fixture
async def filled(open_metadata: Open) -> SqliteMetadata:
    """A database in which each table has rows, of several repositories."""
    metadata = await open_metadata()
    for repository in (LOCAL, OTHER_LOCAL):
        for n in range(20):
            await metadata.push_blob(repository, some_digest(n))
            await push(metadata, repository, some_artifact(DIGEST, n, KIND if n % 2 else None), f"v{n}", f"w{n}")
    for repository in (HERE, THERE, ELSEWHERE):
        await metadata.put_manifest(repository, MANIFEST, public=True)
        await metadata.put_tag(some_tag(repository=repository, digest=DIGEST))
    return metadata


@pytest.mark.parametrize("name", ASKED)
async def test_a_page_of_a_list_is_read_from_an_index_in_its_order(
    filled: SqliteMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Which is why it costs the same with ten rows or with a hundred thousand, wherever it begins."""
    with statements(filled, monkeypatch) as seen:
        await ASKED[name](filled)
    assert len(seen) == 1
    query, values = seen[0]
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as database:
        found = plan(database, query, values)
        assert found.startswith("SEARCH"), found
        assert ";" not in found, found
        assert found.endswith(f"({BEGINS[name]})"), found
        assert not any(word in found.upper() for word in SCANS), found
        # The same look at a question without an index sees that.
        assert "SCAN" in plan(database, "SELECT tag FROM tag WHERE origin = 'pushed'")
        assert "TEMP B-TREE" in plan(database, "SELECT tag FROM tag WHERE repository = 'x' ORDER BY size")


def more_rows(path: Path, numbers: range) -> None:
    """Put many more rows behind and between those of ``filled``."""
    about, other = str(DIGEST), "application/vnd.example.other"
    digests = [str(some_digest(k)) for k in range(1000 + numbers.start, 1000 + numbers.stop)]
    rows: dict[str, list[tuple[Any, ...]]] = {
        "tag (repository, tag, digest, media_type, size, origin, checked_at, fresh_until, retry_at)": [
            (LOCAL.key, f"v{k:05}", about, "", 0, "pushed", 0, 0, 0) for k in numbers
        ],
        "repository (name, key)": [(f"many/{k:05}", f"|many/{k:05}") for k in numbers],
        "pushed (repository, digest, media_type, size, artifact_type, subject, pushed_at)": [
            (LOCAL.key, digest, IMAGE, 0, other, about if at % 9 == 0 else other, 0)
            for at, digest in enumerate(digests)
        ],
        "history (repository, tag, digest, origin, at)": [(LOCAL.key, TAG, about, "pushed", 0) for _ in digests],
    }
    with closing(sqlite3.connect(path)) as database, database:
        for into, values in rows.items():
            marks = ", ".join("?" for _ in values[0])
            database.executemany(f"INSERT INTO {into} VALUES ({marks})", values)


@pytest.mark.parametrize("name", ASKED)
async def test_a_page_costs_the_same_however_many_rows_there_are(
    filled: SqliteMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Counted in steps of SQLite's machine, which are the same each time."""
    path = tmp_path / "metadata.db"
    with statements(filled, monkeypatch) as seen:
        await ASKED[name](filled)
    ((query, values),) = seen

    def steps(query: str, values: Any) -> int:
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT 1 FROM meta").fetchall()  # reads the schema
            database.set_progress_handler(step, 1)
            assert len(database.execute(query, values).fetchall()) == 3
        return count

    slow = "SELECT tag FROM tag WHERE repository = ? AND origin = 'pushed' ORDER BY size LIMIT 3"
    more_rows(path, range(10))
    few, few_slow = steps(query, values), steps(slow, [LOCAL.key])
    more_rows(path, range(10, 5000))
    assert steps(query, values) == few > 3
    assert steps(slow, [LOCAL.key]) > 20 * few_slow, "a question without an index costs more"


READ: dict[str, Callable[[SqliteMetadata], Any]] = {
    "tag": lambda m: m.tag(LOCAL, Tag("v3")),
    "media_type": lambda m: m.media_type(DIGEST),
    "may_read": lambda m: m.may_read(Repository("up", RepositoryName("no/right")), DIGEST),
    "holds": lambda m: m.holds(LOCAL, some_artifact(DIGEST, 3, KIND).descriptor.digest),
    "exists": lambda m: m.exists(LOCAL),
    "pushed_somewhere": lambda m: m.pushed_somewhere(some_digest(3)),
    "expected_size": lambda m: m.expected_size(HERE, MANIFEST.children[0].digest),
}


async def test_nothing_that_is_asked_or_changed_reads_a_whole_table(
    filled: SqliteMetadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Call] = {**PULLED, **PUSHED, "unused": lambda m: m.unused(some_digest(999))}
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as database:
        for name, read in READ.items():
            with statements(filled, monkeypatch) as seen:
                assert read(filled), name
            assert seen
            for query, values in seen:
                assert plan(database, query, values).startswith("SEARCH"), query
        for name, call in changes.items():
            with statements(filled, monkeypatch) as seen:
                await call(filled)
            looked = [query for query, _ in seen if query.startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))]
            assert looked, name
            for query in looked:
                found = plan(database, query)
                assert not any(word in found.upper() for word in SCANS), (query, found)
                given = re.findall(r"(\w+) = ", query.partition(" WHERE ")[2])
                assert all(f"{column}=?" in found for column in given), f"{query} looks at more than it wants: {found}"
    asked = {name.split()[0] for name in (*ASKED, *READ, *changes)}
    protocol = {name for name in vars(MetadataStore) if not name.startswith("_")}
    assert asked == protocol, "all of it was looked at"


# ---- older databases ----

VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE manifest (
    digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, size INTEGER NOT NULL,
    artifact_type TEXT, subject TEXT) WITHOUT ROWID;
CREATE TABLE public (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE link (
    repository TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE child (
    repository TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE tag (
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL,
    size INTEGER NOT NULL, origin TEXT NOT NULL, checked_at REAL NOT NULL, fresh_until REAL NOT NULL,
    retry_at REAL NOT NULL, trouble TEXT, previous TEXT, PRIMARY KEY (repository, tag)) WITHOUT ROWID;
PRAGMA user_version = 1;
"""
"""As the first version laid it out."""


@pytest.fixture
def first_version(tmp_path: Path) -> Path:
    """A database of the first version, with rows."""
    path = tmp_path / "metadata.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript(VERSION_1)
        database.execute("INSERT INTO meta VALUES ('database', ?)", (ID,))
        database.execute("INSERT INTO manifest VALUES (?, ?, 500, NULL, NULL)", (str(DIGEST), IMAGE))
        database.execute("INSERT INTO public VALUES (?)", (str(some_digest(3)),))
        for repository, n in ((HERE, 1), (HERE, 2), (ELSEWHERE, 1)):
            database.execute("INSERT INTO link VALUES (?, ?)", (repository.key, str(some_digest(n))))
        database.execute("INSERT INTO child VALUES (?, ?, 77)", (HERE.key, str(some_digest(1))))
        for repository, tag, n, at in ((HERE, "new", 1, 30.5), (THERE, "v1", 2, 10.5), (HERE, "old", 2, 20.5)):
            database.execute(
                "INSERT INTO tag VALUES (?, ?, ?, ?, 500, 'pulled', ?, 60.5, 0.0, 'why', ?)",
                (repository.key, tag, str(some_digest(n)), IMAGE, at, str(some_digest(9))),
            )
    return path


async def test_a_database_of_the_first_version_is_taken_over(first_version: Path, open_metadata: Open) -> None:
    for again in (False, True):
        metadata = await open_metadata()
        assert metadata.tag(HERE, Tag("new")) == some_tag(
            tag=Tag("new"), checked_at=30.5, fresh_until=60.5, trouble="why", previous=some_digest(9)
        )
        assert metadata.media_type(DIGEST) == IMAGE
        assert metadata.may_read(HERE, some_digest(2))
        assert metadata.may_read(THERE, some_digest(3))
        assert not metadata.may_read(ELSEWHERE, some_digest(2))
        assert metadata.expected_size(HERE, some_digest(1)) == 77
        assert await metadata.tags(HERE, n=9) == ["new", "old"]
        assert await metadata.repositories(n=9) == ["other/team/app", "up/team/app", "up/x/y"], again
        for repository in (HERE, THERE, ELSEWHERE):
            assert metadata.exists(repository)
        (new,) = await metadata.history(HERE, Tag("new"), n=9)
        (old,) = await metadata.history(HERE, Tag("old"), n=9)
        assert (new.digest, new.at, new.origin) == (some_digest(1), 30.5, "pulled")
        assert (old.digest, old.at, old.origin) == (some_digest(2), 20.5, "pulled")
        assert old.number < new.number, "numbers grow with time"
        await metadata.close()
    with closing(sqlite3.connect(first_version)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_database_that_was_taken_over_is_like_a_new_one(first_version: Path, tmp_path: Path) -> None:
    def tables(path: Path) -> list[Any]:
        with closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()
            return [(kind, name, " ".join(sql.split()) if sql else None) for kind, name, sql in rows]

    for path in (first_version, tmp_path / "new.db"):
        metadata = SqliteMetadata(path, ID)
        await metadata.start()
        await push(metadata, LOCAL, MANIFEST, "v1")
        assert await metadata.tags(LOCAL, n=9) == ["v1"]
        await metadata.close()
    assert tables(first_version) == tables(tmp_path / "new.db")


async def test_several_take_it_over_at_once(first_version: Path, open_metadata: Open) -> None:
    stores = await asyncio.gather(*(open_metadata() for _ in range(4)))
    for metadata in stores:
        assert len(await metadata.repositories(n=9)) == 3
        assert len(await metadata.history(HERE, Tag("new"), n=9)) == 1


async def test_a_takeover_that_fails_changes_nothing(first_version: Path, open_metadata: Open) -> None:
    def dump() -> list[str]:
        with closing(sqlite3.connect(first_version)) as database:
            return [*database.iterdump(), str(database.execute("PRAGMA user_version").fetchone())]

    before = dump()
    with pytest.raises(StorageFailed, match="another root"):
        await open_metadata("another-id")
    assert dump() == before
    await open_metadata()
    assert dump() != before
