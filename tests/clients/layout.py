"""A test image as an OCI layout: a folder, or an archive that docker, podman and containerd all load."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.clients.images import MEDIA, Blob, Image, blob


def write_layout(image: Image, folder: Path, *, tags: Sequence[str] = (), referrer: Referrer | None = None) -> Path:
    """Write it as a folder (``oci:FOLDER:TAG``, ``ocidir://FOLDER:TAG``); return that.

    tags: instead of its own. referrer: what refers to it.
    """
    for name, data in _files(image, tags or (image.tag,), referrer=referrer).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def write_archive(image: Image, path: Path, reference: str) -> Path:
    """Write it as a tar in which it has that name; return its path.

    For docker, which knows no layouts yet, it is also what ``docker save`` writes, of this machine's platform.
    """
    saved = [
        {
            "Config": _path(image.config.digest),
            "RepoTags": [reference],
            "Layers": [_path(layer.digest) for layer in image.layers],
        }
    ]
    files = _files(image, (image.tag,), reference) | {"manifest.json": json.dumps(saved).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Referrer:
    """A manifest with a subject, and its blobs."""

    manifest: Blob
    blobs: tuple[Blob, ...]


def refer(subject: Blob, artifact_type: str, text: str) -> Referrer:
    """Make an artifact with one layer that refers to a manifest."""
    config = blob("application/vnd.oci.empty.v1+json", b"{}")
    layer = blob("text/plain", text.encode())
    media_type = MEDIA["oci"]["manifest"]
    about = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "artifactType": artifact_type,
        "config": config.descriptor,
        "layers": [layer.descriptor],
        "subject": subject.descriptor,
    }
    return Referrer(manifest=blob(media_type, about), blobs=(config, layer))


def _files(
    image: Image, tags: Sequence[str], reference: str = "", *, referrer: Referrer | None = None
) -> dict[str, bytes]:
    more = (referrer.manifest, *referrer.blobs) if referrer else ()
    named = {"io.containerd.image.name": reference} if reference else {}
    listed = [
        {**image.top.descriptor, "annotations": {"org.opencontainers.image.ref.name": tag, **named}} for tag in tags
    ]
    index = {"schemaVersion": 2, "manifests": [*listed, *(one.descriptor for one in more[:1])]}
    files = {_path(one.digest): one.data for one in (*image.blobs, *image.manifests, *more)}
    return files | {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
