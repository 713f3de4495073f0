"""What a check says: how it ended, in words, what to do, and the facts for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Outcome(Enum):
    """How it ended. Only a problem keeps the service from doing its work."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"
    """Not looked at: the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    name: what, the same in every run. text: what was found. advice: what to do about it; "" when nothing. facts: for
    programs, as JSON has values. No secret is in any of them.
    """

    name: str
    outcome: Outcome
    text: str
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **facts: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.OK, text=text, facts=facts)


def warning(name: str, text: str, advice: str, **facts: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.WARNING, text=text, advice=advice, facts=facts)


def problem(name: str, text: str, advice: str, **facts: Any) -> Finding:
    return Finding(name=name, outcome=Outcome.PROBLEM, text=text, advice=advice, facts=facts)


def skipped(name: str, why: str) -> Finding:
    return Finding(name=name, outcome=Outcome.SKIPPED, text=why)


def advised(name: str, line: str) -> Finding:
    """Return a warning made of one line that says what, and after its last semicolon what to do."""
    text, _, advice = line.rpartition("; ")
    return warning(name, text or line, advice if text else "")
