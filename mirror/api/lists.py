"""Lists: tags (end-8), referrers (end-12), the catalog, extensions, the history of a tag."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from mirror.api.exchange import Exchange, cache_status, warning_of
from mirror.api.incoming import count_of
from mirror.oci.errors import ParameterInvalid
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.names import Digest, Repository, parse_tag
from mirror.registry.lists import ListService, Page, descriptor_json
from mirror.registry.pulled_lists import PulledLists
from mirror.upstream.rules import Rules

EXTENSIONS = [
    {
        "name": "_oci",
        "url": "https://github.com/opencontainers/distribution-spec/blob/main/extensions/_oci.md",
        "description": "the extensions there are",
        "endpoints": ["_oci/ext/discover"],
    },
    {
        "name": "_mirror",
        "url": "/v2/_mirror/openapi/openapi.json",
        "description": "the history of tags, the description of the API, tokens",
        "endpoints": ["_mirror/tags/history", "_mirror/openapi/openapi.json", "_mirror/auth/token"],
    },
]
"""In the shape of the specification's ``_oci`` extension."""


async def get_tags(
    exchange: Exchange, lists: ListService | PulledLists, rules: Rules, repository: Repository
) -> web.Response:
    """Answer a page of a repository's tags, without those that may not be pulled."""
    n, last = count_of(exchange.request), exchange.request.query.get("last", "")
    page = await lists.tags(repository, n=n, last=last)
    tags = [tag for tag in page.entries if rules.visible(repository, tag)]
    response = web.json_response({"name": exchange.name, "tags": tags})
    _note(exchange, response, page)
    return link_next(exchange, response, n, page.more and page.entries and {"last": page.entries[-1]})


async def get_catalog(exchange: Exchange, lists: ListService) -> web.Response:
    """Answer a page of repository names."""
    n, last = count_of(exchange.request), exchange.request.query.get("last", "")
    page = await lists.repositories(n=n, last=last)
    response = web.json_response({"repositories": list(page.entries)})
    return link_next(exchange, response, n, page.more and page.entries and {"last": page.entries[-1]})


async def get_referrers(
    exchange: Exchange, lists: ListService | PulledLists, repository: Repository, subject: Digest
) -> web.Response:
    """Answer a page of what refers to a manifest."""
    query = exchange.request.query
    n, last, wanted = count_of(exchange.request), query.get("last", ""), query.get("artifactType") or None
    page = await lists.referrers(repository, subject, artifact_type=wanted, n=n, last=last)
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor_json(found) for found in page.entries],
    }
    response = web.Response(body=json.dumps(index).encode(), headers={"Content-Type": OCI_INDEX})
    _note(exchange, response, page)
    if wanted is not None:
        response.headers["OCI-Filters-Applied"] = "artifactType"
    more = page.more and page.entries and {"last": str(page.entries[-1].digest)}
    return link_next(exchange, response, n, more and ({"artifactType": wanted} | more if wanted else more))


async def get_history(exchange: Exchange, lists: ListService, repository: Repository) -> web.Response:
    """Answer a page of a tag's moves, the newest first."""
    given = exchange.request.query.get("tag")
    if given is None:
        raise ParameterInvalid("say which tag: ?tag=NAME")
    tag = parse_tag(given)
    n = count_of(exchange.request)
    page = await lists.history(repository, tag, n=n, before=count_of(exchange.request, "before"))
    moves = [
        {
            "digest": str(move.digest) if move.digest else None,
            "time": datetime.fromtimestamp(move.at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "origin": move.origin,
        }
        for move in page.entries
    ]
    response = web.json_response({"name": exchange.name, "tag": tag, "history": moves})
    more = page.more and page.entries and {"tag": given, "before": str(page.entries[-1].number)}
    return link_next(exchange, response, n, more)


def discover() -> web.Response:
    """Answer which extensions there are (``_oci/ext/discover``)."""
    return web.json_response({"extensions": EXTENSIONS})


def _note(exchange: Exchange, response: web.Response, page: Page[Any]) -> None:
    """Note what became of an upstream's list on the way to the client."""
    if page.hit is None:
        return
    exchange.hit, exchange.stale = page.hit, page.stale
    exchange.cache = cache_status(hit=page.hit, detail="stale" if page.warning else None)
    if page.warning:
        response.headers["Warning"] = warning_of(page.warning)


def link_next(exchange: Exchange, response: web.Response, n: int | None, more: Mapping[str, str] | Any) -> web.Response:
    """Add the Link to the next page (RFC 8288), if there is one. more: the parameters that say where it begins."""
    if more:
        query = ({"n": str(n)} if n is not None else {}) | dict(more)
        if exchange.ns is not None:
            query["ns"] = exchange.ns
        path = exchange.caller.outside(exchange.request.rel_url.raw_path)
        response.headers["Link"] = f'<{path}?{urlencode(query)}>; rel="next"'
    return response
