"""The application: one catch-all route, whose path is parsed once into a value.

    endpoint                                      methods             handler
    end-1          /v2/                           GET HEAD            here
    end-2, 10      /v2/<name>/blobs/<digest>      GET HEAD DELETE     blobs.py
    end-3, 7, 9    /v2/<name>/manifests/<target>  GET HEAD PUT DELETE manifests.py
    end-4, 11      /v2/<name>/blobs/uploads/      POST                uploads.py
    end-5, 6 13 14 /v2/<name>/blobs/uploads/<id>  GET PATCH PUT DELETE uploads.py
    end-8          /v2/<name>/tags/list           GET HEAD            lists.py
    end-12         /v2/<name>/referrers/<digest>  GET HEAD            lists.py
                   /v2/_catalog                   GET HEAD            lists.py
                   /v2/[<name>/]_oci/ext/discover GET HEAD            lists.py
                   /v2/<name>/_mirror/tags/history GET HEAD           lists.py
                   /v2/_mirror/auth/token         GET POST            access.py
                   /v2/_mirror/openapi/openapi.json GET HEAD          openapi.py
                   /healthz /readyz /metrics      GET HEAD            operations.py

With ``admin_listen`` what is for administrators is answered there alone, by an application of its own: ``admin.py``.

``X`` before ``/v2/…`` or as the first part of the name says which upstream is meant, as do ``ns`` and ``Host``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from mirror.access.gate import Gate
from mirror.access.identity import Action
from mirror.api.access import admit, token
from mirror.api.admin import build_admin
from mirror.api.blobs import get_blob, head_blob
from mirror.api.caller import Proxies
from mirror.api.counting import NOT_ANSWERED, UNLOGGED, RequestCounts
from mirror.api.errors import respond
from mirror.api.exchange import Exchange
from mirror.api.incoming import condition_of, expect, unasked, way
from mirror.api.keys import ADMIN
from mirror.api.lists import discover, get_catalog, get_history, get_referrers, get_tags
from mirror.api.manifests import get_manifest, put_manifest, subject
from mirror.api.openapi import get_openapi
from mirror.api.operations import operate
from mirror.api.paths import (
    BlobPath,
    DiscoverPath,
    HistoryPath,
    ManifestPath,
    Named,
    OperationPath,
    Path,
    ReferrersPath,
    RegistryPath,
    Root,
    SessionPath,
    TagsPath,
    UploadsPath,
    parse_path,
)
from mirror.api.uploads import delete_upload, get_upload, patch_upload, post_upload, put_upload
from mirror.oci.errors import NameUnknown, PathUnknown, RegistryError
from mirror.oci.names import Digest, Reference, Repository, Tag, parse_digest, parse_name, parse_tag, parse_target
from mirror.registry.blobs import BlobService
from mirror.registry.lists import ListService
from mirror.registry.manifests import ManifestService
from mirror.registry.pulled_lists import PulledLists
from mirror.registry.pushes import PushService
from mirror.registry.uploads import UploadService
from mirror.store.base import Usage
from mirror.upstream import via
from mirror.upstream.router import Router
from mirror.upstream.rules import Rules
from mirror.worker import WorkerContext

READS = ("GET", "HEAD")
LOCAL = "local"
"""What is said in place of an upstream for our own repositories."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the endpoints use. send_timeout: seconds within which a client has to take something.

    apart: whether administrators are answered at addresses of their own. largest_manifest: bytes. instance: what no
    other service is called, for ``Via``. labels: what each upstream, and ``LOCAL``, is counted as.
    """

    router: Router
    rules: Rules
    labels: Mapping[str, str]
    gate: Gate
    proxies: Proxies
    blobs: BlobService
    manifests: ManifestService
    uploads: UploadService
    pushes: PushService
    lists: ListService
    pulled_lists: PulledLists
    usage: Usage
    worker: WorkerContext
    apart: bool
    send_timeout: float
    largest_manifest: int
    instance: str


def build_app(services: Services) -> web.Application:
    """Return the application; under ``ADMIN`` it has the one for administrators, if that is answered elsewhere."""
    app = web.Application()
    api = _Api(services)
    if services.apart:
        app[ADMIN] = build_admin(services.worker)
    # a dot would leave out line ends, sent as %0A
    app.router.add_route("*", r"/{path:[\s\S]*}", api.handle, expect_handler=expect)
    return app


class _Api:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._worker = services.worker
        self._proxies = services.proxies
        self._counts = RequestCounts(services.worker.metrics, services.labels)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request; count it and write its line when it is done."""
        exchange = Exchange(request, self._proxies.caller(request))
        status = NOT_ANSWERED
        self._counts.begin()
        try:
            try:
                response = await self._answer(exchange)
            except Exception as error:  # whatever it is, the client is told so in the one shape
                response = respond(error)
                exchange.cache = None  # what it says of content is not true of an error
                exchange.failure = error.message if isinstance(error, RegistryError) else type(error).__name__
            if not response.prepared:
                exchange.mark(response)
                unasked(request, response)
            status = response.status
            return response
        finally:
            self._count(exchange, status)

    async def _answer(self, exchange: Exchange) -> web.StreamResponse:
        request = exchange.request
        path = parse_path(request.rel_url.raw_path)
        exchange.endpoint = _endpoint(path)
        exchange.ns = (request.query.get("ns") or None) if request.query_string else None
        allowed = _allowed(path)
        if request.method not in allowed:
            raise web.HTTPMethodNotAllowed(request.method, allowed)
        match path:
            case OperationPath():
                if path.operation == "metrics" and self._services.apart:
                    raise PathUnknown("/metrics is answered at the addresses of admin_listen only")
                return await operate(path.operation, self._worker)
            case Root():
                await self._admit(exchange, Action.LOGIN, None)
                self._check_registry(exchange, path.prefix)
                return web.json_response({})
            case RegistryPath():
                return await self._of_registry(exchange, path)
        exchange.name = path.name
        via.received.set(way(request, self._services.instance))
        if request.method in READS and not isinstance(path, SessionPath):
            await self._admit(exchange, Action.PULL, f"repository:{path.name}:pull")
            return await self._read(exchange, path, self._route(exchange, path))
        if request.method == "DELETE" and not isinstance(path, SessionPath):
            return await self._delete(exchange, path)
        with self._counts.pushing():
            return await self._push(exchange, path)

    async def _of_registry(self, exchange: Exchange, path: RegistryPath) -> web.StreamResponse:
        """Answer what is asked of the registry as a whole."""
        request, gate = exchange.request, self._services.gate
        if path.what == "token":
            return await token(request, exchange.caller, gate)
        await self._admit(exchange, Action.PULL, "registry:catalog:*" if path.what == "catalog" else None)
        self._check_registry(exchange, path.prefix)
        match path.what:
            case "catalog":
                return await get_catalog(exchange, self._services.lists)
            case "discover":
                return discover()
            case "openapi":
                return get_openapi(request)

    async def _read(self, exchange: Exchange, path: Named, repository: Repository) -> web.StreamResponse:
        """Answer GET and HEAD of what a repository has."""
        services, method = self._services, exchange.request.method
        services.rules.check(repository)
        match path:
            case ManifestPath():
                reference = Reference(repository, parse_target(path.reference))
                services.rules.check(repository, reference.target)
                exchange.kind, exchange.reference = subject(reference)
                return await get_manifest(exchange, services.manifests, reference)
            case BlobPath():
                digest = parse_digest(path.digest)
                exchange.kind, exchange.digest = "blob", path.digest
                if method == "HEAD":
                    return await head_blob(exchange, services.blobs, repository, digest)
                return await get_blob(exchange, services.blobs, repository, digest, services.send_timeout)
            case TagsPath():
                return await get_tags(exchange, self._lists(repository), services.rules, repository)
            case ReferrersPath():
                digest = parse_digest(path.digest)
                return await get_referrers(exchange, self._lists(repository), repository, digest)
            case HistoryPath():
                if asked := exchange.request.query.get("tag"):
                    services.rules.check(repository, parse_tag(asked))
                return await get_history(exchange, services.lists, repository)
            case DiscoverPath():
                return discover()
            case UploadsPath() | SessionPath():
                raise AssertionError("not read here")

    def _lists(self, repository: Repository) -> ListService | PulledLists:
        """Return what lists a repository's tags and referrers."""
        return self._services.lists if repository.source is None else self._services.pulled_lists

    async def _push(self, exchange: Exchange, path: Named) -> web.StreamResponse:
        """Answer what adds something to a repository, and the sessions that do."""
        request, services = exchange.request, self._services
        parse_name(path.name)
        await self._admit(exchange, Action.PUSH, f"repository:{path.name}:pull,push")
        repository = self._try_route(exchange, path)
        services.pushes.check_writable(repository, path.name)
        assert repository is not None, "checked just now"
        match path:
            case ManifestPath():
                reference = Reference(repository, _target(path.reference))
                exchange.reference = path.reference
                return await put_manifest(exchange, services.pushes, reference, services.largest_manifest)
            case UploadsPath():
                source = self._source(exchange)
                return await post_upload(exchange, services.uploads, services.pushes, repository, source)
            case SessionPath():
                match request.method:
                    case "PATCH":
                        return await patch_upload(exchange, services.uploads, repository, path.session)
                    case "PUT":
                        return await put_upload(exchange, services.uploads, repository, path.session)
                    case "DELETE":
                        return await delete_upload(exchange, services.uploads, repository, path.session)
                    case _:
                        return await get_upload(exchange, services.uploads, repository, path.session)
            case _:
                raise AssertionError("nothing is pushed there")

    async def _delete(self, exchange: Exchange, path: Named) -> web.StreamResponse:
        """Delete what was pushed, purge what was pulled through (end-9, end-10)."""
        services = self._services
        parse_name(path.name)
        repository = self._try_route(exchange, path)
        action = Action.PURGE if repository is not None and repository.source is not None else Action.DELETE
        await self._admit(exchange, action, f"repository:{path.name}:delete")
        if repository is None:
            repository = self._route(exchange, path)  # says why there is none
        services.pushes.check_deletable(repository)
        match path:
            case ManifestPath():
                exchange.reference = path.reference
                target = parse_target(path.reference)
                await services.pushes.delete_manifest(repository, target, condition_of(exchange.request))
            case BlobPath():
                exchange.digest = path.digest
                await services.pushes.delete_blob(repository, parse_digest(path.digest))
            case _:
                raise AssertionError("nothing is deleted there")
        return web.Response(status=202)

    async def _admit(self, exchange: Exchange, action: Action, scope: str | None) -> None:
        """Let a request through, or say why not; and note whose it is."""
        exchange.user = (await admit(exchange.request, exchange.caller, self._services.gate, action, scope)).name

    def _try_route(self, exchange: Exchange, path: Named) -> Repository | None:
        """Return the repository a path means; None when it means none that we know."""
        try:
            return self._route(exchange, path)
        except NameUnknown:
            return None

    def _route(self, exchange: Exchange, path: Named) -> Repository:
        host = exchange.caller.host
        repository = self._services.router.route(ns=exchange.ns, host=host, prefix=path.prefix, name=path.name)
        exchange.meant, exchange.repository = repository, str(repository)
        exchange.upstream = repository.source or LOCAL
        return repository

    def _source(self, exchange: Exchange) -> Repository | None:
        """Return the repository a blob is to be mounted from; None when there is none such that may be pulled from."""
        name = exchange.request.query.get("from")
        if not name:
            return None
        try:
            inside = exchange.caller.inside(name)
            repository = self._services.router.route(ns=None, host=None, prefix=None, name=inside)
            self._services.rules.check(repository)
        except RegistryError:
            return None
        return repository

    def _check_registry(self, exchange: Exchange, prefix: str | None) -> None:
        """Make sure that the registry that is asked for is one we know: of another there is nothing to say."""
        self._services.router.check(ns=exchange.ns, prefix=prefix)

    def _count(self, exchange: Exchange, status: int) -> None:
        self._counts.end(exchange, status)
        if exchange.hit is not None:
            self._note_use(exchange, exchange.hit, status)
        if exchange.endpoint not in UNLOGGED and self._worker.access_log.enabled:
            self._worker.access_log.write(exchange.line(status))

    def _note_use(self, exchange: Exchange, hit: bool, status: int) -> None:
        """Count what a repository is used for. A pull is a GET of a manifest: each client sends one for an image."""
        if exchange.meant is not None and status < 400:
            pulled = exchange.kind != "blob" and exchange.request.method == "GET" and status == 200
            digest = exchange.digest if pulled else None
            self._services.usage.note(exchange.meant, pulled=digest, hit=hit, nbytes=exchange.sent)


def _target(text: str) -> Tag | Digest:
    """Read the reference of a manifest to write. Raises: DigestInvalid, ManifestInvalid (400)."""
    return parse_digest(text) if ":" in text else parse_tag(text)


def _endpoint(path: Path) -> str:
    """Return the name of an endpoint, for the counts."""
    if isinstance(path, OperationPath):
        return path.operation
    return path.what if isinstance(path, RegistryPath) else _ENDPOINTS[type(path)]


def _allowed(path: Path) -> tuple[str, ...]:
    """Return the methods a path answers."""
    if isinstance(path, RegistryPath) and path.what == "token":
        return ("GET", "POST")
    return _METHODS.get(type(path), READS)


_ENDPOINTS: dict[type, str] = {
    Root: "root",
    ManifestPath: "manifests",
    BlobPath: "blobs",
    TagsPath: "tags",
    UploadsPath: "uploads",
    SessionPath: "uploads",
    ReferrersPath: "referrers",
    HistoryPath: "history",
    DiscoverPath: "discover",
}
_METHODS: dict[type, tuple[str, ...]] = {
    ManifestPath: (*READS, "PUT", "DELETE"),
    BlobPath: (*READS, "DELETE"),
    UploadsPath: ("POST",),
    SessionPath: (*READS, "PATCH", "PUT", "DELETE"),
}
