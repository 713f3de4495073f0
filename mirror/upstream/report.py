"""How a failure of an upstream is told: one exception, one log record, one count, made in one place."""

from __future__ import annotations

import logging
import math
import os
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar

import aiohttp

from mirror.oci.errors import (
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamResting,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.upstream.guard import AddressRefused, BadRedirect
from mirror.upstream.proxies import ProxyFailed, ProxySlow
from mirror.upstream.tls import UnusableFile

logger = logging.getLogger("mirror.upstream")

E = TypeVar("E", bound=UpstreamError)

FAILURES = (aiohttp.ClientError, OSError, BadRedirect, UnicodeError)
"""What a request may raise; UnicodeError is a host name with a label no resolver takes."""

LONGEST_WAIT = 86_400
"""Longest Retry-After believed, in seconds."""


class UpstreamMetrics(Protocol):
    """What is counted. upstream: its configured name."""

    def request(self, upstream: str, kind: str, status: int, seconds: float) -> None:
        """Count a request that was answered. kind: "manifest", "blob", "tags", "referrers" or "ping".

        seconds: until the headers were here.
        """

    def token(self, upstream: str, result: str) -> None:
        """Count a request for a token. result: "granted", "refused" or "failed"."""

    def error(self, upstream: str, reason: str) -> None:
        """Count a failure. reason: "unreachable", "failed", "timeout", "ratelimited", "resting", "busy", "denied",
        "tokenfailed" or "invalid".
        """

    def fetched(self, upstream: str, nbytes: int) -> None:
        """Count body bytes received."""


class NoMetrics:
    """Count nothing."""

    def request(self, upstream: str, kind: str, status: int, seconds: float) -> None: ...
    def token(self, upstream: str, result: str) -> None: ...
    def error(self, upstream: str, reason: str) -> None: ...
    def fetched(self, upstream: str, nbytes: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Make the errors of one registry: of an upstream itself, or of a mirror of it.

    upstream: its name. subject: who it is, in words. host: its own; others are named when they are to blame. label: for
    the counts. place: where it is configured.
    """

    upstream: str
    metrics: UpstreamMetrics
    host: str = ""
    subject: str = ""
    label: str = ""
    place: str = ""

    def failure(
        self,
        kind: type[E],
        did: str,
        *,
        of: str | None = None,
        advice: str = "",
        host: str | None = None,
        status: int | None = None,
        cause: BaseException | str | None = None,
        retry_after: int | None = None,
    ) -> E:
        """Log and count a failure; return the exception to raise.

        did: what the registry did, after its name. of: what was asked for. advice: what to do. All of them are for
        clients, so never a secret. cause: only for the log.
        """
        subject = self.subject or self.upstream
        if host and host != self.host:
            subject += f" ({host[:120]})"
        brief = f"{subject} {did}"  # a comma at its end is for what follows
        self._log(kind, f"{brief.removesuffix(',')}{f': {of}' if of else ''}", host or self.host, status, cause)
        message = brief + (f" and nothing is kept of {of}" if of else "") + (f"; {advice}" if advice else "")
        return kind(message, upstream=self.upstream, retry_after=retry_after, brief=brief.removesuffix(","))

    def error(
        self,
        kind: type[E],
        message: str,
        *,
        host: str,
        status: int | None = None,
        cause: BaseException | str | None = None,
        retry_after: int | None = None,
    ) -> E:
        """Do as ``failure`` for what is not about one thing asked for. message: what, which and what to do."""
        said = f"{self.subject or self.upstream}: {message}"
        self._log(kind, said, host, status, cause)
        return kind(said, upstream=self.upstream, retry_after=retry_after)

    def _log(self, kind: type[E], said: str, host: str, status: int | None, cause: BaseException | str | None) -> None:
        """Log and count a failure."""
        text = cause_of(cause) if isinstance(cause, BaseException) else cause
        more = f", cause {text}" if text and text not in said else ""
        fields = {"upstream": self.upstream, "host": host, "status": status, "cause": text}
        # While it is left alone nothing new happens to it, however many ask.
        level = logging.INFO if issubclass(kind, UpstreamResting) else logging.WARNING
        logger.log(level, "%s (host %s%s)", said, host, more, extra={"fields": fields})
        self.metrics.error(self.label or self.upstream, kind.__name__.removeprefix("Upstream").lower())

    def translated(self, error: BaseException, of: str, *, host: str, body: bool = False) -> UpstreamError:
        """Turn what the HTTP client raised into our meaning. body: it happened after the headers."""
        kind, did, advice = meaning(error, body=body)
        return self.failure(kind, f"{did} ({cause_of(error)})", of=of, advice=advice, host=host, cause=error)


def meaning(error: BaseException, *, body: bool = False) -> tuple[type[UpstreamError], str, str]:
    """Return what an exception means, what the registry did, and what to do."""
    if isinstance(error, TimeoutError):
        did = "stopped sending" if body else "does not answer"
        return UpstreamTimeout, did, "try again later"
    if isinstance(error, aiohttp.ClientPayloadError) or (body and isinstance(error, OSError)):
        return UpstreamFailed, "broke the transfer off", "try again"
    if isinstance(error, ProxyFailed):
        return UpstreamUnreachable, "cannot be asked", "check proxy"
    if isinstance(error, UnusableFile):
        return UpstreamUnreachable, "cannot be asked", f"check {error.setting}"
    if (tls := tls_failure(error)) is not None:
        reason = getattr(tls, "reason", None) or ""
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return UpstreamUnreachable, "does not speak TLS", "check its url: is it http?"
        # An alert is what the other side says: it likes our certificate no better than none.
        if "ALERT" in reason:
            return UpstreamUnreachable, "does not accept us", "check client_certificate"
        return UpstreamUnreachable, "cannot be trusted", "check its certificate and ca_file"
    if isinstance(error, AddressRefused) or _refusal(error):
        return UpstreamUnreachable, "leads to where nobody is asked", ""
    if isinstance(error, aiohttp.InvalidURL) or not isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return UpstreamInvalid, "does not speak HTTP as it should", "check its url"
    return UpstreamUnreachable, "cannot be reached", "check that its host is up and can be reached from here"


def _refusal(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused)


def tls_failure(error: BaseException) -> BaseException | None:
    """Return what TLS failed of, None when it was not TLS; one during the request is wrapped by the HTTP client."""
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        return getattr(error, "os_error", error)
    return error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else None


def cause_of(error: BaseException) -> str:
    """Describe a cause in one short line that holds no URL, no body and no header of anybody's.

    The texts of many client exceptions do: a malformed answer is quoted in full, a URL with its signature.
    """
    if isinstance(error, (AddressRefused, BadRedirect, ProxyFailed, ProxySlow, UnusableFile)):
        text = str(error)
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or type(error.certificate_error).__name__
        text = f"the certificate is not accepted: {reason}"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        text = f"{error.host} cannot be resolved: {error.os_error.strerror or error.os_error}"
    elif isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        refused = isinstance(inner, AddressRefused)
        text = str(inner) if refused else f"no connection to {error.host}:{error.port}: {_reason(inner)}"
    elif isinstance(error, TimeoutError):
        text = "no answer in time"
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        text = "the connection was closed before an answer came"
    elif isinstance(error, aiohttp.ClientPayloadError):
        text = "the body is shorter than announced"
    elif isinstance(error, aiohttp.ClientResponseError):
        text = "the answer is malformed"
    elif isinstance(error, (aiohttp.InvalidURL, ValueError)):
        text = "a URL it gave is malformed"
    elif isinstance(error.__cause__, ssl.SSLError):
        text = f"TLS broke off: {_reason(error.__cause__)}"
    elif isinstance(error, OSError):
        text = error.strerror or type(error).__name__
    else:
        text = type(error).__name__
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:300]


def _reason(error: OSError) -> str:
    """Say why in the system's words: those of asyncio repeat the address, those of OpenSSL name lines of its source."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


def retry_after(header: str | None, *, now: datetime | None = None) -> int | None:
    """Read ``Retry-After`` (RFC 9110 section 10.2.3), seconds or a date; return seconds, None for nonsense."""
    text = header.strip() if header else ""
    if not text:
        return None
    if re.fullmatch(r"[0-9]{1,12}", text):
        return min(int(text), LONGEST_WAIT)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    seconds = math.ceil((when - (now or datetime.now(UTC))).total_seconds())
    return max(0, min(seconds, LONGEST_WAIT))
