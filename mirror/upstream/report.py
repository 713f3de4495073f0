"""How a failure of an upstream is told: one exception, one log record, one count, made in one place."""

from __future__ import annotations

import logging
import math
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
    UpstreamTimeout,
    UpstreamUnreachable,
)
from mirror.upstream.guard import AddressRefused, BadRedirect

logger = logging.getLogger("mirror.upstream")

E = TypeVar("E", bound=UpstreamError)

FAILURES = (aiohttp.ClientError, OSError, BadRedirect, UnicodeError)
"""What a request may raise; UnicodeError is a host name with a label no resolver takes."""

LONGEST_WAIT = 86_400
"""Longest Retry-After believed, in seconds."""


class UpstreamMetrics(Protocol):
    """What is counted. upstream: its configured name."""

    def request(self, upstream: str, kind: str, status: int) -> None:
        """Count a request that was answered. kind: "manifest", "blob", "tags" or "ping"."""

    def token(self, upstream: str) -> None:
        """Count a request for a token."""

    def error(self, upstream: str, reason: str) -> None:
        """Count a failure. reason: "unreachable", "failed", "timeout", "ratelimited", "denied", "tokenfailed"
        or "invalid".
        """

    def fetched(self, upstream: str, nbytes: int) -> None:
        """Count body bytes received."""


class NoMetrics:
    """Count nothing."""

    def request(self, upstream: str, kind: str, status: int) -> None: ...
    def token(self, upstream: str) -> None: ...
    def error(self, upstream: str, reason: str) -> None: ...
    def fetched(self, upstream: str, nbytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Reporter:
    """Make the errors of one upstream."""

    upstream: str
    metrics: UpstreamMetrics

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
        """Log and count a failure; return the exception to raise.

        message: for clients, after "upstream <name>: "; what, which and what to do, never a secret. cause: only
        for the log.
        """
        text = cause_of(cause) if isinstance(cause, BaseException) else cause
        logger.warning(
            "upstream %s: %s (host %s, status %s, cause %s)",
            self.upstream,
            message,
            host,
            "-" if status is None else status,
            text or "-",
            extra={"fields": {"upstream": self.upstream, "host": host, "status": status, "cause": text}},
        )
        self.metrics.error(self.upstream, kind.__name__.removeprefix("Upstream").lower())
        return kind(f"upstream {self.upstream}: {message}", upstream=self.upstream, retry_after=retry_after)

    def translated(self, error: BaseException, what: str, *, host: str, body: bool = False) -> UpstreamError:
        """Turn what the HTTP client raised into our meaning. body: it happened after the headers."""
        kind, advice = _meaning(error, body=body)
        message = f"{what}: {cause_of(error)}"
        return self.error(kind, f"{message}; {advice}" if advice else message, host=host, cause=error)


def _meaning(error: BaseException, *, body: bool) -> tuple[type[UpstreamError], str]:
    if isinstance(error, TimeoutError):
        return UpstreamTimeout, "it is slow or does not answer, try again later"
    if isinstance(error, aiohttp.ClientPayloadError) or (body and isinstance(error, OSError)):
        return UpstreamFailed, "the transfer broke off, try again"
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError)):
        return UpstreamUnreachable, "check its certificate and ca_file"
    if isinstance(error, AddressRefused) or _refusal(error):
        return UpstreamUnreachable, ""
    if isinstance(error, aiohttp.InvalidURL) or not isinstance(error, (aiohttp.ClientConnectionError, OSError)):
        return UpstreamInvalid, "it does not speak HTTP as it should"
    return UpstreamUnreachable, "check that its host is up and can be reached from here"


def _refusal(error: BaseException) -> bool:
    return isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressRefused)


def cause_of(error: BaseException) -> str:
    """Describe a cause in one short line that holds no URL, no body and no header of anybody's.

    The texts of many client exceptions do: a malformed answer is quoted in full, a URL with its signature.
    """
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or type(error.certificate_error).__name__
        text = f"the certificate is not accepted: {reason}"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        text = f"{error.host} cannot be resolved: {error.os_error.strerror or error.os_error}"
    elif isinstance(error, aiohttp.ClientConnectorError):
        inner = error.os_error
        refused = isinstance(inner, AddressRefused)
        text = str(inner) if refused else f"no connection to {error.host}:{error.port}: {inner.strerror or inner}"
    elif isinstance(error, (AddressRefused, BadRedirect)):
        text = str(error)
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
    elif isinstance(error, OSError):
        text = error.strerror or type(error).__name__
    else:
        text = type(error).__name__
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:300]


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
