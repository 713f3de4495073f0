"""Knowing a digest is not permission: every way to read private bytes through a repository that has no right.

``private`` asks for credentials, ``public`` is read without. ``evil`` is a configured upstream, read without
credentials, that says whatever an attacker (or a captive portal) likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Credentials
from tests.fake_upstream import CONFIG, INDEX, MANIFEST, FakeUpstream, Gate, Image, random_bytes
from tests.harness import Mirror, make_config, mirrors
from tests.raw_client import Client

MIB = 1024 * 1024
SECRET = "secret/app"
ME = f"private/{SECRET}"
PORTAL = b"<html>please log in</html>"


def blob_path(digest: str, repository: str) -> str:
    return f"/v2/{repository}/blobs/{digest}"


def manifest_path(reference: str, repository: str) -> str:
    return f"/v2/{repository}/manifests/{reference}"


def right(data: bytes | bytearray, digest: str) -> bool:
    return "sha256:" + hashlib.sha256(data).hexdigest() == digest


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


class World:
    """Three upstreams, and workers in front of them."""

    def __init__(self, root: Path, private: FakeUpstream, public: FakeUpstream, evil: FakeUpstream) -> None:
        self.root = root
        self.private = private
        self.public = public
        self.evil = evil
        (root / "password").write_text("secret\n")

    @contextlib.asynccontextmanager
    async def workers(self, count: int = 2) -> AsyncIterator[list[Mirror]]:
        credentials = Credentials(username="us", password_file=self.root / "password")
        config = make_config(
            self.root / "root",
            {
                "public": {"url": self.public.url, "names": ("public.example:5000",)},
                "private": {"url": self.private.url, "credentials": credentials, "names": ("private.example",)},
                "evil": {"url": self.evil.url},
            },
            local=("local/**",),
        )
        async with mirrors(config, count) as workers:
            yield workers

    def stored(self, digest: str) -> bool:
        return (self.root / "root" / "cache" / "sha256" / digest[7:]).exists()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with (
        FakeUpstream(auth="token", users={"us": "secret"}, anonymous=False) as private,
        FakeUpstream() as public,
        FakeUpstream() as evil,
    ):
        yield World(tmp_path, private, public, evil)


async def pull(worker: Mirror, image: Image, repository: str) -> None:
    assert (await worker.get(manifest_path(image.digest, repository))).body == image.raw
    for digest in image.blobs:
        assert right((await worker.get(blob_path(digest, repository))).body, digest)


# ---- honest upstreams ----

OTHERS = ("public/other", "private/other", "evil/other", "local/other")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_no_endpoint_gives_away_what_is_kept(world: World, method: str) -> None:
    """Neither kind by either endpoint, nor by a condition, a range, or a message that knows more than a 404."""
    image = world.private.add_image(SECRET, "v1", (1000, 200_000))
    absent = "sha256:" + "0" * 64
    async with world.workers() as workers:
        await pull(workers[0], image, ME)
        for worker in workers:
            for repository in OTHERS:
                for path in (blob_path, manifest_path):
                    unknown = await worker.ask(method, path(absent, repository))
                    for digest in (image.digest, image.config, image.layers[1]):
                        tried: list[dict[str, str]] = [
                            {},
                            {"If-None-Match": f'"{digest}"'},
                            {"If-None-Match": "*"},
                            {"Range": "bytes=0-9"},
                            {"Range": "bytes=999999999-"},
                        ]
                        for headers in tried:
                            answer = await worker.ask(method, path(digest, repository), headers=headers)
                            assert answer.status == unknown.status == 404, (repository, path, headers)
                            assert answer.body.replace(digest.encode(), absent.encode()) == unknown.body
                            said = {"Content-Length", "Content-Type", "Docker-Content-Digest", "ETag", "Cache-Status"}
                            assert {name: answer.headers.get(name) for name in said} == {
                                name: unknown.headers.get(name) for name in said
                            }
            # The twin: who has the right has all of it, by both endpoints where the content is both.
            assert (await worker.ask(method, blob_path(image.layers[1], ME))).status == 200
            assert (await worker.ask(method, blob_path(image.digest, ME))).status == 200
            assert (await worker.ask(method, manifest_path("v1", ME))).status == 200


async def test_no_endpoint_gives_away_what_is_in_flight(world: World) -> None:
    digest = world.private.add_random_blob(SECRET, 24 * MIB)
    gate = Gate()
    world.private.fault(
        lambda request: request.method == "GET" and digest in request.path and "Range" not in request.headers,
        gate=gate,
        gate_at=MIB,
    )
    async with world.workers() as workers:
        owner = Client(workers[0].url + blob_path(digest, ME))
        await owner.has(MIB // 2)
        window = {"Range": f"bytes={16 * MIB}-{20 * MIB - 1}"}
        owned = await workers[0].get(blob_path(digest, ME), headers=window)
        assert owned.body == world.private.blob(SECRET, digest)[16 * MIB : 20 * MIB]
        for worker in workers:
            for repository in OTHERS:
                for path in (blob_path, manifest_path):
                    for headers in ({}, window, {"Range": "bytes=0-9"}, {"If-None-Match": "*"}):
                        for method in ("GET", "HEAD"):
                            answer = await worker.ask(method, path(digest, repository), headers=headers)
                            assert answer.status == 404, (repository, path, headers, method)
        gate.open()
        assert (await owner.task).ended == "clean"
        assert right(owner.body, digest)


async def test_no_name_of_a_registry_leads_to_anothers_rights(world: World) -> None:
    """Prefix, ns, Host, case and a repeated first part: what counts is the repository they mean."""
    digest = world.private.add_random_blob(SECRET, 1000)
    world.public.add_random_blob(SECRET, 10)  # the same name elsewhere
    mine: list[tuple[str, dict[str, str]]] = [
        (f"/v2/{ME}/blobs/{digest}", {}),
        (f"/private/v2/{SECRET}/blobs/{digest}", {}),
        (f"/v2/{SECRET}/blobs/{digest}?ns=private", {}),
        (f"/v2/{SECRET}/blobs/{digest}?ns=PRIVATE.example", {}),
        (f"/v2/private.example/{SECRET}/blobs/{digest}", {}),
        (f"/v2/{SECRET}/blobs/{digest}", {"Host": "private.example"}),
    ]
    others: list[tuple[str, dict[str, str]]] = [
        (f"/v2/{SECRET}/blobs/{digest}", {}),
        (f"/public/v2/{SECRET}/blobs/{digest}", {}),
        (f"/public/v2/{ME}/blobs/{digest}", {}),
        (f"/v2/{ME}/blobs/{digest}?ns=public", {}),
        (f"/v2/{ME}/blobs/{digest}", {"Host": "public.example:5000"}),
        (f"/v2/public/{ME}/blobs/{digest}", {}),
        (f"/v2/local/{ME}/blobs/{digest}", {}),
        (f"/v2/{SECRET}/blobs/{digest}", {"Host": "public"}),
    ]
    async with world.workers(1) as (worker,):
        for _ in range(2):  # as a miss, as a hit
            for path, headers in others:
                assert (await worker.get(path, headers=headers)).status == 404, (path, headers)
            for path, headers in mine:
                answer = await worker.get(path, headers=headers)
                assert answer.status == 200, (path, headers)
                assert right(answer.body, digest)
        for path in (f"/v2/private%2Fsecret/app/blobs/{digest}", f"/v2/{ME}/../../public/x/blobs/{digest}"):
            assert (await worker.get(path)).status in (400, 404)


async def test_a_sparse_manifest_proves_nothing(world: World) -> None:
    """Anybody can push a manifest that names anybody's blobs; neither it nor its sizes open them."""
    layer = world.private.add_random_blob(SECRET, 5000)
    config = b"{}"
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": world.public.add_blob("me/mine", config), "size": 2},
            "layers": [{"mediaType": "application/octet-stream", "digest": layer, "size": 5000}],
        }
    ).encode()
    sparse = world.public.add_manifest("me/mine", raw, "v1")
    async with world.workers() as workers:
        assert right((await workers[0].get(blob_path(layer, ME))).body, layer)
        assert (await workers[0].get(manifest_path("v1", "public/me/mine"))).status == 200
        await until(lambda: world.public.count("HEAD", layer), "it asks the repository's own upstream")
        for worker in workers:
            for path in (blob_path, manifest_path):
                assert (await worker.get(path(layer, "public/me/mine"))).status == 404
                assert (await worker.head(path(layer, "public/me/mine"))).status == 404
            assert (await worker.get(manifest_path(sparse, "public/me/mine"))).status == 200


@pytest.mark.parametrize("written", [100_000, 200_000], ids=["a part", "all of it"])
async def test_what_a_dead_leader_left_belongs_to_whom_it_belonged(world: World, written: int) -> None:
    """A state on disk, from before a restart: its sources have a right, nobody else has."""
    from mirror.oci.names import parse_digest
    from mirror.store.ingest import Ingest
    from mirror.store.root import open_root
    from mirror.store.state import Phase

    data = random_bytes(200_000, 7)
    digest = world.private.add_blob(SECRET, data)

    def lead_and_die() -> None:
        ingest = Ingest(open_root(world.root / "root"), parse_digest(digest))
        ingest.begin()
        ingest.append_in_thread([data[:written]], 0)
        sources = (f"private|{SECRET}",)
        ingest.publish(phase=Phase.RUNNING, size=len(data), written=written, sources=sources, public=False)
        ingest.close()

    await asyncio.to_thread(lead_and_die)
    async with world.workers() as workers:
        for state in ("left", "stored"):
            for worker in workers:
                for repository in OTHERS:
                    assert (await worker.get(blob_path(digest, repository))).status == 404, (state, repository)
            assert right((await workers[0].get(blob_path(digest, ME))).body, digest)


async def test_bytes_an_anonymous_upstream_began_and_a_private_one_ended_are_not_public(world: World) -> None:
    data = random_bytes(2 * MIB, 3)
    digest = world.private.add_blob(SECRET, data)
    world.public.add_blob("copy/app", data)
    world.public.fault(f"GET /v2/copy/app/blobs/{digest}", cut_after=MIB, times=1)
    world.public.fault(lambda request: "Range" in request.headers, status=500)
    async with world.workers(1) as (worker,):
        first = await Client(worker.url + blob_path(digest, "public/copy/app")).task
        assert first.ended == "short"
        assert right((await worker.get(blob_path(digest, ME))).body, digest)
        world.public.clear_faults()
        world.public.remove_repository("copy/app")
        for repository in OTHERS:
            assert (await worker.get(blob_path(digest, repository))).status == 404


# ---- errors belong to a repository ----


async def test_a_client_gets_its_own_upstreams_error(world: World, joined: Callable[[], int]) -> None:
    """Both upstreams fail after the headers: neither client learns the other's repository, user or status."""
    data = random_bytes(50_000, 5)
    digest = world.private.add_blob(SECRET, data)
    world.public.add_blob("open/app", data)
    gate = Gate()
    world.public.fault(lambda request: "Range" not in request.headers, gate=gate, gate_at=1000, cut_after=2000)
    world.public.fault(lambda request: "Range" in request.headers, status=500)
    world.private.fault(f"GET /v2/{SECRET}/blobs/{digest}", status=403)
    async with world.workers(1) as (worker,):
        open_one = asyncio.create_task(worker.get(blob_path(digest, "public/open/app")))
        await gate.reached()
        secret_one = asyncio.create_task(worker.get(blob_path(digest, ME)))
        await until(lambda: joined() == 2, "it joins")
        gate.open()
        answer = await open_one
        assert answer.status == 503, answer
        for word in (b"secret", b"private", b"'us'"):
            assert word not in answer.body
        assert (await secret_one).status == 403


# ---- a configured upstream that lies ----


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/html"}], ids=["plain", "html"])
async def test_a_page_for_everything_confirms_nothing(world: World, headers: dict[str, str]) -> None:
    """A captive portal, or a proxy's login page, answers 200 to every HEAD. Its length is not the content's."""
    image = world.private.add_image(SECRET, "v1", (1000,))
    async with world.workers(1) as (worker,):
        await pull(worker, image, ME)
        world.evil.fault(status=200, body=PORTAL, headers=headers)
        for path in (blob_path(image.layers[0], "evil/x"), manifest_path(image.digest, "evil/x")):
            head, answer = await worker.head(path), await worker.get(path)
            assert head.status != 200, path
            assert answer.status != 200, path
        world.evil.clear_faults()
        assert (await worker.get(blob_path(image.layers[0], "evil/x"))).status == 404


async def test_what_a_tag_is_said_to_be_opens_no_blob(world: World) -> None:
    """A HEAD names any digest it likes; nothing has been received, and it was not asked for the blob."""
    layer = world.private.add_random_blob(SECRET, 5000)
    said = {"Docker-Content-Digest": layer, "Content-Type": MANIFEST}
    world.evil.fault("HEAD /v2/x/manifests/v1", status=200, headers=said)
    async with world.workers(1) as (worker,):
        assert right((await worker.get(blob_path(layer, ME))).body, layer)
        await worker.head(manifest_path("v1", "evil/x"))
        assert (await worker.get(blob_path(layer, "evil/x"))).status == 404
        assert (await worker.head(blob_path(layer, "evil/x"))).status == 404


async def test_a_tag_with_other_bytes_than_it_says_opens_no_manifest(world: World) -> None:
    image = world.private.add_image(SECRET, "v1", (1000,))
    world.evil.add_image("x", "v1", (10,))
    world.evil.fault("HEAD /v2/x/manifests/v1", docker_digest=None)
    world.evil.fault("GET /v2/x/manifests/v1", docker_digest=image.digest)
    async with world.workers(1) as (worker,):
        await pull(worker, image, ME)
        answer = await worker.get(manifest_path("v1", "evil/x"))
        assert (answer.status, answer.body == image.raw) == (502, False)
        assert (await worker.get(manifest_path(image.digest, "evil/x"))).status == 404


async def test_headers_of_an_anonymous_upstream_make_nothing_public(world: World, joined: Callable[[], int]) -> None:
    """It says it has the blob and sends nothing of it; the private one does. Who came meanwhile gets its own 404."""
    data = random_bytes(MIB, 5)
    digest = world.private.add_blob(SECRET, data)
    world.evil.add_blob("x", bytes(MIB), digest=digest)
    gate = Gate()
    world.evil.fault(digest, times=1, gate=gate, gate_at=0, cut_after=0)
    world.evil.fault(digest, skip=1, status=500)
    async with world.workers(1) as (worker,):
        liar = Client(worker.url + blob_path(digest, "evil/x"))
        await gate.reached()
        guest = Client(worker.url + blob_path(digest, "public/other"))
        await until(lambda: joined() == 2, "a guest comes")
        owner = Client(worker.url + blob_path(digest, ME))
        await until(lambda: joined() == 3, "and the owner")
        gate.open()
        for client in (liar, guest, owner):
            async with asyncio.timeout(20):
                await client.task
        assert right(owner.body, digest)
        assert (await worker.get(blob_path(digest, "public/other"))).status == 404, "it never had a right"
        assert data[:1000] not in bytes(guest.body)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_liar_does_not_say_what_anothers_manifest_is(world: World, when: str) -> None:
    """The body has no mediaType, as the specification allows; its shape then says more than a header."""
    config = {"mediaType": CONFIG, "digest": "sha256:" + "0" * 64, "size": 1}
    raw = json.dumps({"schemaVersion": 2, "config": config, "layers": []}).encode()
    digest = world.private.add_manifest(SECRET, raw, "v1", media_type=MANIFEST)
    world.evil.add_manifest("x", raw, "v1", media_type=INDEX)
    world.evil.fault("HEAD /v2/x/manifests/", status=405)
    async with world.workers() as workers:
        paths = [manifest_path("v1", ME), manifest_path(digest, "evil/x")]
        for path in paths if when == "after" else reversed(paths):
            assert (await workers[0].get(path)).body == raw
        for worker in workers:
            for reference in ("v1", digest):
                for method in ("GET", "HEAD"):
                    answer = await worker.ask(method, manifest_path(reference, ME))
                    assert answer.headers["Content-Type"] == MANIFEST, (reference, method)


async def test_an_upstream_that_trickles_keeps_nobody_from_anothers_manifest(world: World) -> None:
    """It says it has the manifest's digest as a blob, and never ends: whoever asks there holds the digest's lease."""
    image = world.public.add_image("open/app", "v1", (1000,))
    world.evil.add_blob("x", bytes(MIB), digest=image.digest)
    gate = Gate()
    world.evil.fault("/blobs/", gate=gate, gate_at=1000)
    async with world.workers() as workers:
        liar = Client(workers[0].url + blob_path(image.digest, "evil/x"))
        await gate.reached()
        asked = [
            asyncio.create_task(worker.get(manifest_path(reference, "public/open/app")))
            for worker in workers
            for reference in ("v1", image.digest)
        ]
        done, late = await asyncio.wait(asked, timeout=8)
        gate.open()
        await asyncio.gather(liar.task, *late)
        assert not late, "it was fetched long ago"
        assert {one.result().body for one in done} == {image.raw}


async def test_an_upstream_that_trickles_keeps_nobody_from_anothers_blob(world: World) -> None:
    """One transfer for all is no use when it does not move and another upstream has the very same bytes."""
    data = random_bytes(MIB, 5)
    digest = world.public.add_blob("open/app", data)
    world.evil.add_blob("x", bytes(MIB), digest=digest)
    gate = Gate()
    world.evil.fault("/blobs/", gate=gate, gate_at=1000)
    async with world.workers() as workers:
        liar = Client(workers[0].url + blob_path(digest, "evil/x"))
        await gate.reached()
        asked = [asyncio.create_task(worker.get(blob_path(digest, "public/open/app"))) for worker in workers]
        _, late = await asyncio.wait(asked, timeout=25)
        gate.open()
        await asyncio.gather(liar.task, *asked, return_exceptions=True)
        assert not late, "neither the content nor an error in the time that clients wait for headers"


# ---- our password ----


@pytest.mark.parametrize("lie", ["redirect", "realm", "cdn challenge", "userinfo", "token redirect"])
async def test_our_password_and_tokens_go_to_their_registry_alone(world: World, lie: str) -> None:
    """The registry itself sends us elsewhere; ``evil`` listens there and asks for credentials."""
    digest = world.private.add_random_blob(SECRET, 1000)
    world.evil.add_blob(SECRET, world.private.blob(SECRET, digest))
    elsewhere = f"{world.evil.url}/v2/{SECRET}/blobs/{digest}"
    match lie:
        case "redirect":
            world.private.fault("/blobs/", status=307, headers={"Location": elsewhere})
        case "userinfo":
            location = elsewhere.replace("://", "://us:secret@")
            world.private.fault("/blobs/", status=307, headers={"Location": location})
        case "cdn challenge":
            world.private.fault("/blobs/", status=307, headers={"Location": elsewhere})
            world.evil.fault("/blobs/", status=401, headers={"WWW-Authenticate": 'Basic realm="us"'})
        case "realm":
            world.private.realm = f"{world.evil.url}/token"
        case "token redirect":
            world.private.fault("/token", status=307, headers={"Location": f"{world.evil.url}/token?scope=x"})
    async with world.workers(1) as (worker,):
        await worker.get(manifest_path("v1", ME))  # gets the token, where one can be had, that goes with the rest
        await worker.get(blob_path(digest, ME))
        await worker.head(blob_path(digest, ME))
        assert world.private.log, "it was asked"
        assert [request.authorization for request in world.evil.log if request.authorization] == []
    # The twin: without the lie the very same way works, with the password where it belongs.
    world.private.clear_faults()
    world.private.realm = None
    world.evil.clear_faults()
    async with world.workers(1) as (worker,):
        assert right((await worker.get(blob_path(digest, ME))).body, digest)
        assert any(text.startswith("Basic ") for text in world.private.authorizations("registry"))


async def test_a_registry_that_named_a_wrong_realm_once_is_asked_again(world: World) -> None:
    """A page in between, or a mistake that is mended: it must not take a restart to be over."""
    digest = world.private.add_random_blob(SECRET, 1000)
    world.private.realm = f"{world.evil.url}/token"
    async with world.workers(1) as (worker,):
        assert (await worker.get(blob_path(digest, ME))).status == 503
        world.private.realm = None
        assert right((await worker.get(blob_path(digest, ME))).body, digest)
