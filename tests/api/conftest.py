"""What tests of the whole application share: an upstream, a root, and a clock to move."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.api.outcome_print import TABLE
from tests.fake_upstream import FakeUpstream
from tests.images import Clock, use_clock
from tests.joining import count_joined


@pytest.fixture
async def hub() -> AsyncIterator[FakeUpstream]:
    """Run a scriptable upstream."""
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return where the mirrors of the test keep everything."""
    return tmp_path / "root"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the mirrors of the test read a clock that is moved by hand."""
    return use_clock(monkeypatch)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the clients that take part in downloads of the mirrors of the test."""
    return count_joined(monkeypatch)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the outcome table, as far as it was run."""
    table = config.stash.get(TABLE, None)
    if table is not None:
        terminalreporter.section("what upstream outcomes mean")
        for line in table.lines():
            terminalreporter.write_line(line)
