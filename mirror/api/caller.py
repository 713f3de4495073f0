"""Who asks, and by which URL: of the connection itself, or as a reverse proxy says that is trusted.

Decided once for each request. What others than ``trusted_proxies`` say of it changes nothing, but for one thing: a
request that says it was passed on is not taken for one of this machine's own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import NamedTuple

from aiohttp import web
from multidict import CIMultiDictProxy

from mirror.access.listeners import is_loopback
from mirror.api.forwarded import (
    HOST,
    NO_WAY,
    UNKNOWN,
    host_of,
    plain_address,
    prefix_of,
    said,
    scheme_of,
    way_by_forwarded,
    way_by_x_forwarded_for,
    with_port,
)

log = logging.getLogger("mirror.api")

_SIGNS = frozenset(
    {
        *("forwarded", "via", "cdn-loop", "x-original-forwarded-for", "x-original-host", "x-envoy-external-address"),
        *("x-real-ip", "x-client-ip", "x-cluster-client-ip", "x-originating-ip", "x-remote-ip", "x-remote-addr"),
        *("client-ip", "proxy-client-ip", "wl-proxy-client-ip", "true-client-ip", "cf-connecting-ip"),
        *("fastly-client-ip", "fly-client-ip", "do-connecting-ip", "x-azure-clientip", "x-azure-socketip"),
    }
)
"""Headers that only something between a client and us sends, besides all that begin with ``X-Forwarded``.

``Via`` is also sent by mirrors behind which we are one, but those only read.
"""


class Caller(NamedTuple):
    """Who sent a request. Made for each of them: a tuple costs a third of a frozen dataclass.

    client: the IP address it comes from; a word where a proxy hides it. others: further addresses that may be the
    client's, where proxies contradict each other. scheme, host: of the URL the client used; the host as it was sent.
    prefix: the path before ours there, such as ``/hub``. local: whether proxies say that it is this machine's own.
    """

    client: str | None
    scheme: str
    host: str
    prefix: str = ""
    others: tuple[str, ...] = ()
    local: bool = False

    def outside(self, path: str) -> str:
        """Return the path by which the client knows what is at a path here.

        A prefix with ``v2`` in it (``/v2/hub``) is for clients that put ``/v2`` before everything else: it stands in
        place of ours.
        """
        if not self.prefix:
            return path
        if self._names_prefix is None:
            return self.prefix + path
        before, _, rest = path.partition("/v2/")
        return f"{self.prefix}{before}/{rest}"

    def inside(self, name: str) -> str:
        """Return what a repository is called here that the client calls by this name."""
        return name.removeprefix(self._names_prefix) if self._names_prefix else name

    @property
    def _names_prefix(self) -> str | None:
        """What the client puts before names, such as ``hub/``; None when it puts the prefix before ``/v2``."""
        _, found, rest = f"{self.prefix}/".partition("/v2/")
        return rest if found else None


class Proxies:
    """The reverse proxies that are believed. On the event loop."""

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network]) -> None:
        """Prepare. trusted: their networks."""
        self._networks = tuple(trusted)
        self._trusted = lru_cache(4096)(self._is_trusted)
        self._warned = False

    def caller(self, request: web.Request) -> Caller:
        """Say who sent a request."""
        peer = request.remote
        if self._networks and peer and self._trusted(peer):
            return self._caller_by_proxy(request, plain_address(peer))
        return Caller(client=peer, scheme=request.scheme, host=request.headers.get("Host", ""))

    def _caller_by_proxy(self, request: web.Request, peer: str) -> Caller:
        headers = request.headers
        by_forwarded, by_other = NO_WAY, NO_WAY
        if forwarded := _joined(headers, "Forwarded"):
            by_forwarded = way_by_forwarded(forwarded, self._trusted)
        if x_forwarded_for := _joined(headers, "X-Forwarded-For"):
            by_other = way_by_x_forwarded_for(x_forwarded_for, self._trusted)
        way = by_forwarded if by_forwarded.client is not None else by_other
        proxies = max(by_forwarded.proxies, by_other.proxies) if way.client is None else way.proxies
        scheme = (
            by_forwarded.scheme or scheme_of(said(_joined(headers, "X-Forwarded-Proto"), proxies)) or request.scheme
        )
        host = by_forwarded.host
        if not host:
            host = host_of(said(_joined(headers, "X-Forwarded-Host"), proxies)) or headers.get("Host", "")
            host = with_port(host, said(_joined(headers, "X-Forwarded-Port"), proxies), scheme)
        others: tuple[str, ...] = ()
        other = by_other.client
        if other is not None and other != way.client and not self._trusted(other):
            # Whatever a proxy does not write itself, clients may have. So each of them has to be allowed.
            others = (other,)
            self._warn(peer)
        elif other is None and x_forwarded_for.strip(", \t"):
            # A proxy says where it comes from, and it cannot be read: it is not the proxy's own, nor as others say.
            others = (UNKNOWN,)
        return Caller(
            client=way.client or peer,
            scheme=scheme,
            host=host,
            prefix=prefix_of(_joined(headers, "X-Forwarded-Prefix"), proxies),
            others=others,
            local=(by_forwarded.local or not forwarded)
            and (by_other.local or not x_forwarded_for)
            and bool(forwarded or x_forwarded_for)
            and all(is_loopback(real.strip()) for real in headers.getall("X-Real-IP", ())),
        )

    def _is_trusted(self, text: str) -> bool:
        try:
            address = ip_address(plain_address(text))
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _warn(self, peer: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the proxy at %s passes on Forwarded and X-Forwarded-For that name different clients: have it remove "
                "the one it does not write itself",
                peer,
            )


def base_url(request: web.Request, caller: Caller) -> str:
    """Return the URL the client knows us by, without a path. A Host that is none is not repeated."""
    host = caller.host
    if not HOST.fullmatch(host):
        local = request.transport.get_extra_info("sockname") if request.transport is not None else None
        address, port = local[:2] if isinstance(local, tuple) else ("localhost", 80)
        host = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{caller.scheme}://{host}"


def was_passed_on(request: web.Request) -> bool:
    """Say whether a request shows signs of having been passed on by something, such as a reverse proxy."""
    return any(name in _SIGNS or name.startswith("x-forwarded") for name in map(str.lower, request.headers))


def _joined(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return a header's lines as one (RFC 9110 section 5.3); empty when there are none."""
    return ", ".join(headers.getall(name, ()))
