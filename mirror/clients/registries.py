"""Which registries a mirror stands in for: the upstreams of its configuration, as image names say them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from mirror.clients.place import PlaceInvalid, parse_place
from mirror.config import Upstream
from mirror.upstream.configured import Patterns, UnknownUpstream, concrete

DOCKER_HUB = "docker.io"
_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A registry by one of its names.

    name: host[:port] as images have it. part: the same registry as the first part of a path below the mirror, None when
    it has a port in each of its names: image names cannot have one there. server: URL of the registry itself, "" for
    the one that clients make of the name.
    """

    name: str
    part: str | None
    server: str = ""

    @property
    def is_hub(self) -> bool:
        return self.name == DOCKER_HUB


def mirrored(upstreams: Mapping[str, Upstream], only: Sequence[str]) -> tuple[tuple[Registry, ...], tuple[str, ...]]:
    """Return the registries that have a name, and the patterns that stand for any number of others.

    only: names of upstreams, or names that a pattern of them matches; none is all of them.
    Raises: UnknownUpstream.
    """
    found: dict[str, Registry] = {}
    for name in only or upstreams:
        for registry in _named(upstreams, name.lower()):
            found.setdefault(registry.name, registry)
    patterns = () if only else tuple(name for name in upstreams if "*" in name)
    return tuple(found.values()), patterns


def named(upstreams: Mapping[str, Upstream], default: str | None) -> str | None:
    """Return what images say for an upstream that is configured under a name: docker.io for any of Docker Hub's."""
    if default is not None and _HUB_NAMES.intersection((default, *upstreams[default].names)):
        return DOCKER_HUB
    return default


def _named(upstreams: Mapping[str, Upstream], name: str) -> Iterator[Registry]:
    """Give a registry under each of the names that images may have for it."""
    if "*" in name:
        if name not in upstreams:
            raise UnknownUpstream(name, upstreams)
        return
    main = next((known for known, upstream in upstreams.items() if name == known or name in upstream.names), None)
    if main is None or "*" in main:
        pattern = Patterns(upstreams).find(name)
        if pattern is None:
            raise UnknownUpstream(name, upstreams)
        yield Registry(name=name, part=_part(name), server=_server(concrete(upstreams[pattern], name).url))
        return
    names = [main, *upstreams[main].names]
    part = next((found for found in map(_part, names) if found), None)
    if _HUB_NAMES.intersection(names):
        # whatever of them an image says, clients make docker.io of it
        names = [DOCKER_HUB, *(one for one in names if one not in _HUB_NAMES)]
    for one in names:
        # an alias leads to what clients make of it, not to where the mirror fetches
        yield Registry(
            name=one, part=_part(one) or part, server=_server(upstreams[main].url) if one == names[0] else ""
        )


def _part(name: str) -> str | None:
    return None if ":" in name else name


def _server(url: str) -> str:
    """Return where nodes find the registry itself; "" when the mirror's way there is not theirs."""
    try:
        return "" if parse_place(urlsplit(url)._replace(path="").geturl()).only_here else url
    except PlaceInvalid:
        return url
