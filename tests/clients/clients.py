"""Fresh, empty clients in front of one mirror; each in a folder that goes with it."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.clients.containerd import Containerd
from tests.clients.docker import Docker
from tests.clients.namespace import Namespace
from tests.clients.podman import Podman

_numbers = itertools.count(1)


class Clients:
    """``with Clients(namespace, url) as clients:`` every call in the block makes a new, empty client."""

    def __init__(self, namespace: Namespace, mirror: str) -> None:
        self._namespace, self._mirror = namespace, mirror
        self._open: list[tuple[Containerd | Docker | Podman, Path]] = []

    def containerd(self) -> Containerd:
        directory = self.folder()
        client = Containerd(self._namespace, directory, self._mirror)
        self._open.append((client, directory))
        return client

    def docker(self) -> Docker:
        directory = self.folder()
        client = Docker(self._namespace, directory, self._mirror)
        self._open.append((client, directory))
        return client

    def podman(self, *, prefix: bool = True) -> Podman:
        directory = self.folder()
        client = Podman(self._namespace, directory, self._mirror, prefix=prefix)
        self._open.append((client, directory))
        return client

    def folder(self) -> Path:
        # short names: a unix socket's path has room for 107 bytes
        return self._namespace.directory / f"c{next(_numbers)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for client, directory in reversed(self._open):
            client.close()
            shutil.rmtree(directory, ignore_errors=True)
