"""What reverse proxies say of a request: ``Forwarded`` (RFC 7239), and the ``X-Forwarded-…`` that were there before it.

Each proxy adds at the right end. So an entry is believed when who passed it on is trusted: the last one when the
connection comes from a trusted proxy, each before it when the one behind it names a trusted proxy, as section 7.4
wants it. What stands left of that anybody may have made up. What cannot be read ends the way; nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from mirror.access.listeners import is_loopback

HOST = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
"""A host that may be repeated to clients, perhaps with a port."""
UNKNOWN = "unknown"
"""What a proxy says that does not know, or does not say, whom it asks for."""

TOO_MANY = "too many"
"""Stands for entries that are not looked at, as it is none."""

_PORT = r"(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]{1,64}))?"
_NODE = re.compile(
    rf"\[(?P<v6>[0-9A-Fa-f:.]{{2,45}})\]{_PORT}|(?P<v4>[0-9.]{{7,15}}){_PORT}|(?P<bare>[0-9A-Fa-f:.]{{2,45}})"
    rf"|(?P<word>unknown|_[A-Za-z0-9._-]{{1,64}}){_PORT}",
    re.IGNORECASE,
)
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# Addresses with a colon or brackets should be quoted; many proxies do not do it, and they can be told apart.
_PAIR = re.compile(rf'[ \t]*({_TOKEN})=(?:([^\s",;=\\]+)|"((?:[^"\\\x00-\x1f\x7f]|\\[ -~])*)")[ \t]*')
_ESCAPED = re.compile(r"\\(.)")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,16}")
_LONGEST_PREFIX = 255
_MOST_ENTRIES = 64
"""Entries of a header that are looked at: no request passes so many proxies."""
_MOST_COMMAS = 16
"""Commas within the quotes of one element; nobody needs any."""

Trusted = Callable[[str], bool]
"""Says whether an address is a trusted proxy's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """The way a request took, by one header, as far as it is believed.

    client: the address it comes from; ``unknown`` or ``_word`` where a proxy hides it; None when nobody is named.
    proxies: how many spoke, the one that is connected included. local: whether every address on the whole way is
    loopback. scheme, host: as the client used them, empty when they are not said.
    """

    client: str | None = None
    proxies: int = 1
    local: bool = False
    scheme: str = ""
    host: str = ""


NO_WAY = Way()


def way_by_forwarded(header: str, trusted: Trusted) -> Way:
    """Read ``Forwarded``, its lines joined by commas."""
    client, proxies, local, scheme, host = None, 0, True, "", ""
    for element in _elements(header):
        if element is None:
            local = False
            break
        proxies += 1
        # further out is nearer to what the client used
        scheme, host = scheme_of(element.get("proto", "")) or scheme, host_of(element.get("host", "")) or host
        node = _node(element.get("for", ""))
        if node is None:
            local = False
            break
        client, local = node, local and is_loopback(node)
        if not trusted(node):
            break
    return Way(client=client, proxies=max(proxies, 1), local=local and bool(client), scheme=scheme, host=host)


def way_by_x_forwarded_for(header: str, trusted: Trusted) -> Way:
    """Read ``X-Forwarded-For``, its lines joined by commas."""
    client, proxies, local = None, 0, True
    left, *entries = header.rsplit(",", _MOST_ENTRIES)
    for entry in (*reversed(entries), left if len(entries) < _MOST_ENTRIES else TOO_MANY):
        if not (entry := entry.strip()):
            continue
        node = _node(entry)
        if node is None:
            local = False
            break
        proxies += 1
        client, local = node, local and is_loopback(node)
        if not trusted(node):
            break
    return Way(client=client, proxies=max(proxies, 1), local=local and bool(client))


def said(header: str, proxies: int) -> str:
    """Return what the outermost of so many proxies said, of a header that each of them may add to or replace."""
    entries = header.split(",")
    return entries[-min(proxies, len(entries))].strip()


def scheme_of(text: str) -> str:
    """Return ``http`` or ``https``; empty when it is neither."""
    text = text.lower()
    return text if text in ("http", "https") else ""


def host_of(text: str) -> str:
    """Return a host, perhaps with a port; empty when it is none."""
    return text if HOST.fullmatch(text) else ""


def with_port(host: str, port: str, scheme: str) -> str:
    """Add a port that was said beside a host, unless the host has one, or the scheme implies it, or it is none."""
    if not host or not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > 65535 or re.search(r":[0-9]+\Z", host):
        return host
    return host if port == {"http": "80", "https": "443"}[scheme] else f"{host}:{port}"


def prefix_of(header: str, proxies: int) -> str:
    """Return the path that proxies took away before passing a request on, such as ``/hub``; empty for none.

    Each of them may have taken something: what the outermost took comes first.
    """
    prefix = "".join(entry.strip().rstrip("/") for entry in header.split(",")[-proxies:])
    return prefix if len(prefix) <= _LONGEST_PREFIX and _PREFIX.fullmatch(prefix) else ""


def plain_address(text: str) -> str:
    """Return an address as it is compared: an IPv4 address mapped into IPv6 as the former. Raises: ValueError."""
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _node(text: str) -> str | None:
    """Return the address a node has (RFC 7239 section 6), or the word that hides it; None when it is no node."""
    found = _NODE.fullmatch(text)
    if found is None:
        return None
    if (word := found["word"]) is not None:
        return UNKNOWN if word.lower() == UNKNOWN else word
    try:
        return plain_address(found["v6"] or found["v4"] or found["bare"])
    except ValueError:
        return None


def _elements(header: str) -> Iterator[dict[str, str] | None]:
    """Give the elements of ``Forwarded`` from the right; None, and then no more, when one cannot be read.

    A quote that somebody left open stands further left: it cannot hide what a proxy has added behind it.
    """
    end = len(header)
    for _ in range(_MOST_ENTRIES):
        if end < 0:
            return
        start, element = end, None
        for _ in range(_MOST_COMMAS):
            start = header.rfind(",", 0, start)
            element = _element(header[start + 1 : end])
            if element is not None or start < 0:
                break
        if element is None:
            yield None
            return
        if element:
            yield element
        end = start
    yield None


def _element(text: str) -> dict[str, str] | None:
    """Return the parameters of an element by lower-case name; None when it is none."""
    found: dict[str, str] = {}
    if not text.strip():
        return found
    place = 0
    while True:
        pair = _PAIR.match(text, place)
        if pair is None or pair[1].lower() in found:
            return None
        found[pair[1].lower()] = pair[2] if pair[2] is not None else _ESCAPED.sub(r"\1", pair[3])
        place = pair.end()
        if place == len(text):
            return found
        if text[place] != ";":
            return None
        place += 1
