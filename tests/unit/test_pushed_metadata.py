"""The contract of the metadata for what is pushed: changes that happen whole or not at all, lists, history."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from itertools import pairwise
from typing import Any

import pytest

from mirror.metadata.base import Condition, TagMove
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import ManifestBlobUnknown, PreconditionFailed
from mirror.oci.manifest import Descriptor, parse_manifest
from mirror.oci.names import Digest, Repository, RepositoryName, Tag, digest_of
from tests.metadata import (
    HERE,
    IMAGE,
    LOCAL,
    OTHER_LOCAL,
    TAG,
    THERE,
    Open,
    push,
    some_artifact,
    some_digest,
    some_manifest,
    some_tag,
)

KIND = "application/vnd.example.sbom"


def local(name: str) -> Repository:
    return Repository(None, RepositoryName(name))


def up(name: str) -> Repository:
    return Repository("up", RepositoryName(name))


def condition(*, match: Collection[Any] | None = None, none: Collection[Any] | None = None) -> Condition:
    return Condition(
        match=None if match is None else frozenset(map(str, match)),
        none=None if none is None else frozenset(map(str, none)),
    )


async def moves(metadata: SqliteMetadata, repository: Repository, tag: str = TAG) -> list[tuple[Digest | None, str]]:
    """Return a tag's history, the oldest first, without times and numbers."""
    found = await metadata.history(repository, Tag(tag), n=1000)
    return [(move.digest, move.origin) for move in reversed(found)]


# ---- blobs ----


async def test_a_pushed_blob_is_its_repository_s_own(metadata: SqliteMetadata) -> None:
    digest = some_digest()
    assert not metadata.exists(LOCAL)
    assert not metadata.pushed_somewhere(digest)
    for _ in range(2):
        await metadata.push_blob(LOCAL, digest)
        assert metadata.may_read(LOCAL, digest)
        assert metadata.exists(LOCAL)
        assert metadata.pushed_somewhere(digest)
    assert metadata.holds(LOCAL, digest) is None, "a blob is no manifest"
    for other in (OTHER_LOCAL, HERE):
        assert not metadata.may_read(other, digest)
        assert not metadata.exists(other)
    assert not metadata.pushed_somewhere(some_digest(2))


async def test_what_was_pulled_through_was_not_pushed_somewhere(metadata: SqliteMetadata) -> None:
    """Else a mount without a source would hand out what an upstream keeps for some."""
    digest = some_digest()
    for repository in (HERE, Repository("a", RepositoryName("x")), Repository("z9", RepositoryName("x"))):
        await metadata.grant(repository, digest, public=True)
    assert not metadata.pushed_somewhere(digest)
    assert await metadata.unused(digest)
    await metadata.push_blob(local("zzz/last"), digest)
    assert metadata.pushed_somewhere(digest)


async def test_a_pushed_manifest_is_no_blob_to_mount(metadata: SqliteMetadata) -> None:
    digest = await push(metadata, LOCAL, some_manifest(), "v1")
    assert not metadata.pushed_somewhere(digest)
    assert not metadata.may_read(LOCAL, digest)
    assert metadata.holds(LOCAL, digest) == IMAGE


# ---- manifests ----


async def test_a_pushed_manifest_is_held_by_its_repository_and_tagged(metadata: SqliteMetadata) -> None:
    manifest = some_manifest((some_digest(1), 10))
    digest = manifest.descriptor.digest
    assert metadata.holds(LOCAL, digest) is None
    assert metadata.media_type(digest) is None
    await push(metadata, LOCAL, manifest, "v1", at=77.25)
    assert metadata.holds(LOCAL, digest) == IMAGE
    assert metadata.media_type(digest) is None, "that is what upstreams say"
    assert metadata.expected_size(LOCAL, some_digest(1)) is None, "of our own blobs nobody has to guess the size"
    assert metadata.tag(LOCAL, TAG) == some_tag(
        repository=LOCAL,
        digest=digest,
        size=len(manifest.raw),
        origin="pushed",
        checked_at=77.25,
        fresh_until=77.25,
    )
    for other in (OTHER_LOCAL, HERE):
        assert metadata.holds(other, digest) is None
        assert metadata.tag(other, TAG) is None
        assert not metadata.may_read(other, digest)
        assert not metadata.exists(other)


async def test_a_manifest_without_tags_and_one_with_many(metadata: SqliteMetadata) -> None:
    bare = await push(metadata, LOCAL, some_manifest())
    assert metadata.holds(LOCAL, bare)
    assert metadata.exists(LOCAL)
    assert await metadata.tags(LOCAL, n=10) == []
    names = [f"v{n:03}" for n in range(100)]
    tagged = await push(metadata, LOCAL, some_manifest((some_digest(), 1)), *names)
    assert await metadata.tags(LOCAL, n=1000) == names
    for name in names:
        record = metadata.tag(LOCAL, Tag(name))
        assert record is not None
        assert record.digest == tagged


async def test_a_push_that_misses_blobs_names_them_all_and_changes_nothing(metadata: SqliteMetadata) -> None:
    before = await push(metadata, OTHER_LOCAL, some_manifest(), "v1")
    await metadata.push_blob(OTHER_LOCAL, some_digest(2))
    await metadata.push_blob(LOCAL, some_digest(4))  # of another repository
    await metadata.grant(HERE, some_digest(3), public=True)  # of an upstream's
    digests = [some_digest(n) for n in (1, 2, 3, 4, 3, 1)]
    manifest = some_manifest(*((digest, 1) for digest in digests))
    new = manifest.descriptor.digest
    with pytest.raises(ManifestBlobUnknown) as caught:
        await push(metadata, OTHER_LOCAL, manifest, "v1", "v2", required=digests)
    assert caught.value.detail == [{"digest": str(some_digest(n))} for n in (1, 3, 4)]
    assert caught.value.status == 400
    assert "3 of" in caught.value.message
    assert metadata.holds(OTHER_LOCAL, new) is None
    assert metadata.media_type(new) is None
    assert metadata.expected_size(OTHER_LOCAL, some_digest(2)) is None
    assert await metadata.tags(OTHER_LOCAL, n=10) == ["v1"]
    assert await moves(metadata, OTHER_LOCAL) == [(before, "pushed")]
    for n in (1, 3, 4):
        await metadata.push_blob(OTHER_LOCAL, some_digest(n))
    await push(metadata, OTHER_LOCAL, manifest, "v1", "v2", required=digests)
    assert metadata.holds(OTHER_LOCAL, new) == IMAGE
    assert await moves(metadata, OTHER_LOCAL) == [(before, "pushed"), (new, "pushed")]


async def test_a_refused_push_makes_no_repository(metadata: SqliteMetadata) -> None:
    with pytest.raises(ManifestBlobUnknown):
        await push(metadata, LOCAL, some_manifest(), "v1", required=[some_digest()])
    assert not metadata.exists(LOCAL)
    assert await metadata.repositories(n=10) == []
    with pytest.raises(PreconditionFailed):
        await push(metadata, LOCAL, some_manifest(), "v1", condition=condition(match=["*"]))
    assert not metadata.exists(LOCAL)
    assert await moves(metadata, LOCAL) == []


async def test_what_is_pulled_and_pushed_is_known_by_both(metadata: SqliteMetadata) -> None:
    """The two do not get into each other's way, whichever comes first."""
    manifest = some_manifest((some_digest(), 1))
    digest = manifest.descriptor.digest
    await metadata.put_manifest(HERE, manifest, public=False)
    await push(metadata, LOCAL, manifest, "v1")
    await metadata.put_manifest(HERE, manifest, public=False)
    assert metadata.may_read(HERE, digest)
    assert metadata.tag(HERE, TAG) is None
    assert metadata.holds(LOCAL, digest) == metadata.media_type(digest) == IMAGE
    assert await metadata.delete_manifest(LOCAL, digest, condition=None, at=1.0)
    assert metadata.may_read(HERE, digest)
    assert metadata.media_type(digest) == IMAGE


async def test_what_a_manifest_is_called_last_holds_for_all_its_tags_in_its_repository(
    metadata: SqliteMetadata,
) -> None:
    first, last = "application/vnd.example.a", "application/vnd.example.b"
    manifests = [parse_manifest(b"{}", content_type=media_type) for media_type in (first, last)]
    digest = manifests[0].descriptor.digest
    await push(metadata, LOCAL, manifests[0], "v1")
    await push(metadata, LOCAL, some_manifest(), "other")
    await push(metadata, OTHER_LOCAL, manifests[0], "v1")
    await push(metadata, LOCAL, manifests[1], "v2")
    assert metadata.holds(LOCAL, digest) == last
    assert metadata.holds(OTHER_LOCAL, digest) == first
    tags = [(LOCAL, "v1", last), (LOCAL, "v2", last), (LOCAL, "other", IMAGE), (OTHER_LOCAL, "v1", first)]
    for repository, tag, media_type in tags:
        record = metadata.tag(repository, Tag(tag))
        assert record is not None
        assert record.media_type == media_type, (repository, tag)
    assert await moves(metadata, LOCAL) == [(digest, "pushed")]


# ---- conditions ----

OLD, NEW = some_manifest(), some_manifest((some_digest(), 1))
FIRST, SECOND = OLD.descriptor.digest, NEW.descriptor.digest

HOLDS = [
    condition(match=[FIRST]),
    condition(match=[some_digest(9), FIRST]),
    condition(match=["*"]),
    condition(none=[SECOND]),
    condition(none=[]),
    condition(match=["*"], none=[SECOND]),
]
FAILS = [
    condition(match=[SECOND]),
    condition(match=[]),
    condition(none=["*"]),
    condition(none=[SECOND, FIRST]),
    condition(match=[FIRST], none=[FIRST]),
]


@pytest.mark.parametrize("given", HOLDS, ids=str)
async def test_a_condition_on_a_tag_that_holds(metadata: SqliteMetadata, given: Condition) -> None:
    await push(metadata, LOCAL, OLD, "v1")
    await push(metadata, LOCAL, NEW, "v1", condition=given)
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed"), (SECOND, "pushed")]


@pytest.mark.parametrize("given", FAILS, ids=str)
async def test_a_condition_on_a_tag_that_does_not_hold(metadata: SqliteMetadata, given: Condition) -> None:
    await push(metadata, LOCAL, OLD, "v1")
    with pytest.raises(PreconditionFailed) as caught:
        await push(metadata, LOCAL, NEW, "v1", condition=given)
    assert caught.value.status == 412
    assert str(FIRST) in caught.value.message
    assert metadata.holds(LOCAL, SECOND) is None
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed")]


async def test_a_condition_on_a_tag_that_is_not_there(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, "other")  # the manifest is here, the tag is not
    for given in (condition(match=["*"]), condition(match=[FIRST])):
        with pytest.raises(PreconditionFailed):
            await push(metadata, LOCAL, OLD, "v1", condition=given)
        assert metadata.tag(LOCAL, TAG) is None
    await push(metadata, LOCAL, OLD, "v1", condition=condition(none=["*"]))
    assert metadata.tag(LOCAL, TAG) is not None


async def test_a_condition_on_a_digest(metadata: SqliteMetadata) -> None:
    with pytest.raises(PreconditionFailed):
        await push(metadata, LOCAL, OLD, condition=condition(match=["*"]))
    assert metadata.holds(LOCAL, FIRST) is None
    await push(metadata, LOCAL, OLD, condition=condition(none=["*"]))
    assert metadata.holds(LOCAL, FIRST)
    with pytest.raises(PreconditionFailed):
        await push(metadata, LOCAL, OLD, condition=condition(none=["*"]))
    await push(metadata, LOCAL, OLD, condition=condition(match=[FIRST]))
    await push(metadata, OTHER_LOCAL, OLD, condition=condition(none=["*"]))  # it is another repository's


async def test_of_many_who_make_a_tag_if_it_is_not_there_one_does(open_metadata: Open) -> None:
    stores = [await open_metadata() for _ in range(4)]
    manifests = [some_manifest((some_digest(n), n)) for n in range(20)]
    results = await asyncio.gather(
        *(
            push(stores[n % 4], LOCAL, manifest, "v1", condition=condition(none=["*"]))
            for n, manifest in enumerate(manifests)
        ),
        return_exceptions=True,
    )
    won = [result for result in results if isinstance(result, Digest)]
    assert len(won) == 1
    assert sum(isinstance(result, PreconditionFailed) for result in results) == 19
    assert await moves(stores[0], LOCAL) == [(won[0], "pushed")]
    held = [manifest for manifest in manifests if stores[0].holds(LOCAL, manifest.descriptor.digest)]
    assert [manifest.descriptor.digest for manifest in held] == won


# ---- lists ----

NAMES = ["0", "10", "9", "A", "B", "Z", "_", "a", "a-b", "a.b", "aB", "a_b", "ab", "b", "z"]
"""In the order of their bytes."""


async def pages(ask: Callable[..., Awaitable[list[Any]]], n: int, last: Callable[[Any], Any] = str) -> list[list[Any]]:
    """Read a list page by page, until one is short."""
    found = [await ask(n=n)]
    while len(found[-1]) == n:
        found.append(await ask(n=n, last=last(found[-1][-1])))
        assert len(found) < 100, "it does not end"
    return found


def test_the_names_are_in_the_order_of_their_bytes() -> None:
    assert sorted(NAMES, key=str.encode) == NAMES


@pytest.mark.parametrize("n", [1, 2, 4, 15, 16])
async def test_tags_come_in_the_order_of_their_bytes_page_by_page(metadata: SqliteMetadata, n: int) -> None:
    for name in reversed(NAMES):
        await push(metadata, LOCAL, OLD, name)
    await push(metadata, local("team/app2"), OLD, "elsewhere")
    await push(metadata, local("team"), OLD, "elsewhere")
    found = await pages(lambda **page: metadata.tags(LOCAL, **page), n)
    assert [name for page in found for name in page] == NAMES
    assert all(len(page) == n for page in found[:-1])


async def test_a_page_of_tags_begins_after_a_name_that_need_not_be_there(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, *NAMES)
    assert await metadata.tags(LOCAL, n=2, last="C") == ["Z", "_"]
    assert await metadata.tags(LOCAL, n=2, last="a") == ["a-b", "a.b"]
    assert await metadata.tags(LOCAL, n=2, last="z") == []
    assert await metadata.tags(LOCAL, n=0) == []
    assert await metadata.tags(OTHER_LOCAL, n=2) == []


async def test_tags_of_an_upstream_s_repository_are_listed_too(metadata: SqliteMetadata) -> None:
    await metadata.put_tag(some_tag())
    await metadata.put_tag(some_tag(tag=Tag("V2")))
    assert await metadata.tags(HERE, n=9) == ["V2", "v1"]


@pytest.mark.parametrize("n", [1, 3, 100])
async def test_repositories_come_in_the_order_of_their_bytes_page_by_page(metadata: SqliteMetadata, n: int) -> None:
    for name in ("b", "a/z", "a-b", "up", "zz", "a"):
        await metadata.push_blob(local(name), some_digest())
    await push(metadata, local("m"), OLD)
    await metadata.put_tag(some_tag())
    await metadata.grant(THERE, some_digest(), public=True)
    await metadata.put_manifest(Repository("other", RepositoryName("i")), OLD, public=False)
    expected = ["a", "a-b", "a/z", "b", "m", "other/i", "up", "up/team/app", "up/x/y", "zz"]
    found = await pages(metadata.repositories, n)
    assert [name for page in found for name in page] == expected
    assert all(len(page) == n for page in found[:-1])


async def test_a_name_that_an_upstream_has_and_we_have_is_listed_once_until_both_are_gone(
    metadata: SqliteMetadata,
) -> None:
    ours, theirs = local("up/app"), up("app")
    assert str(ours) == str(theirs)
    await metadata.put_tag(some_tag(repository=theirs))
    assert metadata.exists(theirs)
    assert not metadata.exists(ours)
    await metadata.push_blob(ours, some_digest())
    await metadata.push_blob(local("up/b"), some_digest())
    assert await metadata.repositories(n=2) == ["up/app", "up/b"]
    await metadata.forget_tag(theirs, TAG)
    assert not metadata.exists(theirs)
    assert metadata.exists(ours)
    assert await metadata.repositories(n=2) == ["up/app", "up/b"]
    await metadata.delete_blob(ours, some_digest())
    assert await metadata.repositories(n=2) == ["up/b"]


# ---- referrers ----


async def test_referrers_are_described_as_they_were_pushed(metadata: SqliteMetadata) -> None:
    plain = some_artifact(FIRST)
    rich = some_artifact(FIRST, 1, KIND, **{"org.example.a": "ü", "b": ""})
    for manifest in (plain, rich, some_artifact(SECOND, 2), OLD):
        await push(metadata, LOCAL, manifest)
    await push(metadata, OTHER_LOCAL, some_artifact(FIRST, 3))
    found = await metadata.referrers(LOCAL, FIRST, artifact_type=None, n=10)
    expected = [
        Descriptor(media_type=IMAGE, digest=plain.descriptor.digest, size=len(plain.raw)),
        Descriptor(
            media_type=IMAGE,
            digest=rich.descriptor.digest,
            size=len(rich.raw),
            artifact_type=KIND,
            annotations={"org.example.a": "ü", "b": ""},
        ),
    ]
    assert found == sorted(expected, key=lambda one: str(one.digest))
    assert await metadata.referrers(LOCAL, some_digest(), artifact_type=None, n=10) == []


async def test_a_manifest_need_not_be_here_to_have_referrers(metadata: SqliteMetadata) -> None:
    digest = await push(metadata, LOCAL, some_artifact(FIRST))
    assert metadata.holds(LOCAL, FIRST) is None
    found = await metadata.referrers(LOCAL, FIRST, artifact_type=None, n=10)
    assert [one.digest for one in found] == [digest]
    await metadata.delete_manifest(LOCAL, digest, condition=None, at=1.0)
    assert await metadata.referrers(LOCAL, FIRST, artifact_type=None, n=10) == []


async def test_a_pulled_manifest_is_no_referrer(metadata: SqliteMetadata) -> None:
    await metadata.put_manifest(HERE, some_artifact(FIRST), public=True)
    for repository in (HERE, LOCAL):
        assert await metadata.referrers(repository, FIRST, artifact_type=None, n=10) == []


@pytest.mark.parametrize("n", [1, 3, 12, 13])
async def test_referrers_come_in_the_order_of_digests_page_by_page(metadata: SqliteMetadata, n: int) -> None:
    kinds = [None, KIND, "application/vnd.example.signature"]
    manifests = [some_artifact(FIRST, k, kinds[k % 3]) for k in range(12)]
    for manifest in manifests:
        await push(metadata, LOCAL, manifest)
    for kind in (None, *kinds[1:], "application/vnd.example.none"):

        async def ask(kind: str | None = kind, **page: Any) -> list[Descriptor]:
            return await metadata.referrers(LOCAL, FIRST, artifact_type=kind, **page)

        found = await pages(ask, n, lambda one: str(one.digest))
        wanted = [one.descriptor for one in manifests if kind is None or one.descriptor.artifact_type == kind]
        assert [one for page in found for one in page] == sorted(wanted, key=lambda one: str(one.digest))
        assert all(len(page) == n for page in found[:-1])


# ---- deletes ----


async def test_a_deleted_tag_is_gone_and_its_manifest_stays(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, "v1", "v2")
    assert await metadata.delete_tag(LOCAL, TAG, condition=None, at=60.0)
    assert metadata.tag(LOCAL, TAG) is None
    assert metadata.tag(LOCAL, Tag("v2"))
    assert metadata.holds(LOCAL, FIRST)
    assert not await metadata.delete_tag(LOCAL, TAG, condition=None, at=70.0)
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed"), (None, "pushed")]
    assert await moves(metadata, LOCAL, "v2") == [(FIRST, "pushed")]


async def test_a_deleted_manifest_takes_its_tags_along(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, "a", "b")
    await push(metadata, LOCAL, NEW, "c")
    await push(metadata, OTHER_LOCAL, OLD, "a")
    assert await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=60.0)
    assert metadata.holds(LOCAL, FIRST) is None
    assert await metadata.tags(LOCAL, n=9) == ["c"]
    assert metadata.holds(LOCAL, SECOND)
    assert metadata.holds(OTHER_LOCAL, FIRST)
    assert await metadata.tags(OTHER_LOCAL, n=9) == ["a"]
    for tag in ("a", "b"):
        assert await moves(metadata, LOCAL, tag) == [(FIRST, "pushed"), (None, "pushed")]
    assert await moves(metadata, LOCAL, "c") == [(SECOND, "pushed")]
    assert not await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=70.0)
    assert len(await moves(metadata, LOCAL, "a")) == 2


async def test_a_blob_is_deleted_from_its_repository_alone(metadata: SqliteMetadata) -> None:
    digest = some_digest()
    for repository in (LOCAL, OTHER_LOCAL):
        await metadata.push_blob(repository, digest)
    await metadata.grant(HERE, digest, public=False)
    assert await metadata.delete_blob(LOCAL, digest)
    assert not metadata.may_read(LOCAL, digest)
    assert metadata.may_read(OTHER_LOCAL, digest)
    assert metadata.may_read(HERE, digest)
    assert not await metadata.delete_blob(LOCAL, digest)


@pytest.mark.parametrize("given", HOLDS, ids=str)
async def test_deletes_whose_condition_holds(metadata: SqliteMetadata, given: Condition) -> None:
    await push(metadata, LOCAL, OLD, "v1")
    assert await metadata.delete_tag(LOCAL, TAG, condition=given, at=60.0)
    assert await metadata.delete_manifest(LOCAL, FIRST, condition=given, at=60.0)
    assert metadata.tag(LOCAL, TAG) is None
    assert metadata.holds(LOCAL, FIRST) is None


@pytest.mark.parametrize("given", FAILS, ids=str)
async def test_deletes_whose_condition_does_not_hold(metadata: SqliteMetadata, given: Condition) -> None:
    await push(metadata, LOCAL, OLD, "v1")
    with pytest.raises(PreconditionFailed):
        await metadata.delete_tag(LOCAL, TAG, condition=given, at=60.0)
    with pytest.raises(PreconditionFailed):
        await metadata.delete_manifest(LOCAL, FIRST, condition=given, at=60.0)
    assert metadata.tag(LOCAL, TAG)
    assert metadata.holds(LOCAL, FIRST)
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed")]


async def test_a_repository_is_listed_until_nothing_of_it_is_left(metadata: SqliteMetadata) -> None:
    """Its blobs keep it, its manifests do, and so do both after all tags are gone."""

    async def known() -> bool:
        listed = await metadata.repositories(n=10) == ["team/app"]
        assert metadata.exists(LOCAL) is listed
        return listed

    await metadata.push_blob(LOCAL, some_digest())
    await push(metadata, LOCAL, OLD, "v1")
    await metadata.delete_tag(LOCAL, TAG, condition=None, at=1.0)
    assert await known()
    await metadata.delete_blob(LOCAL, some_digest())
    assert await known()
    await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=1.0)
    assert not await known()
    await metadata.push_blob(LOCAL, some_digest())
    assert await known()
    await push(metadata, LOCAL, OLD, "v1")
    await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=1.0)
    assert await known()
    await metadata.delete_blob(LOCAL, some_digest())
    assert not await known()


async def test_what_is_not_there_is_deleted_without_harm(metadata: SqliteMetadata) -> None:
    await metadata.push_blob(OTHER_LOCAL, some_digest())
    for given in (None, condition(match=["*"]), condition(none=["*"])):
        assert not await metadata.delete_tag(LOCAL, TAG, condition=given, at=1.0)
        assert not await metadata.delete_manifest(LOCAL, FIRST, condition=given, at=1.0)
    assert not await metadata.delete_blob(LOCAL, some_digest())
    assert await moves(metadata, LOCAL) == []
    assert await metadata.repositories(n=10) == ["local/b"]


async def test_content_is_unused_when_no_local_repository_has_it(metadata: SqliteMetadata) -> None:
    blob = some_digest()
    assert await metadata.unused(blob)
    await metadata.push_blob(LOCAL, blob)
    await metadata.push_blob(OTHER_LOCAL, blob)
    await metadata.delete_blob(LOCAL, blob)
    assert not await metadata.unused(blob)
    await metadata.delete_blob(OTHER_LOCAL, blob)
    assert await metadata.unused(blob)
    await push(metadata, LOCAL, OLD)
    await push(metadata, OTHER_LOCAL, OLD)
    await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=1.0)
    assert not await metadata.unused(FIRST)
    await metadata.delete_manifest(OTHER_LOCAL, FIRST, condition=None, at=1.0)
    assert await metadata.unused(FIRST)


async def test_what_is_asked_right_after_a_change_sees_it(metadata: SqliteMetadata) -> None:
    """In the same transaction too: a file is removed by this answer."""
    _, unused = await asyncio.gather(metadata.push_blob(LOCAL, some_digest()), metadata.unused(some_digest()))
    assert not unused
    _, unused = await asyncio.gather(metadata.delete_blob(LOCAL, some_digest()), metadata.unused(some_digest()))
    assert unused


# ---- purging ----


async def test_purging_takes_it_from_upstreams_repositories_and_from_no_local_one(metadata: SqliteMetadata) -> None:
    manifest = some_manifest((some_digest(), 1))
    digest = manifest.descriptor.digest
    await metadata.put_manifest(HERE, manifest, public=True)
    await metadata.put_manifest(THERE, manifest, public=False)
    await metadata.push_blob(LOCAL, digest)
    await push(metadata, LOCAL, manifest, "v1")
    await metadata.grant(HERE, some_digest(5), public=True)
    for repository in (HERE, THERE):
        await metadata.put_tag(some_tag(repository=repository, digest=digest, tag=Tag("a")))
    await metadata.put_tag(some_tag(digest=digest, tag=Tag("b")))
    await metadata.put_tag(some_tag(digest=some_digest(5), tag=Tag("c")))
    await metadata.purge(HERE, digest)
    for repository in (HERE, THERE, up("third")):
        assert not metadata.may_read(repository, digest), "neither a right of its own nor a public one"
    assert metadata.media_type(digest) is None
    assert await metadata.tags(HERE, n=9) == ["c"]
    assert await metadata.tags(THERE, n=9) == ["a"]
    assert metadata.may_read(HERE, some_digest(5))
    assert metadata.may_read(LOCAL, digest)
    assert metadata.holds(LOCAL, digest) == IMAGE
    assert metadata.tag(LOCAL, TAG)
    assert metadata.pushed_somewhere(digest)
    assert await moves(metadata, HERE, "b") == [(digest, "pulled"), (None, "pulled")]
    assert await moves(metadata, LOCAL) == [(digest, "pushed")]
    await metadata.put_manifest(HERE, manifest, public=True)  # fetched anew
    assert metadata.may_read(THERE, digest)
    assert metadata.media_type(digest) == IMAGE


async def test_a_repository_that_purging_leaves_empty_is_not_listed(metadata: SqliteMetadata) -> None:
    for repository in (HERE, THERE, up("kept"), LOCAL):
        await metadata.grant(repository, some_digest(), public=False)
    await metadata.put_tag(some_tag(repository=up("kept"), digest=some_digest(2)))
    await metadata.purge(HERE, some_digest())
    assert await metadata.repositories(n=9) == ["team/app", "up/kept"]
    assert [metadata.exists(repository) for repository in (HERE, THERE, up("kept"), LOCAL)] == [
        False,
        False,
        True,
        True,
    ]


async def test_a_repository_whose_last_tag_is_forgotten_is_not_listed(metadata: SqliteMetadata) -> None:
    await metadata.put_tag(some_tag())
    await metadata.put_tag(some_tag(repository=THERE))
    await metadata.grant(THERE, some_digest(), public=False)
    for repository in (HERE, THERE):
        await metadata.forget_tag(repository, TAG)
    assert await metadata.repositories(n=9) == ["up/x/y"]


# ---- history ----


async def test_each_move_of_a_tag_is_kept_with_its_time(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, "v1", at=10.5)
    await push(metadata, LOCAL, some_manifest((some_digest(3), 3)), "other", at=10.5)
    await push(metadata, LOCAL, NEW, "v1", at=20.5)
    await metadata.delete_tag(LOCAL, TAG, condition=None, at=30.5)
    await push(metadata, LOCAL, NEW, "v1", at=40.5)
    await metadata.delete_manifest(LOCAL, SECOND, condition=None, at=50.5)
    found = await metadata.history(LOCAL, TAG, n=100)
    assert all(newer.number > older.number for newer, older in pairwise(found))
    assert found == [
        TagMove(number=one.number, at=at, digest=digest, origin="pushed")
        for one, (at, digest) in zip(
            found, [(50.5, None), (40.5, SECOND), (30.5, None), (20.5, SECOND), (10.5, FIRST)], strict=True
        )
    ]
    assert len(await moves(metadata, LOCAL, "other")) == 1
    assert await moves(metadata, OTHER_LOCAL) == []
    assert await metadata.tags(LOCAL, n=9) == ["other"]


async def test_history_outlives_its_repository(metadata: SqliteMetadata) -> None:
    await push(metadata, LOCAL, OLD, "v1")
    await metadata.delete_manifest(LOCAL, FIRST, condition=None, at=1.0)
    assert not metadata.exists(LOCAL)
    await push(metadata, LOCAL, NEW, "v1")
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed"), (None, "pushed"), (SECOND, "pushed")]


async def test_moves_of_pulled_tags_are_kept_too(metadata: SqliteMetadata) -> None:
    one, two = some_digest(1), some_digest(2)
    await metadata.put_tag(some_tag(digest=one, checked_at=10.5))
    await metadata.put_tag(some_tag(digest=two, checked_at=20.5, previous=one))
    before = time.time()
    await metadata.forget_tag(HERE, TAG)
    after = time.time()
    found = await metadata.history(HERE, TAG, n=9)
    assert [(move.digest, move.origin) for move in found] == [(None, "pulled"), (two, "pulled"), (one, "pulled")]
    assert [move.at for move in found[1:]] == [20.5, 10.5]
    assert before <= found[0].at <= after


async def test_what_moves_no_tag_is_no_history(metadata: SqliteMetadata) -> None:
    await metadata.put_tag(some_tag())
    await metadata.put_tag(some_tag(checked_at=2000.0, fresh_until=3000.0, media_type="x/y"))
    await metadata.note_trouble(HERE, TAG, retry_at=1.0, trouble="{}")
    assert await moves(metadata, HERE) == [(some_digest(), "pulled")]
    for at in (1.0, 2.0):
        await push(metadata, LOCAL, OLD, "v1", at=at)
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed")]
    await metadata.forget_tag(THERE, TAG)
    await metadata.purge(THERE, FIRST)
    assert await moves(metadata, THERE) == []


@pytest.mark.parametrize("n", [1, 2, 5, 6])
async def test_history_comes_the_newest_first_page_by_page(metadata: SqliteMetadata, n: int) -> None:
    for at in range(5):
        await push(metadata, LOCAL, (OLD, NEW)[at % 2], "v1", at=float(at))
        await push(metadata, LOCAL, (OLD, NEW)[at % 2], "v2", at=float(at))
    found = [await metadata.history(LOCAL, TAG, n=n)]
    while len(found[-1]) == n:
        found.append(await metadata.history(LOCAL, TAG, n=n, before=found[-1][-1].number))
        assert len(found) < 10, "it does not end"
    assert [move.at for page in found for move in page] == [4.0, 3.0, 2.0, 1.0, 0.0]


# ---- several processes, and writes together ----


async def test_what_one_has_changed_all_others_see_at_once(open_metadata: Open) -> None:
    one, other = await open_metadata(), await open_metadata()
    for n in range(20):
        writer, reader = (one, other) if n % 2 else (other, one)
        blob, manifest = some_digest(n), some_artifact(FIRST, n)
        await writer.push_blob(LOCAL, blob)
        assert reader.may_read(LOCAL, blob)
        assert reader.pushed_somewhere(blob)
        assert reader.exists(LOCAL)
        digest = await push(writer, LOCAL, manifest, "v1", required=[blob])
        assert reader.holds(LOCAL, digest)
        assert reader.tag(LOCAL, TAG) == writer.tag(LOCAL, TAG)
        assert await reader.tags(LOCAL, n=9) == ["v1"]
        assert await reader.repositories(n=9) == ["team/app"]
        assert len(await reader.referrers(LOCAL, FIRST, artifact_type=None, n=9)) == 1
        assert not await reader.unused(blob)
        await writer.delete_manifest(LOCAL, digest, condition=None, at=1.0)
        assert reader.holds(LOCAL, digest) is None
        assert reader.tag(LOCAL, TAG) is None
        assert len(await reader.history(LOCAL, TAG, n=100)) == 2 * n + 2
        await writer.delete_blob(LOCAL, blob)
        assert not reader.exists(LOCAL)
        assert await reader.repositories(n=9) == []
        assert await reader.unused(blob)


async def test_a_write_that_raises_takes_no_other_with_it_and_each_gets_its_own_answer(
    metadata: SqliteMetadata,
) -> None:
    await metadata.push_blob(LOCAL, some_digest(1))
    await push(metadata, LOCAL, OLD, "v1")
    results: list[Any] = await asyncio.gather(
        metadata.delete_blob(LOCAL, some_digest(1)),
        metadata.delete_blob(LOCAL, some_digest(2)),
        push(metadata, LOCAL, NEW, "v2", required=[some_digest(3)]),
        metadata.unused(FIRST),
        metadata.delete_tag(LOCAL, TAG, condition=condition(none=["*"]), at=1.0),
        metadata.put_tag(some_tag(size=2**70)),
        metadata.unused(some_digest(1)),
        metadata.push_blob(LOCAL, some_digest(4)),
        metadata.delete_tag(LOCAL, TAG, condition=None, at=1.0),
        return_exceptions=True,
    )
    kinds = [result if isinstance(result, bool | None) else type(result) for result in results]
    assert kinds == [
        True, False, ManifestBlobUnknown, False, PreconditionFailed, OverflowError, True, None, True,
    ]  # fmt: skip
    assert results[2].detail == [{"digest": str(some_digest(3))}]
    assert metadata.may_read(LOCAL, some_digest(4))
    assert metadata.holds(LOCAL, SECOND) is None
    assert metadata.tag(HERE, TAG) is None
    assert await moves(metadata, LOCAL) == [(FIRST, "pushed"), (None, "pushed")], "nothing was done twice"


async def test_of_many_at_once_each_gets_its_own_answer(metadata: SqliteMetadata) -> None:
    blobs = [some_digest(n) for n in range(100)]
    await asyncio.gather(*(metadata.push_blob(LOCAL, blob) for blob in blobs[::3]))
    results = await asyncio.gather(*(metadata.delete_blob(LOCAL, blob) for blob in blobs))
    assert results == [n % 3 == 0 for n in range(100)]


async def test_a_client_that_no_longer_waits_disturbs_no_other(metadata: SqliteMetadata) -> None:
    """Whoever is cancelled, before its transaction or during it: the others have their own answers."""
    await push(metadata, LOCAL, OLD, "v1")

    def ask() -> list[asyncio.Task[Any]]:
        doing = [
            metadata.push_blob(LOCAL, some_digest(1)),
            metadata.delete_blob(LOCAL, some_digest(99)),
            push(metadata, LOCAL, NEW, required=[some_digest(98)]),
            metadata.unused(FIRST),
            metadata.unused(some_digest(97)),
        ]
        return [asyncio.create_task(one) for one in doing]

    answers = [None, False, ManifestBlobUnknown, False, True]
    for turns in range(4):
        for leaving in range(5):
            go = threading.Event()
            metadata._database._writing.submit(go.wait, 20)
            tasks = ask()
            for _ in range(turns):
                await asyncio.sleep(0)
            assert tasks[leaving].cancel()
            go.set()
            async with asyncio.timeout(20):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            found = [one if isinstance(one, bool | None) else type(one) for one in results]
            assert found[leaving] is asyncio.CancelledError
            assert [one for n, one in enumerate(found) if n != leaving] == [
                one for n, one in enumerate(answers) if n != leaving
            ]
    assert await metadata.delete_blob(LOCAL, some_digest(1))


async def test_sha512_is_like_sha256(metadata: SqliteMetadata) -> None:
    blob = digest_of(b"blob", "sha512")
    subject = digest_of(b"subject", "sha512")
    await metadata.push_blob(LOCAL, blob)
    digest = await push(metadata, LOCAL, some_artifact(subject), "v1", required=[blob])
    assert metadata.pushed_somewhere(blob)
    found = await metadata.referrers(LOCAL, subject, artifact_type=None, n=9)
    assert [one.digest for one in found] == [digest]
    assert not await metadata.unused(blob)
    assert await metadata.delete_blob(LOCAL, blob)
