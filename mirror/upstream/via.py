"""Which mirrors a request has passed (``Via``, RFC 9110 section 7.6.3), from the client's request to ours.

A request to an upstream is made on behalf of somebody, but a download belongs to nobody: what goes along is the
``Via`` of whoever began it. ``received`` is set where requests come in, and every task started from there has it.
"""

from __future__ import annotations

from contextvars import ContextVar

LONGEST = 2048
"""Longest ``Via`` taken, in characters; nothing goes by way of so many mirrors but a loop."""

LOOP = 508
"""The status a mirror answers a request by that has been there before; it is no failure of the mirror."""

received: ContextVar[str] = ContextVar("received", default="")
"""The ``Via`` of the request this is done for, empty for none."""


def pseudonym(instance: str) -> str:
    """Return the name one service has in ``Via``. instance: an identifier no other service has."""
    return f"oci-mirror-{instance}"


def names(via: str, instance: str) -> bool:
    """Say whether a ``Via`` names this instance: then the request has been here before."""
    own = pseudonym(instance)
    return any(own in entry.split()[1:2] for entry in via.split(","))  # protocol, name, comment


def sent(instance: str) -> str:
    """Return the ``Via`` of a request of ours."""
    before = received.get()
    own = f"1.1 {pseudonym(instance)}"
    return f"{before}, {own}" if before else own
