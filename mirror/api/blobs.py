"""Blobs: GET and HEAD (end-2), with ranges (RFC 9110 section 14) and conditions (section 13)."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence

from aiohttp import HttpVersion11, web

from mirror.api.exchange import Exchange, cache_status
from mirror.api.sending import Sender, end_now, end_short, end_wrong
from mirror.oci.errors import ContentChanged, RegistryError, UpstreamInvalid
from mirror.oci.names import Digest, Repository
from mirror.oci.ranges import ByteRange, ContentRange, parse_range
from mirror.registry.blobs import BlobService
from mirror.registry.body import Body, Extents
from mirror.registry.sharing import HEADERS_WITHIN

log = logging.getLogger("mirror.api")

FIRST_BYTES_WITHIN = 10.0
"""Seconds the headers wait for the first bytes of a range; clients give up at 30."""
BLOB_TYPE = "application/octet-stream"


async def head_blob(exchange: Exchange, blobs: BlobService, repository: Repository, digest: Digest) -> web.Response:
    """Answer HEAD: at most one upstream HEAD, and no body."""
    stat = await blobs.stat(repository, digest)
    exchange.hit = stat.hit
    exchange.cache = cache_status(hit=stat.hit, stored=False)
    headers = _headers(digest)
    if exchange.known(digest):
        return web.Response(status=304, headers=headers)
    if stat.size is not None:
        headers["Content-Length"] = str(stat.size)
    return web.Response(headers=headers)


async def get_blob(
    exchange: Exchange, blobs: BlobService, repository: Repository, digest: Digest, send_timeout: float
) -> web.StreamResponse:
    """Answer GET: what is here at once, what is not as it arrives."""
    if exchange.known(digest) and blobs.has(repository, digest) and await blobs.confirm(repository, digest):
        blobs.touch(digest)
        exchange.hit = True
        exchange.cache = cache_status(hit=True)
        return web.Response(status=304, headers=_headers(digest))
    answer = await blobs.open(repository, digest)
    exchange.hit = answer.hit
    exchange.follows = answer.follows
    exchange.cache = cache_status(hit=answer.hit, follows=answer.follows)
    try:
        return await _send(exchange, answer.body, digest, send_timeout)
    finally:
        answer.body.close()


async def _send(exchange: Exchange, body: Body, digest: Digest, send_timeout: float) -> web.StreamResponse:
    request = exchange.request
    asked = request.headers.get("Range")
    condition = request.headers.get("If-Range")
    if condition is not None and condition != f'"{digest}"':
        asked = None  # section 13.1.5: the whole, unless it is the very same
    ranges = parse_range(asked, body.size) if body.size is not None else None
    if ranges is None:
        return await _send_whole(exchange, body, digest, send_timeout)
    if len(ranges) == 1:
        return await _send_range(exchange, body, digest, ranges[0], send_timeout)
    return await _send_ranges(exchange, body, digest, ranges, send_timeout)


async def _send_whole(exchange: Exchange, body: Body, digest: Digest, send_timeout: float) -> web.StreamResponse:
    response = web.StreamResponse(headers=_headers(digest))
    if body.size is not None:
        response.content_length = body.size
    elif exchange.request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.force_close()
    return await _stream(exchange, response, [(b"", body, 0, body.size)], b"", send_timeout)


async def _send_range(
    exchange: Exchange, body: Body, digest: Digest, wanted: ByteRange, send_timeout: float
) -> web.StreamResponse:
    part = body.part(wanted)
    if not part.verified:
        exchange.cache = cache_status(hit=False, stored=False, detail="unverified-range")
    response = web.StreamResponse(status=206, headers=_headers(digest))
    response.headers["Content-Range"] = str(ContentRange(wanted.first, wanted.last, body.size))
    response.content_length = len(wanted)
    return await _stream(exchange, response, [(b"", part, wanted.first, wanted.last + 1)], b"", send_timeout)


async def _send_ranges(
    exchange: Exchange, body: Body, digest: Digest, ranges: Sequence[ByteRange], send_timeout: float
) -> web.StreamResponse:
    """Send several ranges as one multipart/byteranges body (section 14.6)."""
    boundary = secrets.token_hex(16)
    parts = []
    for wanted in ranges:
        part = body.part(wanted)
        if not part.verified:
            exchange.cache = cache_status(hit=False, stored=False, detail="unverified-range")
        head = (
            f"\r\n--{boundary}\r\nContent-Type: {BLOB_TYPE}\r\n"
            f"Content-Range: {ContentRange(wanted.first, wanted.last, body.size)}\r\n\r\n"
        )
        parts.append((head.encode(), part, wanted.first, wanted.last + 1))
    tail = f"\r\n--{boundary}--\r\n".encode()
    response = web.StreamResponse(status=206, headers=_headers(digest))
    response.headers["Content-Type"] = f"multipart/byteranges; boundary={boundary}"
    response.content_length = sum(len(head) for head, *_ in parts) + sum(map(len, ranges)) + len(tail)
    return await _stream(exchange, response, parts, tail, send_timeout)


async def _stream(
    exchange: Exchange,
    response: web.StreamResponse,
    parts: Sequence[tuple[bytes, Extents, int, int | None]],
    tail: bytes,
    send_timeout: float,
) -> web.StreamResponse:
    """Send parts of bodies, each behind a few bytes of its own.

    The first bytes are waited for before the headers go out, so that a failure until then is a clean error. After
    them a failure ends the connection: by FIN when the client may resume; by a reset when what it has is wrong, or
    when it would take the FIN for the end of the content, as HTTP/1.0 does without a Content-Length.
    """
    request = exchange.request
    _, body, first, stop = parts[0]
    try:
        left = HEADERS_WITHIN - (time.monotonic() - exchange.started)
        async with asyncio.timeout(max(0.0, min(FIRST_BYTES_WITHIN, left))):
            extent = await body.extent(first, stop)
    except TimeoutError:
        extent = None  # the end of something large that is on its way: the headers must not wait for it
    exchange.mark(response)
    sender = Sender(request, response, send_timeout)
    try:
        await sender.begin()
        exchange.first_byte = time.monotonic()
        for head, body, first, stop in parts:
            if head:
                await sender.write(head)
            await sender.send(body, first, stop, extent)
            extent = None
        if tail:
            await sender.write(tail)
    except ConnectionError as error:
        sender.close()
        exchange.failure = str(error) or "the client is gone"
        end_now(request)
    except Exception as error:  # whatever it is: behind these headers no answer of ours may stand
        sender.close()
        if isinstance(error, RegistryError):
            exchange.failure = error.message
        else:
            exchange.failure = type(error).__name__
            log.exception("sending %s failed", exchange.digest)
        framed = response.chunked or response.content_length is not None
        (end_wrong if isinstance(error, UpstreamInvalid | ContentChanged) or not framed else end_short)(request)
    finally:
        sender.close()
        exchange.sent = sender.sent
    return response


def _headers(digest: Digest) -> dict[str, str]:
    return {
        "Content-Type": BLOB_TYPE,
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
    }
