"""Upstreams that fail, at four workers: what is repeated, who is left alone, what is limited, and what clients read."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import mirror.upstream.client
from mirror.upstream import asking
from mirror.upstream.breaker import Breaker
from mirror.upstream.pacing import Pace, TooSlow
from tests.fake_upstream import FakeUpstream, Gate
from tests.harness import Answer, Mirror, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    config_for,
    kept,
    manifest_path,
    pull_and_keep,
    until,
    use_clock,
    warning,
)

WORKERS = 4
WINDOW = 10.0
QUICK = {"headers": "1s", "connect": "1s"}
"""Time limits for what is to run into them."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the time by which tags age and hosts are left alone."""
    clock = use_clock(monkeypatch)
    monkeypatch.setattr(mirror.upstream.client, "Breaker", functools.partial(Breaker, clock=clock))
    return clock


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let pauses between repeats take no time; return them."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asking, "sleep", sleep)
    return found


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, hub: FakeUpstream | None = None, **settings: Any
) -> AsyncIterator[tuple[FakeUpstream, list[Mirror]]]:
    async with hub or FakeUpstream() as hub, mirrors(config_for(tmp_path, hub, **settings), WORKERS) as workers:
        yield hub, workers


def told(answer: Answer) -> str:
    message: str = json.loads(answer.body)["errors"][0]["message"]
    return message


async def ask_all(workers: list[Mirror], times: int = 1, *, first: int = 0) -> list[Answer]:
    """Ask all workers at once for tags nobody has, each for another."""
    asked = [worker.get(manifest_path(f"t{first + n}")) for n, worker in enumerate(workers * times)]
    return list(await asyncio.gather(*asked))


# ---- what is repeated ----


@pytest.mark.parametrize(
    ("fault", "pauses"),
    [
        pytest.param({"drop": "fin"}, [(0.1, 0.15), (0.3, 0.45)], id="closed"),
        pytest.param({"drop": "rst"}, [(0.1, 0.15), (0.3, 0.45)], id="reset"),
        *(pytest.param({"status": n}, [(0.1, 0.15), (0.3, 0.45)], id=str(n)) for n in (500, 502, 503, 504)),
        pytest.param({"status": 503, "headers": {"Retry-After": "2"}}, [(2, 2), (2, 2)], id="503 in 2 s"),
        pytest.param({"status": 503, "headers": {"Retry-After": "4"}}, [], id="503 in 4 s"),
        pytest.param({"status": 501}, [], id="501"),
        pytest.param({"status": 404}, [], id="404"),
        pytest.param({"status": 400}, [], id="400"),
        pytest.param({"hang_headers": True}, [], id="no answer"),
    ],
)
@pytest.mark.parametrize("retries", [2, 0])
async def test_what_may_pass_is_repeated_after_growing_pauses(
    tmp_path: Path, waited: list[float], fault: dict[str, Any], pauses: list[tuple[float, float]], retries: int
) -> None:
    timeouts = {"headers": "1s"} if "hang_headers" in fault else {}
    async with running(tmp_path, retries=retries, timeouts=timeouts) as (hub, workers):
        blob = hub.add_random_blob(NAME, 1000)
        sent = 2 if "drop" in fault else 1  # the HTTP client itself tries once more when a connection is closed
        hub.fault(blob, **fault, times=2 * sent)
        answer = await workers[0].get(blob_path(blob))
        pauses = pauses if retries else []
        assert (answer.status == 200) is bool(pauses)
        assert hub.count("GET", blob) == len(pauses) * sent + (1 if pauses else sent)
        assert len(waited) == len(pauses)
        assert all(least <= pause <= most for pause, (least, most) in zip(waited, pauses, strict=True))


async def test_who_cannot_be_connected_to_is_tried_again(tmp_path: Path, waited: list[float]) -> None:
    async with running(tmp_path, retries=2) as (hub, workers):
        await hub.stop()
        answer = await workers[0].get(manifest_path("1"))
        assert (answer.status, len(waited)) == (502, 2)


async def test_a_certificate_does_not_become_right(tmp_path: Path, waited: list[float]) -> None:
    async with (
        FakeUpstream() as hub,
        running(tmp_path, url=hub.url.replace("http", "https"), retries=2) as (_, workers),
    ):
        answer = await workers[0].get(manifest_path("1"))
        assert (answer.status, waited) == (502, [])
        assert "up does not speak TLS" in told(answer)


@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": "rst"}], ids=["500", "reset"])
async def test_nothing_is_repeated_when_there_is_no_time_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float], fault: dict[str, Any]
) -> None:
    monkeypatch.setattr(asking, "GROWS", 100.0)
    async with running(tmp_path, retries=2, timeouts={"headers": "8s"}) as (hub, workers):
        hub.fault("manifests", **fault)
        assert (await workers[0].get(manifest_path("1"))).status in (502, 503)
        assert len(waited) == 1  # 0.1 s and the time for an answer fit, 10 s do not


@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"drop": "rst"}, {"status": 429, "headers": {"Retry-After": "1"}}],
    ids=["503", "reset", "429 in 1 s"],
)
async def test_a_realm_is_asked_again(tmp_path: Path, waited: list[float], fault: dict[str, Any]) -> None:
    async with running(tmp_path, FakeUpstream(auth="token"), retries=2) as (hub, workers):
        image = hub.add_image(NAME, "1")
        sent = 2 if "drop" in fault else 1
        hub.fault("GET /token", **fault, times=2 * sent)
        assert (await workers[0].get(manifest_path("1"))).body == image.raw
        assert (hub.count("GET", "/token"), len(waited)) == (2 * sent + 1, 2)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "60"}], ids=["that does not say", "in a minute"])
async def test_a_realm_that_limits_us_is_left(tmp_path: Path, waited: list[float], headers: dict[str, str]) -> None:
    async with running(tmp_path, FakeUpstream(auth="token"), retries=2) as (hub, workers):
        hub.fail("GET /token", status=429, headers=headers)
        answer = await workers[0].get(manifest_path("1"))
        assert (answer.status, hub.count("GET", "/token"), waited) == (503, 1, [])
        assert "Retry-After" in answer.headers


@pytest.mark.parametrize("times", [1, 2])
async def test_a_manifest_that_breaks_off_is_asked_for_once_more(tmp_path: Path, times: int) -> None:
    async with running(tmp_path, retries=2) as (hub, workers):
        image = hub.add_image(NAME, "1")
        hub.fault("GET /v2/team/app/manifests", cut_after=100, times=times)
        answer = await workers[0].get(manifest_path("1"))
        assert answer.status == (200 if times == 1 else 503)
        assert hub.count("GET", "/manifests/") == 2
        if times == 1:
            assert answer.body == image.raw


# ---- who is left alone ----

ALONE = re.compile(
    r"up is left alone, because it (did not answer in time|could not be reached|closed the connection without an "
    r"answer|answered with server errors) (?:just now|(\d+) s ago), and nothing is kept of team/app:t\d+; it is asked "
    r"again in (\d+) s"
)


def left_alone(answers: list[Answer]) -> tuple[str, int, int]:
    """Check that all of them say that a host is left alone; return why, since when, and until when."""
    found = set()
    for answer in answers:
        assert (answer.status, answer.code) == (503, "UNAVAILABLE"), answer
        match = ALONE.fullmatch(told(answer))
        assert match is not None, told(answer)
        assert answer.headers["Retry-After"] == match[3]
        found.add((match[1], int(match[2] or 0), int(match[3])))
    assert len(found) == 1
    return found.pop()


async def shown(worker: Mirror) -> dict[tuple[str, str], float]:
    """Return who is left alone, by upstream and host."""
    text = (await worker.get("/metrics")).body.decode()
    return {
        (sample.labels["upstream"], sample.labels["host"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "mirror_upstream_breaker_open"
    }


async def test_a_dead_upstream_costs_one_timeout_a_window(tmp_path: Path, clock: Clock) -> None:
    settings = {"breaker_window": WINDOW, "timeouts": QUICK, "retries": 2, "tags": {"fresh_for": "1s"}}
    async with running(tmp_path, **settings) as (hub, workers):
        image = hub.add_image(NAME, "kept")
        await pull_and_keep(workers[0], tmp_path / "root", image)
        hub.clear_log()
        hub.fault(hang_headers=True)
        clock.advance(2)
        assert (await workers[0].get(manifest_path("t"))).status == 504
        assert hub.count() == 1
        clock.advance(3)
        # none of them asked: its time limit would have ended in a 504
        assert left_alone(await ask_all(workers, 5)) == ("did not answer in time", 3, 7)
        # what is kept is answered, stale tags too
        answer = await workers[1].get(manifest_path("kept"))
        assert (answer.status, answer.body) == (200, image.raw)
        assert (warning(answer) or "").endswith('up is left alone, because it did not answer in time 3 s ago"')
        assert (await workers[2].get(blob_path(image.layers[0]))).status == 200
        assert hub.count() == 1
        for worker in workers:
            assert await shown(worker) == {("up", "registry"): 1}
        # the next window: one finds out for all
        clock.advance(WINDOW - 3)
        statuses = sorted(answer.status for answer in await ask_all(workers, 3, first=100))
        assert statuses == [503] * 11 + [504]
        assert hub.count() == 2
        # it comes back, and one probe finds out
        hub.clear_faults()
        clock.advance(WINDOW)
        gate = Gate()
        hub.fault(gate_headers=gate, times=1)
        probe = asyncio.create_task(workers[3].get(manifest_path("t")))
        await gate.reached()
        assert {answer.status for answer in await ask_all(workers, 2, first=200)} == {503}
        gate.open()
        assert (await probe).status == 404
        assert {answer.status for answer in await ask_all(workers, 2, first=300)} == {404}
        for worker in workers:
            assert await shown(worker) == {("up", "registry"): 0}


async def test_who_came_before_does_not_prolong_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=WINDOW) as (hub, workers):
        gate = Gate()
        hub.fault("manifests/first", drop="fin")
        hub.fault("manifests/later", drop="fin", gate_headers=gate)
        later = asyncio.create_task(workers[1].get(manifest_path("later")))
        await gate.reached()
        for number in range(3):
            assert (await workers[0].get(manifest_path(f"first{number}"))).status == 502
        clock.advance(4)
        gate.open()
        assert (await later).status == 502
        assert left_alone(await ask_all(workers)) == ("closed the connection without an answer", 4, 6)


async def test_a_success_of_who_came_before_ends_it(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=WINDOW) as (hub, workers):
        gate = Gate()
        hub.fault("manifests/first", drop="fin")
        hub.fault("manifests/later", gate_headers=gate)
        later = asyncio.create_task(workers[1].get(manifest_path("later")))
        await gate.reached()
        for number in range(3):
            assert (await workers[0].get(manifest_path(f"first{number}"))).status == 502
        assert left_alone([await workers[2].get(manifest_path("t0"))])[0] == "closed the connection without an answer"
        gate.open()
        assert (await later).status == 404
        assert {answer.status for answer in await ask_all(workers)} == {404}


async def test_a_probe_that_is_cancelled_leaves_it_to_another(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=WINDOW, timeouts={"headers": "3s"}) as (hub, workers):
        hub.fault(hang_headers=True)
        assert (await workers[0].get(manifest_path("t"))).status == 504
        clock.advance(WINDOW)
        probe = asyncio.create_task(workers[1].get(manifest_path("t")))
        await until(lambda: hub.count() == 2, "the probe is sent")
        hub.clear_faults()
        assert (await workers[2].get(manifest_path("t1"))).status == 503
        probe.cancel()
        await workers[1].stop()
        assert (await workers[2].get(manifest_path("t2"))).status == 404


async def test_nobody_there_three_times(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=WINDOW) as (hub, workers):
        await hub.stop()
        for worker in workers[:3]:
            assert (await worker.get(manifest_path("t"))).status == 502
        assert left_alone(await ask_all(workers)) == ("could not be reached", 0, 10)
        await hub.start()
        clock.advance(WINDOW)
        assert (await workers[3].get(manifest_path("t"))).status == 404


async def test_server_errors_ten_times(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=WINDOW) as (hub, workers):
        hub.fail(status=500)
        for n in range(10):
            answer = await workers[n % WORKERS].get(manifest_path(f"t{n}"))
            assert "up answered 500 and nothing is kept of" in told(answer)
        assert left_alone(await ask_all(workers)) == ("answered with server errors", 0, 10)
        assert hub.count() == 10


async def test_repeats_end_when_the_host_is_left_alone(tmp_path: Path, clock: Clock, waited: list[float]) -> None:
    async with running(tmp_path, breaker_window=WINDOW, retries=10) as (hub, workers):
        await hub.stop()
        answer = await workers[0].get(manifest_path("t0"))
        assert (answer.status, len(waited)) == (502, 3)
        assert "cannot be reached" in told(answer)
        assert left_alone(await ask_all(workers)) == ("could not be reached", 0, 10)


async def test_without_a_window_everybody_finds_out(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, breaker_window=0) as (hub, workers):
        await hub.stop()
        for worker in workers * 2:
            assert (await worker.get(manifest_path("t"))).status == 502
        assert await shown(workers[0]) == {("up", "registry"): 0}


async def test_a_dead_cdn_is_not_the_registry(tmp_path: Path, clock: Clock) -> None:
    hub = FakeUpstream(redirect=True)
    hub.redirect_host = "localhost"
    async with running(tmp_path, hub, breaker_window=WINDOW, timeouts=QUICK) as (hub, workers):
        hub.fault("cdn", hang_headers=True)
        blobs = [hub.add_random_blob(NAME, 1000) for _ in range(9)]
        assert (await workers[0].get(blob_path(blobs[0]))).status == 504
        clock.advance(2)
        for worker, blob in zip(workers * 2, blobs[1:], strict=True):
            answer = await worker.get(blob_path(blob))
            assert (answer.status, told(answer)) == (
                503,
                "up (localhost) is left alone, because it did not answer in time 2 s ago, and nothing is kept of "
                f"blob {blob} of team/app; it is asked again in 8 s",
            )
        assert hub.count(server="cdn") == 1
        image = hub.add_image(NAME, "1")
        assert (await workers[1].get(manifest_path("1"))).body == image.raw
        assert await shown(workers[2]) == {("up", "registry"): 0}
        hub.clear_faults()
        clock.advance(8)
        assert (await workers[2].get(blob_path(blobs[0]))).status == 200


async def test_a_dead_realm(tmp_path: Path, clock: Clock) -> None:
    hub = FakeUpstream(auth="token", own_token_port=True)
    async with running(tmp_path, hub, breaker_window=WINDOW, timeouts=QUICK) as (hub, workers):
        image = hub.add_image(NAME, "1")
        hub.fault("token", hang_headers=True)
        assert (await workers[0].get(manifest_path("1"))).status == 504
        for worker in workers * 3:
            answer = await worker.get(manifest_path("1"))
            assert (answer.status, answer.code) == (503, "UNAVAILABLE"), answer
            assert "did not answer in time just now" in told(answer)
        assert hub.count(server="token") == 1
        hub.clear_faults()
        clock.advance(WINDOW)
        assert (await workers[1].get(manifest_path("1"))).body == image.raw


async def test_a_dead_mirror_is_shown_by_its_place(tmp_path: Path, clock: Clock) -> None:
    async with FakeUpstream() as lagging, FakeUpstream() as fine:
        mirrors_of_it = [{"url": fine.url}, {"url": lagging.url}]
        async with running(tmp_path, breaker_window=WINDOW, mirrors=mirrors_of_it) as (hub, workers):
            await lagging.stop()
            for worker in workers:
                image = hub.add_image(NAME, None)
                assert (await worker.get(manifest_path(image.digest))).body == image.raw
            for worker in workers:
                assert await shown(worker) == {("up", "registry"): 0, ("up", "mirror 1"): 0, ("up", "mirror 2"): 1}


# ---- limits ----


@contextlib.contextmanager
def silent() -> Iterator[str]:
    """Give the URL of what takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}"


async def test_the_time_for_a_connection(tmp_path: Path, waited: list[float]) -> None:
    settings = {"timeouts": {"connect": "300ms", "headers": "15s"}, "retries": 2}
    with silent() as url:
        async with running(tmp_path, url=url, **settings) as (_, workers):
            begun = time.monotonic()
            answer = await workers[0].get(manifest_path("1"))
            assert answer.status == 504, answer
            assert 0.3 <= time.monotonic() - begun < 10
            assert waited == []  # it has had its time


async def test_the_time_for_headers(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"headers": "500ms"}) as (hub, workers):
        hub.fault(hang_headers=True)
        begun = time.monotonic()
        assert (await workers[0].get(manifest_path("1"))).status == 504
        assert 0.4 <= time.monotonic() - begun < 10


async def test_a_body_that_stops_is_continued(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"read": "300ms"}) as (hub, workers):
        blob = hub.add_random_blob(NAME, 500_000)
        hub.fault(blob, hang_after=200_000, times=1)
        async with asyncio.timeout(20):
            assert (await workers[0].get(blob_path(blob))).body == hub.blob(NAME, blob)
        assert [request.headers.get("Range") for request in hub.requests("GET", blob)] == [None, "bytes=200000-"]


async def test_a_body_that_trickles_is_continued(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"read": "500ms"}, minimum_rate="50KB/s") as (hub, workers):
        blob = hub.add_random_blob(NAME, 500_000)
        hub.fault(blob, rate=5_000, times=1)
        assert (await workers[0].get(blob_path(blob))).body == hub.blob(NAME, blob)
        first, second = hub.requests("GET", blob)
        assert first.sent < 100_000
        assert re.fullmatch(r"bytes=\d+-", second.headers["Range"])


async def test_a_body_that_trickles_may_when_there_is_no_minimum(tmp_path: Path) -> None:
    async with running(tmp_path, timeouts={"read": "1s"}, minimum_rate="unlimited") as (hub, workers):
        blob = hub.add_random_blob(NAME, 10_000)
        hub.fault(blob, rate=8_000)  # it takes longer than the time in which a minimum is asked for
        assert (await workers[0].get(blob_path(blob))).body == hub.blob(NAME, blob)
        assert hub.count("GET", blob) == 1


async def test_what_is_all_here_was_fast_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict(Pace):
        def check(self, received: int) -> None:
            if received >= 1000:
                raise TooSlow(received, 1, 1)

    monkeypatch.setattr(mirror.upstream.client, "Pace", Strict)
    async with running(tmp_path) as (hub, workers):
        blob = hub.add_random_blob(NAME, 1000)
        assert (await workers[0].get(blob_path(blob))).body == hub.blob(NAME, blob)
        assert hub.count("GET", blob) == 1


async def test_what_we_hold_back_ourselves_is_not_slow(tmp_path: Path) -> None:
    settings = {"timeouts": {"read": "1500ms"}, "minimum_rate": "20MB/s", "rate": "1MB/s"}
    async with running(tmp_path, **settings) as (hub, workers):
        blob = hub.add_random_blob(NAME, 3_000_000)
        assert (await workers[0].get(blob_path(blob))).body == hub.blob(NAME, blob)
        assert hub.count("GET", blob) == 1


async def test_the_rate_is_that_of_all_workers_together(tmp_path: Path) -> None:
    async with running(tmp_path, FakeUpstream(sndbuf=16_384), rate="1MB/s") as (hub, workers):
        blobs = [hub.add_random_blob(NAME, 700_000) for _ in workers]
        begun = time.monotonic()
        answers = await asyncio.gather(*(w.get(blob_path(b)) for w, b in zip(workers, blobs, strict=True)))
        elapsed = time.monotonic() - begun
        assert [answer.body for answer in answers] == [hub.blob(NAME, blob) for blob in blobs]
        assert sum(hub.bytes_sent(blob) for blob in blobs) == 2_800_000
        assert 0.8 * 2.55 <= elapsed < 10  # a quarter of a second's worth comes at once


async def test_connections_are_those_of_all_workers_together(tmp_path: Path) -> None:
    async with running(tmp_path, connections=2, timeouts=QUICK) as (hub, workers):
        blobs = [hub.add_random_blob(NAME, 200_000) for _ in range(6)]
        gate = Gate()
        hub.fault("/blobs/", gate=gate, gate_at=100_000)
        asked = [asyncio.create_task(w.get(blob_path(b))) for w, b in zip(workers * 2, blobs, strict=False)]
        await until(lambda: sum(task.done() for task in asked) == 4, "four are told to wait")
        assert hub.count("GET", "/blobs/") == 2
        for task in asked:
            if task.done():
                answer = task.result()
                assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "UNAVAILABLE", "10")
                assert re.fullmatch(
                    r"up is asked 2 things at once, which is all connections allows, and nothing is kept of "
                    r"blob \S+ of team/app; try again later",
                    told(answer),
                )
        gate.open()
        assert sorted(answer.status for answer in await asyncio.gather(*asked)) == [200] * 2 + [503] * 4
        # hits need none, and what waited gets its turn now
        for worker, blob in zip(workers * 2, blobs, strict=False):
            assert (await worker.get(blob_path(blob))).status == 200


@pytest.mark.parametrize("how", ["404", "500", "reset", "no answer", "429", "wrong", "cut", "gone", "stopped"])
async def test_a_connection_is_given_back_however_it_ends(tmp_path: Path, how: str) -> None:
    async with running(tmp_path, connections=1, timeouts=QUICK | {"read": "300ms"}) as (hub, workers):
        blob, image = hub.add_random_blob(NAME, 300_000), hub.add_image(NAME, "1")
        faults: dict[str, dict[str, Any]] = {
            "404": {"status": 404},
            "500": {"status": 500},
            "reset": {"drop": "rst"},
            "no answer": {"hang_headers": True},
            "429": {"status": 429, "headers": {"Retry-After": "0"}},
            "wrong": {"replace": bytes(300_000)},
            "cut": {"cut_after": 1000},
        }
        gate = Gate()
        hub.fault(blob, **faults.get(how, {"gate": gate, "gate_at": 100_000}))
        if how in faults:
            with contextlib.suppress(Exception):
                await workers[0].get(blob_path(blob))
        else:
            task = asyncio.create_task(workers[0].get(blob_path(blob)))
            await gate.reached()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if how == "stopped":
                await workers[0].stop()
            gate.open()
            if how == "gone":
                await kept(tmp_path / "root", blob)
        for worker in workers[1:]:
            answer = await worker.get(manifest_path("1"))
            assert (answer.status, answer.body) == (200, image.raw), answer


# ---- what people read ----

TAG = "nothing is kept of team/app:1"
MESSAGES: dict[str, tuple[dict[str, Any], int, str]] = {
    "404": ({"status": 404}, 404, "up does not have team/app:1"),
    "401": ({"status": 401}, 404, "up does not have team/app:1, or not for those without credentials"),
    "403": ({"status": 403}, 404, "up does not have team/app:1, or not for those without credentials"),
    "500": ({"status": 500}, 503, f"up answered 500 and {TAG}; try again later"),
    "503": ({"status": 503}, 503, f"up answered 503 and {TAG}; try again later"),
    "418": ({"status": 418}, 502, f"up answered 418, which makes no sense here, and {TAG}; check its url"),
    "429": ({"status": 429}, 503, f"up answered 429 and {TAG}; add credentials under upstreams.up"),
    "429 with numbers": (
        {"status": 429, "headers": {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "0;w=21600"}},
        503,
        f"up answered 429 (0 of 100 pulls left) and {TAG}; add credentials under upstreams.up",
    ),
    "no answer": ({"hang_headers": True}, 504, f"up does not answer (no answer in time) and {TAG}; try again later"),
    "closed": (
        {"drop": "fin"},
        502,
        "up cannot be reached (the connection was closed before an answer came) and "
        f"{TAG}; check that its host is up and can be reached from here",
    ),
    "cut": (
        {"cut_after": 10},
        503,
        f"up broke the transfer off (the body is shorter than announced) and {TAG}; try again",
    ),
}
SECRET_BODY = b"a secret of the upstream's \x1b[31m"


@pytest.mark.parametrize(("fault", "status", "message"), MESSAGES.values(), ids=MESSAGES)
async def test_a_message_says_who_what_and_what_to_do(
    tmp_path: Path, clock: Clock, fault: dict[str, Any], status: int, message: str
) -> None:
    async with running(tmp_path, timeouts=QUICK) as (hub, workers):
        hub.add_image(NAME, "1")
        hub.fault("manifests", **({"body": SECRET_BODY} if "status" in fault else {}), **fault)
        answer = await workers[0].get(manifest_path("1"))
        assert (answer.status, told(answer)) == (status, message)
        assert b"secret" not in answer.body


async def test_nothing_listens_reads_well(tmp_path: Path) -> None:
    async with running(tmp_path) as (hub, workers):
        await hub.stop()
        answer = await workers[0].get(manifest_path("1"))
        assert told(answer) == (
            f"up cannot be reached (no connection to 127.0.0.1:{hub.port}: Connection refused) and {TAG}; "
            "check that its host is up and can be reached from here"
        )


async def test_a_cdn_that_fails_is_named(tmp_path: Path) -> None:
    hub = FakeUpstream(redirect=True)
    hub.redirect_host = "localhost"
    async with running(tmp_path, hub) as (hub, workers):
        blob = hub.add_random_blob(NAME, 10)
        said = {}
        for status in (403, 429, 500):
            hub.fail("cdn", status=status, headers={"Retry-After": "7"})
            answer = await workers[0].get(blob_path(blob))
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
            said[status] = told(answer)
            hub.clear_faults()
        assert said == {
            status: f"up (localhost) answered {status} and nothing is kept of blob {blob} of team/app; try again later"
            for status in (403, 429, 500)
        }
        # and its 429 rests nobody at the registry
        image = hub.add_image(NAME, "1")
        assert (await workers[0].get(manifest_path("1"))).body == image.raw
