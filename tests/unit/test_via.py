"""Which mirrors a request has passed: what is read from ``Via``, and what is sent on."""

from __future__ import annotations

import asyncio
import time

import pytest

from mirror.upstream import via

ME = "0123456789abcdef"
OWN = f"oci-mirror-{ME}"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", False, id="none"),
        pytest.param(f"1.1 {OWN}", True, id="alone"),
        pytest.param(f"HTTP/1.1 {OWN}", True, id="with-the-protocols-name"),
        pytest.param(f"1.0 fred, 1.1 {OWN} (a comment), 1.1 p.example.net:8080", True, id="among-others"),
        pytest.param(f"1.0 fred,1.1\t{OWN}", True, id="odd-spaces"),
        pytest.param(f"1.1 {OWN}0", False, id="longer"),
        pytest.param(f"1.1 {OWN[:-1]}", False, id="shorter"),
        pytest.param(f"1.1 x{OWN}", False, id="inside-another-name"),
        pytest.param(OWN, False, id="no-protocol"),
        pytest.param(f"1.1 fred ({OWN})", False, id="in-a-comment"),
        pytest.param(",, ,1.1", False, id="nonsense"),
    ],
)
def test_whether_a_request_has_been_here(text: str, named: bool) -> None:
    assert via.names(text, ME) is named


@pytest.mark.parametrize("text", ["a/" * 4000, "a" * 8000, "1.1 " * 2000, "," * 8000])
def test_a_long_via_is_read_at_once(text: str) -> None:
    began = time.process_time()
    assert not via.names(text, ME)
    assert time.process_time() - began < 0.5


def test_our_own_name_goes_behind_what_was_received() -> None:
    assert via.sent(ME) == f"1.1 {OWN}"
    token = via.received.set("1.0 fred, 1.1 p.example.net")
    try:
        assert via.sent(ME) == f"1.0 fred, 1.1 p.example.net, 1.1 {OWN}"
    finally:
        via.received.reset(token)


async def test_what_a_request_begins_has_its_via_and_nothing_else_has() -> None:
    """A task keeps what its beginner received, whatever comes in later on the same connection."""
    go = asyncio.Event()

    async def later() -> str:
        await go.wait()
        return via.sent(ME)

    async def request(received: str) -> asyncio.Task[str]:
        via.received.set(received)
        return asyncio.create_task(later())

    async def connection() -> list[asyncio.Task[str]]:
        return [await request("1.1 one"), await request("")]

    begun = await asyncio.create_task(connection())
    go.set()
    assert [await task for task in begun] == [f"1.1 one, 1.1 {OWN}", f"1.1 {OWN}"]
    assert via.received.get() == ""
