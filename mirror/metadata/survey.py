"""What a root has and what it is used for, added up in SQL: in time and memory that the number of rows decides.

What repositories have is what they have a right to, what their manifests name, and what their tags point at; of that,
what is here. Content that several of them have counts in each of them, once in their upstream, and once in the whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mirror.metadata.database import database_errors
from mirror.metadata.looking import Look, look
from mirror.oci.names import Repository

By = Literal["size", "pulls", "age"]
"""In which order repositories are listed: most bytes, most pulls, longest not used."""

_OURS = "repository >= '|' AND repository < '}'"
_ORDER = {"size": "bytes DESC", "pulls": "pulls DESC", "age": "newest"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A table in another database. rows: a SELECT of it, {schema} stands for that database; empty: one without rows."""

    path: Path
    rows: str
    empty: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """Content that is here. oldest, newest: when it was used last, Unix seconds; None where that is not known.

    unused, unused_bytes: of it, what nobody used for a while.
    """

    manifests: int
    blobs: int
    bytes: int
    oldest: float | None
    newest: float | None
    unused: int
    unused_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was answered with: from what was kept (hits), and with an upstream's help (misses); bytes of bodies."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    miss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """An upstream by its concrete name, or our own repositories (None)."""

    source: str | None
    repositories: int
    tags: int
    amount: Amount
    pulls: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryRow:
    """A repository that has something here, or was asked for."""

    repository: Repository
    tags: int
    amount: Amount
    pulls: int
    traffic: Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """A manifest that was pulled. tags: what points at it now; before: what did before. last: Unix seconds."""

    repository: Repository
    digest: str
    tags: tuple[str, ...]
    before: tuple[str, ...]
    pulls: int
    last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """What was found. pulled, pushed: content once each; both: content that is both, in one file.

    nobodys: pulled content that no repository has any more. counted_since: Unix seconds, None for never.
    """

    pulled: Amount
    pushed: Amount
    both_bytes: int
    nobodys: Amount
    sources: tuple[SourceRow, ...]
    repositories: tuple[RepositoryRow, ...]
    images: tuple[ImageRow, ...]
    counted_since: float | None


class Survey:
    """Adds up one root. Blocks; changes nothing.

    resident: digest, size, used (Unix seconds) of what was pulled through. pulls: repository, digest, pulls, last.
    traffic: repository, hits, misses, hit_bytes, miss_bytes. since: one number, Unix seconds.
    """

    def __init__(
        self, path: Path, identity: str, *, resident: Beside, pulls: Beside, traffic: Beside, since: Beside
    ) -> None:
        self._path = path
        self._identity = identity
        self._beside = {"resident": resident, "pulls": pulls, "traffic": traffic, "since": since}

    def read(
        self,
        files: Callable[[], Iterable[tuple[str, int]]],
        named: Callable[[str], Iterable[str]],
        *,
        top: int,
        by: By,
        unused_since: float,
    ) -> Surveyed:
        """Add up. files: gives digest and size of each pushed file. top: how many repositories and images.

        named: gives the digests that a manifest names, asked only of what a repository took over from others, who
        fetched it without credentials: of that there are no rows. unused_since: Unix seconds; what was not used since
        is unused. Raises: StorageFailed.
        """
        there = {name: one for name, one in self._beside.items() if one.path.exists()}
        schemas = {path: f"beside{at}" for at, path in enumerate(dict.fromkeys(one.path for one in there.values()))}

        def make() -> Look:
            return Look(self._path, self._identity, beside={schema: path for path, schema in schemas.items()})

        def rows(name: str) -> str:
            one = self._beside[name]
            return one.rows.format(schema=schemas[one.path]) if name in there else one.empty

        def add_up(found: Look) -> Surveyed:
            with database_errors("reading"):
                return _add_up(found.connection, rows, files(), named, top, by, unused_since)

        return look(make, add_up)


_TABLES = """
PRAGMA main.cache_size = -16384;
PRAGMA temp.cache_size = -16384;
CREATE TEMP TABLE thing (
    id INTEGER PRIMARY KEY, digest TEXT, size INTEGER, used REAL, manifest INTEGER, pushed INTEGER);
CREATE TEMP TABLE held (repository TEXT, id INTEGER, PRIMARY KEY (repository, id)) WITHOUT ROWID;
CREATE TEMP TABLE part (repository TEXT, digest TEXT, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TEMP TABLE pulled (repository TEXT PRIMARY KEY, pulls INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE traffic (
    repository TEXT PRIMARY KEY, hits INTEGER, misses INTEGER, hit_bytes INTEGER, miss_bytes INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE listed (
    repository TEXT PRIMARY KEY, manifests INTEGER, blobs INTEGER, bytes INTEGER, oldest REAL, newest REAL,
    unused INTEGER, unused_bytes INTEGER, tags INTEGER, pulls INTEGER) WITHOUT ROWID;
"""

_AMOUNT = (
    "coalesce(sum(manifest), 0), coalesce(sum(NOT manifest), 0), coalesce(sum(size), 0), min(used), max(used),"
    " count(*) FILTER (WHERE used < :since), coalesce(sum(size) FILTER (WHERE used < :since), 0)"
)
_SOURCE = "substr({0}, 1, instr({0}, '|') - 1)"
_TRAFFIC = "hits, misses, hit_bytes, miss_bytes"


def _add_up(
    database: sqlite3.Connection,
    rows: Callable[[str], str],
    files: Iterable[tuple[str, int]],
    named: Callable[[str], Iterable[str]],
    top: int,
    by: By,
    unused_since: float,
) -> Surveyed:
    for statement in filter(str.strip, _TABLES.split(";")):
        database.execute(statement)
    database.execute("BEGIN")  # one moment of all tables
    _collect(database, rows, files)
    _follow_tags(database, named)
    database.execute(
        f"INSERT INTO pulled SELECT repository, sum(pulls) FROM ({rows('pulls')}) p WHERE {_TOP} GROUP BY repository"
    )
    database.execute(f"INSERT INTO traffic SELECT repository, {_TRAFFIC} FROM ({rows('traffic')})")
    given = {"since": unused_since, "top": top}
    (both,) = database.execute(
        "SELECT coalesce(sum(p.size), 0) FROM thing p JOIN thing r USING (digest) WHERE p.pushed AND NOT r.pushed"
    ).fetchone()
    since = database.execute(rows("since")).fetchone()
    return Surveyed(
        pulled=_amount(database.execute(f"SELECT {_AMOUNT} FROM thing WHERE NOT pushed", given).fetchone()),
        pushed=_amount(database.execute(f"SELECT {_AMOUNT} FROM thing WHERE pushed", given).fetchone()),
        both_bytes=both,
        nobodys=_amount(
            database.execute(
                f"SELECT {_AMOUNT} FROM thing WHERE NOT pushed AND id NOT IN (SELECT id FROM held)", given
            ).fetchone()
        ),
        sources=tuple(_sources(database, given)),
        repositories=tuple(_repositories(database, given, by)),
        images=tuple(_images(database, rows("pulls"), given)),
        counted_since=since[0] if since else None,
    )


def _collect(database: sqlite3.Connection, rows: Callable[[str], str], files: Iterable[tuple[str, int]]) -> None:
    """Fill the tables: what is here, which repository has it, and what each was used for."""
    database.execute(
        "INSERT INTO thing (digest, size, used, manifest, pushed) SELECT r.digest, r.size, r.used,"
        f" EXISTS (SELECT 1 FROM manifest m WHERE m.digest = r.digest), 0 FROM ({rows('resident')}) r"
    )
    database.executemany(
        "INSERT INTO thing (digest, size, used, manifest, pushed) SELECT f.digest, f.size, NULL,"
        " EXISTS (SELECT 1 FROM pushed p WHERE p.digest = f.digest), 1 FROM (SELECT ? AS digest, ? AS size) f",
        files,
    )
    database.execute("CREATE UNIQUE INDEX temp.thing_digest ON thing (digest, pushed)")
    for table, pushed in (("link", 0), ("child", 0), ("link", 1), ("pushed", 1)):
        database.execute(
            "INSERT OR IGNORE INTO held SELECT h.repository, t.id"
            f" FROM {table} h CROSS JOIN thing t ON t.digest = h.digest AND t.pushed = {pushed}"
            f" WHERE ({_OURS}) = {pushed}"
        )


def _follow_tags(database: sqlite3.Connection, named: Callable[[str], Iterable[str]]) -> None:
    """Give repositories what their tags point at, where there are no rows of it."""
    taken = database.execute(
        "SELECT t.repository, t.digest FROM main.tag t JOIN thing i ON i.digest = t.digest AND NOT i.pushed"
        f" WHERE NOT ({_OURS}) AND NOT EXISTS (SELECT 1 FROM held h WHERE h.repository = t.repository AND h.id = i.id)"
        " LIMIT ?",
        (MOST_FOLLOWED,),
    ).fetchall()
    for repository, top in taken:
        waiting, seen = [top], {top}
        while waiting:
            digest = waiting.pop()
            found = database.execute(
                "SELECT id, manifest FROM thing WHERE digest = ? AND NOT pushed", (digest,)
            ).fetchone()
            if found is None:
                continue
            database.execute("INSERT OR IGNORE INTO held VALUES (?, ?)", (repository, found[0]))
            if found[1]:
                names = list(named(digest))
                database.executemany("INSERT OR IGNORE INTO part VALUES (?, ?)", [(repository, one) for one in names])
                more = [one for one in names if one not in seen]
                seen.update(more)
                waiting += more


MOST_FOLLOWED = 10_000
"""Tags whose manifests are read."""

_TOP = " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM {table} c WHERE c.repository = p.repository AND c.digest = p.digest)"
    for table in ("main.child", "temp.part")
)
"""Of pulls: what is no part of another manifest. A client that pulls an image gets its index, then one of its parts."""


def _sources(database: sqlite3.Connection, given: dict[str, Any]) -> Iterator[SourceRow]:
    """Give each upstream that has anything, and our own repositories, the one with most bytes first."""
    once = f"(SELECT DISTINCT {_SOURCE.format('repository')} AS source, id FROM held) JOIN thing USING (id)"
    amounts = {row[0]: row[1:] for row in database.execute(f"SELECT source, {_AMOUNT} FROM {once} GROUP BY 1", given)}
    counts = {
        name: dict(database.execute(f"SELECT {_SOURCE.format(column)}, {value} FROM {table} GROUP BY 1").fetchall())
        for name, table, column, value in (
            ("repositories", "main.repository", "key", "count(*)"),
            ("tags", "main.tag", "repository", "count(*)"),
            ("pulls", "temp.pulled", "repository", "sum(pulls)"),
        )
    }
    traffic = {
        row[0].removesuffix("|"): Traffic(hits=row[1], misses=row[2], hit_bytes=row[3], miss_bytes=row[4])
        for row in database.execute(f"SELECT repository, {_TRAFFIC} FROM traffic WHERE repository LIKE '%|'")
    }
    names = {*amounts, *traffic, *(name for one in counts.values() for name in one)}
    for name in sorted(names, key=lambda name: (-(amounts[name][2] if name in amounts else 0), name)):
        yield SourceRow(
            source=name or None,
            repositories=counts["repositories"].get(name, 0),
            tags=counts["tags"].get(name, 0),
            amount=_amount(amounts.get(name, _NOTHING)),
            pulls=counts["pulls"].get(name, 0),
            traffic=traffic.get(name, Traffic()),
        )


def _repositories(database: sqlite3.Connection, given: dict[str, Any], by: By) -> Iterator[RepositoryRow]:
    database.execute(
        f"INSERT INTO listed SELECT repository, {_AMOUNT},"
        " (SELECT count(*) FROM main.tag t WHERE t.repository = held.repository),"
        " coalesce((SELECT pulls FROM pulled p WHERE p.repository = held.repository), 0)"
        " FROM held JOIN thing USING (id) GROUP BY repository",
        given,
    )
    used = " WHERE newest IS NOT NULL" if by == "age" else ""
    found = database.execute(
        f"SELECT repository, tags, pulls, coalesce(hits, 0), coalesce(misses, 0), coalesce(hit_bytes, 0),"
        " coalesce(miss_bytes, 0), manifests, blobs, bytes, oldest, newest, unused, unused_bytes"
        f" FROM listed LEFT JOIN traffic USING (repository){used} ORDER BY {_ORDER[by]}, repository LIMIT :top",
        given,
    )
    for key, tags, pulls, hits, misses, hit_bytes, miss_bytes, *amount in found:
        yield RepositoryRow(
            repository=Repository.from_key(key),
            tags=tags,
            amount=_amount(amount),
            pulls=pulls,
            traffic=Traffic(hits=hits, misses=misses, hit_bytes=hit_bytes, miss_bytes=miss_bytes),
        )


def _images(database: sqlite3.Connection, pulls: str, given: dict[str, Any]) -> Iterator[ImageRow]:
    """Give what was pulled most, with what it is called, or was."""
    found = database.execute(
        f"SELECT repository, digest, pulls, last FROM ({pulls}) p WHERE {_TOP}"
        " ORDER BY pulls DESC, last DESC, repository, digest LIMIT :top",
        given,
    ).fetchall()
    for key, digest, count, last in found:
        values = (key, digest, SHOWN)
        now = database.execute("SELECT tag FROM tag WHERE repository = ? AND digest = ? ORDER BY tag LIMIT ?", values)
        tags = tuple(tag for (tag,) in now)
        before: tuple[str, ...] = ()
        if not tags:
            was = database.execute(
                "SELECT DISTINCT tag FROM history WHERE repository = ? AND digest = ? ORDER BY tag LIMIT ?", values
            )
            before = tuple(tag for (tag,) in was)
        yield ImageRow(
            repository=Repository.from_key(key), digest=digest, tags=tags, before=before, pulls=count, last=last
        )


SHOWN = 3
"""Tags of one image that are told."""

_NOTHING = (0, 0, 0, None, None, 0, 0)


def _amount(row: Iterable[Any]) -> Amount:
    manifests, blobs, size, oldest, newest, unused, unused_bytes = row
    return Amount(
        manifests=manifests,
        blobs=blobs,
        bytes=size,
        oldest=oldest,
        newest=newest,
        unused=unused,
        unused_bytes=unused_bytes,
    )
