"""How we say who we are to an upstream: challenge → token or Basic, with a login only where it may go.

A token is fetched once for all who wait for it, kept for 80 % of its life, and dropped when it is refused; one that
is kept is used even if the account has changed since. A login that is refused is read anew, and tried again if it
is another one.
Sources: distribution "Token Authentication Specification" and "OAuth2 Token Authentication"; RFC 6749; RFC 6750;
RFC 7617.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

import aiohttp
from cachetools import TLRUCache
from yarl import URL

from mirror.oci.errors import UpstreamError, UpstreamRateLimited, UpstreamTokenFailed
from mirror.oci.names import RepositoryName
from mirror.upstream.challenge import Challenge, choose, parse_challenges
from mirror.upstream.credentials import Account
from mirror.upstream.guard import realm_allowed
from mirror.upstream.logins import USABLE, IdentityToken, Login, LoginFailed, Password, RegistryToken
from mirror.upstream.report import FAILURES, Reporter, cause_of, retry_after

DEFAULT_LIFETIME = 60.0
"""Seconds a token lives when its endpoint does not say."""

LONGEST_LIFETIME = 86_400.0
KEPT_PART = 0.8
MOST_TOKENS = 4096
TOKEN_LIMIT = 256 * 1024
"""Longest answer of a token endpoint, in bytes."""

CLIENT_ID = "oci-mirror"
"""Who asks, in the form that goes with an identity token; realms want one and believe it."""


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
    """What a token is for. scope: "" for nothing in particular."""

    realm: str
    service: str
    scope: str


@dataclass(frozen=True, slots=True, eq=False)
class Token:
    """A token. lifetime: seconds from when it was given. anonymous: no login was given for it."""

    key: TokenKey
    value: str = field(repr=False)
    lifetime: float
    anonymous: bool


class Sender(Protocol):
    """Send a GET, or a POST of a form, to wherever the upstream said, by the rules for such places."""

    def __call__(
        self, url: URL, *, authorization: str | None, form: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]: ...


class Authenticator:
    """Everything about the challenges and tokens of one account at one registry. Used on one event loop.

    repository, in its methods: what is asked for there; None for nothing in particular, as a login is.
    """

    def __init__(
        self,
        *,
        url: URL,
        realms: Sequence[str],
        account: Account | None,
        send: Sender,
        report: Reporter,
        timeout: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """url: of the registry. realms: further hosts that may be given the login. account: None for nobody's.

        timeout: seconds a token may take. clock: seconds, for the age of tokens.
        """
        self._url = url
        self._host = url.host or ""
        self._realms = realms
        self._account = account
        self._login: Login | None = None
        self._read = False
        self._send = send
        self._report = report
        self._timeout = timeout
        self._challenge: Challenge | None = None
        self._tokens: TLRUCache[TokenKey, Token] = TLRUCache(
            MOST_TOKENS, ttu=lambda _key, token, now: now + token.lifetime * KEPT_PART, timer=clock
        )
        self._flights: dict[TokenKey, asyncio.Task[Authorization]] = {}

    @property
    def user(self) -> str | None:
        """What to call the account: its user's name if that is known; None when we are nobody here."""
        if self._account is None or (self._read and self._login is None):
            return None
        return self._login.username if isinstance(self._login, Password) else self._account.label

    @property
    def setting(self) -> str:
        """The setting to check when the account is refused."""
        return self._account.setting if self._account else "credentials"

    async def identify(self) -> None:
        """Find out whether the account has a login here, so that ``user`` says so.

        Raises: UpstreamTokenFailed.
        """
        if not self._read:
            await self._current()

    async def known(self, repository: RepositoryName | None) -> Authorization:
        """Return what the last challenge of this upstream asks for, so that no request has to be refused first."""
        if self._challenge is None:
            return Authorization()
        return await self._answer(self._challenge, repository)

    async def challenged(
        self, headers: Sequence[str], repository: RepositoryName | None, *, used: Authorization
    ) -> Authorization | None:
        """Return what a 401 asks for; None when there is nothing more to offer.

        headers: its ``WWW-Authenticate`` lines. used: what went with the refused request.
        Raises: Refused, UpstreamTokenFailed, UpstreamRateLimited, UpstreamTimeout.
        """
        if used.token is not None:
            if self._tokens.get(used.token.key) is used.token:
                del self._tokens[used.token.key]
            if used.anonymous and self._account is not None:
                self._account.refused()  # nobody's token: it may have a login by now
        challenge = choose(parse_challenges(headers))
        if challenge is None:
            await self.identify()
            return None
        self._challenge = challenge
        answer = await self._answer(challenge, repository)
        if answer.token is None and answer.header == used.header:
            return await self._renewed(challenge, repository, used)
        return answer if answer.header is not None and answer.header != used.header else None

    async def denied(self, repository: RepositoryName | None, *, used: Authorization) -> Authorization | None:
        """Return what a 403 may be answered with, as some say it of a login that has expired; None for nothing.

        used: what went with the refused request. Raises: what ``challenged`` does.
        """
        if self._challenge is None or used.header is None or used.token is not None:
            await self.identify()
            return None
        return await self._renewed(self._challenge, repository, used)

    async def _renewed(
        self, challenge: Challenge, repository: RepositoryName | None, used: Authorization
    ) -> Authorization | None:
        """Return an answer with a login that is not the one used; None when there is no other."""
        if self._account is None:
            return None
        self._account.refused()
        answer = await self._answer(challenge, repository)
        return answer if answer.header is not None and answer.header != used.header else None

    async def _answer(self, challenge: Challenge, repository: RepositoryName | None) -> Authorization:
        if challenge.scheme == "basic":
            # It goes to the registry itself. The other kinds of login are nothing it could take.
            login = await self._current()
            return Authorization(login.basic, anonymous=False) if isinstance(login, Password) else Authorization()
        try:
            return await self._bearer(challenge, repository)
        except (Refused, UpstreamError):
            self._challenge = None  # it leads nowhere now: the registry may name another realm next time
            raise

    async def _current(self) -> Login | None:
        """Return what the account holds now."""
        if self._account is None:
            return None
        try:
            self._login = await self._account.login()
        except LoginFailed as failed:
            raise self._report.error(UpstreamTokenFailed, failed.message, host=self._host) from failed
        self._read = True
        return self._login

    async def _bearer(self, challenge: Challenge, repository: RepositoryName | None) -> Authorization:
        # Our own scope: ghcr.io's challenge of /v2/ holds a placeholder, and some ask for more than a pull needs.
        scope = f"repository:{repository}:pull" if repository is not None else ""
        key = TokenKey(challenge.realm, challenge.service, scope)
        token = self._tokens.get(key)
        if token is not None:
            return _bearing(token)
        flight = self._flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._fetch(key), name=f"token {self._report.upstream} {repository}")
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        # Shielded: who leaves must not take the token away from those who stay.
        return await asyncio.shield(flight)

    def _landed(self, key: TokenKey, flight: asyncio.Task[Authorization]) -> None:
        self._flights.pop(key, None)
        if not flight.cancelled():
            flight.exception()  # seen, even if everybody has left

    async def _fetch(self, key: TokenKey) -> Authorization:
        login = await self._current()
        try:
            return await self._exchange(key, login)
        except Refused:
            if self._account is None:
                raise
            self._account.refused()
            renewed = await self._current()
            if renewed == login:
                raise
            return await self._exchange(key, renewed)

    async def _exchange(self, key: TokenKey, login: Login | None) -> Authorization:
        """Turn a login into a token; a ready token is one."""
        if isinstance(login, RegistryToken):
            return Authorization(f"Bearer {login.value}", anonymous=False)
        realm = self._realm(key)
        # In a thread: the first question loads the list of public suffixes.
        if login is not None and not await asyncio.to_thread(realm_allowed, self._url, realm, self._realms):
            raise self._report.error(
                UpstreamTokenFailed,
                f"its token realm {realm.host_port_subcomponent!r:.120} may not be given the credentials of "
                f"{self.user!r}; if it should be, list it in realms of this upstream",
                host=self._host,
            )
        result = "failed"
        try:
            token = await self._token(key, login, realm)
            result = "granted"
        except Refused:
            result = "refused"
            raise
        finally:
            self._report.metrics.token(self._report.label or self._report.upstream, result)
        self._tokens[key] = token
        return _bearing(token)

    async def _token(self, key: TokenKey, login: IdentityToken | Password | None, realm: URL) -> Token:
        """Ask a realm for a token. Raises: Refused; UpstreamError, which is logged and counted."""
        host = realm.host or ""
        asked = {"service": key.service} if key.service else {}
        if key.scope:
            asked["scope"] = key.scope
        what = f"no token from {host}{f' for {key.scope}' if key.scope else ''}"
        try:
            async with asyncio.timeout(self._timeout), self._ask(realm, asked, login) as response:
                status = response.status
                wait = retry_after(response.headers.get("Retry-After"))
                raw = await _whole(response) if status in (200, 400) else b""
        except TimeoutError as error:
            raise self._report.translated(error, what, host=host) from error
        except FAILURES as error:
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: {cause_of(error)}", host=host, cause=error
            ) from error
        by_form = isinstance(login, IdentityToken)
        if status in (401, 403) or (by_form and status == 400 and _parsed(raw).get("error") == "invalid_grant"):
            raise Refused(host=host, status=status, with_credentials=login is not None)
        if status == 429:
            raise self._report.error(
                UpstreamRateLimited,
                f"{what}: it limits our rate; try again later",
                host=host,
                status=status,
                retry_after=wait,
            )
        if status != 200:
            advice = "try again later"
            if by_form and status in (400, 404, 405):
                advice = f"it may take no identity tokens; give a user and a password in {self.setting}"
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: it answered {status}; {advice}", host=host, status=status
            )
        token = _parse_token(raw, key, anonymous=login is None)
        if token is None:
            raise self._report.error(
                UpstreamTokenFailed, f"{what}: its answer holds no token; check the url", host=host, status=status
            )
        return token

    def _ask(
        self, realm: URL, asked: Mapping[str, str], login: IdentityToken | Password | None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        match login:
            case IdentityToken():
                grant = {"grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": login.value}
                return self._send(realm, authorization=None, form={**asked, **grant})
            case Password():
                return self._send(realm.extend_query(asked), authorization=login.basic)
            case None:
                return self._send(realm.extend_query(asked), authorization=None)
            case _:
                assert_never(login)

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

    async def close(self) -> None:
        """End the fetches under way, and what the account does."""
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._account is not None:
            await self._account.close()


def _bearing(token: Token) -> Authorization:
    return Authorization(f"Bearer {token.value}", anonymous=token.anonymous, token=token)


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > TOKEN_LIMIT:
            return b""
    return bytes(raw)


def _parsed(raw: bytes) -> Mapping[str, Any]:
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _parse_token(raw: bytes, key: TokenKey, *, anonymous: bool) -> Token | None:
    body = _parsed(raw)
    value = body.get("token") or body.get("access_token")
    if not isinstance(value, str) or not USABLE.fullmatch(value):
        return None
    lifetime = body.get("expires_in")
    if not isinstance(lifetime, (int, float)) or isinstance(lifetime, bool) or not lifetime >= 0:
        lifetime = DEFAULT_LIFETIME
    return Token(key, value, min(float(lifetime), LONGEST_LIFETIME), anonymous)
