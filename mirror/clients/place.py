"""Where nodes reach a mirror: its URL, and the forms of it that clients ask for.

A path may stand before or behind ``/v2``, where a reverse proxy put the mirror: ``https://host/hub`` is the API at
``/hub/v2/…``, ``https://host/v2/hub`` the API at ``/v2/hub/…``. Image names can only say the second.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from mirror.config import Listener

_LABEL = "[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*|[0-9a-f:]*:[0-9a-f:.]*")
_PART = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_PORTS = {"http": 80, "https": 443}
_EVERYWHERE = ("0.0.0.0", "::")


class PlaceInvalid(Exception):
    """A URL that no mirror has. The message says what is wrong and what to write; it never repeats a login."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A mirror's address. port: None for the scheme's own. before, behind: path around ``/v2``, as ``/hub``, or ""."""

    scheme: str
    host: str
    port: int | None
    before: str = ""
    behind: str = ""

    def __str__(self) -> str:
        return self.origin + (f"/v2{self.behind}" if self.behind else self.before)

    @property
    def authority(self) -> str:
        """Host and port as the URL has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def domain(self) -> str:
        """Host and port as image names need them: without a dot or a port, a host there would be a folder."""
        if self.port is None and "." not in self.host and ":" not in self.host and self.host != "localhost":
            return f"{self.host}:{_PORTS[self.scheme]}"
        return self.authority

    @property
    def plain(self) -> bool:
        """Whether it speaks HTTP without TLS."""
        return self.scheme == "http"

    @property
    def only_here(self) -> bool:
        """Whether only the machine it runs on reaches it."""
        return _is_loopback(self.host)


def parse_place(url: str) -> Place:
    """Read a URL. Raises: PlaceInvalid."""
    example = "write http://HOST:PORT or https://HOST"
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise PlaceInvalid(f"that is no URL; {example}") from None
    if "@" in url:  # also where a slash or the scheme is missing, and it is no login by the letter
        raise PlaceInvalid("no login in a URL: clients have places of their own for it")
    if not url.isprintable() or parts.scheme not in _PORTS or not _HOST.fullmatch(host) or port == 0:
        raise PlaceInvalid(f"{url!r} is not where a mirror can be; {example}")
    if parts.query or parts.fragment:
        raise PlaceInvalid(f"{url!r} has more than a path; {example}")
    before, behind = _around(url, [part for part in parts.path.split("/") if part])
    return Place(scheme=parts.scheme, host=host, port=port, before=before, behind=behind)


def _around(url: str, path: list[str]) -> tuple[str, str]:
    if not all(_PART.fullmatch(part) for part in path):
        raise PlaceInvalid(f"{url!r}: a path is of lower-case letters, digits, and . _ - between them")
    if "v2" not in path:
        return _joined(path), ""
    at = path.index("v2")
    if at and at + 1 < len(path):
        raise PlaceInvalid(f"{url!r} has a path before and behind /v2: leave out one of them")
    return _joined(path[:at]), _joined(path[at + 1 :])


def _joined(parts: list[str]) -> str:
    return "".join(f"/{part}" for part in parts)


def seen_by_nodes(listeners: Sequence[Listener], hostname: str) -> tuple[Place, str]:
    """Return where nodes reach a mirror that listens so, and what was assumed: "" when nothing was.

    hostname: this machine's. What others reach goes before what only this machine does.
    Raises: PlaceInvalid when the addresses do not say.
    """
    known = [one for one in listeners if one.address.port]
    if not known:
        raise PlaceInvalid("the configuration says no port; say by --url where nodes reach the mirror")
    chosen = next((one for one in known if not _is_loopback(one.address.host)), known[0])
    host, port, assumed = chosen.address.host, chosen.address.port, ""
    if host in _EVERYWHERE:
        assumed = f"it listens at {chosen.address}, so nodes are assumed to know this machine as {hostname}"
        host = hostname.lower()
    own = None if port == _PORTS[chosen.scheme] else port
    place = Place(scheme=chosen.scheme, host=host, port=own)
    if not _HOST.fullmatch(host):
        raise PlaceInvalid(f"this machine calls itself {hostname!r}, which is no host; say by --url how nodes reach it")
    return place, assumed


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
