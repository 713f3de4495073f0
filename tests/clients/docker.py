"""A private, empty dockerd with the mirror in ``registry-mirrors``; no bridge, no firewall rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clients.namespace import CommandFailed, Namespace


class Docker:
    """``mirror``: its URL; dockerd asks it for docker.io only, at the root path and without ns. ``configure``: is given
    the path of a ``daemon.json`` that says nothing of mirrors, instead. ``etc``: stands in for /etc/docker."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        mirror: str,
        *,
        configure: Callable[[Path], None] | None = None,
        etc: Path | None = None,
    ) -> None:
        self._namespace, self._directory = namespace, directory
        directory.mkdir(parents=True, exist_ok=True)
        self._socket = directory / "docker.sock"
        config = directory / "daemon.json"
        settings: dict[str, object] = {
            "data-root": str(directory / "root"),
            "exec-root": str(directory / "run"),
            "pidfile": str(directory / "dockerd.pid"),
            "hosts": [f"unix://{self._socket}"],
            "storage-driver": "overlay2",
            "bridge": "none",
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
        }
        if configure is None:
            settings |= {"registry-mirrors": [mirror], "insecure-registries": ["127.0.0.0/8"]}
        config.write_text(json.dumps(settings))
        if configure is not None:
            configure(config)
        command: tuple[str, ...] = ("dockerd", "--config-file", str(config))
        if etc is not None:
            command = ("sh", "-c", 'mount --bind "$0" /etc/docker && exec "$@"', str(etc), *command)
        self._process = namespace.start("dockerd", *command, log=directory / "dockerd.log")
        self._process.wait_until("answering", self._answers, seconds=60)

    def _answers(self) -> bool:
        try:
            return self._socket.exists() and bool(self._docker("version", seconds=5))
        except CommandFailed:
            return False

    def _docker(self, *arguments: str, seconds: float = 120.0) -> str:
        env = {"DOCKER_CONFIG": str(self._directory / "client"), "DOCKER_BUILDKIT": "0"}
        socket = f"unix://{self._socket}"
        return self._namespace.run("docker", "--host", socket, *arguments, env=env, seconds=seconds)

    def pull(self, reference: str) -> dict[str, Any]:
        """``docker pull``; what ``docker image inspect`` says of the image."""
        try:
            self._docker("pull", reference)
        except CommandFailed as exc:
            exc.add_note(self._process.tail())
            raise
        return self.inspect(reference)

    def run(self, reference: str) -> str:
        """What the image's program prints."""
        return self._docker("run", "--rm", "--network", "none", reference)

    def build(self, context: Path, name: str) -> str:
        """``docker build`` of a folder with a Dockerfile; its output."""
        return self._docker("build", "--network", "none", "--tag", name, str(context))

    def inspect(self, reference: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self._docker("image", "inspect", reference))
        return found[0]

    def close(self) -> None:
        self._process.kill()
