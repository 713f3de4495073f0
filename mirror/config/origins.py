"""Where each setting of a configuration comes from: the default, a line, the environment, a file, the command line.

Follows the way the models are filled: what an upstream does not say is said by ``upstream_defaults``, what a listener
does not say by ``tls``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from mirror.config.document import Document, Source
from mirror.config.models import WHOLE, Config, Listener, Tls, Upstream, builtin_upstreams
from mirror.config.problems import Path as SettingPath
from mirror.config.problems import dotted

COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a setting comes from, in words.

    source: of what is not written in the file itself. written: the setting of the file that says it, if one does.
    """

    text: str
    source: Source | None = None
    written: SettingPath | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What was given for a setting: the data, where it stands, and by way of what it came to be there."""

    data: Any
    at: SettingPath
    via: str = ""

    def key(self, name: str, *, shorthand: bool) -> _Given | None:
        """Return what was given for a setting of this section. shorthand: it is what the section is when it is text."""
        if isinstance(self.data, Mapping):
            found = name in self.data
            return _Given(data=self.data[name], at=(*self.at, name), via=self.via) if found else None
        return self if shorthand and self.data is not None else None

    def items(self) -> list[_Given]:
        """Return what was given for each entry of this list."""
        if not isinstance(self.data, (list, tuple)):
            return [self]
        return [_Given(data=one, at=(*self.at, at), via=self.via) for at, one in enumerate(self.data)]


def find_origins(config: Config, document: Document, overridden: AbstractSet[SettingPath]) -> dict[str, Origin]:
    """Return the origin of every single setting, by its dotted name; of a list of plain values, as a whole.

    document: with the data the configuration was made of. overridden: the paths that the command line gave.
    """
    walk = _Walk(document, overridden)
    walk.section(config, (), [_Given(data=document.data, at=())])
    return walk.found


_BUILTIN = "built-in list"
_SHORT = ("url", "address")
"""What a section is that is given as text."""


class _Walk:
    def __init__(self, document: Document, overridden: AbstractSet[SettingPath]) -> None:
        self.found: dict[str, Origin] = {}
        self._document = document
        self._overridden = overridden

    def section(self, section: BaseModel, path: SettingPath, given: Sequence[_Given]) -> None:
        for name in type(section).model_fields:
            inner = [one for g in given if (one := g.key(name, shorthand=name in _SHORT)) is not None]
            self._setting(getattr(section, name), (*path, name), inner)

    def _setting(self, value: Any, path: SettingPath, given: Sequence[_Given]) -> None:
        if isinstance(value, dict) and value:
            self._upstreams(value, path, given)
        elif isinstance(value, BaseModel):
            whole = isinstance(value, (*WHOLE, Tls))
            self.section(value, path, given[:1] if whole else given)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            entries = given[0].items() if given else [None] * len(value)
            for at, (one, own) in enumerate(zip(value, entries, strict=True)):
                more = [self._tls()] if isinstance(one, Listener) else []
                self.section(one, (*path, at), [own, *more] if own is not None else more)
        else:
            self.found[dotted(path)] = self._origin(given[0]) if given else Origin(text="default")

    def _upstreams(self, upstreams: dict[str, Upstream], path: SettingPath, given: Sequence[_Given]) -> None:
        common = _Given(
            data=self._document.data.get("upstream_defaults"), at=("upstream_defaults",), via="upstream_defaults"
        )
        builtin = {} if given else builtin_upstreams()
        for name, upstream in upstreams.items():
            if given:
                own = given[0].key(name, shorthand=False)
            else:
                own = _Given(data=builtin[name].model_dump(exclude_unset=True), at=(), via=_BUILTIN)
            self.section(upstream, (*path, name), [own, common] if own is not None else [common])

    def _tls(self) -> _Given:
        """What a listener has that does not say anything of TLS."""
        tls = self._document.data.get("tls")
        return _Given(data={} if tls is None else {"tls": tls}, at=(), via="tls")

    def _origin(self, given: _Given) -> Origin:
        if given.via == _BUILTIN:
            return Origin(text=_BUILTIN)
        if any(given.at[: len(over)] == over for over in self._overridden):
            return Origin(text=COMMAND_LINE)
        place = self._document.keys.get(given.at) or self._document.values[given.at]
        source = self._source(given.at)
        text = f"{self._document.file}:{place.line}" + (f" ({source})" if source else "")
        return Origin(text=f"{given.via} ({text})" if given.via else text, source=source, written=given.at)

    def _source(self, at: SettingPath) -> Source | None:
        """Return where a value comes from, or any entry of a list."""
        found = [source for path, source in self._document.sources.items() if path[: len(at)] == at]
        names = dict.fromkeys(name for source in found for name in source.names)
        return found[0] if len(found) == 1 else Source(text="", names=tuple(names)) if found else None
