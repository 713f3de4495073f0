"""``mirror client``: real clients pull by its files as they were written, and go on to the registry or do not.

The hub refuses clients: a pull that succeeds came through the mirror. With the mirror gone and the hub open to all, the
files decide.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from mirror.cli import main
from tests.clients.buildkit import BuildKit
from tests.clients.containerd import Containerd
from tests.clients.cri import CriFailed
from tests.clients.docker import Docker
from tests.clients.hub import Hub
from tests.clients.images import HELLO, Image, Images
from tests.clients.mirror_process import EXTERNAL_URL, MirrorProcess
from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.podman import Podman
from tests.clients.processes import wait_for
from tests.clients.rows import assert_content, assert_docker, assert_podman, build_context, short

OUTSIDE = "192.0.2.1"  # not on loopback, which docker and BuildKit trust by itself
PLAIN, TLS = f"http://{OUTSIDE}:5000", f"https://{OUTSIDE}:5443"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node before a mirror. ca: who signed the mirror's certificate; nobody else here trusts that."""

    namespace: Namespace
    hub: Hub
    mirror: MirrorProcess
    ca: Path
    folder: Path

    def write(self, client: str, *arguments: str, root: Path | None = None, url: str = PLAIN) -> Path:
        """Have the command write a client's files; the folder they are below."""
        root = root or self.folder / "root"
        given = [client, "--url", url, "--write", str(root), *arguments]
        if url.startswith("https:"):
            given += ["--ca-file", str(self.ca)]
        if "--config" not in arguments:
            given += ["--config", str(self.mirror.config)]
        done = CliRunner().invoke(main, ["client", *given])
        assert done.exit_code == 0, done.output
        return root

    def through(self, pull: Callable[[], None]) -> None:
        """Pull; the registries themselves were asked by the mirror alone."""
        before = self.hub.mark()
        try:
            pull()
        except Exception as exc:
            exc.add_note(f"the mirror's log:\n{self.mirror.tail()}\nthe hub's log:\n{self.hub.log(before)}")
            raise
        assert not self.hub.log(before).served().to_clients(), str(self.hub.log(before))

    def without_mirror(self, pull: Callable[[], None], *, fallback: bool) -> None:
        """Pull while the mirror is gone and the registries take everybody: they are gone on to, or never asked."""
        self.mirror.kill()
        before = self.hub.mark()
        try:
            with self.hub.open_to_clients():
                if fallback:
                    pull()
                    assert self.hub.log(before).served().to_clients()
                else:
                    with pytest.raises((CommandFailed, CriFailed)):
                        pull()
                    assert not self.hub.log(before).to_clients(), str(self.hub.log(before))
        finally:
            self.mirror.start()


@pytest.fixture(scope="module")
def served(namespace: Namespace, hub: Hub, mirror_folders: Iterator[Path]) -> Iterator[tuple[MirrorProcess, Path]]:
    """A mirror that speaks HTTP and HTTPS, and the CA of its certificate."""
    if EXTERNAL_URL:
        pytest.skip("needs a mirror that can be stopped: MIRROR_URL is set")
    namespace.add_address(OUTSIDE)
    authority, folder = trustme.CA(organization_name="CA of the mirror"), next(mirror_folders)
    certificate, ca = namespace.directory / "mirror-tls.pem", namespace.directory / "mirror-ca.pem"
    authority.issue_cert(OUTSIDE).private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(ca))
    tls = {"certificate": str(certificate), "key": str(certificate)}
    listen = [f"{OUTSIDE}:5000", {"address": f"{OUTSIDE}:5443", "tls": tls}]
    mirror = MirrorProcess(namespace, folder, address=f"{OUTSIDE}:5000", settings={"listen": listen})
    yield mirror, ca
    mirror.close()


_folders = iter(range(1000))


@pytest.fixture
def node(namespace: Namespace, hub: Hub, served: tuple[MirrorProcess, Path]) -> Iterator[Node]:
    # a short name: a unix socket's path has room for 107 bytes
    folder = namespace.directory / f"n{next(_folders)}"
    folder.mkdir()
    yield Node(namespace=namespace, hub=hub, mirror=served[0], ca=served[1], folder=folder)
    shutil.rmtree(folder, ignore_errors=True)


BOTH = pytest.mark.parametrize(
    ("url", "options"), [(PLAIN, ()), (TLS, ("--no-fallback",))], ids=["http-fallback", "https-no-fallback"]
)


@BOTH
def test_containerd(node: Node, images: Images, url: str, options: tuple[str, ...]) -> None:
    # a mirror with ghcr.io as well, which this file does not have: only _default says where it is
    config = node.folder / "hub-only.yaml"
    config.write_text("upstreams: {docker.io: {url: 'https://registry-1.docker.io'}}\n")
    root = node.write("containerd", "--config", str(config), *options, url=url)
    client = Containerd(node.namespace, node.folder / "c", url, certs=root / "etc/containerd/certs.d")

    def by_ctr(image: Image) -> None:
        assert client.pull(image.reference) == image.digest
        assert_content(client, image)

    def by_cri(image: Image) -> None:
        assert client.cri_pull(image.reference) == image.config.digest
        assert_content(client, image, kubernetes=True)

    try:
        node.through(lambda: by_ctr(images.multi))
        node.through(lambda: by_ctr(images.ghcr))
        node.through(lambda: by_cri(images.several))
        node.through(lambda: by_cri(images.ghcr))
        # by its own name as well, which is not on loopback and so takes HTTPS unless told otherwise
        own = f"{re.sub('.*//', '', url)}/docker.io/{images.hello.repository}:{images.hello.tag}"
        alone = node.write("containerd", "--upstream", "ghcr.io", root=node.folder / "alone", url=url)  # no _default
        node.through(lambda: client.pull(own, certs=alone / "etc/containerd/certs.d") and None)
        if url == PLAIN:
            # the mirror has docker.io at paths of its own, too
            for path, image, asked in (
                ("/docker.io", images.schema2, f"/docker.io/v2/{images.schema2.repository}/manifests/"),
                ("/v2/docker.io", images.shared_a, f"/v2/docker.io/{images.shared_a.repository}/manifests/"),
            ):
                under = node.write("containerd", root=node.folder / f"root-of-{image.tag}{len(path)}", url=PLAIN + path)
                client.pull(image.reference, certs=under / "etc/containerd/certs.d")
                wait_for(f"asked at {asked}", lambda asked=asked: asked in "".join(node.mirror.lines()))
        node.without_mirror(lambda: by_ctr(images.schema2_list), fallback=not options)
        node.without_mirror(lambda: by_cri(images.library), fallback=not options)
    finally:
        client.close()


@BOTH
def test_podman_buildah_and_skopeo(node: Node, images: Images, url: str, options: tuple[str, ...]) -> None:
    root = node.write("podman", *options, url=url)
    etc = root / "etc/containers"
    (etc / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    (etc / "registries.conf").write_text('short-name-mode = "disabled"\n')
    client = Podman(node.namespace, node.folder / "p", url, etc=etc)

    def pull(image: Image) -> None:
        assert_podman(client.pull(image.reference), image)

    def build() -> None:
        context = build_context(node.folder / "context", images.several.reference)
        assert HELLO in client.build(context, "built:1")

    def inspect(name: str) -> None:
        assert json.loads(client.skopeo("inspect", f"docker://{name}"))["Digest"] == images.hello.digest

    node.through(lambda: pull(images.multi))
    node.through(lambda: pull(images.ghcr))
    if not options:
        node.through(build)
    node.through(lambda: inspect(images.hello.reference))
    own = f"{re.sub('.*//', '', url)}/docker.io/{images.hello.repository}:{images.hello.tag}"
    node.through(lambda: inspect(own))
    node.without_mirror(lambda: pull(images.library), fallback=not options)


@pytest.mark.parametrize("url", [PLAIN, TLS], ids=["http", "https"])
def test_docker(node: Node, images: Images, url: str) -> None:
    root = node.folder / "root"

    def configure(config: Path) -> None:
        there = root / "etc/docker/daemon.json"
        there.parent.mkdir(parents=True)
        shutil.copyfile(config, there)
        node.write("docker", root=root, url=url)
        shutil.copyfile(there, config)

    client = Docker(node.namespace, node.folder / "d", url, configure=configure, etc=root / "etc/docker")

    def pull(image: Image) -> None:
        assert_docker(client.pull(short(image)), image)

    def elsewhere() -> None:
        name = f"{re.sub('.*//', '', url)}/{images.ghcr.reference}"
        assert client.pull(name)["Id"] == images.ghcr.config.digest

    try:
        node.through(lambda: pull(images.multi))
        node.through(elsewhere)
        if url == PLAIN:
            node.without_mirror(lambda: pull(images.library), fallback=True)
    finally:
        client.close()


@pytest.mark.parametrize("url", [PLAIN, TLS], ids=["http", "https"])
def test_buildkit(node: Node, images: Images, url: str) -> None:
    if reason := BuildKit.missing():
        pytest.skip(reason)
    root = node.write("buildkit", url=url)
    client = BuildKit(node.namespace, node.folder / "b", etc=root / "etc/buildkit")

    def build(image: Image) -> None:
        context = build_context(node.folder / f"of-{image.repository.replace('/', '-')}", image.reference)
        assert HELLO in client.build(context)

    try:
        node.through(lambda: build(images.multi))
        node.through(lambda: build(images.ghcr))
        node.without_mirror(lambda: build(images.several), fallback=True)
    finally:
        client.close()
