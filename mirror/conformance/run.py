"""Try the cases on a registry, one after the other, and take away what that left there."""

from __future__ import annotations

import ssl as ssl_module
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from mirror.conformance.case import (
    Case,
    Category,
    Failed,
    Level,
    NotJudged,
    Outcome,
    Result,
    Unsupported,
    Version,
)
from mirror.conformance.cases import CASES
from mirror.conformance.client import Login, Registry
from mirror.conformance.stage import Options, Stage

BAD = (Outcome.FAILED, Outcome.NOT_JUDGED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is to be said of a registry.

    versions: of the specification, oldest first. results: of every case that one of them has. no_pushes: why nothing
    could be pushed, "" if it could. left: what could not be deleted again, in words.
    """

    url: str
    seed: int
    versions: tuple[Version, ...]
    results: tuple[Result, ...]
    no_pushes: str
    left: tuple[str, ...]
    seconds: float

    def of(self, version: Version, *levels: Level) -> list[Result]:
        """Return the results of the cases this version has at these levels; at any, when none is given."""
        wanted = levels or tuple(Level)
        return [result for result in self.results if result.case.level(version) in wanted]

    def count(self, version: Version, level: Level, outcome: Outcome) -> int:
        """Return how many cases of this version and level came to this."""
        return sum(result.outcome is outcome for result in self.of(version, level))

    def passes(self, version: Version) -> bool:
        """Tell whether every MUST of this version that applies was judged, and holds."""
        return not any(result.outcome in BAD for result in self.of(version, Level.MUST))

    def verdict(self, version: Version) -> str:
        """Return what is to be said of this version in a word. A MUST that was not judged leaves it open."""
        if self.passes(version):
            return "passes"
        return "FAILS" if self.count(version, Level.MUST, Outcome.FAILED) else "UNDECIDED"

    @property
    def passes_all(self) -> bool:
        return all(self.passes(version) for version in self.versions)


async def judge(
    url: str,
    versions: Iterable[Version],
    options: Options,
    *,
    login: Login | None = None,
    tls: ssl_module.SSLContext | bool = True,
    timeout: float = 60.0,
    reuse: bool = True,
    only: Collection[str] | None = None,
) -> Judgement:
    """Try every case that one of these versions has.

    A case is a behaviour, which a version demands, recommends or does not know: so each is tried once, whatever the
    number of versions. tls: a context, False for unchecked. timeout: seconds of silence. reuse: send several requests
    by one connection. only: names of cases.

    Raises: Unreachable when the registry cannot be asked at all.
    """
    chosen = tuple(sorted(set(versions), key=lambda version: version.order))
    cases = [
        case for case in CASES if any(case.level(version) for version in chosen) and (only is None or case.name in only)
    ]
    began = time.monotonic()
    async with Registry(url, login=login, tls=tls, timeout=timeout, reuse=reuse) as registry:
        await registry.reach()
        stage = Stage(registry, options)
        no_pushes = await _no_pushes(stage)
        results = []
        for case in cases:
            results.append(await _try(case, stage, no_pushes))
        left = await stage.ledger.clean()
    return Judgement(
        url=url,
        seed=options.seed,
        versions=chosen,
        results=_sorted(results),
        no_pushes=no_pushes,
        left=left,
        seconds=time.monotonic() - began,
    )


async def _no_pushes(stage: Stage) -> str:
    try:
        return await stage.no_pushes()
    except NotJudged:
        return ""  # the connection broke: the cases of pushing will say so


async def _try(case: Case, stage: Stage, no_pushes: str) -> Result:
    """Try one case."""
    if no_pushes and case.pushes:
        return Result(case=case, outcome=Outcome.UNSUPPORTED, reason=no_pushes)
    stage.notes.clear()
    first, began = len(stage.registry.log), time.monotonic()
    outcome, expected, got, reason = Outcome.PASSED, "", "", ""
    try:
        await case.body(stage)
    except Failed as failed:
        outcome, expected, got = Outcome.FAILED, failed.expected, failed.got
    except Unsupported as unsupported:
        outcome, reason = Outcome.UNSUPPORTED, str(unsupported)
    except NotJudged as not_judged:
        outcome, reason = Outcome.NOT_JUDGED, str(not_judged)
    except Exception as error:
        # an answer nobody thought of; the other cases are to be judged all the same
        outcome, reason = Outcome.NOT_JUDGED, f"the judge does not understand: {type(error).__name__}: {error}"
    return Result(
        case=case,
        outcome=outcome,
        expected=expected,
        got=got,
        reason=reason,
        notes=tuple(stage.notes) if outcome is Outcome.PASSED else (),
        log=tuple(stage.registry.log[first:]),
        seconds=time.monotonic() - began,
    )


def _sorted(results: Sequence[Result]) -> tuple[Result, ...]:
    """Return the results by category, otherwise in the order the cases were tried."""
    order = list(Category)
    return tuple(sorted(results, key=lambda result: order.index(result.case.category)))
