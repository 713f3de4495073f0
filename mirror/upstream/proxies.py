"""Which proxy a URL is reached by, if any: the configured one, or what the environment says.

A proxy is named as host:port wherever it is spoken of; its password is given to it and to nobody else.
What cannot be understood is an error when it is needed, never a reason to go past the proxy.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Protocol

import aiohttp
from yarl import URL

from mirror import config

_SCHEMES = ("http", "https")


class ProxyFailed(OSError):
    """A proxy did not do its part. The text is fit for clients. proxy: its host:port, "" when none could be read."""

    def __init__(self, message: str, *, proxy: str = "") -> None:
        super().__init__(message)
        self.proxy = proxy


class ProxySlow(aiohttp.ConnectionTimeoutError):
    """No connection by way of a proxy within the time limit. The text is fit for clients. proxy: its host:port."""

    def __init__(self, message: str, *, proxy: str) -> None:
        super().__init__(message)
        self.proxy = proxy


class Proxy:
    """One proxy, and who we are to it."""

    def __init__(
        self,
        url: URL,
        *,
        username: str | None = None,
        password: str | None = None,
        password_file: Path | None = None,
    ) -> None:
        """url: scheme, host and port. password: as it is, or the file it is in."""
        self.url = url
        self.name = f"{url.host_subcomponent}:{url.port}"
        self._username = username
        self._password = password or ""
        self._file = password_file
        self._seen: tuple[int, int, int] | None = None

    @property
    def has_login(self) -> bool:
        return self._username is not None

    async def authorization(self) -> str | None:
        """Return the value of ``Proxy-Authorization`` (RFC 7617), None for nobody. The file is read when it changed.

        Raises: ProxyFailed.
        """
        if self._username is None:
            return None
        if self._file is not None:
            try:
                await asyncio.to_thread(self._read, self._file)
            except (OSError, ValueError) as error:
                raise ProxyFailed(
                    f"the password for the proxy {self.name} cannot be read from its password_file", proxy=self.name
                ) from error
        pair = f"{self._username}:{self._password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def _read(self, path: Path) -> None:
        found = path.stat()
        seen = (found.st_mtime_ns, found.st_size, found.st_ino)
        if seen != self._seen:
            self._password = path.read_text(encoding="utf-8").rstrip("\r\n")
            self._seen = seen


class Proxies(Protocol):
    """The choice of a proxy for each URL."""

    def way_to(self, url: URL) -> Proxy | None:
        """Return the proxy to reach a URL by; None is directly. Raises: ProxyFailed."""


def proxies(settings: config.Proxy | None, environ: Mapping[str, str]) -> Proxies:
    """Return the choice that the settings make. environ: looked at now, and only if they say ``environment``."""
    if settings is None or settings.url == "none":
        return _One(None)
    if settings.url == "environment":
        return Environment(environ, login=_login(settings))
    return _One(_login(settings)(URL(settings.url)))


def _login(settings: config.Proxy) -> Callable[[URL], Proxy]:
    """Return what makes a proxy of its URL: with the login that the settings have."""
    password = None if settings.password is None else settings.password.get_secret_value()
    return functools.partial(Proxy, username=settings.username, password=password, password_file=settings.password_file)


class _One:
    """The same for every URL."""

    def __init__(self, proxy: Proxy | None) -> None:
        self._proxy = proxy

    def way_to(self, url: URL) -> Proxy | None:
        return self._proxy


class Environment:
    """What HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say.

    The variable of the URL's own scheme comes before ALL_PROXY, lower case before upper case, and an empty one is as
    none. This machine itself (localhost, loopback addresses) is always reached directly.
    """

    def __init__(self, environ: Mapping[str, str], *, login: Callable[[URL], Proxy] = Proxy) -> None:
        """login: makes a proxy of a URL that holds none."""
        self._values = {
            name: value
            for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy")
            if (value := (environ.get(name, "").strip() or environ.get(name.upper(), "").strip()))
        }
        self._login = login
        self._direct = Exceptions(self._values.get("no_proxy", ""))
        self._known: dict[str, Proxy] = {}

    def way_to(self, url: URL) -> Proxy | None:
        """Return the proxy to reach a URL by; None is directly. Raises: ProxyFailed."""
        name = f"{url.scheme}_proxy" if f"{url.scheme}_proxy" in self._values else "all_proxy"
        if name not in self._values or self._direct.hold(url):
            return None
        if name not in self._known:
            self._known[name] = self._parsed(name)
        return self._known[name]

    def _parsed(self, name: str) -> Proxy:
        value = self._values[name]
        try:
            url = URL(value if "://" in value else f"http://{value}")
            usable = url.scheme in _SCHEMES and bool(url.host) and bool(url.port)
        except ValueError:
            usable = False
        if not usable:
            raise ProxyFailed(f"{name.upper()} of the environment is not the URL of an http or https proxy")
        bare = URL.build(scheme=url.scheme, host=url.host or "", port=url.port)
        if url.user is not None:
            return Proxy(bare, username=url.user, password=url.password)
        return self._login(bare)


class Exceptions:
    """What is reached directly, as NO_PROXY lists it: entries between commas or spaces.

    ``example.com`` is that host and all below it, ``.example.com`` and ``*.example.com`` only those below;
    ``10.0.0.0/8`` and ``10.0.0.5`` are hosts given by address; each but a network may have a ``:port``;
    ``*`` is everything.
    """

    def __init__(self, text: str) -> None:
        self._everything = False
        self._networks: list[IPv4Network | IPv6Network] = []
        self._hosts: list[tuple[str, int | None]] = []
        for entry in filter(None, re.split(r"[\s,]+", text.lower())):
            if entry == "*":
                self._everything = True
                continue
            try:
                self._networks.append(ip_network(entry, strict=False))
            except ValueError:
                host, port = _host_and_port(entry)
                self._hosts.append((host.removeprefix("*").rstrip("."), port))

    def hold(self, url: URL) -> bool:
        """Say whether a URL is reached directly."""
        host = (url.raw_host or "").lower().rstrip(".")
        address = _address(host)
        if self._everything or host == "localhost" or (address is not None and address.is_loopback):
            return True
        if address is not None and any(address in network for network in self._networks):
            return True
        return any(
            port in (None, url.port) and _covers(entry, host, named=address is None) for entry, port in self._hosts
        )


def _covers(entry: str, host: str, *, named: bool) -> bool:
    if host == entry:
        return bool(entry)
    return named and len(entry) > 1 and host.endswith(entry if entry.startswith(".") else f".{entry}")


def _host_and_port(entry: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::([0-9]{1,5}))?", entry)
    if found is None:
        return entry, None
    return found[1].strip("[]"), int(found[2]) if found[2] else None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
