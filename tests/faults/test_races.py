"""The hand-over of a download from one process to the next, at every step, and what a full disk does to it.

The leader is a process of its own that stops or dies at a named step; the test's own mirrors on the same root
are the others. A client whose answer ends cleanly has the right bytes, whatever happened on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_upstream import FakeUpstream, Gate
from tests.harness import Mirror, make_config, mirrors
from tests.raw_client import Client

MIB = 1024 * 1024
SIZE = 2 * MIB
TAIL = 64 * 1024
NAME = "team/app"
PROJECT = Path(__file__).parents[2]

STEPS = (
    "mirror.store.ingest:Ingest.verify",
    "mirror.store.ingest:Ingest.sync_in_thread",
    "mirror.store.disk:DiskBlobStore.admit",
    "mirror.metadata.sqlite:SqliteMetadata.grant",
    "mirror.store.ingest:Ingest.finish_in_thread",
    "mirror.store.ingest:sync_folder",
    "mirror.store.ingest:Ingest._remove_state",
    "mirror.store.lease:FileLease.release",
)
"""What a leader does from its last byte on; it ends at the beginning of one of these."""


def path_of(digest: str, repository: str = f"up/{NAME}") -> str:
    return f"/v2/{repository}/blobs/{digest}"


def right(data: bytes | bytearray, digest: str) -> bool:
    return "sha256:" + hashlib.sha256(data).hexdigest() == digest


def ingest_of(root: Path) -> list[str]:
    return sorted(os.listdir(root / "ingest" / "sha256"))


def cached(root: Path) -> list[str]:
    return sorted(os.listdir(root / "cache" / "sha256"))


async def until(condition: Any, what: str, seconds: float = 15) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


@pytest.fixture
async def hub() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


def config_of(tmp_path: Path, hub: FakeUpstream, **settings: Any) -> Any:
    return make_config(tmp_path / "root", {"up": {"url": hub.url, **settings}})


# ---- a leader of its own process ----


def leader_main(root: str, upstream: str, step: str, how: str) -> None:
    """Be the leader: answer, say where, and end by a signal at the beginning of a step."""
    import importlib

    module_name, _, name = step.partition(":")
    holder: Any = importlib.import_module(module_name)
    *outer, last = name.split(".")
    for part in outer:
        holder = getattr(holder, part)
    real = getattr(holder, last)
    armed = False

    def stop_here(*arguments: Any, **named: Any) -> Any:
        if armed:
            os.kill(os.getpid(), getattr(signal, how))
        return real(*arguments, **named)

    async def main() -> None:
        nonlocal armed
        config = make_config(Path(root), {"up": {"url": upstream}})
        async with mirrors(config) as (worker,):
            setattr(holder, last, stop_here)
            armed = True
            print(worker.url, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())


class Leader:
    """A mirror in a process of its own. url: where it answers."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self.url = url

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped or ended it."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state in "TZX"
        return True

    def signal(self, which: int) -> None:
        self._process.send_signal(which)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)
        assert self._process.stdout
        self._process.stdout.close()


@contextlib.asynccontextmanager
async def leader(tmp_path: Path, hub: FakeUpstream, step: str, how: str) -> AsyncIterator[Leader]:
    code = f"import tests.faults.test_races as t; t.leader_main({str(tmp_path / 'root')!r}, {hub.url!r}, {step!r}, {how!r})"
    with (tmp_path / "leader.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout
    url = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
    running = Leader(process, url)
    try:
        assert url, (tmp_path / "leader.log").read_text()
        yield running
    finally:
        await asyncio.to_thread(running.end)


@pytest.mark.parametrize("attach", ["early", "late"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.rpartition(":")[2])
async def test_a_leader_killed_between_two_steps_of_its_commit(
    tmp_path: Path, hub: FakeUpstream, step: str, attach: str
) -> None:
    """Whoever followed, or comes now, gets all of it; nothing is transferred again, and nothing is left over."""
    digest = hub.add_random_blob(NAME, SIZE)
    gate = Gate()
    hub.fault(digest, times=1, gate=gate, gate_at=SIZE - 1)
    async with mirrors(config_of(tmp_path, hub), 2) as workers, leader(tmp_path, hub, step, "SIGKILL") as first:
        own = Client(first.url + path_of(digest))
        await own.has(MIB)
        followers = [Client(worker.url + path_of(digest)) for worker in workers if attach == "early"]
        for follower in followers:
            await follower.has(MIB)
        gate.open()
        await until(lambda: first.stopped, "the leader dies")
        followers += [Client(worker.url + path_of(digest)) for worker in workers]
        for follower in followers:
            async with asyncio.timeout(15):
                await follower.task
            assert follower.ended == "clean"
            assert right(follower.body, digest)
        await own.task
        assert own.ended != "clean" or right(own.body, digest)
        # Who followed was served by then: the next to ask may be the one that gives it its name.
        again = await workers[0].get(path_of(digest))
        assert right(again.body, digest)
        await until(lambda: cached(tmp_path / "root") == [digest[7:]], "stored")
    assert hub.count("GET", digest) == 1
    assert ingest_of(tmp_path / "root") == []


@pytest.mark.parametrize("then", ["SIGCONT", "SIGKILL"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.rpartition(":")[2])
async def test_a_leader_stopped_between_two_steps_of_its_commit(
    tmp_path: Path, hub: FakeUpstream, step: str, then: str
) -> None:
    """Stopped it holds its lease: the others wait for it, and nobody starts a second transfer."""
    digest = hub.add_random_blob(NAME, SIZE)
    gate = Gate()
    hub.fault(digest, times=1, gate=gate, gate_at=SIZE - 1)
    async with mirrors(config_of(tmp_path, hub), 2) as workers, leader(tmp_path, hub, step, "SIGSTOP") as first:
        own = Client(first.url + path_of(digest))
        await own.has(MIB)
        followers = [Client(worker.url + path_of(digest)) for worker in workers]
        for follower in followers:
            await follower.has(MIB)
        gate.open()
        await until(lambda: first.stopped, "the leader stops")
        late = [Client(worker.url + path_of(digest)) for worker in workers]
        await asyncio.sleep(0.3)
        first.signal(signal.SIGCONT if then == "SIGCONT" else signal.SIGKILL)
        if then == "SIGCONT":
            await until(lambda: not first.stopped or own.task.done(), "it goes on")
        for follower in (*followers, *late):
            async with asyncio.timeout(20):
                while not follower.task.done():
                    if then == "SIGCONT" and first.stopped:
                        first.signal(signal.SIGCONT)  # the same step may come again
                    await asyncio.sleep(0.01)
            assert follower.ended == "clean"
            assert right(follower.body, digest)
        assert right((await workers[0].get(path_of(digest))).body, digest)
        await until(lambda: cached(tmp_path / "root") == [digest[7:]], "stored")
    await own.task
    assert own.ended != "clean" or right(own.body, digest)
    assert hub.count("GET", digest) == 1
