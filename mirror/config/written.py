"""A configuration as it is in effect, written out: as data, and as a file that loads again and means the same.

Every setting is there, with its unit and where it comes from. A password is never shown: it is written as the variable
of the environment that holds it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from mirror.config import shapes
from mirror.config.environment import REFERENCE
from mirror.config.load import Loaded
from mirror.config.origins import Origin
from mirror.config.problems import Path as SettingPath
from mirror.config.problems import dotted

_COMMENTS_AT = 48  # the column that comments begin in, where there is room
_HIDDEN = "**********"


class _Password(str):
    """Stands for a password, and may stand in a file: a variable of the environment."""

    __slots__ = ()


def as_data(loaded: Loaded) -> dict[str, Any]:
    """Return all settings as plain data, with units as in a file."""
    found: dict[str, Any] = _plain(loaded.config, loaded.config.model_dump(mode="json"), (), loaded.origins)
    return found


def as_yaml(loaded: Loaded) -> str:
    """Return all settings as a file; behind each stands where it comes from."""
    return "".join(f"{line}\n" for line in _section(as_data(loaded), (), "", loaded.origins))


def _plain(value: Any, dumped: Any, path: SettingPath, origins: Mapping[str, Origin]) -> Any:
    """Return what was dumped of a value, with variables in the place of passwords."""
    if isinstance(value, BaseModel):
        names = shapes.in_order(type(value))
        return {name: _plain(getattr(value, name), dumped[name], (*path, name), origins) for name in names}
    if isinstance(value, dict):
        return {key: _plain(value[key], dumped[key], (*path, key), origins) for key in dumped}
    if isinstance(value, tuple):
        return [_plain(one, dumped[at], (*path, at), origins) for at, one in enumerate(value)]
    if isinstance(value, SecretStr):
        source = origins[dotted(path)].source
        return _Password(_HIDDEN if source is None else source)
    return dumped


def _section(
    section: Mapping[str, Any], path: SettingPath, indent: str, origins: Mapping[str, Origin]
) -> Iterator[str]:
    for key, value in section.items():
        at = (*path, key)
        head = f"{indent}{_inline(key)}:"
        if isinstance(value, dict) and value:
            yield head
            yield from _section(value, at, f"{indent}  ", origins)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield head
            for index, one in enumerate(value):
                first, *rest = _section(one, (*at, index), f"{indent}    ", origins)
                yield f"{indent}  - {first.lstrip(' ')}" if first.endswith(":") else _dashed(first, indent)
                yield from rest
        else:
            yield _commented(f"{head} {_inline(value)}", str(origins[dotted(at)]))


def _dashed(line: str, indent: str) -> str:
    """Make a line the first of an entry of a list."""
    return f"{indent}  - {line[len(indent) + 4 :]}"


def _commented(line: str, comment: str) -> str:
    return f"{line:<{_COMMENTS_AT}}  # {comment if comment.isprintable() else json.dumps(comment)}"


def _inline(value: Any) -> str:
    """Write a value, or a list of them, on one line."""
    if isinstance(value, _Password):
        return str(value)
    text: str = yaml.safe_dump(_literal(value), default_flow_style=True, width=float("inf"), allow_unicode=True)
    text = text.removesuffix("...\n").rstrip("\n")
    return json.dumps(_literal(value)) if "\n" in text else text


def _literal(value: Any) -> Any:
    """Keep what looks like a variable from being one."""
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return value.replace(REFERENCE, f"${REFERENCE}") if isinstance(value, str) else value
