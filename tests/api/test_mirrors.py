"""Mirrors of an upstream: asked first, in order, believed in little; and mirrors behind mirrors.

Several workers on one root stand for several processes: they share nothing but the disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Credentials
from tests.fake_upstream import FakeUpstream, Gate, Image, random_bytes
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    cached,
    config_for,
    get_image,
    ingesting,
    kept,
    manifest_path,
    pull,
    requests,
    until,
)
from tests.raw_client import Client
from tests.relay import Relay

KIB = 1024
MIB = 1024 * KIB
SMALL = 50 * KIB  # all of it is withheld until it is known to be right
PORTAL = b"<html>please log in</html>"
QUICK = {"headers": "2s"}


@pytest.fixture
async def near() -> AsyncIterator[FakeUpstream]:
    """Run the first mirror."""
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def far() -> AsyncIterator[FakeUpstream]:
    """Run the second mirror."""
    async with FakeUpstream() as fake:
        yield fake


def behind(*fakes: FakeUpstream, **each: Any) -> list[dict[str, Any]]:
    return [{"url": fake.url, **each} for fake in fakes]


def copy(image: Image, *fakes: FakeUpstream, repo: str = NAME) -> None:
    """Let others have an image as well, under the same tag."""
    for fake in fakes:
        fake.add_manifest(repo, image.raw, image.tag)
        for data in image.blobs.values():
            fake.add_blob(repo, data)


def account(tmp_path: Path, name: str) -> Credentials:
    (tmp_path / name).write_text(f"password-of-{name}")
    return Credentials(username=name, password_file=tmp_path / name)


def right(data: bytes | bytearray, digest: str) -> bool:
    return "sha256:" + hashlib.sha256(data).hexdigest() == digest


def wrong(size: int) -> bytes:
    return random_bytes(size, seed=99)


# ---- the order ----


async def test_content_by_digest_comes_from_the_first_mirror_and_tags_from_the_registry(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, far: FakeUpstream
) -> None:
    image = hub.add_image(NAME, "v1")
    copy(image, near, far)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near, far)), 4) as workers:
        await asyncio.gather(*(pull(worker, image) for worker in workers * 3))
        await kept(root, *image.blobs)
    assert requests(hub) == ["HEAD manifests/v1"]
    assert sorted(requests(near)) == sorted([f"GET manifests/{image.digest}", *(f"GET blobs/{d}" for d in image.blobs)])
    assert requests(far) == []


async def test_a_mirror_that_lacks_it_is_followed_by_the_next_and_the_registry_is_last(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, far: FakeUpstream
) -> None:
    image = hub.add_image(NAME, "v1")
    far.add_manifest(NAME, image.raw)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near, far))) as worker:
        assert (await worker.get(manifest_path(image.digest))).body == image.raw
        assert (await worker.get(blob_path(image.config))).body == image.blobs[image.config]
        head = await worker.head(blob_path(image.layers[0]))
        assert (head.status, head.headers["Content-Length"]) == (200, "1000")
        absent = await worker.get(blob_path("sha256:" + "0" * 64))
    assert (absent.status, absent.code) == (404, "BLOB_UNKNOWN")
    blobs = [f"GET blobs/{image.config}", f"HEAD blobs/{image.layers[0]}", f"GET blobs/sha256:{'0' * 64}"]
    assert requests(near) == requests(far) == [f"GET manifests/{image.digest}", *blobs]
    assert requests(hub) == blobs


# ---- whatever a mirror does ----

FAILURES: dict[str, Callable[[FakeUpstream, str], Any]] = {
    "401": lambda fake, part: fake.fail(part, status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
    "403": lambda fake, part: fake.fail(part, status=403),
    "404": lambda fake, part: fake.fail(part, status=404),
    "429": lambda fake, part: fake.fail(part, status=429, headers={"Retry-After": "100"}),
    "500": lambda fake, part: fake.fail(part, status=500),
    "508": lambda fake, part: fake.fail(part, status=508),
    "418": lambda fake, part: fake.fail(part, status=418),
    "redirect-to-nowhere": lambda fake, part: fake.fail(part, status=302, headers={"Location": "ftp://nowhere"}),
    "hangs": lambda fake, part: fake.fault(part, hang_headers=True),
    "hangs-up": lambda fake, part: fake.fault(part, drop="rst"),
    "portal": lambda fake, part: fake.fail(part, status=200, headers={"Content-Type": "text/html"}, body=PORTAL),
    "nothing": lambda fake, part: fake.fault(part, replace=b""),
    "wrong-bytes": lambda fake, part: fake.fault(part, replace=wrong(SMALL)),
    "longer": lambda fake, part: fake.fault(part, replace=wrong(SMALL + 1)),
    "breaks-off-at-once": lambda fake, part: fake.fault(part, cut_after=0, cut="rst"),
    "breaks-off": lambda fake, part: fake.fault(part, cut_after=100),
    "lies-of-its-length": lambda fake, part: fake.fault(part, length=SMALL + 50),
    "no-length-and-short": lambda fake, part: fake.fault(part, replace=wrong(100), framing="close"),
}
REPEATS = {
    # by the HTTP client itself, when a connection ends before an answer
    "blob-hangs-up": (2, 1),
    "manifest-hangs-up": (2, 1),
    # the rest, which nobody has; the whole, which is shorter than what began; the whole anew
    "blob-lies-of-its-length": (2, 3),
}
"""How often the mirror and the registry are asked, where that is not once."""


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("kind", ["blob", "manifest"])
async def test_whatever_a_mirror_does_the_clients_get_the_right_bytes(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, failure: str, kind: str
) -> None:
    """One transfer from the registry for all clients of all workers; what was wrong is nowhere."""
    image = hub.add_image(NAME, None, (SMALL,))
    copy(image, near)
    digest = image.layers[0] if kind == "blob" else image.digest
    path, data = (blob_path(digest), image.blobs[digest]) if kind == "blob" else (manifest_path(digest), image.raw)
    FAILURES[failure](near, digest)
    limits = {"timeouts": QUICK} if failure == "hangs" else {}
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near), **limits), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(path) for n in range(12)))
        assert [(answer.status, answer.body == data) for answer in answers] == [(200, True)] * 12, answers
        await kept(root, digest)
        assert (near.count("GET", digest), hub.count("GET", digest)) == REPEATS.get(f"{kind}-{failure}", (1, 1))
        assert cached(root) == [digest.partition(":")[2]]
        await until(lambda: not ingesting(root), "nothing is left on its way")


async def test_a_mirror_that_is_not_there(tmp_path: Path, hub: FakeUpstream, near: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    await near.stop()
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near, resolve=True)), 4) as workers:
        await asyncio.gather(*(pull(worker, image) for worker in workers))
    assert sorted(requests(hub)) == sorted(
        ["HEAD manifests/v1", f"GET manifests/{image.digest}", *(f"GET blobs/{digest}" for digest in image.blobs)]
    )


async def test_a_dead_mirror_costs_one_time_out_of_all_workers(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    near.fault("", hang_headers=True)
    digests = [hub.add_random_blob(NAME, 1000) for _ in range(8)]
    config = config_for(tmp_path, hub, mirrors=behind(near), timeouts=QUICK, breaker_window="60s")
    async with mirrors(config, 4) as workers:
        assert (await workers[0].get(blob_path(digests[0]))).status == 200
        asked = near.count()
        for n, digest in enumerate(digests):
            assert right((await workers[n % 4].get(blob_path(digest))).body, digest)
    assert near.count() == asked == 1


async def test_a_mirror_that_limits_our_rate_is_not_waited_for(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    digest = hub.add_random_blob(NAME, 1000)
    near.fail("", status=429, headers={"Retry-After": "3"})
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near))) as worker:
        assert (await worker.get(blob_path(digest))).status == 200
    assert hub.log[0].at - near.log[0].at < 2.5  # it would be three seconds and more


async def test_a_mirror_that_answers_508_is_not_taken_for_dead(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    digests = [hub.add_random_blob(NAME, 1000) for _ in range(12)]
    near.fail("", status=508)
    config = config_for(tmp_path, hub, mirrors=behind(near), breaker_window="60s")
    async with mirror(config) as worker:
        for digest in digests:
            assert (await worker.get(blob_path(digest))).status == 200
    assert near.count() == 12


# ---- bytes that break off, and wrong ones ----


async def test_the_next_goes_on_where_a_mirror_breaks_off(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, far: FakeUpstream
) -> None:
    data = random_bytes(4 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, data)
    far.add_blob(NAME, data)
    near.fault(digest, cut_after=MIB)
    far.fault(digest, cut_after=MIB, cut="rst")
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near, far)), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(blob_path(digest)) for n in range(12)))
        assert all(right(answer.body, digest) for answer in answers)
        await kept(root, digest)
    (first,), (second,), (last,) = near.requests("GET"), far.requests("GET"), hub.requests("GET")
    assert first.headers.get("Range") is None
    assert second.headers["Range"] == f"bytes={MIB}-"
    reached = int(last.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert MIB <= reached <= 2 * MIB  # a reset takes along what was not read yet
    assert last.sent == 4 * MIB - reached


async def test_while_the_registry_is_away_a_mirror_that_broke_off_is_asked_again(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    data = random_bytes(3 * MIB, 1)
    digest = near.add_blob(NAME, data)
    near.fault(digest, cut_after=MIB, times=2)
    await hub.stop()
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near))) as worker:
        answer = await worker.get(blob_path(digest))
        assert right(answer.body, digest)
    assert [request.headers.get("Range") for request in near.requests("GET")] == [
        None,
        f"bytes={MIB}-",
        f"bytes={2 * MIB}-",
    ]


async def test_wrong_bytes_reach_nobody_whole_and_are_not_asked_for_again(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    """Clients that were sent some of them see the connection reset; all who ask from then on get the right ones."""
    data = random_bytes(2 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, wrong(2 * MIB), digest=digest)
    gate = Gate()
    near.fault(digest, gate=gate, gate_at=MIB)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 4) as workers:
        early = [Client(worker.url + blob_path(digest)) for worker in workers]
        for client in early:
            await client.has(1000)
        gate.open()
        for client in early:
            await client.task
            assert client.ended == "reset"
            assert len(client.body) <= 2 * MIB - 64 * KIB
        answers = await asyncio.gather(*(workers[n % 4].get(blob_path(digest)) for n in range(12)))
        assert all(right(answer.body, digest) for answer in answers)
        await kept(root, digest)
    assert (near.count("GET"), hub.count("GET")) == (1, 1)


async def test_who_follows_another_process_reads_the_new_file_after_wrong_bytes(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    """Those who wait see the next attempt ask for headers first, and begin when it has some."""
    data = random_bytes(SMALL, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, wrong(SMALL), digest=digest)
    gate = Gate()
    hub.fault(digest, gate_headers=gate)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 4) as workers:
        clients = [asyncio.create_task(worker.get(blob_path(digest))) for worker in workers]
        await gate.reached()
        await asyncio.sleep(0.1)  # so that all have looked; a shorter time only makes this see less
        gate.open()
        for client in clients:
            assert right((await client).body, digest)


async def test_wrong_bytes_are_the_mirrors_though_a_range_came_from_the_registry_meanwhile(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    data = random_bytes(24 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, wrong(24 * MIB), digest=digest)
    gate = Gate()
    near.fault(digest, gate=gate, gate_at=MIB, ignore_range=True)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 2) as workers:
        early = Client(workers[0].url + blob_path(digest))
        await early.has(1000)
        first = 20 * MIB
        part = await workers[0].get(blob_path(digest), headers={"Range": f"bytes={first}-{first + 99}"})
        assert (part.status, part.body) == (206, data[first : first + 100])
        gate.open()
        await early.task
        assert early.ended == "reset"
        assert right((await workers[1].get(blob_path(digest))).body, digest)
        await kept(root, digest)


async def test_the_rest_of_right_bytes_survives_a_mirror_that_says_another_size(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, far: FakeUpstream
) -> None:
    data = random_bytes(2 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, data)
    far.add_blob(NAME, data + b"more", digest=digest)
    near.fault(digest, cut_after=MIB)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near, far))) as worker:
        assert right((await worker.get(blob_path(digest))).body, digest)
    assert [request.headers.get("Range") for request in hub.requests("GET")] == [f"bytes={MIB}-"]


async def test_a_wrong_manifest_is_not_asked_for_again(tmp_path: Path, hub: FakeUpstream, near: FakeUpstream) -> None:
    image = hub.add_image(NAME, None)
    near.add_manifest(NAME, image.raw + b" ", digest=image.digest)
    hub.fail(image.digest, status=500, times=2)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near))) as worker:
        for status in (503, 503, 200):
            assert (await worker.get(manifest_path(image.digest))).status == status
    assert near.count("GET", image.digest) == 1


# ---- ranges ahead of a download ----


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({}, id="given"),
        pytest.param({"ignore_range": True}, id="ignored"),
        pytest.param({"content_range": "bytes 0-99/1000"}, id="another"),
        pytest.param({"status": 404}, id="not-there"),
    ],
)
async def test_a_range_ahead_of_the_download_comes_from_whoever_gives_it(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, fault: dict[str, Any]
) -> None:
    data = random_bytes(24 * MIB, 1)
    digest = hub.add_blob(NAME, data)
    near.add_blob(NAME, data)
    gate = Gate()
    near.fault(lambda request: "Range" not in request.headers, gate=gate, gate_at=MIB)
    near.fault(lambda request: "Range" in request.headers, **fault)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near))) as worker:
        whole = Client(worker.url + blob_path(digest))
        await whole.has(1000)
        first = 20 * MIB
        part = await worker.get(blob_path(digest), headers={"Range": f"bytes={first}-{first + 99}"})
        assert (part.status, part.body) == (206, data[first : first + 100])
        gate.open()
        await whole.task
        assert right(whole.body, digest)
    assert [request.headers.get("Range") for request in hub.requests("GET")] == (
        [f"bytes={first}-{first + 99}"] if fault else []
    )


async def test_a_mirror_that_says_no_size(tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream) -> None:
    data = random_bytes(MIB, 1)
    digest = near.add_blob(NAME, data)
    hub.add_blob(NAME, data)
    near.fault(digest, framing="chunked")
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 2) as workers:
        answers = await asyncio.gather(*(worker.get(blob_path(digest)) for worker in workers))
        assert all(right(answer.body, digest) for answer in answers)
        await kept(root, digest)
    assert (near.count("GET"), hub.count()) == (1, 0)


# ---- tags ----


async def test_a_lagging_mirror_does_not_change_what_a_tag_points_at(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, clock: Clock
) -> None:
    old = hub.add_image(NAME, "v1")
    copy(old, near)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 4) as workers:
        await pull(workers[0], old)
        new = hub.add_image(NAME, "v1")
        for step in range(4):
            clock.advance(61)
            await pull(workers[step], new)
    assert hub.count("HEAD", "manifests/v1") == 5
    assert near.count(None, "manifests/v1") == 0
    assert near.count("GET", new.digest) == hub.count("GET", new.digest) == 1


async def test_a_mirror_that_resolves_says_what_tags_point_at(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    image = near.add_image(NAME, "v1")
    hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near, resolve=True)), 4) as workers:
        await asyncio.gather(*(pull(worker, image) for worker in workers))
        tags = await workers[0].get(f"/v2/up/{NAME}/tags/list")
        assert tags.status == 200
    assert requests(hub) == []
    assert requests(near).count("HEAD manifests/v1") == 1


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 404}, id="404"),
        pytest.param({"status": 500}, id="500"),
        pytest.param({"drop": "fin"}, id="hangs-up"),
        pytest.param({"status": 200, "body": PORTAL, "headers": {"Content-Type": "text/html"}}, id="portal"),
        pytest.param({"docker_digest": None}, id="no-digest"),
        pytest.param({"status": 405}, id="no-head"),
    ],
)
async def test_a_mirror_that_resolves_badly_is_followed_by_the_registry(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, fault: dict[str, Any]
) -> None:
    image = hub.add_image(NAME, "v1")
    near.add_image(NAME, "v1")
    near.fault("manifests/v1", **fault)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near, resolve=True))) as worker:
        await pull(worker, image)
    assert requests(near)[0] == "HEAD manifests/v1"
    assert hub.count("HEAD", "manifests/v1") == 1
    assert hub.count("GET", "manifests/v1") == 0


async def test_a_portal_is_no_manifest_of_a_registry_without_heads(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    image = hub.add_image(NAME, "v1")
    near.fail("", status=200, body=PORTAL, headers={"Content-Type": "text/html"})
    hub.fail("HEAD", status=405)
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near, resolve=True))) as worker:
        assert (await worker.get(manifest_path("v1"))).body == image.raw


async def test_lists_come_from_mirrors_that_resolve(tmp_path: Path, hub: FakeUpstream, near: FakeUpstream) -> None:
    """One that does not know the API of referrers says nothing of whether there are some."""
    image = hub.add_image(NAME, "v1")
    signature = hub.add_artifact(NAME, image, "application/x.signature")
    copy(image, near)
    near.referrers_api = False
    near.add_image(NAME, "only-there")
    async with mirror(config_for(tmp_path, hub, mirrors=behind(near, resolve=True))) as worker:
        tags = await worker.get(f"/v2/up/{NAME}/tags/list")
        referrers = await worker.get(f"/v2/up/{NAME}/referrers/{image.digest}")
    assert b"only-there" in tags.body
    assert signature.digest.encode() in referrers.body
    assert hub.count("GET", "tags/list") == 0
    assert near.count("GET", "referrers") == hub.count("GET", "referrers") == 1


# ---- rights ----

OTHER = "team/other"


async def test_what_a_mirror_gives_is_not_public(tmp_path: Path, hub: FakeUpstream, near: FakeUpstream) -> None:
    image = near.add_image(NAME, None)
    open_one = hub.add_image(NAME, None, (3000, 4000))
    copy(image, hub)
    config = make_config(
        tmp_path / "root", {"up": {"url": hub.url, "mirrors": behind(near)}, "else": {"url": far_away(hub)}}
    )
    async with mirror(config) as worker:
        for one in (image, open_one):
            await get_image(worker, one)
            await kept(tmp_path / "root", one.digest, *one.blobs)
        for path in (blob_path(image.layers[0], "else/x"), manifest_path(image.digest, "else/x")):
            assert (await worker.get(path)).status == 404
        for path in (blob_path(open_one.layers[0], "else/x"), manifest_path(open_one.digest, "else/x")):
            assert (await worker.get(path)).status == 200  # from the registry, without credentials


def far_away(hub: FakeUpstream) -> str:
    """Return a registry that has nothing."""
    return f"{hub.url}/nothing"


class Sloppy:
    """A mirror that has all the world's content, for every repository; or only says so."""

    def __init__(self, fake: FakeUpstream) -> None:
        self.fake = fake

    def gives(self, image: Image) -> None:
        copy(image, self.fake, repo=OTHER)

    def says(self, image: Image) -> None:
        """Answer for every digest with its size, and with as many bytes."""
        self.fake.add_manifest(OTHER, wrong(len(image.raw)), digest=image.digest)
        for digest, data in image.blobs.items():
            self.fake.add_blob(OTHER, wrong(len(data)), digest=digest)


def private(tmp_path: Path, hub: FakeUpstream, *fakes: FakeUpstream, **settings: Any) -> Any:
    """Return a configuration in which the hub wants a login, and the mirrors do not."""
    hub.auth, hub.users, hub.anonymous = "basic", {"hub": "password-of-hub"}, False
    return config_for(tmp_path, hub, mirrors=behind(*fakes), credentials=account(tmp_path, "hub"), **settings)


async def with_secret(worker: Mirror, root: Path, hub: FakeUpstream) -> Image:
    """Pull an image that only credentials opened."""
    image = hub.add_image(NAME, None, (1000, 200 * KIB))
    hub.add_manifest(OTHER, b"{}")
    await get_image(worker, image)
    await kept(root, image.digest, *image.blobs)
    return image


@pytest.mark.parametrize("head", ["answered", "refused"])
async def test_a_sloppy_mirror_opens_nothing_while_the_registry_answers(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, head: str
) -> None:
    async with mirrors(private(tmp_path, hub, near), 4) as workers:
        image = await with_secret(workers[0], root, hub)
        Sloppy(near).gives(image)
        near.clear_log()
        if head == "refused":
            hub.fail("HEAD", status=405)
        for worker in workers:
            for method in ("GET", "HEAD"):
                answer = await worker.ask(method, manifest_path(image.digest, f"up/{OTHER}"))
                assert answer.status == 404
                answer = await worker.ask(method, blob_path(image.layers[1], f"up/{OTHER}"))
                assert answer.status == (404 if head == "answered" else 502)
        assert near.count() == 0


@pytest.mark.parametrize("registry", ["500", "not-there", "429"])
async def test_while_the_registry_is_away_a_mirror_has_to_show_what_it_says_it_has(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream, registry: str
) -> None:
    async with mirrors(private(tmp_path, hub, near), 4) as workers:
        image = await with_secret(workers[0], root, hub)
        sloppy = Sloppy(near)
        sloppy.says(image)
        if registry == "not-there":
            await hub.stop()
        else:
            hub.fail("", status=int(registry))
        for worker in workers:
            for path in (manifest_path(image.digest, f"up/{OTHER}"), blob_path(image.layers[1], f"up/{OTHER}")):
                assert (await worker.get(path)).status in (502, 503)
    near.clear_log()
    sloppy.gives(image)
    async with mirrors(private(tmp_path, hub, near), 4) as workers:
        await get_image(workers[0], image, f"up/{OTHER}")
        assert all(near.count("GET", digest) for digest in (image.digest, *image.blobs))
        for worker in workers:
            await get_image(worker, image, f"up/{OTHER}")
        # Once, or by a client and in the background as well; never again once it is known.
        assert near.count("GET") <= 2 * (1 + len(image.blobs))


async def test_while_the_registry_is_away_a_mirror_shows_what_is_still_arriving(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    """Content that one repository is given already is only for another when the mirror gives all of it to that, too."""
    data = random_bytes(2 * MIB, 1)
    digest = near.add_blob(NAME, data)
    hub.fail("", status=500)
    gate = Gate()
    near.fault(NAME, gate=gate, gate_at=MIB)
    async with mirrors(config_for(tmp_path, hub, mirrors=behind(near)), 2) as workers:
        first = Client(workers[0].url + blob_path(digest))
        await first.has(1000)
        near.add_blob(OTHER, wrong(2 * MIB), digest=digest)
        refused = asyncio.create_task(workers[1].get(blob_path(digest, f"up/{OTHER}")))
        await until(lambda: near.count("GET", OTHER), "it was asked to show it")
        assert (await refused).status == 503
        near.add_blob("team/third", data)
        given = await workers[0].get(blob_path(digest, "up/team/third"), headers={"Range": "bytes=0-99"})
        assert (given.status, given.body) == (206, data[:100])
        gate.open()
        await first.task
        assert right(first.body, digest)


async def test_a_refusal_is_not_overruled_by_a_mirror(
    tmp_path: Path, root: Path, hub: FakeUpstream, near: FakeUpstream
) -> None:
    async with mirror(private(tmp_path, hub, near)) as worker:
        image = await with_secret(worker, root, hub)
        Sloppy(near).gives(image)
        hub.fail(OTHER, status=403)
        near.clear_log()
        for path in (manifest_path(image.digest, f"up/{OTHER}"), blob_path(image.layers[1], f"up/{OTHER}")):
            answer = await worker.get(path)
            assert (answer.status, answer.code) == (403, "DENIED")
        assert near.count() == 0


# ---- credentials ----


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_each_is_asked_as_what_is_configured_for_it(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, far: FakeUpstream, auth: str
) -> None:
    image = hub.add_image(NAME, "v1", (1000, 2000))
    for fake, name in ((hub, "hub"), (near, "near")):
        fake.auth, fake.anonymous, fake.users = auth, False, {name: f"password-of-{name}"}
    copy(image, near)
    near.fail(image.layers[1], status=500)
    config = config_for(
        tmp_path,
        hub,
        credentials=account(tmp_path, "hub"),
        mirrors=[{"url": far.url}, {"url": near.url, "credentials": account(tmp_path, "near")}],
    )
    async with mirrors(config, 2) as workers:
        await asyncio.gather(*(pull(worker, image) for worker in workers))
    assert near.count("GET", image.layers[0])
    assert hub.count("GET", image.layers[1])
    assert hub.count("GET", image.layers[0]) == 0
    theirs, ours = ({r.authorization for r in fake.log if r.authorization} for fake in (near, hub))
    assert theirs
    assert ours
    assert not theirs & ours
    assert not any(request.authorization for request in far.log)
    assert far.count("GET", image.layers[0])


@pytest.mark.parametrize("auth", ["basic", "token"])
async def test_a_mirror_that_wants_a_login_gets_none(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, auth: str
) -> None:
    image = hub.add_image(NAME, "v1")
    hub.auth, hub.users = "basic", {"hub": "password-of-hub"}
    hub.anonymous = False
    near.auth, near.anonymous = auth, False
    copy(image, near)
    config = config_for(tmp_path, hub, credentials=account(tmp_path, "hub"), mirrors=behind(near))
    async with mirrors(config, 2) as workers:
        await asyncio.gather(*(pull(worker, image) for worker in workers))
    assert near.count("GET", "/blobs/")
    assert not any(request.authorization for request in near.log)


# ---- ns ----


@pytest.mark.parametrize("send_ns", [True, False])
async def test_ns_goes_with_every_request_to_a_mirror(
    tmp_path: Path, hub: FakeUpstream, near: FakeUpstream, send_ns: bool
) -> None:
    image = hub.add_image(NAME, "v1")
    copy(image, near)
    near.page_size = 2
    for n in range(5):
        near.add_artifact(NAME, image, "application/x.signature", data=b"%d" % n, tag=f"t{n}")
    name = "registry.example:5000"
    entries = behind(near, resolve=True, **({} if send_ns else {"send_ns": False}))
    config = make_config(tmp_path / "root", {name: {"url": hub.url, "mirrors": entries}})
    async with mirror(config) as worker:
        await pull(worker, image, f"{name}/{NAME}")
        assert (await worker.head(blob_path("sha256:" + "0" * 64, f"{name}/{NAME}"))).status == 404
        listed = await worker.get(f"/v2/{name}/{NAME}/referrers/{image.digest}")
        assert listed.body.count(b"sha256:") == 5
        assert (await worker.get(f"/v2/{name}/{NAME}/tags/list")).body.count(b'"t') >= 5
    kinds = {tuple(line.split("/")[0].split()) for line in requests(near)}
    assert kinds >= {("HEAD", "manifests"), ("GET", "manifests"), ("GET", "blobs"), ("HEAD", "blobs")}
    assert all(request.query.get("ns") == (name if send_ns else None) for request in near.log)
    assert hub.count("HEAD") + hub.count("GET") > 0
    assert all("ns" not in request.query for request in hub.log)
    pages = [request for request in near.requests("GET", "referrers") if "mark" in request.query]
    suffix = "&ns=registry.example%3A5000" if send_ns else ""
    assert pages
    assert all(request.raw_path.endswith(f"&x=a%2Bb%2Fc{suffix}") for request in pages)


# ---- mirrors behind mirrors ----


def front(root: Path, hub: FakeUpstream | str, *behind: str, **settings: Any) -> Any:
    """Return the configuration of one whose upstream ``up`` is the hub, with mirrors before it."""
    url = hub if isinstance(hub, str) else hub.url
    return make_config(root, {"up": {"url": url, "mirrors": [{"url": one} for one in behind]} | settings})


async def test_two_mirrors_in_a_row(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1", (1000, MIB))
    hub.auth, hub.users, hub.anonymous = "token", {"hub": "password-of-hub"}, False
    ours = account(tmp_path, "hub")
    async with mirrors(front(tmp_path / "a", hub, credentials=ours), 4) as first:
        config = front(tmp_path / "b", hub, *(worker.url for worker in first[:1]), credentials=ours)
        async with mirrors(config, 4) as second:
            await asyncio.gather(*(pull(worker, image) for worker in second * 3))
    assert hub.bytes_sent(image.layers[1]) == MIB
    lines = [line for line in first[0].lines if line["method"] == "GET"]
    assert all(line["path"].endswith("?ns=up") for line in lines)
    assert len(lines) == 1 + len(image.blobs)
    ways = {request.method: request.headers["Via"].split(", ") for request in hub.log if "/manifests/" in request.path}
    assert len(ways["HEAD"]) == 1  # tags are asked of the registry itself
    assert len(ways["GET"]) == 2
    assert ways["GET"][0] == ways["HEAD"][0] != ways["GET"][1]
    assert all(name.startswith("1.1 oci-mirror-") for name in ways["GET"])


async def test_all_workers_of_a_service_have_one_name_and_others_another(tmp_path: Path, hub: FakeUpstream) -> None:
    digests = [hub.add_random_blob(NAME, 100) for _ in range(4)]
    for service in ("a", "b"):
        async with mirrors(front(tmp_path / service, hub), 2) as workers:
            for n, digest in enumerate(digests):
                await workers[n % 2].head(blob_path(digest))
    ways = [request.headers["Via"] for request in hub.log]
    assert len(set(ways[:4])) == len(set(ways[4:])) == 1
    assert len(set(ways)) == 2


async def test_a_login_for_the_first_mirror_does_not_go_further(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(front(tmp_path / "a", hub)) as first, mirror(front(tmp_path / "b", hub, first.url)) as second:
        for path in (manifest_path("v1"), blob_path(image.config)):
            login = {"Authorization": "Basic dXM6c2VjcmV0"}
            assert (await second.get(path, headers=login)).status in (200, 401)
        await pull(second, image)
    assert not any(request.authorization for request in hub.log)


async def test_via_of_one_request_does_not_go_with_the_next_on_its_connection(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    digests = [hub.add_random_blob(NAME, 100) for _ in range(3)]
    async with mirror(front(tmp_path / "a", hub)) as worker:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(worker.url.rpartition(":")[2]))
        for digest, received in zip(
            digests, ("Via: 1.0 fred\r\n", "", "Via: 1.1 ann\r\nVia: 1.1 bob\r\n"), strict=True
        ):
            writer.write(f"GET {blob_path(digest)} HTTP/1.1\r\nHost: x\r\n{received}\r\n".encode())
            assert b"Content-Length: 100\r\n" in await reader.readuntil(b"\r\n\r\n")
            assert right(await reader.readexactly(100), digest)
        writer.close()
        await writer.wait_closed()
    ways = [request.headers["Via"].rpartition(", ")[0] for request in hub.log]
    assert ways == ["1.0 fred", "", "1.1 ann, 1.1 bob"]


@pytest.mark.parametrize("received", [b"1.1 \xff\xfe", b"1.1 caf\xc3\xa9"], ids=["no-text", "not-ascii"])
async def test_a_via_that_cannot_be_sent_on_spoils_nothing(tmp_path: Path, hub: FakeUpstream, received: bytes) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(front(tmp_path / "a", hub)) as worker:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(worker.url.rpartition(":")[2]))
        path = manifest_path("v1").encode()
        writer.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nVia: " + received + b"\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(image.raw)
    assert {request.headers["Via"].count(",") for request in hub.log} == {0}  # our own name alone


async def test_an_endless_via_is_a_loop(tmp_path: Path, hub: FakeUpstream) -> None:
    hub.add_image(NAME, "v1")
    async with mirror(front(tmp_path / "a", hub)) as worker:
        answer = await worker.get(manifest_path("v1"), headers={"Via": ", ".join(["1.1 somebody"] * 200)})
        assert answer.status == 508
    assert hub.count() == 0


# ---- loops ----


async def test_an_upstream_that_is_this_mirror_itself(tmp_path: Path) -> None:
    async with Relay() as itself, mirrors(front(tmp_path / "a", itself.url, retries=2), 4) as workers:
        itself.lead_to(workers[0].url)
        began = time.monotonic()
        for path in (manifest_path("v1"), blob_path("sha256:" + "0" * 64), f"/v2/up/{NAME}/tags/list"):
            answer = await workers[1].get(path)
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert b"loop" in answer.body
        assert time.monotonic() - began < 15  # and not when the time limits end it
        lines = [line for line in workers[0].lines if line["status"] == 508]
        assert len(lines) == 3
        metrics = (await workers[2].get("/metrics")).body.decode()
    counted = [line for line in metrics.splitlines() if "requests_total" in line and 'status="508"' in line]
    assert sum(float(line.split()[-1]) for line in counted) == 3


async def test_a_request_that_comes_back_is_told_so(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, 100)
    async with mirrors(front(tmp_path / "a", hub), 2) as workers:
        await workers[0].get(blob_path(digest))
        own = hub.log[0].headers["Via"]
        answer = await workers[1].get(manifest_path("v1"), headers={"Via": f"1.0 fred, {own}, 1.1 other"})
        assert (answer.status, answer.code) == (508, "UNAVAILABLE")
        assert b"has come back to this mirror" in answer.body
    assert hub.count(None, "manifests") == 0


async def test_two_that_are_each_others_upstream(tmp_path: Path) -> None:
    async with (
        Relay() as to_first,
        Relay() as to_second,
        mirror(front(tmp_path / "a", to_second.url, retries=2)) as first,
        mirror(front(tmp_path / "b", to_first.url, retries=2)) as second,
    ):
        to_first.lead_to(first.url)
        to_second.lead_to(second.url)
        began = time.monotonic()
        for path in (manifest_path("v1"), blob_path("sha256:" + "0" * 64)):
            answer = await first.get(path)
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        assert time.monotonic() - began < 15
        assert {line["status"] for line in first.lines} == {503, 508}


async def test_two_that_are_each_others_mirror(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1", (1000, 2000))
    async with (
        Relay() as to_first,
        Relay() as to_second,
        mirror(front(tmp_path / "a", hub, to_second.url)) as first,
        mirror(front(tmp_path / "b", hub, to_first.url)) as second,
    ):
        to_first.lead_to(first.url)
        to_second.lead_to(second.url)
        await pull(first, image)
        await pull(second, image)
    assert hub.count("GET", "/blobs/") == len(image.blobs)
    assert [line["status"] for line in first.lines].count(508) == 1 + len(image.blobs)


async def test_two_that_wait_for_each_other_go_to_the_registry_in_time(tmp_path: Path, hub: FakeUpstream) -> None:
    digest = hub.add_random_blob(NAME, MIB)
    async with (
        Relay() as to_first,
        Relay() as to_second,
        mirror(front(tmp_path / "a", hub, to_second.url, timeouts=QUICK)) as first,
        mirror(front(tmp_path / "b", hub, to_first.url, timeouts=QUICK)) as second,
    ):
        to_first.lead_to(first.url)
        to_second.lead_to(second.url)
        for relay in (to_first, to_second):
            relay.open.clear()
        both = asyncio.gather(*(one.get(blob_path(digest)) for one in (first, second)))
        await until(lambda: to_first.connections and to_second.connections, "each has asked the other")
        for relay in (to_first, to_second):
            relay.open.set()
        began = time.monotonic()
        for answer in await both:
            assert right(answer.body, digest)
        assert time.monotonic() - began < 10
    assert 1 <= hub.count("GET", digest) <= 2
