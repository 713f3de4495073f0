"""crane, and so go-containerregistry: push, pull, cp, ls, digest, mutate, catalog, delete."""

from __future__ import annotations

import json

from tests.clients.images import Image, Images
from tests.clients.layout import write_layout
from tests.clients.registry_process import refused
from tests.clients.toolbox import Toolbox

REPOSITORY = "local/crane"


def test_crane(toolbox: Toolbox, images: Images) -> None:
    crane, registry, named = toolbox.tool("crane"), toolbox.registry, toolbox.named
    image, single, copies = images.multi, images.several, f"{REPOSITORY}/copies"
    layout = write_layout(image, toolbox.folder / "multi")
    if toolbox.logs_in:
        refused(lambda: crane("push", layout, named(REPOSITORY, "1"), both=True))
        assert not registry.tags(REPOSITORY)
        toolbox.log_in(lambda *login: crane("auth", "login", toolbox.host, *login), "--username", "--password")

    crane("push", layout, named(REPOSITORY, "1"))
    registry.assert_holds(image, REPOSITORY, "1")
    assert crane("digest", named(REPOSITORY, "1")).strip() == image.digest

    crane("pull", "--format=oci", named(REPOSITORY, "1"), toolbox.folder / "pulled")
    assert_layout(toolbox, image)

    crane("cp", named(REPOSITORY, "1"), named(copies, "2"))
    registry.assert_holds(image, copies, "2")
    assert {REPOSITORY, copies} <= set(crane("catalog", toolbox.host).split())

    crane("push", write_layout(single, toolbox.folder / "several"), named(REPOSITORY, "single"))
    crane("mutate", named(REPOSITORY, "single"), "--label", "made=by crane", "--tag", named(REPOSITORY, "mutated"))
    _, manifest = registry.manifest(REPOSITORY, "mutated")
    config = json.loads(registry.blob(REPOSITORY, manifest["config"]["digest"]))
    assert config["config"]["Labels"] == {"made": "by crane"}
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in single.layers]

    assert crane("ls", named(REPOSITORY)).split() == ["1", "mutated", "single"]
    crane("delete", named(REPOSITORY, "mutated"))
    assert crane("ls", named(REPOSITORY)).split() == ["1", "single"]
    crane("delete", named(REPOSITORY, image.digest))
    assert registry.tags(REPOSITORY) == ["single"]
    registry.assert_holds(image, copies, "2")  # nobody else's copy is gone


def assert_layout(toolbox: Toolbox, image: Image) -> None:
    for one in (*image.manifests, *image.blobs):
        path = toolbox.folder / "pulled/blobs" / one.digest.replace(":", "/")
        assert path.read_bytes() == one.data
