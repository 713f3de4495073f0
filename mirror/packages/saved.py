"""What ``docker save`` writes, without a layout: ``manifest.json``, configurations, and layers as they are unpacked.

No registry manifest is in it, so one is made: always the same bytes from the same archive. Source: Docker image
manifest version 2, schema 2; Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mirror.oci.errors import ManifestUnknown
from mirror.oci.manifest import DOCKER_MANIFEST, parse_manifest
from mirror.oci.names import Digest, digest_of, try_digest
from mirror.packages.contents import Collector, tag_of
from mirror.packages.entry import DAMAGED, Contents, parse_json
from mirror.packages.files import digest_of_bytes, read_exactly
from mirror.packages.problems import Problem
from mirror.packages.tar import Member, Table, compression

MANIFEST = "manifest.json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar"


def read_saved(
    raw: bytes, table: Table, fd: int, limit: int, stopping: Callable[[], bool]
) -> tuple[dict[Digest, Member], Contents]:
    """Read the images a ``manifest.json`` lists. limit: bytes of a configuration. Blocks.

    Returns where the blobs are, too. Raises: Problem when the list itself is unusable; OSError; Stopped.
    """
    listed = parse_json(raw, MANIFEST)
    if not isinstance(listed, list) or not all(isinstance(image, dict) for image in listed):
        raise Problem(f"its {MANIFEST} is no list of images; {DAMAGED}")
    collector = Collector()
    places: dict[Digest, Member] = {}
    for image in listed:
        try:
            blobs = _blobs(image, table, fd, limit, stopping)
        except Problem as problem:
            collector.problems.append(str(problem))
            continue
        for _, digest, place in blobs:
            places.setdefault(digest, place)
        manifest = parse_manifest(_manifest(blobs), content_type=DOCKER_MANIFEST)
        collector.add(manifest, DOCKER_MANIFEST)
        for name in _texts(image.get("RepoTags") or []):
            try:
                tag = tag_of(name, reference=True)
            except ManifestUnknown:
                collector.problems.append(f"{name[:200]!r} has no tag; save the image anew with one")
                continue
            if tag is not None:
                collector.name(tag, manifest.descriptor.digest)
    return places, collector.contents()


def _blobs(
    image: Mapping[str, Any], table: Table, fd: int, limit: int, stopping: Callable[[], bool]
) -> list[tuple[str, Digest, Member]]:
    """Return type, digest and place of configuration and layers.

    A layer's digest is what the configuration says of it: like every other it is verified before it is given out.
    Of compressed layers, which some tools write, nothing says it, so they are hashed here.
    """
    name = image.get("Config")
    config = table.find(name) if isinstance(name, str) else None
    if config is None:
        raise Problem(f"the configuration {str(name)[:200]!r} is not in it; {DAMAGED}")
    if config.size > limit:
        raise Problem(f"the configuration {str(name)[:200]!r} has {config.size} bytes, more than {limit}")
    raw = read_exactly(fd, config.size, config.offset)
    diff_ids = _diff_ids(parse_json(raw, f"configuration {str(name)[:200]!r}"))
    layers = _texts(image.get("Layers") or [])
    if len(layers) != len(diff_ids):
        raise Problem(f"an image has {len(layers)} layers, its configuration {len(diff_ids)}; {DAMAGED}")
    found = [(CONFIG_TYPE, digest_of(raw), config)]
    for layer, diff_id in zip(layers, diff_ids, strict=True):
        place = table.find(layer)
        if place is None:
            raise Problem(f"the layer {layer[:200]!r} is not in it; {DAMAGED}")
        method = compression(read_exactly(fd, min(8, place.size), place.offset))
        if method is None:
            found.append((LAYER_TYPE, diff_id, place))
        else:
            digest = digest_of_bytes(fd, place.offset, place.size, stopping)
            found.append((f"{LAYER_TYPE}.{method}", digest, place))
    return found


def _diff_ids(config: Any) -> list[Digest]:
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    found = [try_digest(item) for item in _texts(listed)]
    digests = [digest for digest in found if digest is not None]
    if listed is None or len(digests) != len(found):
        raise Problem(f"a configuration does not say what its layers are (rootfs.diff_ids); {DAMAGED}")
    return digests


def _texts(listed: Any) -> list[str]:
    """Return a list of texts. Raises: Problem when it is something else."""
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise Problem(f"its {MANIFEST} is malformed; {DAMAGED}")
    return listed


def _manifest(blobs: list[tuple[str, Digest, Member]]) -> bytes:
    config, *layers = (
        {"mediaType": media_type, "size": place.size, "digest": str(digest)} for media_type, digest, place in blobs
    )
    body = {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": layers}
    return json.dumps(body, separators=(",", ":")).encode()
