"""The only module that chooses implementations: it makes the parts of a worker and puts them together."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from mirror.access.gate import SERVICE, Gate
from mirror.access.tokens import TokenInvalid, Tokens
from mirror.api.app import LOCAL, Services
from mirror.api.app import build_app as build_api
from mirror.config import Config, Mirror
from mirror.config import Upstream as UpstreamSettings
from mirror.metadata.backup import SqliteBackup
from mirror.metadata.sqlite import SqliteMetadata
from mirror.metrics import Metrics
from mirror.oci.errors import StorageFailed
from mirror.packages.folder import PackageFolder
from mirror.registry.backup import BackupService, RestoreService
from mirror.registry.blobs import BlobService
from mirror.registry.inflight import Inflight
from mirror.registry.lists import ListService
from mirror.registry.manifests import ManifestService
from mirror.registry.pulled_lists import PulledLists
from mirror.registry.pushes import PushService
from mirror.registry.tags import TagResolver
from mirror.registry.uploads import UploadService
from mirror.store.disk import DiskBlobStore
from mirror.store.holding import holding, remove_leftovers
from mirror.store.lease import FileLeases
from mirror.store.residency import Residency
from mirror.store.restoring import RestoreStore
from mirror.store.root import Root, open_root
from mirror.store.shared import SharedNumbers
from mirror.store.threads import in_thread
from mirror.store.uploads import UploadStore
from mirror.upstream.chain import Chain, Link, as_upstream, share_of_time
from mirror.upstream.client import RegistryClient
from mirror.upstream.configured import ByName
from mirror.upstream.counts import UpstreamCounts, UpstreamReadings
from mirror.upstream.router import Router
from mirror.upstream.rules import Rules
from mirror.upstream.upstreams import Upstreams
from mirror.worker import StartupError, WorkerContext


async def build_app(config: Config, worker: WorkerContext) -> web.Application:
    """Make the application of one worker. Touches the disk, never the network.

    Raises: StartupError when storage.root cannot be used.
    """
    try:
        root = await in_thread(open_root, config.storage.root)
        gate = Gate(config.access, secret=root.secret, listen=[one.address for one in config.listen])
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
    labels = ByName({name: name for name in (*config.upstreams, LOCAL)})
    numbers = await in_thread(SharedNumbers, root.numbers, root.secret)
    make = functools.partial(
        _upstream,
        config=config,
        root=root,
        numbers=numbers,
        leases=leases,
        metrics=UpstreamCounts(worker.metrics),
        readings=UpstreamReadings(worker.metrics),
    )
    upstreams = Upstreams(config.upstreams, lambda name, settings: make(name, settings, label=labels[name]))
    inflight = Inflight(store=store, leases=leases, metadata=metadata, observer=_DownloadCounts(worker.metrics))
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
        memo=residency,
        upstreams=upstreams,
        settings=ByName({name: settings.tags for name, settings in config.upstreams.items()}),
    )
    manifests = ManifestService(
        store=store,
        leases=leases,
        metadata=metadata,
        memo=residency,
        blobs=blobs,
        tags=tags,
        upstreams=upstreams,
        packages=packages,
    )
    pulled_lists = PulledLists(
        leases=leases,
        metadata=metadata,
        memo=residency,
        manifests=manifests,
        upstreams=upstreams,
        settings=ByName({name: settings.tags for name, settings in config.upstreams.items()}),
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
            rules=Rules(config.upstreams),
            labels=labels,
            gate=gate,
            blobs=blobs,
            manifests=manifests,
            uploads=uploads,
            pushes=pushes,
            lists=ListService(metadata=metadata, manifests=manifests, packages=packages),
            pulled_lists=pulled_lists,
            worker=worker,
            send_timeout=config.limits.send_timeout,
            largest_manifest=config.limits.manifest,
            instance=root.instance,
        )
    )

    async def close(_: web.Application) -> None:
        """Close from the top down: what uses a part ends before it."""
        await uploads.close()
        await pulled_lists.close()
        await manifests.close()
        await tags.close()
        await blobs.close()
        await inflight.close()
        await upstreams.close()
        await in_thread(numbers.close)
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


def build_proof(path: Path) -> Callable[[str], bool]:
    """Make what tells whether a token was given by a service on this root: its key is the root's. Blocks.

    Raises: StorageFailed when the root cannot be used.
    """
    tokens = Tokens(open_root(path).secret, service=SERVICE)

    def given_here(token: str) -> bool:
        try:
            tokens.verify(token)
        except TokenInvalid:
            return False
        return True

    return given_here


def _upstream(
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

    def client(settings: UpstreamSettings, *, mirror: Mirror | None = None) -> RegistryClient:
        return RegistryClient(
            name,
            settings,
            limits=config.limits,
            metrics=metrics,
            proxy=config.proxy,
            numbers=numbers,
            leases=leases.try_acquire,
            mirror_of=name if mirror else None,
            send_ns=mirror.send_ns if mirror else False,
            instance=root.instance,
            label=label,
        )

    own, theirs = share_of_time(settings.timeouts, len(settings.mirrors))
    mirrors = [client(as_upstream(settings, mirror, theirs), mirror=mirror) for mirror in settings.mirrors]
    links = [Link(one, resolve=mirror.resolve) for one, mirror in zip(mirrors, settings.mirrors, strict=True)]
    registry = client(settings.model_copy(update={"timeouts": own}))
    if label == name:
        readings.add(name, registry, mirrors)
    return Chain(name, registry, links, offline=settings.offline or config.offline)


class _DownloadCounts:
    """Counts downloads in flight."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def download_started(self) -> None:
        self._metrics.downloads.inc()

    def download_ended(self) -> None:
        self._metrics.downloads.dec()
