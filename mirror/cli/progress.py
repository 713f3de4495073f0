"""How a pull goes, for people: one bar while it lasts where there is a terminal, and a line for each image."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TransferSpeedColumn

from mirror.logs.amounts import size
from mirror.prefetch import Image, Pulled


class Report:
    """Hears how it goes (``prefetch.Watcher``), says it on stderr, and keeps what became of each image."""

    def __init__(self, images: int) -> None:
        self.pulled: list[Pulled] = []
        self._images = images

    def begin(self, image: Image) -> None:
        pass

    def expect(self, nbytes: int) -> None:
        pass

    def receive(self, nbytes: int) -> None:
        pass

    def end(self, pulled: Pulled) -> None:
        self.pulled.append(pulled)
        for line in lines_of(pulled):
            self.say(line)

    def say(self, line: str) -> None:
        click.echo(line, err=True)


class Bar(Report):
    """Draws a bar over all images: what is on its way, bytes and rate."""

    def __init__(self, images: int, progress: Progress, task: TaskID) -> None:
        super().__init__(images)
        self._progress = progress
        self._task = task
        self._total = 0
        self._running: list[Image] = []
        self._draw()

    def begin(self, image: Image) -> None:
        self._running.append(image)
        self._draw()

    def expect(self, nbytes: int) -> None:
        self._total += nbytes
        self._progress.update(self._task, total=self._total)

    def receive(self, nbytes: int) -> None:
        self._progress.advance(self._task, nbytes)

    def end(self, pulled: Pulled) -> None:
        if pulled.image in self._running:
            self._running.remove(pulled.image)
        super().end(pulled)
        self._draw()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> None:
        now = str(self._running[0]) if self._running else ""
        self._progress.update(self._task, done=f"{len(self.pulled)}/{self._images}", now=now)


@contextmanager
def reporting(images: int) -> Iterator[Report]:
    """Give what tells people on stderr how it goes. images: how many there are."""
    if not sys.stderr.isatty():
        yield Report(images)
        return
    with drawing(images, Console(stderr=True)) as bar:
        yield bar


@contextmanager
def drawing(images: int, console: Console) -> Iterator[Bar]:
    """Give a bar on a console; it is gone afterwards."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[done]} images", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as progress:
        yield Bar(images, progress, progress.add_task("", total=0, done="", now=""))


def lines_of(pulled: Pulled) -> Iterator[str]:
    """Give what there is to say of an image: that it is there, or each of its problems."""
    for problem in pulled.problems:
        yield f"{pulled.image}: {problem}"
    if pulled.problems:
        return
    digest = "" if pulled.image.digest else f" {pulled.digest}"
    yield f"{pulled.image}{digest} {amounts(pulled.fetched, pulled.here)}"
    if pulled.warning:
        yield f"{pulled.image}: it may have changed since: {pulled.warning}"


def amounts(fetched: int, here: int) -> str:
    """Return how much was fetched and how much was there, in words."""
    return f"{size(fetched)} fetched, {size(here)} already here"
