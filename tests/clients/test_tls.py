"""TLS and mutual TLS spoken by the mirror itself, with every client: certificates where each client looks for them.

One service has a plain address, and two that speak TLS, one of which wants to see certificates of clients. No client
trusts its authority but by what is placed for that address.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.ca import Authority
from tests.clients.hub import Hub, docker_io
from tests.clients.images import Image, Images
from tests.clients.namespace import OUTSIDE, CommandFailed, Namespace
from tests.clients.pushers import Pushers
from tests.clients.registry_process import Registry
from tests.clients.secured import SECURE, Secure, SecureContainerd, SecureSkopeo, place, push_and_pull_back

PLAIN, TLS, MUTUAL = 5310, 5311, 5312
UNTRUSTED, STRANGER = 5313, 5314
"""TLS again, for clients that have nothing placed; mutual TLS again, for clients that have no certificate."""
HOSTS = {port: f"registry.test:{port}" for port in (TLS, MUTUAL, UNTRUSTED, STRANGER)}
REJECTED = {
    UNTRUSTED: re.compile("certificate signed by unknown authority|certificate is not trusted"),
    STRANGER: re.compile("certificate required|bad certificate|handshake failure"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Secured:
    """The mirror, and the folders with certificates for its addresses, by port."""

    registry: Registry
    authority: Authority
    folders: dict[int, Path]

    def options(self, port: int) -> str:
        """What containerd is told of an address, as lines of hosts.toml."""
        folder = self.folders.get(port)
        if folder is None:
            return "# nothing\n"
        lines = [f'ca = "{folder / "ca.crt"}"']
        if (folder / "client.key").exists():
            lines.append(f'client = [["{folder / "client.cert"}", "{folder / "client.key"}"]]')
        return "".join(f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
def secured(namespace: Namespace, hub: Hub, conformance_ca: Authority) -> Iterator[Secured]:
    """A mirror of the hub with users; what clients need to reach it is placed."""
    authority = conformance_ca  # which nothing here trusts by itself
    tls = {"certificate": str(authority.server), "key": str(authority.server)}
    mutual = tls | {"client_ca": str(authority.ca)}
    registry = Registry(
        namespace,
        namespace.directory / "tls-registry",
        port=PLAIN,
        access="bearer",
        upstreams={"docker.io": docker_io(namespace)},
        listen=[
            f"127.0.0.1:{PLAIN}",
            *({"address": f"{OUTSIDE}:{port}", "tls": tls} for port in (TLS, UNTRUSTED)),
            *({"address": f"{OUTSIDE}:{port}", "tls": mutual} for port in (MUTUAL, STRANGER)),
        ],
    )
    folders = {
        port: place(namespace, HOSTS[port], authority, shows_certificate=port == MUTUAL)
        for port in (TLS, MUTUAL, STRANGER)
    }
    with closing(registry):
        yield Secured(registry=registry, authority=authority, folders=folders)
    for folder in folders.values():
        shutil.rmtree(folder)


def new(pushers: Pushers, client: str, secured: Secured, port: int) -> Secure:
    one: Secure = pushers.new(SECURE[client])
    if isinstance(one, SecureContainerd):
        one.use(secured.options(port))
    if isinstance(one, SecureSkopeo):
        one.use(secured.folders.get(port))
    return one


@pytest.mark.parametrize("port", [TLS, MUTUAL], ids=["tls", "mutual-tls"])
@pytest.mark.parametrize("client", SECURE)
def test_pull_and_push(client: str, port: int, secured: Secured, namespace: Namespace, images: Images) -> None:
    registry = secured.registry
    image = images.multi if SECURE[client].exact else images.several
    repository = f"local/{client}/{port}"
    reference = f"{HOSTS[port]}/{repository}:1"
    before = len(registry.lines())
    with registry.explained(), Pushers(namespace, f"https://{HOSTS[port]}") as pushers:
        one = new(pushers, client, secured, port)
        assert one.pull_through(images.hello) == images.hello.config.digest
        digest = push_and_pull_back(
            lambda: new(pushers, client, secured, port), one, registry, image, repository, reference
        )
        for other, pattern in REJECTED.items() if port == MUTUAL else ():  # once for each client
            elsewhere = f"{HOSTS[other]}/{repository}:1"
            if isinstance(one, SecureContainerd):
                one.use(secured.options(other), host=HOSTS[other])
            if isinstance(one, SecureSkopeo):
                one.use(secured.folders.get(other))
            rejected(one, image, elsewhere, digest, pattern)
    assert {str(line["client"]) for line in registry.lines()[before:] if line.get("user_agent")} == {OUTSIDE}


def rejected(one: Secure, image: Image, reference: str, digest: str, pattern: re.Pattern[str]) -> None:
    """Assert that a client cannot pull, for want of a certificate."""
    with pytest.raises(CommandFailed) as caught:
        one.pull_back(image, reference, digest)
    assert pattern.search(caught.value.output), caught.value.output
