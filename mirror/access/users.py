"""The file of users: one ``name:hash`` a line, bcrypt only; read again when it has changed.

A line that cannot be used is reported once, by its number, and is nobody's. A file that cannot be used at all leaves
the users there were, and is reported once. Nothing of a line is ever logged but its number.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("mirror.access")

LOOK_EVERY = 1.0
"""Seconds between two looks at the file, at least."""
MAX_FILE = 1024**2
MIN_COST, MAX_COST = 4, 16
"""log2 of bcrypt's rounds. The most is four seconds a login; one more doubles it."""

_HASH = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_TRIES, _PAUSE = 10, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One line of the file. hash: of bcrypt, with its salt and its cost."""

    name: str
    hash: bytes = field(repr=False)

    @property
    def cost(self) -> int:
        return int(self.hash[4:6])


class Users:
    """Who there is, by name. Used on the event loop; the file is looked at in a thread."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._due = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._users: Mapping[str, User] = {}
        self._raw: bytes | None = None
        self._failure = ""
        self._complaints: frozenset[str] = frozenset()
        self.costs: tuple[int, ...] = ()
        """The cost of each user's hash, in the order of the file."""

    def get(self, name: str) -> User | None:
        return self._users.get(name)

    def names(self) -> frozenset[str]:
        return frozenset(self._users)

    @property
    def failure(self) -> str:
        """Why the file could not be used when it was looked at last; "" when it could."""
        return self._failure

    def due(self) -> bool:
        """Say whether it is time to look at the file again."""
        return self._clock() >= self._due

    async def refresh(self) -> None:
        """Read the file again if it has changed. All who ask meanwhile wait for one look; it never fails."""
        if self._looking is None:
            self._due = self._clock() + LOOK_EVERY
            self._looking = asyncio.create_task(self._look())
        await asyncio.shield(self._looking)

    async def close(self) -> None:
        """Wait for a look that is under way."""
        if self._looking is not None:
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        try:
            self._take(await asyncio.get_running_loop().run_in_executor(None, read_users, self._path, self._raw))
        finally:
            self._looking = None

    def _take(self, found: Found | None) -> None:
        failure = found.failure if found is not None else ""
        for complaint in sorted((found.complaints if found is not None else frozenset()) - self._complaints):
            log.error("access.htpasswd_file: %s, %s", self._path, complaint)
        if failure and failure != self._failure:
            kept = "nobody can log in" if self._raw is None else "the users of before stay"
            log.error("access.htpasswd_file: %s %s; %s", self._path, failure, kept)
        if self._failure and not failure:
            log.warning("access.htpasswd_file: %s can be used again", self._path)
        self._failure = failure
        if found is None:
            return
        self._complaints = found.complaints
        if failure:
            return
        if self._raw is not None:
            log.info("access.htpasswd_file: %s has changed; users: %d", self._path, len(found.users))
        self._raw, self._users = found.raw, found.users
        self.costs = tuple(user.cost for user in found.users.values())


def parse_users(raw: bytes) -> tuple[dict[str, User], frozenset[str]]:
    """Return the users of a file by name, and what is wrong with its lines.

    The first line of a name counts, as in Apache. Empty lines and lines that begin with # are left out.
    """
    users: dict[str, User] = {}
    complaints: set[str] = set()
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = line.strip()
        if not line or line.startswith(b"#"):
            continue
        name, colon, hashed = line.partition(b":")
        problem = _problem(name, colon, hashed)
        if not problem and name.decode() in users:
            problem = "a name that an earlier line has"
        if problem:
            complaints.add(f"line {number}: {problem}; this line is not used")
        else:
            users[name.decode()] = User(name=name.decode(), hash=hashed)
    return users, frozenset(complaints)


def _problem(name: bytes, colon: bytes, hashed: bytes) -> str:
    """Say what is wrong with a line; "" for nothing."""
    if not name or not colon:
        return "no name:hash"
    try:
        name.decode()
    except UnicodeDecodeError:
        return "a name that is not UTF-8"
    found = _HASH.fullmatch(hashed)
    if not found:
        return "a hash that is not of bcrypt (make it by htpasswd -B)"
    if not MIN_COST <= int(found[1]) <= MAX_COST:
        return f"a bcrypt cost that is not {MIN_COST} to {MAX_COST}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file as it was read. failure: why it cannot be used; "" when it can."""

    raw: bytes = field(default=b"", repr=False)
    users: Mapping[str, User] = field(default_factory=dict)
    complaints: frozenset[str] = frozenset()
    failure: str = ""


def read_users(path: Path, known: bytes | None = None) -> Found | None:
    """Read the file; None when it is what is known. Blocks.

    It is compared whole: times and sizes of files are too coarse to show a change right after another. And it is
    read until it is the same twice, as it may be in the midst of being written.
    """
    try:
        raw = _contents(path)
        for _ in range(_TRIES):
            if raw == known:
                return None
            previous = raw
            time.sleep(_PAUSE)  # in a thread; whoever writes the file may not be done
            raw = _contents(path)
            if raw == previous:
                break
    except _Unusable as error:
        return Found(failure=str(error))
    except OSError as error:
        return Found(failure=f"cannot be read ({error.strerror})")
    users, complaints = parse_users(raw)
    failure = "has no line that can be used" if complaints and not users else ""
    return Found(raw=raw, users=users, complaints=complaints, failure=failure)


class _Unusable(Exception):
    """What is at the path is no file of users."""


def _contents(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _Unusable("is not a file")
        raw = os.read(fd, MAX_FILE + 1)
        if len(raw) > MAX_FILE:
            raise _Unusable(f"is larger than {MAX_FILE} bytes")
        return raw
    finally:
        os.close(fd)
