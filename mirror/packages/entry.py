"""One entry of the folder: where its bytes are, and the manifests found in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mirror.oci.manifest import Descriptor
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.packages.files import OpenBytes
from mirror.packages.problems import Problem

MAX_INDEX = 32 * 1024 * 1024
"""Bytes: the longest index.json or manifest.json that is read."""

DAMAGED = "copy it there anew"


class Source(Protocol):
    """Bytes by digest as an entry claims them: not verified."""

    def open(self, digest: Digest) -> OpenBytes | None:
        """Open content; None when it is not here, or the file is no longer the one that was read."""
        ...

    def digests(self) -> Iterable[Digest]:
        """Give every digest that is here. May block."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A manifest: its verified bytes, and what they were called where they were found."""

    raw: bytes = field(repr=False)
    content_type: str
    descriptor: Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What an entry has. referrers: subject → manifests. problems: what of it had to be left out, and why."""

    tags: Mapping[Tag, Digest]
    manifests: Mapping[Digest, Row]
    referrers: Mapping[Digest, tuple[Digest, ...]]
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry that can be served. path: in the folder."""

    name: RepositoryName
    path: str
    source: Source
    contents: Contents


def parse_json(raw: bytes, name: str) -> Any:
    """Read JSON. Raises: Problem."""
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Problem(f"its {name} is not JSON; {DAMAGED}") from error
