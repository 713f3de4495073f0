"""Signatures and lists of upstreams' images: real tools read them through the mirror, in an outage as well.

ghcr.io (CNCF Distribution 2.8) has no referrers API and is asked by the tag schema; the other upstream has it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.clients.clients import Clients
from tests.clients.conftest import refuse
from tests.clients.hub import Hub
from tests.clients.images import Image, Images
from tests.clients.layout import write_layout
from tests.clients.mirror_process import EXTERNAL_URL, MirrorProcess
from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.registry_process import Registry
from tests.clients.test_tools_cosign import NO_SERVICES, PREDICATE
from tests.clients.toolbox import Toolbox

FRESH_FOR = 1.0  # seconds
PORT = 5090
UNSIGNED = "local/unsigned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An upstream. name: the mirror's for it. host: its own. stopped: nobody answers there inside that block."""

    name: str
    host: str
    stopped: Callable[[], AbstractContextManager[None]]


@pytest.fixture
def registry(namespace: Namespace) -> Iterator[Registry]:
    registry = Registry(namespace, namespace.directory / "signed-registry", port=PORT)
    yield registry
    registry.close()


@pytest.fixture
def mirror(
    namespace: Namespace, hub: Hub, registry: Registry, mirror_folders: Iterator[Path]
) -> Iterator[MirrorProcess]:
    if EXTERNAL_URL:
        pytest.skip("needs a mirror that has this test's registry as an upstream: MIRROR_URL is set")
    others = {"registry.test": registry.url}
    mirror = MirrorProcess(namespace, next(mirror_folders), workers=4, fresh_for=f"{FRESH_FOR:g}s", others=others)
    yield mirror
    mirror.close()


@pytest.fixture
def tools(namespace: Namespace, registry: Registry) -> Iterator[Toolbox]:
    tools = Toolbox(namespace, registry, refuse)
    yield tools
    tools.close()


@pytest.fixture(params=["tag-schema", "referrers-api"])
def source(request: pytest.FixtureRequest, hub: Hub, registry: Registry) -> Source:
    if request.param == "tag-schema":
        return Source(name="ghcr.io", host="ghcr.io", stopped=hub.stopped)
    return Source(name="registry.test", host=registry.host, stopped=registry.stopped)


def until_stale() -> None:
    time.sleep(FRESH_FOR + 0.1)  # the setting's meaning, not a synchronisation


def test_what_is_signed_upstream_is_verified_through_the_mirror(
    source: Source, mirror: MirrorProcess, tools: Toolbox, images: Images
) -> None:
    cosign, crane = tools.tool("cosign"), tools.tool("crane")
    image, repository = images.multi, "local/signed"
    key, other, config = tools.folder / "own", tools.folder / "other", tools.file("s.json", json.dumps(NO_SERVICES))
    for prefix in (key, other):
        cosign("generate-key-pair", "--output-key-prefix", prefix)
    layout = write_layout(image, tools.folder / "multi")
    for name in (repository, UNSIGNED):
        crane("push", layout, f"{source.host}/{name}:1")
    signed = f"{source.host}/{repository}@{image.digest}"
    options = ("--yes", "--key", f"{key}.key", "--signing-config", config, "--allow-http-registry")
    cosign("sign", *options, signed)
    predicate = tools.file("predicate.json", json.dumps(PREDICATE))
    cosign("attest", *options, "--predicate", predicate, "--type", "custom", signed)

    def verify(command: str, *, name: str = repository, by: Path = key) -> str:
        offline = ("--insecure-ignore-tlog", "--allow-http-registry")
        return cosign(command, "--key", f"{by}.pub", *offline, through(mirror, source, name, image))

    def verify_all() -> None:
        found = json.loads(verify("verify"))  # what is attested is signed as well
        assert [one["critical"]["image"] for one in found] == [{"docker-manifest-digest": image.digest}] * 2
        assert json.loads(verify("verify-attestation"))["payloadType"] == "application/vnd.in-toto+json"

    verify_all()
    for wrong in (lambda: verify("verify", by=other), lambda: verify("verify", name=UNSIGNED)):
        with pytest.raises(CommandFailed):
            wrong()
    with source.stopped():
        until_stale()
        verify_all()
        with pytest.raises(CommandFailed):
            verify("verify", by=other)


def test_a_signature_under_its_own_tag(source: Source, mirror: MirrorProcess, tools: Toolbox, images: Images) -> None:
    """As cosign wrote them before there were referrers: ``sha256-<hex>.sig``, which it still reads."""
    cosign, crane = tools.tool("cosign"), tools.tool("crane")
    image, repository = images.several, "local/signed-by-tag"
    crane("push", write_layout(image, tools.folder / "several"), f"{source.host}/{repository}:1")
    signed = f"{source.host}/{repository}@{image.digest}"
    private = ec.generate_private_key(ec.SECP256R1())
    pem = private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = tools.file("key.pub", pem.decode())
    payload = cosign("generate", "--allow-http-registry", signed)
    signature = base64.b64encode(private.sign(payload.encode(), ec.ECDSA(hashes.SHA256())))
    files = ("--payload", tools.file("payload", payload), "--signature", tools.file("sig", signature.decode()))
    cosign("attach", "signature", "--allow-http-registry", *files, signed)

    def verify() -> None:
        offline = ("--insecure-ignore-tlog", "--allow-http-registry")
        (found,) = json.loads(cosign("verify", "--key", key, *offline, through(mirror, source, repository, image)))
        assert found["critical"]["image"] == {"docker-manifest-digest": image.digest}

    verify()
    assert f"{image.digest.replace(':', '-')}.sig" in crane("ls", f"{source.host}/{repository}").split()
    with source.stopped():
        until_stale()
        verify()


def through(mirror: MirrorProcess, source: Source, repository: str, image: Image) -> str:
    """The name an image of an upstream has at the mirror."""
    return f"{mirror.url.removeprefix('http://')}/{source.name}/{repository}@{image.digest}"


def test_lists_through_the_mirror(
    mirror: MirrorProcess, registry: Registry, tools: Toolbox, images: Images, namespace: Namespace
) -> None:
    """More tags than one page has, those kept here among them, and what refers to an image."""
    crane, regctl = tools.tool("crane"), tools.tool("regctl")
    image, repository = images.hello, "local/lists"
    many = [f"t{n:04}" for n in range(1200)]
    at_mirror = f"{mirror.url.removeprefix('http://')}/registry.test/{repository}"
    crane("push", write_layout(image, tools.folder / "hello"), f"{registry.host}/{repository}:kept")
    for at in range(0, len(many), 80):  # a client takes no more than a hundred headers of an answer
        registry.tag(image.top, repository, many[at : at + 80])
    for host in (registry.host, at_mirror.partition("/")[0]):
        regctl("registry", "set", "--skip-check", "--tls", "disabled", host)
    for name, kind in (("a", "application/vnd.test.a"), ("b", "application/vnd.test.b")):
        note = tools.file(name, f"note {name}\n")
        subject = f"{registry.host}/{repository}:kept"
        regctl("artifact", "put", "--subject", subject, "--artifact-type", kind, "--file", note)
    assert crane("digest", f"{at_mirror}:kept").strip() == image.digest
    crane("delete", f"{registry.host}/{repository}:kept")
    assert registry.tags(repository) == many

    def lists() -> None:
        everything = ["kept", *many]
        with Clients(namespace, mirror.url) as clients:
            found = json.loads(clients.podman().skopeo("list-tags", f"docker://{at_mirror}"))
        assert found["Tags"] == everything
        assert crane("ls", at_mirror).split() == everything  # a thousand at a time
        assert regctl("tag", "ls", at_mirror).split() == everything
        assert regctl("tag", "ls", "--limit", "3", "--last", "t0007", at_mirror).split() == many[8:11]
        listed = [
            json.loads(regctl("artifact", "list", *options, "--format", "raw-body", f"{at_mirror}@{image.digest}"))
            for options in ((), ("--filter-artifact-type", "application/vnd.test.b"))
        ]
        kinds = [sorted(one["artifactType"] for one in index["manifests"]) for index in listed]
        assert kinds == [["application/vnd.test.a", "application/vnd.test.b"], ["application/vnd.test.b"]]

    lists()
    with registry.stopped():
        until_stale()
        lists()
