"""What is wrong with an entry of the folder, for its operator to read."""

from __future__ import annotations


class Problem(Exception):
    """Something in an entry cannot be served. The message goes on after its path: what is wrong, what to do."""


class Stopped(Exception):
    """The service is stopping: what was begun is not finished."""
