"""Downloads in flight: one transfer, whatever happens to clients, leaders and upstreams; and whose bytes they are.

Several mirrors on one root stand for several processes: they share nothing but the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Credentials
from mirror.registry.inflight import Download
from mirror.store.state import Phase, State
from tests.fake_upstream import FakeUpstream, Gate, random_bytes
from tests.harness import make_config, mirrors
from tests.raw_client import Client

MIB = 1024 * 1024
TAIL = 64 * 1024
NAME = "team/app"


def path_of(digest: str, repository: str = f"up/{NAME}") -> str:
    return f"/v2/{repository}/blobs/{digest}"


def right(data: bytes, digest: str) -> bool:
    return "sha256:" + hashlib.sha256(data).hexdigest() == digest


def ingest_of(root: Path) -> list[str]:
    return sorted(os.listdir(root / "ingest" / "sha256"))


def cached(root: Path) -> list[str]:
    return sorted(os.listdir(root / "cache" / "sha256"))


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


def config_of(tmp_path: Path, hub: FakeUpstream, **settings: Any) -> Any:
    return make_config(tmp_path / "root", {"up": {"url": hub.url, **settings}})


async def test_one_transfer_for_all_clients_of_all_processes(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 8 * MIB)
    async with mirrors(config_of(tmp_path, hub), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(path_of(digest)) for n in range(24)))
        assert all(answer.status == 200 and right(answer.body, digest) for answer in answers)
        assert hub.count("GET", digest) == 1
        assert hub.bytes_sent(digest) == 8 * MIB
        await until(lambda: cached(tmp_path / "root"), "stored")
        again = await workers[3].get(path_of(digest))
        assert right(again.body, digest)
        assert again.headers["Cache-Status"] == "mirror; hit"
    assert hub.count(part=digest) == 1
    assert ingest_of(tmp_path / "root") == []


async def test_first_bytes_go_out_while_the_rest_is_on_its_way(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 2 * MIB)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=MIB)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        clients = [Client(worker.url + path_of(digest)) for worker in workers]
        for client in clients:
            await client.has(MIB)
        gate.open()
        for client in clients:
            assert (await client.task).ended == "clean"
            assert right(bytes(client.body), digest)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_nobody_gets_the_tail_before_the_digest_is_right(tmp_path: Path, hub: FakeUpstream, framing: str) -> None:
    digest = hub.add_random_blob(NAME, 2 * MIB)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=2 * MIB - 1, framing=framing)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        clients = [Client(worker.url + path_of(digest)) for worker in workers]
        most = 2 * MIB - TAIL - (1 if framing == "chunked" else 0)
        for client in clients:
            await client.has(most)
        await asyncio.sleep(0.05)
        assert [len(client.body) for client in clients] == [most, most]
        gate.open()
        for client in clients:
            assert (await client.task).ended == "clean"
            assert right(bytes(client.body), digest)


async def test_a_wrong_generation_is_reset_in_every_process_and_the_next_is_right(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    data = random_bytes(3 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, times=1, replace=data[:-1] + bytes([data[-1] ^ 1]), gate=gate, gate_at=2 * MIB)
    async with mirrors(config_of(tmp_path, hub), 3) as workers:
        old = [Client(worker.url + path_of(digest)) for worker in workers for _ in range(2)]
        for client in old:
            await client.has(2 * MIB - TAIL)
        old[-1].resume.clear()  # a slow one, that meets the next generation
        gate.open()
        for client in old[:-1]:
            assert (await client.task).ended == "reset"
            assert len(client.body) <= 3 * MIB - TAIL
        new = await asyncio.gather(*(worker.get(path_of(digest)) for worker in workers))
        assert all(right(answer.body, digest) for answer in new)
        old[-1].resume.set()
        await old[-1].task
        assert old[-1].ended != "clean"
        assert len(old[-1].body) <= 3 * MIB - TAIL
    assert hub.count("GET", digest) == 2
    assert cached(tmp_path / "root") == [digest[7:]]
    assert ingest_of(tmp_path / "root") == []


async def test_a_follower_that_saw_the_next_generation_begin_sends_that_one(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(5000, 1)
    digest = hub.add_blob(NAME, data)
    followed: list[Phase] = []
    observe = Download.observe

    def noted(download: Download, state: State, file: Any = None) -> None:
        observe(download, state, file)
        if not download.leading:
            followed.append(state.phase)

    monkeypatch.setattr(Download, "observe", noted)
    wrong, again = Gate(), Gate()
    async with FakeUpstream() as near:
        near.add_blob(NAME, bytes(5000), digest=digest)
        near.fault(digest, gate=wrong, gate_at=4000)
        hub.fault(digest, gate_headers=again)
        async with mirrors(config_of(tmp_path, hub, mirrors=[{"url": near.url}]), 2) as workers:
            clients = [asyncio.create_task(worker.get(path_of(digest))) for worker in workers]
            await until(lambda: Phase.RUNNING in followed, "the wrong bytes are followed")
            wrong.open()
            await again.reached()
            await until(lambda: followed[-1] is Phase.OPENING, "the next generation is known to the follower")
            again.open()
            answers = await asyncio.gather(*clients)
    assert [(answer.status, answer.body) for answer in answers] == [(200, data)] * 2
    assert (near.count("GET", digest), hub.count("GET", digest)) == (1, 1)


async def test_a_small_wrong_blob_is_a_clean_error(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_blob(NAME, b"right")
    hub.fault(digest, replace=b"wrong")
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        answers = await asyncio.gather(*(worker.get(path_of(digest)) for worker in workers))
        assert [(answer.status, answer.code) for answer in answers] == [(502, "UNAVAILABLE")] * 2
        assert "up" in str(answers[0].body)
    assert cached(tmp_path / "root") == ingest_of(tmp_path / "root") == []


@pytest.mark.parametrize("cut", ["fin", "rst"])
async def test_a_broken_body_goes_on_by_range_and_nobody_notices(tmp_path: Path, hub: FakeUpstream, cut: str) -> None:
    digest = hub.add_random_blob(NAME, 4 * MIB)
    hub.fault(digest, times=2, cut_after=MIB, cut=cut)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        answers = await asyncio.gather(*(worker.get(path_of(digest)) for worker in workers))
        assert all(right(answer.body, digest) for answer in answers)
    requests = hub.requests("GET", digest)
    assert len(requests) == 3
    ranges = [request.headers.get("Range") for request in requests]
    assert ranges[0] is None
    assert all(asked and asked.startswith("bytes=") and asked.endswith("-") for asked in ranges[1:])


async def test_each_continuation_gets_a_fresh_redirect(tmp_path: Path) -> None:
    async with FakeUpstream(redirect=True) as hub:
        digest = hub.add_random_blob(NAME, 3 * MIB)
        hub.fault("cdn GET", times=2, cut_after=MIB)
        async with mirrors(config_of(tmp_path, hub)) as (worker,):
            assert right((await worker.get(path_of(digest))).body, digest)
        assert len(hub.requests("GET", server="cdn")) == 3
        assert hub.count("GET", digest, server="registry") == 3, "each time asked of the registry anew"
        assert hub.authorizations("cdn") == []


async def test_a_server_that_ignores_range_is_read_past_what_we_have(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 3 * MIB)
    hub.fault(digest, times=1, cut_after=MIB)
    hub.fault(digest, ignore_range=True)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        client = await Client(worker.url + path_of(digest)).task
        assert client.ended == "clean"
        assert right(bytes(client.body), digest)


@pytest.mark.parametrize("said", ["bytes 5-9/10", "bytes 0-3145727/3145728", "nonsense", None])
async def test_a_continuation_with_a_wrong_content_range_is_not_taken(
    tmp_path: Path, hub: FakeUpstream, said: str | None
) -> None:
    digest = hub.add_random_blob(NAME, 3 * MIB)
    hub.fault(digest, times=1, cut_after=MIB)
    hub.fault(lambda request: digest in request.path and "Range" in request.headers, content_range=said)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        client = await Client(worker.url + path_of(digest)).task
        assert client.ended == "clean"
        assert right(bytes(client.body), digest)


async def test_an_outage_ends_short_and_is_continued_later(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 4 * MIB)
    broken = hub.fault(digest, cut_after=2 * MIB, times=1)
    down = hub.fault(lambda request: digest in request.path and "Range" in request.headers, status=500)
    root = tmp_path / "root"
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        clients = [Client(worker.url + path_of(digest)) for worker in workers]
        for client in clients:
            assert (await client.task).ended == "short", "FIN short of Content-Length, so that clients resume"
            assert len(client.body) >= MIB
        assert broken.hits == 1
        assert down.hits > 1
        assert len(ingest_of(root)) == 2
        assert cached(root) == []
        hub.clear_faults()
        hub.clear_log()
        got = len(clients[0].body)
        rest = await workers[0].get(path_of(digest), headers={"Range": f"bytes={got}-"})
        assert rest.status == 206
        assert right(bytes(clients[0].body) + rest.body, digest)
        assert hub.bytes_sent(digest) <= 2 * MIB + TAIL
    assert ingest_of(root) == []


async def test_after_a_stop_another_process_takes_over(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 4 * MIB)
    gate = Gate()
    hub.fault(digest, times=1, gate=gate, gate_at=2 * MIB)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        leader = Client(workers[0].url + path_of(digest))
        await leader.has(MIB)
        follower = Client(workers[1].url + path_of(digest))
        await follower.has(MIB)
        await workers[0].stop()
        await leader.task
        assert (await follower.task).ended == "clean"
        assert right(bytes(follower.body), digest)
        gate.open()
    assert hub.count("GET", digest) == 2
    assert hub.requests("GET", digest)[1].headers["Range"] == f"bytes={2 * MIB}-"


async def test_a_complete_part_is_committed_without_any_request(tmp_path: Path, hub: FakeUpstream) -> None:
    """What a leader that died before the rename left: verified again, and not fetched again."""
    from mirror.oci.names import parse_digest
    from mirror.store.ingest import Ingest
    from mirror.store.root import open_root
    from mirror.store.state import Phase

    data = random_bytes(2 * MIB, 7)
    digest = hub.add_blob(NAME, data)
    config = config_of(tmp_path, hub)

    def leave() -> None:
        ingest = Ingest(open_root(tmp_path / "root"), parse_digest(digest))
        ingest.begin()
        ingest.append_in_thread([data], 0)
        ingest.publish(phase=Phase.RUNNING, size=len(data), written=len(data), sources=(f"up|{NAME}",), public=True)
        ingest.close()

    await asyncio.to_thread(leave)
    async with mirrors(config) as (worker,):
        answer = await worker.get(path_of(digest))
        assert right(answer.body, digest)
    assert hub.log == []
    assert cached(tmp_path / "root") == [digest[7:]]
    assert ingest_of(tmp_path / "root") == []


@pytest.mark.parametrize("damage", ["flipped", "unwritten"])
async def test_a_damaged_prefix_is_thrown_away_and_fetched_anew(tmp_path: Path, hub: FakeUpstream, damage: str) -> None:
    from mirror.oci.names import parse_digest
    from mirror.store.ingest import Ingest
    from mirror.store.root import open_root
    from mirror.store.state import Phase

    data = random_bytes(2 * MIB, 8)
    digest = hub.add_blob(NAME, data)
    half = data[:MIB] if damage == "flipped" else bytes(MIB)

    def leave() -> None:
        ingest = Ingest(open_root(tmp_path / "root"), parse_digest(digest))
        ingest.begin()
        ingest.append_in_thread([b"?" + half[1:]], 0)
        ingest.publish(phase=Phase.RUNNING, size=len(data), written=MIB, sources=(f"up|{NAME}",), public=True)
        ingest.close()

    await asyncio.to_thread(leave)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        first = await Client(worker.url + path_of(digest)).task
        assert first.ended != "clean" or right(bytes(first.body), digest)
        answer = await worker.get(path_of(digest))
        assert right(answer.body, digest)
    assert cached(tmp_path / "root") == [digest[7:]]
    assert ingest_of(tmp_path / "root") == []


# ---- whose bytes they are ----


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """Return a function that makes the configuration of a private and a public upstream."""
    (tmp_path / "password").write_text("secret\n")

    def make(private: FakeUpstream, public: FakeUpstream) -> Any:
        credentials = Credentials(username="us", password_file=tmp_path / "password")
        return make_config(
            tmp_path / "root",
            {"private": {"url": private.url, "credentials": credentials}, "public": {"url": public.url}},
        )

    return make


def private_hub() -> FakeUpstream:
    return FakeUpstream(auth="token", users={"us": "secret"}, anonymous=False)


async def test_a_private_blob_is_not_for_a_repository_without_a_right(tmp_path: Path, two: Any) -> None:
    """Not while it is being fetched, not as a hit, not in any process, not by HEAD or Range."""
    async with private_hub() as private, FakeUpstream() as public:
        digest = private.add_random_blob("secret/app", 2 * MIB)
        gate = Gate()
        private.fault(f"GET /v2/secret/app/blobs/{digest}", gate=gate, gate_at=MIB)
        async with mirrors(two(private, public), 2) as workers:
            owner = Client(workers[0].url + path_of(digest, "private/secret/app"))
            await owner.has(MIB // 2)
            for state in ("in flight", "stored"):
                for worker in workers:
                    for repository in ("public/other/app", "private/other/app", "local/app"):
                        for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": f'"{digest}"'}):
                            answer = await worker.get(path_of(digest, repository), headers=headers)
                            assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN"), (state, repository, headers)
                        head = await worker.head(path_of(digest, repository))
                        assert head.status == 404, (state, repository)
                if state == "in flight":
                    gate.open()
                    assert (await owner.task).ended == "clean"
                    await until(lambda: cached(tmp_path / "root"), "stored")
            answer = await workers[1].get(path_of(digest, "private/secret/app"))
            assert right(answer.body, digest)
        assert len(private.requests("GET", f"/secret/app/blobs/{digest}")) <= 2, "a 401 first, then the transfer"
        assert public.count("GET", digest) <= 12, "each asks its own upstream, and only that"


async def test_a_repository_whose_own_upstream_confirms_may_join(tmp_path: Path, two: Any) -> None:
    async with private_hub() as private, FakeUpstream() as public:
        digest = private.add_random_blob("secret/app", 2 * MIB)
        public.add_blob("copy/app", private.blob("secret/app", digest))
        gate = Gate()
        private.fault(f"GET /v2/secret/app/blobs/{digest}", gate=gate, gate_at=MIB)
        async with mirrors(two(private, public), 2) as workers:
            owner = Client(workers[0].url + path_of(digest, "private/secret/app"))
            await owner.has(MIB // 2)
            guests = [Client(worker.url + path_of(digest, "public/copy/app")) for worker in workers]
            for guest in guests:
                await guest.has(MIB // 2)
            gate.open()
            for guest in guests:
                assert (await guest.task).ended == "clean"
                assert right(bytes(guest.body), digest)
            await owner.task
            await until(lambda: cached(tmp_path / "root"), "stored")
            public.clear_log()
            assert right((await workers[0].get(path_of(digest, "public/copy/app"))).body, digest)
            assert public.log == [], "confirmed once"
            other = await workers[0].get(path_of(digest, "public/third/app"))
            assert other.status == 404, "a confirmation is for one repository, and makes nothing public"
        assert public.count("GET", digest) == 0, "no second transfer"


async def test_what_was_fetched_without_credentials_is_public(tmp_path: Path, two: Any) -> None:
    async with private_hub() as private, FakeUpstream() as public:
        digest = public.add_random_blob("open/app", MIB)
        async with mirrors(two(private, public), 2) as workers:
            assert right((await workers[0].get(path_of(digest, "public/open/app"))).body, digest)
            private.clear_log()
            public.clear_log()
            for worker in workers:
                for repository in ("public/other/app", "private/secret/app"):
                    assert right((await worker.get(path_of(digest, repository))).body, digest)
                local = await worker.get(path_of(digest, "local/app"))
                assert (local.status, local.code) == (404, "BLOB_UNKNOWN"), "a local one has what was put into it"
            assert private.log == public.log == []


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_404_for_one_repository_is_not_anothers(
    tmp_path: Path, hub: FakeUpstream, joined: Callable[[], int], processes: int
) -> None:
    """The first asks, leads and gets 404; the second, waiting for the same digest, has a good right."""
    digest = hub.add_random_blob("good/app", MIB)
    gate = Gate()
    hub.fault("/v2/bad/app/blobs/", gate_headers=gate)
    async with mirrors(config_of(tmp_path, hub), processes) as workers:
        bad = asyncio.create_task(workers[0].get(path_of(digest, "up/bad/app")))
        await gate.reached()
        good = asyncio.create_task(workers[-1].get(path_of(digest, "up/good/app")))
        also_bad = asyncio.create_task(workers[-1].get(path_of(digest, "up/bad/app")))
        await until(lambda: joined() == 3, "all of them wait")
        gate.open()
        assert right((await good).body, digest)
        assert ((await bad).status, (await bad).code) == (404, "BLOB_UNKNOWN")
        # It gets the 404; or, when it asked anew, the bytes, which are public by then.
        assert (await also_bad).status in (404, 200)
    assert hub.count("GET", f"/good/app/blobs/{digest}") == 1


@pytest.mark.parametrize("processes", [1, 2])
async def test_an_error_reaches_everybody_who_waits(
    tmp_path: Path, hub: FakeUpstream, joined: Callable[[], int], processes: int
) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    gate = Gate()
    hub.fault(digest, gate_headers=gate, status=500)
    async with mirrors(config_of(tmp_path, hub), processes) as workers:
        asked = [asyncio.create_task(workers[n % processes].get(path_of(digest))) for n in range(10)]
        await gate.reached()
        await until(lambda: joined() == 10, "all of them wait")
        gate.open()
        assert {(await one).status for one in asked} == {503}
    assert hub.count("GET", digest) <= processes
    assert ingest_of(tmp_path / "root") == []


async def test_an_anonymous_upstream_that_goes_on_with_a_private_blob_makes_nothing_public(
    tmp_path: Path, two: Any
) -> None:
    """The private upstream breaks off; a public one claims to have the rest."""
    async with private_hub() as private, FakeUpstream() as public:
        data = random_bytes(2 * MIB, 3)
        digest = private.add_blob("secret/app", data)
        public.add_blob("copy/app", data)
        private.fault("GET /v2/secret/app/blobs/", cut_after=MIB, times=1)
        private.fault(lambda request: "Range" in request.headers, status=500)
        async with mirrors(two(private, public)) as (worker,):
            await Client(worker.url + path_of(digest, "private/secret/app")).task
            assert right((await worker.get(path_of(digest, "public/copy/app"))).body, digest)
            assert public.requests("GET", digest)[0].headers["Range"].startswith("bytes=")
            third = await worker.get(path_of(digest, "public/third/app"))
            assert third.status == 404


# ---- sizes, starts and paces that change underway ----


async def test_a_resume_of_a_generation_that_turns_out_wrong_is_told_so(
    tmp_path: Path, hub: FakeUpstream, joined: Callable[[], int]
) -> None:
    """The end of a blob is waited for; then the transfer begins anew. That is a plain error, and not ours."""
    data = random_bytes(4 * MIB, 9)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, times=1, replace=b"?" + data[1:], cut_after=2 * MIB, gate=gate, gate_at=2 * MIB - 1)
    async with mirrors(config_of(tmp_path, hub)) as (worker,):
        whole = Client(worker.url + path_of(digest))
        await whole.has(MIB)
        end = Client(worker.url + path_of(digest), Range=f"bytes={4 * MIB - 1000}-")
        await until(lambda: joined() == 2, "it waits for the end")
        gate.open()
        await end.task
        assert (await whole.task).ended == "reset"
        assert end.status == 503 or end.ended != "clean" or bytes(end.body) == data[-1000:]
        assert end.status != 500
        await until(lambda: cached(tmp_path / "root"), "the next generation is right")
        assert right((await worker.get(path_of(digest))).body, digest)


async def test_a_size_that_is_only_claimed_condemns_nobody(tmp_path: Path, two: Any, joined: Callable[[], int]) -> None:
    """A private upstream gives no length, or a wrong one; another's right answer to HEAD is not wrong for that."""
    async with private_hub() as private, FakeUpstream() as public:
        digest = private.add_random_blob("secret/app", 2 * MIB)
        public.add_blob("copy/app", private.blob("secret/app", digest))
        gate = Gate()
        private.fault(f"GET /v2/secret/app/blobs/{digest}", gate=gate, gate_at=MIB, framing="chunked")
        async with mirrors(two(private, public)) as (worker,):
            owner = Client(worker.url + path_of(digest, "private/secret/app"))
            await owner.has(MIB // 2)
            guest = Client(worker.url + path_of(digest, "public/copy/app"))
            await until(lambda: any(one.done for one in public.requests("HEAD", digest)), "it is asked")
            await until(lambda: joined() == 2, "it takes part")
            gate.open()
            assert (await owner.task).ended == "clean"
            assert (await guest.task).status == 200
            assert right(bytes(guest.body), digest)


async def test_a_slow_upstream_is_better_than_none(tmp_path: Path, two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up for another that may be faster; that one does not have the blob after all."""
    monkeypatch.setattr("mirror.registry.leading.SLOW_FOR", 0.3)
    async with private_hub() as private, FakeUpstream() as public:
        digest = public.add_random_blob("open/app", MIB)
        gate = Gate()
        public.fault(digest, gate=gate, gate_at=200_000)
        async with mirrors(two(private, public)) as (worker,):
            patient = Client(worker.url + path_of(digest, "public/open/app"))
            await patient.has(100_000)
            other = Client(worker.url + path_of(digest, "private/secret/app"))
            await until(lambda: private.count("GET", f"/blobs/{digest}"), "the other one is asked")
            gate.open()
            assert (await patient.task).ended == "clean"
            assert right(bytes(patient.body), digest)
            await other.task
