"""The listening addresses: refused when somebody has them, reserved by the parent, with a socket for every worker.

With SO_REUSEPORT the kernel would let a second service in silently and split the clients between the two. So the
parent first binds as if alone (SO_REUSEADDR only), then holds the address by a socket that never listens. That one
keeps a second service's first step from succeeding, and keeps the number when port 0 asked for any.

The workers' sockets stay open in the parent and are inherited by whoever takes a worker's place: what waits in a
listening socket for ``accept`` would be reset when the last process closed it. When a worker dies its socket is closed,
as the kernel would go on to queue connections in it.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from mirror.config import ListenAddress
from mirror.server import neighbours
from mirror.worker import StartupError

BACKLOG = 1024
_PATIENCE = 0.5  # seconds: processes of a service killed just now close their sockets one after another


class Reservation:
    """An address only this service's workers can listen on.

    held: the socket that reserves it. address: as ``bind`` takes it, the port known.
    """

    def __init__(self, held: socket.socket, address: tuple[Any, ...]) -> None:
        self.held = held
        self.address = address
        self._sockets: dict[int, socket.socket] = {}

    @property
    def name(self) -> str:
        """Host and port; an unspecified address as it is."""
        host, port = self.address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self) -> socket.socket:
        """Return a new socket of this address, bound but not yet listening."""
        opened = make_socket(self.held.family, reuse_address=True, reuse_port=True)
        try:
            opened.bind(self.address)
            opened.setblocking(False)
        except OSError:
            opened.close()
            raise
        return opened

    def share(self, index: int, workers: int) -> list[socket.socket]:
        """Return the sockets one of the workers accepts from, making its own if need be.

        Those of workers that there are no more are for all: clients may be waiting in them.
        """
        if index not in self._sockets:
            self._sockets[index] = self.open()
        return [one for at, one in self._sockets.items() if at == index or at >= workers]

    def drop(self, index: int) -> None:
        """Close the socket of a worker that is no more."""
        if (gone := self._sockets.pop(index, None)) is not None:
            gone.close()

    def close(self, keep: Iterable[socket.socket] = ()) -> None:
        """Close everything but what is to be kept, in this process."""
        kept = set(map(id, keep))
        for one in (self.held, *self._sockets.values()):
            if id(one) not in kept:
                one.close()


def reserve(listen: ListenAddress, beside: Iterable[Reservation] = ()) -> Reservation:
    """Take an address for this service.

    beside: what it has already. An address that overlaps with one of those (0.0.0.0 and 127.0.0.1, with one port)
    cannot be tried as if alone.
    Raises: StartupError when it is in use (saying by whom, if that can be seen), not ours to use, or unknown.
    """
    family, address = _resolve(listen)
    name = str(listen)
    alone = not any(
        address[1] == ours.address[1] and neighbours.overlap(address[0], ours.address[0]) for ours in beside
    )
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _reserve(family, address, alone=alone)
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


def _reserve(family: socket.AddressFamily, address: tuple[Any, ...], *, alone: bool) -> Reservation:
    if address[1] and alone:
        with make_socket(family, reuse_address=True) as tried:
            tried.bind(address)
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
    return Reservation(held, taken)


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
