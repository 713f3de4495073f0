"""Which connections only this machine can make."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address

from mirror.config import ListenAddress


def through_loopback(local: object, listen: Sequence[ListenAddress]) -> bool:
    """Say whether a connection came through a listener on loopback.

    local: the connection's own address, as ``getsockname`` gives it. A loopback address is not enough: a listener on
    all addresses has that too, and what is refused to others there is refused to all.
    """
    if not isinstance(local, tuple) or len(local) < 2 or not is_loopback(str(local[0])):
        return False
    others = {one.port for one in listen if not is_loopback(one.host)}
    if local[1] in others:
        return False
    # port 0 was given any port; it is not one that is listed
    return 0 not in others or any(one.port == local[1] for one in listen)


def is_loopback(host: str) -> bool:
    """Say whether a host is this machine and reached by nobody else."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False  # a name may mean any address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return address.is_loopback
