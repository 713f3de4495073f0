"""Which names are ours: pushed to, never asked of an upstream, never answered from what an upstream has."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fake_upstream import FakeUpstream, digest_of
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import blob_path, manifest_path
from tests.pushed import (
    Made,
    has_blob,
    make_artifact,
    make_image,
    make_index,
    mount_blob,
    push,
    push_blob,
    served,
    unknown,
)

LOCAL = ["local/**", "team-*/app"]
HOST = "registry.corp"


@pytest.fixture
async def one(root: Path, hub: FakeUpstream) -> AsyncIterator[Mirror]:
    """A mirror of the hub, known as a registry of its own."""
    upstreams = {"docker.io": {"url": hub.url}}
    async with mirror(make_config(root, upstreams, local=LOCAL, names=[HOST, f"{HOST}:5000"])) as running:
        yield running


WRITES = [
    ("PUT", "/manifests/v1"),
    ("POST", "/blobs/uploads/"),
    ("POST", f"/blobs/uploads/?digest={digest_of(b'x')}"),
    ("POST", f"/blobs/uploads/?mount={digest_of(b'x')}&from=local/a"),
    ("PATCH", "/blobs/uploads/0b1f6f1e-0000-4000-8000-000000000001"),
    ("PUT", f"/blobs/uploads/0b1f6f1e-0000-4000-8000-000000000001?digest={digest_of(b'x')}"),
    ("GET", "/blobs/uploads/0b1f6f1e-0000-4000-8000-000000000001"),
    ("DELETE", "/blobs/uploads/0b1f6f1e-0000-4000-8000-000000000001"),
]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize(
    "before",
    [
        "/v2/library/alpine",
        "/v2/docker.io/library/alpine",
        "/docker.io/v2/local/a",
        "/v2/docker.io/local/a",
        "/v2/localx/a",
        "/v2/team-a/b/app",
        "/v2/local",
        f"/v2/{HOST}/library/alpine",
        "/v2/nowhere.example/a",
        "/nowhere.example/v2/local/a",
    ],
)
async def test_what_is_not_ours_is_not_pushed_to(
    one: Mirror, hub: FakeUpstream, before: str, method: str, path: str
) -> None:
    answer = await one.ask(method, before + path, data=b"x" if method in ("PUT", "PATCH", "POST") else None)
    assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    error = json.loads(answer.body)["errors"][0]
    for pattern in LOCAL:
        assert pattern in error["message"]
    assert "local in the configuration" in error["message"]
    assert error["detail"]["local"] == LOCAL
    assert before.partition("/v2/")[2] == error["detail"]["name"]
    assert hub.log == []


async def test_an_upstream_that_is_named_is_not_pushed_to(one: Mirror, hub: FakeUpstream) -> None:
    made = make_index()
    for path, headers in (
        ("/v2/local/a/manifests/v1?ns=docker.io", {}),
        ("/v2/local/a/manifests/v1", {"Host": "docker.io"}),
        ("/v2/local/a/manifests/v1?ns=nowhere.example", {}),
    ):
        answer = await one.ask("PUT", path, data=made.raw, headers={"Content-Type": made.media_type, **headers})
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")
    await unknown([one], manifest_path("v1", "local/a"))
    assert hub.log == []


async def test_without_local_names_nothing_is_pushed(root: Path, hub: FakeUpstream) -> None:
    async with mirror(make_config(root, {"up": {"url": hub.url}}, local=[])) as one:
        answer = await one.ask("POST", "/v2/local/a/blobs/uploads/")
        assert (answer.status, answer.code) == (405, "UNSUPPORTED")
        assert "names of our own: none" in json.loads(answer.body)["errors"][0]["message"]


OURS = [
    ("/v2/local/a", {}),
    ("/v2/team-x/app", {}),
    (f"/v2/{HOST}/local/a", {}),
    (f"/{HOST}/v2/local/a", {}),
    (f"/{HOST}:5000/v2/local/a", {}),
    ("/v2/local/a?ns=registry.corp", {}),
    ("/v2/local/a?ns=Registry.Corp%3A5000", {}),
    ("/v2/local/a", {"Host": HOST}),
    ("/v2/local/a", {"Host": "somebody.example"}),
    (f"/v2/{HOST}/local/a?ns={HOST}", {"Host": f"{HOST}:5000"}),
]


@pytest.mark.parametrize(("where", "headers"), OURS)
async def test_our_names_are_ours_in_any_way_to_say_them(
    one: Mirror, hub: FakeUpstream, where: str, headers: dict[str, str]
) -> None:
    """Pushed and read that way; an upstream that has the same names is never asked."""
    base, _, query = where.partition("?")
    hub.add_image("local/a", "v2")
    hub.add_image("team-x/app", "v2")
    hub.add_image(f"{HOST}/local/a", "v2")
    made = make_image(b"layer")

    async def ask(method: str, path: str, more: str = "", data: bytes | None = None) -> int:
        parameters = "&".join(filter(None, (more, query)))
        sent = headers | ({"Content-Type": made.media_type} if data == made.raw else {})
        return (await one.ask(method, f"{base}{path}?{parameters}", data=data, headers=sent)).status

    for digest, data in made.blobs.items():
        assert await ask("POST", "/blobs/uploads/", f"digest={digest}", data) == 201
    assert await ask("PUT", "/manifests/v1", data=made.raw) == 201
    assert await ask("GET", "/manifests/v1") == 200
    assert await ask("GET", f"/manifests/{made.digest}") == 200
    assert await ask("HEAD", f"/blobs/{digest_of(b'layer')}") == 200
    assert await ask("GET", "/tags/list") == 200
    assert await ask("GET", f"/referrers/{made.digest}") == 200
    for method in ("GET", "HEAD", "DELETE"):
        assert await ask(method, "/manifests/v2") == 404
        assert await ask(method, f"/blobs/{digest_of(b'nothing')}") == 404
    assert await ask("DELETE", f"/manifests/{made.digest}") == 202
    assert await ask("GET", "/manifests/v1") == 404
    assert hub.log == []
    # and whoever names the upstream means the upstream
    assert (await one.get("/docker.io/v2/local/a/manifests/v2")).status == 200
    assert hub.log != []


async def test_an_upstream_s_name_is_not_answered_from_what_was_pushed(root: Path, hub: FakeUpstream) -> None:
    made = make_image(b"layer")
    image = hub.add_image("local/a", "v2")
    async with mirror(make_config(root, {"up": {"url": hub.url}})) as one:
        await push(one, "local/a", made, "v1", "v2")
        theirs = "up/local/a"
        for path in (
            manifest_path("v1", theirs),
            manifest_path(made.digest, theirs),
            blob_path(digest_of(b"layer"), theirs),
        ):
            await unknown([one], path)
        await served([one], theirs, "v2", _as_made(image.raw))
        await served([one], "local/a", "v2", made)
        listed = json.loads((await one.get(f"/v2/{theirs}/tags/list")).body)["tags"]
        assert listed == ["v2"]


async def test_a_name_that_becomes_local_is_so_at_once(root: Path, hub: FakeUpstream) -> None:
    """By configuration, never by what happens to be stored: nothing that was pulled under it is of ours, and back."""
    image = hub.add_image("team/app", "v1")
    upstreams = {"up": {"url": hub.url}}
    async with mirror(make_config(root, upstreams)) as one:
        assert (await one.get("/v2/team/app/manifests/v1")).body == image.raw
    async with mirror(make_config(root, upstreams, local=["team/**"])) as one:
        hub.clear_log()
        await unknown([one], manifest_path("v1", "team/app"))
        await unknown([one], manifest_path(image.digest, "team/app"))
        assert (await one.get("/v2/team/app/tags/list")).code == "NAME_UNKNOWN"
        made = make_index()
        await push(one, "team/app", made, "v1")
        assert hub.log == []
    async with mirror(make_config(root, upstreams)) as one:
        assert (await one.get("/v2/team/app/manifests/v1")).body == image.raw
        await unknown([one], manifest_path(made.digest, "team/app"))


def _as_made(raw: bytes) -> Made:
    return Made(raw, json.loads(raw)["mediaType"])


# ---- what is pushed is readable where it was pushed ----


async def test_content_is_readable_where_it_was_pushed_and_nowhere_else(root: Path, hub: FakeUpstream) -> None:
    made = make_image(b"layer")
    layer = digest_of(b"layer")
    async with mirrors(make_config(root, {"up": {"url": hub.url}}), 2) as two:
        await push(two[0], "local/a", made, "v1")
        await push_blob(two[0], "local/b", b"other")
        for name in ("local/b", "local/never", "up/team/app"):
            for path in (manifest_path(made.digest, name), manifest_path("v1", name), blob_path(layer, name)):
                await unknown(two, path)
        await has_blob(two, "local/a", b"layer")
        assert (await mount_blob(two[1], "local/b", layer)).status == 201  # pushed to one of ours: a candidate
        await has_blob(two, "local/b", b"layer")
        await unknown(two, blob_path(layer, "local/never"))


async def test_what_is_pushed_gives_an_upstream_s_repository_no_right(root: Path, hub: FakeUpstream) -> None:
    """Also not when the upstream is down: nobody but it says what it has."""
    made = make_image(b"layer")
    layer = digest_of(b"layer")
    async with mirrors(make_config(root, {"up": {"url": hub.url}}), 2) as two:
        await push(two[0], "local/a", made, "v1")
        for status in (401, 403, 404, 500):
            hub.clear_faults()
            hub.fail("", status=status)
            for path in (blob_path(layer), manifest_path(made.digest)):
                for method in ("GET", "HEAD"):
                    answer = await two[1].ask(method, path)
                    assert answer.status in (403, 404, 503), (status, answer)
                    assert b"layer" not in answer.body
        hub.clear_faults()
        for data in made.blobs.values():
            hub.add_blob("team/app", data)
        hub.add_manifest("team/app", made.raw)
        assert (await two[1].get(blob_path(layer))).body == b"layer"  # once it says so, nothing is fetched
        assert (await two[1].get(manifest_path(made.digest))).body == made.raw
        assert hub.count("GET", layer) == hub.count("GET", made.digest) == 0 or hub.bytes_sent(layer) == 0


async def test_what_was_pulled_gives_our_repositories_no_right(root: Path, hub: FakeUpstream) -> None:
    """Public or not, by digest, as a blob of a pushed manifest, or mounted without saying from where."""
    image = hub.add_image("team/app", "v1")
    async with mirrors(make_config(root, {"up": {"url": hub.url}}), 2) as two:
        assert (await two[0].get(manifest_path("v1"))).body == image.raw
        for digest, data in image.blobs.items():
            assert (await two[0].get(blob_path(digest))).body == data
        hub.clear_log()
        for digest in image.blobs:
            await unknown(two, blob_path(digest, "local/a"))
            assert (await mount_blob(two[1], "local/a", digest)).status == 202
            assert (await mount_blob(two[1], "local/a", digest, "up/never/pulled")).status in (201, 202)
        await unknown(two, manifest_path(image.digest, "local/b"))
        answer = await two[0].ask("PUT", manifest_path("v1", "local/b"), data=image.raw)
        assert answer.code == "MANIFEST_BLOB_UNKNOWN"
        assert [entry["digest"] for entry in json.loads(answer.body)["errors"][0]["detail"]] == list(image.blobs)
        for digest, data in image.blobs.items():
            assert (await mount_blob(two[1], "local/b", digest, "up/team/app")).status == 201
            await has_blob(two, "local/b", data)
        assert hub.log == []


async def test_a_subject_of_ours_is_no_referrer_of_theirs(root: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "v1")
    async with mirror(make_config(root, {"up": {"url": hub.url}})) as one:
        assert (await one.get(manifest_path("v1"))).status == 200
        await push(one, "local/a", make_artifact(image.descriptor))
        here = await one.get(f"/v2/local/a/referrers/{image.digest}")
        assert len(json.loads(here.body)["manifests"]) == 1
        elsewhere = await one.get(f"/v2/local/b/referrers/{image.digest}")
        assert json.loads(elsewhere.body)["manifests"] == []
        theirs = await one.get(f"/v2/up/team/app/referrers/{image.digest}")
        assert (theirs.status, json.loads(theirs.body)["manifests"]) == (200, [])


async def test_what_a_pusher_calls_content_is_not_what_an_upstream_calls_it(root: Path, hub: FakeUpstream) -> None:
    """Of a body that does not say itself what it is; whichever was here first."""
    raw = b'{"anything": 1}'
    digest = digest_of(raw)
    theirs, ours = "application/vnd.good+json", "application/vnd.evil+json"
    hub.add_manifest("team/app", raw, "v1", media_type=theirs)
    hub.add_blob("team/app", raw)
    async with mirror(make_config(root, {"up": {"url": hub.url}})) as one:

        async def push_it() -> None:
            answer = await one.ask("PUT", manifest_path("v1", "local/a"), data=raw, headers={"Content-Type": ours})
            assert answer.status == 201

        async def both_are_right() -> None:
            for name, media_type in (("up/team/app", theirs), ("local/a", ours)):
                for reference in (digest, "v1"):
                    for method in ("HEAD", "GET"):
                        answer = await one.ask(method, manifest_path(reference, name))
                        assert (answer.status, answer.headers["Content-Type"]) == (200, media_type), (name, reference)

        await push_it()
        assert (await one.get(blob_path(digest))).body == raw  # as a blob, which makes the bytes public
        await both_are_right()
        await push_it()
        await both_are_right()
