"""The kinds of login a registry may be given: a password, an identity token, a ready registry token.

An account that has none of them for a registry is nobody there, and what is fetched with it is public.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

USABLE = re.compile(r"[\x21-\x7e]+")
"""What a token must consist of: it goes into a header as it is."""


@dataclass(frozen=True, slots=True)
class Password:
    """A user and a password as read. They go to the registry itself, or to its token realm."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """What the header Authorization says (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class IdentityToken:
    """What a token realm, and nobody else, gives tokens for: a refresh token (RFC 6749 section 6)."""

    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RegistryToken:
    """A token that the registry takes as it is. It goes to no realm."""

    value: str = field(repr=False)


Login = Password | IdentityToken | RegistryToken


class LoginFailed(Exception):
    """What an account holds cannot be had now. message: for clients: what, which and what to do, no secret."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
