"""Cases of pushing a blob in one piece: POST then PUT, a single POST, what is refused, cancelling."""

from __future__ import annotations

import re
from urllib.parse import unquote

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import OCTETS, Blob
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
BLOBS = "Pushing blobs"
POST_PUT = "POST then PUT"
SINGLE = "Single POST"
UUID = re.compile(r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


@case("upload-start", PUSH, POST_PUT, "end-4a", must="1.0")
async def upload_start(stage: Stage) -> None:
    """POST of an upload answers 202 with a Location."""
    answer = await stage.registry.ask("POST", stage.path("blobs", "uploads/"))
    expect.status(answer, 202)
    expect.header(answer, "Location")


@case("upload-location-unique", PUSH, POST_PUT, "end-4a", must="1.0")
async def upload_location_unique(stage: Stage) -> None:
    """Each upload has a Location of its own."""
    first, second = await stage.begin(), await stage.begin()
    if first == second:
        answer = stage.answers[-1]
        raise expect.failed(answer, "a Location of its own for each upload", "the same twice")


@case("upload-location-uuid", PUSH, POST_PUT, "end-4a", must="1.0")
async def upload_location_uuid(stage: Stage) -> None:
    """The Location of an upload contains a UUID."""
    location = await stage.begin()
    if not UUID.search(unquote(location)):
        raise expect.failed(stage.answers[-1], "a UUID in Location", repr(stage.answers[-1].headers["Location"]))


@case("upload-put", PUSH, POST_PUT, "end-6", must="1.0")
async def upload_put(stage: Stage) -> None:
    """PUT of the whole blob answers 201 with a Location, and the blob can be pulled."""
    blob = stage.content.blob(4096)
    answer = await stage.finish(await stage.begin(), blob.digest, blob.data)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, blob)


@case("upload-put-location", PUSH, POST_PUT, "end-6", must="1.0")
async def upload_put_location(stage: Stage) -> None:
    """The Location that PUT answers with is a URL the blob can be pulled from."""
    blob = stage.content.blob()
    await _location_is_of(stage, await stage.finish(await stage.begin(), blob.digest, blob.data), blob)


@case("upload-put-digest-header", PUSH, POST_PUT, "end-6", must="1.0")
async def upload_put_digest_header(stage: Stage) -> None:
    """Docker-Content-Digest of a finished upload, where present, is a digest of the blob."""
    blob = stage.content.blob()
    expect.digest_header(await stage.finish(await stage.begin(), blob.digest, blob.data), blob.data)


@case("upload-empty-blob", PUSH, POST_PUT, "end-6", must="1.0")
async def upload_empty_blob(stage: Stage) -> None:
    """A blob of no bytes is a blob."""
    blob = stage.content.of(b"")
    expect.status(await stage.finish(await stage.begin(), blob.digest), 201)
    await _pullable(stage, blob)


@case("upload-again", PUSH, POST_PUT, "end-6", must="1.0")
async def upload_again(stage: Stage) -> None:
    """Pushing a blob that is there already answers 201."""
    blob = stage.content.blob()
    await stage.put_blob(blob)
    expect.status(await stage.finish(await stage.begin(), blob.digest, blob.data), 201)
    await _pullable(stage, blob)


@case("upload-stream", PUSH, BLOBS, "end-5", should="1.0")
async def upload_stream(stage: Stage) -> None:
    """A blob sent by one PATCH of unknown length is stored, as container engines push."""
    blob = stage.content.blob(200_000)
    location = await stage.begin()
    answer = await stage.registry.ask("PATCH", location, headers={"Content-Type": OCTETS}, body=blob.data, chunked=True)
    expect.status(answer, 202)
    expect.status(await stage.finish(stage.next_location(answer, location), blob.digest), 201)
    await _pullable(stage, blob)


@case("upload-digest-mismatch", PUSH, POST_PUT, "end-6", must="1.0", negative=True)
async def upload_digest_mismatch(stage: Stage) -> None:
    """PUT of bytes that do not have the digest named is refused, and there is no such blob then."""
    digest = stage.content.digest()
    answer = await stage.finish(await stage.begin(), digest, stage.content.blob().data)
    expect.refused(answer)
    await stage.is_absent("blobs", digest)


@case("upload-digest-mismatch-status", PUSH, BLOBS, "end-6", should="main", negative=True)
async def upload_digest_mismatch_status(stage: Stage) -> None:
    """PUT of bytes that do not have the digest named answers 400."""
    answer = await stage.finish(await stage.begin(), stage.content.digest(), stage.content.blob().data)
    expect.refused(answer, 400)


@case("upload-digest-malformed", PUSH, BLOBS, "end-6", should="main", negative=True)
async def upload_digest_malformed(stage: Stage) -> None:
    """PUT with what can be no digest answers 400."""
    for digest in ("sha256:zzzz", "none", "sha256:" + "a" * 63):
        expect.refused(await stage.finish(await stage.begin(), digest, b"something"), 400)


@case("upload-digest-unsupported", PUSH, BLOBS, "end-6", should="main", negative=True)
async def upload_digest_unsupported(stage: Stage) -> None:
    """PUT with a digest of an algorithm the registry does not know answers 400."""
    answer = await stage.finish(await stage.begin(), "conformance+none:" + "a" * 64, b"something")
    expect.refused(answer, 400)


@case("upload-without-digest", PUSH, POST_PUT, "end-6", must="1.0", negative=True)
async def upload_without_digest(stage: Stage) -> None:
    """PUT without a digest is refused."""
    answer = await stage.registry.ask(
        "PUT", await stage.begin(), headers={"Content-Type": OCTETS}, body=stage.content.blob().data
    )
    expect.refused(answer)


@case("upload-after-end", PUSH, BLOBS, "end-5", should="1.0", negative=True)
async def upload_after_end(stage: Stage) -> None:
    """PATCH of an upload that has ended answers 404."""
    blob = stage.content.blob()
    location = await stage.begin()
    await stage.finish(location, blob.digest, blob.data)
    expect.refused(await stage.chunk(location, b"more", 0), 404)


@case("upload-invalid-name", PUSH, BLOBS, "end-4a", must="1.0", negative=True)
async def upload_invalid_name(stage: Stage) -> None:
    """POST of an upload to what can be no repository name is refused."""
    for name in ("Upper", "-dash", "two..dots"):
        path = stage.path("blobs", "uploads/", f"{stage.options.repository}/{name}")
        expect.refused(await stage.registry.ask("POST", path))


# ---- a single POST ----


@case("single-post", PUSH, SINGLE, "end-4b", must="1.0")
async def single_post(stage: Stage) -> None:
    """POST with digest and body answers 201 with a Location, and the blob can be pulled."""
    blob = stage.content.blob()
    answer = await _single(stage, blob.digest, blob.data)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, blob)


@case("single-post-location", PUSH, SINGLE, "end-4b", must="1.0")
async def single_post_location(stage: Stage) -> None:
    """The Location that a single POST answers with is a URL the blob can be pulled from."""
    blob = stage.content.blob()
    await _location_is_of(stage, await _single(stage, blob.digest, blob.data), blob)


@case("single-post-fallback", PUSH, SINGLE, "end-4b", should="1.0")
async def single_post_fallback(stage: Stage) -> None:
    """A registry without it answers a single POST by 202 with a Location, and a PUT there pushes the blob."""
    blob = stage.content.blob()
    answer = await _post(stage, blob.digest, blob.data)
    if answer.status == 201:
        stage.note("a single POST is supported")
        return
    expect.status(answer, 202)
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    expect.status(await stage.finish(location, blob.digest, blob.data), 201)
    await _pullable(stage, blob)


@case("single-post-digest-mismatch", PUSH, SINGLE, "end-4b", must="1.0", negative=True)
async def single_post_digest_mismatch(stage: Stage) -> None:
    """POST of bytes that do not have the digest named is refused, and there is no such blob then."""
    digest = stage.content.digest()
    answer = await _single(stage, digest, stage.content.blob().data)
    expect.refused(answer)
    await stage.is_absent("blobs", digest)


async def _post(stage: Stage, digest: str, data: bytes) -> Answer:
    return await stage.registry.ask(
        "POST",
        stage.path("blobs", "uploads/"),
        query={"digest": digest},
        headers={"Content-Type": OCTETS},
        body=data,
    )


async def _single(stage: Stage, digest: str, data: bytes) -> Answer:
    answer = await _post(stage, digest, data)
    if answer.status == 202:
        raise Unsupported("a single POST answers 202: the blob is to follow by PUT")
    return answer


# ---- cancelling ----


@case("upload-cancel", PUSH, "Cancel a blob upload", "end-14", should="main")
async def upload_cancel(stage: Stage) -> None:
    """DELETE of an upload answers 204."""
    answer = await _cancel(stage, await stage.begin())
    expect.status(answer, 204)


@case("upload-cancel-effect", PUSH, "Cancel a blob upload", "end-14", should="main")
async def upload_cancel_effect(stage: Stage) -> None:
    """An upload that was cancelled is gone: PUT to it answers 404."""
    location = await stage.begin()
    await _cancel(stage, location)
    blob = stage.content.blob()
    expect.refused(await stage.finish(location, blob.digest, blob.data), 404)


async def _cancel(stage: Stage, location: str) -> Answer:
    answer = await stage.registry.ask("DELETE", location)
    if answer.status in (400, 404, 405, 501):
        raise Unsupported(f"DELETE of an upload answers {answer.status}")
    return answer


# ---- what the cases share ----


async def _pullable(stage: Stage, blob: Blob) -> None:
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)


async def _location_is_of(stage: Stage, answer: Answer, blob: Blob) -> None:
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    expect.same(await stage.registry.ask("GET", location), blob.data, blob.digest)
