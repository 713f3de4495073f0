"""The gate: what the API asks before it does anything.

Two ways to say "log in": Basic where nobody is served without it; Bearer where anybody may pull, as docker, podman and
skopeo take their only challenge from ``GET /v2/``: with a 200 there they never log in, after a 401 for Basic they
never pull without a login. A login by Basic is taken either way.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from mirror.access.authenticators import Passwords
from mirror.access.credentials import Login, Malformed, Token, parse_authorization
from mirror.access.identity import ANONYMOUS, Action, Principal
from mirror.access.listeners import through_loopback
from mirror.access.policy import Policy
from mirror.access.recent import Recent
from mirror.access.tokens import Issued, TokenInvalid, Tokens
from mirror.access.users import User, Users
from mirror.config import Access, ListenAddress
from mirror.oci.errors import Unauthorized
from mirror.worker import StartupError

log = logging.getLogger("mirror.access")

TOKEN_PATH = "/v2/_mirror/auth/token"
"""Where tokens are given."""
SERVICE = "mirror"
"""Whom our tokens are for."""
AGAIN = 60.0
"""Seconds a header that was right is not looked into again."""
_INVALID = "invalid_token"
_BASIC = 'Basic realm="mirror"'
_SCOPE = re.compile(r"[A-Za-z0-9._:/,*-]{1,1000}")


class LoginCounts(Protocol):
    """Counts what clients show, when it is looked into and not just recognized."""

    def login(self, result: str) -> None:
        """Count a password or a token. result: "accepted" or "refused"."""

    def token_issued(self) -> None:
        """Count a token given."""


class NoLoginCounts:
    def login(self, result: str) -> None: ...
    def token_issued(self) -> None: ...


class Gate:
    """Admits requests, or says why not. On the event loop; ``start`` before the first, ``close`` after the last."""

    def __init__(
        self,
        settings: Access,
        *,
        secret: bytes,
        listen: Sequence[ListenAddress] = (),
        service: str = SERVICE,
        clock: Callable[[], float] = time.monotonic,
        counts: LoginCounts | None = None,
    ) -> None:
        """Prepare. secret: of the root, so that workers and restarts agree. listen: where the service listens."""
        self._settings = settings
        self._counts = counts or NoLoginCounts()
        self._policy = Policy(settings)
        self._listen = tuple(listen)
        self._service = service
        self._tokens = Tokens(secret, service=service)
        self._users = Users(settings.htpasswd_file, clock=clock) if settings.htpasswd_file is not None else None
        self._passwords = None if self._users is None else Passwords(self._users, secret=secret, clock=clock)
        self._recent = Recent(self._users, clock=clock)
        self._open = self._users is None and self._policy.everywhere
        self._bearer = self._users is not None and self._policy.anonymous_pull

    async def start(self) -> None:
        """Read the users. Raises: StartupError when their file cannot be used."""
        if self._users is None:
            return
        await self._users.refresh()
        if self._users.failure:
            raise StartupError(f"access.htpasswd_file: {self._settings.htpasswd_file} {self._users.failure}")
        named = {*(self._settings.push or ()), *self._settings.admin}
        for name in sorted(named - self._users.names()):
            log.warning("access: user %s is listed under push or admin, and is not in htpasswd_file", name)

    async def close(self) -> None:
        """Let go of the threads."""
        if self._passwords is not None:
            self._passwords.close()
        if self._users is not None:
            await self._users.close()

    @property
    def has_users(self) -> bool:
        """Say whether anybody can log in."""
        return self._users is not None

    def admits_anybody(self, action: Action) -> bool:
        """Say whether ``admit`` lets this through whoever asks, so that it need not be asked."""
        return self._open and (action is Action.PULL or action is Action.LOGIN)

    def check_client(self, client: str) -> None:
        """Let clients of the allowed networks pass. client: an IP address. Raises: Denied (403 DENIED)."""
        self._policy.check_client(client)

    def through_loopback(self, local: object) -> bool:
        """Say whether a connection came through a listener on loopback. local: its own address (getsockname)."""
        return through_loopback(local, self._listen)

    async def admit(
        self,
        *,
        authorization: str | None,
        client: str | None,
        loopback: bool,
        realm: str,
        action: Action,
        scope: str | None,
        passed_on: bool = False,
    ) -> Principal:
        """Let a request through.

        authorization: its header. client: the IP address it comes from. loopback: whether it is of this machine, by a
        listener that only this machine reaches. realm: the URL at which the client gets tokens. scope: what a token
        would be asked for, ``repository:<name>:pull,push``, None for nothing in particular. passed_on: whether
        somebody passed it on who may have got it from anywhere.
        Raises: Unauthorized (401 UNAUTHORIZED), Denied (403 DENIED), Busy (503 UNAVAILABLE).
        """
        if self.admits_anybody(action):
            return ANONYMOUS
        policy = self._policy
        policy.check_client(client)
        if self._users is None:
            policy.check(ANONYMOUS, action, loopback=loopback, passed_on=passed_on)
            return ANONYMOUS
        principal, by_token = ANONYMOUS, False
        if authorization is not None:
            if self._users.due():
                await self._users.refresh()
            known = self._recent.get(authorization)
            try:
                principal, by_token = (known, False) if known else await self._identify(authorization, client)
            except _Refused as refused:
                raise self._unauthorized(str(refused), realm, scope, refused.error) from None
        if policy.check(principal, action, loopback=loopback):
            return principal
        if by_token and action is Action.LOGIN and policy.anonymous_pull:
            return principal  # a token of ours, if only of anybody
        raise self._unauthorized("log in to do this", realm, scope, "insufficient_scope" if by_token else "")

    async def issue(
        self, *, authorization: str | None = None, login: Login | None = None, client: str | None
    ) -> Issued:
        """Give a token: to a user by a Basic header or by a login, to anybody without one, who may only pull.

        Raises: Unauthorized (401 UNAUTHORIZED), Denied (403 DENIED), Busy (503 UNAVAILABLE).
        """
        issued = await self._issue(authorization, login, client)
        self._counts.token_issued()
        return issued

    async def _issue(self, authorization: str | None, login: Login | None, client: str | None) -> Issued:
        self._policy.check_client(client)
        if self._users is None:
            return self._tokens.issue(None)
        if self._users.due():
            await self._users.refresh()
        try:
            given = login or _parse(authorization)
            if isinstance(given, Token):
                raise _Refused("a token is given for a login by Basic, not for another token")
            if given is None and not self._policy.anonymous_pull:
                raise _Refused("log in to get a token")
            return self._tokens.issue(await self._user(given, client) if given is not None else None)
        except _Refused as refused:
            raise Unauthorized(str(refused), challenge=_BASIC) from None

    async def _identify(self, header: str, client: str | None) -> tuple[Principal, bool]:
        """Return who sent a header, and whether by a token of ours. Raises: _Refused."""
        match _parse(header):
            case None:
                return ANONYMOUS, False
            case Login() as login:
                return self._recent.put(header, await self._user(login, client), AGAIN), False
            case Token(text):
                try:
                    claims = self._tokens.verify(text)
                except TokenInvalid:
                    self._counts.login("refused")
                    raise _Refused("the token is none of ours, or is over; ask for a new one", _INVALID) from None
                if claims.name is None:
                    return ANONYMOUS, True
                assert self._users is not None
                user = self._users.get(claims.name)
                if user is None or self._tokens.fingerprint(user) != claims.fingerprint:
                    self._counts.login("refused")
                    raise _Refused("the token's user or password is no more; log in again", _INVALID)
                self._counts.login("accepted")
                return self._recent.put(header, user, min(AGAIN, self._tokens.seconds_left(claims))), True

    async def _user(self, login: Login, client: str | None) -> User:
        assert self._passwords is not None
        user = await self._passwords.verify(login, client)
        self._counts.login("refused" if user is None else "accepted")
        if user is None:
            raise _Refused("the user name or the password is wrong")
        return user

    def _unauthorized(self, message: str, realm: str, scope: str | None, error: str = "") -> Unauthorized:
        if not self._bearer:
            return Unauthorized(message, challenge=_BASIC)
        challenge = f'Bearer realm="{realm}",service="{self._service}"'
        if scope is not None and _SCOPE.fullmatch(scope):  # made of a path, which may hold anything
            challenge += f',scope="{scope}"'
        if error:
            challenge += f',error="{error}"'
        return Unauthorized(message, challenge=challenge)


class _Refused(Exception):
    """What was said is wrong, and why. error: of a token (RFC 6750 section 3.1)."""

    def __init__(self, message: str, error: str = "") -> None:
        super().__init__(message)
        self.error = error


def _parse(header: str | None) -> Login | Token | None:
    try:
        return parse_authorization(header)
    except Malformed as error:
        raise _Refused(f"the Authorization header cannot be read: {error}") from None
