"""cosign: sign, verify and attest with a key pair, without any service."""

from __future__ import annotations

import json

import pytest

from tests.clients.images import Images
from tests.clients.layout import write_layout
from tests.clients.namespace import CommandFailed
from tests.clients.registry_process import refused
from tests.clients.toolbox import Toolbox

REPOSITORY = "local/cosign"
NO_SERVICES = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json"}
PREDICATE = {"built": "by hand"}
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def test_cosign(toolbox: Toolbox, images: Images) -> None:
    cosign, crane = toolbox.tool("cosign"), toolbox.tool("crane")
    registry, image = toolbox.registry, images.multi
    image_name = toolbox.named(REPOSITORY, image.digest)
    own, other = (toolbox.folder / name for name in ("own", "other"))
    for prefix in (own, other):
        cosign("generate-key-pair", "--output-key-prefix", prefix)
    config = toolbox.file("signing.json", json.dumps(NO_SERVICES))
    options = ("--yes", "--key", f"{own}.key", "--signing-config", config, "--allow-http-registry")
    layout = write_layout(image, toolbox.folder / "multi")

    def verify(command: str, key: object) -> str:
        offline = ("--insecure-ignore-tlog", "--allow-http-registry")
        return cosign(command, "--key", f"{key}.pub", *offline, image_name)

    def login(*options: str) -> None:
        cosign("login", toolbox.host, *options)

    if toolbox.logs_in:
        toolbox.log_in(login, "--username", "--password")
    crane("push", layout, toolbox.named(REPOSITORY, "1"))
    if toolbox.logs_in:
        (toolbox.folder / "docker/config.json").rename(toolbox.folder / "kept.json")
        refused(lambda: cosign("sign", *options, image_name, both=True))
        assert registry.referrers(REPOSITORY, image.digest) == []
        (toolbox.folder / "kept.json").rename(toolbox.folder / "docker/config.json")

    with pytest.raises(CommandFailed):
        verify("verify", own)  # nothing is signed yet
    cosign("sign", *options, image_name)
    (signed,) = json.loads(verify("verify", own))
    assert signed["critical"]["image"] == {"docker-manifest-digest": image.digest}
    with pytest.raises(CommandFailed):
        verify("verify", other)

    predicate = toolbox.file("predicate.json", json.dumps(PREDICATE))
    cosign("attest", *options, "--predicate", predicate, "--type", "custom", image_name)
    assert json.loads(verify("verify-attestation", own))["payloadType"] == "application/vnd.in-toto+json"
    # both are referrers, and none is a tag
    found = registry.referrers(REPOSITORY, image.digest)
    assert [one["artifactType"] for one in found] == [BUNDLE] * 2
    assert registry.tags(REPOSITORY) == ["1"]
