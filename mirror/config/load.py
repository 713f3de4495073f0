"""A file, and what the command line says, → a Config; or every problem there is, at once."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mirror.config import shapes, values
from mirror.config.agreement import (
    access_disagreements,
    disagreements,
    logins_disagreements,
    proxy_disagreements,
    upstream_disagreements,
)
from mirror.config.document import Document, Place, is_refused, parse_document
from mirror.config.given import prepare
from mirror.config.models import (
    DISAGREEMENT,
    Config,
    Listener,
    Mirror,
    Proxy,
    Upstream,
    UpstreamDefaults,
    builtin_upstreams,
    default_root,
)
from mirror.config.origins import COMMAND_LINE, Origin, find_origins
from mirror.config.problems import ConfigError, Problem, did_you_mean, dotted
from mirror.config.problems import Path as SettingPath


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration, and where it comes from.

    file: as it is named in problems. origins: of every setting, by its dotted name. finder: knows the places.
    """

    config: Config
    file: str
    origins: Mapping[str, Origin]
    finder: _Finder

    def problem(self, path: SettingPath, message: str, suggestion: str = "", *, quiet: str | None = None) -> Problem:
        """Make a problem of a setting that was found later, where the setting was given.

        quiet: the message when the value may not be repeated; None when the message has nothing of it.
        """
        origin = self.origins.get(dotted(path))
        if origin is not None and origin.written is not None:
            path = origin.written
        return self.finder.problem(path, message, suggestion, quiet=quiet)

    def discreet(self, line: str) -> str:
        """Return what is said of the configuration without the values that are not written in the file."""
        for source in self.finder.document.sources.values():
            if len(source.text) > 3:  # shorter ones are parts of words
                line = line.replace(source.text, str(source))
        return line


def load_config(path: Path | None, overrides: Mapping[str, Any] = {}, *, again: bool = False) -> Config:
    """Read the configuration, as ``read_config`` does, and return nothing else."""
    return read_config(path, overrides, again=again).config


def read_config(path: Path | None, overrides: Mapping[str, Any] = {}, *, again: bool = False) -> Loaded:
    """Read the configuration, and find out where each of its settings comes from.

    path: a YAML file; None for the defaults alone. overrides: dotted setting → value from the command line, such as
    ``storage.root`` or ``workers``; they win over the file, and None is as not given. Relative paths start from the
    file's folder, those of overrides from the working directory. ``${NAME}`` in the file is the environment's, now.
    again: by a service that runs; never waits then, as for a pipe, and an empty file is not taken for the defaults.
    Raises: ConfigError with every problem found.
    """
    if path is None:
        document, base = Document("configuration"), Path.cwd()
    else:
        document, base = parse_document(str(path), _read(path, again=again), os.environ), Path.cwd() / path.parent
    if document.data is None:
        document.data = {}
    data = document.data
    if is_refused(data):
        raise ConfigError(document.problems)
    if not isinstance(data, dict):
        hint = "write a space after each colon" if isinstance(data, str) and ":" in data else ""
        message = f"expected a mapping of settings, got {values.kind(data)}"
        problem = document.problem(document.values[()], (), message, hint)
        raise ConfigError([*document.problems, problem])

    prepare(document, Config, base)
    overridden = _override(data, overrides)
    finder = _Finder(document, overridden)
    problems = [*document.problems]
    if not _has_root(data) and (homeless := _without_home(finder, data)):
        problems.append(homeless)
    config = None
    try:
        config = Config.model_validate(data, context=values.Loading(base))
    except ValidationError as error:
        problems += _explained(error, finder)
    problems += _disagreeing(data, finder)
    if problems or config is None:
        raise ConfigError(sorted(problems, key=lambda p: (p.line or 0, p.column or 0)))
    origins = find_origins(config, document, overridden)
    return Loaded(config=config, file=document.file, origins=origins, finder=finder)


def _read(path: Path, *, again: bool) -> bytes:
    try:
        if again and stat.S_ISFIFO(path.stat().st_mode):
            raise ConfigError([Problem(file=str(path), message="is a pipe, which cannot be read again")])
        raw = path.read_bytes()
        if again and not raw:  # a disk that is full, or somebody about to write it
            raise ConfigError([Problem(file=str(path), message="is empty", suggestion="write {} for the defaults")])
        return raw
    except FileNotFoundError:
        reason = "no such file"
    except IsADirectoryError:
        reason = "is a folder, not a file"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    raise ConfigError([Problem(file=str(path), message=reason)])


def _override(data: dict[str, Any], overrides: Mapping[str, Any]) -> set[SettingPath]:
    """Put the overrides into the data; return the paths that are theirs."""
    done: set[SettingPath] = set()
    for name, value in overrides.items():
        if value is None:
            continue
        *sections, last = name.split(".")
        section = data
        for part in sections:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
            if not isinstance(section, dict):
                break  # the file has something else there, which has its own problem
        else:
            section[last] = values.Typed(value) if isinstance(value, str) else value
            done.add((*sections, last))
    return done


def _has_root(data: dict[str, Any]) -> bool:
    storage = data.get("storage")
    return storage is not None and (not isinstance(storage, dict) or "root" in storage)


def _without_home(finder: _Finder, data: dict[str, Any]) -> Problem | None:
    """Find out that there is no default folder, before a model needs it."""
    try:
        default_root()
    except RuntimeError:
        data["storage"] = (data.get("storage") or {}) | {"root": os.devnull}
        message = "there is no home folder to make a default of"
        return finder.problem(("storage", "root"), message, "give the folder to keep things in")
    return None


class _Finder:
    """Finds the place a problem is at: in the file, or on the command line."""

    def __init__(self, document: Document, overridden: set[SettingPath]) -> None:
        self.document = document
        self.overridden = overridden

    def problem(
        self, path: SettingPath, message: str, suggestion: str = "", *, at_key: bool = False, quiet: str | None = None
    ) -> Problem:
        """Make a problem. at_key: it is about the key. quiet: the message when the value may not be repeated."""
        path = self._shortened(path)
        if any(path[: len(over)] == over for over in self.overridden):
            return Problem(file=COMMAND_LINE, path=dotted(path), message=message, suggestion=suggestion)
        if not at_key:
            message, suggestion = self._discreet(path, message, suggestion, quiet)
        place = self._place(path, at_key=at_key)
        path = self.document.named.get(path, path)
        if place is None:
            return Problem(file=self.document.file, path=dotted(path), message=message, suggestion=suggestion)
        return self.document.problem(place, path, message, suggestion)

    def _discreet(self, path: SettingPath, message: str, suggestion: str, quiet: str | None) -> tuple[str, str]:
        """Leave out what is not written in the file: a suggestion would repeat something of it."""
        for secret, source in self.document.sources.items():
            if path[: len(secret)] == secret:
                where = f"{' and '.join(source.names)} of the environment" if source.names else "what the file holds"
                hint = suggestion if suggestion == values.WITHOUT_QUOTES else f"check {where}"
                return (message if quiet is None else quiet), hint
            if secret[: len(path)] == path:
                message = message if quiet is None else quiet
        return message, suggestion

    def _place(self, path: SettingPath, *, at_key: bool) -> Place | None:
        if not at_key and path in self.document.values:
            return self.document.values[path]
        for end in range(len(path), 0, -1):  # something missing is shown at the key of what it is missing from
            if path[:end] in self.document.keys:
                return self.document.keys[path[:end]]
            if path[:end] in self.document.values:
                return self.document.values[path[:end]]
        return None

    def _shortened(self, path: SettingPath) -> SettingPath:
        """Leave out what is not in the file: the indexes of lists, and the keys of sections, written as one value."""
        found: SettingPath = ()
        data = self.document.data
        for part in path:
            if isinstance(part, int) and (*found, part) not in self.document.values:
                continue
            if isinstance(data, (str, int, float)):
                break
            found = (*found, part)
            known = (isinstance(data, dict) and part in data) or (
                isinstance(data, list) and isinstance(part, int) and part < len(data)
            )
            data = data[part] if known else None
        return found


def _explained(error: ValidationError, finder: _Finder) -> Iterator[Problem]:
    """Say each error in our words. Never repeats a value: ``values`` decides what may be shown."""
    for item in error.errors(include_url=False):
        path, given = item["loc"], item["input"]
        at_key = path[-1:] == ("[key]",)
        path = path[:-1] if at_key else path
        if is_refused(given) or item["type"] == DISAGREEMENT:
            continue
        context = item.get("ctx", {})
        suggestion, quiet = "", None
        match item["type"]:
            case "setting":
                message, suggestion, quiet = context["message"], context["suggestion"], context["quiet"]
            case "extra_forbidden":
                at_key, message, suggestion = True, "unknown key", _known_like(path)
            case "missing":
                at_key, message = True, "is required"
            case "model_type" | "dict_type":
                message = f"expected a mapping, got {values.kind(given)}"
                suggestion = _as_mapping(path, given)
            case "tuple_type":
                message = f"expected a list, got {values.kind(given)}"
                suggestion = "put it in [ ]" if isinstance(given, str) else ""
            case "literal_error":
                message = f"expected {context['expected'].replace(chr(39), '')}"
                suggestion = did_you_mean(given, _choices(path)) if isinstance(given, str) else ""
            case _:
                message, quiet = item["msg"], "cannot be used"
        yield finder.problem(path, message, suggestion, at_key=at_key, quiet=quiet)


def _as_mapping(path: SettingPath, given: Any) -> str:
    """Suggest what to write where there is something else than a mapping."""
    section = shapes.as_section(_annotation(path))
    if path == ("upstreams",):
        none = "leave the key out for the built-in upstreams, or write {} for none"
        return none if given is None else "write each as NAME: {url: …}"
    if isinstance(given, str) and section is not None and "url" in section.model_fields:
        return "give the URL as url: in it"
    return ""


def _known_like(path: SettingPath) -> str:
    """Suggest a key for one that is not known: of the same section, or of a section in it."""
    *above, key = path
    section = shapes.as_section(_annotation(tuple(above)))
    if section is None:
        return ""
    word = str(key)
    if section is UpstreamDefaults and word in Upstream.model_fields:
        return f"{word} is each upstream's own"
    inner: dict[str, str] = {}
    for name in _names(section):
        inner.setdefault(name.rpartition(".")[2], name)  # the first, which is the nearest
    if word in inner:
        return f'did you mean "{inner[word]}"?'
    known = [*section.model_fields, *dict(shapes.from_files(section))]
    return did_you_mean(word, known) or did_you_mean(word, inner, cutoff=0.75)


def _names(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Give every setting in a section and in those in it, dotted; those of a proxy only as a part of it."""
    for name in section.model_fields:
        yield prefix + name
    for name, field in section.model_fields.items():
        inner = shapes.as_section(field.annotation) or shapes.as_section(shapes.item(field.annotation))
        if inner is not None and inner not in (Proxy, Mirror, Listener):
            yield from _names(inner, f"{prefix}{name}.")


def _annotation(path: SettingPath) -> Any:
    """Return the type of the setting at a path; None when there is no such setting."""
    current: Any = Config
    for part in path:
        section, item, entry = shapes.as_section(current), shapes.item(current), shapes.entry(current)
        if item is not None:
            current = item
            section = shapes.as_section(item)
            if isinstance(part, int):
                continue
        if section is not None:
            field = section.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            current = entry
    return current


def _choices(path: SettingPath) -> list[str]:
    return [choice for choice in get_args(shapes.bare(_annotation(path))) if isinstance(choice, str)]


def _disagreeing(data: dict[str, Any], finder: _Finder) -> Iterator[Problem]:
    """Check what goes together, as far as it has the right shape: also when something else is wrong."""
    found = access_disagreements(access) if isinstance(access := data.get("access"), dict) else iter(())
    upstreams = data["upstreams"] if "upstreams" in data else _builtin()
    if isinstance(upstreams, dict):
        names = {
            name: _texts(upstream.get("names") if isinstance(upstream, dict) else None)
            for name, upstream in upstreams.items()
        }
        default = data.get("default_upstream")
        default = default if isinstance(default, str) and default.strip() else None
        found = chain(found, disagreements(names, default, own=_texts(data.get("names"))))
        found = chain(found, upstream_disagreements(upstreams))
    if isinstance(defaults := data.get("upstream_defaults"), dict):
        found = chain(found, logins_disagreements(("upstream_defaults",), defaults))
    found = chain(found, proxy_disagreements(("proxy",), data.get("proxy")))
    for path, message, suggestion, quiet in found:
        yield finder.problem(path, message, suggestion, at_key=message == "is required", quiet=quiet)


def _texts(listed: Any) -> dict[int, str]:
    """Return what is text in a list, by its index."""
    return {at: one for at, one in enumerate(listed) if isinstance(one, str)} if isinstance(listed, list) else {}


def _builtin() -> dict[str, Any]:
    return {name: {"names": list(upstream.names)} for name, upstream in builtin_upstreams().items()}
