"""A TLS handshake: counted while it goes on; when it fails it says why, to the client and in the log.

asyncio would end the connection with the alert still in memory: to a client that has no certificate to show, or not the
right one, it would look like a server that hangs up, and the log would say nothing at all.
"""

from __future__ import annotations

import logging
import ssl
from weakref import WeakSet

log = logging.getLogger("mirror.server")


class Handshake(ssl.SSLObject):
    """One side of a TLS connection, as an ``SSLContext`` makes it by its ``sslobject_class``."""

    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake.

        When it fails it first asks for more to read, as before that what there is to be sent is sent: the alert. The
        client's end of the connection, or anything else that comes from it, then ends it here. Who does not speak TLS
        has no use for an alert, and may wait for us to hang up.
        Raises: SSLError.
        """
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            _going_on.discard(self)
            log.info("a client and this server do not agree on TLS: %s", error.reason or "it is not TLS")
            if not self.shared_ciphers():
                raise
            self._failure = error
            raise ssl.SSLWantReadError from error
        _going_on.discard(self)


_going_on: WeakSet[Handshake] = WeakSet()


def begun(handshake: Handshake) -> None:
    """Count one until it is over."""
    _going_on.add(handshake)


def going_on() -> int:
    """Return how many connections of this process are in the midst of a handshake."""
    return len(_going_on)
