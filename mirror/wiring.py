"""The only module that chooses implementations: it makes the parts of a worker and puts them together."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from aiohttp import web

from mirror.access.gate import Gate
from mirror.api.app import Services
from mirror.api.app import build_app as build_api
from mirror.config import Config
from mirror.metadata.backup import SqliteBackup
from mirror.metadata.sqlite import SqliteMetadata
from mirror.metrics import Metrics, status_class
from mirror.oci.errors import StorageFailed
from mirror.packages.folder import PackageFolder
from mirror.registry.backup import BackupService, RestoreService
from mirror.registry.blobs import BlobService
from mirror.registry.inflight import Inflight
from mirror.registry.lists import ListService
from mirror.registry.manifests import ManifestService
from mirror.registry.pushes import PushService
from mirror.registry.tags import TagResolver
from mirror.registry.uploads import UploadService
from mirror.store.disk import DiskBlobStore
from mirror.store.holding import holding, remove_leftovers
from mirror.store.lease import FileLeases
from mirror.store.residency import Residency
from mirror.store.restoring import RestoreStore
from mirror.store.root import open_root
from mirror.store.threads import in_thread
from mirror.store.uploads import UploadStore
from mirror.upstream.client import RegistryClient
from mirror.upstream.router import Router
from mirror.worker import StartupError, WorkerContext


async def build_app(config: Config, worker: WorkerContext) -> web.Application:
    """Make the application of one worker. Touches the disk, never the network.

    Raises: StartupError when storage.root cannot be used.
    """
    try:
        root = await in_thread(open_root, config.storage.root)
        gate = Gate(config.access, secret=root.secret, listen=config.listen)
        await gate.start()
        metadata = SqliteMetadata(root.metadata, root.database)
        await metadata.start()
        residency = Residency(root.index)
        await residency.start()
        store = DiskBlobStore(root, residency)
        leases = FileLeases(root.locks, root.secret)
        await in_thread(store.sweep, leases)
        await in_thread(remove_leftovers, root)
    except StorageFailed as error:
        raise StartupError(error.message) from error
    packages = None
    if config.packages is not None:
        packages = PackageFolder(
            config.packages,
            limit=config.limits.manifest,
            leading=worker.slot == 0,
            verdicts=root.path / "packages.verified",
        )
        await packages.start()
    counts = _UpstreamCounts(worker.metrics)
    upstreams = {
        name: RegistryClient(name, settings, limits=config.limits, metrics=counts)
        for name, settings in config.upstreams.items()
    }
    inflight = Inflight(store=store, leases=leases, metadata=metadata, observer=_DownloadCounts(worker.metrics))
    blobs = BlobService(
        store=store,
        metadata=metadata,
        inflight=inflight,
        upstreams=upstreams,
        unverified_ranges={name: settings.unverified_ranges for name, settings in config.upstreams.items()},
        packages=packages,
    )
    tags = TagResolver(
        leases=leases,
        metadata=metadata,
        memo=residency,
        upstreams=upstreams,
        settings={name: settings.tags for name, settings in config.upstreams.items()},
    )
    manifests = ManifestService(
        store=store, leases=leases, metadata=metadata, blobs=blobs, tags=tags, upstreams=upstreams, packages=packages
    )
    uploads = UploadService(
        uploads=UploadStore(root),
        leases=leases,
        metadata=metadata,
        largest=config.limits.blob,
        expires=config.push.session_expires,
    )
    uploads.start()
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
    app = build_api(
        Services(
            router=Router(
                config.upstreams,
                config.default_upstream,
                config.local,
                config.names,
                packaged=packages.owns if packages is not None else lambda _: False,
            ),
            gate=gate,
            blobs=blobs,
            manifests=manifests,
            uploads=uploads,
            pushes=pushes,
            lists=ListService(metadata=metadata, manifests=manifests, packages=packages),
            worker=worker,
            send_timeout=config.limits.send_timeout,
            largest_manifest=config.limits.manifest,
        )
    )

    async def close(_: web.Application) -> None:
        """Close from the top down: what uses a part ends before it."""
        await uploads.close()
        await manifests.close()
        await tags.close()
        await blobs.close()
        await inflight.close()
        for upstream in upstreams.values():
            await upstream.close()
        if packages is not None:
            await packages.close()
        await gate.close()
        await residency.close()
        await metadata.close()

    app.on_cleanup.append(close)
    return app


def build_backup(path: Path) -> BackupService:
    """Make what backs up a root, which may be served meanwhile. Blocks.

    Raises: StorageFailed when there is none, or it cannot be used.
    """
    if not all(os.path.exists(path / name) for name in ("format", "metadata.db")):
        raise StorageFailed(f"{path} is no root of a mirror: nothing to back up; give the right one by --root")
    root = open_root(path)
    rows = SqliteBackup(root.metadata, root.database)
    return BackupService(root=root.path, rows=rows, holding=functools.partial(holding, root))


def build_restore(path: Path) -> RestoreService:
    """Make what restores into a root, laying it out when it is new. The caller owns it. Blocks.

    Raises: StorageFailed when it cannot be used.
    """
    root = open_root(path)
    return RestoreService(rows=SqliteBackup(root.metadata, root.database), store=RestoreStore(root))


class _UpstreamCounts:
    """Counts what upstreams do."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def request(self, upstream: str, kind: str, status: int) -> None:
        self._metrics.upstream_requests.labels(upstream, kind, status_class(status)).inc()

    def token(self, upstream: str) -> None:
        self._metrics.token_requests.labels(upstream).inc()

    def error(self, upstream: str, reason: str) -> None:
        self._metrics.upstream_errors.labels(upstream, reason).inc()

    def fetched(self, upstream: str, nbytes: int) -> None:
        self._metrics.fetched_bytes.labels(upstream).inc(nbytes)


class _DownloadCounts:
    """Counts downloads in flight."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def download_started(self) -> None:
        self._metrics.downloads.inc()

    def download_ended(self) -> None:
        self._metrics.downloads.dec()
