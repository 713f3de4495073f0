"""What people see of a pull: lines, amounts, and a bar where there is a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mirror.cli.progress import Bar, Report, drawing, lines_of, reporting
from mirror.logs.amounts import size
from mirror.oci.names import digest_of
from mirror.prefetch import Pulled, parse_image

DIGEST = digest_of(b"")
MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (3_565_158, "3.4 MiB"),
        (10_200_547, "9.7 MiB"),
        (12 * MIB, "12 MiB"),
        (1000 * MIB, "1.0 GiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_amounts(nbytes: int, text: str) -> None:
    assert size(nbytes) == text


def pulled(text: str, **more: object) -> Pulled:
    values = {"digest": DIGEST, "fetched": 3_565_158, "here": 12 * MIB} | more
    return Pulled(image=parse_image(text), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "lines"),
    [
        (pulled("a:1"), [f"docker.io/library/a:1 {DIGEST} 3.4 MiB fetched, 12 MiB already here"]),
        (pulled(f"a@{DIGEST}"), [f"docker.io/library/a@{DIGEST} 3.4 MiB fetched, 12 MiB already here"]),
        (pulled("a:1", problems=("one", "two")), ["docker.io/library/a:1: one", "docker.io/library/a:1: two"]),
        (
            pulled("a:1", warning="no answer"),
            [
                f"docker.io/library/a:1 {DIGEST} 3.4 MiB fetched, 12 MiB already here",
                "docker.io/library/a:1: it may have changed since: no answer",
            ],
        ),
    ],
    ids=["tag", "digest", "problems", "warning"],
)
def test_lines(one: Pulled, lines: list[str]) -> None:
    assert list(lines_of(one)) == lines


def test_without_a_terminal_there_are_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting(2) as report:
        assert type(report) is Report
        report.begin(parse_image("a:1"))
        report.expect(100)
        report.receive(100)
        report.end(pulled("a:1"))
    said = capsys.readouterr()
    assert said.err == f"docker.io/library/a:1 {DIGEST} 3.4 MiB fetched, 12 MiB already here\n"
    assert said.out == ""


def test_with_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with reporting(1) as report:
        assert isinstance(report, Bar)


def test_the_bar_shows_images_bytes_and_what_is_on_its_way() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with drawing(3, console) as bar:
        bar.begin(parse_image("first:1"))
        bar.begin(parse_image("second:1"))
        bar.expect(8 * MIB)
        bar.expect(2 * MIB)
        bar.receive(5 * MIB)
        bar.expect(-2 * MIB)
        bar._progress.refresh()
        drawn = screen.getvalue()
        assert "0/3 images" in drawn
        assert "5.0/8.0 MiB" in drawn
        assert "docker.io/library/first:1" in drawn
        bar.end(pulled("first:1", problems=("[red]not markup[/red]",)))
        bar._progress.refresh()
    drawn = screen.getvalue()
    assert "docker.io/library/first:1: [red]not markup[/red]" in drawn
    assert "1/3 images" in drawn
    assert "docker.io/library/second:1" in drawn
    assert bar.pulled[0].problems
