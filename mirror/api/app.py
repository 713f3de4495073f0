"""The application: one catch-all route, whose path is parsed once into a value.

    endpoint                                  methods     handler
    end-1   /v2/                              GET HEAD    here
    end-2   /v2/<name>/blobs/<digest>         GET HEAD    blobs.py
    end-3   /v2/<name>/manifests/<reference>  GET HEAD    manifests.py
    end-8   /v2/<name>/tags/list              GET HEAD    manifests.py
    end-4…  /v2/<name>/blobs/uploads/…        none yet
            /healthz /readyz /metrics         GET HEAD    operations.py

``X`` before ``/v2/…`` or as the first part of the name says which upstream is meant, as do ``ns`` and ``Host``.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from mirror.api.blobs import get_blob, head_blob
from mirror.api.errors import respond
from mirror.api.exchange import Exchange
from mirror.api.manifests import get_manifest, get_tags, subject
from mirror.api.operations import operate
from mirror.api.paths import BlobPath, ManifestPath, OperationPath, Root, TagsPath, UploadsPath, parse_path
from mirror.metrics import method_class
from mirror.oci.errors import RegistryError
from mirror.oci.names import Reference, Repository, parse_digest, parse_target
from mirror.registry.blobs import BlobService
from mirror.registry.manifests import ManifestService
from mirror.upstream.router import Router
from mirror.worker import WorkerContext

READS = ("GET", "HEAD")
UNLOGGED = ("healthz", "readyz", "metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the endpoints use. send_timeout: seconds within which a client has to take something."""

    router: Router
    blobs: BlobService
    manifests: ManifestService
    worker: WorkerContext
    send_timeout: float


def build_app(services: Services) -> web.Application:
    """Return the application."""
    app = web.Application()
    api = _Api(services)
    app.router.add_route("*", r"/{path:[\s\S]*}", api.handle)  # a dot would leave out line ends, sent as %0A
    return app


class _Api:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._worker = services.worker
        self._metrics = services.worker.metrics

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request; count it and write its line when it is done."""
        exchange = Exchange(request)
        status = 499
        try:
            try:
                response = await self._answer(exchange)
            except Exception as error:  # whatever it is, the client is told so in the one shape
                response = respond(error)
                exchange.cache = None  # what it says of content is not true of an error
                exchange.failure = error.message if isinstance(error, RegistryError) else type(error).__name__
            if not response.prepared:
                exchange.mark(response)
            status = response.status
            return response
        finally:
            self._count(exchange, status)

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        path = parse_path(request.rel_url.raw_path)
        exchange.endpoint = _ENDPOINTS[type(path)] if not isinstance(path, OperationPath) else path.operation
        exchange.ns = (request.query.get("ns") or None) if request.query_string else None
        allowed = () if isinstance(path, UploadsPath) else READS
        if request.method not in allowed:
            raise web.HTTPMethodNotAllowed(request.method, allowed)
        match path:
            case Root():
                if path.prefix is not None or exchange.ns is not None:  # a registry we do not know has no API here
                    self._services.router.route(ns=exchange.ns, host=None, prefix=path.prefix, name="any")
                return web.json_response({})
            case ManifestPath():
                repository = self._route(exchange, path.prefix, path.name)
                reference = Reference(repository, parse_target(path.reference))
                exchange.kind, exchange.reference = subject(reference)
                return await get_manifest(exchange, self._services.manifests, reference)
            case BlobPath():
                repository = self._route(exchange, path.prefix, path.name)
                digest = parse_digest(path.digest)
                exchange.kind, exchange.digest = "blob", path.digest
                if request.method == "HEAD":
                    return await head_blob(exchange, self._services.blobs, repository, digest)
                return await get_blob(exchange, self._services.blobs, repository, digest, self._services.send_timeout)
            case TagsPath():
                repository = self._route(exchange, path.prefix, path.name)
                return await get_tags(exchange, self._services.manifests, repository, path.name)
            case OperationPath():
                return await operate(path.operation, self._worker)
            case UploadsPath():
                raise AssertionError("no method is allowed there")

    def _route(self, exchange: Exchange, prefix: str | None, name: str) -> Repository:
        host = exchange.request.headers.get("Host")
        repository = self._services.router.route(ns=exchange.ns, host=host, prefix=prefix, name=name)
        exchange.repository = str(repository)
        exchange.upstream = repository.source or "local"
        return repository

    def _count(self, exchange: Exchange, status: int) -> None:
        metrics = self._metrics
        metrics.requests.labels(method_class(exchange.request.method), exchange.endpoint, str(status)).inc()
        if exchange.kind is not None and exchange.hit is not None and exchange.upstream is not None:
            counted = metrics.hits if exchange.hit else metrics.misses
            counted.labels(exchange.kind, exchange.upstream).inc()
        if exchange.sent:
            metrics.served_bytes.labels("blob" if exchange.kind == "blob" else "manifest").inc(exchange.sent)
        if exchange.endpoint not in UNLOGGED:
            self._worker.access_log.write(exchange.line(status))


_ENDPOINTS: dict[type, str] = {
    Root: "root",
    ManifestPath: "manifests",
    BlobPath: "blobs",
    TagsPath: "tags",
    UploadsPath: "uploads",
}
