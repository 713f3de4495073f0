"""The metadata in SQLite: every question and every change, each one statement or one transaction."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mirror.metadata.base import Condition, Origin, TagMove, TagRecord
from mirror.metadata.database import Database
from mirror.oci.errors import ManifestBlobUnknown
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.names import Digest, Repository, Tag, parse_digest, try_digest

_LOCAL = "repository >= '|' AND repository < '}'"
"""Keys of our own repositories begin with the bar."""

_NAMED = "name = ? AND key = ?"


def _named(repository: Repository) -> tuple[str, str]:
    """Return both: ``up/app`` may be the app of an upstream, and a repository of our own."""
    return str(repository), repository.key


class SqliteMetadata:
    """The metadata of one root. Made and used on one event loop."""

    def __init__(self, path: Path, database: str, *, opener: Callable[[Path, str], Database] = Database) -> None:
        """database: the id it must have. opener: makes what reads and writes it."""
        self._database = opener(path, database)

    async def start(self) -> None:
        """Open the database. Raises: StorageFailed when it is another root's, of a newer version, or damaged."""
        await self._database.start()

    async def close(self) -> None:
        await self._database.close()

    # ---- reads by primary key ----

    def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        row = self._database.one(
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
        row = self._database.one("SELECT media_type FROM manifest WHERE digest = ?", (str(digest),))
        return row[0] if row else None

    def may_read(self, repository: Repository, digest: Digest) -> bool:
        one, text = self._database.one, str(digest)
        if one("SELECT 1 FROM link WHERE repository = ? AND digest = ?", (repository.key, text)):
            return True
        return repository.source is not None and one("SELECT 1 FROM public WHERE digest = ?", (text,)) is not None

    def holds(self, repository: Repository, digest: Digest) -> str | None:
        row = self._database.one(
            "SELECT media_type FROM pushed WHERE repository = ? AND digest = ?", (repository.key, str(digest))
        )
        return row[0] if row else None

    def exists(self, repository: Repository) -> bool:
        return self._database.one(f"SELECT 1 FROM repository WHERE {_NAMED}", _named(repository)) is not None

    def pushed_somewhere(self, digest: Digest) -> bool:
        return self._database.one(f"SELECT 1 FROM link WHERE digest = ? AND {_LOCAL}", (str(digest),)) is not None

    def expected_size(self, repository: Repository, digest: Digest) -> int | None:
        row = self._database.one(
            "SELECT size FROM child WHERE repository = ? AND digest = ?", (repository.key, str(digest))
        )
        return row[0] if row else None

    # ---- lists ----

    async def tags(self, repository: Repository, *, n: int, last: str = "") -> list[Tag]:
        rows = await self._database.many(
            "SELECT tag FROM tag WHERE repository = ? AND tag > ? ORDER BY tag LIMIT ?", (repository.key, last, n)
        )
        return [row[0] for row in rows]

    async def repositories(self, *, n: int, last: str = "") -> list[str]:
        rows = await self._database.many(
            "SELECT DISTINCT name FROM repository WHERE name > ? ORDER BY name LIMIT ?", (last, n)
        )
        return [row[0] for row in rows]

    async def referrers(
        self,
        repository: Repository,
        subject: Digest,
        *,
        artifact_type: str | None,
        n: int,
        last: str = "",
        room: int | None = None,
    ) -> list[Descriptor]:
        wanted = "" if artifact_type is None else " AND artifact_type = ?"
        values = [repository.key, str(subject), last, *([] if artifact_type is None else [artifact_type]), n]
        rows = await self._database.many(
            "SELECT digest, media_type, size, artifact_type, annotations FROM pushed"
            f" WHERE repository = ? AND subject = ? AND digest > ?{wanted} ORDER BY digest LIMIT ?",
            values,
            room=room,
        )
        return [
            Descriptor(
                digest=parse_digest(digest),
                media_type=media_type,
                size=size,
                artifact_type=kind,
                annotations=json.loads(annotations) if annotations else {},
            )
            for digest, media_type, size, kind, annotations in rows
        ]

    async def history(self, repository: Repository, tag: Tag, *, n: int, before: int | None = None) -> list[TagMove]:
        rows = await self._database.many(
            "SELECT number, at, digest, origin FROM history WHERE repository = ? AND tag = ? AND number < ?"
            " ORDER BY number DESC LIMIT ?",
            (repository.key, tag, 2**62 if before is None else before, n),
        )
        return [TagMove(number=row[0], at=row[1], digest=try_digest(row[2]), origin=row[3]) for row in rows]

    # ---- writes: pulled through ----

    async def put_manifest(self, repository: Repository, manifest: Manifest, *, public: bool) -> None:
        def write(database: sqlite3.Connection) -> None:
            _put_manifest(database, manifest)
            _put_sizes(database, repository, manifest.children)
            _grant(database, repository, manifest.descriptor.digest, public)

        await self._database.write(write)

    async def put_tag(self, record: TagRecord) -> None:
        await self._database.write(lambda database: _put_tag(database, record))

    async def forget_tag(self, repository: Repository, tag: Tag) -> None:
        def write(database: sqlite3.Connection) -> None:
            _drop_tag(database, repository, tag)
            _drop_if_empty(database, repository)

        await self._database.write(write)

    async def note_trouble(self, repository: Repository, tag: Tag, *, retry_at: float, trouble: str) -> None:
        def write(database: sqlite3.Connection) -> None:
            database.execute(
                "UPDATE tag SET retry_at = ?, trouble = ? WHERE repository = ? AND tag = ?",
                (retry_at, trouble, repository.key, tag),
            )

        await self._database.write(write)

    async def grant(self, repository: Repository, digest: Digest, *, public: bool) -> None:
        await self._database.write(lambda database: _grant(database, repository, digest, public))

    async def purge(self, repository: Repository, digest: Digest) -> None:
        text = str(digest)

        def write(database: sqlite3.Connection) -> None:
            for (tag,) in database.execute(
                "SELECT tag FROM tag WHERE repository = ? AND digest = ?", (repository.key, text)
            ).fetchall():
                _drop_tag(database, repository, tag)
            database.execute("DELETE FROM public WHERE digest = ?", (text,))
            theirs = f"FROM link WHERE digest = ? AND NOT ({_LOCAL})"
            keys = database.execute(f"SELECT repository {theirs}", (text,)).fetchall()
            database.execute(f"DELETE {theirs}", (text,))
            database.execute("DELETE FROM manifest WHERE digest = ?", (text,))
            for key in {repository.key, *(key for (key,) in keys)}:
                _drop_if_empty(database, Repository.from_key(key))

        await self._database.write(write)

    # ---- writes: pushed ----

    async def push_blob(self, repository: Repository, digest: Digest) -> None:
        await self._database.write(lambda database: _grant(database, repository, digest, False), durable=True)

    async def push_manifest(
        self,
        repository: Repository,
        manifest: Manifest,
        *,
        tags: Sequence[Tag],
        required: Sequence[Digest],
        condition: Condition | None,
        at: float,
    ) -> None:
        descriptor = manifest.descriptor

        def write(database: sqlite3.Connection) -> None:
            if condition is not None:
                for target in tags or (descriptor.digest,):
                    condition.check(_points_at(database, repository, target))
            missing = [digest for digest in dict.fromkeys(required) if not _has_blob(database, repository, digest)]
            if missing:
                raise ManifestBlobUnknown(
                    f"{len(missing)} of the manifest's blobs are not in {repository}: push them first, or set "
                    "push.missing_blobs: accept",
                    detail=[{"digest": str(digest)} for digest in missing],
                )
            database.execute(
                "INSERT OR REPLACE INTO pushed (repository, digest, media_type, size, artifact_type, annotations,"
                " subject, pushed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    repository.key,
                    str(descriptor.digest),
                    descriptor.media_type,
                    descriptor.size,
                    descriptor.artifact_type,
                    json.dumps(descriptor.annotations) if descriptor.annotations else None,
                    str(manifest.subject.digest) if manifest.subject else None,
                    at,
                ),
            )
            database.execute(  # what it was called the last time holds, also by the tags that are on it already
                "UPDATE tag INDEXED BY tag_digest SET media_type = ?"  # else it reads all tags of the repository
                " WHERE repository = ? AND digest = ? AND media_type <> ?",
                (descriptor.media_type, repository.key, str(descriptor.digest), descriptor.media_type),
            )
            _put_sizes(database, repository, manifest.manifests)
            _note_repository(database, repository)
            for tag in tags:
                _put_tag(database, _pushed_tag(repository, tag, descriptor, at))

        await self._database.write(write, durable=True)

    async def delete_tag(self, repository: Repository, tag: Tag, *, condition: Condition | None, at: float) -> bool:
        def write(database: sqlite3.Connection) -> bool:
            current = _points_at(database, repository, tag)
            if current is None:
                return False
            if condition is not None:
                condition.check(current)
            _drop_tag(database, repository, tag, origin="pushed", at=at)
            _drop_if_empty(database, repository)
            return True

        return await self._database.write(write, durable=True)

    async def delete_manifest(
        self, repository: Repository, digest: Digest, *, condition: Condition | None, at: float
    ) -> bool:
        row = (repository.key, str(digest))

        def write(database: sqlite3.Connection) -> bool:
            current = _points_at(database, repository, digest)
            if current is None:
                return False
            if condition is not None:
                condition.check(current)
            for (tag,) in database.execute("SELECT tag FROM tag WHERE repository = ? AND digest = ?", row).fetchall():
                _drop_tag(database, repository, tag, origin="pushed", at=at)
            database.execute("DELETE FROM pushed WHERE repository = ? AND digest = ?", row)
            _drop_if_empty(database, repository)
            return True

        return await self._database.write(write, durable=True)

    async def delete_blob(self, repository: Repository, digest: Digest) -> bool:
        row = (repository.key, str(digest))

        def write(database: sqlite3.Connection) -> bool:
            found = database.execute("DELETE FROM link WHERE repository = ? AND digest = ?", row).rowcount > 0
            _drop_if_empty(database, repository)
            return found

        return await self._database.write(write, durable=True)

    async def unused(self, digest: Digest) -> bool:
        values = (str(digest),)

        def ask(database: sqlite3.Connection) -> bool:
            for table in ("link", "pushed"):
                query = f"SELECT 1 FROM {table} WHERE digest = ? AND {_LOCAL}"
                if database.execute(query, values).fetchone():
                    return False
            return True

        return await self._database.write(ask)


# ---- inside a transaction ----


def _put_manifest(database: sqlite3.Connection, manifest: Manifest) -> None:
    """Note what upstreams say of a manifest: what a client pushes the same bytes as is in ``pushed`` alone."""
    descriptor = manifest.descriptor
    database.execute(
        "INSERT OR REPLACE INTO manifest (digest, media_type, size, artifact_type, subject) VALUES (?, ?, ?, ?, ?)",
        (
            str(descriptor.digest),
            descriptor.media_type,
            descriptor.size,
            descriptor.artifact_type,
            str(manifest.subject.digest) if manifest.subject else None,
        ),
    )


def _put_sizes(database: sqlite3.Connection, repository: Repository, children: Sequence[Descriptor]) -> None:
    """Note what a manifest of a repository names, and the sizes that it gives."""
    database.executemany(
        "INSERT OR REPLACE INTO child (repository, digest, size) VALUES (?, ?, ?)",
        [(repository.key, str(child.digest), child.size) for child in children],
    )


def _note_repository(database: sqlite3.Connection, repository: Repository) -> None:
    database.execute("INSERT OR IGNORE INTO repository (name, key) VALUES (?, ?)", _named(repository))


def _drop_if_empty(database: sqlite3.Connection, repository: Repository) -> None:
    """Forget a repository that has nothing any more."""
    for table in ("tag", "pushed", "link"):
        if database.execute(f"SELECT 1 FROM {table} WHERE repository = ? LIMIT 1", (repository.key,)).fetchone():
            return
    database.execute(f"DELETE FROM repository WHERE {_NAMED}", _named(repository))
    database.execute("DELETE FROM child WHERE repository = ?", (repository.key,))


def _grant(database: sqlite3.Connection, repository: Repository, digest: Digest, public: bool) -> None:
    text = str(digest)
    database.execute("INSERT OR IGNORE INTO link (repository, digest) VALUES (?, ?)", (repository.key, text))
    if public:
        database.execute("INSERT OR IGNORE INTO public (digest) VALUES (?)", (text,))
    _note_repository(database, repository)


def _has_blob(database: sqlite3.Connection, repository: Repository, digest: Digest) -> bool:
    row = (repository.key, str(digest))
    return database.execute("SELECT 1 FROM link WHERE repository = ? AND digest = ?", row).fetchone() is not None


def _points_at(database: sqlite3.Connection, repository: Repository, target: Tag | Digest) -> Digest | None:
    """Return the digest of a tag, or of a pushed manifest when it is here."""
    if isinstance(target, Digest):
        query = "SELECT digest FROM pushed WHERE repository = ? AND digest = ?"
    else:
        query = "SELECT digest FROM tag WHERE repository = ? AND tag = ?"
    row = database.execute(query, (repository.key, str(target))).fetchone()
    return parse_digest(row[0]) if row else None


def _pushed_tag(repository: Repository, tag: Tag, descriptor: Descriptor, at: float) -> TagRecord:
    return TagRecord(
        repository=repository,
        tag=tag,
        digest=descriptor.digest,
        media_type=descriptor.media_type,
        size=descriptor.size,
        origin="pushed",
        checked_at=at,
        fresh_until=at,
    )


def _put_tag(database: sqlite3.Connection, record: TagRecord) -> None:
    """Write what a tag points at, and when that is new its history."""
    repository = record.repository
    before = _points_at(database, repository, record.tag)
    database.execute(
        "INSERT OR REPLACE INTO tag (repository, tag, digest, media_type, size, origin, checked_at,"
        " fresh_until, retry_at, trouble, previous) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            repository.key,
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
    if before != record.digest:
        _note_move(database, repository, record.tag, record.digest, record.origin, record.checked_at)
        _note_repository(database, repository)


def _drop_tag(
    database: sqlite3.Connection, repository: Repository, tag: Tag, origin: Origin = "pulled", at: float | None = None
) -> None:
    if database.execute("DELETE FROM tag WHERE repository = ? AND tag = ?", (repository.key, tag)).rowcount:
        _note_move(database, repository, tag, None, origin, at)


def _note_move(
    database: sqlite3.Connection,
    repository: Repository,
    tag: Tag,
    digest: Digest | None,
    origin: Origin,
    at: float | None,
) -> None:
    database.execute(
        "INSERT INTO history (repository, tag, digest, origin, at) VALUES (?, ?, ?, ?, ?)",
        (repository.key, tag, str(digest) if digest else None, origin, time.time() if at is None else at),
    )
