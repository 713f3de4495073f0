"""Which folder stands for the root: itself, or what it would be made in."""

from __future__ import annotations

from pathlib import Path


def standing_for(root: Path) -> Path:
    """Return the root when it is there, else the nearest of its parents that is: it would be made in that.

    What is there need not be a folder, nor ours.
    """
    found = root
    while not found.exists() and found != found.parent:
        found = found.parent
    return found
