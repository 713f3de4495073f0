"""An upstream with its mirrors: how the time is shared, what a mirror is given of its settings, and who is asked when.

The mirrors and the registry here are objects that answer what a test says.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror import config
from mirror.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamOffline,
    UpstreamTimeout,
)
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.names import Digest, Tag, digest_of, parse_name
from mirror.oci.ranges import ByteRange
from mirror.upstream.base import FetchedManifest, Resolved, TagPage
from mirror.upstream.chain import DOUBTED_FOR, Chain, Link, as_upstream, share_of_time

REPO = parse_name("team/app")
V1 = Tag("v1")
DATA = b"the content of a blob"
DIGEST = digest_of(DATA)
MANIFEST = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
MANIFEST_DIGEST = digest_of(MANIFEST)
AWAY = UpstreamFailed("away", upstream="up")
UNKNOWN = BlobUnknown("not here")


class Source:
    """A body. breaks: with what it ends."""

    def __init__(self, data: bytes, breaks: Exception | None = None) -> None:
        self.offset, self.size, self.anonymous = 0, len(data), True
        self._data, self._breaks = data, breaks

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._data
        if self._breaks is not None:
            raise self._breaks


class Stub:
    """An ``Upstream`` that answers everything by ``answer``: raised when it is an exception. asked: of what kinds."""

    def __init__(self, answer: Any) -> None:
        self.name = "up"
        self.answer = answer
        self.asked: list[str] = []
        self.closed = False

    def _give(self, kind: str) -> Any:
        self.asked.append(kind)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def resolve(self, repository: Any, target: Any, *, confirming: bool = False) -> Any:
        return self._give("resolve")

    async def manifest(self, repository: Any, target: Any, *, confirming: bool = False) -> Any:
        return self._give("manifest")

    async def stat_blob(self, repository: Any, digest: Any, *, confirming: bool = False) -> Any:
        return self._give("stat")

    @asynccontextmanager
    async def blob(
        self, repository: Any, digest: Any, *, offset: int = 0, window: ByteRange | None = None
    ) -> AsyncIterator[Any]:
        yield self._give("window" if window else "blob")

    async def tags(self, repository: Any, *, n: int | None, last: str | None) -> Any:
        return self._give("tags")

    async def referrers(self, repository: Any, subject: Any) -> Any:
        return self._give("referrers")

    def saving(self) -> Any:
        return None

    def distrust(self, digest: Digest) -> None: ...

    async def close(self) -> None:
        self.closed = True


def head(digest: Digest | None, size: int | None = None) -> Resolved:
    return Resolved(digest=digest, media_type=OCI_INDEX, size=size, anonymous=True)


def fetched(raw: bytes, digest: Digest | None = None) -> FetchedManifest:
    return FetchedManifest(raw=raw, content_type=OCI_INDEX, digest=digest, anonymous=True)


# ---- what is shared and what is not ----


@pytest.mark.parametrize(
    ("headers", "mirrors", "own", "theirs"),
    [
        pytest.param(18.0, 0, 18.0, 18.0, id="none"),
        pytest.param(18.0, 1, 13.0, 5.0, id="one"),
        pytest.param(18.0, 3, 9.0, 3.0, id="three"),
        pytest.param(18.0, 9, 9.0, 1.0, id="many"),
        pytest.param(2.0, 1, 1.0, 1.0, id="short"),
    ],
)
def test_all_together_have_the_time_of_one(headers: float, mirrors: int, own: float, theirs: float) -> None:
    registry, mirror = share_of_time(config.Timeouts(headers=headers, read=7), mirrors)
    assert (registry.headers, mirror.headers) == (own, theirs)
    assert registry.headers + mirrors * (mirror.headers if mirrors else 0) == headers
    assert mirror.connect <= mirror.headers or not mirrors
    assert mirror.read == 7


def test_a_mirror_has_its_own_secrets_and_trust_and_none_of_its_upstreams(tmp_path: Path) -> None:
    for name in ("password", "ca", "certificate", "key"):
        (tmp_path / name).write_text("secret")
    login = config.Credentials(username="us", password_file=tmp_path / "password")
    given: dict[str, Any] = {
        "url": "https://registry.example",
        "credentials": (login,),
        "realms": ("auth.example",),
        "ca_file": tmp_path / "ca",
        "insecure": True,
        "client_certificate": config.ClientCertificate(certificate=tmp_path / "certificate", key=tmp_path / "key"),
        "mirrors": ({"url": "https://mirror.example"},),
        "connections": 1,
        "rate": 1024,
        "quota_floor": "10%",
        "retries": 5,
    }
    settings = config.Upstream(**given)
    bare = as_upstream(settings, config.Mirror(url="https://mirror.example"), config.Timeouts(headers=3))
    assert (bare.url, bare.timeouts.headers) == ("https://mirror.example", 3.0)
    assert (bare.credentials, bare.realms, bare.mirrors, bare.ca_file) == ((), (), (), None)
    assert (bare.client_certificate, bare.insecure) == (None, False)
    assert (bare.connections, bare.rate, bare.quota_floor, bare.retries) == (None, None, 0.0, 0)
    own = config.Mirror(
        url="https://mirror.example",
        credentials=(login,),
        realms=("m.example",),
        ca_file=tmp_path / "ca",
        insecure=True,
    )
    found = as_upstream(settings.model_copy(update={"credentials": (), "realms": ()}), own, config.Timeouts())
    assert (found.credentials, found.realms, found.ca_file, found.insecure) == (
        (login,),
        ("m.example",),
        tmp_path / "ca",
        True,
    )


# ---- who is asked ----


async def test_offline_nobody_is_asked() -> None:
    registry, mirror = Stub(UNKNOWN), Stub(UNKNOWN)
    chain = Chain("up", registry, [Link(mirror, resolve=True)], offline=True)
    asked = [
        lambda: chain.resolve(REPO, V1),
        lambda: chain.resolve(REPO, DIGEST, confirming=True),
        lambda: chain.manifest(REPO, V1),
        lambda: chain.manifest(REPO, DIGEST, confirming=True),
        lambda: chain.stat_blob(REPO, DIGEST),
        lambda: chain.stat_blob(REPO, DIGEST, confirming=True),
        lambda: chain.blob(REPO, DIGEST).__aenter__(),
        lambda: chain.tags(REPO, n=None, last=None),
        lambda: chain.referrers(REPO, DIGEST),
    ]
    for ask in asked:
        with pytest.raises(UpstreamOffline) as caught:
            await ask()
        assert caught.value.brief == "up is offline by configuration"
        assert " and nothing is kept of " in caught.value.message
    assert registry.asked == mirror.asked == []


@pytest.mark.parametrize("answer", [UNKNOWN, AWAY, UpstreamDenied("no", upstream="up")], ids=["404", "5xx", "denied"])
async def test_only_the_registrys_own_answer_is_one(answer: Exception) -> None:
    registry, mirror = Stub(ManifestUnknown("not there")), Stub(answer)
    chain = Chain("up", registry, [Link(mirror, resolve=True)] * 2)
    with pytest.raises(ManifestUnknown, match="not there"):
        await chain.resolve(REPO, V1)
    with pytest.raises(ManifestUnknown, match="not there"):
        await chain.manifest(REPO, DIGEST)
    assert mirror.asked == ["resolve"] * 2 + ["manifest"] * 2


async def test_what_a_mirror_says_is_not_public() -> None:
    registry = Stub(UNKNOWN)
    mirror = Stub(head(MANIFEST_DIGEST, 1))
    chain = Chain("up", registry, [Link(mirror, resolve=True)])
    assert not (await chain.resolve(REPO, V1)).anonymous
    assert not (await chain.resolve(REPO, MANIFEST_DIGEST)).anonymous
    assert not (await chain.stat_blob(REPO, MANIFEST_DIGEST)).anonymous
    mirror.answer = fetched(MANIFEST)
    assert not (await chain.manifest(REPO, V1)).anonymous
    mirror.answer = Source(DATA)
    async with chain.blob(REPO, DIGEST) as source:
        assert not source.anonymous
    registry.answer = Source(DATA)
    mirror.answer = UNKNOWN
    async with chain.blob(REPO, DIGEST) as source:
        assert source.anonymous
    assert len(registry.asked) == 1


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        pytest.param(head(None), V1, id="a-tag-of-no-digest"),
        pytest.param(head(None), MANIFEST_DIGEST, id="no-digest"),
        pytest.param(head(DIGEST), MANIFEST_DIGEST, id="another-digest"),
    ],
)
async def test_a_head_of_a_mirror_has_to_name_the_digest(answer: Resolved, target: Any) -> None:
    chain = Chain("up", Stub(head(MANIFEST_DIGEST, 5)), [Link(Stub(answer), resolve=True)])
    found = await chain.resolve(REPO, target)
    assert (found.digest, found.size) == (MANIFEST_DIGEST, 5)


async def test_a_head_of_a_blob_that_names_another_is_of_no_use() -> None:
    chain = Chain("up", Stub(head(DIGEST, 5)), [Link(Stub(head(MANIFEST_DIGEST, 7)))])
    assert (await chain.stat_blob(REPO, DIGEST)).size == 5


@pytest.mark.parametrize(
    ("raw", "said", "target"),
    [
        pytest.param(b"<html>", None, V1, id="no-manifest"),
        pytest.param(MANIFEST, DIGEST, V1, id="not-of-the-digest-it-names"),
        pytest.param(MANIFEST, DIGEST, DIGEST, id="not-of-the-digest"),
        pytest.param(b"x" * 100_000, None, V1, id="long"),
    ],
)
async def test_a_manifest_of_a_mirror_is_looked_at(raw: bytes, said: Digest | None, target: Any) -> None:
    registry = Stub(fetched(b"of the registry"))
    chain = Chain("up", registry, [Link(Stub(fetched(raw, said)), resolve=True)])
    assert (await chain.manifest(REPO, target)).raw == b"of the registry"


async def test_lists_are_asked_of_mirrors_that_resolve() -> None:
    page = TagPage(tags=("v1",), next_n=None, next_last=None)
    registry, shy, knows = Stub(page), Stub(page), Stub(page)
    chain = Chain("up", registry, [Link(shy), Link(knows, resolve=True)])
    assert await chain.tags(REPO, n=None, last=None) == page
    knows.answer = None  # it does not know the API of referrers
    registry.answer = ()
    assert await chain.referrers(REPO, DIGEST) == ()
    registry.answer = None
    assert await chain.referrers(REPO, DIGEST) is None
    assert (shy.asked, knows.asked, registry.asked) == ([], ["tags", "referrers", "referrers"], ["referrers"] * 2)


# ---- rights ----


@pytest.mark.parametrize("error", [UNKNOWN, UpstreamDenied("no", upstream="up"), UpstreamInvalid("?", upstream="up")])
async def test_no_mirror_is_asked_about_a_right_when_the_registry_says_no(error: Exception) -> None:
    mirror = Stub(head(DIGEST, len(DATA)))
    chain = Chain("up", Stub(error), [Link(mirror, resolve=True)])
    for ask in (chain.resolve, chain.manifest, chain.stat_blob):
        with pytest.raises(type(error)):
            await ask(REPO, DIGEST, confirming=True)  # type: ignore[operator]
    assert mirror.asked == []


async def test_while_the_registry_is_away_a_mirrors_word_is_no_right() -> None:
    """Only the content itself is; of several, whoever shows it."""
    says, shows = Stub(head(DIGEST, len(DATA))), Stub(Source(DATA))
    chain = Chain("up", Stub(AWAY), [Link(says)])
    says.answer = Source(b"something as long as.")
    with pytest.raises(UpstreamFailed, match="away"):
        await chain.stat_blob(REPO, DIGEST, confirming=True)
    chain = Chain("up", Stub(AWAY), [Link(says), Link(shows)])
    found = await chain.stat_blob(REPO, DIGEST, confirming=True)
    assert (found.digest, found.size, found.anonymous) == (DIGEST, len(DATA), False)
    assert says.asked == ["blob", "blob"]
    await chain.stat_blob(REPO, DIGEST, confirming=True)
    assert says.asked == ["blob", "blob"]  # it gave wrong bytes
    shows.answer = Source(DATA, breaks=UpstreamTimeout("slow", upstream="up"))
    with pytest.raises(UpstreamFailed, match="away"):
        await chain.stat_blob(REPO, DIGEST, confirming=True)


async def test_while_the_registry_is_away_a_mirror_shows_the_manifest_too() -> None:
    mirror = Stub(fetched(MANIFEST))
    chain = Chain("up", Stub(AWAY), [Link(mirror)])
    found = await chain.resolve(REPO, MANIFEST_DIGEST, confirming=True)
    assert (found.digest, found.size, found.media_type) == (MANIFEST_DIGEST, len(MANIFEST), OCI_INDEX)
    assert (await chain.manifest(REPO, MANIFEST_DIGEST, confirming=True)).raw == MANIFEST
    assert mirror.asked == ["manifest"] * 2
    mirror.answer = fetched(b"{}")
    with pytest.raises(UpstreamFailed, match="away"):
        await chain.resolve(REPO, MANIFEST_DIGEST, confirming=True)


# ---- who gave what ----


async def take(chain: Chain, window: ByteRange | None = None) -> bytes:
    async with chain.blob(REPO, DIGEST, window=window) as source:
        return b"".join([piece async for piece in source.chunks()])


async def test_who_gave_wrong_bytes_is_left_out_for_a_while() -> None:
    now = 0.0
    registry, first, second = Stub(Source(b"0")), Stub(Source(b"1")), Stub(Source(b"2"))
    chain = Chain("up", registry, [Link(first), Link(second)], clock=lambda: now)
    assert not chain.distrust(DIGEST)  # nobody gave it yet
    for given, distrusted in ((b"1", "mirror 1 of up"), (b"2", "mirror 2 of up"), (b"0", None)):
        assert await take(chain) == given
        assert chain.distrust(DIGEST) == distrusted
    now = DOUBTED_FOR + 1
    assert await take(chain) == b"1"


async def test_a_window_says_nothing_of_who_gave_the_whole() -> None:
    registry, mirror = Stub(Source(b"0")), Stub(Source(b"1"))
    chain = Chain("up", registry, [Link(mirror)])
    await take(chain)
    mirror.answer = UpstreamInvalid("ignores Range", upstream="up")
    assert await take(chain, ByteRange(0, 5)) == b"0"
    assert chain.distrust(DIGEST)
    mirror.answer = Source(b"1")
    assert await take(chain, ByteRange(0, 5)) == b"0"  # nor does it get windows any more
    assert not chain.distrust(DIGEST)


async def test_who_broke_off_is_asked_after_the_registry_and_only_if_that_fails() -> None:
    broken = UpstreamFailed("broke off", upstream="up")
    registry, first, second = Stub(Source(b"0")), Stub(Source(b"1", breaks=broken)), Stub(Source(b"2"))
    chain = Chain("up", registry, [Link(first), Link(second)])
    with pytest.raises(UpstreamFailed, match="broke off"):
        await take(chain)
    first.answer = Source(b"1")
    assert await take(chain) == b"2"
    second.answer = UNKNOWN
    assert await take(chain) == b"0"
    registry.answer = AWAY
    assert await take(chain) == b"1"
    registry.answer = UNKNOWN
    with pytest.raises(BlobUnknown):
        await take(chain)
    registry.answer, first.answer = AWAY, UNKNOWN
    with pytest.raises(UpstreamFailed, match="away"):
        await take(chain)


async def test_all_of_them_are_closed() -> None:
    stubs = [Stub(UNKNOWN) for _ in range(3)]
    await Chain("up", stubs[0], [Link(stubs[1]), Link(stubs[2])]).close()
    assert all(stub.closed for stub in stubs)
