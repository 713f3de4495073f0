"""Who may do what, by the ``access`` section. No input, no output."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from mirror.access.identity import Action, Principal
from mirror.config import Access
from mirror.oci.errors import Denied

_DOING = {Action.PUSH: "push", Action.DELETE: "delete", Action.PURGE: "delete what was pulled through"}


class Policy:
    """The rules. users: whether there are any; without them everybody is anonymous."""

    def __init__(self, settings: Access) -> None:
        self.users = settings.htpasswd_file is not None
        self.anonymous_pull = settings.anonymous == "pull"
        self.everywhere = not settings.allow_from
        self._insecure_writes = settings.insecure_writes
        self._pushers = None if settings.push is None else frozenset(settings.push)
        self._admins = frozenset(settings.admin)
        self._networks = settings.allow_from
        self._from_there = lru_cache(4096)(self._is_from_there)

    def check_client(self, client: str | None) -> None:
        """Let clients of the allowed networks pass. client: an IP address. Raises: Denied (403 DENIED)."""
        if not self.everywhere and not self._from_there(client or ""):
            where = client or "an unknown address"
            raise Denied(f"clients at {where} may not use this registry; access.allow_from lists the networks that may")

    def check(self, principal: Principal, action: Action, *, loopback: bool, passed_on: bool = False) -> bool:
        """Say whether somebody may do something; False when a login would help.

        loopback: whether the request came through a listener only this machine reaches. passed_on: whether a proxy
        passed it on that may have got it from anywhere.
        Raises: Denied (403 DENIED) when it would not.
        """
        if not self.users:
            if action in _DOING and passed_on and not self._insecure_writes:
                raise Denied(
                    "without users, nobody writes through a reverse proxy, which may pass on what comes from anywhere: "
                    "configure access.htpasswd_file, and list the proxy under trusted_proxies"
                )
            if action in _DOING and not loopback and not self._insecure_writes:
                raise Denied(
                    "without users, nobody writes through an address that is not loopback: configure "
                    "access.htpasswd_file, or access.insecure_writes: true"
                )
            return True
        if principal.name is None:
            return action is Action.PULL and self.anonymous_pull
        if principal.name in self._admins or action not in _DOING:
            return True
        if action is not Action.PURGE and (self._pushers is None or principal.name in self._pushers):
            return True
        lists = "access.admin" if action is Action.PURGE else "access.push"
        raise Denied(f"user {principal.name} may not {_DOING[action]} here; {lists} lists those who may")

    def who(self, action: Action) -> str:
        """Say in words who may do something."""
        if not self.users:
            limited = action in _DOING and not self._insecure_writes
            found = "everybody on this machine, through loopback" if limited else "everybody"
        elif action not in _DOING:
            found = "everybody" if self.anonymous_pull else "every user"
        elif action is Action.PURGE:
            found = _users(self._admins)
        else:
            found = "every user" if self._pushers is None else _users(self._pushers | self._admins)
        return found if self.everywhere else f"{found}, from networks of access.allow_from"

    def _is_from_there(self, client: str) -> bool:
        try:
            address = ip_address(client)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)


def _users(names: frozenset[str]) -> str:
    return f"users {', '.join(sorted(names))}" if names else "nobody"
