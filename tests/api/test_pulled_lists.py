"""Tags and referrers of upstreams' repositories: whole, fresh, stale, gone; once for all who wait.

Several mirrors on one root stand for several processes: they share nothing but the disk.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.names import parse_digest, referrers_tag
from mirror.registry import pulled_lists, remembered
from mirror.registry.tags import REMEMBER_404, RETRY_AFTER
from mirror.store.residency import Residency
from mirror.upstream import client as upstream_client
from mirror.upstream.transport import Timeouts
from tests.fake_upstream import INDEX, FakeUpstream, Gate, Image, digest_of
from tests.harness import Answer, Mirror, mirror, mirrors
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
from tests.pushed import next_of, pages

FRESH = 60.0
SBOM, SIGNATURE = "application/spdx+json", "application/vnd.dev.sigstore.bundle.v0.3+json"
LIST = f"/v2/up/{NAME}/tags/list"


def tags_path(name: str = f"up/{NAME}", query: str = "") -> str:
    return f"/v2/{name}/tags/list{query}"


def referrers_path(subject: Image | str, name: str = f"up/{NAME}", query: str = "") -> str:
    return f"/v2/{name}/referrers/{subject if isinstance(subject, str) else subject.digest}{query}"


def add_tags(hub: FakeUpstream, *tags: str, name: str = NAME) -> Image:
    """Hold one image under many tags."""
    image = hub.add_image(name, None, [100])
    for tag in tags:
        hub.set_tag(name, tag, image.digest)
    return image


def tags_of(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    found: list[str] = json.loads(answer.body)["tags"]
    return found


def digests_of(answer: Answer) -> list[str]:
    assert answer.status == 200, answer
    assert answer.headers["Content-Type"] == INDEX
    index = json.loads(answer.body)
    assert (index["schemaVersion"], index["mediaType"]) == (2, INDEX)
    return [entry["digest"] for entry in index["manifests"]]


def asked(hub: FakeUpstream, what: str = "tags/list") -> int:
    """Return how often a list was asked for."""
    return hub.count("GET", what, server="registry")


def listed(image: Image) -> dict[str, Any]:
    """Return the entry of an artifact as the upstream lists it."""
    body = json.loads(image.raw)
    return {**image.descriptor, "artifactType": body["artifactType"], "annotations": body["annotations"]}


def use_tag(hub: FakeUpstream, subject: Image, *entries: dict[str, Any]) -> tuple[str, str]:
    """List referrers under the tag, as clients do where there is no API; return it and the digest of the index."""
    hub.referrers_api = False
    tag = referrers_tag(parse_digest(subject.digest))
    return tag, hub.add_manifest(NAME, {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}, tag)


@pytest.fixture(params=["tags", "referrers by the api", "referrers by the tag"])
def either(request: pytest.FixtureRequest, hub: FakeUpstream) -> Either:
    """Give each kind of list, for what is the same of all."""
    return Either(hub, request.param)


class Either:
    """One kind of list with something in it. path: ours; match: of the upstream's requests for it."""

    def __init__(self, hub: FakeUpstream, kind: str) -> None:
        self.hub = hub
        self.kind = kind
        self.subject = add_tags(hub, "v1", "v2")
        self.path = LIST if kind == "tags" else referrers_path(self.subject)
        self.match = "tags/list" if kind == "tags" else "/referrers/"
        self._artifacts: list[Image] = []
        self.more()

    def more(self) -> None:
        """Let the upstream have one entry more."""
        n = len(self._artifacts)
        artifact = self.hub.add_artifact(NAME, self.subject, SBOM, f"{n}".encode(), annotations={"n": f"{n}"})
        self._artifacts.append(artifact)
        if self.kind == "tags":
            self.hub.set_tag(NAME, f"w{n}", artifact.digest)
        elif self.kind == "referrers by the tag":
            use_tag(self.hub, self.subject, *map(listed, self._artifacts))

    def wanted(self) -> list[str]:
        """Return the entries there are at the upstream now."""
        if self.kind == "tags":
            return ["v1", "v2", *(f"w{n}" for n in range(len(self._artifacts)))]
        return sorted(artifact.digest for artifact in self._artifacts)

    def entries(self, answer: Answer) -> list[str]:
        return tags_of(answer) if self.kind == "tags" else digests_of(answer)

    def asked(self) -> int:
        return asked(self.hub, self.match)


# ---- fresh and stale ----


async def test_a_fresh_list_is_answered_without_the_upstream_by_every_worker(
    tmp_path: Path, either: Either, clock: Clock
) -> None:
    wanted = either.wanted()
    async with mirrors(config_for(tmp_path, either.hub), 4) as workers:
        first = await workers[0].get(either.path)
        assert either.entries(first) == wanted
        assert first.headers["Cache-Status"] == "mirror; fwd=uri-miss; stored"
        assert either.asked() == 1
        either.hub.clear_log()
        clock.advance(FRESH - 1)
        for worker in (*workers, *workers):
            for method in ("GET", "HEAD"):
                answer = await worker.ask(method, either.path)
                assert answer.status == 200
                assert answer.headers["Cache-Status"] == "mirror; hit"
                assert answer.headers["Content-Length"] == str(len(first.body))
                assert answer.body == (first.body if method == "GET" else b"")
                assert warning(answer) is None
        assert either.hub.log == []


async def test_a_stale_list_is_asked_for_anew_once(tmp_path: Path, either: Either, clock: Clock) -> None:
    async with mirrors(config_for(tmp_path, either.hub, tags={"revalidate_wait": 10}), 4) as workers:
        before = either.wanted()
        for worker in workers:
            assert either.entries(await worker.get(either.path)) == before
        clock.advance(FRESH + 1)
        either.hub.clear_log()
        either.more()
        for worker in workers:
            answer = await worker.get(either.path)
            assert either.entries(answer) == either.wanted()
            assert len(either.wanted()) == len(before) + 1
            assert warning(answer) is None
        assert either.asked() == 1


async def test_fresh_for_is_a_setting(tmp_path: Path, either: Either) -> None:
    settings = {"fresh_for": 0, "revalidate_wait": 10}
    async with mirror(config_for(tmp_path, either.hub, tags=settings)) as worker:
        for count in (1, 2, 3):
            assert either.entries(await worker.get(either.path)) == either.wanted()
            assert either.asked() == count


DAY = 86_400.0


@pytest.mark.parametrize(
    ("tags", "entries", "seconds"),
    [
        ({}, ["a"], 30 * DAY),
        ({"stale_for": "1h"}, ["a"], FRESH + 3600),
        ({"stale_for": 0}, ["a"], FRESH),
        ({"fresh_for": 0, "stale_for": 0}, ["a"], 2.0),  # until those who wait have looked
        ({"stale_for": "90d"}, ["a"], 30 * DAY),
        ({"fresh_for": "90d"}, ["a"], 30 * DAY),
        ({}, [], FRESH + DAY),
        ({"stale_for": "1h"}, [], FRESH + 3600),
    ],
)
async def test_how_long_a_list_is_kept(
    tmp_path: Path,
    hub: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    tags: dict[str, Any],
    entries: list[str],
    seconds: float,
) -> None:
    """One without entries for a day: anybody can ask for any number of those."""
    remember, noted = Residency.remember, []

    async def note(self: Residency, key: str, answer: str, seconds: float) -> None:
        noted.append((key, seconds))
        await remember(self, key, answer, seconds)

    monkeypatch.setattr(Residency, "remember", note)
    hub.fail("tags/list", status=200, body=json.dumps({"tags": entries}).encode())
    async with mirror(config_for(tmp_path, hub, tags=tags)) as worker:
        assert tags_of(await worker.get(LIST)) == entries
    assert noted == [(f"list of tags in up|{NAME}", seconds)]


async def test_a_fresh_list_is_answered_from_memory(
    tmp_path: Path, either: Either, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall, recalled = Residency.recall, []

    async def note(self: Residency, key: str) -> str | None:
        recalled.append(key)
        return await recall(self, key)

    monkeypatch.setattr(Residency, "recall", note)
    async with mirrors(config_for(tmp_path, either.hub), 2) as workers:
        for worker in workers:
            await worker.get(either.path)
        recalled.clear()
        for worker in (*workers, *workers):
            assert either.entries(await worker.get(either.path)) == either.wanted()
        assert recalled == []
        clock.advance(FRESH)
        await workers[0].get(either.path)
        assert recalled


# ---- once for all ----


@pytest.mark.parametrize("stale", [False, True], ids=["cold", "stale"])
async def test_40_clients_of_4_workers_cost_one_request_and_one_token(
    tmp_path: Path, either: Either, clock: Clock, stale: bool
) -> None:
    hub = either.hub
    hub.auth, hub.token_lifetime = "token", 90
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": 10}), 4) as workers:
        if stale:
            await workers[0].get(either.path)
            clock.advance(FRESH + 1)
        hub.clear_log()
        hub.expire_tokens()
        gate = Gate()
        hub.fault(either.match, gate_headers=gate)
        asking = [asyncio.create_task(workers[n % 4].get(either.path)) for n in range(40)]
        await gate.reached()
        gate.open()
        answers = await asyncio.gather(*asking)
        assert all(either.entries(answer) == either.wanted() and warning(answer) is None for answer in answers)
        # one that needs no token, or an old one, is refused and comes again with a new one
        assert [request.status for request in hub.requests("GET", either.match)] == [
            401,
            200 if hub.referrers_api else 404,
        ]
        assert hub.count(None, "/token") == 1


async def test_a_failure_with_nothing_remembered_is_shared_by_all_who_waited(tmp_path: Path, either: Either) -> None:
    either.hub.fault(either.match, delay=0.2, status=503)
    async with mirrors(config_for(tmp_path, either.hub), 4) as workers:
        one = await workers[0].get(either.path)
        assert one.status == 503
        each = either.asked()  # of one client alone
        either.hub.clear_log()
        answers = await asyncio.gather(*(workers[n % 4].get(either.path) for n in range(40)))
        assert {(answer.status, answer.code) for answer in answers} == {(503, "UNAVAILABLE")}
        assert either.asked() == each
        either.hub.clear_faults()
        assert either.entries(await workers[1].get(either.path)) == either.wanted()


async def test_a_404_is_shared_by_all_who_waited(tmp_path: Path, hub: FakeUpstream) -> None:
    gate = Gate()
    hub.fault("tags/list", status=404, gate_headers=gate)
    async with mirrors(config_for(tmp_path, hub, tags={"fresh_for": 0}), 4) as workers:
        asking = [asyncio.create_task(workers[n % 4].get(LIST)) for n in range(40)]
        await gate.reached()
        gate.open()
        answers = await asyncio.gather(*asking)
        assert {(answer.status, answer.code) for answer in answers} == {(404, "NAME_UNKNOWN")}
        assert asked(hub) == 1


async def test_clients_that_leave_stop_nothing(tmp_path: Path, either: Either) -> None:
    gate = Gate()
    either.hub.fault(either.match, gate_headers=gate)
    async with mirrors(config_for(tmp_path, either.hub), 2) as workers:
        leaving = [asyncio.create_task(worker.get(either.path)) for worker in workers]
        await gate.reached()
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        gate.open()
        for worker in (*workers, *workers):
            assert either.entries(await worker.get(either.path)) == either.wanted()
        assert either.asked() == 1


# ---- the upstream is slow, or fails ----


async def test_a_slow_check_is_waited_for_only_so_long_and_its_result_is_used(
    tmp_path: Path, either: Either, clock: Clock
) -> None:
    async with mirrors(config_for(tmp_path, either.hub, tags={"revalidate_wait": "50ms"}), 2) as workers:
        old = either.wanted()
        assert either.entries(await workers[0].get(either.path)) == old
        either.more()
        either.hub.clear_log()
        clock.advance(FRESH + 1)
        gate = Gate()
        either.hub.fault(either.match, gate_headers=gate)
        for worker in (*workers, *workers):
            answer = await worker.get(either.path)
            assert either.entries(answer) == old
            assert "has not answered yet" in (warning(answer) or "")
            assert answer.headers["Cache-Status"] == "mirror; hit; detail=stale"
        assert either.asked() == 1
        gate.open()
        new = either.wanted()
        assert new != old
        async with asyncio.timeout(10):
            while either.entries(answer := await workers[1].get(either.path)) != new:
                await asyncio.sleep(0.01)
        assert warning(answer) is None
        assert either.asked() == 1


async def test_with_nothing_remembered_an_upstream_that_hangs_is_a_504_in_time(
    tmp_path: Path, either: Either, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "HEADERS_WITHIN", 0.3)
    gate = Gate()
    either.hub.fault(either.match, gate_headers=gate)
    async with mirrors(config_for(tmp_path, either.hub, tags={"revalidate_wait": "1ms"}), 2) as workers:
        for worker in workers:
            answer = await worker.get(either.path)
            assert (answer.status, answer.code) == (504, "UNAVAILABLE")
            assert "Cache-Status" not in answer.headers
        gate.open()
        monkeypatch.setattr(remembered, "HEADERS_WITHIN", 10)
        for worker in workers:  # what was asked then goes on
            assert either.entries(await worker.get(either.path)) == either.wanted()
        assert either.asked() == 1


async def test_a_list_that_takes_for_ever_is_given_up(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nobody waits: what has its lease keeps everybody from asking."""
    monkeypatch.setattr(remembered, "FETCH_WITHIN", 0.2)
    add_tags(hub, "v1")
    hub.fault("tags/list", hang_headers=True, times=1)
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        answer = await workers[0].get(LIST)
        assert (answer.status, answer.code) == (504, "UNAVAILABLE")
        assert "all tags in team/app" in json.loads(answer.body)["errors"][0]["message"]
        assert tags_of(await workers[1].get(LIST)) == ["v1"]


async def test_in_an_outage_what_is_remembered_is_answered_with_a_warning(
    tmp_path: Path, either: Either, clock: Clock
) -> None:
    async with mirrors(config_for(tmp_path, either.hub), 4) as workers:
        wanted = either.wanted()
        assert either.entries(await workers[0].get(either.path)) == wanted
        await either.hub.stop()
        clock.advance(10**6)
        for worker in workers:
            answer = await worker.get(either.path)
            assert either.entries(answer) == wanted
            assert (warning(answer) or "").startswith('299 - "stale since 2027-')
            assert answer.headers["Cache-Status"] == "mirror; hit; detail=stale"
            head = await worker.head(either.path)
            assert (head.status, warning(head)) == (200, warning(answer))
        line = workers[0].lines[-1]
        assert (line["upstream"], line["cache"], line["repository"]) == (
            "up",
            "mirror; hit; detail=stale",
            f"up/{NAME}",
        )


async def test_after_a_failed_check_no_worker_asks_again_for_a_while(
    tmp_path: Path, either: Either, clock: Clock
) -> None:
    async with mirrors(config_for(tmp_path, either.hub, tags={"revalidate_wait": 10}), 3) as workers:
        old = either.wanted()
        assert either.entries(await workers[0].get(either.path)) == old
        fault = either.hub.fail(either.match, status=500)
        either.hub.clear_log()
        clock.advance(FRESH + 1)
        for worker in (*workers, *workers):
            answer = await worker.get(either.path)
            assert either.entries(answer) == old
            assert "500" in (warning(answer) or "")
        each = either.asked()
        assert each == fault.hits >= 1
        clock.advance(RETRY_AFTER + 0.1)
        assert "500" in (warning(await workers[2].get(either.path)) or "")
        assert either.asked() == 2 * each
        either.hub.clear_faults()
        assert "500" in (warning(await workers[1].get(either.path)) or "")  # still within the pause
        assert either.asked() == 2 * each
        clock.advance(RETRY_AFTER + 0.1)
        answer = await workers[0].get(either.path)
        assert (either.entries(answer), warning(answer)) == (either.wanted(), None)
        assert either.asked() == 2 * each + 1


async def test_a_failure_before_a_good_answer_is_forgotten(tmp_path: Path, either: Either, clock: Clock) -> None:
    """A list that is stale again within the pause after a failure has been had since: it can be asked for."""
    settings = {"fresh_for": 1, "revalidate_wait": 10}
    async with mirrors(config_for(tmp_path, either.hub, tags=settings), 2) as workers:
        fault = either.hub.fail(either.match, status=503, headers={"Retry-After": "100"})
        assert (await workers[0].get(either.path)).status == 503
        assert fault.hits
        either.hub.clear_faults()
        clock.advance(1)
        assert either.entries(await workers[0].get(either.path)) == either.wanted()
        clock.advance(2)
        answer = await workers[1].get(either.path)
        assert (either.entries(answer), warning(answer)) == (either.wanted(), None)


async def test_stale_for_is_a_limit(tmp_path: Path, either: Either, clock: Clock) -> None:
    async with mirrors(config_for(tmp_path, either.hub, tags={"stale_for": "1h"}), 2) as workers:
        wanted = either.wanted()
        assert either.entries(await workers[0].get(either.path)) == wanted
        await either.hub.stop()
        clock.advance(FRESH + 3599)
        answer = await workers[1].get(either.path)
        assert either.entries(answer) == wanted
        assert warning(answer)
        clock.advance(2)
        answer = await workers[1].get(either.path)
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")


async def test_with_nothing_remembered_an_outage_is_no_empty_list(tmp_path: Path, either: Either) -> None:
    await either.hub.stop()
    async with mirrors(config_for(tmp_path, either.hub), 2) as workers:
        for worker in workers:
            answer = await worker.get(either.path)
            assert (answer.status, answer.code) == (502, "UNAVAILABLE")
            assert "Warning" not in answer.headers


async def test_what_is_remembered_survives_a_restart(tmp_path: Path, either: Either, clock: Clock) -> None:
    config, wanted = config_for(tmp_path, either.hub), either.wanted()
    async with mirrors(config, 2) as workers:
        assert either.entries(await workers[0].get(either.path)) == wanted
    await either.hub.stop()
    async with mirrors(config, 2) as workers:
        answer = await workers[1].get(either.path)
        assert (either.entries(answer), warning(answer)) == (wanted, None)
        clock.advance(FRESH + 1)
        answer = await workers[1].get(either.path)
        assert either.entries(answer) == wanted
        assert warning(answer)


async def test_what_is_remembered_of_one_repository_is_not_shown_for_another(
    tmp_path: Path, either: Either, clock: Clock
) -> None:
    """Of another name, and of the same name at another upstream."""
    async with FakeUpstream() as other:
        config = config_for(tmp_path, either.hub)
        upstreams = {**config.upstreams, "other": config.upstreams["up"].model_copy(update={"url": other.url})}
        config = config.model_copy(update={"upstreams": upstreams})
        add_tags(other, "theirs")
        add_tags(either.hub, "x", name="team/else")
        async with mirrors(config, 2) as workers:
            assert either.entries(await workers[0].get(either.path)) == either.wanted()
            for name, tags in (("up/team/else", ["x"]), (f"other/{NAME}", ["theirs"])):
                answer = await workers[1].get(either.path.replace(f"up/{NAME}", name))
                assert either.entries(answer) == (tags if either.kind == "tags" else [])
            await either.hub.stop()
            await other.stop()
            for name in ("up/team/never", f"other/{NAME}/more"):
                assert (await workers[0].get(either.path.replace(f"up/{NAME}", name))).status == 502
            if either.kind != "tags":
                elsewhere = referrers_path("sha256:" + "0" * 64)
                assert (await workers[0].get(elsewhere)).status == 502


# ---- gone ----


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_repository_the_upstream_no_longer_has_is_forgotten(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, method: str
) -> None:
    add_tags(hub, "v1")
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": 10}), 3) as workers:
        assert tags_of(await workers[0].get(LIST)) == ["v1"]
        hub.remove_repository(NAME)
        clock.advance(FRESH + 1)
        hub.clear_log()
        for worker in workers:
            answer = await worker.ask(method, LIST)
            assert answer.status == 404
            if method == "GET":
                assert answer.code == "NAME_UNKNOWN"
        assert asked(hub) == 1
        await hub.stop()
        clock.advance(REMEMBER_404 + 1)
        for worker in workers:
            assert (await worker.get(LIST)).status == 502  # not the forgotten list


async def test_on_not_found_keep_answers_with_a_warning(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    add_tags(hub, "v1")
    settings = {"on_not_found": "keep", "revalidate_wait": 10}
    async with mirrors(config_for(tmp_path, hub, tags=settings), 3) as workers:
        assert tags_of(await workers[0].get(LIST)) == ["v1"]
        hub.remove_repository(NAME)
        clock.advance(FRESH + 1)
        hub.clear_log()
        for worker in (*workers, *workers):
            answer = await worker.get(LIST)
            assert tags_of(answer) == ["v1"]
            assert "does not have the tags of team/app" in (warning(answer) or "")
        assert asked(hub) == 1


async def test_a_404_is_remembered_briefly_by_all_workers(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    async with mirrors(config_for(tmp_path, hub), 3) as workers:
        for worker in (*workers, *workers):
            answer = await worker.get(LIST)
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
        assert asked(hub) == 1
        add_tags(hub, "v1")
        clock.advance(REMEMBER_404 - 1)
        assert (await workers[1].get(LIST)).status == 404
        clock.advance(2)
        assert tags_of(await workers[2].get(LIST)) == ["v1"]
        assert asked(hub) == 2


@pytest.mark.parametrize("path", [LIST, referrers_path("sha256:" + "0" * 64)], ids=["tags", "referrers"])
async def test_a_missing_name_that_is_a_401_is_a_404(tmp_path: Path, hub: FakeUpstream, path: str) -> None:
    hub.auth, hub.hide_missing = "token", True
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(path)
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


# ---- tags: whole, merged, paged ----

MANY = [f"{letter}{n}" for letter in "cab" for n in range(3)]


@pytest.mark.parametrize("n", [1, 2, 4, 8, 9, 10])
async def test_pages_of_theirs_become_pages_of_ours(tmp_path: Path, hub: FakeUpstream, n: int) -> None:
    add_tags(hub, *MANY)
    hub.page_size = 4
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        query = f"?n={n}&ns=up"
        found: list[str] = []
        where: str | None = f"/v2/{NAME}/tags/list{query}"
        turn = 0
        while where is not None:
            assert where.startswith(f"/v2/{NAME}/tags/list?")
            assert "ns=up" in where
            answer = await workers[turn % 4].get(where)
            assert json.loads(answer.body)["name"] == NAME
            page = tags_of(answer)
            assert 1 <= len(page) <= n
            found += page
            where, turn = next_of(answer), turn + 1
        assert found == sorted(MANY)
        assert [request.query for request in hub.requests("GET", "tags/list")] == [
            {"n": "1000"},
            {"n": "4", "last": "b0"},
            {"n": "4", "last": "c1"},
        ]


@pytest.mark.parametrize(
    ("query", "entries", "more"),
    [
        ("n=3", ["a", "b", "c"], "n=3&last=c"),
        ("n=3&last=c", ["d", "e"], None),
        ("n=5", ["a", "b", "c", "d", "e"], None),
        ("last=bb", ["c", "d", "e"], None),
        ("n=2&last=B", ["a", "b"], "n=2&last=b"),
        ("last=z", [], None),
        ("n=0", [], None),
        ("n=1&unknown=x", ["a"], "n=1&last=a"),
    ],
)
async def test_tags_kept_here_are_among_them(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, query: str, entries: list[str], more: str | None
) -> None:
    """Also when the upstream does not list them any more; each once, wherever pages end."""
    add_tags(hub, "b", "d", "c")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for tag in ("b", "d"):
            assert (await workers[0].get(manifest_path(tag))).status == 200
        for tag in ("b", "d"):
            hub.remove_tag(NAME, tag)
        add_tags(hub, "a", "e", "b")
        answer = await workers[1].get(tags_path(query=f"?{query}"))
        assert tags_of(answer) == entries
        assert next_of(answer) == (None if more is None else f"{LIST}?{more}")


async def test_no_tags_cost_no_request(tmp_path: Path, hub: FakeUpstream) -> None:
    subject = add_tags(hub, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(tags_path(query="?n=0"))
        assert (tags_of(answer), next_of(answer)) == ([], None)
        answer = await worker.get(referrers_path(subject, query="?n=0"))
        assert (digests_of(answer), next_of(answer)) == ([], None)
        assert hub.log == []


async def test_a_long_list_of_tags(tmp_path: Path, hub: FakeUpstream) -> None:
    """What is longer than the event loop has time for: made, kept, read by another worker."""
    many = [f"{n:05}" + "x" * 20 for n in range(12_000)]
    hub.page_size = 5_000
    add_tags(hub, *many)
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            found = await pages(worker, LIST, "tags")
            assert [len(page) for page in found] == [10_000, 2_000]
            assert [tag for page in found for tag in page] == many
        assert asked(hub) == 12  # as many as were asked for, a thousand at a time


@pytest.mark.parametrize("more", [0, 3_000], ids=["few", "many"])
async def test_what_cannot_be_a_tag_is_left_out(
    tmp_path: Path, hub: FakeUpstream, caplog: pytest.LogCaptureFixture, more: int
) -> None:
    good = [f"t{n:04}" for n in range(more)]
    listed = ["ok", "-bad", "a b", "", "x" * 129, "../up", "\u00e4", "ok", "_also", *good]
    hub.fail("tags/list", status=200, body=json.dumps({"tags": listed}).encode())
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            assert tags_of(await worker.get(LIST)) == sorted({"ok", "_also", *good})
    lines = [record for record in caplog.records if record.name == "mirror.lists"]
    assert [record.getMessage() for record in lines] == [
        "upstream up lists 6 tags of team/app that cannot be tags, such as '-bad'; left out"
    ]


def page_of(*tags: str, more: str | None = None) -> dict[str, Any]:
    headers = {"Link": f'<{LIST}?{more}>; rel="next"'} if more is not None else {}
    return {"status": 200, "headers": headers, "body": json.dumps({"tags": tags}).encode()}


@pytest.mark.parametrize(
    ("answers", "cost"),
    [
        ([page_of("a", "b", more="last=b")], 2),
        ([page_of("a", "b", more="last=b"), page_of("a", "b", more="last=c"), page_of("a", "b", more="last=d")], 2),
        ([page_of("a", more="last=a"), page_of("b", more="last=a")], 2),
        ([page_of(f"t{n}", more=f"last=t{n}") for n in range(20)], 8),
        ([page_of(*(f"t{n}" for n in range(11)))], 1),
    ],
    ids=["one page for ever", "a new mark each time", "in a circle", "too many pages", "too many tags"],
)
async def test_pages_that_do_not_end(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, Any]], cost: int
) -> None:
    monkeypatch.setattr(pulled_lists, "MOST_PAGES", 8)
    monkeypatch.setattr(pulled_lists, "MOST_TAGS", 10)
    for at, answer in enumerate(answers):
        hub.fault("tags/list", skip=at, times=1 if at < len(answers) - 1 else None, **answer)
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        answer = await workers[0].get(LIST)
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
        assert asked(hub) == cost
        hub.clear_faults()
        add_tags(hub, "v1")
        assert tags_of(await workers[1].get(LIST)) == ["v1"]


async def test_pages_that_do_end(tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulled_lists, "MOST_PAGES", 8)
    monkeypatch.setattr(pulled_lists, "MOST_TAGS", 8)
    hub.page_size = 1
    add_tags(hub, *"abcdefgh")
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert tags_of(await worker.get(LIST)) == list("abcdefgh")
        assert asked(hub) == 8


DEATHS = {
    "reset": {"drop": "rst"},
    "closed": {"drop": "fin"},
    "503": {"status": 503},
    "cut": {"cut_after": 10},
    "no such repository": {"status": 404},
    "not allowed": {"status": 401},
    "login page": {"status": 200, "body": b"<html>"},
    "hangs": {"hang_headers": True},
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("known", [False, True], ids=["nothing remembered", "stale"])
async def test_an_upstream_that_dies_between_pages(
    tmp_path: Path,
    hub: FakeUpstream,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    death: dict[str, Any],
    known: bool,
) -> None:
    """Half a list is none, and what is said of the second page says nothing of the repository."""
    use_client(monkeypatch, timeouts=Timeouts(headers=1.0))
    add_tags(hub, *"abcde")
    hub.page_size = 2
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": 10}), 2) as workers:
        if known:
            assert tags_of(await workers[0].get(LIST)) == list("abcde")
            clock.advance(FRESH + 1)
            add_tags(hub, "a1")

        def second_page(request: Any) -> bool:
            return "tags/list" in request.path and "last" in request.query

        hub.fault(second_page, **death)
        answer = await workers[1].get(LIST)
        if known:
            assert tags_of(answer) == list("abcde")
            assert warning(answer)
        else:
            assert answer.status in (502, 503, 504), answer
        hub.clear_faults()
        clock.advance(REMEMBER_404 + RETRY_AFTER)
        answer = await workers[0].get(LIST)
        assert (tags_of(answer), warning(answer)) == (sorted([*"abcde", *(["a1"] if known else [])]), None)


async def test_a_list_that_changes_between_pages(tmp_path: Path, hub: FakeUpstream) -> None:
    add_tags(hub, *"bcdefg")
    hub.page_size = 2
    gate = Gate()
    hub.fault("tags/list", skip=1, times=1, gate_headers=gate)
    async with mirror(config_for(tmp_path, hub)) as worker:
        asking = asyncio.create_task(worker.get(LIST))
        await gate.reached()
        for tag in "bg":
            hub.remove_tag(NAME, tag)
        add_tags(hub, "a", "e1", "h")
        gate.open()
        assert tags_of(await asking) == ["b", "c", "d", "e", "e1", "f", "h"]


# ---- tags: only what is kept ----


async def test_with_nothing_remembered_kept_tags_are_answered_with_a_warning(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    add_tags(hub, *"abcdefg")
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for tag in "fbd":
            assert (await workers[0].get(manifest_path(tag))).status == 200
        hub.fail("tags/list", status=500)
        hub.clear_log()
        for worker in (*workers, *workers):
            answer = await worker.get(LIST)
            assert tags_of(answer) == ["b", "d", "f"]
            assert (warning(answer) or "").startswith('299 - "only the tags kept here: ')
            assert answer.headers["Cache-Status"] == "mirror; hit; detail=stale"
        each = asked(hub)
        assert each >= 1
        for query, entries, more in (("?n=2", ["b", "d"], "n=2&last=d"), ("?n=2&last=d", ["f"], None)):
            answer = await workers[1].get(tags_path(query=query))
            assert (tags_of(answer), next_of(answer)) == (entries, more and f"{LIST}?{more}")
        assert asked(hub) == each, "one failure is enough for a while"
        assert tags_of(await workers[0].get(tags_path(query="?last=z"))) == []
        hub.clear_faults()
        clock.advance(RETRY_AFTER + 0.1)
        answer = await workers[0].get(LIST)
        assert (tags_of(answer), warning(answer)) == (list("abcdefg"), None)


async def test_kept_tags_are_not_answered_for_longer_than_tags_are(
    tmp_path: Path, hub: FakeUpstream, clock: Clock
) -> None:
    add_tags(hub, "a", "b")
    async with mirrors(config_for(tmp_path, hub, tags={"stale_for": "1h"}), 2) as workers:
        assert (await workers[0].get(manifest_path("a"))).status == 200
        clock.advance(1000)
        assert (await workers[0].get(manifest_path("b"))).status == 200
        await hub.stop()
        clock.advance(FRESH + 2000)
        assert tags_of(await workers[1].get(LIST)) == ["a", "b"]
        clock.advance(1000)
        assert tags_of(await workers[1].get(LIST)) == ["b"]
        assert tags_of(await workers[1].get(tags_path(query="?last=b"))) == []
        clock.advance(1000)
        assert (await workers[1].get(LIST)).status == 502


@pytest.mark.parametrize(("on_not_found", "status"), [("forget", 404), ("keep", 200)])
async def test_kept_tags_of_a_repository_that_is_gone(
    tmp_path: Path, hub: FakeUpstream, on_not_found: str, status: int
) -> None:
    add_tags(hub, "a", "b")
    async with mirrors(config_for(tmp_path, hub, tags={"on_not_found": on_not_found}), 2) as workers:
        assert (await workers[0].get(manifest_path("a"))).status == 200
        hub.remove_repository(NAME)
        for worker in workers:
            answer = await worker.get(LIST)
            assert answer.status == status
            if status == 200:
                assert tags_of(answer) == ["a"]
                assert "only the tags kept here" in (warning(answer) or "")
        assert asked(hub) == 1


# ---- referrers ----


def some_artifacts(hub: FakeUpstream, subject: Image, count: int = 7) -> list[Image]:
    """Hold artifacts of two types, in the order of digests."""
    made = [
        hub.add_artifact(NAME, subject, SIGNATURE if n % 3 else SBOM, f"{n}".encode(), annotations={"n": f"{n}"})
        for n in range(count)
    ]
    return sorted(made, key=lambda image: image.digest)


@pytest.mark.parametrize("kind", [None, SBOM, SIGNATURE, "a/b"])
@pytest.mark.parametrize("n", [None, 1, 2, 100])
async def test_referrers_of_an_upstream_filtered_and_paged_by_us(
    tmp_path: Path, hub: FakeUpstream, kind: str | None, n: int | None
) -> None:
    subject = add_tags(hub, "v1")
    made = some_artifacts(hub, subject)
    some_artifacts(hub, add_tags(hub, "v2"), 2)
    hub.page_size = 3
    query = f"?ns=up{'' if n is None else f'&n={n}'}" + (f"&artifactType={kind.replace('+', '%2B')}" if kind else "")
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        where: str | None = referrers_path(subject, NAME, query)
        found: list[dict[str, Any]] = []
        turn = 0
        while where is not None:
            assert where.startswith(f"/v2/{NAME}/referrers/{subject.digest}?")
            answer = await workers[turn % 4].get(where)
            assert answer.headers.get("OCI-Filters-Applied") == (None if kind is None else "artifactType")
            assert len(digests_of(answer)) <= (n or 100)
            found += json.loads(answer.body)["manifests"]
            where, turn = next_of(answer), turn + 1
            assert where is None or "ns=up" in where
        assert found == [entry for image in made if kind in (None, (entry := listed(image))["artifactType"])]
        # all of it, unfiltered, once, by marks of the upstream's own
        assert [request.query for request in hub.requests("GET", "/referrers/")] == [
            {},
            {"mark": "3", "x": "a+b/c"},
            {"mark": "6", "x": "a+b/c"},
        ]
        assert {request.path for request in hub.log} == {f"/v2/{NAME}/referrers/{subject.digest}"}


@pytest.mark.parametrize("api", [True, False], ids=["api", "tag"])
async def test_pages_of_referrers_have_our_bounds(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch, api: bool
) -> None:
    subject = add_tags(hub, "v1")
    made = some_artifacts(hub, subject)
    if not api:
        use_tag(hub, subject, *map(listed, made))
    monkeypatch.setattr("mirror.registry.lists.MOST_REFERRERS", 3)
    async with mirror(config_for(tmp_path, hub)) as worker:
        for most in (None, 600):
            if most:
                monkeypatch.setattr("mirror.registry.lists.MOST_BYTES", most)
            found = await pages(worker, referrers_path(subject, query="?n=100"), "manifests")
            assert [entry for page in found for entry in page] == list(map(listed, made))
            assert all(len(page) < 3 if most else len(page) == 3 for page in found[:-1])


async def test_a_long_list_of_referrers(tmp_path: Path, hub: FakeUpstream) -> None:
    entries = [
        {"mediaType": "a/b", "digest": digest_of(f"{n}".encode()), "size": n, "artifactType": f"a/{n % 2}"}
        for n in range(3_000)
    ]
    hub.fail("/referrers/", status=200, body=json.dumps({"manifests": entries}).encode())
    subject = "sha256:" + "0" * 64
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            found = await pages(worker, referrers_path(subject), "manifests")
            assert [len(page) for page in found] == [1_000] * 3
            assert [entry for page in found for entry in page] == sorted(entries, key=lambda entry: entry["digest"])
            some = await pages(worker, referrers_path(subject, query="?artifactType=a/1&n=900"), "manifests")
            assert [len(page) for page in some] == [900, 600]
        assert asked(hub, "/referrers/") == 1


DIGEST = "sha256:" + "1" * 64


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([{"mediaType": "a/b", "digest": DIGEST, "size": 1}], 1),
        ([{"mediaType": "a/b", "digest": DIGEST, "size": 1}, {"mediaType": "a/c", "digest": DIGEST, "size": 1}], 1),
        ([{"mediaType": "a/b", "digest": DIGEST}], 0),
        ([{"mediaType": "a/b", "digest": DIGEST, "size": "1"}], 0),
        ([{"mediaType": "a/b", "digest": "sha256:x", "size": 1}], 0),
        ([{"mediaType": "a/b", "digest": "../../etc", "size": 1}], 0),
        ([{"digest": DIGEST, "size": 1}], 0),
        (["x", None, 1, {}, {"mediaType": "a/b", "digest": DIGEST, "size": 1, "artifactType": 7}], 1),
        ([], 0),
        (None, 0),
    ],
)
async def test_descriptors_are_believed_once_and_malformed_ones_left_out(
    tmp_path: Path, hub: FakeUpstream, caplog: pytest.LogCaptureFixture, entries: list[Any] | None, found: int
) -> None:
    hub.fail("/referrers/", status=200, body=json.dumps({"manifests": entries}).encode())
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            answer = await worker.get(referrers_path("sha256:" + "0" * 64))
            wanted = [{"mediaType": "a/b", "digest": DIGEST, "size": 1}] if found else []
            assert digests_of(answer) == [DIGEST] * found
            assert json.loads(answer.body)["manifests"] == wanted
    lines = [record.getMessage() for record in caplog.records if "malformed; left out" in record.getMessage()]
    malformed = [entry for entry in entries or [] if not (isinstance(entry, dict) and entry.get("size") == 1)]
    assert len(lines) == (1 if malformed or (entries and not found) else 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>log in</html>",
        b"[]",
        b"{}",
        b'"x"',
        b'{"errors": []}',
        b'{"manifests": {}}',
        b'{"manifests": [], "mediaType": "application/vnd.oci.image.manifest.v1+json"}',
        b"[" * 100_000,
        b'{"manifests": [' + b" " * (5 << 20) + b"]}",
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_what_is_no_index_is_no_list_of_referrers(tmp_path: Path, hub: FakeUpstream, body: bytes) -> None:
    """Nor does it mean that there are none, or that they are under a tag."""
    subject = add_tags(hub, "v1")
    use_tag(hub, subject)
    hub.referrers_api = True
    hub.fail("/referrers/", status=200, body=body, headers={"Content-Type": INDEX})
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            answer = await worker.get(referrers_path(subject))
            assert (answer.status, answer.code) == (502, "UNAVAILABLE")
        assert hub.count(None, "/manifests/") == 0


def referrers_page(n: int, link: str | None, size: int = 0) -> dict[str, Any]:
    entry = {"mediaType": "a/b", "digest": digest_of(f"{n}".encode()), "size": 1, "annotations": {"x": "x" * size}}
    return {
        "status": 200,
        "headers": {"Link": f'<{link}>; rel="next"'} if link else {},
        "body": json.dumps({"manifests": [entry]}).encode(),
    }


@pytest.mark.parametrize(
    ("answers", "status", "cost"),
    [
        ([referrers_page(0, "/x?mark=1"), referrers_page(1, None)], 200, 2),
        ([referrers_page(0, "/x?mark=1")], 502, 2),
        ([referrers_page(0, "/x?mark=1"), referrers_page(1, "/x?mark=2"), referrers_page(2, "/x?mark=1")], 502, 3),
        ([referrers_page(0, "/x/page/2")], 502, 1),
        ([referrers_page(0, "/x?mark=a b")], 502, 1),
        ([referrers_page(n, f"/x?mark={n}") for n in range(9)], 502, 6),
        ([referrers_page(0, "/x?mark=1", 6000), referrers_page(1, None, 6000)], 502, 2),
        ([referrers_page(0, "/x?mark=1"), {"status": 404}], 502, 2),
        ([referrers_page(0, "/x?mark=1"), {"status": 401}], 502, 2),
        ([referrers_page(0, "/x?mark=1"), {"status": 503}], 503, None),
    ],
    ids=["good", "for ever", "circle", "by path", "garbage", "many", "long", "404", "401", "503"],
)
async def test_pages_of_referrers_that_do_not_end(
    tmp_path: Path,
    hub: FakeUpstream,
    monkeypatch: pytest.MonkeyPatch,
    answers: list[dict[str, Any]],
    status: int,
    cost: int | None,
) -> None:
    monkeypatch.setattr(upstream_client, "REFERRERS_PAGES", 6)
    monkeypatch.setattr(upstream_client, "REFERRERS_LIMIT", 10_000)
    for at, answer in enumerate(answers):
        hub.fault("/referrers/", skip=at, times=1 if at < len(answers) - 1 else None, **answer)
    subject = "sha256:" + "0" * 64
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(referrers_path(subject))
        assert answer.status == status
        if status == 200:
            assert len(digests_of(answer)) == 2
        assert cost in (None, asked(hub, "/referrers/"))
        for request in hub.requests("GET", "/referrers/"):
            assert request.path == f"/v2/{NAME}/referrers/{subject}"


# ---- referrers under a tag ----


async def test_without_the_api_referrers_are_those_under_the_tag(tmp_path: Path, hub: FakeUpstream) -> None:
    subject = add_tags(hub, "v1")
    made = some_artifacts(hub, subject)
    tag, index = use_tag(hub, subject, *(listed(image) for image in reversed(made)), listed(made[0]))
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        answer = await workers[0].get(referrers_path(subject))
        assert json.loads(answer.body)["manifests"] == list(map(listed, made))
        assert requests(hub) == [f"GET referrers/{subject.digest}", f"HEAD manifests/{tag}", f"GET manifests/{index}"]
        hub.clear_log()
        answer = await workers[1].get(referrers_path(subject, query=f"?artifactType={SBOM.replace('+', '%2B')}"))
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
        assert json.loads(answer.body)["manifests"] == [listed(one) for one in made if SBOM.encode() in one.raw]
        assert hub.log == []
        await hub.stop()  # the index is kept, as any
        answer = await workers[2].get(manifest_path(tag))
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, index)


@pytest.mark.parametrize("status", [400, 404, 405, 406])
async def test_what_registries_without_the_api_say(tmp_path: Path, hub: FakeUpstream, status: int) -> None:
    subject = add_tags(hub, "v1")
    (made,) = some_artifacts(hub, subject, 1)
    use_tag(hub, subject, listed(made))
    hub.fail("/referrers/", status=status)
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert digests_of(await worker.get(referrers_path(subject))) == [made.digest]


async def test_no_such_tag_is_an_empty_list(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    subject = add_tags(hub, "v1")
    hub.referrers_api = False
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in (*workers, *workers):
            assert digests_of(await worker.get(referrers_path(subject))) == []
        assert asked(hub, "/referrers/") == 1
        await hub.stop()
        clock.advance(FRESH + 1)
        answer = await workers[1].get(referrers_path(subject))
        assert digests_of(answer) == []
        assert warning(answer)


@pytest.mark.parametrize("kind", ["an image", "a docker list"])
async def test_only_an_index_lists_referrers(tmp_path: Path, hub: FakeUpstream, kind: str) -> None:
    subject = add_tags(hub, "v1")
    (made,) = some_artifacts(hub, subject, 1)
    tag, _ = use_tag(hub, subject, listed(made))
    if kind == "an image":
        hub.set_tag(NAME, tag, made.digest)
    else:
        docker = "application/vnd.docker.distribution.manifest.list.v2+json"
        hub.add_manifest(NAME, {"schemaVersion": 2, "mediaType": docker, "manifests": [made.descriptor]}, tag)
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert digests_of(await worker.get(referrers_path(subject))) == []


@pytest.mark.parametrize(
    ("fault", "statuses"),
    [
        ({"status": 503}, {503}),
        ({"status": 429}, {503}),
        ({"drop": "rst"}, {502, 503}),
        ({"hang_headers": True}, {504}),
        ({"replace": b"garbage"}, {502}),
    ],
    ids=["503", "429", "reset", "hangs", "garbage"],
)
async def test_a_tag_that_cannot_be_asked_for_is_no_empty_list(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch, fault: Any, statuses: set[int]
) -> None:
    use_client(monkeypatch, timeouts=Timeouts(headers=0.5))
    subject = add_tags(hub, "v1")
    (made,) = some_artifacts(hub, subject, 1)
    use_tag(hub, subject, listed(made))
    hub.fault("/manifests/", **fault)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(referrers_path(subject))
        assert answer.status in statuses
        assert answer.code == "UNAVAILABLE"
        hub.clear_faults()
        clock.advance(60)
        assert digests_of(await worker.get(referrers_path(subject))) == [made.digest]


async def test_a_stale_tag_makes_a_list_that_says_so(tmp_path: Path, hub: FakeUpstream, clock: Clock) -> None:
    """It is not taken for the upstream's word: what may be old is asked for again soon."""
    subject = add_tags(hub, "v1")
    first, second = some_artifacts(hub, subject, 2)
    tag, _ = use_tag(hub, subject, listed(first))
    async with mirrors(config_for(tmp_path, hub, tags={"revalidate_wait": 10}), 2) as workers:
        assert (await workers[0].get(manifest_path(tag))).status == 200
        for digest in json.loads((await workers[0].get(manifest_path(tag))).body)["manifests"]:
            assert (await workers[0].get(manifest_path(digest["digest"]))).status == 200
            for blob in json.loads(first.raw)["layers"] + [json.loads(first.raw)["config"]]:
                await workers[0].get(blob_path(blob["digest"]))
        await kept(tmp_path / "root", first.digest, *first.blobs)
        clock.advance(FRESH + 1)
        hub.fail("HEAD", status=500)
        use_tag(hub, subject, listed(first), listed(second))
        for worker in workers:
            answer = await worker.get(referrers_path(subject))
            assert digests_of(answer) == [first.digest]
            assert "500" in (warning(answer) or "")
            assert "detail=stale" in answer.headers["Cache-Status"]
        assert asked(hub, "/referrers/") == 1
        hub.clear_faults()
        clock.advance(2 * RETRY_AFTER)
        answer = await workers[0].get(referrers_path(subject))
        assert (digests_of(answer), warning(answer)) == ([first.digest, second.digest], None)


# ---- signatures and attestations ----


async def test_signatures_and_attestations_pull_through_and_stay(
    tmp_path: Path, hub: FakeUpstream, clock: Clock, root: Path
) -> None:
    """By tag as older tools store them, and as referrers; again with the upstream off."""
    image = hub.add_image(NAME, "v1")
    base = image.digest.replace(":", "-")
    old = [hub.add_image(NAME, f"{base}.{what}", [300]) for what in ("sig", "att")]
    made = some_artifacts(hub, image, 3)
    path = referrers_path(image)

    async def verify(worker: Mirror) -> None:
        for signature in old:
            await pull(worker, signature)
        found = json.loads((await worker.get(path)).body)["manifests"]
        assert found == list(map(listed, made))
        for artifact in made:
            await get_image(worker, artifact)

    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        await pull_and_keep(workers[0], root, image)
        await verify(workers[1])
        for one in (*old, *made):
            await kept(root, one.digest, *one.blobs)
        tags = tags_of(await workers[2].get(LIST))
        assert tags == [f"{base}.att", f"{base}.sig", "v1"]
        hub.clear_log()
        await verify(workers[2])
        assert hub.log == []
        await hub.stop()
        clock.advance(10**6)
        await verify(workers[3])


async def test_lists_are_not_counted_among_hits_of_content(tmp_path: Path, hub: FakeUpstream) -> None:
    subject = add_tags(hub, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        for path in (LIST, referrers_path(subject)):
            for cache in ("mirror; fwd=uri-miss; stored", "mirror; hit"):
                await worker.get(path)
                line = worker.lines[-1]
                assert (line["cache"], line["upstream"], line["status"]) == (cache, "up", 200)
        metrics = (await worker.get("/metrics")).body.decode()
        lines = [line for line in metrics.splitlines() if line.startswith(("mirror_cache_hits", "mirror_cache_misses"))]
        assert lines == []
        assert 'mirror_upstream_requests_total{kind="referrers",status="2xx",upstream="up"} 1.0' in metrics
