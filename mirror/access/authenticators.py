"""Is this the user's password? bcrypt in threads, few at a time; what it said is remembered for a while.

A check costs as much for users there are not as for those there are. What is remembered holds no password: its key is
a MAC of user, password and the user's line, so that a changed password or a removed user has nothing remembered.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, ip_address

import bcrypt
from cachetools import TTLCache

from mirror.access.credentials import Login
from mirror.access.users import User, Users
from mirror.oci.errors import Busy

MAX_PASSWORD = 72
"""Bytes bcrypt looks at; a longer password would be right whatever follows."""
REMEMBERED = 300.0
"""Seconds a login that was right is remembered."""
REFUSED = 10.0
"""Seconds a login that was wrong is remembered: a client that repeats it costs nothing."""
THREADS = 2
"""Checks at a time in a process, one at a time for each client."""
WAITING = 64
"""Checks of one client that may wait."""
DEFAULT_COST = 10
_SALT_AND_HASH = b"." * 53


class Passwords:
    """Verifies logins against the users. On the event loop."""

    def __init__(self, users: Users, *, secret: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare. secret: shared by all workers, so that they treat a name that is nobody's alike."""
        self._users = users
        self._secret = secret[:64]  # as long as a key of BLAKE2b may be
        self._key = secrets.token_bytes(32)
        self._right: TTLCache[bytes, bool] = TTLCache(4096, REMEMBERED, timer=clock)
        self._wrong: TTLCache[bytes, bool] = TTLCache(4096, REFUSED, timer=clock)
        self._threads = ThreadPoolExecutor(THREADS, "mirror-bcrypt", initializer=_step_back)
        self._lines: dict[str, _Line] = {}

    async def verify(self, login: Login, client: str | None) -> User | None:
        """Return the user whose password this is, None when it is nobody's. client: the address it came from.

        Raises: Busy (503 UNAVAILABLE) when too many checks of the client wait already.
        """
        if len(login.password) > MAX_PASSWORD:
            return None
        user = self._users.get(login.name)
        hashed = user.hash if user is not None else self._decoy(login.name)
        key = self._remembered_as(login, hashed)
        if key in self._right:
            return user
        if key in self._wrong:
            return None
        async with self._turn(client):
            right = key in self._right
            if not right and key not in self._wrong:  # nobody has checked it while this one waited
                loop = asyncio.get_running_loop()
                right = await loop.run_in_executor(self._threads, _check, login.password, hashed)
                (self._right if right else self._wrong)[key] = True
        now = self._users.get(login.name)  # the file may have changed meanwhile
        return now if right and now is not None and now.hash == hashed else None

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _remembered_as(self, login: Login, hashed: bytes) -> bytes:
        name = login.name.encode()
        text = b"%d:%b%d:%b%b" % (len(name), name, len(login.password), login.password, hashed)
        return hashlib.blake2b(text, key=self._key, digest_size=24).digest()

    def _decoy(self, name: str) -> bytes:
        """Return a hash of nothing for a name that is nobody's, always the same cost for the same name."""
        costs = self._users.costs or (DEFAULT_COST,)
        chosen = hashlib.blake2b(name.encode(), key=self._secret, digest_size=8, person=b"mirror decoys").digest()
        return b"$2b$%02d$%b" % (costs[int.from_bytes(chosen) % len(costs)], _SALT_AND_HASH)

    @asynccontextmanager
    async def _turn(self, client: str | None) -> AsyncIterator[None]:
        """Wait until no other check of the client is under way: who floods us waits in a line of its own."""
        name = _network_of(client)
        line = self._lines.setdefault(name, _Line())
        if line.waiting >= WAITING:
            raise Busy("too many logins at once from this address; try again in a moment")
        line.waiting += 1
        try:
            async with line.first:
                yield
        finally:
            line.waiting -= 1
            if not line.waiting:
                del self._lines[name]


class _Line:
    """The checks one client waits for."""

    def __init__(self) -> None:
        self.first = asyncio.Lock()
        self.waiting = 0


def _network_of(client: str | None) -> str:
    """Return what stands for a client: its address, of IPv6 the network a client can choose addresses in."""
    try:
        address = ip_address(client or "")
    except ValueError:
        return client or ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(int(address) >> 64)
    return str(address)


def _check(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:
        return False  # older versions refuse a NUL


def _step_back() -> None:
    """Let the event loop go first where there is one core. Of this thread only: so Linux takes it."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    except OSError:
        pass
