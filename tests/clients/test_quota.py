"""Docker Hub's pull limit: a cluster spends one pull per image, and does not notice when there are none left."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.clients.clients import Clients
from tests.clients.conftest import StartMirror
from tests.clients.hub import Hub
from tests.clients.hub_server import USER
from tests.clients.images import Image, image
from tests.clients.mirror_process import EXTERNAL_URL, Mirror, MirrorProcess
from tests.clients.namespace import Namespace
from tests.clients.node import Answer, Node, pull_all
from tests.clients.processes import wait_for
from tests.clients.rows import assert_content, assert_docker, assert_podman, short

NewClients = Callable[[str], Clients]
WORKERS = 4
LIMIT = 100
IMAGES = [image(f"quota/app-{n}") for n in range(20)]
"""Of one platform, so that a pull is one GET of a manifest."""
NEW = image("quota/new")
NODES = 49
"""Besides one more whose images containerd, docker and podman pull: a thousand pulls."""
AT_ONCE = 16


@pytest.fixture(scope="module", autouse=True)
def pushed(hub: Hub) -> None:
    for one in (*IMAGES, NEW):
        hub.push(one)


def a_thousand_pulls(namespace: Namespace, mirror: Mirror, new_clients: NewClients) -> list[Answer]:
    """What the nodes were answered; it was all good, and the other clients got theirs."""
    orders = [random.Random(n).sample(IMAGES, len(IMAGES)) for n in range(NODES)]
    with new_clients(mirror.url) as clients, namespace.threads(AT_ONCE) as nodes, ThreadPoolExecutor(3) as pool:
        containerd, docker, podman = clients.containerd(), clients.docker(), clients.podman()

        def by_containerd() -> None:
            for one in IMAGES[:8]:
                assert containerd.pull(one.reference) == one.digest
                assert_content(containerd, one)

        def by_docker() -> None:
            for one in IMAGES[8:14]:
                assert_docker(docker.pull(short(one)), one)

        def by_podman() -> None:
            for one in IMAGES[14:]:
                assert_podman(podman.pull(one.reference), one)

        pulls = [pool.submit(pull) for pull in (by_containerd, by_docker, by_podman)]
        answers = [answer for some in nodes.map(lambda order: pull_all(mirror.url, order), orders) for answer in some]
        for pull in pulls:
            pull.result()
    return answers


def get_tag(namespace: Namespace, mirror: Mirror, image: Image) -> Answer:
    """What a new client is answered that asks for an image's manifest by its tag."""

    def get() -> Answer:
        with closing(Node(mirror.url)) as node:
            return node.ask("GET", image, f"manifests/{image.tag}")

    return namespace.inside(get)


def test_a_thousand_pulls_of_twenty_images_spend_twenty(
    namespace: Namespace, start_mirror: StartMirror, new_clients: NewClients, hub: Hub
) -> None:
    mirror = start_mirror(workers=WORKERS, fresh_for="500ms")
    before = hub.mark()
    with hub.limited(LIMIT):
        answers = a_thousand_pulls(namespace, mirror, new_clients)
        log = hub.log(before)
        left = hub.use_up(NEW)
    assert len(answers) == NODES * len(IMAGES) * 4
    assert not [answer for answer in answers if answer.warning]
    paths = Counter(f"/v2/{one.repository}/manifests/{one.digest}" for one in IMAGES)
    assert Counter(entry.path for entry in log.counted().entries) == paths, str(log.counted())
    assert left == LIMIT - len(IMAGES)
    assert not log.served().to_clients(), str(log)
    # the twin: tags got stale meanwhile, and were asked for
    assert len(log.at("hub").that("HEAD", "/manifests/").past_challenges()) > 2 * len(IMAGES), str(log)


def test_the_limit_is_noticed_by_nobody_whose_image_is_kept(
    namespace: Namespace, start_mirror: StartMirror, new_clients: NewClients, hub: Hub
) -> None:
    mirror = start_mirror(workers=WORKERS, fresh_for="500ms")

    def ask(image: Image) -> Answer:
        return get_tag(namespace, mirror, image)

    with hub.limited(LIMIT):
        namespace.inside(lambda: pull_all(mirror.url, IMAGES))
        assert hub.use_up(NEW) == LIMIT - len(IMAGES)
        before = hub.mark()

        answers = a_thousand_pulls(namespace, mirror, new_clients)
        refused = ask(NEW)
        log = hub.log(before)

    # every tag was stale, and what was asked about them was refused
    stale = [answer for answer in answers if "/manifests/1?" in answer.path]
    assert len(stale) == NODES * len(IMAGES)
    unsaid = [answer.warning for answer in stale if "docker.io" not in answer.warning]
    assert not unsaid, unsaid[:3]
    assert not log.counted(), str(log.counted())
    assert {entry.status for entry in log.at("hub").past_challenges().entries} == {429}, str(log)
    assert not log.served().to_clients(), str(log)

    assert refused.status == 503
    assert int(refused.wait) > 0
    assert "docker.io" in refused.message
    assert "(0 of 100 pulls left) and nothing is kept of quota/new:1; add credentials under upstreams.docker.io" in (
        refused.message
    )

    # the limit is gone: nobody does anything, and it goes on
    wait_for("what is new can be pulled", lambda: ask(NEW).status == 200, seconds=30)
    wait_for("tags are checked again", lambda: not ask(IMAGES[0]).warning, seconds=30)
    with new_clients(mirror.url) as clients:
        containerd = clients.containerd()
        assert containerd.pull(NEW.reference) == NEW.digest
        assert_content(containerd, NEW)


def test_an_account_has_pulls_of_its_own(namespace: Namespace, hub: Hub, mirror_folders: Iterator[Path]) -> None:
    if EXTERNAL_URL:
        pytest.skip("needs a mirror with an account at the hub: MIRROR_URL is set")
    user, _, password = USER.partition(":")
    password_file = namespace.directory / "hub-password"
    password_file.write_text(password)
    account = {"credentials": {"username": user, "password_file": str(password_file)}}
    with closing(MirrorProcess(namespace, next(mirror_folders), workers=WORKERS, hub=account)) as mirror:
        with hub.limited(3):
            assert hub.use_up(NEW) == 3  # without an account, from the same address
            namespace.inside(lambda: pull_all(mirror.url, IMAGES[:3]))
            refused = get_tag(namespace, mirror, IMAGES[3])
        said = "docker.io answered 429 (0 of 3 pulls left) and nothing is kept of quota/app-3:1; "
        advice = "try again later, or add an account under upstreams.docker.io.credentials"
        assert (refused.status, refused.message) == (503, said + advice)
