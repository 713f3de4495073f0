"""Which repository a request means: one of a configured upstream's, or one of our own.

The world is closed: what a request says is looked up among the configured upstreams and never dialled. A pattern
among them opens it for the hosts it matches, each of which is an upstream of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from mirror import config
from mirror.oci.errors import NameUnknown
from mirror.oci.names import MAX_NAME, Repository, RepositoryName, parse_name
from mirror.upstream.configured import DOCKER_HUB, Patterns, docker_hubs, is_pattern, key_of
from mirror.upstream.globs import compile_glob

_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PORT = re.compile(r":[0-9]*\Z")


By = Literal["ns", "host", "prefix", "path", "local", "packages", "default"]
"""What says which registry a request means: the parameter, the Host header, X of ``/X/v2``, the first part of the
name, a pattern of our own names, the packages folder, or nothing, so that it is the default.
"""


class Meaning(NamedTuple):
    """The repository a request means. by: why. said: what says so; a pattern for "local", None for the default."""

    repository: Repository
    by: By
    said: str | None


class Router:
    """Turn what a request says into a repository. No input or output; made once per configuration."""

    def __init__(
        self,
        upstreams: Mapping[str, config.Upstream],
        default: str | None,
        local: Sequence[str],
        names: Sequence[str] = (),
        packaged: Callable[[RepositoryName], bool] = lambda _: False,
    ) -> None:
        """Prepare the lookup.

        upstreams: by configured name or pattern. default: the name of the one for everything else, None for none.
        names: hosts that mean this registry itself, also where a pattern matches them: what names them is as if it
        named none.
        local: globs of names that are our own; ``*`` is within one part, ``**`` any number of parts.
        packaged: says of a name that it is of the packages folder, and so our own as well.
        Raises: ValueError when one name means two registries, or the default is not configured.
        """
        if default is not None and default not in upstreams:
            raise ValueError(f"default_upstream: {default} is not one of upstreams")
        self._default = default
        self._by_alias: dict[str, str] = {}
        self._patterns = Patterns(upstreams)
        for name, upstream in upstreams.items():
            if is_pattern(name):
                continue
            for alias in (name, *upstream.names):
                key = key_of(alias)
                if self._by_alias.setdefault(key, name) != name:
                    raise ValueError(f"upstreams: {alias} means both {self._by_alias[key]} and {name}")
        self._packaged = packaged
        self._own = {key_of(own) for own in names}
        for own in names:
            if (source := self._by_alias.get(key_of(own))) is not None:
                raise ValueError(f"names: {own} means the upstream {source}")
        hubs = docker_hubs(upstreams)
        if len(hubs) == 1:
            for alias in DOCKER_HUB - self._own:
                self._by_alias.setdefault(alias, next(iter(hubs)))
        self._hub = hubs | DOCKER_HUB
        self._local = {pattern: compile_glob(pattern) for pattern in local}

    def route(self, *, ns: str | None, host: str | None, prefix: str | None, name: str) -> Repository:
        """Return the repository a request is about.

        ns: its ``ns`` parameter ("Registry Proxying" of the specification); host: its Host header; prefix: X of
        ``/X/v2/…``; name: the raw repository path of ``/v2/<name>/…``. What comes first decides.
        Raises: NameUnknown (404 NAME_UNKNOWN) when it names a registry that is not configured;
        NameInvalid (400 NAME_INVALID) when what is left is no repository name.
        """
        return self.explain(ns=ns, host=host, prefix=prefix, name=name).repository

    def explain(self, *, ns: str | None, host: str | None, prefix: str | None, name: str) -> Meaning:
        """Return the repository a request is about, and why. Arguments and errors as of ``route``."""
        if ns and key_of(ns) not in self._own:
            return Meaning(self._at(self._named(ns), name), "ns", ns)
        if host and (source := self._by_host(host)):
            return Meaning(self._at(source, name), "host", host)
        if prefix and key_of(prefix) not in self._own:
            return Meaning(self._at(self._named(prefix), name), "prefix", prefix)
        first, slash, rest = name.partition("/")
        if slash and key_of(first) in self._own and (self._is_local(rest) or not self._is_local(name)):
            name = rest
            first, slash, rest = name.partition("/")
        if slash and (source := self._find(key_of(first))):
            return Meaning(self._repository(source, rest), "path", first)
        if why := self._why_local(name):
            return Meaning(Repository(None, parse_name(name)), *why)
        if slash and _looks_like_host(first):
            raise _not_configured(first)
        if len(name) > MAX_NAME:
            parse_name(name)  # says so: no pattern was asked about it
        if self._default is None:
            raise NameUnknown(
                f"{name[:120]!r} says no registry, and there is no default: put the registry's name first, or "
                "set default_upstream, or list the name under local",
                detail={"name": name[:255]},
            )
        return Meaning(self._repository(self._default, name), "default", None)

    def is_own(self, host: str) -> bool:
        """Say whether a host means this registry itself."""
        return key_of(host) in self._own

    def is_configured(self, registry: str) -> bool:
        """Say whether a registry's name is an upstream's."""
        return self._find(key_of(registry)) is not None

    def check(self, *, ns: str | None, prefix: str | None) -> None:
        """Make sure that a request which names no repository is about a registry we know, or ourselves.

        Raises: NameUnknown (404 NAME_UNKNOWN).
        """
        named = next((registry for registry in (ns, prefix) if registry and key_of(registry) not in self._own), None)
        if named is not None:
            self._named(named)

    def _named(self, registry: str) -> str:
        source = self._find(key_of(registry))
        if source is None:
            raise _not_configured(registry)
        return source

    def _find(self, key: str) -> str | None:
        """Return the upstream a registry's name means; one that a pattern matches is called by the name itself."""
        source = self._by_alias.get(key)
        if source is None and self._patterns.find(key) is not None and key not in self._own:
            return key
        return source

    def _is_local(self, name: str) -> bool:
        return self._why_local(name) is not None

    def _why_local(self, name: str) -> tuple[Literal["local", "packages"], str | None] | None:
        """Return why a name is one of our own, and the first pattern it matches; None when it is not."""
        if len(name) > MAX_NAME:  # it is none
            return None
        for text, pattern in self._local.items():
            if pattern.fullmatch(name):
                return "local", text
        return ("packages", None) if self._packaged(RepositoryName(name)) else None

    def _by_host(self, host: str) -> str | None:
        key = key_of(host)
        return None if key in self._own else self._find(key) or self._find(_PORT.sub("", key))

    def _at(self, source: str, name: str) -> Repository:
        """Return the repository at a known upstream; a first part that repeats the upstream goes."""
        first, slash, rest = name.partition("/")
        if slash and self._find(key_of(first)) == source:
            name = rest
        return self._repository(source, name)

    def _repository(self, source: str, name: str) -> Repository:
        if source in self._hub and name and "/" not in name:
            name = f"library/{name}"
        return Repository(source, parse_name(name))


def _looks_like_host(text: str) -> bool:
    return ("." in text or ":" in text or text.lower() == "localhost") and bool(_HOST.fullmatch(text))


def _not_configured(registry: str) -> NameUnknown:
    return NameUnknown(
        f"{registry[:120]!r} is not a registry this mirror is configured for: add it to upstreams, or to the "
        "names of one of them",
        detail={"registry": registry[:255]},
    )
