"""One HTTP request to an upstream, followed hop by hop to its answer.

Every hop is dialled through the guard. Nothing of ours that is secret goes to another origin, nor comes back
from there. A redirect is never remembered: the next request starts at the registry again, as the URLs of
redirects expire.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror import __version__, config
from mirror.upstream.guard import AddressGuard, BadRedirect, same_origin
from mirror.upstream.resolver import SystemResolver

MOST_REDIRECTS = 10
READ_BUFFER = 512 * 1024
LONGEST_LINE = 32 * 1024
"""Longest header line in bytes: signed URLs and tokens are long."""

_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds.

    headers: token, redirects and headers (and the body, where it is a manifest or a list) together; containerd
    gives up at 30. connect: waiting for a connection. read: between two pieces of a body.
    """

    headers: float = 18.0
    connect: float = 10.0
    read: float = 30.0


class Transport:
    """The connections of one upstream. Used on one event loop, which need not run when this is made."""

    def __init__(
        self,
        settings: config.Upstream,
        *,
        url: URL,
        timeouts: Timeouts,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """url: of the registry. resolver: for names; None for the system's."""
        self._url = url
        self._ca_file = settings.ca_file
        self._guard = AddressGuard(settings.redirects_to)
        self._timeouts = timeouts
        self._resolver = resolver or SystemResolver()
        self._starting = asyncio.Lock()
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    async def open(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and follow its redirects; return the answer, to be released by the caller.

        authorization: goes to the origin of ``url`` only, and not there either once the way has left it.
        Raises: what aiohttp raises, OSError, and BadRedirect.
        """
        start = url
        for _ in range(MOST_REDIRECTS + 1):
            sent = dict(headers or {})
            if authorization is not None:
                sent["Authorization"] = authorization
            session = await self._session(url)
            response = await session.request(method, url, headers=sent, allow_redirects=False)
            if response.status not in _REDIRECTS:
                return response
            try:
                url = _target(response)
            finally:
                response.release()
            if not same_origin(url, start):
                authorization = None
        raise BadRedirect(f"more than {MOST_REDIRECTS} redirects")

    async def _session(self, url: URL) -> aiohttp.ClientSession:
        if self._sessions is None:
            async with self._starting:
                self._sessions = self._sessions or await self._start()
        origin, other = self._sessions
        return origin if url.raw_host == self._url.raw_host else other

    async def _start(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        context: ssl.SSLContext | bool = True
        if self._ca_file is not None:
            context = await asyncio.to_thread(_context, str(self._ca_file))
        origin, other = (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    limit_per_host=128,
                    ssl=context,
                    socket_factory=socket_factory,
                    resolver=self._resolver,
                ),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=self._timeouts.connect,
                    sock_connect=self._timeouts.connect,
                    sock_read=self._timeouts.read,
                ),
                # Bytes as they are, or the digest would not be theirs.
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": f"oci-mirror/{__version__}"},
                cookie_jar=aiohttp.DummyCookieJar(),
                requote_redirect_url=False,
                read_bufsize=READ_BUFFER,
                max_line_size=LONGEST_LINE,
                max_field_size=LONGEST_LINE,
                trust_env=False,  # it would read ~/.netrc
            )
            for socket_factory in (self._guard.origin_socket, self._guard.other_socket)
        )
        return origin, other

    async def close(self) -> None:
        """Close every connection."""
        sessions, self._sessions = self._sessions, None
        for session in sessions or ():
            await session.close()
        await self._resolver.close()


def _target(response: aiohttp.ClientResponse) -> URL:
    location = response.headers.get("Location", "").strip()
    if not location:
        raise BadRedirect("a redirect without a Location")
    try:
        # A signed URL is good only as it was written; one that is not ASCII cannot be sent as written.
        target = URL(location, encoded=location.isascii())
        if target.scheme and not target.host:
            raise BadRedirect("a redirect to something that is not an http URL")
        url = response.url.join(target).with_fragment(None)
        if url.raw_user is not None or url.raw_password is not None:
            url = url.with_user(None)
        usable = url.scheme in ("http", "https") and bool(url.host) and url.port is not None
    except BadRedirect:
        raise
    except ValueError as error:
        raise BadRedirect("a redirect to a malformed URL") from error
    if not usable or any(character <= " " for character in location):
        raise BadRedirect("a redirect to something that is not an http URL")
    return url


def _context(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context
