"""What a client says about itself: the Authorization header (RFC 9110 section 11.6.2) becomes a value at the door."""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field

MAX_HEADER = 8192
"""Characters of an Authorization header that are looked at."""


class Malformed(ValueError):
    """The header cannot be read."""


@dataclass(frozen=True, slots=True)
class Login:
    """A user name and a password in UTF-8 (RFC 7617)."""

    name: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token (RFC 6750), unchecked."""

    text: str = field(repr=False)


def parse_authorization(header: str | None) -> Login | Token | None:
    """Read the header; None for nobody: no header, an empty one, or Basic without a user.

    Raises: Malformed when it is neither Basic nor Bearer, or cannot be read.
    """
    if header is None:
        return None
    if len(header) > MAX_HEADER or not header.isascii():
        raise Malformed("too long, or not ASCII")
    scheme, _, rest = header.strip().partition(" ")
    rest = rest.strip()
    match scheme.lower():
        case "":
            return None
        case "basic":
            return _login(rest)
        case "bearer" if rest:
            return Token(rest)
        case _:
            raise Malformed("neither Basic nor Bearer")


def _login(encoded: str) -> Login | None:
    try:
        # padding is optional, what is no base64 is refused: it would be passed over silently
        raw = binascii.a2b_base64(encoded.rstrip("=") + "=" * (-len(encoded.rstrip("=")) % 4), strict_mode=True)
        name, colon, password = raw.partition(b":")
        text = name.decode()
    except ValueError:  # of base64 and of UTF-8 alike
        raise Malformed("no base64 of UTF-8") from None
    if not colon:
        if not text:
            return None
        raise Malformed("no colon between user and password")
    return Login(text, password) if text else None
