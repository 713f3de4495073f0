"""What a tag points at: fresh, stale, moved, gone; in one process and in several.

Several mirrors on one root stand for several processes: they share nothing but the disk.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.registry import manifests as manifest_service
from mirror.registry import tags as tag_resolver
from mirror.upstream.transport import Timeouts
from tests.fake_upstream import FakeUpstream, Gate, Image
from tests.harness import Answer, mirror, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    config_for,
    get_image,
    kept,
    manifest_path,
    pull,
    pull_and_keep,
    requests,
    use_client,
    warning,
)

FRESH = 60.0
V1 = manifest_path("v1")


def is_image(answer: Answer, image: Image) -> bool:
    return (
        answer.status == 200
        and answer.headers["Docker-Content-Digest"] == image.digest
        and answer.headers["Content-Length"] == str(len(image.raw))
        and answer.headers["Content-Type"] == image.media_type
        and answer.body in (image.raw, b"")
    )


# ---- fresh and stale ----


async def test_a_fresh_tag_is_answered_without_the_upstream_by_every_worker(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        first = await workers[0].get(V1)
        assert is_image(first, image)
        assert first.headers["Cache-Status"] == "mirror; fwd=uri-miss; stored"
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{image.digest}"]
        hub.clear_log()
        clock.advance(FRESH - 1)
        for worker in workers:
            for answer in (await worker.get(V1), await worker.head(V1), await worker.get(manifest_path(image.digest))):
                assert is_image(answer, image)
                assert answer.headers["Cache-Status"] == "mirror; hit"
                assert warning(answer) is None
        assert requests(hub) == []


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_stale_tag_that_did_not_move_costs_one_head_and_is_fresh_again(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, method: str
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        assert is_image(await workers[0].get(V1), image)
        hub.clear_log()
        clock.advance(FRESH + 1)
        answer = await workers[1].ask(method, V1)
        assert is_image(answer, image)
        assert warning(answer) is None
        assert requests(hub) == ["HEAD manifests/v1"]
        clock.advance(FRESH - 1)
        assert is_image(await workers[0].get(V1), image)
        assert requests(hub) == ["HEAD manifests/v1"]
        clock.advance(2)
        assert is_image(await workers[0].get(V1), image)
        assert requests(hub) == ["HEAD manifests/v1"] * 2


async def test_fresh_for_is_a_setting(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub, tags={"fresh_for": 0})) as worker:
        for _ in range(3):
            assert is_image(await worker.get(V1), image)
        assert requests(hub).count("HEAD manifests/v1") == 3
        assert hub.count("GET", image.digest) == 1


async def test_a_moved_tag_is_fetched_by_digest(tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path) -> None:
    old = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, old)
        new = hub.add_image(NAME, "v1")
        assert is_image(await workers[0].get(V1), old)  # fresh
        hub.clear_log()
        clock.advance(FRESH + 1)
        answer = await workers[1].get(V1)
        assert is_image(answer, new)
        assert warning(answer) is None
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{new.digest}"]
        assert is_image(await workers[0].get(V1), new)
        assert is_image(await workers[0].get(manifest_path(old.digest)), old)
        assert len(requests(hub)) == 2


# ---- HEAD costs no body ----


async def test_head_of_a_cold_a_stale_and_a_moved_tag_costs_no_body(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert is_image(await worker.head(V1), image)
        clock.advance(FRESH + 1)
        assert is_image(await worker.head(V1), image)
        moved = hub.add_image(NAME, "v1")
        clock.advance(FRESH + 1)
        assert is_image(await worker.head(V1), moved)
        assert requests(hub) == ["HEAD manifests/v1"] * 3
        assert is_image(await worker.get(V1), moved)
        assert requests(hub)[3:] == [f"GET manifests/{moved.digest}"]


async def test_what_containerd_pulled_it_pulls_again_with_the_upstream_stopped(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        assert requests(hub)[:2] == ["HEAD manifests/v1", f"GET manifests/{image.digest}"]
        await hub.stop()
        for worker in workers:
            await pull(worker, image)
            assert is_image(await worker.get(V1), image)
        clock.advance(1000 * FRESH)
        for worker in workers:
            await pull(worker, image)
            answer = await worker.get(V1)
            assert is_image(answer, image)
            assert "stale since" in (warning(answer) or "")
            assert answer.headers["Cache-Status"] == "mirror; hit; detail=stale"


async def test_a_manifest_known_only_from_head_is_fetched_by_tag_as_well(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert is_image(await worker.head(V1), image)
        assert is_image(await worker.get(V1), image)
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{image.digest}"]


# ---- once for all ----


async def test_200_pulls_of_one_stale_tag_over_4_workers_make_one_head(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": 10}), 4) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.clear_log()
        clock.advance(FRESH + 1)
        gate = Gate()
        hub.fault("HEAD", gate_headers=gate)
        asking = [asyncio.create_task(workers[n % 4].ask("HEAD" if n % 3 else "GET", V1)) for n in range(200)]
        await gate.reached()
        gate.open()
        answers = await asyncio.gather(*asking)
        assert all(is_image(answer, image) and warning(answer) is None for answer in answers)
        assert requests(hub) == ["HEAD manifests/v1"]


async def test_100_pulls_of_one_cold_tag_over_4_workers_make_one_head_and_one_get(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    image = hub.add_image(NAME, "v1")
    hub.fault("manifests", delay=0.05)
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(V1) for n in range(100)))
        assert all(is_image(answer, image) for answer in answers)
        assert sorted(requests(hub)) == [f"GET manifests/{image.digest}", "HEAD manifests/v1"]


async def test_a_failure_with_nothing_kept_is_shared_by_all_who_waited(tmp_path: Path, hub: FakeUpstream) -> None:
    hub.add_image(NAME, "v1")
    hub.fault("manifests", delay=0.1, status=503)
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(V1) for n in range(40)))
        assert {answer.status for answer in answers} == {503}
        assert requests(hub) == ["HEAD manifests/v1"]


async def test_a_check_goes_on_when_the_client_that_caused_it_is_gone(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.add_image(NAME, "v1")
    monkeypatch.setattr(manifest_service, "HEADERS_WITHIN", 0.3)
    gate = Gate()
    hub.fault("HEAD", gate_headers=gate)
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        assert (await workers[0].get(V1)).status == 504
        assert (await workers[1].get(V1)).status == 504
        gate.open()
        for worker in (*workers, *workers):
            assert is_image(await worker.get(V1), image)
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{image.digest}"]


# ---- the upstream is slow, or fails ----


async def test_a_slow_check_is_waited_for_only_so_long_and_its_result_is_used(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    old = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": "50ms"}), 2) as workers:
        await pull_and_keep(workers[0], root, old)
        new = hub.add_image(NAME, "v1")
        hub.clear_log()
        clock.advance(FRESH + 1)
        gate = Gate()
        hub.fault("HEAD", gate_headers=gate)
        for worker in (*workers, *workers):
            answer = await worker.get(V1)
            assert is_image(answer, old)
            assert "has not answered yet" in (warning(answer) or "")
        assert requests(hub) == ["HEAD manifests/v1"]
        hub.clear_faults()
        gate.open()
        seen: list[Answer] = []

        async def next_answer() -> Answer:
            seen.append(await workers[1].get(V1))
            return seen[-1]

        while not is_image(await next_answer(), new):
            assert is_image(seen[-1], old)
            assert len(seen) < 1000, "the result of the check was not used"
            await asyncio.sleep(0.01)
        assert warning(seen[-1]) is None
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{new.digest}"]


async def test_a_client_with_nothing_to_fall_back_on_waits_longer_than_revalidate_wait(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    image = hub.add_image(NAME, "v1")
    hub.fault("manifests", delay=0.3)
    async with mirror(config_for(tmp_path, hub, tags={"revalidate_wait": "1ms"})) as worker:
        assert is_image(await worker.get(V1), image)
        clock.advance(FRESH + 1)  # its blobs are not here, so the kept answer is of no use
        answer = await worker.get(V1)
        assert is_image(answer, image)
        assert warning(answer) is None


async def test_headers_and_body_together_come_or_fail_in_time(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEAD and GET are each within the limit of one request, and together over what a client waits for."""
    hub.add_image(NAME, "v1")
    monkeypatch.setattr(manifest_service, "HEADERS_WITHIN", 0.5)
    hub.fault("HEAD", delay=0.2)
    hub.fault("GET", hang_headers=True)
    async with mirror(config_for(tmp_path, hub)) as worker:
        async with asyncio.timeout(10):
            answer = await worker.get(V1)
        assert (answer.status, answer.code) == (504, "UNAVAILABLE")
        assert hub.count("GET") == 1


async def test_after_a_failed_check_no_worker_asks_again_for_a_while(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 3) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.fail("HEAD", status=500)
        hub.clear_log()
        clock.advance(FRESH + 1)
        for worker in (*workers, *workers):
            answer = await worker.get(V1)
            assert is_image(answer, image)
            assert "500" in (warning(answer) or "")
        assert requests(hub) == ["HEAD manifests/v1"]
        clock.advance(tag_resolver.RETRY_AFTER + 0.1)
        assert "500" in (warning(await workers[2].get(V1)) or "")
        assert len(requests(hub)) == 2
        hub.clear_faults()
        assert "500" in (warning(await workers[1].get(V1)) or "")  # still within the pause
        clock.advance(tag_resolver.RETRY_AFTER + 0.1)
        assert warning(await workers[0].get(V1)) is None
        assert len(requests(hub)) == 3


async def test_an_upstream_that_limits_our_rate_is_left_alone_for_as_long_as_it_asks(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.fail("HEAD", status=429, headers={"Retry-After": "100"})
        hub.clear_log()
        clock.advance(FRESH + 1)
        assert is_image(await workers[0].get(V1), image)
        clock.advance(99)
        assert is_image(await workers[1].get(V1), image)
        assert len(requests(hub)) == 1
        clock.advance(2)
        assert is_image(await workers[1].get(V1), image)
        assert len(requests(hub)) == 2


async def test_a_long_message_of_a_failure_is_kept_whole_enough_to_be_read(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    name = "/".join(["p" * 60] * 4)
    image = hub.add_image(name, "t" * 128)
    path = manifest_path("t" * 128, f"up/{name}")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image, name=f"up/{name}")
        hub.fail("HEAD", status=500)
        clock.advance(FRESH + 1)
        for worker in (*workers, *workers):
            answer = await worker.get(path)
            assert is_image(answer, image)
            assert warning(answer)


async def test_stale_for_is_a_limit(tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"stale_for": "1h"}), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.fail("HEAD", status=500)
        clock.advance(FRESH + 3599)
        answer = await workers[0].get(V1)
        assert is_image(answer, image)
        assert warning(answer)
        clock.advance(2)
        for worker in workers:
            answer = await worker.get(V1)
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        await get_image(workers[1], image)  # digests do not age
        hub.clear_faults()
        assert is_image(await workers[0].get(V1), image)


# ---- gone ----


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_the_upstream_no_longer_has_is_forgotten(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path, method: str
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.remove_tag(NAME, "v1")
        assert is_image(await workers[0].ask(method, V1), image)  # fresh
        hub.clear_log()
        clock.advance(FRESH + 1)
        for worker in workers:
            answer = await worker.ask(method, V1)
            assert answer.status == 404
            if method == "GET":
                assert answer.code == "MANIFEST_UNKNOWN"
        assert requests(hub) == ["HEAD manifests/v1"]
        await get_image(workers[1], image)
        await hub.stop()
        assert (await workers[0].get(V1)).status in (404, 502)  # not the forgotten one


async def test_on_not_found_keep_answers_with_a_warning(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"on_not_found": "keep"}), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        hub.remove_tag(NAME, "v1")
        hub.clear_log()
        clock.advance(FRESH + 1)
        for worker in workers:
            for method in ("GET", "HEAD"):
                answer = await worker.ask(method, V1)
                assert is_image(answer, image)
                assert "does not have" in (warning(answer) or "")
        assert requests(hub) == ["HEAD manifests/v1"]
        clock.advance(FRESH + 1)
        assert is_image(await workers[0].get(V1), image)
        assert requests(hub) == ["HEAD manifests/v1"] * 2
        hub.set_tag(NAME, "v1", image.digest)
        clock.advance(FRESH + 1)
        assert warning(await workers[0].get(V1)) is None


async def test_on_not_found_keep_cannot_keep_what_is_not_all_here(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub, tags={"on_not_found": "keep"})) as worker:
        assert is_image(await worker.get(V1), image)
        hub.remove_tag(NAME, "v1")
        clock.advance(FRESH + 1)
        answer = await worker.get(V1)
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")


async def test_a_404_is_remembered_briefly_by_all_workers(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tag_resolver, "REMEMBER_404", 1.0)
    hub.add_image(NAME, "other")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        assert (await workers[0].get(V1)).status == 404
        image = hub.add_image(NAME, "v1")
        assert (await workers[1].get(V1)).code == "MANIFEST_UNKNOWN"
        assert requests(hub) == ["HEAD manifests/v1"]
        assert (await workers[1].get(manifest_path("v2"))).status == 404  # of this tag only
        assert requests(hub) == ["HEAD manifests/v1", "HEAD manifests/v2"]
        for _ in range(1000):
            answer = await workers[1].get(V1)
            if answer.status == 200:
                break
            await asyncio.sleep(0.01)
        assert is_image(answer, image)


async def test_404s_are_shared_by_all_who_waited(tmp_path: Path, hub: FakeUpstream) -> None:
    hub.add_image(NAME, "other")
    hub.fault("manifests", delay=0.1)
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(V1) for n in range(40)))
        assert {answer.status for answer in answers} == {404}
        assert requests(hub) == ["HEAD manifests/v1"]


# ---- moved to something that cannot be had ----

BROKEN = {
    "missing": {"status": 404},
    "failing": {"status": 500},
    "wrong-bytes": {"replace": b'{"wrong": true}'},
    "hung-up": {"drop": "fin"},
}


@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("head_first", [False, True], ids=["get", "head"])
async def test_when_the_new_manifest_cannot_be_had_the_one_before_is_answered(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path, fault: Any, head_first: bool
) -> None:
    old = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        await pull_and_keep(workers[0], root, old)
        new = hub.add_image(NAME, "v1")
        hub.fault(f"GET /v2/{NAME}/manifests/{new.digest}", **fault)
        clock.advance(FRESH + 1)
        hub.clear_log()
        if head_first:
            assert is_image(await workers[1].head(V1), new)  # nobody knows yet
        answer = await workers[0].get(V1)
        assert is_image(answer, old)
        assert new.digest in (warning(answer) or "")
        asked = requests(hub)
        assert asked[:2] == ["HEAD manifests/v1", f"GET manifests/{new.digest}"]
        for worker in workers:
            for method in ("GET", "HEAD"):
                answer = await worker.ask(method, V1)
                assert is_image(answer, old)
                assert warning(answer)
        assert requests(hub) == asked, "the upstream was asked again at once"
        assert new.digest.partition(":")[2] not in "".join(map(str, root.rglob("*")))
        hub.clear_faults()
        clock.advance(tag_resolver.RETRY_AFTER + 0.1)
        answer = await workers[1].get(V1)
        assert is_image(answer, new)
        assert warning(answer) is None
        assert is_image(await workers[0].head(V1), new)


async def test_a_moved_tag_whose_new_manifest_is_slow_answers_the_one_before_meanwhile(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    old = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": "50ms"}), 2) as workers:
        await pull_and_keep(workers[0], root, old)
        new = hub.add_image(NAME, "v1")
        clock.advance(FRESH + 1)
        hub.clear_log()
        gate = Gate()
        hub.fault(f"GET /v2/{NAME}/manifests", gate_headers=gate)
        for worker in workers:
            answer = await worker.get(V1)
            assert is_image(answer, old)
            assert new.digest in (warning(answer) or "")
        gate.open()
        await kept(root, new.digest)
        for worker in workers:
            for _ in range(1000):
                answer = await worker.get(V1)
                if is_image(answer, new):
                    break
                await asyncio.sleep(0.01)
            assert is_image(answer, new)
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{new.digest}"]


async def test_a_cold_tag_whose_manifest_is_not_there_is_no_tag(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    hub.fault(f"GET /v2/{NAME}/manifests/{image.digest}", status=404, times=1)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(V1)
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
        assert is_image(await worker.get(V1), image)  # the upstream's word is not believed for a minute


# ---- what is kept must be usable ----


async def test_a_kept_manifest_whose_blobs_are_not_all_here_is_503_while_the_upstream_is_down(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        assert is_image(await workers[0].get(V1), image)
        for digest in (image.config, image.layers[0]):
            assert (await workers[0].get(blob_path(digest))).status == 200
        await hub.stop()
        clock.advance(FRESH + 1)
        for method in ("GET", "HEAD"):
            assert (await workers[1].ask(method, V1)).status == 503
        assert (await workers[1].get(V1)).code == "UNAVAILABLE"
        await hub.start()
        assert (await workers[1].get(blob_path(image.layers[1]))).status == 200
        await kept(root, *image.blobs)
        await hub.stop()
        answer = await workers[1].get(V1)
        assert is_image(answer, image)
        assert warning(answer)


async def test_an_index_is_usable_with_one_platform_here(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    images = [hub.add_image(NAME, None) for _ in range(3)]
    index = hub.add_index(NAME, "v1", images)
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull(worker, index)
        clock.advance(FRESH + 1)
        hub.fail("HEAD", status=500)
        assert (await worker.get(V1)).status == 503
        hub.clear_faults()
        await pull_and_keep(worker, root, images[1])
        clock.advance(FRESH + 1)
        hub.fail("manifests", status=500)
        answer = await worker.get(V1)
        assert is_image(answer, index)
        assert warning(answer)
        await get_image(worker, images[1])
        assert (await worker.get(manifest_path(images[0].digest))).status == 503


async def test_foreign_layers_need_not_be_here(tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path) -> None:
    image = hub.add_image(NAME, None)
    body = json.loads(image.raw)
    body["layers"].append(
        {
            "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": "sha256:" + "a" * 64,
            "size": 5,
            "urls": ["https://example.com/layer"],
        }
    )
    raw = json.dumps(body).encode()
    digest = hub.add_manifest(NAME, raw, "v1")
    whole = Image(NAME, "v1", digest, raw, image.config, image.layers, image.blobs)
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull_and_keep(worker, root, whole)
        await hub.stop()
        clock.advance(FRESH + 1)
        assert is_image(await worker.get(V1), whole)


async def test_a_signature_s_config_need_not_be_here(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    """What cosign reads of the image under ``sha256-<hex>.sig``: the manifest and the payload."""
    signed = hub.add_image(NAME, None, (300,))
    body = json.loads(signed.raw)
    body["layers"][0]["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json"
    raw = json.dumps(body).encode()
    hub.add_manifest(NAME, raw, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert (await worker.get(V1)).body == raw
        hub.fail("HEAD", status=500)
        clock.advance(FRESH + 1)
        assert (await worker.get(V1)).status == 503  # the payload is not here
        hub.clear_faults()
        assert (await worker.get(blob_path(signed.layers[0]))).status == 200
        await kept(root, signed.layers[0])
        await hub.stop()
        clock.advance(FRESH + 1)
        answer = await worker.get(V1)
        assert (answer.status, answer.body) == (200, raw)
        assert warning(answer)


async def test_indexes_that_name_each_other_many_times_cost_no_more_than_once(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two indexes on each of 24 levels, each naming both of the next: 2²⁴ ways through them."""
    below = [hub.add_image(NAME, None)]
    everything = list(below)
    for level in range(24):
        made = []
        for side in range(2):
            index = hub.add_index(NAME, None, below)
            raw = json.dumps(json.loads(index.raw) | {"annotations": {"at": f"{level}.{side}"}}).encode()
            made.append(Image(NAME, None, hub.add_manifest(NAME, raw), raw, "", [], {}, index.media_type))
        below = made
        everything += made
    top = hub.add_index(NAME, "v1", below)
    async with mirror(config_for(tmp_path, hub)) as worker:
        for image in (top, *everything):
            assert (await worker.get(manifest_path(image.digest))).status == 200
        assert is_image(await worker.get(V1), top)
        clock.advance(FRESH + 1)
        hub.fail("HEAD", status=500)
        async with asyncio.timeout(10):
            assert (await worker.get(V1)).status == 503


# ---- odd upstreams ----

ODD = {
    "no-digest": ({"docker_digest": None}, ["HEAD", "GET"], ["HEAD", "GET"]),
    "no-length": ({"framing": "chunked"}, ["HEAD", "GET"], ["HEAD"]),
    "405": ({"status": 405}, ["HEAD", "GET"], ["HEAD", "GET"]),
    "400": ({"status": 400}, ["HEAD", "GET"], ["HEAD", "GET"]),
    "no-type": ({"content_type": None}, ["HEAD", "GET"], ["HEAD"]),
    "generic-type": ({"content_type": "application/json; charset=utf-8"}, ["HEAD", "GET"], ["HEAD"]),
    "garbled-digest": ({"docker_digest": "sha256:xyz"}, ["HEAD", "GET"], ["HEAD", "GET"]),
}


@pytest.mark.parametrize(("fault", "cold", "stale"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_upstreams_whose_head_says_less(
    tmp_path: Path,
    hub: FakeUpstream,
    clock: Clock,
    root: Path,
    method: str,
    fault: Any,
    cold: list[str],
    stale: list[str],
) -> None:
    image = hub.add_image(NAME, "v1")
    hub.fault("HEAD", **fault)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.ask(method, V1)
        assert is_image(answer, image)
        assert [line.split()[0] for line in requests(hub)] == cold
        await get_image(worker, image)
        hub.clear_log()
        clock.advance(FRESH + 1)
        answer = await worker.ask(method, V1)
        assert is_image(answer, image)
        assert warning(answer) is None
        assert [line.split()[0] for line in requests(hub)] == stale
        hub.clear_log()
        moved = hub.add_image(NAME, "v1")
        clock.advance(FRESH + 1)
        assert is_image(await worker.ask(method, V1), moved)
        assert [line.split()[0] for line in requests(hub)] == cold
        await pull_and_keep(worker, root, moved)
        await hub.stop()
        clock.advance(FRESH + 1)
        answer = await worker.ask(method, V1)
        assert is_image(answer, moved)
        assert warning(answer)


async def test_a_head_that_contradicts_the_manifest_is_put_right(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    """The type is the body's own, and the length that of the bytes: HEAD says the same as GET once they are here."""
    image = hub.add_image(NAME, "v1")
    hub.fault("HEAD", content_type="application/vnd.docker.distribution.manifest.v2+json", length=7)
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert is_image(await worker.get(V1), image)
        assert is_image(await worker.head(V1), image)
        clock.advance(FRESH + 1)
        assert is_image(await worker.head(V1), image)
        assert requests(hub) == ["HEAD manifests/v1", f"GET manifests/{image.digest}", "HEAD manifests/v1"]


async def test_a_tag_of_a_local_name_is_never_asked_for(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert is_image(await worker.get(V1), image)
        local = await worker.get("/v2/local/app/manifests/v1")
        assert (local.status, local.code) == (404, "MANIFEST_UNKNOWN")
        assert len(requests(hub)) == 2


@pytest.mark.parametrize("tag", ["-bad", "a" * 129, "a b", "ä"])
async def test_a_bad_tag_is_a_404_and_never_asked_for(tmp_path: Path, hub: FakeUpstream, tag: str) -> None:
    hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(manifest_path(tag))
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        assert (await worker.head(manifest_path(tag))).status == 404
        assert requests(hub) == []
        assert (await worker.get(V1)).status == 200


async def test_settling_never_overwrites_what_another_process_learnt_later(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    """A slow GET of what a tag pointed at before must not bring the tag, or its size, back there."""
    old = hub.add_image(NAME, "v1", [1])
    gate = Gate()
    hub.fault("HEAD", content_type=None, times=1)  # so that there is something to settle
    hub.fault(f"GET /v2/{NAME}/manifests/{old.digest}", gate_headers=gate)
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        slow = asyncio.create_task(workers[0].get(V1))
        await gate.reached()
        new = hub.add_image(NAME, "v1", [1, 2, 3])
        clock.advance(FRESH + 1)
        assert is_image(await workers[1].get(V1), new)
        gate.open()
        assert is_image(await slow, old)
        for worker in workers:
            assert is_image(await worker.head(V1), new)
            assert is_image(await worker.get(V1), new)
        assert hub.count("HEAD") == 2


async def test_time_limits_hold_for_checks_too(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = hub.add_image(NAME, "v1")
    use_client(monkeypatch, timeouts=Timeouts(headers=0.2, connect=0.2, read=0.2))
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull_and_keep(worker, root, image)
        hub.fault("HEAD", hang_headers=True)
        clock.advance(FRESH + 1)
        answer = await worker.get(V1)
        assert is_image(answer, image)
        assert "no answer in time" in (warning(answer) or "")
        asked = len(requests(hub))
        assert is_image(await worker.get(V1), image)
        assert len(requests(hub)) == asked
