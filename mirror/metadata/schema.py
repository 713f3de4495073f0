"""The tables, drawn once. A repository is written as its ``key``: ``upstream|name``, and ``|name`` for our own.

manifest    what upstreams say of manifests, whoever has them
public      content fetched without credentials
link        which repository may read which content; of our own: which blobs it has
child       what the manifests of an upstream's repository name, and its size; of our own: what indexes name
pushed      the manifests of our own repositories; its rows can be megabytes of annotations, which is why they are
            not in the tree of their key: a search would read every row it passes
tag         what each tag points at
history     every move of every tag
repository  names, as the catalog lists them
"""

from __future__ import annotations

import sqlite3

VERSION = 2

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifest (
    digest TEXT PRIMARY KEY, media_type TEXT NOT NULL, size INTEGER NOT NULL,
    artifact_type TEXT, subject TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS public (digest TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS link (
    repository TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS link_digest ON link (digest, repository);
CREATE TABLE IF NOT EXISTS child (
    repository TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pushed (
    repository TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
    artifact_type TEXT, annotations TEXT, subject TEXT, pushed_at REAL NOT NULL,
    PRIMARY KEY (repository, digest));
CREATE INDEX IF NOT EXISTS pushed_digest ON pushed (digest, repository);
CREATE INDEX IF NOT EXISTS pushed_subject ON pushed (repository, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX IF NOT EXISTS pushed_type ON pushed (repository, subject, artifact_type, digest)
    WHERE subject IS NOT NULL;
CREATE TABLE IF NOT EXISTS tag (
    repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT NOT NULL, media_type TEXT NOT NULL,
    size INTEGER NOT NULL, origin TEXT NOT NULL, checked_at REAL NOT NULL, fresh_until REAL NOT NULL,
    retry_at REAL NOT NULL, trouble TEXT, previous TEXT, PRIMARY KEY (repository, tag)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tag_digest ON tag (repository, digest);
CREATE TABLE IF NOT EXISTS history (
    number INTEGER PRIMARY KEY AUTOINCREMENT, repository TEXT NOT NULL, tag TEXT NOT NULL, digest TEXT,
    origin TEXT NOT NULL, at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS history_tag ON history (repository, tag, number);
CREATE TABLE IF NOT EXISTS repository (
    name TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (name, key)) WITHOUT ROWID;
"""


def migrate(connection: sqlite3.Connection, found: int) -> None:
    """Fill what tables of an older version, all made by now, have no rows for. found: its number, 0 when new."""
    if found == 1:
        connection.execute(
            "INSERT OR IGNORE INTO repository (name, key) SELECT ltrim(replace(key, '|', '/'), '/'), key FROM"
            " (SELECT repository AS key FROM link UNION SELECT repository FROM tag)"
        )
        connection.execute(
            "INSERT INTO history (repository, tag, digest, origin, at)"
            " SELECT repository, tag, digest, origin, checked_at FROM tag ORDER BY checked_at"
        )
