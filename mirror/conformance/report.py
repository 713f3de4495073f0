"""What became of the cases, for people at a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from mirror.conformance.case import Case, Level, Outcome, Result, Version
from mirror.conformance.run import Judgement

WIDTH = 110

WORDS = {
    Outcome.PASSED: "pass",
    Outcome.FAILED: "FAIL",
    Outcome.UNSUPPORTED: "unsupported",
    Outcome.NOT_JUDGED: "not judged",
}

View = tuple[Judgement, Version]
"""What a column shows: one registry by one version."""


def terminal(judgements: Sequence[Judgement]) -> str:
    """Return the whole report: a table by section, what differs, what failed, what is unsupported, the end of it."""
    views = [(judgement, version) for judgement in judgements for version in judgement.versions]
    parts = [_legend(judgements), _summary(views)]
    if len(views) > 1:
        parts.append(_differences(views))
    for judgement in judgements:
        parts += [_failures(judgement), _reasons(judgement), _notes(judgement)]
    parts.append(_end(judgements))
    return _plain("\n\n".join(part for part in parts if part)) + "\n"


def _plain(text: str) -> str:
    """Return the text without what would command a terminal: some of it is what a registry said."""
    return "".join(letter if letter == "\n" or letter.isprintable() else "\ufffd" for letter in text)


def _legend(judgements: Sequence[Judgement]) -> str:
    lines = []
    for number, judgement in enumerate(judgements, 1):
        versions = ", ".join(judgement.versions)
        name = f"[{number}] " if len(judgements) > 1 else ""
        lines.append(
            f"{name}{judgement.url}: OCI distribution specification {versions} "
            f"({len(judgement.results)} cases in {judgement.seconds:.1f} s, seed {judgement.seed:08x})"
        )
        if judgement.no_pushes:
            lines.append(f"    Push and Content Management are unsupported: {judgement.no_pushes}")
        if judgement.left:
            lines.append(f"    left there: {', '.join(judgement.left)}")
    return "\n".join(lines)


def _summary(views: Sequence[View]) -> str:
    """Draw a row for each section, a column for each view."""
    rows = [["", *_heads(views)]]
    sections: dict[tuple[str, str], None] = {}
    for judgement, _ in views:
        sections.update({(result.case.category, result.case.section): None for result in judgement.results})
    category = ""
    for group, section in sections:
        if group != category:
            category = group
            rows.append([category, *("" for _ in views)])
        cells = [_cell(result for result in _of(view) if _is_in(result.case, group, section)) for view in views]
        rows.append([f"  {section}", *cells])
    rows.append(["all", *(_cell(_of(view)) for view in views)])
    return _table(rows)


def _is_in(case: Case, category: str, section: str) -> bool:
    return (case.category, case.section) == (category, section)


def _of(view: View) -> list[Result]:
    judgement, version = view
    return judgement.of(version)


def _cell(results: Iterable[Result]) -> str:
    """Return how many passed, and what became of the others."""
    found = [result.outcome for result in results]
    if not found:
        return "-"
    words = [f"{found.count(Outcome.PASSED)} pass"]
    words += [f"{found.count(outcome)} {WORDS[outcome]}" for outcome in list(Outcome)[1:] if outcome in found]
    return ", ".join(words)


def _heads(views: Sequence[View]) -> list[str]:
    """Return the columns' heads: registry and version, as far as they differ."""
    urls = list(dict.fromkeys(judgement.url for judgement, _ in views))
    if len(urls) == 1:
        return [str(version) for _, version in views]
    return [f"[{urls.index(judgement.url) + 1}] {version}" for judgement, version in views]


def _differences(views: Sequence[View]) -> str:
    """Draw a row for each case that came to different ends, or is of different levels."""
    found = [{result.case.name: result for result in judgement.results} for judgement, _ in views]
    names = dict.fromkeys(name for column in found for name in column)
    rows = []
    for name in names:
        cells = []
        for column, (_, version) in zip(found, views, strict=True):
            result = column.get(name)
            level = result.case.level(version) if result else None
            cells.append(f"{WORDS[result.outcome]} ({level})" if result and level else "-")
        if len({cell.partition(" (")[0] for cell in cells} - {"-"}) > 1:
            rows.append([f"  {name}", *cells])
    if not rows:
        return "What is judged in several columns comes to the same in all of them."
    return "Cases that differ\n" + _table([["", *_heads(views)], *rows])


def _failures(judgement: Judgement) -> str:
    lines = []
    for result in judgement.results:
        if result.outcome is Outcome.FAILED:
            lines += [
                f"  {result.case.name} ({_levels(result, judgement)}; {_place(result.case)}, {result.case.method})",
                *_wrapped(result.case.text, "      "),
                *_wrapped(f"expected {result.expected}", "      - "),
                *_wrapped(f"got {result.got}", "      - "),
            ]
    return "\n".join([f"Failed: {judgement.url}", *lines]) if lines else ""


def _reasons(judgement: Judgement) -> str:
    """Say why cases are unsupported or were not judged, those with one reason together."""
    lines = []
    for outcome in (Outcome.UNSUPPORTED, Outcome.NOT_JUDGED):
        reasons: dict[str, list[str]] = {}
        for result in judgement.results:
            if result.outcome is outcome:
                reasons.setdefault(result.reason, []).append(result.case.name)
        for reason, names in reasons.items():
            lines += [f"  {WORDS[outcome]}: {reason[:300]}", *_wrapped(", ".join(names), "      ")]
    return "\n".join([f"Unsupported or not judged: {judgement.url}", *lines]) if lines else ""


def _notes(judgement: Judgement) -> str:
    lines = [f"  {result.case.name}: {note}" for result in judgement.results for note in result.notes]
    return "\n".join([f"Notes: {judgement.url}", *lines]) if lines else ""


def _end(judgements: Sequence[Judgement]) -> str:
    lines = []
    for judgement in judgements:
        for version in judgement.versions:
            counts = []
            for level in Level:
                failed = judgement.count(version, level, Outcome.FAILED)
                unjudged = judgement.count(version, level, Outcome.NOT_JUDGED)
                whole = len(judgement.of(version, level))
                counts.append(f"{failed} of {whole} {level} failed" + (f", {unjudged} not judged" if unjudged else ""))
            unsupported = sum(judgement.count(version, level, Outcome.UNSUPPORTED) for level in Level)
            verdict = judgement.verdict(version)
            lines.append(f"{judgement.url} {verdict} {version}: {'; '.join(counts)}; {unsupported} unsupported")
    return "\n".join(lines)


def _levels(result: Result, judgement: Judgement) -> str:
    """Return the level, or the level by version where several were asked for."""
    found = {version: result.case.level(version) for version in judgement.versions}
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return ", ".join(f"{level} of {version}" for version, level in found.items() if level)


def _place(case: Case) -> str:
    return f"{case.section}{f', {case.end}' if case.end else ''}"


def _wrapped(text: str, indent: str) -> list[str]:
    after = " " * len(indent)
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=after, break_on_hyphens=False)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Draw rows with columns as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
