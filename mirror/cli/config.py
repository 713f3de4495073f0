"""``mirror config``: a configuration checked, shown as it is in effect, described."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from mirror.config import Config, Loaded, Problem

_FILE = click.argument("file", metavar="[FILE]", required=False, type=click.Path(path_type=Path))


def _json(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--json", "as_json", is_flag=True, help=text)


@click.group()
def config() -> None:
    """Check a configuration file, and show what is in effect.

    Nothing is started, made or asked over the network.

    Exit status: 0 when all is well, 1 when there are problems, 2 when the command cannot be understood.
    """


@config.command(short_help="Say everything that is wrong with a configuration file.")
@_FILE
@_json("Write problems and warnings to standard output, as JSON.")
def check(file: Path | None, as_json: bool) -> None:
    """Say everything that is wrong with the configuration FILE, at once, each with its place.

    The files it names are looked at as well: certificates and their keys, authorities, users. What is allowed and
    seldom meant is said as a warning, and the exit status stays 0. Without FILE the defaults are checked.
    """
    from mirror.cli.examination import examine

    loaded = _read(file, as_json)
    found = examine(loaded)
    if found.problems:
        _fail(file, found.problems, found.warnings, as_json)
    for line in found.warnings:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(_report(file, [], found.warnings))
    else:
        click.echo(f"{file or 'the defaults'}: OK, {_summary(loaded.config)}")


@config.command(short_help="Show every setting, and where it comes from.")
@_FILE
@_json('Write {"settings": …, "origins": …} instead of YAML.')
def show(file: Path | None, as_json: bool) -> None:
    """Show every setting as it is in effect with the configuration FILE, and where it comes from.

    It is a file that loads again and means the same. Passwords are not shown. Options of "mirror serve" would win over
    what is shown here. Without FILE the defaults are shown.
    """
    from mirror.config.written import as_data, as_yaml

    loaded = _read(file, as_json)
    if as_json:
        origins = {name: str(origin) for name, origin in loaded.origins.items()}
        click.echo(json.dumps({"settings": as_data(loaded), "origins": origins}, indent=2, ensure_ascii=False))
    else:
        click.echo(as_yaml(loaded), nl=False)


@config.command(short_help="Print a commented file of every setting.")
@_json('Write {"text": …} with the file in it.')
def default(as_json: bool) -> None:
    """Print a file of every setting with its default and what it does. It loads as it stands and changes nothing."""
    from mirror.config.commented import commented_file

    text = commented_file()
    click.echo(json.dumps({"text": text}, indent=2, ensure_ascii=False) if as_json else text, nl=as_json)


@config.command(short_help="Print the JSON Schema of the file.")
@_json("Change nothing: it is JSON.")
def schema(as_json: bool) -> None:
    """Print the JSON Schema (2020-12) of the configuration file, for editors.

    Kept as mirror.schema.json beside a file made by "mirror config default", editors complete and check that file.
    """
    from mirror.config import Config
    from mirror.config.schema import file_schema

    click.echo(json.dumps(file_schema(Config), indent=2, ensure_ascii=False))


@config.command(hidden=True)
def table() -> None:
    """Print the table of every setting: config/README.md."""
    from mirror.config.table import table as text

    click.echo(text(), nl=False)


def _read(file: Path | None, as_json: bool) -> Loaded:
    """Read a configuration. Ends with 1 when there are problems."""
    from mirror.config import ConfigError, read_config

    try:
        return read_config(file)
    except ConfigError as error:
        _fail(file, error.problems, [], as_json)


def _fail(
    file: Path | None, problems: list[Problem] | tuple[Problem, ...], lines: list[str], as_json: bool
) -> NoReturn:
    for problem in problems:
        click.echo(str(problem), err=True)
    for line in lines:
        click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(_report(file, problems, lines))
    sys.exit(1)


def _report(file: Path | None, problems: list[Problem] | tuple[Problem, ...], warnings: list[str]) -> str:
    found = {
        "file": str(file) if file else None,
        "ok": not problems,
        "problems": [str(problem) for problem in problems],  # lines, as with every command
        "places": [asdict(problem) for problem in problems],
        "warnings": warnings,
    }
    return json.dumps(found, indent=2, ensure_ascii=False)


def _summary(config: Config) -> str:
    count = len(config.upstreams)
    upstreams = f"{count or 'no'} upstream{'' if count == 1 else 's'}"
    addresses = ", ".join(f"{one.scheme}://{one.address}" for one in config.listen)
    admin = ", ".join(f"{one.scheme}://{one.address}" for one in config.admin_listen)
    return (
        f"{upstreams}, listens on {addresses}{f' and for administrators on {admin}' if admin else ''}, "
        f"keeps everything in {config.storage.root}"
    )
