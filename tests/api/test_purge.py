"""Purging: what was pulled through is deleted from the cache, and fetched anew by the next pull."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fake_upstream import FakeUpstream, Gate, Image
from tests.harness import Mirror, make_config, mirrors
from tests.images import NAME, blob_path, cached, manifest_path, pull_and_keep, until
from tests.pushed import Made, delete, has_blob, kept, push, served, unknown

A = "local/a"
ALIAS = "other/team/app"


@pytest.fixture
async def two(root: Path, hub: FakeUpstream) -> AsyncIterator[list[Mirror]]:
    """Two workers on one root, with one hub behind two upstreams."""
    upstreams = {"up": {"url": hub.url}, "other": {"url": hub.url}}
    async with mirrors(make_config(root, upstreams), 2) as started:
        yield started


async def in_memory(two: list[Mirror], root: Path, image: Image, name: str = f"up/{NAME}") -> None:
    """Pull an image through every worker."""
    for worker in two:
        await pull_and_keep(worker, root, image, name=name)


def made_of(image: Image) -> Made:
    return Made(image.raw, image.media_type, image.blobs)


async def asks_again(two: list[Mirror], hub: FakeUpstream, path: str, digest: str, body: bytes) -> None:
    """Make sure that the next pull asks the upstream for the content, and those after it do not."""
    hub.clear_log()
    answer = await two[1].get(path)
    assert (answer.status, answer.body) == (200, body)
    assert hub.count("GET", digest) == 1
    assert hub.bytes_sent(digest) == len(body)
    for worker in two:
        assert (await worker.get(path)).body == body
    assert hub.count("GET", digest) == 1


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_a_manifest_is_fetched_anew(two: list[Mirror], hub: FakeUpstream, root: Path, by: str) -> None:
    image = hub.add_image(NAME, "v1")
    await in_memory(two, root, image)
    hub.clear_log()
    await in_memory(two, root, image)
    assert hub.count("GET") == 0, "without a purge nothing is fetched"
    answer = await delete(two[0], manifest_path("v1" if by == "tag" else image.digest))
    assert (answer.status, answer.body) == (202, b"")
    assert hub.count() == 0, "the upstream's own is none of our business"
    assert image.digest.partition(":")[2] not in cached(root)
    await asks_again(two, hub, manifest_path("v1"), image.digest, image.raw)
    hub.clear_log()
    for digest, data in image.blobs.items():
        assert (await two[0].get(blob_path(digest))).body == data
    assert hub.log == [], "blobs stay"


@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_every_worker_forgets_at_once(two: list[Mirror], hub: FakeUpstream, root: Path, by: str) -> None:
    image = hub.add_image(NAME, "v1")
    await in_memory(two, root, image)
    assert (await delete(two[0], manifest_path("v1" if by == "tag" else image.digest))).status == 202
    hub.fail("", status=404)
    for path in (manifest_path("v1"), manifest_path(image.digest)):
        await unknown(two, path)
        for worker in two:
            assert (await delete(worker, path)).code == "MANIFEST_UNKNOWN"


async def test_the_tags_on_a_purged_manifest_are_purged(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    image, other = hub.add_image(NAME, "v1"), hub.add_image(NAME, "v3")
    hub.set_tag(NAME, "v2", image.digest)
    for tag in ("v1", "v2", "v3"):
        assert (await two[1].get(manifest_path(tag))).status == 200
    assert (await delete(two[0], manifest_path(image.digest))).status == 202
    for tag in ("v1", "v2"):
        assert (await delete(two[0], manifest_path(tag))).code == "MANIFEST_UNKNOWN"
    hub.clear_log()
    assert (await two[1].get(manifest_path("v3"))).body == other.raw
    assert hub.log == []
    moves = json.loads((await two[0].get(f"/v2/up/{NAME}/_mirror/tags/history?tag=v1")).body)["history"]
    assert [move["digest"] for move in moves] == [None, image.digest]


async def test_a_purged_tag_follows_its_upstream_at_once(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    """However fresh it was: that is what it is purged for."""
    old = hub.add_image(NAME, "v1")
    await in_memory(two, root, old)
    new = hub.add_image(NAME, "v1")
    assert (await two[1].get(manifest_path("v1"))).body == old.raw
    assert (await delete(two[0], manifest_path("v1"))).status == 202
    for worker in two:
        assert (await worker.get(manifest_path("v1"))).body == new.raw


async def test_a_blob_is_fetched_anew(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, "v1")
    await in_memory(two, root, image)
    layer = image.layers[0]
    answer = await delete(two[0], blob_path(layer))
    assert (answer.status, answer.body) == (202, b"")
    assert layer.partition(":")[2] not in cached(root)
    for worker in two:
        assert (await delete(worker, blob_path(layer))).code == "BLOB_UNKNOWN"
    await asks_again(two, hub, blob_path(layer), layer, image.blobs[layer])
    hub.clear_log()
    assert (await two[0].get(blob_path(image.layers[1]))).status == 200
    assert hub.log == []


@pytest.mark.parametrize("private", [False, True])
async def test_nobody_has_a_right_to_what_was_purged(root: Path, private: bool) -> None:
    """Neither the repository it was purged from, nor others it was public or confirmed for."""
    async with FakeUpstream(auth="token", users={"me": "secret"}, private=[NAME] if private else []) as hub:
        secret = root.parent / "secret"
        secret.write_text("secret")
        secret.chmod(0o600)
        credentials = {"username": "me", "password_file": secret}
        upstreams = {"up": {"url": hub.url, "credentials": credentials}, "other": {"url": hub.url}}
        if private:
            upstreams["other"]["credentials"] = credentials
        else:
            del upstreams["up"]["credentials"]
        image = hub.add_image(NAME, "v1")
        layer = image.layers[0]
        async with mirrors(make_config(root, upstreams), 2) as two:
            for name in (f"up/{NAME}", ALIAS):
                await in_memory(two, root, image, name)
            await push(two[0], A, made_of(image), "v1")  # so that the bytes stay
            hub.fail(f"/v2/{NAME}/", status=404)
            for name in (f"up/{NAME}", ALIAS):
                assert (await two[1].get(blob_path(layer, name))).status == 200
                assert (await two[1].get(manifest_path(image.digest, name))).status == 200
            for path in (blob_path(layer), manifest_path(image.digest)):
                assert (await delete(two[0], path)).status == 202
            for name in (f"up/{NAME}", ALIAS, "other/never/pulled"):
                await unknown(two, blob_path(layer, name))
                await unknown(two, manifest_path(image.digest, name))
            await served(two, A, "v1", made_of(image))
            hub.clear_faults()
            for name in (f"up/{NAME}", ALIAS):  # and it can be pulled again
                assert (await two[1].get(blob_path(layer, name))).body == image.blobs[layer]
                assert (await two[1].get(manifest_path("v1", name))).body == image.raw


async def test_pushed_content_of_the_same_digest_stays(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, "v1")
    made = made_of(image)
    layer = image.layers[0]
    await in_memory(two, root, image)
    await push(two[0], A, made, "v1")
    for path in (manifest_path("v1"), blob_path(layer)):
        assert (await delete(two[0], path)).status == 202
    assert cached(root) == sorted(digest.partition(":")[2] for digest in image.blobs if digest != layer)
    assert kept(root) == {image.digest, *image.blobs}
    hub.clear_log()
    await served(two, A, "v1", made)
    for digest, data in image.blobs.items():
        await has_blob(two, A, data, digest)
    assert hub.log == []


async def test_pulled_content_of_a_deleted_digest_stays(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    """And the other way round."""
    image = hub.add_image(NAME, "v1")
    await in_memory(two, root, image)
    await push(two[0], A, made_of(image), "v1")
    assert (await delete(two[1], manifest_path(image.digest, A))).status == 202
    for digest in image.blobs:
        assert (await delete(two[1], blob_path(digest, A))).status == 202
    assert kept(root) == set()
    hub.clear_log()
    await in_memory(two, root, image)
    assert hub.log == []
    await unknown(two, manifest_path("v1", A))


async def test_what_was_pulled_while_only_pushed_bytes_were_here(
    two: list[Mirror], hub: FakeUpstream, root: Path
) -> None:
    """Once those are deleted it is fetched, not missed."""
    image = hub.add_image(NAME, "v1")
    await push(two[0], A, made_of(image), "v1")
    assert (await two[0].get(manifest_path("v1"))).body == image.raw
    for digest, data in image.blobs.items():
        assert (await two[0].get(blob_path(digest))).body == data
    assert (await delete(two[1], manifest_path(image.digest, A))).status == 202
    for digest in image.blobs:
        assert (await delete(two[1], blob_path(digest, A))).status == 202
    await in_memory(two, root, image)


async def test_what_is_arriving_is_not_here_yet(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    """Nobody is cut off; once it has arrived it can be purged."""
    image = hub.add_image(NAME, "v1", [200_000])
    layer = image.layers[0]
    await in_memory(two, root, image)
    assert (await delete(two[0], blob_path(layer))).status == 202
    gate = Gate()
    hub.fault(layer, gate=gate, gate_at=100_000, times=1)
    client = asyncio.create_task(two[0].get(blob_path(layer)))
    await gate.reached()
    assert (await delete(two[1], blob_path(layer))).code == "BLOB_UNKNOWN"
    gate.open()
    assert (await client).body == image.blobs[layer]
    await until(lambda: layer.partition(":")[2] in cached(root), "kept")
    assert (await delete(two[1], blob_path(layer))).status == 202
    assert layer.partition(":")[2] not in cached(root)


async def test_conditions_of_a_purge(two: list[Mirror], hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, "v1")
    await in_memory(two, root, image)
    for target in ("v1", image.digest):
        answer = await delete(two[0], manifest_path(target), If_Match='"sha256:other"')
        assert answer.status == 412
    hub.clear_log()
    await in_memory(two, root, image)
    assert hub.log == []
    assert (await delete(two[0], manifest_path("v1"), If_Match=f'"{image.digest}"')).status == 202
    assert image.digest.partition(":")[2] not in cached(root)
