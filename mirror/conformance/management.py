"""Cases of deleting: tags, manifests, blobs. A registry may have it switched off, and then says so by 400 or 405."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import Document
from mirror.conformance.stage import Stage

MANAGEMENT = Category.MANAGEMENT
TAGS = "Deleting tags"
MANIFESTS = "Deleting Manifests"
BLOBS = "Deleting Blobs"
OFF = (400, 405)


@case("tag-delete", MANAGEMENT, TAGS, "end-9", must="1.0")
async def tag_delete(stage: Stage) -> None:
    """DELETE of a tag answers 202; 400 or 405 where it is switched off."""
    _, answer = await _deleted_tag(stage)
    expect.status(answer, 202)


@case("tag-delete-effect", MANAGEMENT, TAGS, "end-9", must="1.1")
async def tag_delete_effect(stage: Stage) -> None:
    """A tag that was deleted answers 404."""
    tag, _ = await _deleted_tag(stage)
    await stage.is_absent("manifests", tag)


@case("tag-delete-others", MANAGEMENT, TAGS, "end-9", must="1.0")
async def tag_delete_others(stage: Stage) -> None:
    """Deleting a tag leaves other tags of the manifest alone."""
    image, tag, other = stage.content.image(), stage.content.word("delete"), stage.content.word("keep")
    await stage.put_document(image, tag, other)
    _supported(await stage.ask("DELETE", "manifests", tag), "tags")
    expect.same(await stage.get("manifests", other), image.data, image.digest)


@case("tag-delete-list", MANAGEMENT, TAGS, "end-9", should="1.0")
async def tag_delete_list(stage: Stage) -> None:
    """A tag that was deleted is no longer listed."""
    tag, _ = await _deleted_tag(stage)
    answer = await stage.get("tags", "list")
    if answer.status != 404 and tag in (expect.json_object(answer).get("tags") or []):
        raise expect.failed(answer, f"{tag} not to be listed", "it is")


@case("tag-delete-unknown", MANAGEMENT, TAGS, "end-9", should="1.0", negative=True)
async def tag_delete_unknown(stage: Stage) -> None:
    """DELETE of a tag that is not there answers 404."""
    await _deleted_tag(stage)
    expect.refused(await stage.ask("DELETE", "manifests", stage.content.word("unknown")), 404)


@case("manifest-delete", MANAGEMENT, MANIFESTS, "end-9", must="1.0")
async def manifest_delete(stage: Stage) -> None:
    """DELETE of a manifest answers 202; 400 or 405 where it is switched off."""
    _, _, answer = await _deleted_manifest(stage)
    expect.status(answer, 202)


@case("manifest-delete-effect", MANAGEMENT, MANIFESTS, "end-9", must="1.1")
async def manifest_delete_effect(stage: Stage) -> None:
    """A manifest that was deleted answers 404 under its digest."""
    image, _, _ = await _deleted_manifest(stage)
    await stage.is_absent("manifests", image.digest)


@case("manifest-delete-tags", MANAGEMENT, MANIFESTS, "end-9", must="1.1")
async def manifest_delete_tags(stage: Stage) -> None:
    """A manifest that was deleted answers 404 under its tags."""
    _, tag, _ = await _deleted_manifest(stage)
    await stage.is_absent("manifests", tag)


@case("manifest-delete-unknown", MANAGEMENT, MANIFESTS, "end-9", should="1.0", negative=True)
async def manifest_delete_unknown(stage: Stage) -> None:
    """DELETE of a manifest that is not there answers 404."""
    await _deleted_manifest(stage)
    expect.refused(await stage.ask("DELETE", "manifests", stage.content.digest()), 404)


@case("manifest-delete-unknown-repository", MANAGEMENT, MANIFESTS, "end-9", must="1.0", negative=True)
async def manifest_delete_unknown_repository(stage: Stage) -> None:
    """DELETE of a manifest in a repository that does not exist answers 404."""
    await _deleted_manifest(stage)
    name = f"{stage.options.repository}/{stage.content.word('unknown')}"
    expect.refused(await stage.ask("DELETE", "manifests", stage.content.digest(), name=name), 404)


@case("manifest-delete-referrers", MANAGEMENT, MANIFESTS, "end-9", should="1.1")
async def manifest_delete_referrers(stage: Stage) -> None:
    """A manifest that was deleted is no longer listed as a referrer."""
    await stage.has_referrers()
    subject, _ = await stage.image()
    image = stage.content.image(subject=subject.descriptor())
    await stage.put_document(image)
    _supported(await stage.ask("DELETE", "manifests", image.digest), "manifests")
    answer = await stage.get("referrers", subject.digest)
    listed = expect.json_object(answer).get("manifests") or []
    if any(isinstance(one, dict) and one.get("digest") == image.digest for one in listed):
        raise expect.failed(answer, f"{image.digest} not to be listed", "it is")


@case("blob-delete", MANAGEMENT, BLOBS, "end-10", must="1.0")
async def blob_delete(stage: Stage) -> None:
    """DELETE of a blob answers 202; 400 or 405 where it is switched off."""
    _, answer = await _deleted_blob(stage)
    expect.status(answer, 202)


@case("blob-delete-effect", MANAGEMENT, BLOBS, "end-10", should="1.0")
async def blob_delete_effect(stage: Stage) -> None:
    """A blob that was deleted answers 404."""
    digest, _ = await _deleted_blob(stage)
    await stage.is_absent("blobs", digest)


@case("blob-delete-unknown", MANAGEMENT, BLOBS, "end-10", must="1.0", negative=True)
async def blob_delete_unknown(stage: Stage) -> None:
    """DELETE of a blob that is not there answers 404."""
    await _deleted_blob(stage)
    expect.refused(await stage.ask("DELETE", "blobs", stage.content.digest()), 404)


async def _deleted_tag(stage: Stage) -> tuple[str, Answer]:
    tag = stage.content.word("delete")
    await stage.put_document(stage.content.image(), tag)
    return tag, _supported(await stage.ask("DELETE", "manifests", tag), "tags")


async def _deleted_manifest(stage: Stage) -> tuple[Document, str, Answer]:
    image, tag = stage.content.image(), stage.content.word("delete")
    await stage.put_document(image, tag)
    return image, tag, _supported(await stage.ask("DELETE", "manifests", image.digest), "manifests")


async def _deleted_blob(stage: Stage) -> tuple[str, Answer]:
    blob = stage.content.blob()
    await stage.put_blob(blob)
    return blob.digest, _supported(await stage.ask("DELETE", "blobs", blob.digest), "blobs")


def _supported(answer: Answer, what: str) -> Answer:
    """Return the answer. Raises: Unsupported when it says that these cannot be deleted."""
    if answer.status in OFF:
        expect.error_body(answer)
        raise Unsupported(f"{what} cannot be deleted: DELETE answers {answer.status}")
    return answer
