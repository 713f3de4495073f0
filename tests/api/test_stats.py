"""What ``mirror stats`` says of a root, held against what clients did and what is on the disk."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Config
from mirror.metadata.survey import By, ImageRow, RepositoryRow, SourceRow
from mirror.registry.stats import Statistics
from mirror.wiring import build_stats
from tests.fake_upstream import FakeUpstream, Image, random_bytes
from tests.harness import make_config, mirror, mirrors
from tests.images import blob_path, kept, manifest_path, pull_and_keep
from tests.pushed import make_image, make_index, mount_blob, push

SHARED = random_bytes(50_000, 1)
DAY = 86_400


@pytest.fixture
async def hub() -> Any:
    async with FakeUpstream() as fake:
        yield fake


def config_of(tmp_path: Path, hub: FakeUpstream, **more: Any) -> Config:
    return make_config(tmp_path / "root", {"up": {"url": hub.url}, "other": {"url": hub.url}, **more})


async def read(config: Config, *, top: int = 10, by: By = "size", later: float = 0.0) -> Statistics:
    """Read the statistics. later: seconds from now that it is then."""
    service = await asyncio.to_thread(build_stats, config)
    clock = service._clock
    service._clock = lambda: clock() + later
    return await asyncio.to_thread(lambda: service.read(top=top, by=by))


def source(found: Statistics, name: str | None) -> SourceRow:
    return next(one for one in found.content.sources if one.source == name)


def repository(found: Statistics, name: str) -> RepositoryRow:
    return next(one for one in found.content.repositories if str(one.repository) == name)


def images(rows: Sequence[ImageRow]) -> list[tuple[str, tuple[str, ...], int]]:
    return [(str(one.repository), one.tags or one.before, one.pulls) for one in rows]


def on_disk(root: Path, folder: str) -> tuple[int, int]:
    """Return how many files there are, and bytes in them."""
    sizes = [entry.stat().st_size for entry in os.scandir(root / folder / "sha256")]
    return len(sizes), sum(sizes)


async def test_pulls_are_counted_as_clients_make_them(tmp_path: Path, hub: FakeUpstream) -> None:
    """containerd and docker: HEAD of the tag, GET by digest; podman: GET of the tag. Each is one pull, of one image."""
    parts = [hub.add_image("team/app", None), hub.add_image("team/app", None)]
    index = hub.add_index("team/app", "1", parts)
    single = hub.add_image("team/single", "v2")
    hub.add_image("team/moved", "3")
    config = config_of(tmp_path, hub)
    async with mirrors(config, 4) as workers:
        for worker in workers:  # every process counts some of it
            await worker.head(manifest_path("1", "up/team/app"))
            await worker.get(manifest_path(index.digest, "up/team/app"))
            await worker.get(manifest_path(parts[0].digest, "up/team/app"))
        await workers[0].get(manifest_path("1", "up/team/app"))
        for reference in ("1", parts[0].digest):  # what is public already, by another name
            await workers[0].get(manifest_path(reference, "other/team/app"))
        await workers[1].get(manifest_path("v2", "up/team/single"))
        await workers[2].get(manifest_path("3", "other/team/moved"))
        # none of these is a pull
        await workers[0].head(manifest_path(index.digest, "up/team/app"))
        await workers[0].get(manifest_path("1", "up/team/app"), headers={"If-None-Match": f'"{index.digest}"'})
        await workers[0].get(manifest_path("none", "up/team/app"))
        await workers[0].get(blob_path(single.layers[0], "up/team/single"))
        inner = make_image(b"a", config=b'{"one": 1}'), make_image(b"b", config=b'{"two": 2}')
        for one in inner:
            await push(workers[3], "local/app", one)
        ours = await push(workers[3], "local/app", make_index(*inner), "latest")
        for digest in (ours, inner[0].digest):
            await workers[3].get(manifest_path(digest, "local/app"))
    found = await read(config)
    assert sorted(images(found.content.images)) == [
        ("local/app", ("latest",), 1),
        ("other/team/app", ("1",), 1),
        ("other/team/moved", ("3",), 1),
        ("up/team/app", ("1",), 5),
        ("up/team/single", ("v2",), 1),
    ]
    assert found.content.images[0].pulls == 5
    assert [source(found, name).pulls for name in ("up", "other", None)] == [6, 2, 1]
    assert repository(found, "up/team/app").pulls == 5
    assert images((await read(config, top=1)).content.images) == [("up/team/app", ("1",), 5)]


async def test_hits_are_counted_in_requests_and_bytes_and_outlive_a_restart(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1", (10_000,))
    config = config_of(tmp_path, hub)
    layer = blob_path(image.layers[0], "up/team/app")
    async with mirror(config) as worker:
        await worker.get(layer)
        await kept(config.storage.root, image.layers[0])
        for _ in range(2):
            await worker.get(layer)
        await worker.get(blob_path("sha256:" + 64 * "9", "up/team/app"))  # an error is no answer with content
    async with mirror(config) as worker:
        await worker.get(layer)
    found = await read(config)
    for traffic in (source(found, "up").traffic, repository(found, "up/team/app").traffic):
        assert (traffic.hits, traffic.misses, traffic.hit_bytes, traffic.miss_bytes) == (3, 1, 30_000, 10_000)
    assert found.counted is not None  # the service's own counts began anew with it
    assert (found.counted.hits, found.counted.misses, found.counted.served_bytes) == (1, 0, 10_000)
    assert found.content.counted_since is not None
    assert found.content.counted_since < found.counted.started_at


async def test_content_is_counted_once_where_it_is_one(tmp_path: Path, hub: FakeUpstream) -> None:
    names = ("team/a", "team/b")
    both = {name: hub.add_image(name, "1", layers=[SHARED, name.encode()]) for name in names}
    config, root = config_of(tmp_path, hub), tmp_path / "root"
    ours = make_image(b"pushed")
    async with mirror(config) as worker:
        for name, image in both.items():
            await pull_and_keep(worker, root, image, name=f"up/{name}")
        await pull_and_keep(worker, root, both["team/a"], name="other/team/a")
        await push(worker, "local/app", ours, "1")
        assert (await mount_blob(worker, "local/app", both["team/a"].layers[0], "up/team/a")).status == 201
    found = await read(config)
    content = found.content
    files, size = await asyncio.to_thread(on_disk, root, "cache")
    assert (content.pulled.manifests + content.pulled.blobs, content.pulled.bytes) == (files, size)
    pushed_files, pushed_size = await asyncio.to_thread(on_disk, root, "blobs")
    assert (content.pushed.manifests + content.pushed.blobs, content.pushed.bytes) == (pushed_files, pushed_size)
    assert content.both_bytes == len(SHARED)

    def whole(image: Image) -> int:
        return len(image.raw) + sum(map(len, image.blobs.values()))

    for name, image in both.items():
        row = repository(found, f"up/{name}")
        assert (row.tags, row.amount.manifests, row.amount.blobs, row.amount.bytes) == (1, 1, 3, whole(image))
    up = source(found, "up")
    assert (up.repositories, up.tags, up.amount.manifests, up.amount.blobs) == (2, 2, 2, 5)
    assert up.amount.bytes == size  # the shared layer once
    assert source(found, "other").amount.bytes == whole(both["team/a"])
    local = source(found, None)
    assert (local.amount.manifests, local.amount.blobs, local.amount.bytes) == (1, 3, pushed_size)
    assert content.nobodys.bytes == 0


async def test_what_was_not_used_is_told_and_listed_first(tmp_path: Path, hub: FakeUpstream) -> None:
    config, root = config_of(tmp_path, hub), tmp_path / "root"
    old, big = hub.add_image("team/old", "1", (100,)), hub.add_image("team/big", "1", (90_000,))
    async with mirror(config) as worker:
        await pull_and_keep(worker, root, old, name="up/team/old")
    async with mirror(config) as worker:
        await pull_and_keep(worker, root, big, name="up/team/big")
        await worker.get(manifest_path("1", "up/team/big"))
    now = await read(config, by="age")
    assert [str(one.repository) for one in now.content.repositories] == ["up/team/old", "up/team/big"]
    orders: tuple[By, ...] = ("size", "pulls")
    for by in orders:
        first = (await read(config, by=by, top=1)).content.repositories
        assert [str(one.repository) for one in first] == ["up/team/big"]
    assert now.content.pulled.unused_bytes == 0
    row = repository(now, "up/team/old").amount
    assert row.oldest is not None
    assert row.newest is not None
    between = (row.newest - now.at) + 30 * DAY + 0.001
    later = await read(config, later=between)
    assert repository(later, "up/team/old").amount.unused_bytes == row.bytes
    assert later.content.pulled.unused_bytes == row.bytes
    assert (await read(config, later=31 * DAY)).content.pulled.unused_bytes == now.content.pulled.bytes


async def test_what_is_under_way_and_what_upstreams_said(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1")
    hub.pulls = {None: 100}
    rest = {"url": "http://127.0.0.1:1", "breaker_window": 3600}
    config = config_of(tmp_path, hub, **{"rest.test": rest})
    layer = hub.add_random_blob("team/app", 500_000)
    hub.fault(f"GET /v2/team/app/blobs/{layer}", hang_after=200_000)
    async with mirror(config) as worker:
        await worker.get(manifest_path(image.digest, "up/team/app"))
        for _ in range(3):
            await worker.get(manifest_path("1", "rest.test/x/y"))
        begun = await worker.ask("POST", "/v2/local/app/blobs/uploads/")
        await worker.ask("PATCH", begun.headers["Location"].removeprefix(worker.url), data=b"x" * 12_345)
        async with worker.session.get(worker.url + blob_path(layer, "up/team/app")) as response:
            await response.content.readexactly(1000)
            found = await read(config)  # while it is served
            response.close()
    assert (found.uploads.count, found.uploads.bytes) == (1, 12_345)
    assert found.downloads.count == 1
    assert 0 < found.downloads.bytes <= 500_000
    conditions = {one.upstream: one.registry for one in found.upstreams}
    assert [(one.name, one.limit, one.remaining) for one in conditions["up"].accounts] == [(None, 100, 99)]
    resting = conditions["rest.test"].resting
    assert resting is not None
    assert resting.wait > 3000
    assert conditions["other"].resting is None
    assert 0 < found.disk.free <= found.disk.size


async def test_a_root_from_before_there_were_counts_is_read(tmp_path: Path, hub: FakeUpstream) -> None:
    config, root = config_of(tmp_path, hub), tmp_path / "root"
    image = hub.add_image("team/app", "1")
    async with mirror(config) as worker:
        await pull_and_keep(worker, root, image, name="up/team/app")
    await asyncio.to_thread(os.unlink, root / "cache.index" / "usage.db")
    found = await read(config)
    assert found.content.images == ()
    assert found.content.counted_since is None
    assert repository(found, "up/team/app").amount.blobs == 3
    assert not (root / "cache.index" / "usage.db").exists()
