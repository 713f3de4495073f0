"""The upstreams and their mirrors, asked as the service asks them: names, proxies, TLS, tokens, logins, quotas."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from yarl import URL

from mirror import config
from mirror.config import Timeouts
from mirror.doctor import clock
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, skipped, warning
from mirror.doctor.settings import hosts
from mirror.oci.errors import RegistryError
from mirror.oci.names import RepositoryName, Tag
from mirror.upstream.client import RegistryClient
from mirror.upstream.configured import docker_hubs, is_pattern
from mirror.upstream.greeting import Greeting, Word
from mirror.upstream.proxies import ProxyFailed, proxies
from mirror.upstream.quota import Exported
from mirror.upstream.resolver import SystemResolver

AT_ONCE = 8
"""Most that are asked at the same time."""
GRACE = 1.0
"""Seconds more that one is given to end by itself, and say why."""
_QUOTA = RepositoryName("ratelimitpreview/test"), Tag("latest")
"""What Docker Hub keeps for this: its HEAD says what is left, and costs nothing."""


async def look(case: Case) -> Sequence[Finding]:
    """Ask each of them, some at a time; say of those that are not asked why."""
    limit = asyncio.Semaphore(AT_ONCE)
    ahead: dict[str, float] = {}

    async def ask(name: str, settings: config.Upstream, who: str, place: str, one: config.Upstream) -> list[Finding]:
        async with limit:
            return await _ask(case, name, settings, who, place, one, ahead)

    waiting: list[asyncio.Task[list[Finding]] | Finding] = []
    async with asyncio.TaskGroup() as group:
        for name, settings in _all(case).items():
            if (why := _left_out(case, name, settings)) is not None:
                waiting.append(skipped(f"upstream {name}", why))
                continue
            waiting += [group.create_task(ask(name, settings, *host)) for host in hosts(name, settings)]
    found: list[Finding] = []
    for one in waiting:
        found += [one] if isinstance(one, Finding) else one.result()
    return [*found, *clock.compared(ahead)]


def _all(case: Case) -> Mapping[str, config.Upstream]:
    """Return every upstream: as configured, and those of patterns that were named."""
    return {**case.config.upstreams, **case.upstreams}


def _left_out(case: Case, name: str, settings: config.Upstream) -> str | None:
    """Say why an upstream is not asked; None when it is."""
    if name not in case.upstreams:
        if is_pattern(name):
            return "a pattern: only its settings were looked at; name a registry that it matches by --upstream"
        return "not among those named by --upstream"
    if case.config.offline or settings.offline:
        return f"not asked: {'offline' if case.config.offline else f'upstreams.{name}.offline'} is true"
    return None if case.online else "not asked: --offline"


async def _ask(
    case: Case,
    name: str,
    settings: config.Upstream,
    who: str,
    place: str,
    one: config.Upstream,
    ahead: dict[str, float],
) -> list[Finding]:
    """Ask one host as each of its accounts.

    name, settings: of the upstream. who, place, one: the host, in words, in the settings, and what it is asked with.
    ahead: takes the difference of its clock.
    """
    mirror = one is not settings
    label = f"upstream {name}" if not mirror else f"mirror {URL(one.url).host_port_subcomponent} of {name}"
    within = Timeouts.model_construct(
        connect=min(one.timeouts.connect, case.timeout), headers=case.timeout, read=case.timeout
    )
    client = RegistryClient(
        name,
        one.model_copy(update={"timeouts": within}),
        proxy=case.config.proxy,
        mirror_of=name if mirror else None,
        send_ns=mirror,
    )
    begun = time.monotonic()
    facts: dict[str, Any] = {"url": one.url}
    try:
        async with asyncio.timeout(case.timeout * max(1, len(one.credentials)) + GRACE):
            facts |= await _way(case, one)
            begun = time.monotonic()
            greetings = await client.greet()
            facts["seconds"] = round(time.monotonic() - begun, 3)
            quotas = await _quotas(case, client, name, mirror, greetings)
    except TimeoutError:
        return [_bad(mirror)(label, f"no answer within {case.timeout:g} s", _unreachable(place), **facts)]
    finally:
        await client.close()
    for greeting in greetings:
        if greeting.ahead is not None:
            ahead[who] = greeting.ahead
    return [
        _judged(label, place, greeting, mirror=mirror, facts=facts, quota=quota)
        for greeting, quota in zip(greetings, quotas, strict=True)
    ]


async def _way(case: Case, one: config.Upstream) -> dict[str, Any]:
    """Return how the host is reached: its addresses, or the proxy that looks them up itself."""
    url = URL(one.url)
    try:
        proxy = proxies(one.proxy or case.config.proxy, os.environ).way_to(url)
    except ProxyFailed:
        return {}  # it is said when it is asked
    if proxy is not None:
        return {"proxy": proxy.name}
    resolver = SystemResolver()
    try:
        found = await resolver.resolve(url.host or "", url.port or 0)
    except (OSError, UnicodeError):
        return {"addresses": []}
    finally:
        await resolver.close()
    return {"addresses": list(dict.fromkeys(address["host"] for address in found))}


async def _quotas(
    case: Case, client: RegistryClient, name: str, mirror: bool, greetings: Sequence[Greeting]
) -> Sequence[Exported]:
    """Return what is left of each account's pulls, as far as the registry says so to what costs nothing."""
    welcome = all(greeting.word is Word.WELCOME for greeting in greetings)
    if welcome and not mirror and name in docker_hubs(case.config.upstreams):
        try:
            await client.resolve(*_QUOTA)
        except RegistryError:
            pass  # it did not say
    return client.quotas()


def _judged(
    label: str, place: str, greeting: Greeting, *, mirror: bool, facts: Mapping[str, Any], quota: Exported
) -> Finding:
    """Judge what one account was told."""
    user = greeting.user
    facts = {**facts, "word": greeting.word.value, "user": user, "status": greeting.status}
    where = _where(facts)
    did, advice = greeting.did, greeting.advice
    match greeting.word:
        case Word.WELCOME:
            left = ""
            if quota.limit is not None:
                facts |= {"quota_limit": quota.limit, "quota_remaining": quota.remaining}
                left = f", {quota.remaining} of {quota.limit} pulls left"
            return ok(label, f"reachable{where}, as {user or 'nobody'}{left}", **facts)
        case Word.SELECTIVE:
            return ok(
                label, f"reachable{where}; what nobody in particular may pull it says for each repository", **facts
            )
        case Word.LOGIN_WANTED:
            text = f"reachable{where}; it wants a login and none is configured ({did})"
            return warning(label, text, f"give one under {place}.credentials", **facts)
        case Word.LOGIN_REFUSED:
            text = f"reachable{where}; it refuses the credentials of {user!r} ({did})"
            advice = f"check that they are right and not expired: {place}.{greeting.setting}"
            return _bad(mirror)(label, text, advice, **facts)
        case Word.RATE_LIMITED:
            return warning(label, f"reachable{where}; it limits our rate ({did})", advice or "try again later", **facts)
        case Word.UNREACHABLE:
            return _bad(mirror)(
                label, f"{did}{where}", f"{advice}: {place}" if advice else _unreachable(place), **facts
            )
        case Word.FAILING | Word.NO_REGISTRY:
            return _bad(mirror)(
                label, f"reachable{where}, but {did}", f"{advice or 'try again later'}: {place}", **facts
            )


def _where(facts: Mapping[str, Any]) -> str:
    """Say by which way it was asked."""
    if "proxy" in facts:
        return f" by way of the proxy {facts['proxy']}"
    addresses = facts.get("addresses") or ()
    more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
    return f" at {addresses[0]}{more}" if addresses else ""


def _unreachable(place: str) -> str:
    return f"check that its host is up and can be reached from here: {place}.url"


def _bad(mirror: bool) -> Callable[..., Finding]:
    """Return how bad it is: without a mirror the registry itself is asked."""
    return warning if mirror else problem
