"""The stage of the outcome table: one upstream in trouble, in front of four workers that keep something of it or not.

A cell is something kept ("none", "fresh" or "stale") of a kind of content. Each has an upstream, a host name, a
repository and content of its own, so that no cell sees what another did to a breaker, a quota or a cache; all of them
are names of one fake registry. The cells named "well" are never in trouble: what is taken away to see a row fail must
leave them as they are.

Clients of all workers ask at the same time: no request leaves for an upstream before all of them wait for its answer.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

import mirror.upstream.client
from mirror.config import Config, Upstream
from mirror.metadata.sqlite import SqliteMetadata
from mirror.registry.inflight import Inflight
from mirror.registry.sharing import Shared
from mirror.store.disk import DiskBlobStore
from mirror.store.lease import FileLeases
from mirror.store.residency import Residency
from mirror.upstream.quota import Quota
from mirror.upstream.transport import Transport
from tests.fake_upstream import FakeUpstream, Image, Request
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.images import Clock, cached, ingesting, kept, pull, until, use_client, use_clock, warning

KEPT = ("none", "fresh", "stale")
KINDS = ("tag", "digest", "blob", "tags", "referrers")
WELL = "well"
WORKERS = 4
CLIENTS = 2
"""Clients of each worker."""
TOGETHER_WITHIN = 4.0
"""Seconds after which a request leaves although not all clients wait for it: they never will."""
PRODUCTION = {name: Upstream.model_fields[name].default for name in ("retries", "breaker_window")}
"""Settings that are others in other tests."""
USER, PASSWORD = "u", "the-password-never-shown"
ARTIFACT = "application/vnd.example.signature"


@dataclass(frozen=True)
class Content:
    """What an upstream has of one cell at one time."""

    image: Image
    tags: list[str]
    artifacts: list[str]

    def of(self, kind: str) -> Any:
        """Return what a right answer holds."""
        return {
            "tag": self.image.raw,
            "digest": self.image.raw,
            "blob": self.image.blobs[self.image.layers[0]],
            "tags": self.tags,
            "referrers": sorted(self.artifacts),
        }[kind]


@dataclass
class Cell:
    """kept: "none", "fresh", "stale" or "well". old: what was pulled while all was well; new: what there is now."""

    kept: str
    kind: str
    old: Content
    new: Content

    @property
    def name(self) -> str:
        return f"{self.kept}-{self.kind}"

    @property
    def repo(self) -> str:
        return f"{self.name}/app"

    @property
    def asked(self) -> Content:
        """Return the content whose digests the clients ask for: what is kept, where something is."""
        return self.new if self.kept in ("none", WELL) else self.old

    @property
    def path(self) -> str:
        """Return what clients ask for, below the repository."""
        image = self.asked.image
        return {
            "tag": "manifests/v1",
            "digest": f"manifests/{image.digest}",
            "blob": f"blobs/{image.layers[0]}",
            "tags": "tags/list",
            "referrers": f"referrers/{image.digest}",
        }[self.kind]

    def url(self, path: str) -> str:
        return f"/v2/{self.name}/{self.repo}/{path}"

    def word(self, path: str) -> str:
        """Return what a path below the repository is, in words of the table."""
        kind, _, rest = path.partition("/")
        if kind == "manifests":
            return "tag" if rest == "v1" else "digest" if ":" in rest else "fallback"
        return {"blobs": "blob", "tags": "tags", "referrers": "referrers"}.get(kind, path)

    def question(self, method: str, path: str) -> str:
        """Return what a request to an upstream is, in words of the table."""
        below = path.partition(f"/v2/{self.repo}/")[2]
        return f"{method} {self.word(below)}" if below else path

    def stores(self) -> dict[str, str]:
        """Return names in the cache → words of the table."""
        found: dict[str, str] = {}
        for age, content in (("old ", self.old), ("", self.new)):
            image = content.image
            found |= {digest.partition(":")[2]: f"{age}blob" for digest in image.blobs}
            found[image.digest.partition(":")[2]] = f"{age}manifest"
        return found


@dataclass(frozen=True)
class Seen:
    """What all clients of a cell saw, and what became of it.

    status: 0 when an answer broke off, or not all clients saw the same. content: "new" or "old" when it is what the
    upstream has now or had, "none" for an empty list, "" for an error, "wrong" for anything else. asked: requests that
    were sent, in words, those to a mirror of the upstream marked; reached: those that were logged there. retry_after:
    the least of what they were told. messages: errors, and warnings about what is stale. seconds: of the slowest one.
    """

    status: int
    code: str
    content: str
    retry_after: int | None
    warned: bool
    messages: tuple[str, ...]
    cache: str
    seconds: float
    stored: tuple[str, ...]
    asked: tuple[str, ...]
    reached: tuple[str, ...]


class Names(AbstractResolver):
    """A resolver by which every host is this one, but those that are lost."""

    def __init__(self, lost: Callable[[str], bool]) -> None:
        self._lost = lost

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        if self._lost(host):
            raise OSError(-2, "Name or service not known")
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=2, proto=0, flags=0)]

    async def close(self) -> None:
        pass


@dataclass
class Stage:
    """An upstream, a mirror of it, and what trouble there is.

    settings: of every cell's upstream; trouble: those of the upstreams in trouble, which win, "port" being the one they
    are asked at. near: a mirror of the upstream, asked before it when ``mirrored``; near_trouble: its "port" for
    upstreams in trouble. closed: a port nobody listens on. lost: says which host names have no
    address. limits: of the configuration. opening: whether to let every cell find out that its host is down, and to
    bring it back.
    """

    hub: FakeUpstream
    near: FakeUpstream
    path: Path
    patch: pytest.MonkeyPatch
    closed: int
    mirrored: bool = False
    ca_file: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    trouble: dict[str, Any] = field(default_factory=dict)
    near_trouble: dict[str, Any] = field(default_factory=dict)
    lost: Callable[[str], bool] = lambda host: False
    limits: dict[str, Any] = field(default_factory=dict)
    opening: bool = False
    cells: list[Cell] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.path / "root"

    def troubled(self) -> Iterable[Cell]:
        return [cell for cell in self.cells if cell.kept != WELL]

    def cell_of(self, request: Request) -> str:
        return request.headers.get("Host", "").partition(".")[0]

    def fault(self, fake: FakeUpstream, *, times: int | None = None, **what: Any) -> None:
        """Let every request for something of every cell in trouble fail, that many times each."""
        for cell in self.troubled():
            fake.fault(f"/v2/{cell.repo}/", times=times, **what)

    def spoil(self, fake: FakeUpstream, kinds: Sequence[str], change: Callable[[bytes], Mapping[str, Any]]) -> None:
        """Change what GETs of content give. change: from the right body to what is different about it."""
        for cell in self.troubled():
            if cell.kind in kinds:
                image = cell.new.image
                path, body = {
                    "blob": (f"blobs/{image.layers[0]}", cell.new.of("blob")),
                    "tags": ("tags/list", json.dumps({"name": cell.repo, "tags": cell.new.tags}).encode()),
                    "referrers": (f"referrers/{cell.asked.image.digest}", self.index(cell)),
                }.get(cell.kind, (f"manifests/{image.digest}", image.raw))
                fake.fault(f"GET /v2/{cell.repo}/{path}", **{"replace": body, **change(body)})

    def index(self, cell: Cell) -> bytes:
        """Return a list of the referrers there are now."""
        media_type = "application/vnd.oci.image.index.v1+json"
        manifests = [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 2}
            for digest in cell.new.artifacts
        ]
        return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()

    def config(self, *, trouble: bool) -> Config:
        """Return a configuration with an upstream for every cell."""
        upstreams = {}
        for cell in self.cells:
            here = trouble and cell.kept != WELL
            port = self.hub.port
            given = self.settings | (self.trouble if here else {})
            if "port" in given:
                port = given.pop("port")
            scheme = "https" if self.ca_file else "http"
            if self.ca_file:
                given.setdefault("ca_file", self.ca_file)
            if self.mirrored:
                at = self.near_trouble.get("port", self.near.port) if here else self.near.port
                given["mirrors"] = [{"url": f"http://{cell.name}.near.test:{at}", "resolve": True}]
            given = PRODUCTION | {"tags": {"revalidate_wait": "5s"}} | given
            upstreams[cell.name] = {"url": f"{scheme}://{cell.name}.hub.test:{port}"} | given
        return make_config(self.root, upstreams, limits=self.limits)

    # ---- before the trouble ----

    def furnish(self) -> None:
        """Let the upstream have something for every cell."""
        self.near.hold_what(self.hub)
        for kept_ in (WELL, *KEPT):
            for kind in KINDS:
                content = self._content(f"{kept_}-{kind}/app", "v1")
                self.cells.append(Cell(kept_, kind, content, content))

    def move_on(self) -> None:
        """Let the upstream have something new in every cell."""
        for cell in self.cells:
            cell.new = self._content(cell.repo, "v2", cell.old)

    def _content(self, repo: str, added: str, before: Content | None = None) -> Content:
        image = self.hub.add_image(repo, "v1", [1500], annotations={"note": "a" * 50})
        self.hub.set_tag(repo, added, image.digest)
        # of what clients ask for: what is kept, where something is
        kept_ = repo.startswith(("fresh", "stale"))
        subject = before.image if before and kept_ else image
        artifact = self.hub.add_artifact(repo, subject, ARTIFACT, added.encode())
        artifacts = [*(before.artifacts if before and kept_ else []), artifact.digest]
        return Content(image, sorted({"v1", added}), artifacts)

    async def fill(self, clock: Clock) -> None:
        """Pull what is to be kept, while all is well: what is to be stale by now, and what is to be fresh just now."""
        async with mirrors(self.config(trouble=False)) as (worker,):
            for age in ("stale", "fresh"):
                await asyncio.gather(*(self._keep(worker, cell) for cell in self.cells if cell.kept == age))
                clock.advance(61 if age == "stale" else 1)

    async def _keep(self, worker: Mirror, cell: Cell) -> None:
        if cell.kind == "tag":
            image = cell.old.image
            await pull(worker, image, f"{cell.name}/{cell.repo}")
            await kept(self.root, image.digest, *image.blobs)
            return
        answer = await worker.get(cell.url(cell.path))
        assert answer.status == 200, answer
        if cell.kind == "blob":
            await kept(self.root, cell.old.image.layers[0])


@asynccontextmanager
async def stage(
    path: Path, patch: pytest.MonkeyPatch, closed: int, *, tls: bool = False, **registry: Any
) -> AsyncIterator[Stage]:
    """Set up an upstream and a mirror of it. registry: how the upstream is; see ``FakeUpstream``."""
    context, ca_file = None, None
    if tls:
        authority, context, ca_file = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), path / "ca.pem"
        authority.issue_cert("*.hub.test").configure_cert(context)
        authority.cert_pem.write_to_path(str(ca_file))
    async with FakeUpstream(ssl=context, **registry) as hub, FakeUpstream() as near:
        if hub.auth:
            hub.realm = f"http://{{host}}:{hub.port}/token"
        yield Stage(hub, near, path, patch, closed, ca_file=ca_file)


# ---- watching ----


class Watch:
    """Holds requests to upstreams until all clients wait for them, and notes what is sent and what is stored."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = {cell.name: cell for cell in cells}
        self.sent: dict[str, list[str]] = {name: [] for name in self.cells}
        self.stored: dict[str, set[str]] = {name: set() for name in self.cells}
        self.running = 0
        self._joined: Counter[str] = Counter()
        self._holders: dict[str, set[int]] = {}
        self._let_go: dict[str, asyncio.Task[None]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watch applications started from now on."""
        send, start, run, join = Transport._send, Shared.start, Shared._run, Inflight.join
        acquire, follow = FileLeases.try_acquire, DiskBlobStore.follow
        remember, put_tag, forget_tag = Residency.remember, SqliteMetadata.put_tag, SqliteMetadata.forget_tag

        async def watched_send(transport: Transport, method: str, url: URL, headers: Any, form: Any) -> Any:
            await self._leave(method, url)
            return await send(transport, method, url, headers, form)

        def watched_start(shared: Shared, key: Any, make: Any) -> Any:
            self._joined[str(key)] += 1
            return start(shared, key, make)

        async def watched_run(shared: Shared, key: Any, make: Any) -> Any:
            self.running += 1
            try:
                return await run(shared, key, make)
            finally:
                self.running -= 1

        async def watched_join(inflight: Inflight, origin: Any) -> Any:
            self._joined[str(origin.digest)] += 1
            return await join(inflight, origin)

        def watched_acquire(leases: FileLeases, key: str) -> Any:
            found = acquire(leases, key)
            if found is not None or not key.startswith("sha"):  # who follows a download reads its state first
                self._holders.setdefault(key, set()).add(id(leases))
            return found

        def watched_follow(store: DiskBlobStore, digest: Any) -> Any:
            found = follow(store, digest)
            if found is not None:
                self._holders.setdefault(str(digest), set()).add(id(store))
            return found

        async def watched_remember(memo: Residency, key: str, answer: str, seconds: float) -> None:
            await remember(memo, key, answer, seconds)
            if key.startswith("list of"):
                self._note(key, "no list" if json.loads(answer)["unknown"] else "list")
            elif key.startswith("404"):
                self._note(key, "no tag")

        async def watched_put(metadata: SqliteMetadata, record: Any) -> None:
            await put_tag(metadata, record)
            cell = self.cells.get(record.repository.source or "")
            if cell is not None and str(record.digest) == cell.old.image.digest:
                self.stored[cell.name].discard("tag")  # as it was
            elif cell is not None:
                self.stored[cell.name].add("tag")

        async def watched_forget(metadata: SqliteMetadata, repository: Any, tag: Any) -> None:
            await forget_tag(metadata, repository, tag)
            words = self.stored.get(repository.source or "", set())
            words.remove("tag") if "tag" in words else words.add("-tag")

        patch.setattr(Transport, "_send", watched_send)
        patch.setattr(Shared, "start", watched_start)
        patch.setattr(Shared, "_run", watched_run)
        patch.setattr(Inflight, "join", watched_join)
        patch.setattr(FileLeases, "try_acquire", watched_acquire)
        patch.setattr(DiskBlobStore, "follow", watched_follow)
        patch.setattr(Residency, "remember", watched_remember)
        patch.setattr(SqliteMetadata, "put_tag", watched_put)
        patch.setattr(SqliteMetadata, "forget_tag", watched_forget)

    def _note(self, key: str, word: str) -> None:
        for cell in self.cells.values():
            if cell.repo in key:
                self.stored[cell.name].add(word)

    async def _leave(self, method: str, url: URL) -> None:
        """Note a request of a cell; let it go when all of its clients wait for what it asks for."""
        name, _, place = (url.host or "").partition(".")
        cell = self.cells.get(name)
        if cell is None:
            return
        path = url.path.partition(f"/v2/{cell.repo}/")[2]
        self.sent[name].append(("mirror: " if place == "near.test" else "") + cell.question(method, url.path))
        if path in (cell.path, f"manifests/{cell.new.image.digest}"):
            waiting = self._let_go.get(f"{name} {path}")
            if waiting is None:
                waiting = asyncio.create_task(self._all_wait(cell, path))
                self._let_go[f"{name} {path}"] = waiting
            await asyncio.shield(waiting)

    async def _all_wait(self, cell: Cell, path: str) -> None:
        what = path.rpartition("/")[2].rpartition(":")[2]
        what = {"tags": "list of tags", "referrers": "list of referrers"}.get(cell.kind, what)

        def concerns(key: str) -> bool:
            return what in key and (cell.repo in key or key.startswith("sha"))

        def together() -> bool:
            joined = sum(count for key, count in self._joined.items() if concerns(key))
            holders: set[int] = set().union(*(ids for key, ids in self._holders.items() if concerns(key)))
            return joined >= WORKERS * CLIENTS and len(holders) >= WORKERS

        try:
            async with asyncio.timeout(TOGETHER_WITHIN):
                while not together():
                    await asyncio.sleep(0.002)
        except TimeoutError:
            pass

    async def close(self) -> None:
        await asyncio.gather(*self._let_go.values())


# ---- asking ----


@dataclass(frozen=True)
class _Heard:
    answer: Answer | None
    seconds: float


async def _ask(worker: Mirror, method: str, path: str) -> _Heard:
    begun = time.monotonic()
    try:
        answer = await worker.ask(method, path)
    except aiohttp.ClientError:
        answer = None
    return _Heard(answer, time.monotonic() - begun)


def _content(cell: Cell, answer: Answer) -> str:
    """Say which content an answer holds."""
    found: Any = answer.body
    if cell.kind in ("tags", "referrers"):
        body = json.loads(answer.body)
        found = body["tags"] if cell.kind == "tags" else [item["digest"] for item in body["manifests"]]
        if not found:
            return "none"
    return "new" if found == cell.new.of(cell.kind) else "old" if found == cell.old.of(cell.kind) else "wrong"


def _facts(cell: Cell, heard: _Heard) -> tuple[int, str, str, bool, bool]:
    """Return what has to be the same for all clients: status, code, content, and whether to wait and warned."""
    answer = heard.answer
    if answer is None:
        return 0, "broken off", "", False, False
    assert PASSWORD not in str(answer.headers) + answer.body.decode(errors="replace")
    code, content = ("", _content(cell, answer)) if answer.status == 200 else (answer.code, "")
    return answer.status, code, content, "Retry-After" in answer.headers, warning(answer) is not None


def _message(answer: Answer) -> str:
    message = warning(answer) if answer.status == 200 else json.loads(answer.body)["errors"][0]["message"]
    return message or ""


async def _see(workers: Sequence[Mirror], cell: Cell) -> list[_Heard]:
    """Ask for a cell's content at all workers at the same time."""
    path = cell.url(cell.path)
    heads = cell.kept == "fresh" and cell.kind in ("tag", "digest", "blob")
    methods = ["HEAD" if heads and at else "GET" for at in range(CLIENTS)]
    heard = await asyncio.gather(*(_ask(worker, method, path) for worker in workers for method in methods))
    if heads:
        for one in heard[1::CLIENTS]:
            assert one.answer is not None
            assert (one.answer.status, one.answer.body) == (200, b"")
        return heard[::CLIENTS]
    return heard


async def play(stage: Stage, begin: Callable[[], Awaitable[None]]) -> dict[str, Seen]:
    """Fill the mirror, begin the trouble, ask, and say what was seen in each cell. begin: makes the trouble."""
    clock = use_clock(stage.patch)
    stage.patch.setattr(mirror.upstream.client, "Quota", Quota)  # what an upstream asks us to wait for is waited for
    use_client(stage.patch, resolver=Names(lambda host: stage.lost(host)))
    stage.furnish()
    await stage.fill(clock)
    stage.move_on()
    await begin()
    seen: dict[str, Seen] = {}
    async with mirrors(stage.config(trouble=True), WORKERS) as workers:
        if stage.opening:
            await open_breakers(stage, workers[0])
        before = set(cached(stage.root))
        watch = Watch(stage.cells)
        with pytest.MonkeyPatch.context() as patch:
            watch.install(patch)
            stage.hub.clear_log()
            stage.near.clear_log()
            heard: dict[str, list[_Heard]] = {}
            for kept_ in (WELL, *KEPT):
                cells = [cell for cell in stage.cells if cell.kept == kept_]
                answers = await asyncio.gather(*(_see(workers, cell) for cell in cells))
                heard |= dict(zip([cell.name for cell in cells], answers, strict=True))
            await until(lambda: watch.running == 0, "all that was begun is done", 20)
            await until(lambda: ingesting(stage.root) == [], "nothing is left of any download")
            await watch.close()
        after = set(cached(stage.root))
        for cell in stage.cells:
            seen[cell.name] = _seen(stage, watch, cell, heard[cell.name], before, after)
    return seen


def _seen(stage: Stage, watch: Watch, cell: Cell, heard: Sequence[_Heard], before: set[str], after: set[str]) -> Seen:
    facts = {_facts(cell, one) for one in heard}
    if len(facts) > 1:
        facts = {(0, f"differing {sorted(facts)}", "", False, False)}
    ((status, code, content, _, warned),) = facts
    answers = [one.answer for one in heard if one.answer is not None]
    retry_after = min((int(answer.headers.get("Retry-After", 0)) for answer in answers), default=0)
    caches = sorted({answer.headers.get("Cache-Status", "") for answer in answers}, key=len)
    words = cell.stores()
    stored = [f"+{words[name]}" for name in sorted(after - before) if name in words]
    stored += [f"-{words[name]}" for name in sorted(before - after) if name in words]
    reached = [
        prefix + cell.question(request.method, request.path)
        for fake, prefix in ((stage.hub, ""), (stage.near, "mirror: "))
        for request in list(fake.log)
        if stage.cell_of(request) == cell.name
    ]
    return Seen(
        status=status,
        code=code,
        content=content,
        retry_after=retry_after or None,
        warned=warned,
        messages=tuple(sorted({_message(answer) for answer in answers})),
        cache=caches[0] if caches else "",
        seconds=max(one.seconds for one in heard),
        stored=tuple(sorted({*stored, *watch.stored[cell.name]})),
        asked=tuple(sorted(watch.sent[cell.name])),
        reached=tuple(sorted(reached)),
    )


async def open_breakers(stage: Stage, worker: Mirror) -> None:
    """Let the host of every cell in trouble be found down, and then bring it back."""
    await stage.hub.stop()
    asked = (worker.get(f"/v2/{cell.name}/other/app/manifests/v1") for cell in stage.troubled())
    assert {answer.status for answer in await asyncio.gather(*asked)} == {502}
    await stage.hub.start()
