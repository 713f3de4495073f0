"""What became of the cases, for other programs and for keeping: JSON, JUnit's XML, a page of HTML."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from mirror.conformance.case import Level, Outcome, Result, Version
from mirror.conformance.run import Judgement

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def as_json(judgements: Sequence[Judgement]) -> str:
    """Return everything as JSON."""
    return json.dumps({"registries": [_registry(judgement) for judgement in judgements]}, indent=2) + "\n"


def _registry(judgement: Judgement) -> dict[str, Any]:
    return {
        "url": judgement.url,
        "seed": judgement.seed,
        "seconds": round(judgement.seconds, 3),
        "no_pushes": judgement.no_pushes,
        "left": list(judgement.left),
        "versions": {
            str(version): {
                "passes": judgement.passes(version),
                **{
                    str(level): {outcome.value: judgement.count(version, level, outcome) for outcome in Outcome}
                    for level in Level
                },
            }
            for version in judgement.versions
        },
        "cases": [_case(result, judgement.versions) for result in judgement.results],
    }


def _case(result: Result, versions: Sequence[Version]) -> dict[str, Any]:
    case = result.case
    levels = {str(version): case.level(version) for version in versions}
    said = {"expected": result.expected, "got": result.got, "reason": result.reason}
    return {
        "name": case.name,
        "category": str(case.category),
        "section": case.section,
        "end": case.end,
        "method": str(case.method),
        "text": case.text,
        "levels": {version: str(level) for version, level in levels.items() if level},
        "outcome": result.outcome.value,
        **{name: text for name, text in said.items() if text},
        **({"notes": list(result.notes)} if result.notes else {}),
        "seconds": round(result.seconds, 4),
        "log": list(result.log) if result.outcome is not Outcome.PASSED else [],
    }


def as_junit(judgements: Sequence[Judgement]) -> str:
    """Return a suite for each registry and version. Only a MUST makes a failure: a SHOULD is skipped, and says why."""
    root = ElementTree.Element("testsuites")
    for judgement in judgements:
        for version in judgement.versions:
            _suite(root, judgement, version)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ElementTree.Element, judgement: Judgement, version: Version) -> None:
    results = judgement.of(version)
    suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"{judgement.url} {version}"))
    counts = {"failure": 0, "error": 0, "skipped": 0}
    for result in results:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{result.case.category}.{result.case.section}",
            name=result.case.name,
            time=f"{result.seconds:.4f}",
        )
        kind, message = _junit(result, version)
        if kind:
            counts[kind] += 1
            ElementTree.SubElement(case, kind, message=_xml(message)).text = _xml("\n".join(result.log))
    suite.set("tests", str(len(results)))
    suite.set("failures", str(counts["failure"]))
    suite.set("errors", str(counts["error"]))
    suite.set("skipped", str(counts["skipped"]))
    suite.set("time", f"{sum(result.seconds for result in results):.3f}")


def _junit(result: Result, version: Version) -> tuple[str, str]:
    """Return the element that says what became of a case, and its message."""
    level = result.case.level(version)
    failed = f"expected {result.expected}, got {result.got}"
    match result.outcome, level:
        case Outcome.PASSED, _:
            return "", ""
        case Outcome.FAILED, Level.MUST:
            return "failure", failed
        case Outcome.FAILED, _:
            return "skipped", f"SHOULD: {failed}"
        case Outcome.NOT_JUDGED, Level.MUST:
            return "error", result.reason
        case Outcome.NOT_JUDGED, _:
            return "skipped", f"not judged: {result.reason}"
    return "skipped", f"unsupported: {result.reason}"


def _xml(text: str) -> str:
    """Return the text without what XML cannot hold."""
    return _NOT_XML.sub("\ufffd", text)


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .2em .7em; text-align: left; vertical-align: top }
tr { border-bottom: 1px solid #ddd } pre { white-space: pre-wrap; font-size: 12px; background: #f6f6f6; padding: .7em }
.passed { color: #176317 } .failed { color: #b00020; font-weight: bold } .unsupported { color: #666 }
.notjudged { color: #8a5a00 } small { color: #666 }
"""


def as_html(judgements: Sequence[Judgement]) -> str:
    """Return one page without anything from elsewhere."""
    body = "\n".join(_html_of(judgement) for judgement in judgements)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Conformance</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _html_of(judgement: Judgement) -> str:
    rows = [_html_row(result, judgement.versions) for result in judgement.results]
    heads = "".join(f"<th>{html.escape(version)}</th>" for version in judgement.versions)
    ends = "".join(
        f"<li>{html.escape(version)}: {judgement.verdict(version)}, "
        + "; ".join(
            f"{level}: " + ", ".join(f"{judgement.count(version, level, one)} {one.value}" for one in Outcome)
            for level in Level
        )
        + "</li>"
        for version in judgement.versions
    )
    said = [judgement.no_pushes] if judgement.no_pushes else []
    said += [f"left there: {', '.join(judgement.left)}"] if judgement.left else []
    return (
        f"<h1>{html.escape(judgement.url)}</h1>\n<ul>{ends}</ul>\n"
        + "".join(f"<p>{html.escape(text)}</p>\n" for text in said)
        + f"<table>\n<tr><th>Section</th><th>Case</th>{heads}<th>Outcome</th></tr>\n"
        + "\n".join(rows)
        + "\n</table>"
    )


def _html_row(result: Result, versions: Sequence[Version]) -> str:
    case = result.case
    levels = "".join(f"<td>{html.escape(case.level(version) or '')}</td>" for version in versions)
    said = [f"expected {result.expected}", f"got {result.got}"] if result.outcome is Outcome.FAILED else []
    said += [result.reason] if result.reason else []
    said += list(result.notes)
    lines = "".join(f"<br>{html.escape(text)}" for text in said)
    log = ""
    if result.log and result.outcome is not Outcome.PASSED:
        log = f"<details><summary>requests</summary><pre>{html.escape(chr(10).join(result.log))}</pre></details>"
    kind = result.outcome.value.replace(" ", "")
    cells = (
        f"{html.escape(case.section)}<br><small>{html.escape(case.category)} {html.escape(case.end)}</small>",
        f"<b>{html.escape(case.name)}</b> <small>{html.escape(case.method)}</small><br>{html.escape(case.text)}",
    )
    found = f'<td class="{kind}">{html.escape(result.outcome.value)}{lines}{log}</td>'
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}{levels}{found}</tr>"
