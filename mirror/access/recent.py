"""Headers that were right a moment ago: a client that pulls sends the same one a thousand times.

No header is kept, only a MAC of it; and what is known of it ends with the very line of the user's file it stood for.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from mirror.access.identity import Principal
from mirror.access.users import User, Users

MOST = 4096
"""Headers that are known; with more, all are forgotten and looked into again."""


class Recent:
    """Who sent a header. On the event loop. In front of slower memories, and less than them on purpose."""

    def __init__(self, users: Users | None, *, clock: Callable[[], float]) -> None:
        self._users = users
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._known: dict[bytes, tuple[float, User, Principal]] = {}

    def get(self, header: str) -> Principal | None:
        """Return who sent it; None when that is not known, not known any more, or true no more."""
        found = self._known.get(self._named(header))
        if found is None or self._users is None:
            return None
        until, user, principal = found
        # the same object: a file that is read again has new ones
        return principal if self._clock() < until and self._users.get(user.name) is user else None

    def put(self, header: str, user: User, seconds: float) -> Principal:
        """Keep for so long that it is this user's; return who that is."""
        principal = Principal(name=user.name)
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[self._named(header)] = self._clock() + seconds, user, principal
        return principal

    def _named(self, header: str) -> bytes:
        return hashlib.blake2b(header.encode(errors="surrogatepass"), key=self._key, digest_size=24).digest()
