"""The metrics and labels that a PromQL expression uses. No parser: promtool is, where it is to be had."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\s+ | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*') | (?P<range>\[[^\]]*\])
    | (?P<number>\d[\w.]*) | (?P<word>[A-Za-z_:$][\w:]*) | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},])""",
    re.VERBOSE,
)
_GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan", *_GROUPING}


@dataclass(slots=True)
class Used:
    """What an expression uses. Metrics are named as there: with ``_bucket`` and the like.

    selected: metric → labels it is selected by. grouped: labels that results are put together by.
    """

    selected: dict[str, set[str]] = field(default_factory=dict)
    grouped: set[str] = field(default_factory=set)


def used(expression: str) -> Used:
    """Read an expression. Raises: ValueError for what can be none."""
    tokens = _tokens(expression)
    found = Used()
    at = 0
    depth = 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        depth += {"(": 1, ")": -1}.get(text, 0)
        if depth < 0:
            raise ValueError(f"a bracket too many: {expression}")
        if kind != "word":
            continue
        if text in _GROUPING and following == "(":
            end = at + 1
            while tokens[end][1] != ")":
                if tokens[end][0] == "word":
                    found.grouped.add(tokens[end][1])
                end += 1
            at = end + 1
        elif text in _WORDS or following == "(" or following in ("by", "without"):
            continue
        elif text.startswith("$"):
            raise ValueError(f"{text} outside a string or a range: {expression}")
        else:
            labels = found.selected.setdefault(text, set())
            if following == "{":
                end = at + 1
                while tokens[end][1] != "}":
                    if tokens[end][0] == "word":
                        labels.add(tokens[end][1])
                    end += 1
                at = end + 1
    if depth:
        raise ValueError(f"a bracket is open: {expression}")
    if not found.selected:
        raise ValueError(f"no metric: {expression}")
    return found


def _tokens(expression: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise ValueError(f"at {expression[at:]!r}")
        at = match.end()
        if match.lastgroup:
            found.append((match.lastgroup, match.group()))
    return found
