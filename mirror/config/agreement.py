"""Settings that are each right and do not go together, looked for in what was given: a model may not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mirror.config import values
from mirror.config.problems import Path as SettingPath
from mirror.config.problems import did_you_mean


def disagreements(
    names: Mapping[str, Mapping[int, str]], default: str | None, *, own: Mapping[int, str]
) -> Iterator[tuple[SettingPath, str, str]]:
    """Find names that mean two registries, and a default that is none of them.

    names: upstream → its further names by their index. own: names of this registry itself by their index.
    Gives path, message and suggestion of each.
    """
    owners = {name: name for name in names}
    for upstream, others in names.items():
        for at, other in others.items():
            owner = owners.setdefault(other, upstream)
            if owner != upstream:
                yield ("upstreams", upstream, "names", at), f'"{other}" already means the upstream {owner}', ""
    for at, name in own.items():
        if name in owners:
            yield ("names", at), f'"{name}" already means the upstream {owners[name]}', "a name means one registry only"
    if default is not None and (default not in names or "*" in default):
        exact = [name for name in names if "*" not in name]
        known = ", ".join(exact) or "there are none"
        owner = owners.get(default, default)
        hint = f'did you mean "{owner}"?' if owner != default else did_you_mean(default, exact, cutoff=0.75)
        yield ("default_upstream",), f"is not one of the upstreams ({known})", hint


def upstream_disagreements(upstreams: Mapping[str, Any]) -> Iterator[tuple[SettingPath, str, str]]:
    """Find accounts that are given in no way or in several, and patterns that cannot work.

    upstreams: the section as given. Gives path, message and suggestion of each.
    """
    for name, upstream in upstreams.items():
        if not isinstance(upstream, Mapping) or not isinstance(name, str):
            continue
        path: SettingPath = ("upstreams", name)
        yield from logins_disagreements(path, upstream)
        url = upstream.get("url")
        if "*" in name:
            if isinstance(url, str) and values.HOST_PLACE not in url:
                yield (*path, "url"), "does not say {host}: all that match the pattern would be one registry", ""
            if upstream.get("names"):
                yield (*path, "names"), "a pattern cannot have other names", "list them as upstreams of their own"
        elif isinstance(url, str) and values.HOST_PLACE in url:
            yield (*path, "url"), "{host} is for patterns such as *.pkg.dev", "write the host"
        for at, mirror in _listed(upstream.get("mirrors")):
            if isinstance(url, str) and str(mirror.get("url")).rstrip("/") == url.rstrip("/"):
                yield (*path, "mirrors", at, "url"), "is the url of the upstream itself", "leave this mirror out"
        for setting in ("allow", "deny"):
            given = upstream.get(setting)
            for at, pattern in enumerate(given if isinstance(given, (list, tuple)) else ()):
                if isinstance(pattern, str) and pattern.startswith(f"{name}/"):
                    rest = pattern.removeprefix(f"{name}/")
                    hint = f'leave out "{name}/": write "{rest}"'
                    yield (*path, setting, at), "matches nothing: patterns are of the upstream's own repositories", hint


def logins_disagreements(path: SettingPath, section: Mapping[str, Any]) -> Iterator[tuple[SettingPath, str, str]]:
    """Find what is wrong with the accounts of an upstream, its mirrors and its proxy. path: of the section."""
    for at, account in _listed(section.get("credentials")):
        yield from _account_disagreements((*path, "credentials", at), account)
    for at, mirror in _listed(section.get("mirrors")):
        for inner, account in _listed(mirror.get("credentials")):
            yield from _account_disagreements((*path, "mirrors", at, "credentials", inner), account)
    yield from proxy_disagreements((*path, "proxy"), section.get("proxy"))


def proxy_disagreements(path: SettingPath, proxy: Any) -> Iterator[tuple[SettingPath, str, str]]:
    """Find half a login of a proxy."""
    if isinstance(proxy, Mapping):
        for one, other in (("username", "password_file"), ("password_file", "username")):
            if proxy.get(one) is not None and proxy.get(other) is None:
                yield (*path, other), "is required", ""


def _listed(given: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    found = given if isinstance(given, (list, tuple)) else [given]
    return ((at, one) for at, one in enumerate(found) if isinstance(one, Mapping))


def _account_disagreements(path: SettingPath, given: Mapping[str, Any]) -> Iterator[tuple[SettingPath, str, str]]:
    ways = ("docker_config", "helper")
    login = [key for key in ("username", "password_file") if given.get(key) is not None]
    others = [key for key in ways if given.get(key) is not None]
    if (bool(login) + len(others)) > 1:
        yield path, "says several ways to log in", "give one of: username and password_file, docker_config, helper"
    elif not others:
        for key in ("username", "password_file"):
            if key not in login and not (key in given and given[key] is not None):
                yield (*path, key), "is required", ""


def access_disagreements(access: Mapping[str, Any]) -> Iterator[tuple[SettingPath, str, str]]:
    """Find what only means something with users, and is given without their file.

    access: the section as given. Gives path, message and suggestion of each.
    """
    if access.get("htpasswd_file") is not None:
        return
    if access.get("anonymous") == "none":
        yield ("access", "anonymous"), "with no users, nobody could do anything", "give access.htpasswd_file, or pull"
    for setting in ("push", "admin"):
        given = access.get(setting)
        if isinstance(given, (list, tuple)) and (given or setting == "push"):
            yield ("access", setting), "lists users, but there are none", "give access.htpasswd_file"
