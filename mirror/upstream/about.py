"""What can be said of an upstream, or of a mirror of one, without asking it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """Who a registry is asked as. name: never a secret; None is nobody.

    limit, remaining: pulls, None where nobody said. paused: seconds until it is asked for what counts, 0 for now.
    """

    name: str | None
    limit: int | None
    remaining: int | None
    paused: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """A host is left alone. cause: what it did, after its name. since: seconds ago. wait: seconds until one asks."""

    cause: str
    since: float
    wait: float


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """One registry. proxy: the one it is reached by, host:port, None for none; or why that cannot be told.

    connections: requests at a time, rate: bytes a second, of all workers together; None for any number.
    """

    url: str
    proxy: str | None
    accounts: tuple[AccountState, ...]
    connections: int | None
    rate: int | None
    resting: Resting | None
