"""``mirror conformance`` on this registry: every MUST holds, by every version of the specification.

CONFORMANCE_MATRIX=all runs all combinations of workers, transport and access instead of all pairs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients.ca import Authority
from tests.clients.combinations import COMBINATIONS, PACKAGE, Combination, serve_folder
from tests.clients.images import Images
from tests.clients.namespace import PROJECT, CommandFailed, Namespace
from tests.clients.registry_process import AUTHOR, Registry

AT_LEAST = {"MUST": 80, "SHOULD": 15}
"""Cases of every version: fewer, and it did not ask much."""


@pytest.fixture(scope="module", params=COMBINATIONS, ids=str)
def registry(request: pytest.FixtureRequest, namespace: Namespace, conformance_ca: Authority) -> Iterator[Registry]:
    combination: Combination = request.param
    registry = combination.start(namespace, conformance_ca, port=5120)
    yield registry
    registry.close()


def judge(namespace: Namespace, registry: Registry, *more: str) -> dict[str, Any]:
    """The JSON of ``mirror conformance``, which ends with status 0: every MUST holds."""
    command = [sys.executable, "-m", "mirror", "conformance", registry.url, "-V", "all", "--json", *more]
    env = {"PYTHONPATH": str(PROJECT), "MIRROR_CONFORMANCE_PASSWORD": AUTHOR.password}
    if registry.tls:
        command += ["--ca-file", str(registry.tls.ca)]
    if registry.access != "open":
        command += ["--user", AUTHOR.user]
    try:
        output = namespace.run(*command, env=env, both=False)
    except CommandFailed as failed:
        failed.add_note(f"failed: {failures(failed.output)}")
        raise
    (said,) = json.loads(output)["registries"]
    found: dict[str, Any] = said
    return found


def failures(output: str) -> str:
    """The cases that failed or were not judged, or nothing when there is no JSON to tell them."""
    try:
        cases = json.JSONDecoder().raw_decode(output)[0]["registries"][0]["cases"]
    except (ValueError, LookupError):
        return "(it did not say)"
    return json.dumps([case for case in cases if case["outcome"] in ("failed", "not judged")], indent=1)[:8000]


def test_everything_holds(namespace: Namespace, registry: Registry) -> None:
    with registry.explained():
        said = judge(namespace, registry)
        assert said["no_pushes"] == ""
        assert said["left"] == []
        assert set(said["versions"]) == {"1.0", "1.1", "main"}
        for version, found in said["versions"].items():
            for level in ("MUST", "SHOULD"):
                counts = found[level]
                assert counts.pop("passed") >= AT_LEAST[level], (version, level)
                assert not any(counts.values()), (version, level, counts)


def test_a_folder_of_images(namespace: Namespace, images: Images) -> None:
    """Pull-only: what there is to pull is found from one tag."""
    registry = serve_folder(namespace, images, port=5121)
    try:
        with registry.explained():
            said = judge(namespace, registry, "--pull-only", "--repository", PACKAGE, "--reference", "b")
            for version, found in said["versions"].items():
                assert found["MUST"]["passed"] >= 20, version
                assert found["MUST"]["unsupported"], version  # pushes and deletions
                assert found["SHOULD"]["failed"] == 0, version
    finally:
        registry.close()
