"""Accounts: where our login at one registry comes from, read again when it changes.

A file is read whenever a login is asked for: it is small, and its times are too coarse to show every change. A
helper is a program and costs more: what it said is remembered for some minutes, asked for once for all who wait,
and asked for anew when it was refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from yarl import URL

from mirror import config
from mirror.config.plain import read_plain
from mirror.upstream import docker_config, helper
from mirror.upstream.logins import Login, LoginFailed, Password

HELPER_KEPT = 300.0
"""Seconds what a helper said is remembered."""

ASKED_AGAIN = 10.0
"""Seconds between two times that a helper is asked because its answer was refused, or because it failed."""

FILE_LIMIT = 1024 * 1024
"""Longest file read, in bytes."""


class Account(Protocol):
    """One account at one registry. Used on one event loop.

    label: what to call it until the name of its user is known. setting: what to check when it is refused.
    """

    label: str
    setting: str

    async def login(self) -> Login | None:
        """Return what to log in with now; None when the account has nothing for this registry.

        Raises: LoginFailed.
        """

    def refused(self) -> None:
        """Take note that the registry did not accept what was returned last."""

    async def close(self) -> None:
        """End what is under way."""


def account_of(credentials: config.Credentials, url: URL, *, clock: Callable[[], float] = time.monotonic) -> Account:
    """Return the account that is configured. url: of the registry. clock: seconds, for the age of answers."""
    if credentials.docker_config is not None:
        return DockerConfig(credentials.docker_config, url, clock=clock)
    if credentials.helper is not None:
        server = docker_config.server_of(url)
        return Helper(credentials.helper, server, setting="credentials.helper", clock=clock)
    if credentials.password is not None:
        return FixedPassword(credentials.username or "", credentials.password.get_secret_value())
    assert credentials.password_file is not None
    return PasswordFile(credentials.username or "", credentials.password_file)


def unusable_file(credentials: config.Credentials, url: URL) -> tuple[str, str] | None:
    """Say which file of an account cannot be used now, by its setting, and why; None when it can. Blocks.

    url: of the registry. No helper is asked.
    """
    if credentials.password_file is not None:
        try:
            _password(credentials.password_file)
        except _Unreadable as error:
            return "password_file", str(error)
    if credentials.docker_config is not None:
        try:
            docker_config.find(_contents(credentials.docker_config), url)
        except (_Unreadable, docker_config.Malformed) as error:
            return "docker_config", str(error)
    return None


class FixedPassword:
    """An ``Account``: a user and a password that stay what they are; both come from the settings."""

    setting = "credentials.password"

    def __init__(self, username: str, password: str) -> None:
        self.label = username
        self._login = Password(username, password)

    async def login(self) -> Login | None:
        """Return user and password."""
        return self._login

    def refused(self) -> None:
        """Do nothing: there is no other password."""

    async def close(self) -> None:
        """Do nothing."""


class PasswordFile:
    """An ``Account``: a user, and a file that holds the password."""

    setting = "credentials.password_file"

    def __init__(self, username: str, path: Path) -> None:
        self.label = username
        self._path = path

    async def login(self) -> Login | None:
        """Return user and password. Raises: LoginFailed."""
        try:
            return Password(self.label, await asyncio.to_thread(_password, self._path))
        except _Unreadable as error:
            raise LoginFailed(
                f"the password of {self.label!r} cannot be read ({error}); check {self.setting}"
            ) from None

    def refused(self) -> None:
        """Do nothing: the file is read each time."""

    async def close(self) -> None:
        """Do nothing."""


class Helper:
    """An ``Account``: a credential helper."""

    def __init__(self, name: str, server: str, *, setting: str, clock: Callable[[], float] = time.monotonic) -> None:
        """server: what it is asked for. setting: the one that named it. clock: seconds."""
        self.label = f"helper {name}"
        self.setting = setting
        self._name = name
        self._server = server
        self._clock = clock
        self._kept: Login | LoginFailed | None = None
        self._until = float("-inf")
        self._again_at = float("-inf")
        self._flight: asyncio.Task[Login | LoginFailed | None] | None = None

    async def login(self) -> Login | None:
        """Return what the helper said, a moment ago or now. Raises: LoginFailed."""
        found = self._kept
        if self._clock() >= self._until:
            if self._flight is None:
                self._flight = asyncio.create_task(self._ask(), name=self.label)
            # Shielded: who leaves must not take the answer away from those who stay.
            found = await asyncio.shield(self._flight)
        if isinstance(found, LoginFailed):
            raise LoginFailed(found.message)
        return found

    async def _ask(self) -> Login | LoginFailed | None:
        try:
            kept_for = HELPER_KEPT
            try:
                self._kept = await helper.get(self._name, self._server, setting=self.setting)
            except LoginFailed as failed:
                self._kept, kept_for = failed, ASKED_AGAIN
            self._until = self._clock() + kept_for
            return self._kept
        finally:
            self._flight = None

    def refused(self) -> None:
        """Forget what the helper said; but a registry that refuses everything must not make us run it all the time."""
        now = self._clock()
        if now >= self._again_at and not isinstance(self._kept, LoginFailed):
            self._until, self._again_at = float("-inf"), now + ASKED_AGAIN

    async def close(self) -> None:
        """End the program if it runs."""
        if self._flight is not None:
            self._flight.cancel()
            await asyncio.wait([self._flight])


class DockerConfig:
    """An ``Account``: a file in the format of docker's ``config.json``, and the helpers it names."""

    setting = "credentials.docker_config"

    def __init__(self, path: Path, url: URL, *, clock: Callable[[], float] = time.monotonic) -> None:
        """url: of the registry. clock: seconds."""
        self.label = f"docker_config {path.name}"
        self._path = path
        self._url = url
        self._clock = clock
        self._helpers: dict[str, Helper] = {}

    async def login(self) -> Login | None:
        """Return what the file, or the helper it names, has for the registry. Raises: LoginFailed."""
        try:
            found = await asyncio.to_thread(self._find)
        except (_Unreadable, docker_config.Malformed) as error:
            raise LoginFailed(f"the {self.label} cannot be used ({error}); check {self.setting}") from None
        return await self._helper(found).login() if isinstance(found, str) else found

    def _find(self) -> docker_config.HelperName | Login | None:
        return docker_config.find(_contents(self._path), self._url)

    def _helper(self, name: docker_config.HelperName) -> Helper:
        if name not in self._helpers:
            server = docker_config.server_of(self._url)
            self._helpers[name] = Helper(name, server, setting=self.setting, clock=self._clock)
        return self._helpers[name]

    def refused(self) -> None:
        """Let helpers be asked anew; the file is read each time."""
        for named in self._helpers.values():
            named.refused()

    async def close(self) -> None:
        """End the helpers that run."""
        for named in self._helpers.values():
            await named.close()


class _Unreadable(Exception):
    """A file cannot be read. The text says why."""


def _password(path: Path) -> str:
    try:
        password = _contents(path).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise _Unreadable("it is not UTF-8") from None  # the cause holds all of it
    if not password:
        raise _Unreadable("it is empty")
    return password


def _contents(path: Path) -> bytes:
    try:
        return read_plain(path, FILE_LIMIT)
    except OSError as error:
        raise _Unreadable(error.strerror or type(error).__name__) from error
