"""``mirror store``: what is kept, into a backup and back."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from mirror.cli.mistakes import fail, load
from mirror.cli.options import root_options

if TYPE_CHECKING:
    from mirror.registry.backup import Report

_REDRAW = 0.2  # seconds between two lines of progress


@click.group()
def store() -> None:
    """Back up what was pushed, and restore it.

    Exit status: 0 when all went well, 1 when there are problems, 2 when the command cannot be understood.
    """


@store.command(short_help="Back up everything pushed, while the service runs or not.")
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path, file_okay=False))
@root_options
def backup(destination: Path, config_file: Path | None, root: str | None, as_json: bool) -> None:
    """Back up everything pushed to the folder DEST, while the service runs or not.

    DEST is new, empty or an earlier backup of the same root, to which only what is missing is copied. Interrupted, it
    leaves the earlier backup as it was. Content whose file is missing or damaged is reported, and the rest backed up.
    Content that was pulled through is not in it: it can be pulled again.
    """
    from mirror.wiring import build_backup

    with _problems(as_json), _cleaning_up():
        with _progress() as progress:
            report = build_backup(_root(config_file, root, as_json)).backup(destination, progress)
        _say(report, f"backed up {_contents(report)} to {destination}", as_json)


@store.command(short_help="Restore a backup into a root that is not served.")
@click.argument("source", metavar="SOURCE", type=click.Path(path_type=Path, file_okay=False, exists=True))
@root_options
def restore(source: Path, config_file: Path | None, root: str | None, as_json: bool) -> None:
    """Restore the backup in the folder SOURCE into a root that is new, empty or not served.

    All of the backup is read first; when anything is wrong with it, nothing is changed. What else the root has stays;
    a tag that is in both points at what the backup says afterwards, and its history says when that was. Interrupted,
    restore again.
    """
    from mirror.registry.backup import open_backup
    from mirror.server.owner import take_root
    from mirror.wiring import build_restore

    with _problems(as_json), ExitStack() as stack:
        found = stack.enter_context(open_backup(source))
        folder = _root(config_file, root, as_json)
        owned = folder.exists()  # else a backup that is damaged would leave a root behind
        if owned:
            stack.callback(os.close, take_root(folder))
        with _progress() as progress:
            problems = found.verify(progress)
            if problems:
                raise _Refused(f"{source} is damaged: nothing was restored", problems)
            if not owned:
                stack.callback(os.close, take_root(folder))
            report = build_restore(folder).restore(found, progress)
        moved = f"; {_number(report.tags_moved, 'tag')} pointed elsewhere" if report.tags_moved else ""
        _say(report, f"restored {_contents(report)} into {folder}{moved}", as_json)


class _Refused(Exception):
    """What keeps a command from being done. problems: why, one line each."""

    def __init__(self, message: str, problems: list[str]) -> None:
        super().__init__(message)
        self.problems = problems


def _root(config_file: Path | None, root: str | None, as_json: bool) -> Path:
    """Return the root that is meant."""
    return load(config_file, {"storage.root": root}, as_json=as_json).storage.root


@contextmanager
def _problems(as_json: bool) -> Iterator[None]:
    """Say what keeps a command from being done, and end."""
    from mirror.oci.errors import RegistryError
    from mirror.worker import StartupError

    try:
        yield
    except (RegistryError, StartupError, _Refused) as error:
        fail(error.problems if isinstance(error, _Refused) else [], str(error), as_json=as_json)


def _say(report: Report, summary: str, as_json: bool) -> None:
    """Say what was done. Ends with 1 when there were problems."""
    for problem in report.problems:
        click.echo(problem, err=True)
    click.echo(json.dumps(asdict(report), indent=2) if as_json else summary)
    if report.problems:
        sys.exit(1)


def _contents(report: Report) -> str:
    from mirror.logs.amounts import size

    has = report.backup
    return (
        f"{_number(has.repositories, 'repository', 'repositories')} with {_number(has.manifests, 'manifest')} and "
        f"{_number(has.tags, 'tag')}, {_number(has.blobs, 'file')} of {size(has.bytes)} "
        f"({report.copied} copied, {size(report.copied_bytes)})"
    )


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


class _Line:
    """One line on a terminal that is drawn again and again; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._drawn = 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._shown and now - self._drawn >= _REDRAW:
            self._drawn = now
            percent = 100 * done // total if total else 100
            click.echo(f"\r\x1b[K{doing} {percent} % of {total} bytes", err=True, nl=False)

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)


@contextmanager
def _progress() -> Iterator[_Line]:
    line = _Line()
    try:
        yield line
    finally:
        line.clear()


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that nothing of it is left in the root."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
