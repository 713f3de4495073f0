"""skopeo: copy --all, list-tags, delete, and sync both ways between a registry and a folder."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import Registries
from tests.clients.images import Images
from tests.clients.layout import write_layout
from tests.clients.namespace import Namespace
from tests.clients.pushers import Pushers, Skopeo
from tests.clients.registry_process import ACCESSES, AUTHOR, Access, refused

REPOSITORY = "local/skopeo"


@pytest.mark.parametrize("access", ACCESSES)
def test_skopeo(access: Access, registries: Registries, namespace: Namespace, images: Images) -> None:
    registry, image, other = registries(access), images.multi, images.attested
    copies = f"{REPOSITORY}-copies"
    name, copy = f"{registry.host}/{REPOSITORY}", f"{registry.host}/{copies}"
    with registry.explained(), Pushers(namespace, registry.url) as pushers:
        skopeo = pushers.new(Skopeo)
        if access != "open":
            skopeo.login(AUTHOR)
        sources = {}
        for tag, one in (("b", image), ("B", other), ("a", image)):
            sources[tag] = write_layout(one, pushers.folder())
            skopeo.copy(f"oci:{sources[tag]}:1", f"docker://{name}:{tag}")
            registry.assert_holds(one, REPOSITORY, tag)
        assert json.loads(skopeo.skopeo("list-tags", f"docker://{name}"))["Tags"] == ["B", "a", "b"]

        skopeo.copy(f"docker://{name}:b", f"docker://{copy}:1")  # from one repository to another: mounted
        registry.assert_holds(image, copies, "1")

        folder = pushers.folder()
        folder.mkdir()
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        skopeo.skopeo("sync", "--all", *plain, "--src", "docker", "--dest", "dir", name, str(folder))
        assert {path.name for path in folder.iterdir()} == {"skopeo:B", "skopeo:a", "skopeo:b"}
        synced = f"{REPOSITORY}-synced"
        skopeo.skopeo(
            *("sync", "--all", *plain, "--src", "dir", "--dest", "docker"), str(folder), f"{registry.host}/{synced}"
        )
        registry.assert_holds(image, f"{synced}/skopeo", "b")
        registry.assert_holds(other, f"{synced}/skopeo", "B")

        if access != "open":
            stranger = pushers.new(Skopeo)
            refused(lambda: stranger.skopeo("delete", f"docker://{name}:B"))
            assert registry.tags(REPOSITORY) == ["B", "a", "b"]
        skopeo.skopeo("delete", f"docker://{name}:b")  # its manifest, so all of its tags
        assert json.loads(skopeo.skopeo("list-tags", f"docker://{name}"))["Tags"] == ["B"]
        assert registry.ask("GET", f"/v2/{REPOSITORY}/manifests/{image.digest}")[0] == 404
        registry.assert_holds(other, REPOSITORY, "B")
        registry.assert_holds(image, copies, "1")
