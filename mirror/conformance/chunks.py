"""Cases of pushing a blob in chunks: order, status, resuming."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, NotJudged, case
from mirror.conformance.client import Answer
from mirror.conformance.content import Blob
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
CHUNKS = "Pushing a blob in chunks"
CHUNK = 1024
"""Bytes of a chunk, unless the registry wants larger ones."""

LARGEST = 16 * 1024 * 1024
"""Largest chunk, in bytes, that is sent to a registry that wants large ones."""


@case("chunk-patch", PUSH, CHUNKS, "end-5", must="1.0")
async def chunk_patch(stage: Stage) -> None:
    """PATCH of a chunk answers 202 with a Location."""
    location, blob, size = await _begin(stage)
    for first in (0, size):
        answer = await stage.chunk(location, blob.data[first : first + size], first)
        expect.status(answer, 202)
        location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)


@case("chunk-range-header", PUSH, CHUNKS, "end-5", must="1.1")
async def chunk_range_header(stage: Stage) -> None:
    """PATCH of a chunk answers with Range: 0-<last byte of it>."""
    location, blob, size = await _begin(stage)
    for first in (0, size):
        answer = await stage.chunk(location, blob.data[first : first + size], first)
        _reaches(answer, first + size - 1)
        location = stage.next_location(answer, location)


@case("chunk-close", PUSH, CHUNKS, "end-6", must="1.0")
async def chunk_close(stage: Stage) -> None:
    """PUT without a body after the last chunk answers 201 with a Location, and the blob can be pulled."""
    location, blob, size = await _begin(stage)
    for first in range(0, len(blob.data), size):
        location = await stage.accepted_chunk(location, blob.data[first : first + size], first)
    answer = await stage.finish(location, blob.digest)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, blob)


@case("chunk-close-location", PUSH, CHUNKS, "end-6", must="1.0")
async def chunk_close_location(stage: Stage) -> None:
    """The Location that a chunked upload ends with is a URL the blob can be pulled from."""
    location, blob, size = await _begin(stage)
    for first in range(0, len(blob.data), size):
        location = await stage.accepted_chunk(location, blob.data[first : first + size], first)
    answer = await stage.finish(location, blob.digest)
    pulled = await stage.registry.ask("GET", stage.registry.absolute(expect.header(answer, "Location"), answer.url))
    expect.same(pulled, blob.data, blob.digest)


@case("chunk-last-by-put", PUSH, CHUNKS, "end-6", must="1.0")
async def chunk_last_by_put(stage: Stage) -> None:
    """The last chunk may come with the closing PUT."""
    location, blob, size = await _begin(stage)
    for first in (0, size):
        location = await stage.accepted_chunk(location, blob.data[first : first + size], first)
    answer = await stage.finish(location, blob.digest, blob.data[2 * size :], 2 * size)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    await _pullable(stage, blob)


@case("chunk-digest-mismatch", PUSH, CHUNKS, "end-6", must="1.0", negative=True)
async def chunk_digest_mismatch(stage: Stage) -> None:
    """Closing an upload with a digest its chunks do not have is refused, and there is no such blob then."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    expect.refused(await stage.finish(location, blob.digest))
    await stage.is_absent("blobs", blob.digest)


@case("chunk-first-not-at-zero", PUSH, CHUNKS, "end-5", must="1.0", negative=True)
async def chunk_first_not_at_zero(stage: Stage) -> None:
    """A first chunk that does not begin at 0 answers 416."""
    location, blob, size = await _begin(stage)
    expect.refused(await stage.chunk(location, blob.data[size : 2 * size], size), 416)


@case("chunk-gap", PUSH, CHUNKS, "end-5", must="1.0", negative=True)
async def chunk_gap(stage: Stage) -> None:
    """A chunk that begins behind where the upload stands answers 416."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    expect.refused(await stage.chunk(location, blob.data[2 * size :], 2 * size), 416)


@case("chunk-repeated", PUSH, CHUNKS, "end-5", must="1.0", negative=True)
async def chunk_repeated(stage: Stage) -> None:
    """A chunk that was sent already answers 416."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    expect.refused(await stage.chunk(location, blob.data[:size], 0), 416)


@case("chunk-last-out-of-order", PUSH, CHUNKS, "end-6", must="main", negative=True)
async def chunk_last_out_of_order(stage: Stage) -> None:
    """A last chunk that comes out of order with the closing PUT answers 416."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    expect.refused(await stage.finish(location, blob.digest, blob.data[2 * size :], 2 * size), 416)


@case("upload-status", PUSH, CHUNKS, "end-13", must="1.1")
async def upload_status(stage: Stage) -> None:
    """GET of an upload answers 204 with Location and Range: 0-<last byte so far>."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    answer = await stage.registry.ask("GET", location)
    expect.status(answer, 204)
    expect.header(answer, "Location")
    _reaches(answer, size - 1)


@case("upload-status-after-end", PUSH, CHUNKS, "end-13", should="1.1", negative=True)
async def upload_status_after_end(stage: Stage) -> None:
    """GET of an upload that has ended answers 404."""
    location, blob, _ = await _begin(stage)
    await stage.finish(location, blob.digest, blob.data)
    expect.refused(await stage.registry.ask("GET", location), 404)


@case("chunk-resume", PUSH, CHUNKS, "end-13", must="1.1")
async def chunk_resume(stage: Stage) -> None:
    """After a refused chunk, GET says where the upload stands, and it can be ended from there."""
    location, blob, size = await _begin(stage)
    location = await stage.accepted_chunk(location, blob.data[:size], 0)
    refused = await stage.chunk(location, blob.data[2 * size :], 2 * size)
    if refused.status // 100 == 2:
        raise NotJudged(f"a chunk out of order was not refused: it answers {refused.status}")
    answer = await stage.registry.ask("GET", location)
    expect.status(answer, 204)
    _reaches(answer, size - 1)
    resumed = await stage.chunk(stage.next_location(answer, location), blob.data[size : 2 * size], size)
    expect.status(resumed, 202)
    location = stage.next_location(resumed, location)
    expect.status(await stage.finish(location, blob.digest, blob.data[2 * size :], 2 * size), 201)
    await _pullable(stage, blob)


@case("chunk-min-length", PUSH, CHUNKS, "end-4a", should="1.1")
async def chunk_min_length(stage: Stage) -> None:
    """A registry that wants chunks of some size says so as OCI-Chunk-Min-Length; without, small ones are taken."""
    location = await stage.begin()
    value = stage.answers[-1].headers.get("OCI-Chunk-Min-Length")
    if value is not None:
        if not value.isdecimal():
            raise expect.failed(stage.answers[-1], "OCI-Chunk-Min-Length in bytes", repr(value))
        stage.note(f"chunks of at least {value} bytes are wanted")
        return
    answer = await stage.chunk(location, b"small", 0)
    if answer.status // 100 != 2:
        raise expect.failed(answer, "a small chunk to be taken, or OCI-Chunk-Min-Length", f"status {answer.status}")


async def _begin(stage: Stage) -> tuple[str, Blob, int]:
    """Begin an upload; return its URL, a blob of three chunks (the last a bit shorter) and the bytes of a chunk."""
    location = await stage.begin()
    wanted = stage.answers[-1].headers.get("OCI-Chunk-Min-Length", "")
    size = max(CHUNK, int(wanted)) if wanted.isdecimal() else CHUNK
    if size > LARGEST:
        raise NotJudged(f"the registry wants chunks of {size} bytes")
    return location, stage.content.blob(3 * size - 5), size


def _reaches(answer: Answer, last: int) -> None:
    if expect.uploaded(answer) != last:
        raise expect.failed(answer, f"Range: 0-{last}", repr(answer.headers["Range"]))


async def _pullable(stage: Stage, blob: Blob) -> None:
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)
