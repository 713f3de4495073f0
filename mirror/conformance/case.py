"""A case: one MUST or SHOULD of the distribution specification that binds a registry, and how it is judged.

A case is a coroutine function with the decorator ``case``. It returns when the registry does as the specification
says, and raises ``Failed``, ``Unsupported`` or ``NotJudged`` when not. Its docstring is what a report says of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror.conformance.stage import Stage


class Version(StrEnum):
    """A version of the specification; the later, the greater ``order``."""

    V1_0 = "1.0"
    V1_1 = "1.1"
    MAIN = "main"

    @property
    def order(self) -> int:
        return list(Version).index(self)


class Level(StrEnum):
    """How strongly the specification puts it (RFC 2119)."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Method(StrEnum):
    """How a case judges. POSITIVE: it works; NEGATIVE: it is refused, by a compliant error."""

    POSITIVE = "positive"
    NEGATIVE = "negative"


class Category(StrEnum):
    """The specification's categories of requirements, and what belongs to all of them."""

    API = "API"
    PULL = "Pull"
    PUSH = "Push"
    DISCOVERY = "Content Discovery"
    MANAGEMENT = "Content Management"


class Outcome(Enum):
    """What became of a case."""

    PASSED = "passed"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    NOT_JUDGED = "not judged"


Body = Callable[["Stage"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A named case.

    section: the specification's heading; end: the endpoint's id there, "" for none.
    must, should: the first version that demands, or recommends it; None for never.
    pushes: it needs content of its own, so that a registry for pulling only cannot be judged by it.
    """

    name: str
    category: Category
    section: str
    end: str
    method: Method
    must: Version | None
    should: Version | None
    pushes: bool
    text: str
    body: Body = field(repr=False)

    def level(self, version: Version) -> Level | None:
        """Return how strongly this version of the specification puts it, None when it does not have it."""
        if self.must is not None and version.order >= self.must.order:
            return Level.MUST
        if self.should is not None and version.order >= self.should.order:
            return Level.SHOULD
        return None


class Verdict(Exception):
    """Base of how a case can end other than well."""


class Failed(Verdict):
    """The registry does not do as the specification says."""

    def __init__(self, *, expected: str, got: str) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected = expected
        self.got = got


class Unsupported(Verdict):
    """The registry lacks something the specification lets it lack, and says so as it is to."""


class NotJudged(Verdict):
    """The case could not be tried, as something before it went wrong or is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of a case.

    expected, got: of a failure; reason: why it is unsupported or was not judged. notes: what a reader should know of a
    case that passed. log: its requests and answers, a line or more each. seconds: how long it took.
    """

    case: Case
    outcome: Outcome
    expected: str = ""
    got: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    seconds: float = 0.0


_cases: dict[str, Case] = {}


def case(
    name: str,
    category: Category,
    section: str,
    end: str = "",
    *,
    must: str | None = None,
    should: str | None = None,
    negative: bool = False,
    pushes: bool = False,
) -> Callable[[Body], Body]:
    """Make the function a case. Its docstring says what is demanded of a registry, in a sentence."""
    if must is None and should is None:
        raise ValueError(f"{name}: neither MUST nor SHOULD")

    def register(body: Body) -> Body:
        if name in _cases:
            raise ValueError(f"two cases are called {name}")
        text = inspect.getdoc(body)
        if not text:
            raise ValueError(f"{name}: says nothing of itself")
        _cases[name] = Case(
            name=name,
            category=category,
            section=section,
            end=end,
            method=Method.NEGATIVE if negative else Method.POSITIVE,
            must=Version(must) if must else None,
            should=Version(should) if should else None,
            pushes=pushes or category in (Category.PUSH, Category.MANAGEMENT),
            text=" ".join(text.split()),
            body=body,
        )
        return body

    return register


def registered() -> tuple[Case, ...]:
    """Return all cases whose modules are imported, in the order of their definition."""
    return tuple(_cases.values())
