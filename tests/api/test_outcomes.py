"""What upstream outcomes mean: one table of faults, by what is kept and what is asked for.

Each row is run against a mirror that keeps nothing, one that keeps an image whose tag is fresh, and one whose tag
is stale; and for a manifest by tag, by digest, and a blob. What is kept by digest never needs the upstream.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Credentials
from mirror.upstream.transport import Timeouts
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import Answer, Mirror, mirror
from tests.images import (
    NAME,
    Clock,
    blob_path,
    cached,
    config_for,
    get_image,
    ingesting,
    manifest_path,
    pull_and_keep,
    requests,
    until,
    use_client,
    use_clock,
    warning,
)

PASSWORD = "the-password-never-shown"
MIB = 1024 * 1024
LIMIT = 4 * MIB
BLOB_LIMIT = 8 * MIB


class NoNames(AbstractResolver):
    """A resolver that knows no name."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise OSError(-2, "Name or service not known")

    async def close(self) -> None:
        pass


@dataclass
class Case:
    """One run of a row. image: what the tag points at, in the end; kept: what it pointed at while all was well.

    upstream: settings of the upstream once the fault is there. kind: "tag", "digest" or "blob".
    """

    hub: FakeUpstream
    tmp_path: Path
    patch: pytest.MonkeyPatch
    kind: str
    image: Image
    kept: Image
    upstream: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.tmp_path / "root"

    @property
    def blob(self) -> str:
        return self.image.layers[0]

    @property
    def path(self) -> str:
        return {
            "tag": manifest_path("v1"),
            "digest": manifest_path(self.image.digest),
            "blob": blob_path(self.blob),
        }[self.kind]

    @property
    def content(self) -> bytes:
        return self.image.blobs[self.blob] if self.kind == "blob" else self.image.raw

    def spoil(self, **what: Any) -> None:
        """Change the content itself, and not what HEAD says of it."""
        part = f"blobs/{self.blob}" if self.kind == "blob" else f"manifests/{self.image.digest}"
        self.hub.fault(f"GET /v2/{NAME}/{part}", **what)


Apply = Callable[[Case], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault and what it means.

    status, code: of the answer with nothing kept. asked: the requests to the upstream that takes, by kind.
    stale: what a stale tag is answered with: "kept" (with a Warning), "gone" (404) or "right" (nothing is wrong
    with a HEAD). retry_after: the header's value, "any" for some value. moved: the fault is in content, so that
    it takes a tag that moved to see it. auth: what the hub wants. blob: (status, code) of a blob when it differs,
    None when the row says nothing of blobs. says: words of the message.
    """

    apply: Apply
    status: int
    code: str = "UNAVAILABLE"
    stale: str = "kept"
    retry_after: str | None = None
    moved: bool = False
    auth: str | None = None
    login: bool = False
    tls: bool = False
    blob: Any = ()
    digest: Any = ()
    asked: dict[str, list[str]] = field(default_factory=dict)
    says: str = ""


HEAD_TAG, GET_DIGEST, GET_BLOB = "HEAD tag", "GET digest", "GET blob"
ONE = {"tag": [HEAD_TAG], "digest": [GET_DIGEST], "blob": [GET_BLOB]}
TWICE = {kind: asked * 2 for kind, asked in ONE.items()}  # refused once, asked again with a token
NONE: dict[str, list[str]] = {"tag": [], "digest": [], "blob": []}
BOTH = {"tag": [HEAD_TAG, GET_DIGEST], "digest": [GET_DIGEST], "blob": [GET_BLOB]}


def answers(status: int, **headers: str) -> Apply:
    async def apply(case: Case) -> None:
        case.hub.fail(f"/v2/{NAME}/", status=status, headers={key.replace("_", "-"): v for key, v in headers.items()})

    return apply


def spoils(**what: Any) -> Apply:
    async def apply(case: Case) -> None:
        case.spoil(**what)

    return apply


async def private_now(case: Case) -> None:
    case.hub.private.add(NAME)
    case.hub.expire_tokens()


async def hidden(case: Case) -> None:
    """Do as Docker Hub does for a name it does not have: 401, and again 401 to a good anonymous token."""
    case.hub.hide_missing = True
    case.hub.remove_repository(NAME)
    case.hub.expire_tokens()


async def other_password(case: Case) -> None:
    case.hub.users = {"u": "changed"}
    case.hub.expire_tokens()


def token_endpoint(**what: Any) -> Apply:
    async def apply(case: Case) -> None:
        case.hub.expire_tokens()
        case.hub.fault("GET /token", **what)

    return apply


async def stopped(case: Case) -> None:
    await case.hub.stop()


async def no_dns(case: Case) -> None:
    use_client(case.patch, resolver=NoNames())
    case.upstream["url"] = f"http://registry.nowhere.example:{case.hub.port}"


async def untrusted(case: Case) -> None:
    case.upstream["ca_file"] = None


async def hangs(case: Case) -> None:
    use_client(case.patch, timeouts=Timeouts(headers=0.3, connect=0.3, read=0.3))
    case.hub.fault(f"/v2/{NAME}/", hang_headers=True)


async def hangs_in_the_body(case: Case) -> None:
    use_client(case.patch, timeouts=Timeouts(headers=0.3, connect=0.3, read=0.3))
    case.spoil(hang_after=10)


async def token_hangs(case: Case) -> None:
    use_client(case.patch, timeouts=Timeouts(headers=0.3, connect=0.3, read=0.3))
    case.hub.expire_tokens()
    case.hub.fault("GET /token", hang_headers=True)


async def too_large(case: Case) -> None:
    case.spoil(replace=bytes(30 * MIB))


async def too_large_and_says_so_late(case: Case) -> None:
    case.spoil(replace=bytes(30 * MIB), framing="chunked")


async def longer_than_announced(case: Case) -> None:
    case.spoil(length=len(case.content) - 10)


async def shorter_than_announced(case: Case) -> None:
    case.spoil(length=len(case.content) + 10)


async def flipped(case: Case) -> None:
    wrong = bytearray(case.content)
    wrong[len(wrong) // 2] ^= 1
    case.spoil(replace=bytes(wrong))


async def wrong_docker_digest(case: Case) -> None:
    case.hub.fault(f"/v2/{NAME}/", docker_digest="sha256:" + "1" * 64)


RIGHT = (200, "")
GONE = {"stale": "gone", "code": "MANIFEST_UNKNOWN", "blob": (404, "BLOB_UNKNOWN")}
CONTENT = {"moved": True, "asked": BOTH}

ROWS: dict[str, Row] = {
    "404": Row(apply=answers(404), status=404, asked=ONE, **GONE),
    "401-anonymous": Row(apply=answers(401), status=404, asked=ONE, **GONE),
    "403-anonymous": Row(apply=answers(403), status=404, asked=ONE, **GONE),
    "private-after-the-token-dance": Row(apply=private_now, status=404, auth="token", asked=TWICE, **GONE),
    "hidden-after-the-token-dance": Row(apply=hidden, status=404, auth="token", asked=TWICE, **GONE),
    "token-refused-anonymous": Row(apply=token_endpoint(status=403), status=404, auth="token", asked=ONE, **GONE),
    "403-with-credentials": Row(
        apply=answers(403), status=403, code="DENIED", auth="token", login=True, asked=ONE, says="'u'"
    ),
    "401-with-credentials": Row(
        apply=answers(401), status=403, code="DENIED", auth="token", login=True, asked=TWICE, says="'u'"
    ),
    "401-with-basic": Row(apply=other_password, status=403, code="DENIED", auth="basic", login=True, asked=TWICE),
    "token-refused-with-credentials": Row(
        apply=other_password, status=403, code="DENIED", auth="token", login=True, asked=ONE, says="'u'"
    ),
    "token-500": Row(apply=token_endpoint(status=500), status=503, auth="token", asked=ONE, says="token"),
    "token-500-with-credentials": Row(
        apply=token_endpoint(status=500), status=503, auth="token", login=True, asked=ONE, says="token"
    ),
    "token-garbage": Row(apply=token_endpoint(replace=b"<html>"), status=503, auth="token", asked=ONE, says="token"),
    "token-hung-up": Row(apply=token_endpoint(drop="rst"), status=503, auth="token", asked=ONE, says="token"),
    "token-429": Row(
        apply=token_endpoint(status=429, headers={"Retry-After": "33"}),
        status=503,
        auth="token",
        asked=ONE,
        retry_after="33",
    ),
    "token-timeout": Row(apply=token_hangs, status=504, auth="token", asked=ONE, says="token"),
    "429": Row(apply=answers(429, Retry_After="7"), status=503, retry_after="7", asked=ONE),
    "429-without-retry-after": Row(apply=answers(429), status=503, retry_after="any", asked=ONE),
    "connect": Row(apply=stopped, status=502, asked=NONE),
    "dns": Row(apply=no_dns, status=502, asked=NONE, says="registry.nowhere.example"),
    "tls": Row(apply=untrusted, status=502, tls=True, asked=NONE, says="certificate"),
    "hung-up": Row(apply=lambda case: _fault(case, drop="fin"), status=502),
    "500": Row(apply=answers(500), status=503, asked=ONE, says="500"),
    "502": Row(apply=answers(502), status=503, asked=ONE, says="502"),
    "503-with-retry-after": Row(apply=answers(503, Retry_After="9"), status=503, asked=ONE, says="503"),
    "504": Row(apply=answers(504), status=503, asked=ONE, says="504"),
    "timeout": Row(apply=hangs, status=504, asked=ONE),
    "timeout-in-the-body": Row(apply=hangs_in_the_body, status=504, moved=True, blob=None),
    "too-large": Row(apply=too_large, status=502, says=str(LIMIT), blob=(502, "UNAVAILABLE"), **CONTENT),
    "too-large-chunked": Row(apply=too_large_and_says_so_late, status=502, says=str(LIMIT), blob=None, **CONTENT),
    "endless": Row(apply=spoils(endless=True), status=502, blob=None, **CONTENT),
    "garbage": Row(apply=spoils(replace=b'{"mediaType": "applic'), status=502, **CONTENT),
    "flipped": Row(apply=flipped, status=502, **CONTENT),
    "text-plain": Row(apply=spoils(replace=b"no such thing", content_type="text/plain"), status=502, **CONTENT),
    "empty": Row(apply=spoils(replace=b""), status=502, **CONTENT),
    "gzip": Row(apply=spoils(encode_gzip=True), status=502, **CONTENT),
    "longer-than-announced": Row(apply=longer_than_announced, status=502, **CONTENT),
    "shorter-than-announced": Row(apply=shorter_than_announced, status=503, blob=(502, "UNAVAILABLE"), moved=True),
    "wrong-docker-content-digest": Row(apply=wrong_docker_digest, status=502, digest=RIGHT, blob=RIGHT, moved=True),
}


async def _fault(case: Case, **what: Any) -> None:
    case.hub.fault(f"/v2/{NAME}/", **what)


KINDS = ("tag", "digest", "blob")


def rows(*kinds: str) -> list[Any]:
    return [
        pytest.param(row, kind, id=f"{name}-{kind}")
        for name, row in ROWS.items()
        for kind in kinds
        if not (kind == "blob" and row.blob is None)
    ]


def hub_for(row: Row, tls: ssl.SSLContext | None) -> FakeUpstream:
    return FakeUpstream(auth=row.auth, users={"u": PASSWORD} if row.login else {}, anonymous=not row.login, ssl=tls)


@dataclass
class Setting:
    """A hub, and the settings of an upstream that works."""

    hub: FakeUpstream
    upstream: dict[str, Any]


async def settings_for(row: Row, tmp_path: Path) -> Setting:
    tls = None
    upstream: dict[str, Any] = {}
    if row.tls:
        authority = trustme.CA()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        upstream["ca_file"] = tmp_path / "ca.pem"
    if row.login:
        (tmp_path / "password").write_text(PASSWORD)
        upstream["credentials"] = Credentials(username="u", password_file=tmp_path / "password")
    return Setting(hub_for(row, tls), upstream)


def shown(case: Case) -> list[str]:
    """Return what the upstream was asked, in words of the table."""
    words = {"manifests/v1": "tag", f"manifests/{case.image.digest}": "digest", f"blobs/{case.blob}": "blob"}
    found = []
    for line in requests(case.hub):
        method, what = line.split()
        found.append(f"{method} {words.get(what, what)}")
    return found


def check_error(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status, answer
    assert answer.code == code
    assert answer.headers["Content-Type"].startswith("application/json")
    assert warning(answer) is None


def config_of(case: Case, setting: Setting) -> Any:
    upstream = setting.upstream | case.upstream
    url = upstream.pop("url", case.hub.url)
    limits = {"manifest": LIMIT, "blob": BLOB_LIMIT}
    return config_for(case.tmp_path, case.hub, limits=limits, **{**upstream, "url": url})


@pytest.mark.parametrize(("row", "kind"), rows(*KINDS))
async def test_with_nothing_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, row: Row, kind: str
) -> None:
    setting = await settings_for(row, tmp_path)
    async with setting.hub as hub:
        image = hub.add_image(NAME, "v1", [5000])
        case = Case(hub, tmp_path, monkeypatch, kind, image, image)
        await row.apply(case)
        status, code = {"blob": row.blob, "digest": row.digest}.get(kind) or (row.status, row.code)
        with caplog.at_level(logging.INFO):
            async with mirror(config_of(case, setting)) as worker:
                answer = await worker.get(case.path)
                if status == 200:
                    assert (answer.status, answer.body) == (200, case.content)
                    return
                check_error(answer, status, code)
                retry = answer.headers.get("Retry-After")
                if row.retry_after == "any":
                    assert retry is not None
                    assert int(retry) > 0
                elif row.retry_after:
                    assert retry == row.retry_after
                if kind != "blob":
                    assert row.says in answer.body.decode()
                assert "up" in answer.body.decode()
                if kind in row.asked:
                    assert shown(case) == row.asked[kind]
                assert cached(case.root) == []
                await until(lambda: ingesting(case.root) == [], "nothing is left of it")
                await works_again(worker, case, row, setting)
        assert PASSWORD not in caplog.text + answer.body.decode()
        if row.status >= 500:
            assert "up" in caplog.text


async def works_again(worker: Mirror, case: Case, row: Row, setting: Setting) -> None:
    """Make all well again: nothing of the failure stays, but a 404 of a tag for a while."""
    if row is ROWS["connect"]:
        await case.hub.start()
    elif case.upstream or row.stale == "gone" or row.auth or row.retry_after:
        return  # what asked for patience gets it
    case.hub.clear_faults()
    answer = await worker.get(case.path)
    assert (answer.status, answer.body) == (200, case.content), answer


@pytest.mark.parametrize(("row", "kind"), rows("tag"))
async def test_with_a_stale_tag_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row, kind: str) -> None:
    clock = use_clock(monkeypatch)
    setting = await settings_for(row, tmp_path)
    async with setting.hub as hub:
        case = await filled(hub, setting, tmp_path, monkeypatch, row, kind)
        before = cached(case.root)
        await row.apply(case)
        clock.advance(61)
        async with mirror(config_of(case, setting)) as worker:
            hub.clear_log()
            for method in ("GET", "HEAD", "GET"):
                answer = await worker.ask(method, case.path)
                if row.stale == "gone":
                    assert answer.status == 404
                    continue
                assert answer.status == 200, answer
                assert answer.headers["Docker-Content-Digest"] == case.kept.digest
                assert answer.body == (case.kept.raw if method == "GET" else b"")
                assert warning(answer), "stale without a word"
                assert "detail=stale" in answer.headers["Cache-Status"]
                assert PASSWORD not in str(answer.headers)
            # One look at the upstream, and then none for a while.
            if kind in row.asked:
                assert shown(case) == row.asked[kind]
            assert (cached(case.root), ingesting(case.root)) == (before, [])
            hub.clear_log()
            await get_image(worker, case.kept)
            assert hub.requests() == []


@pytest.mark.parametrize(("row", "kind"), rows(*KINDS))
async def test_with_everything_kept_and_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row, kind: str
) -> None:
    await kept_and_needs_no_upstream(tmp_path, monkeypatch, row, kind, use_clock(monkeypatch), age=30)


@pytest.mark.parametrize(("row", "kind"), rows("digest", "blob"))
async def test_what_is_kept_by_digest_does_not_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: Row, kind: str
) -> None:
    await kept_and_needs_no_upstream(tmp_path, monkeypatch, row, kind, use_clock(monkeypatch), age=10**8)


async def kept_and_needs_no_upstream(
    tmp_path: Path, patch: pytest.MonkeyPatch, row: Row, kind: str, clock: Clock, age: float
) -> None:
    setting = await settings_for(row, tmp_path)
    async with setting.hub as hub:
        case = await filled(hub, setting, tmp_path, patch, row, kind)
        case.image = case.kept
        before = cached(case.root)
        await row.apply(case)
        clock.advance(age)
        async with mirror(config_of(case, setting)) as worker:
            hub.clear_log()
            for method in ("GET", "HEAD"):
                answer = await worker.ask(method, case.path)
                assert (answer.status, answer.body) == (200, case.content if method == "GET" else b"")
                assert answer.headers["Content-Length"] == str(len(case.content))
                assert warning(answer) is None
                assert answer.headers["Cache-Status"].startswith("mirror; hit")
            assert hub.requests() == []
        assert (cached(case.root), ingesting(case.root)) == (before, [])


async def filled(
    hub: FakeUpstream, setting: Setting, tmp_path: Path, patch: pytest.MonkeyPatch, row: Row, kind: str
) -> Case:
    """Pull an image while all is well; then move its tag, for rows in which the new one is wrong."""
    image = hub.add_image(NAME, "v1", [5000])
    case = Case(hub, tmp_path, patch, kind, image, image)
    async with mirror(config_of(case, setting)) as worker:
        await pull_and_keep(worker, case.root, image)
    if row.moved:
        case.image = hub.add_image(NAME, "v1", [6000])
    return case


# ---- bodies that go wrong after their first bytes ----


@pytest.mark.parametrize("what", ["endless", "too-large-chunked"])
async def test_a_blob_without_end_is_never_whole_to_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    async with FakeUpstream() as hub:
        image = hub.add_image(NAME, "v1", [5000])
        case = Case(hub, tmp_path, monkeypatch, "blob", image, image)
        await ROWS[what].apply(case)
        async with mirror(config_of(case, Setting(hub, {}))) as worker:
            with pytest.raises(aiohttp.ClientError):
                await worker.get(case.path)
            assert hub.count("GET", case.blob) == 1
            assert case.blob.partition(":")[2] not in cached(case.root)
            hub.clear_faults()
            answer = await worker.get(case.path)
            assert (answer.status, answer.body) == (200, case.content)


async def test_the_log_says_which_upstream_did_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeUpstream() as hub:
        image = hub.add_image(NAME, "v1", [5000])
        case = Case(hub, tmp_path, monkeypatch, "digest", image, image)
        await flipped(case)
        async with mirror(config_of(case, Setting(hub, {}))) as worker:
            assert (await worker.get(case.path)).status == 502
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert len(errors) == 1
        assert "upstream up" in errors[0]
        assert image.digest in errors[0]
