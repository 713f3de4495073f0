"""A private, empty buildkitd that goes by a ``buildkitd.toml``. Put its programs on PATH by hand; they are in no
package that can be installed by name."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.clients.namespace import CommandFailed, Namespace

PROGRAMS = ("buildkitd", "buildctl")


class BuildKit:
    """``etc``: stands in for /etc/buildkit."""

    def __init__(self, namespace: Namespace, directory: Path, *, etc: Path) -> None:
        self._namespace, self._directory = namespace, directory
        directory.mkdir(parents=True)
        Path("/etc/buildkit").mkdir(exist_ok=True)
        self._address = f"unix://{directory}/buildkit.sock"
        command = ("buildkitd", "--addr", self._address, "--root", str(directory / "root"))
        mounted = ("sh", "-c", 'mount --bind "$0" /etc/buildkit && exec "$@"', str(etc), *command)
        self._process = namespace.start("buildkitd", *mounted, log=directory / "buildkitd.log")
        self._process.wait_until("answering", self._answers)

    @staticmethod
    def missing() -> str:
        """Why it cannot run here; empty when it can."""
        absent = [program for program in PROGRAMS if shutil.which(program) is None]
        return f"not on PATH: {', '.join(absent)}; they have to be put there by hand" if absent else ""

    def _answers(self) -> bool:
        try:
            return bool(self._buildctl("debug", "workers", seconds=5))
        except CommandFailed:
            return False

    def _buildctl(self, *arguments: str, seconds: float = 120.0) -> str:
        return self._namespace.run("buildctl", "--addr", self._address, *arguments, seconds=seconds)

    def build(self, context: Path) -> str:
        """Build a folder with a Dockerfile; the output."""
        places = ("--local", f"context={context}", "--local", f"dockerfile={context}")
        try:
            return self._buildctl("build", "--progress", "plain", "--frontend", "dockerfile.v0", *places)
        except CommandFailed as exc:
            exc.add_note(self._process.tail())
            raise

    def close(self) -> None:
        self._process.kill()
