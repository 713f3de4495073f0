"""The specification's own conformance program: nothing fails, is skipped or is unsupported.

Each run has every API and every kind of data switched on. Each version meets all pairs of workers, transport and
access; CONFORMANCE_MATRIX=all runs all combinations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import official
from tests.clients.ca import Authority
from tests.clients.combinations import COMBINATIONS, PACKAGE, PACKAGE_TAGS, Combination, note_on, serve_folder
from tests.clients.images import Images
from tests.clients.namespace import Namespace
from tests.clients.registry_process import Registry

CASES = 1000
"""At least so many: fewer, and it was not asked everything."""
HERE = {
    *("Blob anonymous mount", "Blob upload cancel", "Manifest put with tag params", "Referrers", "Tag delete atomic"),
    *("Sparse Manifests", "Digest Algorithm sha512", "Tag Param sha512", "Non-distributable Layers"),
}
"""Rows that are there when everything is switched on."""
PULLS = {
    *("Ping", "Tag listing", "Referrers", "Blob get", "Blob head", "Read Only Inputs", "Invalid Manifest Digest"),
    *(f"Manifest {how} by {what}" for how in ("get", "head") for what in ("tag", "digest")),
}
"""Rows that are left when nothing is pushed and nothing deleted."""


@pytest.fixture(scope="module")
def conformance() -> str:
    found = official.program()
    if found is None:
        pytest.skip(
            "the conformance program of the OCI distribution specification is not on PATH or in $CONFORMANCE; "
            "it is built by hand from its repository"
        )
    return found


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def registry(
    request: pytest.FixtureRequest, conformance: str, namespace: Namespace, conformance_ca: Authority
) -> Iterator[Registry]:
    combination: Combination = request.param
    registry = combination.start(namespace, conformance_ca, port=5110, push={"missing_blobs": "accept"})
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def packages(namespace: Namespace, conformance: str, images: Images) -> Iterator[Registry]:
    registry = serve_folder(namespace, images, port=5111)
    yield registry
    registry.close()


@pytest.mark.parametrize("version", official.VERSIONS)
def test_all_of_it(version: str, conformance: str, namespace: Namespace, registry: Registry, tmp_path: Path) -> None:
    with registry.explained():
        repository = f"local/official/v{version}"
        verdict = official.judge(namespace, conformance, registry, tmp_path, version=version, repository=repository)
        assert verdict.not_passed == {}, f"{official.not_passed(tmp_path)}\n{verdict.output}"
        assert verdict.counts["Pass"] == verdict.counts["Total"] >= CASES
        assert set(verdict.rows.values()) == {"Pass"}
        assert official.written(tmp_path) == verdict.rows
        assert verdict.rows.keys() >= HERE


@pytest.mark.parametrize("version", official.VERSIONS)
def test_a_folder_of_images(
    version: str, conformance: str, namespace: Namespace, images: Images, tmp_path: Path, packages: Registry
) -> None:
    """Pull-only: nothing is pushed or deleted; what is there is a folder of images, and is named to the program."""
    image, referrer = images.multi, note_on(images.multi)
    with packages.explained():
        packages.assert_holds(image, PACKAGE, "b")
        named = {
            "TAGS": PACKAGE_TAGS,
            "MANIFESTS": [one.digest for one in (*image.manifests, referrer.manifest)],
            "BLOBS": [one.digest for one in (*image.blobs, *referrer.blobs)],
            "REFERRERS": [image.digest],
        }
        verdict = official.judge(
            *(namespace, conformance, packages, tmp_path),
            version=version,
            repository=PACKAGE,
            **official.NO_PUSHES,
            **{f"OCI_RO_DATA_{kind}": " ".join(names) for kind, names in named.items()},
        )
        assert verdict.not_passed.keys() == {"Disabled"}, verdict.output
        # HEAD and GET of each thing named; two lists, of it and of nothing; ping; three that are not there
        things = len(PACKAGE_TAGS) + len(named["MANIFESTS"]) + len(named["BLOBS"])
        assert verdict.counts["Pass"] == 2 * things + 2 * 2 + 1 + 3
        passed = {name for name, status in verdict.rows.items() if status == "Pass"}
        assert passed == PULLS
        unknown = {name for name, status in verdict.rows.items() if status == "Unknown"}
        assert unknown == {"Blob get range"}  # it tries that with its own blobs only
