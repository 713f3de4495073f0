"""Manifests (end-3) and tag lists (end-8)."""

from __future__ import annotations

from urllib.parse import urlencode

from aiohttp import web

from mirror.api.exchange import Exchange, cache_status
from mirror.oci.names import Digest, Reference, Repository
from mirror.registry.manifests import ManifestService


async def get_manifest(exchange: Exchange, manifests: ManifestService, reference: Reference) -> web.Response:
    """Answer GET and HEAD. The bytes are sent as they are, whatever Accept says: rewriting would change the digest."""
    request = exchange.request
    answer = await manifests.get(reference, body=request.method != "HEAD")
    descriptor = answer.descriptor
    exchange.hit = answer.hit
    exchange.digest = str(descriptor.digest)
    exchange.cache = cache_status(
        hit=answer.hit, stored=answer.manifest is not None, detail="stale" if answer.warning else None
    )
    headers = {
        "Content-Type": descriptor.media_type,
        "Docker-Content-Digest": exchange.digest,
        "ETag": f'"{descriptor.digest}"',
    }
    if answer.warning:
        headers["Warning"] = f'299 - "{_quotable(answer.warning)}"'
    if exchange.known(descriptor.digest):
        del headers["Content-Type"]
        return web.Response(status=304, headers=headers)
    if answer.manifest is None or request.method == "HEAD":
        headers["Content-Length"] = str(descriptor.size)
        return web.Response(headers=headers)
    exchange.sent = len(answer.manifest.raw)
    return web.Response(body=answer.manifest.raw, headers=headers)


async def get_tags(exchange: Exchange, manifests: ManifestService, repository: Repository, name: str) -> web.Response:
    """Answer a page of tags. name: the repository as the client calls it."""
    request = exchange.request
    given, last = request.query.get("n"), request.query.get("last")
    n = int(given) if given and given.isascii() and given.isdigit() and len(given) < 10 else None
    if n == 0:
        return web.json_response({"name": name, "tags": []})
    page = await manifests.tags(repository, n=n, last=last)
    exchange.hit = False
    exchange.cache = cache_status(hit=False, stored=False)
    response = web.json_response({"name": name, "tags": list(page.tags)})
    if page.next_last is not None:
        query = {"last": page.next_last}
        if (count := page.next_n or n) is not None:
            query = {"n": str(count), **query}
        if exchange.ns is not None:
            query["ns"] = exchange.ns
        response.headers["Link"] = f'<{request.rel_url.raw_path}?{urlencode(query)}>; rel="next"'
    return response


def subject(reference: Reference) -> tuple[str, str]:
    """Return the cache kind and the text of a reference, for the counts and the access line."""
    return ("manifest" if isinstance(reference.target, Digest) else "tag"), str(reference.target)


def _quotable(text: str) -> str:
    """Return text for a quoted string of a header (RFC 9110 section 5.6.4)."""
    plain = "".join(character if " " <= character <= "~" else " " for character in text)
    return plain.replace("\\", " ").replace('"', "'")[:400]
