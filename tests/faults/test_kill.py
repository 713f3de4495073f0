"""kill -9: nothing acknowledged is lost, nothing wrong is left, and what was fetched is not fetched again."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_upstream import FakeUpstream, Gate, start_in_thread
from tests.service import Service, service, wait_until, write_config

MIB = 1024 * 1024
SIZE = 24 * MIB
NAME = "team/app"


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def files(root: Path) -> list[str]:
    """Return everything that is kept or on its way, but for the lock file."""
    found = [*root.glob("cache/*/*"), *root.glob("blobs/*/*"), *root.glob("ingest/**/*")]
    return sorted(str(path.relative_to(root)) for path in found if path.is_file() and path.name != "locks")


def ask_in_background(running: Service, path: str) -> threading.Thread:
    def ask() -> None:
        try:
            running.get(path)
        except (OSError, http.client.HTTPException):
            pass  # its server is killed

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("percent", [20, 50, 90])
def test_every_process_killed_during_a_pull(tmp_path: Path, hub: FakeUpstream, percent: int, workers: int) -> None:
    digest = hub.add_random_blob(NAME, SIZE)
    path = f"/v2/{NAME}/blobs/{digest}"
    gate = Gate()
    at = SIZE * percent // 100
    hub.fault(digest, times=1, gate=gate, gate_at=at)
    config = write_config(tmp_path, {"up": {"url": hub.url}}, workers=workers)
    root = tmp_path / "root"
    with service(config) as first:
        clients = [ask_in_background(first, path) for _ in range(4)]
        gate.wait_reached()
        wait_until(
            lambda: any(part.stat().st_size >= at for part in root.glob("ingest/sha256/*.part")), "all of it is written"
        )
        first.kill()
        for client in clients:
            client.join(30)
    gate.open()
    assert not list(root.glob("cache/sha256/*")), "unverified content has no name"
    with service(config) as second:
        status, body = second.get(path)
        assert status == 200
        assert digest_of(body) == digest
        wait_until(lambda: files(root) == [f"cache/sha256/{digest[7:]}"], "no leftovers")
        hub.clear_faults()
        hub.clear_log()
        status, body = second.get(path)
        assert digest_of(body) == digest
        assert hub.log == [], "a hit"


@pytest.mark.parametrize("percent", [20, 50, 90])
def test_the_rest_is_fetched_by_range(tmp_path: Path, hub: FakeUpstream, percent: int) -> None:
    """Counted at the upstream: what was received before the kill is not asked for again."""
    digest = hub.add_random_blob(NAME, SIZE)
    path = f"/v2/{NAME}/blobs/{digest}"
    at = SIZE * percent // 100
    gate = Gate()
    hub.fault(digest, times=1, gate=gate, gate_at=at)
    config = write_config(tmp_path, {"up": {"url": hub.url}}, workers=2)
    root = tmp_path / "root"
    with service(config) as first:
        client = ask_in_background(first, path)
        gate.wait_reached()
        wait_until(
            lambda: any(part.stat().st_size >= at for part in root.glob("ingest/sha256/*.part")), "all of it is written"
        )
        first.kill()
        client.join(30)
    with service(config) as second:
        assert digest_of(second.get(path)[1]) == digest
    gate.open()
    rest = hub.requests("GET", digest)[1:]
    assert len(rest) == 1
    start = int(rest[0].headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert start + (SIZE - start) + max(0, at - start) <= 1.1 * SIZE, f"continued at {start} of {at}"
    assert start >= at - SIZE // 10


def test_the_leader_killed_while_others_follow(tmp_path: Path, hub: FakeUpstream) -> None:
    """The workers that follow go on: their clients get everything, by one more request with Range."""
    digest = hub.add_random_blob(NAME, SIZE)
    path = f"/v2/{NAME}/blobs/{digest}"
    gate = Gate()
    hub.fault(digest, times=1, gate=gate, gate_at=SIZE // 2)
    with service(write_config(tmp_path, {"up": {"url": hub.url}}, workers=4)) as running:
        results: list[bytes] = []

        def pull() -> None:
            try:
                results.append(running.get(path)[1])
            except (OSError, http.client.HTTPException):
                results.append(b"")

        clients = [threading.Thread(target=pull) for _ in range(16)]
        for client in clients:
            client.start()
        gate.wait_reached()
        parts = (tmp_path / "root").glob
        wait_until(
            lambda: any(part.stat().st_size >= SIZE // 2 for part in parts("ingest/sha256/*.part")), "half is written"
        )
        leader = wait_until(lambda: running.leader_of(digest), "somebody leads")
        before = set(running.workers())
        os.kill(leader, signal.SIGKILL)
        for client in clients:
            client.join(60)
        gate.open()
        whole = [body for body in results if digest_of(body) == digest]
        assert len(whole) >= 4, "sixteen clients spread over four workers; only the leader's own lose their connection"
        wait_until(lambda: len(running.workers()) == 4 and set(running.workers()) != before, "it is replaced")
        assert digest_of(running.get(path)[1]) == digest
    requests = hub.requests("GET", digest)
    assert len(requests) == 2
    start = int(requests[1].headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert SIZE // 2 + (SIZE - start) <= 1.3 * SIZE
    assert files(tmp_path / "root") == [f"cache/sha256/{digest[7:]}"]


def test_killed_again_and_again_it_still_gets_there(tmp_path: Path, hub: FakeUpstream) -> None:
    """Each life gets a little further; what is stored in the end is right, and every life began where one ended."""
    digest = hub.add_random_blob(NAME, SIZE)
    path = f"/v2/{NAME}/blobs/{digest}"
    config = write_config(tmp_path, {"up": {"url": hub.url}}, workers=2)
    root = tmp_path / "root"

    def written() -> int:
        return max((part.stat().st_size for part in root.glob("ingest/sha256/*.part")), default=0)

    def starts() -> list[int]:
        ranges = [request.headers.get("Range", "bytes=0-") for request in hub.requests("GET", digest)]
        return [int(one.removeprefix("bytes=").removesuffix("-")) for one in ranges]

    for life in range(4):
        gate = Gate()
        hub.fault(digest, times=1, gate=gate, gate_at=5 * MIB)
        with service(config) as running:
            client = ask_in_background(running, path)
            gate.wait_reached()
            wait_until(lambda: written() >= starts()[-1] + 5 * MIB, f"life {life} gets further")
            running.kill()
            client.join(30)
    with service(config) as last:
        assert digest_of(last.get(path)[1]) == digest
    assert len(starts()) == 5
    assert starts() == sorted(starts())
    assert starts()[-1] >= 4 * MIB
    assert files(root) == [f"cache/sha256/{digest[7:]}"]
