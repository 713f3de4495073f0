"""How the judge asks: logins, tokens, redirects, TLS, broken connections; and what its log does not tell."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
import trustme
from aiohttp import web

from mirror.conformance import Login, Options, Unreachable, Version, judge
from mirror.conformance.case import Failed, Outcome
from mirror.conformance.client import Registry
from mirror.conformance.content import digest_of
from tests.conformance_registry import ConformantRegistry, flag, status

ALL = tuple(Version)
USER = ("somebody", "a secret word")
LOGIN = Login(user=USER[0], password=USER[1])


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("anonymous", [False, True], ids=["all-log-in", "anonymous-pulls"])
async def test_a_login_is_used_where_it_is_wanted(scheme: str, anonymous: bool) -> None:
    async with ConformantRegistry(login=USER, scheme=scheme, anonymous=anonymous) as registry:
        judgement = await judge(registry.url, ALL, Options(), login=LOGIN)
        sent = {method for method, path, given in registry.seen if given and path != "/token"}
        assert {"PUT", "POST", "PATCH", "DELETE"} <= sent
    assert judgement.passes_all
    assert {result.outcome for result in judgement.results} == {Outcome.PASSED}


async def test_a_token_is_fetched_once_for_a_kind_of_request() -> None:
    async with ConformantRegistry(login=USER, scheme="bearer") as registry:
        await judge(
            registry.url, ALL, Options(), login=LOGIN, only=("blob-get", "blob-head", "upload-put", "chunk-close")
        )
        tokens = [path for _, path, _ in registry.seen if path == "/token"]
        refused = [name for name in registry.asked if name.endswith("401")]
        assert len(tokens) == len(refused) == 4, "/v2/, pulling, pushing, deleting"
        assert len(registry.asked) > 20


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_a_login_that_is_not_taken_is_said(scheme: str) -> None:
    async with ConformantRegistry(login=USER, scheme=scheme) as registry:
        with pytest.raises(Unreachable, match="does not take the login of 'somebody'"):
            await judge(registry.url, ALL, Options(), login=Login(user=USER[0], password="wrong"))
        with pytest.raises(Unreachable, match="give --user"):
            await judge(registry.url, ALL, Options())


async def test_without_a_login_tokens_are_for_pulling() -> None:
    async with ConformantRegistry(login=USER, scheme="bearer", anonymous=True) as registry:
        judgement = await judge(registry.url, ALL, Options(), only=("manifest-get-unknown-tag", "upload-put"))
    outcomes = {result.case.name: result.outcome for result in judgement.results}
    assert outcomes == {"manifest-get-unknown-tag": Outcome.PASSED, "upload-put": Outcome.UNSUPPORTED}
    assert judgement.no_pushes.endswith("answers 401 (log in by --user)")


async def test_no_secret_is_in_the_log() -> None:
    async with ConformantRegistry(status("blob-get 200", 500), login=USER, scheme="bearer") as registry:
        judgement = await judge(registry.url, ALL, Options(), login=LOGIN)
    log = "\n".join(line for result in judgement.results for line in result.log)
    assert "-> 500" in log
    for secret in (USER[1], LOGIN.basic.split()[1], "user|", "Bearer user"):
        assert secret not in log
    assert USER[1] not in repr(LOGIN)


async def test_redirects_are_followed_without_the_login() -> None:
    async with ConformantRegistry(flag("redirects"), login=USER) as registry:
        judgement = await judge(registry.url, ALL, Options(), login=LOGIN, only=("blob-get", "blob-get-digest-header"))
        elsewhere = [given for _, path, given in registry.seen if path.startswith("/elsewhere/")]
        assert elsewhere
        assert set(elsewhere) == {None}
    assert judgement.passes_all, "the digest header of the redirect counts"


async def test_an_upload_elsewhere_gets_no_login() -> None:
    """A Location of another host is followed, without the registry's login."""
    seen: list[str | None] = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        await request.read()
        return web.Response(status=201, headers={"Location": "/"})

    async with serving(take) as (_, other), ConformantRegistry(login=USER) as registry:
        async with Registry(registry.url, login=LOGIN) as client:
            begun = await client.ask("POST", "/v2/local/x/blobs/uploads/")
            assert begun.status == 202
            await client.ask("PUT", f"{other}/v2/local/x/blobs/uploads/1?key=1", body=b"x")
    assert seen == [None]


async def test_a_large_body_has_its_length_and_a_stream_has_none() -> None:
    seen: list[tuple[str | None, str | None, int]] = []

    async def take(request: web.Request) -> web.Response:
        data = await request.read()
        seen.append((request.headers.get("Content-Length"), request.headers.get("Transfer-Encoding"), len(data)))
        return web.Response(status=202)

    async with serving(take) as (_, url), Registry(url) as client:
        await client.ask("PUT", "/v2/x", body=b"a" * 3_000_000)
        await client.ask("PATCH", "/v2/x", body=b"a" * 100_000, chunked=True)
        await client.ask("POST", "/v2/x")
        await client.ask("PUT", "/v2/x", body=b"a")
    assert seen == [("3000000", None, 3_000_000), (None, "chunked", 100_000), ("0", None, 0), ("1", None, 1)]


async def test_names_and_locations_are_sent_as_they_are() -> None:
    seen: list[str] = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    async with serving(take) as (_, url), Registry(url) as client:
        await client.ask("GET", "/v2/a/two..dots/manifests/x")
        await client.ask("PUT", f"{url}/v2/a/blobs/uploads/1?_state=%7Ea%2Bb%3D", query={"digest": "sha256:ab"})
        await client.ask("GET", "/v2/a/referrers/x", query={"artifactType": "application/a+b"})
    assert seen == [
        "/v2/a/two..dots/manifests/x",
        "/v2/a/blobs/uploads/1?_state=%7Ea%2Bb%3D&digest=sha256:ab",
        "/v2/a/referrers/x?artifactType=application/a%2Bb",
    ]


async def test_a_connection_that_breaks_is_a_failure_that_says_so() -> None:
    async def take(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"short")
        assert request.transport
        request.transport.close()
        return response

    async with serving(take) as (_, url), Registry(url) as client:
        with pytest.raises(Failed, match="expected an answer to GET /v2/x, got ClientPayloadError"):
            await client.ask("GET", "/v2/x")
        assert "ClientPayloadError" in client.log[-1]


async def test_an_answer_that_does_not_come_is_a_failure() -> None:
    gone = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        await gone.wait()
        return web.Response()

    async with serving(take) as (_, url), Registry(url, timeout=0.2) as client:
        with pytest.raises(Failed, match="Timeout"):
            async with asyncio.timeout(10):
                await client.ask("GET", "/v2/x")
        gone.set()


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(Unreachable, match="does not answer"):
            await judge(url, ALL, Options())


async def test_certificates_are_checked() -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with ConformantRegistry(ssl=context) as registry:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await judge(registry.url, ALL, Options(), only=("api-root",))
        for tls in (trusting, False):
            judgement = await judge(registry.url, ALL, Options(), tls=tls, only=("api-root", "upload-put"))
            assert judgement.passes_all
            assert len(judgement.results) == 2


def test_digests() -> None:
    assert digest_of(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class serving:
    """Serve every request by one handler. Gives the runner and the URL."""

    def __init__(self, handler: object) -> None:
        self._handler = handler

    async def __aenter__(self) -> tuple[web.AppRunner, str]:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handler)  # type: ignore[arg-type]
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self._runner, f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
