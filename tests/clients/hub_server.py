"""Docker Hub and ghcr.io, offline: TLS fronts, a token server and a CDN in one process, one request log.

Runs inside the namespace: ``python -m tests.clients.hub_server SETTINGS``. The fronts pass requests on to
two CNCF Distribution processes; the hub's answers blobs by 307 to the CDN. While ``refuse`` is set, container
clients that want content of a front get 403. The hub can be given a limit of pulls, as Docker Hub has one. The log
has one JSON object per answered request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, web
from multidict import CIMultiDict
from yarl import URL

from tests.clients.namespace import AUTH, CDN, CONTROL, GHCR, HUB
from tests.clients.tokens import LIFETIME, Signer, access_of, subject_of

USER = "test:secret"
CLIENTS = re.compile(r"(docker|containerd|containers|buildah|buildkit|skopeo|libpod|podman|cri-o)[/ ]", re.I)
CONTENT = re.compile(r"/v2/(?!pushed/).+/(manifests|blobs|tags)/")
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"}
SLICE = 1 << 18  # bytes
WINDOW = 21_600  # seconds
USED_UP = (
    "You have reached your pull rate limit. You may increase the limit by authenticating and upgrading: "
    "https://www.docker.com/increase-rate-limit"
)


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request as received, and what was answered. ``bytes``: body bytes sent. ``counted``: as a pull."""

    site: str
    method: str
    path: str
    query: str
    user_agent: str
    authorization: bool
    range: str | None
    at: float = field(default_factory=time.time)
    status: int | None = None
    bytes: int = 0
    complete: bool = False
    counted: bool = False


class Journal:
    """The request log, the switches, and how many requests are being answered right now."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self.in_flight = 0
        self.refuse = True
        self.head_delay = 0.0  # seconds added to each HEAD of a manifest

    def handler(
        self, site: str, answer: Callable[[web.Request, Entry], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def logged(request: web.Request) -> web.StreamResponse:
            entry = Entry(
                site=site,
                method=request.method,
                path=request.raw_path.partition("?")[0],
                query=request.query_string,
                user_agent=request.headers.get("User-Agent", ""),
                authorization="Authorization" in request.headers,
                range=request.headers.get("Range"),
            )
            self.in_flight += 1
            try:
                response = await answer(request, entry)
                entry.status, entry.complete = response.status, True
                if isinstance(response, web.Response) and request.method != "HEAD":
                    entry.bytes = len(response.body or b"")
                return response
            finally:
                self._file.write(json.dumps(asdict(entry)) + "\n")
                self.in_flight -= 1

        return logged


class PullLimit:
    """Docker Hub's: GETs of manifests count, for each account and for each address without one; HEADs do not.

    Both say what is left, and both are answered by 429 when that is nothing. Whoever has no token yet is let
    through to be told where to get one.
    """

    def __init__(self) -> None:
        self._most: int | None = None
        self._spent: Counter[str] = Counter()

    def set(self, most: int | None) -> None:
        """Begin to count anew; None is no limit."""
        self._most = most
        self._spent.clear()

    def take(self, request: web.Request, entry: Entry) -> tuple[dict[str, str], web.Response | None]:
        """Count a request where it counts. The headers its answer gets, and the answer when nothing is left."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._most is None or not token or "/manifests/" not in entry.path or entry.method not in ("GET", "HEAD"):
            return {}, None
        who = subject_of(token) or str(request.remote)
        left = self._most - self._spent[who]
        if left and entry.method == "GET":
            entry.counted = True
            self._spent[who] += 1
            left -= 1
        elif not left:
            error = {"code": "TOOMANYREQUESTS", "message": USED_UP}
            return {}, web.json_response({"errors": [error]}, status=429, headers=self._headers(left, who))
        return self._headers(left, who), None

    def _headers(self, left: int, who: str) -> dict[str, str]:
        limit, remaining = (f"{pulls};w={WINDOW}" for pulls in (self._most, left))
        return {"ratelimit-limit": limit, "ratelimit-remaining": remaining, "docker-ratelimit-source": who}


class Front:
    """The TLS front of one Distribution process."""

    def __init__(self, journal: Journal, session: ClientSession, target: str, limit: PullLimit) -> None:
        self._journal, self._session, self._target, self._limit = journal, session, target, limit

    async def answer(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        if self._journal.refuse and CLIENTS.match(entry.user_agent) and CONTENT.match(entry.path):
            error = {"code": "DENIED", "message": "container clients are refused: use the mirror"}
            return web.json_response({"errors": [error]}, status=403)
        if self._journal.head_delay and request.method == "HEAD" and "/manifests/" in entry.path:
            await asyncio.sleep(self._journal.head_delay)
        more, used_up = self._limit.take(request, entry)
        if used_up is not None:
            return used_up
        headers = CIMultiDict((k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP)
        async with self._session.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as upstream:
            kept = ((k, v) for k, v in upstream.headers.items() if k.lower() not in HOP_BY_HOP)
            response = web.StreamResponse(status=upstream.status, headers=CIMultiDict(kept))
            response.headers.update(more)
            entry.status = upstream.status
            await response.prepare(request)
            async for chunk in upstream.content.iter_chunked(SLICE):
                await response.write(chunk)
                entry.bytes += len(chunk)
            await response.write_eof()
            return response


class Cdn:
    """Files of the hub's Distribution, with single ranges; counts what it sends."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def answer(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        path = self._root / entry.path.lstrip("/")
        if not path.is_file():
            return web.Response(status=404, text="no such object")
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", entry.range or ""):
            first, last, status = int(asked[1]), min(int(asked[2] or last), last), 206
            if first > last:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if status == 206:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        response = web.StreamResponse(status=status, headers=headers)
        response.content_length = last - first + 1
        entry.status = status
        await response.prepare(request)
        if request.method != "HEAD":
            async with aclosing(_slices(path, first, last - first + 1)) as slices:
                async for data in slices:
                    await response.write(data)
                    entry.bytes += len(data)
        await response.write_eof()
        return response


async def _slices(path: Path, offset: int, left: int) -> Any:
    with path.open("rb") as file:
        file.seek(offset)
        while left:
            data = file.read(min(SLICE, left))
            left -= len(data)
            yield data


class TokenServer:
    """In the style of auth.docker.io: anybody gets tokens to pull, USER whatever it asks for."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def answer(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        form = request.query if request.method == "GET" else await request.post()
        user = ""
        if "username" in form:
            user = f"{form['username']}:{form.get('password', '')}"
        authorization = request.headers.get("Authorization", "")
        if authorization.startswith("Basic "):
            user = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        if user and user != USER:
            return web.json_response({"details": "incorrect username or password"}, status=401)
        scopes = [str(scope) for scope in form.getall("scope", [])]
        access = access_of(scopes, known_user=bool(user))
        token = self._signer.token(user.partition(":")[0], access, service=str(form.get("service", "")))
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        answer = {"token": token, "access_token": token, "expires_in": LIFETIME, "issued_at": issued}
        return web.json_response(answer)


class Control:
    """Not part of the hub: switches, and waiting until nothing is being answered."""

    def __init__(self, journal: Journal, limit: PullLimit) -> None:
        self._journal, self._limit = journal, limit

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/idle":
            while self._journal.in_flight:
                await asyncio.sleep(0.005)
        elif request.path == "/set":
            self._journal.refuse = request.query["refuse"] == "1"
            self._journal.head_delay = float(request.query["head_delay"])
        elif request.path == "/limit":
            pulls = request.query.get("pulls")
            self._limit.set(int(pulls) if pulls else None)
        return web.Response()


async def serve(settings: dict[str, str]) -> None:
    journal = Journal(Path(settings["log"]))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(settings["server"])
    no_limit = ClientTimeout(total=None, sock_connect=10)
    async with ClientSession(timeout=no_limit, auto_decompress=False, cookie_jar=DummyCookieJar()) as session:
        limit = PullLimit()
        hub = Front(journal, session, settings["hub"], limit)
        ghcr = Front(journal, session, settings["ghcr"], PullLimit())
        auth = TokenServer(Signer(Path(settings["token"])))
        cdn = Cdn(Path(settings["files"]))
        sites = [
            (HUB, 443, tls, journal.handler("hub", hub.answer)),
            (AUTH, 443, tls, journal.handler("auth", auth.answer)),
            (GHCR, 443, tls, journal.handler("ghcr", ghcr.answer)),
            (CDN, 443, tls, journal.handler("cdn", cdn.answer)),
            (CONTROL, 80, None, Control(journal, limit).answer),
        ]
        for address, port, context, handler in sites:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(app, access_log=None, auto_decompress=False, handle_signals=False)
            await runner.setup()
            await web.TCPSite(runner, address, port, ssl_context=context).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
