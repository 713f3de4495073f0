"""Values the tests of the metadata write and read back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from mirror.metadata.base import TagRecord
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.oci.names import Digest, Repository, RepositoryName, Tag, digest_of

ID = "0b1f6f1e-0000-0000-0000-000000000001"
HERE = Repository("up", RepositoryName("team/app"))
THERE = Repository("up", RepositoryName("x/y"))
ELSEWHERE = Repository("other", RepositoryName("team/app"))
LOCAL = Repository(None, RepositoryName("team/app"))
OTHER_LOCAL = Repository(None, RepositoryName("local/b"))
TAG = Tag("v1")
IMAGE = "application/vnd.oci.image.manifest.v1+json"

Open = Callable[..., Awaitable[SqliteMetadata]]
"""Opens the database of a test once more, as another process would."""


def some_digest(n: int = 1) -> Digest:
    return digest_of(str(n).encode())


def some_manifest(*children: tuple[Digest, int], **more: Any) -> Manifest:
    """Return an image with these layers. more: other fields of its body."""
    layers = [{"mediaType": "a/b", "digest": str(digest), "size": size} for digest, size in children]
    body = {"mediaType": IMAGE, "layers": layers, **more}
    return parse_manifest(json.dumps(body).encode(), content_type=None)


def some_artifact(subject: Digest, n: int = 0, kind: str | None = None, **annotations: str) -> Manifest:
    """Return a manifest about another one. n: makes it different from those with another number."""
    about = {"mediaType": IMAGE, "digest": str(subject), "size": 7}
    kinds = {} if kind is None else {"artifactType": kind}
    return some_manifest((some_digest(n), n), subject=about, annotations=annotations, **kinds)


def some_tag(**changes: Any) -> TagRecord:
    record = TagRecord(
        repository=HERE,
        tag=TAG,
        digest=some_digest(),
        media_type=IMAGE,
        size=500,
        origin="pulled",
        checked_at=1000.5,
        fresh_until=1060.5,
    )
    return replace(record, **changes)


async def push(
    metadata: SqliteMetadata,
    repository: Repository,
    manifest: Manifest,
    *tags: str,
    required: Iterable[Digest] = (),
    at: float = 50.0,
    **more: Any,
) -> Digest:
    """Push a manifest, and return its digest."""
    names = [Tag(tag) for tag in tags]
    more.setdefault("condition", None)
    await metadata.push_manifest(repository, manifest, tags=names, required=list(required), at=at, **more)
    return manifest.descriptor.digest
