"""Errors: the one shape at every endpoint, for every method and whatever was sent; and a disk that fails."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.metadata import database, sqlite
from mirror.oci.errors import ErrorCode
from mirror.store import disk
from tests.connection import Answer, connect
from tests.fake_upstream import FakeUpstream, digest_of
from tests.harness import Mirror, make_config, mirror
from tests.images import blob_path, manifest_path
from tests.pushed import (
    NOWHERE,
    delete,
    has_blob,
    kept,
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
SESSION = "0b1f6f1e-0000-4000-8000-000000000001"
CODES = {code.value for code in ErrorCode} - {"UNAVAILABLE"}

NAMED = {
    f"/manifests/{NOWHERE}": ("GET", "HEAD", "PUT", "DELETE"),
    "/manifests/latest": ("GET", "HEAD", "PUT", "DELETE"),
    f"/blobs/{NOWHERE}": ("GET", "HEAD", "DELETE"),
    "/blobs/uploads/": ("POST",),
    f"/blobs/uploads/{SESSION}": ("GET", "HEAD", "PATCH", "PUT", "DELETE"),
    "/tags/list": ("GET", "HEAD"),
    f"/referrers/{NOWHERE}": ("GET", "HEAD"),
    "/_mirror/tags/history?tag=x": ("GET", "HEAD"),
    "/_oci/ext/discover": ("GET", "HEAD"),
}
"""Endpoints of a repository, and what each answers."""
NAMED_ONES = [(path, method) for path, methods in NAMED.items() for method in methods]


@pytest.fixture
async def one(root: Path, hub: FakeUpstream) -> AsyncIterator[Mirror]:
    async with mirror(make_config(root, {"up": {"url": hub.url}})) as running:
        yield running


async def refused(one: Mirror, method: str, target: str, body: bytes = b"", **headers: Any) -> Answer:
    """Ask for what cannot be, twice on one connection, and check the form of the answers."""
    if method in ("PUT", "PATCH", "POST"):
        headers.setdefault("Content_Length", str(len(body)))
    async with connect(one.url) as client:
        for _ in range(2):
            answer = await client.ask(method, target, body=body, **headers)
            assert 400 <= answer.status < 500, (method, target, answer)
            assert answer.headers["x-request-id"]
            if method == "HEAD":
                assert answer.body == b""
                assert answer.headers["content-type"] == "application/json"
            else:
                assert answer.error["code"] in CODES, (method, target, answer)
        assert (await client.ask("GET", "/v2/")).body == b"{}", "what follows is in its place"
    return answer


BAD_NAMES = [
    "Upper/x",
    "local/Upper",
    "local/a//b",
    "local/a/../b",
    "local/%2e%2e/b",
    "local%2Fa",
    "local/a%2Fb",
    "local/a%00",
    "local/a%0d%0aX-Evil:%20y",
    "local/%ff",
    "local/%F0%9F%98%80",
    "local/-a",
    "local/a/",
    "/local/a",
    "",
    "local/" + "a" * 250,
    "local/" + "a/" * 1900 + "a",
    "local/%2",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[:30])
async def test_names_that_are_none(one: Mirror, hub: FakeUpstream, name: str) -> None:
    for path, method in NAMED_ONES:
        answer = await refused(one, method, f"/v2/{name}{path}")
        assert answer.status == 400, (method, path)
        if method != "HEAD":
            assert answer.code == "NAME_INVALID", (method, path)
        assert "x-evil" not in answer.headers
    assert hub.log == []


@pytest.mark.parametrize("name", ["local/" + "a" * 249, "local/" + "a/" * 124 + "a"], ids=["one part", "many"])
async def test_the_longest_name_is_one(one: Mirror, name: str) -> None:
    assert len(name) == 255
    made = make_index()
    await push(one, name, made, "v" * 128)
    await served([one], name, "v" * 128, made)
    assert await tags_of(one, name) == ["v" * 128]
    assert await pages(one, "/v2/_catalog", "repositories") == [[name]]


@pytest.mark.parametrize(("path", "method"), NAMED_ONES)
async def test_what_is_not_there(one: Mirror, hub: FakeUpstream, path: str, method: str) -> None:
    """Nothing was ever pushed: each endpoint says so by its own code, or has an empty answer."""
    target = f"/v2/{A}{path}"
    codes = {"blobs": "BLOB_UNKNOWN", "tags": "NAME_UNKNOWN"}
    kind = path.split("/")[1]
    if "uploads/0" in path:
        answer = await refused(one, method, f"{target}?digest={NOWHERE}")
        assert (answer.status, method == "HEAD" or answer.code) == (404, method == "HEAD" or "BLOB_UPLOAD_UNKNOWN")
    elif method in ("PUT", "POST") or kind in ("referrers", "_oci"):
        answer_ = await one.ask(method, target, data=make_index().raw if "latest" in path else b"{}")
        assert answer_.status in (200, 201, 202, 400)
    else:
        answer = await refused(one, method, target)
        assert answer.status == 404
        assert method == "HEAD" or answer.code == codes.get(kind, "MANIFEST_UNKNOWN")
    assert hub.log == []


QUERIES = [
    "?",
    "?&&==&",
    "?%",
    "?%zz=%zz",
    "?%00=%00",
    "?n=",
    "?n=%00",
    "?n=1%0d%0aX-Evil:%20y",
    "?n=\udcff",
    "?last=%ff",
    "?last=%ED%A0%80",
    "?last=\udced\udca0\udc80",
    "?last=%00",
    "?last=" + "x" * 7000,
    "?last=%0d%0aX-Evil:%20y&n=1",
    "?before=%00",
    "?artifactType=%ED%A0%80",
    "?artifactType=\udcff",
    "?artifactType=%0d%0aX-Evil:%20y&n=1",
    "?tag=%ED%A0%80",
    "?tag=%00",
    "?tag=%0d%0aX-Evil:%20y",
    "?digest=%00",
    "?digest=sha256:0",
    "?digest=" + "x" * 7000,
    "?mount=%ED%A0%80",
    f"?mount={NOWHERE}&from=%ED%A0%80",
    f"?mount={NOWHERE}&from=../x",
    f"?mount={NOWHERE}&from=nowhere.example/x",
    "?digest-algorithm=md5",
    "?digest-algorithm=%ff",
    "?ns=%ED%A0%80",
    "?ns=%0d%0aX-Evil:%20y",
    "?ns=\udcff",
    "?;a=b;c",
    "?a[b]=c&a[b]=d",
    "?" + "&".join(f"p{n}=1" for n in range(500)),
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: repr(query[:30]))
async def test_queries_that_make_no_sense(one: Mirror, query: str) -> None:
    """At every endpoint: an answer or a client's error in the one shape, on a connection that goes on."""
    await push(one, A, make_index(), "latest")
    subject = make_image(b"subject")
    await push(one, A, make_index(subject=subject.descriptor), "other")
    whole = {"/v2/": ("GET", "HEAD"), "/v2/_catalog": ("GET", "HEAD"), "/v2/_oci/ext/discover": ("GET",)}
    targets = [(path, method) for path, methods in whole.items() for method in methods]
    targets += [(f"/v2/{A}{path.partition('?')[0]}", method) for path, method in NAMED_ONES if method != "DELETE"]
    targets.append((f"/v2/{A}/referrers/{subject.digest}", "GET"))
    async with connect(one.url) as client:
        for path, method in targets:
            headers = {"Content_Length": "0"} if method in ("PUT", "PATCH", "POST") else {}
            answer = await client.ask(method, path + query, **headers)
            assert answer.status < 500, (method, path, answer)
            assert "x-evil" not in answer.headers
            if answer.status == 400 and not query.isascii() and "x-request-id" not in answer.headers:
                assert answer.error["code"] == "UNSUPPORTED"
                return  # bytes that no parser takes for a request line
            if answer.status >= 400 and method != "HEAD":
                assert answer.error["code"] in CODES


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize(
    "target",
    ["/", "/v1/", "/v2/local", "/v2/local/a", "/v2/local/a/blobs", "/v2/local/a/blobs/uploads/x/y", "/v2/_nothing",
     "/v2/local/a/_mirror/x/y", "/v3/local/a/tags/list", "/favicon.ico", "/%2e%2e/v2/x", "/v2/%00"],
)  # fmt: skip
async def test_paths_that_are_none(one: Mirror, method: str, target: str) -> None:
    answer = await refused(one, method, target)
    assert answer.status == 404
    assert "allow" not in answer.headers
    if method != "HEAD":
        assert answer.code == "NAME_UNKNOWN"


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("PATCH", f"/blobs/uploads/{SESSION}", {"Content_Range": "x"}),
        ("PATCH", f"/blobs/uploads/{SESSION}", {"Content_Range": "5-1"}),
        ("PUT", f"/blobs/uploads/{SESSION}", {}),
        ("PUT", "/manifests/latest", {"Content_Type": b"\xff"}),
        ("PUT", "/manifests/latest", {"Content_Type": "a" * 4000}),
        ("PUT", "/manifests/latest", {"If_Match": b"\xff, ,,"}),
        ("DELETE", "/manifests/latest", {"If_Match": '"'}),
        ("GET", f"/blobs/{NOWHERE}", {"Range": b"bytes=\xff"}),
        ("GET", "/manifests/latest", {"Authorization": b"Basic \xff"}),
        ("GET", "/manifests/latest", {"Authorization": "Bearer x.y.z"}),
    ],
)
async def test_headers_that_make_no_sense(one: Mirror, method: str, path: str, headers: dict[str, Any]) -> None:
    await refused(one, method, f"/v2/{A}{path}", **headers)


# ---- the disk ----


def error_of(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["errors"][0]
    assert found["code"] == "UNAVAILABLE"
    return found


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every write of a whole file fails with the error that is put in here."""
    real, errors = disk.write_all, [0]

    def write(fd: int, chunks: Any, offset: int) -> int:
        if errors[0]:
            os.write(fd, b"half")
            raise OSError(errors[0], os.strerror(errors[0]))
        return real(fd, chunks, offset)

    monkeypatch.setattr(disk, "write_all", write)
    return errors


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (errno.ENOSPC, 507, "the disk is full"),
        (errno.EDQUOT, 507, "the disk is full"),
        (errno.EIO, 500, "the disk failed"),
    ],
)
async def test_a_disk_that_takes_nothing(
    one: Mirror, root: Path, failing: list[int], error: int, status: int, words: str
) -> None:
    before, made = make_index(), make_image(b"layer")
    await push(one, A, before, "v1")
    for data in made.blobs.values():
        await push_blob(one, A, data)
    there = kept(root)
    failing[0] = error
    for reference in ("v1", made.digest):
        answer = await put_manifest(one, A, reference, made)
        assert answer.status == status
        assert words in error_of(answer.body)["message"]
    assert kept(root) == there
    assert os.listdir(root / "ingest" / "sha256") == []
    await served([one], A, "v1", before)  # what is there is read, listed, and can be deleted to make room
    assert await tags_of(one, A) == ["v1"]
    assert (await delete(one, manifest_path("v1", A))).status == 202
    failing[0] = 0
    await push(one, A, made, "v1")
    await served([one], A, "v1", made)


async def test_a_full_disk_and_the_metadata(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database cannot grow, by a limit of its own: SQLite says of that what it says of a full disk."""
    real = database.open_writer

    def open_writer(path: Path, identity: str) -> sqlite3.Connection:
        connection = real(path, identity)
        now = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {now + 10}")
        return connection

    made = make_image(b"layer")
    with monkeypatch.context() as patch:
        patch.setattr(database, "open_writer", open_writer)
        async with mirror(make_config(root, {})) as one:
            await push(one, A, made, "v1")
            there = kept(root)
            for n in range(500):
                another = make_index(annotations={"n": str(n), "x": "y" * 500})
                answer = await put_manifest(one, A, f"tag{n}", another)
                if answer.status != 201:
                    break
                there.add(another.digest)
            assert answer.status == 507
            assert "the disk is full" in error_of(answer.body)["message"]
            assert another.digest not in there
            await unknown([one], manifest_path(f"tag{n}", A))
            await unknown([one], manifest_path(another.digest, A))
            assert kept(root) == there
            await served([one], A, "v1", made)
            listed = await tags_of(one, A)
    async with mirror(make_config(root, {})) as one:  # with some room again
        assert await tags_of(one, A) == listed
        await push(one, A, another, f"tag{n}")
        await served([one], A, f"tag{n}", another)


async def test_metadata_that_cannot_be_written(one: Mirror, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_index()
    await push(one, A, made, "v1")

    def fail(*_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    layer = await push_blob(one, A, b"layer")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_note_repository", fail)
        patch.setattr(sqlite, "_drop_if_empty", fail)
        another = make_index(annotations={"a": "b"})
        for answer in (
            await put_manifest(one, A, "v1", another),
            await put_manifest(one, A, another.digest, another),
            await mount_blob(one, B, layer, A),
            await one.ask("POST", f"/v2/{A}/blobs/uploads/?digest={digest_of(b'new')}", data=b"new"),
            await delete(one, manifest_path("v1", A)),
            await delete(one, manifest_path(made.digest, A)),
            await delete(one, blob_path(layer, A)),
        ):
            assert answer.status == 500
            assert "the metadata failed while writing: disk I/O error" in error_of(answer.body)["message"]
    await served([one], A, "v1", made)
    await has_blob([one], A, b"layer")
    await unknown([one], manifest_path(another.digest, A))
    assert kept(root) - {digest_of(b"new")} == {
        made.digest,
        layer,
    }  # whole, as what a kill leaves
    assert await tags_of(one, B) is None


async def test_a_file_that_is_gone_is_no_404(one: Mirror, root: Path) -> None:
    """Somebody deleted it behind our back: that is a failure of the disk, and no reason to forget what was pushed."""
    made = make_image(b"layer")
    await push(one, A, made, "v1")
    for digest in (made.digest, digest_of(b"layer")):
        (root / "blobs" / "sha256" / digest.partition(":")[2]).unlink()
    for path in (blob_path(digest_of(b"layer"), A), manifest_path(made.digest, A), manifest_path("v1", A)):
        answer = await one.get(path)
        assert answer.status in (200, 500)
    async with mirror(make_config(root, {})) as other:  # that has none of it in memory
        for path in (blob_path(digest_of(b"layer"), A), manifest_path(made.digest, A), manifest_path("v1", A)):
            answer = await other.get(path)
            assert answer.status == 500
            assert "disk" in error_of(answer.body)["message"]
        head = await other.head(blob_path(digest_of(b"layer"), A))
        assert (head.status, head.body) == (500, b"")
        await push(other, A, made, "v1")  # whoever pushes it again, heals it
        await served([other], A, "v1", made)
        await has_blob([other], A, b"layer")
        await unknown([other], blob_path(digest_of(b"layer"), B))


async def test_a_manifest_that_was_damaged_is_not_served(one: Mirror, root: Path) -> None:
    made = make_index()
    await push(one, A, made, "v1")
    (root / "blobs" / "sha256" / made.digest.partition(":")[2]).write_bytes(made.raw.replace(b"2", b"3"))
    async with mirror(make_config(root, {})) as other:
        answer = await other.get(manifest_path("v1", A))
        assert answer.status == 500
        assert "damaged" in error_of(answer.body)["message"]


@pytest.mark.parametrize("folder", ["ingest/sha256", "ingest/uploads", "blobs/sha256"])
async def test_a_folder_that_is_gone(one: Mirror, root: Path, folder: str) -> None:
    """Whatever the operating system says of it, the client hears that the disk failed."""
    (root / folder).rename(root / "away")
    made = make_index()
    answers = [
        await put_manifest(one, A, "v1", made),
        await one.ask("POST", f"/v2/{A}/blobs/uploads/?digest={digest_of(b'new')}", data=b"new"),
    ]
    failed = [answer for answer in answers if answer.status != 201]
    assert failed
    for answer in failed:
        assert answer.status == 500
        assert "the disk failed" in error_of(answer.body)["message"]
    (root / "away").rename(root / folder)
    await push(one, A, made, "v1")
    assert await push_blob(one, A, b"new")
    await served([one], A, "v1", made)
