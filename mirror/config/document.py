"""YAML text → plain data, with the line and column of every key and value, and variables of the environment put in.

Plain data is dict, list, str, int, float, bool and None. Refused, each with its place: keys given twice, keys that
are not text, tags of other types, and documents that are deep or that become huge when their aliases are
written out. Nothing but plain data is ever made from a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mirror.config.environment import REFERENCE, substitute
from mirror.config.problems import ConfigError, Path, Problem, dotted

MAX_BYTES = 1024**2
MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Most values in a file with its aliases written out."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_RESOLVER: Any = yaml.resolver.Resolver()
_OWN_TAG = re.compile(r"(?:&\S+\s+)?!")
_BARE_V6 = re.compile(r"\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]:\d")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a value comes from that is not written in the file: it may be a secret, and is never repeated.

    names: the variables of the environment, or () and the file it is in. text: the value as it is there. alone:
    nothing of the value is in the file.
    """

    text: str = field(repr=False)
    names: tuple[str, ...] = ()
    file: FilePath | None = None
    alone: bool = True

    def __str__(self) -> str:
        if self.file is not None:
            return f"file {self.file}"
        return ", ".join(f"${{{name}}}" for name in self.names)


@dataclass(slots=True)
class Document:
    """A file as read. keys, values: where the key, or the value, of each path stands.

    sources: of the values that are not written in the file. named: the path as it is written there, of a setting that
    is given by another key.
    """

    file: str
    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    sources: dict[Path, Source] = field(default_factory=dict)
    named: dict[Path, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, place: Place, path: Path, message: str, suggestion: str = "") -> Problem:
        return Problem(
            file=self.file,
            line=place.line,
            column=place.column,
            path=dotted(path),
            message=message,
            suggestion=suggestion,
        )


def parse_document(file: str, raw: bytes, environ: Mapping[str, str]) -> Document:
    """Read a YAML file. file: its name in problems. environ: what ``${NAME}`` stands for.

    Problems that leave the rest readable are in the result.
    Raises: ConfigError, with one problem, when it cannot be read at all.
    """
    document = Document(file)
    if len(raw) > MAX_BYTES:
        raise ConfigError([Problem(file=file, message=f"is larger than {MAX_BYTES} bytes")])
    text = _decode(document, raw)
    try:
        root = _compose(document, text)
    except yaml.reader.ReaderError:
        at = next((i for i, char in enumerate(text) if yaml.reader.Reader.NON_PRINTABLE.match(char)), 0)
        place = _place_in(text, at)
        raise ConfigError([document.problem(place, (), "not valid YAML: a control character")]) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError([_syntax_problem(document, text, error)]) from None
    if root is not None:
        document.data = _Builder(document, text, environ).value(root, (), ())
    return document


def _decode(document: Document, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place_in(error.object[: error.start].decode("utf-8-sig"), -1)
        raise ConfigError([document.problem(place, (), "not valid UTF-8 text")]) from None


def _place_in(text: str, at: int) -> Place:
    """Return the place of a character; at: its index, -1 for just after the end."""
    before = text if at < 0 else text[:at]
    return Place(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _compose(document: Document, text: str) -> Node | None:
    # depth is looked at before nodes are made, as making them recurses
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError([document.problem(_place(event.start_mark), (), _TOO_DEEP)])
    node: Node | None = yaml.compose(text, Loader=_LOADER)
    return node


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def _place(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1)


def _syntax_problem(document: Document, text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = _place(mark) if mark else Place(1, 1)
    what = error.problem or error.context or "cannot be understood"
    lines = text.splitlines()
    line = lines[place.line - 1] if place.line <= len(lines) else ""
    rest = line[place.column - 1 :]
    suggestion = ""
    if "nesting depth" in what:  # newer parsers have a limit of their own, which they meet when they read ahead
        return document.problem(place, (), _TOO_DEEP)
    if what.startswith("found undefined alias"):
        what, suggestion = "found an alias of nothing", "put text that begins with * in quotes"
    elif rest.startswith("\t"):
        what, suggestion = "found a tab", "indent by spaces"
    elif what.startswith("found character"):  # one loader names the character, the other does not
        what, suggestion = "found a character that cannot begin a value", "put the text in quotes"
    elif "flow" in str(error.context) and line[: place.column].endswith("${"):
        what, suggestion = "found ${ within [ ] or { }", 'put it in quotes: "${NAME}"'
    elif _BARE_V6.search(line):
        what, suggestion = "found what begins as a list", 'put an IPv6 address in quotes: "[::1]:5000"'
    return document.problem(place, (), f"not valid YAML: {what}", suggestion)


class _Builder:
    """Makes plain data of nodes, and notes places and problems in the document."""

    def __init__(self, document: Document, text: str, environ: Mapping[str, str]) -> None:
        self.document = document
        self.text = text
        self.environ = environ
        self.count = 0

    def value(self, node: Node, path: Path, above: tuple[Node, ...]) -> Any:
        place = self._enter(node, path, above)
        self.document.values[path] = place
        above = (*above, node)
        match node:
            case MappingNode():
                return self._mapping(node, path, above)
            case SequenceNode():
                return [self.value(item, (*path, at), above) for at, item in enumerate(node.value)]
            case _:
                return self._scalar(node, path, place)

    def _enter(self, node: Node, path: Path, above: tuple[Node, ...]) -> Place:
        """Guard against documents without end."""
        place = _place(node.start_mark)
        self.count += 1
        if any(node is other for other in above):
            raise ConfigError([self.document.problem(place, path, "an alias of something it is part of")])
        if len(above) > MAX_DEPTH:
            raise ConfigError([self.document.problem(place, path, _TOO_DEEP)])
        if self.count > MAX_VALUES:
            message = f"more than {MAX_VALUES} values, with aliases written out"
            raise ConfigError([self.document.problem(place, (), message)])
        return place

    def _mapping(self, node: MappingNode, path: Path, above: tuple[Node, ...]) -> dict[str, Any]:
        pairs: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            if key in pairs:
                first = _place(pairs[key][0].start_mark)
                problem = self.document.problem(
                    _place(key_node.start_mark), (*path, key), f"given twice, first on line {first.line}"
                )
                self.document.problems.append(problem)
                continue
            pairs[key] = (key_node, value_node)
        for key, pair in self._merged(node, path, above).items():
            pairs.setdefault(key, pair)
        found = {}
        for key, (key_node, value_node) in pairs.items():
            inner = (*path, key)
            self.document.keys[inner] = _place(key_node.start_mark)
            found[key] = self.value(value_node, inner, above)
        return found

    def _merged(self, node: MappingNode, path: Path, above: tuple[Node, ...]) -> dict[str, tuple[Node, Node]]:
        """Collect what ``<<`` brings in; the first to bring a key wins. Source: YAML merge key type."""
        found: dict[str, tuple[Node, Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag != _TAG + "merge":
                continue
            sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
            for source in sources:
                place = self._enter(source, path, above)
                if not isinstance(source, MappingNode):
                    problem = self.document.problem(place, path, "expected << to bring in a mapping")
                    self.document.problems.append(problem)
                    continue
                self.count += len(source.value)
                for inner_key, inner_value in source.value:
                    if isinstance(inner_key, ScalarNode) and inner_key.tag == _TAG + "str":
                        found.setdefault(inner_key.value, (inner_key, inner_value))
                for key, pair in self._merged(source, path, (*above, source)).items():
                    found.setdefault(key, pair)
        return found

    def _key(self, node: Node, path: Path) -> str | None:
        if isinstance(node, ScalarNode) and node.tag == _TAG + "str":
            return str(node.value)
        problem = self.document.problem(
            _place(node.start_mark), path, "expected a key that is text", "put it in quotes"
        )
        self.document.problems.append(problem)
        return None

    def _scalar(self, node: Node, path: Path, place: Place) -> Any:
        if isinstance(node, ScalarNode) and REFERENCE in node.value:
            return self._from_environment(node, path, place)
        return self._plain(node.tag, node.value, path, place)

    def _from_environment(self, node: ScalarNode, path: Path, place: Place) -> Any:
        """Put variables in. A value without quotes, and without a tag, then means what YAML says it means."""
        found = substitute(node.value, self.environ)
        for message, suggestion in found.problems:
            if path[-1:] == ("password",):  # a default would be a password that is written in the file
                suggestion = suggestion.partition(", or")[0]
            self.document.problems.append(self.document.problem(place, path, message, suggestion))
        if found.problems:
            return REFUSED
        tag = node.tag
        if found.names:
            self.document.sources[path] = Source(text=found.text, names=found.names, alone=found.alone)
            if not node.style and not _OWN_TAG.match(self.text, node.start_mark.index):
                tag = implied_tag(found.text)
        return self._plain(tag, found.text, path, place)

    def _plain(self, tag: str, text: str, path: Path, place: Place) -> Any:
        try:
            return scalar(tag, text)
        except ValueError:
            self.document.problems.append(self.document.problem(place, path, NOT_PLAIN))
            return REFUSED


NOT_PLAIN = "expected plain text, a number, true, false or null"


def implied_tag(text: str) -> str:
    """Return the tag that a value has when it is written without quotes."""
    return str(_RESOLVER.resolve(ScalarNode, text.strip(), (True, False)))


def scalar(tag: str, text: str) -> Any:
    """Return what the text of a value means. Raises: ValueError when that is no plain data."""
    match tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            known = yaml.SafeLoader.bool_values.get(text.strip().lower())
            if known is None:
                raise ValueError
            return known
        case "int" | "float" if ":" in text:  # 5000:60 was a number of base 60 in YAML 1.1; nobody means that
            return text
        case "int" | "float" as kind:
            return _number(kind, text.strip())
        case "str" | "timestamp" | "value" | "merge":
            return text
    raise ValueError


class _Refused:
    """Stands for a value that already has its problem."""


REFUSED = _Refused()


def is_refused(value: Any) -> bool:
    """Tell whether a value already has its problem, so that no second one is made of it."""
    return isinstance(value, _Refused)


def _number(tag: str, text: str) -> int | float:
    """Read a number as YAML 1.1 writes them: 12, 1_000, 0x1f, 0b11, 017, 1.5, .inf, .nan."""
    text = text.replace("_", "").lower()
    if tag == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("+-")
    if text.startswith("0") and text != "0" and text[1:].isdigit():
        return sign * int(text, 8)
    return sign * int(text, 0)
