"""First of all: the suite can fail. Every pull row fails against a mirror that is not there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.clients import Clients
from tests.clients.cri import CriFailed
from tests.clients.hub import Hub
from tests.clients.images import Images
from tests.clients.mirror_process import NOBODY
from tests.clients.namespace import CommandFailed
from tests.clients.rows import PULLS, ROWS, Bench, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_fails_without_a_mirror(row: Row, new_clients: Callable[[str], Clients], hub: Hub, images: Images) -> None:
    before = hub.mark()
    with new_clients(NOBODY) as clients:
        # a client's own failure, not one of the assertions about what arrived
        with pytest.raises((CommandFailed, CriFailed)):
            row.run(Bench(clients=clients, images=images, hub=hub))
    assert not hub.log(before).served(), str(hub.log(before))


@pytest.mark.parametrize("client", PULLS)
def test_clients_work_when_the_hub_does_not_refuse_them(
    client: str, new_clients: Callable[[str], Clients], hub: Hub, images: Images
) -> None:
    """The twin: the refusal is what makes the rows fail, not a broken client."""
    before = hub.mark()
    with new_clients(NOBODY) as clients, hub.open_to_clients():
        PULLS[client](clients, images.multi)
    assert hub.log(before).served()
