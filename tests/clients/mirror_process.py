"""The mirror under test, as a process inside the namespace; or whatever MIRROR_URL names (README.md)."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from urllib.parse import urlsplit

from tests.clients.hub import docker_io
from tests.clients.namespace import PROJECT, Namespace
from tests.clients.processes import Process

ADDRESS = "127.0.0.1:5000"
NOBODY = "http://127.0.0.1:9"  # nothing listens there
EXTERNAL_URL = os.environ.get("MIRROR_URL", "")
EXTERNAL_COMMAND = os.environ.get("MIRROR_COMMAND", "")


class Mirror(Protocol):
    url: str

    def close(self) -> None: ...

    def tail(self) -> str: ...


class NotStarted:
    """A mirror this suite does not start: it answers, or not, at a URL inside the namespace."""

    def __init__(self, url: str) -> None:
        self.url = url

    def close(self) -> None:
        """Not ours to end."""

    def tail(self) -> str:
        return ""


class MirrorProcess:
    """``mirror serve`` with a root of its own. ``fresh_for``: how long a tag is fresh, as configured.

    ``address``: where it listens. ``hub``: further settings of the upstream docker.io. ``others``: further upstreams,
    by name, with their URLs. ``settings``: further settings, at the top.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        workers: int = 1,
        fresh_for: str = "10m",
        address: str = ADDRESS,
        hub: Mapping[str, object] | None = None,
        others: Mapping[str, str] = MappingProxyType({}),
        settings: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self._namespace, self._directory = namespace, directory
        self._address, self._hub = address, hub or {}
        directory.mkdir(parents=True)
        self.url = f"http://{address}"
        self.config = directory / "mirror.yaml"
        every = {**self._settings(workers, fresh_for, others), **settings}
        self.config.write_text(json.dumps(every, indent=2))  # JSON is YAML
        self._process: Process | None = None
        self.start()

    def _settings(self, workers: int, fresh_for: str, others: Mapping[str, str]) -> dict[str, object]:
        ca_file, tags = str(self._namespace.ca_file), {"fresh_for": fresh_for}
        return {
            "listen": self._address,
            "workers": workers,
            "storage": {"root": str(self._directory / "root")},
            "shutdown_delay": "0s",
            "upstreams": {
                "docker.io": {**docker_io(self._namespace), "tags": tags, **self._hub},
                "ghcr.io": {"url": "https://ghcr.io", "ca_file": ca_file, "tags": tags},
                **{name: {"url": url, "tags": tags} for name, url in others.items()},
            },
            "default_upstream": "docker.io",
        }

    def start(self) -> None:
        """Start, on the same root as before, and wait until it is ready."""
        assert self._process is None
        command = (sys.executable, "-m", "mirror", "serve", "--config", str(self.config))
        # its trust comes from ca_file alone
        env = {"PYTHONPATH": str(PROJECT), "SSL_CERT_FILE": "/nonexistent"}
        self._process = self._namespace.start("mirror", *command, env=env, log=self._directory / "mirror.log")
        self._process.wait_until("ready", lambda: _status(self._namespace, f"{self.url}/readyz") == 200)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        assert self._process is not None
        process, self._process = self._process, None
        return process.stop(seconds=35)

    def kill(self) -> None:
        """SIGKILL every process of it at once."""
        assert self._process is not None
        process, self._process = self._process, None
        process.kill()

    def close(self) -> None:
        """End it and delete its root: a hundred megabytes each would add up."""
        if self._process is not None:
            self.kill()
        shutil.rmtree(self._directory)

    def tail(self) -> str:
        return self._process.tail() if self._process is not None else ""

    def lines(self) -> list[str]:
        """Its log so far: all of it once it was stopped."""
        return (self._directory / "mirror.log").read_text().splitlines()


class OtherMirror:
    """MIRROR_COMMAND, with a fresh $STATE; ready when MIRROR_URL answers /v2/."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.url = EXTERNAL_URL
        config = {"version": 0.1, "storage": {"filesystem": {}}, "http": {}}
        (directory / "config.yml").write_text(json.dumps(config))  # a start for CNCF Distribution
        self._process = namespace.start(
            "mirror",
            *("sh", "-c", EXTERNAL_COMMAND),
            env={"STATE": str(directory)},
            log=directory / "mirror.log",
        )
        self._process.wait_until("answering", lambda: _status(namespace, f"{self.url}/v2/") > 0)

    def close(self) -> None:
        self._process.kill()

    def tail(self) -> str:
        return self._process.tail()


def _status(namespace: Namespace, url: str) -> int:
    parts = urlsplit(url)

    def ask() -> int:
        with closing(http.client.HTTPConnection(parts.netloc, timeout=5)) as connection:
            connection.request("GET", parts.path)
            return connection.getresponse().status

    return namespace.inside(ask)
