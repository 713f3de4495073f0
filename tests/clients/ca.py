"""The CA of one run: a certificate for every server inside, and the key that signs tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.clients.namespace import OUTSIDE

NAMES = ("docker.io", "*.docker.io", "*.cloudflare.docker.com", "ghcr.io", "mirror.test", "registry.test", "localhost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Paths of the PEM files. ``server`` and ``token`` hold their private key and certificate together.

    ``certificate``, ``key``: what a client shows.
    """

    ca: Path
    server: Path
    token: Path
    certificate: Path
    key: Path


def make_authority(directory: Path) -> Authority:
    directory.mkdir(parents=True, exist_ok=True)
    ca = trustme.CA(organization_name="Test CA of the client suite")
    made = Authority(
        ca=directory / "ca.pem",
        server=directory / "server.pem",
        token=directory / "token.pem",
        certificate=directory / "client.pem",
        key=directory / "client.key",
    )
    ca.cert_pem.write_to_path(str(made.ca))
    ca.issue_cert(*NAMES, "127.0.0.1", OUTSIDE).private_key_and_cert_chain_pem.write_to_path(str(made.server))
    client = ca.issue_cert("a.node")
    client.cert_chain_pems[0].write_to_path(str(made.certificate))
    client.private_key_pem.write_to_path(str(made.key))
    # RS256, as auth.docker.io signs
    signer = ca.issue_cert("token.signer", key_type=trustme.KeyType.RSA)
    signer.private_key_and_cert_chain_pem.write_to_path(str(made.token))
    return made
