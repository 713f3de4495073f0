"""``${NAME}`` and ``${NAME:-default}`` in the text of a value; ``$${`` is a literal ``${``.

What a variable holds is text and never structure, and it may be a secret: nothing here repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_PLACE = re.compile(r"\$(?P<literal>\$\{)|\$\{(?P<inside>[^}]*)(?P<end>\}?)")
_INSIDE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<or>:-(?P<default>.*))?", re.ASCII | re.DOTALL)

REFERENCE = "${"
"""What a value that takes something from the environment has in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Substituted:
    """A text with the variables put in. names: of the variables, in the order they stand there.

    alone: one variable and nothing else, not even a default. problems: message and suggestion of each place that
    cannot be used; then the text means nothing.
    """

    text: str = field(repr=False)
    names: tuple[str, ...]
    alone: bool
    problems: tuple[tuple[str, str], ...]


def substitute(text: str, environ: Mapping[str, str]) -> Substituted:
    """Put variables of the environment into a text. A default counts when the variable is unset or empty."""
    names: list[str] = []
    problems: list[tuple[str, str]] = []
    parts: list[str] = []
    alone = True
    end = 0
    for place in _PLACE.finditer(text):
        parts.append(text[end : place.start()])
        end = place.end()
        if place["literal"]:
            parts.append(REFERENCE)
            continue
        inside = _INSIDE.fullmatch(place["inside"])
        if malformed := _malformed(place, inside):
            problems.append(malformed)
        elif inside is not None:
            name, default = inside["name"], inside["default"]
            names.append(name)
            alone = alone and place[0] == text and not inside["or"]
            if default is not None and not environ.get(name):
                parts.append(default)
            else:
                problems += _unusable(name, environ.get(name))
                parts.append(environ.get(name, ""))
    parts.append(text[end:])
    return Substituted(
        text="".join(parts), names=tuple(dict.fromkeys(names)), alone=alone and bool(names), problems=tuple(problems)
    )


def _malformed(place: re.Match[str], inside: re.Match[str] | None) -> tuple[str, str] | None:
    literal = "a literal ${ is written $${"
    if not place["end"]:
        return "${ without a } after it", literal
    if REFERENCE in place["inside"]:
        return "${ within ${ }", "a default is plain text"
    return ("expected ${NAME} or ${NAME:-default}", literal) if inside is None else None


def _unusable(name: str, value: str | None) -> Iterator[tuple[str, str]]:
    if value is None:
        yield f"{name} is not set in the environment", f"set it where the mirror runs, or write ${{{name}:-default}}"
        return
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes that are no text, as Python passes them on
        yield f"{name} of the environment is not UTF-8 text", ""
