"""A file, and what the command line says, → a Config; or every problem there is, at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from mirror.config import values
from mirror.config.agreement import (
    access_disagreements,
    disagreements,
    logins_disagreements,
    proxy_disagreements,
    upstream_disagreements,
)
from mirror.config.document import Document, Place, is_refused, parse_document
from mirror.config.models import DISAGREEMENT, Config, Section, builtin_upstreams, default_root
from mirror.config.problems import ConfigError, Problem, did_you_mean, dotted
from mirror.config.problems import Path as SettingPath

COMMAND_LINE = "command line"


def load_config(path: Path | None, overrides: Mapping[str, Any] = {}) -> Config:
    """Read the configuration.

    path: a YAML file; None for the defaults alone. overrides: dotted setting → value from the command line, such as
    ``storage.root`` or ``workers``; they win over the file, and None is as not given. Relative paths start from the
    file's folder, those of overrides from the working directory.
    Raises: ConfigError with every problem found.
    """
    if path is None:
        document, base = Document("configuration"), Path.cwd()
    else:
        document, base = parse_document(str(path), _read(path)), Path.cwd() / path.parent
    data = {} if document.data is None else document.data
    if is_refused(data):
        raise ConfigError(document.problems)
    if not isinstance(data, dict):
        problem = document.problem(document.values[()], (), f"expected a mapping of settings, got {values.kind(data)}")
        raise ConfigError([*document.problems, problem])

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
    return config


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
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

    def problem(self, path: SettingPath, message: str, suggestion: str = "", *, at_key: bool = False) -> Problem:
        path = self._shortened(path)
        if any(path[: len(over)] == over for over in self.overridden):
            return Problem(file=COMMAND_LINE, path=dotted(path), message=message, suggestion=suggestion)
        place = self._place(path, at_key=at_key)
        if place is None:
            return Problem(file=self.document.file, path=dotted(path), message=message, suggestion=suggestion)
        return self.document.problem(place, path, message, suggestion)

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
        suggestion = ""
        match item["type"]:
            case "setting":
                message, suggestion = context["message"], context["suggestion"]
            case "extra_forbidden":
                at_key, message, suggestion = True, "unknown key", _known_like(path)
            case "missing":
                message = "is required"
            case "model_type" | "dict_type":
                message = f"expected a mapping, got {values.kind(given)}"
                if path == ("upstreams",) and given is None:
                    suggestion = "leave the key out for the built-in upstreams, or write {} for none"
            case "tuple_type":
                message = f"expected a list, got {values.kind(given)}"
                suggestion = "put it in [ ]" if isinstance(given, str) else ""
            case "literal_error":
                message = f"expected {context['expected'].replace(chr(39), '')}"
                suggestion = did_you_mean(given, _choices(path)) if isinstance(given, str) else ""
            case _:
                message = item["msg"]
        yield finder.problem(path, message, suggestion, at_key=at_key)


def _known_like(path: SettingPath) -> str:
    """Suggest a key for one that is not known: of the same section, or of a section in it."""
    *above, key = path
    section = _annotation(tuple(above))
    if not (isinstance(section, type) and issubclass(section, Section)):
        return ""
    word = str(key)
    inner = {name.rpartition(".")[2]: name for name in _names(section)}
    if word in inner:
        return f'did you mean "{inner[word]}"?'
    return did_you_mean(word, section.model_fields) or did_you_mean(word, inner, cutoff=0.75)


def _names(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Give every setting in a section, dotted."""
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = _bare(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from _names(inner, f"{prefix}{name}.")


def _annotation(path: SettingPath) -> Any:
    """Return the type of the setting at a path; None when there is no such setting."""
    current: Any = Config
    for part in path:
        if isinstance(current, type) and issubclass(current, Section):
            field = current.model_fields.get(str(part))
            current = _bare(field.annotation) if field else None
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        elif get_origin(current) is tuple and isinstance(part, int):
            current = get_args(current)[0]
        else:
            return None
    return current


def _bare(annotation: Any) -> Any:
    """Take ``| None`` off a type."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    return options[0] if type(None) in get_args(annotation) and len(options) == 1 else annotation


def _choices(path: SettingPath) -> list[str]:
    return [choice for choice in get_args(_annotation(path)) if isinstance(choice, str)]


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
    for path, message, suggestion in found:
        yield finder.problem(path, message, suggestion)


def _texts(listed: Any) -> dict[int, str]:
    """Return what is text in a list, by its index."""
    return {at: one for at, one in enumerate(listed) if isinstance(one, str)} if isinstance(listed, list) else {}


def _builtin() -> dict[str, Any]:
    return {name: {"names": list(upstream.names)} for name, upstream in builtin_upstreams().items()}
