"""``mirror client``: what goes to standard output and to standard error, what is written, how it fails."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.cli.client import CLIENTS
from mirror.clients import PLANS

URL = ("--url", "http://mirror.corp:5000")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["client", *arguments], prog_name="mirror")


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def configured(tmp_path: Path, text: str) -> tuple[str, str]:
    file = tmp_path / "mirror.yaml"
    file.write_text(text)
    return "--config", str(file)


def test_help_names_every_option_and_client() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for option in ("--url URL", "--write DIR", "--config FILE", "--upstream NAME", "--no-fallback", "--ca-file FILE"):
        assert option in result.output
    assert all(option in result.output for option in ("--force", "--json", *CLIENTS))


def test_every_client_of_the_command_has_a_plan() -> None:
    assert tuple(PLANS) == CLIENTS


@pytest.mark.parametrize("client", CLIENTS)
def test_files_go_to_stdout_under_their_path_and_the_rest_to_stderr(client: str) -> None:
    result = run(client, *URL, "--upstream", "docker.io")
    assert result.exit_code == 0, result.output
    paths = [line[2:] for line in result.stdout.splitlines() if line.startswith("# /etc/")]
    assert paths
    document = json.loads(run(client, *URL, "--upstream", "docker.io", "--json").stdout)
    assert [file["path"] for file in document["files"]] == paths
    assert result.stdout == "\n".join(f"# {file['path']}\n{file['content']}" for file in document["files"])
    assert "next:\n  - " in result.stderr


def test_what_is_written_is_what_is_printed(tmp_path: Path) -> None:
    printed = json.loads(run("containerd", *URL, "--json").stdout)["files"]
    result = run("containerd", *URL, "--write", str(tmp_path / "node"))
    assert result.exit_code == 0, result.output
    assert {f"/{path.relative_to(tmp_path / 'node')}": path.read_text() for path in tmp_path.rglob("*.toml")} == {
        file["path"]: file["content"] for file in printed
    }
    assert result.stdout.splitlines()[0] == f"written    {tmp_path}/node/etc/containerd/certs.d/docker.io/hosts.toml"
    assert "config_path" in result.stderr
    again = json.loads(run("containerd", *URL, "--write", str(tmp_path / "node"), "--json").stdout)
    assert {file["state"] for file in again["files"]} == {"unchanged"}


def test_upstreams_are_those_of_the_configuration(tmp_path: Path) -> None:
    file = configured(tmp_path, "upstreams: {only.corp: {url: 'https://only.corp'}}\nlisten: 10.0.0.1:6000\n")
    document = json.loads(run("k3s", *file, "--json").stdout)
    assert document["url"] == "http://10.0.0.1:6000"
    assert '"only.corp"' in document["files"][0]["content"]
    assert "docker.io" not in document["files"][0]["content"]


def test_nobody_but_this_machine_reaches_loopback() -> None:
    assert "only this machine reaches http://127.0.0.1:5000" in run("podman").stderr
    assert "only this machine" not in run("podman", *URL).stderr


def test_a_machine_that_listens_everywhere_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    result = run("podman", *configured(tmp_path, "listen: 0.0.0.0:5000\n"))
    assert 'location = "node-7:5000/ghcr.io"' in result.stdout
    assert "nodes are assumed to know this machine as node-7" in result.stderr


def test_a_mirror_that_lets_nobody_pull_without_a_login(tmp_path: Path) -> None:
    users = tmp_path / "htpasswd"
    users.write_text("ci:$2b$04$abcdefghijklmnopqrstuuXo1tUqbVvC1hIYX0nH7C3VbKjP3uM1y\n")
    file = configured(tmp_path, f"access: {{htpasswd_file: {users}, anonymous: none}}\n")
    assert "warning: the mirror wants a login" in run("podman", *URL, *file).stderr


def test_docker_needs_a_mirror_whose_default_is_docker_hub(tmp_path: Path) -> None:
    hub = "upstreams: {docker.io: {url: 'https://registry-1.docker.io'}, q: {url: 'https://q.io'}}\n"
    result = run("docker", *URL, *configured(tmp_path, f"{hub}default_upstream: q\n"))
    assert result.exit_code == 2
    assert "set default_upstream: docker.io" in result.stderr
    assert run("docker", *URL, *configured(tmp_path, hub)).exit_code == 0


def test_only_certificates_go_with_the_files(tmp_path: Path, ca: Path) -> None:
    key = trustme.CA().private_key_pem.bytes().decode()
    both = tmp_path / "both.pem"
    both.write_text(f"a note\n{key}\n{ca.read_text()}")
    result = run("podman", "--url", "https://m.corp", "--ca-file", str(both))
    assert result.exit_code == 0, result.output
    assert ca.read_text().strip() in result.stdout
    assert "PRIVATE" not in result.output
    assert "a note" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "CLIENT is missing"),
        (["rkt"], "or k3s, got rkt"),
        (["podman", "--url", "mirror"], "write http://HOST:PORT"),
        (["podman", "--url", "http://ci:secret@m"], "no login in a URL"),
        (["podman", "--upstream", "ghcr.oi"], 'did you mean "ghcr.io"?'),
        (["podman", "--force"], "give --write as well"),
        (["docker", "--no-fallback"], "docker always goes on to Docker Hub"),
        (["buildkit", "--no-fallback"], "BuildKit always goes on"),
        (["podman", "--url", "http://m:1", "--ca-file", "/dev/null"], "--ca-file is for an https mirror"),
        (["podman", "--url", "https://m.corp", "--ca-file", "/no/such"], "/no/such cannot be read"),
        (["podman", "--url", "https://m.corp", "--ca-file", "/dev/null"], "no PEM file of certificates"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_exit_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in " ".join(result.stderr.split())
    assert "secret" not in result.stderr


def test_what_is_in_a_certificate_is_looked_at(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    result = run("podman", "--url", "https://m.corp", "--ca-file", str(bad))
    assert (result.exit_code, result.stdout) == (2, "")


def test_problems_of_the_configuration_are_all_said(tmp_path: Path) -> None:
    file = configured(tmp_path, "workerz: 3\nstorage: {rot: x}\n")
    result = run("podman", *file)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 2)
    assert "workerz: unknown key" in result.stderr


def test_without_upstreams_there_is_nothing_to_mirror(tmp_path: Path) -> None:
    result = run("podman", *configured(tmp_path, "upstreams: {}\n"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no upstreams" in result.stderr


def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "etc/buildkit/buildkitd.toml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("debug = true\n")
    result = run("buildkit", *URL, "--write", str(tmp_path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == "mirror: nothing was written"
    assert theirs.read_text() == "debug = true\n"
    forced = run("buildkit", *URL, "--write", str(tmp_path), "--force")
    assert forced.exit_code == 0
    assert forced.stdout == f"replaced   {theirs} (as it was: {theirs}.bak)\n"
    assert Path(f"{theirs}.bak").read_text() == "debug = true\n"


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("")
    result = run("buildkit", *URL, "--write", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"mirror: {tmp_path}/etc/buildkit/buildkitd.toml cannot be ")
