"""Manifests: GET, HEAD (end-3), PUT (end-7); and the tags of upstreams (end-8)."""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict

from mirror.api.exchange import Exchange, cache_status
from mirror.api.incoming import RequestBody, condition_of, count_of, read_all
from mirror.api.lists import link_next
from mirror.api.uploads import base_of
from mirror.oci.errors import ManifestInvalid
from mirror.oci.names import Digest, Reference, Repository, parse_tag
from mirror.registry.manifests import ManifestService
from mirror.registry.pushes import PushService, too_large


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
        "Content-Security-Policy": "sandbox",  # its type is whatever it was pushed as, text/html too
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


async def put_manifest(exchange: Exchange, pushes: PushService, reference: Reference, largest: int) -> web.Response:
    """Take a manifest, by tag or by digest (end-7). largest: bytes of one."""
    request = exchange.request
    repository, target = reference.repository, reference.target
    tags = [parse_tag(tag) for tag in request.query.getall("tag", [])]
    if tags and not isinstance(target, Digest):
        raise ManifestInvalid("tag parameters go with a manifest that is pushed by its digest")
    body = RequestBody(request)
    raw = None
    if (request.content_length or 0) <= largest:
        try:
            raw = await read_all(body, largest)
        finally:
            exchange.received = body.received
    if raw is None:
        raise too_large(largest)
    manifest = await pushes.put(
        repository,
        target,
        raw,
        content_type=request.headers.get("Content-Type"),
        tags=tags,
        condition=condition_of(request),
    )
    digest = manifest.descriptor.digest
    exchange.digest = str(digest)
    headers = CIMultiDict(
        {
            "Location": f"{base_of(request, exchange.name)}/manifests/{digest}",
            "Docker-Content-Digest": str(digest),
            "ETag": f'"{digest}"',
        }
    )
    if manifest.subject is not None:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    for tag in tags:
        headers.add("OCI-Tag", tag)
    return web.Response(status=201, headers=headers)


async def get_upstream_tags(exchange: Exchange, manifests: ManifestService, repository: Repository) -> web.Response:
    """Answer a page of tags of an upstream's repository, as the upstream lists them."""
    n = count_of(exchange.request)
    if n == 0:
        return web.json_response({"name": exchange.name, "tags": []})
    page = await manifests.tags(repository, n=n, last=exchange.request.query.get("last"))
    exchange.hit = False
    exchange.cache = cache_status(hit=False, stored=False)
    response = web.json_response({"name": exchange.name, "tags": list(page.tags)})
    more = None if page.next_last is None else {"last": page.next_last}
    return link_next(exchange, response, page.next_n or n, more)


def subject(reference: Reference) -> tuple[str, str]:
    """Return the cache kind and the text of a reference, for the counts and the access line."""
    return ("manifest" if isinstance(reference.target, Digest) else "tag"), str(reference.target)


def _quotable(text: str) -> str:
    """Return text for a quoted string of a header (RFC 9110 section 5.6.4)."""
    plain = "".join(character if " " <= character <= "~" else " " for character in text)
    return plain.replace("\\", " ").replace('"', "'")[:400]
