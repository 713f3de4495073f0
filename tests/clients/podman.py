"""podman, buildah and skopeo with private, empty storage and the mirror in registries.conf.

They tell a mirror only the repository's path, so each registry needs a location of its own there: a path
prefix (``HOST/docker.io``). The plain root path works for docker.io alone, as the default upstream.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.clients.namespace import Namespace

REGISTRY = """\
[[registry]]
prefix = "{name}"
location = "{name}"
[[registry.mirror]]
location = "{mirror}"
insecure = {insecure}
"""
REGISTRIES = """\
unqualified-search-registries = ["docker.io"]
short-name-mode = "disabled"
[[registry]]
location = "{host}"
insecure = {insecure}
"""
STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{d}/root"
runroot = "{d}/run"
"""
CONTAINERS = """\
[containers]
netns = "none"
default_ulimits = ["nofile=1024:4096", "nproc=1024:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{d}/tmp"
"""


class Podman:
    """``mirror``: its URL. ``prefix``: whether registries are asked for below a path prefix. ``etc``: a folder that
    stands in for /etc/containers, and says which mirrors there are instead.

    ``insecure``: whether it may speak HTTP there, or HTTPS with any certificate.
    """

    insecure = True

    def __init__(
        self, namespace: Namespace, directory: Path, mirror: str, *, prefix: bool = True, etc: Path | None = None
    ) -> None:
        self._namespace, self._directory, self._etc = namespace, directory, etc
        directory.mkdir(parents=True)
        self.host = mirror.partition("://")[2]
        names = ["docker.io", "ghcr.io"] if prefix else ["docker.io"]
        locations = {name: f"{self.host}/{name}" if prefix else self.host for name in names}
        insecure = json.dumps(self.insecure)
        files = {
            "registries.conf": REGISTRIES.format(host=self.host, insecure=insecure)
            + "".join(REGISTRY.format(name=name, mirror=place, insecure=insecure) for name, place in locations.items()),
            "storage.conf": STORAGE.format(d=directory),
            "containers.conf": CONTAINERS.format(d=directory),
            "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
            "auth.json": "{}",
        }
        for name, text in files.items():
            (directory / name).write_text(text)
        (directory / "tmp").mkdir()
        self._env = {
            "CONTAINERS_REGISTRIES_CONF": str(directory / "registries.conf"),
            "CONTAINERS_STORAGE_CONF": str(directory / "storage.conf"),
            "CONTAINERS_CONF": str(directory / "containers.conf"),
            "REGISTRY_AUTH_FILE": str(directory / "auth.json"),
            "BUILDAH_ISOLATION": "chroot",
            "PODMAN_IGNORE_CGROUPSV1_WARNING": "1",
            "TMPDIR": str(directory / "tmp"),
            "HOME": str(directory),
        }
        if etc is not None:
            del self._env["CONTAINERS_REGISTRIES_CONF"]

    def _run(self, *command: str, both: bool = False) -> str:
        if self._etc is not None:
            command = ("sh", "-c", 'mount --bind "$0" /etc/containers && exec "$@"', str(self._etc), *command)
        return self._namespace.run(*command, env=self._env, both=both)

    def pull(self, reference: str) -> dict[str, Any]:
        """``podman pull``; what ``podman image inspect`` says of the image."""
        policy = str(self._directory / "policy.json")
        self._run("podman", "pull", "--quiet", "--signature-policy", policy, reference)
        return self.inspect(reference)

    def run(self, reference: str) -> str:
        """What the image's program prints."""
        return self._run("podman", "run", "--rm", reference)

    def build(self, context: Path, name: str) -> str:
        """``buildah bud`` of a folder with a Dockerfile; its output."""
        policy = str(self._directory / "policy.json")
        return self._run("buildah", "bud", "--signature-policy", policy, "--tag", name, str(context), both=True)

    def inspect(self, reference: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self._run("podman", "image", "inspect", reference))
        return found[0]

    def skopeo(self, *arguments: str) -> str:
        # skopeo 1.9 does not read CONTAINERS_REGISTRIES_CONF
        conf, policy = (str(self._directory / name) for name in ("registries.conf", "policy.json"))
        registries = () if self._etc is not None else ("--registries-conf", conf)
        return self._run("skopeo", *registries, "--policy", policy, *arguments)

    def close(self) -> None:
        """Nothing runs between two commands."""
