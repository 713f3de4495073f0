"""YAML text → plain data, with the line and column of every key and value.

Plain data is dict, list, str, int, float, bool and None. Refused, each with its place: keys given twice, keys that
are not text, tags of other types, and documents that are deep or that become huge when their aliases are
written out. Nothing but plain data is ever made from a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mirror.config.problems import ConfigError, Path, Problem, dotted

MAX_BYTES = 1024**2
MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Most values in a file with its aliases written out."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_BARE_V6 = re.compile(r"\[[0-9a-fA-F:.]*:[0-9a-fA-F:.]*\]:\d")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """A file as read. keys, values: where the key, or the value, of each path stands."""

    file: str
    data: Any = None
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
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


def parse_document(file: str, raw: bytes) -> Document:
    """Read a YAML file. file: its name in problems.

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
        document.data = _Builder(document).value(root, (), ())
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
    elif _BARE_V6.search(line):
        suggestion = 'put an IPv6 address in quotes: "[::1]:5000"'
    return document.problem(place, (), f"not valid YAML: {what}", suggestion)


class _Builder:
    """Makes plain data of nodes, and notes places and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
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
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                known = yaml.SafeLoader.bool_values.get(text.lower())
                if known is not None:
                    return known
            case "int" if ":" in text:  # 5000:60 was a number of base 60 in YAML 1.1; nobody means that
                return text
            case "float" if ":" in text:
                return text
            case "int" | "float" as tag:
                try:
                    return _number(tag, text)
                except ValueError:
                    pass
            case "str" | "timestamp" | "value":
                return text
        self.document.problems.append(
            self.document.problem(place, path, "expected plain text, a number, true, false or null")
        )
        return _Refused()


class _Refused:
    """Stands for a value that already has its problem."""


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
