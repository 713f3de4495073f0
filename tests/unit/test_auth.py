"""Challenges, tokens and credentials, as far as no real socket is needed."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aioresponses import CallbackResult, aioresponses
from yarl import URL

from mirror.config import Credentials, Upstream
from mirror.oci.errors import (
    ManifestUnknown,
    RegistryError,
    UpstreamDenied,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamTokenFailed,
)
from mirror.oci.names import RepositoryName, Tag
from mirror.upstream.auth import Authorization, Token, TokenKey
from mirror.upstream.challenge import Challenge, choose, parse_challenges
from mirror.upstream.client import RegistryClient
from mirror.upstream.logins import IdentityToken, Password, RegistryToken
from mirror.upstream.report import retry_after
from mirror.upstream.transport import Timeouts

# ---- challenges ----


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull"'],
            [
                (
                    "bearer",
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull",
                    },
                )
            ],
        ),
        (['BEARER Realm="r" , SERVICE = s'], [("bearer", {"realm": "r", "service": "s"})]),
        (['Bearer realm="r",scope="a:pull,push"'], [("bearer", {"realm": "r", "scope": "a:pull,push"})]),
        (['Bearer realm="a\\"b\\\\c"'], [("bearer", {"realm": 'a"b\\c'})]),
        (['Basic realm="x", Bearer realm="y",a=z'], [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "a": "z"})]),
        (['Bearer realm="y"', 'Basic realm="x"'], [("bearer", {"realm": "y"}), ("basic", {"realm": "x"})]),
        (["Negotiate, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate YWJj==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Basic"], [("basic", {})]),
        (['Basic realm=""'], [("basic", {"realm": ""})]),
        (['Bearer realm="first",realm="second"'], [("bearer", {"realm": "first"})]),
        (['Bearer realm="a,Basic realm=b"'], [("bearer", {"realm": "a,Basic realm=b"})]),
        ([",, Bearer realm=r,,service=s,"], [("bearer", {"realm": "r", "service": "s"})]),
        ([""], []),
        (['="'], []),
        (['Bearer realm="never closed'], [("bearer", {"realm": ""})]),
    ],
)  # fmt: skip
def test_challenges_are_read(lines: list[str], expected: list[tuple[str, dict[str, str]]]) -> None:
    found = [(challenge.scheme, challenge.parameters) for challenge in parse_challenges(lines)]
    assert found[: len(expected)] == expected
    if "never closed" not in str(lines):
        assert len(found) == len(expected)


def test_only_the_beginning_of_a_huge_challenge_is_read() -> None:
    assert len(parse_challenges(["a " * 100_000])) == 4095
    assert parse_challenges(["Bearer " + "a=b," * 100_000])[0].parameters == {"a": "b"}
    assert parse_challenges([" " * 8192 + "Basic"]) == []
    assert parse_challenges([" " * 8000 + "Basic"]) == [Challenge("basic")]


def test_bearer_is_chosen_before_basic() -> None:
    bearer, basic = Challenge("bearer", {"realm": "r"}), Challenge("basic")
    assert choose([Challenge("negotiate"), basic, bearer]) is bearer
    assert choose([Challenge("bearer"), basic]) is basic
    assert choose([Challenge("negotiate")]) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("5", 5),
        (" 0 ", 0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("Sat, 21 Nov 2099 11:00:00 GMT", 86_400),
        ("99999999", 86_400),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_has_two_forms(header: str | None, seconds: int | None) -> None:
    assert retry_after(header, now=datetime(2026, 11, 21, 12, tzinfo=UTC)) == seconds


# ---- the dance, against scripted answers ----

HUB = "https://registry-1.docker.io"
REALM = "https://auth.docker.io/token"
NAME = RepositoryName("library/alpine")
SECRET = "hunter2-never-shown"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Script:
    """A registry and its token endpoint, as callables; what they were sent."""

    def __init__(self, mocked: aioresponses) -> None:
        self.mocked = mocked
        self.sent: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.tokens = 0
        self.good: set[str] = set()
        self.anonymous_ok = False
        self.challenge: str | None = (
            f'Bearer realm="{REALM}",service="registry.docker.io",scope="repository:x:pull,push"'
        )
        self.token_answer: Callable[[], Awaitable[CallbackResult]] = self.usual_token
        self.expires_in: Any = 300
        self.field = "token"
        mocked.head(re.compile(r".*/manifests/.*"), callback=self.registry, repeat=True)
        mocked.get(re.compile(r".*/v2/$"), callback=self.ping, repeat=True)
        mocked.get(re.compile(r".*(/token|/other).*"), callback=self.token, repeat=True)

    def note(self, kind: str, url: URL, headers: Any) -> None:
        self.sent.append((kind, url.host or "", dict(url.query), dict(headers or {})))

    def of(self, kind: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
        return [(host, query, headers) for what, host, query, headers in self.sent if what == kind]

    def authorizations(self, kind: str) -> list[str | None]:
        return [headers.get("Authorization") for _, _, headers in self.of(kind)]

    def registry(self, url: URL, *, headers: Any = None, **_: Any) -> CallbackResult:
        self.note("manifest", url, headers)
        if self.anonymous_ok or headers.get("Authorization") in self.good:
            return CallbackResult(status=200, headers={"Content-Length": "7"})
        challenge = {"WWW-Authenticate": self.challenge} if self.challenge else {}
        return CallbackResult(status=401, headers=challenge)

    def ping(self, url: URL, *, headers: Any = None, **_: Any) -> CallbackResult:
        self.note("ping", url, headers)
        return CallbackResult(
            status=401,
            headers={"WWW-Authenticate": f'Bearer realm="{REALM}",scope="repository:user/image:pull"'},
        )

    async def token(self, url: URL, *, headers: Any = None, **_: Any) -> CallbackResult:
        self.note("token", url, headers)
        return await self.token_answer()

    async def usual_token(self) -> CallbackResult:
        self.tokens += 1
        value = f"token-{self.tokens}"
        self.good.add(f"Bearer {value}")
        body = {self.field: value} | ({} if self.expires_in is None else {"expires_in": self.expires_in})
        return CallbackResult(status=200, payload=body)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def script() -> Any:
    with aioresponses() as mocked:
        yield Script(mocked)


Make = Callable[..., RegistryClient]


@pytest.fixture
async def make(clock: Clock, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[RegistryClient] = []

    def build(*, login: bool = False, url: str = HUB, password: str = SECRET, **settings: Any) -> RegistryClient:
        credentials = None
        if login:
            path = tmp_path / "password"
            path.write_text(password + "\n")
            credentials = Credentials(username="us€r", password_file=path)
        client = RegistryClient(
            "docker.io",
            Upstream(url=url, credentials=credentials, **settings),
            clock=clock,
            timeouts=Timeouts(headers=5.0),
        )
        made.append(client)
        return client

    yield build
    for client in made:
        await client.close()


BASIC = "Basic " + base64.b64encode(f"us€r:{SECRET}".encode()).decode()


async def resolve(client: RegistryClient, name: str = NAME) -> bool:
    return (await client.resolve(RepositoryName(name), Tag("latest"))).anonymous


async def test_an_anonymous_token_is_fetched_and_used(script: Script, make: Make) -> None:
    assert await resolve(make()) is True
    assert script.authorizations("manifest") == [None, "Bearer token-1"]
    [(host, query, headers)] = script.of("token")
    assert host == "auth.docker.io"
    assert query == {"service": "registry.docker.io", "scope": "repository:library/alpine:pull"}
    assert "Authorization" not in headers


async def test_with_credentials_the_realm_gets_them_and_the_registry_the_token(script: Script, make: Make) -> None:
    assert await resolve(make(login=True)) is False
    assert script.authorizations("token") == [BASIC]
    assert script.authorizations("manifest") == [None, "Bearer token-1"]


async def test_a_public_answer_without_any_challenge_is_anonymous_even_with_credentials(
    script: Script, make: Make
) -> None:
    script.anonymous_ok = True
    assert await resolve(make(login=True)) is True
    assert script.of("token") == []


async def test_the_last_challenge_is_remembered(script: Script, make: Make) -> None:
    client = make()
    await resolve(client)
    await resolve(client)
    await resolve(client, "library/other")
    assert script.authorizations("manifest") == [None, "Bearer token-1", "Bearer token-1", "Bearer token-2"]
    scopes = [query["scope"] for _, query, _ in script.of("token")]
    assert scopes == ["repository:library/alpine:pull", "repository:library/other:pull"]


@pytest.mark.parametrize(
    ("expires_in", "kept"),
    [(300, 240), (None, 48), (10, 8), ("soon", 48), (True, 48), (-1, 48), (0, 0), (1e12, 86_400 * 0.8)],
)
async def test_a_token_is_kept_for_80_percent_of_its_life(
    script: Script, make: Make, clock: Clock, expires_in: Any, kept: float
) -> None:
    script.expires_in = expires_in
    client = make()
    await resolve(client)
    clock.now += max(0.0, kept - 0.01)
    await resolve(client)
    assert script.tokens == (1 if kept else 2)
    clock.now += 0.02
    await resolve(client)
    assert script.tokens == (2 if kept else 3)


async def test_access_token_is_a_token(script: Script, make: Make) -> None:
    script.field = "access_token"
    assert await resolve(make()) is True


async def test_a_refused_token_is_dropped_and_the_request_repeated_once(script: Script, make: Make) -> None:
    client = make()
    await resolve(client)
    script.good.clear()
    await resolve(client)
    assert script.authorizations("manifest")[2:] == ["Bearer token-1", "Bearer token-2"]
    script.good.clear()
    script.good.add("nothing")
    script.token_answer = _answer(200, {"token": "worthless"})
    with pytest.raises(ManifestUnknown):
        await resolve(client)
    assert script.authorizations("manifest")[4:] == ["Bearer token-2", "Bearer worthless"]


async def test_the_new_challenge_counts(script: Script, make: Make) -> None:
    client = make()
    await resolve(client)
    script.good.clear()
    script.challenge = 'Bearer realm="https://elsewhere.example/other",service="new"'
    await resolve(client)
    host, query, _ = script.of("token")[-1]
    assert (host, query["service"]) == ("elsewhere.example", "new")


async def test_a_401_without_a_challenge_asks_v2(script: Script, make: Make) -> None:
    script.challenge = None
    assert await resolve(make()) is True
    assert len(script.of("ping")) == 1
    [(_, query, _)] = script.of("token")
    assert query == {"scope": "repository:library/alpine:pull"}


async def test_basic(script: Script, make: Make) -> None:
    script.challenge = 'Basic realm="x"'
    script.good.add(BASIC)
    client = make(login=True)
    assert await resolve(client) is False
    assert await resolve(client) is False
    assert script.authorizations("manifest") == [None, BASIC, BASIC]


async def test_basic_with_a_wrong_password_is_tried_once(script: Script, make: Make) -> None:
    script.challenge = 'Basic realm="x"'
    client = make(login=True)
    for _ in range(2):
        with pytest.raises(UpstreamDenied):
            await resolve(client)
    assert script.authorizations("manifest") == [None, BASIC, BASIC]


async def test_basic_without_credentials_is_not_there(script: Script, make: Make) -> None:
    script.challenge = 'Basic realm="x"'
    with pytest.raises(ManifestUnknown):
        await resolve(make())
    assert len(script.of("manifest")) == 1


async def test_the_password_is_read_again_when_its_file_changes(script: Script, make: Make, tmp_path: Path) -> None:
    script.challenge = 'Basic realm="x"'
    client = make(login=True)
    with pytest.raises(UpstreamDenied):
        await resolve(client)
    (tmp_path / "password").write_text("a new one\r\n")
    new = "Basic " + base64.b64encode("us€r:a new one".encode()).decode()
    script.good.add(new)
    await resolve(client)
    assert script.authorizations("manifest")[-1] == new


async def test_a_password_file_that_is_gone(script: Script, make: Make, tmp_path: Path) -> None:
    client = make(login=True)
    (tmp_path / "password").unlink()
    with pytest.raises(UpstreamTokenFailed, match="password_file"):
        await resolve(client)
    assert script.of("token") == []


# ---- one fetch for all ----


async def test_waiters_share_one_fetch(script: Script, make: Make) -> None:
    client = make()
    await resolve(client, "library/other")
    gate = asyncio.Event()

    async def slow() -> CallbackResult:
        await gate.wait()
        return await script.usual_token()

    script.token_answer = slow
    waiters = [asyncio.create_task(resolve(client)) for _ in range(20)]
    await _until(lambda: len(script.of("token")) == 2)
    waiters[0].cancel()  # the one who began it
    await asyncio.wait([waiters[0]])
    gate.set()
    assert await asyncio.gather(*waiters[1:]) == [True] * 19
    assert waiters[0].cancelled()
    assert len(script.of("token")) == 2


async def test_waiters_share_the_error_and_nobody_remembers_it(
    script: Script, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    client = make(retries=0)
    await resolve(client, "library/other")
    gate = asyncio.Event()

    async def broken() -> CallbackResult:
        await gate.wait()
        return CallbackResult(status=502)

    script.token_answer = broken
    waiters = [asyncio.create_task(resolve(client)) for _ in range(10)]
    await _until(lambda: len(script.of("token")) == 2)
    gate.set()
    errors = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(error) for error in errors] == [UpstreamTokenFailed] * 10
    assert len(script.of("token")) == 2
    assert len([record for record in caplog.records if record.name == "mirror.upstream"]) == 1
    script.token_answer = script.usual_token
    assert await resolve(client) is True


async def test_a_hanging_token_endpoint_is_a_timeout(script: Script, clock: Clock) -> None:
    async def never() -> CallbackResult:
        await asyncio.Event().wait()
        raise AssertionError

    script.token_answer = never
    client = RegistryClient("docker.io", Upstream(url=HUB), timeouts=Timeouts(headers=0.05))
    with pytest.raises(UpstreamTimeout):
        await resolve(client)
    await client.close()


# ---- what a token endpoint's answers mean ----


def _answer(status: int, payload: Any = None, body: str = "", headers: Any = None) -> Any:
    async def answer() -> CallbackResult:
        return CallbackResult(status=status, payload=payload, body=body, headers=headers)

    return answer


@pytest.mark.parametrize("login", [False, True])
@pytest.mark.parametrize(
    ("answer", "anonymous", "with_login"),
    [
        (_answer(401), ManifestUnknown, UpstreamDenied),
        (_answer(403), ManifestUnknown, UpstreamDenied),
        (_answer(429, headers={"Retry-After": "7"}), UpstreamRateLimited, UpstreamRateLimited),
        (_answer(500), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(404), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, body="<html>"), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, body="[" * 100_000), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, payload=[]), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, payload={}), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, payload={"token": 5}), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, payload={"token": "a\r\nX: y"}), UpstreamTokenFailed, UpstreamTokenFailed),
        (_answer(200, payload={"token": "x" * 300_000}), UpstreamTokenFailed, UpstreamTokenFailed),
    ],
    ids=["401", "403", "429", "500", "404", "html", "deep", "list", "empty", "number", "crlf", "huge"],
)
async def test_token_endpoint_outcomes(
    script: Script,
    make: Make,
    login: bool,
    answer: Any,
    anonymous: type[RegistryError],
    with_login: type[RegistryError],
) -> None:
    script.token_answer = answer
    with pytest.raises(RegistryError) as caught:
        await resolve(make(login=login))
    assert type(caught.value) is (with_login if login else anonymous)
    assert "docker.io" in caught.value.message
    if isinstance(caught.value, UpstreamRateLimited):
        assert caught.value.retry_after == 7


# ---- secrets ----


@pytest.mark.parametrize(
    "realm",
    [
        "https://evil.com/token",
        "https://auth.docker.io.evil.com/token",
        "https://evildocker.io/token",
        "http://auth.docker.io/token",
        "https://auth.docker.io@evil.com/token",
        "https://user@auth.docker.io/token",
        "https://evil.com/..",
        "ftp://auth.docker.io/token",
        "/token",
        "",
        "https://[/token",
        "https://evil.com\\\\@auth.docker.io/token",
    ],
)
async def test_credentials_never_go_to_a_foreign_realm(
    script: Script, make: Make, realm: str, caplog: pytest.LogCaptureFixture
) -> None:
    script.challenge = f'Bearer realm="{realm}",service="x"'
    with pytest.raises((UpstreamTokenFailed, UpstreamDenied)) as caught:
        await resolve(make(login=True))
    assert script.of("token") == []
    if realm.startswith("https://evil.com/t"):
        assert "'evil.com'" in caught.value.message
        assert "realms" in caught.value.message
    assert SECRET not in caught.value.message + caplog.text


async def test_a_listed_realm_gets_them(script: Script, make: Make) -> None:
    script.challenge = 'Bearer realm="https://evil.com/token",service="x"'
    await resolve(make(login=True, realms=("evil.com",)))
    assert script.authorizations("token") == [BASIC]


async def test_any_realm_may_be_asked_without_credentials(script: Script, make: Make) -> None:
    script.challenge = 'Bearer realm="https://evil.com/token",service="x"'
    assert await resolve(make()) is True
    assert script.authorizations("token") == [None]


async def test_a_denial_names_the_user_and_never_the_password(
    script: Script, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    script.token_answer = _answer(401)
    client = make(login=True)
    with pytest.raises(UpstreamDenied) as caught:
        await resolve(client)
    assert "us€r" in caught.value.message
    told = caught.value.message + caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert SECRET not in told
    assert BASIC.split()[1] not in told
    [record] = [record for record in caplog.records if record.name == "mirror.upstream"]
    assert record.levelno == logging.WARNING
    facts = record.fields  # type: ignore[attr-defined]
    assert (facts["upstream"], facts["host"], facts["status"]) == ("docker.io", "auth.docker.io", 401)


def test_nothing_secret_has_a_repr() -> None:
    token = Token(TokenKey("r", "s", "c"), SECRET, 1.0, anonymous=False)
    logins = Password("u", SECRET), IdentityToken(SECRET), RegistryToken(SECRET)
    for value in (*logins, token, Authorization(f"Bearer {SECRET}", token=token)):
        assert SECRET not in repr(value)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)
