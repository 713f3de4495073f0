"""What people write for an image, as the request that clients make of it.

    ghcr.io/owner/app:1         a registry we know: ``/v2/owner/app/manifests/1?ns=ghcr.io``, as containerd asks
    mirror:5000/ghcr.io/a/b     this registry's own address, by ``names`` or the port it listens on: the path behind it
    alpine, local/app           no registry: the path as it is
    other.example/a/b           a registry we do not know: asked for by ns, and refused

Sources: distribution-spec "Pulling manifests", "Registry Proxying"; docker's reference grammar.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote

from mirror.oci.errors import RegistryError
from mirror.oci.names import Digest, Tag, parse_digest, parse_target
from mirror.upstream.router import Router

LATEST = Tag("latest")

_PORT = re.compile(r":([0-9]{1,5})\Z")
_WRITTEN = re.compile(r"[!-~]{1,600}")


class NotAnImage(ValueError):
    """What was written is no image. The message says why, not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for a manifest. name: of the repository, as the path says it. tag: beside a digest, which decides.

    guess: what was taken for granted to understand it, in words.
    """

    name: str
    target: Tag | Digest
    ns: str | None
    host: str | None
    tag: Tag | None
    guess: str | None = None

    @property
    def path(self) -> str:
        """The path and query to ask for."""
        query = f"?ns={quote(self.ns, safe='')}" if self.ns else ""
        return f"/v2/{self.name}/manifests/{self.target}{query}"


def read_asked(text: str, router: Router, *, ports: Collection[int]) -> Asked:
    """Read an image. ports: those this registry listens on. Raises: NotAnImage."""
    if "://" in text:
        raise NotAnImage(f"it is a URL; leave out {text.partition('://')[0][:20]}://")
    if not _WRITTEN.fullmatch(text):
        raise NotAnImage("an image is written without spaces, like alpine:3.20 or ghcr.io/owner/app@sha256:…")
    path, at, digest = text.partition("@")
    head, slash, last = path.rpartition("/")
    last, colon, tag_text = last.partition(":")
    try:
        tag = _tag(tag_text) if colon else None
        target = parse_digest(digest) if at else tag or LATEST
    except RegistryError as error:
        raise NotAnImage(error.message) from error
    name = head + slash + last
    first, slash, rest = name.partition("/")
    ns = host = guess = None
    if slash and router.is_own(first):
        name, host = rest, first
    elif slash and router.is_configured(first):
        name, ns = rest, first
    elif slash and _is_host(first):
        port = _PORT.search(first)
        if port is not None and int(port[1]) in ports:
            name, host = rest, first
            guess = f"{first} is taken for this mirror, which listens on port {port[1]}"
        else:
            name, ns = rest, first
            guess = f"if {first} is this mirror itself, list it under names"
    return Asked(name=name, target=target, ns=ns, host=host, tag=tag or (None if at else LATEST), guess=guess)


def _tag(text: str) -> Tag:
    found = parse_target(text) if ":" not in text else None
    if found is None or isinstance(found, Digest):
        raise NotAnImage(f"{text[:140]!r} cannot be a tag")
    return found


def _is_host(text: str) -> bool:
    return "." in text or ":" in text or text.lower() == "localhost"
