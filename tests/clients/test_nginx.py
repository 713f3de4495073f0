"""Behind nginx, with its example configuration: at a name of its own, and below a path that others share.

Who pulls and pushes through it is known by its own address, and everything it is told leads back through nginx.
"""

from __future__ import annotations

import http.client
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from tests.clients.conftest import PATH, refuse
from tests.clients.hub import Hub, docker_io
from tests.clients.images import Images
from tests.clients.namespace import OUTSIDE, Namespace
from tests.clients.nginx import OWN, SHARED, Nginx
from tests.clients.processes import wait_for
from tests.clients.pushers import Pushers
from tests.clients.registry_process import AUTHOR, Registry
from tests.clients.secured import SECURE, Secure, SecureContainerd, SecureDocker, push_and_pull_back

PORT = 5300


@pytest.fixture(scope="module")
def registry(namespace: Namespace, hub: Hub) -> Iterator[Registry]:
    """A mirror of the hub with users, which trusts nginx."""
    if shutil.which("nginx", path=PATH) is None:
        refuse("not installed: nginx")
    registry = Registry(
        namespace,
        namespace.directory / "nginx-registry",
        port=PORT,
        access="bearer",
        upstreams={"docker.io": docker_io(namespace)},
        trusted_proxies=["127.0.0.1"],
    )
    with closing(registry):
        yield registry


@pytest.fixture(scope="module", autouse=True)
def nginx(registry: Registry, namespace: Namespace, hub: Hub) -> Iterator[Nginx]:
    with closing(Nginx(namespace, namespace.directory / "nginx", registry.host, hub.authority)) as nginx:
        yield nginx


def url_of(client: str, route: str) -> str:
    """Where a client is pointed at. dockerd 20.10 refuses mirrors with a path: there it knows images by name alone."""
    if route == "own":
        return f"https://{OWN}"
    return f"https://{SHARED}" if client == "docker" else f"https://{SHARED}/hub"


def new(pushers: Pushers, client: str, namespace: Namespace) -> Secure:
    one: Secure = pushers.new(SECURE[client])
    if isinstance(one, SecureContainerd):
        one.use(f'ca = "{namespace.ca_file}"\n')
    return one


@pytest.mark.parametrize("route", ["own", "shared"])
@pytest.mark.parametrize("client", SECURE)
def test_pull_and_push(client: str, route: str, registry: Registry, namespace: Namespace, images: Images) -> None:
    before = len(registry.lines())
    image = images.multi if SECURE[client].exact else images.several
    repository = f"local/{client}/{route}"
    host = OWN if route == "own" else f"{SHARED}/hub"
    # containerd asks below a path for what has none in its name
    reference = f"{SHARED if client == 'ctr' and route == 'shared' else host}/{repository}:1"
    with registry.explained(), Pushers(namespace, url_of(client, route)) as pushers:
        one = new(pushers, client, namespace)
        if not isinstance(one, SecureDocker) or route == "own":
            assert one.pull_through(images.hello) == images.hello.config.digest
        if isinstance(one, SecureDocker):
            found = one.pull(f"{host}/{images.library.reference}")
            assert found["Id"] == images.library.config.digest
        push_and_pull_back(lambda: new(pushers, client, namespace), one, registry, image, repository, reference)
    lines = of_clients(registry, before)
    assert {line["client"] for line in lines} == {OUTSIDE}
    assert {line.get("user") for line in lines if line["status"] == 201} == {AUTHOR.user}


def test_ctr_puts_v2_before_the_path(registry: Registry, namespace: Namespace, images: Images) -> None:
    with registry.explained(), Pushers(namespace, f"https://{SHARED}/v2/hub") as pushers:
        one = pushers.new(SecureContainerd)
        one.use(f'ca = "{namespace.ca_file}"\noverride_path = true\n')
        assert one.pull_through(images.several) == images.several.config.digest


@pytest.mark.parametrize(
    ("host", "base"), [(OWN, "/v2"), (SHARED, "/hub/v2"), (SHARED, "/v2/hub")], ids=["own", "path", "names"]
)
def test_large_content(
    host: str, base: str, registry: Registry, nginx: Nginx, namespace: Namespace, images: Images
) -> None:
    """A large layer through it, cold and by ranges; the same pushed in chunks, the second of which breaks off."""
    layer = max(images.large.layers, key=lambda one: len(one.data))
    repository = f"local/large{base.replace('/', '-')}"

    def go() -> None:
        with closing(nginx.connection(host)) as connection:

            def ask(method: str, path: str, status: int, body: bytes | None = None, **more: str) -> Answer:
                headers = {"Host": host, "Authorization": AUTHOR.basic, "User-Agent": "a-client/1"}
                connection.request(method, path, body, headers | {n.replace("_", "-"): v for n, v in more.items()})
                answer = connection.getresponse()
                data = answer.read()
                assert answer.status == status, f"{method} {path}: {answer.status} {data[:300]!r}"
                return Answer(answer.headers, data)

            blob = f"{base}/docker.io/{images.large.repository}/blobs/{layer.digest}"
            assert ask("GET", blob, 200).body == layer.data
            part = ask("GET", blob, 206, Range="bytes=1000000-40000000")
            assert part.headers["Content-Range"] == f"bytes 1000000-40000000/{len(layer.data)}"
            assert part.body == layer.data[1000000:40000001]
            assert ask("GET", blob, 206, Range="bytes=-5").body == layer.data[-5:]

            where = ask("POST", f"{base}/{repository}/blobs/uploads/", 202, b"").headers["Location"]
            assert where.startswith(f"{base}/{repository}/blobs/uploads/")
            half = len(layer.data) // 2
            chunk = {"Content_Type": "application/octet-stream"}
            sent = ask("PATCH", where, 202, layer.data[:half], Content_Range=f"0-{half - 1}", **chunk)
            assert sent.headers["Range"] == f"0-{half - 1}"
            where = sent.headers["Location"]
            break_off(nginx.connection(host), where, host, layer.data[half : half + 3_000_000], len(layer.data) - half)
            begin = wait_settled(lambda: ask("GET", where, 204))
            assert half < begin < len(layer.data), "what came of the second chunk is kept"
            rest = layer.data[begin:]
            span = f"{begin}-{len(layer.data) - 1}"
            where = ask("PATCH", where, 202, rest, Content_Range=span, **chunk).headers["Location"]
            made = ask("PUT", f"{where}?digest={layer.digest}", 201, b"").headers["Location"]
            assert made == f"{base}/{repository}/blobs/{layer.digest}"
            assert ask("GET", made, 200).body == layer.data

    with registry.explained():
        namespace.inside(go)


def test_what_clients_claim_is_taken_away(registry: Registry, nginx: Nginx, namespace: Namespace) -> None:
    """nginx says who asks and by which URL, whatever a client has written there before."""
    claims = {
        "X-Forwarded-For": "127.0.0.1",
        "Forwarded": "for=127.0.0.1;host=evil.example",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/evil",
    }

    def go() -> str:
        with closing(nginx.connection(SHARED)) as connection:
            connection.request("POST", "/hub/v2/local/x/blobs/uploads/", b"", {"Host": SHARED, **claims})
            answer = connection.getresponse()
            assert answer.status == 401, answer.read()
            return answer.headers["WWW-Authenticate"]

    def told() -> list[str]:  # another's request that was broken off may have its line only now
        return [line["client"] for line in registry.lines() if "local/x/blobs" in line["path"]]

    assert f'realm="https://{SHARED}/hub/v2/_mirror/auth/token"' in namespace.inside(go)
    wait_for("its line is written", told)
    assert told() == [OUTSIDE]


@dataclass(frozen=True, slots=True)
class Answer:
    headers: http.client.HTTPMessage
    body: bytes


def break_off(connection: http.client.HTTPSConnection, where: str, host: str, data: bytes, announced: int) -> None:
    """Begin to send a chunk, and be gone."""
    with closing(connection):
        connection.putrequest("PATCH", where, skip_host=True)
        for name, value in {
            "Host": host,
            "Authorization": AUTHOR.basic,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(announced),
        }.items():
            connection.putheader(name, value)
        connection.endheaders(data)


def wait_settled(ask: Callable[[], Answer]) -> int:
    """Where a session stands, once nobody sends to it: its next byte."""
    seen = [-1]

    def settled() -> bool:
        seen.append(int(ask().headers["Range"].partition("-")[2]) + 1)
        return seen[-1] == seen[-2] and seen[-1] > 30_000_000

    wait_for("the broken chunk has ended", settled)
    return seen[-1]


def of_clients(registry: Registry, before: int) -> list[dict[str, object]]:
    """The lines of what came since, but for what the test asked itself, at the mirror's own address."""
    wait_for("the last line is written", lambda: any(line["method"] == "PUT" for line in registry.lines()[before:]))
    return [line for line in registry.lines()[before:] if line.get("user_agent")]
