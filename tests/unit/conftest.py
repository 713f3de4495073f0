"""What tests of the metadata share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mirror.metadata.sqlite import SqliteMetadata
from tests.metadata import ID, Open


@pytest.fixture
async def open_metadata(tmp_path: Path) -> AsyncIterator[Open]:
    """Open the database of this test once more, as another process would."""
    opened: list[SqliteMetadata] = []

    async def open_it(identity: str = ID) -> SqliteMetadata:
        metadata = SqliteMetadata(tmp_path / "metadata.db", identity)
        opened.append(metadata)
        await metadata.start()
        return metadata

    yield open_it
    for metadata in opened:
        if not metadata._database._writing._shutdown:
            await metadata.close()


@pytest.fixture
async def metadata(open_metadata: Open) -> SqliteMetadata:
    """The metadata of this test, new."""
    return await open_metadata()
