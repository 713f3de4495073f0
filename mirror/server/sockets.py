"""The listening addresses: refused when somebody has them, reserved by the parent, opened by every worker.

With SO_REUSEPORT the kernel would let a second service in silently and split the clients between the two. So the
parent first binds as if alone (SO_REUSEADDR only), then holds the address by a socket that never listens. That one
keeps a second service's first step from succeeding, and keeps the number when port 0 asked for any.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from mirror.config import ListenAddress, Tls
from mirror.server import neighbours
from mirror.worker import StartupError

BACKLOG = 1024
_PATIENCE = 0.5  # seconds: processes of a service killed just now close their sockets one after another


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """An address only this service's workers can listen on.

    held: the socket that reserves it. address: as ``bind`` takes it, the port known. tls: what is spoken there.
    """

    held: socket.socket
    address: tuple[Any, ...]
    tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        """Where to reach it; an unspecified address as it is."""
        scheme = "https" if self.tls else "http"
        host, port = self.address[:2]
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def open(self) -> socket.socket:
        """Return a socket of this address for one worker, bound but not yet listening."""
        opened = make_socket(self.held.family, reuse_address=True, reuse_port=True)
        try:
            opened.bind(self.address)
            opened.setblocking(False)
        except OSError:
            opened.close()
            raise
        return opened


def reserve(listen: ListenAddress) -> Reservation:
    """Take an address for this service.

    Raises: StartupError when it is in use (saying by whom, if that can be seen), not ours to use, or unknown.
    """
    family, address = _resolve(listen)
    name = str(listen)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _reserve(family, address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise StartupError(_explain(name, error)) from error
            if time.monotonic() >= deadline:
                by = neighbours.listener(address[0], address[1]) or "a process that cannot be seen from here"
                raise StartupError(
                    f"cannot listen on {name}: the port is in use by {by}; stop it, or choose another with "
                    "--port or listen:"
                ) from error
        time.sleep(0.02)


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Load certificate and key.

    Done once, in the parent: the workers inherit the keys of session tickets with it, so that a client resumes
    its session at any worker.
    Raises: StartupError when they cannot be read or do not belong together.
    """
    for path in (tls.certificate, tls.key):
        try:
            path.open("rb").close()
        except OSError as error:
            raise StartupError(f"tls: cannot read {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise StartupError(f"tls: cannot use client_ca {tls.client_ca}: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An encrypted key would make OpenSSL ask for its password on the terminal and wait.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or "the key is encrypted, or one of them is not in PEM format"
        raise StartupError(f"tls: cannot use certificate {tls.certificate} with key {tls.key}: {reason}") from error
    return context


def _reserve(family: socket.AddressFamily, address: tuple[Any, ...]) -> Reservation:
    if address[1]:
        with make_socket(family, reuse_address=True) as alone:
            alone.bind(address)
    # SO_REUSEADDR, as connections of an earlier server may still be in TIME_WAIT.
    held = make_socket(family, reuse_address=True, reuse_port=True)
    try:
        held.bind(address)
        taken = held.getsockname()
        # Two sockets with SO_REUSEADDR share an address until one listens, and the kernel may remember "everybody
        # here shares" for the port: one that listens for a moment makes it forget, and the held one stops sharing.
        with make_socket(family, reuse_address=True, reuse_port=True) as brief:
            brief.bind(taken)
            brief.listen(1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError:
        held.close()
        raise
    return Reservation(held=held, address=taken)


def make_socket(
    family: socket.AddressFamily, *, reuse_address: bool = False, reuse_port: bool = False
) -> socket.socket:
    """Return an unbound socket with these options."""
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
    if family == socket.AF_INET6:
        # So that 0.0.0.0 and [::] of one port can be listed together.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _resolve(listen: ListenAddress) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartupError(
            f"cannot listen on {listen}: {listen.host!r} is not an address or name of this machine"
        ) from error
    # A name such as localhost means one address: IPv4 where it has one, as every client tries that too.
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, address


def _explain(name: str, error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            hint = "not permitted; ports below 1024 need root or CAP_NET_BIND_SERVICE, so choose a higher one"
        case errno.EADDRNOTAVAIL:
            hint = "this machine has no such address; 0.0.0.0 means all it has"
        case number:
            hint = os.strerror(number or 0)
    return f"cannot listen on {name}: {hint}"
