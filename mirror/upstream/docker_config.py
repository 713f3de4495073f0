"""Docker's ``config.json`` as far as it says how to log in: ``credHelpers``, ``credsStore``, ``auths``.

A registry's login is under its ``host[:port]``, with or without a scheme and a path around it; Docker Hub's is under
``https://index.docker.io/v1/``. Only what is said about the registry in question need make sense.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, NewType

from yarl import URL

from mirror.upstream.logins import USABLE, IdentityToken, Login, Password, RegistryToken

HUB = "https://index.docker.io/v1/"
_HUB_HOSTS = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

HelperName = NewType("HelperName", str)
"""What follows ``docker-credential-`` in the name of a program."""


class Malformed(ValueError):
    """Something in the file cannot be used. The text says what and quotes nothing of it."""


def server_of(url: URL) -> str:
    """Return the name docker keeps a registry's login under: ``host[:port]``, or Docker Hub's own."""
    server = (url.host_port_subcomponent or "").lower()
    return HUB if server in _HUB_HOSTS else server


def find(raw: bytes, url: URL) -> HelperName | Login | None:
    """Return what the file has for the registry at ``url``: the helper to ask, the login itself, or nothing.

    A helper of the host comes before one for all hosts, and that before what is in the file. Raises: Malformed.
    """
    try:
        config: Any = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None  # the cause holds the whole file
    config = _mapping(config, "it")
    helper = _entry(_mapping(config.get("credHelpers"), "credHelpers"), url)
    if helper is None:
        helper = config.get("credsStore")
    if helper:
        if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
            raise Malformed("what credHelpers or credsStore names is not the name of a credential helper")
        return HelperName(helper)
    return _login(_mapping(_entry(_mapping(config.get("auths"), "auths"), url), "the registry's entry in auths"))


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not a JSON object")
    return value


def _entry(entries: Mapping[str, Any], url: URL) -> Any:
    """Return what is under the registry's name; of several notations, the one closest to the name counts."""
    server = server_of(url)
    found: list[tuple[bool, int, str]] = []
    for key in entries:
        try:
            named = URL(key if "://" in key else f"{url.scheme}://{key}")
            if server_of(named) == server:
                found.append((key != server, len(named.path), key))
        except ValueError:
            continue  # not the name of anything
    return entries[min(found)[2]] if found else None


def _login(entry: Mapping[str, Any]) -> Login | None:
    registry, identity, packed, user, password = (
        _text(entry, key) for key in ("registrytoken", "identitytoken", "auth", "username", "password")
    )
    if registry:
        if not USABLE.fullmatch(registry):
            raise Malformed("the registry's registrytoken holds characters that no token has")
        return RegistryToken(registry)
    if identity:
        return IdentityToken(identity)
    if packed:
        user, password = _unpacked(packed)
    if not user and not password:
        return None
    if not user or not password or ":" in user:
        raise Malformed("the registry's entry in auths is not a user and a password")
    return Password(user, password)


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise Malformed(f"the registry's {key} is not a string")
    return value or ""


def _unpacked(packed: str) -> tuple[str, str]:
    try:
        user, _, password = base64.b64decode(packed, validate=True).decode().partition(":")
    except ValueError:
        raise Malformed("the registry's auth is not the base64 of user:password") from None
    return user, password.rstrip("\0")  # docker has written zeros at its end
