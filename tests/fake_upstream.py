"""A registry that does what a test tells it to: content, tokens, redirects, faults, and a log of requests.

Three listeners on loopback, each on its own free port: the registry, its token endpoint and its "CDN".
Content and faults may be changed at any time and from any thread; the log may be read from any thread.

    async with FakeUpstream() as hub:                     # in the test's own loop
        blob = hub.add_blob("library/alpine", b"...")
        hub.fault(blob, cut_after=1000, times=1)
        ...
        assert hub.count("GET", f"/blobs/{blob}") == 2

    with start_in_thread(auth="token", redirect=True) as hub:     # for tests with real mirror processes
        image = hub.add_image("library/alpine", "latest", layer_sizes=[1 << 20])
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import itertools
import json
import random
import re
import secrets
import socket
import ssl as ssl_module
import struct
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast
from urllib.parse import urlencode

from aiohttp import web
from multidict import CIMultiDict

T = TypeVar("T")

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

PIECE = 256 * 1024


def digest_of(data: Any, algorithm: str = "sha256") -> str:
    """Return ``sha256:…`` of anything that can be sliced into bytes."""
    hasher = hashlib.new(algorithm)
    for at in range(0, len(data), 1 << 20):
        hasher.update(data[at : at + (1 << 20)])
    return f"{algorithm}:{hasher.hexdigest()}"


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Return the same incompressible bytes for the same seed."""
    return random.Random(seed).randbytes(size)


class Gate:
    """A place in a body (or before the headers) where the server waits until the test opens it.

    Works across threads and loops, so it polls.
    """

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    def is_reached(self) -> bool:
        return self._reached.is_set()

    async def reached(self, timeout: float = 30.0) -> None:
        """Wait until a response stands at the gate."""
        async with asyncio.timeout(timeout):
            while not self._reached.is_set():
                await asyncio.sleep(0.002)

    def wait_reached(self, timeout: float = 30.0) -> None:
        """Do what ``reached`` does, for synchronous tests."""
        assert self._reached.wait(timeout), "no response came to the gate"

    async def _pass(self) -> None:
        self._reached.set()
        while not self._opened.is_set():
            await asyncio.sleep(0.002)


@dataclass
class Request:
    """One request as received, and what became of it.

    server: "registry", "token" or "cdn". sent: body bytes handed to the socket. done: the handler has ended.
    peer: the client's address and port.
    """

    server: str
    method: str
    path: str
    query: dict[str, str]
    headers: CIMultiDict[str]
    raw_path: str = ""
    status: int = 0
    sent: int = 0
    done: bool = False
    at: float = field(default_factory=time.monotonic)
    peer: Any = None

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")

    def __str__(self) -> str:
        return f"{self.server} {self.method} {self.raw_path or self.path} -> {self.status} ({self.sent} bytes)"


Match = str | Callable[[Request], bool]
UNSET: Any = object()


@dataclass(kw_only=True)
class Fault:
    """What to do differently. Fields left alone change nothing; of several that match, the later one wins.

    match: a substring of "<server> <METHOD> <path>" ("token", "GET /v2/", a digest), or a callable.
    times: how many answers it applies to, None for all. skip: how many matching ones pass unharmed first.

    Before the headers: delay (seconds), hang_headers (never answers), gate_headers, drop ("fin" or "rst":
    no answer at all), status with headers and body.
    The answer: content_type, docker_digest (None: leave the header out), headers (added), replace (other
    bytes, same headers otherwise; Content-Length is theirs), encode_gzip (gzip it and say so).
    Framing: length (a wrong Content-Length), framing ("length", "chunked" or "close"), ignore_range,
    content_range (a wrong one), status_206 (say 206 with this status instead).
    The body: rate (bytes per second), cut_after (bytes) by cut ("fin" or "rst"), hang_after (bytes),
    gate with gate_at (bytes), endless (goes on with zeros for ever).
    """

    match: Match = ""
    times: int | None = None
    skip: int = 0
    hits: int = 0

    delay: float = UNSET
    hang_headers: bool = UNSET
    gate_headers: Gate = UNSET
    drop: str = UNSET
    status: int = UNSET
    headers: Mapping[str, str] = UNSET
    body: bytes = UNSET

    content_type: str | None = UNSET
    docker_digest: str | None = UNSET
    replace: Any = UNSET
    encode_gzip: bool = UNSET
    length: int = UNSET
    framing: str = UNSET
    ignore_range: bool = UNSET
    content_range: str | None = UNSET
    status_206: int = UNSET

    rate: float = UNSET
    cut_after: int = UNSET
    cut: str = UNSET
    hang_after: int = UNSET
    gate: Gate = UNSET
    gate_at: int = UNSET
    endless: bool = UNSET

    def matches(self, request: Request) -> bool:
        if callable(self.match):
            return self.match(request)
        return self.match in f"{request.server} {request.method} {request.path}"


_EARLY = {"delay", "hang_headers", "gate_headers", "drop", "status", "headers", "body"}
_RULE = {"match", "times", "skip", "hits"}


@dataclass
class Image:
    """What ``add_image`` made. digest: of the manifest; layers and config: digest → bytes."""

    repo: str
    tag: str | None
    digest: str
    raw: bytes
    config: str
    layers: list[str]
    blobs: dict[str, bytes] = field(repr=False)  # asyncio puts what a fixture returns into words, several times a test
    media_type: str = MANIFEST

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.raw)}


@dataclass
class _Repository:
    blobs: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class _Token:
    scopes: frozenset[str]
    user: str | None
    expires: float


class _Response(web.StreamResponse):
    """A response whose framing is ours: nothing is checked, so that wrong lengths can be sent."""

    _length_check = False


class FakeUpstream:
    """The registry. Every argument is also an attribute that may be changed while it runs.

    auth: None, "token" or "basic". users: name → password. anonymous: anonymous pulls of repositories not in
    ``private`` are allowed. own_token_port: the realm is the token listener instead of the registry's own
    ``/token``. realm: what the challenge says instead of either, with "{host}" for the name the registry was asked
    by. hide_missing: 401 for repositories that do
    not exist, as Docker Hub does (with auth="token"). challenge: another WWW-Authenticate, "" for none.
    challenge_scope: False leaves ``scope`` out. token_field: "token", "access_token" or "both".
    token_lifetime: seconds; say_expires: whether the answer says so.
    redirect: blobs answer 307 to the CDN, with a URL that works once. refuse: answers 403 when it says so.
    pulls: user (None for who has no login) → manifests it may GET; HEADs say what is left as well and cost nothing, and
    whoever is not in it has no limit. ``pulled`` counts them.
    rate: bytes per second of every body. page_size: most tags, or referrers, in one page. referrers_api: False
    answers 404 to all of it. sndbuf: socket send buffer in
    bytes; small ones make ``sent`` close to what was received.
    """

    def __init__(
        self,
        *,
        auth: str | None = None,
        users: Mapping[str, str] | None = None,
        anonymous: bool = True,
        private: Sequence[str] = (),
        own_token_port: bool = False,
        realm: str | None = None,
        service: str = "fake.registry",
        hide_missing: bool = False,
        challenge: str | None = None,
        challenge_scope: bool = True,
        token_field: str = "token",
        token_lifetime: float = 300.0,
        say_expires: bool = True,
        redirect: bool = False,
        refuse: Callable[[Request], bool] | None = None,
        pulls: Mapping[str | None, int] | None = None,
        rate: float | None = None,
        page_size: int = 1000,
        referrers_api: bool = True,
        ssl: ssl_module.SSLContext | None = None,
        host: str = "127.0.0.1",
        sndbuf: int | None = None,
    ) -> None:
        self.auth = auth
        self.users = dict(users or {})
        self.anonymous = anonymous
        self.private = set(private)
        self.own_token_port = own_token_port
        self.realm = realm
        self.service = service
        self.hide_missing = hide_missing
        self.challenge = challenge
        self.challenge_scope = challenge_scope
        self.token_field = token_field
        self.token_lifetime = token_lifetime
        self.say_expires = say_expires
        self.redirect = redirect
        self.refuse = refuse
        self.pulls = dict(pulls or {})
        self.pulled: Counter[str | None] = Counter()
        self.rate = rate
        self.page_size = page_size
        self.referrers_api = referrers_api
        self.host = host
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.tokens: dict[str, _Token] = {}
        self.redirect_host: str | None = None
        self._ssl = ssl
        self._sndbuf = sndbuf
        self._repositories: dict[str, _Repository] = {}
        self._signed: dict[str, str] = {}
        self._ports: dict[str, int] = {"registry": 0, "token": 0, "cdn": 0}
        self._runners: list[web.AppRunner] = []
        self._serial = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- running ----

    async def __aenter__(self) -> FakeUpstream:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; after a ``stop``, on the same ports as before."""
        self._loop = asyncio.get_running_loop()
        for server, handler in (("registry", self._registry), ("token", self._token), ("cdn", self._cdn)):
            app = web.Application(client_max_size=1 << 26)
            app.router.add_route("*", "/{path:.*}", self._entry(server, handler))
            runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
            await runner.setup()
            site = web.TCPSite(
                runner, self.host, self._ports[server], ssl_context=self._ssl, reuse_address=True, backlog=512
            )
            await site.start()
            self._ports[server] = runner.addresses[0][1]
            self._runners.append(runner)

    async def stop(self) -> None:
        """Close every listener and connection. Content and log stay."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    def call(self, work: Awaitable[T]) -> T:
        """Run a coroutine in the server's loop, from another thread."""
        assert self._loop is not None

        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    @property
    def port(self) -> int:
        return self._ports["registry"]

    @property
    def netloc(self) -> str:
        return self._netloc("registry")

    @property
    def url(self) -> str:
        return self._url("registry")

    @property
    def cdn_url(self) -> str:
        return self._url("cdn")

    @property
    def token_url(self) -> str:
        return self._url("token") + "/token"

    def _netloc(self, server: str) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self._ports[server]}"

    def _url(self, server: str) -> str:
        return f"{'https' if self._ssl else 'http'}://{self._netloc(server)}"

    # ---- content ----

    def _repository(self, repo: str) -> _Repository:
        return self._repositories.setdefault(repo, _Repository())

    def add_blob(self, repo: str, data: Any, *, digest: str | None = None, algorithm: str = "sha256") -> str:
        """Hold a blob (bytes, or anything with a length that slices into bytes); return its digest.

        digest: keep it under this one instead, to hold wrong bytes.
        """
        digest = digest or digest_of(data, algorithm)
        self._repository(repo).blobs[digest] = data
        return digest

    def add_random_blob(self, repo: str, size: int, seed: int | None = None) -> str:
        return self.add_blob(repo, random_bytes(size, next(self._serial) if seed is None else seed))

    def blob(self, repo: str, digest: str) -> Any:
        return self._repositories[repo].blobs[digest]

    def add_manifest(
        self,
        repo: str,
        manifest: bytes | Mapping[str, Any],
        tag: str | None = None,
        media_type: str | None = None,
        *,
        digest: str | None = None,
    ) -> str:
        """Hold a manifest, by digest and by tag (moving the tag if it exists); return its digest."""
        if isinstance(manifest, bytes):
            raw, declared = manifest, None
            with suppress(ValueError, AttributeError):
                declared = json.loads(raw).get("mediaType")
        else:
            raw, declared = json.dumps(manifest).encode(), manifest.get("mediaType")
        digest = digest or digest_of(raw)
        self._repository(repo).manifests[digest] = (raw, media_type or declared or MANIFEST)
        if tag is not None:
            self._repository(repo).tags[tag] = digest
        return digest

    def add_image(
        self,
        repo: str,
        tag: str | None,
        layer_sizes: Sequence[int] = (1000, 2000),
        *,
        layers: Sequence[bytes] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Hold an image of random layers (not real archives) and a config; return what was made."""
        data = list(layers) if layers is not None else [random_bytes(n, next(self._serial)) for n in layer_sizes]
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in data]},
                "author": f"fake {next(self._serial)}",
            }
        ).encode()
        config_digest = self.add_blob(repo, config)
        digests = [self.add_blob(repo, layer) for layer in data]
        body: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": config_digest, "size": len(config)},
            "layers": [
                {"mediaType": LAYER, "digest": digest, "size": len(layer)}
                for digest, layer in zip(digests, data, strict=True)
            ],
        }
        if annotations:
            body["annotations"] = dict(annotations)
        raw = json.dumps(body).encode()
        digest = self.add_manifest(repo, raw, tag)
        blobs = {config_digest: config, **dict(zip(digests, data, strict=True))}
        return Image(repo, tag, digest, raw, config_digest, digests, blobs)

    def add_index(self, repo: str, tag: str | None, images: Sequence[Image]) -> Image:
        """Hold an index of images already added; return it as an Image without layers."""
        platforms = ("amd64", "arm64", "s390x", "riscv64", "ppc64le", "386")
        raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": INDEX,
                "manifests": [
                    {**image.descriptor, "platform": {"os": "linux", "architecture": arch}}
                    for image, arch in zip(images, itertools.cycle(platforms), strict=False)
                ],
            }
        ).encode()
        return Image(repo, tag, self.add_manifest(repo, raw, tag), raw, "", [], {}, INDEX)

    def add_artifact(
        self,
        repo: str,
        subject: Image,
        artifact_type: str,
        data: bytes = b"an artifact",
        tag: str | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Image:
        """Hold an artifact that refers to an image (image-spec manifest.md, "Guidelines for Artifact Usage")."""
        empty, layer = self.add_blob(repo, b"{}"), self.add_blob(repo, data)
        body: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": artifact_type,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2},
            "layers": [{"mediaType": artifact_type, "digest": layer, "size": len(data)}],
            "subject": subject.descriptor,
            "annotations": dict(annotations or {}),
        }
        raw = json.dumps(body).encode()
        return Image(repo, tag, self.add_manifest(repo, raw, tag), raw, empty, [layer], {empty: b"{}", layer: data})

    def hold_what(self, other: FakeUpstream) -> None:
        """Hold the content of another, now and later, as a mirror of it does."""
        self._repositories = other._repositories

    def set_tag(self, repo: str, tag: str, digest: str) -> None:
        self._repository(repo).tags[tag] = digest

    def remove_tag(self, repo: str, tag: str) -> None:
        self._repository(repo).tags.pop(tag, None)

    def remove_blob(self, repo: str, digest: str) -> None:
        self._repository(repo).blobs.pop(digest, None)

    def remove_repository(self, repo: str) -> None:
        self._repositories.pop(repo, None)

    # ---- faults ----

    def fault(self, match: Match = "", *, times: int | None = None, skip: int = 0, **what: Any) -> Fault:
        """Add a fault; see ``Fault``. It stays until ``clear_faults`` or its ``times`` are used up."""
        fault = Fault(match=match, times=times, skip=skip, **what)
        self.faults = [*self.faults, fault]
        return fault

    def fail(
        self,
        match: Match = "",
        *,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        times: int | None = None,
        skip: int = 0,
    ) -> Fault:
        """Answer matching requests with a status."""
        return self.fault(match, times=times, skip=skip, status=status, headers=headers or {}, body=body)

    def clear_faults(self) -> None:
        self.faults = []

    def _faults_for(self, request: Request, *, early_only: bool) -> dict[str, Any]:
        """Merge the faults of one answer and use them up.

        early_only: the answer is a redirect or an error, so faults of content are kept for the content.
        """
        merged: dict[str, Any] = {}
        for fault in self.faults:
            if not fault.matches(request):
                continue
            given = {
                f.name: getattr(fault, f.name)
                for f in fields(fault)
                if f.name not in _RULE and getattr(fault, f.name) is not UNSET
            }
            if early_only and not set(given) & _EARLY:
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            if fault.times is not None and fault.hits >= fault.times:
                continue
            fault.hits += 1
            merged.update(given)
        return merged

    # ---- the log ----

    def requests(self, method: str | None = None, part: str = "", *, server: str | None = None) -> list[Request]:
        """Return the requests so far of a method (None: any), with ``part`` in their path."""
        return [
            request
            for request in list(self.log)
            if (method is None or request.method == method)
            and part in request.path
            and (server is None or request.server == server)
        ]

    def count(self, method: str | None = None, part: str = "", *, server: str | None = None) -> int:
        return len(self.requests(method, part, server=server))

    def bytes_sent(self, part: str = "") -> int:
        """Return the body bytes of successful GETs with ``part`` (a digest) in their path, wherever."""
        return sum(r.sent for r in self.requests("GET", part) if r.status in (200, 206))

    def clear_log(self) -> None:
        self.log = []

    def authorizations(self, server: str) -> list[str]:
        """Return every Authorization header that reached a listener."""
        return [r.authorization for r in self.requests(server=server) if r.authorization is not None]

    # ---- answering ----

    def _entry(
        self, server: str, handler: Callable[[web.Request, Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def entry(http: web.Request) -> web.StreamResponse:
            request = Request(
                server=server,
                method=http.method,
                path=http.path,
                query=dict(http.query),
                headers=CIMultiDict(http.headers),
                raw_path=http.raw_path,
                peer=http.transport.get_extra_info("peername") if http.transport else None,
            )
            self.log.append(request)
            if self._sndbuf and http.transport is not None:
                sock = http.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._sndbuf)
            try:
                return await handler(http, request)
            finally:
                request.done = True

        return entry

    async def _registry(self, http: web.Request, request: Request) -> web.StreamResponse:
        if request.path == "/token":
            return await self._token(http, request)
        if self.refuse is not None and self.refuse(request):
            return await self._error(http, request, 403, "DENIED", "not you")
        if request.path in ("/v2", "/v2/"):
            if (refused := self._unauthorized(request, None)) is not None:
                return await self._error(http, request, 401, "UNAUTHORIZED", "who are you", refused)
            return await self._send(http, request, b"{}", {"Content-Type": "application/json"})
        found = re.fullmatch(r"/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)", request.path)
        if not found:
            return await self._error(http, request, 404, "NAME_UNKNOWN", "no such path")
        name, kind, reference = found.groups()
        if (refused := self._unauthorized(request, name)) is not None:
            return await self._error(http, request, 401, "UNAUTHORIZED", "authentication required", refused)
        if request.method not in ("GET", "HEAD"):
            return await self._error(http, request, 405, "UNSUPPORTED", "read only")
        repository = self._repositories.get(name)
        if repository is None:
            return await self._error(http, request, 404, "NAME_UNKNOWN", "no such repository")
        if kind == "tags":
            return await self._tags(http, request, name, repository)
        if kind == "referrers":
            return await self._referrers(http, request, repository, reference)
        if kind == "manifests":
            digest = reference if ":" in reference else repository.tags.get(reference, "")
            if digest not in repository.manifests:
                return await self._error(http, request, 404, "MANIFEST_UNKNOWN", "manifest unknown")
            raw, media_type = repository.manifests[digest]
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
            enough, quota = self._take_pull(request)
            if not enough:
                return await self._send(http, request, b"enough", quota, status=429, early_only=True)
            return await self._send(http, request, raw, headers | quota)
        if reference not in repository.blobs:
            return await self._error(http, request, 404, "BLOB_UNKNOWN", "blob unknown")
        if self.redirect:
            secret = secrets.token_urlsafe(12)
            self._signed[secret] = name
            host = f"{self.redirect_host}:{self._ports['cdn']}" if self.redirect_host else self._netloc("cdn")
            scheme = "https" if self._ssl else "http"
            # characters that a client which re-encodes URLs would change
            location = f"{scheme}://{host}/data/{reference}?sig={secret}%2Fa%2Bb%3D&x=1%2c2"
            return await self._send(http, request, b"", {"Location": location}, status=307, early_only=True)
        return await self._send_blob(http, request, repository.blobs[reference], reference)

    async def _cdn(self, http: web.Request, request: Request) -> web.StreamResponse:
        if request.path.startswith("/elsewhere/"):
            # a plain place to be redirected to, with no signature
            name, digest = request.path.removeprefix("/elsewhere/").rsplit("/", 1)
            return await self._send_blob(http, request, self._repositories[name].blobs[digest], digest)
        digest = request.path.removeprefix("/data/")
        signature = re.fullmatch(r".*\?sig=([\w-]+)%2Fa%2Bb%3D&x=1%2c2", request.raw_path)
        name = self._signed.pop(signature[1], None) if signature else None
        if name is None:
            return await self._error(http, request, 403, "DENIED", "used, expired or changed signature")
        if request.authorization is not None:
            return await self._error(http, request, 400, "DENIED", "only one auth mechanism allowed")
        return await self._send_blob(http, request, self._repositories[name].blobs[digest], digest)

    async def _send_blob(self, http: web.Request, request: Request, data: Any, digest: str) -> web.StreamResponse:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if request.server == "registry":
            headers["Docker-Content-Digest"] = digest
        return await self._send(http, request, data, headers, ranges=True)

    async def _tags(
        self, http: web.Request, request: Request, name: str, repository: _Repository
    ) -> web.StreamResponse:
        tags = sorted(repository.tags)
        last = request.query.get("last")
        if last is not None:
            tags = [tag for tag in tags if tag > last]
        n = min(int(request.query.get("n", self.page_size)), self.page_size)
        headers = {"Content-Type": "application/json"}
        if n and len(tags) > n:
            tags = tags[:n]
            query = urlencode({"last": tags[-1], "n": n})
            headers["Link"] = f'</v2/{name}/tags/list?{query}>; rel="next"'
        elif not n:
            tags = []
        return await self._send(http, request, json.dumps({"name": name, "tags": tags}).encode(), headers)

    async def _referrers(
        self, http: web.Request, request: Request, repository: _Repository, subject: str
    ) -> web.StreamResponse:
        """Answer a page; the next is asked for by a mark of our own, which no client can guess."""
        if not self.referrers_api:
            return await self._error(http, request, 404, "UNSUPPORTED", "404 page not found")
        found = []
        for digest, (raw, media_type) in sorted(repository.manifests.items()):
            body = json.loads(raw) if subject.encode() in raw else {}
            if (body.get("subject") or {}).get("digest") == subject:
                entry = {"mediaType": media_type, "digest": digest, "size": len(raw)}
                entry["artifactType"] = body.get("artifactType") or body["config"]["mediaType"]
                if body.get("annotations"):
                    entry["annotations"] = body["annotations"]
                found.append(entry)
        headers = {"Content-Type": INDEX}
        wanted = request.query.get("artifactType")
        if wanted is not None:
            found = [entry for entry in found if entry["artifactType"] == wanted]
            headers["OCI-Filters-Applied"] = "artifactType"
        first = int(request.query.get("mark", "0"))
        if len(found) > first + self.page_size:
            query = urlencode({"mark": first + self.page_size, "x": "a+b/c"})
            headers["Link"] = f'<http://elsewhere.example/v2/other/referrers/{subject}?{query}>; rel="next"'
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": found[first : first + self.page_size]}
        return await self._send(http, request, json.dumps(index).encode(), headers)

    def _take_pull(self, request: Request) -> tuple[bool, dict[str, str]]:
        """Return whether a request for a manifest may pass, and what it is told of the quota."""
        token = self.tokens.get((request.authorization or "").removeprefix("Bearer "))
        user = token.user if token is not None else self._basic_user(request)
        if user not in self.pulls:
            return True, {}
        enough = request.method != "GET" or self.pulled[user] < self.pulls[user]
        if request.method == "GET" and enough:
            self.pulled[user] += 1
        left = self.pulls[user] - self.pulled[user]
        return enough, {"ratelimit-limit": f"{self.pulls[user]};w=21600", "ratelimit-remaining": f"{left};w=21600"}

    # ---- tokens ----

    def _unauthorized(self, request: Request, name: str | None) -> str | None:
        """Return the challenge when the request may not pass, None when it may."""
        if self.auth is None:
            return None
        scheme, _, value = (request.authorization or "").partition(" ")
        if self.auth == "basic":
            if self._basic_user(request) is not None:
                return None
            if self.anonymous and not request.authorization and name is not None and name not in self.private:
                return None
            return self._challenge('Basic realm="fake"')
        scope = f"repository:{name or 'user/image'}:pull"
        if scheme.lower() == "bearer":
            token = self.tokens.get(value)
            if token is not None and token.expires > time.monotonic():
                known = name is None or not self.hide_missing or name in self._repositories
                if known and (name is None or scope in token.scopes):
                    return None
        realm = self.realm or (self.token_url if self.own_token_port else f"{self.url}/token")
        realm = realm.replace("{host}", request.headers.get("Host", "").partition(":")[0])
        challenge = f'Bearer realm="{realm}",service="{self.service}"'
        if self.challenge_scope and name is not None:
            challenge += f',scope="{scope}"'
        if value:
            challenge += ',error="insufficient_scope"'
        return self._challenge(challenge)

    def _challenge(self, usual: str) -> str:
        return usual if self.challenge is None else self.challenge

    def _basic_user(self, request: Request) -> str | None:
        scheme, _, value = (request.authorization or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        user, _, password = base64.b64decode(value).decode().partition(":")
        return user if self.users.get(user) == password else None

    async def _token(self, http: web.Request, request: Request) -> web.StreamResponse:
        user = self._basic_user(request)
        if (request.authorization and user is None) or (user is None and not self.anonymous):
            return await self._error(http, request, 401, "UNAUTHORIZED", "incorrect username or password")
        return await self._grant(http, request, " ".join(http.query.getall("scope", [])), user)

    async def _grant(self, http: web.Request, request: Request, scopes: str, user: str | None) -> web.StreamResponse:
        """Answer with a token for those of the scopes, with spaces between them, that the user may have."""
        granted = set()
        for scope in scopes.split():
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            if kind == "repository" and "pull" in actions.split(",") and (user or name not in self.private):
                granted.add(f"repository:{name}:pull")
        token = secrets.token_urlsafe(16)
        self.tokens[token] = _Token(frozenset(granted), user, time.monotonic() + self.token_lifetime)
        body: dict[str, Any] = {}
        if self.token_field in ("token", "both"):
            body["token"] = token
        if self.token_field in ("access_token", "both"):
            body["access_token"] = token
        if self.say_expires:
            body["expires_in"] = self.token_lifetime
        return await self._send(http, request, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def expire_tokens(self) -> None:
        """Make every token given so far worthless."""
        self.tokens.clear()

    # ---- sending ----

    async def _error(
        self,
        http: web.Request,
        request: Request,
        status: int,
        code: str,
        message: str,
        challenge: str | None = None,
    ) -> web.StreamResponse:
        headers = {"Content-Type": "application/json"}
        if challenge:
            headers["WWW-Authenticate"] = challenge
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        return await self._send(http, request, body, headers, status=status, early_only=True)

    async def _send(
        self,
        http: web.Request,
        request: Request,
        data: Any,
        headers: Mapping[str, str],
        *,
        status: int = 200,
        ranges: bool = False,
        early_only: bool = False,
    ) -> web.StreamResponse:
        fault = self._faults_for(request, early_only=early_only)
        await self._before_headers(http, fault)
        sent = CIMultiDict(headers)
        if "status" in fault:
            status, ranges = fault["status"], False
            data, sent = fault.get("body", b""), CIMultiDict()
        elif not early_only:
            if "content_type" in fault:
                sent.popall("Content-Type", None)
                if fault["content_type"] is not None:
                    sent["Content-Type"] = fault["content_type"]
            if "docker_digest" in fault:
                sent.popall("Docker-Content-Digest", None)
                if fault["docker_digest"] is not None:
                    sent["Docker-Content-Digest"] = fault["docker_digest"]
            data = fault.get("replace", data)
            if fault.get("encode_gzip"):
                data, sent["Content-Encoding"] = gzip.compress(bytes(data)), "gzip"
        first, stop, size = 0, len(data), len(data)
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if ranges and asked and not fault.get("ignore_range"):
            first = int(asked[1])
            stop = min(int(asked[2]) + 1, size) if asked[2] else size
            if first >= size:
                status, first, stop = 416, 0, 0
                sent["Content-Range"] = f"bytes */{size}"
            else:
                status = fault.get("status_206", 206)
                content_range = fault.get("content_range", f"bytes {first}-{stop - 1}/{size}")
                if content_range is not None:
                    sent["Content-Range"] = content_range
        sent.update(fault.get("headers") or {})
        return await self._write(http, request, _Body(data, first, stop), status, sent, fault)

    async def _before_headers(self, http: web.Request, fault: Mapping[str, Any]) -> None:
        if "delay" in fault:
            await asyncio.sleep(fault["delay"])
        if "gate_headers" in fault:
            await fault["gate_headers"]._pass()
        if fault.get("hang_headers"):
            await asyncio.Event().wait()
        if "drop" in fault:
            _hang_up(http, fault["drop"])
            await asyncio.Event().wait()  # the handler is cancelled when the connection is gone

    async def _write(
        self,
        http: web.Request,
        request: Request,
        body: _Body,
        status: int,
        headers: CIMultiDict[str],
        fault: Mapping[str, Any],
    ) -> web.StreamResponse:
        response = _Response(status=status, headers=headers)
        framing = fault.get("framing", "close" if fault.get("endless") else "length")
        if framing == "chunked":
            response.enable_chunked_encoding()
        elif framing == "length" or "length" in fault:
            response.headers["Content-Length"] = str(fault.get("length", len(body)))
        if framing == "close" or fault.get("length", len(body)) != len(body):
            response.force_close()
        request.status = status
        await response.prepare(http)
        if request.method == "HEAD":
            return response
        rate = fault.get("rate", self.rate)
        stops = sorted({fault[k] for k in ("cut_after", "hang_after", "gate_at") if k in fault})
        piece = max(1, min(PIECE, int(rate / 50))) if rate else PIECE
        position, started, length = 0, time.monotonic(), len(body)
        while True:
            if "gate" in fault and position == fault.get("gate_at", 0):
                await fault["gate"]._pass()
            if position == fault.get("hang_after"):
                await asyncio.Event().wait()
            if position == fault.get("cut_after"):
                _hang_up(http, fault.get("cut", "fin"))
                return response
            if position >= length and not fault.get("endless"):
                return response
            upto = position + piece if fault.get("endless") else min(position + piece, length)
            upto = min([upto, *(stop for stop in stops if stop > position)])
            request.sent += upto - position  # before the write: who has the bytes sees them counted
            await response.write(body.slice(position, upto))
            position = upto
            if rate:
                await asyncio.sleep(max(0.0, started + position / rate - time.monotonic()))


@dataclass
class _Body:
    data: Any
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def slice(self, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop, zeros past the end."""
        found = bytes(self.data[self.first + start : min(self.first + stop, self.stop)])
        return found + bytes(stop - start - len(found))


def _hang_up(http: web.Request, how: str) -> None:
    transport = cast("asyncio.Transport | None", http.transport)
    if transport is None:
        return
    if how == "rst":
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()


@contextmanager
def start_in_thread(**arguments: Any) -> Iterator[FakeUpstream]:
    """Run a ``FakeUpstream`` in a thread with a loop of its own, for synchronous tests and real processes.

    ``fake.call(fake.stop())`` and ``fake.call(fake.start())`` take it off and on the network.
    """
    fake = FakeUpstream(**arguments)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake upstream", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fake.start(), loop).result(30)
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(30)
        asyncio.run_coroutine_threadsafe(loop.shutdown_asyncgens(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
