"""One request and what is said of it: headers on every answer, the access line, the counts."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from mirror.api.caller import Caller
from mirror.oci.names import Digest, Repository

_ECHOABLE = re.compile(r"[!-~]{1,255}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """What is noted of a request while it is answered.

    caller: who sent it. request_id: the client's X-Request-Id if it is one, else ours. upstream: of the repository,
    "local" for none. name: of the repository, as the client says it. meant: the repository itself. sent, received:
    bytes of bodies. user: who has logged in. kind: "manifest", "tag", "blob" for the cache counts, as are stale: why
    what was kept went out though it is not fresh; missed: why it did not; follows: another client's request had begun
    the transfer. cache: the value of Cache-Status (RFC 9211). first_byte: when the headers went out, where the answer
    took longer than that.
    """

    request: web.Request
    caller: Caller
    started: float = field(default_factory=time.monotonic)
    endpoint: str = "unknown"
    kind: str | None = None
    upstream: str | None = None
    repository: str | None = None
    meant: Repository | None = None
    reference: str | None = None
    digest: str | None = None
    cache: str | None = None
    hit: bool | None = None
    stale: str | None = None
    missed: str = "absent"
    follows: bool = False
    first_byte: float | None = None
    ns: str | None = None
    user: str | None = None
    sent: int = 0
    received: int = 0
    name: str = ""
    failure: str | None = None
    request_id: str = ""

    def __post_init__(self) -> None:
        given = self.request.headers.get("X-Request-Id")
        known = given is not None and _REQUEST_ID.fullmatch(given)
        self.request_id = given if given and known else f"{random.getrandbits(64):016x}"

    def mark(self, response: web.StreamResponse) -> None:
        """Put what every answer carries into its headers. Before it is prepared."""
        headers = response.headers
        headers["X-Request-Id"] = self.request_id
        headers["Docker-Distribution-Api-Version"] = "registry/2.0"
        headers["X-Content-Type-Options"] = "nosniff"  # what was pushed may be anything, and is no page of ours
        if self.ns is not None and _ECHOABLE.fullmatch(self.ns):  # it is the client's, and may hold line ends
            headers["OCI-Namespace"] = self.ns
        if self.cache is not None:
            headers["Cache-Status"] = self.cache

    def known(self, digest: Digest) -> bool:
        """Say whether the client has the content already: If-None-Match (RFC 9110 section 13.1.2)."""
        header = self.request.headers.get("If-None-Match")
        if header is None:
            return False
        tags = {tag.strip().removeprefix("W/").strip('"') for tag in header.split(",")}
        return header.strip() == "*" or str(digest) in tags

    def line(self, status: int) -> dict[str, Any]:
        """Return the fields of the access line."""
        request = self.request
        fields: dict[str, Any] = {
            "request_id": self.request_id,
            "client": self.caller.client,
            "method": request.method,
            "path": request.raw_path,
            "status": status,
            "bytes": self.sent,
            "ms": round((time.monotonic() - self.started) * 1000, 1),
        }
        if self.first_byte is not None:
            fields["first_byte_ms"] = round((self.first_byte - self.started) * 1000, 1)
        if self.received:
            fields["received"] = self.received
        for name in ("user", "upstream", "repository", "reference", "digest", "cache", "failure"):
            value = getattr(self, name)
            if value is not None:
                fields[name] = value
        agent = request.headers.get("User-Agent")
        if agent:
            fields["user_agent"] = agent[:200]
        return fields


def warning_of(text: str) -> str:
    """Return a ``Warning`` with a text of ours or of an upstream's (RFC 7234 section 5.5)."""
    plain = "".join(character if " " <= character <= "~" else " " for character in text)
    quotable = plain.replace("\\", " ").replace('"', "'")[:400]
    return f'299 - "{quotable}"'


def cache_status(*, hit: bool, follows: bool = False, detail: str | None = None, stored: bool = True) -> str:
    """Return a Cache-Status of this cache (RFC 9211 section 2)."""
    parts = ["mirror", "hit"] if hit else ["mirror", "fwd=uri-miss"]
    if not hit and stored:
        parts.append("stored")
    if follows:
        parts.append("collapsed")
    if detail:
        parts.append(f"detail={detail}")
    return "; ".join(parts)
