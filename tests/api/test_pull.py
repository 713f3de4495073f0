"""Pulling ahead of time through real mirrors: what is fetched, what is asked, what is said of what cannot be had."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from mirror.oci.names import parse_digest
from mirror.prefetch import Image as Wanted
from mirror.prefetch import Login, Platform, Pulled, Puller, Refused, Service, Unreachable, parse_image, parse_platform
from tests.fake_upstream import CONFIG, INDEX, LAYER, MANIFEST, FakeUpstream, Image, digest_of
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import get_image, kept, manifest_path, requests, until, use_clock

UP = "up.test"
AMD64 = parse_platform("linux/amd64")


class Heard:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.begun: list[Wanted] = []
        self.pulled: list[Pulled] = []
        self.expected = 0
        self.received = 0

    def begin(self, image: Wanted) -> None:
        self.begun.append(image)

    def expect(self, nbytes: int) -> None:
        self.expected += nbytes

    def receive(self, nbytes: int) -> None:
        self.received += nbytes

    def end(self, pulled: Pulled) -> None:
        self.pulled.append(pulled)

    @property
    def problems(self) -> list[str]:
        return [f"{one.image}: {problem}" for one in self.pulled for problem in one.problems]

    def of(self, text: str) -> Pulled:
        return next(one for one in self.pulled if one.image == parse_image(text))


@pytest.fixture
async def hub() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


def config_of(tmp_path: Path, hub: FakeUpstream, **upstream: Any) -> Any:
    return make_config(tmp_path / "root", {UP: {"url": hub.url} | upstream})


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


async def pull(
    worker: Mirror,
    *references: str,
    platforms: Sequence[Platform] | None = (AMD64,),
    jobs: int = 4,
    login: Login | None = None,
) -> Heard:
    """Pull images through a worker; names without a registry are of the upstream ``up.test``."""
    heard = Heard()
    images = [parse_image(text if "." in text.split("/")[0] else f"{UP}/{text}") for text in references]
    async with Service(worker.url, login=login, sleep=no_sleep) as service:
        await service.reach()
        await Puller(service, platforms, watcher=heard, jobs=jobs).run(images)
    return heard


def asked(worker: Mirror, digest: str) -> list[tuple[int, int]]:
    """Return status and bytes of what a worker was asked of a blob."""
    return [(line["status"], line["bytes"]) for line in worker.lines if line.get("path", "").find(digest) > 0]


# ---- what is there afterwards ----


async def test_images_are_there_for_every_worker_with_the_upstream_off(tmp_path: Path, hub: FakeUpstream) -> None:
    images = [hub.add_image("team/app", str(at), [70_000, 300_000]) for at in range(5)]
    async with mirrors(config_of(tmp_path, hub), 4) as workers:
        heard = await pull(workers[0], *(f"team/app:{at}" for at in range(5)))
        assert heard.problems == []
        for one, image in zip(sorted(heard.pulled, key=lambda one: str(one.image)), images, strict=True):
            assert str(one.digest) == image.digest
            assert (one.fetched, one.here) == (len(image.raw) + sum(map(len, image.blobs.values())), 0)
        layers = sum(len(data) for image in images for data in image.blobs.values())
        assert heard.received == heard.expected == layers
        await kept(tmp_path / "root", *(digest for image in images for digest in image.blobs))
        await hub.stop()
        for worker in workers:
            for image in images:
                head = await worker.head(manifest_path(image.tag or "", f"{UP}/team/app"))
                assert head.headers["Docker-Content-Digest"] == image.digest
                await get_image(worker, image, f"{UP}/team/app")


async def test_what_is_there_costs_no_bytes_and_no_upstream(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1", [2_000_000])
    async with mirror(config_of(tmp_path, hub)) as worker:
        await pull(worker, "team/app:1")
        await kept(tmp_path / "root", *image.blobs)
        await until(lambda: len(asked(worker, image.layers[0])) == 1, "its line")
        hub.clear_log()
        worker.lines.clear()
        heard = await pull(worker, "team/app:1")
        assert requests(hub) == []
        assert asked(worker, image.layers[0]) == [(304, 0)]
    one = heard.of(f"{UP}/team/app:1")
    assert (one.fetched, one.here) == (0, len(image.raw) + sum(map(len, image.blobs.values())))
    assert (heard.expected, heard.received) == (0, 0)


async def test_a_layer_of_several_images_is_asked_for_once(tmp_path: Path, hub: FakeUpstream) -> None:
    base = hub.add_image("team/app", "base", [400_000])
    shared = hub.blob("team/app", base.layers[0])
    for at in range(4):
        hub.add_image("team/app", str(at), layers=[shared, b"%d" % at * 1000])
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, *(f"team/app:{at}" for at in range(4)))
        assert heard.problems == []
        assert [status for status, _ in asked(worker, base.layers[0])] == [200]
    assert hub.count("GET", base.layers[0]) == 1
    assert sorted(one.fetched >= len(shared) for one in heard.pulled) == [False, False, False, True]
    assert sum(one.here >= len(shared) for one in heard.pulled) == 3


async def test_jobs_bound_what_is_asked_at_the_same_time(tmp_path: Path, hub: FakeUpstream) -> None:
    hub.add_image("team/app", "1", [100_000] * 8)
    running, most = 0, 0

    class Counting(Service):
        async def blob(self, *arguments: Any) -> bool:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.01)
            try:
                return await super().blob(*arguments)
            finally:
                running -= 1

    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = Heard()
        async with Counting(worker.url) as service:
            await Puller(service, [AMD64], watcher=heard, jobs=3).run([parse_image(f"{UP}/team/app:1")])
    assert heard.problems == []
    assert most == 3


async def test_a_layer_of_several_repositories_is_read_in_one_of_them_at_a_time(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    """The second asks when the first has it, and is not sent the bytes as well."""
    first = hub.add_image("team/one", "1", [500_000])
    hub.add_image("team/two", "1", layers=[hub.blob("team/one", first.layers[0])])
    shared = parse_digest(first.layers[0])
    order: list[str] = []

    class Noting(Service):
        async def blob(self, image: Wanted, blob: Any, received: Any) -> bool:
            if blob.digest == shared:
                order.append("begin")
                await asyncio.sleep(0.05)  # for the other to come, if it may
            try:
                return await super().blob(image, blob, received)
            finally:
                if blob.digest == shared:
                    order.append("end")

    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = Heard()
        async with Noting(worker.url) as service:
            images = [parse_image(f"{UP}/team/{name}:1") for name in ("one", "two")]
            await Puller(service, [AMD64], watcher=heard).run(images)
    assert heard.problems == []
    assert order == ["begin", "end"] * 2


async def test_repositories_that_share_a_private_layer_may_each_read_it(tmp_path: Path, hub: FakeUpstream) -> None:
    """What was fetched with credentials is readable only where it was asked for: so it is asked for everywhere."""
    hub.auth, hub.users, hub.anonymous = "token", {"us": "secret"}, False
    password = tmp_path / "password"
    password.write_text("secret\n")
    first = hub.add_image("team/one", "1", [500_000])
    second = hub.add_image("team/two", "1", layers=[hub.blob("team/one", first.layers[0])])
    login = {"credentials": [{"username": "us", "password_file": password}]}
    async with mirror(config_of(tmp_path, hub, **login)) as worker:
        heard = await pull(worker, "team/one:1", "team/two:1")
        assert heard.problems == []
        assert hub.count("GET", first.layers[0]) == 1
        await kept(tmp_path / "root", *first.blobs, *second.blobs)
        await hub.stop()
        await get_image(worker, first, f"{UP}/team/one")
        await get_image(worker, second, f"{UP}/team/two")


# ---- what is chosen ----


def add_multi(hub: FakeUpstream) -> dict[str, Image]:
    """Hold an index as build tools make it: two platforms, and an attestation of each."""
    images = {name: hub.add_image("team/multi", None, [40_000]) for name in ("amd64", "arm64", "one", "two")}
    unknown = {"os": "unknown", "architecture": "unknown"}
    listed = [
        images["amd64"].descriptor | {"platform": {"os": "linux", "architecture": "amd64"}},
        images["arm64"].descriptor | {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        images["one"].descriptor | {"platform": unknown},
        images["two"].descriptor | {"platform": unknown},
    ]
    hub.add_manifest("team/multi", {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}, "1")
    return images


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        (["linux/amd64"], ["amd64"]),
        (["linux/arm64"], ["arm64"]),
        (["linux/arm64", "linux/amd64"], ["amd64", "arm64"]),
        (None, ["amd64", "arm64", "one", "two"]),
    ],
    ids=["one", "other", "both", "all"],
)
async def test_only_wanted_platforms(
    tmp_path: Path, hub: FakeUpstream, platforms: list[str] | None, chosen: list[str]
) -> None:
    images = add_multi(hub)
    wanted = None if platforms is None else [parse_platform(text) for text in platforms]
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/multi:1", platforms=wanted)
    assert heard.problems == []
    got = [name for name, image in images.items() if hub.count("GET", image.digest) and hub.count("GET", image.config)]
    assert sorted(got) == chosen
    others = [images[name] for name in set(images) - set(chosen)]
    assert not any(hub.count(None, digest) for image in others for digest in (image.digest, *image.blobs))


async def test_a_platform_that_is_missing_is_a_problem_and_the_others_are_pulled(
    tmp_path: Path, hub: FakeUpstream
) -> None:
    images = add_multi(hub)
    wanted = [parse_platform("linux/s390x"), parse_platform("linux/arm64")]
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/multi:1", platforms=wanted)
    assert heard.problems == [f"{UP}/team/multi:1: has nothing for linux/s390x; there is linux/amd64, linux/arm64"]
    assert hub.count("GET", images["arm64"].layers[0]) == 1


async def test_one_manifest_is_pulled_whatever_platform_is_wanted(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1")
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/app:1", platforms=[parse_platform("linux/s390x")])
    assert heard.problems == []
    assert all(hub.count("GET", digest) == 1 for digest in image.blobs)


def nest(hub: FakeUpstream, image: Image, depth: int, platform: dict[str, str] | None = None) -> None:
    """Hold an index, tagged 1, that has the image ``depth`` indexes down."""
    descriptor: dict[str, Any] = image.descriptor | {"platform": {"os": "linux", "architecture": "amd64"}}
    for level in range(depth):
        raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [descriptor]}).encode()
        digest = hub.add_manifest("team/nested", raw, "1" if level == depth - 1 else None)
        descriptor = {"mediaType": INDEX, "digest": digest, "size": len(raw)}
        if platform and level < depth - 1:
            descriptor["platform"] = platform


@pytest.mark.parametrize("depth", [2, 4])
async def test_indexes_within_indexes(tmp_path: Path, hub: FakeUpstream, depth: int) -> None:
    image = hub.add_image("team/nested", None)
    nest(hub, image, depth)
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/nested:1")
    assert heard.problems == []
    assert all(hub.count("GET", digest) == 1 for digest in image.blobs)


async def test_indexes_too_deep_in_each_other(tmp_path: Path, hub: FakeUpstream) -> None:
    nest(hub, hub.add_image("team/nested", None), 5)
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/nested:1")
    assert heard.problems == [f"{UP}/team/nested:1: its indexes stand in each other more than 4 deep"]


async def test_an_index_within_for_another_platform_is_left_alone(tmp_path: Path, hub: FakeUpstream) -> None:
    nest(hub, hub.add_image("team/nested", None), 2, {"os": "windows", "architecture": "amd64"})
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/nested:1")
    assert heard.problems == [
        f"{UP}/team/nested:1: has nothing for linux/amd64; there is nothing that says its platform"
    ]
    assert hub.count("GET", "/manifests/sha256") == 1


async def test_too_many_manifests(tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.prefetch.run.MOST_MANIFESTS", 3)
    add_multi(hub)
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/multi:1", platforms=None)
    assert "it has more than 3 manifests; pull the platforms you need" in heard.problems[0]


async def test_layers_that_registries_do_not_distribute_are_not_asked_for(tmp_path: Path, hub: FakeUpstream) -> None:
    config, layer = hub.add_blob("team/app", b"{}"), hub.add_blob("team/app", b"layer" * 100)
    foreign = digest_of(b"somewhere else")
    layers = [
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": foreign, "size": 14},
        {"mediaType": LAYER, "digest": layer, "size": 500},
    ]
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}
    hub.add_manifest("team/app", body | {"config": {"mediaType": CONFIG, "digest": config, "size": 2}}, "1")
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/app:1")
    assert heard.problems == []
    assert hub.count(None, foreign) == 0
    assert hub.count("GET", layer) == 1


async def test_of_tag_and_digest_the_digest_is_fetched(tmp_path: Path, hub: FakeUpstream) -> None:
    before = hub.add_image("team/app", "1")
    now = hub.add_image("team/app", "1")
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, f"team/app:1@{before.digest}")
    assert heard.problems == []
    assert heard.pulled[0].digest == parse_digest(before.digest)
    assert hub.count("GET", before.layers[0]) == 1
    assert hub.count(None, now.digest) == hub.count(None, "/manifests/1") == 0


# ---- what cannot be had ----

OTHER = digest_of(b"nobody has this")


def _missing_tag(hub: FakeUpstream) -> str:
    return "team/app:none"


def _missing_repository(hub: FakeUpstream) -> str:
    return "team/none:1"


def _unknown_registry(hub: FakeUpstream) -> str:
    return "other.test/team/app:1"


def _unknown_digest(hub: FakeUpstream) -> str:
    return f"team/app@{OTHER}"


def _denied(hub: FakeUpstream) -> str:
    hub.refuse = lambda request: "team/secret" in request.path
    hub.add_image("team/secret", "1")
    return "team/secret:1"


def _wrong_manifest(hub: FakeUpstream) -> str:
    image = hub.add_image("team/bad", "1")
    hub.fault(image.digest, replace=image.raw + b" ")
    return f"team/bad@{image.digest}"


def _wrong_blob(hub: FakeUpstream) -> str:
    image = hub.add_image("team/bad", "1", [200_000])
    hub.fault(image.layers[0], replace=bytes(200_000))
    return "team/bad:1"


def _missing_blob(hub: FakeUpstream) -> str:
    image = hub.add_image("team/bad", "1")
    hub.remove_blob("team/bad", image.layers[1])
    return "team/bad:1"


def _manifest_says_another_size(hub: FakeUpstream) -> str:
    config, layer = hub.add_blob("team/bad", b"{}"), hub.add_blob("team/bad", b"layer" * 100)
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config, "size": 2},
        "layers": [{"mediaType": LAYER, "digest": layer, "size": 400}],
    }
    hub.add_manifest("team/bad", body, "1")
    return "team/bad:1"


def _schema_1(hub: FakeUpstream) -> str:
    raw = json.dumps({"schemaVersion": 1, "name": "team/old", "tag": "1", "fsLayers": [], "history": []}).encode()
    hub.add_manifest("team/old", raw, "1", "application/vnd.docker.distribution.manifest.v1+json")
    return "team/old:1"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (_missing_tag, "404 MANIFEST_UNKNOWN: "),
        (_missing_repository, "404 MANIFEST_UNKNOWN: "),
        (_unknown_registry, "404 NAME_UNKNOWN: 'other.test' is not a registry this mirror is configured for"),
        (_unknown_digest, "404 MANIFEST_UNKNOWN: "),
        (_denied, "403 DENIED: "),
        (_wrong_manifest, "502 UNAVAILABLE: "),
        (_wrong_blob, "its blob sha256:"),
        (_missing_blob, "404 BLOB_UNKNOWN: "),
        (_manifest_says_another_size, "has more than the 400 bytes its manifest says"),
        (_schema_1, "schema 1"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
async def test_what_cannot_be_had_is_said_and_the_others_are_pulled(
    tmp_path: Path, hub: FakeUpstream, prepare: Any, said: str
) -> None:
    hub.auth, hub.users = "token", {"us": "secret"}
    password = tmp_path / "password"
    password.write_text("secret")
    good = hub.add_image("team/app", "1")
    reference = prepare(hub)
    login = {"credentials": [{"username": "us", "password_file": password}]}
    async with mirror(config_of(tmp_path, hub, **login)) as worker:
        heard = await pull(worker, reference, "team/app:1")
        assert len(heard.pulled) == 2
        assert len(heard.problems) == 1, heard.problems
        assert said in heard.problems[0]
        assert heard.problems[0].startswith(reference if "other" in reference else f"{UP}/{reference}")
        assert "secret" not in heard.problems[0].replace("team/secret", "")
        await get_image(worker, good, f"{UP}/team/app")


async def test_the_rest_of_an_image_is_pulled_when_one_blob_is_missing(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1", [50_000, 60_000, 70_000])
    hub.remove_blob("team/app", image.layers[0])
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = await pull(worker, "team/app:1")
        await kept(tmp_path / "root", image.config, *image.layers[1:])
    (one,) = heard.pulled
    assert one.problems[0].startswith(f"its blob {image.layers[0]}: 404 BLOB_UNKNOWN: ")
    assert one.fetched == len(image.raw) + len(image.blobs[image.config]) + 130_000
    assert heard.expected == heard.received


async def test_an_upstream_that_is_down(tmp_path: Path, hub: FakeUpstream) -> None:
    async with FakeUpstream() as dead:
        url = dead.url
    image = hub.add_image("team/app", "1")
    config = make_config(tmp_path / "root", {UP: {"url": hub.url}, "down.test": {"url": url, "retries": 0}})
    async with mirror(config) as worker:
        heard = await pull(worker, "down.test/a:1", "team/app:1")
        await get_image(worker, image, f"{UP}/team/app")
    assert len(heard.problems) == 1
    assert heard.problems[0].startswith("down.test/a:1: 50")
    assert "down.test" in heard.problems[0].partition(": ")[2]


async def test_what_is_kept_of_an_upstream_that_is_down_is_there_with_a_warning(
    tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = use_clock(monkeypatch)
    image = hub.add_image("team/app", "1")
    async with mirror(config_of(tmp_path, hub, retries=0)) as worker:
        assert (await pull(worker, "team/app:1")).of(f"{UP}/team/app:1").warning is None
        await kept(tmp_path / "root", *image.blobs)
        await hub.stop()
        clock.advance(3600)
        heard = await pull(worker, "team/app:1")
    (one,) = heard.pulled
    assert (one.problems, one.fetched) == ((), 0)
    assert one.warning is not None
    assert UP in one.warning
    assert '"' not in one.warning


async def test_a_mirror_that_is_gone_ends_it(tmp_path: Path, hub: FakeUpstream) -> None:
    for at in range(5):
        hub.add_image("team/app", str(at))
    heard = Heard()
    async with mirror(config_of(tmp_path, hub)) as worker:
        await pull(worker, "team/app:0")
        url = worker.url
    async with Service(url, sleep=no_sleep) as service:
        await Puller(service, [AMD64], watcher=heard).run([parse_image(f"{UP}/team/app:{at}") for at in range(5)])
    assert len(heard.problems) == 5
    assert len(heard.begun) == 2, "those on their way when it was noticed"
    said = [problem.partition(": ")[2] for problem in heard.problems]
    assert said.count("not tried, as the mirror is gone") == 3
    assert said.count(f"{url} does not answer any more: Connection refused") == 2


@pytest.mark.parametrize("asked", ["blob", "manifest"])
async def test_a_mirror_that_goes_in_the_middle_of_an_image(tmp_path: Path, hub: FakeUpstream, asked: str) -> None:
    add_multi(hub)
    digests = [hub.add_image("team/app", str(at)).digest for at in range(4)]

    class Leaving(Service):
        async def blob(self, image: Wanted, blob: Any, received: Any) -> bool:
            if asked == "blob":
                raise Unreachable("nobody is there")
            return await super().blob(image, blob, received)

        async def manifest(self, image: Wanted, target: Any) -> Any:
            if asked == "manifest" and not isinstance(target, str):
                raise Unreachable("nobody is there")
            return await super().manifest(image, target)

    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = Heard()
        async with Leaving(worker.url) as service:
            wanted = ["multi:1", *(f"app@{digest}" for digest in digests)]
            await Puller(service, None, watcher=heard).run([parse_image(f"{UP}/team/{name}") for name in wanted])
    assert heard.of(f"{UP}/team/multi:1").problems == ("nobody is there",)
    assert all(one.problems for one in heard.pulled)
    assert any(one.problems == ("not tried, as the mirror is gone",) for one in heard.pulled)


async def test_stopped_it_leaves_no_task_and_says_what_is_done(tmp_path: Path, hub: FakeUpstream) -> None:
    done = hub.add_image("team/app", "1")
    stuck = hub.add_image("team/app", "2", [300_000])
    hub.fault(stuck.layers[0], hang_after=1000)
    async with mirror(config_of(tmp_path, hub)) as worker:
        heard = Heard()
        async with Service(worker.url) as service:
            images = [parse_image(f"{UP}/team/app:{at}") for at in (1, 2)]
            running = asyncio.create_task(Puller(service, [AMD64], watcher=heard).run(images))
            async with asyncio.timeout(10):
                while not heard.pulled or hub.count("GET", stuck.layers[0]) == 0:
                    await asyncio.sleep(0.005)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                async with asyncio.timeout(10):
                    await running
    assert [str(one.digest) for one in heard.pulled] == [done.digest]


# ---- a mirror with users ----


@pytest.fixture
def users(tmp_path: Path) -> Path:
    file = tmp_path / "users"
    file.write_text(f"us:{bcrypt.hashpw(b'right', bcrypt.gensalt(4)).decode()}\n")
    return file


@pytest.mark.parametrize("anonymous", ["pull", "none"])
async def test_a_login_is_taken(tmp_path: Path, hub: FakeUpstream, users: Path, anonymous: str) -> None:
    image = hub.add_image("team/app", "1")
    access = {"htpasswd_file": users, "anonymous": anonymous}
    async with mirror(make_config(tmp_path / "root", {UP: {"url": hub.url}}, access=access)) as worker:
        heard = await pull(worker, "team/app:1", login=Login(user="us", password="right"))
        assert {line["user"] for line in worker.lines} == {"us"}
    assert heard.problems == []
    assert hub.count("GET", image.layers[0]) == 1


async def test_without_a_login_whoever_may_pull_pulls(tmp_path: Path, hub: FakeUpstream, users: Path) -> None:
    hub.add_image("team/app", "1")
    access = {"htpasswd_file": users, "anonymous": "pull"}
    async with mirror(make_config(tmp_path / "root", {UP: {"url": hub.url}}, access=access)) as worker:
        assert (await pull(worker, "team/app:1")).problems == []


async def test_a_login_that_is_missing_or_wrong(tmp_path: Path, hub: FakeUpstream, users: Path) -> None:
    hub.add_image("team/app", "1")
    access = {"htpasswd_file": users, "anonymous": "none"}
    async with mirror(make_config(tmp_path / "root", {UP: {"url": hub.url}}, access=access)) as worker:
        heard = await pull(worker, "team/app:1")
        assert "401 UNAUTHORIZED: " in heard.problems[0]
        assert heard.problems[0].endswith("; give --user and --password-file")
        with pytest.raises(Refused) as refused:
            await pull(worker, "team/app:1", login=Login(user="us", password="guess"))
    assert str(refused.value).endswith("; are user and password right?")
    assert "guess" not in repr(refused.value)
    assert "guess" not in repr(Login(user="us", password="guess"))
    assert hub.log == []
