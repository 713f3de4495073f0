"""The judge judged: it finds nothing wrong with a registry that has no fault, and every fault it is there to find."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from mirror.conformance import Judgement, Options, Version, judge
from mirror.conformance.case import Category, Level, Method, Outcome
from mirror.conformance.cases import CASES
from mirror.conformance.client import Registry
from mirror.conformance.stage import Stage
from tests.conformance_registry import (
    ConformantRegistry,
    Defect,
    body,
    digest_of,
    edited,
    flag,
    header,
    status,
    without,
)

ALL = tuple(Version)
OTHER = digest_of(b"something else")
BY_NAME = {case.name: case for case in CASES}
DIGEST = "Docker-Content-Digest"
ERRORS = ("blob-get 404", "manifest-get 404", "tags 404")
ELSEWHERE = "/v2/local/elsewhere/blobs/" + OTHER


def no_content_length(answer: str) -> tuple[Defect, Defect]:
    return without(answer, "Content-Length"), header(answer, "Content-Length", "7")


MUTANTS: dict[str, tuple[Defect, ...]] = {
    # pulling manifests
    "manifest-get-by-digest": (
        flag("no-manifests-by-digest"),
        flag("other-manifests-by-digest"),
        status("manifest-get:digest 200", 203),
    ),
    "manifest-get-by-tag": (
        flag("no-manifests-by-tag"),
        flag("other-manifests-by-tag"),
        status("manifest-get:tag 200", 203),
    ),
    "manifest-get-content-type": (header("manifest-get 200", "Content-Type", "application/json"),),
    "manifest-get-content-type-bare": (
        header("manifest-get 200", "Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
    ),
    "manifest-get-digest-header": (without("manifest-get:tag 200", DIGEST), without("manifest-get:digest 200", DIGEST)),
    "manifest-get-digest-header-value": (
        header("manifest-get:tag 200", DIGEST, OTHER),
        header("manifest-get:digest 200", DIGEST, OTHER),
        header("manifest-get:digest 200", DIGEST, "none"),
    ),
    "manifest-get-unknown-digest": (
        status("manifest-get:digest 404", 200),
        status("manifest-get:digest 404", 400),
        body("manifest-get:digest 404", b'{"error": "none"}'),
    ),
    "manifest-get-unknown-tag": (
        status("manifest-get:tag 404 MANIFEST_UNKNOWN", 200),
        status("manifest-get:tag 404 MANIFEST_UNKNOWN", 500),
        body("manifest-get:tag 404 MANIFEST_UNKNOWN", b'{"errors": [{"message": "none"}]}'),
    ),
    "manifest-get-unknown-repository": (
        status("manifest-get:tag 404 NAME_UNKNOWN", 400),
        status("manifest-get:tag 404 NAME_UNKNOWN", 200),
    ),
    "manifest-get-invalid-tag": (flag("fails-on-odd-tags"), status("manifest-get:tag 404 MANIFEST_UNKNOWN", 200)),
    "manifest-get-invalid-digest": (status("manifest-get:digest 400", 500), status("manifest-get:digest 400", 200)),
    "manifest-get-invalid-name": (
        status("manifest-get 400 NAME_INVALID", 200),
        body("manifest-get 400 NAME_INVALID", b"{"),
    ),
    # checking if manifests exist
    "manifest-head-by-digest": (flag("no-heads-by-digest"), status("manifest-head:digest 200", 204)),
    "manifest-head-by-tag": (flag("no-heads-by-tag"), status("manifest-head:tag 200", 204)),
    "manifest-head-digest-header": (
        without("manifest-head:tag 200", DIGEST),
        without("manifest-head:digest 200", DIGEST),
    ),
    "manifest-head-digest-header-value": (
        header("manifest-head:tag 200", DIGEST, OTHER),
        header("manifest-head:digest 200", DIGEST, OTHER),
    ),
    "manifest-head-length": no_content_length("manifest-head 200"),
    "manifest-head-unknown-digest": (status("manifest-head:digest 404", 200), status("manifest-head:digest 404", 400)),
    "manifest-head-unknown-tag": (
        status("manifest-head:tag 404 MANIFEST_UNKNOWN", 200),
        status("manifest-head:tag 404 MANIFEST_UNKNOWN", 405),
    ),
    "manifest-head-unknown-repository": (
        status("manifest-head:tag 404 NAME_UNKNOWN", 200),
        status("manifest-head:tag 404 NAME_UNKNOWN", 400),
    ),
    # pulling blobs
    "blob-get": (body("blob-get 200", b"other"), body("blob-get 200", b""), status("blob-get 200", 203)),
    "blob-get-digest-header": (without("blob-get 200", DIGEST),),
    "blob-get-digest-header-value": (header("blob-get 200", DIGEST, OTHER),),
    "blob-get-unknown": (
        status("blob-get 404 BLOB_UNKNOWN", 200),
        status("blob-get 404 BLOB_UNKNOWN", 400),
        body("blob-get 404 BLOB_UNKNOWN", b"[1"),
    ),
    "blob-get-unknown-repository": (flag("blobs-of-all-repositories"), status("blob-get 404 NAME_UNKNOWN", 400)),
    "blob-get-invalid-digest": (status("blob-get 400", 500), status("blob-get 400", 200)),
    "blob-head": (status("blob-head 200", 204), status("blob-head 200", 404)),
    "blob-head-digest-header": (without("blob-head 200", DIGEST),),
    "blob-head-digest-header-value": (header("blob-head 200", DIGEST, OTHER),),
    "blob-head-length": no_content_length("blob-head 200"),
    "blob-head-unknown": (status("blob-head 404 BLOB_UNKNOWN", 200), status("blob-head 404 BLOB_UNKNOWN", 400)),
    "blob-head-unknown-repository": (flag("blobs-of-all-repositories"), status("blob-head 404 NAME_UNKNOWN", 400)),
    "blob-range": (
        flag("no-ranges"),
        status("blob-get 206", 200),
        header("blob-get 206", "Content-Range", "bytes 0-1/2"),
    ),
    "blob-range-open": (flag("no-ranges"), flag("open-ranges-are-closed"), without("blob-get 206", "Content-Range")),
    "blob-range-suffix": (flag("no-ranges"), flag("suffixes-from-the-start")),
    "blob-range-past-end": (flag("no-ranges"), flag("refuses-past-end")),
    "blob-range-unsatisfiable": (flag("no-ranges"), status("blob-get 416", 206)),
    "blob-range-backwards": (flag("serves-backwards-ranges"), status("blob-get 416", 500)),
    "blob-range-unknown-unit": (flag("any-unit"),),
    "ns-header": (flag("uses-ns"), header("manifest-get 200", "OCI-Namespace", "another.example")),
    # pushing blobs
    "upload-start": (
        status("upload-post 202", 200),
        status("upload-post 202", 201),
        without("upload-post 202", "Location"),
    ),
    "upload-location-unique": (flag("one-session"),),
    "upload-location-uuid": (flag("sessions-without-uuid"),),
    "upload-put": (
        flag("forgets-blobs"),
        status("upload-put 201", 200),
        status("upload-put 201", 202),
        without("upload-put 201", "Location"),
    ),
    "upload-put-location": (
        header("upload-put 201", "Location", ELSEWHERE),
        header("upload-put 201", "Location", "/"),
        without("upload-put 201", "Location"),
    ),
    "upload-put-digest-header": (header("upload-put 201", DIGEST, OTHER),),
    "upload-empty-blob": (flag("no-empty-blobs"),),
    "upload-again": (flag("refuses-known-blobs"), status("upload-put 201", 202)),
    "upload-stream": (flag("wants-lengths"),),
    "upload-digest-mismatch": (
        flag("keeps-wrong-digests"),
        status("upload-put 400", 201),
        status("upload-put 400", 500),
        body("upload-put 400", b'{"errors": "none"}'),
    ),
    "upload-digest-mismatch-status": (flag("mismatches-are-404"),),
    "upload-digest-malformed": (flag("refuses-malformed-oddly"),),
    "upload-digest-unsupported": (flag("refuses-oddly"),),
    "upload-without-digest": (flag("needs-no-digest"), status("upload-put 400", 500)),
    "upload-after-end": (flag("takes-ended-sessions"),),
    "upload-invalid-name": (flag("takes-any-name"), status("upload-post 400", 500)),
    "single-post": (
        flag("forgets-blobs"),
        status("single-post 201", 200),
        without("single-post 201", "Location"),
    ),
    "single-post-location": (header("single-post 201", "Location", ELSEWHERE),),
    "single-post-fallback": (status("single-post 201", 405), status("single-post 201", 200)),
    "single-post-digest-mismatch": (flag("keeps-wrong-single-posts"), status("single-post 400", 201)),
    "upload-cancel": (status("upload-delete 204", 200), status("upload-delete 204", 500)),
    "upload-cancel-effect": (flag("keeps-cancelled-sessions"),),
    # chunks
    "chunk-patch": (
        status("upload-patch 202", 200),
        status("upload-patch 202", 204),
        without("upload-patch 202", "Location"),
    ),
    "chunk-range-header": (
        without("upload-patch 202", "Range"),
        header("upload-patch 202", "Range", "bytes=0-1023"),
        header("upload-patch 202", "Range", "0-1024"),
    ),
    "chunk-close": (flag("mixes-chunks"), status("upload-put 201", 204), without("upload-put 201", "Location")),
    "chunk-close-location": (header("upload-put 201", "Location", ELSEWHERE),),
    "chunk-last-by-put": (
        flag("ignores-last-chunks"),
        status("upload-put 201", 200),
        without("upload-put 201", "Location"),
    ),
    "chunk-digest-mismatch": (flag("keeps-wrong-chunks"), status("upload-put 400", 201)),
    "chunk-first-not-at-zero": (flag("takes-first-chunks-anywhere"), status("upload-patch 416", 400)),
    "chunk-gap": (flag("takes-gaps"), status("upload-patch 416", 400)),
    "chunk-repeated": (flag("takes-repeated-chunks"), status("upload-patch 416", 400)),
    "chunk-last-out-of-order": (flag("takes-last-chunks-anywhere"), status("upload-put 416", 400)),
    "upload-status": (
        status("upload-get 204", 200),
        status("upload-get 204", 404),
        without("upload-get 204", "Location"),
        without("upload-get 204", "Range"),
        header("upload-get 204", "Range", "0-0"),
    ),
    "upload-status-after-end": (flag("knows-ended-sessions"),),
    "chunk-resume": (
        flag("loses-sessions-on-416"),
        status("upload-get 204", 202),
        without("upload-get 204", "Range"),
        header("upload-get 204", "Range", "0-9999"),
    ),
    "chunk-min-length": (flag("wants-large-chunks"), header("upload-post 202", "OCI-Chunk-Min-Length", "1 MiB")),
    # mounting
    "mount": (flag("mounts-nothing"), status("mount 201", 200), without("mount 201", "Location")),
    "mount-location": (header("mount 201", "Location", ELSEWHERE),),
    "mount-digest-header": (header("mount 201", DIGEST, OTHER),),
    "mount-without-from": (flag("mounts-nothing-unnamed"), without("mount 201", "Location"), status("mount 201", 200)),
    "mount-unknown": (flag("mounts-what-is-not-there"), status("mount 202", 201)),
    "mount-fallback": (status("mount 202", 404), without("mount 202", "Location")),
    # sha512
    "sha512-blob": (flag("stores-sha512-as-sha256"), status("upload-put 201", 202)),
    "sha512-chunks": (flag("stores-sha512-as-sha256"),),
    "sha512-named-first": (flag("breaks-named-algorithm"), status("upload-post 202", 201)),
    "sha512-digest-header": (
        header("upload-put 201", DIGEST, OTHER),
        header("blob-get 200", DIGEST, OTHER),
        header("blob-head 200", DIGEST, OTHER),
    ),
    "sha512-mismatch": (flag("keeps-wrong-sha512"),),
    "sha512-manifest": (flag("sha512-manifests-as-sha256"),),
    "sha512-manifest-digest-header": (header("manifest-put:digest 201", DIGEST, OTHER),),
    "digest-algorithm-unsupported": (flag("takes-any-algorithm"),),
    # pushing manifests
    "manifest-put-by-tag": (
        status("manifest-put:tag 201", 200),
        status("manifest-put:tag 201", 202),
        without("manifest-put:tag 201", "Location"),
        flag("no-manifests-by-tag"),
    ),
    "manifest-put-by-digest": (
        status("manifest-put:digest 201", 200),
        without("manifest-put:digest 201", "Location"),
        flag("no-manifests-by-digest"),
    ),
    "manifest-put-location": (
        header("manifest-put:digest 201", "Location", "/v2/local/elsewhere/manifests/" + OTHER),
        header("manifest-put:tag 201", "Location", "/v2/local/elsewhere/manifests/latest"),
    ),
    "manifest-put-digest-header": (header("manifest-put:digest 201", DIGEST, OTHER),),
    "manifest-bytes-kept": (flag("rewrites-manifests"),),
    "manifest-tag-moves": (flag("tags-never-move"),),
    "manifest-put-content-type-parameters": (flag("refuses-parameters"),),
    "manifest-put-digest-mismatch": (flag("keeps-wrong-manifests"), status("manifest-put 400", 201)),
    "manifest-put-invalid-reference": (flag("takes-any-tag"), status("manifest-put:digest 400", 500)),
    "manifest-put-not-json": (flag("takes-anything"), status("manifest-put 400", 500)),
    "index-put": (flag("no-indexes"), status("manifest-put:digest 201", 200)),
    "manifest-put-no-layers": (flag("wants-layers"),),
    "artifact-put": (flag("image-configs-only"),),
    "manifest-put-unknown-fields": (flag("known-members-only"),),
    "manifest-put-data-field": (flag("no-data"),),
    "manifest-put-nondistributable": (flag("wants-all-layers"),),
    "manifest-put-unknown-media-type": (flag("renames-types"),),
    "manifest-put-large": (flag("small-limit"),),
    "manifest-put-too-large": (flag("refuses-large-oddly"),),
    "manifest-put-missing-layer": (flag("names-no-missing-blobs"), status("manifest-put 404", 500)),
    "manifest-put-missing-config": (flag("names-no-missing-blobs"), body("manifest-put 404", b"")),
    "index-put-missing-manifest": (flag("names-no-missing-blobs"), body("manifest-put 404", b'{"errors": []}')),
    "tag-parameters": (
        without("manifest-put:digest 201", "OCI-Tag"),
        header("manifest-put:digest 201", "OCI-Tag", "never-asked-for"),
        status("manifest-put:digest 201", 200),
    ),
    "tag-parameters-ten": (flag("five-tags"),),
    # subjects
    "subject-missing": (flag("wants-subjects"),),
    "subject-missing-of-index": (flag("wants-subjects-of-indexes"),),
    "subject-header": (
        without("manifest-put:digest 201", "OCI-Subject"),
        without("manifest-put:tag 201", "OCI-Subject"),
        header("manifest-put:tag 201", "OCI-Subject", OTHER),
    ),
    "subject-header-of-index": (without("manifest-put 201", "OCI-Subject"),),
    "subject-header-missing-subject": (without("manifest-put 201", "OCI-Subject"),),
    # tags
    "tags-list": (
        flag("forgets-tags"),
        flag("repeats-tags"),
        edited("the wrong name", "tags 200", lambda value: {**value, "name": "elsewhere"}),
        edited("no name", "tags 200", lambda value: {"tags": value["tags"]}),
        status("tags 200", 206),
        body("tags 200", b"no JSON"),
    ),
    "tags-order": (flag("unordered-tags"),),
    "tags-page": (flag("ignores-n"), flag("short-pages")),
    "tags-page-larger": (flag("refuses-large-pages"),),
    "tags-page-order": (flag("unordered-pages"),),
    "tags-page-zero": (
        flag("zero-is-all"),
        flag("links-after-nothing"),
        edited("null for tags", "tags 200", lambda value: {**value, "tags": value["tags"] or None}),
    ),
    "tags-last": (flag("ignores-last"), flag("includes-last")),
    "tags-last-alone": (flag("ignores-last-alone"), flag("includes-last")),
    "tags-last-of-all": (flag("wants-tags-after-last"), flag("includes-last")),
    "tags-link": (
        header("tags 200", "Link", '</v2/local/conformance/tags/list?n=2>; rel="next"'),
        header("tags 200", "Link", '</v2/local/conformance/tags/list?n=2&last=a>; rel="more"'),
        header("tags 200", "Link", "/v2/local/conformance/tags/list?n=2&last=a"),
    ),
    "tags-unknown-repository": (status("tags 404", 200), status("tags 404", 500)),
    # referrers
    "referrers-api": (flag("no-referrers"),),
    "referrers-list": (
        flag("lists-strangers"),
        status("referrers 200", 206),
        body("referrers 200", b"no JSON"),
        edited("no schemaVersion", "referrers 200", lambda value: {**value, "schemaVersion": None}),
        edited("no mediaType", "referrers 200", lambda value: {**value, "mediaType": None}),
        edited("null for referrers", "referrers 200", lambda value: {**value, "manifests": None}),
        edited(
            "wrong sizes",
            "referrers 200",
            lambda value: {**value, "manifests": [{**one, "size": one["size"] + 1} for one in value["manifests"]]},
        ),
    ),
    "referrers-content-type": (header("referrers 200", "Content-Type", "application/json"),),
    "referrers-none": (
        flag("wants-referrers"),
        edited("null for referrers", "referrers 200", lambda value: {**value, "manifests": value["manifests"] or None}),
    ),
    "referrers-unknown-subject": (flag("wants-referrers"), flag("wants-known-subjects")),
    "referrers-invalid-digest": (status("referrers 400", 404), status("referrers 400", 200)),
    "referrers-image": (
        flag("no-referring-images"),
        edited(
            "no sizes",
            "referrers 200",
            lambda value: {**value, "manifests": [{**one, "size": 0} for one in value["manifests"]]},
        ),
    ),
    "referrers-index": (flag("no-referring-indexes"),),
    "referrers-artifact-type": (flag("types-of-config-only"),),
    "referrers-artifact-type-of-config": (flag("no-type-of-config"),),
    "referrers-artifact-type-of-index": (flag("no-types-of-indexes"),),
    "referrers-no-artifact-type": (flag("types-for-all"),),
    "referrers-annotations": (flag("no-annotations"),),
    "referrers-annotations-of-index": (flag("no-annotations-of-indexes"),),
    "referrers-before-subject": (flag("only-referrers-of-what-is-there"),),
    "referrers-of-this-repository": (flag("referrers-of-all-repositories"),),
    "referrers-filter": (flag("no-filter"), flag("loses-filtered")),
    "referrers-filter-header": (flag("filters-silently"), flag("claims-to-filter"), flag("loses-filtered")),
    "referrers-filter-none": (flag("wants-matches"), flag("claims-to-filter")),
    "referrers-link": (flag("loses-referrers"), flag("bad-referrers-link")),
    # deleting
    "tag-delete": (status("tag-delete 202", 200), status("tag-delete 202", 204), status("tag-delete 202", 403)),
    "tag-delete-effect": (flag("keeps-deleted-tags"),),
    "tag-delete-others": (flag("deletes-all-tags"),),
    "tag-delete-list": (flag("lists-deleted-tags"),),
    "tag-delete-unknown": (status("tag-delete 404", 202),),
    "manifest-delete": (status("manifest-delete 202", 200), status("manifest-delete 202", 501)),
    "manifest-delete-effect": (flag("keeps-deleted-manifests"),),
    "manifest-delete-tags": (flag("deleted-manifests-keep-tags"),),
    "manifest-delete-unknown": (status("manifest-delete 404 MANIFEST_UNKNOWN", 202),),
    "manifest-delete-unknown-repository": (
        status("manifest-delete 404 NAME_UNKNOWN", 202),
        status("manifest-delete 404 NAME_UNKNOWN", 500),
    ),
    "manifest-delete-referrers": (flag("keeps-deleted-manifests"),),
    "blob-delete": (status("blob-delete 202", 200), status("blob-delete 202", 204)),
    "blob-delete-effect": (flag("keeps-deleted-blobs"),),
    "blob-delete-unknown": (status("blob-delete 404", 202), status("blob-delete 404", 500)),
    # the API
    "api-root": (status("root 200", 404), status("root 200", 204)),
    "error-format": (
        body("blob-get 404", b'{"error": "none"}'),
        body("manifest-get 404", b'{"errors": ["none"]}'),
        body("tags 404", b'{"errors": {"code": "NAME_UNKNOWN"}}'),
        body("upload-put 400", b'{"errors": [{"code": 7}]}'),
    ),
    "error-code-spelling": (
        body("blob-get 404", b'{"errors": [{"code": "blob unknown"}]}'),
        body("tags 404", b'{"errors": [{"code": "NAME_UNKNOWN2"}]}'),
    ),
    "error-code-known": (body("manifest-get 404", b'{"errors": [{"code": "NO_SUCH_THING"}]}'),),
    "error-message": (body("manifest-get 404", b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": 7}]}'),),
    "error-too-many-requests": (status("blob-get 404", 429),),
    "warning-format": (
        header("blob-get 404", "Warning", '199 - "old"'),
        header("blob-get 404", "Warning", '299 mirror "old"'),
        header("blob-get 404", "Warning", '299 - "old" "Sat, 01 Jan 2026 00:00:00 GMT"'),
        header("blob-get 404", "Warning", "299 - old"),
    ),
    "warning-size": (header("blob-get 404", "Warning", f'299 - "{"x" * 4096}"'),),
}
"""Case → registries with one fault, each of which the case is to find."""

PAIRS = [(name, mutant) for name, mutants in MUTANTS.items() for mutant in mutants]


async def judged(*defects: Defect, only: str | None = None, **options: object) -> Judgement:
    async with ConformantRegistry(*defects) as registry:
        return await judge(registry.url, ALL, Options(seed=7, **options), only=only and (only,))  # type: ignore[arg-type]


async def test_a_registry_without_a_fault_passes_everything() -> None:
    async with ConformantRegistry() as registry:
        judgement = await judge(registry.url, ALL, Options(seed=1))
    assert {result.case.name: result.got for result in judgement.results if result.outcome is not Outcome.PASSED} == {}
    assert len(judgement.results) == len(CASES)
    assert judgement.passes_all


@pytest.mark.parametrize(("name", "mutant"), PAIRS, ids=lambda part: str(part).replace(" ", "-")[:60])
async def test_a_fault_is_found(name: str, mutant: Defect) -> None:
    judgement = await judged(mutant, only=name)
    [result] = judgement.results
    assert result.outcome is Outcome.FAILED, result
    assert result.expected
    assert result.got
    assert result.log
    musts = [version for version in ALL if result.case.level(version) is Level.MUST]
    assert [version for version in ALL if not judgement.passes(version)] == musts


def test_every_case_has_a_mutant() -> None:
    assert set(MUTANTS) == set(BY_NAME)
    assert all(MUTANTS.values())


def test_every_behaviour_is_one_the_registry_knows() -> None:
    """A mutant whose name is misspelt would be no mutant."""
    text = (Path(__file__).parents[1] / "conformance_registry.py").read_text()
    assert {
        mutant.behaviour for _, mutant in PAIRS if mutant.behaviour and f'"{mutant.behaviour}"' not in text
    } == set()


@pytest.mark.parametrize(
    ("defects", "names"),
    [
        ((flag("no-single-post"),), {"single-post", "single-post-location", "single-post-digest-mismatch"}),
        (
            (flag("no-mounts"),),
            {"mount", "mount-location", "mount-digest-header", "mount-without-from"},
        ),
        ((flag("no-mounts-without-from"),), {"mount-without-from"}),
        ((flag("no-cancelling"),), {"upload-cancel", "upload-cancel-effect"}),
        ((flag("no-tag-parameters"),), {"tag-parameters", "tag-parameters-ten"}),
        ((flag("no-limit"),), {"manifest-put-too-large"}),
        ((flag("known-types-only"),), {"manifest-put-unknown-media-type"}),
        (
            (flag("no-sha512"),),
            {case.name for case in CASES if case.name.startswith("sha512-") and case.name != "sha512-mismatch"},
        ),
        (
            (flag("no-deletion"),),
            {case.name for case in CASES if case.category is Category.MANAGEMENT},
        ),
        ((flag("no-tag-deletion"),), {case.name for case in CASES if case.name.startswith("tag-delete")}),
    ],
    ids=lambda part: str(part[0]) if isinstance(part, tuple) else "",
)
async def test_what_may_be_lacking_is_unsupported(defects: tuple[Defect, ...], names: set[str]) -> None:
    judgement = await judged(*defects)
    found = {result.case.name for result in judgement.results if result.outcome is Outcome.UNSUPPORTED}
    assert found == names
    assert judgement.passes_all
    assert all(result.reason for result in judgement.results if result.outcome is Outcome.UNSUPPORTED)


async def test_without_referrers_one_case_fails_and_the_others_are_unsupported() -> None:
    judgement = await judged(flag("no-referrers"))
    outcomes = {result.case.name: result.outcome for result in judgement.results}
    assert [name for name, outcome in outcomes.items() if outcome is Outcome.FAILED] == ["referrers-api"]
    lacking = {name for name, outcome in outcomes.items() if outcome is Outcome.UNSUPPORTED}
    assert lacking == {
        *(name for name in outcomes if name.startswith("referrers-") and name != "referrers-api"),
        *("subject-header", "subject-header-of-index", "subject-header-missing-subject", "manifest-delete-referrers"),
    }
    assert [version for version in ALL if judgement.passes(version)] == [Version.V1_0]


@pytest.mark.parametrize("behaviour", ["no-links", "pages-referrers", "takes-what-is-incomplete", "redirects"])
async def test_what_is_allowed_passes(behaviour: str) -> None:
    judgement = await judged(flag(behaviour))
    assert {
        result.case.name: (result.expected, result.got)
        for result in judgement.results
        if result.outcome in (Outcome.FAILED, Outcome.NOT_JUDGED) and not result.case.name.startswith("blob-range")
    } == {}


async def test_what_cannot_be_tried_is_not_judged_and_does_not_pass() -> None:
    judgement = await judged(status("upload-put 201", 500))
    outcomes = {result.case.name: result.outcome for result in judgement.results}
    assert outcomes["upload-put"] is Outcome.FAILED
    assert outcomes["blob-get"] is Outcome.NOT_JUDGED
    assert outcomes["blob-get-unknown"] is Outcome.PASSED
    alone = await judged(status("upload-put 201", 500), only="blob-get")
    assert not alone.passes(Version.V1_0)


async def test_a_judge_that_stumbles_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr("mirror.conformance.expect.status", stumble)
    judgement = await judged()
    outcomes = {result.case.name: (result.outcome, result.reason) for result in judgement.results}
    assert outcomes["upload-start"] == (Outcome.NOT_JUDGED, "the judge does not understand: KeyError: 'what'")
    assert outcomes["tags-unknown-repository"][0] is Outcome.NOT_JUDGED
    assert outcomes["upload-location-unique"][0] is Outcome.PASSED


# ---- versions and levels ----


def test_versions_have_what_they_had() -> None:
    """What only 1.1 or main has is not judged by an older version."""
    for case in CASES:
        old = case.level(Version.V1_0)
        if case.name.startswith(("referrers-", "subject-", "warning-", "upload-status", "blob-range")):
            assert old is None, case.name
        if case.name.startswith(("tag-parameters", "upload-cancel", "ns-", "digest-algorithm", "sha512-named")):
            assert case.level(Version.V1_1) is None, case.name
            assert case.level(Version.MAIN), case.name
    for name in ("blob-get-digest-header", "manifest-get-digest-header", "blob-head-digest-header"):
        levels = [BY_NAME[name].level(version) for version in ALL]
        assert levels == [Level.SHOULD, Level.SHOULD, Level.MUST]


def test_a_later_version_demands_no_less() -> None:
    order = [None, Level.SHOULD, Level.MUST]
    for case in CASES:
        places = [order.index(case.level(version)) for version in ALL]
        assert places == sorted(places), case.name


async def test_only_what_a_version_has_is_tried() -> None:
    async with ConformantRegistry() as registry:
        judgement = await judge(registry.url, (Version.V1_0,), Options(seed=1))
        assert not any("/referrers/" in path for method, path, _ in registry.seen if "sha256:none" not in path)
    names = {result.case.name for result in judgement.results}
    assert names == {case.name for case in CASES if case.level(Version.V1_0)}
    assert len(names) < len(CASES)


async def test_a_should_that_fails_does_not_fail_the_version() -> None:
    judgement = await judged(without("blob-get 200", DIGEST), only="blob-get-digest-header")
    assert [judgement.passes(version) for version in ALL] == [True, True, False]
    assert judgement.count(Version.V1_1, Level.SHOULD, Outcome.FAILED) == 1
    assert judgement.count(Version.MAIN, Level.MUST, Outcome.FAILED) == 1


def test_cases_are_named_placed_and_described() -> None:
    for case in CASES:
        assert case.name == case.name.lower(), case.name
        assert case.text.endswith("."), case.name
        assert case.section, case.name
        assert (case.method is Method.NEGATIVE) or case.text, case.name
    counted = collections.Counter(case.method for case in CASES)
    assert counted[Method.NEGATIVE] > 40
    assert counted[Method.POSITIVE] > 80


# ---- what it leaves ----


async def test_what_was_pushed_is_deleted_again() -> None:
    async with ConformantRegistry() as registry:
        judgement = await judge(registry.url, ALL, Options(seed=3))
        assert judgement.left == ()
        assert [name for name, repository in registry.repositories.items() if not repository.empty] == []
        assert registry.sessions == {}


async def test_what_cannot_be_deleted_is_said() -> None:
    async with ConformantRegistry(flag("no-deletion")) as registry:
        judgement = await judge(registry.url, ALL, Options(seed=3))
        assert len(judgement.left) == 2
        manifests, blobs = judgement.left
        assert "manifests (deletion answers 405)" in manifests
        assert "blobs (deletion answers 405)" in blobs
        assert any(not repository.empty for repository in registry.repositories.values())


async def test_two_runs_do_not_meet() -> None:
    """Neither what a run left behind nor its names are met by the next, which has another seed."""
    async with ConformantRegistry(flag("no-deletion")) as registry:
        first = await judge(registry.url, ALL, Options(seed=1))
        repository = registry.repositories["local/conformance"]
        tags, manifests = len(repository.tags), len(repository.manifests)
        second = await judge(registry.url, ALL, Options(seed=2))
        assert (first.passes_all, second.passes_all) == (True, True)
        assert (len(repository.tags), len(repository.manifests)) == (2 * tags, 2 * manifests)


async def test_only_the_repositories_named_are_used() -> None:
    async with ConformantRegistry() as registry:
        await judge(registry.url, ALL, Options(repository="mine/one", other="mine/two"))
        names = {path.split("/")[2] for _, path, _ in registry.seen if path.startswith("/v2/") and path != "/v2/"}
        assert names == {"mine"}
        assert not any(path.startswith("/v2/local") for _, path, _ in registry.seen)


# ---- pulling only ----


async def fill(registry: ConformantRegistry, name: str = "library/thing") -> tuple[str, str]:
    """Push an image and an index over it, with tags; return the index's tag and the image's digest."""
    async with Registry(registry.url) as client:
        stage = Stage(client, Options(repository=name, seed=5))
        image = await stage.put_document(stage.content.image(layers=2), "a", "b", "c", "one", "two", "three")
        await stage.put_document(stage.content.index((image,)), "list")
        await stage.put_document(stage.content.image(subject=image.descriptor()))
    registry.seen.clear()
    return "list", image.digest


async def test_a_registry_that_refuses_pushes_is_judged_by_what_it_has() -> None:
    async with ConformantRegistry() as registry:
        tag, _ = await fill(registry)
        registry.behaviours.add("no-pushes")
        judgement = await judge(registry.url, ALL, Options(repository="library/thing", references=(tag,)))
    assert judgement.no_pushes == "pushing is refused: POST of an upload answers 405"
    outcomes = {result.case: result.outcome for result in judgement.results}
    for case, outcome in outcomes.items():
        pushes = case.pushes or case.category in (Category.PUSH, Category.MANAGEMENT)
        assert outcome is (Outcome.UNSUPPORTED if pushes else Outcome.PASSED), case
    assert judgement.passes_all


async def test_pulling_only_sends_nothing_that_writes() -> None:
    async with ConformantRegistry() as registry:
        tag, digest = await fill(registry)
        options = Options(repository="library/thing", references=(tag, digest), pull_only=True)
        judgement = await judge(registry.url, ALL, options)
        assert {method for method, _, _ in registry.seen} == {"GET", "HEAD"}
    assert judgement.passes_all
    assert {result.case.name for result in judgement.results if result.outcome is Outcome.PASSED} >= {
        *("blob-get", "blob-range", "manifest-get-by-tag", "manifest-get-by-digest", "tags-last", "referrers-list"),
    }


UNSEEN = ("other-manifests-by-tag",)
"""A fault that cannot be seen: nobody says what a tag is to be."""

NOT_THERE = (
    *("no-manifests-by-digest", "no-manifests-by-tag"),
    *("manifest-get:digest 200 as 203", "manifest-get:tag 200 as 203"),
)
"""Faults by which what was given to pull seems not to be there."""

PULLED = [
    (name, mutant)
    for name, mutant in PAIRS
    if mutant.label not in UNSEEN
    and not BY_NAME[name].pushes
    and name.startswith(("blob-", "manifest-", "tags-", "referrers-"))
]


@pytest.mark.parametrize(("name", "mutant"), PULLED, ids=lambda part: str(part).replace(" ", "-")[:60])
async def test_pulling_only_finds_the_faults_of_pulling(name: str, mutant: Defect) -> None:
    async with ConformantRegistry() as registry:
        tag, digest = await fill(registry)
        registry.behaviours |= {mutant.behaviour, "no-pushes"} - {""}
        registry.changes = [mutant] if mutant.change else []
        options = Options(repository="library/thing", references=(tag, digest, "a"))
        judgement = await judge(registry.url, ALL, options, only=(name,))
    wanted = {Outcome.FAILED, Outcome.NOT_JUDGED} if mutant.label in NOT_THERE else {Outcome.FAILED}
    assert judgement.results[0].outcome in wanted, judgement.results[0]


@pytest.mark.parametrize("refusal", [401, 403, 404, 405], ids=str)
async def test_a_refusal_to_push_is_no_fault(refusal: int) -> None:
    judgement = await judged(status("upload-post 202", refusal), only="upload-start")
    assert judgement.results[0].outcome is Outcome.UNSUPPORTED
    assert str(refusal) in judgement.results[0].reason


async def test_pulling_only_without_content_judges_what_needs_none() -> None:
    judgement = await judged(flag("no-pushes"))
    outcomes = {result.case.name: result.outcome for result in judgement.results}
    assert outcomes["blob-get"] is Outcome.NOT_JUDGED
    assert outcomes["blob-get-unknown"] is Outcome.PASSED
    assert not judgement.passes(Version.V1_0)


async def test_content_that_is_not_there_is_said() -> None:
    judgement = await judged(flag("no-pushes"), only="manifest-get-by-tag", references=("latest",))
    assert "the content given is not there" in judgement.results[0].reason
