"""One namespace, hub and set of images for the whole run; mirrors as the tests want them.

Skips this folder with the reason where the clients cannot run; fails instead where they must (README.md).
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.clients.ca import Authority, make_authority
from tests.clients.clients import Clients
from tests.clients.hub import Hub
from tests.clients.images import Images
from tests.clients.mirror_process import (
    EXTERNAL_COMMAND,
    EXTERNAL_URL,
    Mirror,
    MirrorProcess,
    NotStarted,
    OtherMirror,
)
from tests.clients.namespace import CommandFailed, Namespace
from tests.clients.registry_process import ACCESSES, Access, Registry
from tests.clients.toolbox import Toolbox

TOOLS = (
    *("ip", "nsenter", "unshare", "setpriv", "mount"),
    *("containerd", "ctr", "runc", "dockerd", "docker", "podman", "buildah", "skopeo", "docker-registry"),
)
HERE, FIRST = Path(__file__).parent, "test_nothing_there.py"
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def missing() -> str:
    """Why the clients cannot run here; empty when they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root: network namespaces, mounts, containerd and dockerd"
    absent = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def refuse(reason: str) -> None:
    """Skip; or fail where the clients must run."""
    if os.environ.get("CI") or os.environ.get("MIRROR_REQUIRE_CLIENTS") == "1":
        pytest.fail(f"the client tests must run here (CI or MIRROR_REQUIRE_CLIENTS is set): {reason}")
    pytest.skip(reason)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First of all: the tests that the suite can fail. Other folders' tests stay where they are."""
    ours = [place for place, item in enumerate(items) if item.path.parent == HERE]
    ordered = sorted((items[place] for place in ours), key=lambda item: item.path.name != FIRST)
    for place, item in zip(ours, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    if reason := missing():
        refuse(reason)


@pytest.fixture(scope="session")
def namespace(able: None) -> Iterator[Namespace]:
    # not pytest's own folder: its long names leave no room for unix sockets
    directory = Path(tempfile.mkdtemp(prefix="mirror-clients-"))
    try:
        namespace = Namespace(directory)
    except CommandFailed as exc:
        shutil.rmtree(directory)
        refuse(f"no network namespace can be made here: {exc}")
        raise AssertionError("not reached") from exc
    yield namespace
    namespace.close()


@pytest.fixture(scope="session")
def images() -> Images:
    return Images()


@pytest.fixture(scope="session")
def hub(namespace: Namespace, images: Images) -> Iterator[Hub]:
    """Serving every test image, refusing container clients."""
    hub = Hub(namespace, make_authority(namespace.directory), namespace.directory / "hub")
    for image in images.all():
        hub.push(image)
    hub.start()
    yield hub
    hub.close()


class Registries(Protocol):
    def __call__(self, access: Access) -> Registry: ...


@pytest.fixture(scope="session")
def registries(namespace: Namespace) -> Iterator[Registries]:
    """The registries to push to, one for each kind of access, each started when it is first asked for."""
    started: dict[Access, Registry] = {}

    def registry(access: Access) -> Registry:
        if access not in started:
            directory = namespace.directory / f"registry-{access}"
            started[access] = Registry(namespace, directory, port=5100 + len(started), access=access)
        return started[access]

    yield registry
    for one in started.values():
        one.close()


@pytest.fixture(params=ACCESSES)
def toolbox(request: pytest.FixtureRequest, namespace: Namespace, registries: Registries) -> Iterator[Toolbox]:
    """Programs in front of a registry, for each kind of access; with a home folder of their own."""
    toolbox = Toolbox(namespace, registries(request.param), refuse)
    yield toolbox
    toolbox.close()


@pytest.fixture(scope="session")
def conformance_ca(namespace: Namespace) -> Authority:
    return make_authority(namespace.directory / "conformance-ca")


class StartMirror(Protocol):
    def __call__(self, *, workers: int = 1, fresh_for: str = "10m") -> Mirror: ...


@pytest.fixture(scope="session")
def mirror_folders(namespace: Namespace) -> Iterator[Path]:
    numbers = itertools.count(1)
    return (namespace.directory / f"m{n}" for n in numbers)


@pytest.fixture
def start_mirror(namespace: Namespace, hub: Hub, mirror_folders: Iterator[Path]) -> Iterator[StartMirror]:
    """Start mirrors with an empty root; all end with the test."""
    if EXTERNAL_URL and not EXTERNAL_COMMAND:
        pytest.skip("needs a mirror that knows nothing yet: MIRROR_URL is set without MIRROR_COMMAND")
    started: list[Mirror] = []

    def start(*, workers: int = 1, fresh_for: str = "10m") -> Mirror:
        mirror = new_mirror(namespace, next(mirror_folders), workers=workers, fresh_for=fresh_for)
        started.append(mirror)
        return mirror

    yield start
    for mirror in started:
        mirror.close()


@pytest.fixture(
    scope="module",
    params=["MIRROR_URL"] if EXTERNAL_URL else [1, 4],
    ids=lambda workers: f"{workers}-workers" if isinstance(workers, int) else workers,
)
def mirror(
    request: pytest.FixtureRequest, namespace: Namespace, hub: Hub, mirror_folders: Iterator[Path]
) -> Iterator[Mirror]:
    """One mirror for all tests of a module, with 1 and with 4 workers."""
    if EXTERNAL_URL and not EXTERNAL_COMMAND:
        yield NotStarted(EXTERNAL_URL)
        return
    workers = request.param if isinstance(request.param, int) else 1
    mirror = new_mirror(namespace, next(mirror_folders), workers=workers, fresh_for="10m")
    yield mirror
    mirror.close()


def new_mirror(namespace: Namespace, folder: Path, *, workers: int, fresh_for: str) -> Mirror:
    if EXTERNAL_COMMAND:
        return OtherMirror(namespace, folder)
    return MirrorProcess(namespace, folder, workers=workers, fresh_for=fresh_for)


@pytest.fixture
def new_clients(namespace: Namespace) -> Callable[[str], Clients]:
    """``with new_clients(url) as clients``: fresh, empty clients in front of that mirror."""
    return lambda url: Clients(namespace, url)
