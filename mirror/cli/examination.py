"""What else can be said of a configuration that has been read, without doing anything: its files, and advice.

Nothing is made, nothing is asked over the network; files are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirror.config import Loaded, Problem, Tls, Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """problems: what will not work, each at its place. warnings: what is allowed and seldom meant, a line each."""

    problems: list[Problem]
    warnings: list[str]


def examine(loaded: Loaded) -> Examination:
    """Look at what a configuration names. Blocks."""
    from mirror.access.advice import advice
    from mirror.upstream.advice import warnings

    config = loaded.config
    problems = [*_listeners(loaded), *_upstreams(loaded)]
    lines = advice(config.access, config.upstreams, config.listen, config.trusted_proxies)
    for name, upstream in config.upstreams.items():
        lines += warnings(name, upstream)
    if config.access.htpasswd_file is not None:
        failures, complaints = _users(loaded)
        problems += failures
        lines += complaints
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: (problem.line or 0, problem.column or 0))
    return Examination(problems=ordered, warnings=[loaded.discreet(line) for line in lines])


def _listeners(loaded: Loaded) -> Iterator[Problem]:
    """Find certificates and keys that do not belong together."""
    from mirror.server.certificates import Certificate
    from mirror.worker import StartupError

    config = loaded.config
    found: dict[Tls, tuple[str | int, ...]] = {} if config.tls is None else {config.tls: ("tls",)}
    for setting, listeners in (("listen", config.listen), ("admin_listen", config.admin_listen)):
        for at, listener in enumerate(listeners):
            if listener.tls is not None:
                found.setdefault(listener.tls, (setting, at, "tls"))
    for tls, path in found.items():
        try:
            Certificate(tls)
        except StartupError as error:
            yield loaded.problem(path, str(error).removeprefix("tls: "), quiet="certificate and key cannot be used")


def _upstreams(loaded: Loaded) -> Iterator[Problem]:
    """Find authorities, client certificates and logins that cannot be used."""
    from yarl import URL

    from mirror.upstream.chain import as_upstream
    from mirror.upstream.credentials import unusable_file
    from mirror.upstream.tls import UnusableFile, load_contexts

    def problems(settings: Upstream, path: tuple[str | int, ...]) -> Iterator[Problem]:
        url = URL(settings.url.replace("{host}", "host.invalid"))
        for at, credentials in enumerate(settings.credentials):
            if found := unusable_file(credentials, url):
                setting, why = found
                yield loaded.problem((*path, "credentials", at, setting), f"cannot be used: {why}")
        if settings.ca_file is None and settings.client_certificate is None:
            return
        try:
            load_contexts(settings, url)
        except UnusableFile as error:
            first = "certificate" if error.setting == "client_certificate" else None
            where = (*path, error.setting, first) if first else (*path, error.setting)
            yield loaded.problem(where, str(error).removeprefix(f"its {error.setting} "))

    for name, upstream in loaded.config.upstreams.items():
        yield from problems(upstream, ("upstreams", name))
        for at, mirror in enumerate(upstream.mirrors):
            as_asked = as_upstream(upstream, mirror, upstream.timeouts)
            yield from problems(as_asked, ("upstreams", name, "mirrors", at))


def _users(loaded: Loaded) -> tuple[list[Problem], list[str]]:
    """Return what is wrong with the file of users, and with those that are named and not in it."""
    from mirror.access.advice import strangers
    from mirror.access.users import read_users

    access = loaded.config.access
    assert access.htpasswd_file is not None
    found = read_users(access.htpasswd_file)
    assert found is not None
    lines = [f"access.htpasswd_file: {line}" for line in sorted(found.complaints)]
    if found.failure:
        hint = "make its lines by htpasswd -B"
        return [loaded.problem(("access", "htpasswd_file"), found.failure, hint)], lines
    if not found.users:
        lines.append("access.htpasswd_file: has no users, so nobody can log in; make its lines by htpasswd -B")
    lines += [f"{setting}: {name} is not in the file of users" for setting, name in strangers(access, found.users)]
    return [], lines
