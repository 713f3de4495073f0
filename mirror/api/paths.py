"""The path of a request, parsed once into a value.

Paths are read from the right, as a repository name may hold any word: ``/v2/tags/list/tags/list`` lists the tags
of ``tags/list``. ``/X/v2/…`` is ``/v2/…`` with a prefix, which clients make of a mirror's address with a path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from mirror.oci.errors import NameInvalid, PathUnknown

OPERATIONS = ("healthz", "readyz", "metrics")


@dataclass(frozen=True, slots=True)
class Root:
    """``/v2/`` (end-1)."""

    prefix: str | None


@dataclass(frozen=True, slots=True)
class ManifestPath:
    """``/v2/<name>/manifests/<reference>`` (end-3, end-7, end-9)."""

    prefix: str | None
    name: str
    reference: str


@dataclass(frozen=True, slots=True)
class BlobPath:
    """``/v2/<name>/blobs/<digest>`` (end-2, end-10)."""

    prefix: str | None
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class TagsPath:
    """``/v2/<name>/tags/list`` (end-8)."""

    prefix: str | None
    name: str


@dataclass(frozen=True, slots=True)
class OperationPath:
    """``/healthz``, ``/readyz``, ``/metrics``."""

    operation: Literal["healthz", "readyz", "metrics"]


@dataclass(frozen=True, slots=True)
class UploadsPath:
    """``/v2/<name>/blobs/uploads/`` and ``/v2/<name>/blobs/uploads/<session>`` (end-4 to end-6, end-11 to end-14)."""

    prefix: str | None
    name: str


Path = Root | ManifestPath | BlobPath | TagsPath | UploadsPath | OperationPath


def parse_path(raw: str) -> Path:
    """Read the path of a request, as it stood on the request line.

    Every part is decoded by itself: a ``%2F`` is no separator, and fails the grammar of names later.
    Raises: PathUnknown (404) when it is no endpoint; NameInvalid (400) when it has no name.
    """
    parts = raw.removeprefix("/").split("/")  # "*" and an authority have no slash
    if "%" in raw:
        parts = [unquote(part, errors="replace") for part in parts]
    if len(parts) == 1 and parts[0] in OPERATIONS:
        return OperationPath(parts[0])  # type: ignore[arg-type]  # one of the three
    prefix: str | None = None
    if parts[0] != "v2":
        if len(parts) < 2 or parts[1] != "v2" or not parts[0]:
            raise PathUnknown(f"there is nothing at {raw[:200]}; the API is below /v2/")
        prefix = parts.pop(0)
    rest = parts[1:]
    if rest in ([], [""]):
        return Root(prefix)
    if len(rest) >= 2:
        *name, kind, last = rest
        if kind == "manifests":
            return ManifestPath(prefix, _name(name), last)
        if (kind, last) == ("tags", "list"):
            return TagsPath(prefix, _name(name))
        if (kind, last) == ("blobs", "uploads"):
            return UploadsPath(prefix, _name(name))
        if kind == "blobs":
            return BlobPath(prefix, _name(name), last)
        if kind == "uploads" and name and name[-1] == "blobs":
            return UploadsPath(prefix, _name(name[:-1]))
    raise PathUnknown(f"there is no endpoint at {raw[:200]}")


def _name(parts: list[str]) -> str:
    if any("/" in part for part in parts):
        raise NameInvalid("a repository name cannot hold an encoded slash")
    return "/".join(parts)
