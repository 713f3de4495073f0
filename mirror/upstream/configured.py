"""Upstreams as they are configured: by their name, or by a pattern of names.

A pattern is a host, and a port if it has one, in which ``*`` is any part of one label. What it matches is an upstream
of its own, called by the concrete name: nothing of two such hosts is ever mixed up. Names win over patterns, earlier
patterns over later ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TypeVar

from mirror import config
from mirror.config.problems import did_you_mean
from mirror.upstream.globs import compile_glob

T = TypeVar("T")

DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
"""Three names of one registry, whose official images are asked for by one-part names."""

_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?P<host>(?=[a-z0-9.-]{{1,253}}(?::|\Z)){_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?")
_LONGEST = 253 + len(":65535")
_HOST_PLACE = "{host}"

REMEMBERED = 1024
"""Names whose pattern is remembered: the same few are looked up with every request."""


class UnknownUpstream(Exception):
    """A name that is no upstream's. The text is what to say of it, with what may have been meant."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        known = list(known)
        hint = did_you_mean(name, known) or f"there are {', '.join(known) or 'none'}"
        super().__init__(f"no upstream is called {name[:120]!r}; {hint}")


class Patterns:
    """The patterns among the names of upstreams, in their order."""

    def __init__(self, names: Iterable[str]) -> None:
        self._patterns = [
            (name, compile_glob(host, "."), port or None)
            for name in names
            if is_pattern(name)
            for host, _, port in [name.partition(":")]
        ]
        self._known = lru_cache(REMEMBERED)(self._look_up)

    def find(self, name: str) -> str | None:
        """Return the first pattern that a registry's name, ``host[:port]`` in lower case, matches; else None."""
        return self._known(name) if self._patterns and len(name) <= _LONGEST else None

    def _look_up(self, name: str) -> str | None:
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        host, port = found["host"], found["port"]
        return next((name for name, glob, of_port in self._patterns if of_port == port and glob.fullmatch(host)), None)


class ByName(Mapping[str, T]):
    """Something of every upstream, by the concrete name: those of a pattern have what their pattern has.

    Iterates over the names that are no patterns; those that patterns match have no end.
    """

    def __init__(self, values: Mapping[str, T]) -> None:
        """values: by the name or pattern an upstream is configured under."""
        self._values = dict(values)
        self._names = [name for name in values if not is_pattern(name)]
        self._patterns = Patterns(values)

    def __getitem__(self, name: str) -> T:
        key = name if name in self._values else self._patterns.find(name)
        if key is None:
            raise KeyError(name)
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_pattern(name: str) -> bool:
    """Say whether an upstream is configured under a pattern."""
    return "*" in name


def concrete(settings: config.Upstream, name: str) -> config.Upstream:
    """Return the settings of the upstream of a pattern that has this name."""
    return settings.model_copy(update={"url": settings.url.replace(_HOST_PLACE, name)})


def key_of(text: str) -> str:
    """Return a registry's name without its case. Only of ASCII: other letters have small forms that are ASCII."""
    return text.lower() if text.isascii() else text


def docker_hubs(upstreams: Mapping[str, config.Upstream]) -> frozenset[str]:
    """Return the configured names of Docker Hub: of the upstreams that have one of its names."""
    return frozenset(
        name for name, upstream in upstreams.items() if not DOCKER_HUB.isdisjoint(map(key_of, (name, *upstream.names)))
    )
