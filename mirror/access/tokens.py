"""Tokens of our own: a login, proved for some minutes. JWT (RFC 7519) under a key only this root has.

A token says who logged in, by which password (a fingerprint of the user's line), and until when. What its user may do
is asked again with each request. Without a user it is anybody's, for pulling.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import jwt
from cachetools import TLRUCache

from mirror.access.users import User

LIFETIME = 300
"""Seconds. Clients take less than 60 for a mistake."""
_ALGORITHM = "HS256"
_FINGERPRINT = "pwf"
_REQUIRED = ("aud", "exp", "iat")


class TokenInvalid(ValueError):
    """A token that is none of ours, or is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A token for a client. expires_in: seconds; issued_at: unix time."""

    token: str = field(repr=False)
    expires_in: int
    issued_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a valid token says. name: of the user, None for anybody. expires: unix time."""

    name: str | None
    fingerprint: str = field(repr=False)
    expires: float


class Tokens:
    """Makes and verifies them. On the event loop."""

    def __init__(
        self, secret: bytes, *, service: str, lifetime: int = LIFETIME, clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare. secret: of the root. service: whom they are for (``aud``). clock: unix time."""
        self._key = hashlib.blake2b(secret, digest_size=32, person=b"mirror tokens").digest()
        self._fingerprints = hashlib.blake2b(secret, digest_size=32, person=b"mirror prints").digest()
        self._service = service
        self._lifetime = lifetime
        self._clock = clock
        self._verified: TLRUCache[bytes, Claims] = TLRUCache(4096, _expires, timer=clock)

    def issue(self, user: User | None) -> Issued:
        """Make a token for a user, or for anybody."""
        now = int(self._clock())
        claims: dict[str, object] = {"aud": self._service, "iat": now, "exp": now + self._lifetime}
        if user is not None:
            claims |= {"sub": user.name, _FINGERPRINT: self.fingerprint(user)}
        return Issued(token=jwt.encode(claims, self._key, _ALGORITHM), expires_in=self._lifetime, issued_at=now)

    def verify(self, token: str) -> Claims:
        """Return what a token says. Raises: TokenInvalid."""
        key = hashlib.blake2b(token.encode(), key=self._key, digest_size=24).digest()
        known = self._verified.get(key)
        if known is None:
            known = self._verified[key] = self._decode(token)
        return known

    def seconds_left(self, claims: Claims) -> float:
        """Return for how long a token is still good."""
        return claims.expires - self._clock()

    def fingerprint(self, user: User) -> str:
        """Return what changes with the user's password, and says nothing about it."""
        return hashlib.blake2b(user.hash, key=self._fingerprints, digest_size=12).hexdigest()

    def _decode(self, token: str) -> Claims:
        try:
            found = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                audience=self._service,
                # by our own clock, below; a clock that was set back makes no token one of the future
                options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False},
            )
        except Exception as error:  # a thousand brackets are a RecursionError, which not every version of jwt catches
            raise TokenInvalid(type(error).__name__) from None
        name, fingerprint, expires = found.get("sub"), found.get(_FINGERPRINT, ""), found["exp"]
        if not isinstance(expires, (int, float)) or expires <= self._clock():
            raise TokenInvalid("over")
        return Claims(name=name, fingerprint=fingerprint, expires=expires)


def _expires(_: bytes, claims: Claims, __: float) -> float:
    return claims.expires
