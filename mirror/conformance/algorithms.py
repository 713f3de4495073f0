"""Cases of digests other than sha256: a registry may refuse them, but what it accepts it keeps under that digest."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import Blob, Document
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
BLOBS = "Pushing blobs"
CHUNKS = "Pushing a blob in chunks"
SHA512 = "sha512"


@case("sha512-blob", PUSH, BLOBS, "end-6", must="1.0")
async def sha512_blob(stage: Stage) -> None:
    """A blob whose sha512 digest is first named by PUT, if taken, can be pulled by that digest."""
    blob = stage.content.blob(algorithm=SHA512)
    expect.status(_taken(await stage.finish(await stage.begin(), blob.digest, blob.data)), 201)
    await _pullable(stage, blob)


@case("sha512-chunks", PUSH, CHUNKS, "end-6", must="1.0")
async def sha512_chunks(stage: Stage) -> None:
    """A blob sent in chunks whose sha512 digest is first named by PUT, if taken, can be pulled by that digest."""
    await _in_chunks(stage, stage.content.blob(2000, algorithm=SHA512), await stage.begin())


@case("sha512-named-first", PUSH, CHUNKS, "end-4c", must="main")
async def sha512_named_first(stage: Stage) -> None:
    """An upload begun with ?digest-algorithm=sha512, if taken, can be ended with a sha512 digest."""
    answer = _taken(
        await stage.registry.ask("POST", stage.path("blobs", "uploads/"), query={"digest-algorithm": SHA512})
    )
    expect.status(answer, 202)
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    await _in_chunks(stage, stage.content.blob(2000, algorithm=SHA512), location)


@case("sha512-digest-header", Category.PULL, "Pulling blobs", "end-2", should="1.0", pushes=True)
async def sha512_digest_header(stage: Stage) -> None:
    """Docker-Content-Digest of a blob that was pushed by its sha512 digest is that digest: of PUT, GET and HEAD."""
    blob = stage.content.blob(algorithm=SHA512)
    put = _taken(await stage.finish(await stage.begin(), blob.digest, blob.data))
    for answer in (put, await stage.get("blobs", blob.digest), await stage.head("blobs", blob.digest)):
        value = answer.header("Docker-Content-Digest")
        if value is not None and value != blob.digest:
            raise expect.failed(answer, f"Docker-Content-Digest: {blob.digest[:20]}…", f"{value[:20]}…")


@case("sha512-mismatch", PUSH, BLOBS, "end-6", must="1.0", negative=True)
async def sha512_mismatch(stage: Stage) -> None:
    """PUT of bytes that do not have the sha512 digest named is refused, and there is no such blob then."""
    digest = stage.content.digest(SHA512)
    expect.refused(await stage.finish(await stage.begin(), digest, stage.content.blob().data))
    await stage.is_absent("blobs", digest)


@case("sha512-manifest", PUSH, "Pushing Manifests", "end-7a", must="1.0")
async def sha512_manifest(stage: Stage) -> None:
    """A manifest pushed by its sha512 digest, if taken, can be pulled by that digest."""
    image, answer = await _manifest(stage)
    expect.status(answer, 201)
    expect.same(await stage.get("manifests", image.digest), image.data, image.digest)


@case("sha512-manifest-digest-header", PUSH, "Pushing Manifests", "end-7a", must="1.1")
async def sha512_manifest_digest_header(stage: Stage) -> None:
    """Docker-Content-Digest of a manifest pushed by its sha512 digest, where present, is that digest."""
    image, answer = await _manifest(stage)
    value = answer.headers.get("Docker-Content-Digest")
    if value is not None and value != image.digest:
        raise expect.failed(answer, f"Docker-Content-Digest: {image.digest[:20]}…", f"{value[:20]}…")


@case("digest-algorithm-unsupported", PUSH, BLOBS, "end-4c", should="main", negative=True)
async def digest_algorithm_unsupported(stage: Stage) -> None:
    """POST with a digest-algorithm the registry does not know answers 400."""
    answer = await stage.registry.ask(
        "POST", stage.path("blobs", "uploads/"), query={"digest-algorithm": "conformance-none"}
    )
    expect.refused(answer, 400)


def _taken(answer: Answer) -> Answer:
    """Return the answer. Raises: Unsupported when it is 400."""
    if answer.status == 400:
        expect.refused(answer, 400)
        raise Unsupported(f"sha512 is not taken: {answer.method} answers 400")
    return answer


async def _in_chunks(stage: Stage, blob: Blob, location: str) -> None:
    location = await stage.accepted_chunk(location, blob.data[:1024], 0)
    location = await stage.accepted_chunk(location, blob.data[1024:], 1024)
    expect.status(_taken(await stage.finish(location, blob.digest)), 201)
    await _pullable(stage, blob)


async def _pullable(stage: Stage, blob: Blob) -> None:
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)


async def _manifest(stage: Stage) -> tuple[Document, Answer]:
    image = stage.content.image(algorithm=SHA512)
    return image, _taken(await stage.send_document(image))
