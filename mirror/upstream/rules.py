"""What may be pulled from upstreams, and what may not: ``allow`` and ``deny`` of each.

A rule is a glob of the upstream's repositories, and perhaps one of tags behind a colon.

    deny   repository        nothing of it: no tag, digest, blob or list
    deny   repository:tag    not by such a tag, which is not listed either; by digest it cannot be told apart
    allow  repository        all of it
    allow  repository:tag    by such a tag; and by digest, as a tag's manifests and blobs are all got that way

``deny`` wins. With ``allow`` given, what no rule of it matches is not allowed. What is decided is the repository that
a request means, however it says so; whether content of it is kept makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mirror import config
from mirror.oci.errors import Denied
from mirror.oci.names import Digest, Reference, Repository, Tag
from mirror.upstream.configured import DOCKER_HUB, ByName, docker_hubs
from mirror.upstream.globs import compile_glob

MOST_SHOWN = 10
"""Rules that an error lists."""
_LIBRARY = "library/"


class Rules:
    """The rules of every upstream. No input or output; made once per configuration."""

    def __init__(self, upstreams: Mapping[str, config.Upstream]) -> None:
        """upstreams: by configured name or pattern."""
        every = {name: _rules(name, upstream) for name, upstream in upstreams.items()}
        self._rules = ByName(every) if any(every.values()) else None
        self._hubs = docker_hubs(upstreams) | DOCKER_HUB

    def check(self, repository: Repository, target: Tag | Digest | None = None) -> None:
        """Make sure that something may be pulled.

        target: of a manifest; None for blobs and lists. Raises: Denied (403 DENIED), which says by which rule not.
        """
        if self._rules is None:
            return
        ruling = self.ruling(repository, target)
        if not ruling.allowed:
            what = repository if target is None else Reference(repository, target)
            raise Denied(f"{what} may not be pulled: {ruling.why}", detail={"name": str(repository)})

    def visible(self, repository: Repository, tag: Tag) -> bool:
        """Say whether a tag may be pulled, and so is listed."""
        return self.ruling(repository, tag).allowed

    def ruling(self, repository: Repository, target: Tag | Digest | None = None) -> Ruling:
        """Say whether something may be pulled, and which rule decides. target: as of ``check``."""
        if self._rules is None or repository.source is None:
            return _NO_RULE
        rules = self._rules.get(repository.source)
        if rules is None:
            return _NO_RULE
        names = [str(repository.name)]
        official = repository.name.removeprefix(_LIBRARY)
        if repository.source in self._hubs and official != repository.name and "/" not in official:
            names.append(official)  # as people write it, and mean no other by it
        return rules.ruling(names, None if isinstance(target, Digest) else target)


class Ruling(NamedTuple):
    """Whether something may be pulled. why: the rule that decides, in words; None when there is none to decide."""

    allowed: bool
    why: str | None


_NO_RULE = Ruling(True, None)


@dataclass(frozen=True, slots=True)
class _Rule:
    """text: as it is configured. tag: None for one about the repository."""

    text: str
    repository: re.Pattern[str]
    tag: re.Pattern[str] | None

    def names(self, names: Sequence[str]) -> bool:
        return any(self.repository.fullmatch(name) for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _UpstreamRules:
    """The rules of one upstream. place: where they are configured."""

    place: str
    allow: tuple[_Rule, ...] | None
    deny: tuple[_Rule, ...]

    def ruling(self, names: Sequence[str], tag: str | None) -> Ruling:
        """Decide on a pull. names: of the repository. tag: None for what is not asked by one."""
        for rule in self.deny:
            if (rule.tag is None or (tag is not None and rule.tag.fullmatch(tag))) and rule.names(names):
                return Ruling(False, f'{self.place}.deny has "{rule.text}"')
        if self.allow is None:
            return Ruling(True, f"nothing in {self.place}.deny matches")
        for rule in self.allow:
            if (rule.tag is None or tag is None or rule.tag.fullmatch(tag)) and rule.names(names):
                return Ruling(True, f'{self.place}.allow has "{rule.text}"')
        shown = [rule.text for rule in self.allow[:MOST_SHOWN]]
        if len(self.allow) > MOST_SHOWN:
            shown.append(f"and {len(self.allow) - MOST_SHOWN} more")
        return Ruling(False, f"nothing in {self.place}.allow matches ({', '.join(shown) or 'it is empty'})")


def _rules(name: str, upstream: config.Upstream) -> _UpstreamRules | None:
    if upstream.allow is None and not upstream.deny:
        return None
    allow = None if upstream.allow is None else tuple(map(_rule, upstream.allow))
    return _UpstreamRules(place=f"upstreams.{name}", allow=allow, deny=tuple(map(_rule, upstream.deny)))


def _rule(text: str) -> _Rule:
    repository, colon, tag = text.partition(":")
    return _Rule(text, compile_glob(repository), compile_glob(tag) if colon else None)
