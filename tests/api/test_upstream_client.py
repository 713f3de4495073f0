"""The upstream client against a real server on real sockets: streams, ranges, redirects and faults."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Credentials, Limits, Upstream
from mirror.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTokenFailed,
    UpstreamUnreachable,
)
from mirror.oci.manifest import ACCEPT
from mirror.oci.names import Digest, RepositoryName, Tag, digest_of, parse_digest
from mirror.oci.ranges import ByteRange
from mirror.upstream.client import RegistryClient
from mirror.upstream.transport import Timeouts
from tests.fake_upstream import FakeUpstream, Gate, random_bytes

REPO = RepositoryName("team/app")
SECRET = "hunter2-never-shown"
NOWHERE = Digest("sha256", "0" * 64)

Make = Callable[..., RegistryClient]


class Counts:
    """A metrics hook that remembers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, int]] = []
        self.tokens = 0
        self.errors: list[str] = []
        self.bytes = 0

    def request(self, upstream: str, kind: str, status: int, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.requests.append((upstream, kind, status))

    def token(self, upstream: str, result: str) -> None:
        self.tokens += 1

    def error(self, upstream: str, reason: str) -> None:
        self.errors.append(reason)

    def fetched(self, upstream: str, nbytes: int) -> None:
        self.bytes += nbytes


class Names(AbstractResolver):
    """A resolver that knows what it was told."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = {host.replace("_", "."): address for host, address in hosts.items()}
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.hosts:
            raise OSError(None, "no such name")
        address = self.hosts[host]
        found = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=found, proto=0, flags=0)]

    async def close(self) -> None: ...


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
async def make(tmp_path: Path, counts: Counts) -> AsyncIterator[Make]:
    made: list[RegistryClient] = []

    def build(
        hub: FakeUpstream,
        *,
        login: bool = False,
        url: str | None = None,
        limits: Limits | None = None,
        timeouts: Timeouts | None = None,
        resolver: AbstractResolver | None = None,
        **settings: Any,
    ) -> RegistryClient:
        credentials = None
        if login:
            path = tmp_path / "password"
            path.write_text(SECRET)
            credentials = Credentials(username="robot", password_file=path)
        client = RegistryClient(
            "hub.example",
            Upstream(url=url or hub.url, credentials=credentials, **settings),
            limits=limits,
            timeouts=timeouts or Timeouts(headers=10.0),
            metrics=counts,
            resolver=resolver,
        )
        made.append(client)
        return client

    yield build
    for client in made:
        await client.close()


async def whole(client: RegistryClient, digest: str, **arguments: Any) -> tuple[int, int | None, bytes]:
    async with client.blob(REPO, parse_digest(digest), **arguments) as body:
        return body.offset, body.size, b"".join([chunk async for chunk in body.chunks()])


# ---- content ----


async def test_manifest_by_tag_and_by_digest(hub: FakeUpstream, make: Make, counts: Counts) -> None:
    image = hub.add_image(REPO, "1.0")
    client = make(hub)
    for target in (Tag("1.0"), parse_digest(image.digest)):
        found = await client.manifest(REPO, target)
        assert (found.raw, found.content_type, str(found.digest), found.anonymous) == (
            image.raw,
            image.media_type,
            image.digest,
            True,
        )
    assert counts.requests == [("hub.example", "manifest", 200)] * 2
    assert counts.bytes == 2 * len(image.raw)
    assert counts.errors == []


async def test_resolve_is_a_head(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, "1.0")
    found = await make(hub).resolve(REPO, Tag("1.0"))
    assert (str(found.digest), found.media_type, found.size, found.anonymous) == (
        image.digest,
        image.media_type,
        len(image.raw),
        True,
    )
    assert [request.method for request in hub.log] == ["HEAD"]


async def test_what_a_head_did_not_say_is_none(hub: FakeUpstream, make: Make) -> None:
    hub.add_image(REPO, "1.0")
    hub.fault("manifests", docker_digest=None, content_type=None, framing="chunked")
    found = await make(hub).resolve(REPO, Tag("1.0"))
    assert (found.digest, found.media_type, found.size) == (None, None, None)


async def test_stat_blob_is_a_head(hub: FakeUpstream, make: Make) -> None:
    hub.redirect = True
    digest = hub.add_random_blob(REPO, 1000)
    found = await make(hub).stat_blob(REPO, parse_digest(digest))
    assert (found.size, found.anonymous) == (1000, True)
    assert {request.method for request in hub.log} == {"HEAD"}


async def test_requests_carry_our_own_headers(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, "1.0")
    client = make(hub)
    await client.resolve(REPO, Tag("1.0"))
    await client.manifest(REPO, Tag("1.0"))
    await whole(client, image.layers[0])
    for request in hub.log:
        assert request.headers["Accept-Encoding"] == "identity"
        assert request.headers["User-Agent"].startswith("oci-mirror/")
        assert request.authorization is None
        assert "Range" not in request.headers
    assert [request.headers["Accept"] for request in hub.log] == [ACCEPT, ACCEPT, "*/*"]


async def test_a_base_path_comes_before_v2(hub: FakeUpstream, make: Make) -> None:
    with pytest.raises(ManifestUnknown):
        await make(hub, url=f"{hub.url}/mirrors/hub/").manifest(REPO, Tag("1.0"))
    assert [request.path for request in hub.log] == [f"/mirrors/hub/v2/{REPO}/manifests/1.0"]


async def test_a_blob_is_streamed(hub: FakeUpstream, make: Make, counts: Counts) -> None:
    data = random_bytes(3_000_000)
    digest = hub.add_blob(REPO, data)
    gate = Gate()
    hub.fault(digest, gate=gate, gate_at=1_000_000)
    async with make(hub).blob(REPO, parse_digest(digest)) as body:
        received = b""
        chunks = body.chunks()
        while len(received) < 1_000_000:
            received += await anext(chunks)
        assert not hub.log[-1].done
        gate.open()
        received += b"".join([chunk async for chunk in chunks])
    assert received == data
    assert (body.offset, body.size, body.anonymous) == (0, len(data), True)
    assert counts.bytes == len(data)


async def test_a_connection_is_used_again(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 100_000)
    client = make(hub)
    for _ in range(3):
        await whole(client, digest)
        with pytest.raises(BlobUnknown):
            await whole(client, str(NOWHERE))
    assert len({request.peer for request in hub.log}) == 1


async def test_leaving_a_blob_midway_closes_its_connection(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 64 << 20)
    async with make(hub).blob(REPO, parse_digest(digest)) as body:
        await anext(body.chunks())
    async with asyncio.timeout(10):
        while not hub.log[-1].done:
            await asyncio.sleep(0.005)
    assert hub.log[-1].sent < 64 << 20


# ---- ranges ----


async def test_the_rest_of_a_blob(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(1_000_000)
    digest = hub.add_blob(REPO, data)
    assert await whole(make(hub), digest, offset=400_000) == (400_000, len(data), data[400_000:])
    assert hub.log[-1].headers["Range"] == "bytes=400000-"
    assert hub.log[-1].sent == 600_000


@pytest.mark.parametrize(("first", "last"), [(0, 0), (10, 99), (0, 999_999), (999_990, 2_000_000)])
async def test_a_window_of_a_blob(hub: FakeUpstream, make: Make, first: int, last: int) -> None:
    data = random_bytes(1_000_000)
    digest = hub.add_blob(REPO, data)
    expected = data[first : last + 1]
    assert await whole(make(hub), digest, window=ByteRange(first, last)) == (first, len(data), expected)
    assert hub.log[-1].headers["Range"] == f"bytes={first}-{last}"


async def test_a_server_that_ignores_range_begins_at_0(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    hub.fault(digest, ignore_range=True)
    assert await whole(make(hub), digest, offset=40_000) == (0, len(data), data)


async def test_a_window_from_a_server_that_ignores_range(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 100_000)
    hub.fault(digest, ignore_range=True)
    with pytest.raises(UpstreamInvalid, match="ignores Range"):
        await whole(make(hub), digest, window=ByteRange(5, 10))


async def test_a_range_of_unknown_size(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    hub.fault(digest, content_range="bytes 40000-99999/*")
    assert await whole(make(hub), digest, offset=40_000) == (40_000, None, data[40_000:])


@pytest.mark.parametrize(
    "fault",
    [
        {"content_range": None},
        {"content_range": "nonsense"},
        {"content_range": "bytes 0-99999/100000"},
        {"content_range": "bytes 39999-99998/100000"},
        {"content_range": "bytes 40001-99999/100000"},
        {"content_range": "bytes 40000-99999/50000"},
        {"content_range": "bytes 40000-50000/100000"},
        {"content_range": "items 40000-99999/100000"},
        {"status": 416, "headers": {"Content-Range": "bytes */100"}},
    ],
    ids=str,
)
async def test_a_range_other_than_the_one_asked_for(hub: FakeUpstream, make: Make, fault: dict[str, Any]) -> None:
    digest = hub.add_random_blob(REPO, 100_000)
    hub.fault(digest, **fault)
    with pytest.raises(UpstreamInvalid):
        await whole(make(hub), digest, offset=40_000)


@pytest.mark.parametrize(
    "content_range", ["bytes 10-21/100000", "bytes 10-19/100000", "bytes 0-10/100000", "bytes 11-21/*"]
)
async def test_a_window_other_than_the_one_asked_for(hub: FakeUpstream, make: Make, content_range: str) -> None:
    digest = hub.add_random_blob(REPO, 100_000)
    hub.fault(digest, content_range=content_range, framing="chunked")
    with pytest.raises(UpstreamInvalid, match="another range"):
        await whole(make(hub), digest, window=ByteRange(10, 20))


async def test_a_206_nobody_asked_for(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 1000)
    hub.fault(digest, status=206, headers={"Content-Range": "bytes 10-19/1000"}, body=b"0123456789")
    with pytest.raises(UpstreamInvalid):
        await whole(make(hub), digest)


# ---- broken bodies ----


async def _broken(client: RegistryClient, digest: str, **arguments: Any) -> tuple[bytes, UpstreamError]:
    received = b""
    try:
        async with client.blob(REPO, parse_digest(digest), **arguments) as body:
            async for chunk in body.chunks():
                received += chunk
    except UpstreamError as error:
        return received, error
    pytest.fail(f"it ended cleanly after {len(received)} bytes")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"cut_after": 600_000}, UpstreamFailed),
        ({"cut_after": 600_000, "cut": "rst"}, UpstreamFailed),
        ({"cut_after": 600_000, "framing": "chunked"}, UpstreamFailed),
        ({"length": 1_000_001}, UpstreamFailed),
        ({"hang_after": 600_000}, UpstreamTimeout),
    ],
    ids=["fin", "rst", "chunked", "short", "stall"],
)
async def test_broken_bodies(
    hub: FakeUpstream, make: Make, counts: Counts, fault: dict[str, Any], error: type[UpstreamError]
) -> None:
    data = random_bytes(1_000_000)
    digest = hub.add_blob(REPO, data)
    client = make(hub, timeouts=Timeouts(read=0.3))
    hub.fault(digest, times=1, **fault)
    received, raised = await _broken(client, digest)
    assert type(raised) is error
    assert data.startswith(received)
    assert len(counts.errors) == 1
    if len(received) < len(data):  # and it goes on from there
        rest = data[len(received) :]
        assert await whole(client, digest, offset=len(received)) == (len(received), len(data), rest)


async def test_a_body_that_ends_with_its_connection_is_short_if_the_range_said_so(
    hub: FakeUpstream, make: Make
) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    client = make(hub)
    hub.fault(digest, framing="close")
    assert await whole(client, digest, offset=100) == (100, len(data), data[100:])
    assert await whole(client, digest) == (0, None, data)
    hub.fault(digest, cut_after=50_000)
    received, raised = await _broken(client, digest, offset=100)
    assert type(raised) is UpstreamFailed
    assert received == data[100:50_100]


async def test_more_than_was_announced(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    hub.fault(digest, content_range="bytes 40000-40009/40010", framing="chunked")
    received, raised = await _broken(make(hub), digest, offset=40_000)
    assert type(raised) is UpstreamInvalid
    assert len(received) <= 10


async def test_a_missing_content_length(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    hub.fault(digest, framing="chunked")
    assert await whole(make(hub), digest) == (0, None, data)


async def test_an_endless_body_is_cut_at_the_limit(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 1000)
    hub.fault(digest, endless=True)
    received, raised = await _broken(make(hub, limits=Limits(blob=5_000_000)), digest)
    assert type(raised) is UpstreamInvalid
    assert len(received) <= 5_000_000


@pytest.mark.parametrize("offset", [0, 500])
async def test_a_blob_over_the_limit_is_not_begun(hub: FakeUpstream, make: Make, offset: int) -> None:
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    assert await whole(make(hub, limits=Limits(blob=100_000)), digest, offset=offset) == (
        offset,
        100_000,
        data[offset:],
    )
    received, raised = await _broken(make(hub, limits=Limits(blob=99_999)), digest, offset=offset)
    assert type(raised) is UpstreamInvalid
    assert received == b""


async def test_content_encoding_changes_no_byte(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_blob(REPO, b"x" * 1000)
    image = hub.add_image(REPO, "1.0")
    hub.fault("", encode_gzip=True)
    client = make(hub)
    _, _, received = await whole(client, digest)
    assert received.startswith(b"\x1f\x8b")
    assert (await client.manifest(REPO, Tag("1.0"))).raw.startswith(b"\x1f\x8b")
    assert digest_of(received) != parse_digest(digest)
    assert image.raw


async def test_wrong_bytes_and_headers_are_handed_on_for_the_caller_to_judge(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, "1.0")
    hub.fault("manifests", content_type="text/plain", docker_digest=str(NOWHERE), replace=b"wrong")
    found = await make(hub).manifest(REPO, Tag("1.0"))
    assert (found.raw, found.content_type, found.digest) == (b"wrong", "text/plain", NOWHERE)
    hub.clear_faults()
    hub.fault("manifests", docker_digest="sha256:nonsense")
    assert (await make(hub).manifest(REPO, parse_digest(image.digest))).digest is None


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_manifest_over_the_limit(hub: FakeUpstream, make: Make, counts: Counts, framing: str) -> None:
    hub.add_manifest(REPO, b"x" * 1_000_000, "exact")
    hub.add_manifest(REPO, b"x" * 30_000_000, "huge")
    client = make(hub, limits=Limits(manifest=1_000_000))
    hub.fault("manifests", framing=framing)
    assert len((await client.manifest(REPO, Tag("exact"))).raw) == 1_000_000
    with pytest.raises(UpstreamInvalid, match="1000000 bytes"):
        await client.manifest(REPO, Tag("huge"))
    async with asyncio.timeout(10):
        while not hub.log[-1].done:
            await asyncio.sleep(0.005)
    assert hub.log[-1].sent < 20_000_000
    if framing == "length":  # it was announced, so nothing of it was read
        assert counts.bytes == 1_000_000


async def test_a_broken_manifest(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, "1.0")
    client = make(hub, timeouts=Timeouts(headers=0.3))
    hub.fault("manifests", cut_after=10, times=1)
    with pytest.raises(UpstreamFailed):
        await client.manifest(REPO, Tag("1.0"))
    hub.fault("manifests", hang_after=10, times=1)
    with pytest.raises(UpstreamTimeout):
        await client.manifest(REPO, Tag("1.0"))
    assert (await client.manifest(REPO, Tag("1.0"))).raw == image.raw


# ---- what outcomes mean ----


async def test_a_404_is_an_answer(
    hub: FakeUpstream, make: Make, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add_image(REPO, "1.0")
    client = make(hub)
    with pytest.raises(ManifestUnknown, match="team/app:2"):
        await client.manifest(REPO, Tag("2"))
    with pytest.raises(ManifestUnknown):
        await client.resolve(REPO, NOWHERE)
    with pytest.raises(BlobUnknown):
        await client.stat_blob(REPO, NOWHERE)
    with pytest.raises(BlobUnknown):
        await whole(client, str(NOWHERE))
    with pytest.raises(NameUnknown):
        await client.tags(RepositoryName("no/such"), n=None, last=None)
    assert counts.errors == []
    assert caplog.records == []


@pytest.mark.parametrize(
    ("fault", "anonymous", "with_login"),
    [
        ({"status": 401}, ManifestUnknown, UpstreamDenied),
        ({"status": 403}, ManifestUnknown, UpstreamDenied),
        ({"status": 404}, ManifestUnknown, ManifestUnknown),
        ({"status": 429, "headers": {"Retry-After": "12"}}, UpstreamRateLimited, UpstreamRateLimited),
        ({"status": 500}, UpstreamFailed, UpstreamFailed),
        ({"status": 503, "headers": {"Retry-After": "12"}}, UpstreamFailed, UpstreamFailed),
        ({"status": 599}, UpstreamFailed, UpstreamFailed),
        ({"status": 204}, UpstreamInvalid, UpstreamInvalid),
        ({"status": 206}, UpstreamInvalid, UpstreamInvalid),
        ({"status": 304}, UpstreamInvalid, UpstreamInvalid),
        ({"status": 400}, UpstreamInvalid, UpstreamInvalid),
        ({"status": 416}, UpstreamInvalid, UpstreamInvalid),
        ({"status": 307}, UpstreamInvalid, UpstreamInvalid),
        ({"drop": "fin"}, UpstreamUnreachable, UpstreamUnreachable),
        ({"drop": "rst"}, UpstreamUnreachable, UpstreamUnreachable),
        ({"hang_headers": True}, UpstreamTimeout, UpstreamTimeout),
    ],
    ids=str,
)
@pytest.mark.parametrize("login", [False, True], ids=["anonymous", "login"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_outcomes(
    hub: FakeUpstream,
    make: Make,
    counts: Counts,
    caplog: pytest.LogCaptureFixture,
    method: str,
    login: bool,
    fault: dict[str, Any],
    anonymous: type[RegistryError],
    with_login: type[RegistryError],
) -> None:
    hub.add_image(REPO, "1.0")
    hub.fault("manifests", **fault)
    client = make(hub, login=login, timeouts=Timeouts(headers=0.5))
    ask = client.manifest if method == "GET" else client.resolve
    with pytest.raises(RegistryError) as caught:
        await ask(REPO, Tag("1.0"))
    expected = with_login if login else anonymous
    assert type(caught.value) is expected
    assert "hub.example" in caught.value.message
    assert "team/app:1.0" in caught.value.message
    failures = [record for record in caplog.records if record.name == "mirror.upstream"]
    if isinstance(caught.value, UpstreamError):
        assert caught.value.upstream == "hub.example"
        assert counts.errors == [expected.__name__.removeprefix("Upstream").lower()]
        [record] = failures
        assert record.levelno == logging.WARNING
        facts = record.fields  # type: ignore[attr-defined]
        assert (facts["upstream"], facts["host"]) == ("hub.example", "127.0.0.1")
        if "status" in fault and fault["status"] != 307:
            assert facts["status"] == fault["status"]
        else:
            assert facts["cause"]
    else:
        assert failures == []
        assert counts.errors == []
    if isinstance(caught.value, UpstreamRateLimited):
        assert caught.value.retry_after == 12
    assert SECRET not in caught.value.message + caplog.text


async def test_nothing_listens(make: Make, hub: FakeUpstream) -> None:
    client = make(hub, breaker_window=0)
    await hub.stop()
    with pytest.raises(UpstreamUnreachable, match=r"no connection to 127\.0\.0\.1"):
        await client.manifest(REPO, Tag("1.0"))
    await hub.start()
    hub.add_image(REPO, "1.0")
    assert await client.manifest(REPO, Tag("1.0"))


async def test_a_name_that_does_not_resolve(make: Make, hub: FakeUpstream) -> None:
    client = make(hub, url="http://nowhere.example", resolver=Names())
    with pytest.raises(UpstreamUnreachable, match=r"nowhere\.example cannot be resolved"):
        await client.manifest(REPO, Tag("1.0"))


async def test_what_is_not_http(make: Make, hub: FakeUpstream, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2 " + SECRET.encode() * 1000 + b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(UpstreamInvalid) as caught:
        await make(hub, url=f"http://127.0.0.1:{port}").manifest(REPO, Tag("1.0"))
    assert SECRET not in caught.value.message + caplog.text  # bodies of others are not quoted
    assert "malformed" in caught.value.message
    server.close()
    await server.wait_closed()


async def test_token_redirects_and_headers_have_one_time_limit(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.redirect = "token", True
    digest = hub.add_random_blob(REPO, 1000)
    for match in ("registry GET /v2/", "token", "cdn"):
        hub.clear_faults()
        hub.clear_log()
        client = make(hub, timeouts=Timeouts(headers=0.3))
        hub.own_token_port = True
        hub.fault(match, hang_headers=True)
        with pytest.raises(UpstreamTimeout):
            await whole(client, digest)
        assert hub.log[-1].server == match.split()[0]


async def test_a_slow_body_is_not_under_the_time_limit_of_the_headers(hub: FakeUpstream, make: Make) -> None:
    data = random_bytes(50_000)
    digest = hub.add_blob(REPO, data)
    hub.fault(digest, rate=100_000.0)
    assert await whole(make(hub, timeouts=Timeouts(headers=0.25)), digest) == (0, len(data), data)


# ---- TLS ----


async def test_tls_with_a_ca_of_its_own(make: Make, tmp_path: Path, counts: Counts) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    pem = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(pem))
    async with FakeUpstream(ssl=context, redirect=True) as hub:
        image = hub.add_image(REPO, "1.0")
        client = make(hub, ca_file=pem)
        assert (await client.manifest(REPO, Tag("1.0"))).raw == image.raw
        assert (await whole(client, image.layers[0]))[2] == image.blobs[image.layers[0]]
        with pytest.raises(UpstreamUnreachable, match="ca_file"):
            await make(hub).manifest(REPO, Tag("1.0"))
    assert counts.errors == ["unreachable"]


async def test_a_ca_file_that_went_bad(make: Make, hub: FakeUpstream, tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    pem.write_text("nonsense")
    with pytest.raises(UpstreamUnreachable, match="ca_file"):
        await make(hub, ca_file=pem).manifest(REPO, Tag("1.0"))


# ---- who we are ----


@pytest.mark.parametrize("own_token_port", [False, True])
async def test_anonymous_tokens(hub: FakeUpstream, make: Make, counts: Counts, own_token_port: bool) -> None:
    hub.auth, hub.own_token_port = "token", own_token_port
    image = hub.add_image(REPO, "1.0")
    client = make(hub)
    assert (await client.manifest(REPO, Tag("1.0"))).anonymous
    assert (await client.stat_blob(REPO, parse_digest(image.config))).anonymous
    async with client.blob(REPO, parse_digest(image.config)) as body:
        assert body.anonymous
    assert hub.count("GET", "/token") == counts.tokens == 1
    assert [request.status for request in hub.requests(part="/v2/")] == [401, 200, 200, 200]


async def test_credentials_make_an_answer_private(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users, hub.private = "token", {"robot": SECRET}, {REPO}
    image = hub.add_image(REPO, "1.0")
    client = make(hub, login=True)
    assert not (await client.manifest(REPO, Tag("1.0"))).anonymous
    assert not (await client.resolve(REPO, Tag("1.0"))).anonymous
    async with client.blob(REPO, parse_digest(image.config)) as body:
        assert not body.anonymous
    with pytest.raises(ManifestUnknown):
        await make(hub).manifest(REPO, Tag("1.0"))


async def test_wrong_credentials(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users = "token", {"robot": "another"}
    hub.add_image(REPO, "1.0")
    with pytest.raises(UpstreamDenied, match="'robot'"):
        await make(hub, login=True).manifest(REPO, Tag("1.0"))


async def test_names_that_do_not_exist_are_401_at_docker_hub(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.hide_missing = "token", True
    with pytest.raises(ManifestUnknown):
        await make(hub).resolve(RepositoryName("no/such"), Tag("1"))
    with pytest.raises(NameUnknown):
        await make(hub).tags(RepositoryName("no/such"), n=None, last=None)


async def test_tokens_that_expire_early_are_renewed(hub: FakeUpstream, make: Make) -> None:
    hub.auth = "token"
    hub.add_image(REPO, "1.0")
    client = make(hub)
    await client.resolve(REPO, Tag("1.0"))
    hub.expire_tokens()
    await client.resolve(REPO, Tag("1.0"))
    assert [request.status for request in hub.requests(part="/v2/")] == [401, 200, 401, 200]
    assert hub.count("GET", "/token") == 2


async def test_credentials_do_not_go_to_another_port(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users, hub.own_token_port = "token", {"robot": SECRET}, True
    hub.add_image(REPO, "1.0")
    with pytest.raises(UpstreamTokenFailed, match="realms"):
        await make(hub, login=True).manifest(REPO, Tag("1.0"))
    assert hub.requests(server="token") == []
    listed = hub.token_url.removeprefix("http://").removesuffix("/token")
    assert await make(hub, login=True, realms=(listed,)).manifest(REPO, Tag("1.0"))
    assert len(hub.authorizations("token")) == 1


async def test_a_token_endpoint_that_is_down(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.realm = "token", "http://127.0.0.1:1/token"
    hub.add_image(REPO, "1.0")
    with pytest.raises(UpstreamTokenFailed):
        await make(hub).manifest(REPO, Tag("1.0"))


async def test_a_realm_that_redirects_takes_no_password_along(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users = "token", {"robot": SECRET}
    hub.add_image(REPO, "1.0")
    hub.fail("registry GET /token", status=307, headers={"Location": hub.token_url + "?scope=repository:team/app:pull"})
    assert await make(hub, login=True).manifest(REPO, Tag("1.0"))
    assert hub.count("GET", "/token", server="token") == 1
    assert hub.authorizations("token") == []


# ---- redirects ----


async def test_the_cdn_gets_no_authorization_and_a_fresh_url_each_time(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users, hub.redirect = "token", {"robot": SECRET}, True
    data = random_bytes(100_000)
    digest = hub.add_blob(REPO, data)
    client = make(hub, login=True)
    assert await whole(client, digest) == (0, len(data), data)
    assert await whole(client, digest, offset=50_000) == (50_000, len(data), data[50_000:])
    assert hub.authorizations("cdn") == []
    assert len(hub.authorizations("registry")) == 3  # the token endpoint and two blobs
    assert [request.headers.get("Range") for request in hub.requests(server="cdn")] == [None, "bytes=50000-"]
    assert hub.count("GET", f"/blobs/{digest}") == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_relative_redirects(hub: FakeUpstream, make: Make, status: int) -> None:
    image = hub.add_image(REPO, "1.0")
    hub.fail("manifests/moved", status=status, headers={"Location": "1.0?x=%2f%2F+"})
    assert (await make(hub).manifest(REPO, Tag("moved"))).raw == image.raw
    assert hub.log[-1].raw_path == f"/v2/{REPO}/manifests/1.0?x=%2f%2F+"


async def test_authorization_stays_with_its_origin(hub: FakeUpstream, make: Make) -> None:
    hub.auth, hub.users, hub.private = "basic", {"robot": SECRET}, {REPO}
    hub.add_image(REPO, "1.0")
    client = make(hub, login=True)
    await client.resolve(REPO, Tag("1.0"))
    # within the origin it goes along; once the way has left, it does not come back
    hub.fail("manifests/near", status=307, headers={"Location": f"/v2/{REPO}/manifests/1.0"})
    await client.resolve(REPO, Tag("near"))
    assert hub.log[-1].authorization is not None
    hub.fail("manifests/far", status=307, headers={"Location": f"{hub.cdn_url}/hop"})
    hub.fail("cdn HEAD /hop", status=307, headers={"Location": f"{hub.url}/v2/{REPO}/manifests/1.0"})
    hub.private.clear()
    await client.resolve(REPO, Tag("far"))
    assert [request.authorization is not None for request in hub.log[-3:]] == [True, False, False]


async def test_cookies_are_not_kept(hub: FakeUpstream, make: Make) -> None:
    hub.add_image(REPO, "1.0")
    hub.fault("manifests", headers={"Set-Cookie": "a=b; Path=/"})
    client = make(hub)
    await client.resolve(REPO, Tag("1.0"))
    await client.resolve(REPO, Tag("1.0"))
    assert "Cookie" not in hub.log[-1].headers


async def test_ten_redirects_are_followed_and_not_one_more(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, "step-k")
    for here, there in pairwise("abcdefghijk"):
        hub.fail(f"step-{here}", status=302, headers={"Location": f"/v2/{REPO}/manifests/step-{there}"})
    client = make(hub)
    assert (await client.manifest(REPO, Tag("step-a"))).raw == image.raw
    hub.clear_log()
    hub.fail("step-0", status=302, headers={"Location": f"/v2/{REPO}/manifests/step-a"})
    with pytest.raises(UpstreamInvalid, match="more than 10 redirects"):
        await client.manifest(REPO, Tag("step-0"))
    assert len(hub.log) == 11


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "gopher://127.0.0.1:70/x",
        "http://",
        "http:///x",
        "http://[",
        "http://127.0.0.1:99999/",
        "http://a b/",
        "javascript:alert(1)",
        "data:application/json,{}",
    ],
)
async def test_redirects_to_what_is_not_http(hub: FakeUpstream, make: Make, location: str) -> None:
    hub.fail("manifests", status=307, headers={"Location": location} if location else {})
    with pytest.raises(UpstreamInvalid):
        await make(hub).manifest(REPO, Tag("1.0"))
    assert len(hub.log) == 1


async def test_userinfo_in_a_redirect_is_nobody_to_us(hub: FakeUpstream, make: Make) -> None:
    digest = hub.add_random_blob(REPO, 10)
    hub.fail(
        f"registry GET /v2/{REPO}/blobs",
        status=307,
        headers={"Location": f"http://u:p@{hub.cdn_url[7:]}/elsewhere/{REPO}/{digest}"},
    )
    assert (await whole(make(hub), digest))[1] == 10
    assert hub.authorizations("cdn") == []


async def test_a_cdn_that_refuses_is_a_failure_and_no_answer(hub: FakeUpstream, make: Make) -> None:
    hub.redirect = True
    digest = hub.add_random_blob(REPO, 10)
    for status, error in ((403, UpstreamFailed), (401, UpstreamFailed), (404, BlobUnknown), (503, UpstreamFailed)):
        hub.clear_faults()
        hub.fail("cdn GET", status=status)
        with pytest.raises(error):
            await whole(make(hub), digest)


# ---- where connections may go ----

LOCAL_FORMS = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
]
METADATA_FORMS = [
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[64:ff9b::a9fe:a9fe]",
    "100.100.100.200",
    "0.0.0.0",
    "0",
    "[::]",
]


class System(Names):
    """A resolver that knows a public name for the fake, and asks the system for notations of addresses."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if host in self.hosts:
            return await super().resolve(host, port, family)
        self.asked.append(host)
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        return [
            ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=0, flags=0)
            for kind, _, _, _, address in infos
        ]


def public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the fake's own address count as a public one when it is the configured host's."""
    from mirror.upstream import guard

    real = guard.AddressGuard.origin_socket

    def origin_socket(self: guard.AddressGuard, info: tuple[Any, ...]) -> socket.socket:
        made = real(self, info)
        self._origin = guard.Reach.GLOBAL
        return made

    monkeypatch.setattr(guard.AddressGuard, "origin_socket", origin_socket)


@pytest.mark.parametrize("form", LOCAL_FORMS)
async def test_a_public_registry_redirects_to_us(
    hub: FakeUpstream, make: Make, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    public(monkeypatch)
    digest = hub.add_random_blob(REPO, 10)
    port = hub.cdn_url.rpartition(":")[2]
    hub.fail("registry GET", status=307, headers={"Location": f"http://{form}:{port}/elsewhere/{REPO}/{digest}"})
    client = make(hub, url=f"http://registry.example.com:{hub.port}", resolver=System(registry_example_com="127.0.0.1"))
    # aiohttp refuses some notations by itself, as malformed
    with pytest.raises((UpstreamUnreachable, UpstreamInvalid), match=r"redirects_to|malformed"):
        await whole(client, digest)
    assert hub.requests(server="cdn") == []


@pytest.mark.parametrize("form", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_it_may_when_the_operator_says_so(
    hub: FakeUpstream, make: Make, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    public(monkeypatch)
    digest = hub.add_random_blob(REPO, 10)
    port = hub.cdn_url.rpartition(":")[2]
    hub.fail("registry GET", status=307, headers={"Location": f"http://{form}:{port}/elsewhere/{REPO}/{digest}"})
    resolver = System(registry_example_com="127.0.0.1")
    url = f"http://registry.example.com:{hub.port}"
    client = make(hub, url=url, resolver=resolver, redirects_to=("127.0.0.0/8",))
    assert (await whole(client, digest))[1] == 10
    assert hub.count(server="cdn") == 1


@pytest.mark.parametrize("form", METADATA_FORMS)
async def test_nobody_leads_us_to_metadata(hub: FakeUpstream, make: Make, form: str) -> None:
    hub.fail("registry GET", status=307, headers={"Location": f"http://{form}/latest/meta-data/"})
    client = make(hub, resolver=System(), redirects_to=("0.0.0.0/0", "::/0"))
    with pytest.raises((UpstreamUnreachable, UpstreamInvalid), match=r"never dialled|malformed"):
        await client.manifest(REPO, Tag("1.0"))


async def test_a_name_that_resolves_to_metadata(hub: FakeUpstream, make: Make) -> None:
    resolver = Names(metadata_example_com="169.254.169.254")
    hub.fail("registry GET", status=307, headers={"Location": "http://metadata.example.com/"})
    with pytest.raises(UpstreamUnreachable, match=r"169\.254\.169\.254 .* never dialled"):
        await make(hub, resolver=resolver).manifest(REPO, Tag("1.0"))
    with pytest.raises(UpstreamUnreachable, match="never dialled"):
        await make(hub, url="http://metadata.example.com", resolver=resolver).manifest(REPO, Tag("1.0"))
    hub.clear_faults()
    hub.auth, hub.realm = "token", "http://metadata.example.com/token"
    with pytest.raises(UpstreamTokenFailed, match="never dialled"):
        await make(hub, resolver=resolver).manifest(REPO, Tag("1.0"))
    assert set(resolver.asked) == {"metadata.example.com"}


async def test_a_chain_from_public_to_private(hub: FakeUpstream, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    public(monkeypatch)
    url = f"http://registry.example.com:{hub.port}"
    hub.fail("manifests/1.0", status=307, headers={"Location": f"{url}/hop"})
    hub.fail("/hop", status=307, headers={"Location": f"http://inside.example.com:{hub.port}/secret"})
    resolver = Names(registry_example_com="127.0.0.1", inside_example_com="127.0.0.1")
    with pytest.raises(UpstreamUnreachable, match="redirects_to"):
        await make(hub, url=url, resolver=resolver).manifest(REPO, Tag("1.0"))
    assert [request.path for request in hub.log] == [f"/v2/{REPO}/manifests/1.0", "/hop"]
    # the positive twin: the same chain, allowed, arrives
    hub.clear_log()
    with pytest.raises(ManifestUnknown):
        await make(hub, url=url, resolver=resolver, redirects_to=("127.0.0.1/32",)).manifest(REPO, Tag("1.0"))
    assert hub.log[-1].path == "/secret"


async def test_a_private_realm_of_a_public_registry(
    hub: FakeUpstream, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    public(monkeypatch)
    hub.auth, hub.own_token_port = "token", True
    hub.add_image(REPO, "1.0")
    url = f"http://registry.example.com:{hub.port}"
    resolver = Names(registry_example_com="127.0.0.1")
    with pytest.raises(UpstreamTokenFailed, match="redirects_to"):
        await make(hub, url=url, resolver=resolver).manifest(REPO, Tag("1.0"))
    assert hub.requests(server="token") == []
    assert await make(hub, url=url, resolver=resolver, redirects_to=("127.0.0.1/32",)).manifest(REPO, Tag("1.0"))


async def test_a_local_registry_redirects_locally(hub: FakeUpstream, make: Make) -> None:
    hub.redirect = True
    digest = hub.add_random_blob(REPO, 10)
    hub.redirect_host = "localhost"
    client = make(hub, resolver=Names(localhost="127.0.0.1"))
    assert (await whole(client, digest))[1] == 10


async def test_a_host_name_no_resolver_takes(hub: FakeUpstream, make: Make) -> None:
    hub.fail("manifests", status=307, headers={"Location": f"http://{'a' * 70}.example.com/"})
    with pytest.raises(UpstreamError):
        await make(hub).manifest(REPO, Tag("1.0"))


# ---- tags ----


async def test_tags_page_by_page(hub: FakeUpstream, make: Make) -> None:
    image = hub.add_image(REPO, None)
    for tag in "abcde":
        hub.set_tag(REPO, tag, image.digest)
    client = make(hub)
    page = await client.tags(REPO, n=None, last=None)
    assert (page.tags, page.next_n, page.next_last) == (("a", "b", "c", "d", "e"), None, None)
    assert hub.log[-1].raw_path == f"/v2/{REPO}/tags/list"
    page = await client.tags(REPO, n=2, last="a")
    assert (page.tags, page.next_n, page.next_last) == (("b", "c"), 2, "c")
    assert hub.log[-1].query == {"n": "2", "last": "a"}


@pytest.mark.parametrize(
    ("link", "following"),
    [
        ('<https://evil.example/v2/x/tags/list?n=5&last=q>; rel="next"', (5, "q")),
        ("</v2/x/tags/list?last=q%2B1&n=5>; rel=next", (5, "q+1")),
        ('</prev?last=p>; rel="prev", </v2/x?last=q>; title="x"; rel="next"', (None, "q")),
        ('</v2/x?next_page=opaque>; rel="next"', (None, "b")),
        ('</v2/x?last=q>; rel="prev"', (None, None)),
        ('</v2/x?last=q&n=-1>; rel="next"', (None, "q")),
        ("garbage", (None, None)),
        ('<http://[?last=q>; rel="next"', (None, None)),
    ],
)
async def test_only_n_and_last_of_a_link_are_believed(
    hub: FakeUpstream, make: Make, link: str, following: tuple[int | None, str | None]
) -> None:
    hub.fail("tags", status=200, headers={"Link": link}, body=b'{"name": "x", "tags": ["a", "b"]}')
    page = await make(hub).tags(REPO, n=None, last=None)
    assert (page.next_n, page.next_last) == following


@pytest.mark.parametrize(
    ("body", "tags"),
    [
        (b'{"name":"x","tags":[]}', ()),
        (b'{"name":"x","tags":null}', ()),
        (b'{"tags":["a"]}', ("a",)),
        (b'{"tags":["' + b'a","' * 50_000 + b'b"]}', ("a",) * 50_000 + ("b",)),
    ],
    ids=["empty", "null", "one", "many"],
)
async def test_lists_of_tags(hub: FakeUpstream, make: Make, body: bytes, tags: tuple[str, ...]) -> None:
    hub.fail("tags", status=200, body=body)
    assert (await make(hub).tags(REPO, n=None, last=None)).tags == tags


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'["a"]', b"{}", b'{"tags":{}}', b'{"tags":[1]}', b'{"tags":"a"}', b"[" * 100_000, b"\xff"],
    ids=lambda body: repr(body[:12]),
)
async def test_what_is_no_list_of_tags(hub: FakeUpstream, make: Make, body: bytes) -> None:
    hub.fail("tags", status=200, body=body)
    with pytest.raises(UpstreamInvalid, match="the tags of team/app"):
        await make(hub).tags(REPO, n=None, last=None)


async def test_an_endless_list_of_tags(hub: FakeUpstream, make: Make) -> None:
    hub.add_image(REPO, "1.0")
    hub.fault("tags", endless=True)
    with pytest.raises(UpstreamInvalid, match="limit"):
        await make(hub).tags(REPO, n=None, last=None)
