"""Layouts and archives made by real tools are served from their folder, and real clients pull them back."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.clients import Clients
from tests.clients.conftest import PATH
from tests.clients.hub import Hub
from tests.clients.images import Image, Images
from tests.clients.layout import write_archive, write_layout
from tests.clients.namespace import Namespace
from tests.clients.registry_process import Registry

PORT = 5190
NAME = "docker.io/test/several"


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """The folder, served. image: what every entry below ``by`` holds. multi: what the one for all platforms holds."""

    registry: Registry
    image: Image
    multi: Image


@pytest.fixture(scope="module")
def folder(namespace: Namespace, hub: Hub, images: Images) -> Iterator[Folder]:
    """Let every tool write an image into a folder, one entry each, then serve that."""
    image, multi = images.several, images.multi
    top = namespace.directory / "packages"
    out = top / "by"
    out.mkdir(parents=True)
    source = f"oci:{write_layout(image, top.with_name('packages-source'))}:{image.tag}"
    with Clients(namespace, "http://127.0.0.1:9") as clients:
        podman = clients.podman()
        podman.skopeo("copy", source, f"oci:{out}/skopeo-oci:1")
        podman.skopeo("copy", source, f"oci-archive:{out}/skopeo-oci-archive.tar:1")
        podman.skopeo("copy", source, f"docker-archive:{out}/skopeo-docker-archive.tar:{NAME}:1")
        whole = f"oci:{write_layout(multi, top.with_name('packages-multi'))}:{multi.tag}"
        podman.skopeo("copy", "--all", whole, f"oci:{top}/skopeo-multi:1")
        policy = str(podman._directory / "policy.json")
        loaded = write_archive(image, top.with_name("packages-load.tar"), f"{NAME}:1")
        podman._run("podman", "pull", "--quiet", "--signature-policy", policy, f"docker-archive:{loaded}")
        podman._run("podman", "save", "--output", f"{out}/podman-save.tar", f"{NAME}:1")
        podman._run("podman", "save", "--format", "oci-archive", "--output", f"{out}/podman-save-oci.tar", f"{NAME}:1")
        podman._run("podman", "save", "--format", "oci-dir", "--output", f"{out}/podman-save-dir", f"{NAME}:1")
        docker = clients.docker()
        docker._docker("load", "--input", str(loaded))
        docker._docker("save", "--output", f"{out}/docker-save.tar", "test/several:1")
        containerd = clients.containerd()
        archive = write_archive(image, top.with_name("packages-import.tar"), f"{NAME}:1")
        containerd._ctr("images", "import", str(archive))
        containerd._ctr("images", "export", f"{out}/ctr-export.tar", f"{NAME}:1")
        if shutil.which("umoci", path=PATH):
            shutil.copytree(out / "skopeo-oci", top / "umoci")
            note = top.with_name("packages-note")
            note.write_text("put on top by umoci\n")
            namespace.run("umoci", "insert", "--image", f"{top}/umoci:1", "--tag", "2", str(note), "/note")
    settings = {"packages": str(top), "names": [f"127.0.0.1:{PORT}"], "read_only": True}
    registry = Registry(namespace, namespace.directory / "packages-registry", port=PORT, **settings)
    yield Folder(registry=registry, image=image, multi=multi)
    registry.close()


MADE = (
    *("skopeo-oci", "skopeo-oci-archive", "skopeo-docker-archive"),
    *("podman-save", "podman-save-oci", "podman-save-dir", "docker-save", "ctr-export"),
)


def test_everything_is_served_and_nothing_reported(folder: Folder) -> None:
    _, _, catalog = folder.registry.ask("GET", "/v2/_catalog")
    served = {name for name in json.loads(catalog)["repositories"] if name.startswith("local/by/")}
    assert served == {f"local/by/{name}" for name in MADE}
    log = folder.registry._process.tail(200)
    assert "is not served" not in log
    assert "in part" not in log


@pytest.mark.parametrize("name", MADE)
def test_it_holds_what_was_put_in(folder: Folder, name: str) -> None:
    with folder.registry.explained():
        assert folder.registry.tags(f"local/by/{name}") == ["1"]
        _, manifest = folder.registry.manifest(f"local/by/{name}", "1")
        config = json.loads(folder.registry.blob(f"local/by/{name}", manifest["config"]["digest"]))
        assert tuple(config["rootfs"]["diff_ids"]) == folder.image.diff_ids  # podman writes the rest of it anew
        layers = [folder.registry.blob(f"local/by/{name}", layer["digest"]) for layer in manifest["layers"]]
    unpacked = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in layers)
    assert tuple("sha256:" + hashlib.sha256(data).hexdigest() for data in unpacked) == folder.image.diff_ids


def test_every_platform_is_there_byte_for_byte(folder: Folder) -> None:
    with folder.registry.explained():
        folder.registry.assert_holds(folder.multi, "local/skopeo-multi", "1")


def by_skopeo(clients: Clients, reference: str) -> tuple[str, ...]:
    copied = clients.folder()
    client = clients.podman()
    client.skopeo("copy", f"docker://{reference}", f"dir:{copied}")
    manifest = json.loads((copied / "manifest.json").read_text())
    config = json.loads((copied / manifest["config"]["digest"].partition(":")[2]).read_text())
    for layer in manifest["layers"]:
        assert (copied / layer["digest"].partition(":")[2]).stat().st_size == layer["size"]
    shutil.rmtree(copied)
    return tuple(config["rootfs"]["diff_ids"])


def by_podman(clients: Clients, reference: str) -> tuple[str, ...]:
    return tuple(clients.podman().pull(reference)["RootFS"]["Layers"])


def by_docker(clients: Clients, reference: str) -> tuple[str, ...]:
    return tuple(clients.docker().pull(reference)["RootFS"]["Layers"])


def by_containerd(clients: Clients, reference: str) -> tuple[str, ...]:
    client = clients.containerd()
    digest = client.pull(reference)
    manifest: dict[str, Any] = client.stored(digest)
    config: dict[str, Any] = client.stored(manifest["config"]["digest"])
    assert client.content() >= {digest, *(layer["digest"] for layer in manifest["layers"])}
    return tuple(config["rootfs"]["diff_ids"])


PULLS = {"skopeo": by_skopeo, "podman": by_podman, "docker": by_docker, "containerd": by_containerd}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("client", PULLS)
def test_it_is_pulled_back(folder: Folder, new_clients: Callable[[str], Clients], client: str, name: str) -> None:
    registry = folder.registry
    with registry.explained(), new_clients(registry.url) as clients:
        pulled = PULLS[client](clients, f"{registry.host}/local/by/{name}:1")
    assert pulled == folder.image.diff_ids


@pytest.mark.parametrize("client", PULLS)
def test_what_umoci_made_is_pulled_back(
    folder: Folder, new_clients: Callable[[str], Clients], client: str, namespace: Namespace
) -> None:
    if not shutil.which("umoci", path=PATH):
        pytest.skip("not installed: umoci")
    registry = folder.registry
    with registry.explained(), new_clients(registry.url) as clients:
        assert registry.tags("local/umoci") == ["1", "2"]
        pulled = PULLS[client](clients, f"{registry.host}/local/umoci:2")
    assert pulled[:-1] == folder.image.diff_ids
    assert len(pulled) == len(folder.image.diff_ids) + 1


def test_a_push_is_refused(folder: Folder, namespace: Namespace, new_clients: Callable[[str], Clients]) -> None:
    registry = folder.registry
    source = Path(f"{namespace.directory}/packages/by/skopeo-oci")
    with new_clients(registry.url) as clients, pytest.raises(AssertionError, match="read-only"):
        clients.podman().skopeo(
            "copy", "--dest-tls-verify=false", f"oci:{source}:1", f"docker://{registry.host}/local/by/skopeo-oci:2"
        )
