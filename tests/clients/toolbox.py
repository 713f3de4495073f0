"""Programs for registries, found on PATH, run inside the namespace with a home folder of their own."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.namespace import PROJECT, Namespace
from tests.clients.registry_process import AUTHOR, Login, Registry

BY_HAND = {"oras"}
"""Programs that no package manager brings here: where they are not, that is never a failure."""
_numbers = itertools.count(1)


class Toolbox:
    """Tools in front of one registry. folder: their home, gone with them. refuse: what is done about a missing one."""

    def __init__(self, namespace: Namespace, registry: Registry, refuse: Callable[[str], None]) -> None:
        self._namespace, self._refuse = namespace, refuse
        self.registry, self.host = registry, registry.host
        self.folder = namespace.directory / f"t{next(_numbers)}"
        self.folder.mkdir()

    @property
    def logs_in(self) -> bool:
        """Whether pushes need a login."""
        return self.registry.access != "open"

    def named(self, repository: str, tag: str = "") -> str:
        """A repository's name as clients say it, with a tag or a digest when one is given."""
        separator = "@" if ":" in tag else ":" if tag else ""
        return f"{self.host}/{repository}{separator}{tag}"

    def tool(self, program: str) -> Callable[..., str]:
        """A program as a function of its arguments that gives what it prints; CommandFailed when it fails."""
        if shutil.which(program) is None:
            if program in BY_HAND:
                pytest.skip(f"{program} is not on PATH; it has to be put there by hand")
            self._refuse(f"not on PATH: {program}; see .ci/run")
        return lambda *arguments, both=False: self._run(program, *arguments, both=both)

    def python(self, module: str, *arguments: str) -> str:
        """Run a module of this suite; what it prints."""
        return self._run(sys.executable, "-m", module, *arguments)

    def shell(self, command: str) -> str:
        """Run a line of shell; what it prints."""
        return self._run("sh", "-c", command)

    def log_in(self, login: Callable[..., object], user: str, password: str, *, as_who: Login = AUTHOR) -> None:
        """Call a tool's login; user and password: what the options are called."""
        login(user, as_who.user, password, as_who.password)

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _run(self, *command: str | Path, both: bool = False) -> str:
        env = {
            "HOME": str(self.folder),
            "DOCKER_CONFIG": str(self.folder / "docker"),
            "REGISTRY_AUTH_FILE": str(self.folder / "auth.json"),
            "COSIGN_PASSWORD": "of the key",
            "PYTHONPATH": os.pathsep.join((str(PROJECT), os.environ.get("PYTHONPATH", ""))),
        }
        return self._namespace.run(*map(str, command), env=env, both=both)

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
