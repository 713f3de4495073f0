"""Blobs over HTTP: every byte, every ending, every connection; hits, misses and downloads in flight."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.api import sending
from tests.connection import Connection, connect
from tests.fake_upstream import FakeUpstream, Gate, random_bytes
from tests.harness import Mirror, make_config, mirror

KIB, MIB = 1024, 1024 * 1024
TAIL = 64 * KIB
NAME = "team/app"
SIZES = [0, 1, TAIL - 1, TAIL, TAIL + 1, MIB, 20 * MIB]


def path_of(digest: str) -> str:
    return f"/v2/{NAME}/blobs/{digest}"


def right(data: bytes | bytearray, digest: str) -> bool:
    return "sha256:" + hashlib.sha256(data).hexdigest() == digest


def config_of(tmp_path: Path, hub: FakeUpstream, *, upstream: dict[str, Any] | None = None, **settings: Any) -> Any:
    return make_config(tmp_path / "root", {"up": {"url": hub.url, **(upstream or {})}}, **settings)


async def until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"did not come: {what}")


async def stored(tmp_path: Path, digest: str) -> None:
    await until((tmp_path / "root" / "cache" / "sha256" / digest[7:]).exists, f"{digest} stored")


def kept(tmp_path: Path) -> list[str]:
    root = tmp_path / "root"
    return [name for folder in ("cache", "blobs", "ingest") for name in os.listdir(root / folder / "sha256")]


@pytest.fixture
async def one(tmp_path: Path, hub: FakeUpstream) -> AsyncIterator[Mirror]:
    async with mirror(config_of(tmp_path, hub)) as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


# ---- the bytes and what is said of them ----


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", SIZES)
async def test_miss_and_hit_are_exact(
    tmp_path: Path, hub: FakeUpstream, size: int, tls: bool, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    data = random_bytes(size, size)
    digest = hub.add_blob(NAME, data)
    async with mirror(config_of(tmp_path, hub), ssl=server_tls if tls else None) as running:
        async with connect(running.url, ssl=client_tls if tls else None) as client:
            for cache in ("mirror; fwd=uri-miss; stored", "mirror; hit", "mirror; hit"):
                answer = await client.ask("GET", path_of(digest), Accept_Encoding="gzip, zstd, br")
                assert answer.status == 200
                assert answer.body == data
                assert answer.headers["content-length"] == str(size)
                assert answer.headers["content-type"] == "application/octet-stream"
                assert answer.headers["docker-content-digest"] == digest
                assert answer.headers["etag"] == f'"{digest}"'
                assert answer.headers["accept-ranges"] == "bytes"
                assert answer.headers["cache-status"] == cache
                assert "content-encoding" not in answer.headers
                assert "transfer-encoding" not in answer.headers
                await stored(tmp_path, digest)
    assert [(request.method, request.path) for request in hub.log] == [("GET", path_of(digest))]


@pytest.mark.parametrize("size", SIZES)
async def test_an_unknown_length_is_sent_in_chunks(tmp_path: Path, hub: FakeUpstream, one: Mirror, size: int) -> None:
    data = random_bytes(size, size)
    digest = hub.add_blob(NAME, data)
    hub.fault(digest, framing="chunked")
    async with connect(one.url) as client:
        first = await client.ask("GET", path_of(digest))
        assert first.body == data
        await stored(tmp_path, digest)
        again = await client.ask("GET", path_of(digest))
        assert again.body == data
        assert again.headers["content-length"] == str(size)
    if size > TAIL:
        assert first.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in first.headers


async def test_a_size_that_a_manifest_gave_is_announced(hub: FakeUpstream, one: Mirror) -> None:
    image = hub.add_image(NAME, "latest", [3 * MIB])
    digest = image.layers[0]
    hub.fault(digest, framing="chunked")
    assert (await one.get(f"/v2/{NAME}/manifests/latest")).body == image.raw
    answer = await one.get(path_of(digest))
    assert answer.headers["Content-Length"] == str(3 * MIB)
    assert right(answer.body, digest)


async def test_head_of_what_is_not_here_is_one_head(hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    async with connect(one.url) as client:
        answer = await client.ask("HEAD", path_of(digest))
        assert answer.status == 200
        assert answer.headers["content-length"] == str(MIB)
        assert answer.headers["docker-content-digest"] == digest
        assert answer.headers["etag"] == f'"{digest}"'
        assert answer.headers["cache-status"] == "mirror; fwd=uri-miss"
        assert [(request.method, request.path) for request in hub.log] == [("HEAD", path_of(digest))]
        assert right((await client.ask("GET", path_of(digest))).body, digest), "no body came before it"


async def test_head_of_an_unknown_length_says_none(hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, 1000)
    hub.fault(f"HEAD {path_of(digest)}", framing="chunked")
    async with connect(one.url) as client:
        answer = await client.ask("HEAD", path_of(digest))
        assert answer.status == 200
        assert "content-length" not in answer.headers
        assert right((await client.ask("GET", path_of(digest))).body, digest)


async def test_head_of_a_hit_asks_nobody(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    async with connect(one.url) as client:
        await client.ask("GET", path_of(digest))
        await stored(tmp_path, digest)
        hub.clear_log()
        answer = await client.ask("HEAD", path_of(digest))
        assert (answer.status, answer.headers["content-length"]) == (200, str(MIB))
        assert answer.headers["cache-status"] == "mirror; hit"
        answer = await client.ask("HEAD", path_of(digest), If_None_Match=f'"{digest}"')
        assert answer.status == 304
    assert hub.log == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_blob_the_upstream_does_not_have(hub: FakeUpstream, one: Mirror, method: str) -> None:
    hub.add_random_blob(NAME, 1)
    missing = "sha256:" + "0" * 64
    async with connect(one.url) as client:
        answer = await client.ask(method, path_of(missing))
        assert answer.status == 404
        if method == "GET":
            assert answer.code == "BLOB_UNKNOWN"
        assert "cache-status" not in answer.headers
        assert (await client.ask("GET", "/healthz")).body == b"ok\n"
    assert hub.count(method, missing) == 1


async def test_a_second_client_joins_the_first_ones_download(hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, 2 * MIB)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=MIB)
    async with connect(one.url) as first, connect(one.url) as second:
        first.send("GET", path_of(digest))
        await first.head()
        second.send("GET", path_of(digest))
        assert (await second.head()).headers["cache-status"] == "mirror; fwd=uri-miss; stored; collapsed"
        gate.open()
        for client in (first, second):
            assert right(await client.reader.readexactly(2 * MIB), digest)
    assert hub.count("GET", digest) == 1


# ---- one connection, any order of answers ----


async def test_a_connection_goes_on_after_every_kind_of_answer(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    image = hub.add_image(NAME, "latest", [2 * MIB, 100])
    data = image.blobs[image.layers[0]]
    blob, quoted = path_of(image.layers[0]), f'"{image.layers[0]}"'
    unsized = [hub.add_random_blob(NAME, 300 * KIB) for _ in range(3)]
    for digest in unsized:
        hub.fault(digest, framing="chunked")
    tag = f"/v2/{NAME}/manifests/latest"
    kinds: list[tuple[int, str, str, dict[str, str]]] = [
        (200, "GET", blob, {}),
        (206, "GET", blob, {"Range": "bytes=0-0"}),
        (206, "GET", blob, {"Range": "bytes=100000-"}),
        (206, "GET", blob, {"Range": "bytes=0-9,1000000-1999999,-5"}),
        (304, "GET", blob, {"If-None-Match": quoted}),
        (304, "HEAD", blob, {"If-None-Match": quoted}),
        (416, "GET", blob, {"Range": "bytes=99999999-"}),
        (200, "HEAD", blob, {}),
        (200, "HEAD", path_of(image.layers[1]), {}),
        *((200, "GET", path_of(digest), {}) for digest in unsized),
        (200, "GET", tag, {}),
        (200, "HEAD", tag, {}),
        (304, "GET", tag, {"If-None-Match": f'"{image.digest}"'}),
        (404, "GET", path_of("sha256:" + "0" * 64), {}),
        (404, "HEAD", path_of("sha256:" + "0" * 64), {}),
        (400, "GET", path_of("sha256:0"), {}),
        (405, "PUT", tag, {}),
        (405, "PATCH", blob, {}),
        (404, "DELETE", path_of("sha256:" + "0" * 64), {}),
        (404, "GET", "/nothing", {}),
        (200, "GET", f"/v2/{NAME}/tags/list", {}),
        (200, "GET", "/v2/", {}),
        (200, "GET", "/metrics", {}),
    ]
    async with connect(one.url) as client:
        await client.ask("GET", blob)
        await stored(tmp_path, image.layers[0])
        for status, method, target, headers in kinds:
            arguments: dict[str, Any] = {name.replace("-", "_"): value for name, value in headers.items()}
            if method in ("PUT", "PATCH"):
                arguments["body"] = bytes(1000)
            answer = await client.ask(method, target, **arguments)
            assert answer.status == status, (method, target, headers)
            assert answer.headers.get("connection") != "close", (method, target, headers)
            # what comes next on the same connection is its own answer, in its right place
            check = await client.ask("GET", blob, Range="bytes=70000-70009", X_Request_Id=f"after-{status}")
            assert (check.status, check.body) == (206, data[70000:70010]), (method, target, headers)
            assert check.headers["x-request-id"] == f"after-{status}"


async def test_requests_sent_at_once_are_answered_in_order(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    data = random_bytes(2 * MIB, 2)
    digest = hub.add_blob(NAME, data)
    await one.get(path_of(digest))
    async with connect(one.url) as client:
        for first in range(0, 10 * 100000, 100000):
            client.send("GET", path_of(digest), Range=f"bytes={first}-{first + 99999}")
        for first in range(0, 10 * 100000, 100000):
            answer = await client.head()
            assert answer.headers["content-range"] == f"bytes {first}-{first + 99999}/{2 * MIB}"
            assert await client.reader.readexactly(100000) == data[first : first + 100000]


async def test_a_connection_is_closed_when_asked(hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    for _ in range(2):
        async with connect(one.url) as client:
            answer = await client.ask("GET", path_of(digest), Connection="close")
            assert right(answer.body, digest)
            assert await client.end() == (b"", "fin")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_http_1_0(tmp_path: Path, hub: FakeUpstream, one: Mirror, framing: str) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    hub.fault(digest, framing=framing)
    for _ in range(2):
        async with connect(one.url) as client:
            answer = await client.ask("GET", path_of(digest), version="1.0")
            assert answer.status == 200
            assert "transfer-encoding" not in answer.headers
            assert right(answer.body, digest)
            assert await client.end() == (b"", "fin")
        await stored(tmp_path, digest)


async def test_http_1_0_is_never_told_that_a_part_is_the_whole(hub: FakeUpstream, one: Mirror) -> None:
    """Without a length its end is the end of the connection: a FIN would say that this was all."""
    digest = hub.add_random_blob(NAME, MIB)
    hub.fault(digest, framing="chunked", cut_after=MIB // 2, times=1)
    hub.fault(digest, status=500, skip=1)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest), version="1.0")
        assert "content-length" not in (await client.head()).headers
        body, ending = await client.end()
        assert ending == "reset"
        assert len(body) < MIB


async def test_a_tls_hello_on_a_plain_port_is_answered_at_once(one: Mirror) -> None:
    """Silence would cost clients that try HTTPS first their whole patience."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    async with connect(one.url) as client:
        client.writer.write(outgoing.read())
        data, ending = await client.end()
        assert data.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
        assert ending == "fin"


# ---- clients that are slow, or leave ----


def memory() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("state", ["hit", "miss"])
async def test_slow_clients_slow_nobody_and_cost_no_memory(
    tmp_path: Path, hub: FakeUpstream, one: Mirror, state: str
) -> None:
    size = 20 * MIB
    digest = hub.add_random_blob(NAME, size)
    if state == "hit":
        await one.get(path_of(digest))
        await stored(tmp_path, digest)
    before = memory()
    slow: list[Connection] = []
    stack = [connect(one.url, rcvbuf=4096, limit=1024) for _ in range(16)]
    hashes = [hashlib.sha256() for _ in stack]
    try:
        for manager in stack:
            slow.append(await manager.__aenter__())
        for client in slow:
            client.send("GET", path_of(digest))
        for client in slow:
            await client.head()

        async def trickle(client: Connection, hasher: Any) -> None:
            while not fast.done():
                hasher.update(await client.reader.readexactly(KIB))
                await asyncio.sleep(0.02)

        async def whole() -> str:
            async with one.session.get(one.url + path_of(digest)) as response:
                hasher = hashlib.sha256()
                async for chunk in response.content.iter_chunked(MIB):
                    hasher.update(chunk)
            return f"sha256:{hasher.hexdigest()}"

        fast = asyncio.gather(*(whole() for _ in range(4)))
        await asyncio.gather(*(trickle(client, hasher) for client, hasher in zip(slow, hashes, strict=True)))
        assert await fast == [digest] * 4
        assert memory() - before < 60 * MIB, "sixteen clients times 20 MiB would be 320"
        assert all(not client.reader.at_eof() for client in slow)
    finally:
        for manager in stack[: len(slow)]:
            await manager.__aexit__(None, None, None)
    assert hub.count("GET", digest) == 1


KINDS = ["plain", "tls", "chunked"]


async def prepare(tmp_path: Path, hub: FakeUpstream, running: Mirror, kind: str, digest: str) -> None:
    """Have a blob here, or have it arrive in chunks."""
    if kind == "chunked":
        hub.fault(digest, framing="chunked")
    else:
        await running.get(path_of(digest), ssl=False)
        await stored(tmp_path, digest)
        await until(lambda: running.lines, "its line")  # which its client does not wait for
    running.lines.clear()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_takes_nothing_is_cut(
    tmp_path: Path, hub: FakeUpstream, kind: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    digest = hub.add_random_blob(NAME, 20 * MIB)
    config = config_of(tmp_path, hub, limits={"send_timeout": 0.3})
    async with mirror(config, ssl=server_tls if kind == "tls" else None) as running:
        await prepare(tmp_path, hub, running, kind, digest)
        tls = client_tls if kind == "tls" else None
        async with connect(running.url, rcvbuf=4096, limit=1024, ssl=tls) as client:
            client.send("GET", path_of(digest))
            assert (await client.head()).status == 200
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: running.lines, "the end of the request")
            assert "took nothing" in running.lines[0]["failure"]
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(10):
                taken = 0
                try:
                    while data := await client.reader.read(65536):
                        taken += len(data)
                except (ConnectionError, ssl.SSLError):
                    pass
            assert taken < 20 * MIB
        answer = await running.get(path_of(digest), ssl=False)
        assert right(answer.body, digest), "nobody else is harmed"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_takes_a_little_is_not_cut(
    tmp_path: Path, hub: FakeUpstream, kind: str, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """The kernel says that there is room only when a third of its large buffer is free."""
    size = 8 * MIB
    digest = hub.add_random_blob(NAME, size)
    config = config_of(tmp_path, hub, limits={"send_timeout": 1.2})
    async with mirror(config, ssl=server_tls if kind == "tls" else None) as running:
        await prepare(tmp_path, hub, running, kind, digest)
        tls = client_tls if kind == "tls" else None
        async with connect(running.url, rcvbuf=16384, limit=1024, ssl=tls) as client:
            client.send("GET", path_of(digest), version="1.0" if kind == "chunked" else "1.1")
            await client.head()
            body = bytearray()
            # asyncio's TLS takes 256 KiB ahead of what is read: it is read in less than the time limit
            piece = 32 * KIB if tls else 4 * KIB
            loop = asyncio.get_running_loop()
            began = loop.time()
            while loop.time() - began < 1.6:
                body += await client.reader.read(piece)
                await asyncio.sleep(0.02)
            assert running.lines == [], "still being served"
            while len(body) < size:
                data = await client.reader.read(65536)
                assert data
                body += data
            assert right(body, digest)


async def test_a_client_that_leaves_stops_nothing(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    digest = hub.add_random_blob(NAME, 4 * MIB)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=2 * MIB)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest))
        await client.head()
    gate.open()
    await stored(tmp_path, digest)
    answer = await one.get(path_of(digest))
    assert answer.headers["Cache-Status"] == "mirror; hit"
    assert right(answer.body, digest)
    assert hub.count("GET", digest) == 1
    assert hub.bytes_sent(digest) == 4 * MIB


async def test_a_client_that_leaves_before_the_headers_stops_nothing(
    tmp_path: Path, hub: FakeUpstream, one: Mirror
) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    gate = Gate()
    hub.fault(digest, gate_headers=gate)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest))
        await gate.reached()
    gate.open()
    await stored(tmp_path, digest)
    assert hub.count("GET", digest) == 1
    await until(lambda: one.lines, "a line for the client that left")


# ---- how a broken transfer ends ----


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("wanted", [None, "bytes=0-", "bytes=1000-2097151", "bytes=0-9,1000000-"])
async def test_wrong_bytes_are_reset_and_not_kept(
    tmp_path: Path, hub: FakeUpstream, one: Mirror, framing: str, wanted: str | None
) -> None:
    size = 2 * MIB
    data = random_bytes(size, 5)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, replace=data[:-1] + b"?", framing=framing, gate=gate, gate_at=size - 1)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest), Range=wanted)
        assert (await client.head()).status == (206 if wanted and framing == "length" else 200)
        gate.open()
        body, ending = await client.end()
        assert ending == "reset", "a FIN would invite the client to resume after a wrong prefix"
        assert len(body) < size
    await until(lambda: one.lines, "its line")
    assert "up sent bytes of sha256:" in one.lines[0]["failure"]
    await until(lambda: not kept(tmp_path), "nothing kept")
    hub.clear_faults()
    assert right((await one.get(path_of(digest))).body, digest)


async def test_wrong_bytes_are_reset_under_tls(
    tmp_path: Path, hub: FakeUpstream, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    data = random_bytes(2 * MIB, 5)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, replace=data[:-1] + b"?", gate=gate, gate_at=2 * MIB - 1)
    async with mirror(config_of(tmp_path, hub), ssl=server_tls) as running:
        async with connect(running.url, ssl=client_tls) as client:
            client.send("GET", path_of(digest))
            await client.head()
            gate.open()
            body, ending = await client.end()
            assert ending == "reset"
            assert len(body) < 2 * MIB


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_an_outage_ends_short_and_the_client_resumes(
    tmp_path: Path,
    hub: FakeUpstream,
    framing: str,
    tls: bool,
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
) -> None:
    size = 4 * MIB
    data = random_bytes(size, 6)
    digest = hub.add_blob(NAME, data)
    hub.fault(digest, cut_after=2 * MIB, times=1, framing=framing)
    hub.fault(digest, status=503, skip=1)
    async with mirror(config_of(tmp_path, hub), ssl=server_tls if tls else None) as running:
        async with connect(running.url, ssl=client_tls if tls else None) as client:
            client.send("GET", path_of(digest))
            head = await client.head()
            raw, ending = await client.end()
            assert ending == "fin", "so that clients resume"
            if framing == "length":
                assert head.headers["content-length"] == str(size)
                body = raw
            else:
                assert not raw.endswith(b"0\r\n\r\n"), "no last chunk: it would say that this is all"
                body = b""
                while b"\r\n" in raw:
                    length, _, raw = raw.partition(b"\r\n")
                    count = int(length, 16)
                    body, raw = body + raw[:count], raw[count + 2 :]
                body += raw
            assert MIB <= len(body) < size
            assert data.startswith(body)
        await until(lambda: running.lines, "its line")
        assert "failure" in running.lines[0]
        hub.clear_faults()
        got = len(body)
        async with connect(running.url, ssl=client_tls if tls else None) as client:
            rest = await client.ask("GET", path_of(digest), Range=f"bytes={got}-", If_Range=f'"{digest}"')
            if rest.status == 206:
                assert rest.headers["content-range"] == f"bytes {got}-{size - 1}/{size}"
                assert body + rest.body == data
            else:
                assert framing == "chunked", "a Range of an unknown size cannot be judged"
                assert (rest.status, rest.body) == (200, data)
    assert hub.bytes_sent(digest) <= size + TAIL


async def test_a_damaged_file_never_ends_cleanly(tmp_path: Path, hub: FakeUpstream, one: Mirror) -> None:
    """What fails after the headers ends the connection: another answer would land in the middle of the body."""
    digest = hub.add_random_blob(NAME, 8 * MIB)
    await one.get(path_of(digest))
    await stored(tmp_path, digest)
    await until(lambda: one.lines, "its line")
    one.lines.clear()
    async with connect(one.url, rcvbuf=4096, limit=1024) as client:
        client.send("GET", path_of(digest))
        await client.head()
        await asyncio.to_thread(os.truncate, tmp_path / "root" / "cache" / "sha256" / digest[7:], MIB)
        body, ending = await client.end()
        assert len(body) < 8 * MIB
        assert b"HTTP/1.1" not in body
        assert ending in ("fin", "reset")
    await until(lambda: one.lines, "its line")
    assert "shorter" in one.lines[0]["failure"]


async def test_an_unforeseen_error_while_sending_ends_the_connection(
    tmp_path: Path, hub: FakeUpstream, one: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    await one.get(path_of(digest))
    await stored(tmp_path, digest)

    def fail(fd: int, buffer: memoryview, offset: int) -> int:
        if offset:
            raise OSError(5, "Input/output error")
        return real(fd, buffer, offset)

    real = sending.read_now
    monkeypatch.setattr(sending, "read_now", fail)
    async with connect(one.url) as client:
        client.send("GET", path_of(digest))
        assert (await client.head()).headers["content-length"] == str(MIB)
        body, ending = await client.end()
        assert ending == "fin"
        assert 0 < len(body) < MIB
        assert b"HTTP/1.1" not in body
    await until(lambda: len(one.lines) == 2, "the lines of both")
    assert "OSError" in one.lines[-1]["failure"]
    assert any("sending" in record.message for record in caplog.records)


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_nobody_has_the_tail_before_it_is_verified(hub: FakeUpstream, one: Mirror, framing: str) -> None:
    size = 3 * MIB
    data = random_bytes(size, 7)
    digest = hub.add_blob(NAME, data)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=size - 1, framing=framing)
    most = size - TAIL - (0 if framing == "length" else 1)  # of an unknown size only what came can be the end
    async with connect(one.url) as client:
        client.send("GET", path_of(digest), version="1.0")  # so that what comes is the body alone
        await client.head()
        assert await client.reader.readexactly(most) == data[:most]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.readexactly(1)
        gate.open()
        assert await client.end() == (data[most:], "fin")


async def test_what_a_client_took_is_known() -> None:
    """The kernel's count behind the send timeout: it does not move while nothing is read."""
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            before = sending.bytes_taken(far)
            far.send(bytes(1000))
            await until(lambda: sending.bytes_taken(far) == before + 1000, "acknowledged")
            assert near.recv(2000) == bytes(1000)
