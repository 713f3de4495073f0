"""One HTTP request to an upstream, followed hop by hop to its answer.

Every hop goes directly or by way of a proxy, decided by its own host, and through the guard either way. Nothing of
ours that is secret goes to another origin, nor comes back from there; what is the proxy's goes to the proxy only. A
redirect is never remembered: the next request starts at the registry again, as the URLs of redirects expire.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror import __version__, config
from mirror.upstream import via
from mirror.upstream.breaker import Breaker, Cause
from mirror.upstream.guard import AddressGuard, AddressRefused, BadRedirect, same_origin
from mirror.upstream.numbers import LocalNumbers
from mirror.upstream.proxies import Proxies, Proxy, ProxyFailed, ProxySlow, proxies
from mirror.upstream.report import cause_of, tls_failure
from mirror.upstream.resolver import SystemResolver
from mirror.upstream.tls import Contexts, UnusableFile, load_contexts

MOST_REDIRECTS = 10
READ_BUFFER = 512 * 1024
LONGEST_LINE = 32 * 1024
"""Longest header line in bytes: signed URLs and tokens are long."""

EARLIER, FAIR = 0.02, 0.5
"""Parts of the time for headers: how much before its end a hop ends by itself; how much a hop must have had for its
time-out to be the host's fault.
"""

_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Time limits in seconds.

    headers: token, redirects and headers (and the body, where it is a manifest or a list) together; containerd
    gives up at 30. connect: resolving the name, TCP, TLS, and what a proxy takes for the same. read: between two
    pieces of a body.
    """

    headers: float = 18.0
    connect: float = 10.0
    read: float = 30.0

    @classmethod
    def of(cls, settings: config.Timeouts) -> Timeouts:
        """Return the limits that the settings give."""
        return cls(headers=settings.headers, connect=settings.connect, read=settings.read)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ways:
    """What is there once a transport has started. origin: dials the registry's own host; other: what it names."""

    proxies: Proxies
    contexts: Contexts
    origin: aiohttp.ClientSession
    other: aiohttp.ClientSession
    proxied: aiohttp.ClientSession


class Transport:
    """The connections of one upstream. Used on one event loop, which need not run when this is made."""

    def __init__(
        self,
        settings: config.Upstream,
        *,
        url: URL,
        timeouts: Timeouts,
        proxy: config.Proxy | None = None,
        resolver: AbstractResolver | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """url: of the registry. proxy: the one that holds for it. resolver: for names; None for the system's.

        breaker: of every host that is asked; None for one of its own.
        """
        self._url = url
        self._settings = settings
        self._proxy = proxy
        self._guard = AddressGuard(settings.redirects_to, url=url, realms=settings.realms)
        self._timeouts = timeouts
        self._breaker = breaker or Breaker(LocalNumbers(), window=settings.breaker_window, probe=timeouts.headers)
        self._resolver = resolver or SystemResolver()
        self._starting = asyncio.Lock()
        self._started: _Ways | None = None

    def way(self) -> str | None:
        """Return the proxy that the registry itself is reached by, host:port, None for none; or what is wrong with it.

        What the environment says is that of this process.
        """
        try:
            proxy = proxies(self._proxy, os.environ).way_to(self._url)
        except ProxyFailed as error:
            return str(error)
        return None if proxy is None else proxy.name

    async def open(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str] | None = None,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
        deadline: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and follow its redirects; return the answer, to be released by the caller.

        authorization: goes to the origin of ``url`` only, and not there either once the way has left it. form: goes
        to ``url`` only; a redirect of it is refused, as it holds secrets. deadline: of the event loop's clock.
        Raises: what aiohttp raises, OSError (of it AddressRefused, ProxyFailed, UnusableFile), BadRedirect, and
        BreakerOpen.
        """
        start = url
        for _ in range(MOST_REDIRECTS + 1):
            sent = dict(headers or {})
            if authorization is not None:
                sent["Authorization"] = authorization
            response = await self._try(method, url, sent, form, deadline)
            if response.status not in _REDIRECTS:
                return response
            try:
                if form is not None:
                    raise BadRedirect("a redirect of a form that holds a secret")
                url = _target(response)
            finally:
                response.release()
            if not same_origin(url, start):
                authorization = None
        raise BadRedirect(f"more than {MOST_REDIRECTS} redirects")

    async def _try(
        self, method: str, url: URL, headers: dict[str, str], form: Mapping[str, str] | None, deadline: float | None
    ) -> aiohttp.ClientResponse:
        """Send one hop, unless its host is left alone; and note what comes of it."""
        loop = asyncio.get_running_loop()
        trial = await self._breaker.enter(place_of(url))
        begun = loop.time()
        # Ahead of the caller's own limit, which would only cancel us: nobody would know why.
        ends = None if deadline is None else deadline - EARLIER * self._timeouts.headers
        try:
            async with asyncio.timeout_at(ends):
                response = await self._send(method, url, headers, form)
        except (aiohttp.ClientError, OSError) as error:
            cause = _cause(error)
            fair = cause is not Cause.TIMEOUT or loop.time() - begun >= FAIR * self._timeouts.headers
            if cause is None or not (fair or isinstance(error, aiohttp.ClientError)):
                await trial.abandon()  # it had what little time others left
            else:
                await trial.failed(cause)
            raise
        except BaseException:
            await trial.abandon()
            raise
        if response.status >= 500 and response.status != via.LOOP:
            await trial.failed(Cause.STATUS)
        else:
            await trial.succeeded()
        return response

    async def _send(
        self, method: str, url: URL, headers: dict[str, str], form: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        """Send one hop, by the way that its own host has."""
        ways = await self._ways()
        tls = ways.contexts.of(url)
        proxy = ways.proxies.way_to(url)
        if proxy is None:
            session = ways.origin if url.raw_host == self._url.raw_host else ways.other
            return await session.request(method, url, headers=headers, data=form, allow_redirects=False, ssl=tls)
        self._guard.check_name(url)
        login = await proxy.authorization()
        to_proxy = {} if login is None else {"Proxy-Authorization": login}
        if url.scheme == "http":
            headers, to_proxy = headers | to_proxy, {}  # it reads the request itself, instead of a CONNECT before it
        try:
            response = await ways.proxied.request(
                method,
                url,
                headers=headers,
                data=form,
                allow_redirects=False,
                ssl=tls,
                proxy=proxy.url,
                proxy_headers=to_proxy,
            )
        except (aiohttp.ClientError, OSError) as error:
            _tell(error, url, proxy)
        if url.scheme == "http" and (reason := _proxys_own(response, proxy)):
            response.release()
            raise ProxyFailed(_by_way(url, proxy, reason), proxy=proxy.name)
        return response

    async def _ways(self) -> _Ways:
        if self._started is None:
            async with self._starting:
                self._started = self._started or await self._start()
        return self._started

    async def _start(self) -> _Ways:
        contexts = await asyncio.to_thread(load_contexts, self._settings, self._url)
        return _Ways(
            proxies=proxies(self._proxy, os.environ),
            contexts=contexts,
            origin=self._session(aiohttp.TCPConnector(socket_factory=self._guard.origin_socket, **self._unlimited())),
            other=self._session(aiohttp.TCPConnector(socket_factory=self._guard.other_socket, **self._unlimited())),
            # The operator's own proxy may be anywhere, so its address is not judged.
            proxied=self._session(_ProxyConnector(contexts.others, **self._unlimited())),
        )

    def _unlimited(self) -> dict[str, Any]:
        """Return what connectors have in common.

        Connections are not limited here: a request that waits for another's to end would look like one to a host
        that does not answer.
        """
        return {"limit": 0, "limit_per_host": 0, "resolver": self._resolver}

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
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

    async def close(self) -> None:
        """Close every connection."""
        ways, self._started = self._started, None
        if ways is not None:
            for session in (ways.origin, ways.other, ways.proxied):
                await session.close()
        await self._resolver.close()


class _ProxyConnector(aiohttp.TCPConnector):
    """Connections by way of a proxy. One that speaks TLS is checked, and shown no certificate, whatever the target's
    context says: aiohttp would use that for both.
    """

    def __init__(self, to_proxy: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._to_proxy = to_proxy

    def _get_ssl_context(self, req: aiohttp.ClientRequest) -> ssl.SSLContext | None:
        found = super()._get_ssl_context(req)
        # The request to the proxy itself goes by way of none.
        return self._to_proxy if found is not None and req.proxy is None else found


def place_of(url: URL) -> str:
    """Return what a breaker knows a host by."""
    return f"{url.scheme}://{url.raw_host}:{url.port}"


def _tell(error: aiohttp.ClientError | OSError, url: URL, proxy: Proxy) -> NoReturn:
    """Raise a failure by way of a proxy as one that names it, unless it is the target's own."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        raise ProxySlow(_by_way(url, proxy, "no connection in time"), proxy=proxy.name) from error
    if isinstance(error, aiohttp.ClientHttpProxyError):
        status = error.status
        reason = _login_wanted(proxy) if status == 407 else f"it does not connect to it ({status})"
    elif tls_failure(error) is not None:
        if not _is_of(error, proxy):
            raise error
        reason = cause_of(error)
    elif isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        reason = cause_of(error)
    else:
        raise error
    raise ProxyFailed(_by_way(url, proxy, reason), proxy=proxy.name) from error


def _proxys_own(response: aiohttp.ClientResponse, proxy: Proxy) -> str:
    """Say what is wrong in an answer that the proxy made up itself; "" when it may be the target's.

    Its 403 must not be taken for the registry's, which would mean that something is not there. It is known by 407, by
    ``Proxy-Status`` (RFC 9209 section 2.1.1), and by the header of Squid.
    """
    if response.status == 407:
        return _login_wanted(proxy)
    told = any("error=" in line for line in response.headers.getall("Proxy-Status", []))
    if response.status >= 400 and (told or "X-Squid-Error" in response.headers):
        return f"it answered {response.status} itself"
    return ""


def _is_of(error: BaseException, proxy: Proxy) -> bool:
    """Say whether a connection failed at the proxy itself, not at what is behind it."""
    return isinstance(error, aiohttp.ClientConnectorError) and (error.host, error.port) == (
        proxy.url.host,
        proxy.url.port,
    )


def _by_way(url: URL, proxy: Proxy, reason: str) -> str:
    return f"{url.host} cannot be reached by way of the proxy {proxy.name}: {reason}"


def _login_wanted(proxy: Proxy) -> str:
    return "it refuses our login (407)" if proxy.has_login else "it asks for a login (407)"


def _cause(error: BaseException) -> Cause | None:
    """Return what a failure says of the host; None when it says nothing of it."""
    if isinstance(error, TimeoutError):
        return Cause.TIMEOUT
    refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused)
    if refused or isinstance(error, (AddressRefused, UnusableFile, aiohttp.InvalidURL)):
        return None
    if isinstance(error, ProxyFailed) and error.__cause__ is None:
        return None  # the proxy's own answer, or a setting: nothing failed on the way to the host
    if isinstance(error, (aiohttp.ClientConnectorError, ProxyFailed)):
        return Cause.UNREACHABLE
    return Cause.BROKEN if isinstance(error, (aiohttp.ClientConnectionError, OSError)) else None


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
