"""What the hub saw: the mirror asks once, asks cheaply, and does not need it for what it has."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.clients.clients import Clients
from tests.clients.conftest import StartMirror
from tests.clients.hub import Hub, Log
from tests.clients.images import Image, Images
from tests.clients.mirror_process import MirrorProcess
from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.processes import wait_for
from tests.clients.rows import PULLS, assert_content, assert_docker, assert_podman, short

WORKERS = 4
NewClients = Callable[[str], Clients]


def gets_by_digest(log: Log, site: str, part: str) -> Counter[str]:
    """How often each digest was fetched in full or in part."""
    return Counter(hexes(entry.path) for entry in log.at(site).that("GET", part).past_challenges().entries)


def hexes(path: str) -> str:
    """The digest in a registry's path, or in a CDN's (…/blobs/sha256/ab/abcd…/data)."""
    last = path.removesuffix("/data").rpartition("/")[2]
    return last if last.startswith("sha256:") else f"sha256:{last}"


def tag_requests(log: Log, method: str, image: Image) -> Log:
    return log.at("hub").that(method, f"/v2/{image.repository}/manifests/{image.tag}").past_challenges()


@pytest.mark.parametrize("client", PULLS)
def test_a_second_pull_asks_nothing_while_the_tag_is_fresh(
    client: str, start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror, image = start_mirror(workers=WORKERS), images.multi
    before = hub.mark()
    with new_clients(mirror.url) as clients:
        PULLS[client](clients, image)
    first = hub.log(before)
    assert set(gets_by_digest(first, "cdn", "/data")) == image.pulled

    between = hub.mark()
    with new_clients(mirror.url) as clients:
        PULLS[client](clients, image)
    assert not hub.log(between), str(hub.log(between))


def test_a_second_pull_of_a_stale_tag_asks_by_head_only(
    start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror, image = start_mirror(workers=WORKERS, fresh_for="1s"), images.multi
    with new_clients(mirror.url) as clients:
        PULLS["ctr"](clients, image)
    time.sleep(1.1)  # the setting's meaning, not a synchronisation: the tag gets stale
    between = hub.mark()
    with new_clients(mirror.url) as clients:
        PULLS["docker"](clients, image)
        PULLS["podman"](clients, image)
    log = hub.log(between)
    assert tag_requests(log, "HEAD", image), str(log)
    assert {(entry.site, entry.method) for entry in log.entries} <= {("hub", "HEAD"), ("auth", "GET")}, str(log)
    assert not log.that("HEAD", "sha256:"), str(log)


def test_the_hubs_log_of_a_cold_start(
    start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    """Four clients pull large and small images: one GET per digest, HEADs for tags, no secret at the CDN."""
    mirror = start_mirror(workers=WORKERS)
    pulled = [images.large, images.multi, images.schema2_list, images.shared_a, images.shared_b]
    before = hub.mark()
    with new_clients(mirror.url) as clients:
        for image in pulled:
            for pull in PULLS.values():
                pull(clients, image)
    log = hub.log(before)

    cdn = log.at("cdn")
    wanted = set().union(*(image.pulled for image in pulled))
    assert gets_by_digest(log, "cdn", "/data") == Counter(wanted), str(cdn)
    assert gets_by_digest(log, "hub", "/blobs/") == Counter(wanted), str(log.at("hub"))
    assert all(entry.complete for entry in cdn.entries), str(cdn)
    sizes = {blob.digest: len(blob.data) for image in pulled for blob in image.blobs}
    assert sum(entry.bytes for entry in cdn.entries) == sum(sizes[digest] for digest in wanted)

    assert not [entry for entry in cdn.entries if entry.authorization]
    assert any(entry.authorization for entry in log.at("hub").entries)  # the twin: the hub did get tokens

    refused = [entry for entry in log.at("hub").entries if entry.status == 401]
    assert not [entry for entry in refused if entry.authorization], "a token that was not good enough"

    manifests = gets_by_digest(log, "hub", "/manifests/sha256:")
    assert manifests == Counter({m for image in pulled for m in (image.digest, image.own.digest)})
    for image in pulled:
        assert len(tag_requests(log, "HEAD", image)) == 1, str(log)
        assert not tag_requests(log, "GET", image), str(log)


def test_clients_at_once_share_one_transfer(
    start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror, image = start_mirror(workers=WORKERS), images.large
    before = hub.mark()
    with new_clients(mirror.url) as clients:
        containerd, docker, podman = clients.containerd(), clients.docker(), clients.podman()
        with ThreadPoolExecutor(3) as pool:
            by_containerd = pool.submit(containerd.pull, image.reference)
            by_docker = pool.submit(docker.pull, short(image))
            by_podman = pool.submit(podman.pull, image.reference)
        assert by_containerd.result() == image.digest
        assert_content(containerd, image)
        assert_docker(by_docker.result(), image)
        assert_podman(by_podman.result(), image)
    log = hub.log(before)
    assert gets_by_digest(log, "cdn", "/data") == Counter(image.pulled), str(log)


def test_with_the_hub_stopped_everything_pulled_before_still_pulls(
    start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror = start_mirror(workers=WORKERS, fresh_for="1s")  # stale by the time of the second pull
    pulled = [images.library, images.multi, images.attested, images.schema2_list, images.several]
    with new_clients(mirror.url) as clients:
        for image in pulled:
            PULLS["ctr"](clients, image)
    time.sleep(1.1)
    with hub.stopped(), new_clients(mirror.url) as clients:
        for image in pulled:
            for pull in PULLS.values():
                pull(clients, image)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_with_the_hub_stopped_a_restarted_mirror_serves_what_it_had(
    how: str, start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror, image = start_mirror(workers=WORKERS), images.multi
    if not isinstance(mirror, MirrorProcess):
        pytest.skip("only the mirror itself is known to keep its root")
    with new_clients(mirror.url) as clients:
        PULLS["ctr"](clients, image)
    with hub.stopped(), new_clients(mirror.url) as clients:
        if how == "SIGTERM":
            assert mirror.stop() == 0
        else:
            mirror.kill()
        with pytest.raises(CommandFailed):  # the twin: it was gone, and it was needed
            PULLS["ctr"](clients, image)
        mirror.start()
        for pull in PULLS.values():
            pull(clients, image)


@pytest.mark.parametrize("first", ["ctr", "docker"])
def test_with_the_hub_stopped_a_shared_layer_serves_both_images(
    first: str, start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    """The client that pulled both asked for their common layer in the first one's repository only."""
    mirror, a, b = start_mirror(workers=WORKERS), images.shared_a, images.shared_b
    common = {layer.digest for layer in a.layers} & {layer.digest for layer in b.layers}
    assert common
    before = hub.mark()
    with new_clients(mirror.url) as clients:
        client = clients.containerd() if first == "ctr" else clients.docker()
        for image in (a, b):
            client.pull(image.reference)
    fetched = gets_by_digest(hub.log(before), "cdn", "/data")
    assert {fetched[digest] for digest in common} == {1}

    for image in (b, a):
        with hub.stopped(), new_clients(mirror.url) as clients:
            for pull in PULLS.values():
                pull(clients, image)


def test_two_hundred_pulls_of_a_stale_tag_make_one_head(
    namespace: Namespace, start_mirror: StartMirror, new_clients: NewClients, hub: Hub, images: Images
) -> None:
    mirror, image, fresh_for = start_mirror(workers=WORKERS, fresh_for="5s"), images.hello, 5.0
    path = f"/v2/{image.repository}/manifests/{image.tag}"

    def ask(method: str) -> tuple[int, str | None, bytes]:
        """One request on a connection of its own: the kernel spreads connections over the workers."""
        with closing(http.client.HTTPConnection(urlsplit(mirror.url).netloc, timeout=30)) as connection:
            connection.request(method, path, headers={"Accept": image.top.media_type})
            answer = connection.getresponse()
            return answer.status, answer.headers["Docker-Content-Digest"], answer.read()

    first = time.monotonic()
    expected = (200, image.digest, image.top.data)
    assert namespace.inside(lambda: ask("GET")) == expected
    wait_for("the tag is stale", lambda: time.monotonic() > first + fresh_for + 0.5, seconds=10)

    before = hub.mark()
    # slow enough that the first answers cannot come before many more have asked
    with hub.slow_heads(0.4), namespace.threads(50) as pool:
        answers = list(pool.map(ask, ["GET", "HEAD"] * 100))
    log = hub.log(before)
    assert answers[0::2] == [expected] * 100
    assert answers[1::2] == [(200, image.digest, b"")] * 100
    assert len(tag_requests(log, "HEAD", image)) == 1, str(log)
    assert not log.at("hub").that("GET", ""), str(log)
    assert not log.at("cdn"), str(log)
