"""Requests to a registry under judgement: sent as they are, followed through logins, kept for the report."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import ssl as ssl_module
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from mirror.conformance.case import Failed
from mirror.upstream.challenge import Challenge, choose, parse_challenges

SHOWN = 400
"""Bytes of a text body that a report shows."""

LONGEST = 40
"""Characters of a query parameter that a report shows."""

PIECE = 64 * 1024
"""Bytes that are sent at once."""

_REALM_SCHEMES = ("http", "https")


class Unreachable(Exception):
    """The registry cannot be asked at all: no connection, no TLS, a login that does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who asks. password: a secret, shown nowhere."""

    user: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole response. url: what was asked, after redirects.

    headers: of the last response; before: of the redirects on the way to it.
    """

    method: str
    url: str
    status: int
    headers: CIMultiDictProxy[str]
    before: tuple[CIMultiDictProxy[str], ...]
    body: bytes

    @property
    def asked(self) -> str:
        """Return method and path, for messages."""
        return f"{self.method} {_shown_url(self.url)}"

    def header(self, name: str) -> str | None:
        """Return a header of the response, or of a redirect on the way to it."""
        for headers in (self.headers, *reversed(self.before)):
            if name in headers:
                return headers[name]
        return None

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    def describe(self) -> str:
        """Return the request, status, headers and the start of the body, for a report."""
        lines = [f"{self.asked} -> {self.status}"]
        lines += [f"  {name}: {value[:SHOWN]}" for name, value in self.headers.items()]
        if self.body:
            lines.append(f"  {_shown_body(self.body)}")
        return "\n".join(lines)


class Registry:
    """One registry under judgement. Not for concurrent use: the log is one sequence."""

    def __init__(
        self,
        url: str,
        *,
        login: Login | None = None,
        tls: ssl_module.SSLContext | bool = True,
        timeout: float = 60.0,
        reuse: bool = True,
    ) -> None:
        """Remember how to ask.

        url: scheme and host. tls: a context, False for unchecked. timeout: seconds of silence. reuse: send several
        requests by one connection; without, each may reach another process of the registry.
        """
        self.url = url.rstrip("/")
        self.host = urlsplit(self.url).netloc
        self.log: list[str] = []
        self.observers: list[Callable[[Answer, bytes], None]] = []
        self._login = login
        self._tls = tls
        self._reuse = reuse
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, timeout), sock_read=timeout)
        self._authorization: dict[tuple[str, str], str] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, force_close=not self._reuse),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=False,
            requote_redirect_url=False,
            headers={"User-Agent": "mirror-conformance", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        await self._session.close()

    def absolute(self, location: str, base: str | None = None) -> str:
        """Return the URL a path, or a Location relative to ``base``, stands for."""
        return urljoin(base or self.url + "/", location)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | list[tuple[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        chunked: bool = False,
    ) -> Answer:
        """Send a request, log in when that is asked for, follow redirects.

        path: a path or URL, sent as it is; query is added to it. chunked: send the body without its length.
        Raises: Failed when the connection breaks.
        """
        url = self.absolute(path)
        if query:
            url = _with_query(url, list(query.items()) if isinstance(query, Mapping) else query)
        headers = CIMultiDict(headers or {})
        try:
            answer = await self._send(method, url, headers, body, chunked)
            if answer.status == 401 and await self._log_in(method, url, answer):
                answer = await self._send(method, url, headers, body, chunked)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            why = _why(error)
            self.log.append(f"{method} {_shown_url(url)} -> {why}")
            raise Failed(expected=f"an answer to {method} {_shown_url(url)}", got=why) from error
        for observe in self.observers:
            observe(answer, body or b"")
        return answer

    async def reach(self) -> None:
        """Ask for ``/v2/`` once.

        Raises: Unreachable when there is no answer at all, or the login given is not taken.
        """
        try:
            answer = await self.ask("GET", "/v2/")
        except Failed as failed:
            advice = "is the URL right, and the registry running?"
            if isinstance(failed.__cause__, aiohttp.ClientConnectorCertificateError):
                advice = "give its authority by --ca-file, or --insecure"
            elif isinstance(failed.__cause__, aiohttp.ClientConnectorSSLError):
                advice = "does it speak plain HTTP? then the URL begins with http://"
            raise Unreachable(f"{self.url} does not answer: {failed.got}; {advice}") from failed
        if answer.status == 401:
            if self._login:
                raise Unreachable(
                    f"{self.url} does not take the login of {self._login.user!r} (401): is the password right?"
                )
            raise Unreachable(f"{self.url} wants a login: give --user")

    async def _send(
        self, method: str, url: str, headers: CIMultiDict[str], body: bytes | None, chunked: bool
    ) -> Answer:
        sent = CIMultiDict(headers)
        known = self._authorization.get(_realm_of(method, url))
        if known and urlsplit(url).netloc == self.host:
            sent["Authorization"] = known
        data: Any = body
        if chunked or len(body or b"") > PIECE:
            data = _pieces(body or b"")
            if not chunked:
                sent["Content-Length"] = str(len(body or b""))
        elif data is None and method in ("POST", "PUT", "PATCH"):
            data = b""
        async with self._session.request(method, URL(url, encoded=True), headers=sent, data=data) as response:
            answer = Answer(
                method=method,
                url=str(response.url),
                status=response.status,
                headers=response.headers,
                before=tuple(one.headers for one in response.history),
                body=await response.read(),
            )
        asked = "".join(f"\n  > {name}: {value}" for name, value in headers.items())
        length = f"\n  > {len(body)} bytes{' in chunks' if chunked else ''}" if body is not None else ""
        first, _, rest = answer.describe().partition("\n")
        self.log.append(f"{first}{asked}{length}\n{rest}".rstrip())
        return answer

    async def _log_in(self, method: str, url: str, answer: Answer) -> bool:
        """Answer a challenge; tell whether there is now something else to send."""
        key = _realm_of(method, url)
        challenge = choose(parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
        if challenge is None or urlsplit(answer.url).netloc != self.host:
            return False
        if challenge.scheme == "basic":
            found = self._login.basic if self._login else None
        else:
            found = await self._token(challenge)
        if found is None or self._authorization.get(key) == found:
            return False
        self._authorization[key] = found
        return True

    async def _token(self, challenge: Challenge) -> str | None:
        """Fetch a token, without a login when none was given; None when there is none to be had."""
        realm = self.absolute(challenge.realm)
        if urlsplit(realm).scheme not in _REALM_SCHEMES:
            return None
        query = [("service", challenge.service)] if challenge.service else []
        query += [("scope", scope) for scope in challenge.parameters.get("scope", "").split() if scope]
        headers = {"Authorization": self._login.basic} if self._login else {}
        if self._login:
            query.append(("account", self._login.user))
        target = URL(_with_query(realm, query), encoded=True)
        async with self._session.get(target, headers=headers, allow_redirects=False) as response:
            self.log.append(f"GET {_shown_url(realm)} (token) -> {response.status}")
            if response.status != 200:
                return None
            try:
                found = await response.json(content_type=None)
                token = found.get("token") or found.get("access_token")
            except (ValueError, AttributeError):
                return None
        return f"Bearer {token}" if isinstance(token, str) and token else None


def _why(error: Exception) -> str:
    """Return what broke a connection. What the operating system says is enough, where it says something."""
    said = str(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        said = str(error.certificate_error)
    elif isinstance(error, (aiohttp.ClientSSLError, aiohttp.ClientConnectorDNSError)):
        said = error.strerror or said
    elif isinstance(error, aiohttp.ClientConnectorError) and error.errno:
        said = os.strerror(error.errno)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _with_query(url: str, pairs: list[tuple[str, str]]) -> str:
    """Return the URL with these parameters added; digests and names stay readable."""
    added = "&".join(f"{quote(name, safe='')}={quote(value, safe=':/')}" for name, value in pairs)
    return f"{url}{'&' if urlsplit(url).query else '?'}{added}"


def _realm_of(method: str, url: str) -> tuple[str, str]:
    """Return what one authorization is good for: a repository, and a kind of request."""
    path = urlsplit(url).path
    found = re.match(r"/v2/(.+?)/(?:blobs|manifests|tags|referrers)/", path)
    kind = "pull" if method in ("GET", "HEAD") else "delete" if method == "DELETE" else "push"
    return kind, found[1] if found else path


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]
        await asyncio.sleep(0)


def _shown_url(url: str) -> str:
    """Return path and query for a message; long values are cut, as registries keep state and signatures there."""
    parts = urlsplit(url)
    shown = []
    for pair in parts.query.split("&") if parts.query else []:
        name, equals, value = pair.partition("=")
        shown.append(f"{name}{equals}{value if len(value) <= LONGEST else value[:12] + '…'}")
    return f"{parts.path}{'?' + '&'.join(shown) if shown else ''}"[:SHOWN]


def _shown_body(body: bytes) -> str:
    try:
        text = body[:SHOWN].decode()
    except UnicodeDecodeError:
        return f"({len(body)} bytes)"
    if not text.isprintable() and not text.replace("\n", "").replace("\t", "").isprintable():
        return f"({len(body)} bytes)"
    return " ".join(text.split()) + ("…" if len(body) > SHOWN else "")
