"""A small registry in memory that does all the specification asks for, and can be broken in one place at a time.

    async with ConformantRegistry() as registry: ...                    # judged at registry.url, it passes everything
    async with ConformantRegistry(flag("keeps-wrong-digests")): ...     # behaves wrongly
    async with ConformantRegistry(status("blob-get 200", 206)): ...     # answers wrongly

What a request is about is its *operation*. An answer has several names: "manifest-get 404" by operation and status,
"manifest-get:tag 404" where the reference is a tag (or a digest), and with the error's code behind: "blob-get 404
NAME_UNKNOWN". By these names answers are changed, as the last thing that happens to them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import ssl as ssl_module
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from multidict import CIMultiDict

INDEX = "application/vnd.oci.image.index.v1+json"
NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")
MANIFEST_LIMIT = 4 * 1024 * 1024


@dataclass
class Reply:
    """An answer before it is sent. operation: what was asked; by: "tag" or "digest"; code: of an error."""

    operation: str
    status: int
    body: bytes = b""
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    by: str = ""
    code: str = ""

    @property
    def names(self) -> set[str]:
        short, long = f"{self.operation} {self.status}", f"{self.operation}:{self.by} {self.status}"
        return {short, long, f"{short} {self.code}", f"{long} {self.code}"}

    def json(self) -> Any:
        return json.loads(self.body)

    def set_json(self, value: Any) -> None:
        self.body = json.dumps(value).encode()


@dataclass(frozen=True)
class Defect:
    """What is wrong: a behaviour by its name, or a change of the answers that have one of these names."""

    label: str
    behaviour: str = ""
    answers: tuple[str, ...] = ()
    change: Callable[[Reply], None] | None = None

    def __str__(self) -> str:
        return self.label


def flag(behaviour: str) -> Defect:
    """Behave wrongly; what a name stands for is read where it is used below."""
    return Defect(behaviour, behaviour=behaviour)


def changed(label: str, answers: str | Sequence[str], change: Callable[[Reply], None]) -> Defect:
    """Change some answers."""
    return Defect(label, answers=(answers,) if isinstance(answers, str) else tuple(answers), change=change)


def status(answer: str, to: int) -> Defect:
    """Answer with another status."""

    def change(reply: Reply) -> None:
        reply.status = to

    return changed(f"{answer} as {to}", answer, change)


def without(answer: str, header: str) -> Defect:
    """Answer without a header."""
    return changed(f"{answer} without {header}", answer, lambda reply: reply.headers.popall(header, None) and None)


def header(answer: str, name: str, value: str) -> Defect:
    """Answer with another value of a header."""

    def change(reply: Reply) -> None:
        reply.headers[name] = value

    return changed(f"{answer} with {name}: {value[:40]}", answer, change)


def body(answer: str, data: bytes) -> Defect:
    """Answer with another body, of which Content-Length and all else are right."""

    def change(reply: Reply) -> None:
        reply.body = data

    return changed(f"{answer} with {data[:20]!r}", answer, change)


def edited(label: str, answer: str, edit: Callable[[Any], Any]) -> Defect:
    """Answer with other JSON."""
    return changed(label, answer, lambda reply: reply.set_json(edit(reply.json())))


class Refused(Exception):
    """An error to answer with."""

    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


@dataclass
class Manifest:
    data: bytes
    media_type: str


@dataclass
class Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        return not (self.blobs or self.manifests)


@dataclass
class Session:
    repository: str
    data: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True)
class Ask:
    """A request, read."""

    method: str
    name: str
    what: str
    query: dict[str, list[str]]
    headers: Any
    body: bytes

    def one(self, name: str) -> str | None:
        return self.query.get(name, [None])[0]  # type: ignore[list-item]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class ConformantRegistry:
    """The registry. login: user and password that are wanted, by "basic" or "bearer"; anonymous: all may pull.

    ssl: what it speaks TLS with.
    """

    def __init__(
        self,
        *defects: Defect,
        login: tuple[str, str] | None = None,
        scheme: str = "basic",
        anonymous: bool = False,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self.behaviours = {defect.behaviour for defect in defects if defect.behaviour}
        self.changes = [defect for defect in defects if defect.change]
        self.repositories: dict[str, Repository] = {}
        self.sessions: dict[str, Session] = {}
        self.asked: list[str] = []
        self.crashed: list[Exception] = []
        self.seen: list[tuple[str, str, str | None]] = []
        self.url = ""
        self._login, self._scheme, self._anonymous = login, scheme, anonymous
        self._ssl = ssl

    def does(self, behaviour: str) -> bool:
        """Tell whether to behave wrongly like this."""
        return behaviour in self.behaviours

    # ---- serving ----

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._ssl).start()
        self.url = f"http{'s' if self._ssl else ''}://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        assert not self.crashed, f"the registry itself is wrong: {self.crashed[0]!r}"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0].replace("%3A", ":")
        self.seen.append((request.method, path, request.headers.get("Authorization")))
        query = {name: request.query.getall(name) for name in request.query}
        if path == "/token":
            return self._token(request)
        if path.startswith("/elsewhere/"):
            name, digest = path.split("/")[2:]
            return web.Response(body=self.repositories[name.replace("~", "/")].blobs[digest])
        data = await request.read()
        try:
            reply = self._answer(request, path, query, data)
        except Exception as error:
            self.crashed.append(error)
            raise
        for defect in self.changes:
            if reply.names & set(defect.answers) and defect.change:
                defect.change(reply)
                break
        self.asked.append(f"{reply.operation} {reply.status}")
        if request.method == "HEAD":
            empty = web.StreamResponse(status=reply.status, headers=reply.headers)  # which says no length of its own
            await empty.prepare(request)
            await empty.write_eof()
            return empty
        response = web.Response(status=reply.status, body=reply.body, headers=reply.headers)
        if not reply.body:
            response.headers.pop("Content-Type", None)
        return response

    def _token(self, request: web.Request) -> web.Response:
        known = request.headers.get("Authorization") == self._basic()
        if not known and not (self._anonymous and "Authorization" not in request.headers):
            return web.Response(status=401)
        return web.json_response({"token": ("user" if known else "anyone") + "|" + request.query.get("scope", "")})

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(":".join(self._login or ()).encode()).decode()

    def _may(self, method: str, name: str, given: str | None) -> bool:
        reads = method in ("GET", "HEAD")
        if self._login is None:
            return True
        if self._scheme == "basic":
            return given == self._basic() or (self._anonymous and reads)
        who, _, scope = (given or "").removeprefix("Bearer ").partition("|")
        actions = "pull" if who == "anyone" else scope.rpartition(":")[2]
        wanted = "pull" if reads else "delete" if method == "DELETE" else "push"
        return bool(given) and (not name or (scope.startswith(f"repository:{name}:") and wanted in actions))

    def _answer(self, request: web.Request, path: str, query: dict[str, list[str]], data: bytes) -> Reply:
        """Answer a request, by the table of endpoints."""
        found = re.fullmatch(
            r"/v2/(?:(?P<name>.+)/(?P<kind>blobs/uploads|blobs|manifests|tags|referrers)/(?P<what>[^/]*))?", path
        )
        name, kind, what = (found["name"] or "", found["kind"] or "", found["what"] or "") if found else ("", "?", "")
        operation = self._operation(request.method, kind, what, query)
        ask = Ask(request.method, name, what, query, request.headers, data)
        reply = self._try(ask, operation, kind)
        reply.by = "digest" if ":" in what else "tag"
        return reply

    def _try(self, ask: Ask, operation: str, kind: str) -> Reply:
        try:
            if not self._may(ask.method, ask.name, ask.headers.get("Authorization")):
                return self._challenge(operation, ask.method, ask.name)
            if ask.name and not NAME.fullmatch(ask.name) and not self.does("takes-any-name"):
                raise Refused(400, "NAME_INVALID")
            handler = getattr(self, "_" + operation.replace("-", "_"), None)
            if handler is None:
                raise Refused(404 if kind == "?" else 405, "UNSUPPORTED")
            reply: Reply = handler(ask)
            reply.operation = operation
            return reply
        except Refused as refused:
            return self._error(operation, refused)

    def _operation(self, method: str, kind: str, what: str, query: dict[str, list[str]]) -> str:
        """Return the name of what a request is about."""
        if kind == "" and method == "GET":
            return "root"
        if kind == "blobs/uploads" and method == "POST":
            return "mount" if "mount" in query else "single-post" if "digest" in query else "upload-post"
        if kind == "manifests" and method == "DELETE":
            return "manifest-delete" if ":" in what else "tag-delete"
        return {
            "blobs/uploads": f"upload-{method.lower()}",
            "blobs": f"blob-{method.lower()}",
            "manifests": f"manifest-{method.lower()}",
            "tags": "tags" if method == "GET" else "?",
            "referrers": "referrers" if method == "GET" else "?",
        }.get(kind, "?")

    def _challenge(self, operation: str, method: str, name: str) -> Reply:
        reply = self._error(operation, Refused(401, "UNAUTHORIZED"))
        actions = "pull" if method in ("GET", "HEAD") else "delete" if method == "DELETE" else "pull,push"
        scope = f',scope="repository:{name}:{actions}"' if name else ""
        reply.headers["WWW-Authenticate"] = (
            'Basic realm="here"'
            if self._scheme == "basic"
            else f'Bearer realm="{self.url}/token",service="here"{scope}'
        )
        return reply

    def _error(self, operation: str, refused: Refused) -> Reply:
        reply = Reply(operation, refused.status, code=refused.code)
        reply.set_json({"errors": [{"code": refused.code, "message": "no", "detail": None}]})
        reply.headers["Content-Type"] = "application/json"
        return reply

    def _repository(self, name: str) -> Repository:
        """Return a repository that has something, for reading."""
        found = self.repositories.get(name)
        if found is None or found.empty:
            raise Refused(404, "NAME_UNKNOWN")
        return found

    def _root(self, ask: Ask) -> Reply:
        return Reply("", 200, b"{}", CIMultiDict({"Content-Type": "application/json"}))

    # ---- blobs ----

    def _blob(self, ask: Ask) -> tuple[str, bytes]:
        if not DIGEST.fullmatch(ask.what):
            raise Refused(400, "DIGEST_INVALID")
        if self.does("blobs-of-all-repositories"):
            for repository in self.repositories.values():
                if ask.what in repository.blobs:
                    return ask.what, repository.blobs[ask.what]
        data = self._repository(ask.name).blobs.get(ask.what)
        if data is None:
            raise Refused(404, "BLOB_UNKNOWN")
        return ask.what, data

    def _blob_get(self, ask: Ask) -> Reply:
        digest, data = self._blob(ask)
        headers = CIMultiDict({"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"})
        if self.does("redirects"):
            place = f"{self.url.replace('127.0.0.1', 'localhost')}/elsewhere/{ask.name.replace('/', '~')}/{digest}"
            return Reply("", 307, b"", CIMultiDict({"Location": place, "Docker-Content-Digest": digest}))
        found = re.fullmatch(r"(\w+)=(\d*)-(\d*)", ask.headers.get("Range", ""))
        if not found or (found[1] != "bytes" and not self.does("any-unit")) or self.does("no-ranges"):
            return Reply("", 200, data, headers)
        size = len(data)
        first = int(found[2]) if found[2] else max(0, size - int(found[3]))
        last = min(int(found[3]), size - 1) if found[2] and found[3] else size - 1
        if first >= size or (last < first and not self.does("serves-backwards-ranges")):
            raise Refused(416, "SIZE_INVALID")
        if self.does("open-ranges-are-closed") and not found[3]:
            last = size - 2
        if self.does("suffixes-from-the-start") and not found[2]:
            first, last = 0, int(found[3]) - 1
        if self.does("refuses-past-end") and found[3] and int(found[3]) >= size and found[2]:
            raise Refused(416, "SIZE_INVALID")
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        return Reply("", 206, data[first : last + 1], headers)

    def _blob_head(self, ask: Ask) -> Reply:
        digest, data = self._blob(ask)
        return Reply("", 200, b"", CIMultiDict({"Docker-Content-Digest": digest, "Content-Length": str(len(data))}))

    def _blob_delete(self, ask: Ask) -> Reply:
        if self.does("no-deletion"):
            raise Refused(405, "UNSUPPORTED")
        digest, _ = self._blob(ask)
        if not self.does("keeps-deleted-blobs"):
            del self.repositories[ask.name].blobs[digest]
        return Reply("", 202)

    # ---- uploads ----

    def _new_session(self, ask: Ask) -> Reply:
        if self.does("no-pushes"):
            raise Refused(405, "UNSUPPORTED")
        key = "00000000-0000-0000-0000-000000000001" if self.does("one-session") else str(uuid.uuid4())
        if self.does("sessions-without-uuid"):
            key = f"session{len(self.sessions)}"
        self.sessions[key] = Session(ask.name)
        return Reply("", 202, b"", CIMultiDict({"Location": self._location(key), "Range": "0-0"}))

    def _location(self, key: str) -> str:
        return f"/v2/{self.sessions[key].repository}/blobs/uploads/{key}?state=keep"

    def _upload_post(self, ask: Ask) -> Reply:
        algorithm = ask.one("digest-algorithm")
        known = ("sha256",) if self.does("no-sha512") else ("sha256", "sha512")
        if algorithm is not None and algorithm not in known and not self.does("takes-any-algorithm"):
            raise Refused(400, "DIGEST_INVALID")
        if algorithm == "sha512" and self.does("breaks-named-algorithm"):
            ask = Ask(ask.method, "elsewhere", ask.what, ask.query, ask.headers, ask.body)
        return self._new_session(ask)

    def _single_post(self, ask: Ask) -> Reply:
        if self.does("no-single-post") or self.does("no-pushes"):
            return self._new_session(ask)
        return self._keep(ask.name, ask.one("digest"), ask.body, "keeps-wrong-single-posts")

    def _mount(self, ask: Ask) -> Reply:
        digest, source = ask.one("mount") or "", ask.one("from")
        if self.does("no-mounts") or (source is None and self.does("no-mounts-without-from")):
            return self._new_session(ask)
        sources = [self.repositories.get(source, Repository())] if source else list(self.repositories.values())
        for repository in sources:
            if digest in repository.blobs:
                if not self.does("mounts-nothing") and not (source is None and self.does("mounts-nothing-unnamed")):
                    self._write(ask.name).blobs[digest] = repository.blobs[digest]
                return self._kept(ask.name, digest)
        if self.does("mounts-what-is-not-there"):
            return self._kept(ask.name, digest)
        return self._new_session(ask)

    def _session(self, ask: Ask) -> Session:
        found = self.sessions.get(ask.what)
        if found is None or found.repository != ask.name or ask.one("state") != "keep":
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN")
        return found

    def _check_order(self, ask: Ask, session: Session, behaviour: str) -> None:
        place = ask.headers.get("Content-Range")
        if place is None:
            return
        first = int(place.partition("-")[0])
        at = len(session.data)
        wrong = first != at
        if self.does(behaviour):
            wrong = False
        if self.does("takes-first-chunks-anywhere") and at == 0:
            wrong = False
        if self.does("takes-gaps") and 0 < at < first:
            wrong = False
        if self.does("takes-repeated-chunks") and first < at:
            wrong = False
        if wrong:
            if self.does("loses-sessions-on-416"):
                session.data.clear()
            raise Refused(416, "BLOB_UPLOAD_INVALID")

    def _upload_patch(self, ask: Ask) -> Reply:
        if self.does("takes-ended-sessions") and ask.what not in self.sessions:
            self.sessions[ask.what] = Session(ask.name)
        session = self._session(ask)
        self._check_order(ask, session, "")
        if self.does("wants-large-chunks") and len(ask.body) < 512:
            raise Refused(416, "SIZE_INVALID")
        if self.does("wants-lengths") and "Content-Length" not in ask.headers:
            raise Refused(411, "SIZE_INVALID")
        session.data += ask.body
        return Reply("", 202, b"", self._progress(ask.what))

    def _progress(self, key: str) -> CIMultiDict[str]:
        last = max(0, len(self.sessions[key].data) - 1)
        return CIMultiDict({"Location": self._location(key), "Range": f"0-{last}"})

    def _upload_get(self, ask: Ask) -> Reply:
        if self.does("knows-ended-sessions") and ask.what not in self.sessions:
            return Reply("", 204, b"", CIMultiDict({"Location": "/", "Range": "0-0"}))
        self._session(ask)
        return Reply("", 204, b"", self._progress(ask.what))

    def _upload_put(self, ask: Ask) -> Reply:
        session = self._session(ask)
        self._check_order(ask, session, "takes-last-chunks-anywhere")
        chunked = bool(session.data)
        if chunked and ask.body and self.does("ignores-last-chunks"):
            return self._kept(ask.name, ask.one("digest") or "")
        if not ask.body and not chunked and self.does("no-empty-blobs"):
            raise Refused(400, "SIZE_INVALID")
        session.data += ask.body
        behaviour = "keeps-wrong-chunks" if chunked else "keeps-wrong-digests"
        if chunked and self.does("mixes-chunks"):
            session.data.reverse()
            behaviour = "mixes-chunks"
        reply = self._keep(ask.name, ask.one("digest"), bytes(session.data), behaviour)
        del self.sessions[ask.what]
        return reply

    def _upload_delete(self, ask: Ask) -> Reply:
        if self.does("no-cancelling"):
            raise Refused(405, "UNSUPPORTED")
        self._session(ask)
        if not self.does("keeps-cancelled-sessions"):
            del self.sessions[ask.what]
        return Reply("", 204)

    def _keep(self, name: str, digest: str | None, data: bytes, behaviour: str) -> Reply:
        """Store a blob. behaviour: that which lets a wrong digest pass."""
        if digest is None and self.does("needs-no-digest"):
            digest = digest_of(data)
        if digest is None or not DIGEST.fullmatch(digest):
            if digest and ":" in digest and self.does("refuses-oddly"):
                raise Refused(403, "DENIED")
            raise Refused(422 if digest and self.does("refuses-malformed-oddly") else 400, "DIGEST_INVALID")
        algorithm = digest.partition(":")[0]
        if algorithm == "sha512" and self.does("no-sha512"):
            raise Refused(400, "DIGEST_INVALID")
        lax = self.does(behaviour) or (algorithm == "sha512" and self.does("keeps-wrong-sha512"))
        if digest != digest_of(data, algorithm) and not lax:
            raise Refused(404 if self.does("mismatches-are-404") else 400, "DIGEST_INVALID")
        if self.does("refuses-known-blobs") and digest in self._write(name).blobs:
            raise Refused(403, "DENIED")
        if self.does("stores-sha512-as-sha256") and algorithm == "sha512":
            self._write(name).blobs[digest_of(data)] = data
            return self._kept(name, digest)
        if not self.does("forgets-blobs"):
            self._write(name).blobs[digest] = data
        return self._kept(name, digest)

    def _kept(self, name: str, digest: str) -> Reply:
        headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
        return Reply("", 201, b"", CIMultiDict(headers))

    def _write(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    # ---- manifests ----

    def _manifest(self, ask: Ask) -> tuple[str, Manifest]:
        repository = self._repository(ask.name)
        if ":" in ask.what:
            if not DIGEST.fullmatch(ask.what):
                raise Refused(400, "DIGEST_INVALID")
            digest = ask.what
        else:
            digest = repository.tags.get(ask.what, "")
            if not TAG.fullmatch(ask.what) and self.does("fails-on-odd-tags"):
                raise Refused(500, "MANIFEST_INVALID")
        found = repository.manifests.get(digest)
        if found is None:
            raise Refused(404, "MANIFEST_UNKNOWN")
        return digest, found

    def _manifest_get(self, ask: Ask) -> Reply:
        digest, manifest = self._manifest(ask)
        data = manifest.data
        if self.does("rewrites-manifests"):
            data = json.dumps(json.loads(data), separators=(",", ":")).encode()
        headers = CIMultiDict({"Docker-Content-Digest": digest, "Content-Type": manifest.media_type})
        if ns := ask.one("ns"):
            headers["OCI-Namespace"] = ns
            if self.does("uses-ns") and ns.endswith(".invalid"):
                raise Refused(404, "NAME_UNKNOWN")
            if self.does("uses-ns"):
                del headers["OCI-Namespace"]
        by_tag = ":" not in ask.what
        if self.does("wrong-digest-by-tag") and by_tag:
            headers["Docker-Content-Digest"] = digest_of(b"other")
        if self.does("no-digest-by-tag") and by_tag:
            del headers["Docker-Content-Digest"]
        if self.does("no-manifests-by-tag" if by_tag else "no-manifests-by-digest"):
            raise Refused(404, "MANIFEST_UNKNOWN")
        if self.does("other-manifests-by-tag") and by_tag:
            data += b"\n"
        if self.does("other-manifests-by-digest") and not by_tag:
            data += b"\n"
        return Reply("", 200, data, headers)

    def _manifest_head(self, ask: Ask) -> Reply:
        by_tag = ":" not in ask.what
        if self.does("no-heads-by-tag" if by_tag else "no-heads-by-digest"):
            raise Refused(405, "UNSUPPORTED")
        if not DIGEST.fullmatch(ask.what) and not by_tag:
            raise Refused(400, "DIGEST_INVALID")
        digest, manifest = self._manifest(ask)
        headers = {
            "Docker-Content-Digest": digest,
            "Content-Type": manifest.media_type,
            "Content-Length": str(len(manifest.data)),
        }
        return Reply("", 200, b"", CIMultiDict(headers))

    def _manifest_put(self, ask: Ask) -> Reply:
        if self.does("no-pushes"):
            raise Refused(405, "UNSUPPORTED")
        if len(ask.body) > MANIFEST_LIMIT and not self.does("no-limit"):
            raise Refused(400 if self.does("refuses-large-oddly") else 413, "MANIFEST_INVALID")
        if len(ask.body) > 1024 * 1024 and self.does("small-limit"):
            raise Refused(413, "MANIFEST_INVALID")
        digest, tags = self._references(ask)
        media_type = self._media_type(ask)
        subject = self._check(ask, media_type)
        repository = self._write(ask.name)
        repository.manifests.setdefault(digest, Manifest(ask.body, media_type))
        self._tag(repository, tags, digest)
        reply = Reply("", 201)
        reply.headers["Location"] = f"/v2/{ask.name}/manifests/{ask.what}"
        reply.headers["Docker-Content-Digest"] = digest
        if subject and not self.does("no-referrers"):
            reply.headers["OCI-Subject"] = subject["digest"]
        if ask.query.get("tag") and not self.does("no-tag-parameters"):
            for tag in ask.query["tag"][: 5 if self.does("five-tags") else None]:
                reply.headers.add("OCI-Tag", tag)
        return reply

    def _references(self, ask: Ask) -> tuple[str, list[str]]:
        """Return the digest to keep a pushed manifest under, and its tags."""
        if ":" not in ask.what:
            if not TAG.fullmatch(ask.what) and not self.does("takes-any-tag"):
                raise Refused(400, "MANIFEST_INVALID")
            return digest_of(ask.body), [ask.what]
        if not DIGEST.fullmatch(ask.what):
            raise Refused(400, "DIGEST_INVALID")
        algorithm = ask.what.partition(":")[0]
        if algorithm == "sha512" and self.does("no-sha512"):
            raise Refused(400, "DIGEST_INVALID")
        if digest_of(ask.body, algorithm) != ask.what and not self.does("keeps-wrong-manifests"):
            raise Refused(400, "DIGEST_INVALID")
        tags = [] if self.does("no-tag-parameters") else ask.query.get("tag", [])
        if self.does("five-tags"):
            tags = tags[:5]
        if self.does("sha512-manifests-as-sha256") and algorithm == "sha512":
            return digest_of(ask.body), tags
        return ask.what, tags

    def _media_type(self, ask: Ask) -> str:
        given: str = ask.headers.get("Content-Type", "")
        if self.does("refuses-parameters") and ";" in given:
            raise Refused(415, "MANIFEST_INVALID")
        if self.does("keeps-parameters"):
            return given
        media_type = given.partition(";")[0].strip()
        known = media_type.startswith("application/vnd.oci.image.")
        if self.does("known-types-only") and not known:
            raise Refused(400, "MANIFEST_INVALID")
        if self.does("renames-types") and not known:
            return "application/json"
        return media_type

    def _check(self, ask: Ask, media_type: str) -> dict[str, Any] | None:
        """Refuse what is wrong about a manifest; return its subject."""
        try:
            value = json.loads(ask.body)
        except ValueError:
            if self.does("takes-anything"):
                return None
            raise Refused(400, "MANIFEST_INVALID") from None
        self._check_lists(value, media_type)
        subject: dict[str, Any] | None = value.get("subject")
        missing = self._missing(ask.name, value)
        if missing and not self.does("takes-what-is-incomplete"):
            code = "MANIFEST_INVALID" if self.does("names-no-missing-blobs") else "MANIFEST_BLOB_UNKNOWN"
            raise Refused(404, code)
        wanted = self.does("wants-subjects-of-indexes" if media_type == INDEX else "wants-subjects")
        if subject and wanted and subject["digest"] not in self._write(ask.name).manifests:
            raise Refused(404, "MANIFEST_BLOB_UNKNOWN")
        return subject

    def _check_lists(self, value: dict[str, Any], media_type: str) -> None:
        for behaviour, refused in (
            ("wants-layers", value.get("layers") == []),
            ("no-indexes", media_type == INDEX and bool(value.get("manifests"))),
            (
                "image-configs-only",
                "artifactType" in value or "example" in str(value.get("config", {}).get("mediaType")),
            ),
            ("known-members-only", "org.example.unknown" in value),
            ("no-data", any("data" in layer for layer in value.get("layers", []))),
        ):
            if refused and self.does(behaviour):
                raise Refused(400, "MANIFEST_INVALID")

    def _missing(self, name: str, value: dict[str, Any]) -> list[str]:
        """Return the digests a manifest lists that are not there."""
        repository = self._write(name)
        listed = [value["config"]] if "config" in value else []
        for layer in value.get("layers", []):
            if "nondistributable" not in layer["mediaType"] or self.does("wants-all-layers"):
                listed.append(layer)
        found = [one["digest"] for one in listed if one["digest"] not in repository.blobs]
        children = value.get("manifests", [])
        return found + [one["digest"] for one in children if one["digest"] not in repository.manifests]

    def _tag(self, repository: Repository, tags: list[str], digest: str) -> None:
        for tag in tags:
            if self.does("tags-never-move"):
                repository.tags.setdefault(tag, digest)
            else:
                repository.tags[tag] = digest

    def _manifest_delete(self, ask: Ask) -> Reply:
        if self.does("no-deletion"):
            raise Refused(405, "UNSUPPORTED")
        digest, _ = self._manifest(ask)
        repository = self.repositories[ask.name]
        if self.does("deleted-manifests-keep-tags"):
            repository.manifests[digest + " "] = repository.manifests[digest]
            repository.tags = {tag: at + " " if at == digest else at for tag, at in repository.tags.items()}
            del repository.manifests[digest]
        elif not self.does("keeps-deleted-manifests"):
            repository.tags = {tag: at for tag, at in repository.tags.items() if at != digest}
            del repository.manifests[digest]
        else:
            repository.tags = {tag: at for tag, at in repository.tags.items() if at != digest}
        return Reply("", 202)

    def _tag_delete(self, ask: Ask) -> Reply:
        if self.does("no-deletion") or self.does("no-tag-deletion"):
            raise Refused(405, "UNSUPPORTED")
        digest, _ = self._manifest(ask)
        repository = self.repositories[ask.name]
        if self.does("deletes-all-tags"):
            repository.tags = {tag: at for tag, at in repository.tags.items() if at != digest}
        elif self.does("lists-deleted-tags"):
            repository.tags[ask.what] = "gone"
        elif not self.does("keeps-deleted-tags"):
            del repository.tags[ask.what]
        return Reply("", 202)

    # ---- lists ----

    def _tags(self, ask: Ask) -> Reply:
        if ask.what != "list":
            raise Refused(404, "NAME_UNKNOWN")
        tags = sorted(self._repository(ask.name).tags)
        n, last = ask.one("n"), ask.one("last")
        if self.does("unordered-tags"):
            tags.reverse()
        if self.does("unordered-pages") and n is not None:
            tags.reverse()
        if self.does("forgets-tags"):
            tags = [tag for tag in tags if not tag.startswith("a")]
        if self.does("repeats-tags"):
            tags = sorted(tags * 2)
        if last is not None and not (self.does("ignores-last") or (self.does("ignores-last-alone") and n is None)):
            inclusive = self.does("includes-last")
            tags = [tag for tag in tags if tag > last or (inclusive and tag == last)]
            if self.does("wants-tags-after-last") and not tags:
                raise Refused(404, "NAME_UNKNOWN")
        reply = Reply("", 200)
        if n is not None and not self.does("ignores-n"):
            count = int(n) if int(n) or not self.does("zero-is-all") else len(tags)
            if self.does("short-pages"):
                count = max(0, count - 1)
            if self.does("refuses-large-pages") and int(n) > 6:
                tags = tags[:6]
            if n == "0" and self.does("links-after-nothing"):
                self._link(reply, f"/v2/{ask.name}/tags/list?n=1")
            more, tags = len(tags) > count, tags[:count]
            if more and tags and not self.does("no-links") and not self.does("short-pages"):
                self._link(reply, f"/v2/{ask.name}/tags/list?n={n}&last={tags[-1]}")
        reply.set_json({"name": ask.name, "tags": tags})
        reply.headers["Content-Type"] = "application/json"
        return reply

    def _link(self, reply: Reply, target: str) -> None:
        reply.headers["Link"] = f'<{target}>; rel="next"'

    def _referrers(self, ask: Ask) -> Reply:
        if self.does("no-referrers"):
            raise Refused(404, "UNSUPPORTED")
        if not DIGEST.fullmatch(ask.what):
            raise Refused(400, "DIGEST_INVALID")
        found = self._referring(ask)
        known = ask.what in self.repositories.get(ask.name, Repository()).manifests
        if not found and (self.does("wants-referrers") or (not known and self.does("wants-known-subjects"))):
            raise Refused(404, "MANIFEST_UNKNOWN")
        wanted = ask.one("artifactType")
        reply = Reply("", 200)
        if wanted and not self.does("no-filter"):
            if not self.does("claims-to-filter"):
                found = [one for one in found if one.get("artifactType") == wanted]
            if self.does("loses-filtered"):
                found = found[1:]
            if not self.does("filters-silently"):
                reply.headers["OCI-Filters-Applied"] = "artifactType"
            if not found and self.does("wants-matches"):
                raise Refused(404, "MANIFEST_UNKNOWN")
        self._page(ask, reply, found)
        reply.headers["Content-Type"] = INDEX
        return reply

    def _referring(self, ask: Ask) -> list[dict[str, Any]]:
        repositories = [self.repositories.get(ask.name, Repository())]
        if self.does("referrers-of-all-repositories"):
            repositories = list(self.repositories.values())
        if self.does("only-referrers-of-what-is-there") and ask.what not in repositories[0].manifests:
            return []
        found = []
        for repository in repositories:
            for digest, manifest in repository.manifests.items():
                one = self._descriptor(digest, manifest, ask.what)
                if one:
                    found.append(one)
        return found[:3] if self.does("loses-referrers") else found

    def _descriptor(self, digest: str, manifest: Manifest, subject: str) -> dict[str, Any] | None:
        """Return the descriptor of what refers to the subject, else None."""
        try:
            value = json.loads(manifest.data)
        except ValueError:
            return None
        refers = (value.get("subject") or {}).get("digest") == subject
        if self.does("lists-strangers") and "subject" not in value:
            refers = True
        index = manifest.media_type == INDEX
        if not refers or (index and self.does("no-referring-indexes")):
            return None
        if not index and self.does("no-referring-images"):
            return None
        one = {"mediaType": manifest.media_type, "digest": digest, "size": len(manifest.data)}
        kind = value.get("artifactType")
        if not kind and not index and not self.does("no-type-of-config"):
            kind = value.get("config", {}).get("mediaType")
        if self.does("types-of-config-only") and not index:
            kind = value.get("config", {}).get("mediaType")
        if self.does("no-types-of-indexes") and index:
            kind = None
        if self.does("types-for-all") and index and not kind:
            kind = INDEX
        if kind:
            one["artifactType"] = kind
        if "annotations" in value and not self.does("no-annotations-of-indexes" if index else "no-annotations"):
            one["annotations"] = value["annotations"]
        return one

    def _page(self, ask: Ask, reply: Reply, found: list[dict[str, Any]]) -> None:
        """Put descriptors into the answer; two at a time when it works in pages."""
        if self.does("pages-referrers") or self.does("bad-referrers-link"):
            start = int(ask.one("start") or 0)
            if len(found) > start + 2:
                kind = f"&artifactType={ask.one('artifactType')}" if ask.one("artifactType") else ""
                self._link(reply, f"/v2/{ask.name}/referrers/{ask.what}?start={start + 2}{kind}")
                if self.does("bad-referrers-link"):
                    reply.headers["Link"] = reply.headers["Link"].replace("next", "more")
            found = found[start : start + 2]
        reply.set_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": found})


@contextmanager
def in_thread(registry: ConformantRegistry) -> Iterator[ConformantRegistry]:
    """Serve in a thread of its own, for what blocks while it asks."""
    ready, loops = threading.Event(), []

    async def serve() -> None:
        stop = asyncio.Event()
        async with registry:
            loops.append((asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield registry
    finally:
        if loops:
            loop, stop = loops[0]
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
