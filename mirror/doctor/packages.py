"""The folder of images, if there is one: what is in it, and what cannot be served."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, warning
from mirror.doctor.threads import in_thread
from mirror.packages.scan import scan

NAME = "packages"
SHOWN = 5
"""Most entries that are named."""


async def look(case: Case) -> Sequence[Finding]:
    """Look at the names in the folder; what is in its files is verified when they are served."""
    folder = case.config.packages
    if folder is None:
        return []
    found = await in_thread(scan, folder, "local")
    good, bad = [one for one in found if not one.problem], [one for one in found if one.problem]
    text = f"{len(good)} {'entry' if len(good) == 1 else 'entries'} in {folder}"
    first = ok(NAME, text, folder=str(folder), entries=len(good), unusable=len(bad))
    lines = []
    for one in bad[:SHOWN]:
        what, _, advice = one.problem.partition("; ")
        lines.append(warning(NAME, f"{folder / one.path} {what}", advice or "correct it, or take it away"))
    if len(bad) > SHOWN:
        lines.append(warning(NAME, f"{len(bad) - SHOWN} more in {folder} cannot be used", "see the service's log"))
    return [first, *lines]
