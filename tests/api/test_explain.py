"""What ``mirror explain`` says of an image, held against what a running mirror then does with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.cli.explain import ForPlatform
from mirror.config import Config, Credentials
from mirror.oci.manifest import parse_manifest
from mirror.prefetch.platforms import choose, entries, parse_platform
from mirror.registry.explained import Explained
from mirror.wiring import build_explain
from tests.fake_upstream import INDEX, FakeUpstream, Image, digest_of
from tests.harness import Answer, Mirror, make_config, mirror
from tests.images import kept, manifest_path, pull_and_keep, until, use_client
from tests.layouts import Layout
from tests.pushed import make_image, push

AMD64 = parse_platform("linux/amd64")
PORT = 5005
OWN = "mirror.test:5000"
GONE = "sha256:" + 64 * "7"
SHARED = bytes(range(256)) * 300


@dataclass(frozen=True)
class Stage:
    """A root in which something is kept of some images. fakes: every registry that could be asked."""

    config: Config
    fakes: Sequence[FakeUpstream]
    names: dict[str, str]

    @property
    def root(self) -> Path:
        return self.config.storage.root

    def asked(self) -> list[str]:
        return [
            f"{one.method} {one.path}"
            for fake in self.fakes
            for one in fake.requests()
            if one.server != "token" and one.path not in ("/v2/", "/token")
        ]

    def fetched(self, part: str) -> tuple[int, int]:
        """Return how many GETs with ``part`` in their path were answered, and the bytes sent."""
        found = [one for fake in self.fakes for one in fake.requests("GET", part) if one.status == 200]
        return len(found), sum(one.sent for one in found)

    def clear(self) -> None:
        for fake in self.fakes:
            fake.clear_log()


async def explain(config: Config, reference: str, *, ask: bool = False, platform: str = "linux/amd64") -> Explained:
    explainer = await asyncio.to_thread(build_explain, config)
    return await explainer.explain(reference, ForPlatform(parse_platform(platform)), ask=ask)


class Loopback(AbstractResolver):
    """A resolver that has one address for every name."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(monkeypatch, resolver=Loopback())


def lose(root: Path, *digests: str) -> None:
    for digest in digests:
        os.unlink(root / "cache" / "sha256" / digest.partition(":")[2])


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(FakeUpstream())
        near = await stack.enter_async_context(FakeUpstream())
        vault = await stack.enter_async_context(
            FakeUpstream(auth="token", users={"ci": "secret"}, private=["a/app", "b/app"])
        )
        near.hold_what(hub)
        secret = tmp_path / "password"
        secret.write_text("secret")
        login = Credentials(username="ci", password_file=secret)
        upstreams: dict[str, Any] = {
            "docker.io": {"url": hub.url, "names": ("index.docker.io",)},
            "quay.io": {
                "url": hub.url,
                "allow": ("team/*",),
                "deny": ("team/secret", "team/app:*-rc"),
            },
            "corp": {"url": hub.url, "names": ("registry.corp.test",)},
            "*.pkg.test": {"url": f"http://{{host}}:{hub.port}"},
            "off.test": {"url": hub.url},
            "stale.test": {"url": hub.url, "tags": {"fresh_for": 0}},
            "old.test": {"url": hub.url, "tags": {"fresh_for": 0, "stale_for": 0}},
            "via.test": {"url": hub.url, "mirrors": [{"url": near.url}]},
            "vault.test": {"url": vault.url, "credentials": (login,)},
            "rest.test": {"url": "http://127.0.0.1:1", "breaker_window": 3600},
        }
        settings = {"names": (OWN,), "listen": (f"127.0.0.1:{PORT}",)}
        before = make_config(tmp_path / "root", upstreams, **settings)
        names = await prepare(before, hub, vault)
        upstreams["off.test"]["offline"] = True
        found = Stage(make_config(tmp_path / "root", upstreams, **settings), (hub, near, vault), names)
        found.clear()
        yield found


async def prepare(config: Config, hub: FakeUpstream, vault: FakeUpstream) -> dict[str, str]:
    """Keep some images, all or in part; return the digests that tests name."""
    root = config.storage.root
    alpine = hub.add_image("library/alpine", "kept")
    hub.add_image("library/alpine", "latest")
    new = hub.add_image("team/new", "1")
    torn = hub.add_image("team/torn", "1", (70_000, 30_000))
    multi = hub.add_index(
        "team/multi", "1", [amd := hub.add_image("team/multi", None), hub.add_image("team/multi", None)]
    )
    bare = hub.add_index("team/bare", "1", [hub.add_image("team/bare", None), hub.add_image("team/bare", None)])
    whole = {name: hub.add_image(f"team/{name}", "1") for name in ("offline", "stale", "old", "via")}
    hub.add_image("team/stale", "torn", (5000, 6000))
    hub.add_image("team/app", "1")
    hub.add_image("team/app", "2")
    for name in ("a/b", "p/q"):
        hub.add_image(name, "1")
    first = vault.add_image("a/app", "1", layers=[SHARED, b"a" * 9000])
    second = vault.add_image("b/app", "1", layers=[SHARED, b"b" * 8000])
    pushed = make_image(b"layer one", b"layer two")
    async with mirror(config) as worker:
        await pull_and_keep(worker, root, alpine, name="library/alpine")
        await pull_and_keep(worker, root, torn, name="team/torn")
        assert (await worker.get(manifest_path("1", "team/multi"))).status == 200
        await pull_and_keep(worker, root, Image(**{**vars(amd), "tag": None}), name="team/multi")
        assert (await worker.get(manifest_path("1", "team/bare"))).status == 200
        for name, image in whole.items():
            source = {"offline": "off", "stale": "stale", "old": "old", "via": "via"}[name]
            await pull_and_keep(worker, root, image, name=f"{source}.test/team/{name}")
        await pull_and_keep(worker, root, first, name="vault.test/a/app")
        shared = vault.fault(f"HEAD /v2/b/app/blobs/{digest_of(SHARED)}", status=500)
        assert (await worker.get(manifest_path("1", "vault.test/b/app"))).status == 200
        await until(lambda: shared.hits, "the shared layer is asked about")
        vault.clear_faults()
        await push(worker, "local/app", pushed, "1")
        for _ in range(3):
            await worker.get(manifest_path("1", "rest.test/x/y"))
        await kept(root, bare.digest, multi.digest, second.digest)
    await asyncio.to_thread(lose, root, torn.layers[0], whole["via"].layers[1])
    return {"alpine": alpine.digest, "new": new.digest, "torn": torn.digest, "pushed": pushed.digest}


REFERENCES: list[tuple[str, str]] = [
    # what is kept
    ("alpine:kept", "docker.io library/alpine"),
    ("docker.io/library/alpine:kept", "docker.io library/alpine"),
    ("index.docker.io/alpine:kept", "docker.io library/alpine"),
    ("alpine@{alpine}", "docker.io library/alpine"),
    (f"127.0.0.1:{PORT}/alpine:kept", "docker.io library/alpine"),
    ("team/multi:1", "docker.io team/multi"),
    ("stale.test/team/stale:1", "stale.test team/stale"),
    ("old.test/team/old:1", "old.test team/old"),
    ("off.test/team/offline:1", "off.test team/offline"),
    ("vault.test/a/app:1", "vault.test a/app"),
    ("local/app:1", "None local/app"),
    ("local/app@{pushed}", "None local/app"),
    (f"{OWN}/local/app:1", "None local/app"),
    # what is kept in part
    ("docker.io/team/torn:1", "docker.io team/torn"),
    ("team/torn:1@{torn}", "docker.io team/torn"),
    ("via.test/team/via:1", "via.test team/via"),
    ("vault.test/b/app:1", "vault.test b/app"),
    ("team/bare:1", "docker.io team/bare"),
    # what is not
    ("alpine", "docker.io library/alpine"),
    ("docker.io/team/new@{new}", "docker.io team/new"),
    ("team/new", "docker.io team/new"),
    ("docker.io/team/nowhere:1", "docker.io team/nowhere"),
    (f"docker.io/team/new@{GONE}", "docker.io team/new"),
    ("quay.io/team/app:1", "quay.io team/app"),
    (f"{OWN}/quay.io/team/app:2", "quay.io team/app"),
    ("corp/a/b:1", "corp a/b"),
    ("registry.corp.test/a/b:1", "corp a/b"),
    ("eu.pkg.test/p/q:1", "eu.pkg.test p/q"),
    ("stale.test/team/stale:torn", "stale.test team/stale"),
    ("off.test/team/none:1", "off.test team/none"),
    ("rest.test/x/y:1", "rest.test x/y"),
    ("local/none:1", "None local/none"),
    # what is refused
    ("quay.io/team/app:1-rc", "quay.io team/app"),
    ("quay.io/team/secret:1", "quay.io team/secret"),
    ("quay.io/other/app:1", "quay.io other/app"),
    ("ghcr.io/x/y:1", "404 NAME_UNKNOWN"),
    ("localhost:9/x/y", "404 NAME_UNKNOWN"),
    ("docker.io/team/App:1", "400 NAME_INVALID"),
]


def meant(found: Explained) -> str:
    if found.meant is None:
        return f"{found.answer.status} {found.answer.code}"
    return f"{found.meant.upstream} {found.meant.repository}"


async def ask(worker: Mirror, found: Explained, path: str | None = None) -> Answer:
    host = found.request.host
    return await worker.get(path or found.request.path, headers={"Host": host} if host else {})


async def pull_all(worker: Mirror, stage: Stage, found: Explained, first: Answer) -> None:
    """Get what a node gets after the first manifest, and wait until it is kept."""

    def path(kind: str, digest: object) -> str:
        name, _, rest = found.request.path.rpartition("/manifests/")
        query = rest.partition("?")
        return f"{name}/{kind}/{digest}{query[1]}{query[2]}"

    manifest = parse_manifest(first.body, content_type=first.headers["Content-Type"])
    if first.headers["Content-Type"] == INDEX:
        for entry in choose(entries(manifest), AMD64):
            answer = await ask(worker, found, path("manifests", entry.descriptor.digest))
            assert answer.status == 200, answer
            manifest = parse_manifest(answer.body, content_type=answer.headers["Content-Type"])
    for blob in manifest.blobs:
        answer = await ask(worker, found, path("blobs", blob.digest))
        assert (answer.status, digest_of(answer.body)) == (200, str(blob.digest)), answer
    if found.meant is not None and found.meant.upstream is not None:
        await kept(stage.root, *(str(blob.digest) for blob in manifest.blobs))


def judged(stage: Stage, found: Explained, first: Answer) -> Iterator[str]:
    """Give what was said and is not so."""
    answer, asked = found.answer, stage.asked()
    if answer.asks != bool(asked):
        yield f"asks is {answer.asks}, and it asked {asked}"
    if answer.status not in (None, first.status):
        yield f"status {answer.status}, and it was {first.status}"
    if answer.code is not None and answer.code != first.code:
        yield f"code {answer.code}, and it was {first.code}"
    if answer.message is not None and not found.upstream and answer.message.encode() not in first.body:
        yield f"message {answer.message!r}, and it was {first.body!r}"


async def test_what_is_said_is_what_is_done(stage: Stage) -> None:
    """Each reference is explained, then pulled: who is asked, what is answered, what is fetched."""
    wrong: dict[str, list[str]] = {}
    known = 0
    async with mirror(stage.config) as worker:
        for written, means in REFERENCES:
            reference = written.format(**stage.names)
            stage.clear()
            found = await explain(stage.config, reference)
            wrong[reference] = [f"it means {meant(found)}"] if meant(found) != means else []
            if stage.asked():
                wrong[reference].append(f"explaining asked {stage.asked()}")
            first = await ask(worker, found)
            wrong[reference] += judged(stage, found, first)
            pulling = found.pull
            if first.status != 200:
                continue
            assert pulling is not None
            await pull_all(worker, stage, found, first)
            (manifests, of_manifests), (blobs, of_blobs) = stage.fetched("/manifests/"), stage.fetched("/blobs/")
            done = (manifests, blobs, of_manifests + of_blobs)
            said = (pulling.manifests, pulling.blobs, pulling.bytes)
            if pulling.counted != pulling.manifests or (
                done != said if pulling.known else manifests < pulling.manifests
            ):
                wrong[reference].append(f"fetches {said}, and it fetched {done}")
            heads = [one for one in stage.asked() if one.startswith("HEAD")]
            if pulling.known and pulling.for_tag + pulling.confirmations != len(heads):
                wrong[reference].append(f"{pulling.for_tag} and {pulling.confirmations} HEADs, and it sent {heads}")
            known += pulling.known
    assert {reference: lines for reference, lines in wrong.items() if lines} == {}
    assert known >= 15  # most of the table says exactly what is fetched


async def test_what_is_said_of_an_outage_is_what_happens_in_one(stage: Stage) -> None:
    for fake in stage.fakes:
        await fake.stop()
    wrong: dict[str, str] = {}
    async with mirror(stage.config) as worker:
        for written, _ in REFERENCES:
            reference = written.format(**stage.names)
            found = await explain(stage.config, reference)
            down = found.down or found.answer
            answer = await ask(worker, found)
            stale = "Warning" in answer.headers
            if (down.status, down.stale is not None) != (answer.status, stale):
                wrong[reference] = f"{down.status}, stale: {down.stale}; and it was {answer}"
    assert wrong == {}


async def test_ask_says_whether_a_tag_moved_and_is_no_pull(stage: Stage) -> None:
    hub = stage.fakes[0]
    same = await explain(stage.config, "docker.io/library/alpine:kept", ask=True)
    assert same.said is not None
    assert (same.said.moved, same.said.digest) == (False, stage.names["alpine"])
    moved = hub.add_image("library/alpine", "kept", (4000,))
    found = await explain(stage.config, "docker.io/library/alpine:kept", ask=True)
    assert found.said is not None
    assert (found.said.moved, found.said.digest) == (True, moved.digest)
    assert found.pull is not None
    assert (found.pull.known, found.pull.manifests) == (False, 1)
    assert stage.asked() == 2 * ["HEAD /v2/library/alpine/manifests/kept"]
    denied = await explain(stage.config, "quay.io/team/secret:1", ask=True)
    assert denied.said is None
    await hub.stop()
    down = await explain(stage.config, "docker.io/library/alpine:kept", ask=True)
    assert down.said is not None
    assert "docker.io" in (down.said.problem or "")
    off = await explain(stage.config, "off.test/team/offline:1", ask=True)
    assert off.said is not None
    assert "offline by configuration" in (off.said.problem or "")


async def test_nothing_is_changed_and_nothing_is_locked(stage: Stage) -> None:
    """Explaining a root writes nothing in it, whether it is served or was left by a kill."""

    def state() -> dict[str, tuple[int, int]]:
        found = {}
        for folder, _, names in os.walk(stage.root):
            for name in names:
                status = os.stat(os.path.join(folder, name))
                found[os.path.join(folder, name)] = (status.st_mtime_ns, status.st_size)
        return found

    before = await asyncio.to_thread(state)
    for written, _ in REFERENCES:
        await explain(stage.config, written.format(**stage.names))
    assert await asyncio.to_thread(state) == before


async def test_a_root_that_is_not_there_is_not_made(stage: Stage, tmp_path: Path) -> None:
    config = stage.config.model_copy(update={"storage": type(stage.config.storage)(root=tmp_path / "other")})
    found = await explain(config, "quay.io/team/app:1")
    assert found.meant is not None
    assert (found.meant.upstream, found.answer.asks, found.tag, found.parts) == ("quay.io", True, None, ())
    assert found.by_tag is not None
    assert found.by_tag.rule == 'upstreams.quay.io.allow has "team/*"'
    assert "nothing is kept" in found.notes[0]
    assert (await explain(config, "local/app:1")).answer.status == 404
    assert not (tmp_path / "other").exists()


async def test_what_is_kept_is_told_part_by_part(stage: Stage) -> None:
    found = await explain(stage.config, "vault.test/b/app:1")
    states = {part.digest: (part.kind, part.state) for part in found.parts}
    assert states[digest_of(SHARED)] == ("layer", "unconfirmed")
    assert states[digest_of(b"b" * 8000)] == ("layer", "missing")
    assert found.readers is not None
    assert (found.readers.public, found.readers.repositories) == (False, ("vault.test/b/app",))
    assert found.upstream is not None
    assert [account.name for account in found.upstream.about.accounts] == ["ci"]
    assert "secret" not in json.dumps([str(found)])
    own = await explain(stage.config, f"{OWN}/local/app:1")
    assert (own.request.host, own.request.ns, own.notes) == (OWN, None, ())  # no guess: names has it
    via = await explain(stage.config, "via.test/team/via:1")
    assert via.upstream is not None
    assert via.upstream.for_digests == ("mirror 1", "the registry")
    assert via.upstream.for_tags == ("the registry",)
    other = await explain(stage.config, "team/multi:1", platform="linux/arm64")
    assert other.pull is not None
    assert (other.pull.known, other.pull.manifests, other.pull.counted) == (False, 1, 1)
    none = await explain(stage.config, "team/multi:1", platform="windows/amd64")
    assert none.pull is not None
    assert none.pull.problem == "there is nothing for windows/amd64 in it"
    resting = await explain(stage.config, "rest.test/x/y:1")
    assert resting.upstream is not None
    assert resting.upstream.about.resting is not None
    assert resting.upstream.about.resting.wait > 3000


async def test_an_image_of_the_packages_folder_is_explained_from_there(tmp_path: Path) -> None:
    layout = Layout()
    image = layout.image("1.0", b"a layer")
    folder = tmp_path / "images"
    await asyncio.to_thread(layout.write, folder / "app")
    config = make_config(tmp_path / "root", {}, packages=folder, local=("ours/**",))
    found = await explain(config, "local/app:1.0")
    assert found.meant is not None
    assert (found.meant.upstream, found.meant.by) == (None, "packages")
    assert (found.answer.status, found.answer.digest) == (200, image["digest"])
    assert {part.state for part in found.parts} == {"kept"}
    assert found.push is not None
    assert found.push.why is not None
    assert "packages folder" in found.push.why
    assert not (tmp_path / "root").exists()
