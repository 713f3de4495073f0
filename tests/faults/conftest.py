"""What tests of processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stubbed import Service


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services; the same root unless another is named."""
    started: list[Service] = []

    def start(root: str = "root", **settings: Any) -> Service:
        started.append(Service(tmp_path / root, tmp_path / f"log{len(started)}", **settings))
        return started[-1]

    yield start
    for service in started:
        service.end()
