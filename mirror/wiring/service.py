"""The application of one worker, from all of its parts."""

from __future__ import annotations

import functools

from aiohttp import web

from mirror.access.gate import Gate
from mirror.api.app import LOCAL, Services
from mirror.api.app import build_app as build_api
from mirror.api.caller import Proxies
from mirror.config import Config
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed
from mirror.packages.folder import PackageFolder
from mirror.registry.lists import ListService
from mirror.registry.pulled_lists import PulledLists
from mirror.registry.uploads import UploadService
from mirror.store.disk import DiskBlobStore
from mirror.store.holding import remove_leftovers
from mirror.store.lease import FileLeases
from mirror.store.residency import Residency
from mirror.store.root import open_root
from mirror.store.shared import SharedNumbers
from mirror.store.threads import in_thread
from mirror.store.uploads import UploadStore
from mirror.store.usage import DiskUsage
from mirror.upstream.configured import ByName
from mirror.upstream.counts import UpstreamCounts, UpstreamReadings
from mirror.upstream.rules import Rules
from mirror.upstream.upstreams import Upstreams
from mirror.wiring.answering import answering
from mirror.wiring.counts import DownloadCounts, LoginCounts, show_storage
from mirror.wiring.upstreams import upstream
from mirror.worker import StartupError, WorkerContext


async def build_app(config: Config, worker: WorkerContext) -> web.Application:
    """Make the application of one worker. Touches the disk, never the network.

    Raises: StartupError when storage.root cannot be used.
    """
    try:
        root = await in_thread(open_root, config.storage.root)
        gate = Gate(
            config.access,
            secret=root.secret,
            listen=[one.address for one in config.listen],
            counts=LoginCounts(worker.metrics),
        )
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
            leading=worker.leading,
            retired=worker.retired,
            verdicts=root.path / "packages.verified",
        )
        await packages.start()
    show_storage(worker.metrics, DiskUsage(root))
    labels = ByName({name: name for name in (*config.upstreams, LOCAL)})
    numbers = await in_thread(SharedNumbers, root.numbers, root.secret)
    make = functools.partial(
        upstream,
        config=config,
        root=root,
        numbers=numbers,
        leases=leases,
        metrics=UpstreamCounts(worker.metrics),
        readings=UpstreamReadings(worker.metrics),
    )
    upstreams = Upstreams(config.upstreams, lambda name, settings: make(name, settings, label=labels[name]))
    downloads = DownloadCounts(worker.metrics, labels)
    services = answering(
        config,
        store=store,
        leases=leases,
        metadata=metadata,
        memo=residency,
        upstreams=upstreams,
        packages=packages,
        counts=downloads,
    )
    pulled_lists = PulledLists(
        leases=leases,
        metadata=metadata,
        memo=residency,
        manifests=services.manifests,
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
    app = build_api(
        Services(
            router=services.router,
            rules=Rules(config.upstreams),
            labels=labels,
            gate=gate,
            proxies=Proxies(config.trusted_proxies),
            blobs=services.blobs,
            manifests=services.manifests,
            uploads=uploads,
            pushes=services.pushes,
            lists=ListService(metadata=metadata, manifests=services.manifests, packages=packages),
            pulled_lists=pulled_lists,
            usage=residency.tally,
            worker=worker,
            apart=bool(config.admin_listen),
            send_timeout=config.limits.send_timeout,
            largest_manifest=config.limits.manifest,
            instance=root.instance,
        )
    )

    async def close(_: web.Application) -> None:
        """Close from the top down: what uses a part ends before it."""
        await uploads.close()
        await pulled_lists.close()
        await services.close()
        await upstreams.close()
        await in_thread(numbers.close)
        if packages is not None:
            await packages.close()
        await gate.close()
        await residency.close()
        await metadata.close()

    app.on_cleanup.append(close)
    return app
