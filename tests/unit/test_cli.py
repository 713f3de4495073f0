"""The command line: what newcomers read, what wins, how it fails; and once for real."""

from __future__ import annotations

import json
import logging
import os
import pty
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirror import __version__
from mirror.cli import main
from mirror.config import Config, ConfigError, ListenAddress
from mirror.worker import StartupError

PROJECT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="mirror")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Config]:
    """Catch the configuration instead of serving with it."""
    caught: list[Config] = []

    def serve(config: Config, build_app: Any, **more: Any) -> int:
        caught.append(config)
        return 0

    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr("mirror.server.serve", serve)
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)
    return caught


@pytest.mark.parametrize(
    ("file", "arguments", "human", "level"),
    [
        ("", [], None, logging.INFO),
        ("log: {format: json, level: error}", [], False, logging.ERROR),
        ("log: {format: json, level: error}", ["--log-format", "human", "--log-level", "debug"], True, logging.DEBUG),
        ("log: {format: human}", ["--log-format", "auto", "--log-level", "warning"], None, logging.WARNING),
    ],
    ids=["default", "file", "options", "back-to-auto"],
)
def test_log_options_win_over_the_file(
    served: list[Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    arguments: list[str],
    human: bool | None,
    level: int,
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **how: said.append(how))
    config = tmp_path / "mirror.yaml"
    config.write_text(file)
    assert run("serve", "--config", str(config), *arguments).exit_code == 0
    assert said == [{"human": human, "level": level}]
    asked = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert served[0].log.format == asked.get("--log-format", served[0].log.format)
    assert logging.getLevelName(served[0].log.level.upper()) == level


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
        "--log-format [auto|human|json]",
        "--log-level [debug|info|warning|error]",
    ):
        assert option in result.output


def test_commands_stand_in_the_order_they_are_needed() -> None:
    lines = [line.split() for line in run("--help").output.splitlines() if line.startswith("  ")]
    first = [words[0] for words in lines if words[0] in main.commands]
    assert first[:2] == ["serve", "client"]
    assert sorted(first) == sorted(main.commands)
    assert first.index("pull") < first.index("conformance")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serv"], 'Did you mean "serve"?'),
        (["clinet", "docker"], 'Did you mean "client"?'),
        (["serve", "--prot", "1"], 'Did you mean "--port"?'),
        (["xyzzy"], "No such command"),
    ],
    ids=["short", "swapped", "option", "unlike-any"],
)
def test_what_is_mistyped_is_guessed(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert ("Did you mean" in result.output) is (arguments != ["xyzzy"])


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
    assert result.exit_code == 2
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
    assert (result.exit_code, result.stderr) == (2, "command line: --config: /no/such/file.yaml: no such file\n")


def test_operator_errors_are_one_line(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: Config, build_app: Any, **more: Any) -> int:
        raise StartupError("the port is in use by pid 7 (sleep)")

    monkeypatch.setattr("mirror.server.serve", refuse)
    result = run("serve")
    assert (result.exit_code, result.stderr) == (1, "mirror: the port is in use by pid 7 (sleep)\n")


@pytest.mark.parametrize("given", [True, False], ids=["with-a-file", "without"])
def test_what_is_read_again_is_the_file_and_the_same_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    file = tmp_path / "mirror.yaml"
    file.write_text("workers: 7\n")
    configs: list[Config] = []

    def serve(config: Config, build_app: Any, *, reload: Callable[[], Config], **more: Any) -> int:
        file.write_text("workers: 8\noffline: true\n")
        configs.extend([config, reload()])
        file.write_text("nonsense: 1\n")
        if given:
            with pytest.raises(ConfigError):
                reload()
        return 0

    monkeypatch.setattr("mirror.server.serve", serve)
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)
    arguments = ["--config", str(file)] if given else []
    with caplog.at_level("INFO", logger="mirror"):
        assert run("serve", *arguments, "--root", str(tmp_path / "root"), "--workers", "3").exit_code == 0
    assert [config.workers for config in configs] == [3, 3]
    assert [config.offline for config in configs] == [False, given]
    assert ("there is no configuration file" in caplog.text) is not given


def test_exit_code_is_the_services(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.server.serve", lambda *_, **__: 143)
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
        while not (lines := [line for line in log.read_text().split("\n")[:-1] if "listening on " in line]):
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


@pytest.mark.parametrize(
    ("options", "greeted"), [([], True), (["--log-format", "json"], False)], ids=["terminal", "json-on-a-terminal"]
)
def test_people_at_a_terminal_are_told_what_to_do_next(tmp_path: Path, options: list[str], greeted: bool) -> None:
    command = [sys.executable, "-m", "mirror", "serve", "-p", "0", "--root", str(tmp_path / "root"), "--workers", "1"]
    terminal, end = pty.openpty()
    process = subprocess.Popen([*command, *options], cwd=PROJECT, stdin=end, stdout=end, stderr=end)
    os.close(end)
    try:
        text = read_until(terminal, "  next " if greeted else '"listening on ')
        # nothing more comes before the service is told to end
        process.send_signal(signal.SIGINT)
        text += read_until(terminal, None)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    lines = text.replace("\r", "").splitlines()
    assert ("  push      anybody on this machine may push to local/**" in lines) is greeted
    if greeted:
        url = next(line.split()[1] for line in lines if line.startswith("  listening "))
        assert f"  next      mirror client containerd --url {url}" in lines
    else:
        assert all(json.loads(line) for line in lines if line != "^C")


def read_until(terminal: int, wanted: str | None) -> str:
    """Read until a word and the end of its line are there; without one, until nobody writes any more."""
    text, deadline = "", time.monotonic() + 30
    while wanted is None or wanted not in text or not text.endswith("\n"):
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                text += os.read(terminal, 65536).decode()
            except OSError:  # EIO: all who had the terminal have ended
                break
    return text


def test_without_a_terminal_there_are_log_lines_only(real: tuple[subprocess.Popen[bytes], Path, int]) -> None:
    process, log, _ = real
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    lines = log.read_text().splitlines()
    assert len(lines) > 1
    assert all("message" in json.loads(line) for line in lines)
