"""Cases of pushing manifests: kept as they are, whatever they list; and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import FOREIGN_LAYER, INDEX, LAYER, MANIFEST, Document
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
MANIFESTS = "Pushing Manifests"
ORDER = "Push"
LARGE = 4 * 1024 * 1024
TOO_LARGE = 12 * 1024 * 1024


@case("manifest-put-by-tag", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_put_by_tag(stage: Stage) -> None:
    """PUT of a manifest by a tag answers 201 with a Location, and it can be pulled by tag and by digest."""
    image, tag = stage.content.image(), stage.content.word("put")
    answer = await stage.send_document(image, tag)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, image, tag, image.digest)


@case("manifest-put-by-digest", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_put_by_digest(stage: Stage) -> None:
    """PUT of a manifest by its digest answers 201 with a Location, and it can be pulled."""
    image = stage.content.image()
    answer = await stage.send_document(image)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, image, image.digest)


@case("manifest-put-location", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_put_location(stage: Stage) -> None:
    """The Location that PUT of a manifest answers with is a URL it can be pulled from."""
    image = stage.content.image()
    for reference in (image.digest, stage.content.word("location")):
        answer = await stage.send_document(image, reference)
        location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
        expect.same(await stage.registry.ask("GET", location, headers={"Accept": MANIFEST}), image.data, image.digest)


@case("manifest-put-digest-header", PUSH, MANIFESTS, "end-7a", must="1.1")
async def manifest_put_digest_header(stage: Stage) -> None:
    """Docker-Content-Digest of a PUT by digest, where present, is the digest given."""
    image = stage.content.image()
    answer = await stage.send_document(image)
    value = answer.headers.get("Docker-Content-Digest")
    if value is not None and value != image.digest:
        raise expect.failed(answer, f"Docker-Content-Digest: {image.digest}", repr(value))


@case("manifest-bytes-kept", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_bytes_kept(stage: Stage) -> None:
    """A manifest is kept byte for byte, however its JSON is written."""
    image = stage.content.image(annotations={"z": "é \U0001f433", "a": "/"})
    data = ("\n " + json.dumps(image.value, indent=3, ensure_ascii=False) + "\r\n").encode()
    odd = stage.content.document(image.value, blobs=image.blobs, data=data)
    tag = stage.content.word("bytes")
    await stage.put_document(odd, tag, odd.digest)
    await _pullable(stage, odd, tag, odd.digest)


@case("manifest-tag-moves", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_tag_moves(stage: Stage) -> None:
    """A tag pushed again is the new manifest, and the old one stays under its digest."""
    tag, first, second = stage.content.word("moves"), stage.content.image(), stage.content.image()
    await stage.put_document(first, tag)
    await _pullable(stage, first, tag)
    await stage.put_document(second, tag)
    await _pullable(stage, second, tag)
    await _pullable(stage, first, first.digest)


@case("manifest-put-content-type-parameters", PUSH, MANIFESTS, "end-7a", should="1.1")
async def manifest_put_content_type_parameters(stage: Stage) -> None:
    """Parameters on the Content-Type of a pushed manifest are ignored."""
    image = stage.content.image()
    answer = await stage.send_document(image, headers={"Content-Type": f"{MANIFEST}; charset=utf-8"})
    expect.status(answer, 201)
    await _pullable(stage, image, image.digest)


@case("manifest-put-digest-mismatch", PUSH, MANIFESTS, "end-7a", must="1.0", negative=True)
async def manifest_put_digest_mismatch(stage: Stage) -> None:
    """PUT of a manifest by a digest it does not have is refused, and there is no such manifest then."""
    digest = stage.content.digest()
    expect.refused(await stage.send_document(stage.content.image(), digest))
    await stage.is_absent("manifests", digest)


@case("manifest-put-invalid-reference", PUSH, MANIFESTS, "end-7a", must="1.0", negative=True)
async def manifest_put_invalid_reference(stage: Stage) -> None:
    """PUT of a manifest by what is neither a tag nor a digest is refused."""
    image = stage.content.image()
    await stage.put_document(image)
    for reference in (".begins-with-a-dot", "a" * 129, "sha256:zzzz"):
        expect.refused(await stage.put_manifest(image, reference))


@case("manifest-put-not-json", PUSH, MANIFESTS, "end-7a", should="1.0", negative=True)
async def manifest_put_not_json(stage: Stage) -> None:
    """PUT of an image manifest that is no JSON is refused: a manifest is a JSON document."""
    broken = stage.content.document({}, data=b'{"schemaVersion": 2,', media_type=MANIFEST)
    expect.refused(await stage.put_manifest(broken, stage.content.word("broken")))


# ---- what manifests may be ----


@case("index-put", PUSH, MANIFESTS, "end-7a", must="1.0")
async def index_put(stage: Stage) -> None:
    """An image index over pushed manifests is stored, and so is an index over that index."""
    images = (stage.content.image(), stage.content.image())
    for image in images:
        await stage.put_document(image)
    index = stage.content.index(images)
    await _stored(stage, index)
    await _stored(stage, stage.content.index((index,)))


@case("manifest-put-no-layers", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_put_no_layers(stage: Stage) -> None:
    """A manifest with an empty list of layers, and an index with an empty list of manifests, are stored."""
    await _stored(stage, stage.content.image(layers=0))
    await _stored(stage, stage.content.index())


@case("artifact-put", PUSH, "Introduction", "end-7a", must="1.0")
async def artifact_put(stage: Stage) -> None:
    """The types of config and layers do not matter: an artifact of somebody's own types is stored."""
    await _stored(stage, stage.content.image(config_type="application/vnd.example.conformance.v1+json"))
    await _stored(stage, stage.content.image(artifact_type="application/vnd.example.conformance"))


@case("manifest-put-unknown-fields", PUSH, MANIFESTS, "end-7a", must="1.0")
async def manifest_put_unknown_fields(stage: Stage) -> None:
    """Members that no specification knows are kept."""
    await _stored(stage, stage.content.image(more={"org.example.unknown": {"deep": [1, 2.5, None]}}))


@case("manifest-put-data-field", PUSH, MANIFESTS, "end-7a", should="1.1")
async def manifest_put_data_field(stage: Stage) -> None:
    """Descriptors may carry their content as data."""
    image = stage.content.image(layers=1)
    value = json.loads(image.data)
    value["layers"][0]["data"] = base64.b64encode(image.blobs[-1].data).decode()
    await _stored(stage, stage.content.document(value, blobs=image.blobs))


@case("manifest-put-nondistributable", PUSH, MANIFESTS, "end-7a", should="1.0")
async def manifest_put_nondistributable(stage: Stage) -> None:
    """A manifest with a nondistributable layer is stored, though nobody pushes that layer."""
    image = stage.content.image(layers=1)
    value = json.loads(image.data)
    foreign = stage.content.blob().descriptor(FOREIGN_LAYER)
    value["layers"].append({**foreign, "urls": ["https://layers.example/foreign"]})
    await _stored(stage, stage.content.document(value, blobs=image.blobs))


@case("manifest-put-unknown-media-type", PUSH, "Introduction", "end-7a", should="1.0")
async def manifest_put_unknown_media_type(stage: Stage) -> None:
    """A manifest of a type the registry does not know is stored, and served with that type."""
    media_type = "application/vnd.example.conformance.manifest.v1+json"
    document = stage.content.document({"mediaType": media_type, "word": stage.content.word()})
    answer = await stage.put_manifest(document)
    if answer.status in (400, 404, 415):
        raise Unsupported(f"manifests of unknown types are refused: PUT answers {answer.status}")
    expect.status(answer, 201)
    pulled = await stage.get("manifests", document.digest)
    expect.same(pulled, document.data, document.digest)
    if pulled.content_type != media_type:
        raise expect.failed(pulled, f"Content-Type: {media_type}", repr(pulled.content_type))


@case("manifest-put-large", PUSH, MANIFESTS, "end-7a", should="1.1")
async def manifest_put_large(stage: Stage) -> None:
    """A manifest of 4 MiB is stored."""
    await _stored(stage, _padded(stage, LARGE))


@case("manifest-put-too-large", PUSH, MANIFESTS, "end-7a", should="1.1", negative=True)
async def manifest_put_too_large(stage: Stage) -> None:
    """A manifest over the registry's limit answers 413."""
    answer = await stage.send_document(_padded(stage, TOO_LARGE))
    if answer.status == 201:
        raise Unsupported(f"no limit of manifests below {TOO_LARGE} bytes")
    expect.refused(answer, 413)


# ---- what manifests list that is not there ----


@case("manifest-put-missing-layer", PUSH, ORDER, "end-7a", must="1.1", negative=True)
async def manifest_put_missing_layer(stage: Stage) -> None:
    """A manifest that lists a layer that is not there, if refused, is so by MANIFEST_BLOB_UNKNOWN."""
    value, blobs = _parts(stage)
    value["layers"].append(stage.content.blob().descriptor(LAYER))
    await _missing(stage, stage.content.document(value, blobs=blobs))


@case("manifest-put-missing-config", PUSH, ORDER, "end-7a", must="1.1", negative=True)
async def manifest_put_missing_config(stage: Stage) -> None:
    """A manifest whose config is not there, if refused, is so by MANIFEST_BLOB_UNKNOWN."""
    value, blobs = _parts(stage)
    await _missing(stage, stage.content.document(value, blobs=blobs[1:]))


@case("index-put-missing-manifest", PUSH, ORDER, "end-7a", must="1.1", negative=True)
async def index_put_missing_manifest(stage: Stage) -> None:
    """An index that lists a manifest that is not there, if refused, is so by MANIFEST_BLOB_UNKNOWN."""
    await _missing(stage, stage.content.index((stage.content.image(),)))


# ---- ?tag= ----


@case("tag-parameters", PUSH, MANIFESTS, "end-7b", must="main")
async def tag_parameters(stage: Stage) -> None:
    """PUT by digest with ?tag=, where supported, answers with OCI-Tag for each tag made, and they can be pulled."""
    image, answer, tags = await _with_tags(stage, 3)
    expect.status(answer, 201)
    made = _oci_tags(answer)
    if not set(made) <= set(tags):
        raise expect.failed(answer, f"OCI-Tag of {expect.one_of(tags)}", expect.one_of(made))
    await _pullable(stage, image, image.digest, *made)
    for tag in set(tags) - set(made):
        unmade = await stage.head("manifests", tag)
        if unmade.status == 200:
            raise expect.failed(answer, f"OCI-Tag: {tag}, as the tag was made", expect.one_of(made))


@case("tag-parameters-ten", PUSH, MANIFESTS, "end-7b", should="main")
async def tag_parameters_ten(stage: Stage) -> None:
    """PUT by digest with ten tags makes all of them."""
    _, answer, tags = await _with_tags(stage, 10)
    expect.status(answer, 201)
    if set(_oci_tags(answer)) != set(tags):
        raise expect.failed(answer, "OCI-Tag of all 10 tags", expect.one_of(_oci_tags(answer)))


async def _with_tags(stage: Stage, count: int) -> tuple[Document, Answer, list[str]]:
    """Push an image by digest with so many tags. Raises: Unsupported."""
    image = stage.content.image()
    tags = [stage.content.word("tag") for _ in range(count)]
    answer = await stage.send_document(image, query=[("tag", tag) for tag in tags])
    if answer.status in (201, 414) and not answer.headers.getall("OCI-Tag", []):
        unmade = await stage.head("manifests", tags[0])
        if unmade.status == 200:
            raise expect.failed(answer, "OCI-Tag, as the tag was made", "none")
        raise Unsupported("?tag= is not supported: no OCI-Tag is answered")
    return image, answer, tags


def _oci_tags(answer: Answer) -> list[str]:
    lines = answer.headers.getall("OCI-Tag", [])
    return [tag.strip() for line in lines for tag in line.split(",") if tag.strip()]


# ---- what the cases share ----


def _parts(stage: Stage) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return an image's JSON, to be changed, and its blobs, the config first."""
    image = stage.content.image()
    return json.loads(image.data), image.blobs


def _padded(stage: Stage, size: int) -> Document:
    """Return an image manifest of exactly so many bytes."""
    image = stage.content.image()
    value = {**image.value, "annotations": {"org.example.padding": ""}}
    missing = size - len(stage.content.document(value).data)
    value["annotations"] = {"org.example.padding": "a" * missing}
    return stage.content.document(value, blobs=image.blobs)


async def _stored(stage: Stage, document: Document) -> None:
    """Demand that a document is taken and can be pulled."""
    expect.status(await stage.send_document(document), 201)
    await _pullable(stage, document, document.digest)


async def _pullable(stage: Stage, document: Document, *references: str) -> None:
    for reference in references:
        expect.same(await stage.get("manifests", reference), document.data, document.digest)


async def _missing(stage: Stage, document: Document) -> None:
    """Demand that the document is stored, or refused by MANIFEST_BLOB_UNKNOWN."""
    answer = await stage.send_document(document)
    what = "index" if document.media_type == INDEX else "manifest"
    if answer.status == 201:
        stage.note(f"an {what} is taken without what it lists" if what == "index" else f"a {what} is taken without it")
        await _pullable(stage, document, document.digest)
        return
    expect.refused(answer)
    codes = [error["code"] for error in expect.error_body(answer)]
    if "MANIFEST_BLOB_UNKNOWN" not in codes:
        raise expect.failed(answer, "an error MANIFEST_BLOB_UNKNOWN", expect.one_of(codes))
