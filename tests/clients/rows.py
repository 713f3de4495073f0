"""The pulls: each row brings a fresh client, pulls, and compares what arrived with what was pushed.

A row fails by an exception: a client's command that failed, or an assertion about content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clients.clients import Clients
from tests.clients.containerd import Containerd
from tests.clients.hub import Hub
from tests.clients.images import HELLO, Image, Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a row works with."""

    clients: Clients
    images: Images
    hub: Hub


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    run: Callable[[Bench], None]


# ---- one image by one client --------------------------------------------------------------------------


def ctr_pull(clients: Clients, image: Image) -> None:
    client = clients.containerd()
    assert client.pull(image.reference) == image.digest
    assert_content(client, image)


def cri_pull(clients: Clients, image: Image) -> None:
    client = clients.containerd()
    assert client.cri_pull(image.reference) == image.config.digest
    assert client.digest(image.reference, kubernetes=True) == image.digest
    assert_content(client, image, kubernetes=True)


def docker_pull(clients: Clients, image: Image) -> None:
    assert_docker(clients.docker().pull(short(image)), image)


def podman_pull(clients: Clients, image: Image) -> None:
    assert_podman(clients.podman().pull(image.reference), image)


def podman_pull_at_root(clients: Clients, image: Image) -> None:
    assert_podman(clients.podman(prefix=False).pull(image.reference), image)


PULLS: dict[str, Callable[[Clients, Image], None]] = {
    "ctr": ctr_pull,
    "cri": cri_pull,
    "docker": docker_pull,
    "podman": podman_pull,
}


# ---- content ------------------------------------------------------------------------------------------


def assert_content(client: Containerd, image: Image, *, kubernetes: bool = False) -> None:
    """containerd holds the whole image of this machine's platform, and no other platform's blobs."""
    content = client.content(kubernetes=kubernetes)
    assert content >= {image.digest, image.own.digest, *image.pulled}
    assert not content & {blob.digest for blob in image.blobs} - image.pulled


def assert_docker(found: dict[str, Any], image: Image) -> None:
    assert found["Id"] == image.config.digest
    assert f"{short(image).partition(':')[0]}@{image.digest}" in found["RepoDigests"]
    assert tuple(found["RootFS"]["Layers"]) == image.diff_ids


def assert_podman(found: dict[str, Any], image: Image) -> None:
    assert f"sha256:{found['Id']}" == image.config.digest
    assert f"{image.name}@{image.digest}" in found["RepoDigests"]
    assert tuple(found["RootFS"]["Layers"]) == image.diff_ids


def short(image: Image) -> str:
    """The name docker prefers: without docker.io/ and library/."""
    return image.reference.removeprefix("docker.io/").removeprefix("library/")


def build_context(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "Dockerfile").write_text(f'FROM {base}\nCOPY note /note\nRUN ["/hello"]\n')
    (folder / "note").write_text("built on what came through the mirror\n")
    return folder


# ---- more than a pull ---------------------------------------------------------------------------------


def ctr_run(bench: Bench) -> None:
    client, image = bench.clients.containerd(), bench.images.multi
    assert client.pull(image.reference) == image.digest
    assert HELLO in client.run(image.reference)


def ctr_pull_by_digest(bench: Bench) -> None:
    client, image = bench.clients.containerd(), bench.images.multi
    reference = f"{image.name}@{image.digest}"
    assert client.pull(reference) == image.digest
    assert_content(client, image)


def ctr_pull_from_ghcr(bench: Bench) -> None:
    ctr_pull(bench.clients, bench.images.ghcr)


def ctr_pull_shared(bench: Bench) -> None:
    client = bench.clients.containerd()
    for image in (bench.images.shared_a, bench.images.shared_b):
        assert client.pull(image.reference) == image.digest
        assert client.content() >= {image.digest, *image.pulled}


def docker_run(bench: Bench) -> None:
    client, image = bench.clients.docker(), bench.images.multi
    assert_docker(client.pull(short(image)), image)
    assert HELLO in client.run(short(image))


def docker_build(bench: Bench) -> None:
    client, image = bench.clients.docker(), bench.images.hello
    context = build_context(bench.clients.folder(), short(image))
    assert HELLO in client.build(context, "built:1")
    built = tuple(client.inspect("built:1")["RootFS"]["Layers"])
    assert built[:-1] == image.diff_ids


def docker_pull_shared(bench: Bench) -> None:
    client = bench.clients.docker()
    for image in (bench.images.shared_a, bench.images.shared_b):
        assert_docker(client.pull(short(image)), image)


def podman_pull_from_ghcr(bench: Bench) -> None:
    podman_pull(bench.clients, bench.images.ghcr)


def podman_run(bench: Bench) -> None:
    client, image = bench.clients.podman(), bench.images.multi
    assert_podman(client.pull(image.reference), image)
    assert HELLO in client.run(image.reference)


def buildah_build(bench: Bench) -> None:
    client, image = bench.clients.podman(), bench.images.several
    context = build_context(bench.clients.folder(), image.reference)
    assert HELLO in client.build(context, "built:1")
    built = tuple(client.inspect("localhost/built:1")["RootFS"]["Layers"])
    assert built[: len(image.diff_ids)] == image.diff_ids


def skopeo_inspect_at_root(bench: Bench) -> None:
    client, image = bench.clients.podman(prefix=False), bench.images.several
    assert_inspected(client.skopeo("inspect", f"docker://{image.reference}"), image)


def skopeo_inspect(bench: Bench) -> None:
    client, image = bench.clients.podman(), bench.images.several
    found = client.skopeo("inspect", f"docker://{client.host}/{image.reference}")
    assert_inspected(found, image)
    assert json.loads(found)["RepoTags"] == [image.tag]


def assert_inspected(text: str, image: Image) -> None:
    found = json.loads(text)
    assert found["Digest"] == image.digest
    assert found["Layers"] == [layer.digest for layer in image.layers]


def skopeo_list_tags(bench: Bench) -> None:
    client, image = bench.clients.podman(), bench.images.multi
    found = json.loads(client.skopeo("list-tags", f"docker://{client.host}/{image.name}"))
    assert found["Tags"] == [image.tag]


def skopeo_copy_to_ghcr(bench: Bench) -> None:
    """Every platform, unchanged, from docker.io by the mirror to another registry."""
    client, image, hub = bench.clients.podman(), bench.images.attested, bench.hub
    copy = f"pushed/copy-{bench.clients.folder().name}"  # a repository of its own: nothing is there already
    options = ("copy", "--all", "--preserve-digests")
    client.skopeo(*options, f"docker://{image.reference}", f"docker://ghcr.io/{copy}:1")
    assert hub.stored_at_ghcr(copy, "manifests", "1") == image.top.data
    for manifest in image.manifests:
        assert hub.stored_at_ghcr(copy, "manifests", manifest.digest) == manifest.data
    for blob in image.blobs:
        assert hub.stored_at_ghcr(copy, "blobs", blob.digest) == blob.data


def _rows() -> Iterator[Row]:
    kinds = ("library", "several", "multi", "attested", "schema2", "schema2_list", "large")
    for client, pull in PULLS.items():
        for kind in kinds:

            def pull_it(bench: Bench, pull: Callable[[Clients, Image], None] = pull, kind: str = kind) -> None:
                pull(bench.clients, getattr(bench.images, kind))

            yield Row(f"{client}-pull-{kind}", pull_it)
    for kind in ("library", "multi"):

        def pull_at_root(bench: Bench, kind: str = kind) -> None:
            podman_pull_at_root(bench.clients, getattr(bench.images, kind))

        yield Row(f"podman-pull-at-root-{kind}", pull_at_root)
    for run in (
        *(ctr_run, ctr_pull_by_digest, ctr_pull_from_ghcr, ctr_pull_shared),
        *(docker_run, docker_build, docker_pull_shared),
        *(podman_pull_from_ghcr, podman_run, buildah_build),
        *(skopeo_inspect_at_root, skopeo_inspect, skopeo_list_tags, skopeo_copy_to_ghcr),
    ):
        yield Row(run.__name__.replace("_", "-"), run)


ROWS = tuple(_rows())
