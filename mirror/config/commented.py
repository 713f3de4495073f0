"""The commented file of every setting: a part of what is installed, and ``config/mirror.yaml`` of a checkout."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

NAME = "mirror.yaml"


def commented_file() -> str:
    """Return the text of the file."""
    installed = resources.files(__package__) / NAME
    if installed.is_file():
        return installed.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "config" / NAME).read_text(encoding="utf-8")
