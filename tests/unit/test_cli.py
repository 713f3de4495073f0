"""The command line: what newcomers read, what wins, how it fails; and once for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirror import __version__
from mirror.cli import main
from mirror.config import Config, ListenAddress
from mirror.worker import StartupError

PROJECT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="mirror")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Catch the configuration instead of serving with it."""
    caught: list[Config] = []

    def serve(config: Config, build_app: Any) -> int:
        caught.append(config)
        return 0

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("mirror.server.serve", serve)
    monkeypatch.setattr("mirror.logs.setup_logging", lambda: None)
    return caught


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"mirror, version {__version__}\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=["alone", "long", "short"])
def test_help(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 0
    assert "serve" in result.output
    assert '"mirror serve"' in result.output


def test_help_of_serve_names_every_option_with_a_text() -> None:
    result = run("serve", "--help")
    assert result.exit_code == 0
    for option in (
        "--config FILE",
        "--host HOST",
        "-p, --port PORT",
        "--listen HOST:PORT",
        "--root DIR",
        "--workers N",
        "--packages DIR",
        "--read-only",
    ):
        assert option in result.output


def test_help_of_pull_names_every_option_with_a_text() -> None:
    result = run("pull", "--help")
    assert result.exit_code == 0
    for option in (
        "--platform OS/ARCH[/VARIANT]",
        "--from FILE",
        "--url URL",
        "--config FILE",
        "--root DIR",
        "-u, --user NAME",
        "--password-file FILE",
        "--ca-file FILE",
        "--jobs N",
        "--json",
    ):
        assert option in result.output


def test_help_waits_for_nothing_slow() -> None:
    """What commands need is imported when they run."""
    program = (
        "import sys\nfrom click.testing import CliRunner\nfrom mirror.cli import main\n"
        "assert CliRunner().invoke(main, ['pull', '--help']).exit_code == 0\n"
        "print(*[name for name in ('aiohttp', 'rich', 'pydantic', 'jwt', 'bcrypt', 'yaml') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "\n", "")


def test_defaults(served: list[Config], tmp_path: Path) -> None:
    assert run("serve").exit_code == 0
    assert [one.address for one in served[0].listen] == [ListenAddress("127.0.0.1", 5000)]
    assert served[0].storage.root == tmp_path / "data" / "oci-mirror"
    assert served[0].workers == "auto"
    assert len(served[0].upstreams) == 8


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-p", "6000"], [("127.0.0.1", 6000)]),
        (["--port", "0"], [("127.0.0.1", 0)]),
        (["--host", "0.0.0.0"], [("0.0.0.0", 5000)]),
        (["--host", "::1", "--port", "6000"], [("::1", 6000)]),
        (["--host", "[::1]"], [("::1", 5000)]),
        (["--listen", "127.0.0.1:1", "--listen", "[::1]:2"], [("127.0.0.1", 1), ("::1", 2)]),
        ([], [("10.0.0.1", 7000), ("10.0.0.2", 7000)]),
    ],
    ids=["short-port", "any-port", "host", "ipv6", "ipv6-in-brackets", "several", "as-in-the-file"],
)
def test_addresses_win_over_the_file(
    served: list[Config], tmp_path: Path, arguments: list[str], expected: list[tuple[str, int]]
) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("listen: [10.0.0.1:7000, 10.0.0.2:7000]\n")
    result = run("serve", "--config", str(file), *arguments)
    assert result.exit_code == 0, result.output
    assert [one.address for one in served[0].listen] == [ListenAddress(host, port) for host, port in expected]


@pytest.mark.parametrize(
    ("arguments", "workers", "root"),
    [([], 3, "/from/file"), (["--workers", "5", "--root", "/from/option"], 5, "/from/option")],
    ids=["file", "options"],
)
def test_root_and_workers_win_over_the_file(
    served: list[Config], tmp_path: Path, arguments: list[str], workers: int, root: str
) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("workers: 3\nstorage: {root: /from/file}\n")
    result = run("serve", "--config", str(file), *arguments)
    assert result.exit_code == 0, result.output
    assert (served[0].workers, served[0].storage.root) == (workers, Path(root))


@pytest.mark.parametrize(
    ("arguments", "packages", "read_only"),
    [
        ([], "from-file", False),
        (["--packages", "from-option"], "work/from-option", False),
        (["--read-only"], "from-file", True),
    ],
    ids=["file", "folder", "read-only"],
)
def test_packages_and_read_only_win_over_the_file(
    served: list[Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    packages: str,
    read_only: bool,
) -> None:
    """A folder in the file starts from the file's, one typed from where it is typed."""
    (tmp_path / "work" / "from-option").mkdir(parents=True)
    (tmp_path / "from-file").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    file = tmp_path / "mirror.yaml"
    file.write_text("packages: from-file\nread_only: false\n")
    result = run("serve", "--config", str(file), *arguments)
    assert result.exit_code == 0, result.output
    assert (served[0].packages, served[0].read_only) == (tmp_path / packages, read_only)


def test_read_only_in_the_file_holds_without_the_option(served: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("read_only: true\n")
    assert run("serve", "--config", str(file)).exit_code == 0
    assert served[0].read_only is True
    assert served[0].packages is None


def test_packages_that_are_not_there_are_said(served: list[Config], tmp_path: Path) -> None:
    result = run("serve", "--packages", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert result.stderr.startswith("command line: packages: ")
    assert str(tmp_path / "none") in result.stderr
    assert served == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "--nonsense"],
        ["serve", "extra"],
        ["serve", "--port", "x"],
        ["serve", "--port", "65536"],
        ["serve", "--listen", "127.0.0.1:1", "--port", "2"],
        ["serve", "--listen", "127.0.0.1:1", "--host", "::1"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(served: list[Config], arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: mirror" in result.output
    assert served == []


def test_problems_of_the_configuration_are_all_said_one_per_line(served: list[Config], tmp_path: Path) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("workerz: 3\nstorage:\n  rot: /x\n")
    result = run("serve", "--config", str(file), "--workers", "none")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"{file}:1:1: workerz: unknown key") for line in lines)
    assert any(line.startswith(f"{file}:3:3: storage.rot: unknown key") for line in lines)
    assert any(line.startswith("command line: workers: ") for line in lines)
    assert result.stdout == ""
    assert served == []


def test_missing_file_is_one_line(served: list[Config]) -> None:
    result = run("serve", "--config", "/no/such/file.yaml")
    assert (result.exit_code, result.stderr) == (1, "/no/such/file.yaml: no such file\n")


def test_operator_errors_are_one_line(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config, build_app: Any) -> int:
        raise StartupError("the port is in use by pid 7 (sleep)")

    monkeypatch.setattr("mirror.server.serve", refuse)
    result = run("serve")
    assert (result.exit_code, result.stderr) == (1, "mirror: the port is in use by pid 7 (sleep)\n")


def test_exit_code_is_the_services(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.server.serve", lambda config, build_app: 143)
    assert run("serve").exit_code == 143


def test_as_a_module() -> None:
    found = subprocess.run([sys.executable, "-m", "mirror", "--version"], cwd=PROJECT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, f"mirror, version {__version__}\n")


_WATCHED = """
import os, sys
local = ("127.0.0.1", None)
def watch(event, arguments):
    if event == "socket.connect" or (event == "socket.getaddrinfo" and arguments[0] not in local):
        os.write(2, f"NETWORK {event} {arguments[-1] if event == 'socket.connect' else arguments[0]}\\n".encode())
sys.addaudithook(watch)
from mirror.cli import main
main()
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """The command itself, with a look at what it says to the network. Its upstream listens nowhere."""
    file, log = tmp_path / "mirror.yaml", tmp_path / "log"
    file.write_text(
        "upstreams: {up.test: {url: 'http://127.0.0.1:9', redirects_to: [127.0.0.0/8]}}\n"
        "default_upstream: up.test\nshutdown_delay: 0s\n"
    )
    arguments = ["serve", "--config", str(file), "-p", "0", "--root", str(tmp_path / "root"), "--workers", "2"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, *arguments],
            stderr=stderr,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )
    deadline = time.monotonic() + 30
    try:
        while not (lines := [line for line in log.read_text().splitlines() if "listening on " in line]):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield process, log, int(json.loads(lines[0])["message"].rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


def test_starting_does_not_touch_the_network(real: tuple[subprocess.Popen[bytes], Path, int]) -> None:
    process, log, port = real
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz") as response:
        assert response.status == 200
    assert "NETWORK" not in log.read_text()
    # And the look would have seen it: a request for what is not here goes upstream.
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/some/thing/manifests/latest")
    answer.value.close()
    assert answer.value.code >= 500
    assert "NETWORK" in log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "Traceback" not in log.read_text()
