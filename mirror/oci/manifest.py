"""Manifests: exactly the bytes that were received, and what can be read from them.

Nothing here changes a byte; unknown media types pass. Sources: image-spec manifest.md, image-index.md,
descriptor.md; Docker image manifest version 2, schema 2.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.oci.errors import ManifestInvalid
from mirror.oci.names import Digest, digest_of, try_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"

KNOWN = (
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    DOCKER_SCHEMA1_SIGNED,
    DOCKER_SCHEMA1,
)

_ALIKE = (
    (OCI_INDEX, DOCKER_LIST),
    (OCI_MANIFEST, DOCKER_MANIFEST),
    (DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED),
)
"""Types that have the same shape."""

ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_LIST}, {DOCKER_MANIFEST}, {OCI_ARTIFACT}, */*;q=0.5"
"""What upstreams are always sent, whatever the client accepts: a narrow Accept makes some registries
rewrite an index to one platform, and that would then be kept for everybody."""

_GENERIC = ("application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
"""What tools put on any body; it says nothing of a manifest."""

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)
_FOREIGN = (".foreign.", ".nondistributable.")
_IMAGE_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_MOST = 2**63 - 1
"""Largest size in bytes that anything after us can count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A pointer to content. size: bytes."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def foreign(self) -> bool:
        """Say whether the content is not meant to be distributed by registries."""
        return any(mark in self.media_type for mark in _FOREIGN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest as received. config: one of the blobs; blobs: config and layers; manifests: children of an index."""

    raw: bytes
    descriptor: Descriptor
    config: Descriptor | None = None
    blobs: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None

    @property
    def children(self) -> tuple[Descriptor, ...]:
        return self.blobs + self.manifests

    @property
    def needed(self) -> tuple[Descriptor, ...]:
        """Return the blobs without which it is of no use.

        An image: all that registries distribute. Anything else: its layers, as the readers of signatures and the like
        never ask for the config.
        """
        layers = tuple(blob for blob in self.blobs if blob is not self.config)
        image = not layers or any(layer.media_type.startswith(_IMAGE_LAYERS) for layer in layers)
        return tuple(blob for blob in (self.blobs if image else layers) if not blob.foreign)


def media_type_of(header: str | None) -> str | None:
    """Return the media type of a ``Content-Type`` without its parameters, None when it is none."""
    text = header.partition(";")[0].strip() if header else ""
    return text if _MEDIA_TYPE.fullmatch(text) else None


def is_manifest_type(media_type: str | None) -> bool:
    """Say whether a media type can be a manifest's: not the generic ones servers put on anything."""
    if not media_type:
        return False
    return media_type in KNOWN or media_type.startswith("application/vnd.")


def parse_manifest(raw: bytes, *, content_type: str | None, digest: Digest | None = None) -> Manifest:
    """Read a manifest.

    content_type: what the sender called it. The media type is the body's ``mediaType``, else the header's
    if that is a manifest type, else told by shape; a header that contradicts the body or its shape is ignored,
    as the same bytes are the same manifest wherever they come from.
    digest: the one it was asked by, already verified; None computes sha256.
    Raises: ManifestInvalid (400 MANIFEST_INVALID) when it is no JSON object, has both ``layers`` and
    ``manifests`` (one body, two readings: CVE-2021-41190), or is of a type of the specifications and its
    descriptors are malformed. What other types hold is theirs: of them what looks like a descriptor is read.
    """
    body, declared = _body(raw)
    header = media_type_of(content_type)
    media_type = declared or _told(header, _by_shape(body))
    if media_type is None:
        raise ManifestInvalid(f"{header or 'no media type'}: the body does not look like a manifest")
    return _manifest(raw, body, media_type, digest)


def parse_pushed(raw: bytes, *, content_type: str | None, digest: Digest | None = None) -> Manifest:
    """Read a manifest that a client pushes, of whatever type it says.

    content_type: the client's. The media type is the body's ``mediaType``, which the header must not contradict
    ("Pushing Manifests"); without one the header's, unless it is what tools put on anything; else told by shape.
    digest: as in ``parse_manifest``. Raises: ManifestInvalid (400 MANIFEST_INVALID), as ``parse_manifest`` does.
    """
    body, declared = _body(raw)
    header = media_type_of(content_type)
    header = None if header in _GENERIC else header
    if declared and header and declared != header:
        raise ManifestInvalid(f"the manifest's mediaType is {declared}, its Content-Type {header}; send them alike")
    media_type = declared or header or _by_shape(body)
    if media_type is None:
        raise ManifestInvalid("the manifest has no mediaType; say what it is by Content-Type")
    return _manifest(raw, body, media_type, digest)


def _body(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """Return a manifest's JSON object and its ``mediaType``."""
    try:
        body = json.loads(raw.decode())  # given bytes, json would guess encodings that no client reads
    except (ValueError, RecursionError) as error:
        raise ManifestInvalid(f"the manifest is not JSON: {_printable(str(error))}") from error
    if not isinstance(body, dict):
        raise ManifestInvalid("the manifest is not a JSON object")
    if "manifests" in body and ("layers" in body or "fsLayers" in body):
        raise ManifestInvalid("the manifest has both layers and manifests")
    declared = body.get("mediaType")
    if declared is not None and (not isinstance(declared, str) or not _MEDIA_TYPE.fullmatch(declared)):
        raise ManifestInvalid("the manifest's mediaType is not a media type")
    return body, declared


def _manifest(raw: bytes, body: Mapping[str, Any], media_type: str, digest: Digest | None) -> Manifest:
    strict = media_type in KNOWN
    config = _one(body, "config", strict=strict)
    layers = _many(body, "layers", strict=strict) + _many(body, "blobs", strict=strict)
    return Manifest(
        raw=raw,
        descriptor=Descriptor(
            media_type=media_type,
            digest=digest or digest_of(raw),
            size=len(raw),
            artifact_type=_text(body.get("artifactType")) or _artifact_type(media_type, config),
            annotations=_annotations(body),
        ),
        config=config,
        blobs=((config,) if config else ()) + layers,
        manifests=_many(body, "manifests", strict=strict),
        subject=_one(body, "subject", strict=strict),
    )


def _artifact_type(media_type: str, config: Descriptor | None) -> str | None:
    """Return what a manifest is that does not say so: an image what its config is, an index nothing."""
    return config.media_type or None if config and media_type not in (OCI_INDEX, DOCKER_LIST) else None


def _told(header: str | None, shape: str | None) -> str | None:
    """Choose between what a header says and what the shape says."""
    if shape is None:
        return header if is_manifest_type(header) else None
    alike = next((types for types in _ALIKE if shape in types), (shape,))
    return header if header in alike else shape


def _by_shape(body: Mapping[str, Any]) -> str | None:
    if "manifests" in body:
        return OCI_INDEX
    if "layers" in body and "config" in body:
        return OCI_MANIFEST
    if "fsLayers" in body:
        return DOCKER_SCHEMA1_SIGNED if "signatures" in body else DOCKER_SCHEMA1
    return None


def _one(body: Mapping[str, Any], key: str, *, strict: bool) -> Descriptor | None:
    item = body.get(key)
    if not isinstance(item, dict):
        return None
    try:
        return parse_descriptor(item, key)
    except ManifestInvalid:
        if strict:
            raise
        return None


def _many(body: Mapping[str, Any], key: str, *, strict: bool) -> tuple[Descriptor, ...]:
    items = body.get(key)
    if items is None:
        return ()
    if not isinstance(items, list):
        if strict:
            raise ManifestInvalid(f"{key} of the manifest is not a list")
        return ()
    found = []
    for at, item in enumerate(items):
        try:
            found.append(parse_descriptor(item, f"{key}[{at}]"))
        except ManifestInvalid:
            if strict:
                raise
    return tuple(found)


def parse_descriptor(item: Any, where: str) -> Descriptor:
    """Read a descriptor out of a manifest's JSON (image-spec descriptor.md).

    where: it stands, for the message. Raises: ManifestInvalid (400 MANIFEST_INVALID).
    """
    if not isinstance(item, dict):
        raise ManifestInvalid(f"{where} of the manifest is not a descriptor")
    size, text = item.get("size"), item.get("digest")
    digest = try_digest(text) if isinstance(text, str) else None
    if digest is None:
        raise ManifestInvalid(f"{where}.digest of the manifest is not a digest this registry knows")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MOST:
        raise ManifestInvalid(f"{where}.size of the manifest is not a size")
    return Descriptor(
        media_type=_text(item.get("mediaType")) or "",
        digest=digest,
        size=size,
        artifact_type=_text(item.get("artifactType")),
        annotations=_annotations(item),
    )


def _annotations(body: Mapping[str, Any]) -> dict[str, str]:
    found = body.get("annotations")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if _text(key) and isinstance(value, str) and _encodes(value)}


def _text(value: Any) -> str | None:
    """Return a text that can be written down, None for anything else."""
    return value if isinstance(value, str) and value and _encodes(value) else None


def _encodes(text: str) -> bool:
    """Say whether a text is Unicode: JSON can hold halves of surrogate pairs, which nothing after us can store."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return "".join(character if " " <= character <= "~" else "?" for character in text[:100])
