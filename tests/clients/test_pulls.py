"""Every client pulls every kind of image through the mirror, at 1 and at 4 workers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.clients import Clients
from tests.clients.hub import Hub
from tests.clients.images import Images
from tests.clients.mirror_process import Mirror
from tests.clients.rows import ROWS, Bench, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_pull(row: Row, mirror: Mirror, new_clients: Callable[[str], Clients], hub: Hub, images: Images) -> None:
    before = hub.mark()
    with new_clients(mirror.url) as clients:
        try:
            row.run(Bench(clients=clients, images=images, hub=hub))
        except Exception as exc:
            exc.add_note(f"the mirror's log:\n{mirror.tail()}\nthe hub's log:\n{hub.log(before)}")
            raise
    assert not hub.log(before).served().to_clients(), str(hub.log(before))
