"""Counting pulls and answers: nothing is lost between processes, and there is an end to the rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.oci.names import Repository, RepositoryName
from mirror.store import tally
from mirror.store.tally import Tally

APP = Repository("up", RepositoryName("team/app"))
OTHER = Repository("up", RepositoryName("team/other"))
OURS = Repository(None, RepositoryName("local/app"))
A, B = ("sha256:" + 64 * letter for letter in "ab")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def two(tmp_path: Path, clock: Clock) -> Iterator[tuple[Tally, Tally]]:
    """Give the tallies of two processes on one root."""
    made = Tally(tmp_path / "usage.db", clock=clock), Tally(tmp_path / "usage.db", clock=clock)
    for one in made:
        one.open()
    yield made
    for one in made:
        one.close()


def write(*tallies: Tally) -> None:
    for one in tallies:
        counted = one.take()
        assert counted is not None
        one.add(counted)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query.format(schema="main")).fetchall()


def test_what_several_processes_count_adds_up(two: tuple[Tally, Tally], tmp_path: Path, clock: Clock) -> None:
    one, other = two
    one.note(APP, pulled=A, hit=False, nbytes=500)
    one.note(APP, pulled=A, hit=True, nbytes=500)
    one.note(OURS, pulled=None, hit=True, nbytes=7)
    other.note(APP, pulled=A, hit=True, nbytes=500)
    other.note(OTHER, pulled=B, hit=True, nbytes=90)
    write(one)
    clock.now = 2000.0
    write(other)
    path = tmp_path / "usage.db"
    assert rows(path, tally.PULLS) == [("up|team/app", A, 3, 2000.0), ("up|team/other", B, 1, 2000.0)]
    assert rows(path, tally.TRAFFIC) == [
        ("up|", 3, 1, 1090, 500),
        ("up|team/app", 2, 1, 1000, 500),
        ("up|team/other", 1, 0, 90, 0),
        ("|", 1, 0, 7, 0),
        ("|local/app", 1, 0, 7, 0),
    ]
    later = Tally(path, clock=clock)
    later.open()
    later.close()
    assert rows(path, tally.SINCE) == [(1000.0,)]  # who opened it later did not begin anew


def test_what_was_taken_is_counted_once(two: tuple[Tally, Tally], tmp_path: Path) -> None:
    one, _ = two
    one.note(APP, pulled=A, hit=True, nbytes=1)
    write(one)
    assert one.take() is None
    assert [row[2] for row in rows(tmp_path / "usage.db", tally.PULLS)] == [1]


def test_the_least_used_go_when_there_are_too_many(tmp_path: Path, clock: Clock) -> None:
    counting = Tally(tmp_path / "usage.db", most=20, clock=clock)
    counting.open()
    for _ in range(3):
        counting.note(APP, pulled=A, hit=True, nbytes=1)
    for at in range(20):
        clock.now += 1
        counting.note(Repository("up", RepositoryName(f"x/{at:02}")), pulled=B, hit=True, nbytes=1)
        write(counting)
    counting.close()
    kept = [row[0] for row in rows(tmp_path / "usage.db", tally.PULLS)]
    assert kept == ["up|team/app", *(f"up|x/{at:02}" for at in range(3, 20))]  # 18 of 20: room for what is new
    traffic = [row[0] for row in rows(tmp_path / "usage.db", tally.TRAFFIC)]
    assert traffic[0] == "up|"
    assert len(traffic) <= 20


def test_names_without_end_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "MOST_WAITING", 5)
    counting = Tally(tmp_path / "usage.db")
    for at in range(50):
        counting.note(Repository("up", RepositoryName(f"x/{at}")), pulled=A, hit=True, nbytes=1)
    for at in range(50):
        counting.note(Repository("up", RepositoryName("x/0")), pulled=f"sha256:{at:064}", hit=True, nbytes=1)
    taken = counting.take()
    assert taken is not None
    assert (len(taken.answers), len(taken.pulls)) == (5, 5)
    assert taken.answers["up|x/0"][0] == 51  # what is known goes on being counted


def test_a_failed_write_adds_nothing(two: tuple[Tally, Tally], tmp_path: Path) -> None:
    one, other = two
    one.note(APP, pulled=A, hit=True, nbytes=2**64)  # more than a column holds: it fails in the middle
    counted = one.take()
    assert counted is not None
    with pytest.raises(OverflowError):
        one.add(counted)
    other.note(OTHER, pulled=B, hit=True, nbytes=1)
    write(other)  # nor is anything left locked
    assert [row[0] for row in rows(tmp_path / "usage.db", tally.PULLS)] == ["up|team/other"]
