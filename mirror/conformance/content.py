"""What is pushed to be judged by: blobs, manifests, indexes and tags that no other run has."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"
OCTETS = "application/octet-stream"
ACCEPTED = ", ".join(
    (
        MANIFEST,
        INDEX,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)

Json = dict[str, Any]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """Return the digest of the bytes."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def matches(data: bytes, digest: str) -> bool:
    """Tell whether the bytes have this digest; False for what is not a digest of a known algorithm."""
    algorithm, _, _ = digest.partition(":")
    return algorithm in ("sha256", "sha384", "sha512") and digest_of(data, algorithm) == digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes under a digest."""

    data: bytes = field(repr=False)
    digest: str

    def descriptor(self, media_type: str) -> Json:
        return {"mediaType": media_type, "digest": self.digest, "size": len(self.data)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest or index to push. blobs: what is to be there first."""

    data: bytes = field(repr=False)
    digest: str
    media_type: str
    blobs: tuple[Blob, ...] = ()
    value: Json = field(repr=False, default_factory=dict)

    def descriptor(self) -> Json:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


class Content:
    """A source of content. seed: the same seed gives the same content, in the same order of asking."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._number = 0

    def word(self, what: str = "c") -> str:
        """Return a text fit for a tag or the last part of a name."""
        self._number += 1
        return f"{what}-{self.seed:08x}-{self._number}"

    def blob(self, size: int = 1024, *, algorithm: str = "sha256") -> Blob:
        """Return a blob of random bytes."""
        return self.of(self._random.randbytes(size), algorithm=algorithm)

    def of(self, data: bytes, *, algorithm: str = "sha256") -> Blob:
        """Return a blob of these bytes."""
        return Blob(data=data, digest=digest_of(data, algorithm))

    def digest(self, algorithm: str = "sha256") -> str:
        """Return a digest of which there is no content."""
        return digest_of(self._random.randbytes(32), algorithm)

    def document(
        self,
        value: Json,
        *,
        blobs: tuple[Blob, ...] = (),
        algorithm: str = "sha256",
        media_type: str | None = None,
        data: bytes | None = None,
    ) -> Document:
        """Return a document of this JSON value. data: the bytes, when it matters how it is written."""
        if data is None:
            data = json.dumps(value, separators=(",", ":")).encode()
        return Document(
            data=data,
            digest=digest_of(data, algorithm),
            media_type=media_type or str(value.get("mediaType", MANIFEST)),
            blobs=blobs,
            value=value,
        )

    def config(self) -> Blob:
        """Return an image configuration no other run has."""
        value = {
            "architecture": "amd64",
            "os": "linux",
            "author": self.word(),
            "rootfs": {"type": "layers", "diff_ids": []},
        }
        return self.of(json.dumps(value).encode())

    def image(
        self,
        *,
        layers: int = 1,
        subject: Mapping[str, Any] | None = None,
        artifact_type: str | None = None,
        annotations: Mapping[str, str] | None = None,
        config_type: str = CONFIG,
        more: Mapping[str, Any] | None = None,
        algorithm: str = "sha256",
    ) -> Document:
        """Return an image manifest with its blobs. more: further members."""
        config = self.config() if config_type == CONFIG else self.blob(64)
        found = [self.blob() for _ in range(layers)]
        value: Json = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor(config_type),
            "layers": [blob.descriptor(LAYER) for blob in found],
        }
        return self._document(value, (config, *found), subject, artifact_type, annotations, more, algorithm)

    def index(
        self,
        children: tuple[Document, ...] = (),
        *,
        subject: Mapping[str, Any] | None = None,
        artifact_type: str | None = None,
        annotations: Mapping[str, str] | None = None,
        algorithm: str = "sha256",
    ) -> Document:
        """Return an image index over these manifests, which are to be pushed before it."""
        value: Json = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [child.descriptor() for child in children],
        }
        noted = {"org.example.number": self.word(), **(annotations or {})}
        return self._document(value, (), subject, artifact_type, noted, None, algorithm)

    def _document(
        self,
        value: Json,
        blobs: tuple[Blob, ...],
        subject: Mapping[str, Any] | None,
        artifact_type: str | None,
        annotations: Mapping[str, str] | None,
        more: Mapping[str, Any] | None,
        algorithm: str,
    ) -> Document:
        if artifact_type is not None:
            value["artifactType"] = artifact_type
        if subject is not None:
            value["subject"] = dict(subject)
        if annotations is not None:
            value["annotations"] = dict(annotations)
        return self.document({**value, **(more or {})}, blobs=blobs, algorithm=algorithm)
