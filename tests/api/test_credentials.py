"""Logins as they travel: real applications in front of registries that ask for them in every way there is.

Four workers on one root each time, as each has its own tokens and its own memory of what helpers said.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp.abc import AbstractResolver, ResolveResult

from mirror.config import Credentials
from mirror.upstream import helper
from mirror.upstream.credentials import ASKED_AGAIN
from tests.clouds import Acr, Ecr, Gar, Ghcr, Thief
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.helpers import Helpers
from tests.images import NAME, Clock, blob_path, get_image, kept, manifest_path, pull, until, use_client

SECRET = "hunter2-never-shown"
BASIC = base64.b64encode(f"robot:{SECRET}".encode()).decode()
WORKERS = 4


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helpers:
    return Helpers(tmp_path / "bin", monkeypatch)


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which tokens, and what helpers said, grow old."""
    clock = Clock()
    use_client(monkeypatch, clock=clock)
    return clock


class Service:
    """Four workers with the hub as the upstream ``up``, and another, empty, public upstream ``other``."""

    def __init__(self, hub: FakeUpstream, folder: Path) -> None:
        self.hub = hub
        self.folder = folder
        self.root = folder / "root"
        self.workers: list[Mirror] = []

    def docker_config(self, **content: Any) -> Credentials:
        path = self.folder / "config.json"
        path.write_text(json.dumps(content))
        return Credentials(docker_config=path)

    def entry(self, **entry: Any) -> Credentials:
        """Return an account by docker's file, whose entry for the hub this is."""
        return self.docker_config(auths={self.hub.netloc: entry})

    def password(self, user: str = "robot", password: str = SECRET) -> Credentials:
        path = self.folder / "password"
        path.write_text(password)
        return Credentials(username=user, password_file=path)

    @contextlib.asynccontextmanager
    async def running(self, credentials: Credentials | None, **settings: Any) -> AsyncIterator[list[Mirror]]:
        async with FakeUpstream() as other:
            up = {"url": self.hub.url, "credentials": credentials or ()} | settings
            config = make_config(self.root, {"up": up, "other": {"url": other.url}})
            async with mirrors(config, WORKERS) as self.workers:
                yield self.workers

    async def pulled(self, *images: Image) -> None:
        """Let each worker pull the image that is its own; all of it arrives."""
        for worker, image in zip(self.workers, images, strict=True):
            await pull(worker, image)
            await kept(self.root, image.digest, *image.blobs)

    async def is_public(self, image: Image) -> bool:
        """Say whether what was pulled can be read through an upstream that does not have it."""
        answers = [await self.workers[0].get(blob_path(digest, "other/x/y")) for digest in image.blobs]
        answers.append(await self.workers[0].get(manifest_path(image.digest, "other/x/y")))
        assert {answer.status for answer in answers} in ({200}, {404})
        return answers[0].status == 200


@contextlib.asynccontextmanager
async def serving(hub: FakeUpstream, tmp_path: Path) -> AsyncIterator[tuple[Service, list[Image]]]:
    """Give a service to start, and an image for each of its workers."""
    async with hub:
        yield Service(hub, tmp_path), [hub.add_image(NAME, f"{n}") for n in range(WORKERS)]


def told(answer: Answer) -> str:
    """Return the message of an error, which says nothing secret."""
    text = answer.body.decode()
    assert SECRET not in text, text
    assert BASIC not in text, text
    message: str = json.loads(text)["errors"][0]["message"]
    return message


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.text + "".join(repr(vars(record)) for record in caplog.records)


# ---- Amazon ----


@pytest.mark.parametrize("expired", [403, 401])
async def test_ecr(tmp_path: Path, helpers: Helpers, ticks: Clock, expired: int) -> None:
    helpers.answering("ecr-login", "AWS", SECRET)
    hub = Ecr(SECRET, expired=expired)
    async with serving(hub, tmp_path) as (service, images), service.running(Credentials(helper="ecr-login")):
        await service.pulled(*images)
        assert helpers.questions("ecr-login") == [f"get {hub.netloc}"] * WORKERS
        assert hub.authorizations("cdn") == []
        assert hub.count(server="cdn") == sum(len(image.blobs) for image in images)
        assert not await service.is_public(images[0])
        # twelve hours later; what is remembered was said a moment ago
        hub.users["AWS"] = "renewed"
        helpers.answering("ecr-login", "AWS", "renewed")
        more = [hub.add_image(NAME, f"more-{n}") for n in range(WORKERS)]
        hub.clear_log()
        await service.pulled(*more)
        assert len(helpers.questions("ecr-login")) == 2 * WORKERS
        assert [request.status for request in hub.requests("HEAD", "manifests")] == [expired, 200] * WORKERS


async def test_ecr_that_refuses_everything_does_not_run_the_helper_all_the_time(
    tmp_path: Path, helpers: Helpers, ticks: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    helpers.answering("ecr-login", "AWS", SECRET)
    async with serving(Ecr("another"), tmp_path) as (service, _), service.running(Credentials(helper="ecr-login")):
        for worker in service.workers * 3:
            answer = await worker.get(manifest_path("1"))
            assert (answer.status, answer.code) == (403, "DENIED")
            assert "'AWS'" in told(answer)
            assert "credentials.helper" in told(answer)
        assert len(helpers.questions("ecr-login")) == 2 * WORKERS
        assert SECRET not in log_of(caplog)


async def test_a_password_file_that_was_changed_counts_at_once(tmp_path: Path) -> None:
    hub = Ecr("first")
    async with serving(hub, tmp_path) as (service, images), service.running(service.password("AWS", "first")):
        await service.pulled(*images)
        hub.users["AWS"] = SECRET
        more = [hub.add_image(NAME, f"more-{n}") for n in range(WORKERS)]
        assert (await service.workers[0].get(manifest_path("more-0"))).status == 403
        service.password("AWS", SECRET)
        hub.clear_log()
        await service.pulled(*more)
        assert {request.status for request in hub.requests(part="manifests")} == {200}


async def test_a_password_of_the_settings_that_is_refused_names_its_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Ecr(SECRET)
    async with serving(hub, tmp_path) as (service, images):
        async with service.running(Credentials(username="AWS", password=SECRET)):
            await service.pulled(*images)
        hub.users["AWS"] = "another"
        hub.add_image(NAME, "more")
        async with service.running(Credentials(username="AWS", password=SECRET)):
            answer = await service.workers[0].get(manifest_path("more"))
            assert (answer.status, answer.code) == (403, "DENIED")
            assert "credentials.password under upstreams.up" in told(answer)
    assert SECRET not in log_of(caplog)


# ---- Google ----


@pytest.mark.parametrize("silent", [False, True])
async def test_gar_with_a_key(tmp_path: Path, silent: bool) -> None:
    key = json.dumps({"private_key": SECRET})
    hub = Gar({"_json_key": key})
    hub.silent = silent
    auth = base64.b64encode(f"_json_key:{key}".encode()).decode()
    async with serving(hub, tmp_path) as (service, images), service.running(service.entry(auth=auth)):
        await service.pulled(*images)
        tokens = hub.requests(part="/token")
        assert [request.method for request in tokens] == ["GET"] * WORKERS
        assert {request.query["scope"] for request in tokens} == {f"repository:{NAME}:pull"}
        assert not await service.is_public(images[0])


async def test_gar_with_an_access_token_that_expires(tmp_path: Path, helpers: Helpers, ticks: Clock) -> None:
    helpers.answering("gcloud", "oauth2accesstoken", SECRET)
    hub = Gar({"oauth2accesstoken": SECRET})
    async with serving(hub, tmp_path) as (service, images):
        given = service.docker_config(credHelpers={hub.netloc: "gcloud"})
        async with service.running(given):
            await service.pulled(*images)
            hub.users["oauth2accesstoken"] = "renewed"
            helpers.answering("gcloud", "oauth2accesstoken", "renewed")
            hub.expire_tokens()
            hub.clear_log()
            await service.pulled(*(hub.add_image(NAME, f"more-{n}") for n in range(WORKERS)))
            assert [request.status for request in hub.requests(part="/token")] == [401, 200] * WORKERS
            assert helpers.questions("gcloud") == [f"get {hub.netloc}"] * (2 * WORKERS)


async def test_a_realm_that_takes_no_identity_tokens(tmp_path: Path) -> None:
    async with serving(Gar({}), tmp_path) as (service, _), service.running(service.entry(identitytoken=SECRET)):
        answer = await service.workers[0].get(manifest_path("1"))
        assert (answer.status, answer.code) == (503, "UNAVAILABLE")
        assert "404; it may take no identity tokens" in told(answer)
        assert "credentials.docker_config" in told(answer)


# ---- Azure ----


@pytest.mark.parametrize("by", ["docker_config", "helper"])
async def test_acr(tmp_path: Path, helpers: Helpers, by: str) -> None:
    hub = Acr(SECRET)
    helpers.answering("acr-env", "<token>", SECRET)
    async with serving(hub, tmp_path) as (service, images):
        nobody = base64.b64encode(b"00000000-0000-0000-0000-000000000000:").decode()
        file = service.entry(auth=nobody, identitytoken=SECRET)
        async with service.running(file if by == "docker_config" else Credentials(helper="acr-env")):
            await service.pulled(*images)
            form = {
                "grant_type": "refresh_token",
                "service": hub.service,
                "scope": f"repository:{NAME}:pull",
                "client_id": "oci-mirror",
                "refresh_token": SECRET,
            }
            assert hub.forms == [form] * WORKERS
            assert [request.method for request in hub.requests(part="/oauth2/token")] == ["POST"] * WORKERS
            assert not [request for request in hub.requests() if "Basic" in (request.authorization or "")]
            assert not await service.is_public(images[0])


@pytest.mark.parametrize("expired", [(401, b"{}"), (400, b'{"error": "invalid_grant"}')], ids=["401", "400"])
async def test_acr_with_an_identity_token_that_has_expired(
    tmp_path: Path, expired: tuple[int, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    hub = Acr("another", expired=expired)
    async with serving(hub, tmp_path) as (service, images), service.running(service.entry(identitytoken=SECRET)):
        answer = await service.workers[0].get(manifest_path("1"))
        assert (answer.status, answer.code) == (403, "DENIED")
        assert "'docker_config config.json'" in told(answer)
        assert SECRET not in log_of(caplog)
        service.entry(identitytoken="another")
        await service.pulled(*images)


# ---- others ----


class Ports(AbstractResolver):
    """A resolver by which every host is at a port of its own on loopback."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        port = self.ports[host]
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=2, proto=0, flags=0)]

    async def close(self) -> None: ...


LOOKALIKES = ("auth.docker.io.evil.com", "evildocker.io", "docker.io.evil.com", "evil.com")


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """Return what a server may speak TLS with, as any of the names, and whom to trust for it."""
    ca, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("registry-1.docker.io", "auth.docker.io", *LOOKALIKES).configure_cert(context)
    pem = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(str(pem))
    return context, pem


async def test_docker_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: tuple[ssl.SSLContext, Path]
) -> None:
    context, pem = certificates
    hub = FakeUpstream(auth="token", users={"robot": SECRET}, private=[NAME], ssl=context)
    hub.realm = "https://auth.docker.io/token"
    async with serving(hub, tmp_path) as (service, images):
        token_port = int(hub.token_url.rpartition(":")[2].removesuffix("/token"))
        use_client(monkeypatch, resolver=Ports({"registry-1.docker.io": hub.port, "auth.docker.io": token_port}))
        given = service.docker_config(auths={"https://index.docker.io/v1/": {"auth": BASIC}})
        async with service.running(given, url="https://registry-1.docker.io", ca_file=pem):
            await service.pulled(*images)
            assert hub.authorizations("token") == [f"Basic {BASIC}"] * WORKERS
            assert not [header for header in hub.authorizations("registry") if "Basic" in header]
            assert not await service.is_public(images[0])


async def test_ghcr(tmp_path: Path) -> None:
    hub = Ghcr({"robot": SECRET}, private=[NAME])
    async with serving(hub, tmp_path) as (service, images), service.running(service.entry(auth=BASIC)):
        await service.pulled(*images)
        assert [request.query["scope"] for request in hub.requests("GET", "/token")] == [
            f"repository:{NAME}:pull"
        ] * WORKERS


async def test_a_ready_token_goes_to_the_registry_and_no_realm(tmp_path: Path) -> None:
    hub = FakeUpstream(auth="token", private=[NAME], redirect=True)
    async with serving(hub, tmp_path) as (service, images):
        async with service.running(service.entry(registrytoken=SECRET)):
            answer = await service.workers[0].get(manifest_path("0"))
            assert answer.status == 403
            assert "'docker_config config.json'" in told(answer)
            hub.tokens[SECRET] = await _forever(hub)
            await service.pulled(*images)
            assert hub.count(part="/token", server="registry") == 1  # ours, below
            assert set(hub.authorizations("registry")) == {f"Bearer {SECRET}"}
            assert hub.authorizations("cdn") == []
            assert not await service.is_public(images[0])


async def _forever(hub: FakeUpstream) -> Any:
    hub.private.clear()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{hub.url}/token?scope=repository:{NAME}:pull") as response:
            token = (await response.json())["token"]
    hub.private.add(NAME)
    return hub.tokens[token]


# ---- nobody ----


@pytest.mark.parametrize("by", ["empty", "others", "helper"])
@pytest.mark.parametrize("auth", ["token", "basic"])
async def test_an_account_without_a_login_here_is_nobody(tmp_path: Path, helpers: Helpers, by: str, auth: str) -> None:
    helpers.write("cloud", "echo credentials not found in native keychain; exit 1")
    hub = FakeUpstream(auth=auth)
    async with serving(hub, tmp_path) as (service, images):
        hidden = hub.add_image("team/hidden", "1")
        hub.private.add("team/hidden")
        given = {
            "empty": lambda: service.docker_config(),
            "others": lambda: service.docker_config(auths={"quay.io": {"auth": BASIC}, "127.0.0.1": {"auth": BASIC}}),
            "helper": lambda: service.docker_config(credsStore="cloud"),
        }[by]()
        async with service.running(given):
            await service.pulled(*images)
            assert await service.is_public(images[0])
            assert not [header for header in hub.authorizations("registry") if "Basic" in header]
            answer = await service.workers[0].get(manifest_path(hidden.digest, "up/team/hidden"))
            assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
            hub.refuse = lambda request: "refused" in request.path
            answer = await service.workers[1].get(manifest_path("refused"))
            assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("auth", ["token", "basic"])
async def test_a_login_that_comes_later_is_used_without_a_restart(tmp_path: Path, auth: str) -> None:
    hub = FakeUpstream(auth=auth, users={"robot": SECRET}, private=[NAME])
    async with serving(hub, tmp_path) as (service, images), service.running(service.docker_config()):
        for worker in service.workers:
            assert (await worker.get(manifest_path(images[0].digest))).status == 404
        service.entry(auth=BASIC)
        await service.pulled(*images)
        assert not await service.is_public(images[0])
        # and when it goes again, what was private stays private
        service.docker_config()
        hub.expire_tokens()
        more = hub.add_image(NAME, "more")
        assert (await service.workers[0].get(manifest_path(more.digest))).status == 404
        assert not await service.is_public(images[0])


@pytest.mark.parametrize("auth", ["token", "basic"])
async def test_a_login_that_a_helper_has_later_is_used(
    tmp_path: Path, helpers: Helpers, ticks: Clock, auth: str
) -> None:
    helpers.write("cloud", "echo credentials not found in native keychain; exit 1")
    hub = FakeUpstream(auth=auth, users={"robot": SECRET}, private=[NAME])
    async with serving(hub, tmp_path) as (service, images), service.running(Credentials(helper="cloud")):
        for worker in service.workers:
            assert (await worker.get(manifest_path(images[0].digest))).status == 404
        helpers.answering("cloud", "robot", SECRET)
        ticks.advance(ASKED_AGAIN)
        await service.pulled(*images)


async def test_a_wrong_password_is_given_to_the_realm_once(tmp_path: Path) -> None:
    hub = FakeUpstream(auth="token", users={"robot": "another"})
    async with serving(hub, tmp_path) as (service, _), service.running(service.password()):
        for worker in service.workers:
            answer = await worker.get(manifest_path("1"))
            assert (answer.status, answer.code) == (403, "DENIED")
            assert "'robot'" in told(answer)
        assert hub.authorizations("registry") == [f"Basic {BASIC}"] * WORKERS


async def test_a_refusal_without_a_challenge_names_who_was_refused(tmp_path: Path) -> None:
    hub = FakeUpstream(refuse=lambda request: True)
    async with serving(hub, tmp_path) as (service, _), service.running(service.entry(auth=BASIC)):
        answer = await service.workers[0].get(manifest_path("1"))
        assert (answer.status, answer.code) == (403, "DENIED")
        assert "'robot'" in told(answer)


# ---- who may be given a login ----

KINDS: dict[str, Callable[[Service, Helpers], Credentials]] = {
    "password": lambda service, helpers: service.password(),
    "auth": lambda service, helpers: service.docker_config(auths=_everywhere(service, auth=BASIC)),
    "identity": lambda service, helpers: service.docker_config(auths=_everywhere(service, identitytoken=SECRET)),
    "helper": lambda service, helpers: _helper(helpers, "robot"),
    "helper-identity": lambda service, helpers: _helper(helpers, "<token>"),
}


def _everywhere(service: Service, **entry: str) -> dict[str, dict[str, str]]:
    return {service.hub.netloc: entry, "https://index.docker.io/v1/": entry}


def _helper(helpers: Helpers, user: str) -> Credentials:
    helpers.answering("cloud", user, SECRET)
    return Credentials(helper="cloud")


def assert_nothing_secret(thief: Thief) -> None:
    seen = "\n".join(thief.seen)
    assert SECRET not in seen, seen
    assert BASIC not in seen, seen
    assert "Authorization" not in seen, seen


@pytest.mark.parametrize("kind", KINDS)
async def test_a_realm_elsewhere_that_asks_for_it_gets_nothing(
    tmp_path: Path, helpers: Helpers, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The hub names a realm on another host, as a registry that was broken into would (CVE-2026-33540)."""
    hub = FakeUpstream(auth="token", users={"robot": SECRET}, private=[NAME])
    async with Thief(host="127.0.0.2") as thief, serving(hub, tmp_path) as (service, _):
        hub.realm = thief.token_url
        realm = thief.token_url.removeprefix("http://").removesuffix("/token")
        given = KINDS[kind](service, helpers)
        async with service.running(given):
            for worker in service.workers:
                for path in (manifest_path("1"), blob_path(f"sha256:{'0' * 64}")):
                    answer = await worker.get(path)
                    assert (answer.status, answer.code) == (503, "UNAVAILABLE")
                    assert f"its token realm '{realm}' may not be given the credentials" in told(answer)
                    assert "list it in realms of this upstream" in told(answer)
        assert thief.log == []
        assert SECRET not in log_of(caplog)
        # the same realm, listed, does get it: there was something to get
        async with service.running(given, realms=(realm,)):
            await service.workers[0].get(manifest_path("1"))
        assert SECRET in "".join(thief.seen) or BASIC in "".join(thief.seen)


async def test_nobody_may_ask_any_realm(tmp_path: Path) -> None:
    hub = FakeUpstream(auth="token")
    async with Thief(host="127.0.0.2") as thief, serving(hub, tmp_path) as (service, _):
        hub.realm = thief.token_url
        async with service.running(service.docker_config()):
            assert (await service.workers[0].get(manifest_path("1"))).status == 404
        assert len(thief.seen) == 1
        assert_nothing_secret(thief)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "realm",
    [
        "https://auth.docker.io.evil.com/token",
        "https://evildocker.io/token",
        "https://evil.com/token?x=https://auth.docker.io/token",
        "https://auth.docker.io@evil.com/token",
        "https://docker.io.evil.com/token",
        "http://auth.docker.io/token",
        "http://registry-1.docker.io/token",
    ],
    ids=["subdomain", "suffix", "query", "userinfo", "prefix", "plain", "plain-own"],
)
async def test_realms_that_look_alike_get_nothing(
    tmp_path: Path,
    helpers: Helpers,
    monkeypatch: pytest.MonkeyPatch,
    certificates: tuple[ssl.SSLContext, Path],
    kind: str,
    realm: str,
) -> None:
    context, pem = certificates
    tls = None if realm.startswith("http:") else context
    hub = FakeUpstream(auth="token", ssl=context)
    async with Thief(ssl=tls) as thief, serving(hub, tmp_path) as (service, _):
        hub.realm = realm
        ports = dict.fromkeys((*LOOKALIKES, "auth.docker.io"), thief.port)
        use_client(monkeypatch, resolver=Ports(ports | {"registry-1.docker.io": hub.port}))
        given = KINDS[kind](service, helpers)
        async with service.running(given, url="https://registry-1.docker.io", ca_file=pem):
            answer = await service.workers[0].get(manifest_path("1"))
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert "realm" in told(answer)
        assert thief.log == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_realm_that_redirects_takes_nothing_along(
    tmp_path: Path, helpers: Helpers, kind: str, status: int
) -> None:
    hub = FakeUpstream(auth="token", users={"robot": SECRET}, private=[NAME])
    async with Thief(host="127.0.0.2") as thief, serving(hub, tmp_path) as (service, _):
        hub.fail("registry GET /token", status=status, headers={"Location": thief.token_url})
        hub.fail("registry POST /token", status=status, headers={"Location": thief.token_url})
        async with service.running(KINDS[kind](service, helpers)):
            answer = await service.workers[0].get(manifest_path("1"))
        if "identity" in kind:
            assert (answer.status, thief.log) == (503, [])
            assert "a redirect of a form" in told(answer)
        else:
            assert len(thief.seen) == 1  # it may give tokens, but not be given anything
        assert hub.count(part="/token") == 1
        assert_nothing_secret(thief)


async def test_a_challenge_for_basic_gets_a_password_at_the_registry_only(tmp_path: Path) -> None:
    hub = FakeUpstream(auth="basic", users={"robot": SECRET}, private=[NAME], redirect=True)
    async with Thief(host="127.0.0.2") as thief, serving(hub, tmp_path) as (service, images):
        hub.fail("manifests/away", status=307, headers={"Location": f"{thief.url}/v2/x"})
        async with service.running(service.password()):
            await service.pulled(*images)
            await service.workers[0].get(manifest_path("away"))
        assert thief.seen
        assert_nothing_secret(thief)
        assert hub.authorizations("cdn") == []


async def test_an_identity_token_is_nothing_for_basic(tmp_path: Path) -> None:
    hub = FakeUpstream(auth="basic", private=[NAME])
    async with serving(hub, tmp_path) as (service, _), service.running(service.entry(identitytoken=SECRET)):
        answer = await service.workers[0].get(manifest_path("1"))
        assert (answer.status, answer.code) == (403, "DENIED")
        assert hub.authorizations("registry") == []


# ---- helpers and files that fail ----


async def test_a_helper_that_hangs(
    tmp_path: Path, helpers: Helpers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(helper, "TIME_LIMIT", 1.0)
    helpers.write("cloud", f"echo {SECRET} >&2; sleep 1000 & echo $! >>$0.pids; wait")
    async with serving(FakeUpstream(auth="token"), tmp_path) as (service, _):
        async with service.running(Credentials(helper="cloud")):
            for worker in service.workers:
                answer = await worker.get(manifest_path("1"))
                assert (answer.status, answer.code) == (503, "UNAVAILABLE")
                assert "docker-credential-cloud did not answer within 1 s" in told(answer)
            # those who come in the next moment do not wait for another one
            assert (await service.workers[0].get(manifest_path("1"))).status == 503
            assert len(helpers.questions("cloud")) == WORKERS
            await until(lambda: helpers.gone("cloud"), "every helper and its child is gone")
            helpers.assert_gone("cloud")
        assert SECRET not in log_of(caplog)


async def test_a_service_that_stops_leaves_no_helper(tmp_path: Path, helpers: Helpers) -> None:
    helpers.gated("cloud", "robot", SECRET)
    async with serving(FakeUpstream(auth="token"), tmp_path) as (service, _):
        async with service.running(Credentials(helper="cloud")):
            asking = asyncio.create_task(service.workers[0].get(manifest_path("1")))
            await until(lambda: helpers.questions("cloud"), "it is asked")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        helpers.assert_gone("cloud")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"echo {SECRET} >&2; exit 1", "failed (exit status 1)"),
        (f"echo {SECRET}; exit 1", "failed (exit status 1)"),
        (f"echo '<html>{SECRET}'", "answered something that is not JSON"),
        (f"while :; do echo {SECRET}; done", "wrote more than"),
        (None, "is not there"),
    ],
    ids=["errors", "output", "garbage", "megabytes", "missing"],
)
async def test_a_helper_that_fails(
    tmp_path: Path, helpers: Helpers, body: str | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if body is not None:
        helpers.write("cloud", body)
    async with serving(FakeUpstream(auth="token"), tmp_path) as (service, _):
        async with service.running(Credentials(helper="cloud")):
            answer = await service.workers[0].get(manifest_path("1"))
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert f"the program docker-credential-cloud {reason}" in told(answer)
    assert SECRET not in log_of(caplog)


async def test_a_helper_is_not_asked_for_what_is_public_or_kept(tmp_path: Path, helpers: Helpers) -> None:
    helpers.answering("cloud", "robot", SECRET)
    async with serving(FakeUpstream(), tmp_path) as (service, images):
        async with service.running(Credentials(helper="cloud")):
            await service.pulled(*images)
            for worker in service.workers:
                await get_image(worker, images[0])
            assert helpers.questions("cloud") == []


@pytest.mark.parametrize("content", [SECRET, json.dumps([SECRET]), "", None], ids=["text", "list", "empty", "gone"])
async def test_a_docker_config_that_cannot_be_used(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    hub = FakeUpstream(auth="token", users={"robot": SECRET}, private=[NAME])
    async with serving(hub, tmp_path) as (service, images):
        given = service.entry(auth=BASIC)
        assert given.docker_config is not None
        given.docker_config.unlink()
        if content is not None:
            given.docker_config.write_text(content)
        async with service.running(given):
            for worker in service.workers:
                answer = await worker.get(manifest_path("1"))
                assert (answer.status, answer.code) == (503, "UNAVAILABLE")
                assert "check credentials.docker_config" in told(answer)
            assert SECRET not in log_of(caplog)
            service.entry(auth=BASIC)
            await service.pulled(*images)
