"""A problem of the configuration, with its place; and the one error that carries them all."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass

Path = tuple[str | int, ...]
"""Where a setting is: keys and list indexes from the top."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong. line and column: from 1, None when there is no place in a file.

    path: the setting, dotted; "" for the file as a whole. suggestion: "" when there is none.
    """

    file: str
    line: int | None = None
    column: int | None = None
    path: str = ""
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}:{self.column}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{text}; {self.suggestion}" if self.suggestion else text


class ConfigError(Exception):
    """The configuration cannot be used. problems: every one that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def dotted(path: Path) -> str:
    """Write a path as people do: ``upstreams.docker.io.names[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_key(part)}" if text else _key(part)
    return text


def _key(part: str) -> str:
    # a key with "@" may be an address with a password in it, written in the wrong place
    if "@" in part:
        return "…"
    return part if part.isprintable() and part and " " not in part else json.dumps(part)[:60]


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Suggest the known word that looks most like this one; "" when none does."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f'did you mean "{close[0]}"?' if close else ""
