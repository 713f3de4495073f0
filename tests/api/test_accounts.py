"""Several accounts at one upstream, and what is left of their pulls: whom to ask as, at four workers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.config import Credentials
from mirror.upstream import asking
from tests.fake_upstream import FakeUpstream, Gate, Image, Request
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    kept,
    manifest_path,
    pull,
    pull_and_keep,
    until,
    use_clock,
    warning,
)

WORKERS = 4
PASSWORDS = {"one": "secret-of-one", "two": "secret-of-two"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_clock(monkeypatch)


def accounts(tmp_path: Path, *users: str | None) -> list[Credentials]:
    """Return accounts of these users; None has a file, but no login in it for this registry."""
    found = []
    for user in users:
        path = tmp_path / f"password-of-{user}"
        path.write_text(PASSWORDS[user] if user else "{}")
        found.append(Credentials(username=user, password_file=path) if user else Credentials(docker_config=path))
    return found


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, *users: str | None, pulls: dict[str | None, int] | None = None, **settings: Any
) -> AsyncIterator[tuple[FakeUpstream, list[Mirror]]]:
    """Run four workers in front of a hub with accounts of these users at it, and beside it an upstream without any."""
    hub = FakeUpstream(auth="token", users=PASSWORDS, pulls=pulls)
    async with hub, FakeUpstream() as other:
        up = {"url": hub.url, "credentials": accounts(tmp_path, *users)} | settings
        config = make_config(tmp_path / "root", {"up": up, "other": {"url": other.url}})
        async with mirrors(config, WORKERS) as workers:
            yield hub, workers


def who(hub: FakeUpstream, request: Request) -> str | None:
    token = hub.tokens.get((request.authorization or "").removeprefix("Bearer "))
    return token.user if token else None


def asked_as(hub: FakeUpstream, method: str, part: str = "/manifests/") -> list[str | None]:
    """Return as whom something was asked for, each time, but for what only got a challenge."""
    return [who(hub, request) for request in hub.requests(method, part) if request.status != 401]


def told(answer: Answer) -> str:
    """Return the message of an error, which says nothing secret."""
    text = answer.body.decode()
    assert not any(secret in text for secret in PASSWORDS.values()), text
    message: str = json.loads(text)["errors"][0]["message"]
    return message


async def learn(workers: Sequence[Mirror], hub: FakeUpstream, users: int) -> None:
    """Let one worker ask as each account once, by HEADs that cost nothing."""
    for n in range(users):
        hub.add_image(NAME, f"learn-{n}")
        assert (await workers[0].head(manifest_path(f"learn-{n}"))).status == 200
    assert len(set(asked_as(hub, "HEAD"))) == users
    hub.clear_log()


# ---- whom to ask as ----


async def test_all_workers_ask_as_who_has_most_left(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, "one", "two", pulls={"one": 3, "two": 8}) as (hub, workers):
        await learn(workers, hub, 2)
        for n, worker in enumerate((*workers[1:], *workers)):
            await pull(worker, hub.add_image(NAME, str(n)))
        assert asked_as(hub, "GET")[:5] == ["two"] * 5
        assert set(asked_as(hub, "HEAD")[:3] + asked_as(hub, "GET", "/blobs/")[:6]) == {"two"}
        assert hub.pulled == {"two": 6, "one": 1}  # three left of each after five: the first in the settings


def refusing(hub: FakeUpstream, *users: str | None) -> None:
    """Let the hub refuse these users, None being whoever has no login, once it knows who asks."""
    hub.refuse = lambda request: "Bearer" in (request.authorization or "") and who(hub, request) in users


def limiting(hub: FakeUpstream, user: str, method: str = "", **what: Any) -> None:
    """Let the hub answer 429 to a user's requests for manifests."""
    hub.fault(
        lambda request: who(hub, request) == user and "/manifests/" in request.path and method in request.method,
        **({"status": 429} | what),
    )


@pytest.mark.parametrize("how", ["429", "403", "401 of the realm", "429 of the realm", "no password"])
async def test_the_next_is_asked_at_once(tmp_path: Path, clock: Clock, how: str) -> None:
    async with running(tmp_path, "one", "two") as (hub, workers):
        match how:
            case "429":
                limiting(hub, "one")
            case "403":
                refusing(hub, "one")
            case "401 of the realm":
                hub.users["one"] = "another"
            case "429 of the realm":
                hub.fault(
                    lambda request: request.path == "/token" and login_of("one") in str(request.headers), status=429
                )
            case "no password":
                (tmp_path / "password-of-one").unlink()
        for n, worker in enumerate(workers):
            image = hub.add_image(NAME, str(n))
            await pull(worker, image)
            again = hub.add_image(NAME, f"{n} again".replace(" ", "-"))
            hub.clear_log()
            await pull(worker, again)
            assert {who(hub, request) for request in hub.log} <= {"two", None}  # who was refused is asked last
        assert not hub.authorizations("cdn")


def login_of(user: str) -> str:
    return base64.b64encode(f"{user}:{PASSWORDS[user]}".encode()).decode()


async def test_a_429_rests_one_account_for_all_workers(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, "one", "two") as (hub, workers):
        limiting(hub, "one", "GET")
        await pull(workers[0], hub.add_image(NAME, "1"))
        assert asked_as(hub, "GET") == ["one", "two"]
        hub.clear_faults()
        hub.clear_log()
        for n, worker in enumerate(workers):
            await pull(worker, hub.add_image(NAME, f"more-{n}"))
        assert asked_as(hub, "GET") == ["two"] * WORKERS
        # what costs nothing is asked as the first all the while
        assert set(asked_as(hub, "HEAD") + asked_as(hub, "GET", "/blobs/")) == {"one"}
        clock.advance(61)
        await pull(workers[2], hub.add_image(NAME, "later"))
        assert asked_as(hub, "GET")[-1] == "one"


@pytest.mark.parametrize("rests", ["now", "before"])
@pytest.mark.parametrize("other", [None, "two"], ids=["nobody", "another"])
async def test_who_is_refused_does_not_answer_for_who_has_to_wait(
    tmp_path: Path, clock: Clock, rests: str, other: str | None
) -> None:
    async with running(tmp_path, "one", other, tags={"fresh_for": "10s"}) as (hub, workers):
        refusing(hub, other)
        image = hub.add_image(NAME, "1")
        await pull_and_keep(workers[0], tmp_path / "root", image)
        clock.advance(11)
        limiting(hub, "one", times=1 if rests == "before" else None)
        if rests == "before":
            assert (await workers[0].get(manifest_path("2"))).status == 503
        answer = await workers[1].get(manifest_path("3"))
        assert (answer.status, answer.code) == (503, "UNAVAILABLE"), answer
        assert "answered 429" in told(answer)
        answer = await workers[2].get(manifest_path("1"))
        assert (answer.status, answer.body) == (200, image.raw), answer
        assert "answered 429" in (warning(answer) or "")
        if rests == "before":
            assert asked_as(hub, "HEAD").count("one") == 2  # nobody asked as it while it had to wait


@pytest.mark.parametrize("first", [None, "one"], ids=["nobody first", "nobody last"])
async def test_what_is_refused_to_everybody_is_denied(tmp_path: Path, clock: Clock, first: str | None) -> None:
    users = (None, "one") if first is None else ("one", None)
    async with running(tmp_path, *users) as (hub, workers):
        refusing(hub, *users)
        for worker in workers:
            answer = await worker.get(manifest_path("1"))
            assert (answer.status, answer.code) == (403, "DENIED"), answer
            assert told(answer) == (
                "up answered 403 to 'one' and nothing is kept of team/app:1; "
                "check its rights there, and credentials.password_file under upstreams.up"
            )


async def test_a_login_that_cannot_be_used_is_not_a_404(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, None, "one") as (hub, workers):
        refusing(hub, None)
        hub.add_image(NAME, "1")
        (tmp_path / "password-of-one").unlink()
        answer = await workers[0].get(manifest_path("1"))
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        assert "credentials.password_file" in told(answer)
        (tmp_path / "password-of-one").write_text(PASSWORDS["one"])
        assert (await workers[1].get(manifest_path("1"))).status == 200


# ---- nothing left ----

USED_UP = "docker.io answered 429 (0 of {of} pulls left) and nothing is kept of library/x:1; {advice}"
ADVICE = {
    (): "add credentials under upstreams.docker.io",
    ("one", "two"): "try again later, or add an account under upstreams.docker.io.credentials",
}


@pytest.mark.parametrize("users", ADVICE, ids=["anonymous", "accounts"])
async def test_with_nothing_left(tmp_path: Path, clock: Clock, users: tuple[str, ...]) -> None:
    asking: tuple[str | None, ...] = users or (None,)
    hub = FakeUpstream(auth="token", users=PASSWORDS, pulls=dict.fromkeys(asking, 100))
    name = "docker.io/library/x"
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(hub)
        up = {"url": hub.url, "credentials": accounts(tmp_path, *users), "retries": 2}
        workers = await stack.enter_async_context(mirrors(make_config(tmp_path / "root", {"docker.io": up}), WORKERS))
        old = hub.add_image("library/x", "old")
        await pull_and_keep(workers[0], tmp_path / "root", old, name=name)
        for n in range(1, 5):
            hub.add_image("library/x", f"{n}")
        hub.pulled |= dict.fromkeys(asking, 100)
        hub.clear_log()
        for worker in (*workers, *workers):
            answer = await worker.get(manifest_path("1", name))
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert told(answer) == USED_UP.format(of=100 * len(asking), advice=ADVICE[users])
            assert answer.headers["Retry-After"] == "60"
        assert sorted(map(str, asked_as(hub, "GET"))) == sorted(map(str, asking))
        # what costs nothing goes on
        hub.clear_log()
        extra = hub.add_random_blob("library/x", 1000)
        assert (await workers[1].head(manifest_path("2", name))).status == 200
        assert (await workers[2].get(blob_path(extra, name))).status == 200
        # what is kept is answered
        clock.advance(50)
        assert (await workers[3].get(manifest_path(old.digest, name))).body == old.raw
        answer = await workers[3].get(manifest_path("old", name))
        assert (answer.status, answer.body, warning(answer)) == (200, old.raw, None)
        assert asked_as(hub, "GET") == []
        # until there are some again
        hub.pulled.clear()
        clock.advance(20)
        assert (await workers[0].get(manifest_path("3", name))).status == 200


@pytest.mark.parametrize("retries", [2, 0])
async def test_a_short_429_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retries: int) -> None:
    clock = use_clock(monkeypatch)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock.advance(seconds)

    monkeypatch.setattr(asking, "sleep", sleep)
    async with running(tmp_path, retries=retries) as (hub, workers):
        hub.auth = None
        image = hub.add_image(NAME, "1")
        hub.fail("GET /v2/team/app/manifests", status=429, headers={"Retry-After": "2"}, times=1)
        assert (await workers[0].get(manifest_path("1"))).status == (200 if retries else 503)
        assert len(waited) == (1 if retries else 0)
        assert all(2 < seconds <= 2.1 for seconds in waited)
        clock.advance(10)
        hub.add_image(NAME, "2")
        hub.fail("GET /v2/team/app/manifests", status=429, headers={"Retry-After": "2"})
        answer = await workers[1].get(manifest_path("2"))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
        assert len(waited) == (2 if retries else 0)
        hub.clear_faults()
        clock.advance(10)
        hub.fail("GET /v2/team/app/manifests", status=429, headers={"Retry-After": "4"})
        answer = await workers[2].get(manifest_path("2"))
        assert (answer.status, answer.headers["Retry-After"]) == (503, "4")
        assert len(waited) == (2 if retries else 0)
        assert (await workers[3].get(manifest_path("1"))).body == image.raw if retries else True


@pytest.mark.parametrize("together", [True, False])
async def test_many_clients_at_once_spend_what_is_left_and_hardly_more(
    tmp_path: Path, clock: Clock, together: bool
) -> None:
    async with running(tmp_path, "one", "two", pulls={"one": 4, "two": 6}) as (hub, workers):
        await learn(workers, hub, 2)
        images = [hub.add_image(NAME, str(n)) for n in range(40)]
        gate = Gate()
        hub.fault(lambda request: request.method == "GET" and "/manifests/" in request.path, gate_headers=gate)
        asked = [
            asyncio.create_task(workers[n % WORKERS].get(manifest_path(image.digest))) for n, image in enumerate(images)
        ]
        if together:
            await until(lambda: sum(task.done() for task in asked) == 28, "who is not let through is told so")
        gate.open()
        statuses = sorted(answer.status for answer in await asyncio.gather(*asked))
        assert statuses == [200] * 10 + [503] * 30
        assert hub.pulled == {"one": 4, "two": 6}
        assert len(asked_as(hub, "GET")) <= 10 + 4  # of each one to find out, and one that an answer under way let in


# ---- a floor ----


async def test_under_the_floor_a_moved_tag_is_answered_as_it_was(tmp_path: Path, clock: Clock) -> None:
    async with running(
        tmp_path, "one", "two", pulls={"one": 10, "two": 10}, quota_floor="30%", tags={"fresh_for": "60s"}
    ) as (hub, workers):
        still, moving = hub.add_image(NAME, "still"), hub.add_image(NAME, "moving")
        await pull_and_keep(workers[0], tmp_path / "root", still, moving)
        hub.pulled["one"], hub.pulled["two"] = 8, 7
        moved = hub.add_image(NAME, "moving")
        # one of them has as much as is to be left: the tag moves
        clock.advance(61)
        await learn(workers, hub, 2)
        await pull(workers[1], moved)
        assert hub.pulled == {"one": 8, "two": 8}
        await kept(tmp_path / "root", moved.digest, *moved.blobs)
        # now both have less
        clock.advance(61)
        latest = hub.add_image(NAME, "moving")
        hub.clear_log()
        for worker in workers:
            answer = await worker.get(manifest_path("moving"))
            assert (answer.status, answer.body) == (200, moved.raw)
            assert warning(answer) is not None
            assert "up has 4 of 20 pulls left, which is under quota_floor" in (warning(answer) or "")
        assert len(asked_as(hub, "HEAD", "/manifests/moving")) == 1
        answer = await workers[2].get(manifest_path("still"))
        assert (answer.status, answer.body, warning(answer)) == (200, still.raw, None)
        await workers[3].get(manifest_path("still"))
        assert len(asked_as(hub, "HEAD", "/manifests/still")) == 1
        assert asked_as(hub, "GET") == []
        # what nobody has yet is worth it, by its tag and by its digest
        await pull(workers[0], hub.add_image(NAME, "new"))
        assert len(asked_as(hub, "GET")) == 1
        assert (await workers[1].get(manifest_path(latest.digest))).body == latest.raw
        # which is now here: the tag moves without a GET
        clock.advance(10)
        answer = await workers[2].get(manifest_path("moving"))
        assert (answer.body, warning(answer)) == (latest.raw, None)
        assert len(asked_as(hub, "GET")) == 2


async def test_under_the_floor_an_image_that_is_not_all_here_is_fetched(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, pulls={None: 10}, quota_floor="50%", tags={"fresh_for": "60s"}) as (hub, workers):
        image = hub.add_image(NAME, "1")
        assert (await workers[0].get(manifest_path("1"))).body == image.raw
        hub.pulled[None] = 9
        moved = hub.add_image(NAME, "1")
        clock.advance(61)
        assert (await workers[1].get(manifest_path("1"))).body == moved.raw


async def test_without_a_floor_the_last_is_spent(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, pulls={None: 10}, tags={"fresh_for": "60s"}) as (hub, workers):
        image = hub.add_image(NAME, "1")
        await pull_and_keep(workers[0], tmp_path / "root", image)
        hub.pulled[None] = 9
        moved = hub.add_image(NAME, "1")
        clock.advance(61)
        assert (await workers[1].get(manifest_path("1"))).body == moved.raw
        assert hub.pulled[None] == 10


# ---- rights ----


async def is_public(worker: Mirror, image: Image) -> bool:
    """Say whether what was pulled can be read through an upstream that does not have it."""
    answers = [await worker.get(blob_path(digest, "other/x/y")) for digest in image.blobs]
    answers.append(await worker.get(manifest_path(image.digest, "other/x/y")))
    assert len({answer.status for answer in answers}) == 1
    return answers[0].status == 200


@pytest.mark.parametrize(
    ("users", "private", "public"),
    [
        ((None, "one"), False, True),
        ((None, "one"), True, False),
        (("one", None), False, False),
    ],
    ids=["nobody could", "nobody could not", "a login went first"],
)
async def test_public_is_what_was_fetched_without_a_login(
    tmp_path: Path, clock: Clock, users: tuple[str | None, ...], private: bool, public: bool
) -> None:
    async with running(tmp_path, *users) as (hub, workers):
        refusing(hub, *((None,) if private else ()))
        image = hub.add_image(NAME, "1")
        await pull_and_keep(workers[0], tmp_path / "root", image)
        for worker in workers:
            assert await is_public(worker, image) is public


@pytest.mark.parametrize(
    ("users", "public"),
    [((None, "one"), False), (("one", None), False), ((None, None), True)],
    ids=["nobody, then a login", "a login, then nobody", "nobody twice"],
)
async def test_a_blob_continued_as_somebody_else(
    tmp_path: Path, clock: Clock, users: tuple[str | None, ...], public: bool
) -> None:
    async with running(tmp_path, *users) as (hub, workers):
        blob = hub.add_random_blob(NAME, 500_000)
        first = users[0]
        hub.fault(blob, cut_after=200_000, times=1)
        hub.fault(lambda request: blob in request.path and "Range" in request.headers, status=429, times=1)
        answer = await workers[0].get(blob_path(blob))
        assert (answer.status, answer.body) == (200, hub.blob(NAME, blob))
        asked = [(who(hub, r), r.status) for r in hub.requests("GET", blob) if r.status != 401]
        assert asked == [(first, 200), (first, 429), (users[1], 206)]
        await kept(tmp_path / "root", blob)
        status = (await workers[1].get(blob_path(blob, "other/x/y"))).status
        assert status == (200 if public else 404)


# ---- shown ----


async def shown(worker: Mirror, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric: its labels' values, by the labels' names → number."""
    text = (await worker.get("/metrics")).body.decode()
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_any_worker_shows_what_all_know(tmp_path: Path, clock: Clock) -> None:
    async with running(tmp_path, "one", "two", pulls={"one": 3, "two": 8}) as (hub, workers):
        for worker in workers:
            assert await shown(worker, "mirror_upstream_quota_limit") == {}
            assert await shown(worker, "mirror_upstream_quota_pause_seconds") == {
                ("1", "up"): 0,
                ("2", "up"): 0,
                ("1", "other"): 0,
            }
        await learn(workers, hub, 2)
        await pull(workers[1], hub.add_image(NAME, "1"))
        limiting(hub, "one")
        hub.pulled["two"] = 8
        limiting(hub, "two", status=429, headers={"Retry-After": "30"})
        await workers[2].get(manifest_path(hub.add_image(NAME, "2").digest))
        clock.advance(10)
        for worker in workers:
            assert await shown(worker, "mirror_upstream_quota_limit") == {("1", "up"): 3, ("2", "up"): 8}
            assert await shown(worker, "mirror_upstream_quota_remaining") == {("1", "up"): 2, ("2", "up"): 6}
            assert await shown(worker, "mirror_upstream_quota_pause_seconds") == {
                ("1", "up"): 50,
                ("2", "up"): 20,
                ("1", "other"): 0,
            }
