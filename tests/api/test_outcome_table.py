"""What upstream outcomes mean, shown for every kind of content and everything that may be kept, with four workers.

The table is printed at the end of the run. Each row runs twice: as it is, and without the code that decides it, when
some of its cells have to fail, and nothing of an upstream that is well.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.outcome_print import TABLE, Table
from tests.api.outcome_rows import ROWS, SOME, Outcome, Row
from tests.api.outcome_stage import WELL, Cell, Content, Seen, Stage, play, stage
from tests.fake_upstream import Image

WITHIN = 20.0
"""Seconds in which everybody is answered, whatever an upstream does."""


@pytest.fixture
def closed() -> Iterator[int]:
    """Return a port that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def table(pytestconfig: pytest.Config) -> Table:
    """Return what the suite prints in the end."""
    return pytestconfig.stash.setdefault(TABLE, Table())


async def run(row: Row, path: Path, patch: pytest.MonkeyPatch, closed: int) -> tuple[Stage, dict[str, Seen]]:
    async with stage(path, patch, closed, tls=row.tls, **row.registry) as scene:
        row.before(scene)
        return scene, await play(scene, lambda: row.begin(scene))


def check(row: Row, cell: Cell, expected: Outcome, seen: Seen) -> None:
    """Compare what was seen with what is expected of a cell."""
    well = cell.kept == WELL
    names = ("status", "code", "content", "warned", "retry_after", "stored")
    found = {name: getattr(seen, name) for name in names}
    wanted = {name: getattr(expected, name) for name in names}
    if expected.asked is not None:
        asked = tuple(word.removeprefix("mirror: ") for word in seen.asked) if well else seen.asked
        found["asked"], wanted["asked"] = asked, expected.asked
    found["arrived"] = seen.reached
    wanted["arrived"] = tuple(word for word in seen.asked if well or row.arrives(word))
    found["in time"], wanted["in time"] = well or seen.seconds < WITHIN, True
    found["says"], wanted["says"] = all(expected.says in message for message in seen.messages), True
    if expected.retry_after == SOME and seen.retry_after:
        found["retry_after"] = SOME
    wrong = [f"{name} {found[name]!r}, expected {wanted[name]!r}" for name in found if found[name] != wanted[name]]
    if wrong:
        raise AssertionError(f"{cell.name}: {'; '.join(wrong)} ({seen.messages})")


@pytest.mark.parametrize("name", ROWS)
async def test_row(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: int, table: Table) -> None:
    row = ROWS[name]
    scene, seen = await run(row, tmp_path, monkeypatch, closed)
    outcomes = {cell.name: row.expected(cell) for cell in scene.cells}
    table.add(
        name, ((cell, seen[cell.name] if outcomes[cell.name] else None) for cell in scene.cells if cell.kept != WELL)
    )
    wrong = []
    for cell in scene.cells:
        expected = outcomes[cell.name]
        if expected is not None:
            try:
                check(row, cell, expected, seen[cell.name])
            except AssertionError as error:
                wrong.append(str(error))
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("name", ROWS)
async def test_row_without_its_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: int, table: Table
) -> None:
    row = ROWS[name]
    row.decides.away(monkeypatch)
    scene, seen = await run(row, tmp_path, monkeypatch, closed)
    failing, of = 0, 0
    for cell in scene.cells:
        expected = row.expected(cell)
        if expected is None:
            continue
        assert seen[cell.name].status != 500, "more is gone than a decision"
        if cell.kept == WELL:
            check(row, cell, expected, seen[cell.name])
            continue
        of += 1
        try:
            check(row, cell, expected, seen[cell.name])
        except AssertionError:
            failing += 1
    table.add_without(name, row.decides.what, failing, of)
    assert failing, f"nothing fails without {row.decides.what}"


def test_the_table_is_one_line_a_cell_and_one_for_the_row_without_its_code() -> None:
    image = Image("none-tag/app", "v1", "sha256:" + "1" * 64, b"{}", "", [], {})
    cell = Cell("none", "tag", Content(image, [], []), Content(image, [], []))
    asked = ("HEAD tag",) * 3
    seen = Seen(503, "UNAVAILABLE", "", 30, False, (), "mirror; hit", 0.123, ("no tag",), asked, asked[:1])
    table = Table()
    assert table.lines() == []
    table.add("busy", [(cell, seen), (cell, None)])
    table.add_without("busy", "patience", 3, 15)
    lines = [" ".join(line.split()) for line in table.lines()[2:]]
    assert lines == [
        "busy none tag 503 UNAVAILABLE 30 - hit 0.12 no tag 3 HEAD tag (1 arrived)",
        "busy none tag no such case",
        "busy without patience: 3 of 15 cells fail",
    ]
