"""Credential helpers made by a test: shell scripts on PATH that say what the test wants, and note what they are asked.

A script writes its process id, and whatever else it is told to, to ``<script>.pids``, and ``get <server>`` to
``<script>.log``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest


class Helpers:
    """A folder of credential helpers, first in PATH for as long as the test runs."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.folder = folder
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def path(self, name: str) -> Path:
        return self.folder / f"docker-credential-{name}"

    def write(self, name: str, body: str) -> Path:
        """Make a helper that notes its question and then runs ``body``; return the script."""
        path = self.path(name)
        new = path.with_suffix(".new")
        new.write_text(f'#!/bin/sh\necho $$ >>$0.pids\necho "$1 $(cat)" >>$0.log\n{body}\n')
        new.chmod(0o755)
        new.rename(path)  # one that runs is not written to
        return path

    def answering(self, name: str, user: str, secret: str) -> None:
        """Make a helper that has this login."""
        self.write(name, f"cat <<'END'\n{self._answer(user, secret)}\nEND")

    def gated(self, name: str, user: str, secret: str) -> Callable[[], None]:
        """Make a helper that has this login, and says so when what is returned is called."""
        gate = self.folder / f"{name}.gate"
        self.write(name, f"while [ ! -e {gate} ]; do sleep 0.01; done\ncat <<'END'\n{self._answer(user, secret)}\nEND")
        return gate.touch

    @staticmethod
    def _answer(user: str, secret: str) -> str:
        return json.dumps({"ServerURL": "whatever", "Username": user, "Secret": secret})

    def questions(self, name: str) -> list[str]:
        """Return what the helper was asked, in order."""
        return self._lines(name, "log")

    def pids(self, name: str) -> list[int]:
        return [int(line) for line in self._lines(name, "pids")]

    def gone(self, name: str) -> bool:
        """Say whether nothing that the helper was runs any more; who reaps its children is not our concern."""
        return all(_state(pid) in ("", "Z") for pid in self.pids(name))

    def assert_gone(self, name: str) -> None:
        """Check that every run of the helper has ended, and that no zombie of ours is left."""
        assert self.pids(name), "it never ran"
        assert self.gone(name)
        assert not [pid for pid in self.pids(name) if _state(pid) and _parent(pid) == os.getpid()]

    def _lines(self, name: str, kind: str) -> list[str]:
        path = Path(f"{self.path(name)}.{kind}")
        return path.read_text().splitlines() if path.exists() else []


def _fields(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(pid: int) -> str:
    return next(iter(_fields(pid)), "")


def _parent(pid: int) -> int:
    return int((_fields(pid) or ["", "0"])[1])
