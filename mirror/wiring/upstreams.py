"""Upstreams with their mirrors: for a worker, and for who only looks at what workers know of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from mirror.config import Config, Mirror
from mirror.config import Upstream as UpstreamSettings
from mirror.registry.explain import Known
from mirror.store.lease import FileLeases
from mirror.store.root import Root
from mirror.store.shared import SharedNumbers, ViewedNumbers
from mirror.upstream.base import Numbers
from mirror.upstream.chain import Chain, Link, as_upstream, share_of_time
from mirror.upstream.client import RegistryClient
from mirror.upstream.configured import ByName, concrete
from mirror.upstream.counts import UpstreamCounts, UpstreamReadings
from mirror.upstream.pacing import TryAcquire
from mirror.upstream.upstreams import Upstreams


class Clients(NamedTuple):
    """What asks an upstream."""

    chain: Chain
    registry: RegistryClient
    mirrors: Sequence[RegistryClient]
    offline: bool


def upstream(
    name: str,
    settings: UpstreamSettings,
    *,
    config: Config,
    root: Root,
    numbers: SharedNumbers,
    leases: FileLeases,
    metrics: UpstreamCounts,
    readings: UpstreamReadings,
    label: str,
) -> Chain:
    """Make an upstream with its mirrors. label: what it is counted as: clients can make up names, but no patterns."""
    made = clients(
        name,
        settings,
        config=config,
        instance=root.instance,
        numbers=numbers,
        leases=leases.try_acquire,
        metrics=metrics,
        label=label,
    )
    if label == name:
        readings.add(name, made.registry, made.mirrors)
    return made.chain


def clients(
    name: str,
    settings: UpstreamSettings,
    *,
    config: Config,
    instance: str,
    numbers: Numbers,
    label: str,
    leases: TryAcquire | None = None,
    metrics: UpstreamCounts | None = None,
) -> Clients:
    """Make what asks an upstream and its mirrors."""

    def client(settings: UpstreamSettings, *, mirror: Mirror | None = None) -> RegistryClient:
        return RegistryClient(
            name,
            settings,
            limits=config.limits,
            metrics=metrics,
            proxy=config.proxy,
            numbers=numbers,
            leases=leases,
            mirror_of=name if mirror else None,
            send_ns=mirror.send_ns if mirror else False,
            instance=instance,
            label=label,
        )

    own, theirs = share_of_time(settings.timeouts, len(settings.mirrors))
    mirrors = [client(as_upstream(settings, mirror, theirs), mirror=mirror) for mirror in settings.mirrors]
    links = [Link(one, resolve=mirror.resolve) for one, mirror in zip(mirrors, settings.mirrors, strict=True)]
    registry = client(settings.model_copy(update={"timeouts": own}))
    offline = settings.offline or config.offline
    wrong = functools.partial(metrics.wrong_content, label) if metrics is not None else None
    return Clients(Chain(name, registry, links, offline=offline, wrong=wrong), registry, mirrors, offline)


class KnownUpstreams:
    """The upstreams, described by what all workers know of them, which is not changed; they may be asked. Blocks."""

    def __init__(self, root: Root, config: Config) -> None:
        self._numbers = ViewedNumbers(root.numbers, root.secret)
        self._known: dict[str, Known] = {}
        self._beside: list[Known] = []
        self._make = functools.partial(clients, config=config, instance=root.instance, numbers=self._numbers)
        self.upstreams = Upstreams(config.upstreams, self._made)
        self._settings = ByName(config.upstreams)

    def get(self, name: str) -> Known:
        """Return an upstream. Raises: KeyError when it is not configured."""
        if name not in self._known:
            self._made(name, concrete(self._settings[name], name))
            self._beside.append(self._known[name])
        return self._known[name]

    async def close(self) -> None:
        """Close what was made."""
        await self.upstreams.close()
        for known in self._beside:
            await known.upstream.close()
        self._numbers.close()

    def _made(self, name: str, settings: UpstreamSettings) -> Chain:
        made = self._make(name, settings, label=name)
        resolving = [mirror.resolve for mirror in settings.mirrors]
        self._known[name] = Known(
            upstream=made.chain,
            order=made.chain.order,
            registry=made.registry,
            mirrors=tuple(zip(made.mirrors, resolving, strict=True)),
            offline=made.offline,
        )
        return made.chain
