"""Where upstream traffic may go: addresses that may be dialled, and realms that may get credentials.

A redirect, a token realm or a DNS answer is the upstream's word, and must not make this machine talk to its
own network. So the decision is made on the address of the socket about to be connected, after every trick
with names and notations has been resolved, and for each hop anew. Behind a proxy it is the proxy that resolves:
there the name itself is judged, and what is neither a name nor an address in its usual form is refused.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from publicsuffixlist import PublicSuffixList
from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NEVER: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this host": connecting to it reaches ourselves
        "169.254.0.0/16",  # link-local, and the metadata service of most clouds
        "100.100.100.200/32",  # metadata: Alibaba
        "168.63.129.16/32",  # the host's agent: Azure
        "192.0.0.192/32",  # metadata: Oracle
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/128",
        "fe80::/10",
        "fd00:ec2::/32",  # metadata and other services of the host: AWS
        "fd20:ce::/32",  # metadata: Google
        "ff00::/8",
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ip_network("64:ff9b:1::/48")
_COMPATIBLE = ip_network("::/96")
_LOOPBACK_NAMES = {"localhost", "localhost6", "ip6-localhost", "ip6-loopback"}
_LOOPBACK_DOMAINS = (".localhost", ".localdomain")
_PRIVATE_DOMAINS = (  # RFC 6762 appendix G, RFC 8375, and what ICANN has set aside
    *(".local", ".internal", ".intranet", ".private", ".corp", ".home", ".lan", ".home.arpa"),
)
_METADATA_NAMES = {"metadata.goog", "metadata.tencentyun.com", "metadata.packet.net", "metadata.platformequinix.com"}
_METADATA_LABELS = {"metadata", "instance-data", "rancher-metadata"}
"""First labels of metadata services' names in their clouds' own networks: metadata.google.internal, instance-data."""

_NAME = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class AddressRefused(OSError):
    """An address that may not be dialled. The text is fit for clients."""


class BadRedirect(ValueError):
    """A redirect that cannot be followed. The text is fit for clients."""


class Reach(IntEnum):
    """How near an address is; a nearer one needs more permission."""

    GLOBAL = 0
    PRIVATE = 1
    LOOPBACK = 2
    NEVER = 3


def reach_of(address: Address) -> Reach:
    """Say how near an address is: the nearest of itself and the ones it embeds."""
    return max(_reach(form) for form in _forms(address))


def _reach(address: Address) -> Reach:
    if any(address.version == network.version and address in network for network in _NEVER):
        return Reach.NEVER
    if address.is_loopback:
        return Reach.LOOPBACK
    if not address.is_global or getattr(address, "is_site_local", False):
        return Reach.PRIVATE
    return Reach.GLOBAL


def reach_by_name(host: str) -> Reach:
    """Say how near a host is by its name alone, for when somebody else resolves it.

    Raises: AddressRefused when it is neither a name nor an address in its usual form, such as 0x7f.1 or 2130706433,
    which resolvers take for addresses.
    """
    name = host.lower().rstrip(".")
    try:
        address = ip_address(name)
    except ValueError:
        pass
    else:
        if "%" not in name:
            return reach_of(address)
    # A last label that is a number makes it an IPv4 address to who reads URLs (WHATWG URL, "ends in a number").
    if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
        raise AddressRefused(f"{host[:80]!r} is neither a host name nor an address in its usual form")
    return _named_reach(name)


def _named_reach(name: str) -> Reach:
    first, dot, _ = name.partition(".")
    private = not dot or name.endswith(_PRIVATE_DOMAINS)
    if name in _METADATA_NAMES or (private and first in _METADATA_LABELS):
        return Reach.NEVER
    if name in _LOOPBACK_NAMES or name.endswith(_LOOPBACK_DOMAINS):
        return Reach.LOOPBACK
    return Reach.PRIVATE if private else Reach.GLOBAL


def _forms(address: Address) -> Iterator[Address]:
    """Give the addresses that a packet to this one may end up at."""
    if isinstance(address, IPv4Address):
        yield address
        return
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    elif address in _NAT64:
        yield last
    elif address.sixtofour is not None:
        yield address.sixtofour
    elif address in _COMPATIBLE and int(address) > 1:
        yield last
    else:
        yield address
        if address in _LOCAL_NAT64:
            bits = int(address)
            yield last
            # RFC 6052 section 2.2: behind a /48 prefix the address goes around bits 64 to 71
            yield IPv4Address(((bits >> 64) & 0xFFFF) << 16 | ((bits >> 40) & 0xFFFF))
        if address.teredo is not None:
            yield from address.teredo


class AddressGuard:
    """Decide about addresses for one upstream. Also remembers how near the configured host itself is.

    Give ``origin_socket`` to the connector that dials only the configured host, and ``other_socket`` to the
    one for everything the upstream names: redirect targets and realms. Ask ``check_name`` before a proxy is asked.
    """

    def __init__(self, redirects_to: Sequence[Any] = (), *, url: URL | None = None, realms: Sequence[str] = ()) -> None:
        """redirects_to: networks (or their text) that may be dialled in addition.

        For ``check_name``: url: of the registry. realms: hosts named by the operator, as ``realm_allowed`` takes them.
        """
        self._allowed: tuple[Network, ...] = tuple(ip_network(str(item), strict=False) for item in redirects_to)
        self._origin = Reach.GLOBAL
        self._url = url or URL()
        self._realms = realms

    def origin_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make a socket to the configured host (aiohttp's ``socket_factory``).

        Raises: AddressRefused.
        """
        address = _address(info)
        reach = reach_of(address)
        if reach is Reach.NEVER:
            raise _never(address)
        # A configured host that is near by makes others near by reachable, never the other way round.
        self._origin = max(self._origin, reach)
        return _socket(info)

    def other_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make a socket to where the upstream sent us (aiohttp's ``socket_factory``).

        Raises: AddressRefused.
        """
        address = _address(info)
        reach = reach_of(address)
        if reach is Reach.NEVER:
            raise _never(address)
        if reach > self._origin and not self._listed(address):
            raise AddressRefused(
                f"{address} is a {reach.name.lower()} address and may not be dialled for this upstream; if it "
                "should be, list it in redirects_to"
            )
        return _socket(info)

    def check_name(self, url: URL) -> None:
        """Pass when a proxy may be asked for a URL, judged by its host's name as nobody here resolves it.

        A name that is public and resolves to something private at the proxy is the proxy's to refuse.
        Raises: AddressRefused.
        """
        host = _host(url)
        reach = reach_by_name(host)
        if reach is Reach.NEVER:
            raise _never(host)
        if same_host(url, self._url) or reach <= max(self._origin, self._named()):
            return
        try:
            listed = self._listed(ip_address(host))
        except ValueError:
            listed = any(_lists(entry, self._url, url) for entry in self._realms)
        if not listed:
            raise AddressRefused(
                f"{host} is a {reach.name.lower()} host by its name and may not be asked for of a proxy for this "
                "upstream; if it should be, list its address in redirects_to, or its name in realms"
            )

    def _named(self) -> Reach:
        """Say how near the configured host is by its name; a name that cannot be judged permits nothing."""
        try:
            return reach_by_name(_host(self._url))
        except AddressRefused:
            return Reach.GLOBAL

    def _listed(self, address: Address) -> bool:
        return any(
            form.version == network.version and form in network
            for form in {address, *_forms(address)}
            for network in self._allowed
        )


def _address(info: tuple[Any, ...]) -> Address:
    try:
        return ip_address(info[4][0])
    except ValueError as error:
        raise AddressRefused("what the name resolved to is not an address") from error


def _never(address: Address | str) -> AddressRefused:
    return AddressRefused(f"{address} is a link-local, metadata or multicast address and is never dialled")


def _socket(info: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol = info[:3]
    return socket.socket(family=family, type=kind, proto=protocol)


def same_origin(one: URL, other: URL) -> bool:
    """Say whether scheme, host and port are the same."""
    return (one.scheme, _host(one), one.port) == (other.scheme, _host(other), other.port)


def same_host(one: URL, other: URL) -> bool:
    """Say whether the host is the same, at whatever port."""
    return _host(one) == _host(other)


def realm_allowed(url: URL, realm: URL, realms: Sequence[str] = ()) -> bool:
    """Say whether credentials for the registry at ``url`` may be given to a token realm.

    They may go to the registry's own scheme, host and port; to an https name of the same registrable domain
    (by the public suffix list; addresses, single labels and names under suffixes it does not know share
    nothing); and to a host (or host:port, or https://host) listed in ``realms``.
    """
    if realm.scheme not in _DEFAULT_PORTS or not realm.host or realm.user is not None or realm.password:
        return False
    if same_origin(url, realm):
        return True
    if any(_lists(entry, url, realm) for entry in realms):
        return True
    domain = registrable_domain(_host(realm))
    return realm.scheme == "https" and domain is not None and domain == registrable_domain(_host(url))


def _lists(entry: str, url: URL, realm: URL) -> bool:
    scheme, separator, rest = entry.strip().rpartition("://")
    try:
        listed = URL(f"{scheme if separator else realm.scheme}://{rest}")
        port = listed.explicit_port
    except ValueError:
        return False
    # Plain http is given a password only where the registry itself is asked over plain http, or by name.
    if realm.scheme == "http" and not separator and url.scheme != "http":
        return False
    return (
        listed.scheme == realm.scheme
        and bool(listed.host)
        and _host(listed) == _host(realm)
        and (port is None or port == realm.port)
    )


def registrable_domain(host: str) -> str | None:
    """Return the part of a host name its owner registered ("docker.io" of "auth.docker.io"), or None."""
    # Addresses and single labels are under no suffix that is listed, so they have none.
    found = _suffixes().privatesuffix(host.rstrip("."))
    return str(found) if found else None


def _host(url: URL) -> str:
    return (url.raw_host or "").lower().rstrip(".")


@cache
def _suffixes() -> PublicSuffixList:
    # Names under a suffix nobody listed ("svc.cluster.local") belong to many owners: they share nothing.
    return PublicSuffixList(accept_unknown=False)
