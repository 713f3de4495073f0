"""What the committed JSON Schema has against a configuration file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from mirror.config.document import parse_document

PROJECT = Path(__file__).parents[1]
COMMITTED = PROJECT / "config" / "mirror.schema.json"


class _Itself(dict[str, str]):
    """An environment in which every variable holds what names it."""

    def get(self, name: str, default: Any = None) -> str:
        return f"${{{name}}}"


@cache
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(COMMITTED.read_text()))


def refused(text: str | bytes) -> list[str]:
    """Return what the schema has against a file; variables stay what they are. Raises: ConfigError: it is no YAML."""
    raw = text if isinstance(text, bytes) else text.encode()
    data = parse_document("mirror.yaml", raw, _Itself()).data
    return refused_data(data)


def refused_data(data: Any) -> list[str]:
    """Return what the schema has against plain data."""
    return [f"{error.json_path}: {error.message}" for error in validator().iter_errors(data)]
