"""Cases of pushing manifests with a subject."""

from __future__ import annotations

from mirror.conformance import expect
from mirror.conformance.case import Category, case
from mirror.conformance.client import Answer
from mirror.conformance.content import Document
from mirror.conformance.stage import Stage

PUSH = Category.PUSH
ORDER = "Push"
SUBJECT = "Pushing Manifests with Subject"
ARTIFACT = "application/vnd.example.conformance.subject"


@case("subject-missing", PUSH, ORDER, "end-7a", must="1.1")
async def subject_missing(stage: Stage) -> None:
    """An image manifest whose subject is not there is taken."""
    absent = stage.content.image()
    image = stage.content.image(subject=absent.descriptor(), artifact_type=ARTIFACT)
    expect.status(await stage.send_document(image), 201)
    expect.same(await stage.get("manifests", image.digest), image.data, image.digest)


@case("subject-missing-of-index", PUSH, ORDER, "end-7a", must="1.1")
async def subject_missing_of_index(stage: Stage) -> None:
    """An image index whose subject is not there is taken."""
    absent = stage.content.image()
    index = stage.content.index(subject=absent.descriptor(), artifact_type=ARTIFACT)
    expect.status(await stage.send_document(index), 201)
    expect.same(await stage.get("manifests", index.digest), index.data, index.digest)


@case("subject-header", PUSH, SUBJECT, "end-7a", must="1.1")
async def subject_header(stage: Stage) -> None:
    """PUT of an image manifest with a subject answers with OCI-Subject, if there is a referrers API."""
    await stage.has_referrers()
    subject, _ = await stage.image()
    for reference in (None, stage.content.word("subject")):
        image = stage.content.image(subject=subject.descriptor(), artifact_type=ARTIFACT)
        _names(await stage.send_document(image, reference), subject)


@case("subject-header-of-index", PUSH, SUBJECT, "end-7a", should="1.1")
async def subject_header_of_index(stage: Stage) -> None:
    """PUT of an image index with a subject answers with OCI-Subject, if there is a referrers API."""
    await stage.has_referrers()
    subject, _ = await stage.image()
    index = stage.content.index(subject=subject.descriptor(), artifact_type=ARTIFACT)
    _names(await stage.send_document(index), subject)


@case("subject-header-missing-subject", PUSH, SUBJECT, "end-7a", must="1.1")
async def subject_header_missing_subject(stage: Stage) -> None:
    """PUT of an image manifest answers with OCI-Subject though the subject is not there, with a referrers API."""
    await stage.has_referrers()
    subject = stage.content.image()
    _names(await stage.send_document(stage.content.image(subject=subject.descriptor())), subject)


def _names(answer: Answer, subject: Document) -> None:
    value = expect.header(answer, "OCI-Subject")
    if value != subject.digest:
        raise expect.failed(answer, f"OCI-Subject: {subject.digest}", repr(value))
