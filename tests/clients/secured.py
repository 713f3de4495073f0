"""The clients as they reach a registry by HTTPS: certificates are checked, and lie where each client looks for them.

docker and podman look into folders of their own for every HOST:PORT (``place``), skopeo is told of one, containerd
has them in its hosts.toml.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.clients.ca import Authority
from tests.clients.images import Image
from tests.clients.namespace import Namespace
from tests.clients.pushers import Pusher, PushingContainerd, PushingDocker, PushingPodman, Skopeo, use_login
from tests.clients.registry_process import AUTHOR, WRONG, Registry, refused


def place(namespace: Namespace, host: str, authority: Authority, *, shows_certificate: bool) -> Path:
    """Put what is needed to reach HOST:PORT where docker and podman look; return the folder."""
    folder = namespace.certs / host
    folder.mkdir()
    shutil.copy(authority.ca, folder / "ca.crt")
    if shows_certificate:
        shutil.copy(authority.certificate, folder / "client.cert")
        shutil.copy(authority.key, folder / "client.key")
    return folder


class SecureDocker(PushingDocker):
    def pull_through(self, image: Image) -> str:
        """Pull what is mirrored; the digest of its config."""
        found: str = self.pull(image.reference)["Id"]
        return found


class SecurePodman(PushingPodman):
    insecure = False

    def pull_through(self, image: Image) -> str:
        return f"sha256:{self.pull(image.reference)['Id']}"


class SecureSkopeo(Skopeo):
    """``use``: a folder to be given to it by option; without one it looks where podman does."""

    insecure = False
    folder: Path | None = None

    def use(self, folder: Path | None) -> None:
        self.folder, self.certificates = folder, ("--cert-dir", str(folder)) if folder else ()

    def copy(self, source: str, target: str) -> None:
        sides = (("--src-cert-dir", source), ("--dest-cert-dir", target))
        options = [
            text
            for option, name in sides
            if self.folder is not None and name.startswith("docker:")
            for text in (option, str(self.folder))
        ]
        self.skopeo("copy", "--quiet", "--all", "--preserve-digests", *options, source, target)

    def pull_through(self, image: Image) -> str:
        folder = self._directory / "through"
        shutil.rmtree(folder, ignore_errors=True)
        self.copy(f"docker://{self.host}/{image.reference}", f"dir:{folder}")
        assert (folder / "manifest.json").read_bytes() == image.top.data
        config = (folder / image.config.digest.partition(":")[2]).read_bytes()
        assert config == image.config.data
        return image.config.digest


class SecureContainerd(PushingContainerd):
    def __init__(self, namespace: Namespace, directory: Path, registry: str) -> None:
        super().__init__(namespace, directory, registry)
        self._transport = ("--hosts-dir", str(directory / "certs.d"))
        self.host = registry.partition("://")[2].partition("/")[0]

    def pull_through(self, image: Image) -> str:
        assert self.pull(image.reference) == image.digest
        return image.config.digest

    def use(self, options: str, *, host: str | None = None) -> None:
        """Reach the mirror, and push to it, with these lines in hosts.toml. host: another HOST:PORT of it."""
        self._options = options
        if host is not None:
            self.host, self._mirror = host, f"https://{host}"
        for name, capabilities in (("_default", '"pull", "resolve"'), (self.host, '"pull", "resolve", "push"')):
            shutil.rmtree(self._directory / "certs.d" / name, ignore_errors=True)
            self._write_hosts(name, capabilities)


Secure = SecureDocker | SecurePodman | SecureSkopeo | SecureContainerd
SECURE: dict[str, type[Secure]] = {
    "docker": SecureDocker,
    "podman": SecurePodman,
    "skopeo": SecureSkopeo,
    "ctr": SecureContainerd,
}
_: dict[str, type[Pusher]] = {**SECURE}


def push_and_pull_back(
    new: Callable[[], Secure], one: Secure, registry: Registry, image: Image, repository: str, reference: str
) -> str:
    """Push where it takes a login, which is tried without and with a wrong one first; pull it; return its digest.

    new: another client like ``one``, which knows no image. reference: how the clients name the repository's tag 1.
    """
    refused(lambda: one.push(image, reference))
    refused(lambda: use_login(one, WRONG[0], image, reference))
    assert not registry.tags(repository)
    one.login(AUTHOR)
    one.push(image, reference)
    if one.exact:
        registry.assert_holds(image, repository, "1")
        digest = image.digest
    else:
        digest = registry.assert_holds_contents(image, repository, "1")
    if isinstance(one, SecureDocker):
        one.forget(reference)
    reader = one if isinstance(one, SecureDocker) else new()
    reader.pull_back(image, reference, digest)
    return digest
