"""Mirrors behind mirrors, pulled through by containerd: ns goes on to the next, logins do not, tags are the hub's."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.clients.clients import Clients
from tests.clients.hub import Hub
from tests.clients.hub_server import USER
from tests.clients.images import Image, Images
from tests.clients.mirror_process import EXTERNAL_URL, MirrorProcess
from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.rows import PULLS, assert_content
from tests.clients.test_economy import gets_by_digest, tag_requests

WORKERS = 4
NEAR = "127.0.0.1:5010"
CLOSED = "127.0.0.1:5020"
NewClients = Callable[[str], Clients]


class Start(Protocol):
    def __call__(self, **settings: Any) -> MirrorProcess: ...


@pytest.fixture
def start(namespace: Namespace, hub: Hub, mirror_folders: Iterator[Path]) -> Iterator[Start]:
    """Start mirrors with settings of their own; all end with the test."""
    if EXTERNAL_URL:
        pytest.skip("needs mirrors that are configured here: MIRROR_URL is set")
    started: list[MirrorProcess] = []

    def one(**settings: Any) -> MirrorProcess:
        mirror = MirrorProcess(namespace, next(mirror_folders), workers=WORKERS, **settings)
        started.append(mirror)
        return mirror

    yield one
    for mirror in started:
        mirror.close()


def login(namespace: Namespace) -> dict[str, str]:
    """Return the account of the hub's user."""
    name, _, password = USER.partition(":")
    file = namespace.directory / "hub-password"
    file.write_text(password)
    file.chmod(0o600)
    return {"username": name, "password_file": str(file)}


def asked(mirror: MirrorProcess, image: Image) -> list[str]:
    """Return the requests for an image in a mirror's log: its access lines are JSON, a request each."""
    return [line for line in mirror.lines() if f"/v2/{image.repository}/" in line]


@pytest.mark.parametrize("client", ["ctr", "cri"])
def test_a_pull_through_two_mirrors(
    client: str, namespace: Namespace, start: Start, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    """The hub is asked once for each digest, by the nearer one; the login for the hub is for the hub alone."""
    near = start(address=NEAR)
    second = start(hub={"mirrors": [{"url": near.url}], "credentials": login(namespace)})
    pulled = (images.multi, images.shared_a, images.shared_b)
    before = hub.mark()
    with new_clients(second.url) as clients:
        for image in pulled:
            PULLS[client](clients, image)
    log = hub.log(before)
    assert gets_by_digest(log, "cdn", "/data") == Counter(set().union(*(image.pulled for image in pulled))), str(log)
    manifests = gets_by_digest(log, "hub", "/manifests/sha256:")
    assert manifests == Counter({digest for image in pulled for digest in (image.digest, image.own.digest)}), str(log)
    assert near.stop() == 0  # its log is whole then
    for image in pulled:
        assert len(tag_requests(log, "HEAD", image)) == 1, str(log)
        lines = asked(near, image)
        assert lines
        assert all("ns=docker.io" in line for line in lines)
        assert not any(f"/manifests/{image.tag}" in line for line in lines)


def test_with_the_hub_stopped_a_fresh_mirror_has_what_the_one_before_it_has(
    start: Start, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    """Layers that two repositories share as well, though nobody can ask the hub about the second one's right."""
    near = start(address=NEAR)
    with new_clients(near.url) as clients:
        for image in (images.shared_a, images.shared_b):
            PULLS["ctr"](clients, image)
    second = start(hub={"mirrors": [{"url": near.url, "resolve": True}]})
    with hub.stopped():
        for image in (images.shared_a, images.shared_b):
            with new_clients(second.url) as clients:
                PULLS["ctr"](clients, image)
        with new_clients(second.url) as clients, pytest.raises(CommandFailed):
            PULLS["ctr"](clients, images.large)  # the twin: the hub is away


def test_a_lagging_mirror_does_not_change_what_a_tag_points_at(
    start: Start, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    old = images.multi.at("docker.io", "test/lagging")
    new = images.library.at("docker.io", "test/lagging")
    assert old.digest != new.digest
    hub.push(old)
    near = start(address=NEAR)
    with new_clients(near.url) as clients:
        PULLS["ctr"](clients, old)
    hub.push(new)
    second = start(hub={"mirrors": [{"url": near.url}]})
    with new_clients(near.url) as clients:
        PULLS["ctr"](clients, old)  # it does lag
    with new_clients(second.url) as clients:
        PULLS["ctr"](clients, new)
        PULLS["cri"](clients, new)


def test_a_mirror_that_asks_for_a_login_gets_nothing(
    namespace: Namespace, start: Start, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    with asking_for_a_login(namespace) as seen:
        second = start(hub={"mirrors": [{"url": f"http://{CLOSED}"}], "credentials": login(namespace)})
        before = hub.mark()
        with new_clients(second.url) as clients:
            client = clients.containerd()
            assert client.pull(images.multi.reference) == images.multi.digest
            assert_content(client, images.multi)
    assert {path.split("?")[0] for path, _ in seen} >= {
        f"/v2/{images.multi.repository}/manifests/{images.multi.digest}",
        *(f"/v2/{images.multi.repository}/blobs/{digest}" for digest in images.multi.pulled),
    }
    assert not [path for path, authorization in seen if authorization]
    assert any(entry.authorization for entry in hub.log(before).at("auth").entries)  # the twin: the hub's realm got it


@contextmanager
def asking_for_a_login(namespace: Namespace) -> Iterator[list[tuple[str, str | None]]]:
    """Run a server that answers everything by asking for a login; gives the path and login of each request."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="mirror"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    host, _, port = CLOSED.partition(":")
    server = namespace.inside(lambda: HTTPServer((host, int(port)), Handler))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
