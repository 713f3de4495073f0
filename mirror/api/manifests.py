"""Manifests: GET, HEAD (end-3), PUT (end-7)."""

from __future__ import annotations

from aiohttp import web
from multidict import CIMultiDict

from mirror.api.exchange import Exchange, cache_status, warning_of
from mirror.api.incoming import RequestBody, condition_of, read_all
from mirror.api.uploads import base_of
from mirror.oci.errors import ManifestInvalid
from mirror.oci.names import Digest, Reference, parse_tag
from mirror.registry.manifests import ManifestService
from mirror.registry.pushes import PushService, too_large


async def get_manifest(exchange: Exchange, manifests: ManifestService, reference: Reference) -> web.Response:
    """Answer GET and HEAD. The bytes are sent as they are, whatever Accept says: rewriting would change the digest."""
    request = exchange.request
    answer = await manifests.get(reference, body=request.method != "HEAD")
    descriptor = answer.descriptor
    exchange.hit, exchange.stale, exchange.missed = answer.hit, answer.stale, answer.missed
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
        headers["Warning"] = warning_of(answer.warning)
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
            "Location": f"{base_of(exchange)}/manifests/{digest}",
            "Docker-Content-Digest": str(digest),
            "ETag": f'"{digest}"',
        }
    )
    if manifest.subject is not None:
        headers["OCI-Subject"] = str(manifest.subject.digest)
    for tag in tags:
        headers.add("OCI-Tag", tag)
    return web.Response(status=201, headers=headers)


def subject(reference: Reference) -> tuple[str, str]:
    """Return the cache kind and the text of a reference, for the counts and the access line."""
    return ("manifest" if isinstance(reference.target, Digest) else "tag"), str(reference.target)
