"""Lists: tags, referrers, the catalog, extensions, the history of a tag; and that links lead through all of each."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mirror.registry import lists
from tests.fake_upstream import CONFIG, INDEX, LAYER, FakeUpstream, digest_of
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.images import Clock, manifest_path
from tests.pushed import (
    NOWHERE,
    Made,
    delete,
    make_artifact,
    make_image,
    make_index,
    next_of,
    pages,
    push,
    push_blob,
    put_manifest,
    tags_of,
)

A, B = "local/a", "local/deep/b"
SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"


@pytest.fixture
async def two(root: Path, hub: FakeUpstream) -> AsyncIterator[list[Mirror]]:
    """Two workers on one root, with the hub as ``up``."""
    config = make_config(root, {"up": {"url": hub.url, "tags": {"fresh_for": 10}}}, names=["me.example"])
    async with mirrors(config, 2) as started:
        yield started


@pytest.fixture
def one(two: list[Mirror]) -> Mirror:
    return two[0]


# ---- tags ----

TAGS = [
    "latest",
    "v1",
    "v10",
    "v2",
    "V2",
    "A",
    "Z",
    "a",
    "z",
    "0",
    "9",
    "_",
    "_a",
    "a-",
    "a.",
    "a_",
    "a-b",
    "aa",
    "a.b",
]


async def put_tags(worker: Mirror, name: str, tags: list[str], made: Made | None = None) -> None:
    made = made or make_index()
    path = f"{made.digest}?" + "&".join(f"tag={tag}" for tag in tags)
    assert (await put_manifest(worker, name, path, made)).status == 201


async def test_tags_in_ascii_order(two: list[Mirror]) -> None:
    assert await tags_of(two[0], A) is None
    shuffled = random.Random(1).sample(TAGS, len(TAGS))
    await put_tags(two[0], A, shuffled)
    await put_tags(two[0], B, ["other"])
    for worker in two:
        answer = await worker.get(f"/v2/{A}/tags/list")
        assert json.loads(answer.body) == {"name": A, "tags": sorted(TAGS)}
        assert answer.headers["Content-Type"].startswith("application/json")
        assert "Link" not in answer.headers
        head = await worker.head(f"/v2/{A}/tags/list")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == answer.headers["Content-Length"]


@pytest.mark.parametrize(
    ("query", "entries", "more"),
    [
        ("n=3", ["b", "d", "f"], "n=3&last=f"),
        ("n=3&last=f", ["h", "j"], None),
        ("n=5", ["b", "d", "f", "h", "j"], None),
        ("n=4", ["b", "d", "f", "h"], "n=4&last=h"),
        ("n=6", ["b", "d", "f", "h", "j"], None),
        ("n=999999999999999999", ["b", "d", "f", "h", "j"], None),
        ("n=0", [], None),
        ("n=0&last=b", [], None),
        ("last=d", ["f", "h", "j"], None),
        ("last=e", ["f", "h", "j"], None),  # a tag that is not there, or not any more
        ("last=a", ["b", "d", "f", "h", "j"], None),
        ("last=", ["b", "d", "f", "h", "j"], None),
        ("last=j", [], None),
        ("last=z&n=2", [], None),
        ("last=f&n=1", ["h"], "n=1&last=h"),
        ("last=h&n=1", ["j"], None),
        ("n=1&unknown=x", ["b"], "n=1&last=b"),
        ("n=1&n=2", ["b"], "n=1&last=b"),
        ("last=-not%20a%20tag", ["b", "d", "f", "h", "j"], None),
        ("last=%C3%A4", [], None),
    ],
)
async def test_pages_of_tags(one: Mirror, query: str, entries: list[str], more: str | None) -> None:
    await put_tags(one, A, ["f", "b", "j", "d", "h"])
    answer = await one.get(f"/v2/{A}/tags/list?{query}")
    assert (answer.status, json.loads(answer.body)) == (200, {"name": A, "tags": entries})
    assert next_of(answer) == (None if more is None else f"/v2/{A}/tags/list?{more}")


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/v2/local/a/tags/list?n=2", "local/a"),
        ("/me.example/v2/local/a/tags/list?n=2", "local/a"),
        ("/v2/local/a/tags/list?ns=me.example&n=2", "local/a"),
        ("/me.example/v2/local/a/tags/list?n=2&ns=me.example", "local/a"),
        ("/v2/me.example/local/a/tags/list?n=2", "me.example/local/a"),
    ],
)
async def test_links_lead_through_all_tags_by_the_way_the_client_came(one: Mirror, target: str, name: str) -> None:
    await put_tags(one, A, TAGS)
    path = target.partition("?")[0]
    where: str | None = target
    seen: list[str] = []
    while where is not None:
        assert where.startswith(f"{path}?")
        assert ("ns=me.example" in where) is ("ns=" in target)
        answer = await one.get(where)
        found = json.loads(answer.body)
        assert found["name"] == name
        assert 1 <= len(found["tags"]) <= 2
        seen += found["tags"]
        where = next_of(answer)
        assert len(seen) <= len(TAGS)
    assert seen == sorted(TAGS)


@pytest.mark.parametrize("n", [1, 2, 5, len(TAGS) - 1, len(TAGS), len(TAGS) + 1])
async def test_every_tag_is_on_one_page(two: list[Mirror], n: int) -> None:
    await put_tags(two[0], A, TAGS)
    found = await pages(two[1], f"/v2/{A}/tags/list?n={n}", "tags")
    assert [tag for page in found for tag in page] == sorted(TAGS)
    assert [len(page) for page in found[:-1]] == [n] * (len(found) - 1)
    assert found[-1]


async def test_pages_end_even_when_nobody_asks(one: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "MOST", 3)
    await put_tags(one, A, TAGS[:8])
    for query in ("", "?n=5", "?n=1000000"):
        found = await pages(one, f"/v2/{A}/tags/list{query}", "tags")
        assert [len(page) for page in found] == [3, 3, 2]
        assert [tag for page in found for tag in page] == sorted(TAGS[:8])


async def test_tags_that_come_and_go_between_pages(two: list[Mirror]) -> None:
    await put_tags(two[0], A, ["b", "d", "f", "h"])
    first = await two[0].get(f"/v2/{A}/tags/list?n=2")
    await put_tags(two[1], A, ["a", "e"])
    for tag in ("b", "d", "h"):
        assert (await delete(two[1], manifest_path(tag, A))).status == 202
    link = next_of(first)
    assert link is not None
    assert await pages(two[0], link, "tags") == [["e", "f"]]


@pytest.mark.parametrize("query", ["", "?n=0", "?n=5", "?last=x"])
async def test_tags_of_a_repository_nobody_has(one: Mirror, query: str) -> None:
    await put_tags(one, "local/a/b", ["x"])
    for name in ("local/a", "local/a/b/c", "local/never"):
        answer = await one.get(f"/v2/{name}/tags/list{query}")
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


async def test_a_repository_without_tags_is_known(two: list[Mirror]) -> None:
    await push_blob(two[0], A, b"data")
    assert await tags_of(two[1], A) == []
    made = make_index()
    await push(two[0], B, made, "v1")
    await delete(two[0], manifest_path("v1", B))
    assert await tags_of(two[1], B) == []
    await delete(two[0], manifest_path(made.digest, B))
    assert await tags_of(two[1], B) is None


# ---- referrers ----


def referrers_path(subject: Made | str, query: str = "", name: str = A) -> str:
    digest = subject if isinstance(subject, str) else subject.digest
    return f"/v2/{name}/referrers/{digest}{query}"


async def referrers(worker: Mirror, subject: Made | str, query: str = "", name: str = A) -> list[dict[str, Any]]:
    """Return one page of descriptors, its form checked."""
    answer = await worker.get(referrers_path(subject, query, name))
    return _listed(answer)


def _listed(answer: Answer) -> list[dict[str, Any]]:
    assert (answer.status, answer.headers["Content-Type"]) == (200, INDEX), answer
    body = json.loads(answer.body)
    assert set(body) == {"schemaVersion", "mediaType", "manifests"}
    assert (body["schemaVersion"], body["mediaType"]) == (2, INDEX)
    found: list[dict[str, Any]] = body["manifests"]
    return found


def by_digest(*made: Made) -> list[str]:
    return sorted(one.digest for one in made)


async def test_what_refers_to_a_subject(two: list[Mirror]) -> None:
    subject, other = make_image(b"subject"), make_image(b"other")
    signature = make_artifact(subject, SIGNATURE, 1, **{"org.example.a": "b", "z": ""})
    sbom = make_artifact(subject, None, 2)  # told by its config
    index = make_index(signature, subject=subject.descriptor, artifactType=SBOM, annotations={"c": "d"})
    plain = make_index(subject=subject.descriptor)
    elsewhere = make_artifact(subject, SIGNATURE, 3)
    for made in (signature, sbom, index, plain, make_artifact(other, SIGNATURE, 4)):
        await push(two[0], A, made)
    await push(two[0], B, elsewhere)
    expected = {
        signature.digest: signature.descriptor
        | {"artifactType": SIGNATURE, "annotations": {"org.example.a": "b", "z": ""}},
        sbom.digest: sbom.descriptor | {"artifactType": CONFIG},
        index.digest: index.descriptor | {"artifactType": SBOM, "annotations": {"c": "d"}},
        plain.digest: plain.descriptor,
    }
    for worker in two:
        found = await referrers(worker, subject)
        assert {entry["digest"]: entry for entry in found} == expected
        assert [entry["digest"] for entry in found] == sorted(expected)
        assert [entry["digest"] for entry in await referrers(worker, subject, name=B)] == [elsewhere.digest]
        answer = await worker.get(referrers_path(subject))
        assert "OCI-Filters-Applied" not in answer.headers
        head = await worker.head(referrers_path(subject))
        assert (head.status, head.body) == (200, b"")
        assert head.headers["Content-Length"] == answer.headers["Content-Length"]
    # the subject itself may come later, or go
    await push(two[0], A, subject, "v1")
    assert len(await referrers(two[1], subject)) == 4
    await delete(two[0], manifest_path(subject.digest, A))
    assert len(await referrers(two[1], subject)) == 4


async def test_referrers_of_one_type(two: list[Mirror]) -> None:
    subject = make_image(b"subject")
    signatures = [make_artifact(subject, SIGNATURE, n) for n in range(3)]
    config = make_artifact(subject, None, 3)
    for made in (*signatures, make_artifact(subject, SBOM, 4), config):
        await push(two[0], A, made)
    for kind, wanted in ((SIGNATURE, by_digest(*signatures)), (CONFIG, [config.digest]), ("a/none", []), (LAYER, [])):
        answer = await two[1].get(referrers_path(subject, f"?artifactType={kind.replace('+', '%2B')}"))
        assert [entry["digest"] for entry in _listed(answer)] == wanted
        assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    answer = await two[1].get(referrers_path(subject, "?artifactType="))
    assert len(_listed(answer)) == 5
    assert "OCI-Filters-Applied" not in answer.headers


@pytest.mark.parametrize("kind", [None, SIGNATURE])
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
async def test_pages_of_referrers(two: list[Mirror], kind: str | None, n: int) -> None:
    subject = make_image(b"subject")
    wanted = [make_artifact(subject, SIGNATURE, at) for at in range(6)]
    for made in (*wanted, *([] if kind is None else [make_artifact(subject, SBOM, 9)])):
        await push(two[0], A, made)
    for base in (f"/v2/{A}", f"/me.example/v2/{A}", f"/v2/me.example/{A}"):
        path = f"{base}/referrers/{subject.digest}?n={n}&ns=me.example" + (f"&artifactType={kind}" if kind else "")
        where: str | None = path
        seen: list[str] = []
        while where is not None:
            answer = await two[1].get(where)
            found = _listed(answer)
            assert 1 <= len(found) <= n
            assert answer.headers.get("OCI-Filters-Applied") == (kind and "artifactType")
            seen += [entry["digest"] for entry in found]
            where = next_of(answer)
            assert where is None or (where.startswith(f"{base}/referrers/") and "ns=me.example" in where)
            assert len(seen) <= len(wanted)
        assert seen == by_digest(*wanted)


async def test_no_page_is_larger_than_an_index_can_be(one: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are whatever was pushed; of one that is too large alone, that one."""
    monkeypatch.setattr(lists, "MOST_BYTES", 5000)
    monkeypatch.setattr(lists, "AT_ONCE", 3)
    subject = make_image(b"subject")
    made = [make_artifact(subject, SBOM, n, a="x" * (1800 if n else 9000)) for n in range(9)]
    for one_of in made:
        await push(one, A, one_of)
    for query in ("", "?n=100", f"?artifactType={SBOM}"):
        found = await pages(one, referrers_path(subject, query), "manifests")
        assert [entry["digest"] for page in found for entry in page] == by_digest(*made)
        assert {len(page) for page in found} == {1, 2}
        for page in found:
            assert len(page) == 1 or len(json.dumps(page)) <= 5000
    listed = [make_image(b"%d" % n, annotations={"a": "x" * (1800 if n else 9000)}) for n in range(9)]
    about = make_image(b"another subject")
    for one_of in listed:
        await push(one, A, one_of)
    await push(one, A, make_index(*listed), fallback_tag(about.digest))
    found = await pages(one, referrers_path(about), "manifests")
    assert [entry["digest"] for page in found for entry in page] == by_digest(*listed)
    assert {len(page) for page in found} == {1, 2}
    monkeypatch.setattr(lists, "MOST_BYTES", 1_000_000)
    monkeypatch.setattr(lists, "MOST_REFERRERS", 4)
    found = await pages(one, referrers_path(subject, "?n=5"), "manifests")
    assert [len(page) for page in found] == [4, 4, 1]


async def test_a_deleted_referrer_is_none(two: list[Mirror]) -> None:
    subject = make_image(b"subject")
    first, second = (make_artifact(subject, SBOM, n) for n in range(2))
    for made in (first, second):
        await push(two[0], A, made)
    assert (await delete(two[0], manifest_path(first.digest, A))).status == 202
    for worker in two:
        assert [entry["digest"] for entry in await referrers(worker, subject)] == [second.digest]
        assert [entry["digest"] for entry in await referrers(worker, subject, f"?artifactType={SBOM}")] == [
            second.digest
        ]
    assert (await delete(two[0], manifest_path(second.digest, A))).status == 202
    for worker in two:
        assert await referrers(worker, subject) == []


async def test_a_subject_by_another_algorithm(two: list[Mirror]) -> None:
    raw = make_image(b"subject").raw
    long = digest_of(raw, "sha512")
    about = {"mediaType": INDEX, "digest": long, "size": len(raw)}
    made = make_artifact(about, SBOM)
    await push(two[0], A, made)
    assert [entry["digest"] for entry in await referrers(two[1], long)] == [made.digest]
    assert await referrers(two[1], digest_of(raw)) == []
    also = digest_of(made.raw, "sha512")  # the referrer itself under two digests is listed under both
    await push(two[0], A, made, also)
    assert [entry["digest"] for entry in await referrers(two[1], long)] == [made.digest, also]


def fallback_tag(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm}-{encoded[:64]}"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_what_is_listed_under_the_fallback_tag_is_among_them(two: list[Mirror], algorithm: str) -> None:
    """Of clients that knew no other way: their manifests have no subject that anybody reads, or have one."""
    subject = digest_of(b"subject", algorithm)
    about = {"mediaType": INDEX, "digest": subject, "size": 7}
    pushed = make_artifact(about, SIGNATURE, 1)
    both = make_artifact(about, SBOM, 2)
    listed = make_image(b"listed", artifactType=SBOM, annotations={"e": "f"})
    plain = make_image(b"plain")
    others = make_artifact({**about, "digest": NOWHERE}, SBOM, 3)  # says itself that it is about something else
    missing = make_image(b"never pushed")
    for made in (pushed, both, listed, plain, others):
        await push(two[0], A, made)
    index = make_index(both, listed, plain, others, missing)
    await push(two[0], A, index, fallback_tag(subject))
    for worker in two:
        found = await referrers(worker, subject)
        assert [entry["digest"] for entry in found] == by_digest(pushed, both, listed, plain)
        expected = listed.descriptor | {"artifactType": SBOM, "annotations": {"e": "f"}}
        assert [entry for entry in found if entry["digest"] == listed.digest] == [expected]
        sboms = await referrers(worker, subject, f"?artifactType={SBOM}")
        assert [entry["digest"] for entry in sboms] == by_digest(both, listed)
        for n in (1, 2, 3, 4, 5):
            paged = await pages(worker, referrers_path(subject, f"?n={n}"), "manifests")
            assert [entry["digest"] for page in paged for entry in page] == by_digest(pushed, both, listed, plain)
    await delete(two[0], manifest_path(listed.digest, A))
    assert [entry["digest"] for entry in await referrers(two[1], subject)] == by_digest(pushed, both, plain)
    await delete(two[0], manifest_path(fallback_tag(subject), A))
    assert [entry["digest"] for entry in await referrers(two[1], subject)] == by_digest(pushed, both)


async def test_a_fallback_tag_on_something_else(two: list[Mirror]) -> None:
    subject = make_image(b"subject")
    await push(two[0], A, make_image(b"no index"), fallback_tag(subject.digest))
    assert await referrers(two[1], subject) == []


@pytest.mark.parametrize("name", [A, "local/never"])
async def test_nothing_refers_to_what_is_unknown(one: Mirror, name: str) -> None:
    await push_blob(one, A, b"data")
    assert await referrers(one, NOWHERE, name=name) == []
    assert await referrers(one, digest_of(b"", "sha512"), "?n=5&last=x&artifactType=a/b", name=name) == []


@pytest.mark.parametrize("digest", ["latest", "sha256:0", "sha256:" + "A" * 64, "md5:" + "0" * 32, ""])
async def test_referrers_of_what_is_no_digest(one: Mirror, digest: str) -> None:
    answer = await one.get(f"/v2/{A}/referrers/{digest}")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")


# ---- the catalog ----


async def test_the_catalog(two: list[Mirror], hub: FakeUpstream) -> None:
    assert json.loads((await two[0].get("/v2/_catalog")).body) == {"repositories": []}
    image = hub.add_image("team/app", "v1")
    assert (await two[0].get(manifest_path("v1"))).body == image.raw
    await two[0].get(manifest_path("v1", "up/team/nothing"))  # is not there, and no name of ours
    names = ["local/a", "local/a-b", "local/a/b", "local/a.b", "local/a0", "local/z"]
    for name in names:
        await push(two[0], name, make_index(), "v1")
    await push_blob(two[0], "local/blobs", b"data")
    await two[0].ask("POST", "/v2/local/session/blobs/uploads/")
    wanted = sorted([*names, "local/blobs", "up/team/app"])
    for worker in two:
        answer = await worker.get("/v2/_catalog")
        assert json.loads(answer.body) == {"repositories": wanted}
        assert "Link" not in answer.headers
        head = await worker.head("/v2/_catalog")
        assert (head.status, head.headers["Content-Length"]) == (200, answer.headers["Content-Length"])
        for n in (1, 2, 3, len(wanted), len(wanted) + 1):
            for base in ("/v2/_catalog", "/me.example/v2/_catalog"):
                found = await pages(worker, f"{base}?n={n}&ns=me.example", "repositories")
                assert [name for page in found for name in page] == wanted
                assert [len(page) for page in found[:-1]] == [n] * (len(found) - 1)
        first = await worker.get("/me.example/v2/_catalog?n=1&ns=me.example")
        assert next_of(first) == "/me.example/v2/_catalog?n=1&last=local%2Fa&ns=me.example"
        for query, expected in (("n=0", []), ("last=local/z", ["up/team/app"]), ("last=local/b", wanted[5:])):
            assert json.loads((await worker.get(f"/v2/_catalog?{query}")).body)["repositories"] == expected


async def test_what_is_gone_is_not_in_the_catalog(two: list[Mirror], hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "v1")
    assert (await two[0].get(manifest_path("v1"))).body == image.raw
    made = make_index()
    await push(two[0], A, made, "v1")
    await push(two[0], B, made)
    assert await pages(two[1], "/v2/_catalog", "repositories") == [[A, B, "up/team/app"]]
    await delete(two[0], manifest_path("v1", A))
    assert await pages(two[1], "/v2/_catalog", "repositories") == [[A, B, "up/team/app"]]
    for name in (A, B):
        await delete(two[0], manifest_path(made.digest, name))
    assert await pages(two[1], "/v2/_catalog", "repositories") == [["up/team/app"]]
    await delete(two[0], manifest_path(image.digest))
    assert await pages(two[1], "/v2/_catalog", "repositories") == [[]]


# ---- extensions ----


@pytest.mark.parametrize(
    "path",
    [
        "/v2/_oci/ext/discover",
        "/me.example/v2/_oci/ext/discover",
        f"/v2/{A}/_oci/ext/discover",
        "/v2/up/team/app/_oci/ext/discover",
    ],
)
async def test_which_extensions_there_are(one: Mirror, hub: FakeUpstream, path: str) -> None:
    answer = await one.get(path)
    assert answer.status == 200
    found = {extension["name"]: extension for extension in json.loads(answer.body)["extensions"]}
    assert set(found) == {"_oci", "_mirror"}
    assert found["_oci"]["endpoints"] == ["_oci/ext/discover"]
    assert "_mirror/tags/history" in found["_mirror"]["endpoints"]
    for extension in found.values():
        assert extension["description"]
        assert extension["url"]
    assert (await one.head(path)).status == 200
    assert hub.log == []


async def test_extensions_of_a_name_that_is_none(one: Mirror) -> None:
    answer = await one.get("/v2/local/A/_oci/ext/discover")
    assert (answer.status, answer.code) == (400, "NAME_INVALID")
    answer = await one.get("/nowhere.example/v2/_oci/ext/discover")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


# ---- history ----


def history_path(tag: str, query: str = "", name: str = A) -> str:
    return f"/v2/{name}/_mirror/tags/history?tag={tag}{query}"


async def history(worker: Mirror, tag: str, name: str = A) -> list[tuple[str | None, str]]:
    """Return every move of a tag, the newest first; the form and the times checked."""
    answer = await worker.get(history_path(tag, name=name))
    assert answer.status == 200, answer
    found = json.loads(answer.body)
    assert (found["name"], found["tag"]) == (name, tag)
    times = [datetime.fromisoformat(move["time"]) for move in found["history"]]
    assert times == sorted(times, reverse=True)
    assert all(set(move) == {"digest", "time", "origin"} for move in found["history"])
    return [(move["digest"], move["origin"]) for move in found["history"]]


async def test_the_history_of_a_pushed_tag(two: list[Mirror]) -> None:
    first, second = (make_index(annotations={"n": str(n)}) for n in range(2))
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    await push(two[0], A, first, "v1")
    assert await history(two[1], "v1") == [(first.digest, "pushed")]
    at = datetime.fromisoformat(json.loads((await two[1].get(history_path("v1"))).body)["history"][0]["time"])
    assert before <= at <= datetime.now(UTC)
    await push(two[0], A, first, "v1")  # no move
    await push(two[1], A, second, "v1", "v2")
    await delete(two[0], manifest_path("v1", A))
    await push(two[1], A, first, "v1")
    await delete(two[0], manifest_path(first.digest, A))
    assert await history(two[1], "v1") == [
        (None, "pushed"),
        (first.digest, "pushed"),
        (None, "pushed"),
        (second.digest, "pushed"),
        (first.digest, "pushed"),
    ]
    assert await history(two[1], "v2") == [(second.digest, "pushed")]
    await delete(two[0], manifest_path(second.digest, A))
    assert (await history(two[1], "v2"))[0] == (None, "pushed"), "also of a repository that is gone"
    assert await tags_of(two[1], A) is None


async def test_the_history_of_a_pulled_tag(clock: Clock, root: Path, hub: FakeUpstream) -> None:
    name = "up/team/app"
    config = make_config(root, {"up": {"url": hub.url, "tags": {"fresh_for": 10}}})
    first = hub.add_image("team/app", "v1")
    async with mirrors(config, 2) as two:
        for _ in range(3):
            assert (await two[0].get(manifest_path("v1"))).body == first.raw
        second = hub.add_image("team/app", "v1")
        clock.advance(60)
        for worker in two:
            assert (await worker.get(manifest_path("v1"))).body == second.raw
        assert await history(two[1], "v1", name) == [(second.digest, "pulled"), (first.digest, "pulled")]
        moves = json.loads((await two[1].get(history_path("v1", name=name))).body)["history"]
        apart = datetime.fromisoformat(moves[0]["time"]) - datetime.fromisoformat(moves[1]["time"])
        assert apart == timedelta(seconds=60)
        hub.remove_tag("team/app", "v1")
        clock.advance(60)
        assert (await two[0].get(manifest_path("v1"))).status == 404
        assert [digest for digest, _ in (await _moves(two[1], name))] == [None, second.digest, first.digest]


async def _moves(worker: Mirror, name: str) -> list[tuple[str | None, str]]:
    found = json.loads((await worker.get(history_path("v1", name=name))).body)["history"]
    return [(move["digest"], move["origin"]) for move in found]


async def test_pages_of_a_history(two: list[Mirror]) -> None:
    made = [make_index(annotations={"n": str(n)}) for n in range(7)]
    for one_of in made:
        await push(two[0], A, one_of, "v1", "v2")
    wanted = [one_of.digest for one_of in reversed(made)]
    for n in (1, 2, 3, 7, 8):
        for base in ("", "/me.example"):
            path = base + history_path("v1", f"&n={n}&ns=me.example")
            found = await pages(two[1], path, "history")
            assert [move["digest"] for page in found for move in page] == wanted
            assert [len(page) for page in found[:-1]] == [n] * (len(found) - 1)
    link = next_of(await two[1].get("/me.example" + history_path("v1", "&n=2&ns=me.example")))
    assert link is not None
    assert link.startswith(f"/me.example/v2/{A}/_mirror/tags/history?")
    assert "ns=me.example" in link
    nothing = await two[0].get(history_path("v1", "&n=0"))
    assert (json.loads(nothing.body)["history"], next_of(nothing)) == ([], None)
    beyond = await two[0].get(history_path("v1", "&before=1"))
    assert (beyond.status, json.loads(beyond.body)["history"]) == (200, [])


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "UNSUPPORTED"),
        ("?tag=", 400, "MANIFEST_INVALID"),
        ("?tag=-x", 400, "MANIFEST_INVALID"),
        ("?tag=never", 404, "MANIFEST_UNKNOWN"),
        ("?tag=v1&n=x", 400, "UNSUPPORTED"),
        ("?tag=v1&before=x", 400, "UNSUPPORTED"),
        ("?tag=v1&before=-1", 400, "UNSUPPORTED"),
    ],
)
async def test_histories_that_there_are_not(one: Mirror, query: str, status: int, code: str) -> None:
    await push(one, A, make_index(), "v1")
    await push(one, B, make_index(), "never")
    answer = await one.get(f"/v2/{A}/_mirror/tags/history{query}")
    assert (answer.status, answer.code) == (status, code)
