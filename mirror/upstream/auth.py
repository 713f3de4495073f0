"""How we say who we are to an upstream: challenge → token or Basic, with the password only where it may go.

A token is fetched once for all who wait for it, kept for 80 % of its life, and dropped when it is refused.
Sources: distribution "Token Authentication Specification"; RFC 6750; RFC 7617.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from cachetools import TLRUCache
from yarl import URL

from mirror import config
from mirror.oci.errors import UpstreamError, UpstreamRateLimited, UpstreamTokenFailed
from mirror.oci.names import RepositoryName
from mirror.upstream.challenge import Challenge, choose, parse_challenges
from mirror.upstream.guard import realm_allowed
from mirror.upstream.report import FAILURES, Reporter, cause_of, retry_after

DEFAULT_LIFETIME = 60.0
"""Seconds a token lives when its endpoint does not say."""

LONGEST_LIFETIME = 86_400.0
KEPT_PART = 0.8
MOST_TOKENS = 4096
TOKEN_LIMIT = 256 * 1024
"""Longest answer of a token endpoint, in bytes."""

_USABLE = re.compile(r"[\x21-\x7e]+")


class Refused(Exception):
    """A token endpoint said no (401 or 403). It is the caller who knows what that means for what was asked."""

    def __init__(self, *, host: str, status: int, with_credentials: bool) -> None:
        super().__init__(f"{host} answered {status}")
        self.host = host
        self.status = status
        self.with_credentials = with_credentials


@dataclass(frozen=True, slots=True)
class Authorization:
    """What goes with a request. anonymous: it holds no credential, nor a token got with one."""

    header: str | None = field(default=None, repr=False)
    anonymous: bool = True
    token: Token | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What a token is for. user: whose credentials it is got with, None for nobody's."""

    realm: str
    service: str
    scope: str
    user: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A token. lifetime: seconds from when it was given."""

    key: TokenKey
    value: str = field(repr=False)
    lifetime: float


@dataclass(frozen=True, slots=True)
class Login:
    """A user and a password as read."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


class Sender(Protocol):
    """Send a GET to wherever the upstream said, by the rules for such places; give its answer."""

    def __call__(
        self, url: URL, *, authorization: str | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


class PasswordFile:
    """The configured credentials, read when needed and again when the file changes."""

    def __init__(self, credentials: config.Credentials) -> None:
        self._credentials = credentials
        self._seen: tuple[int, int, int] | None = None
        self._login: Login | None = None

    async def login(self) -> Login:
        """Return user and password. Raises: OSError or ValueError."""
        return await asyncio.to_thread(self._read)

    def _read(self) -> Login:
        path = self._credentials.password_file
        assert path is not None
        found = path.stat()
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if self._login is None or seen != self._seen:
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
            self._login, self._seen = Login(self._credentials.username or "", password), seen
        return self._login


class Authenticator:
    """Everything about one upstream's challenges and tokens. Used on one event loop."""

    def __init__(
        self,
        settings: config.Upstream,
        *,
        url: URL,
        send: Sender,
        report: Reporter,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """url: of the registry. timeout: seconds a token may take. clock: seconds, for the age of tokens."""
        self._url = url
        self._host = url.host or ""
        self._realms: Sequence[str] = settings.realms
        account = settings.credentials[0] if settings.credentials else None
        self._user = account.username if account else None
        self._password = PasswordFile(account) if account else None
        self._send = send
        self._report = report
        self._timeout = timeout
        self._challenge: Challenge | None = None
        self._tokens: TLRUCache[TokenKey, Token] = TLRUCache(
            MOST_TOKENS, ttu=lambda _key, token, now: now + token.lifetime * KEPT_PART, timer=clock
        )
        self._flights: dict[TokenKey, asyncio.Task[Token]] = {}

    @property
    def user(self) -> str | None:
        """The configured user's name."""
        return self._user

    async def known(self, repository: RepositoryName) -> Authorization:
        """Return what the last challenge of this upstream asks for, so that no request has to be refused first."""
        if self._challenge is None:
            return Authorization()
        return await self._answer(self._challenge, repository)

    async def challenged(
        self, headers: Sequence[str], repository: RepositoryName, *, used: Authorization
    ) -> Authorization | None:
        """Return what a 401 asks for; None when there is nothing more to offer.

        headers: its ``WWW-Authenticate`` lines. used: what went with the refused request.
        Raises: Refused, UpstreamTokenFailed, UpstreamRateLimited, UpstreamTimeout.
        """
        if used.token is not None and self._tokens.get(used.token.key) is used.token:
            del self._tokens[used.token.key]
        challenge = choose(parse_challenges(headers))
        if challenge is None:
            return None
        self._challenge = challenge
        answer = await self._answer(challenge, repository)
        # Basic with the very same password again would be refused again.
        return answer if answer.header is not None and answer.header != used.header else None

    async def _answer(self, challenge: Challenge, repository: RepositoryName) -> Authorization:
        if challenge.scheme == "basic":
            if self._password is None:
                return Authorization()
            return Authorization((await self._login(self._password)).basic, anonymous=False)
        try:
            token = await self._token(challenge, repository)
        except (Refused, UpstreamError):
            self._challenge = None  # it leads nowhere now: the registry may name another realm next time
            raise
        return Authorization(f"Bearer {token.value}", anonymous=token.key.user is None, token=token)

    async def _token(self, challenge: Challenge, repository: RepositoryName) -> Token:
        # Our own scope: ghcr.io's challenge of /v2/ holds a placeholder, and some ask for more than a pull needs.
        key = TokenKey(challenge.realm, challenge.service, f"repository:{repository}:pull", self._user)
        token = self._tokens.get(key)
        if token is not None:
            return token
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fetch(key), name=f"token {self._report.upstream} {repository}")
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        # Shielded: who leaves must not take the token away from those who stay.
        return await asyncio.shield(flight)

    def _landed(self, key: TokenKey, flight: asyncio.Task[Token]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # seen, even if everybody has left

    async def _fetch(self, key: TokenKey) -> Token:
        realm = self._realm(key)
        host = realm.host or ""
        header = None
        if self._password is not None:
            # In a thread: the first question loads the list of public suffixes.
            if not await asyncio.to_thread(realm_allowed, self._url, realm, self._realms):
                raise self._report.error(
                    UpstreamTokenFailed,
                    f"its token realm {host[:120]!r} may not be given the credentials of user {self._user!r}; if it "
                    "should be, list it in realms of this upstream",
                    host=self._host,
                )
            header = (await self._login(self._password)).basic
        query = {"service": key.service} if key.service else {}
        url = realm.extend_query({**query, "scope": key.scope})
        self._report.metrics.token(self._report.upstream)
        what = f"no token from {host} for {key.scope}"
        try:
            async with asyncio.timeout(self._timeout), self._send(url, authorization=header) as response:
                status = response.status
                wait = retry_after(response.headers.get("Retry-After"))
                raw = await _read(response) if status == 200 else b""
        except TimeoutError as error:
            raise self._report.translated(error, what, host=host) from error
        except FAILURES as error:
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: {cause_of(error)}", host=host, cause=error
            ) from error
        if status in (401, 403):
            raise Refused(host=host, status=status, with_credentials=header is not None)
        if status == 429:
            raise self._report.error(
                UpstreamRateLimited,
                f"{what}: it limits our rate; try again later",
                host=host,
                status=status,
                retry_after=wait,
            )
        if status != 200:
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: it answered {status}; try again later", host=host, status=status
            )
        token = _parse_token(raw, key)
        if token is None:
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: its answer holds no token; check the url", host=host, status=status
            )
        self._tokens[key] = token
        return token

    def _realm(self, key: TokenKey) -> URL:
        try:
            realm = URL(key.realm)
            usable = realm.scheme in ("http", "https") and bool(realm.host) and realm.user is None
        except ValueError:
            usable = False
        if not usable:
            raise self._report.error(
                UpstreamTokenFailed, "the token realm it names is not a usable http URL", host=self._host
            )
        return realm.with_fragment(None)

    async def _login(self, password: PasswordFile) -> Login:
        try:
            return await password.login()
        except (OSError, ValueError) as error:
            raise self._report.error(
                UpstreamTokenFailed,
                f"the password of user {self._user!r} cannot be read: check credentials.password_file",
                host=self._host,
                cause=error,
            ) from error

    async def close(self) -> None:
        """End the fetches under way."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > TOKEN_LIMIT:
            return b""
    return bytes(raw)


def _parse_token(raw: bytes, key: TokenKey) -> Token | None:
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    value = body.get("token") or body.get("access_token")
    if not isinstance(value, str) or not _USABLE.fullmatch(value):
        return None
    lifetime = body.get("expires_in")
    if not isinstance(lifetime, (int, float)) or isinstance(lifetime, bool) or not lifetime >= 0:
        lifetime = DEFAULT_LIFETIME
    return Token(key, value, min(float(lifetime), LONGEST_LIFETIME))
