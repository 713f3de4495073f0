"""Command lines that cannot be understood: all that is said of each, on standard error, and exit status 2.

What is said names the option, and what to write instead. Mistakes in a file that was named well end with 1: they are
not here.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mirror.cli import main

USAGE = {
    "": "[OPTIONS] [COMMAND] [ARGS]...",
    "serve": "[OPTIONS]",
    "pull": "[OPTIONS] [REFERENCE]...",
    "store": "[OPTIONS] COMMAND [ARGS]...",
    "store backup": "[OPTIONS] DEST",
    "store restore": "[OPTIONS] SOURCE",
    "conformance": "[OPTIONS] URL...",
    "doctor": "[OPTIONS]",
    "config": "[OPTIONS] COMMAND [ARGS]...",
    "config check": "[OPTIONS] [FILE]",
    "config show": "[OPTIONS] [FILE]",
    "config default": "[OPTIONS]",
    "config schema": "[OPTIONS]",
    "config table": "[OPTIONS]",
    "client": "[OPTIONS] CLIENT",
    "health": "[OPTIONS]",
    "stats": "[OPTIONS]",
    "explain": "[OPTIONS] REFERENCE",
}
"""What stands above the mistake, by the command that was meant."""

PASSWORD = "hunter2"

ROWS = """
$ mirror server
No such command "server". Did you mean "serve"?
$ mirror xyzzy
No such command "xyzzy". There are {commands}.
$ mirror --verison
No such option "--verison". Did you mean "--version"?
$ mirror -x
No such option "-x". "mirror --help" lists what there is.
$ mirror --version=1
--version takes no value: leave out what follows the =.

$ mirror serve extra
unexpected "extra": mirror serve takes options only. "mirror serve --help" lists what there is.
$ mirror serve --prot 5000
No such option "--prot". Did you mean "--port"?
$ mirror serve --listne 127.0.0.1:5000
No such option "--listne". Did you mean "--listen"?
$ mirror serve --data /srv
No such option "--data". "mirror serve --help" lists what there is.
$ mirror serve --port abc
Invalid value for '-p' / '--port': expected a whole number from 0 to 65535, got abc
$ mirror serve --port 65536
Invalid value for '-p' / '--port': expected a whole number from 0 to 65535, got 65536
$ mirror serve --port -1
Invalid value for '-p' / '--port': expected a whole number from 0 to 65535, got -1
$ mirror serve --port
--port needs a value: --port PORT
$ mirror serve --root
--root needs a value: --root DIR
$ mirror serve --read-only=yes
--read-only takes no value: leave out what follows the =.
$ mirror serve --listen 127.0.0.1:1 --port 2
--listen already has host and port: give it alone, or --host and --port.
$ mirror serve --listen 127.0.0.1:1 --host ::1
--listen already has host and port: give it alone, or --host and --port.

$ mirror pull
nothing to pull: give images, or files of them by --from.
$ mirror pull alpine --jobs many
Invalid value for '--jobs': expected a whole number from 1 to 64, got many
$ mirror pull alpine --jobs 0
Invalid value for '--jobs': expected a whole number from 1 to 64, got 0
$ mirror pull alpine --plattform linux/arm64
No such option "--plattform". Did you mean "--platform"?
$ mirror pull alpine --platform linux
Invalid value for --platform: 'linux' is not a platform: write os/arch or os/arch/variant, or all.
$ mirror pull alpine --url mirror:5000
Invalid value for '--url': 'mirror:5000' is not a mirror: say http://HOST:PORT or https://HOST.
$ mirror pull alpine --url http://me:hunter2@mirror
Invalid value for '--url': no login in a URL: give --user and --password-file.
$ mirror pull alpine --url http://mirror/v2/
Invalid value for '--url': 'http://mirror/v2/' has a path: the API is at /v2/ of a host.
$ mirror pull alpine --url http://mirror --root /srv
--url already says which mirror: give it alone, or --config and --root.
$ mirror pull alpine --user me
a login is --user and --password-file: give both.
$ mirror pull alpine --user me --password-file FOLDER
Invalid value for '--password-file': File 'FOLDER' is a directory.
$ mirror pull alpine --ca-file FOLDER/ca.pem
--ca-file is for an https --url.
$ mirror pull --from FOLDER/images.txt
FOLDER/images.txt cannot be read: No such file or directory.
$ mirror pull --from FOLDER
FOLDER cannot be read: Is a directory.

$ mirror store bakup /backup
No such command "bakup". Did you mean "backup"?
$ mirror store backup
DEST is missing: write mirror store backup DEST
$ mirror store backup /a /b
unexpected "/b": mirror store backup takes DEST and options. "mirror store backup --help" lists what there is.
$ mirror store backup FILE
Invalid value for 'DEST': Directory 'FILE' is a file.
$ mirror store restore
SOURCE is missing: write mirror store restore SOURCE
$ mirror store restore FOLDER/backup
Invalid value for 'SOURCE': Directory 'FOLDER/backup' does not exist.

$ mirror conformance
URL... is missing: write mirror conformance URL...
$ mirror conformance registry:5000
Invalid value for 'URL...': 'registry:5000' is not a registry: say http://HOST:PORT or https://HOST.
$ mirror conformance http://me:hunter2@registry
Invalid value for 'URL...': no login in a URL: give --user, and the password apart.
$ mirror conformance http://registry --spec 2
Invalid value for '-V' / '--spec': expected 1.0, 1.1, main or all, got 2
$ mirror conformance http://registry --spec mian
Invalid value for '-V' / '--spec': expected 1.0, 1.1, main or all, got mian; did you mean "main"?
$ mirror conformance http://registry --timeout soon
Invalid value for '--timeout': expected a number from 0.1 up, got soon
$ mirror conformance http://registry --pull-only
--pull-only needs content to pull: give --reference, and --repository.
$ mirror conformance http://registry --insecure --ca-file FILE
--insecure or --ca-file: give one of them.
$ mirror conformance http://registry --case nonsense
no such case: nonsense; --list names them.
$ mirror conformance http://registry --seed xyz
Invalid value for --seed: 'xyz' is not hexadecimal.
$ mirror conformance http://registry --password-stdin
a password is of no use without --user.
$ mirror conformance http://registry --blob
--blob needs a value: --blob DIGEST

$ mirror doctor docker.io
unexpected "docker.io": mirror doctor takes options only. "mirror doctor --help" lists what there is.
$ mirror doctor --upstreams docker.io
No such option "--upstreams". Did you mean "--upstream"?
$ mirror doctor --upstream docker.oi
Invalid value for '--upstream': no upstream is called 'docker.oi'; did you mean "docker.io"?
$ mirror doctor --offline --upstream docker.io
--offline asks no upstream: give it, or --upstream.
$ mirror doctor --timeout 0
Invalid value for '--timeout': expected a number from 0.1 to 300, got 0.0
$ mirror doctor --timeout soon
Invalid value for '--timeout': expected a number from 0.1 to 300, got soon

$ mirror config chek
No such command "chek". Did you mean "check" or "schema"?
$ mirror config check a b
unexpected "b": mirror config check takes [FILE] and options. "mirror config check --help" lists what there is.
$ mirror config check --jsn
No such option "--jsn". Did you mean "--json"?
$ mirror config show a b
unexpected "b": mirror config show takes [FILE] and options. "mirror config show --help" lists what there is.
$ mirror config default extra
unexpected "extra": mirror config default takes options only. "mirror config default --help" lists what there is.
$ mirror config schema extra
unexpected "extra": mirror config schema takes options only. "mirror config schema --help" lists what there is.
$ mirror config table extra
unexpected "extra": mirror config table takes options only. "mirror config table --help" lists what there is.

$ mirror client
CLIENT is missing: write mirror client CLIENT
$ mirror client dokcer
Invalid value for 'CLIENT': expected {clients}, got dokcer; did you mean "docker"?
$ mirror client docker podman
unexpected "podman": mirror client takes CLIENT and options. "mirror client --help" lists what there is.
$ mirror client docker --force
--force is about files that are there: give --write as well.
$ mirror client docker --url
--url needs a value: --url URL
$ mirror client docker --url mirror:5000
Invalid value for --url: 'mirror:5000' is not where a mirror can be; write http://HOST:PORT or https://HOST.
$ mirror client docker --url http://me:hunter2@mirror
Invalid value for --url: no login in a URL: clients have places of their own for it.
$ mirror client docker --ca-file FOLDER
Invalid value for '--ca-file': File 'FOLDER' is a directory.
$ mirror client docker --upstream docker.oi
Invalid value for --upstream: no upstream is called 'docker.oi'; did you mean "docker.io"?
$ mirror client docker --wirte /
No such option "--wirte". Did you mean "--write"?

$ mirror serve --log-format xml
Invalid value for '--log-format': expected auto, human or json, got xml
$ mirror serve --log-level trace
Invalid value for '--log-level': expected debug, info, warning or error, got trace

$ mirror health extra
unexpected "extra": mirror health takes options only. "mirror health --help" lists what there is.

$ mirror stats extra
unexpected "extra": mirror stats takes options only. "mirror stats --help" lists what there is.
$ mirror stats --top many
Invalid value for '--top': expected a whole number from 0 to 100000, got many
$ mirror stats --top -1
Invalid value for '--top': expected a whole number from 0 to 100000, got -1
$ mirror stats --by name
Invalid value for '--by': expected size, pulls or age, got name

$ mirror explain
REFERENCE is missing: write mirror explain REFERENCE
$ mirror explain a b
unexpected "b": mirror explain takes REFERENCE and options. "mirror explain --help" lists what there is.
$ mirror explain alpine --platform linux
Invalid value for --platform: 'linux' is not a platform: write os/arch or os/arch/variant, or all.
$ mirror explain https://x/y
Invalid value for REFERENCE: it is a URL; leave out https://.
$ mirror explain alpine --aks
No such option "--aks". Did you mean "--ask"?
"""
"""A command line and what is said of it. FOLDER and FILE are there, and there is nothing in the folder."""

SETTINGS = """
$ mirror serve --listen localhost
command line: listen.address: expected HOST:PORT, got no port; write "localhost:5000"
$ mirror serve --listen 5000
command line: listen.address: expected HOST:PORT such as 127.0.0.1:5000 or [::1]:5000, got "5000"
$ mirror serve --listen :5000
command line: listen.address: expected HOST:PORT, got no host; write "127.0.0.1:5000", or "0.0.0.0:5000" for all
$ mirror serve --listen ::1:5000
command line: listen.address: expected HOST:PORT with an IPv6 address in brackets; write "[::1]:5000"
$ mirror serve --listen 127.0.0.1:99999
command line: listen.address: expected a port from 0 to 65535
$ mirror serve --listen 127.0.0.1:1 --listen 127.0.0.1:1
command line: listen: 127.0.0.1:1 is given twice
$ mirror serve --workers 0
command line: workers: expected auto or a number from 1 to 256, got 0
$ mirror serve --workers two
command line: workers: expected auto or a number from 1 to 256, got "two"
$ mirror serve --packages FOLDER/images
command line: packages: "FOLDER/images": no such folder
$ mirror serve --root ''
command line: storage.root: expected a path, got none
$ mirror pull alpine --root ''
command line: storage.root: expected a path, got none
$ mirror store backup /a --root ''
command line: storage.root: expected a path, got none
$ mirror serve --config FOLDER
command line: --config: FOLDER: is a folder, not a file
$ mirror serve --config FOLDER/mirror.yaml
command line: --config: FOLDER/mirror.yaml: no such file
$ mirror pull alpine --config FOLDER
command line: --config: FOLDER: is a folder, not a file
$ mirror store backup /a --config FOLDER
command line: --config: FOLDER: is a folder, not a file
$ mirror doctor --config FOLDER
command line: --config: FOLDER: is a folder, not a file
"""
"""What only reading the settings shows: the lines alone, as there may be many."""


def rows(table: str) -> list[tuple[str, str]]:
    """Return command lines, each with what is said of it."""
    found = [row.partition("\n") for row in table.strip().removeprefix("$ ").split("\n$ ")]
    return [(line, said.strip()) for line, _, said in found]


def run(line: str, folder: Path) -> Result:
    """Give a command line to the command, standard error apart."""
    arguments = [word.replace("FOLDER", str(folder)).replace("FILE", __file__) for word in shlex.split(line)]
    result = CliRunner().invoke(main, arguments[1:], prog_name=arguments[0])
    assert isinstance(result.exception, SystemExit), result.exception
    return result


def meant(line: str) -> str:
    """Return the command that a line is of."""
    words = line.split()[1:]
    return max((name for name in USAGE if words[: len(name.split())] == name.split()), key=len)


@pytest.mark.parametrize(("line", "said"), rows(ROWS), ids=lambda value: value if value[:6] == "mirror" else "")
def test_what_cannot_be_understood(tmp_path: Path, line: str, said: str) -> None:
    result = run(line, tmp_path)
    command = meant(line)
    path = f"mirror {command}".strip()
    said = said.replace("{clients}", "containerd, docker, podman, cri-o, buildkit or k3s")
    said = said.replace("{commands}", ", ".join(main.list_commands(click.Context(main))))
    said = re.sub(r"(?<!\[)FILE", __file__, said.replace("FOLDER", str(tmp_path)))
    assert result.stderr == f"Usage: {path} {USAGE[command]}\nTry '{path} --help' for help.\n\nError: {said}\n"
    assert (result.exit_code, result.stdout) == (2, "")
    assert PASSWORD not in result.output


@pytest.mark.parametrize(("line", "said"), rows(SETTINGS), ids=lambda value: value if value[:6] == "mirror" else "")
def test_what_no_setting_takes(tmp_path: Path, line: str, said: str) -> None:
    result = run(line, tmp_path)
    assert result.stderr == said.replace("FOLDER", str(tmp_path)) + "\n"
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.parametrize("command", ["serve", "pull alpine", "store backup /a", "doctor", "stats", "explain a"])
def test_a_file_that_is_wrong_as_well_is_another_matter(tmp_path: Path, command: str) -> None:
    """That is what 1 is for: the command line could be understood."""
    (tmp_path / "mirror.yaml").write_text("workerz: 1\n")
    result = run(f"mirror {command} --root '' --config FOLDER/mirror.yaml", tmp_path)
    assert result.exit_code == 1
    assert "workerz: unknown key" in result.output
    assert "command line: storage.root: " in result.output
    assert "Usage" not in result.output


@pytest.mark.parametrize("command", ["client k3s", "stats", "explain a", "pull a", "store backup FOLDER/b"])
@pytest.mark.parametrize(("text", "status"), [("workerz: 1\nlisten: nowhere\n", 1), (None, 2)], ids=["wrong", "none"])
def test_json_has_the_same_lines(tmp_path: Path, command: str, text: str | None, status: int) -> None:
    """Each command says what is wrong with a configuration in the same way."""
    if text is not None:
        (tmp_path / "mirror.yaml").write_text(text)
    result = run(f"mirror {command} --json --config FOLDER/mirror.yaml", tmp_path)
    assert result.exit_code == status
    said = json.loads(result.stdout)["problems"]
    assert said == result.stderr.splitlines()
    assert len(said) == (2 if text else 1)


def test_every_command_has_its_rows() -> None:
    """Also those that have commands themselves."""

    def names(group: click.Group, above: str = "") -> set[str]:
        found = set()
        for name, command in group.commands.items():
            inner = names(command, f"{above}{name} ") if isinstance(command, click.Group) else set()
            found |= inner or {f"{above}{name}"}
        return found

    assert {meant(line) for line, _ in rows(ROWS)} >= names(main)
