"""What answers clients: made in one way, for a worker and for who explains what a worker would do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mirror.config import Config
from mirror.metadata.base import MetadataStore
from mirror.packages.folder import PackageFolder
from mirror.registry.blobs import BlobService
from mirror.registry.inflight import Inflight
from mirror.registry.manifests import ManifestService
from mirror.registry.pushes import PushService
from mirror.registry.tags import TagResolver
from mirror.store.base import BlobStore, Leases, Memo
from mirror.upstream.base import Upstream
from mirror.upstream.configured import ByName
from mirror.upstream.router import Router
from mirror.wiring.counts import DownloadCounts


class Answering(NamedTuple):
    """The services that answer, and what says which repository is meant."""

    router: Router
    inflight: Inflight
    blobs: BlobService
    tags: TagResolver
    manifests: ManifestService
    pushes: PushService

    async def close(self) -> None:
        """Close from the top down: what uses a part ends before it."""
        await self.manifests.close()
        await self.tags.close()
        await self.blobs.close()
        await self.inflight.close()


def answering(
    config: Config,
    *,
    store: BlobStore,
    leases: Leases,
    metadata: MetadataStore,
    memo: Memo,
    upstreams: Mapping[str, Upstream],
    packages: PackageFolder | None,
    counts: DownloadCounts | None = None,
) -> Answering:
    """Make what answers, from what it reads, writes and asks. counts: None counts nothing."""
    inflight = Inflight(store=store, leases=leases, metadata=metadata, observer=counts)
    blobs = BlobService(
        store=store,
        metadata=metadata,
        inflight=inflight,
        upstreams=upstreams,
        unverified_ranges=ByName({name: settings.unverified_ranges for name, settings in config.upstreams.items()}),
        packages=packages,
    )
    tags = TagResolver(
        leases=leases,
        metadata=metadata,
        memo=memo,
        upstreams=upstreams,
        settings=ByName({name: settings.tags for name, settings in config.upstreams.items()}),
    )
    manifests = ManifestService(
        store=store,
        leases=leases,
        metadata=metadata,
        memo=memo,
        blobs=blobs,
        tags=tags,
        upstreams=upstreams,
        packages=packages,
        wrong=counts,
    )
    pushes = PushService(
        store=store,
        leases=leases,
        metadata=metadata,
        packages=packages,
        local=config.local,
        read_only=config.read_only,
        delete=config.delete,
        missing_blobs=config.push.missing_blobs,
        largest=config.limits.manifest,
    )
    router = Router(
        config.upstreams,
        config.default_upstream,
        config.local,
        config.names,
        packaged=packages.owns if packages is not None else lambda _: False,
    )
    return Answering(router, inflight, blobs, tags, manifests, pushes)
