"""Pushing manifests and deleting: what is taken, what is refused, and that every worker sees it at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.connection import connect
from tests.fake_upstream import INDEX, MANIFEST, FakeUpstream, digest_of
from tests.harness import Mirror, make_config, mirrors
from tests.images import blob_path, manifest_path
from tests.pushed import (
    DOCKER_MANIFEST,
    NOWHERE,
    ODD,
    Made,
    delete,
    descriptor,
    has_blob,
    kept,
    make_artifact,
    make_image,
    make_index,
    mount_blob,
    pages,
    push,
    push_blob,
    put_manifest,
    served,
    tags_of,
    unknown,
)

A, B = "local/a", "local/deep/b"
LARGEST = 4 * 1024 * 1024
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.fixture
async def two(root: Path, hub: FakeUpstream) -> AsyncIterator[list[Mirror]]:
    """Two workers on one root, with the hub as ``up``."""
    async with mirrors(make_config(root, {"up": {"url": hub.url}}), 2) as started:
        yield started


@pytest.fixture
def one(two: list[Mirror]) -> Mirror:
    return two[0]


def sized(size: int) -> Made:
    """Make an index of exactly so many bytes."""
    bare = make_index(annotations={"a": ""})
    return make_index(annotations={"a": "x" * (size - len(bare.raw))})


# ---- what is pushed comes back as it was ----


@pytest.mark.parametrize(
    ("body", "content_type", "comes_back"),
    [
        ({"mediaType": MANIFEST, "config": descriptor(b"{}"), "layers": []}, MANIFEST, MANIFEST),
        ({"mediaType": MANIFEST, "config": descriptor(b"{}"), "layers": []}, f"{MANIFEST}; charset=utf-8", MANIFEST),
        ({"mediaType": MANIFEST, "config": descriptor(b"{}"), "layers": []}, "application/json", MANIFEST),
        ({"mediaType": MANIFEST, "config": descriptor(b"{}"), "layers": []}, "application/octet-stream", MANIFEST),
        ({"mediaType": MANIFEST, "config": descriptor(b"{}"), "layers": []}, None, MANIFEST),
        ({"mediaType": DOCKER_MANIFEST, "config": descriptor(b"{}"), "layers": []}, DOCKER_MANIFEST, DOCKER_MANIFEST),
        ({"mediaType": INDEX, "manifests": []}, INDEX, INDEX),
        ({"manifests": []}, INDEX, INDEX),
        ({"manifests": []}, "text/plain", INDEX),
        ({"mediaType": ODD, "anything": [1, {"a": None}]}, ODD, ODD),
        ({"anything": 1}, ODD, ODD),
        ({"anything": 1}, "text/x-acme", "text/x-acme"),
        ({}, "application/x.acme", "application/x.acme"),
    ],
)
async def test_any_type_with_exactly_these_bytes(
    two: list[Mirror], body: dict[str, Any], content_type: str | None, comes_back: str
) -> None:
    raw = f"\n {json.dumps(body, indent=3, sort_keys=True)}\t\r\n ".encode()
    await push_blob(two[0], A, b"{}")
    headers = {} if content_type is None else {"Content-Type": content_type}
    for reference in ("v1", digest_of(raw), digest_of(raw, "sha512")):
        answer = await two[0].ask(
            "PUT", manifest_path(reference, A), data=raw, headers=headers, skip_auto_headers=["Content-Type"]
        )
        assert (answer.status, answer.body) == (201, b""), answer
        digest = reference if ":" in reference else digest_of(raw)
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["Location"] == f"/v2/{A}/manifests/{digest}"
        assert "OCI-Subject" not in answer.headers
        assert "OCI-Tag" not in answer.headers
        await served(two, A, reference, Made(raw, comes_back))


async def test_bytes_that_a_parser_would_change(two: list[Mirror]) -> None:
    """Keys twice, numbers no float can hold, escapes: a manifest is its bytes."""
    raw = b'{"manifests":[],"x":1,"x":2,"n":1e400,"m":0.10000000000000000000001,"u":"\\u00e9\xc3\xa9","mediaType":"%s"}'
    made = Made(raw % INDEX.encode(), INDEX)
    await push(two[0], A, made, "v1")
    await served(two, A, "v1", made)
    await served(two, A, made.digest, made)


async def test_one_manifest_as_two_types_in_two_repositories(two: list[Mirror]) -> None:
    """What a client calls it holds where that client pushed it, and whatever it is called the digest is the same."""
    raw = b'{"anything": 1}'
    for name, media_type in ((A, ODD), (B, "application/vnd.acme.other+json")):
        await push(two[0], name, Made(raw, media_type), "v1")
    for name, media_type in ((A, ODD), (B, "application/vnd.acme.other+json")):
        await served(two, name, "v1", Made(raw, media_type))
        await served(two, name, digest_of(raw), Made(raw, media_type))


async def test_a_manifest_pushed_again_is_of_the_type_it_was_given_last(two: list[Mirror]) -> None:
    """By tag and by digest, to HEAD and to GET: also by a tag that was put on it before."""
    raw = b'{"anything": 1}'
    await push(two[0], A, Made(raw, ODD), "v1")
    await served(two, A, "v1", Made(raw, ODD))
    await push(two[1], A, Made(raw, "application/vnd.acme.other+json"), "v2")
    for reference in ("v1", "v2", digest_of(raw)):
        for worker in two:
            head = await worker.head(manifest_path(reference, A))  # before any GET
            assert head.headers["Content-Type"] == "application/vnd.acme.other+json"
        await served(two, A, reference, Made(raw, "application/vnd.acme.other+json"))


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/v2/local/a/manifests/v1", "/v2/local/a/manifests/"),
        ("/me.example/v2/local/a/manifests/v1", "/me.example/v2/local/a/manifests/"),
        ("/v2/me.example/local/a/manifests/v1", "/v2/me.example/local/a/manifests/"),
        ("/v2/local/a/manifests/v1?ns=me.example", "/v2/local/a/manifests/"),
    ],
)
async def test_where_a_manifest_is_as_the_client_knows_us(root: Path, target: str, location: str) -> None:
    made = make_index()
    async with mirrors(make_config(root, {}, names=["me.example"])) as (one,):
        answer = await one.ask("PUT", target, data=made.raw, headers={"Content-Type": made.media_type})
        assert (answer.status, answer.headers["Location"]) == (201, location + made.digest)
        assert (await one.get(answer.headers["Location"])).body == made.raw
        await served([one], A, "v1", made)


# ---- what is not taken, and leaves nothing ----


async def nothing_is_here(two: list[Mirror], root: Path, made: Made | bytes = b"", name: str = A) -> None:
    """Make sure that a refused push left nothing: no tag, no manifest, no file, no name."""
    digest = digest_of(made) if isinstance(made, bytes) else made.digest
    await unknown(two, manifest_path("v1", name))
    await unknown(two, manifest_path(digest, name))
    assert digest not in kept(root)
    for worker in two:
        assert await tags_of(worker, name) is None
        assert name not in (await pages(worker, "/v2/_catalog", "repositories"))[0]


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        (make_index().raw, MANIFEST),
        (make_index().raw, "text/html"),
        (make_image(b"x").raw, INDEX),
        (make_image(b"x").raw, DOCKER_MANIFEST),
        (b"", MANIFEST),
        (b"{", MANIFEST),
        (b"[]", INDEX),
        (b"null", INDEX),
        (b"\xff", ODD),
        (b'{"a": 1}', "application/json"),
        (b'{"a": 1}', "rubbish"),
        (b'{"mediaType": 5}', ODD),
        (b'{"layers": [], "manifests": []}', INDEX),
        (b'{"layers": {}}', MANIFEST),
        (b'{"layers": [{"digest": "sha256:1", "size": 1}]}', MANIFEST),
        (b'{"manifests": [{}]}', INDEX),
        (b'{"manifests": [], "subject": {"digest": "x"}}', INDEX),
        (b"[" * 100_000, ODD),
        (b'{"a":' * 100_000, ODD),
    ],
    ids=lambda value: repr(value[:40]),
)
@pytest.mark.parametrize("by", ["tag", "digest"])
async def test_what_is_no_manifest(two: list[Mirror], root: Path, raw: bytes, content_type: str, by: str) -> None:
    path = manifest_path("v1" if by == "tag" else digest_of(raw), A)
    answer = await two[0].ask("PUT", path, data=raw, headers={"Content-Type": content_type})
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    await nothing_is_here(two, root, raw)


@pytest.mark.parametrize("tag", ["-x", ".x", "x" * 129, "x%2Fy", "x%20y", "%C3%A4", "x%00", "x%0A", ""])
async def test_a_bad_tag(two: list[Mirror], root: Path, tag: str) -> None:
    made = make_index()
    for reference in (tag, f"{made.digest}?tag={tag}", f"{made.digest}?tag=good&tag={tag}&tag=v1"):
        answer = await put_manifest(two[0], A, reference, made)
        assert (answer.status, answer.code) == (400, "MANIFEST_INVALID"), reference
    await nothing_is_here(two, root, made)


@pytest.mark.parametrize("digest", ["sha256:0", "sha256:" + "A" * 64, "md5:" + "0" * 32, "sha512:" + "0" * 64, ":"])
async def test_a_bad_digest(two: list[Mirror], root: Path, digest: str) -> None:
    answer = await put_manifest(two[0], A, digest, make_index())
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    await nothing_is_here(two, root, make_index())


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_bytes_of_another_digest(two: list[Mirror], root: Path, algorithm: str) -> None:
    made = make_index()
    other = digest_of(b"other", algorithm)
    for raw in (made.raw, made.raw + b" "):
        answer = await put_manifest(two[0], A, other, Made(raw, INDEX))
        assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
        detail = json.loads(answer.body)["errors"][0]["detail"]
        assert detail == {"digest": other, "actual": digest_of(raw, algorithm)}
    await unknown(two, manifest_path(other, A))
    await nothing_is_here(two, root, made)
    assert kept(root) == set()


# ---- how large one may be ----


def in_chunks(data: bytes) -> bytes:
    """Encode a body as one whose length is not known before (RFC 9112 section 7.1)."""
    pieces = (data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("chunked", [False, True])
async def test_four_mebibytes_and_one_more(two: list[Mirror], root: Path, chunked: bool) -> None:
    too_large, largest = sized(LARGEST + 1), sized(LARGEST)
    assert (len(too_large.raw), len(largest.raw)) == (LARGEST + 1, LARGEST)
    async with connect(two[0].url) as client:
        for made, status in ((too_large, 413), (largest, 201)):
            if chunked:
                sent = {"body": in_chunks(made.raw), "Content_Length": None, "Transfer_Encoding": "chunked"}
            else:
                sent = {"body": made.raw}
            answer = await client.ask("PUT", f"/v2/{A}/manifests/v1", Content_Type=INDEX, **sent)
            assert answer.status == status
            if status == 413:
                assert answer.code == "MANIFEST_INVALID"
                assert str(LARGEST) in answer.error["message"]
                await nothing_is_here(two, root, made)
            assert (await client.ask("GET", "/v2/")).body == b"{}", "and the connection goes on"
    await served(two, A, "v1", largest)


async def test_one_that_is_too_large_need_not_be_sent(one: Mirror) -> None:
    async with connect(one.url) as client:
        client.send("PUT", f"/v2/{A}/manifests/v1", Content_Length=str(LARGEST + 1), Expect="100-continue")
        async with asyncio.timeout(10):
            answer = await client.head()
            assert answer.status == 413, "and no 100 before"


async def test_one_without_an_end_is_not_waited_for(root: Path) -> None:
    async with mirrors(make_config(root, {}, limits={"manifest": 1000})) as (one,), connect(one.url) as client:
        client.send("PUT", f"/v2/{A}/manifests/v1", Transfer_Encoding="chunked", body=b"", Content_Type=INDEX)
        client.writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n" + b"1\r\n \r\n")
        async with asyncio.timeout(10):
            assert (await client.head()).status == 413
        client.writer.write(b"0\r\n\r\n")  # here it ends, too late


async def test_the_largest_manifest_is_a_setting(root: Path) -> None:
    async with mirrors(make_config(root, {}, limits={"manifest": 1000})) as (one,):
        assert (await put_manifest(one, A, "v1", sized(1001))).status == 413
        assert (await put_manifest(one, A, "v1", sized(1000))).status == 201
        await served([one], A, "v1", sized(1000))


async def test_a_body_that_breaks_off_is_no_manifest(two: list[Mirror], root: Path) -> None:
    made = make_index()
    async with connect(two[0].url) as client:
        client.send("PUT", f"/v2/{A}/manifests/v1", Content_Length=str(len(made.raw) + 1), Content_Type=INDEX)
        client.writer.write(made.raw)
        client.writer.write_eof()
        await client.end()
    await nothing_is_here(two, root, made)


# ---- what it needs ----


async def test_every_blob_that_is_missing_is_named(two: list[Mirror], root: Path) -> None:
    made = make_image(b"one", b"two", b"three", b"one", config=b'{"a": 1}')
    await push_blob(two[0], A, b"two")
    await push_blob(two[0], B, b"three")  # elsewhere is not here
    expected = [{"digest": digest_of(data)} for data in (b'{"a": 1}', b"one", b"three")]
    for reference in ("v1", made.digest, f"{made.digest}?tag=v1"):
        answer = await put_manifest(two[1], A, reference, made)
        assert (answer.status, answer.code) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert json.loads(answer.body)["errors"][0]["detail"] == expected
        await unknown(two, manifest_path("v1", A))
        await unknown(two, manifest_path(made.digest, A))
        assert made.digest not in kept(root)
    for worker in two:
        assert await tags_of(worker, A) == []
    await push(two[0], A, made, "v1")
    await served(two, A, "v1", made)


async def test_missing_blobs_may_be_accepted(root: Path) -> None:
    made = make_image(b"one", b"two")
    async with mirrors(make_config(root, {}, push={"missing_blobs": "accept"}), 2) as two:
        assert (await put_manifest(two[0], A, "v1", made)).status == 201
        await served(two, A, "v1", made)
        await unknown(two, blob_path(digest_of(b"one"), A))


async def test_children_subjects_and_foreign_layers_need_not_be_here(two: list[Mirror]) -> None:
    foreign = make_image(
        layers=[
            descriptor(b"somewhere", FOREIGN, urls=["https://example.com/x"]),
            descriptor(b"else", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        ],
        subject=make_image(b"not here").descriptor,
    )
    index = make_index(make_image(b"nor this"), subject=make_image(b"or that").descriptor)
    for at, made in enumerate((foreign, index)):
        await push(two[0], A, made, f"v{at}")
        await served(two, A, f"v{at}", made)
    config_only = make_image(layers=[descriptor(b"somewhere", FOREIGN)], config=b'{"b": 2}')
    answer = await put_manifest(two[0], A, "v2", config_only)
    assert json.loads(answer.body)["errors"][0]["detail"] == [{"digest": digest_of(b'{"b": 2}')}]


async def test_a_manifest_is_no_blob_of_another(two: list[Mirror]) -> None:
    """And a blob is no manifest: of one digest, a repository has what was pushed to it as that."""
    inner = make_index()
    await push(two[0], A, inner)
    await unknown(two, blob_path(inner.digest, A))
    outer = make_image(inner.raw)
    await push_blob(two[0], A, b"{}")
    answer = await put_manifest(two[0], A, "v1", outer)
    assert json.loads(answer.body)["errors"][0]["detail"] == [{"digest": inner.digest}]
    await push_blob(two[0], B, inner.raw)
    await unknown(two, manifest_path(inner.digest, B))
    await has_blob(two, B, inner.raw)
    await push(two[0], A, outer, "v1")
    await has_blob(two, A, inner.raw)
    await served(two, A, inner.digest, inner)
    # deleting the one leaves the other
    assert (await delete(two[1], manifest_path(inner.digest, A))).status == 202
    await unknown(two, manifest_path(inner.digest, A))
    await has_blob(two, A, inner.raw)
    await push(two[0], A, inner)
    assert (await delete(two[1], blob_path(inner.digest, A))).status == 202
    await unknown(two, blob_path(inner.digest, A))
    await served(two, A, inner.digest, inner)


# ---- many tags, subjects ----


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_many_tags_at_once(two: list[Mirror], algorithm: str) -> None:
    made = make_index()
    digest = digest_of(made.raw, algorithm)
    tags = [f"v{n}" for n in range(50)]
    answer = await put_manifest(two[0], A, f"{digest}?" + "&".join(f"tag={tag}" for tag in tags), made)
    assert answer.status == 201
    assert answer.headers.getall("OCI-Tag") == tags
    assert answer.headers["Docker-Content-Digest"] == digest
    for worker in two:
        assert await tags_of(worker, A) == sorted(tags)
        for tag in tags:
            assert (await worker.head(manifest_path(tag, A))).headers["Docker-Content-Digest"] == digest
    assert (await two[0].get(manifest_path("v17", A))).body == made.raw


async def test_tag_parameters_with_a_tag(two: list[Mirror], root: Path) -> None:
    answer = await put_manifest(two[0], A, "v1?tag=v2", make_index())
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    await nothing_is_here(two, root, make_index())


async def test_a_subject_is_acknowledged(two: list[Mirror]) -> None:
    subject = make_image(b"x")
    for made in (make_artifact(subject), make_index(subject=subject.descriptor)):
        for data in made.blobs.values():
            await push_blob(two[0], A, data)
        for reference in ("v1", made.digest):
            answer = await put_manifest(two[0], A, reference, made)
            assert answer.headers["OCI-Subject"] == subject.digest


# ---- conditions ----


async def test_conditions_on_a_tag(two: list[Mirror]) -> None:
    first, second, third = (make_index(annotations={"n": str(n)}) for n in range(3))

    async def put(made: Made, **headers: str) -> int:
        answer = await put_manifest(two[0], A, "v1", made, **headers)
        if answer.status == 412:
            assert answer.code == "DENIED"
            await unknown(two, manifest_path(made.digest, A))  # and nothing of it is kept
        return answer.status

    assert await put(first, If_Match="*") == 412
    assert await put(first, If_Match=f'"{first.digest}"') == 412
    assert await put(first, If_None_Match="*") == 201
    assert await put(second, If_None_Match="*") == 412
    assert await put(second, If_None_Match=f'"{first.digest}"') == 412
    assert await put(second, If_Match=f'"{second.digest}"') == 412
    await served(two, A, "v1", first)
    etag = (await two[1].head(manifest_path("v1", A))).headers["ETag"]
    assert await put(second, If_Match=f'"{third.digest}", {etag}') == 201
    await served(two, A, "v1", second)
    assert await put(third, If_None_Match=etag) == 201
    await served(two, A, "v1", third)
    assert await put(first, If_Match="*") == 201
    await served(two, A, "v1", first)


async def test_conditions_on_a_digest(two: list[Mirror]) -> None:
    made = make_index()
    assert (await put_manifest(two[0], A, made.digest, made, If_Match="*")).status == 412
    await unknown(two, manifest_path(made.digest, A))
    assert (await put_manifest(two[0], A, made.digest, made, If_None_Match="*")).status == 201
    assert (await put_manifest(two[1], A, made.digest, made, If_None_Match="*")).status == 412
    await served(two, A, made.digest, made)


async def test_conditions_on_many_tags(two: list[Mirror]) -> None:
    """Of each of them, or none is moved."""
    before, made = make_index(), make_index(annotations={"a": "b"})
    await push(two[0], A, before, "v2")
    for tags in ("tag=v1&tag=v2", "tag=v2&tag=v1"):
        assert (await put_manifest(two[1], A, f"{made.digest}?{tags}", made, If_None_Match="*")).status == 412
        assert (await put_manifest(two[1], A, f"{made.digest}?{tags}", made, If_Match="*")).status == 412
        await unknown(two, manifest_path("v1", A))
        await unknown(two, manifest_path(made.digest, A))
        await served(two, A, "v2", before)
    assert (await put_manifest(two[1], A, f"{made.digest}?tag=v1&tag=v3", made, If_None_Match="*")).status == 201
    assert (await put_manifest(two[1], A, f"{before.digest}?tag=v1&tag=v3", before, If_Match="*")).status == 201
    assert await tags_of(two[0], A) == ["v1", "v2", "v3"]
    await served(two, A, "v1", before)


async def test_conditions_of_deleting(two: list[Mirror]) -> None:
    made = make_index()
    await push(two[0], A, made, "v1")
    for target in ("v1", made.digest):
        answer = await delete(two[1], manifest_path(target, A), If_Match=f'"{NOWHERE}"')
        assert (answer.status, answer.code) == (412, "DENIED")
        await served(two, A, target, made)
    for target in ("v1", made.digest):
        assert (await delete(two[1], manifest_path(target, A), If_Match=f'"{made.digest}"')).status == 202
        await unknown(two, manifest_path(target, A))
        assert (await delete(two[1], manifest_path(target, A), If_Match="*")).status == 404


async def test_of_writers_that_race_for_a_new_tag_one_wins(two: list[Mirror], root: Path) -> None:
    made = [make_index(annotations={"n": str(n)}) for n in range(16)]
    answers = await asyncio.gather(
        *(put_manifest(two[at % 2], A, "v1", one, If_None_Match="*") for at, one in enumerate(made))
    )
    assert sorted(answer.status for answer in answers) == [201] + [412] * 15
    winner = next(one for one, answer in zip(made, answers, strict=True) if answer.status == 201)
    await served(two, A, "v1", winner)
    assert kept(root) == {winner.digest}


async def test_of_writers_that_race_to_move_a_tag_one_wins(two: list[Mirror], root: Path) -> None:
    before = make_index()
    await push(two[0], A, before, "v1")
    made = [make_index(annotations={"n": str(n)}) for n in range(16)]
    answers = await asyncio.gather(
        *(put_manifest(two[at % 2], A, "v1", one, If_Match=f'"{before.digest}"') for at, one in enumerate(made))
    )
    assert sorted(answer.status for answer in answers) == [201] + [412] * 15
    winner = next(one for one, answer in zip(made, answers, strict=True) if answer.status == 201)
    await served(two, A, "v1", winner)
    assert kept(root) == {winner.digest, before.digest}


async def test_without_conditions_all_are_acknowledged_and_kept(two: list[Mirror]) -> None:
    made = [make_index(annotations={"n": str(n)}) for n in range(16)]
    answers = await asyncio.gather(*(put_manifest(two[at % 2], A, "v1", one) for at, one in enumerate(made)))
    assert {answer.status for answer in answers} == {201}
    last = {(await worker.head(manifest_path("v1", A))).headers["Docker-Content-Digest"] for worker in two}
    assert len(last) == 1
    assert last <= {one.digest for one in made}
    for one in made:
        await served(two, A, one.digest, one)


# ---- asking for what one has ----


async def test_conditional_gets(two: list[Mirror]) -> None:
    made = make_image(b"layer")
    await push(two[0], A, made, "v1")
    layer = digest_of(b"layer")
    for worker in two:
        paths = [manifest_path("v1", A), manifest_path(made.digest, A), blob_path(layer, A)]
        for path in paths:
            digest = layer if "/blobs/" in path else made.digest
            for method in ("GET", "HEAD"):
                for header in (f'"{digest}"', f'W/"{digest}"', f'"{NOWHERE}", "{digest}"', "*"):
                    answer = await worker.ask(method, path, headers={"If-None-Match": header})
                    assert (answer.status, answer.body) == (304, b"")
                    assert answer.headers["ETag"] == f'"{digest}"'
                    assert answer.headers["Docker-Content-Digest"] == digest
                answer = await worker.ask(method, path, headers={"If-None-Match": f'"{NOWHERE}"'})
                assert answer.status == 200
    await push(two[1], A, make_index(), "v1")  # and once it moved, it is another
    answer = await two[0].get(manifest_path("v1", A), headers={"If-None-Match": f'"{made.digest}"'})
    assert (answer.status, answer.body) == (200, make_index().raw)


# ---- deleting ----


async def test_a_deleted_tag_is_gone_and_its_manifest_is_not(two: list[Mirror]) -> None:
    made = make_index()
    await push(two[0], A, made, "v1", "v2")
    await served(two, A, "v1", made)  # both have it in memory
    answer = await delete(two[0], manifest_path("v1", A))
    assert (answer.status, answer.body) == (202, b"")
    await unknown(two, manifest_path("v1", A))
    await served(two, A, "v2", made)
    await served(two, A, made.digest, made)
    for worker in two:
        assert await tags_of(worker, A) == ["v2"]
        assert (await delete(worker, manifest_path("v1", A))).code == "MANIFEST_UNKNOWN"


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_deleted_manifest_takes_its_tags_along(two: list[Mirror], root: Path, algorithm: str) -> None:
    made, other = make_image(b"layer"), make_index()
    digest = digest_of(made.raw, algorithm)
    await push(two[0], A, made, digest)
    await put_manifest(two[0], A, f"{digest}?tag=v1&tag=v2", made)
    await push(two[0], A, other, "v3")
    await served(two, A, digest, made)
    for worker in two:
        assert (await worker.get(manifest_path("v1", A))).body == made.raw  # both have it in memory
    assert (await delete(two[0], manifest_path(digest, A))).status == 202
    for reference in ("v1", "v2", digest):
        await unknown(two, manifest_path(reference, A))
    for worker in two:
        assert await tags_of(worker, A) == ["v3"]
        assert (await delete(worker, manifest_path(digest, A))).code == "MANIFEST_UNKNOWN"
    await served(two, A, "v3", other)
    await has_blob(two, A, b"layer")
    assert digest not in kept(root)
    await push(two[1], A, made, digest)  # and can come again
    await served(two, A, digest, made)
    await unknown(two, manifest_path("v1", A))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_deleted_blob(two: list[Mirror], root: Path, algorithm: str) -> None:
    digest = await push_blob(two[0], A, b"data", algorithm)
    await has_blob(two, A, b"data", digest)
    assert (await delete(two[1], blob_path(digest, A))).status == 202
    await unknown(two, blob_path(digest, A))
    for worker in two:
        answer = await delete(worker, blob_path(digest, A))
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
        assert await tags_of(worker, A) is None, "with its last content a repository is gone"
    assert kept(root) == set()
    await push_blob(two[1], A, b"data", algorithm)
    await has_blob(two, A, b"data", digest)


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        (manifest_path("v1", A), 404, "MANIFEST_UNKNOWN"),
        (manifest_path(NOWHERE, A), 404, "MANIFEST_UNKNOWN"),
        (manifest_path("-", A), 404, "MANIFEST_UNKNOWN"),
        (blob_path(NOWHERE, A), 404, "BLOB_UNKNOWN"),
        (manifest_path("sha256:0", A), 400, "DIGEST_INVALID"),
        (blob_path("latest", A), 400, "DIGEST_INVALID"),
        (manifest_path("v1", "local/A"), 400, "NAME_INVALID"),
        (manifest_path("v1", "up/team/app"), 404, "MANIFEST_UNKNOWN"),
        (manifest_path(NOWHERE, "up/team/app"), 404, "MANIFEST_UNKNOWN"),
        (blob_path(NOWHERE, "up/team/app"), 404, "BLOB_UNKNOWN"),
        (manifest_path("v1", "nowhere.example/x"), 404, "NAME_UNKNOWN"),
    ],
)
async def test_deleting_what_is_not_there(
    two: list[Mirror], hub: FakeUpstream, target: str, status: int, code: str
) -> None:
    answer = await delete(two[0], target)
    assert (answer.status, answer.code) == (status, code)
    assert hub.log == []


async def test_the_same_content_in_two_repositories(two: list[Mirror], root: Path) -> None:
    """Deleting in the one leaves the other; the file goes with the last."""
    made = make_image(b"layer")
    layer = digest_of(b"layer")
    for name in (A, B):
        await push(two[0], name, made, "v1")
        await served(two, name, "v1", made)
    for path in (manifest_path(made.digest, A), blob_path(layer, A)):
        assert (await delete(two[1], path)).status == 202
        await unknown(two, path)
    await served(two, B, "v1", made)
    await has_blob(two, B, b"layer")
    assert {made.digest, layer} <= kept(root)
    for path in (manifest_path(made.digest, B), blob_path(layer, B)):
        assert (await delete(two[1], path)).status == 202
        await unknown(two, path)
    assert kept(root) == {digest_of(b"{}")}


async def test_deleting_the_mount_of_a_blob_leaves_its_source(two: list[Mirror], root: Path) -> None:
    digest = await push_blob(two[0], A, b"data")
    assert (await mount_blob(two[1], B, digest, A)).status == 201
    await has_blob(two, B, b"data")
    assert (await delete(two[0], blob_path(digest, A))).status == 202
    await unknown(two, blob_path(digest, A))
    await has_blob(two, B, b"data")
    assert kept(root) == {digest}
    assert (await delete(two[0], blob_path(digest, B))).status == 202
    assert kept(root) == set()


async def test_a_manifest_may_outlive_its_blobs(two: list[Mirror]) -> None:
    made = make_image(b"layer")
    await push(two[0], A, made, "v1")
    assert (await delete(two[0], blob_path(digest_of(b"layer"), A))).status == 202
    await served(two, A, "v1", made)
    answer = await put_manifest(two[0], A, "v2", made)
    assert answer.code == "MANIFEST_BLOB_UNKNOWN"
    await served(two, A, "v1", made)


@pytest.mark.parametrize(
    ("settings", "word", "pushing"), [({"delete": False}, "delete", 201), ({"read_only": True}, "read_only", 405)]
)
async def test_deleting_and_writing_can_be_switched_off(
    root: Path, hub: FakeUpstream, settings: dict[str, Any], word: str, pushing: int
) -> None:
    made = make_image(b"layer")
    image = hub.add_image("team/app", "1")
    async with mirrors(make_config(root, {"up": {"url": hub.url}})) as (one,):
        await push(one, A, made, "v1")
        assert (await one.get(manifest_path("1"))).body == image.raw
    async with mirrors(make_config(root, {"up": {"url": hub.url}}, **settings)) as (one,):
        for path in (
            manifest_path("v1", A),
            manifest_path(made.digest, A),
            blob_path(digest_of(b"layer"), A),
            manifest_path("1"),
            manifest_path(image.digest),
        ):
            answer = await delete(one, path)
            assert (answer.status, answer.code) == (405, "UNSUPPORTED")
            assert word in json.loads(answer.body)["errors"][0]["message"]
            assert (await one.get(path)).status == 200
        assert (await put_manifest(one, A, "v2", made)).status == pushing
        assert (await one.ask("POST", f"/v2/{A}/blobs/uploads/")).status == (405 if pushing == 405 else 202)
        assert (await mount_blob(one, B, digest_of(b"layer"), A)).status == pushing
        await served([one], A, "v1", made)


async def test_pushing_and_deleting_at_once(two: list[Mirror], root: Path) -> None:
    """Whatever comes last: what is there is whole, and what is not has no file."""
    made = make_index()
    for _ in range(8):
        jobs = [
            *(put_manifest(two[at % 2], name, made.digest, made) for at in range(3) for name in (A, B)),
            *(delete(two[at % 2], manifest_path(made.digest, name)) for at in range(3) for name in (A, B)),
        ]
        statuses = {answer.status for answer in await asyncio.gather(*jobs)}
        assert statuses <= {201, 202, 404}
        found = []
        for name in (A, B):
            answers = [await worker.get(manifest_path(made.digest, name)) for worker in two]
            assert answers[0].status == answers[1].status
            assert answers[0].status == 404 or answers[0].body == made.raw
            found.append(answers[0].status)
        assert (made.digest in kept(root)) is (200 in found)
