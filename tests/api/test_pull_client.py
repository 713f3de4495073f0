"""What a pull makes of a mirror's answers: a stand-in for one that breaks off, asks for patience, lies or is gone."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.oci.manifest import Descriptor
from mirror.oci.names import Tag, parse_digest
from mirror.prefetch import Login, Refused, Service, Trust, Unreachable, fingerprint, parse_image
from mirror.prefetch.client import CONNECT_TRIES, CONTINUE_TRIES, PATIENCE, Broken
from tests.fake_upstream import FakeUpstream, Gate

IMAGE = parse_image("up.test/team/app:1")
SIZE = 300_000
HIT = {"Cache-Status": "mirror; hit"}
MISS = {"Cache-Status": "mirror; fwd=uri-miss; stored"}


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


class Pauses:
    """Sleeps that are noted and not slept."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


class Asking:
    """One blob, asked for. received: what was heard of its bytes."""

    def __init__(self, fake: FakeUpstream, size: int = SIZE) -> None:
        self.digest = fake.add_random_blob("team/app", size)
        self.blob = Descriptor(media_type="x/y", digest=parse_digest(self.digest), size=size)
        self.received = 0
        self.pauses = Pauses()
        self._url = fake.url

    async def ask(self, **arguments: Any) -> bool:
        async with Service(self._url, sleep=self.pauses, **arguments) as service:
            return await service.blob(IMAGE, self.blob, self._hear)

    def _hear(self, nbytes: int) -> None:
        self.received += nbytes


def ranges(fake: FakeUpstream) -> list[str | None]:
    return [request.headers.get("Range") for request in fake.requests("GET")]


async def test_a_blob_is_read_to_its_end(fake: FakeUpstream) -> None:
    one = Asking(fake)
    assert await one.ask() is False
    assert one.received == SIZE
    (request,) = fake.requests("GET")
    assert request.headers["If-None-Match"] == f'"{one.digest}"'
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.query == {"ns": "up.test"}


async def test_the_registry_is_named_with_its_port(fake: FakeUpstream) -> None:
    one = Asking(fake)
    async with Service(fake.url) as service:
        await service.blob(parse_image("[::1]:5000/team/app"), one.blob, lambda nbytes: None)
    (request,) = fake.requests("GET")
    assert request.query == {"ns": "[::1]:5000"}


async def test_what_is_not_modified_is_there(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, status=304)
    assert await one.ask() is True
    assert one.received == 0


async def test_the_body_of_a_hit_is_not_waited_for(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, headers=HIT, gate=Gate(), gate_at=1000)
    async with asyncio.timeout(10):
        assert await one.ask() is True
    assert one.received == 0


async def test_a_hit_somewhere_behind_the_mirror_is_none(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, headers={"Cache-Status": "mirror; fwd=uri-miss; stored, cdn; hit"})
    assert await one.ask() is False
    assert one.received == SIZE


async def test_a_body_that_ends_early_is_continued(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, cut_after=100_000, times=1)
    fake.fault(one.digest, cut_after=50_000, skip=1, times=1)
    assert await one.ask() is False
    assert one.received == SIZE
    assert ranges(fake) == [None, "bytes=100000-", "bytes=150000-"]
    assert {request.headers["If-Range"] for request in fake.requests("GET")[1:]} == {f'"{one.digest}"'}


async def test_what_does_not_fit_together_is_read_anew(fake: FakeUpstream) -> None:
    """A mirror resets a connection by which wrong bytes went out; the next ones are of another attempt."""
    one = Asking(fake)
    fake.fault(one.digest, replace=bytes(SIZE), cut_after=100_000, cut="rst", times=1)
    assert await one.ask() is False
    assert one.received == SIZE
    assert ranges(fake) == [None, "bytes=100000-", None]


async def test_what_never_fits_together(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, replace=bytes(SIZE))
    fake.fault(lambda request: "Range" not in request.headers, cut_after=100_000)
    async with asyncio.timeout(10):
        with pytest.raises(Broken, match="has another digest"):
            await one.ask()
    assert ranges(fake) == [None, "bytes=100000-", None, "bytes=100000-"]


async def test_a_range_that_is_not_given_begins_anew(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, cut_after=100_000, times=1)
    fake.fault(one.digest, ignore_range=True)
    assert await one.ask() is False
    assert one.received == SIZE


async def test_what_was_stored_meanwhile_is_not_read_again(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, cut_after=100_000, times=1)
    fake.fault(one.digest, status=304, skip=1)
    assert await one.ask() is False, "it had to be fetched"


async def test_a_body_that_breaks_off_again_and_again(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, cut_after=100_000, times=1)
    fake.fault(one.digest, cut_after=0, skip=1)
    with pytest.raises(Broken, match=f"broke off {CONTINUE_TRIES} times at 100000 of {SIZE} bytes"):
        await one.ask()
    assert len(ranges(fake)) == 1 + CONTINUE_TRIES
    assert one.pauses.seconds == sorted(one.pauses.seconds)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"replace": bytes(SIZE)}, "has another digest"),
        ({"replace": bytes(SIZE + 1)}, "has more than the"),
        ({"replace": bytes(SIZE - 1)}, f"has {SIZE - 1} bytes, and {SIZE} by its manifest"),
        ({"replace": bytes(10), "framing": "close"}, f"has 10 bytes, and {SIZE} by its manifest"),
    ],
    ids=["digest", "longer", "shorter", "without-length"],
)
async def test_what_is_not_the_content(fake: FakeUpstream, fault: dict[str, Any], said: str) -> None:
    one = Asking(fake)
    fake.fault(one.digest, **fault)
    with pytest.raises(Broken, match=said):
        await one.ask()


@pytest.mark.parametrize(
    "content_range", [f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes 100000-{SIZE - 1}/{SIZE + 1}", None, "nonsense"]
)
async def test_another_range_than_was_asked_for(fake: FakeUpstream, content_range: str | None) -> None:
    one = Asking(fake)
    fake.fault(one.digest, cut_after=100_000, times=1)
    fake.fault(one.digest, content_range=content_range, skip=1)
    with pytest.raises(Broken, match="was asked for from byte 100000, and another range came"):
        await one.ask()


# ---- patience ----


@pytest.mark.parametrize("status", [429, 503])
async def test_who_asks_for_patience_is_given_some(fake: FakeUpstream, status: int) -> None:
    one = Asking(fake)
    fake.fail(one.digest, status=status, headers={"Retry-After": "7"}, times=3)
    assert await one.ask() is False
    assert one.pauses.seconds == [7, 7, 7]


async def test_patience_ends(fake: FakeUpstream) -> None:
    one = Asking(fake)
    body = json.dumps({"errors": [{"code": "UNAVAILABLE", "message": "come back later"}]}).encode()
    fake.fail(one.digest, status=503, headers={"Retry-After": "50"}, body=body)
    async with asyncio.timeout(10):
        with pytest.raises(Refused, match="503 UNAVAILABLE: come back later"):
            await one.ask()
    assert one.pauses.seconds == [50, 50]
    assert sum(one.pauses.seconds) <= PATIENCE


async def test_patience_is_of_a_registry_until_it_answers(fake: FakeUpstream) -> None:
    """One that is down costs it once, not for each of its images."""
    one = Asking(fake)
    fake.fail(one.digest, status=503, headers={"Retry-After": "60"}, times=4)
    async with Service(fake.url, sleep=one.pauses) as service:
        with pytest.raises(Refused):
            await service.blob(IMAGE, one.blob, lambda nbytes: None)  # three of the four
        with pytest.raises(Refused):
            await service.blob(IMAGE, one.blob, lambda nbytes: None)  # at once
        assert one.pauses.seconds == [60, 60]
        assert await service.blob(IMAGE, one.blob, lambda nbytes: None) is False
        fake.fail(one.digest, status=503, headers={"Retry-After": "60"}, times=1)
        assert await service.blob(IMAGE, one.blob, lambda nbytes: None) is False
    assert one.pauses.seconds == [60, 60, 60]


@pytest.mark.parametrize(
    ("status", "headers"),
    [(503, {}), (503, {"Retry-After": "soon"}), (503, {"Retry-After": "3600"}), (404, {"Retry-After": "1"})],
    ids=["says-nothing", "nonsense", "an-hour", "no-outage"],
)
async def test_what_is_not_waited_for(fake: FakeUpstream, status: int, headers: dict[str, str]) -> None:
    one = Asking(fake)
    fake.fail(one.digest, status=status, headers=headers)
    with pytest.raises(Refused, match=str(status)):
        await one.ask()
    assert one.pauses.seconds == []


async def test_a_mirror_that_restarts_is_waited_for(fake: FakeUpstream) -> None:
    one = Asking(fake)
    fake.fault(one.digest, drop="fin", times=2)
    fake.fault(one.digest, drop="rst", times=3, skip=2)
    assert await one.ask() is False
    assert one.received == SIZE
    assert len(one.pauses.seconds) == 2, "each time the library asks twice"


async def test_a_mirror_that_is_gone(fake: FakeUpstream) -> None:
    one = Asking(fake)
    await fake.stop()
    with pytest.raises(Unreachable, match=f"{fake.url} does not answer any more"):
        await one.ask()
    assert len(one.pauses.seconds) == CONNECT_TRIES - 1
    async with Service(fake.url, sleep=one.pauses) as service:
        with pytest.raises(Unreachable, match="does not answer: "):
            await service.reach()
        with pytest.raises(Unreachable, match="does not answer: "):
            await service.token()
    assert len(one.pauses.seconds) == CONNECT_TRIES - 1, "those ask once"


# ---- manifests ----


async def test_a_manifest(fake: FakeUpstream) -> None:
    image = fake.add_image("team/app", "1")
    fake.fault("manifests", headers=MISS)
    fake.fault("manifests", cut_after=10, times=2)
    async with Service(fake.url) as service:
        found = await service.manifest(IMAGE, Tag("1"))
    assert (found.manifest.raw, str(found.manifest.descriptor.digest)) == (image.raw, image.digest)
    assert (found.hit, found.warning) == (False, None)
    assert "application/vnd.oci.image.index.v1+json" in fake.requests("GET")[0].headers["Accept"]


async def test_a_warning(fake: FakeUpstream) -> None:
    fake.add_image("team/app", "1")
    warning = '299 - "the upstream is down"'
    fake.fault("manifests", headers=HIT | {"Warning": warning})
    async with Service(fake.url) as service:
        found = await service.manifest(IMAGE, Tag("1"))
    assert (found.hit, found.warning) == (True, "the upstream is down")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"headers": {}}, "is no mirror: its answers have no Cache-Status"),
        ({"headers": {"Cache-Status": "nginx; hit"}}, "is no mirror"),
        ({"headers": MISS, "replace": b"text"}, "cannot be read"),
        ({"headers": MISS, "cut_after": 10}, "broke off"),
        ({"headers": MISS, "replace": bytes(200)}, "more than 100 bytes"),
    ],
    ids=["no-mirror", "another-cache", "no-manifest", "broken", "large"],
)
async def test_what_is_no_manifest(
    fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("mirror.prefetch.client.LARGEST_MANIFEST", 100)
    fake.add_manifest("team/app", b'{"mediaType": "application/vnd.oci.image.manifest.v1+json"}', "1")
    fake.fault("manifests", **fault)
    async with Service(fake.url) as service:
        with pytest.raises(Broken, match=said):
            await service.manifest(IMAGE, Tag("1"))


async def test_a_manifest_of_another_digest(fake: FakeUpstream) -> None:
    image = fake.add_image("team/app", "1")
    fake.fault("manifests", headers=MISS, replace=image.raw + b" ")
    async with Service(fake.url) as service:
        with pytest.raises(Broken, match="has another digest"):
            await service.manifest(IMAGE, parse_digest(image.digest))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"errors": [{"code": "DENIED", "message": "not \\u001b[31m you"}]}', "403 DENIED: not ?[31m you"),
        (b'{"errors": [{"code": "DENIED"}]}', "403 DENIED"),
        (b'{"errors": []}', "403 Forbidden"),
        (b"<html>\x1b[31m", "403 Forbidden"),
    ],
    ids=["message", "code", "none", "page"],
)
async def test_what_is_said_of_a_refusal_steers_no_terminal(fake: FakeUpstream, body: bytes, said: str) -> None:
    fake.fail("manifests", status=403, body=body)
    async with Service(fake.url) as service:
        with pytest.raises(Refused) as refused:
            await service.manifest(IMAGE, Tag("1"))
    assert (refused.value.status, str(refused.value)) == (403, said)


async def test_a_login_is_sent_from_the_first_request_on(fake: FakeUpstream) -> None:
    fake.auth, fake.users = "basic", {"us": "secret"}
    async with Service(fake.url, login=Login(user="us", password="secret")) as service:
        await service.reach()
    assert [request.status for request in fake.log] == [200]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"<html>"])
async def test_a_token_that_is_none(fake: FakeUpstream, body: bytes) -> None:
    fake.fault("/token", status=200, body=body)
    async with Service(fake.url) as service:
        with pytest.raises(Refused, match="is no token"):
            await service.token()


# ---- certificates ----


def certificate(authority: trustme.CA) -> tuple[str, ssl.SSLContext]:
    issued = authority.issue_cert("mirror.example")  # not the address it is asked at
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(context)
    return "".join(blob.bytes().decode() for blob in issued.cert_chain_pems), context


async def test_the_configured_certificate_is_taken_and_no_other(tmp_path: Path) -> None:
    authority = trustme.CA()
    pem, context = certificate(authority)
    other, _ = certificate(authority)
    async with FakeUpstream(ssl=context) as fake:
        async with Service(fake.url, tls=fingerprint(pem)) as service:
            await service.reach()
        wrong: list[tuple[Trust, str]] = [
            (fingerprint(other), "another certificate than its configuration"),
            (True, "is not trusted .*; give its authority by --ca-file"),
        ]
        for tls, said in wrong:
            async with Service(fake.url, tls=tls) as service:
                with pytest.raises(Unreachable, match=said):
                    await service.reach()


@pytest.mark.parametrize("text", ["", "text", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate(text: str) -> None:
    with pytest.raises(ValueError):
        fingerprint(text)
