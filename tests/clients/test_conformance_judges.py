"""Two judges, the same registries: what ours finds of them agrees with what the official conformance program finds.

Distribution 2.8 (``docker-registry``) and 3.1 (``registry``) are judged by both, version by version, and compared by
subject: a subject fails, is unsupported, or passes. The registry the unit tests break is judged by both as well.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mirror.conformance import Judgement, Options, Version, judge
from mirror.conformance.case import Outcome
from tests.clients.conftest import refuse
from tests.clients.processes import Process
from tests.conformance_registry import ConformantRegistry, in_thread
from tests.ports import free_port

OFFICIAL = {Version.V1_0: "1.0", Version.V1_1: "1.1", Version.MAIN: "dev"}
PROGRAMS = {"2.8": "docker-registry", "3.1": "registry"}
FAIL, UNSUPPORTED, PASS = "fail", "unsupported", "pass"


def official_program() -> str:
    """Return the official program, or skip: it has to be built by hand, so no machine can be asked to have it."""
    found = os.environ.get("CONFORMANCE") or shutil.which("conformance")
    if not found or not os.access(found, os.X_OK):
        pytest.skip(
            "the official conformance program is not there: build distribution-spec/conformance with go build, "
            "and name it by CONFORMANCE or put it on PATH"
        )
    return found


# ---- what both judge ----


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What both have something to say about. ours: of a case's name; theirs: of a test's. since: for both."""

    name: str
    ours: Callable[[str], bool]
    theirs: Callable[[str], bool]
    since: Version = Version.V1_0


def named(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def holds(*parts: str) -> Callable[[str], bool]:
    return lambda name: any(part in name for part in parts)


SUBJECTS = (
    Subject(
        name="sha512 uploads",
        ours=lambda name: name.startswith("sha512-") and name != "sha512-named-first",
        theirs=lambda name: name.split("/")[0] in ("sha512 blobs", "sha512"),
    ),
    Subject(
        name="referrers",
        ours=lambda name: name.startswith(("referrers-", "subject-header")),
        theirs=lambda name: name.endswith("/referrers"),
        since=Version.V1_1,
    ),
    Subject(
        name="out-of-order chunks",
        ours=named("chunk-first-not-at-zero", "chunk-gap", "chunk-repeated"),
        theirs=lambda name: name.startswith("sha256 blobs/chunked out-of-order") and name.endswith("patch-chunked"),
    ),
    Subject(
        name="nondistributable layers",
        ours=named("manifest-put-nondistributable"),
        theirs=holds("non-distributable-layers/push/manifest"),
    ),
    Subject(
        name="chunks in order",
        ours=named("chunk-patch", "chunk-close", "chunk-last-by-put", "upload-stream"),
        theirs=lambda name: (
            name.split("/")[:2] in [["sha256 blobs", test] for test in ("chunked single", "chunked multi", "stream")]
        ),
    ),
    Subject(
        name="a single POST",
        ours=named("single-post", "single-post-location"),
        theirs=holds("sha256 blobs/post only/blob-post-only"),
    ),
    Subject(
        name="mounts",
        ours=named("mount", "mount-location"),
        theirs=holds("sha256 blobs/mount/blob-mount"),
    ),
    Subject(
        name="mounts without from",
        ours=named("mount-without-from"),
        theirs=holds("sha256 blobs/mount anonymous/blob-mount-anonymous"),
        since=Version.V1_1,
    ),
    Subject(
        name="ranges of blobs",
        ours=named("blob-range", "blob-range-open", "blob-range-suffix", "blob-range-past-end"),
        theirs=lambda name: (
            name.startswith("sha256 blobs/range requests/range") and not name.endswith(("500-0", "5000-10000"))
        ),
        since=Version.V1_1,
    ),
    Subject(
        name="ranges that cannot be satisfied",
        ours=named("blob-range-unsatisfiable", "blob-range-backwards"),
        theirs=lambda name: (
            name.startswith("sha256 blobs/range requests/range") and name.endswith(("500-0", "5000-10000"))
        ),
        since=Version.V1_1,
    ),
    Subject(
        name="pages of tags",
        ours=named("tags-last", "tags-last-alone"),
        theirs=named("artifacts-with-subject/tag-list"),
    ),
    Subject(
        name="deleting tags",
        ours=named("tag-delete", "tag-delete-effect"),
        theirs=named("image/delete/tag-delete", "index/delete/tag-delete"),
        since=Version.V1_1,
    ),
    Subject(
        name="deleting manifests",
        ours=named("manifest-delete", "manifest-delete-effect"),
        theirs=holds("image/delete/manifest-delete"),
        since=Version.V1_1,
    ),
    Subject(
        name="invalid digests of manifests",
        ours=named("manifest-get-invalid-digest", "manifest-put-invalid-reference"),
        theirs=holds("invalid-digest-format/manifest"),
    ),
    Subject(
        name="missing subjects",
        ours=named("subject-missing", "subject-header-missing-subject", "referrers-api"),
        theirs=lambda name: name.startswith("missing-subject/") and ("push" in name or "referrers" in name),
        since=Version.V1_1,
    ),
    Subject(
        name="large manifests",
        ours=named("manifest-put-large"),
        theirs=holds("large-manifest/push/manifest"),
        since=Version.V1_1,
    ),
    Subject(
        name="tags as parameters",
        ours=named("tag-parameters"),
        theirs=lambda name: name.startswith("tag-param-sha256/push/manifest-by-digest"),
        since=Version.MAIN,
    ),
    Subject(
        name="cancelling",
        ours=named("upload-cancel"),
        theirs=holds("sha256 blobs/post cancel"),
        since=Version.MAIN,
    ),
)


def worst(states: set[str]) -> str:
    """Return what is to be said of several: one that fails makes it fail."""
    return next((state for state in (FAIL, UNSUPPORTED, PASS) if state in states), "nothing")


def ours(judgement: Judgement, version: Version, subject: Subject) -> str:
    words = {Outcome.PASSED: PASS, Outcome.UNSUPPORTED: UNSUPPORTED, Outcome.FAILED: FAIL, Outcome.NOT_JUDGED: FAIL}
    return worst({words[result.outcome] for result in judgement.of(version) if subject.ours(result.case.name)})


def theirs(tests: dict[str, str], subject: Subject) -> str:
    words = {"passed": PASS, "skipped": UNSUPPORTED, "failure": FAIL, "error": FAIL}
    return worst({words[state] for name, state in tests.items() if subject.theirs(name)})


def run_official(program: str, url: str, version: Version, folder: Path) -> dict[str, str]:
    """Return test → state of a run; a test that ran several times has the worst of its states."""
    folder.mkdir(parents=True)
    settings = {
        "OCI_REGISTRY": url.removeprefix("http://"),
        "OCI_TLS": "disabled",
        "OCI_VERSION": OFFICIAL[version],
        "OCI_RESULTS_DIR": str(folder),
        "OCI_REPO1": "local/official-one",
        "OCI_REPO2": "local/official-two",
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("OCI_")} | settings
    done = subprocess.run([program], env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    report = folder / "junit.xml"
    assert report.exists(), (done.stdout + done.stderr)[-2000:]
    order = ["passed", "skipped", "failure", "error"]
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = (case.get("name") or "").partition("/")[2]
        state = case.get("status") or "error"
        found[name] = max(found.get(name, "passed"), state, key=order.index)
    assert len(found) > 300
    return found


# ---- the registries ----


@pytest.fixture(scope="module", params=PROGRAMS)
def distribution(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Run CNCF Distribution on a folder of its own. Gives version and URL."""
    program = shutil.which(PROGRAMS[request.param])
    if not program:
        refuse(f"not installed: {PROGRAMS[request.param]} (CNCF Distribution {request.param})")
    assert program
    folder = tmp_path_factory.mktemp("distribution")
    address = f"127.0.0.1:{free_port()}"
    settings = folder / "config.yml"
    settings.write_text(
        "version: 0.1\n"
        "log: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'root'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: {address!r}}}\n"
    )
    env = {"PATH": os.environ.get("PATH", ""), "OTEL_TRACES_EXPORTER": "none"}
    process = Process("registry", [program, "serve", str(settings)], log=folder / "log", env=env, cwd=folder)
    try:
        process.wait_until("answers", lambda: urllib.request.urlopen(f"http://{address}/v2/", timeout=5).status == 200)
        yield request.param, f"http://{address}"
    finally:
        process.stop()


@pytest.fixture(scope="module")
def judgement(distribution: tuple[str, str]) -> Judgement:
    """Judge the registry by every version."""
    return asyncio.run(judge(distribution[1], tuple(Version), Options(seed=1)))


@pytest.mark.parametrize("version", Version)
def test_the_judges_agree(
    distribution: tuple[str, str], judgement: Judgement, version: Version, tmp_path: Path
) -> None:
    """Subject by subject, both find the same of Distribution."""
    tests = run_official(official_program(), distribution[1], version, tmp_path / "results")
    subjects = [subject for subject in SUBJECTS if version.order >= subject.since.order]
    mine = {subject.name: ours(judgement, version, subject) for subject in subjects}
    official = {subject.name: theirs(tests, subject) for subject in subjects}
    assert mine == official
    assert "nothing" not in mine.values()


KNOWN = {
    "2.8": {"out-of-order chunks": FAIL, "sha512 uploads": FAIL, "referrers": FAIL, "nondistributable layers": FAIL},
    "3.1": {"out-of-order chunks": PASS, "sha512 uploads": FAIL, "referrers": FAIL, "nondistributable layers": FAIL},
}


def test_what_is_known_of_distribution_is_found(distribution: tuple[str, str], judgement: Judgement) -> None:
    """Where the official program is not there, too."""
    known = KNOWN[distribution[0]]
    subjects = {subject.name: subject for subject in SUBJECTS}
    assert {name: ours(judgement, Version.V1_1, subjects[name]) for name in known} == known
    assert not judgement.passes(Version.V1_1)


@pytest.mark.parametrize("version", Version)
def test_the_official_program_finds_no_fault_in_the_registry_without_one(version: Version, tmp_path: Path) -> None:
    """So what the unit tests break is whole before, by another's judgement as well as ours."""
    program = official_program()
    with in_thread(ConformantRegistry()) as registry:
        tests = run_official(program, registry.url, version, tmp_path / "results")
    assert {name: state for name, state in tests.items() if state in ("failure", "error")} == {}
    if version is Version.MAIN:
        assert set(tests.values()) == {"passed"}
