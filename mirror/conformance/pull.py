"""Cases of pulling: manifests and blobs, GET and HEAD, and what is not there."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, case
from mirror.conformance.client import Answer
from mirror.conformance.stage import Stage, Target

PULL = Category.PULL
MANIFESTS = "Pulling manifests"
BLOBS = "Pulling blobs"
EXISTS = "Checking if content exists in the registry"

# ---- manifests ----


@case("manifest-get-by-digest", PULL, MANIFESTS, "end-3", must="1.0")
async def manifest_get_by_digest(stage: Stage) -> None:
    """GET of a manifest by its digest answers 200 with its bytes."""
    for target in await stage.manifests():
        expect.same(await stage.get("manifests", target.digest), target.data, target.digest)


@case("manifest-get-by-tag", PULL, MANIFESTS, "end-3", must="1.0")
async def manifest_get_by_tag(stage: Stage) -> None:
    """GET of a manifest by a tag answers 200 with its bytes."""
    for target in await stage.tagged():
        expect.same(await stage.get("manifests", target.tag or ""), target.data, target.digest)


@case("manifest-get-content-type", PULL, MANIFESTS, "end-3", should="1.0")
async def manifest_get_content_type(stage: Stage) -> None:
    """Content-Type is the type the manifest was pushed with, or names as its mediaType."""
    for target in await stage.manifests():
        answer = await stage.get("manifests", target.digest)
        wanted = target.media_type or _declared(answer)
        found = answer.content_type.partition(";")[0].strip()
        if (wanted or found) != found or not found:
            raise expect.failed(answer, f"Content-Type: {wanted}", repr(answer.content_type))


@case("manifest-get-content-type-bare", PULL, MANIFESTS, "end-3", should="1.1")
async def manifest_get_content_type_bare(stage: Stage) -> None:
    """Content-Type of a manifest has no parameters."""
    for target in await stage.manifests():
        answer = await stage.get("manifests", target.digest)
        if ";" in answer.content_type:
            raise expect.failed(answer, "a Content-Type without parameters", repr(answer.content_type))


@case("manifest-get-digest-header", PULL, MANIFESTS, "end-3", should="1.0", must="main")
async def manifest_get_digest_header(stage: Stage) -> None:
    """GET of a manifest, by digest and by tag, answers with Docker-Content-Digest."""
    for target in await stage.manifests():
        for reference in _references(target):
            expect.header(await stage.get("manifests", reference), "Docker-Content-Digest")


@case("manifest-get-digest-header-value", PULL, MANIFESTS, "end-3", must="1.0")
async def manifest_get_digest_header_value(stage: Stage) -> None:
    """Docker-Content-Digest of a manifest, where present, is a digest of the manifest."""
    for target in await stage.manifests():
        for reference in _references(target):
            answer = await stage.get("manifests", reference)
            expect.digest_header(answer, answer.body if target.data is None else target.data)


@case("manifest-get-unknown-digest", PULL, MANIFESTS, "end-3", must="1.0", negative=True)
async def manifest_get_unknown_digest(stage: Stage) -> None:
    """GET of a manifest by a digest that is not there answers 404."""
    await stage.settle()
    expect.refused(await stage.get("manifests", stage.content.digest()), 404)


@case("manifest-get-unknown-tag", PULL, MANIFESTS, "end-3", must="1.0", negative=True)
async def manifest_get_unknown_tag(stage: Stage) -> None:
    """GET of a manifest by a tag that is not there answers 404."""
    await stage.settle()
    expect.refused(await stage.get("manifests", stage.content.word("unknown")), 404)


@case("manifest-get-unknown-repository", PULL, "Pushing Manifests", "end-3", must="1.0", negative=True)
async def manifest_get_unknown_repository(stage: Stage) -> None:
    """Pulling from a repository that does not exist answers 404."""
    expect.refused(await stage.get("manifests", "latest", name=_unknown_name(stage)), 404)


@case("manifest-get-invalid-tag", PULL, MANIFESTS, "end-3", must="1.0", negative=True)
async def manifest_get_invalid_tag(stage: Stage) -> None:
    """GET of what can be no tag (a dot first, more than 128 characters) is refused: 404 or 400."""
    await stage.settle()
    for tag in (".begins-with-a-dot", "a" * 129):
        expect.refused(await stage.get("manifests", tag), 404, 400)


@case("manifest-get-invalid-digest", PULL, MANIFESTS, "end-3", must="1.0", negative=True)
async def manifest_get_invalid_digest(stage: Stage) -> None:
    """GET of a manifest by what can be no digest is refused: 404 or 400."""
    await stage.settle()
    for digest in ("sha256:zzzz", "sha256:" + "A" * 63):
        expect.refused(await stage.get("manifests", digest), 404, 400)


@case("manifest-get-invalid-name", PULL, MANIFESTS, "end-3", must="1.0", negative=True)
async def manifest_get_invalid_name(stage: Stage) -> None:
    """Pulling from what can be no repository name is refused: 404 or 400."""
    name = stage.options.repository
    for invalid in (f"{name}/Upper", f"{name}/-dash", f"{name}/two..dots"):
        expect.refused(await stage.get("manifests", "latest", name=invalid), 404, 400)


@case("manifest-head-by-digest", PULL, EXISTS, "end-3", must="1.0")
async def manifest_head_by_digest(stage: Stage) -> None:
    """HEAD of a manifest by its digest answers 200."""
    for target in await stage.manifests():
        expect.status(await stage.head("manifests", target.digest), 200)


@case("manifest-head-by-tag", PULL, EXISTS, "end-3", must="1.0")
async def manifest_head_by_tag(stage: Stage) -> None:
    """HEAD of a manifest by a tag answers 200."""
    for target in await stage.tagged():
        expect.status(await stage.head("manifests", target.tag or ""), 200)


@case("manifest-head-digest-header", PULL, EXISTS, "end-3", should="1.0", must="main")
async def manifest_head_digest_header(stage: Stage) -> None:
    """HEAD of a manifest, by digest and by tag, answers with Docker-Content-Digest."""
    for target in await stage.manifests():
        for reference in _references(target):
            expect.header(await stage.head("manifests", reference), "Docker-Content-Digest")


@case("manifest-head-digest-header-value", PULL, EXISTS, "end-3", must="1.0")
async def manifest_head_digest_header_value(stage: Stage) -> None:
    """Docker-Content-Digest of HEAD, where present, is a digest of the manifest."""
    for target in await stage.manifests():
        data = await _data(stage, "manifests", target)
        for reference in _references(target):
            expect.digest_header(await stage.head("manifests", reference), data)


@case("manifest-head-length", PULL, EXISTS, "end-3", should="1.1", must="main")
async def manifest_head_length(stage: Stage) -> None:
    """HEAD of a manifest says its size as Content-Length."""
    for target in await stage.manifests():
        _length(await stage.head("manifests", target.digest), await _data(stage, "manifests", target))


@case("manifest-head-unknown-digest", PULL, EXISTS, "end-3", must="1.0", negative=True)
async def manifest_head_unknown_digest(stage: Stage) -> None:
    """HEAD of a manifest by a digest that is not there answers 404."""
    await stage.settle()
    expect.status(await stage.head("manifests", stage.content.digest()), 404)


@case("manifest-head-unknown-tag", PULL, EXISTS, "end-3", must="1.0", negative=True)
async def manifest_head_unknown_tag(stage: Stage) -> None:
    """HEAD of a manifest by a tag that is not there answers 404."""
    await stage.settle()
    expect.status(await stage.head("manifests", stage.content.word("unknown")), 404)


@case("manifest-head-unknown-repository", PULL, EXISTS, "end-3", must="1.0", negative=True)
async def manifest_head_unknown_repository(stage: Stage) -> None:
    """HEAD of a manifest in a repository that does not exist answers 404."""
    expect.status(await stage.head("manifests", "latest", name=_unknown_name(stage)), 404)


# ---- blobs ----


@case("blob-get", PULL, BLOBS, "end-2", must="1.0")
async def blob_get(stage: Stage) -> None:
    """GET of a blob answers 200 with its bytes."""
    for target in await stage.blobs():
        expect.same(await stage.get("blobs", target.digest), target.data, target.digest)


@case("blob-get-digest-header", PULL, BLOBS, "end-2", should="1.0", must="main")
async def blob_get_digest_header(stage: Stage) -> None:
    """GET of a blob answers with Docker-Content-Digest."""
    for target in await stage.blobs():
        expect.header(await stage.get("blobs", target.digest), "Docker-Content-Digest")


@case("blob-get-digest-header-value", PULL, BLOBS, "end-2", must="1.0")
async def blob_get_digest_header_value(stage: Stage) -> None:
    """Docker-Content-Digest of a blob, where present, is a digest of the blob."""
    for target in await stage.blobs():
        answer = await stage.get("blobs", target.digest)
        expect.digest_header(answer, answer.body if target.data is None else target.data)


@case("blob-get-unknown", PULL, BLOBS, "end-2", must="1.0", negative=True)
async def blob_get_unknown(stage: Stage) -> None:
    """GET of a blob that is not there answers 404."""
    await stage.settle()
    expect.refused(await stage.get("blobs", stage.content.digest()), 404)


@case("blob-get-unknown-repository", PULL, "Pushing Manifests", "end-2", must="1.0", negative=True)
async def blob_get_unknown_repository(stage: Stage) -> None:
    """GET of a blob in a repository that does not exist answers 404, though another repository has the blob."""
    target = (await stage.blobs())[0]
    expect.refused(await stage.get("blobs", target.digest, name=_unknown_name(stage)), 404)


@case("blob-get-invalid-digest", PULL, BLOBS, "end-2", must="1.0", negative=True)
async def blob_get_invalid_digest(stage: Stage) -> None:
    """GET of a blob by what can be no digest is refused: 404 or 400."""
    await stage.settle()
    for digest in ("sha256:zzzz", "none", "sha256:" + "A" * 63):
        expect.refused(await stage.get("blobs", digest), 404, 400)


@case("blob-head", PULL, EXISTS, "end-2", must="1.0")
async def blob_head(stage: Stage) -> None:
    """HEAD of a blob answers 200."""
    for target in await stage.blobs():
        expect.status(await stage.head("blobs", target.digest), 200)


@case("blob-head-digest-header", PULL, EXISTS, "end-2", should="1.0", must="main")
async def blob_head_digest_header(stage: Stage) -> None:
    """HEAD of a blob answers with Docker-Content-Digest."""
    for target in await stage.blobs():
        expect.header(await stage.head("blobs", target.digest), "Docker-Content-Digest")


@case("blob-head-digest-header-value", PULL, EXISTS, "end-2", must="1.0")
async def blob_head_digest_header_value(stage: Stage) -> None:
    """Docker-Content-Digest of HEAD, where present, is a digest of the blob."""
    for target in await stage.blobs():
        data = await _data(stage, "blobs", target)
        expect.digest_header(await stage.head("blobs", target.digest), data)


@case("blob-head-length", PULL, EXISTS, "end-2", should="1.1", must="main")
async def blob_head_length(stage: Stage) -> None:
    """HEAD of a blob says its size as Content-Length."""
    for target in await stage.blobs():
        _length(await stage.head("blobs", target.digest), await _data(stage, "blobs", target))


@case("blob-head-unknown", PULL, EXISTS, "end-2", must="1.0", negative=True)
async def blob_head_unknown(stage: Stage) -> None:
    """HEAD of a blob that is not there answers 404."""
    await stage.settle()
    expect.status(await stage.head("blobs", stage.content.digest()), 404)


@case("blob-head-unknown-repository", PULL, EXISTS, "end-2", must="1.0", negative=True)
async def blob_head_unknown_repository(stage: Stage) -> None:
    """HEAD of a blob in a repository that does not exist answers 404, though another repository has the blob."""
    target = (await stage.blobs())[0]
    expect.status(await stage.head("blobs", target.digest, name=_unknown_name(stage)), 404)


# ---- what the cases share ----


def _references(target: Target) -> list[str]:
    return [target.digest, *([target.tag] if target.tag else [])]


def _unknown_name(stage: Stage) -> str:
    return f"{stage.options.repository}/{stage.content.word('unknown')}"


async def _data(stage: Stage, kind: str, target: Target) -> bytes:
    """Return the bytes of a target."""
    return (await stage.get(kind, target.digest)).body if target.data is None else target.data


def _length(answer: Answer, data: bytes) -> None:
    value = expect.header(answer, "Content-Length")
    if value != str(len(data)):
        raise expect.failed(answer, f"Content-Length: {len(data)}", repr(value))


def _declared(answer: Answer) -> str | None:
    value = expect.json_of(answer)
    found = value.get("mediaType") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
