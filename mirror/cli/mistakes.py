"""Mistakes on the command line: what is said of them, and the status they end with.

Exit status 2 is for a command line that cannot be understood: an option that is not known, a value that no setting
takes, a file to be read that is not there. Exit status 1 is for everything that is wrong elsewhere, in the
configuration file among others.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from mirror.config import Config, ConfigError

_TYPED = "mirror.typed"
_EXTRA = re.compile(r"Got unexpected extra arguments? \((?P<words>.*)\)", re.DOTALL)
_NO_COMMAND = re.compile(r"No such command '(?P<word>.*)'\.", re.DOTALL)


class Understanding(click.Group):
    """The root of all commands: what is wrong with a command line is said with what to write instead."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **more: Any) -> click.Context:
        typed = tuple(args)
        with _explained(self, info_name or "", typed):
            context = super().make_context(info_name, args, *rest, **more)
        context.meta[_TYPED] = typed
        return context

    def invoke(self, ctx: click.Context) -> Any:
        with _explained(self, ctx.info_name or "", ctx.meta.get(_TYPED, ())):
            return super().invoke(ctx)


def problems_of(error: ConfigError, config_file: Path | None) -> tuple[list[str], int]:
    """Return the lines that say what is wrong with a configuration, and the status to end with.

    config_file: as it was typed. The status is 2 when all that is wrong was typed, 1 when the file is wrong as well.
    """
    from mirror.config import COMMAND_LINE

    lines, status = [], 2
    for problem in error.problems:
        unread = problem.file == str(config_file) and problem.line is None and not problem.path
        lines.append(f"{COMMAND_LINE}: --config: {problem}" if unread else str(problem))
        if not unread and problem.file != COMMAND_LINE:
            status = 1
    return lines, status


def load(config_file: Path | None, overrides: Mapping[str, Any] = {}, *, as_json: bool = False) -> Config:
    """Read a configuration; where it has problems, say all of them and end."""
    from mirror.config import ConfigError, load_config

    try:
        return load_config(config_file, overrides)
    except ConfigError as error:
        problems, status = problems_of(error, config_file)
        fail(problems, status=status, as_json=as_json)


def fail(
    problems: Sequence[str], said: str = "", *, status: int = 1, as_json: bool = False, beside: Mapping[str, Any] = {}
) -> NoReturn:
    """Say what keeps a command from being done, and end.

    problems: a line each. said: in a sentence, under them or instead of them. beside: what the JSON has before them.
    """
    for line in (*problems, *([f"mirror: {said}"] if said else [])):
        click.echo(line, err=True)
    if as_json:
        click.echo(json.dumps({**beside, "problems": list(problems) or [said]}, indent=2, ensure_ascii=False))
    sys.exit(status)


@contextmanager
def _explained(root: click.Group, name: str, typed: Sequence[str]) -> Iterator[None]:
    """Say the mistakes that click finds in our words, with the usage of the command that was meant."""
    try:
        yield
    except click.UsageError as error:
        context = error.ctx or _meant(root, name, typed)
        message = _message(error, context)
        if message is None:
            raise
        # A message of its own, so that none is made of other parts.
        raise click.UsageError(message, context) from error


def _meant(root: click.Group, name: str, typed: Sequence[str]) -> click.Context:
    """Return the context of the command that was typed: click leaves it out of some of its errors."""
    command: click.Command = root
    context = click.Context(root, info_name=name)
    for word in typed:
        if isinstance(command, click.Group) and word in command.commands:
            command = command.commands[word]
            context = click.Context(command, info_name=word, parent=context)
    return context


def _message(error: click.UsageError, context: click.Context) -> str | None:
    """Return what to say of a mistake; None when click's words, or ours, say it already."""
    path, command = context.command_path, context.command
    helps = f'"{path} --help" lists what there is.'
    match error:
        case click.NoSuchOption(option_name=option):
            known = [name for one in command.get_params(context) for name in (*one.opts, *one.secondary_opts)]
            meant = _close(option, [name for name in known if name.startswith("--")])
            return f'No such option "{option}". {f"Did you mean {meant}?" if meant else helps}'
        case click.BadOptionUsage(option_name=option):
            return _usage_of(option, command, context)
        case click.MissingParameter(param=click.Argument() as wanted):
            return f"{wanted.make_metavar(context)} is missing: write {path} {_pieces(command, context)}"
        case click.BadParameter(param=click.Parameter(type=click.IntRange() | click.FloatRange()) as wanted):
            return f"Invalid value for {wanted.get_error_hint(context)}: {_number(error.message, wanted.type)}"
        case click.BadParameter(param=click.Parameter(type=click.Choice(choices=choices)) as wanted):
            given = error.message.partition(" is not ")[0].strip("'")
            meant = _close(given, choices)
            said = f"expected {' or '.join((', '.join(choices[:-1]), choices[-1]))}, got {given}"
            hint = wanted.get_error_hint(context)
            return f"Invalid value for {hint}: {said}{f'; did you mean {meant}?' if meant else ''}"
    if found := _NO_COMMAND.fullmatch(error.message):
        known = command.list_commands(context) if isinstance(command, click.Group) else []
        meant = _close(found["word"], known)
        what = f"Did you mean {meant}?" if meant else f"There are {', '.join(known)}."
        return f'No such command "{found["word"]}". {what}'
    if found := _EXTRA.fullmatch(error.message):
        pieces = _pieces(command, context)
        takes = f"takes {pieces} and options" if pieces else "takes options only"
        return f'unexpected "{found["words"]}": {path} {takes}. {helps}'
    return None


def _usage_of(option: str, command: click.Command, context: click.Context) -> str | None:
    """Say how an option is written: without a value, or with which."""
    wanted = next((one for one in command.get_params(context) if option in one.opts), None)
    if not isinstance(wanted, click.Option):
        return None
    if wanted.is_flag:
        return f"{option} takes no value: leave out what follows the =."
    return f"{option} needs a value: {option} {wanted.make_metavar(context)}"


def _pieces(command: click.Command, context: click.Context) -> str:
    """Return the arguments of a command as its usage shows them."""
    return " ".join(one.make_metavar(context) for one in command.get_params(context) if isinstance(one, click.Argument))


def _number(said: str, kind: Any) -> str:
    """Say which numbers are taken, instead of which were not."""
    given = said.partition(" is not ")[0].strip("'")
    what = "a whole number" if isinstance(kind, click.IntRange) else "a number"
    least, most = kind.min, kind.max
    bounds = f"from {least:g} to {most:g}" if most is not None else f"from {least:g} up"
    return f"expected {what} {bounds}, got {given}"


def _close(word: str, known: Sequence[str]) -> str:
    """Return the known words that look most like this one, "" when none does."""
    same_letters = [one for one in known if sorted(one) == sorted(word)]  # two of them swapped
    return " or ".join(f'"{one}"' for one in same_letters or difflib.get_close_matches(word, known, n=2))
