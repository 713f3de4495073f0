"""The hand-over of a download from one process to the next, at every step, and what a full disk does to it.

The leader is a process of its own that stops or dies at a named step; the test's own mirrors on the same root
are the others. A client whose answer ends cleanly has the right bytes, whatever happened on the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import http.client
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.oci.names import parse_digest
from mirror.store.residency import Residency
from tests.fake_upstream import FakeUpstream, Gate, random_bytes, start_in_thread
from tests.harness import make_config, mirrors
from tests.raw_client import Client
from tests.service import service, wait_until, write_config

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

    async def keep_going(self) -> None:
        """Continue it whenever it has stopped: it may come to the same step again."""
        while True:
            if self.stopped:
                self.signal(signal.SIGCONT)
            await asyncio.sleep(0.01)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)
        assert self._process.stdout
        self._process.stdout.close()


@contextlib.asynccontextmanager
async def leader(tmp_path: Path, hub: FakeUpstream, step: str, how: str) -> AsyncIterator[Leader]:
    arguments = (str(tmp_path / "root"), hub.url, step, how)
    code = f"import tests.faults.test_races as test; test.leader_main(*{arguments!r})"
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
        async with asyncio.timeout(15):
            while not cached(tmp_path / "root"):  # who asks next may be the one that gives it its name
                assert right((await workers[0].get(path_of(digest))).body, digest)
        assert right((await workers[1].get(path_of(digest))).body, digest)
    assert hub.count("GET", digest) == 1
    async with mirrors(config_of(tmp_path, hub)) as (worker,):  # the worker that replaces the dead one tidies up
        assert right((await worker.get(path_of(digest))).body, digest)
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
        going: asyncio.Task[None] | None = None
        if then == "SIGCONT":
            going = asyncio.create_task(first.keep_going())
        else:
            first.signal(signal.SIGKILL)
        for follower in (*followers, *late):
            async with asyncio.timeout(20):
                await follower.task
            assert follower.ended == "clean"
            assert right(follower.body, digest)
        async with asyncio.timeout(15):
            while not cached(tmp_path / "root"):  # who asks next may be the one that gives it its name
                assert right((await workers[0].get(path_of(digest))).body, digest)
            await own.task
        if going is not None:
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
    assert own.ended != "clean" or right(own.body, digest)
    assert hub.count("GET", digest) == 1


def test_a_stopped_leader_is_replaced_and_its_followers_go_on(tmp_path: Path) -> None:
    """It holds its lease as long as it lives; the parent kills what does not tick, and that bounds the wait."""
    with start_in_thread() as hub:
        digest = hub.add_random_blob(NAME, SIZE)
        gate = Gate()
        hub.fault(digest, times=1, gate=gate, gate_at=MIB)
        with service(write_config(tmp_path, {"up": {"url": hub.url}}, workers=3)) as running:
            results: list[tuple[int, bytes]] = []

            def pull() -> None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    results.append(running.get(path_of(digest)))

            clients = [threading.Thread(target=pull) for _ in range(12)]
            for client in clients:
                client.start()
            gate.wait_reached()
            parts = (tmp_path / "root").glob
            wait_until(
                lambda: any(part.stat().st_size >= MIB for part in parts("ingest/sha256/*.part")), "half is written"
            )
            first = wait_until(lambda: running.leader_of(digest), "somebody leads")
            os.kill(first, signal.SIGSTOP)
            for client in clients:
                client.join(60)
                assert not client.is_alive(), "nobody hangs for ever"
            gate.open()
            assert sum(right(body, digest) for status, body in results if status == 200) >= 3
            assert first not in running.workers()
            assert right(running.get(path_of(digest))[1], digest)
        requests = hub.requests("GET", digest)
        assert len(requests) == 2
        assert requests[1].headers["Range"].startswith("bytes=")


# ---- never complete and wrong ----


async def test_a_range_of_a_download_waits_for_the_verdict(tmp_path: Path, hub: FakeUpstream) -> None:
    """A range is complete long before the download is: its end has to wait like everybody's, or be marked."""
    data = random_bytes(SIZE, 1)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, times=1, replace=b"?" + data[1:], gate=gate, gate_at=MIB)
    async with mirrors(config_of(tmp_path, hub, unverified_ranges=False), 2) as workers:
        whole = Client(workers[0].url + path_of(digest))
        await whole.has(MIB // 2)
        parts = [Client(worker.url + path_of(digest), Range="bytes=0-199999") for worker in workers]
        await asyncio.sleep(0.3)
        gate.open()
        for part in parts:
            await part.task
            assert part.ended != "clean" or bytes(part.body) == data[:200_000] or part.status == 502
        assert (await whole.task).ended == "reset"


async def test_a_failure_before_the_first_byte_is_not_sent_as_the_content(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is left for the client's socket: its headers are written, its body may not be our error."""
    data = random_bytes(150, 1)
    digest = hub.add_blob(NAME, data)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        assert right((await worker.get(path_of(digest))).body, digest)

        def none_left(fd: int) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr("mirror.api.sending.os.dup", none_left)
            client = Client(worker.url + path_of(digest))
            async with asyncio.timeout(10):
                await client.task
        assert client.status >= 500 or client.ended != "clean" or bytes(client.body) == data, bytes(client.body)
        assert right((await worker.get(path_of(digest))).body, digest)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
async def test_a_window_that_cannot_be_written_ends_its_clients(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    digest = hub.add_random_blob(NAME, 24 * MIB)
    gate = Gate()
    hub.fault(lambda request: digest in request.path and "Range" not in request.headers, gate=gate, gate_at=MIB)
    from mirror.registry import windows

    real, written = windows.write_all, 0

    def broken(fd: int, chunks: Any, offset: int) -> int:
        nonlocal written
        if written:
            raise OSError(error, os.strerror(error))
        written = real(fd, chunks, offset)
        return written

    monkeypatch.setattr(windows, "write_all", broken)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        whole = Client(worker.url + path_of(digest))
        await whole.has(MIB // 2)
        far = Client(worker.url + path_of(digest), Range=f"bytes={16 * MIB}-{20 * MIB - 1}")
        await asyncio.wait({far.task}, timeout=10)
        ended = far.ended
        far.task.cancel()
        gate.open()
        assert (await whole.task).ended == "clean"
        assert ended == "short", "a FIN: it must not wait for bytes that never come"


async def test_a_far_range_of_an_upstream_without_ranges_waits_for_the_download(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    data = random_bytes(16 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(lambda request: digest in request.path and "Range" not in request.headers, gate=gate, gate_at=MIB)
    hub.fault(lambda request: digest in request.path and "Range" in request.headers, ignore_range=True)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        whole = Client(worker.url + path_of(digest))
        await whole.has(MIB // 2)
        far = Client(worker.url + path_of(digest), Range=f"bytes={12 * MIB}-{12 * MIB + 99}")
        await until(lambda: hub.count("GET", digest) > 1 or far.task.done(), "it is asked for")
        gate.open()
        await whole.task
        await far.task
        assert far.status == 206
        assert bytes(far.body) == data[12 * MIB : 12 * MIB + 100]


# ---- waiting and leaving ----


async def test_headers_or_an_error_come_in_time_when_the_body_does_not_begin(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream sends headers and then nothing: our client has no headers yet, and must not wait for ever."""
    monkeypatch.setattr("mirror.registry.blobs.HEADERS_WITHIN", 0.5)
    digest = hub.add_random_blob(NAME, MIB)
    hub.fault(digest, hang_after=0)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        asked = [asyncio.create_task(worker.get(path_of(digest))) for worker in workers]
        done, late = await asyncio.wait(asked, timeout=8)
        for one in late:
            one.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        assert not late, "no headers"
        assert {one.result().status for one in done} <= {200, 503, 504}


async def test_a_waiter_cancelled_as_it_is_served_leaves_no_view(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit may end in the very turn in which the headers came in."""
    from mirror.oci.errors import RegistryError
    from mirror.wiring import answering

    made: list[Any] = []

    class Seen(answering.Inflight):
        def __init__(self, **named: Any) -> None:
            super().__init__(**named)
            made.append(self)

    monkeypatch.setattr(answering, "Inflight", Seen)
    digest = hub.add_random_blob(NAME, MIB)
    gate = Gate()
    hub.fault(digest, gate_headers=gate)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        client = asyncio.create_task(worker.get(path_of(digest)))
        await gate.reached()
        download = next(iter(made[0]._downloads.values()))
        waiting = asyncio.create_task(download.join(next(iter(download._origins.values()))))
        await asyncio.sleep(0)
        observe = download.observe

        def cancelled_now(*arguments: Any) -> None:
            observe(*arguments)
            if not download._waiters:
                waiting.cancel()

        download.observe = cancelled_now
        gate.open()
        with pytest.raises((asyncio.CancelledError, RegistryError)):
            await waiting
        assert right((await client).body, digest)
        await until(lambda: not made[0]._downloads, "it ends")
        assert download.views == 0


async def test_no_descriptor_is_left_by_thousands_of_clients(tmp_path: Path, hub: FakeUpstream) -> None:
    digests = [hub.add_random_blob(NAME, size) for size in (10, 70_000, 300_000, MIB)]
    root = tmp_path / "root"
    async with mirrors(config_of(tmp_path, hub), 2) as workers:

        async def work(number: int) -> None:
            digest, worker = digests[number % 4], workers[number % 2]
            match number % 7:
                case 0:
                    await worker.head(path_of(digest))
                case 1:
                    await worker.get(path_of(digest), headers={"Range": "bytes=1-5"})
                case 2:
                    await worker.get(path_of(digest, "up/no/such"))
                case 3:
                    client = Client(worker.url + path_of(digest))
                    await asyncio.sleep(0.001 * (number % 5))
                    client.task.cancel()
                    await asyncio.gather(client.task, return_exceptions=True)
                case _:
                    await worker.get(path_of(digest))

        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        async def many(count: int) -> None:
            for start in range(0, count, 40):
                if start % 200 == 0:
                    for path in root.glob("cache/*/*"):
                        path.unlink()
                if start % 120 == 0:
                    hub.fault(times=3, cut_after=5)
                await asyncio.gather(*(work(start + one) for one in range(40)))
            for worker in workers:
                await worker.session.close()
                worker.session = aiohttp.ClientSession(auto_decompress=False)
            await until(lambda: not ingest_of(root), "all downloads end")

        new = descriptors()
        await many(400)
        await until(lambda: descriptors() <= new + 20, "what is left is pooled, and of threads")
        before = descriptors()
        await many(1600)
        await until(lambda: descriptors() <= before + 8, "and that may differ a little")


async def test_touches_go_on_after_the_index_could_not_be_written(tmp_path: Path) -> None:
    residency = Residency(tmp_path / "index")
    residency.FLUSH_EVERY = 0.02  # type: ignore[misc]
    await residency.start()
    digest = parse_digest("sha256:" + "a" * 64)
    await residency.admit(digest, 5)
    write, failed = residency._write, 0

    def full(rows: Any) -> None:
        nonlocal failed
        failed += 1
        raise sqlite3.OperationalError("database or disk is full")

    residency._write = full  # type: ignore[method-assign]
    residency.touch(digest)
    await until(lambda: failed, "it is tried")
    residency._write = write  # type: ignore[method-assign]
    residency.touch(digest)
    try:
        await until(lambda: not residency._touched, "later touches are written")
        assert residency._flusher is not None
        assert not residency._flusher.done()
    finally:
        await residency.close()


# ---- one transfer ----


async def test_every_way_to_ask_at_once_is_one_transfer(tmp_path: Path, hub: FakeUpstream) -> None:
    """Several repositories of one upstream, whole, ranges, HEAD, four processes; clients that come and go."""
    names = [f"team/app{number}" for number in range(5)]
    data = random_bytes(SIZE, 1)
    digest = {hub.add_blob(name, data) for name in names}.pop()
    hub.rate = 4 * MIB
    async with mirrors(config_of(tmp_path, hub), 4) as workers:

        async def ask(number: int) -> None:
            worker, path = workers[number % 4], path_of(digest, f"up/{names[number % 5]}")
            await asyncio.sleep(0.01 * (number % 60))
            if number % 4 == 0:
                assert (await worker.head(path)).status == 200
            elif number % 4 == 1:
                part = await worker.get(path, headers={"Range": f"bytes={number}-"})
                assert part.body == data[number:]
            elif number % 4 == 2:
                client = Client(worker.url + path)
                await asyncio.sleep(0.02)
                client.task.cancel()
                await asyncio.gather(client.task, return_exceptions=True)
            else:
                assert right((await worker.get(path)).body, digest)

        await asyncio.gather(*(ask(number) for number in range(120)))
        await until(lambda: cached(tmp_path / "root"), "stored")
    assert hub.count("GET", digest) == 1
    assert hub.bytes_sent(digest) == SIZE
