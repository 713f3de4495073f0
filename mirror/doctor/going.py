"""Going through the checks: each within its time, none of them in the way of the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from mirror.doctor.case import Case
from mirror.doctor.checks import CHECKS, Check
from mirror.doctor.finding import Finding, problem

LIMIT = 60.0
"""Seconds for one check, over all that it asks."""


async def examine(case: Case, checks: Sequence[Check] = CHECKS, *, limit: float = LIMIT) -> AsyncIterator[Finding]:
    """Give what the checks find, in their order. They run one after the other, upstreams are asked meanwhile.

    limit: seconds for each check that does not bound its own time.
    """
    early = {check: asyncio.create_task(_looked(check, case, None)) for check in checks if check.beside}
    try:
        for check in checks:
            for finding in await (early.get(check) or _looked(check, case, limit)):
                yield finding
    finally:
        for task in early.values():
            task.cancel()
        await asyncio.gather(*early.values(), return_exceptions=True)


async def _looked(check: Check, case: Case, limit: float | None) -> Iterable[Finding]:
    """Return what a check finds; that it does not end, or fails itself, is a finding too."""
    try:
        async with asyncio.timeout(limit):
            return await check.look(case)
    except TimeoutError:
        return [
            problem(
                check.name,
                f"no end within {limit:g} s: {check.hangs}",
                check.unhang,
                seconds=limit,
            )
        ]
    except Exception as error:
        return [
            problem(
                check.name,
                f"the check itself failed ({type(error).__name__})",
                "report it; the other checks stand",
            )
        ]
