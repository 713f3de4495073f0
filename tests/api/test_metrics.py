"""What metrics say of answers, downloads, upstreams and logins: why, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import bcrypt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fake_upstream import FakeUpstream, Gate, digest_of, random_bytes
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import NAME, Clock, blob_path, config_for, manifest_path, pull_and_keep, until


async def read(one: Mirror, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric: its label values, by label name, to the number."""
    families = text_string_to_metric_families((await one.get("/metrics")).body.decode())
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


async def read_until(one: Mirror, name: str, wanted: dict[tuple[str, ...], float]) -> None:
    """Wait until a metric says what it should: some are counted a moment after the answer."""
    found = None
    try:
        async with asyncio.timeout(10):
            while (found := await read(one, name)) != wanted:
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{name} is {found}, not {wanted}") from None


# ---- from what is kept, or not ----


@pytest.mark.parametrize(
    ("fault", "settings", "reason"),
    [
        ({"drop": "rst"}, {}, "unreachable"),
        ({"status": 500}, {}, "failed"),
        ({"status": 429}, {}, "ratelimited"),
        ({"hang_headers": True}, {"tags": {"revalidate_wait": "10s"}, "timeouts": {"headers": "200ms"}}, "timeout"),
        ({"hang_headers": True}, {"tags": {"revalidate_wait": "50ms"}}, "slow"),
        ({"status": 404}, {"tags": {"on_not_found": "keep"}}, "notfound"),
        ({}, {"offline": True}, "offline"),
    ],
    ids=["unreachable", "failed", "ratelimited", "timeout", "slow", "notfound", "offline"],
)
async def test_why_an_answer_is_stale(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, fault: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    image = hub.add_image(NAME, "1")
    async with mirror(config_for(tmp_path, hub)) as one:
        await pull_and_keep(one, tmp_path / "root", image)
        assert await read(one, "mirror_cache_stale_total") == {}
    clock.advance(3600)
    if fault:
        hub.fault("/manifests/", **fault)
    async with mirror(config_for(tmp_path, hub, **settings)) as one:
        answer = await one.get(manifest_path("1"))
        assert answer.status == 200
        assert "Warning" in answer.headers
        assert await read(one, "mirror_cache_stale_total") == {("tag", reason, "up"): 1}
        assert await read(one, "mirror_cache_hits_total") == {("tag", "up"): 1}, "a stale answer is a hit"
    hub.clear_faults()


async def test_a_pull_that_is_spared_is_stale_for_the_quota(tmp_path: Path, clock: Clock) -> None:
    async with FakeUpstream(pulls={None: 10}) as hub:
        image = hub.add_image(NAME, "1")
        async with mirror(config_for(tmp_path, hub, quota_floor="95%")) as one:
            await pull_and_keep(one, tmp_path / "root", image)
            moved = hub.add_image(NAME, "1")
            assert moved.digest != image.digest
            clock.advance(3600)
            for _ in range(2):  # found out, then remembered
                answer = await one.get(manifest_path("1"))
                assert answer.headers["Docker-Content-Digest"] == image.digest
            assert await read(one, "mirror_cache_stale_total") == {("tag", "quota", "up"): 2}


async def test_a_stale_list_is_counted_as_one(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    hub.add_image(NAME, "1")
    async with mirror(config_for(tmp_path, hub)) as one:
        path = f"/v2/up/{NAME}/tags/list"
        await one.get(path)
        await one.get(path)
        clock.advance(3600)
        await one.get(path)
        hub.fault("/tags/", status=500)
        clock.advance(3600)
        await one.get(path)
        assert await read(one, "mirror_cache_hits_total") == await read(one, "mirror_cache_misses_total") == {}
        assert await read(one, "mirror_cache_stale_total") == {("list", "failed", "up"): 1}


async def test_why_an_upstream_was_needed(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    image = hub.add_image(NAME, "1")
    async with mirror(config_for(tmp_path, hub)) as one:
        await pull_and_keep(one, tmp_path / "root", image)  # the tag; the manifest and two blobs or more
        blobs = len(image.blobs)
        wanted: dict[tuple[str, ...], float] = {
            ("tag", "absent", "up"): 1,
            ("manifest", "absent", "up"): 1,
            ("blob", "absent", "up"): blobs,
        }
        assert await read(one, "mirror_cache_misses_total") == wanted
        clock.advance(3600)
        await one.head(manifest_path("1"))
        wanted["tag", "expired", "up"] = 1
        assert await read(one, "mirror_cache_misses_total") == wanted
        hub.add_image(NAME, "1")
        clock.advance(3600)
        await one.head(manifest_path("1"))
        wanted["tag", "moved", "up"] = 1
        assert await read(one, "mirror_cache_misses_total") == wanted


# ---- downloads ----


async def test_who_joins_a_download_is_counted_in_every_process(
    tmp_path: Path, hub: FakeUpstream, joined: Callable[[], int]
) -> None:
    gate = Gate()
    digest = hub.add_random_blob(NAME, 300_000)
    hub.fault("/blobs/", gate=gate, gate_at=100_000)
    async with mirrors(config_for(tmp_path, hub), 2) as (one, other):
        first = asyncio.create_task(one.get(blob_path(digest)))
        await gate.reached()
        others = [asyncio.create_task(worker.get(blob_path(digest))) for worker in (one, other, other)]
        await read_until(other, "mirror_downloads_in_flight", {(): 1})
        await until(lambda: joined() == 4, "the others have come")
        gate.open()
        answers = await asyncio.gather(first, *others)
        assert [len(answer.body) for answer in answers] == [300_000] * 4
        await read_until(one, "mirror_download_followers_total", {("up",): 3})
        await read_until(one, "mirror_downloads_total", {("completed", "up"): 1})
        await read_until(one, "mirror_downloads_in_flight", {(): 0})


async def test_how_a_download_ends(tmp_path: Path, hub: FakeUpstream) -> None:
    wrong = hub.add_random_blob(NAME, 200_000)
    hub.fault(wrong, replace=random_bytes(200_000, 4711))
    failing = hub.add_random_blob(NAME, 200_000)
    hub.fault(failing, status=500)
    missing = "sha256:" + "0" * 64
    good = hub.add_random_blob(NAME, 1000)
    async with mirror(config_for(tmp_path, hub)) as one:
        assert (await one.get(blob_path(good))).status == 200
        assert (await one.get(blob_path(failing))).status == 503
        assert (await one.get(blob_path(missing))).status == 404
        with contextlib.suppress(aiohttp.ClientError):  # reset, when some of it was sent
            assert (await one.get(blob_path(wrong))).status == 502
        ended = {("completed", "up"): 1.0, ("failed", "up"): 1.0, ("missing", "up"): 1.0, ("wrong", "up"): 1.0}
        await read_until(one, "mirror_downloads_total", ended)
        assert await read(one, "mirror_wrong_content_total") == {("blob", "up"): 1}


async def test_a_download_that_the_worker_leaves_is_interrupted(tmp_path: Path, hub: FakeUpstream) -> None:
    gate = Gate()
    digest = hub.add_random_blob(NAME, 300_000)
    hub.fault("/blobs/", times=1, gate=gate, gate_at=200_000)
    async with mirrors(config_for(tmp_path, hub), 2) as (one, other), aiohttp.ClientSession() as session:
        async with session.get(one.url + blob_path(digest)) as response:
            await gate.reached()
            await one.stop()
            with contextlib.suppress(aiohttp.ClientError):
                await response.read()
        assert await read(other, "mirror_downloads_total") == {("interrupted", "up"): 1}
        gate.open()


async def test_wrong_manifests_are_counted(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "1")
    hub.fault("/manifests/sha256", replace=hub.add_image(NAME, "2").raw)
    async with mirror(config_for(tmp_path, hub)) as one:
        assert (await one.get(manifest_path(image.digest))).status == 502
        assert await read(one, "mirror_wrong_content_total") == {("manifest", "up"): 1}


async def test_what_a_mirror_gives_wrong_is_counted(tmp_path: Path, hub: FakeUpstream) -> None:
    async with FakeUpstream() as near:
        image = hub.add_image(NAME, "1", [50_000])
        near.hold_what(hub)
        near.fault("/manifests/sha256", replace=hub.add_image(NAME, "2").raw)
        near.fault(image.layers[0], replace=random_bytes(50_000, 7))
        async with mirror(config_for(tmp_path, hub, mirrors=[{"url": near.url}])) as one:
            assert (await one.get(manifest_path(image.digest))).body == image.raw
            assert (await one.get(blob_path(image.layers[0]))).status == 200
            assert await read(one, "mirror_wrong_content_total") == {("manifest", "up"): 1, ("blob", "up"): 1}


# ---- upstreams, logins, the disk ----


async def test_tokens_and_requests_to_upstreams(tmp_path: Path) -> None:
    async with FakeUpstream(auth="token") as hub:
        image = hub.add_image(NAME, "1")
        hub.fault("/token", status=500, times=1)
        async with mirror(config_for(tmp_path, hub)) as one:
            assert (await one.get(manifest_path(image.digest))).status == 503
            assert (await one.get(manifest_path(image.digest))).status == 200
            hub.fault("/token", status=403, times=1)
            await one.get(f"/v2/up/team/other/manifests/sha256:{'0' * 64}")
            assert await read(one, "mirror_token_requests_total") == {
                ("failed", "up"): 1,
                ("granted", "up"): 1,
                ("refused", "up"): 1,
            }
            requests = await read(one, "mirror_upstream_requests_total")
            timed = await read(one, "mirror_upstream_request_duration_seconds_count")
            assert timed["manifest", "up"] == sum(n for (kind, *_), n in requests.items() if kind == "manifest") > 2


async def test_logins_and_tokens_given(tmp_path: Path, hub: FakeUpstream) -> None:
    users = tmp_path / "users"
    users.write_text(f"me:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    async with mirror(make_config(tmp_path / "root", {"up": {"url": hub.url}}, access={"htpasswd_file": users})) as one:
        for word in ("right", "right", "wrong"):
            await one.get("/v2/", headers={"Authorization": aiohttp.encode_basic_auth("me", word)})
        # Recognized at once: the second time it is not looked into.
        assert await read(one, "mirror_logins_total") == {("accepted",): 1, ("refused",): 1}
        assert await read(one, "mirror_tokens_issued_total") == {(): 0}
        answer = await one.get(
            "/v2/_mirror/auth/token", headers={"Authorization": aiohttp.encode_basic_auth("me", "right")}
        )
        assert answer.status == 200
        assert (await one.get("/v2/", headers={"Authorization": "Bearer nonsense"})).status == 401
        assert await read(one, "mirror_tokens_issued_total") == {(): 1}
        assert await read(one, "mirror_logins_total") == {("accepted",): 2, ("refused",): 2}


async def test_pushes_and_the_disk(tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.store.usage.REMEMBER", 0.0)
    monkeypatch.setattr("mirror.store.usage.COST", 0.0)
    root = tmp_path / "root"
    image = hub.add_image(NAME, "1", [70_000])
    async with mirror(config_for(tmp_path, hub)) as one:
        before = await read(one, "mirror_storage_used_bytes")
        assert (before["cache",], before["blobs",], before["ingest",]) == (0, 0, 0)
        assert before["metadata",] > 0
        await pull_and_keep(one, root, image)
        size = len(image.raw) + sum(map(len, image.blobs.values()))
        assert (await read(one, "mirror_storage_used_bytes"))["cache",] == size
        started = await one.ask("POST", "/v2/local/x/blobs/uploads/")
        assert started.status == 202
        await one.ask("PATCH", started.headers["Location"], data=b"x" * 1000)
        used = await read(one, "mirror_storage_used_bytes")
        assert (used["ingest",], used["blobs",]) == (1000, 0)
        assert await read(one, "mirror_upload_sessions") == {(): 1}
        assert await read(one, "mirror_uploads_in_flight") == {(): 0}
        digest = digest_of(b"x" * 1000)
        assert (await one.ask("PUT", f"{started.headers['Location']}?digest={digest}")).status == 201
        used = await read(one, "mirror_storage_used_bytes")
        assert (used["ingest",], used["blobs",]) == (0, 1000)
        assert await read(one, "mirror_upload_sessions") == {(): 0}
        raw = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
        assert (await one.ask("PUT", "/v2/local/x/manifests/1", data=raw)).status == 201
        assert await read(one, "mirror_pushes_total") == {("blob",): 1, ("manifest",): 1}
        (free,) = (await read(one, "mirror_storage_free_bytes")).values()
        (whole,) = (await read(one, "mirror_storage_size_bytes")).values()
        assert 0 < free <= whole


async def test_the_disk_is_not_measured_at_each_scrape(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "1", [70_000])
    async with mirror(config_for(tmp_path, hub)) as one:
        before = await read(one, "mirror_storage_used_bytes")
        await pull_and_keep(one, tmp_path / "root", image)
        assert await read(one, "mirror_storage_used_bytes") == before
