"""The settings: that they load was shown by there being a case; here is what is seldom meant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from mirror.access.advice import advice
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, advised, ok
from mirror.upstream.advice import warnings

NAME = "configuration"


async def look(case: Case) -> Sequence[Finding]:
    """Say what was loaded, and what its operator should know of it."""
    config = case.config
    file = str(case.file) if case.file is not None else "no file, so the defaults hold"
    count = len(config.upstreams)
    first = ok(
        NAME,
        f"{file}; {count} {'upstream' if count == 1 else 'upstreams'}",
        file=str(case.file) if case.file is not None else None,
        upstreams=list(config.upstreams),
    )
    lines = chain(
        advice(config.access, config.upstreams, config.listen, config.trusted_proxies),
        *(warnings(name, upstream) for name, upstream in config.upstreams.items()),
    )
    return [first, *(advised(NAME, line) for line in lines)]
