"""What is read from a manifest, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.errors import ManifestInvalid
from mirror.oci.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    DOCKER_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    is_manifest_type,
    media_type_of,
    parse_manifest,
    parse_pushed,
)
from mirror.oci.names import Digest, digest_of

ODD = "application/vnd.acme.thing.v7+json"
D1, D2, D3 = (f"sha256:{n * 64}" for n in "123")


def descriptor(digest: str = D1, size: Any = 5, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.x.y", "digest": digest, "size": size, **more}


def raw_of(**body: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **body}).encode()


IMAGE = {"config": descriptor(D1), "layers": [descriptor(D2), descriptor(D3)]}


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        ({"mediaType": OCI_MANIFEST, **IMAGE}, None, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, DOCKER_MANIFEST, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, OCI_INDEX, OCI_MANIFEST),
        ({"mediaType": ODD}, OCI_INDEX, ODD),
        (IMAGE, DOCKER_MANIFEST, DOCKER_MANIFEST),
        (IMAGE, f"{DOCKER_MANIFEST}; charset=utf-8", DOCKER_MANIFEST),
        (IMAGE, "application/json", OCI_MANIFEST),
        (IMAGE, "text/plain", OCI_MANIFEST),
        (IMAGE, "not a type", OCI_MANIFEST),
        (IMAGE, OCI_INDEX, OCI_MANIFEST),
        (IMAGE, DOCKER_SCHEMA1, OCI_MANIFEST),
        (IMAGE, ODD, OCI_MANIFEST),
        ({"manifests": []}, DOCKER_MANIFEST, OCI_INDEX),
        ({"manifests": []}, None, OCI_INDEX),
        ({"manifests": []}, DOCKER_LIST, DOCKER_LIST),
        ({"fsLayers": []}, None, DOCKER_SCHEMA1),
        ({"fsLayers": [], "signatures": []}, "application/json", DOCKER_SCHEMA1_SIGNED),
        ({"x": 1}, ODD, ODD),
    ],
)
def test_the_media_type_is_the_body_s_else_the_header_s_else_told_by_shape(
    body: dict[str, Any], header: str | None, expected: str
) -> None:
    assert parse_manifest(raw_of(**body), content_type=header).descriptor.media_type == expected


def test_an_image() -> None:
    raw = raw_of(mediaType=OCI_MANIFEST, **IMAGE, subject=descriptor(D3, 9), annotations={"a": "b", "n": 1})
    manifest = parse_manifest(raw, content_type=None)
    assert manifest.raw is raw
    assert manifest.descriptor.digest == digest_of(raw)
    assert manifest.descriptor.size == len(raw)
    assert manifest.descriptor.annotations == {"a": "b"}
    assert manifest.descriptor.artifact_type == "application/vnd.x.y"  # the config's
    assert [str(blob.digest) for blob in manifest.blobs] == [D1, D2, D3]
    assert manifest.manifests == ()
    assert manifest.subject is not None
    assert (str(manifest.subject.digest), manifest.subject.size) == (D3, 9)


def test_an_index() -> None:
    raw = raw_of(
        mediaType=OCI_INDEX, manifests=[descriptor(D1, 7, artifactType="a/b"), descriptor(D2)], artifactType="c/d"
    )
    manifest = parse_manifest(raw, content_type=None)
    assert [(str(child.digest), child.size) for child in manifest.manifests] == [(D1, 7), (D2, 5)]
    assert manifest.manifests[0].artifact_type == "a/b"
    assert manifest.descriptor.artifact_type == "c/d"
    assert manifest.blobs == ()
    assert manifest.children == manifest.manifests


OCI_LAYER, DOCKER_LAYER = "application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip"


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        pytest.param([f"{OCI_LAYER}+zstd"] * 2, [D1, D2, D3], id="image"),
        pytest.param([DOCKER_LAYER] * 2, [D1, D2, D3], id="docker"),
        pytest.param(["application/vnd.in-toto+json", OCI_LAYER], [D1, D2, D3], id="one-image-layer"),
        pytest.param([DOCKER_LAYER.replace("diff", "foreign.diff"), DOCKER_LAYER], [D1, D3], id="foreign"),
        pytest.param(["application/vnd.dev.cosign.simplesigning.v1+json"] * 2, [D2, D3], id="signatures"),
        pytest.param([], [D1], id="nothing-but-a-config"),
    ],
)
def test_an_image_needs_its_config_and_an_artifact_does_not(types: list[str], expected: list[str]) -> None:
    layers = [descriptor(digest) | {"mediaType": one} for digest, one in zip((D2, D3), types, strict=False)]
    body = {"config": descriptor(D1) | {"mediaType": "application/vnd.oci.image.config.v1+json"}, "layers": layers}
    needed = parse_manifest(raw_of(mediaType=OCI_MANIFEST, **body), content_type=None).needed
    assert [str(blob.digest) for blob in needed] == expected


def test_an_artifact_s_blobs_are_read() -> None:
    manifest = parse_manifest(
        raw_of(blobs=[descriptor(D2)]), content_type="application/vnd.oci.artifact.manifest.v1+json"
    )
    assert [str(blob.digest) for blob in manifest.blobs] == [D2]


def test_the_digest_it_was_asked_by_is_its_digest() -> None:
    raw = raw_of(manifests=[])
    asked = digest_of(raw, "sha512")
    assert parse_manifest(raw, content_type=None, digest=asked).descriptor.digest == asked
    assert parse_manifest(raw, content_type=None).descriptor.digest.algorithm == "sha256"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (raw_of(manifests=[]).decode().encode("utf-16"), "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (raw_of(layers=[], manifests=[]), "both layers and manifests"),
        (raw_of(layers=None, manifests=None), "both layers and manifests"),
        (raw_of(fsLayers=[], manifests=[]), "both layers and manifests"),
        (raw_of(mediaType=5, **IMAGE), "not a media type"),
        (raw_of(mediaType="no slash", **IMAGE), "not a media type"),
        (raw_of(mediaType="a/b\r\nX-Header: 1", **IMAGE), "not a media type"),
        (raw_of(mediaType="a/bé", **IMAGE), "not a media type"),
        (raw_of(hello="world"), "does not look like a manifest"),
        (raw_of(layers=[]), "does not look like a manifest"),
        (raw_of(mediaType=OCI_MANIFEST, layers={}), "layers of the manifest is not a list"),
        (raw_of(mediaType=OCI_MANIFEST, layers=[5]), "layers[0] of the manifest is not a descriptor"),
        (raw_of(mediaType=OCI_MANIFEST, layers=[descriptor(), descriptor("md5:x")]), "layers[1].digest"),
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(digest=7)), "config.digest"),  # type: ignore[arg-type]
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(size="5")), "config.size"),
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(size=True)), "config.size"),
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(size=-1)), "config.size"),
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(size=1.5)), "config.size"),
        (raw_of(mediaType=OCI_MANIFEST, config=descriptor(size=2**63)), "config.size"),
        (raw_of(mediaType=OCI_INDEX, manifests=[{}]), "manifests[0].digest"),
        (raw_of(mediaType=OCI_MANIFEST, **IMAGE, subject={}), "subject.digest"),
    ],
)
def test_refused(raw: bytes, words: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_manifest(raw, content_type="text/plain")
    assert words in caught.value.message
    assert caught.value.message.isprintable()


def test_the_largest_size_is_right() -> None:
    manifest = parse_manifest(raw_of(mediaType=OCI_MANIFEST, config=descriptor(size=2**63 - 1)), content_type=None)
    assert manifest.blobs[0].size == 2**63 - 1


@pytest.mark.parametrize(
    "body",
    [{"layers": {}}, {"layers": [5, descriptor(D2)]}, {"config": 5, "layers": [{}, descriptor(D2)]}, {"subject": {}}],
)
def test_what_other_types_hold_is_theirs(body: dict[str, Any]) -> None:
    manifest = parse_manifest(raw_of(mediaType=ODD, **body), content_type=None)
    assert [str(blob.digest) for blob in manifest.blobs] in ([], [D2])
    assert len(manifest.blobs) == json.dumps(body).count(D2)
    assert manifest.subject is None


def test_text_that_is_no_unicode_is_not_read() -> None:
    half = "\ud800"
    raw = raw_of(
        mediaType=OCI_MANIFEST,
        config={"mediaType": half, "digest": D1, "size": 1, "artifactType": half},
        artifactType=half,
        annotations={"a": half, half: "b", "c": "d"},
    )
    manifest = parse_manifest(raw, content_type=None)
    assert manifest.descriptor.artifact_type is None
    assert manifest.descriptor.annotations == {"c": "d"}
    assert manifest.blobs == (Descriptor(media_type="", digest=manifest.blobs[0].digest, size=1),)


@pytest.mark.parametrize(
    ("media_type", "foreign"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", True),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", True),
        ("application/vnd.oci.image.layer.v1.tar+gzip", False),
        ("", False),
    ],
)
def test_foreign_layers(media_type: str, foreign: bool) -> None:
    assert Descriptor(media_type=media_type, digest=Digest("sha256", "1" * 64), size=1).foreign is foreign


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("text", None),
        ("text/plain", "text/plain"),
        (f" {OCI_INDEX} ; charset=utf-8", OCI_INDEX),
        ("a/b, c/d", None),
    ],
)
def test_media_type_of_a_header(header: str | None, expected: str | None) -> None:
    assert media_type_of(header) == expected


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [(OCI_INDEX, True), (DOCKER_SCHEMA1, True), (ODD, True), ("application/json", False), ("", False), (None, False)],
)
def test_manifest_types(media_type: str | None, expected: bool) -> None:
    assert is_manifest_type(media_type) is expected


# ---- what clients push ----


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [
        ({"mediaType": OCI_MANIFEST, **IMAGE}, OCI_MANIFEST, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, None, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "not a type", OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "application/json", OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "application/octet-stream", OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "application/x-www-form-urlencoded", OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "text/plain; charset=utf-8", OCI_MANIFEST),
        ({"mediaType": ODD}, "application/json", ODD),
        ({"mediaType": "text/x-acme"}, "text/x-acme", "text/x-acme"),
        # what the client says, when the body says nothing
        (IMAGE, DOCKER_MANIFEST, DOCKER_MANIFEST),
        (IMAGE, ODD, ODD),
        (IMAGE, "text/x-acme", "text/x-acme"),
        ({"x": 1}, ODD, ODD),
        ({}, OCI_INDEX, OCI_INDEX),
        # told by shape, when nobody says anything
        (IMAGE, None, OCI_MANIFEST),
        (IMAGE, "application/octet-stream", OCI_MANIFEST),
        ({"manifests": []}, "application/json", OCI_INDEX),
        ({"fsLayers": []}, "text/plain", DOCKER_SCHEMA1),
    ],
)
def test_the_media_type_of_what_is_pushed(body: dict[str, Any], header: str | None, expected: str) -> None:
    raw = raw_of(**body)
    manifest = parse_pushed(raw, content_type=header)
    assert manifest.descriptor.media_type == expected
    assert (manifest.raw, manifest.descriptor.digest) == (raw, digest_of(raw))
    # as it will be read again, with the type it was given
    assert parse_pushed(raw, content_type=expected) == manifest


@pytest.mark.parametrize(
    ("raw", "header", "words"),
    [
        (raw_of(mediaType=OCI_MANIFEST, **IMAGE), OCI_INDEX, f"{OCI_MANIFEST}, its Content-Type {OCI_INDEX}"),
        (raw_of(mediaType=OCI_MANIFEST, **IMAGE), DOCKER_MANIFEST, "send them alike"),
        (raw_of(mediaType=ODD), "application/vnd.acme.other+json", "send them alike"),
        (raw_of(mediaType=OCI_INDEX), "text/html", "send them alike"),
        (raw_of(hello="world"), None, "say what it is by Content-Type"),
        (raw_of(hello="world"), "application/json", "say what it is by Content-Type"),
        (raw_of(hello="world"), "rubbish", "say what it is by Content-Type"),
        (raw_of(layers=[], manifests=[]), ODD, "both layers and manifests"),
        (raw_of(mediaType="no slash"), ODD, "not a media type"),
        (raw_of(layers=[descriptor("md5:x")]), OCI_MANIFEST, "layers[0].digest"),
        (b"", ODD, "not JSON"),
        (b"[]", ODD, "not a JSON object"),
        (b"{}{}", ODD, "not JSON"),
        (b'{"a":\xff}', ODD, "not JSON"),
    ],
)
def test_what_is_not_taken(raw: bytes, header: str | None, words: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_pushed(raw, content_type=header)
    assert words in caught.value.message
    assert (caught.value.status, caught.value.code) == (400, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"mediaType": OCI_MANIFEST, **IMAGE, "artifactType": "a/b"}, "a/b"),
        ({"mediaType": OCI_MANIFEST, **IMAGE}, "application/vnd.x.y"),
        ({"mediaType": OCI_MANIFEST, **IMAGE, "artifactType": ""}, "application/vnd.x.y"),
        ({"mediaType": DOCKER_MANIFEST, **IMAGE}, "application/vnd.x.y"),
        ({"mediaType": OCI_INDEX, "manifests": []}, None),
        ({"mediaType": OCI_INDEX, "manifests": [], "config": descriptor()}, None),
        ({"mediaType": OCI_INDEX, "manifests": [], "artifactType": "a/b"}, "a/b"),
        ({"mediaType": ODD, "config": descriptor()}, "application/vnd.x.y"),
        ({"mediaType": ODD}, None),
    ],
)
def test_the_type_of_an_artifact(body: dict[str, Any], expected: str | None) -> None:
    """The specification, "Listing Referrers": an image's is its config's when it says none, an index's is not there."""
    assert parse_pushed(raw_of(**body), content_type=None).descriptor.artifact_type == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["mediaType", "config", "layers", "blobs", "manifests", "subject", "annotations", "artifactType"]
)
DESCRIPTORS = st.fixed_dictionaries(
    {"digest": st.sampled_from([D1, "sha256:1", 5]), "size": st.integers() | JSON}, optional={"mediaType": JSON}
)


@pytest.mark.parametrize("parse", [parse_manifest, parse_pushed])
@given(
    body=st.dictionaries(KEYS, JSON | DESCRIPTORS | st.lists(DESCRIPTORS, max_size=2)),
    header=st.sampled_from([None, OCI_MANIFEST, OCI_INDEX, ODD, "text/plain"]),
)
def test_whatever_a_body_holds_it_is_read_or_refused(
    parse: Callable[..., Manifest], body: dict[str, Any], header: str | None
) -> None:
    raw = json.dumps(body).encode()
    try:
        manifest = parse(raw, content_type=header)
    except ManifestInvalid:
        return
    assert manifest.raw == raw
    assert media_type_of(manifest.descriptor.media_type) == manifest.descriptor.media_type
    for child in manifest.children:
        assert 0 <= child.size < 2**63


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    for parse in (parse_manifest, parse_pushed):
        with pytest.raises(ManifestInvalid):
            parse(raw, content_type=None)
