"""Settings that are each right and do not go together, looked for in what was given: a model may not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mirror.config import values
from mirror.config.problems import Path as SettingPath
from mirror.config.problems import did_you_mean


class Disagreement(NamedTuple):
    """One thing that does not go together. quiet: the message when the value at the path may not be repeated."""

    path: SettingPath
    message: str
    suggestion: str = ""
    quiet: str | None = None


def disagreements(
    names: Mapping[str, Mapping[int, str]], default: str | None, *, own: Mapping[int, str]
) -> Iterator[Disagreement]:
    """Find names that mean two registries, and a default that is none of them.

    names: upstream → its further names by their index. own: names of this registry itself by their index.
    """
    owners = {name: name for name in names}
    for upstream, others in names.items():
        for at, other in others.items():
            owner = owners.setdefault(other, upstream)
            if owner != upstream:
                means = f"already means the upstream {owner}"
                yield Disagreement(("upstreams", upstream, "names", at), f'"{other}" {means}', quiet=means)
    for at, name in own.items():
        if name in owners:
            means = f"already means the upstream {owners[name]}"
            yield Disagreement(("names", at), f'"{name}" {means}', "a name means one registry only", quiet=means)
    if default is not None and (default not in names or "*" in default):
        exact = [name for name in names if "*" not in name]
        known = ", ".join(exact) or "there are none"
        owner = owners.get(default, default)
        hint = f'did you mean "{owner}"?' if owner != default else did_you_mean(default, exact, cutoff=0.75)
        yield Disagreement(("default_upstream",), f"is not one of the upstreams ({known})", hint)


def upstream_disagreements(upstreams: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Find accounts that are given in no way or in several, and patterns that cannot work.

    upstreams: the section as given.
    """
    for name, upstream in upstreams.items():
        if not isinstance(upstream, Mapping) or not isinstance(name, str):
            continue
        path: SettingPath = ("upstreams", name)
        yield from logins_disagreements(path, upstream)
        url = upstream.get("url")
        if "*" in name:
            if isinstance(url, str) and values.HOST_PLACE not in url:
                yield Disagreement(
                    (*path, "url"), "does not say {host}: all that match the pattern would be one registry"
                )
            if upstream.get("names"):
                yield Disagreement(
                    (*path, "names"), "a pattern cannot have other names", "list them as upstreams of their own"
                )
        elif isinstance(url, str) and values.HOST_PLACE in url:
            yield Disagreement((*path, "url"), "{host} is for patterns such as *.pkg.dev", "write the host")
        for at, mirror in _listed(upstream.get("mirrors")):
            if isinstance(url, str) and str(mirror.get("url")).rstrip("/") == url.rstrip("/"):
                yield Disagreement(
                    (*path, "mirrors", at, "url"), "is the url of the upstream itself", "leave this mirror out"
                )
        for setting in ("allow", "deny"):
            given = upstream.get(setting)
            for at, pattern in enumerate(given if isinstance(given, (list, tuple)) else ()):
                if isinstance(pattern, str) and pattern.startswith(f"{name}/"):
                    rest = pattern.removeprefix(f"{name}/")
                    hint = f'leave out "{name}/": write "{rest}"'
                    yield Disagreement(
                        (*path, setting, at), "matches nothing: patterns are of the upstream's own repositories", hint
                    )


def logins_disagreements(path: SettingPath, section: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Find what is wrong with the accounts of an upstream, its mirrors and its proxy. path: of the section."""
    for at, account in _listed(section.get("credentials")):
        yield from _account_disagreements((*path, "credentials", at), account)
    for at, mirror in _listed(section.get("mirrors")):
        for inner, account in _listed(mirror.get("credentials")):
            yield from _account_disagreements((*path, "mirrors", at, "credentials", inner), account)
    yield from proxy_disagreements((*path, "proxy"), section.get("proxy"))


def proxy_disagreements(path: SettingPath, proxy: Any) -> Iterator[Disagreement]:
    """Find half a login of a proxy, or one with two passwords."""
    if isinstance(proxy, Mapping) and any(proxy.get(key) is not None for key in LOGIN):
        yield from _login_disagreements(path, proxy)


def _listed(given: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    found = given if isinstance(given, (list, tuple)) else [given]
    return ((at, one) for at, one in enumerate(found) if isinstance(one, Mapping))


def _account_disagreements(path: SettingPath, given: Mapping[str, Any]) -> Iterator[Disagreement]:
    login = [key for key in LOGIN if given.get(key) is not None]
    others = [key for key in ("docker_config", "helper") if given.get(key) is not None]
    if (bool(login) + len(others)) > 1:
        yield Disagreement(path, "says several ways to log in", WAYS)
    elif login:
        yield from _login_disagreements(path, given)
    elif not others:
        yield Disagreement(path, "says no way to log in", WAYS)


LOGIN = ("username", "password", "password_file")
WAYS = "give one of: username and password_file, docker_config, helper"


def _login_disagreements(path: SettingPath, given: Mapping[str, Any]) -> Iterator[Disagreement]:
    username, password, password_file = (given.get(key) is not None for key in LOGIN)
    if not username:
        yield Disagreement((*path, "username"), "is required")
    if password and password_file:
        yield Disagreement((*path, "password_file"), "is a second password", "give password or password_file, not both")
    elif not password and not password_file:
        yield Disagreement((*path, "password_file"), "is required")


def access_disagreements(access: Mapping[str, Any]) -> Iterator[Disagreement]:
    """Find what only means something with users, and is given without their file.

    access: the section as given.
    """
    if access.get("htpasswd_file") is not None:
        return
    if access.get("anonymous") == "none":
        yield Disagreement(
            ("access", "anonymous"), "with no users, nobody could do anything", "give access.htpasswd_file, or pull"
        )
    for setting in ("push", "admin"):
        given = access.get(setting)
        if isinstance(given, (list, tuple)) and (given or setting == "push"):
            yield Disagreement(("access", setting), "lists users, but there are none", "give access.htpasswd_file")
