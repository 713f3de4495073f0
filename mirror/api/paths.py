"""The path of a request, parsed once into a value.

Paths are read from the right, as a repository name may hold any word: ``/v2/tags/list/tags/list`` lists the tags
of ``tags/list``. ``/X/v2/…`` is ``/v2/…`` with a prefix, which clients make of a mirror's address with a path.
Words that begin with an underscore are no part of any name: they are extensions.
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
class UploadsPath:
    """``/v2/<name>/blobs/uploads/`` (end-4, end-11)."""

    prefix: str | None
    name: str


@dataclass(frozen=True, slots=True)
class SessionPath:
    """``/v2/<name>/blobs/uploads/<session>`` (end-5, end-6, end-13, end-14)."""

    prefix: str | None
    name: str
    session: str


@dataclass(frozen=True, slots=True)
class TagsPath:
    """``/v2/<name>/tags/list`` (end-8)."""

    prefix: str | None
    name: str


@dataclass(frozen=True, slots=True)
class ReferrersPath:
    """``/v2/<name>/referrers/<digest>`` (end-12)."""

    prefix: str | None
    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class HistoryPath:
    """``/v2/<name>/_mirror/tags/history``."""

    prefix: str | None
    name: str


@dataclass(frozen=True, slots=True)
class RegistryPath:
    """What is of no repository: ``/v2/_catalog``, and extensions (``/v2/_<extension>/<component>/<module>``)."""

    prefix: str | None
    what: Literal["catalog", "discover", "openapi", "token"]


@dataclass(frozen=True, slots=True)
class DiscoverPath:
    """``/v2/<name>/_oci/ext/discover``."""

    prefix: str | None
    name: str


@dataclass(frozen=True, slots=True)
class OperationPath:
    """``/healthz``, ``/readyz``, ``/metrics``."""

    operation: Literal["healthz", "readyz", "metrics"]


Named = ManifestPath | BlobPath | UploadsPath | SessionPath | TagsPath | ReferrersPath | HistoryPath | DiscoverPath
"""Paths of a repository."""
Path = Named | Root | RegistryPath | OperationPath

_REGISTRY: dict[tuple[str, ...], Literal["catalog", "discover", "openapi", "token"]] = {
    ("_catalog",): "catalog",
    ("_oci", "ext", "discover"): "discover",
    ("_mirror", "openapi", "openapi.json"): "openapi",
    ("_mirror", "auth", "token"): "token",
}


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
    what = _REGISTRY.get(tuple(rest))
    if what is not None:
        return RegistryPath(prefix, what)
    match rest:
        case [*name, "manifests", reference]:
            return ManifestPath(prefix, _name(name), reference)
        case [*name, "tags", "list"]:
            return TagsPath(prefix, _name(name))
        case [*name, "blobs", "uploads"] | [*name, "blobs", "uploads", ""]:
            return UploadsPath(prefix, _name(name))
        case [*name, "blobs", "uploads", session]:
            return SessionPath(prefix, _name(name), session)
        case [*name, "blobs", digest]:
            return BlobPath(prefix, _name(name), digest)
        case [*name, "referrers", digest]:
            return ReferrersPath(prefix, _name(name), digest)
        case [*name, "_mirror", "tags", "history"]:
            return HistoryPath(prefix, _name(name))
        case [*name, "_oci", "ext", "discover"]:
            return DiscoverPath(prefix, _name(name))
    raise PathUnknown(f"there is no endpoint at {raw[:200]}")


def _name(parts: list[str]) -> str:
    if any("/" in part for part in parts):
        raise NameInvalid("a repository name cannot hold an encoded slash")
    return "/".join(parts)
