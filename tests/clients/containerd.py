"""A private, empty containerd that tries the mirror first and then the registry itself."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients import cri
from tests.clients.namespace import CommandFailed, Namespace

CONFIG = """\
version = 2
root = "{d}/root"
state = "{d}/run"
[grpc]
  address = "{d}/containerd.sock"
[ttrpc]
  address = "{d}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{d}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{d}/opt"
"""


class Containerd:
    """``mirror``: its URL; every registry (hosts.toml of ``_default``) is asked for there first.

    ``options``: further lines about it in hosts.toml; without them it is trusted by the CA of the suite. ``certs``: a
    registry folder that is there already, instead.
    """

    def __init__(
        self, namespace: Namespace, directory: Path, mirror: str, *, options: str = "", certs: Path | None = None
    ) -> None:
        self._namespace, self._directory = namespace, directory
        self._socket = directory / "containerd.sock"
        self._certs = certs or directory / "certs.d"
        self._mirror, self._options = mirror, options or f'ca = "{namespace.ca_file}"\n'
        directory.mkdir(parents=True, exist_ok=True)
        if certs is None:
            # no "server": after the mirror comes the registry that the reference names
            self._write_hosts("_default", '"pull", "resolve"')
        config = directory / "config.toml"
        config.write_text(CONFIG.format(d=directory, certs=self._certs))
        command = ("containerd", "--config", str(config))
        self._process = namespace.start("containerd", *command, log=directory / "containerd.log")
        self._process.wait_until("answering", self._answers)

    def _write_hosts(self, registry: str, capabilities: str) -> None:
        """Have it ask the mirror for what is of a registry."""
        hosts = self._certs / registry
        hosts.mkdir(parents=True)
        text = f'[host."{self._mirror}"]\n  capabilities = [{capabilities}]\n{self._options}'
        (hosts / "hosts.toml").write_text(text)

    def _answers(self) -> bool:
        try:
            return bool(self._ctr("version", seconds=5))
        except CommandFailed:
            return False

    def _ctr(self, *arguments: str, kubernetes: bool = False, seconds: float = 120.0) -> str:
        space = "k8s.io" if kubernetes else "default"
        return self._namespace.run(
            "ctr", "--address", str(self._socket), "--namespace", space, *arguments, seconds=seconds
        )

    def pull(self, reference: str, *, certs: Path | None = None) -> str:
        """``ctr images pull``; the digest the image has here. ``certs``: a registry folder for this one."""
        try:
            self._ctr("images", "pull", "--hosts-dir", str(certs or self._certs), reference)
        except CommandFailed as exc:
            exc.add_note(self._process.tail())
            raise
        return self.digest(reference)

    def cri_pull(self, reference: str) -> str:
        """PullImage of the CRI; the image's id: its config's digest."""
        try:
            return cri.pull_image(self._socket, reference)
        except cri.CriFailed as exc:
            exc.add_note(self._process.tail())
            raise

    def run(self, reference: str) -> str:
        """What the image's program prints."""
        return self._ctr("run", "--rm", reference, "hello")

    def digest(self, reference: str, *, kubernetes: bool = False) -> str:
        for line in self._ctr("images", "list", kubernetes=kubernetes).splitlines()[1:]:
            name, _media_type, digest, *_ = line.split()
            if name == reference:
                return digest
        raise AssertionError(f"containerd has no image {reference}")

    def content(self, *, kubernetes: bool = False) -> set[str]:
        """The digests of everything in its content store."""
        return set(self._ctr("content", "list", "--quiet", kubernetes=kubernetes).split())

    def stored(self, digest: str) -> dict[str, object]:
        """A JSON document of its content store."""
        document: dict[str, object] = json.loads(self._ctr("content", "get", digest))
        return document

    def close(self) -> None:
        self._process.kill()
