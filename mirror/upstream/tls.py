"""Which TLS context a hop gets: what is shown to whom, and whose certificate is checked.

- The client certificate is shown to the registry itself (its scheme, host and port), and to nobody else.
- With ``insecure`` the certificates of the configured host go unchecked, at all its ports, and nobody else's: so no
  credential crosses an unchecked connection to another host, and what that host redirects to proves who it is.
- The authorities of ``ca_file`` are trusted at every hop, a proxy that speaks TLS included.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from yarl import URL

from mirror import config
from mirror.config.plain import check_plain
from mirror.upstream.guard import same_host, same_origin


class UnusableFile(OSError):
    """A file of the settings that cannot be used. The text is fit for clients. setting: which one."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"its {setting} cannot be used: {reason}")
        self.setting = setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """The contexts of one upstream. url: of the registry, for which ``origin`` is; ``host``: its other ports."""

    url: URL
    origin: ssl.SSLContext
    host: ssl.SSLContext
    others: ssl.SSLContext

    def of(self, url: URL) -> ssl.SSLContext:
        """Return the context for a hop to a URL."""
        if same_origin(url, self.url):
            return self.origin
        return self.host if same_host(url, self.url) else self.others


def load_contexts(settings: config.Upstream, url: URL) -> Contexts:
    """Make the contexts of an upstream. Reads files: blocks. url: of the registry.

    Raises: UnusableFile.
    """
    others = _default() if settings.ca_file is None else _context(settings)
    host = _context(settings, checked=False) if settings.insecure else others
    origin = host
    if settings.client_certificate is not None:
        origin = _context(settings, checked=not settings.insecure)
        _show(origin, settings.client_certificate)
    return Contexts(url=url, origin=origin, host=host, others=others)


@cache
def _default() -> ssl.SSLContext:
    """Return the context of all upstreams that say nothing: the system's authorities are many, and read once."""
    return _new()


def _context(settings: config.Upstream, *, checked: bool = True) -> ssl.SSLContext:
    context = _new()
    if settings.ca_file is not None:
        try:
            check_plain(settings.ca_file)  # OpenSSL would wait for who writes to a pipe
            context.load_verify_locations(str(settings.ca_file))
        except OSError as error:
            raise UnusableFile("ca_file", _reason(error)) from error
    if not checked:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _new() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context


def _show(context: ssl.SSLContext, pair: config.ClientCertificate) -> None:
    try:
        check_plain(pair.certificate)
        check_plain(pair.key)
        context.load_cert_chain(str(pair.certificate), str(pair.key), password=_no_password)
    except UnusableFile:
        raise
    except OSError as error:
        raise UnusableFile("client_certificate", _reason(error)) from error


def _no_password() -> NoReturn:
    """Refuse what OpenSSL would ask the terminal for."""
    raise UnusableFile("client_certificate", "the key has a password, give it without one")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        # such as KEY_VALUES_MISMATCH; the texts name lines of OpenSSL's source
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or type(error).__name__
