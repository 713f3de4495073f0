"""Cases of pulling a part of a blob: the Range header (RFC 9110 section 14)."""

from __future__ import annotations

import re

from mirror.conformance import expect
from mirror.conformance.case import Category, case
from mirror.conformance.client import Answer
from mirror.conformance.stage import Stage, Target

PULL = Category.PULL
BLOBS = "Pulling blobs"


@case("blob-range", PULL, BLOBS, "end-2", should="1.1")
async def blob_range(stage: Stage) -> None:
    """Range: bytes=a-b of a blob answers 206 with these bytes."""
    target, data = await _whole(stage)
    first, last = len(data) // 4, len(data) // 2
    _part(await _ask(stage, target, f"bytes={first}-{last}"), data, first, last)


@case("blob-range-open", PULL, BLOBS, "end-2", should="1.1")
async def blob_range_open(stage: Stage) -> None:
    """Range: bytes=a- of a blob answers 206 with the rest of it."""
    target, data = await _whole(stage)
    first = len(data) // 2
    _part(await _ask(stage, target, f"bytes={first}-"), data, first, len(data) - 1)


@case("blob-range-suffix", PULL, BLOBS, "end-2", should="1.1")
async def blob_range_suffix(stage: Stage) -> None:
    """Range: bytes=-n of a blob answers 206 with its last n bytes."""
    target, data = await _whole(stage)
    _part(await _ask(stage, target, "bytes=-7"), data, len(data) - 7, len(data) - 1)


@case("blob-range-past-end", PULL, BLOBS, "end-2", should="1.1")
async def blob_range_past_end(stage: Stage) -> None:
    """A range that begins within the blob and ends behind it answers 206 up to its end."""
    target, data = await _whole(stage)
    first = len(data) - 9
    _part(await _ask(stage, target, f"bytes={first}-{len(data) + 100}"), data, first, len(data) - 1)


@case("blob-range-unsatisfiable", PULL, BLOBS, "end-2", should="1.1", negative=True)
async def blob_range_unsatisfiable(stage: Stage) -> None:
    """A range that begins behind the end of the blob answers 416."""
    target, data = await _whole(stage)
    expect.refused(await _ask(stage, target, f"bytes={len(data) + 1}-{len(data) + 100}"), 416)


@case("blob-range-backwards", PULL, BLOBS, "end-2", should="1.1", negative=True)
async def blob_range_backwards(stage: Stage) -> None:
    """A range that ends before it begins is refused (416 or 400), or ignored: 200 with the whole blob."""
    target, data = await _whole(stage)
    answer = await _ask(stage, target, "bytes=9-5")
    expect.status(answer, 416, 400, 200)
    if answer.status == 200:
        expect.whole_body(answer, data, target.digest)
    else:
        expect.refused(answer)


@case("blob-range-unknown-unit", PULL, BLOBS, "end-2", should="1.1")
async def blob_range_unknown_unit(stage: Stage) -> None:
    """A range in a unit that is not known is ignored: 200 with the whole blob."""
    target, data = await _whole(stage)
    expect.same(await _ask(stage, target, "pages=1-2"), data, target.digest)


async def _whole(stage: Stage) -> tuple[Target, bytes]:
    """Return a blob and its bytes."""
    target = (await stage.blobs())[-1]
    if target.data is not None:
        return target, target.data

    async def pull() -> bytes:
        answer = await stage.get("blobs", target.digest)
        expect.same(answer, None, target.digest)
        return answer.body

    return target, await stage.once("blob for ranges", pull)


async def _ask(stage: Stage, target: Target, value: str) -> Answer:
    return await stage.get("blobs", target.digest, headers={"Range": value})


def _part(answer: Answer, data: bytes, first: int, last: int) -> None:
    """Demand 206 with these bytes, first and last included, and a Content-Range that says so."""
    expect.status(answer, 206)
    value = expect.header(answer, "Content-Range")
    if not re.fullmatch(rf"bytes {first}-{last}/(?:{len(data)}|\*)", value):
        raise expect.failed(answer, f"Content-Range: bytes {first}-{last}/{len(data)}", repr(value))
    if answer.body != data[first : last + 1]:
        raise expect.failed(answer, f"bytes {first} to {last} of the blob", f"{len(answer.body)} other bytes")
