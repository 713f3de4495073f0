"""The table of every setting, for people: ``config/README.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirror.config import shapes
from mirror.config.kinds import Kind
from mirror.config.models import Config, UpstreamDefaults
from mirror.config.schema import written_default

_TEXT = """\
# Settings

Every setting of the mirror. [`mirror.yaml`](mirror.yaml) is a file of all of them with more to say of each, and
[`mirror.schema.json`](mirror.schema.json) lets editors complete and check them.

    mirror config default > mirror.yaml     # the commented file
    mirror config check mirror.yaml         # every problem at once, with its place; exit status 1
    mirror config show mirror.yaml          # what is in effect, and where each setting comes from
    mirror config schema > mirror.schema.json

- **Durations**: `500ms`, `60s`, `5m`, `2h`, `1d`; a plain number is in seconds. **Sizes**: `512KiB`, `4MiB`, `256GiB`
  (powers of 1024), `10MB`, `10GB` (powers of 1000); a plain number is in bytes. **Rates**: a size, `20MB/s`.
- **The environment**: any value can hold `${NAME}`, or `${NAME:-default}` for when it is unset or empty; `$${` is a
  literal `${`. Without quotes the value then means what it would mean if it stood there (`workers: ${WORKERS}` is a
  number), in quotes it is text; within `[ ]` and `{ }` YAML needs the quotes.
- **Files**: a setting that has one value can be given as a file that holds it, by its name and `_file`: `url_file:`,
  `username_file:`. The first line is the value, and there is no second. It is read at the start and at a reload.
- **Passwords** are never written into the file: `password_file:`, or `password: ${NAME}`.
- `[]` is a list: `mirrors[].url` is the `url` of each entry. `<name>` is the name of an upstream, such as `docker.io`.

This file is made by `mirror config table > config/README.md`.

"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting. default: as it would stand in a file, or in words; "" when it is required, or a section."""

    name: str
    takes: str
    default: str
    description: str


def rows(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Row]:
    """Give every setting of a section and of those in it."""
    for name in shapes.in_order(section):
        field = section.model_fields[name]
        shape = field.annotation
        yield Row(
            name=prefix + name,
            takes=_takes(field),
            default=_default(section, name),
            description=(field.description or "").strip(),
        )
        inner, ending = shape, "."
        if (entry := shapes.item(shape)) is not None:
            inner, ending = entry, "[]."
        elif (entry := shapes.entry(shape)) is not None:
            inner, ending = entry, ".<name>."
        below = shapes.as_section(inner)
        if below is not None and below is not UpstreamDefaults:  # its settings are those of upstreams.<name>
            yield from rows(below, f"{prefix}{name}{ending}")


def table() -> str:
    """Return the text of ``config/README.md``."""
    lines = ["| setting | takes | default | what it is |", "| --- | --- | --- | --- |"]
    for row in rows():
        literal = row.default and row.default != "required" and row.default not in _IN_WORDS.values()
        default = f"`{row.default}`" if literal else row.default
        lines.append(f"| `{row.name}` | {row.takes} | {default} | {_escaped(row.description)} |")
    return _TEXT + "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """Keep a text from being read as markup."""
    for mark in ("<", "*", "|"):
        text = text.replace(mark, f"\\{mark}")
    return text


def _takes(field: FieldInfo) -> str:
    for one in field.metadata:
        if isinstance(one, Kind):
            return one.takes
    return _of_type(field.annotation)


def _of_type(annotation: Any) -> str:
    kind = next((one for one in _metadata(annotation) if isinstance(one, Kind)), None)
    shape = shapes.bare(annotation)
    inner = shapes.item(annotation)
    if kind is not None:
        return kind.takes
    if inner is not None:
        return "list of sections" if shapes.as_section(inner) else f"list: {_of_type(inner)}"
    if shapes.entry(annotation) is not None:
        return "section for each name"
    if get_origin(shape) is Literal:
        return " or ".join(map(str, get_args(shape)))
    return "section"


def _metadata(annotation: Any) -> Iterator[Any]:
    """Give what is said of a type, ``| None`` or not."""
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    else:
        for option in get_args(annotation):
            if get_origin(option) is Annotated and type(None) in get_args(annotation):
                yield from get_args(option)[1:]


_IN_WORDS = {"root": "oci-mirror in the user's data home", "upstreams": "the built-in list"}
"""Defaults that are made when they are needed."""


def _default(section: type[BaseModel], name: str) -> str:
    field = section.model_fields[name]
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return _IN_WORDS.get(name, "")
    default = written_default(section, name)
    if section is Config and name == "listen":
        default = default[0]["address"]
    return default if isinstance(default, str) else json.dumps(default)
