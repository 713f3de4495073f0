"""What somebody could do to harm others: to their tags, their content, their waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.api import incoming
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import NameInvalid, NameUnknown
from mirror.oci.names import MAX_NAME, digest_of
from mirror.registry import lists
from mirror.registry.blobs import BlobService
from mirror.registry.manifests import ManifestService
from mirror.upstream.router import Router
from tests.connection import connect
from tests.fake_upstream import INDEX, FakeUpstream
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import blob_path, cached, manifest_path, until
from tests.lingering import linger, lingered
from tests.metadata import HERE, LOCAL, push, some_artifact, some_digest
from tests.pushed import (
    Made,
    delete,
    make_artifact,
    make_image,
    make_index,
    pages,
    push_blob,
    put_manifest,
    served,
    unknown,
)
from tests.pushed import push as push_image

A = "local/a"
KIND = "application/vnd.example.kind"


@pytest.fixture
async def two(root: Path, hub: FakeUpstream) -> AsyncIterator[list[Mirror]]:
    """Two workers on one root, with the hub as ``up`` and as ``other``."""
    upstreams = {"up": {"url": hub.url}, "other": {"url": hub.url}}
    async with mirrors(make_config(root, upstreams), 2) as started:
        yield started


@pytest.fixture
async def metadata(tmp_path: Path) -> AsyncIterator[SqliteMetadata]:
    opened = SqliteMetadata(tmp_path / "metadata.db", "an id")
    await opened.start()
    yield opened
    await opened.close()


# ---- names ----


def test_no_pattern_is_asked_about_a_name_longer_than_names_are() -> None:
    """Patterns with several ``**`` try each way to share out the parts of a name: of a request line, for ever."""
    asked: list[str] = []

    def packaged(name: str) -> bool:
        asked.append(name)
        return False

    router = Router({}, None, ["**/a/**/b"], packaged=packaged)
    longest = "a/" * (MAX_NAME // 2) + "b"
    assert router.route(ns=None, host=None, prefix=None, name=longest).name == longest
    assert not asked, "the pattern is asked first"
    with pytest.raises(NameUnknown):
        router.route(ns=None, host=None, prefix=None, name="other/c")
    assert asked == ["other/c"]
    with pytest.raises(NameInvalid):
        router.route(ns=None, host=None, prefix=None, name="a/" * 4000 + "c")
    assert asked == ["other/c"]


# ---- conditions ----


@pytest.mark.parametrize("order", [("new", "v1"), ("v1", "new")])
async def test_a_condition_protects_every_tag_of_a_push(two: list[Mirror], order: tuple[str, str]) -> None:
    old, fresh = make_index(), make_index(annotations={"n": "1"})
    await push_image(two[0], A, old, "v1")
    query = "?" + "&".join(f"tag={tag}" for tag in order)
    for headers in ({"If_None_Match": "*"}, {"If_Match": f'"{old.digest}"'}):
        answer = await put_manifest(two[1], A, fresh.digest + query, fresh, **headers)
        assert (answer.status, answer.code) == (412, "DENIED")
        await served(two, A, "v1", old)
        await unknown(two, manifest_path("new", A))
        await unknown(two, manifest_path(fresh.digest, A))
    answer = await put_manifest(two[1], A, f"{fresh.digest}?tag=new&tag=newer", fresh, If_None_Match="*")
    assert answer.status == 201
    for tag in ("new", "newer"):
        await served(two, A, tag, fresh)


# ---- lists ----


async def listed(worker: Mirror, subject: str, query: str = "") -> list[str]:
    found = await pages(worker, f"/v2/{A}/referrers/{subject}{query}", "manifests")
    return [entry["digest"] for page in found for entry in page]


async def test_an_index_of_strangers_costs_little(two: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each child of an index under a fallback tag was asked for like a pull, tens of thousands of them, here or not."""
    asked: list[str] = []
    get = ManifestService.get

    async def noted(self: ManifestService, reference: Any, **arguments: Any) -> Any:
        asked.append(str(reference.target))
        return await get(self, reference, **arguments)

    subject = str(digest_of(b"subject"))
    here = [make_image(f"{n}".encode(), artifactType=KIND if n % 2 else None) for n in range(6)]
    for made in here:
        await push_image(two[0], A, made)
    strangers = [Made(f"{n}".encode(), INDEX) for n in range(500)]
    tag = subject.replace(":", "-")
    await push_image(two[0], A, make_index(*strangers, *here), tag)
    monkeypatch.setattr(ManifestService, "get", noted)
    expected = sorted(made.digest for made in here)
    assert await listed(two[1], subject) == expected
    assert sorted(asked) == sorted([tag, *expected])
    asked.clear()
    answer = await two[1].get(f"/v2/{A}/referrers/{subject}?n=1")
    assert [entry["digest"] for entry in json.loads(answer.body)["manifests"]] == expected[:1]
    assert asked == [tag, *expected[:2]], "one more, to know whether there are more"
    for n in (1, 2, 4, 6, 9):
        assert await listed(two[1], subject, f"?n={n}") == expected
        kinds = await listed(two[1], subject, f"?n={n}&artifactType={KIND}")
        assert kinds == sorted(made.digest for made in here[1::2])


async def test_no_more_annotations_are_read_than_a_page_holds(
    two: list[Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred referrers with 4 MiB of annotations each were in memory at once, and in the way of everybody."""
    read: list[int] = []
    referrers = SqliteMetadata.referrers

    async def noted(self: SqliteMetadata, *arguments: Any, **more: Any) -> Any:
        found = await referrers(self, *arguments, **more)
        read.append(len(found))
        return found

    monkeypatch.setattr(SqliteMetadata, "referrers", noted)
    monkeypatch.setattr(lists, "MOST_BYTES", 10_000)
    subject = make_image(b"subject")
    made = [make_artifact(subject, n=n, text="x" * 4000) for n in range(20)]
    for one in made:
        await push_image(two[0], A, one)
    assert await listed(two[1], subject.digest) == sorted(one.digest for one in made)
    assert max(read) == 3, "the third is one too many, so there is another page"


async def test_rows_of_text_are_read_until_there_is_no_room(metadata: SqliteMetadata) -> None:
    for n in range(9):
        await push(metadata, LOCAL, some_artifact(some_digest(), n, text="x" * 1000))
    ask = metadata.referrers
    whole = await ask(LOCAL, some_digest(), artifact_type=None, n=10)
    assert len(whole) == 9
    assert await ask(LOCAL, some_digest(), artifact_type=None, n=10, room=10**6) == whole
    assert await ask(LOCAL, some_digest(), artifact_type=None, n=10, room=2500) == whole[:3]
    assert await ask(LOCAL, some_digest(), artifact_type=None, n=10, room=0) == whole[:1]
    await metadata.push_blob(LOCAL, some_digest(99))  # the cursor that was left holds nothing back


async def test_the_annotations_of_manifests_are_not_in_the_tree_of_their_keys(
    metadata: SqliteMetadata, tmp_path: Path
) -> None:
    """To compare a key with a row that is longer than a page SQLite reads all of the row, megabytes at each step."""
    await push(metadata, LOCAL, some_artifact(some_digest(), 1, text="x" * 1000))
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db")) as database:
        assert len(database.execute("SELECT rowid FROM pushed").fetchall()) == 1, "keys have a tree of their own"
        plan = database.execute("EXPLAIN QUERY PLAN SELECT 1 FROM pushed WHERE repository = '' AND digest = ''")
        assert "COVERING INDEX" in plan.fetchone()[3]


# ---- who makes others wait ----


async def test_who_stops_sending_a_manifest_is_told_so(two: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    """It had the connection, and what it had sent so far the memory, for as long as it liked."""
    monkeypatch.setattr(incoming, "WHOLE_WITHIN", 0.3)
    linger(monkeypatch)
    async with connect(two[0].url) as client:
        answer = await client.ask(
            "PUT", manifest_path("v1", A), body=b"{", Content_Length="9999", Content_Type="application/json"
        )
        assert (answer.status, answer.code) == (400, "BLOB_UPLOAD_INVALID")
        assert await client.end() == (b"", "fin")
    await lingered()
    await unknown(two, manifest_path("v1", A))
    made = make_index()
    await push_image(two[0], A, made, "v1")  # who sends it is not
    await served(two, A, "v1", made)


# ---- what happens between two steps ----


async def test_a_change_that_was_cancelled_is_waited_for(metadata: SqliteMetadata, tmp_path: Path) -> None:
    """It happens all the same; the lease it happens under must not be released before."""
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        durable = asyncio.create_task(metadata.push_blob(LOCAL, some_digest(1)))
        await asyncio.sleep(0)
        mere = asyncio.create_task(metadata.grant(HERE, some_digest(2), public=False))
        await asyncio.sleep(0)
        durable.cancel()
        mere.cancel()
        await asyncio.wait([mere])
        for _ in range(10):
            await asyncio.sleep(0)
        assert not durable.done()
        other.execute("ROLLBACK")
    with pytest.raises(asyncio.CancelledError):
        await durable
    assert metadata.may_read(LOCAL, some_digest(1))


async def test_a_manifest_deleted_while_it_is_looked_for_is_unknown(
    two: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its row and its file another process can delete it: that is no damage to be reported."""
    made, lost = make_index(), make_index(annotations={"n": "1"})
    await push_image(two[0], A, made)
    await push_image(two[0], A, lost)
    assert (await delete(two[0], manifest_path(made.digest, A))).status == 202
    (root / "blobs/sha256" / lost.digest.partition(":")[2]).unlink()
    holds, seen = SqliteMetadata.holds, set()

    def stale(self: SqliteMetadata, repository: Any, digest: Any) -> str | None:
        """Say once what was so before."""
        now = holds(self, repository, digest)
        if digest not in seen:
            seen.add(digest)
            return INDEX
        return now

    monkeypatch.setattr(SqliteMetadata, "holds", stale)
    answer = await two[1].get(manifest_path(made.digest, A))
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    answer = await two[1].get(manifest_path(lost.digest, A))
    assert (answer.status, answer.code) == (500, "UNAVAILABLE"), "this one is damage"
    assert len(seen) == 2


async def test_a_blob_purged_while_it_is_confirmed_is_fetched_anew(
    two: list[Mirror], hub: FakeUpstream, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its upstream was said to answer with something else, as there was nothing to compare the answer with."""
    data = b"a layer" * 1000
    digest = hub.add_blob("team/app", data)
    path = blob_path(digest)
    assert (await two[0].get(path)).body == data
    await until(lambda: cached(root), "it is kept")
    assert (await delete(two[0], path)).status == 202
    with monkeypatch.context() as patch:
        patch.setattr(BlobService, "has", lambda *_: True)  # as it was a moment before
        answer = await two[1].get(path, headers={"If-None-Match": f'"{digest}"'})
    assert (answer.status, answer.body) == (200, data), answer
    await until(lambda: cached(root), "it is kept again")
    answer = await two[1].get(path, headers={"If-None-Match": f'"{digest}"'})
    assert answer.status == 304


async def test_a_manifest_that_rotted_is_made_right_by_pushing_it_again(two: list[Mirror], root: Path) -> None:
    made = make_image(b"layer")
    await push_image(two[0], A, made, "v1")
    await push_blob(two[0], A, b"layer")
    file = root / "blobs/sha256" / made.digest.partition(":")[2]
    file.write_bytes(made.raw[:-1] + b" ")
    assert (await two[1].get(manifest_path("v1", A))).status == 500
    assert (await put_manifest(two[0], A, "v1", made)).status == 201
    await served(two, A, "v1", made)
    inode = file.stat().st_ino
    assert (await put_manifest(two[0], A, "v1", made)).status == 201
    assert file.stat().st_ino == inode, "what is right is left as it is"


# ---- web pages ----


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_web_page_does_not_write_to_a_registry_without_users(method: str, tmp_path: Path) -> None:
    """Any page a browser shows could send that to this machine; no client of registries sends Origin."""
    path = {
        "POST": "/v2/local/app/blobs/uploads/",
        "PUT": "/v2/local/app/manifests/v1",
        "DELETE": "/v2/local/app/manifests/v1",
    }[method]
    async with mirror(make_config(tmp_path / "root", {})) as one:
        answer = await one.ask(method, path, headers={"Origin": "https://page.example"}, data=b"{}")
        assert (answer.status, answer.code) == (403, "DENIED")
        assert (await one.ask(method, path, data=b"{}")).status in (202, 400, 404)
        assert (await one.get("/v2/_catalog", headers={"Origin": "https://page.example"})).status == 200


async def test_what_was_pushed_is_no_page_of_ours(tmp_path: Path) -> None:
    async with mirror(make_config(tmp_path / "root", {})) as one:
        path = "/v2/local/app/manifests/v1"
        page = b'{"x": "<script>alert(1)</script>"}'
        assert (await one.ask("PUT", path, data=page, headers={"Content-Type": "text/html"})).status == 201
        answer = await one.get(path)
        assert (answer.body, answer.headers["Content-Type"]) == (page, "text/html")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
