"""What is examined: a configuration, and how far a look at it may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mirror.config import Config, Upstream
from mirror.upstream.configured import ByName, UnknownUpstream, concrete, is_pattern

TIMEOUT = 10.0
"""Seconds an upstream is given, if nothing else is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One examination.

    file: of the configuration, None for the defaults. online: whether upstreams are asked. upstreams: those that are,
    by their concrete names. timeout: seconds each of them is given.
    """

    config: Config
    file: Path | None = None
    online: bool = True
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    timeout: float = TIMEOUT

    @property
    def root(self) -> Path:
        return self.config.storage.root.absolute()


class StandsForMany(Exception):
    """A pattern where one upstream has to be named. The text says so."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} stands for many registries; name one of them")


def chosen(config: Config, names: Sequence[str]) -> dict[str, Upstream]:
    """Return the upstreams to ask: those named, of which some may be what a pattern matches; else all but patterns.

    Raises: UnknownUpstream, StandsForMany.
    """
    if not names:
        return {name: settings for name, settings in config.upstreams.items() if not is_pattern(name)}
    known = ByName(config.upstreams)
    found = {}
    for name in names:
        if is_pattern(name):
            raise StandsForMany(name)
        if name not in known:
            raise UnknownUpstream(name, config.upstreams)
        settings = known[name]
        found[name] = settings if name in config.upstreams else concrete(settings, name)
    return found
