"""What may be pulled: refused before anything is asked or looked up, however it is said and whatever is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.connection import Connection, connect
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import Answer, Mirror, make_config, mirror, mirrors
from tests.images import NAME, Clock, blob_path, cached, manifest_path, pull_and_keep
from tests.pushed import delete, make_image, mount_blob, pages, push, push_blob

NGINX, ALPINE = "library/nginx", "library/alpine"
DENY = f"{NGINX}:latest"
REASON = f'docker.io/{DENY} may not be pulled: upstreams.docker.io.deny has "{DENY}"'


def config_of(root: Path, hub: FakeUpstream, **rules: Any) -> Any:
    """Return a configuration with the hub as ``up`` and as ``other``, which has no rules."""
    return make_config(root, {"up": {"url": hub.url, **rules}, "other": {"url": hub.url}})


def refused(answer: Answer) -> bool:
    return answer.status == 403 and (not answer.body or answer.code == "DENIED")


# ---- however it is said ----

WAYS: list[tuple[str, dict[str, str]]] = [
    *(
        (f"{base}{name}/manifests/latest{query}", headers)
        for base, query, headers in (
            ("/v2/", "", {}),
            ("/v2/", "?ns=docker.io", {}),
            ("/v2/", "?ns=DOCKER.io", {}),
            ("/v2/", "?ns=docker%2Eio", {}),
            ("/v2/", "?ns=index.docker.io", {}),
            ("/v2/", "?ns=registry-1.docker.io", {}),
            ("/v2/", "?ns=hub.example:5000", {}),
            ("/v2/", "?ns=me.example", {}),
            ("/v2/", "", {"Host": "docker.io"}),
            ("/v2/", "", {"Host": "Index.Docker.IO:443"}),
            ("/v2/", "", {"Host": "HUB.example:5000"}),
            ("/v2/", "", {"Host": "me.example"}),
            ("/docker.io/v2/", "", {}),
            ("/Docker.IO/v2/", "", {}),
            ("/docker%2eio/v2/", "", {}),
            ("/me.example/v2/", "", {}),
            ("/v2/docker.io/", "", {}),
            ("/v2/DOCKER.io/", "", {}),
            ("/v2/docker%2Eio/", "", {}),
            ("/v2/index.docker.io/", "", {}),
            ("/v2/registry-1.docker.io/", "", {}),
            ("/v2/hub.example:5000/", "", {}),
            ("/v2/hub.example%3A5000/", "", {}),
            ("/v2/me.example/", "", {}),
            ("/v2/me.example/docker.io/", "", {}),
            ("/v2/docker.io/", "?ns=docker.io", {}),
            ("/v2/index.docker.io/", "?ns=docker.io", {"Host": "quay.example"}),
            ("/docker.io/v2/docker.io/", "", {}),
        )
        for name in ("library/nginx", "nginx", "library/n%67inx", "%6eginx")
    ),
    ("/v2/nginx/manifests/l%61test", {}),
    ("/v2/nginx/%6danifests/latest", {}),
]


@pytest.fixture
async def denying(root: Path, hub: FakeUpstream) -> AsyncIterator[tuple[Mirror, Connection, Image]]:
    """A mirror that keeps an image that may not be pulled."""
    image = hub.add_image(NGINX, "latest")
    settings = {"url": hub.url, "names": ("hub.example:5000",)}
    others: dict[str, Any] = {"names": ("me.example",), "default_upstream": "docker.io"}
    async with mirror(make_config(root, {"docker.io": settings}, **others)) as before:
        await pull_and_keep(before, root, image, name=f"docker.io/{NGINX}")
    hub.clear_log()
    async with (
        mirror(make_config(root, {"docker.io": {**settings, "deny": (DENY,)}}, **others)) as one,
        connect(one.url) as client,
    ):
        yield one, client, image


async def test_no_way_to_say_it_gets_past_a_rule(
    denying: tuple[Mirror, Connection, Image], hub: FakeUpstream, root: Path
) -> None:
    one, client, image = denying
    for path, headers in WAYS:
        for method in ("GET", "HEAD"):
            answer = await client.ask(method, path, **headers)
            assert answer.status == 403, (method, path, headers, answer)
            if method == "GET":
                assert (answer.code, answer.error["message"]) == ("DENIED", REASON)
    assert hub.log == []
    assert all("cache" not in line for line in one.lines)
    by_digest = await client.ask("GET", f"/v2/nginx/manifests/{image.digest}")
    assert (by_digest.status, by_digest.body) == (200, image.raw), "which it cannot be told apart by"
    assert image.digest[7:] in cached(root)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v2/library%2Fnginx/manifests/latest", {}),
        ("/v2/Library/nginx/manifests/latest", {}),
        ("/v2/library//nginx/manifests/latest", {}),
        ("/v2/library/./nginx/manifests/latest", {}),
        ("/v2/x/../library/nginx/manifests/latest", {}),
        ("/v2/library/nginx/manifests/latest%00", {}),
        ("/v2/library/nginx/manifests/latest%0A", {}),
        ("/v2/library/nginx%0A/manifests/latest", {}),
        ("/v2/library/nginx/manifests/latest?ns=docker.io.", {}),
        ("/v2/library/nginx/manifests/latest?ns=docker.io:443", {}),
        ("/v2/library/nginx/manifests/latest?ns=hub.example", {}),
        ("/v2/docker.io/docker.io/nginx/manifests/latest", {}),
        ("/v2/library/library/nginx/manifests/latest", {}),
        ("/v2/library/nginx/manifests/LATEST", {}),
    ],
)
async def test_what_only_looks_like_it_is_something_else(
    denying: tuple[Mirror, Connection, Image], path: str, headers: dict[str, str]
) -> None:
    """Names that the rule is not about are no names of that image either."""
    _, client, _ = denying
    for method in ("GET", "HEAD"):
        answer = await client.ask(method, path, **headers)
        assert answer.status in (400, 404), answer
        assert "docker-content-digest" not in answer.headers


# ---- whatever is kept ----


def everything(image: Image, name: str) -> list[str]:
    """Return every path by which something of an image's repository can be read."""
    return [
        manifest_path(image.tag or "", name),
        manifest_path(image.digest, name),
        *(blob_path(digest, name) for digest in image.blobs),
        f"/v2/{name}/tags/list",
        f"/v2/{name}/referrers/{image.digest}",
        f"/v2/{name}/_mirror/tags/history?tag={image.tag}",
    ]


@pytest.mark.parametrize("rules", [{"deny": (NAME,)}, {"allow": ("other/**",)}], ids=["denied", "not allowed"])
@pytest.mark.parametrize("state", ["fresh", "stale", "nothing"])
async def test_kept_content_obeys(
    root: Path, hub: FakeUpstream, clock: Clock, rules: dict[str, Any], state: str
) -> None:
    image = hub.add_image(NAME, "v1")
    if state != "nothing":
        async with mirror(config_of(root, hub)) as before:
            await pull_and_keep(before, root, image)
            for path in everything(image, f"up/{NAME}"):
                if "/referrers/" not in path:
                    assert (await before.get(path)).status == 200, path
    if state == "stale":
        clock.advance(3600)
    hub.clear_log()
    async with mirrors(config_of(root, hub, **rules), 2) as workers:
        for worker in workers:
            for path in everything(image, f"up/{NAME}"):
                assert refused(await worker.get(path)), path
                assert refused(await worker.head(path)), path
                known = await worker.get(path, headers={"If-None-Match": f'"{image.digest}"', "Range": "bytes=0-9"})
                assert refused(known), path
        assert hub.log == []
        assert all(line["status"] == 403 and "cache" not in line for worker in workers for line in worker.lines)


async def test_what_is_in_memory_obeys_the_rules_of_the_repository_that_is_asked(root: Path, hub: FakeUpstream) -> None:
    """The same content of a repository that may be pulled, and of another upstream's, is there."""
    image = hub.add_image(NAME, "v1")
    for data in image.blobs.values():
        hub.add_blob("team/twin", data)
    hub.add_manifest("team/twin", image.raw, "v1")
    async with mirror(config_of(root, hub, deny=(NAME,))) as one:
        for name in (f"other/{NAME}", "up/team/twin"):
            await pull_and_keep(one, root, image, name=name)
        hub.clear_log()
        for path in (manifest_path(image.digest), *(blob_path(digest) for digest in image.blobs)):
            assert refused(await one.get(path))
            assert refused(await one.head(path))
            for name in (f"other/{NAME}", "up/team/twin"):
                assert (await one.get(path.replace(f"up/{NAME}", name))).status == 200
        assert hub.log == []


# ---- tags ----


async def test_a_tag_may_be_denied_and_the_rest_not(root: Path, hub: FakeUpstream) -> None:
    images = {tag: hub.add_image(ALPINE, tag) for tag in ("3.18", "3.19", "edge", "latest")}
    deny = (f"{ALPINE}:edge", "**:latest")
    async with mirror(config_of(root, hub, deny=deny)) as one:
        name = f"up/{ALPINE}"
        for tag in ("edge", "latest"):
            answer = await one.get(manifest_path(tag, name))
            assert refused(answer)
            rule = deny[tag == "latest"]
            message = json.loads(answer.body)["errors"][0]["message"]
            assert message == f'{name}:{tag} may not be pulled: upstreams.up.deny has "{rule}"'
        assert hub.log == []
        for image in images.values():
            assert (await one.get(manifest_path(image.digest, name))).body == image.raw
        assert (await one.get(manifest_path("3.19", name))).body == images["3.19"].raw
        for query in ("", "?n=1"):
            listed = await pages(one, f"/v2/{name}/tags/list{query}", "tags")
            assert [tag for page in listed for tag in page] == ["3.18", "3.19"]
        assert refused(await one.get(f"/v2/{name}/_mirror/tags/history?tag=edge"))
        assert (await one.get(f"/v2/{name}/_mirror/tags/history?tag=3.19")).status == 200


async def test_only_some_tags_may_be_allowed(root: Path, hub: FakeUpstream) -> None:
    image, edge = hub.add_image(ALPINE, "3.19"), hub.add_image(ALPINE, "edge")
    other = hub.add_image(NAME, "3.19")
    async with mirror(config_of(root, hub, allow=(f"{ALPINE}:3.*", "tools/**"))) as one:
        for path in (manifest_path("edge", f"up/{ALPINE}"), *everything(other, f"up/{NAME}")):
            answer = await one.get(path)
            assert refused(answer)
            message = json.loads(answer.body)["errors"][0]["message"]
            assert message.endswith(f"nothing in upstreams.up.allow matches ({ALPINE}:3.*, tools/**)")
        assert hub.log == []
        await pull_and_keep(one, root, image, name=f"up/{ALPINE}")
        assert (await one.get(manifest_path(edge.digest, f"up/{ALPINE}"))).status == 200
        listed = await pages(one, f"/v2/up/{ALPINE}/tags/list", "tags")
        assert [tag for page in listed for tag in page] == ["3.19"]


# ---- what is not a pull ----


async def test_nothing_is_mounted_from_what_may_not_be_pulled(root: Path, hub: FakeUpstream) -> None:
    image, fine = hub.add_image(NAME, "v1"), hub.add_image("team/fine", "v1")
    async with mirror(config_of(root, hub)) as before:
        await pull_and_keep(before, root, image)
        await pull_and_keep(before, root, fine, name="up/team/fine")
    async with mirror(config_of(root, hub, deny=(NAME,))) as one:
        hub.clear_log()
        for digest in image.blobs:
            for source in (f"up/{NAME}", f"UP/{NAME}"):
                answer = await mount_blob(one, "local/a", digest, source)
                assert answer.status == 202, "an upload begins, as if there were no such repository"
                assert "/blobs/uploads/" in answer.headers["Location"]
            assert (await one.get(blob_path(digest, "local/a"))).status == 404
        for digest in fine.blobs:
            assert (await mount_blob(one, "local/a", digest, "up/team/fine")).status == 201
        assert hub.log == []


async def test_what_may_not_be_pulled_can_be_purged(root: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_of(root, hub)) as before:
        await pull_and_keep(before, root, image)
    async with mirror(config_of(root, hub, deny=(NAME, f"{NAME}:v1"))) as one:
        for digest in image.blobs:
            assert (await delete(one, blob_path(digest))).status == 202
        assert (await delete(one, manifest_path("v1"))).status == 202
        assert cached(root) == []


async def test_our_own_repositories_have_no_rules(root: Path, hub: FakeUpstream) -> None:
    made = make_image(b"layer")
    config = make_config(root, {"up": {"url": hub.url, "deny": ("**",)}}, local=("local/**",))
    async with mirror(config) as one:
        await push(one, "local/a", made, "v1")
        assert (await one.get(manifest_path("v1", "local/a"))).body == made.raw
        assert (await one.get("/v2/local/a/tags/list")).status == 200
        assert (await mount_blob(one, "local/b", await push_blob(one, "local/a", b"x"), "local/a")).status == 201
        assert refused(await one.get(manifest_path("v1", "up/local/a")))
