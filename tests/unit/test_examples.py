"""The examples in config/: each loads, agrees with the image and the command line, and serves."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import click
import pytest
import trustme
import yaml

from mirror.cli import main
from mirror.config import Config, load_config
from mirror.config.values import duration
from tests.layouts import saved, write_tar
from tests.ports import free_port
from tests.service import Service, service

PROJECT = Path(__file__).parents[2]
EXAMPLES = PROJECT / "config"
NOT_SETTINGS = {"compose.yaml", "alerts.yaml"}
SETTINGS = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name not in NOT_SETTINGS)
SERVED = ("hub-only", "air-gap", "behind-nginx", "tls-users", "container")
PASSWORD = "example"


def must(missing: str) -> None:
    """Skip, saying what is missing; or fail where everything has to run."""
    if os.environ.get("CI"):
        pytest.fail(f"everything has to run here (CI is set), and this is missing: {missing}")
    pytest.skip(f"missing: {missing}")


# ---- settings -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name: /etc/mirror, /srv/images, /var/lib; in a folder."""
    root = tmp_path_factory.mktemp("machine")
    etc, images = root / "etc/mirror", root / "srv/images"
    etc.mkdir(parents=True)
    images.mkdir(parents=True)
    (root / "var/lib").mkdir(parents=True)
    issued = trustme.CA().issue_cert("registry.example.net")
    issued.cert_chain_pems[0].write_to_path(str(etc / "tls.crt"))
    issued.private_key_pem.write_to_path(str(etc / "tls.key"))
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (etc / "htpasswd").write_text(f"ci:{hashed}\nops:{hashed}\n")
    write_tar(images / "app.tar", saved((["app:1"], [b"a layer"])))
    return root


def on(machine: Path, text: str) -> str:
    """A file of settings with its paths on that machine."""
    return re.sub(r"/(etc/mirror|srv/images|var/lib/mirror)\b", lambda found: f"{machine}{found[0]}", text)


@contextmanager
def served(machine: Path, folder: Path, name: str) -> Iterator[tuple[Service, dict[str, int]]]:
    """Run an example: one worker, on loopback, at free ports, by their numbers in the example."""
    text = on(machine, (EXAMPLES / f"{name}.yaml").read_text())
    ports = {number: free_port() for number in ("5000", "5001", "5443")}
    text = re.sub(r"\b(?:0\.0\.0\.0|127\.0\.0\.1):(\d{4})\b", lambda found: f"127.0.0.1:{ports[found[1]]}", text)
    text = text.replace(f"{machine}/var/lib/mirror", str(folder / "root"))
    path = folder / "mirror.yaml"
    more = "" if "storage:" in text else f"storage: {{root: {folder / 'root'}}}\n"
    path.write_text(f"{text}\nworkers: 1\nshutdown_delay: 0s\n{more}")
    with service(path) as running:
        yield running, ports


def ask(port: int, method: str, path: str, *, tls: bool = False, user: str = "", **headers: str) -> tuple[int, bytes]:
    if user:
        headers["Authorization"] = "Basic " + b64encode(f"{user}:{PASSWORD}".encode()).decode()
    connection: http.client.HTTPConnection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    if tls:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    with closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: path.stem)
def test_it_loads(path: Path, machine: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(on(machine, path.read_text()))
    assert load_config(copy).upstreams


@pytest.mark.parametrize("name", ["hub-only", "tls-users"])
def test_what_is_switched_off_loads_as_well(name: str, machine: Path, tmp_path: Path) -> None:
    """Lines that begin with # and no space are settings: with it taken away they are right."""
    path = EXAMPLES / f"{name}.yaml"
    text = re.sub(r"^( *)#(?=[^ #\n])", r"\1", path.read_text(), flags=re.MULTILINE)
    for secret in ("hub-password", "clients.pem"):
        (machine / "etc/mirror" / secret).write_text("secret")
        (machine / "etc/mirror" / secret).chmod(0o600)
    copy = tmp_path / path.name
    copy.write_text(on(machine, text))
    assert load_config(copy) != load_config_of(path, machine, tmp_path)


def load_config_of(path: Path, machine: Path, folder: Path) -> Config:
    copy = folder / "as-it-is.yaml"
    copy.write_text(on(machine, path.read_text()))
    return load_config(copy)


def test_every_example_says_what_it_is_for_and_how_to_run_it() -> None:
    for path in (*SETTINGS, EXAMPLES / "compose.yaml", EXAMPLES / "mirror.service", *KUBERNETES):
        head = path.read_text().split("\n\n")[0]
        assert head.startswith("# "), path.name
        if path.name not in ("nodes.yaml",):
            assert re.search(r"^#     (mirror serve|docker|kubectl|install) ", head, re.MULTILINE), path.name


def test_every_example_of_settings_is_served_in_a_test() -> None:
    assert {path.stem for path in SETTINGS} == {*SERVED, "mirror"}


def hub_only(ports: dict[str, int]) -> None:
    assert ask(ports["5000"], "GET", "/v2/")[0] == 200
    assert ask(ports["5000"], "POST", "/v2/local/app/blobs/uploads/")[0] == 405
    assert ask(ports["5000"], "GET", "/v2/ghcr.io/owner/image/manifests/1")[0] == 404


def air_gap(ports: dict[str, int]) -> None:
    status, body = ask(ports["5000"], "GET", "/v2/local/app/tags/list")
    assert (status, json.loads(body)) == (200, {"name": "local/app", "tags": ["1"]})
    status, body = ask(ports["5000"], "GET", "/v2/library/alpine/manifests/latest")
    assert (status, b"offline" in body) == (503, True)


def behind_nginx(ports: dict[str, int]) -> None:
    host = {"Host": "registry.example.net"}
    assert ask(ports["5000"], "GET", "/v2/_catalog", **host)[0] == 200
    assert ask(ports["5000"], "POST", "/v2/local/app/blobs/uploads/", **host)[0] == 401
    assert ask(ports["5000"], "POST", "/v2/local/app/blobs/uploads/", user="ci", **host)[0] == 202


def tls_users(ports: dict[str, int]) -> None:
    assert ask(ports["5443"], "GET", "/v2/_catalog", tls=True)[0] == 401
    assert ask(ports["5443"], "GET", "/v2/_catalog", tls=True, user="ops")[0] == 200
    assert ask(ports["5000"], "POST", "/v2/local/app/blobs/uploads/", user="ci")[0] == 202


def container(ports: dict[str, int]) -> None:
    assert {path: ask(ports["5000"], "GET", path)[0] for path in PROBED} == dict.fromkeys(PROBED, 200)


PROBED = ("/healthz", "/readyz")
SHOWN: dict[str, Callable[[dict[str, int]], None]] = {
    "hub-only": hub_only,
    "air-gap": air_gap,
    "behind-nginx": behind_nginx,
    "tls-users": tls_users,
    "container": container,
}


@pytest.mark.parametrize("name", SERVED)
def test_it_serves_what_it_is_for(name: str, machine: Path, tmp_path: Path) -> None:
    with served(machine, tmp_path, name) as (running, ports):
        SHOWN[name](ports)
        assert running.stop() == 0


# ---- command lines ----------------------------------------------------------------------------------------


def understood(words: list[str]) -> None:
    """Fail unless the command line is one that "mirror" takes."""
    context = click.Context(main, info_name="mirror")
    command = main.get_command(context, words[0])
    assert command, f"mirror has no command {words[0]}"
    while isinstance(command, click.Group):
        words = words[1:]
        command = command.get_command(context, words[0])
        assert command, words
    # not run, and no file looked for: only parsed
    command.make_context(words[0], words[1:], resilient_parsing=False)


def dockerfile(word: str) -> list[str]:
    """The values of an instruction of the Dockerfile."""
    text = (PROJECT / "Dockerfile").read_text().replace("\\\n", " ")
    return re.findall(rf"^{word} +(.+)$", text, re.MULTILINE)


USER = int(dockerfile("USER")[0].partition(":")[0])
VOLUME, PORT = dockerfile("VOLUME")[0], int(dockerfile("EXPOSE")[0])


def test_the_image_runs_commands_that_exist() -> None:
    assert json.loads(dockerfile("ENTRYPOINT")[0]) == ["mirror"]
    understood(json.loads(dockerfile("CMD")[0]))
    check = json.loads(dockerfile("HEALTHCHECK")[0].partition(" CMD ")[2])
    assert check[0] == "mirror"
    understood(check[1:])


def test_the_image_has_its_configuration_where_its_command_looks() -> None:
    source, target = next(line.split() for line in dockerfile("COPY") if line.startswith("config/"))
    config = load_config(PROJECT / source)
    assert json.loads(dockerfile("CMD")[0])[2] == target
    assert [str(one.address) for one in config.listen] == [f"0.0.0.0:{PORT}"]


def test_the_image_is_made_of_files_that_git_has_and_docker_is_given() -> None:
    given = {line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    named = {word for line in dockerfile("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert {word.partition("/")[0] for word in named} == given
    assert all((PROJECT / word).exists() for word in named)


# ---- systemd ----------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """The unit's settings, each with all its values."""
    found: dict[str, list[str]] = {}
    for line in (EXAMPLES / "mirror.service").read_text().splitlines():
        if re.match(r"[A-Z]\w+=", line):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_runs_a_command_that_exists() -> None:
    program, *words = unit()["ExecStart"][0].split()
    assert program.endswith("/bin/mirror")
    understood(words)


def test_the_unit_gives_the_service_time_to_end() -> None:
    config = Config()
    assert duration(unit()["TimeoutStopSec"][0]) > config.shutdown_delay + config.drain_timeout
    assert unit()["KillMode"] == ["mixed"]


def test_the_unit_has_the_folder_that_the_examples_keep_everything_in() -> None:
    folder = f"/var/lib/{unit()['StateDirectory'][0]}"
    assert "XDG_DATA_HOME=%S/mirror" in unit()["Environment"][0].split()
    for name in ("hub-only", "air-gap", "behind-nginx", "tls-users"):
        assert yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["storage"]["root"] == folder


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        must("systemd-analyze")
    return subprocess.run(("systemd-analyze", *arguments), capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "mirror.service"
    copy.write_text((EXAMPLES / "mirror.service").read_text().replace("/opt/mirror/bin/mirror", sys.executable))
    done = analyze("verify", "--man=no", str(copy))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "mirror.service" in line]) == (0, [])


def test_systemd_would_say_so_if_it_did_not(tmp_path: Path) -> None:
    copy = tmp_path / "mirror.service"
    copy.write_text((EXAMPLES / "mirror.service").read_text().replace("ProtectSystem=strict", "ProtectSystem=very"))
    done = analyze("verify", "--man=no", str(copy))
    assert "Failed to parse protect system value" in done.stderr


def test_systemd_finds_little_that_is_exposed(tmp_path: Path) -> None:
    """From 0, nothing, to 10; what is left is the network, and that it has a file system."""
    done = analyze("security", "--offline=yes", "--threshold=20", str(EXAMPLES / "mirror.service"))
    assert done.returncode == 0, done.stdout


# ---- compose ----------------------------------------------------------------------------------------------


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
    return loaded


def test_compose_goes_by_its_specification() -> None:
    try:
        from compose_spec import PyCompose
    except ImportError:
        must("the Python package compose-spec")
    text = (EXAMPLES / "compose.yaml").read_text()
    PyCompose.from_yaml(text)
    with pytest.raises(ValueError, match="reed_only"):
        PyCompose.from_yaml(text.replace("read_only", "reed_only"))


def test_compose_agrees_with_the_image() -> None:
    one = compose()["services"]["mirror"]
    assert one["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    mounts = [mount.split(":")[:2] for mount in one["volumes"]]
    assert mounts == [["data", VOLUME], ["./container.yaml", json.loads(dockerfile("CMD")[0])[2]]]
    assert "data" in compose()["volumes"]
    assert (EXAMPLES / one["build"]["context"] / "Dockerfile").exists()
    config = load_config(EXAMPLES / "container.yaml")
    assert duration(one["stop_grace_period"]) > config.shutdown_delay + config.drain_timeout


# ---- Kubernetes -------------------------------------------------------------------------------------------

KUBERNETES = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
OLDEST, NEWEST = "1.27", "1.37"


def objects() -> list[dict[str, Any]]:
    return [found for path in KUBERNETES for found in yaml.safe_load_all(path.read_text())]


def the(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in objects() if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = the(kind, name)["spec"]["template"]["spec"]
    return spec


PODS = (("StatefulSet", "mirror"), ("DaemonSet", "mirror-nodes"))


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field(version: str) -> None:
    try:
        import kubernetes_validate
    except ImportError:
        must("the Python package kubernetes-validate")
    for one in objects():
        kubernetes_validate.validate(one, version, strict=True)
    wrong = the("StatefulSet", "mirror")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="livenesProbe"):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_no_object_has_a_namespace() -> None:
    assert [one["metadata"]["name"] for one in objects() if "namespace" in one["metadata"]] == []


@pytest.fixture(scope="module")
def in_cluster(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    path = tmp_path_factory.mktemp("cluster") / "mirror.yaml"
    path.write_text(on(machine, the("ConfigMap", "mirror")["data"]["mirror.yaml"]))
    return load_config(path)


def test_the_configuration_of_the_cluster_keeps_everything_on_its_disk(in_cluster: Config, machine: Path) -> None:
    mounts = {
        mount["name"]: mount["mountPath"] for mount in containers(pod("StatefulSet", "mirror"))[0]["volumeMounts"]
    }
    assert mounts["data"] == VOLUME
    # not the volume itself, in which there is lost+found
    assert in_cluster.storage.root.is_relative_to(f"{machine}{VOLUME}")
    assert in_cluster.storage.root != Path(f"{machine}{VOLUME}")


def test_ports_are_those_it_listens_at(in_cluster: Config) -> None:
    named = {port["name"]: port["containerPort"] for port in containers(pod("StatefulSet", "mirror"))[0]["ports"]}
    assert named == {
        "registry": in_cluster.listen[0].address.port,
        "admin": in_cluster.admin_listen[0].address.port,
    }
    assert named["registry"] == PORT
    for service_name in ("mirror", "mirror-pods"):
        for port in the("Service", service_name)["spec"]["ports"]:
            assert port["port"] == named[port["targetPort"]]


def test_names_and_labels_lead_from_one_object_to_the_next() -> None:
    stateful = the("StatefulSet", "mirror")
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    assert the("Service", stateful["spec"]["serviceName"])["spec"]["clusterIP"] == "None"
    for name in ("mirror", "mirror-pods"):
        assert the("Service", name)["spec"]["selector"] == labels
    daemons = the("DaemonSet", "mirror-nodes")
    assert daemons["spec"]["selector"]["matchLabels"] == daemons["spec"]["template"]["metadata"]["labels"] != labels


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_what_is_mounted_is_there(kind: str, name: str) -> None:
    spec = pod(kind, name)
    claims = [claim["metadata"]["name"] for claim in the(kind, name)["spec"].get("volumeClaimTemplates", ())]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["name"] for one in containers(spec) for mount in one.get("volumeMounts", ())}
    assert mounted == {*volumes, *claims}
    assert the("ConfigMap", volumes["config"]["configMap"]["name"])


def test_probes_ask_what_answers() -> None:
    one = containers(pod("StatefulSet", "mirror"))[0]
    paths = {probe: one[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert set(paths.values()) == set(PROBED)
    assert {one[probe]["httpGet"]["port"] for probe in paths} == {"registry"}


@pytest.mark.parametrize(("kind", "name"), PODS)
def test_pods_run_commands_that_exist(kind: str, name: str) -> None:
    for one in containers(pod(kind, name)):
        if "args" in one:
            # the file is the ConfigMap's
            mounts = {mount["mountPath"] for mount in one["volumeMounts"]}
            assert str(Path(one["args"][one["args"].index("--config") + 1]).parent) in mounts
            understood(one["args"])


def test_the_pod_has_time_to_end(in_cluster: Config) -> None:
    grace = pod("StatefulSet", "mirror")["terminationGracePeriodSeconds"]
    assert grace > in_cluster.shutdown_delay + in_cluster.drain_timeout


def test_the_pod_is_as_restricted_as_kubernetes_can_ask_for() -> None:
    """The profile "restricted" of the Pod Security Standards, and a file system that is read-only."""
    spec = pod("StatefulSet", "mirror")
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == USER
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(spec):
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert spec["automountServiceAccountToken"] is False


def test_of_a_node_only_the_folder_of_its_mirrors_is_given_away() -> None:
    spec = pod("DaemonSet", "mirror-nodes")
    given = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert given == ["/etc/containerd/certs.d"]
    write = spec["initContainers"][0]
    target = write["args"][write["args"].index("--write") + 1]
    assert {"name": "hosts", "mountPath": target + given[0]} in write["volumeMounts"]
    node_port = the("Service", "mirror")["spec"]["ports"][0]["nodePort"]
    assert write["args"][write["args"].index("--url") + 1] == f"http://$(NODE):{node_port}"
