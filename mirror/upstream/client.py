"""One upstream registry: what it has, asked over HTTP, and what its answers mean.

The meanings are one table, ``_expect``: 404 is an answer, everything else that is not the content is a failure
of the upstream; and 401 or 403 mean "not there" to us if we have no credentials, "denied" if we have.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror import config
from mirror.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    Unknown,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamRateLimited,
)
from mirror.oci.manifest import ACCEPT, Descriptor, media_type_of
from mirror.oci.names import Digest, RepositoryName, Tag, try_digest
from mirror.oci.ranges import ByteRange, parse_content_range
from mirror.upstream.auth import Authenticator, Authorization, Refused
from mirror.upstream.base import FetchedManifest, Resolved, TagPage
from mirror.upstream.guard import same_origin
from mirror.upstream.report import FAILURES, NoMetrics, Reporter, UpstreamMetrics, retry_after
from mirror.upstream.transport import Timeouts, Transport

E = TypeVar("E", bound=RegistryError)

LIST_LIMIT = 8 * 1024 * 1024
"""Longest page of tags, in bytes."""

PARSED_INLINE = 64 * 1024
"""Longest JSON parsed on the event loop, in bytes."""

_LINK = re.compile(r"<([^<>]*)>\s*((?:;\s*[^;,]+)*)")
_NEXT = re.compile(r";\s*rel\s*=\s*\"?next\"?\s*(?:;|\Z)", re.IGNORECASE)


class RegistryClient:
    """An ``Upstream`` (see ``base``) over HTTP. Used on one event loop, which need not run when it is made."""

    def __init__(
        self,
        name: str,
        settings: config.Upstream,
        *,
        limits: config.Limits | None = None,
        timeouts: Timeouts | None = None,
        metrics: UpstreamMetrics | None = None,
        resolver: AbstractResolver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """name: the one it is configured under. resolver: None for the system's. clock: seconds, ages tokens."""
        self.name = name
        self._base = settings.url.rstrip("/")
        self._url = URL(self._base)
        self._host = self._url.host or ""
        self._limits = limits or config.Limits()
        self._timeouts = timeouts or Timeouts()
        self._metrics: UpstreamMetrics = metrics or NoMetrics()
        self._report = Reporter(name, self._metrics)
        self._transport = Transport(settings, url=self._url, timeouts=self._timeouts, resolver=resolver)
        self._auth = Authenticator(
            settings,
            url=self._url,
            send=self._ask_realm,
            report=self._report,
            # a little before its waiters' own limit, so that they can say it was the token
            timeout=0.9 * self._timeouts.headers,
            clock=clock,
        )

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a manifest by HEAD (end-3)."""
        what = _manifest(repository, target)
        async with self._limited(what, ManifestUnknown):
            path = f"manifests/{target}"
            response, used = await self._open("manifest", "HEAD", repository, path, {"Accept": ACCEPT})
            with _released(response):
                self._expect(response, used, what, ManifestUnknown, 200)
                return _resolved(response, used)

    async def manifest(self, repository: RepositoryName, target: Tag | Digest) -> FetchedManifest:
        """Get a manifest (end-3). Raises UpstreamInvalid when it is over the limit."""
        what = _manifest(repository, target)
        async with self._limited(what, ManifestUnknown):
            path = f"manifests/{target}"
            response, used = await self._open("manifest", "GET", repository, path, {"Accept": ACCEPT})
            with _released(response):
                self._expect(response, used, what, ManifestUnknown, 200)
                return FetchedManifest(
                    raw=await self._read(response, what, self._limits.manifest),
                    content_type=response.headers.get("Content-Type"),
                    digest=try_digest(response.headers.get("Docker-Content-Digest")),
                    anonymous=used.anonymous,
                )

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a blob by HEAD (end-2)."""
        what = f"blob {digest} of {repository}"
        async with self._limited(what, BlobUnknown):
            response, used = await self._open("blob", "HEAD", repository, f"blobs/{digest}", {})
            with _released(response):
                self._expect(response, used, what, BlobUnknown, 200)
                return _resolved(response, used)

    @asynccontextmanager
    async def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AsyncIterator[Body]:
        """Get a blob (end-2), from ``offset`` on, or just the bytes of ``window``."""
        what = f"blob {digest} of {repository}"
        headers = {}
        if window is not None:
            headers["Range"] = f"bytes={window.first}-{window.last}"
        elif offset:
            headers["Range"] = f"bytes={offset}-"
        async with self._limited(what, BlobUnknown):
            response, used = await self._open("blob", "GET", repository, f"blobs/{digest}", headers)
            try:
                self._expect(response, used, what, BlobUnknown, 200, 206)
                body = self._body(response, used, what, offset=offset, window=window)
            except BaseException:
                response.release()
                raise
        with _released(response):
            yield body

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        """Get one page of the repository's tags (end-8a, end-8b)."""
        what = f"tags of {repository}"
        asked = {key: str(value) for key, value in (("n", n), ("last", last)) if value is not None}
        path = f"tags/list?{urlencode(asked)}" if asked else "tags/list"
        async with self._limited(what, NameUnknown):
            response, used = await self._open("tags", "GET", repository, path, {"Accept": "application/json"})
            with _released(response):
                self._expect(response, used, what, NameUnknown, 200)
                links = response.headers.getall("Link", [])
                raw = await self._read(response, what, LIST_LIMIT)
            if len(raw) > PARSED_INLINE:
                tags = await asyncio.to_thread(_parse_tags, raw)
            else:
                tags = _parse_tags(raw)
        if tags is None:
            raise self._invalid(response, f"{what}: the answer is not a list of tags; check the url")
        next_n, next_last = _next_page(links, tags)
        return TagPage(tags=tags, next_n=next_n, next_last=next_last)

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Get every manifest that has a subject (end-12a)."""
        return None

    def saving(self) -> UpstreamError | None:
        """Say why requests that count should be saved."""
        return None

    async def close(self) -> None:
        """Close every connection."""
        await self._auth.close()
        await self._transport.close()

    # ---- asking ----

    async def _open(
        self, kind: str, method: str, repository: RepositoryName, path: str, headers: dict[str, str]
    ) -> tuple[aiohttp.ClientResponse, Authorization]:
        """Ask; when the registry wants to know who asks, say so and ask once more.

        Returns the last answer, to be released, whatever its status; and what went with it.
        """
        url = URL(f"{self._base}/v2/{repository}/{path}", encoded=True)
        used = await self._auth.known(repository)
        response = await self._request(kind, method, url, headers, used)
        if response.status != 401 or not same_origin(response.url, self._url):
            return response, used
        with _released(response):
            lines = response.headers.getall("WWW-Authenticate", []) or await self._challenge()
            answer = await self._auth.challenged(lines, repository, used=used)
        if answer is None:
            return response, used
        return await self._request(kind, method, url, headers, answer), answer

    async def _request(
        self, kind: str, method: str, url: URL, headers: dict[str, str], used: Authorization
    ) -> aiohttp.ClientResponse:
        response = await self._transport.open(method, url, headers=headers, authorization=used.header)
        self._metrics.request(self.name, kind, response.status)
        return response

    async def _challenge(self) -> list[str]:
        """Return the challenges of ``/v2/`` (end-1): gcr.io sometimes leaves them out elsewhere."""
        url = URL(f"{self._base}/v2/", encoded=True)
        response = await self._request("ping", "GET", url, {}, Authorization())
        with _released(response):
            if response.status != 401 or not same_origin(response.url, self._url):
                return []
            return response.headers.getall("WWW-Authenticate", [])

    @asynccontextmanager
    async def _ask_realm(self, url: URL, *, authorization: str | None) -> AsyncIterator[aiohttp.ClientResponse]:
        response = await self._transport.open("GET", url, authorization=authorization)
        with _released(response):
            yield response

    # ---- what answers mean ----

    @asynccontextmanager
    async def _limited(self, what: str, unknown: type[Unknown]) -> AsyncIterator[None]:
        """Give the block the time of the headers phase, and its failures our meanings."""
        try:
            async with asyncio.timeout(self._timeouts.headers):
                yield
        except Refused as refused:
            raise self._not_allowed(refused.status, refused.host, what, unknown) from refused
        except FAILURES as error:
            host = error.host if isinstance(error, aiohttp.ClientConnectorError) else self._host
            raise self._report.translated(error, what, host=host) from error

    def _expect(
        self,
        response: aiohttp.ClientResponse,
        used: Authorization,
        what: str,
        unknown: type[Unknown],
        *statuses: int,
    ) -> None:
        """Pass when the status is one of these, else raise what it means."""
        status, host = response.status, response.url.host or ""
        if status in statuses:
            return
        if status == 404:
            raise unknown(f"upstream {self.name} has no {what}")
        if status in (401, 403) and same_origin(response.url, self._url):
            raise self._not_allowed(status, host, what, unknown)
        message = f"{what}: {host} answered {status}"
        if status == 429:
            raise self._report.error(
                UpstreamRateLimited,
                f"{message}, it limits our rate; try again later",
                host=host,
                status=status,
                retry_after=retry_after(response.headers.get("Retry-After")),
            )
        if status >= 500 or status in (401, 403):
            # 401 and 403 of another origin: where it redirects to does not accept its own redirect.
            raise self._report.error(UpstreamFailed, f"{message}; try again later", host=host, status=status)
        raise self._invalid(response, f"{message}, which makes no sense here; check its url")

    def _not_allowed(self, status: int, host: str, what: str, unknown: type[Unknown]) -> RegistryError:
        user = self._auth.user
        if user is None:
            return unknown(f"upstream {self.name} has no {what} that may be read without credentials")
        return self._report.error(
            UpstreamDenied,
            f"{what}: refused to user {user!r}; check the user's rights and credentials.password_file",
            host=host,
            status=status,
        )

    def _invalid(self, response: aiohttp.ClientResponse, message: str) -> UpstreamInvalid:
        return self._report.error(UpstreamInvalid, message, host=response.url.host or "", status=response.status)

    # ---- bodies ----

    async def _read(self, response: aiohttp.ClientResponse, what: str, limit: int) -> bytes:
        """Read a whole body of at most ``limit`` bytes, and not one chunk more."""
        raw = bytearray()
        announced = response.content_length
        try:
            if announced is None or announced <= limit:
                async for chunk in response.content.iter_any():
                    self._metrics.fetched(self.name, len(chunk))
                    raw += chunk
                    if len(raw) > limit:
                        break
                else:
                    return bytes(raw)
        except TimeoutError:
            raise
        except FAILURES as error:
            host = response.url.host or ""
            raise self._report.translated(error, what, host=host, body=True) from error
        raise self._invalid(response, f"{what}: the answer is longer than {limit} bytes, the limit")

    def _body(
        self,
        response: aiohttp.ClientResponse,
        used: Authorization,
        what: str,
        *,
        offset: int,
        window: ByteRange | None,
    ) -> Body:
        """Check the announced range and size of a blob's answer against what was asked."""
        announced = response.content_length
        size: int | None
        if response.status == 200:
            if window is not None:
                raise self._invalid(response, f"{what}: ignores Range, so no part of it can be had")
            first, size, length = 0, announced, announced
        else:
            found = parse_content_range(response.headers.get("Content-Range"))
            first = window.first if window else offset
            wrong = (
                found is None
                or found.first != first
                or (announced is not None and announced != found.last - found.first + 1)
            )
            if found is not None and window is not None:
                end = window.last if found.size is None else min(window.last, found.size - 1)
                wrong = wrong or found.last > end or (found.size is not None and found.last < end)
            if wrong or found is None:
                raise self._invalid(response, f"{what}: another range than the one asked for; nothing of it was used")
            size = found.size
            length = found.last + 1 - first
            if window is None and size is not None:
                length = size - first
        if (size if size is not None else first + (length or 0)) > self._limits.blob:
            raise self._invalid(response, f"{what}: longer than {self._limits.blob} bytes, the limit")
        return Body(
            self._report,
            self._metrics,
            response,
            what,
            offset=first,
            size=size,
            length=length,
            limit=self._limits.blob,
            anonymous=used.anonymous,
        )


class Body:
    """A ``BlobSource``. length: bytes to come, None when nobody said. limit: of the whole, in bytes."""

    def __init__(
        self,
        report: Reporter,
        metrics: UpstreamMetrics,
        response: aiohttp.ClientResponse,
        what: str,
        *,
        offset: int,
        size: int | None,
        length: int | None,
        limit: int,
        anonymous: bool,
    ) -> None:
        self.offset = offset
        self.size = size
        self.anonymous = anonymous
        self._report = report
        self._metrics = metrics
        self._response = response
        self._what = what
        self._length = length
        self._limit = limit

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives; never more than was announced, nor more than the limit.

        Raises: UpstreamFailed when it ends short, UpstreamTimeout when nothing comes for the time limit,
        UpstreamInvalid when it is too long.
        """
        host = self._response.url.host or ""
        most = self._limit - self.offset if self._length is None else self._length
        received = 0
        try:
            async for chunk in self._response.content.iter_any():
                received += len(chunk)
                self._metrics.fetched(self._report.upstream, len(chunk))
                if received > most:
                    said = f"the limit of {self._limit} bytes" if self._length is None else "announced"
                    raise self._report.error(
                        UpstreamInvalid, f"{self._what}: the body is longer than {said}", host=host
                    )
                yield chunk
        except FAILURES as error:
            raise self._report.translated(error, self._what, host=host, body=True) from error
        if self._length is not None and received < self._length:
            # A body that ends with its connection ends silently.
            raise self._report.error(
                UpstreamFailed,
                f"{self._what}: the body ended after {received} of {self._length} bytes; try again",
                host=host,
            )


@contextmanager
def _released(response: aiohttp.ClientResponse) -> Iterator[None]:
    try:
        yield
    finally:
        response.release()


def _manifest(repository: RepositoryName, target: Tag | Digest) -> str:
    return f"manifest {repository}{'@' if isinstance(target, Digest) else ':'}{target}"


def _resolved(response: aiohttp.ClientResponse, used: Authorization) -> Resolved:
    return Resolved(
        digest=try_digest(response.headers.get("Docker-Content-Digest")),
        media_type=media_type_of(response.headers.get("Content-Type")),
        size=response.content_length,
        anonymous=used.anonymous,
    )


def _parse_tags(raw: bytes) -> tuple[str, ...] | None:
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


def _next_page(links: list[str], tags: tuple[str, ...]) -> tuple[int | None, str | None]:
    """Read ``n`` and ``last`` of the next page from ``Link`` (RFC 8288); nothing else of it is believed."""
    for line in links:
        for target, parameters in _LINK.findall(line):
            if not _NEXT.search(parameters):
                continue
            try:
                query = parse_qs(urlsplit(target).query)
            except ValueError:
                continue
            n = query.get("n", [""])[0]
            # Some page by a mark of their own; the last tag says the same by the specification.
            last = query.get("last", [tags[-1] if tags else ""])[0]
            if last:
                return (int(n) if re.fullmatch(r"[0-9]{1,9}", n) else None), last
    return None, None
