"""Images for a folder of packages, made by hand: OCI layouts as folders and as tars, and what ``docker save`` wrote."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"


def sha(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Layout:
    """An OCI image layout in memory. files: name → bytes, all but the index. listed: the index's descriptors."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
        self.listed: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str = OCI_LAYER, algorithm: str = "sha256") -> dict[str, Any]:
        """Put a blob in; return its descriptor."""
        digest = sha(data, algorithm)
        self.files["blobs/" + digest.replace(":", "/")] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def manifest(
        self, body: dict[str, Any], tag: str | None = None, *, listed: bool = True, algorithm: str = "sha256"
    ) -> dict[str, Any]:
        """Put a manifest in, and into the index unless told otherwise; return its descriptor."""
        found = self.blob(json.dumps(body).encode(), body["mediaType"], algorithm)
        if listed:
            self.listed.append(found | ({"annotations": {REF_NAME: tag}} if tag is not None else {}))
        return found

    def image(self, tag: str | None = None, *layers: bytes, listed: bool = True, **more: Any) -> dict[str, Any]:
        """Put an image of these layers in; return the descriptor of its manifest."""
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.blob(json.dumps({"made for": str(tag)}).encode(), OCI_CONFIG),
            "layers": [self.blob(layer) for layer in layers or (b"a layer of " + str(tag).encode(),)],
        }
        return self.manifest(body | more, tag, listed=listed)

    def raw(self, digest: str) -> bytes:
        return self.files["blobs/" + digest.replace(":", "/")]

    def all_files(self) -> dict[str, bytes]:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.listed}
        return self.files | {"index.json": json.dumps(index).encode()}

    def write(self, folder: Path) -> Path:
        """Write it as a folder, the index last."""
        for name, data in self.all_files().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def write_tar(self, path: Path, prefix: str = "") -> Path:
        """Write it as an archive."""
        return write_tar(path, {prefix + name: data for name, data in self.all_files().items()})


def write_tar(path: Path, files: dict[str, bytes | tarfile.TarInfo], *, format: int = tarfile.PAX_FORMAT) -> Path:
    """Write an archive of files, and of whatever else is given as the header of a member without bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def saved_config(layers: Sequence[bytes], **more: Any) -> bytes:
    body = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha(x) for x in layers]}}
    return json.dumps(body | more).encode()


def saved(*images: tuple[list[str] | None, Sequence[bytes]]) -> dict[str, bytes | tarfile.TarInfo]:
    """Return the files of an old ``docker save``: tags and unpacked layers of each image.

    A layer that is there already is a link to the first one, as docker writes it.
    """
    files: dict[str, bytes | tarfile.TarInfo] = {}
    listed = []
    first: dict[bytes, str] = {}
    for at, (tags, layers) in enumerate(images):
        config = saved_config(layers, author=str(at))
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        files[name] = config
        paths = []
        for depth, layer in enumerate(layers):
            path = f"{at:032x}{depth:032x}/layer.tar"
            files[path] = layer if layer not in first else link(path, f"../{first[layer]}")
            first.setdefault(layer, path)
            paths.append(path)
        listed.append({"Config": name, "RepoTags": tags, "Layers": paths})
    return files | {"manifest.json": json.dumps(listed).encode()}
