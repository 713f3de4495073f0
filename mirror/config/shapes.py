"""What the declaration of a setting says about its shape: a section, a list, or a single value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, SecretStr

FILE = "_file"
"""Ends the name of the key by which a setting is given as a file that holds it."""


def bare(annotation: Any) -> Any:
    """Take ``Annotated`` and ``| None`` off a type."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    options = [option for option in get_args(annotation) if option is not type(None)]
    optional = type(None) in get_args(annotation) and len(options) == 1
    return bare(options[0]) if optional else annotation


def nullable(annotation: Any) -> bool:
    """Say whether a setting can be null, as a value of its own."""
    return type(None) in get_args(annotation)


def as_section(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a type is, ``| None`` or not."""
    found = bare(annotation)
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def item(annotation: Any) -> Any:
    """Return the type of what is in a list; None when it is no list."""
    found = bare(annotation)
    return get_args(found)[0] if get_origin(found) is tuple else None


def entry(annotation: Any) -> Any:
    """Return the type of the values of a mapping with free keys; None when it is none."""
    found = bare(annotation)
    return get_args(found)[1] if get_origin(found) is dict else None


def is_single(annotation: Any) -> bool:
    """Say whether a setting has one value: neither a section, nor a list, nor a mapping."""
    return as_section(annotation) is None and item(annotation) is None and entry(annotation) is None


def is_secret(annotation: Any) -> bool:
    return bare(annotation) is SecretStr


def is_text(annotation: Any) -> bool:
    """Say whether any text may be meant, also one that looks like a number."""
    return bare(annotation) in (str, SecretStr, Path)


def in_order(section: type[BaseModel]) -> list[str]:
    """Return the settings of a section as people look for them: its own before those it has in common with others."""
    return sorted(section.model_fields, key=lambda name: name not in section.__annotations__)


def from_files(section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Give key and setting of all that may be given as a file: ``username_file`` and ``username``.

    Settings that are themselves a file, by their name, may not; and a key that is a setting is that setting.
    """
    for name, field in section.model_fields.items():
        key = name + FILE
        if is_single(field.annotation) and not name.endswith(FILE) and key not in section.model_fields:
            yield key, name
