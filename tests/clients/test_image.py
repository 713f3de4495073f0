"""The image: built as people build it, run as they should, and real clients pull through it."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from mirror import __version__
from tests.clients.clients import Clients
from tests.clients.conftest import EXTERNAL_URL, PATH, refuse
from tests.clients.engine import IMAGE, Engine
from tests.clients.filters import profile
from tests.clients.hub import Hub
from tests.clients.images import Images
from tests.clients.namespace import PROJECT, CommandFailed, Namespace
from tests.clients.processes import Process, wait_for
from tests.clients.rows import ROWS, Bench, Row

URL = "http://127.0.0.1:5090"  # the hub has 5000 at addresses of its own
ALONE = ("--network", "none")
HARDENED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--cpus", "1", "--memory", "512m"),
)
CHOSEN = (
    *("ctr-pull-multi", "ctr-pull-large", "ctr-run", "cri-pull-several", "docker-pull-library", "docker-run"),
    *("podman-pull-attested", "podman-pull-at-root-library", "podman-run", "skopeo-inspect", "skopeo-list-tags"),
)
THROUGH = tuple(row for row in ROWS if row.name in CHOSEN)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def engine(namespace: Namespace) -> Iterator[Engine]:
    """With the image built, once for all."""
    if EXTERNAL_URL:
        pytest.skip("is about an image of its own: MIRROR_URL is set")
    if shutil.which("mmdebstrap", path=PATH) is None:
        refuse("not installed: mmdebstrap")
    engine = Engine(namespace)
    try:
        engine.make_base()
        engine.build("--build-arg", "REVISION=abc123")
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One that runs. started: the fields of the line that says so."""

    engine: Engine
    name: str
    process: Process
    started: dict[str, object]

    def inside(self, *command: str) -> str:
        return self.engine.podman("exec", self.name, *command)


@contextmanager
def running(engine: Engine, *options: str) -> Iterator[Container]:
    """Run the image until the block ends; it listens when that begins."""
    name = f"image-{next(_numbers)}"
    process = engine.start(name, *options)

    def lines() -> Iterator[dict[str, object]]:
        return (json.loads(line) for line in process.log.read_text().split("\n")[:-1] if line.startswith("{"))

    def started() -> dict[str, object] | None:
        return next((line for line in lines() if str(line["message"]).startswith("listening on")), None)

    try:
        process.wait_until("listening", started)
        yield Container(engine=engine, name=name, process=process, started=started() or {})
    finally:
        engine.podman("rm", "--force", "--time", "0", "--ignore", name)
        process.kill()


@pytest.fixture(scope="module")
def settings(namespace: Namespace, hub: Hub, engine: Engine) -> tuple[str, ...]:
    """Options that give a container the hub as its upstreams."""
    upstream = {"ca_file": "/etc/mirror/ca.pem", "tags": {"fresh_for": "10m"}}
    config = {
        "listen": "0.0.0.0:5090",
        "shutdown_delay": "0s",
        "upstreams": {
            "docker.io": {"url": "https://registry-1.docker.io", **upstream},
            "ghcr.io": {"url": "https://ghcr.io", **upstream},
        },
    }
    (engine.directory / "mirror.yaml").write_text(json.dumps(config))  # JSON is YAML
    files = ((engine.directory / "mirror.yaml", "mirror.yaml"), (namespace.ca_file, "ca.pem"))
    return tuple(f"--volume={path}:/etc/mirror/{name}:ro" for path, name in files)


# ---- what it is -------------------------------------------------------------------------------------------


def test_it_says_what_it_is(engine: Engine) -> None:
    config = engine.inspect("image", IMAGE)["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["mirror"]
    assert config["Cmd"][:2] == ["serve", "--config"]
    assert config["Volumes"] == {"/var/lib/mirror": {}}
    assert config["ExposedPorts"] == {"5000/tcp": {}}
    assert config["StopSignal"] in ("SIGTERM", "15")
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items() if "opencontainers" in name}
    assert (labels["version"], labels["revision"]) == (__version__, "abc123")


def test_nothing_to_build_or_install_with_is_in_it(engine: Engine) -> None:
    look = "import glob, importlib.util, shutil, sys; print(*("
    look += "[shutil.which(n) for n in ('mirror', 'cc', 'gcc', 'make', 'pip', 'pip3', 'wget', 'git')],"
    look += "importlib.util.find_spec('pip'), glob.glob('/var/lib/apt/lists/*'), glob.glob('/var/cache/apt/*.bin'),"
    look += "glob.glob('/src') + glob.glob('/root/.cache') + glob.glob('/wheel') + glob.glob('/pip')), sep='\\n')"
    found = engine.python(look)
    assert found.splitlines() == [str(["/opt/mirror/bin/mirror", *[None] * 7]), "None", "[]", "[]", "[]"]


def test_all_of_it_is_compiled_already(engine: Engine) -> None:
    """As it never gets written on a file system that is read-only."""
    look = "import sys; import mirror.wiring, mirror.server, mirror.cli.serve, importlib.util as u, os\n"
    look += "for m in list(sys.modules.values()):\n"
    look += "  f = getattr(m, '__file__', None) or ''\n"
    look += "  if f.endswith('.py') and not os.path.exists(u.cache_from_source(f)): print(f)\n"
    look += "print(len(sys.modules) > 500)"
    found = engine.python(look)
    assert found.splitlines() == ["True"]


# ---- as it is shipped -------------------------------------------------------------------------------------


def test_it_serves_with_no_option_at_all_and_writes_nowhere_but_in_its_volume(engine: Engine) -> None:
    with running(engine, *ALONE) as container:
        assert container.inside("id", "-u").strip() == "65532"
        assert container.inside("mirror", "health").strip() == "http://127.0.0.1:5000/healthz answers 200 OK"
        kept = container.inside("ls", "/var/lib/mirror/oci-mirror").split()
        assert changed(container) == set()
        container.inside("touch", "/tmp/this-would-be-seen")
        assert changed(container) == {"/tmp", "/tmp/this-would-be-seen"}
    assert "owner.lock" in kept


def changed(container: Container) -> set[str]:
    """What is not as in the image, but for the names and users that the engine writes into /etc."""
    lines = container.engine.podman("diff", container.name).splitlines()
    return {path for _, path in (line.split(" ", 1) for line in lines) if not f"{path}/".startswith(("/etc/", "/run/"))}


def test_any_user_of_group_0_may_run_it(engine: Engine) -> None:
    options = ("--user", "12345:0", "--volume", "other:/var/lib/mirror")
    with running(engine, *ALONE, *HARDENED, *options) as container:
        assert container.inside("id", "-u").strip() == "12345"
        owner = container.inside("stat", "-c", "%u:%g %a", "/var/lib/mirror/oci-mirror").strip()
    assert owner == "12345:0 700"


def test_a_volume_it_may_not_write_is_named(engine: Engine) -> None:
    volume = engine.directory / "roots"
    volume.mkdir(mode=0o755)
    with pytest.raises(CommandFailed) as failed:
        engine.podman("run", "--rm", *ALONE, "--volume", f"{volume}:/var/lib/mirror", IMAGE)
    assert failed.value.status == 1
    assert [line for line in failed.value.output.splitlines() if "level=" not in line] == [
        "mirror: cannot use the folder /var/lib/mirror/oci-mirror: Permission denied; choose one this user may write, "
        "with --root or storage.root"
    ]


# ---- on the nodes of a cluster ----------------------------------------------------------------------------


def node_containers() -> tuple[dict[str, Any], dict[str, Any]]:
    """The container of config/kubernetes/nodes.yaml that writes, and the one that waits."""
    spec = yaml.safe_load((PROJECT / "config/kubernetes/nodes.yaml").read_text())["spec"]["template"]["spec"]
    return spec["initContainers"][0], spec["containers"][0]


def test_what_waits_on_a_node_ends_when_it_is_told_to(engine: Engine) -> None:
    program, *arguments = node_containers()[1]["command"]
    options = ("--name", "waits", *ALONE, *HARDENED, "--entrypoint", program)
    engine.podman("run", "--detach", *options, IMAGE, *arguments)
    try:
        engine.podman("stop", "--time", "20", "waits")
        assert engine.inspect("container", "waits")["State"]["ExitCode"] == 0  # and not killed: 137
    finally:
        engine.podman("rm", "--force", "--time", "0", "waits")


# ---- stopped and started again ----------------------------------------------------------------------------


def test_sigterm_lets_a_transfer_end_and_a_restart_keeps_what_was_fetched(
    namespace: Namespace, engine: Engine, settings: tuple[str, ...], hub: Hub, images: Images
) -> None:
    layer = max(images.large.layers, key=lambda one: len(one.data))
    path = f"/v2/{images.large.repository}/blobs/{layer.digest}"
    options = (*HARDENED, *settings, "--volume", "stopped:/var/lib/mirror")

    def fetch(meanwhile: Callable[[], None]) -> tuple[int, str]:
        """Get the layer, and do something else when its first bytes are here."""
        with closing(http.client.HTTPConnection(urlsplit(URL).netloc, timeout=30)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            first = response.read(100_000)
            meanwhile()
            return response.status, f"sha256:{hashlib.sha256(first + response.read()).hexdigest()}"

    with running(engine, *options) as container:

        def stop() -> None:
            os.kill(container.process.pid, signal.SIGTERM)
            wait_for("it listens no more", refused)
            assert container.process.alive()

        assert namespace.inside(lambda: fetch(stop)) == (200, layer.digest)
        wait_for("it ends", lambda: not container.process.alive(), seconds=30)
        assert container.process.stop() == 0
    assert "draining" in container.process.tail(200)

    with running(engine, *options), hub.stopped():
        assert namespace.inside(lambda: fetch(lambda: None)) == (200, layer.digest)


def refused() -> bool:
    with closing(http.client.HTTPConnection(urlsplit(URL).netloc, timeout=5)) as connection:
        try:
            connection.connect()
        except ConnectionRefusedError:
            return True
    return False


# ---- clients pull through it ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filtered(engine: Engine) -> str:
    """The option that lets a container ask the kernel for what config/mirror.service lets it, and no more."""
    if shutil.which("systemd-analyze", path=PATH) is None:
        refuse("not installed: systemd")
    path = engine.directory / "filter.json"
    path.write_text(json.dumps(profile(PROJECT / "config/mirror.service")))
    return f"--security-opt=seccomp={path}"


@pytest.fixture(scope="module")
def container(engine: Engine, settings: tuple[str, ...], filtered: str) -> Iterator[Container]:
    """As it should be run: one CPU, nothing allowed, nothing writable but its volume; filtered as by systemd."""
    with running(engine, *HARDENED, filtered, *settings, "--volume", "kept:/var/lib/mirror") as container:
        yield container


def test_one_cpu_is_one_worker(container: Container) -> None:
    assert container.started["workers"] == 1


FORBIDDEN = {
    "memory that is written and run": "import mmap; mmap.mmap(-1, 4096, prot=7)",
    "other networks": "import socket; socket.socket(socket.AF_VSOCK)",
    "a change of the user": "import os; os.setresuid(65532, 65532, 65532)",
    "namespaces": "import ctypes, os; r = ctypes.CDLL(None, use_errno=True).unshare(0x10000000); "
    "r and (_ for _ in ()).throw(PermissionError(ctypes.get_errno(), ''))",
}


@pytest.mark.parametrize("program", FORBIDDEN.values(), ids=FORBIDDEN)
def test_what_the_service_does_not_need_is_forbidden(container: Container, program: str) -> None:
    with pytest.raises(CommandFailed, match=r"PermissionError: \[Errno 1\]"):
        container.inside("python3", "-c", program)


def test_it_is_healthy(container: Container) -> None:
    container.engine.podman("healthcheck", "run", container.name)
    state = container.engine.inspect("container", container.name)["State"]
    assert state.get("Health", state.get("Healthcheck"))["Status"] == "healthy"


@pytest.mark.parametrize("row", THROUGH, ids=lambda row: row.name)
def test_pull(row: Row, container: Container, new_clients: Callable[[str], Clients], hub: Hub, images: Images) -> None:
    before = hub.mark()
    with new_clients(URL) as clients:
        try:
            row.run(Bench(clients=clients, images=images, hub=hub))
        except Exception as exc:
            exc.add_note(f"the mirror's log:\n{container.process.tail()}\nthe hub's log:\n{hub.log(before)}")
            raise
    assert not hub.log(before).served().to_clients(), str(hub.log(before))


def test_every_row_that_was_chosen_is_there() -> None:
    assert len(THROUGH) == len(CHOSEN)
