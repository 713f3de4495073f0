"""Cases of listing referrers: what refers to a manifest by its subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.conformance import expect
from mirror.conformance.case import Category, Unsupported, case
from mirror.conformance.client import Answer
from mirror.conformance.content import CONFIG, INDEX, Document, digest_of
from mirror.conformance.stage import Stage
from mirror.conformance.tags import PAGES, next_link

DISCOVERY = Category.DISCOVERY
REFERRERS = "Listing Referrers"
SBOM = "application/vnd.example.conformance.sbom.v1"
SIGNATURE = "application/vnd.example.conformance.signature.v1"
NOTES = {"org.example.note": "é, kept", "org.opencontainers.image.created": "2026-01-01T00:00:00Z"}


class Family:
    """A subject and all kinds of what refers to it, pushed in this order."""

    def __init__(self, subject: Document, stage: Stage) -> None:
        content, at = stage.content, subject.descriptor()
        self.subject = subject
        self.sbom = content.image(subject=at, artifact_type=SBOM, annotations=NOTES)
        self.signature = content.image(subject=at, artifact_type=SIGNATURE)
        self.untyped = content.image(subject=at)
        self.index = content.index(subject=at, artifact_type=SBOM, annotations=NOTES)
        self.untyped_index = content.index(subject=at)

    @property
    def all(self) -> tuple[Document, ...]:
        return self.sbom, self.signature, self.untyped, self.index, self.untyped_index


@case("referrers-api", DISCOVERY, "Requirements", "end-12a", must="1.1")
async def referrers_api(stage: Stage) -> None:
    """A registry that lists tags claims this category, and is to have its other API too: the referrers."""
    subject = (await stage.manifests())[0]
    if (await stage.get("tags", "list")).status != 200:
        raise Unsupported("tags are not listed, so the category is not claimed")
    answer = await stage.get("referrers", subject.digest)
    if answer.status == 404:
        raise expect.failed(answer, "the referrers API", "status 404")


@case("referrers-list", DISCOVERY, REFERRERS, "end-12a", must="1.1")
async def referrers_list(stage: Stage) -> None:
    """Referrers answer 200 with an image index of descriptors that are right."""
    await stage.has_referrers()
    if await stage.no_pushes():
        subjects = [target.digest for target in await stage.manifests()]
    else:
        subjects = [(await _family(stage)).subject.digest]
    for subject in subjects:
        for descriptor in await _list(stage, subject):
            await _is_right(stage, descriptor, subject)


@case("referrers-content-type", DISCOVERY, REFERRERS, "end-12a", must="1.1")
async def referrers_content_type(stage: Stage) -> None:
    """Referrers have the Content-Type of an image index."""
    await stage.has_referrers()
    answer = await stage.get("referrers", (await stage.manifests())[0].digest)
    if answer.content_type.partition(";")[0].strip() != INDEX:
        raise expect.failed(answer, f"Content-Type: {INDEX}", repr(answer.content_type))


@case("referrers-none", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_none(stage: Stage) -> None:
    """A manifest without referrers answers 200 with an empty list."""
    await stage.has_referrers()
    image = stage.content.image()
    await stage.put_document(image)
    _empty(await stage.get("referrers", image.digest))


@case("referrers-unknown-subject", DISCOVERY, REFERRERS, "end-12a", must="1.1")
async def referrers_unknown_subject(stage: Stage) -> None:
    """A digest that nothing has or refers to answers 200 with an empty list, not 404."""
    await stage.has_referrers()
    _empty(await stage.get("referrers", stage.content.digest()))


@case("referrers-invalid-digest", DISCOVERY, REFERRERS, "end-12a", must="1.1", negative=True)
async def referrers_invalid_digest(stage: Stage) -> None:
    """What can be no digest answers 400."""
    await stage.has_referrers()
    for digest in ("sha256:zzzz", "sha256:" + "a" * 63, "none"):
        expect.refused(await stage.get("referrers", digest), 400)


@case("referrers-image", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_image(stage: Stage) -> None:
    """An image manifest with a subject is listed, with its type, size and digest."""
    family = await _family(stage)
    await _entry(stage, family, family.sbom)


@case("referrers-index", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_index(stage: Stage) -> None:
    """An image index with a subject is listed, with its type, size and digest."""
    family = await _family(stage)
    await _entry(stage, family, family.index)


@case("referrers-artifact-type", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_artifact_type(stage: Stage) -> None:
    """The artifactType of an image manifest is that of its descriptor."""
    family = await _family(stage)
    for document, wanted in ((family.sbom, SBOM), (family.signature, SIGNATURE)):
        await _typed(stage, family, document, wanted)


@case("referrers-artifact-type-of-config", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_artifact_type_of_config(stage: Stage) -> None:
    """Without artifactType, the type of an image manifest's config is that of its descriptor."""
    family = await _family(stage)
    await _typed(stage, family, family.untyped, CONFIG)


@case("referrers-artifact-type-of-index", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_artifact_type_of_index(stage: Stage) -> None:
    """The artifactType of an index is that of its descriptor."""
    family = await _family(stage)
    await _typed(stage, family, family.index, SBOM)


@case("referrers-no-artifact-type", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_no_artifact_type(stage: Stage) -> None:
    """An index without artifactType has a descriptor without."""
    family = await _family(stage)
    answer, entry = await _entry(stage, family, family.untyped_index)
    if "artifactType" in entry:
        raise expect.failed(answer, "no artifactType", repr(entry["artifactType"]))


@case("referrers-annotations", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_annotations(stage: Stage) -> None:
    """The annotations of an image manifest are those of its descriptor."""
    family = await _family(stage)
    await _annotated(stage, family, family.sbom)


@case("referrers-annotations-of-index", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_annotations_of_index(stage: Stage) -> None:
    """The annotations of an index are those of its descriptor."""
    family = await _family(stage)
    await _annotated(stage, family, family.index)


@case("referrers-before-subject", DISCOVERY, "Push", "end-12a", must="1.1", pushes=True)
async def referrers_before_subject(stage: Stage) -> None:
    """What was pushed before its subject is listed, before and after the subject is pushed."""
    await stage.has_referrers()
    subject = stage.content.image()
    early = stage.content.image(subject=subject.descriptor(), artifact_type=SBOM)
    await stage.put_document(early)
    await _one(stage, subject.digest, early.digest)
    await stage.put_document(subject)
    await _one(stage, subject.digest, early.digest)


@case("referrers-of-this-repository", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_of_this_repository(stage: Stage) -> None:
    """Only manifests of the same repository are listed."""
    family = await _family(stage)
    stranger = stage.content.image(subject=family.subject.descriptor(), artifact_type=SBOM)
    await stage.put_document(stranger, name=stage.options.other)
    if any(one.get("digest") == stranger.digest for one in await _list(stage, family.subject.digest)):
        raise expect.failed(stage.answers[-1], "referrers of this repository", "one that is in another")


@case("referrers-filter", DISCOVERY, REFERRERS, "end-12b", should="1.1", pushes=True)
async def referrers_filter(stage: Stage) -> None:
    """?artifactType= is applied: only referrers of that type are listed, and all of them."""
    family = await _family(stage)
    answer, found = await _filtered(stage, family, SBOM)
    wanted = {family.sbom.digest, family.index.digest}
    if found != wanted:
        raise expect.failed(answer, f"the {len(wanted)} referrers of {SBOM}", f"{len(found)} referrers, or others")


@case("referrers-filter-header", DISCOVERY, REFERRERS, "end-12b", must="1.1", pushes=True)
async def referrers_filter_header(stage: Stage) -> None:
    """OCI-Filters-Applied: artifactType is answered when the filter was applied, and only then."""
    family = await _family(stage)
    answer, found = await _filtered(stage, family, SBOM)
    applied = "artifactType" in [part.strip() for part in answer.headers.get("OCI-Filters-Applied", "").split(",")]
    if applied and found != {family.sbom.digest, family.index.digest}:
        raise expect.failed(answer, f"only and all referrers of {SBOM}", f"{len(found)} referrers, or others")
    if not applied and family.signature.digest not in found:
        raise expect.failed(answer, "OCI-Filters-Applied: artifactType, as the filter was applied", "none")
    if not applied:
        raise Unsupported("?artifactType= is not applied")


@case("referrers-filter-none", DISCOVERY, REFERRERS, "end-12b", must="1.1", pushes=True)
async def referrers_filter_none(stage: Stage) -> None:
    """A filter that matches nothing answers 200 with an empty list."""
    family = await _family(stage)
    answer, found = await _filtered(stage, family, "application/vnd.example.conformance.none")
    if "OCI-Filters-Applied" not in answer.headers and found:
        raise Unsupported("?artifactType= is not applied")
    _empty(answer)


@case("referrers-link", DISCOVERY, REFERRERS, "end-12a", must="1.1", pushes=True)
async def referrers_link(stage: Stage) -> None:
    """All referrers are listed, if need be over several answers with a Link that has rel="next"."""
    family = await _family(stage)
    found = [one.get("digest") for one in await _list(stage, family.subject.digest)]
    wanted = {document.digest for document in family.all}
    if set(found) != wanted or len(found) != len(wanted):
        raise expect.failed(stage.answers[-1], f"{len(wanted)} referrers", f"{len(found)}, or others")


async def _family(stage: Stage) -> Family:
    """Return a subject with referrers, pushed. Raises: NotJudged; Unsupported without the API."""
    await stage.has_referrers()

    async def make() -> Family:
        family = Family(stage.content.image(), stage)
        for document in (family.subject, *family.all):
            await stage.put_document(document)
        return family

    return await stage.once("family", make)


async def _list(stage: Stage, digest: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Return all descriptors, following links; the first answer is to be had from ``stage.answers``."""
    answer = await stage.get("referrers", digest, query=query)
    found = _manifests(answer)
    for _ in range(PAGES):
        target = next_link(answer)
        if target is None:
            break
        answer = await stage.registry.ask("GET", stage.registry.absolute(target, answer.url))
        found += _manifests(answer)
    return found


def _manifests(answer: Answer) -> list[dict[str, Any]]:
    """Demand 200 with an image index, and return its descriptors."""
    value = expect.json_object(answer)
    if value.get("schemaVersion") != 2 or value.get("mediaType") != INDEX:
        raise expect.failed(
            answer, f'an image index: "schemaVersion": 2, "mediaType": "{INDEX}"', f"the members {sorted(value)}"
        )
    found = value.get("manifests")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise expect.failed(answer, '"manifests" to be a list of descriptors', repr(found)[:160])
    return found


def _empty(answer: Answer) -> None:
    if found := _manifests(answer):
        raise expect.failed(answer, "no referrers", f"{len(found)}")


async def _one(stage: Stage, subject: str, digest: str) -> tuple[Answer, dict[str, Any]]:
    """Demand that this referrer is listed, once; return an answer and its descriptor."""
    found = [one for one in await _list(stage, subject) if one.get("digest") == digest]
    answer = stage.answers[-1]
    if len(found) != 1:
        raise expect.failed(answer, f"{digest[:19]}… among the referrers once", f"{len(found)} times")
    return answer, found[0]


async def _entry(stage: Stage, family: Family, document: Document) -> tuple[Answer, dict[str, Any]]:
    """Demand that this document is listed with its type, size and digest."""
    answer, found = await _one(stage, family.subject.digest, document.digest)
    wanted = document.descriptor()
    if {name: found.get(name) for name in wanted} != wanted:
        raise expect.failed(answer, f"the descriptor {wanted}", f"{found}")
    return answer, found


async def _typed(stage: Stage, family: Family, document: Document, wanted: str) -> None:
    answer, entry = await _one(stage, family.subject.digest, document.digest)
    if entry.get("artifactType") != wanted:
        raise expect.failed(answer, f'"artifactType": "{wanted}"', repr(entry.get("artifactType")))


async def _annotated(stage: Stage, family: Family, document: Document) -> None:
    answer, entry = await _one(stage, family.subject.digest, document.digest)
    wanted, found = document.value["annotations"], entry.get("annotations")
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in wanted.items()):
        raise expect.failed(answer, f"the annotations {wanted}", repr(found))


async def _filtered(stage: Stage, family: Family, artifact_type: str) -> tuple[Answer, set[str]]:
    """Ask by type; return the first answer, and the digests listed by all of them."""
    first = len(stage.answers)
    found = await _list(stage, family.subject.digest, {"artifactType": artifact_type})
    return stage.answers[first], {str(one.get("digest")) for one in found}


async def _is_right(stage: Stage, descriptor: dict[str, Any], subject: str) -> None:
    """Demand that a descriptor is of a manifest here that has this subject, and says the same as the manifest."""
    listed = stage.answers[-1]
    digest = str(descriptor.get("digest"))
    answer = await stage.get("manifests", digest)
    expect.same(answer, None if digest.startswith("sha") else b"", digest)
    value = expect.json_object(answer)
    at = value.get("subject")
    if not isinstance(at, dict) or at.get("digest") != subject:
        raise expect.failed(listed, f"referrers whose subject is {subject}", f"{digest}, whose subject is {at}")
    if descriptor.get("size") != len(answer.body) or descriptor.get("mediaType") != answer.content_type:
        wanted = {"mediaType": answer.content_type, "digest": digest_of(answer.body), "size": len(answer.body)}
        raise expect.failed(listed, f"the descriptor {wanted}", f"{descriptor}")
