"""``mirror doctor``: whether the service has what it needs, and what to do about what is missing."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.interrupted import run
from mirror.cli.mistakes import fail, problems_of
from mirror.cli.options import config_option, root_option

if TYPE_CHECKING:
    from mirror.config import ConfigError
    from mirror.doctor import Case, Finding

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "skipped": "bright_black"}
_WIDTH = max(map(len, _COLOURS))


@click.command(short_help="Prove that the service has what it needs.")
@config_option
@root_option
@click.option("--offline", is_flag=True, help="Ask no upstream.")
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME",
    help="Ask only this upstream, which may be one that a pattern matches. May be given several times.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=300),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long an upstream is waited for.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output instead of lines.")
def doctor(
    config_file: Path | None,
    root: str | None,
    offline: bool,
    upstreams: tuple[str, ...],
    timeout: float,
    as_json: bool,
) -> None:
    """Prove that the service has what it needs, and say what to do where it has not.

    It looks at the configuration; at the folder and its disk: what they can do is tried in a folder of its own, which
    it removes; at descriptors, memory and the clock; at the addresses to listen on, which the running service of this
    folder may have; at certificates and users. And it asks each upstream, and each mirror of one, as the service does,
    with proxies and logins. No pull is counted for that. It can be run at any time, beside the service as well: as
    the user the service runs as, so that its rights are the same.

    Exit status: 0 when there are no problems, warnings or not; 1 when there are; 2 when the command cannot be
    understood.
    """
    if offline and upstreams:
        raise click.UsageError("--offline asks no upstream: give it, or --upstream.")
    # Imported here as it takes most of a second, which "mirror --help" need not wait for.
    from mirror.config import ConfigError, load_config
    from mirror.doctor import Case, StandsForMany, chosen
    from mirror.logs import setup_logging
    from mirror.upstream.configured import UnknownUpstream

    try:
        config = load_config(config_file, {"storage.root": root})
    except ConfigError as error:
        lines, status = problems_of(error, config_file)
        if status == 2:
            fail(lines, status=status, as_json=as_json)
        report = _Report(_unloaded(error))
        if not as_json:
            for finding in report.findings:
                _line(finding)
        _say(report, as_json)
        sys.exit(status)
    try:
        wanted = chosen(config, upstreams)
    except (StandsForMany, UnknownUpstream) as error:
        raise click.BadParameter(str(error), param_hint="'--upstream'") from error
    setup_logging(human=True, level=logging.CRITICAL)  # what the parts would log, the findings say
    case = Case(config=config, file=config_file, online=not offline, upstreams=wanted, timeout=timeout)
    report = _Report([])
    ended = run(_examine(case, report, as_json))
    _say(report, as_json, ended=ended)
    if ended is not None:
        sys.exit(128 + ended)
    if not report.good:
        sys.exit(1)


class _Report:
    """What was found so far."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings

    @property
    def good(self) -> bool:
        return not self.count("problem")

    def count(self, outcome: str) -> int:
        return sum(one.outcome.value == outcome for one in self.findings)

    @property
    def summary(self) -> str:
        """Say how many ended how."""
        counts = [(self.count(outcome), outcome) for outcome in _COLOURS]
        total = len(self.findings)
        return f"{total} {'check' if total == 1 else 'checks'}: " + ", ".join(
            f"{count} {outcome if count == 1 or outcome in ('ok', 'skipped') else outcome + 's'}"
            for count, outcome in counts
            if count
        )


async def _examine(case: Case, report: _Report, as_json: bool) -> None:
    """Examine to the end. What was made on disk is removed in any case."""
    from mirror.doctor import examine

    async for finding in examine(case):
        report.findings.append(finding)
        if not as_json:
            _line(finding)


def _unloaded(error: ConfigError) -> list[Finding]:
    """Return what is found when there is no configuration to examine anything by."""
    from mirror.doctor import Finding, Outcome

    found = [
        Finding(
            name="configuration",
            outcome=Outcome.PROBLEM,
            text=str(problem).removesuffix(f"; {problem.suggestion}"),
            advice=problem.suggestion or "correct it; config/mirror.yaml explains every setting",
            facts={"file": problem.file, "line": problem.line, "setting": problem.path or None},
        )
        for problem in error.problems
    ]
    rest = Finding(name="everything else", outcome=Outcome.SKIPPED, text="not looked at without a configuration")
    return [*found, rest]


def _say(report: _Report, as_json: bool, *, ended: int | None = None) -> None:
    """Say what was found; lines that were said already are not repeated."""
    if as_json:
        document: dict[str, Any] = {
            "ok": report.good and ended is None,
            "interrupted": ended is not None,
            "checks": [
                {
                    "name": one.name,
                    "outcome": one.outcome.value,
                    "text": one.text,
                    "advice": one.advice or None,
                    "facts": dict(one.facts),
                }
                for one in report.findings
            ],
        }
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        click.echo(report.summary)
    if ended is not None:
        click.echo("mirror: interrupted", err=True)


def _line(finding: Finding) -> None:
    """Say one finding, and what to do about it. What others sent may be in it: it must not steer the terminal."""
    outcome = finding.outcome.value
    word = click.style(outcome.ljust(_WIDTH), fg=_COLOURS[outcome])
    click.echo(f"{word}  {_plain(finding.name)}: {_plain(finding.text)}")
    if finding.advice:
        click.echo(f"{' ' * _WIDTH}  do: {_plain(finding.advice)}")


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in text)
