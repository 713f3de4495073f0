"""Who asks, and what for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What a request wants. PURGE: delete what was pulled through; DELETE: what was pushed; LOGIN: end-1."""

    LOGIN = "login"
    PULL = "pull"
    PUSH = "push"
    DELETE = "delete"
    PURGE = "purge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks. name: of a user who has logged in, None for anybody."""

    name: str | None


ANONYMOUS = Principal(name=None)
