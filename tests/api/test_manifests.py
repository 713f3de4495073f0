"""Manifests by digest: their bytes, their types, their limits, and who may read them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Credentials
from mirror.oci.manifest import ACCEPT
from tests.fake_upstream import INDEX, MANIFEST, FakeUpstream, Gate, Image, digest_of
from tests.harness import make_config, mirror, mirrors
from tests.images import (
    NAME,
    Clock,
    blob_path,
    cached,
    config_for,
    get_image,
    ingesting,
    kept,
    manifest_path,
    pull,
    pull_and_keep,
    requests,
    until,
    warning,
)

V1 = manifest_path("v1")
MIB = 1024 * 1024


def image_of_size(size: int) -> bytes:
    """Return a manifest of exactly so many bytes."""
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"filler": ""}}
    empty = len(json.dumps(body))
    body["annotations"] = {"filler": "x" * (size - empty)}
    raw = json.dumps(body).encode()
    assert len(raw) == size
    return raw


# ---- bytes ----

ODD_BYTES = {
    "spaces": b' \n\t{ "manifests" :[ ] ,\r\n "schemaVersion":2 , "mediaType": "%s" }\n\n ' % INDEX.encode(),
    "escapes": b'{"mediaType":"application\\/vnd.oci.image.index.v1+json","manifests":[],"x":"\\u00e9\\ud83d\\ude00"}',
    "repeated-keys": b'{"a":1,"a":2,"manifests":[],"mediaType":"%s"}' % INDEX.encode(),
    "numbers": b'{"manifests":[],"n":1e400,"m":-0.0,"k":1.0000000000000000000001,"mediaType":"%s"}' % INDEX.encode(),
    "utf-8": '{"manifests":[],"ä":"日本","mediaType":"{}"}'.replace("{}", INDEX).encode(),
    "half-surrogate": b'{"manifests":[],"artifactType":"\\ud800","annotations":{"\\udfff":"\\ud800"},"mediaType":"%s"}'
    % INDEX.encode(),
}


@pytest.mark.parametrize("raw", ODD_BYTES.values(), ids=ODD_BYTES)
async def test_bytes_are_what_the_upstream_sent(tmp_path: Path, hub: FakeUpstream, raw: bytes) -> None:
    digest = hub.add_manifest(NAME, raw, "v1", INDEX)
    for _ in range(2):  # the second time from the disk
        async with mirror(config_for(tmp_path, hub)) as worker:
            for path in (manifest_path(digest), V1):
                answer = await worker.get(path)
                assert (answer.status, answer.body) == (200, raw)
                assert answer.headers["Docker-Content-Digest"] == digest
                assert answer.headers["ETag"] == f'"{digest}"'
                assert answer.headers["Content-Type"] == INDEX
                assert "Content-Encoding" not in answer.headers
    assert hub.count("GET", digest) == 1


async def test_by_digest_it_is_fetched_once_for_all_and_never_again(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    path = manifest_path(image.digest)
    hub.fault("manifests", delay=0.05)
    async with mirrors(config_for(tmp_path, hub), 4) as workers:
        answers = await asyncio.gather(*(workers[n % 4].get(path) for n in range(80)))
        assert all((answer.status, answer.body) == (200, image.raw) for answer in answers)
        assert requests(hub) == [f"GET manifests/{image.digest}"]
        hub.add_manifest(NAME, b"{}", digest=image.digest)  # whatever it says now
        await hub.stop()
        for worker in workers:
            answer = await worker.get(path)
            assert (answer.status, answer.body) == (200, image.raw)
            assert answer.headers["Cache-Status"] == "mirror; hit"
            assert warning(answer) is None


async def test_sha512(tmp_path: Path, hub: FakeUpstream, root: Path) -> None:
    raw = image_of_size(300)
    digest = digest_of(raw, "sha512")
    hub.add_manifest(NAME, raw, "v1", digest=digest)
    async with mirror(config_for(tmp_path, hub)) as worker:
        for path in (manifest_path(digest), V1, manifest_path(digest)):
            answer = await worker.get(path)
            assert (answer.status, answer.body) == (200, raw)
            assert answer.headers["Docker-Content-Digest"] == digest
    assert cached(root) == [hashlib.sha512(raw).hexdigest()]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_wrong_bytes_are_refused(tmp_path: Path, hub: FakeUpstream, root: Path, algorithm: str) -> None:
    digest = f"{algorithm}:{'a' * (64 if algorithm == 'sha256' else 128)}"
    hub.add_manifest(NAME, image_of_size(300), digest=digest)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(manifest_path(digest))
        assert (answer.status, answer.code) == (502, "UNAVAILABLE")
        assert digest in answer.body.decode()
        assert (cached(root), ingesting(root)) == ([], [])
        right = hub.add_manifest(NAME, image_of_size(300))
        assert (await worker.get(manifest_path(right))).status == 200


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_the_limit_is_exact(tmp_path: Path, hub: FakeUpstream, root: Path, framing: str) -> None:
    hub.fault("GET", framing=framing)
    most, over = image_of_size(4 * MIB), image_of_size(4 * MIB + 1)
    for tag, raw in (("v1", most), ("v2", over)):
        hub.add_manifest(NAME, raw, tag)
    async with mirror(config_for(tmp_path, hub)) as worker:
        for path in (manifest_path(digest_of(most)), V1):
            answer = await worker.get(path)
            assert (answer.status, len(answer.body)) == (200, 4 * MIB)
        for path in (manifest_path(digest_of(over)), manifest_path("v2")):
            answer = await worker.get(path)
            assert (answer.status, answer.code) == (502, "UNAVAILABLE")
            assert str(4 * MIB) in answer.body.decode()
    assert cached(root) == [digest_of(most).partition(":")[2]]
    assert ingesting(root) == []


async def test_the_limit_is_a_setting(tmp_path: Path, hub: FakeUpstream) -> None:
    small, big = hub.add_manifest(NAME, image_of_size(1000)), hub.add_manifest(NAME, image_of_size(1001))
    async with mirror(config_for(tmp_path, hub, limits={"manifest": 1000})) as worker:
        assert (await worker.get(manifest_path(small))).status == 200
        assert (await worker.get(manifest_path(big))).status == 502


async def test_a_body_with_two_readings_is_refused(tmp_path: Path, hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, None)
    body = json.loads(image.raw) | {"manifests": [image.descriptor]}
    digest = hub.add_manifest(NAME, body, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        for path in (manifest_path(digest), V1):
            answer = await worker.get(path)
            assert (answer.status, answer.code) == (502, "UNAVAILABLE")
            assert "both layers and manifests" in answer.body.decode()
        assert cached(root) == []
        assert (await worker.get(manifest_path(image.digest))).status == 200


# ---- types ----

IMAGE_BODY = {
    "schemaVersion": 2,
    "config": {"mediaType": "x/y", "digest": "sha256:" + "1" * 64, "size": 1},
    "layers": [],
}
TYPES: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "body-says": ({**IMAGE_BODY, "mediaType": MANIFEST}, MANIFEST, MANIFEST),
    "header-contradicts": ({**IMAGE_BODY, "mediaType": MANIFEST}, INDEX, MANIFEST),
    "header-text": ({**IMAGE_BODY, "mediaType": MANIFEST}, "text/plain; charset=utf-8", MANIFEST),
    "header-missing": ({**IMAGE_BODY, "mediaType": MANIFEST}, None, MANIFEST),
    "header-says": (IMAGE_BODY, "application/vnd.docker.distribution.manifest.v2+json", "docker"),
    "header-with-parameters": (IMAGE_BODY, f"{MANIFEST}; charset=utf-8", MANIFEST),
    "shape-of-image": (IMAGE_BODY, "application/json", MANIFEST),
    "shape-of-index": ({"schemaVersion": 2, "manifests": []}, "text/plain", INDEX),
    "unknown-in-body": (
        {"mediaType": "application/x.odd+json", "anything": [1]},
        "text/plain",
        "application/x.odd+json",
    ),
    "unknown-in-header": ({"anything": {"layers": 5}}, "application/vnd.acme.thing.v7+json", "acme"),
    "unknown-with-odd-children": (
        {"mediaType": "application/vnd.acme.thing.v7+json", "layers": {"no": "list"}, "config": {"digest": 7}},
        "application/json",
        "acme",
    ),
}
SHORT = {
    "docker": "application/vnd.docker.distribution.manifest.v2+json",
    "acme": "application/vnd.acme.thing.v7+json",
}


@pytest.mark.parametrize(("body", "sent", "expected"), TYPES.values(), ids=TYPES)
async def test_media_types(
    tmp_path: Path, hub: FakeUpstream, body: dict[str, Any], sent: str | None, expected: str
) -> None:
    raw = json.dumps(body).encode()
    digest = hub.add_manifest(NAME, raw, "v1")
    hub.fault("manifests", content_type=sent)
    for _ in range(2):
        async with mirror(config_for(tmp_path, hub)) as worker:
            for path in (manifest_path(digest), V1):
                for method in ("GET", "HEAD"):
                    answer = await worker.ask(method, path)
                    assert answer.status == 200
                    assert answer.headers["Content-Type"] == SHORT.get(expected, expected)
                    assert answer.headers["Content-Length"] == str(len(raw))
                    assert answer.body == (raw if method == "GET" else b"")
    assert hub.count("GET", digest) == 1


NO_MANIFEST = {
    "html": (b"<html>Please log in</html>", "text/html"),
    "text": (b"no such thing", "text/plain"),
    "empty": (b"", MANIFEST),
    "list": (b"[]", MANIFEST),
    "cut": (b'{"mediaType": "application/vnd.oci', MANIFEST),
    "shapeless": (b'{"hello": "world"}', "application/json"),
    "deep": (b"[" * 200_000, MANIFEST),
    "utf-16": json.dumps({"mediaType": MANIFEST, **IMAGE_BODY}).encode("utf-16"),
    "not-utf-8": (b'{"mediaType": "%s", "x": "\xff"}' % MANIFEST.encode(), MANIFEST),
    "bad-type": (b'{"mediaType": "nothing"}', MANIFEST),
    "bad-layers": (b'{"mediaType": "%s", "layers": 7}' % MANIFEST.encode(), MANIFEST),
    "bad-size": (json.dumps({**IMAGE_BODY, "config": {**IMAGE_BODY["config"], "size": 2**63}}).encode(), MANIFEST),
    "bad-digest": (
        json.dumps({**IMAGE_BODY, "config": {**IMAGE_BODY["config"], "digest": "md5:ff"}}).encode(),
        MANIFEST,
    ),
}


@pytest.mark.parametrize("case", NO_MANIFEST.values(), ids=NO_MANIFEST)
async def test_what_is_no_manifest_is_refused_even_under_its_own_digest(
    tmp_path: Path, hub: FakeUpstream, root: Path, case: Any
) -> None:
    raw, media_type = case if isinstance(case, tuple) else (case, MANIFEST)
    digest = hub.add_manifest(NAME, b"{}", "v1", media_type, digest=digest_of(raw))
    hub.fault(lambda request: digest in request.path and request.method == "GET", replace=raw)
    image = hub.add_image(NAME, "v2")
    async with mirror(config_for(tmp_path, hub)) as worker:
        for path in (manifest_path(digest), V1):
            answer = await worker.get(path)
            assert (answer.status, answer.code) == (502, "UNAVAILABLE")
            assert "up" in answer.body.decode()
        await pull(worker, image, reference="v2")
        hub.set_tag(NAME, "v1", image.digest)
        assert (await worker.get(V1)).body == image.raw  # nothing of the failure stays
    assert digest.partition(":")[2] not in cached(root)


# ---- what clients say ----


async def test_a_narrow_accept_of_a_client_does_not_reach_the_upstream(tmp_path: Path, hub: FakeUpstream) -> None:
    index = hub.add_index(NAME, "v1", [hub.add_image(NAME, None)])
    async with mirror(config_for(tmp_path, hub)) as worker:
        for accept in ("application/vnd.docker.distribution.manifest.v2+json", MANIFEST, "text/html"):
            for path in (V1, manifest_path(index.digest)):
                answer = await worker.get(path, headers={"Accept": accept})
                assert (answer.status, answer.body) == (200, index.raw)
                assert answer.headers["Content-Type"] == INDEX
    assert len(hub.requests()) == 2
    assert [request.headers.getall("Accept") for request in hub.requests()] == [[ACCEPT]] * 2
    assert [request.headers.get("Accept-Encoding") for request in hub.requests()] == ["identity"] * 2


@pytest.mark.parametrize("reference", ["tag", "digest"])
async def test_if_none_match(tmp_path: Path, hub: FakeUpstream, reference: str) -> None:
    image = hub.add_image(NAME, "v1")
    path = V1 if reference == "tag" else manifest_path(image.digest)
    async with mirror(config_for(tmp_path, hub)) as worker:
        for method in ("GET", "HEAD"):
            for condition in (f'"{image.digest}"', f'W/"{image.digest}"', f'"other", "{image.digest}"', "*"):
                answer = await worker.ask(method, path, headers={"If-None-Match": condition})
                assert (answer.status, answer.body) == (304, b""), condition
                assert answer.headers["ETag"] == f'"{image.digest}"'
                assert answer.headers["Docker-Content-Digest"] == image.digest
            answer = await worker.ask(method, path, headers={"If-None-Match": f'"sha256:{"0" * 64}"'})
            assert answer.status == 200


async def test_head_by_digest_costs_no_body(tmp_path: Path, hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, None)
    path = manifest_path(image.digest)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.head(path)
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(image.raw))
        assert answer.headers["Content-Type"] == MANIFEST
        assert answer.headers["Docker-Content-Digest"] == image.digest
        assert requests(hub) == [f"HEAD manifests/{image.digest}"]
        assert cached(root) == []
        assert (await worker.get(path)).body == image.raw
        assert (await worker.head(path)).headers["Cache-Status"] == "mirror; hit"
        assert requests(hub) == [f"HEAD manifests/{image.digest}", f"GET manifests/{image.digest}"]
        missing = await worker.head(manifest_path("sha256:" + "0" * 64))
        assert missing.status == 404


@pytest.mark.parametrize(
    "fault",
    [{"status": 405}, {"docker_digest": "sha256:" + "1" * 64}, {"content_type": None}, {"framing": "chunked"}],
    ids=["405", "wrong-digest", "no-type", "no-length"],
)
async def test_head_by_digest_of_upstreams_whose_head_says_less(
    tmp_path: Path, hub: FakeUpstream, fault: dict[str, Any]
) -> None:
    image = hub.add_image(NAME, None)
    hub.fault("HEAD", **fault)
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.head(manifest_path(image.digest))
        assert answer.status == 200
        assert answer.headers["Content-Length"] == str(len(image.raw))
        assert answer.headers["Content-Type"] == MANIFEST
        assert answer.headers["Docker-Content-Digest"] == image.digest
        assert [request.method for request in hub.requests()] == ["HEAD", "GET"]


# ---- the store ----


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "longer", "removed"])
async def test_a_manifest_damaged_on_disk_is_fetched_anew_and_never_served(
    tmp_path: Path, hub: FakeUpstream, root: Path, how: str
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull(worker, image)
    path = root / "cache" / "sha256" / image.digest.partition(":")[2]
    raw = bytearray(image.raw)
    raw[len(raw) // 2] ^= 1
    damaged = {"flipped": bytes(raw), "cut": image.raw[:-1], "emptied": b"", "longer": image.raw + b" "}
    path.unlink() if how == "removed" else path.write_bytes(damaged[how])
    hub.clear_log()
    async with mirrors(config_for(tmp_path, hub), 2) as workers:
        for worker in workers:
            for reference in (image.digest, "v1"):
                answer = await worker.get(manifest_path(reference))
                assert (answer.status, answer.body) == (200, image.raw)
        assert requests(hub) == [f"GET manifests/{image.digest}"]
    assert path.read_bytes() == image.raw


async def test_a_damaged_manifest_is_not_served_while_the_upstream_is_down(
    tmp_path: Path, hub: FakeUpstream, root: Path
) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull(worker, image)
    (root / "cache" / "sha256" / image.digest.partition(":")[2]).write_bytes(b"{}")
    await hub.stop()
    async with mirror(config_for(tmp_path, hub)) as worker:
        assert (await worker.get(manifest_path(image.digest))).status == 502
        assert (await worker.get(V1)).status == 502


async def test_a_blob_is_not_a_manifest(tmp_path: Path, hub: FakeUpstream, root: Path) -> None:
    image = hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        await pull_and_keep(worker, root, image)
        answer = await worker.get(manifest_path(image.config))
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        await get_image(worker, image)


# ---- whose they are ----

PASSWORD = "the-password-never-shown"


@pytest.fixture
async def private(tmp_path: Path) -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(auth="token", users={"u": PASSWORD}, anonymous=False) as fake:
        yield fake


def two_upstreams(tmp_path: Path, private: FakeUpstream, other: FakeUpstream) -> Any:
    """``up`` is asked with credentials, ``other`` without."""
    secret = tmp_path / "password"
    secret.write_text(PASSWORD)
    credentials = Credentials(username="u", password_file=secret)
    return make_config(
        tmp_path / "root", {"up": {"url": private.url, "credentials": credentials}, "other": {"url": other.url}}
    )


OTHERS = ["other/x/y", "up/x/y"]


def hub_of(name: str, private: FakeUpstream, hub: FakeUpstream) -> FakeUpstream:
    return private if name.startswith("up/") else hub


@pytest.mark.parametrize("name", [*OTHERS, "local/x"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_private_manifest_that_is_here_is_not_for_others(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, name: str, method: str
) -> None:
    image = private.add_image(NAME, "v1")
    hub.add_image("x/y", "v1", [301])
    private.add_image("x/y", "v1", [302])
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        for worker in workers:
            answer = await worker.ask(method, manifest_path(image.digest, name))
            assert answer.status == 404
            assert image.raw not in answer.body
        await get_image(workers[1], image)


@pytest.mark.parametrize("name", OTHERS)
async def test_it_is_for_others_once_their_own_upstream_has_confirmed_it(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, name: str
) -> None:
    image = private.add_image(NAME, "v1")
    theirs = hub_of(name, private, hub)
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        await pull_and_keep(workers[0], root, image)
        assert (await workers[1].get(manifest_path(image.digest, name))).status == 404
        theirs.add_manifest("x/y", image.raw, "copy")
        theirs.clear_log()
        assert (await workers[1].get(manifest_path(image.digest, name))).body == image.raw
        assert requests(theirs) == [f"HEAD manifests/{image.digest}"]  # a confirmation costs no body
        await theirs.stop()
        for worker in workers:
            assert (await worker.get(manifest_path(image.digest, name))).body == image.raw
        await theirs.start()
        for worker in workers:  # confirmed for that repository, not for everybody
            assert (await worker.get(manifest_path(image.digest, "other/z"))).status == 404


async def test_it_is_confirmed_by_get_where_the_upstream_cannot_head(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    image = private.add_image(NAME, "v1")
    hub.add_manifest("x/y", image.raw)
    hub.fault("HEAD", status=405)
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        assert (await worker.get(manifest_path(image.digest, "other/x/y"))).body == image.raw
        assert [request.method for request in hub.requests()] == ["HEAD", "GET"]


@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": "fin"}], ids=["500", "hung-up"])
async def test_what_nobody_confirms_is_not_served(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, fault: Any
) -> None:
    image = private.add_image(NAME, "v1")
    hub.add_manifest("x/y", image.raw)
    hub.fault("", **fault)
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        assert (await worker.get(manifest_path(image.digest, "other/x/y"))).status in (502, 503)
        hub.clear_faults()
        assert (await worker.get(manifest_path(image.digest, "other/x/y"))).body == image.raw


@pytest.mark.parametrize("said", ["sha256:" + "1" * 64, None], ids=["another", "none"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_head_that_does_not_name_the_digest_confirms_nothing(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, said: str | None, method: str
) -> None:
    """A login page, say, that answers 200 to everything."""
    image = private.add_image(NAME, "v1")
    hub.add_manifest("x/y", b"<html>".ljust(len(image.raw)), digest=image.digest)
    hub.fault("", docker_digest=said)
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        assert (await worker.ask(method, manifest_path(image.digest, "other/x/y"))).status == 502
        await get_image(worker, image)


async def test_head_of_a_manifest_or_a_tag_gives_no_right_to_a_blob(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    """Nothing was seen of a manifest with the digest of somebody's private layer."""
    image = private.add_image(NAME, "v1")
    layer = image.layers[0]
    hub.add_manifest("x/y", b"{}", "v1", digest=layer)
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        for reference in (layer, "v1"):
            assert (await worker.head(manifest_path(reference, "other/x/y"))).status == 200
            assert (await worker.get(blob_path(layer, "other/x/y"))).status == 404
        hub.add_blob("x/y", image.blobs[layer])
        assert (await worker.get(blob_path(layer, "other/x/y"))).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_tag_that_was_said_to_be_it_does_not_fall_back_on_it(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, clock: Clock, method: str
) -> None:
    """A HEAD named the digest of somebody's private manifest, and then another that cannot be had."""
    image = private.add_image(NAME, "v1")
    hub.add_manifest("x/y", b"{}", "v1", INDEX, digest=image.digest)
    path = manifest_path("v1", "other/x/y")
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        head = await worker.head(path)  # what its own upstream says, and nothing that is known here
        assert (head.headers["Content-Length"], head.headers["Content-Type"]) == ("2", INDEX)
        for fault in ({"status": 404}, {"status": 500}, {"replace": b"{}"}):
            hub.clear_faults()
            hub.add_image("x/y", "v1", [77])
            hub.fault("GET", **fault)
            clock.advance(61)
            for _ in range(2):
                answer = await worker.get(path)
                assert answer.status in (502, 503)
                assert answer.body != image.raw
        hub.clear_faults()
        clock.advance(61)
        assert (await worker.ask(method, path)).status == 200


async def test_it_is_answered_while_something_else_holds_the_lease_of_its_digest(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    """Somebody asks for it as a blob, of an upstream that never ends."""
    image = private.add_image(NAME, "v1")
    hub.add_blob("x/y", bytes(MIB), digest=image.digest)
    gate = Gate()
    hub.fault("x/y/blobs", gate=gate, gate_at=1000)
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        blob = asyncio.create_task(workers[0].get(blob_path(image.digest, "other/x/y")))
        await gate.reached()
        async with asyncio.timeout(10):
            for worker in workers:
                assert (await worker.get(V1)).body == image.raw
        gate.open()
        await asyncio.gather(blob, return_exceptions=True)
    assert cached(root) == []
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        assert (await worker.get(V1)).body == image.raw
    assert cached(root) == [image.digest.partition(":")[2]]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("same_worker", [True, False], ids=["same", "another"])
async def test_a_private_manifest_is_not_for_others_while_it_is_being_fetched(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, name: str, same_worker: bool
) -> None:
    image = private.add_image(NAME, "v1")
    hub.add_image("x/y", "v1", [301])
    private.add_image("x/y", "v1", [302])
    gate = Gate()
    private.fault(f"GET /v2/{NAME}/manifests", gate=gate, gate_at=100)
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        mine = asyncio.create_task(workers[0].get(manifest_path(image.digest)))
        await gate.reached()
        # Nor does one who has no right to it wait for it.
        async with asyncio.timeout(10):
            answer = await workers[0 if same_worker else 1].get(manifest_path(image.digest, name))
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
        gate.open()
        assert (await mine).body == image.raw


async def test_one_whose_upstream_hangs_keeps_nobody_waiting(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream
) -> None:
    image = private.add_image(NAME, "v1")
    gate = Gate()
    hub.fault("x/y", gate_headers=gate)
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        other = asyncio.create_task(workers[0].get(manifest_path(image.digest, "other/x/y")))
        await gate.reached()
        async with asyncio.timeout(10):
            for worker in workers:
                assert (await worker.get(manifest_path(image.digest))).body == image.raw
        gate.open()
        assert (await other).status == 404


async def test_what_was_fetched_without_credentials_is_public(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    image = hub.add_image("x/y", "v1")
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image, name="other/x/y")
        await get_image(worker, image, "up/any/thing")
        assert private.requests() == []
        local = await worker.get(manifest_path(image.digest, "local/x"))
        assert (local.status, local.code) == (404, "MANIFEST_UNKNOWN")


async def test_a_private_manifest_fetched_again_without_credentials_is_public(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    image = private.add_image(NAME, "v1")
    hub.add_manifest("x/y", image.raw, "copy")
    hub.fault("HEAD", docker_digest=None)  # so that the body comes with the tag
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, image)
        assert (await worker.get(manifest_path(image.digest, "other/z"))).status == 404
        assert (await worker.get(manifest_path("copy", "other/x/y"))).body == image.raw
        assert (await worker.get(manifest_path(image.digest, "other/z"))).body == image.raw


async def test_the_list_of_a_manifest_alone_gives_no_right(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    secret = private.add_image(NAME, "v1")
    hub.add_blob("x/y", secret.blobs[secret.config])
    sparse = Image("x/y", "v1", hub.add_manifest("x/y", secret.raw + b" ", "v1"), secret.raw + b" ", "", [], {})
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, secret)
        await pull(worker, sparse, "other/x/y")
        for digest in secret.layers:
            assert (await worker.get(blob_path(digest, "other/x/y"))).status == 404
        assert (await worker.get(blob_path(secret.config, "other/x/y"))).status == 200


async def test_shared_children_are_confirmed_in_the_background(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path, clock: Clock
) -> None:
    """A client that holds the shared layers never asks for them; they are readable in an outage all the same."""
    first = private.add_image(NAME, "v1", layers=[b"base" * 100, b"one" * 100])
    second = private.add_image("x/y", "v2", layers=[b"base" * 100, b"two" * 100])
    async with mirrors(two_upstreams(tmp_path, private, hub), 2) as workers:
        await pull_and_keep(workers[0], root, first)
        v2 = manifest_path("v2", "up/x/y")
        assert (await workers[1].get(v2)).status == 200
        for digest in (second.config, second.layers[1]):
            assert (await workers[1].get(blob_path(digest, "up/x/y"))).status == 200
        await kept(root, *second.blobs)
        await until(lambda: private.count("HEAD", f"x/y/blobs/{second.layers[0]}") == 1, "confirmed")
        await private.stop()
        clock.advance(100)
        async with asyncio.timeout(10):  # what the HEAD said may be noted a moment later
            while (answer := await workers[0].get(v2)).status != 200:
                clock.advance(100)
        assert warning(answer)
        await pull(workers[0], second, "up/x/y", reference="v2")
        assert private.count("GET", f"x/y/blobs/{second.layers[0]}") == 0


def confirmed(root: Path, name: str) -> set[str]:
    """Return what a repository of the upstream may read."""
    with contextlib.closing(sqlite3.connect(root / "metadata.db")) as database:
        found = database.execute("SELECT digest FROM link WHERE repository = ?", (f"up|{name}",))
        return {digest for (digest,) in found}


async def test_shared_images_of_an_index_are_confirmed_with_their_blobs(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    images = [private.add_image(NAME, None) for _ in range(2)]
    index = private.add_index("x/y", "v1", images)
    for image in images:
        private.add_manifest("x/y", image.raw)
        for data in image.blobs.values():
            private.add_blob("x/y", data)
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, images[0])
        private.clear_log()
        assert (await worker.get(manifest_path("v1", "up/x/y"))).status == 200
        wanted = {f"HEAD manifests/{images[0].digest}", *(f"HEAD blobs/{digest}" for digest in images[0].blobs)}
        await until(lambda: wanted <= set(requests(private)), "confirmed")
        assert not any(images[1].digest in line for line in requests(private))
        await until(lambda: {images[0].digest, *images[0].blobs} <= confirmed(root, "x/y"), "it is noted")
        await private.stop()
        await pull(worker, index, "up/x/y")
        await get_image(worker, images[0], "up/x/y")


async def test_no_more_than_a_few_children_are_confirmed_at_once(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, root: Path
) -> None:
    layers = [bytes([n]) * 100 for n in range(20)]
    first = private.add_image(NAME, "v1", layers=layers)
    private.add_image("x/y", "v1", layers=layers)
    running: list[int] = []

    def watch(request: Any) -> bool:
        if request.method == "HEAD" and "/x/y/blobs/" in request.path:
            running.append(sum(not r.done for r in private.requests("HEAD", "/x/y/blobs/")))
        return False

    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        await pull_and_keep(worker, root, first)
        private.fault(watch, delay=0)
        private.fault("HEAD /v2/x/y/blobs", delay=0.01)
        assert (await worker.get(manifest_path("v1", "up/x/y"))).status == 200
        await until(lambda: private.count("HEAD", "/x/y/blobs/") == 20, "all confirmed")
        assert 1 < max(running) <= 4


async def test_the_password_is_never_shown(
    tmp_path: Path, private: FakeUpstream, hub: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    private.add_image(NAME, "v1")
    private.users = {"u": "changed"}
    async with mirror(two_upstreams(tmp_path, private, hub)) as worker:
        answer = await worker.get(V1)
        assert (answer.status, answer.code) == (403, "DENIED")
        text = answer.body.decode() + caplog.text
        assert "up" in text
        assert "'u'" in text
        assert PASSWORD not in text


# ---- names ----


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v2/up/Team/app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/up/team//app/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/up/team/app/manifests/sha256:abc", 400, "DIGEST_INVALID"),
        ("/v2/up/team/app/manifests/md5:" + "a" * 32, 400, "DIGEST_INVALID"),
        ("/v2/up/team/app/manifests/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
        ("/v2/up/team/app/manifests/-v1", 404, "MANIFEST_UNKNOWN"),
        ("/v2/quay.io/team/app/manifests/v1", 404, "NAME_UNKNOWN"),
        ("/v2/team/app/manifests/v1?ns=quay.io", 404, "NAME_UNKNOWN"),
    ],
)
async def test_names_that_cannot_be(tmp_path: Path, hub: FakeUpstream, path: str, status: int, code: str) -> None:
    hub.add_image(NAME, "v1")
    async with mirror(config_for(tmp_path, hub)) as worker:
        answer = await worker.get(path)
        assert (answer.status, answer.code) == (status, code)
        assert (await worker.head(path)).status == status
        assert hub.requests() == []
