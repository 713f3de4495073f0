"""Uploads: sessions (end-4 to end-6, end-13, end-14) and mounts (end-11)."""

from __future__ import annotations

from urllib.parse import quote

from aiohttp import web

from mirror.api.exchange import Exchange
from mirror.api.incoming import RequestBody, chunk_of
from mirror.oci.errors import ChunkOutOfOrder, DigestInvalid
from mirror.oci.names import Digest, Repository, parse_algorithm, parse_digest
from mirror.registry.pushes import PushService
from mirror.registry.uploads import UploadService


async def post_upload(
    exchange: Exchange,
    uploads: UploadService,
    pushes: PushService,
    repository: Repository,
    source: Repository | None,
) -> web.Response:
    """Begin a session, take a whole blob, or mount one. source: of a mount, None when none is named."""
    query = exchange.request.query
    algorithm = parse_algorithm(query.get("digest-algorithm") or "sha256")
    if "mount" in query:
        wanted = parse_digest(query["mount"])
        exchange.digest = str(wanted)
        if await pushes.mount(repository, wanted, source, anywhere="from" not in query):
            return _created(exchange, wanted)
        algorithm = wanted.algorithm
    elif "digest" in query:
        digest = parse_digest(query["digest"])
        exchange.digest = str(digest)
        body = RequestBody(exchange.request)
        try:
            await uploads.push(repository, digest, body)
        finally:
            exchange.received = body.received
        return _created(exchange, digest)
    return _session(exchange, uploads.begin(repository, algorithm), 0, 202)


async def patch_upload(
    exchange: Exchange, uploads: UploadService, repository: Repository, session: str
) -> web.Response:
    """Add a chunk to a session."""
    body = RequestBody(exchange.request)
    try:
        size = await uploads.receive(repository, session, body, chunk_of(exchange.request))
    except ChunkOutOfOrder as error:
        raise _where(exchange, session, error) from None
    finally:
        exchange.received = body.received
    return _session(exchange, session, size, 202)


async def put_upload(exchange: Exchange, uploads: UploadService, repository: Repository, session: str) -> web.Response:
    """Close a session: it is a blob afterwards."""
    given = exchange.request.query.get("digest")
    if given is None:
        raise DigestInvalid("closing an upload needs the digest of the whole blob: ?digest=sha256:…")
    digest = parse_digest(given)
    exchange.digest = given
    body = RequestBody(exchange.request)
    try:
        await uploads.finish(repository, session, digest, body, chunk_of(exchange.request))
    except ChunkOutOfOrder as error:
        raise _where(exchange, session, error) from None
    finally:
        exchange.received = body.received
    return _created(exchange, digest)


async def get_upload(exchange: Exchange, uploads: UploadService, repository: Repository, session: str) -> web.Response:
    """Say where a session stands."""
    return _session(exchange, session, await uploads.offset(repository, session), 204)


async def delete_upload(
    exchange: Exchange, uploads: UploadService, repository: Repository, session: str
) -> web.Response:
    """Cancel a session."""
    await uploads.cancel(repository, session)
    return web.Response(status=204)


def base_of(exchange: Exchange) -> str:
    """Return the path of the repository as the client knows it, with the prefixes it uses.

    A path and no more: it is right whatever a proxy in between says of scheme and host, or does not, and there is no
    client that does not put them before it.
    """
    before, _, _ = exchange.request.rel_url.raw_path.partition("/v2/")
    return exchange.caller.outside(f"{before}/v2/{quote(exchange.name)}")


def _session(exchange: Exchange, session: str, size: int, status: int) -> web.Response:
    return web.Response(status=status, headers=_session_headers(exchange, session, size))


def _session_headers(exchange: Exchange, session: str, size: int) -> dict[str, str]:
    return {
        "Location": f"{base_of(exchange)}/blobs/uploads/{session}",
        # Of nothing this says one byte: there is no way to say none, and clients know it as that.
        "Range": f"0-{max(size - 1, 0)}",
        "Docker-Upload-UUID": session,
    }


def _created(exchange: Exchange, digest: Digest) -> web.Response:
    headers = {
        "Location": f"{base_of(exchange)}/blobs/{digest}",
        "Docker-Content-Digest": str(digest),
    }
    return web.Response(status=201, headers=headers)


def _where(exchange: Exchange, session: str, error: ChunkOutOfOrder) -> ChunkOutOfOrder:
    """Add to a 416 where the session stands, and where to go on."""
    error.headers = _session_headers(exchange, session, error.offset)
    return error
