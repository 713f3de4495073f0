"""How upstreams are connected to: proxies, certificates shown and checked, and nothing that waits in between.

Names that end in .test are known to the proxy alone: what reached them came by way of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from mirror.config import ClientCertificate, Credentials, Proxy, Upstream
from mirror.oci.errors import (
    ManifestUnknown,
    UpstreamError,
    UpstreamTimeout,
    UpstreamTokenFailed,
    UpstreamUnreachable,
)
from mirror.oci.names import RepositoryName, Tag, parse_digest
from mirror.upstream.client import RegistryClient
from mirror.upstream.transport import Timeouts
from tests.api.test_upstream_client import Names
from tests.fake_proxy import FakeProxy
from tests.fake_upstream import FakeUpstream
from tests.harness import make_config, mirrors
from tests.images import NAME, pull

REPO = RepositoryName(NAME)
SECRET = "hunter2-never-shown"
KNOWN = dict.fromkeys(("hub.test", "cdn.test", "auth.test", "registry", "minio", "10.1.2.3"), "127.0.0.1")


class Party:
    """An authority, and what it vouches for."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ca = trustme.CA()
        self.ca_file = folder / f"{name}-ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self._folder = folder

    def server(self, *hosts: str, clients: Party | None = None, demanded: bool = True) -> ssl.SSLContext:
        """Return what a server of these hosts speaks TLS with. clients: whose certificates it takes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(hosts or KNOWN)).configure_cert(context)
        if clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED if demanded else ssl.CERT_OPTIONAL
            clients.ca.configure_trust(context)
        return context

    def pair(self, name: str = "client") -> ClientCertificate:
        """Return a client certificate and its key as files."""
        issued = self.ca.issue_cert(f"{name}.test")
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return ClientCertificate(certificate=certificate, key=key)


@pytest.fixture
def ours(tmp_path: Path) -> Party:
    return Party(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Party:
    """An authority that nobody here was told to trust."""
    return Party(tmp_path, "theirs")


@pytest.fixture
async def proxy() -> AsyncIterator[FakeProxy]:
    async with FakeProxy(names=KNOWN) as running:
        yield running


@pytest.fixture
async def hub() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


Make = Callable[..., RegistryClient]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[RegistryClient] = []

    def build(url: str, *, timeouts: Timeouts | None = None, resolver: Any = None, **settings: Any) -> RegistryClient:
        settings.setdefault("retries", 0)
        client = RegistryClient(
            "hub", Upstream(url=url, **settings), timeouts=timeouts or Timeouts(headers=10.0), resolver=resolver
        )
        made.append(client)
        return client

    yield build
    for client in made:
        await client.close()


def at(hub: FakeUpstream, host: str, server: str = "url") -> str:
    """Return the URL of one of the hub's servers by another name."""
    url: str = getattr(hub, server)
    return url.replace("127.0.0.1", host)


def secret(tmp_path: Path, text: str = SECRET) -> Path:
    path = tmp_path / "proxy-password"
    path.write_text(text + "\n")
    return path


async def blob(client: RegistryClient, digest: str) -> bytes:
    async with client.blob(REPO, parse_digest(digest)) as body:
        return b"".join([chunk async for chunk in body.chunks()])


async def manifest(client: RegistryClient, tag: str = "1.0") -> bytes:
    return (await client.manifest(REPO, Tag(tag))).raw


# ---- by way of a proxy ----


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_everything_goes_by_way_of_the_proxy(scheme: str, tmp_path: Path, proxy: FakeProxy, ours: Party) -> None:
    """Four workers, a token realm and a CDN of other names, a login, and a proxy that dies in the midst of a blob."""
    tls = ours.server() if scheme == "https" else None
    proxy.login = f"robot:{SECRET}"
    async with FakeUpstream(auth="token", own_token_port=True, redirect=True, ssl=tls) as hub:
        hub.realm = f"{at(hub, 'auth.test', 'token_url')}"
        hub.redirect_host = "cdn.test"
        image = hub.add_image(NAME, "1.0", layer_sizes=[3 << 20])
        settings: dict[str, Any] = {
            "url": at(hub, "hub.test"),
            "ca_file": ours.ca_file,
            "proxy": {"url": proxy.url, "username": "robot", "password_file": secret(tmp_path)},
        }
        proxy.cut_after, proxy.cuts = 1 << 20, 1
        async with mirrors(make_config(tmp_path / "root", {"up": settings}), 4) as workers:
            await asyncio.gather(*(pull(worker, image) for worker in workers))
        asked = list(hub.log)
        resumed = [request for request in asked if request.server == "cdn" and "Range" in request.headers]
        assert len(resumed) == 1
        assert {request.server for request in asked} == {"registry", "token", "cdn"}
        assert proxy.carried(hub)
        assert proxy.hosts() == {"hub.test", "auth.test", "cdn.test"}
        assert {entry.method for entry in proxy.log} == ({"CONNECT"} if tls else {"GET", "HEAD"})
        assert {entry.status for entry in proxy.log} == {200}
        assert proxy.cuts == 0
        assert not any(name.lower().startswith("proxy-") for request in asked for name in request.headers)


async def test_a_tunnel_is_used_again(make: Make, proxy: FakeProxy, ours: Party) -> None:
    async with FakeUpstream(ssl=ours.server()) as hub:
        hub.add_image(REPO, "1.0")
        client = make(at(hub, "hub.test"), proxy=proxy.url, ca_file=ours.ca_file)
        for _ in range(3):
            await manifest(client)
        assert len(proxy.log) == 1


async def test_the_password_of_the_proxy_is_read_again(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, tmp_path: Path
) -> None:
    hub.add_image(REPO, "1.0")
    path = secret(tmp_path, "first")
    client = make(at(hub, "hub.test"), proxy=Proxy(url=proxy.url, username="robot", password_file=path))
    for password in ("first", "second, and longer"):
        proxy.login = f"robot:{password}"
        path.write_text(password)
        assert await manifest(client)
    path.unlink()
    with pytest.raises(
        UpstreamUnreachable, match=r"password for the proxy 127\.0\.0\.1:\d+ .*password_file.*; check proxy"
    ):
        await manifest(client)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("to_proxy", ["http", "https"])
async def test_proxies_that_speak_tls(make: Make, scheme: str, to_proxy: str, ours: Party, theirs: Party) -> None:
    tls = ours.server("127.0.0.1", "hub.test")
    async with (
        FakeUpstream(ssl=tls if scheme == "https" else None) as hub,
        FakeProxy(names=KNOWN, ssl=tls if to_proxy == "https" else None) as proxy,
    ):
        image = hub.add_image(REPO, "1.0", layer_sizes=[5 << 20])
        client = make(at(hub, "hub.test"), proxy=proxy.url, ca_file=ours.ca_file)
        assert await blob(client, image.layers[0]) == image.blobs[image.layers[0]]
        assert await manifest(client) == image.raw
        assert proxy.carried(hub)


@pytest.mark.parametrize("insecure", [False, True])
async def test_the_certificate_of_a_proxy_is_always_checked(
    make: Make, ours: Party, theirs: Party, insecure: bool
) -> None:
    async with (
        FakeUpstream(ssl=ours.server()) as hub,
        FakeProxy(names=KNOWN, ssl=theirs.server("127.0.0.1")) as proxy,
    ):
        hub.add_image(REPO, "1.0")
        client = make(at(hub, "hub.test"), proxy=proxy.url, ca_file=ours.ca_file, insecure=insecure)
        with pytest.raises(UpstreamUnreachable, match=r"the proxy 127\.0\.0\.1:\d+: the certificate .*; check proxy"):
            await manifest(client)
        assert not hub.log


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "asks for a login": ({"login": "other:one"}, r"it asks for a login \(407\)"),
    "refuses our login": ({"login": "other:one", "ours": True}, r"it refuses our login \(407\)"),
    "does not let us there": ({"refuse": 403}, r"(it does not connect to it \(403\)|it answered 403 itself)"),
    "cannot reach the host": ({"names": {}}, r"(it does not connect to it \(503\)|it answered 503 itself)"),
    "says so in the standard's words": (
        {"refuse": 404, "says": ["Proxy-Status: corp; error=destination_not_found"]},
        r"(it does not connect to it \(404\)|it answered 404 itself)",
    ),
    "hangs up": ({"drop": True}, r"the connection was closed before an answer came"),
    "is not there": ({"gone": True}, r"no connection to 127\.0\.0\.1:\d+: Connection refused"),
}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", FAULTS)
async def test_a_proxy_that_does_not_do_its_part(
    make: Make, scheme: str, name: str, ours: Party, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fault, said = FAULTS[name]
    async with FakeUpstream(ssl=ours.server() if scheme == "https" else None) as hub:
        async with FakeProxy(names=KNOWN) as proxy:
            hub.add_image(REPO, "1.0")
            login = {"username": "robot", "password_file": secret(tmp_path)} if "ours" in fault else {}
            client = make(at(hub, "hub.test"), ca_file=ours.ca_file, proxy={"url": proxy.url, **login})
            assert await manifest(make(at(hub, "hub.test"), ca_file=ours.ca_file, proxy=proxy.url))
            for key in fault.keys() - {"ours", "gone"}:
                setattr(proxy, key, fault[key])
            if "gone" not in fault:
                error = await failure(client)
        if "gone" in fault:
            error = await failure(client)
    assert isinstance(error, UpstreamUnreachable)
    assert error.status == 502
    pattern = rf"hub\.test cannot be reached by way of the proxy 127\.0\.0\.1:{proxy.port}: {said}.*; check proxy"
    with pytest.raises(UpstreamUnreachable, match=pattern):
        raise error
    assert SECRET not in caplog.text + str(error)


async def failure(client: RegistryClient) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await manifest(client)
    return caught.value


async def test_an_answer_of_the_registry_stays_its_own(make: Make, hub: FakeUpstream, proxy: FakeProxy) -> None:
    """By way of a proxy that names itself in every answer, as they do."""
    hub.fail("manifests", status=404, headers={"Via": "1.1 corp (squid)", "Proxy-Status": "corp; received-status=404"})
    with pytest.raises(ManifestUnknown):
        await manifest(make(at(hub, "hub.test"), proxy=proxy.url))


async def test_a_proxy_nobody_knows(make: Make, hub: FakeUpstream) -> None:
    client = make(at(hub, "hub.test"), proxy="http://proxy.test:3128", resolver=Names())
    with pytest.raises(UpstreamUnreachable, match=r"the proxy proxy\.test:3128: .*cannot be resolved.*; check proxy"):
        await manifest(client)


async def test_a_connect_that_is_not_answered_is_under_the_limit_of_connecting(
    make: Make, proxy: FakeProxy, ours: Party
) -> None:
    proxy.hang = True
    async with FakeUpstream(ssl=ours.server()) as hub:
        client = make(
            at(hub, "hub.test"), proxy=proxy.url, ca_file=ours.ca_file, timeouts=Timeouts(connect=0.3, headers=60.0)
        )
        async with asyncio.timeout(20):
            with pytest.raises(UpstreamTimeout, match=r"the proxy 127\.0\.0\.1:\d+: no connection in time"):
                await manifest(client)


async def test_an_upstream_whose_certificate_is_wrong_is_not_the_proxys_fault(
    make: Make, proxy: FakeProxy, theirs: Party
) -> None:
    async with FakeUpstream(ssl=theirs.server()) as hub:
        with pytest.raises(UpstreamUnreachable, match="check its certificate and ca_file"):
            await manifest(make(at(hub, "hub.test"), proxy=proxy.url))
    assert proxy.targets() == [f"CONNECT hub.test:{hub.port}"]


# ---- what may be asked for of a proxy ----

NEAR = [
    "localhost",
    "a.localhost",
    "minio",
    "cdn.internal",
    "cdn.local",
    "127.0.0.1",
    "10.1.2.3",
    "[::1]",
    "localhost.",
]
NOT_NAMES = ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "127.0.0.1.", "[fe80::1%25eth0]", "%31%32%37.0.0.1"]
METADATA = ["169.254.169.254", "[::ffff:169.254.169.254]", "metadata.google.internal", "2852039166", "metadata"]


def lead_to(hub: FakeUpstream, host: str) -> None:
    hub.clear_faults()
    hub.fail("manifests", status=307, headers={"Location": f"http://{host}:{hub.port}/v2/"})


@pytest.mark.parametrize("host", NEAR + NOT_NAMES + METADATA)
async def test_nobody_leads_a_proxy_to_its_own_network(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, host: str
) -> None:
    client = make(at(hub, "hub.test"), proxy=proxy.url, realms=["auth.test"])
    lead_to(hub, host)
    with pytest.raises(UpstreamUnreachable, match=r"redirects_to|usual form|never dialled"):
        await manifest(client)
    assert proxy.hosts() == {"hub.test"}
    hub.clear_faults()
    hub.auth, hub.realm = "token", f"http://{host}:{hub.port}/token"
    with pytest.raises(UpstreamTokenFailed, match=r"redirects_to|usual form|never dialled"):
        await manifest(client)
    assert proxy.hosts() == {"hub.test"}


@pytest.mark.parametrize(
    ("own", "host", "settings"),
    [
        pytest.param("hub.test", "cdn.test", {}, id="public names"),
        pytest.param("hub.test", "10.1.2.3", {"redirects_to": ["10.0.0.0/8"]}, id="an address that is listed"),
        pytest.param("hub.test", "minio", {"realms": ["minio"]}, id="a name that is listed"),
        pytest.param("registry", "minio", {}, id="from a near name to another"),
        pytest.param("registry", "10.1.2.3", {}, id="from a near name to an address as near"),
        pytest.param("localhost", "localhost", {}, id="the host itself"),
    ],
)
async def test_a_proxy_may_be_asked_for(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, own: str, host: str, settings: dict[str, Any]
) -> None:
    proxy.names = KNOWN | {"localhost": "127.0.0.1"}
    digest = hub.add_random_blob(REPO, 1000)
    hub.redirect, hub.redirect_host = True, host
    assert len(await blob(make(at(hub, own), proxy=proxy.url, **settings), digest)) == 1000
    assert proxy.hosts() == {own, host}
    assert proxy.carried(hub)


@pytest.mark.parametrize("host", ["169.254.169.254", "metadata.google.internal"])
async def test_a_configured_metadata_service_is_not_asked_for_either(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, host: str
) -> None:
    with pytest.raises(UpstreamUnreachable, match="never dialled"):
        await manifest(make(at(hub, host), proxy=proxy.url, redirects_to=["0.0.0.0/0"], realms=[host]))
    assert not proxy.log


# ---- what the environment says ----


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


async def test_each_hop_goes_its_own_way(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, environment: Callable[..., None]
) -> None:
    """The environment is read when the first request is made; a direct hop is judged by its address as ever."""
    digest = hub.add_random_blob(REPO, 1000)
    hub.redirect, hub.redirect_host = True, "direct.test"
    names = Names(direct_test="127.0.0.1")
    listed = make(at(hub, "hub.test"), proxy="environment", redirects_to=["127.0.0.0/8"], resolver=names)
    plain = make(at(hub, "hub.test"), proxy="environment", resolver=names)
    environment(HTTP_PROXY=proxy.url, NO_PROXY="example.org,direct.test")
    assert len(await blob(listed, digest)) == 1000
    assert proxy.hosts() == {"hub.test"}
    assert names.asked == ["direct.test"]
    with pytest.raises(UpstreamUnreachable, match=r"127\.0\.0\.1 is a loopback address"):
        await blob(plain, digest)


async def test_credentials_of_the_environment_are_used_and_not_shown(
    make: Make, proxy: FakeProxy, ours: Party, environment: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy.login = f"robot:{SECRET}@"
    environment(https_proxy=f"http://robot:{SECRET}%40@127.0.0.1:{proxy.port}/")
    async with FakeUpstream(ssl=ours.server()) as hub:
        hub.add_image(REPO, "1.0")
        assert await manifest(make(at(hub, "hub.test"), proxy="environment", ca_file=ours.ca_file))
        assert not any(name.lower().startswith("proxy-") for request in hub.log for name in request.headers)
        proxy.login = "robot:another"
        error = await failure(make(at(hub, "hub.test"), proxy="environment", ca_file=ours.ca_file))
    assert f"127.0.0.1:{proxy.port}: it refuses our login" in str(error)
    assert SECRET not in caplog.text + str(error) + repr(error.__cause__)


async def test_what_cannot_be_understood_is_not_gone_past(
    make: Make, hub: FakeUpstream, environment: Callable[..., None]
) -> None:
    environment(http_proxy=f"socks5://robot:{SECRET}@proxy.test:1080")
    client = make(at(hub, "hub.test"), proxy="environment", resolver=Names(hub_test="127.0.0.1"))
    with pytest.raises(UpstreamUnreachable, match=r"HTTP_PROXY of the environment .*; check proxy") as caught:
        await manifest(client)
    assert SECRET not in str(caught.value)
    assert not hub.log


@pytest.mark.parametrize("setting", [None, "none"])
async def test_the_environment_is_nothing_to_those_who_do_not_ask_for_it(
    make: Make, hub: FakeUpstream, proxy: FakeProxy, environment: Callable[..., None], setting: str | None
) -> None:
    environment(HTTP_PROXY=proxy.url, http_proxy=proxy.url, ALL_PROXY=proxy.url)
    image = hub.add_image(REPO, "1.0")
    client = make(at(hub, "hub.test"), proxy=setting, resolver=Names(hub_test="127.0.0.1"))
    assert await manifest(client) == image.raw
    assert not proxy.log


# ---- certificates that are shown ----


@contextlib.asynccontextmanager
async def elsewhere(ours: Party, theirs: Party, *hosts: str) -> AsyncIterator[FakeUpstream]:
    """Run a server that fails the handshake of who shows it a certificate of ours, and takes those with none."""
    async with FakeUpstream(ssl=ours.server(*hosts, clients=theirs, demanded=False)) as running:
        yield running


@pytest.mark.parametrize("way", ["direct", "proxy", "tls proxy"])
@pytest.mark.parametrize("other", ["cdn.test", "hub.test"], ids=["another host", "another port"])
async def test_the_certificate_is_shown_to_the_registry_and_to_nobody_else(
    make: Make, way: str, other: str, ours: Party, theirs: Party
) -> None:
    """Neither to where it redirects, to its realm, nor to a proxy that would take one."""
    taking = ours.server("127.0.0.1", clients=theirs, demanded=False)
    async with (
        FakeUpstream(ssl=ours.server(clients=ours), auth="token") as hub,
        elsewhere(ours, theirs, other) as cdn,
        FakeProxy(names=KNOWN, ssl=taking if way == "tls proxy" else None) as proxy,
    ):
        digest = cdn.add_random_blob(REPO, 1000)
        image = hub.add_image(REPO, "1.0")
        hub.tokens = cdn.tokens
        hub.realm = f"{at(cdn, other)}/token"
        hub.fail("blobs", status=307, headers={"Location": f"{at(cdn, other, 'cdn_url')}/elsewhere/{REPO}/{digest}"})
        settings: dict[str, Any] = {"ca_file": ours.ca_file}
        if way == "direct":
            settings["resolver"] = Names(hub_test="127.0.0.1", cdn_test="127.0.0.1")
        else:
            settings["proxy"] = proxy.url
        with pytest.raises(UpstreamUnreachable):
            await manifest(make(at(hub, "hub.test"), **settings))
        assert not hub.log
        client = make(at(hub, "hub.test"), client_certificate=ours.pair(), **settings)
        assert await manifest(client) == image.raw
        assert len(await blob(client, digest)) == 1000
        assert {request.path for request in cdn.log} == {"/token", f"/elsewhere/{REPO}/{digest}"}


async def test_a_server_that_is_shown_a_certificate_notices(make: Make, ours: Party, theirs: Party) -> None:
    """The server the tests above rely on does fail who shows it one."""
    async with elsewhere(ours, theirs, "hub.test") as hub:
        hub.add_image(REPO, "1.0")
        names = Names(hub_test="127.0.0.1")
        assert await manifest(make(at(hub, "hub.test"), ca_file=ours.ca_file, resolver=names))
        with pytest.raises(UpstreamUnreachable):
            await manifest(
                make(at(hub, "hub.test"), ca_file=ours.ca_file, client_certificate=ours.pair(), resolver=names)
            )


def refuse_all(listening: socket.socket, context: ssl.SSLContext) -> None:
    """Shake hands with two clients; asyncio's own servers do not tell them why they fail."""
    for _ in range(2):
        accepted, _ = listening.accept()
        with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as wrapped:
            with contextlib.suppress(OSError):
                wrapped.do_handshake()
            wrapped.shutdown(socket.SHUT_WR)
            while wrapped.recv(4096):  # closed with something unread, it would be a reset instead
                pass


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "proxy"])
async def test_a_registry_that_wants_a_certificate_says_so(
    make: Make, ours: Party, proxy: FakeProxy, version: ssl.TLSVersion, proxied: bool
) -> None:
    context = ours.server(clients=ours)
    context.maximum_version = version
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)
        served = asyncio.create_task(asyncio.to_thread(refuse_all, listening, context))
        url = f"https://hub.test:{listening.getsockname()[1]}"
        way: dict[str, Any] = {"proxy": proxy.url} if proxied else {"resolver": Names(hub_test="127.0.0.1")}
        for _ in range(2 if version is ssl.TLSVersion.TLSv1_2 else 1):  # aiohttp asks once more by itself
            with pytest.raises(UpstreamUnreachable, match=r"alert .*; check client_certificate"):
                await manifest(make(url, ca_file=ours.ca_file, **way))
        await served


def spoil(how: str, pair: ClientCertificate, other: ClientCertificate) -> None:
    match how:
        case "the key of another":
            pair.key.write_bytes(other.key.read_bytes())
        case "a key that is none":
            pair.key.write_text("nonsense")
        case "a certificate that is none":
            pair.certificate.write_text("nonsense")
        case "a key that is gone":
            pair.key.unlink()
        case "a key with a password":
            key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
            pair.key.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.BestAvailableEncryption(b"secret"),
                )
            )


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("the key of another", "key values mismatch"),
        ("a key that is none", ""),
        ("a certificate that is none", ""),
        ("a key that is gone", "No such file"),
        ("a key with a password", "without one"),
    ],
)
async def test_pairs_that_cannot_be_used(
    make: Make, hub: FakeUpstream, ours: Party, tmp_path: Path, how: str, said: str
) -> None:
    """They are an error of the request, and are read again for the next."""
    image = hub.add_image(REPO, "1.0")
    pair = ours.pair()
    good = pair.certificate.read_bytes(), pair.key.read_bytes()
    spoil(how, pair, ours.pair("another"))
    client = make(hub.url, client_certificate=pair)
    for _ in range(2):
        with pytest.raises(UpstreamUnreachable, match=f"{said}.*; check client_certificate") as caught:
            await manifest(client)
        assert str(tmp_path) not in str(caught.value)
    pair.certificate.write_bytes(good[0])
    pair.key.write_bytes(good[1])
    assert await manifest(client) == image.raw


# ---- certificates that are checked ----


async def test_insecure_is_the_configured_host_alone(
    make: Make, ours: Party, theirs: Party, tmp_path: Path, proxy: FakeProxy
) -> None:
    """Where it redirects to, and a realm that would be given the password, prove who they are."""
    path = secret(tmp_path)
    async with FakeUpstream(ssl=theirs.server(), auth="token", users={"robot": SECRET}, redirect=True) as hub:
        image = hub.add_image(REPO, "1.0")
        layer = image.layers[0]
        settings: dict[str, Any] = {
            "proxy": proxy.url,
            "realms": ["auth.test"],
            "credentials": Credentials(username="robot", password_file=path),
        }
        with pytest.raises(UpstreamUnreachable, match="ca_file"):
            await manifest(make(at(hub, "hub.test"), **settings))
        client = make(at(hub, "hub.test"), insecure=True, **settings)
        hub.realm = f"{at(hub, 'hub.test')}/token"
        assert await manifest(client) == image.raw
        hub.redirect_host = "hub.test"  # another port of the same host
        assert await blob(client, layer) == image.blobs[layer]
        hub.redirect_host = "cdn.test"
        with pytest.raises(UpstreamUnreachable, match="ca_file"):
            await blob(client, layer)
        hub.realm = f"{at(hub, 'auth.test')}/token"
        tokens = hub.count("GET", "/token")
        with pytest.raises(UpstreamTokenFailed, match="certificate"):
            await manifest(make(at(hub, "hub.test"), insecure=True, **settings))
        assert hub.count("GET", "/token") == tokens
        trusting = make(at(hub, "hub.test"), insecure=True, ca_file=theirs.ca_file, **settings)
        assert await blob(trusting, layer) == image.blobs[layer]


async def test_insecure_goes_with_a_client_certificate(make: Make, ours: Party, theirs: Party) -> None:
    async with FakeUpstream(ssl=theirs.server("elsewhere.test", clients=ours)) as hub:
        image = hub.add_image(REPO, "1.0")
        client = make(hub.url, insecure=True, client_certificate=ours.pair())
        assert await manifest(client) == image.raw


# ---- nothing waits in between ----


async def test_a_request_does_not_wait_for_others_to_end(make: Make, hub: FakeUpstream) -> None:
    """However many bodies are under way; a wait for them would look like a host that does not answer."""
    hub.add_image(REPO, "1.0")
    digest = hub.add_random_blob(REPO, 1000)
    hub.fault(digest, hang_after=10)
    client = make(hub.url, timeouts=Timeouts(connect=5.0, headers=30.0, read=60.0))
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(140):
            await stack.enter_async_context(client.blob(REPO, parse_digest(digest)))
        assert await manifest(client)
        with pytest.raises(ManifestUnknown):
            await manifest(client, "2.0")
