"""What looks at a root, served or not, and changes nothing: statistics, and what would be done with an image."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from mirror import metrics as counters
from mirror.access.policy import Policy
from mirror.config import Config
from mirror.metadata.looking import LookingMetadata
from mirror.metadata.survey import Beside, Survey
from mirror.packages.folder import PackageFolder
from mirror.registry.explain import Explainer, Parts
from mirror.registry.listening import Listening, NoLeases, NoMemo
from mirror.registry.stats import StatsService
from mirror.store import residency as index
from mirror.store import tally
from mirror.store.disk import DiskBlobStore
from mirror.store.residency import Residency
from mirror.store.root import Root, RootAbsent, find_root
from mirror.store.threads import in_thread
from mirror.upstream.configured import ByName, is_pattern
from mirror.upstream.rules import Rules
from mirror.wiring.answering import answering
from mirror.wiring.upstreams import KnownUpstreams


@asynccontextmanager
async def _looking(root: Root, config: Config) -> AsyncIterator[Parts]:
    """Give what answers clients, made so that it changes nothing and reaches nobody."""
    async with AsyncExitStack() as stack:
        metadata = LookingMetadata(root.metadata, root.database)
        stack.push_async_callback(metadata.close)
        await metadata.start()
        packages = None
        if config.packages is not None:
            packages = PackageFolder(config.packages, limit=config.limits.manifest, leading=False)
            stack.push_async_callback(packages.close)
            await packages.start()
        known = await in_thread(KnownUpstreams, root, config)
        stack.push_async_callback(known.close)
        listening = Listening(
            known.upstreams,
            offline=ByName({name: one.offline or config.offline for name, one in config.upstreams.items()}),
            rests=lambda name, target: known.get(name).rests(target),
        )
        residency = Residency(root.index)  # not started: what is noted there is never written
        services = answering(
            config,
            store=DiskBlobStore(root, residency),
            leases=NoLeases(),
            metadata=metadata,
            memo=NoMemo(),
            upstreams=listening,
            packages=packages,
        )
        stack.push_async_callback(services.close)
        yield Parts(
            metadata=metadata,
            manifests=services.manifests,
            blobs=services.blobs,
            pushes=services.pushes,
            router=services.router,
            listening=listening,
            known=known.get,
        )


def build_explain(config: Config) -> Explainer:
    """Make what explains images, by a configuration and by what its root has, if it is there. Blocks.

    Raises: StorageFailed when the root is there and cannot be read.
    """
    folder = config.storage.root
    notes: tuple[str, ...] = ()
    try:
        root = find_root(folder)
    except RootAbsent:
        root, notes = Root(path=folder, database="", secret=bytes(16)), (f"{folder} is no root yet: nothing is kept",)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Parts]:
        async with _looking(root, config) as parts:
            yield replace(parts, notes=notes)

    return Explainer(
        opened,
        root=str(folder),
        rules=Rules(config.upstreams),
        policy=Policy(config.access),
        tags=ByName({name: settings.tags for name, settings in config.upstreams.items()}),
        configured=ByName({name: name for name in config.upstreams}),
        ports={one.address.port for one in config.listen},
    )


def build_stats(config: Config) -> StatsService:
    """Make what adds up what a root has. Blocks.

    Raises: StorageFailed when there is no root, or it cannot be read.
    """
    root = find_root(config.storage.root)
    usage = root.index / tally.FILE
    survey = Survey(
        root.metadata,
        root.database,
        resident=Beside(path=root.index / index.INDEX, rows=index.ROWS, empty=index.NO_ROWS),
        pulls=Beside(path=usage, rows=tally.PULLS, empty=tally.NO_PULLS),
        traffic=Beside(path=usage, rows=tally.TRAFFIC, empty=tally.NO_TRAFFIC),
        since=Beside(path=usage, rows=tally.SINCE, empty=tally.NO_SINCE),
    )
    names = tuple(name for name in config.upstreams if not is_pattern(name))
    return StatsService(
        root=root.path,
        survey=survey,
        counted=functools.partial(counters.counted, root.metrics),
        started_at=functools.partial(counters.counted_since, root.metrics),
        known=lambda: KnownUpstreams(root, config),
        names=names,
    )
