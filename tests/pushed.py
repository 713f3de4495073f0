"""Pushing to a mirror under test the way clients do, and looking at what it has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.fake_upstream import CONFIG, INDEX, LAYER, MANIFEST, digest_of
from tests.harness import Answer, Mirror
from tests.images import blob_path, manifest_path

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ODD = "application/vnd.acme.thing.v7+json"
NOWHERE = "sha256:" + "0" * 64


@dataclass(frozen=True)
class Made:
    """A manifest to push. blobs: what has to be there before, by digest."""

    raw: bytes
    media_type: str
    blobs: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest_of(self.raw)

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.raw)}


def descriptor(data: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **more}


def make_image(
    *layers: bytes, config: bytes = b"{}", config_type: str = CONFIG, media_type: str = MANIFEST, **more: Any
) -> Made:
    """Make an image of these layers. more: further fields of its manifest; None leaves one out."""
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": descriptor(config, config_type),
        "layers": [descriptor(layer) for layer in layers],
        **more,
    }
    raw = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
    return Made(raw, media_type, {digest_of(data): data for data in (config, *layers)})


def make_index(*children: Made, **more: Any) -> Made:
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [child.descriptor for child in children], **more}
    return Made(json.dumps(body).encode(), INDEX)


def make_artifact(subject: Made | Mapping[str, Any], kind: str | None = None, n: int = 0, **annotations: str) -> Made:
    """Make an image that says something of another. n: makes it different from those with another number."""
    about = subject.descriptor if isinstance(subject, Made) else dict(subject)
    return make_image(f"artifact {n}".encode(), subject=about, artifactType=kind, annotations=annotations or None)


async def push_blob(worker: Mirror, name: str, data: bytes, algorithm: str = "sha256") -> str:
    digest = digest_of(data, algorithm)
    answer = await worker.ask("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", data=data)
    assert answer.status == 201, answer
    return digest


async def mount_blob(worker: Mirror, name: str, digest: str, source: str | None = None) -> Answer:
    origin = "" if source is None else f"&from={source}"
    return await worker.ask("POST", f"/v2/{name}/blobs/uploads/?mount={digest}{origin}")


async def put_manifest(worker: Mirror, name: str, reference: str, made: Made, **headers: str) -> Answer:
    """Push a manifest. reference: may have parameters. headers: underscores are dashes."""
    sent = {"Content-Type": made.media_type} | {key.replace("_", "-"): value for key, value in headers.items()}
    return await worker.ask("PUT", manifest_path(reference, name), data=made.raw, headers=sent)


async def push(worker: Mirror, name: str, made: Made, *references: str) -> str:
    """Push blobs and then the manifest, by each of the references or else by its digest. Returns its digest."""
    for data in made.blobs.values():
        await push_blob(worker, name, data)
    for reference in references or (made.digest,):
        answer = await put_manifest(worker, name, reference, made)
        assert answer.status == 201, answer
    return made.digest


async def delete(worker: Mirror, path: str, **headers: str) -> Answer:
    return await worker.ask("DELETE", path, headers={key.replace("_", "-"): value for key, value in headers.items()})


async def served(workers: Sequence[Mirror], name: str, reference: str, made: Made) -> None:
    """Make sure that every worker gives a manifest as it was pushed, to GET and HEAD."""
    for worker in workers:
        path = manifest_path(reference, name)
        answer, head = await worker.get(path), await worker.head(path)
        assert (answer.status, answer.body) == (200, made.raw), answer
        assert head.status == 200
        digest = reference if ":" in reference else made.digest
        for one in (answer, head):
            assert one.headers["Content-Type"] == made.media_type
            assert one.headers["Docker-Content-Digest"] == digest
            assert one.headers["Content-Length"] == str(len(made.raw))
            assert one.headers["ETag"] == f'"{digest}"'


async def unknown(workers: Sequence[Mirror], path: str, code: str | None = None) -> None:
    """Make sure that every worker says 404, to GET and HEAD."""
    code = code or ("BLOB_UNKNOWN" if "/blobs/" in path else "MANIFEST_UNKNOWN")
    for worker in workers:
        answer, head = await worker.get(path), await worker.head(path)
        assert (answer.status, answer.code, head.status, head.body) == (404, code, 404, b""), answer


async def has_blob(workers: Sequence[Mirror], name: str, data: bytes, digest: str | None = None) -> None:
    """Make sure that every worker gives a blob, to GET and HEAD."""
    for worker in workers:
        path = blob_path(digest or digest_of(data), name)
        answer, head = await worker.get(path), await worker.head(path)
        assert (answer.status, answer.body) == (200, data), answer
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(data)))


async def tags_of(worker: Mirror, name: str) -> list[str] | None:
    """Return all tags of a repository, None when there is no such repository."""
    answer = await worker.get(f"/v2/{name}/tags/list")
    if answer.status == 404:
        assert answer.code == "NAME_UNKNOWN"
        return None
    assert answer.status == 200, answer
    found: list[str] = json.loads(answer.body)["tags"]
    return found


def kept(root: Path) -> set[str]:
    """Return the digests that have a file of their kept name."""
    return {
        f"{algorithm}:{name}" for algorithm in ("sha256", "sha512") for name in os.listdir(root / "blobs" / algorithm)
    }


def next_of(answer: Answer) -> str | None:
    """Return where the next page is, as a path; None on the last one."""
    link = answer.headers.get("Link")
    if link is None:
        return None
    target, _, relation = link.partition(">; ")
    assert relation == 'rel="next"'
    found = urlsplit(target.removeprefix("<"))
    assert not found.netloc
    return found.geturl()


async def pages(worker: Mirror, path: str, field: str, most: int = 1000) -> list[list[Any]]:
    """Follow the links of a list to its end; return the entries of each page."""
    found: list[list[Any]] = []
    where: str | None = path
    while where is not None:
        answer = await worker.get(where)
        assert answer.status == 200, answer
        found.append(json.loads(answer.body)[field])
        where = next_of(answer)
        assert len(found) <= most, "the links lead in a circle"
    return found
