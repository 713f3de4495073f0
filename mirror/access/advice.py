"""What an operator should know of the access settings before something happens: said once, at the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from mirror.access.listeners import is_loopback
from mirror.config import Access, Listener, Upstream


def open_upstreams(access: Access, upstreams: Mapping[str, Upstream]) -> list[str]:
    """Return the upstreams that we log in to and whose content clients may read without a login of their own."""
    if access.htpasswd_file is not None and access.anonymous == "none":
        return []
    return [
        name
        for name, upstream in upstreams.items()
        if upstream.credentials or any(mirror.credentials for mirror in upstream.mirrors)
    ]


def strangers(access: Access, users: Iterable[str]) -> list[tuple[str, str]]:
    """Return those who are given rights and are no users: the setting, and the name, each once."""
    given = (("push", access.push or ()), ("admin", access.admin))
    return [(f"access.{setting}", name) for setting, names in given for name in sorted(set(names) - set(users))]


def advice(
    access: Access,
    upstreams: Mapping[str, Upstream],
    listen: Sequence[Listener],
    trusted_proxies: Sequence[IPv4Network | IPv6Network] = (),
) -> list[str]:
    """Return a line for each thing that is allowed and is seldom meant: what, and what to do."""
    needed = "set access.anonymous: none" if access.htpasswd_file else "set access.htpasswd_file and anonymous: none"
    lines = [
        f"upstream {name}: what its credentials can read, clients read without logging in; {needed}, or take the "
        "credentials away"
        for name in open_upstreams(access, upstreams)
    ]
    plain = [str(one.address) for one in listen if one.tls is None and not is_loopback(one.address.host)]
    if access.htpasswd_file is not None and plain:
        lines.append(
            f"passwords cross the network in the clear at {', '.join(plain)}; set tls, or let a proxy on this machine "
            "do it and listen on 127.0.0.1"
        )
    lines += [
        f"trusted_proxies: {network} is everybody, so any client may say that it is another; list the addresses of the "
        "proxies"
        for network in trusted_proxies
        if network.prefixlen == 0
    ]
    return lines
