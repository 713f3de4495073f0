"""Cases of mounting a blob from another repository."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import Blob
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
MOUNT = "Mounting a blob from another repository"


@case("mount", PUSH, MOUNT, "end-11", must="1.0")
async def mount(stage: Stage) -> None:
    """A mount answers 201 with a Location, and the blob can be pulled."""
    blob, answer = await _mounted(stage)
    expect.status(answer, 201)
    expect.header(answer, "Location")
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)


@case("mount-location", PUSH, MOUNT, "end-11", must="1.0")
async def mount_location(stage: Stage) -> None:
    """The Location that a mount answers with is a URL the blob can be pulled from."""
    blob, answer = await _mounted(stage)
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    expect.same(await stage.registry.ask("GET", location), blob.data, blob.digest)


@case("mount-digest-header", PUSH, MOUNT, "end-11", must="1.0")
async def mount_digest_header(stage: Stage) -> None:
    """Docker-Content-Digest of a mount, where present, is a digest of the blob."""
    blob, answer = await _mounted(stage)
    expect.digest_header(answer, blob.data)


@case("mount-without-from", PUSH, MOUNT, "end-11", must="1.1")
async def mount_without_from(stage: Stage) -> None:
    """A mount that names no repository, if it is done, answers 201 with a Location, and the blob can be pulled."""
    blob = stage.content.blob()
    await stage.put_blob(blob, stage.options.other)
    answer = await _mount(stage, blob.digest, None)
    if answer.status == 202:
        raise Unsupported("a mount that names no repository answers 202")
    expect.status(answer, 201)
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)
    expect.same(await stage.registry.ask("GET", location), blob.data, blob.digest)


@case("mount-unknown", PUSH, MOUNT, "end-11", must="1.0", negative=True)
async def mount_unknown(stage: Stage) -> None:
    """A mount of a blob that is not there does not answer 201, and makes none."""
    digest = stage.content.digest()
    answer = await _mount(stage, digest, stage.options.other)
    if answer.status == 201:
        raise expect.failed(answer, "status 202, as there is nothing to mount", "status 201")
    await stage.is_absent("blobs", digest)


@case("mount-fallback", PUSH, MOUNT, "end-11", should="1.0", negative=True)
async def mount_fallback(stage: Stage) -> None:
    """A mount that cannot be done answers 202 with a Location, and begins an upload."""
    blob = stage.content.blob()
    answer = await _mount(stage, blob.digest, stage.options.other)
    expect.status(answer, 202)
    location = stage.registry.absolute(expect.header(answer, "Location"), answer.url)
    expect.status(await stage.finish(location, blob.digest, blob.data), 201)
    expect.same(await stage.get("blobs", blob.digest), blob.data, blob.digest)


async def _mount(stage: Stage, digest: str, source: str | None) -> Answer:
    query = {"mount": digest, **({"from": source} if source else {})}
    return await stage.registry.ask("POST", stage.path("blobs", "uploads/"), query=query)


async def _mounted(stage: Stage) -> tuple[Blob, Answer]:
    """Push a blob to the other repository and mount it. Raises: Unsupported when the answer is 202."""
    blob = stage.content.blob()
    await stage.put_blob(blob, stage.options.other)
    answer = await _mount(stage, blob.digest, stage.options.other)
    if answer.status == 202:
        raise Unsupported("a mount answers 202: the blob is to be uploaded")
    return blob, answer
