"""Ranges and conditions over HTTP: of what is here, of what is on its way, and far ahead of it (RFC 9110)."""

from __future__ import annotations

import asyncio
import email
import email.policy
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.connection import Answer, connect
from tests.fake_upstream import FakeUpstream, Gate, Request, random_bytes
from tests.harness import Mirror, make_config, mirror, mirrors

KIB, MIB = 1024, 1024 * 1024
TAIL = 64 * KIB
NAME = "team/app"
SIZE = 300_000
UNVERIFIED = "mirror; fwd=uri-miss; detail=unverified-range"


def path_of(digest: str) -> str:
    return f"/v2/{NAME}/blobs/{digest}"


def config_of(tmp_path: Path, hub: FakeUpstream, **upstream: Any) -> Any:
    return make_config(tmp_path / "root", {"up": {"url": hub.url, **upstream}})


async def stored(tmp_path: Path, digest: str) -> None:
    async with asyncio.timeout(10):
        while not (tmp_path / "root" / "cache" / "sha256" / digest[7:]).exists():
            await asyncio.sleep(0.005)


@pytest.fixture
async def one(tmp_path: Path, hub: FakeUpstream) -> AsyncIterator[Mirror]:
    async with mirror(config_of(tmp_path, hub)) as running:
        yield running


def parts_of(answer: Answer) -> list[tuple[str, bytes]]:
    """Return Content-Range and bytes of the parts, as the standard library's MIME parser sees them."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    assert answer.body.endswith(b"\r\n--" + boundary + b"--\r\n")
    message = email.message_from_bytes(head + answer.body, policy=email.policy.HTTP)
    assert message.get_content_type() == "multipart/byteranges"
    assert not message.defects
    found = []
    for part in message.iter_parts():  # type: ignore[attr-defined]
        assert part.get_content_type() == "application/octet-stream"
        found.append((part["Content-Range"], part.get_payload(decode=True)))
    return found


# ---- one range, several, none ----

ONE = {
    "first byte": ("bytes=0-0", 0, 0),
    "within": ("bytes=1000-1999", 1000, 1999),
    "across 64 KiB": ("bytes=65535-65536", 65535, 65536),
    "last byte": (f"bytes={SIZE - 1}-{SIZE - 1}", SIZE - 1, SIZE - 1),
    "open ended": ("bytes=299000-", 299000, SIZE - 1),
    "all of it": ("bytes=0-", 0, SIZE - 1),
    "beyond the end": ("bytes=299990-999999999", 299990, SIZE - 1),
    "suffix": ("bytes=-10", SIZE - 10, SIZE - 1),
    "suffix longer than the whole": ("bytes=-999999999", 0, SIZE - 1),
    "upper case unit": ("Bytes=5-6", 5, 6),
    "one of two is there": ("bytes=5-6,900000-", 5, 6),
    "empty list members": ("bytes=,5-6,,", 5, 6),
}
SEVERAL = {
    "two": ("bytes=0-9,100-199", [(0, 9), (100, 199)]),
    "out of order": ("bytes=200000-200009,0-9", [(200000, 200009), (0, 9)]),
    "with spaces": ("bytes=0-9, 20-29 ,\t40-49", [(0, 9), (20, 29), (40, 49)]),
    "overlapping": ("bytes=0-99,50-149", [(0, 99), (50, 149)]),
    "large": ("bytes=0-99999,100001-299999", [(0, 99999), (100001, 299999)]),
    "suffix and open ended": ("bytes=-5,299000-", [(SIZE - 5, SIZE - 1), (299000, SIZE - 1)]),
    "thirty-two": (
        "bytes=" + ",".join(f"{n * 10}-{n * 10 + 1}" for n in range(32)),
        [(n * 10, n * 10 + 1) for n in range(32)],
    ),
}
IGNORED = {
    "no unit": "0-9",
    "other unit": "items=0-9",
    "nothing": "bytes=",
    "only commas": "bytes=,,",
    "no numbers": "bytes=-",
    "words": "bytes=a-b",
    "signs": "bytes=+1-2",
    "one of two is bad": "bytes=0-9,x",
    "three numbers": "bytes=1-2-3",
    "other digits": "bytes=\u0661-\u0662",
    "endless digits": "bytes=0-" + "9" * 5000,
    "thirty-three": "bytes=" + ",".join(f"{n * 10}-{n * 10 + 1}" for n in range(33)),
    "the whole three times": "bytes=0-,0-,0-",
}
UNSATISFIABLE = {
    "at the end": f"bytes={SIZE}-",
    "beyond": "bytes=999999999-",
    "no suffix": "bytes=-0",
    "backwards": "bytes=9-0",
    "all of several": f"bytes={SIZE}-,999999-1000000,-0",
}


@pytest.fixture(params=["hit", "miss"])
async def blob(request: pytest.FixtureRequest, tmp_path: Path, hub: FakeUpstream, one: Mirror) -> tuple[str, bytes]:
    """A blob that is here, or one that only the upstream has."""
    data = random_bytes(SIZE, 1)
    digest = hub.add_blob(NAME, data)
    if request.param == "hit":
        await one.get(path_of(digest))
        await stored(tmp_path, digest)
    return path_of(digest), data


@pytest.mark.parametrize("name", ONE)
async def test_one_range(hub: FakeUpstream, one: Mirror, blob: tuple[str, bytes], name: str) -> None:
    path, data = blob
    asked, first, last = ONE[name]
    async with connect(one.url) as client:
        answer = await client.ask("GET", path, Range=asked)
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{SIZE}"
        assert answer.headers["content-length"] == str(last - first + 1)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["etag"] == f'"{path.rpartition("/")[2]}"'
        assert answer.headers["docker-content-digest"] == path.rpartition("/")[2]
        assert answer.body == data[first : last + 1]
        assert (await client.ask("GET", path)).body == data
    assert [request.headers.get("Range") for request in hub.requests("GET")] == [None]


@pytest.mark.parametrize("name", SEVERAL)
async def test_several_ranges(one: Mirror, blob: tuple[str, bytes], name: str) -> None:
    path, data = blob
    asked, wanted = SEVERAL[name]
    async with connect(one.url) as client:
        answer = await client.ask("GET", path, Range=asked)
        assert answer.status == 206
        assert "content-range" not in answer.headers
        assert parts_of(answer) == [(f"bytes {a}-{b}/{SIZE}", data[a : b + 1]) for a, b in wanted]
        assert (await client.ask("GET", path)).body == data


@pytest.mark.parametrize("name", IGNORED)
async def test_a_range_that_means_nothing_is_ignored(one: Mirror, blob: tuple[str, bytes], name: str) -> None:
    path, data = blob
    async with connect(one.url) as client:
        answer = await client.ask("GET", path, Range=IGNORED[name])
        assert (answer.status, answer.body) == (200, data)
        assert "content-range" not in answer.headers


@pytest.mark.parametrize("name", UNSATISFIABLE)
async def test_a_range_of_nothing_is_refused(one: Mirror, blob: tuple[str, bytes], name: str) -> None:
    path, data = blob
    async with connect(one.url) as client:
        answer = await client.ask("GET", path, Range=UNSATISFIABLE[name])
        assert (answer.status, answer.code) == (416, "SIZE_INVALID")
        assert answer.headers["content-range"] == f"bytes */{SIZE}"
        assert (await client.ask("GET", path)).body == data


async def test_ranges_of_nothing(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    path = path_of(hub.add_blob(NAME, b""))
    async with connect(one.url) as client:
        for _ in range(2):
            assert (await client.ask("GET", path, Range="bytes=0-")).status == 416
            suffix = await client.ask("GET", path, Range="bytes=-5")
            assert (suffix.status, suffix.body) == (200, b""), "satisfiable, but no Content-Range can say so"


async def test_head_has_no_ranges(one: Mirror, blob: tuple[str, bytes]) -> None:
    path, _ = blob
    async with connect(one.url) as client:
        answer = await client.ask("HEAD", path, Range="bytes=0-9")
        assert (answer.status, answer.headers["content-length"]) == (200, str(SIZE))


async def test_several_ranges_at_once_over_many_connections(one: Mirror, blob: tuple[str, bytes]) -> None:
    path, data = blob

    async def piece(first: int) -> bytes:
        async with connect(one.url) as client:
            return (await client.ask("GET", path, Range=f"bytes={first}-{first + 9999}")).body

    assert b"".join(await asyncio.gather(*(piece(first) for first in range(0, SIZE, 10_000)))) == data


# ---- conditions ----


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"{digest}"', 304),
        ('W/"{digest}"', 304),
        ('"other", "{digest}"', 304),
        ("*", 304),
        ('"other"', 200),
        ('"sha256:{zeros}"', 200),
        ("", 200),
    ],
)
async def test_if_none_match(tmp_path: Path, one: Mirror, blob: tuple[str, bytes], header: str, status: int) -> None:
    path, data = blob
    digest = path.rpartition("/")[2]
    await one.get(path)
    await stored(tmp_path, digest)
    condition = header.format(digest=digest, zeros="0" * 64)
    async with connect(one.url) as client:
        for extra in ({}, {"Range": "bytes=0-9"}):
            answer = await client.ask("GET", path, If_None_Match=condition, **extra)
            assert answer.status == (206 if status == 200 and extra else status)
            assert answer.headers["etag"] == f'"{digest}"'
            if status == 304:
                assert answer.body == b""
                assert "content-length" not in answer.headers
        assert (await client.ask("GET", path)).body == data


async def test_if_none_match_of_what_is_not_here_fetches_it(hub: FakeUpstream, one: Mirror) -> None:
    """A client that has it asks nobody; one that asks is not told 304 on the word of its own header alone."""
    digest = hub.add_random_blob(NAME, SIZE)
    async with connect(one.url) as client:
        answer = await client.ask("GET", path_of(digest), If_None_Match=f'"{digest}"')
        assert answer.status == 200
        missing = "sha256:" + "0" * 64
        answer = await client.ask("GET", path_of(missing), If_None_Match=f'"{missing}"')
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"{digest}"', 206),
        ('W/"{digest}"', 200),
        ('"other"', 200),
        ("{digest}", 200),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 200),
    ],
)
async def test_if_range(one: Mirror, blob: tuple[str, bytes], header: str, status: int) -> None:
    path, data = blob
    condition = header.format(digest=path.rpartition("/")[2])
    async with connect(one.url) as client:
        for asked in ("bytes=5-9", "bytes=5-9,20-29"):
            answer = await client.ask("GET", path, Range=asked, If_Range=condition)
            assert answer.status == status
            if status == 200:
                assert answer.body == data


# ---- of a download in flight ----


async def test_a_range_is_served_as_soon_as_its_bytes_are_there(tmp_path: Path, hub: FakeUpstream) -> None:
    size = 4 * MIB
    data = random_bytes(size, 3)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=MIB)
    async with mirrors(config_of(tmp_path, hub), 2) as workers:
        for worker in workers:
            async with connect(worker.url) as client:
                answer = await client.ask("GET", path_of(digest), Range="bytes=100-199")
                assert (answer.status, answer.body) == (206, data[100:200])
                assert answer.headers["content-range"] == f"bytes 100-199/{size}"
                assert answer.headers["cache-status"] == UNVERIFIED, "complete before the verdict over the whole"
                several = await client.ask("GET", path_of(digest), Range="bytes=500000-500009,0-9")
                assert [body for _, body in parts_of(several)] == [data[500000:500010], data[:10]]
        async with connect(workers[1].url) as client:
            client.send("GET", path_of(digest), Range=f"bytes=1000000-{MIB + 999}")
            await client.head()
            assert await client.reader.readexactly(MIB - 1000000) == data[1000000:MIB]
            assert not gate._opened.is_set()
            gate.open()
            assert await client.reader.readexactly(1000) == data[MIB : MIB + 1000]
    assert hub.count("GET", digest) == 1


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
async def test_the_tail_of_a_range_waits_for_the_digest(hub: FakeUpstream, one: Mirror, several: bool) -> None:
    size = 2 * MIB
    data = random_bytes(size, 4)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=size - 1)
    first = size - TAIL - 1000
    async with connect(one.url) as client:
        client.send("GET", path_of(digest), Range=f"bytes={first}-" + (",0-9" if several else ""))
        assert (await client.head()).status == 206
        if several:
            await client.reader.readuntil(b"\r\n\r\n")
        assert await client.reader.readexactly(1000) == data[first : size - TAIL]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.readexactly(1)
        gate.open()
        assert await client.reader.readexactly(TAIL) == data[size - TAIL :]
    async with connect(one.url) as client:
        hub.clear_log()
        last = await client.ask("GET", path_of(digest), Range="bytes=-1")
        assert last.body == data[-1:]
    assert hub.log == []


async def test_a_range_within_the_tail_waits_for_its_headers_too(hub: FakeUpstream, one: Mirror) -> None:
    size = 2 * MIB
    data = random_bytes(size, 4)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, times=1, replace=data[:-1] + b"?", gate=gate, gate_at=size - 1)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest), Range="bytes=-10")
        await gate.reached()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.readexactly(1)
        gate.open()
        answer = await client.head()
        assert answer.status == 502, "so wrong bytes are still a clean error"


# ---- far ahead of a download ----

WINDOWED = 24 * MIB
PATTERN = random_bytes(MIB, 9)


def far(request: Request) -> bool:
    return "Range" in request.headers


def whole(request: Request) -> bool:
    return request.method == "GET" and "Range" not in request.headers


def ranges_of(hub: FakeUpstream) -> list[str]:
    return [request.headers["Range"] for request in hub.requests("GET") if far(request)]


@pytest.fixture
async def big() -> AsyncIterator[tuple[FakeUpstream, str, bytes, Gate]]:
    """An upstream, and a large blob of which 1 MiB comes until the gate opens."""
    data = b"".join(bytes([n]) + PATTERN[1:] for n in range(WINDOWED // MIB))
    async with FakeUpstream(sndbuf=64 * KIB) as hub:
        digest = hub.add_blob(NAME, data)
        gate = Gate()
        hub.fault(whole, gate=gate, gate_at=MIB)
        yield hub, digest, data, gate


Big = tuple[FakeUpstream, str, bytes, Gate]


async def test_a_range_far_ahead_is_passed_through(tmp_path: Path, big: Big) -> None:
    hub, digest, data, gate = big
    first = 20 * MIB + 5
    async with mirror(config_of(tmp_path, hub)) as one, connect(one.url) as client:
        answer = await client.ask("GET", path_of(digest), Range=f"bytes={first}-{first + MIB - 1}")
        assert answer.status == 206
        assert answer.headers["content-range"] == f"bytes {first}-{first + MIB - 1}/{WINDOWED}"
        assert answer.headers["cache-status"] == UNVERIFIED
        assert answer.body == data[first : first + MIB]
        assert ranges_of(hub) == [f"bytes={first}-{first + MIB - 1}"]
        near = await client.ask("GET", path_of(digest), Range="bytes=0-9")
        assert near.body == data[:10]
        assert near.headers["cache-status"] == UNVERIFIED
        several = await client.ask("GET", path_of(digest), Range=f"bytes=0-9,{first}-{first + 9}")
        assert [body for _, body in parts_of(several)] == [data[:10], data[first : first + 10]]
        assert several.headers["cache-status"] == UNVERIFIED
        gate.open()
        answer = await client.ask("GET", path_of(digest))
        assert answer.body == data
        await stored(tmp_path, digest)
        hub.clear_log()
        answer = await client.ask("GET", path_of(digest), Range=f"bytes={first}-{first + 9}")
        assert answer.headers["cache-status"] == "mirror; hit"
        assert answer.body == data[first : first + 10]
        assert hub.log == []


async def test_wrong_bytes_of_a_window_are_in_nobodys_blob(tmp_path: Path, big: Big) -> None:
    hub, digest, data, gate = big
    hub.fault(far, replace=bytes(WINDOWED))
    async with mirror(config_of(tmp_path, hub)) as one, connect(one.url) as client:
        window = await client.ask("GET", path_of(digest), Range=f"bytes={20 * MIB}-{21 * MIB - 1}")
        assert window.body == bytes(MIB), "nobody can know that they are wrong, which is why they are marked"
        assert window.headers["cache-status"] == UNVERIFIED
        gate.open()
        assert (await client.ask("GET", path_of(digest))).body == data
    assert len([request for request in hub.requests("GET", digest) if whole(request)]) == 1


async def test_clients_that_want_the_same_window_share_it(tmp_path: Path, big: Big) -> None:
    hub, digest, data, gate = big
    held = Gate()
    hub.fault(far, gate=held, gate_at=1000)
    async with mirror(config_of(tmp_path, hub)) as one, connect(one.url) as first, connect(one.url) as second:
        for client in (first, second):
            client.send("GET", path_of(digest), Range=f"bytes={20 * MIB}-{21 * MIB - 1}")
        for client in (first, second):
            assert (await client.head()).status == 206
            assert await client.reader.readexactly(1000) == data[20 * MIB : 20 * MIB + 1000]
        held.open()
        for client in (first, second):
            assert await client.reader.readexactly(MIB - 1000) == data[20 * MIB + 1000 : 21 * MIB]
        assert len(ranges_of(hub)) == 1
        gate.open()
    assert len([request for request in hub.requests("GET", digest) if whole(request)]) == 1


async def test_an_open_ended_window_is_fetched_only_a_little_ahead(tmp_path: Path) -> None:
    """Parallel fetchers ask for "from here on", read a piece and close."""
    data = PATTERN * 64
    async with FakeUpstream(sndbuf=64 * KIB) as hub:
        digest = hub.add_blob(NAME, data)
        gate = Gate()
        hub.fault(whole, gate=gate, gate_at=MIB)
        async with mirror(config_of(tmp_path, hub)) as one:
            async with connect(one.url, rcvbuf=64 * KIB) as client:
                client.send("GET", path_of(digest), Range=f"bytes={12 * MIB}-")
                head = await client.head()
                assert head.headers["content-range"] == f"bytes {12 * MIB}-{64 * MIB - 1}/{64 * MIB}"
                assert hashlib.sha256(await client.reader.readexactly(MIB)).digest() == hashlib.sha256(PATTERN).digest()
                (request,) = [request for request in hub.requests("GET") if far(request)]
                before = 0
                while request.sent > before:  # it goes on until it waits for the client
                    before = request.sent
                    await asyncio.sleep(0.1)
                assert MIB <= before < 28 * MIB, "of 52; most of it lies in buffers of the kernel"
            async with asyncio.timeout(10):
                while not request.done:
                    await asyncio.sleep(0.005)
            assert request.sent < 28 * MIB
            gate.open()
            assert (await one.get(path_of(digest))).body == data
        assert len([request for request in hub.requests("GET", digest) if whole(request)]) == 1


@pytest.mark.parametrize("first", [0, 20 * MIB], ids=["near", "far"])
async def test_without_unverified_ranges_everybody_waits(tmp_path: Path, big: Big, first: int) -> None:
    hub, digest, data, gate = big
    async with mirror(config_of(tmp_path, hub, unverified_ranges=False)) as one, connect(one.url) as client:
        client.send("GET", path_of(digest), Range=f"bytes={first}-{first + 9}")
        await gate.reached()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.readexactly(1)
        gate.open()
        answer = await client.head()
        assert answer.status == 206
        assert "unverified" not in answer.headers["cache-status"]
        assert await client.reader.readexactly(10) == data[first : first + 10]
    assert ranges_of(hub) == []


@pytest.mark.parametrize(
    "trouble", [{"ignore_range": True}, {"status": 500}, {"content_range": "bytes 0-9/10"}], ids=lambda f: next(iter(f))
)
async def test_a_window_the_upstream_does_not_give_is_waited_for(
    tmp_path: Path, big: Big, trouble: dict[str, Any]
) -> None:
    """The download brings it all the same."""
    hub, digest, data, gate = big
    hub.fault(far, **trouble)
    async with mirror(config_of(tmp_path, hub)) as one, connect(one.url) as client:
        client.send("GET", path_of(digest), Range=f"bytes={20 * MIB}-{20 * MIB + 9}")
        async with asyncio.timeout(10):
            while not ranges_of(hub):
                await asyncio.sleep(0.005)
        gate.open()
        assert (await client.head()).status == 206
        assert await client.reader.readexactly(10) == data[20 * MIB : 20 * MIB + 10]


async def test_a_window_that_breaks_off_ends_short(tmp_path: Path, big: Big) -> None:
    hub, digest, data, gate = big
    hub.fault(far, cut_after=MIB)
    async with mirror(config_of(tmp_path, hub)) as one, connect(one.url) as client:
        client.send("GET", path_of(digest), Range=f"bytes={20 * MIB}-{22 * MIB - 1}")
        assert (await client.head()).headers["content-length"] == str(2 * MIB)
        body, ending = await client.end()
        assert ending == "fin"
        assert data[20 * MIB :].startswith(body)
        assert len(body) < 2 * MIB
        gate.open()
        assert (await one.get(path_of(digest))).body == data
