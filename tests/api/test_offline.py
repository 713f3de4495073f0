"""Offline: nothing is asked of anybody, what is kept is served, and the rest is refused at once.

The upstream, its mirror and its token realm have names here that a resolver of the test would have to be asked for:
no request can leave unseen.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Credentials
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import make_config, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    get_image,
    kept,
    manifest_path,
    pull,
    pull_and_keep,
    use_client,
    warning,
)

NAMES = ("registry.example", "mirror.example")
V1 = manifest_path("v1")
ABSENT = "sha256:" + "0" * 64
TAGS = f"/v2/up/{NAME}/tags/list"


class Resolver(AbstractResolver):
    """Knows the names of the test as loopback; notes whom it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked.append(host)
        found = ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
        return [found]

    async def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    made = Resolver()
    use_client(monkeypatch, resolver=made)
    return made


def configured(tmp_path: Path, hub: FakeUpstream, *, everything: bool = False, **upstream: Any) -> Any:
    """Return a configuration with the hub as registry and as its own mirror, both by name.

    everything: whether offline is said at the top instead of for the upstream.
    """
    (tmp_path / "password").write_text("secret")
    settings = {
        "url": f"http://{NAMES[0]}:{hub.port}",
        "mirrors": [{"url": f"http://{NAMES[1]}:{hub.port}"}],
        "credentials": Credentials(username="us", password_file=tmp_path / "password"),
    }
    return make_config(tmp_path / "root", {"up": settings | upstream}, offline=everything)


@pytest.fixture
def whole(hub: FakeUpstream) -> FakeUpstream:
    """The hub, by tokens."""
    hub.auth, hub.users, hub.realm = "token", {"us": "secret"}, f"http://{NAMES[0]}:{hub.port}/token"
    return hub


async def filled(tmp_path: Path, root: Path, hub: FakeUpstream) -> Image:
    """Let a mirror that is online keep an image with its lists, and know of a tag that is not there."""
    image = hub.add_image(NAME, "v1")
    hub.add_artifact(NAME, image, "application/x.signature")
    async with mirrors(configured(tmp_path, hub), 4) as workers:
        await pull_and_keep(workers[0], root, image)
        for path in (TAGS, f"/v2/up/{NAME}/referrers/{image.digest}"):
            assert (await workers[1].get(path)).status == 200
    return image


@pytest.mark.parametrize("everything", [False, True], ids=["one", "all"])
async def test_what_is_kept_is_served_and_nobody_is_asked(
    tmp_path: Path, root: Path, whole: FakeUpstream, resolver: Resolver, clock: Clock, everything: bool
) -> None:
    image = await filled(tmp_path, root, whole)
    assert set(resolver.asked) == set(NAMES)
    whole.clear_log()
    resolver.asked.clear()
    config = configured(tmp_path, whole, everything=everything, offline=not everything)
    async with mirrors(config, 4) as workers:
        for worker in workers:
            fresh = await worker.get(V1)
            assert (fresh.status, fresh.body, warning(fresh)) == (200, image.raw, None)
        clock.advance(86_400)
        for worker in workers:
            stale = await worker.get(V1)
            assert (stale.status, stale.body) == (200, image.raw)
            assert (warning(stale) or "").endswith(': up is offline by configuration"')
            by_digest = await worker.get(manifest_path(image.digest))
            assert (by_digest.body, warning(by_digest)) == (image.raw, None)
            await get_image(worker, image)
            for path, part in (
                (TAGS, b'"v1"'),
                (f"/v2/up/{NAME}/referrers/{image.digest}", b"application/x.signature"),
            ):
                listed = await worker.get(path)
                assert listed.status == 200
                assert part in listed.body
                assert (warning(listed) or "").endswith(': up is offline by configuration"')
    assert resolver.asked == []
    assert whole.count() == 0


async def test_what_is_not_kept_is_refused_at_once(
    tmp_path: Path, root: Path, whole: FakeUpstream, resolver: Resolver, clock: Clock
) -> None:
    image = await filled(tmp_path, root, whole)
    later = whole.add_image(NAME, "v2", (5000,))
    resolver.asked.clear()
    paths = [
        manifest_path("v2"),
        manifest_path(later.digest),
        blob_path(later.layers[0]),
        blob_path(image.layers[0], "up/team/other"),
        manifest_path(image.digest, "up/team/other"),
        "/v2/up/team/other/tags/list",
        f"/v2/up/{NAME}/referrers/{ABSENT}",
    ]
    async with mirrors(configured(tmp_path, whole, offline=True), 4) as workers:
        for path in paths:
            for method in ("GET", "HEAD") if "list" not in path and "referrers" not in path else ("GET",):
                for worker in workers:
                    answer = await worker.ask(method, path)
                    assert answer.status == 503, path
                    if method == "GET":
                        assert answer.code == "UNAVAILABLE"
                        assert b"up is offline by configuration and nothing is kept of " in answer.body
                        assert b"switch offline off" in answer.body
    assert resolver.asked == []


async def test_a_404_that_is_remembered_stays_one(
    tmp_path: Path, root: Path, whole: FakeUpstream, resolver: Resolver, clock: Clock
) -> None:
    await filled(tmp_path, root, whole)
    async with mirrors(configured(tmp_path, whole), 1) as (worker,):
        assert (await worker.get(manifest_path("gone"))).status == 404
    resolver.asked.clear()
    async with mirrors(configured(tmp_path, whole, offline=True), 2) as workers:
        for worker in workers:
            answer = await worker.get(manifest_path("gone"))
            assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert resolver.asked == []


async def test_an_image_that_is_not_all_here_is_not_promised(
    tmp_path: Path, root: Path, whole: FakeUpstream, resolver: Resolver, clock: Clock
) -> None:
    image = whole.add_image(NAME, "v1")
    async with mirrors(configured(tmp_path, whole), 1) as (worker,):
        assert (await worker.get(V1)).status == 200
        assert (await worker.get(blob_path(image.config))).status == 200
        await kept(root, image.digest, image.config)
    clock.advance(61)
    async with mirrors(configured(tmp_path, whole, offline=True), 1) as (worker,):
        answer = await worker.get(V1)
        assert answer.status == 503
        assert f"not all of {NAME}:v1 is kept".encode() in answer.body


async def test_switched_off_again_everything_is_asked_anew_at_once(
    tmp_path: Path, root: Path, whole: FakeUpstream, resolver: Resolver, clock: Clock
) -> None:
    await filled(tmp_path, root, whole)
    clock.advance(61)
    async with mirrors(configured(tmp_path, whole, offline=True), 1) as (worker,):
        assert warning(await worker.get(V1))
        assert warning(await worker.get(TAGS))
        assert (await worker.get(manifest_path("v2"))).status == 503
    new = whole.add_image(NAME, "v1", (5000,))
    whole.set_tag(NAME, "v2", new.digest)
    async with mirrors(configured(tmp_path, whole), 4) as workers:
        await asyncio.gather(*(pull(worker, new) for worker in workers))
        listed = await workers[1].get(TAGS)
        assert b'"v2"' in listed.body
        assert warning(listed) is None
        assert (await workers[2].get(manifest_path("v2"))).body == new.raw
    assert set(resolver.asked) == set(NAMES)
