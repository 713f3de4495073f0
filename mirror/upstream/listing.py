"""What registries answer to questions for lists, and where they say that it goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mirror.oci.errors import ManifestInvalid
from mirror.oci.manifest import OCI_INDEX, Descriptor, parse_descriptor

LIST_LIMIT = 8 * 1024 * 1024
"""Longest page of tags, in bytes."""

REFERRERS_LIMIT = 4 * 1024 * 1024
"""Longest list of referrers, all pages together, in bytes."""

REFERRERS_PAGES = 100
"""Most pages of referrers."""

NO_REFERRERS = (400, 404, 405, 406)
"""What registries without the referrers API answer: 404 by the specification, and what else they say to a path they
do not know."""

PARSED_INLINE = 64 * 1024
"""Longest JSON parsed on the event loop, in bytes."""

_QUERY = re.compile(r"[!-~]{1,2048}")
_LINK = re.compile(r"<([^<>]*)>\s*((?:;\s*[^;,]+)*)")
_NEXT = re.compile(r";\s*rel\s*=\s*\"?next\"?\s*(?:;|\Z)", re.IGNORECASE)


def parse_tags(raw: bytes) -> tuple[str, ...] | None:
    """Read a list of tags (end-8); None when it is none."""
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    tags = body.get("tags", []) if isinstance(body, dict) else body
    if not isinstance(body, dict) or "tags" not in body:
        return None
    if tags is None:
        return ()
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        return None
    return tuple(tags)


def next_page(links: list[str], tags: tuple[str, ...]) -> tuple[int | None, str | None]:
    """Read ``n`` and ``last`` of the next page from ``Link`` (RFC 8288); nothing else of it is believed."""
    for text in _queries(links):
        query = parse_qs(text)
        n = query.get("n", [""])[0]
        # Some page by a mark of their own; the last tag says the same by the specification.
        last = query.get("last", [tags[-1] if tags else ""])[0]
        if last:
            return (int(n) if re.fullmatch(r"[0-9]{1,9}", n) else None), last
    return None, None


def _queries(links: list[str]) -> Iterator[str]:
    """Give the query of each ``Link`` to the next page."""
    for line in links:
        for target, parameters in _LINK.findall(line):
            if _NEXT.search(parameters):
                try:
                    yield urlsplit(target).query
                except ValueError:
                    continue


def next_query(links: list[str]) -> str | None:
    """Return what asks for the next page of referrers, at the path of the first; None when there is none.

    How they are paged is up to the registry, so its query is sent as it is; of host and path nothing is believed.
    An empty one asks for the first page again.
    """
    for query in _queries(links):
        return query if _QUERY.fullmatch(query) else ""
    return None


def parse_referrers(raw: bytes) -> tuple[list[Descriptor], int] | None:
    """Read an index of referrers: its descriptors, and how many of them are malformed; None when it is no index."""
    try:
        body: Any = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or "manifests" not in body or body.get("mediaType", OCI_INDEX) != OCI_INDEX:
        return None
    items = [] if body["manifests"] is None else body["manifests"]
    if not isinstance(items, list):
        return None
    found = []
    for item in items:
        try:
            descriptor = parse_descriptor(item, "a referrer")
        except ManifestInvalid:
            continue
        if descriptor.media_type:
            found.append(descriptor)
    return found, len(items) - len(found)
