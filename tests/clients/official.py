"""The conformance program of the OCI distribution specification: found, run inside the namespace, and its counts read.

It ends with status 0 although it skipped, and its tables say "Pass" of a row in which one case was skipped; so the
counts are what is judged.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.registry_process import AUTHOR, Registry

VERSIONS = ("1.0", "1.1", "dev")
APIS = (
    *("PING", "PULL", "PUSH", "REFERRER"),
    *("BLOBS_ATOMIC", "BLOBS_DELETE", "BLOBS_DIGEST_HEADER", "BLOBS_MOUNT_ANONYMOUS", "BLOBS_UPLOAD_CANCEL"),
    *("MANIFESTS_ATOMIC", "MANIFESTS_DELETE", "MANIFESTS_DIGEST_HEADER", "MANIFESTS_TAG_PARAM"),
    *("TAGS_ATOMIC", "TAGS_DELETE", "TAGS_LIST"),
)
DATA = (
    *("IMAGE", "INDEX", "INDEX_LIST", "SPARSE", "ARTIFACT", "SUBJECT", "SUBJECT_MISSING", "ARTIFACT_LIST"),
    *("SUBJECT_LIST", "DATA_FIELD", "NONDISTRIBUTABLE", "CUSTOM_FIELDS", "NO_LAYERS", "EMPTY_BLOB", "SHA512"),
)
EVERYTHING = {f"OCI_API_{name}": "true" for name in APIS} | {f"OCI_DATA_{name}": "true" for name in DATA}
"""Every switch there is, whatever the version's defaults are."""
DELETIONS = {
    f"OCI_API_{kind}_{what}": "false" for kind in ("BLOBS", "MANIFESTS", "TAGS") for what in ("DELETE", "ATOMIC")
}
NO_PUSHES = {
    "OCI_API_PUSH": "false",
    "OCI_API_BLOBS_UPLOAD_CANCEL": "false",
    **DELETIONS,
    # of content it did not push it does not keep the response, and then misses the header in it
    "OCI_API_MANIFESTS_DIGEST_HEADER": "false",
}
"""Pulls only: what is there is named, and neither pushed nor deleted."""
_COUNT = re.compile(r"^  (Disabled|Skip|Pass|FAIL|Error|Total)\.+: +(\d+)$", re.MULTILINE)
_STATUS = re.compile(r"^  ([A-Z][^.:/]*)\.+: +([A-Za-z]+)$", re.MULTILINE)


def program() -> str | None:
    """Where the program is: ``$CONFORMANCE``, or ``conformance`` on PATH. None where it is not."""
    named = os.environ.get("CONFORMANCE", "")
    if named:
        found = shutil.which(named)
        assert found, f"CONFORMANCE={named} is not a program"
        return str(Path(found).absolute())
    return shutil.which("conformance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What it said. counts: of cases, by outcome. rows: what it says of each API and kind of data."""

    counts: dict[str, int]
    rows: dict[str, str]
    output: str

    @property
    def not_passed(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if name not in ("Pass", "Total") and count}


def judge(
    namespace: Namespace,
    conformance: str,
    registry: Registry,
    results: Path,
    *,
    version: str,
    repository: str,
    **settings: str,
) -> Verdict:
    """Run it with everything switched on but for these settings; its verdict, also when it is a bad one."""
    env = {
        "OCI_REGISTRY": registry.host,
        "OCI_TLS": "enabled" if registry.tls else "disabled",
        "OCI_VERSION": version,
        "OCI_REPO1": repository,
        "OCI_REPO2": f"{repository}-other",
        "OCI_RESULTS_DIR": str(results),
        "OCI_CONFIGURATION": "/dev/null",
        **EVERYTHING,
        **settings,
    }
    if registry.tls:
        env["SSL_CERT_FILE"] = str(registry.tls.ca)
    if registry.access != "open":
        env |= {"OCI_USERNAME": AUTHOR.user, "OCI_PASSWORD": AUTHOR.password}
    try:
        output = namespace.run(conformance, env=env, seconds=300)
    except CommandFailed as failed:
        output = failed.output
    counts = {name: int(number) for name, number in _COUNT.findall(output)}
    rows = {name: status for name, status in _STATUS.findall(output) if not status.isdigit()}
    assert {"Pass", "Total"} <= counts.keys(), f"it printed no counts:\n{output}"
    return Verdict(counts=counts, rows=rows, output=output)


def written(results: Path) -> dict[str, str]:
    """What ``results.yaml`` says of each API and kind of data."""
    found = yaml.safe_load((results / "results.yaml").read_text())
    return {**found["apis"], **found["data"]}


def not_passed(results: Path) -> list[str]:
    """The cases of ``junit.xml`` that did not pass."""
    text = (results / "junit.xml").read_text()
    return re.findall(r'<testcase name="([^"]+)"[^>]*status="(?!passed")[a-z]+"', text)
