"""TLS: a certificate, its key and the authorities of clients; read again when the files change.

Every worker looks at the files by itself, off the event loop. New connections get what is in force when they come:
``Front``, which the listening side is given once and for all, passes each of them on to the context of the moment. A
context is never changed, only replaced: so no client resumes a session, and by it a login, that an earlier one gave.

The parent loads them before it forks: workers inherit the keys of session tickets, so that a client resumes its
session at any of them, until the files change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509

from mirror.config import Tls
from mirror.config.plain import read_plain
from mirror.server.handshake import Handshake, begun
from mirror.worker import StartupError

LOOK_EVERY = 2.0
"""Seconds between two looks at the files; they have to be the same at two of them."""
SOON = 14 * 24 * 3600.0
"""Seconds before a certificate expires in which it is warned of."""

_LONGEST = 4 * 1024**2
"""Most bytes of one of the files."""

log = logging.getLogger("mirror.server")


class Front(ssl.SSLContext):
    """What the listening side is given: every connection gets the context of the moment."""

    current: ssl.SSLContext

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        made = self.current.wrap_bio(*args, **kwargs)
        assert isinstance(made, Handshake)
        begun(made)
        return made


Signature = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was read. signature: of the files. expires: Unix time, None when it cannot be told."""

    signature: Signature
    context: ssl.SSLContext
    expires: float | None


class Certificate:
    """The certificate of a listener, with its key and the authorities of clients. The first reading blocks.

    Raises: StartupError when they cannot be read or do not belong together.
    """

    def __init__(self, tls: Tls) -> None:
        self.tls = tls
        self.front = Front(ssl.PROTOCOL_TLS_SERVER)
        self.take(_load(tls))

    @property
    def expires(self) -> float | None:
        return self._loaded.expires

    def take(self, loaded: Loaded) -> None:
        """Use it for connections from now on."""
        self._loaded = loaded
        self._seen = loaded.signature
        self.front.current = loaded.context

    def look(self, *, settled: bool = True) -> Loaded | None:
        """Return what the files have become, None when that is nothing new. Blocks.

        settled: not until they have been the same at two looks, as somebody may be writing them.
        Raises: StartupError when they cannot be read or do not belong together.
        """
        signature = _signature(self.tls)
        if signature == self._loaded.signature:
            return None
        if settled and signature != self._seen:
            self._seen = signature
            return None
        return _load(self.tls)

    def refresh(self) -> None:
        """Read the files if they have changed; what cannot be used changes nothing. Blocks."""
        try:
            if loaded := self.look(settled=False):
                self.take(loaded)
        except StartupError:
            pass  # a worker says so

    def warning(self) -> str | None:
        """Return a line when it has expired or will soon."""
        if self.expires is None or self.expires - time.time() > SOON:
            return None
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.expires))
        how = "has expired" if self.expires <= time.time() else "expires soon"
        return f"tls: certificate {self.tls.certificate} {how}: {when}; replace the file, it is read again by itself"


async def watch(certificates: Sequence[Certificate], *, every: float, telling: bool) -> None:
    """Read certificates again whenever their files change, until cancelled.

    every: seconds between two looks. telling: whether this worker is the one to say so.
    """
    said: dict[int, str] = {}
    while True:
        await asyncio.sleep(every)
        for at, one in enumerate(certificates):
            try:
                loaded = await asyncio.to_thread(one.look)
            except StartupError as error:
                if telling and said.get(at) != str(error):
                    log.error("%s; the one of before stays in use", error)
                said[at] = str(error)
                continue
            if loaded is None:
                continue
            said.pop(at, None)
            one.take(loaded)
            if telling:
                log.info("tls: certificate %s has changed and is in use", one.tls.certificate)
                if warning := one.warning():
                    log.warning("%s", warning)


def _signature(tls: Tls) -> Signature:
    """Return what tells a change: of the files that the paths lead to, as Kubernetes replaces links to them."""
    found: list[object] = []
    for path in (tls.certificate, tls.key, tls.client_ca):
        if path is None:
            continue
        try:
            about = os.stat(path)
        except OSError as error:
            found.append(error.errno)
        else:
            found.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return tuple(found)


def _load(tls: Tls) -> Loaded:
    signature = _signature(tls)  # before reading: what changes meanwhile is read again
    pem = b""
    for path in (tls.certificate, tls.key, tls.client_ca):
        if path is None:
            continue
        try:
            raw = read_plain(path, _LONGEST)  # the parent would wait for who writes to a pipe, and hear no signal
        except OSError as error:
            raise StartupError(f"tls: cannot read {path}: {error.strerror}") from error
        pem = pem or raw
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = Handshake
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error.strerror or error
            raise StartupError(f"tls: cannot use client_ca {tls.client_ca}: {reason}") from error
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An encrypted key would make OpenSSL ask for its password on the terminal and wait.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "the key is encrypted, or one of them is not in PEM format"
        raise StartupError(f"tls: cannot use certificate {tls.certificate} with key {tls.key}: {reason}") from error
    except OSError as error:
        raise StartupError(f"tls: cannot read certificate {tls.certificate}: {error.strerror}") from error
    return Loaded(signature=signature, context=context, expires=expiry(pem))


def expiry(pem: bytes) -> float | None:
    """Return when the first certificate of a PEM file expires, in Unix time; None when that cannot be told."""
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:
        return None
