"""``mirror config``: what it prints, what it makes of a file, and that what it prints is true."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import trustme
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from mirror.cli import main
from mirror.config import commented, load_config, read_config, units, values
from mirror.config.models import Config, Upstream, UpstreamDefaults
from mirror.config.table import rows, table
from mirror.config.written import as_data, as_yaml

PROJECT = Path(__file__).parents[2]
SECRET = "hunter2-s3cr3t"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HUB_PASSWORD", SECRET)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["config", *arguments], prog_name="mirror")


def write(text: str) -> None:
    Path("mirror.yaml").write_text(text)


# ---- check ----

KEPT = "keeps everything in {here}/data/oci-mirror"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "the defaults: OK, 8 upstreams, listens on http://127.0.0.1:5000, " + KEPT),
        ("", "mirror.yaml: OK, 8 upstreams, listens on http://127.0.0.1:5000, " + KEPT),
        (
            "upstreams: {}\nlisten: ['h:1', '[::]:2']\nadmin_listen: 127.0.0.1:3\nstorage: {root: root}\n",
            "mirror.yaml: OK, no upstreams, listens on http://h:1, http://[::]:2 and for administrators on "
            "http://127.0.0.1:3, keeps everything in {here}/root",
        ),
        (
            "upstreams: {a.io: {url: 'https://a.io'}}\nstorage: {root: data}\n",
            "mirror.yaml: OK, 1 upstream, listens on http://127.0.0.1:5000, keeps everything in {here}/data",
        ),
    ],
    ids=["no-file", "empty", "none", "one"],
)
def test_a_file_that_is_right(tmp_path: Path, text: str | None, line: str) -> None:
    if text is not None:
        write(text)
    result = run("check", *(["mirror.yaml"] if text is not None else []))
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", line.replace("{here}", str(tmp_path)) + "\n")
    assert {path.name for path in tmp_path.iterdir()} <= {"mirror.yaml"}, "nothing is made"


def test_files_that_belong_together_are_right() -> None:
    authority = trustme.CA()
    pair = authority.issue_cert("mirror.corp")
    authority.cert_pem.write_to_path("ca.pem")
    pair.cert_chain_pems[0].write_to_path("tls.crt")
    pair.private_key_pem.write_to_path("tls.key")
    Path("users").write_bytes(b"ci:" + bcrypt.hashpw(b"x", bcrypt.gensalt(4)) + b"\n")
    write(
        "tls: {certificate: tls.crt, key: tls.key, client_ca: ca.pem}\n"
        "access: {htpasswd_file: users, push: [ci]}\n"
        "upstreams:\n"
        "  '*.corp':\n"
        "    url: https://{host}\n"
        "    client_certificate: {certificate: tls.crt, key: tls.key}\n"
        "    ca_file: ca.pem\n"
        "    mirrors: [{url: 'https://m', ca_file: ca.pem}]\n"
    )
    result = run("check", "mirror.yaml")
    assert (result.exit_code, result.stderr) == (0, "")


def test_what_is_seldom_meant_is_a_warning() -> None:
    Path("users").write_bytes(b"ci:" + bcrypt.hashpw(b"x", bcrypt.gensalt(4)) + b"\nold:md5\n")
    Path("nobody").write_text("")
    write(
        "listen: 0.0.0.0:5000\n"
        "access: {htpasswd_file: users, push: [ci, someone], admin: [root]}\n"
        "upstreams: {a.io: {url: 'http://a.io'}}\n"
    )
    result = run("check", "mirror.yaml")
    assert result.exit_code == 0
    assert result.stdout.startswith("mirror.yaml: OK, 1 upstream, ")
    expected = [
        "passwords cross the network in the clear at 0.0.0.0:5000; set tls, or let a proxy on this machine do it and "
        "listen on 127.0.0.1",
        "upstream a.io: its url is plain http: tags and what is not asked for by digest can be changed on the way; "
        "give it an https url",
        "access.htpasswd_file: line 2: a hash that is not of bcrypt (make it by htpasswd -B); this line is not used",
        "access.push: someone is not in the file of users",
        "access.admin: root is not in the file of users",
    ]
    assert result.stderr.splitlines() == [f"warning: {line}" for line in expected]
    found = run("check", "mirror.yaml", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout) == {
        "file": "mirror.yaml",
        "ok": True,
        "problems": [],
        "places": [],
        "warnings": expected,
    }
    write("access: {htpasswd_file: nobody}\n")
    assert run("check", "mirror.yaml").stderr == (
        "warning: access.htpasswd_file: has no users, so nobody can log in; make its lines by htpasswd -B\n"
    )


def test_problems_as_json() -> None:
    write("storage:\n  rot: /srv\nworkers: ${NO_SUCH_THING}\n")
    result = run("check", "--json", "mirror.yaml")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "file": "mirror.yaml",
        "ok": False,
        "problems": result.stderr.splitlines(),
        "places": [
            {
                "file": "mirror.yaml",
                "line": 2,
                "column": 3,
                "path": "storage.rot",
                "message": "unknown key",
                "suggestion": 'did you mean "root"?',
            },
            {
                "file": "mirror.yaml",
                "line": 3,
                "column": 10,
                "path": "workers",
                "message": "NO_SUCH_THING is not set in the environment",
                "suggestion": "set it where the mirror runs, or write ${NO_SUCH_THING:-default}",
            },
        ],
        "warnings": [],
    }


def test_what_a_default_of_all_upstreams_names_is_said_once() -> None:
    Path("ca.pem").write_text("nothing")
    write("upstream_defaults: {ca_file: ca.pem}\n")
    result = run("check", "mirror.yaml")
    assert result.stderr == (
        "mirror.yaml:1:30: upstream_defaults.ca_file: cannot be used: no certificate or crl found\n"
    )
    assert result.exit_code == 1


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_file_that_is_not_there(command: str) -> None:
    result = run(command, "nowhere.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "nowhere.yaml: no such file\n")


@pytest.mark.parametrize(
    "arguments",
    [["check", "a", "b"], ["check", "--jsn"], ["show", "a", "b"], ["default", "a"], ["schema", "a"], ["chek"]],
    ids=" ".join,
)
def test_what_cannot_be_understood(arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: mirror config" in result.stderr


def test_help_says_what_there_is() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("check", "show", "default", "schema", "Exit status: 0"):
        assert word in result.stdout
    assert "table" not in result.stdout


# ---- show ----

SHOWN = """
tls:
listen: [h:1, {address: "[::]:2"}]
workers: ${WORKERS:-3}
proxy: {url: "http://p:1", username: "$${odd}", password: "${HUB_PASSWORD}"}
upstream_defaults:
  credentials:
    - {username: "007", password: "${HUB_PASSWORD}"}
    - {username: 'a "b" # c', password_file: mirror.yaml}
  tags: {fresh_for: 90s, stale_for: 1d}
  rate: 20MB/s
  quota_floor: 12.5%
  retries: 0
upstreams:
  docker.io: {url: "https://registry-1.docker.io", credentials: [], realms: [a.b, "c.d:5000"]}
  "*.pkg.dev": {url: "https://{host}", mirrors: ["http://near:5000", {url: "http://m", credentials: {helper: pass}}]}
  "[fd00::1]:5000": {url: "http://[fd00::1]:5000", connections: 7, redirects_to: [10.0.0.0/8, "fd00::/8"]}
local: ["local/**", "*/mine"]
trusted_proxies: ["fd00::/8"]
names: ["5000.corp"]
limits: {manifest: 5000, send_timeout: 1.5, blob: 10GB}
shutdown_delay: 500ms
"""


@pytest.mark.parametrize("text", [SHOWN, "", "upstreams: {}\n", None], ids=["many", "empty", "none", "commented-file"])
def test_what_is_shown_loads_again_and_means_the_same(text: str | None) -> None:
    write((PROJECT / "config" / "mirror.yaml").read_text() if text is None else text)
    result = run("show", "mirror.yaml")
    assert (result.exit_code, result.stderr) == (0, "")
    before = load_config(Path("mirror.yaml"))
    Path("again.yaml").write_text(result.stdout)
    after = load_config(Path("again.yaml"))
    assert after == before
    assert as_data(read_config(Path("again.yaml"))) == as_data(read_config(Path("mirror.yaml")))
    assert run("show", "again.yaml").exit_code == 0


def test_what_is_shown() -> None:
    write(SHOWN)
    result = run("show", "mirror.yaml")
    lines = {line.split("  # ")[0].strip(): line.split("  # ")[-1] for line in result.stdout.splitlines()}
    expected = {
        "tls: null": "default",
        "- address: h:1": "mirror.yaml:3",
        "workers: 3": "mirror.yaml:4 (${WORKERS})",
        "username: $${odd}": "mirror.yaml:5",
        "- username: '007'": "upstream_defaults (mirror.yaml:8)",
        "rate: 20MB/s": "upstream_defaults (mirror.yaml:11)",
        "realms: [a.b, 'c.d:5000']": "mirror.yaml:15",
        "minimum_rate: 1KiB/s": "default",
        "manifest: 5kB": "mirror.yaml:21",
        "blob: 10GB": "mirror.yaml:21",
        "send_timeout: 1.5s": "mirror.yaml:21",
        "shutdown_delay: 500ms": "mirror.yaml:22",
        "drain_timeout: 25s": "default",
        "stale_for: 1d": "upstream_defaults (mirror.yaml:10)",
        "fresh_for: 90s": "upstream_defaults (mirror.yaml:10)",
        "quota_floor: 12.5%": "upstream_defaults (mirror.yaml:12)",
    }
    assert {line: lines.get(line) for line in expected} == expected
    for line in result.stdout.splitlines():
        assert line.endswith(":") or "  # " in line, line


def test_a_password_is_not_shown() -> None:
    write(SHOWN)
    for arguments in (["show", "mirror.yaml"], ["show", "mirror.yaml", "--json"], ["check", "mirror.yaml", "--json"]):
        result = run(*arguments)
        assert result.exit_code == 0
        assert SECRET not in result.output
    shown = yaml.safe_load(run("show", "mirror.yaml").stdout)
    assert shown["proxy"]["password"] == "${HUB_PASSWORD}"
    assert shown["upstreams"]["*.pkg.dev"]["credentials"][0]["password"] == "${HUB_PASSWORD}"


def test_what_is_shown_as_json_is_the_same() -> None:
    write(SHOWN)
    result = run("show", "mirror.yaml", "--json")
    found = json.loads(result.stdout)
    assert set(found) == {"settings", "origins"}
    written = yaml.safe_load(run("show", "mirror.yaml").stdout)
    assert json.dumps(found["settings"]).replace("$${", "${") == json.dumps(written).replace("$${", "${")
    assert found["settings"]["proxy"]["username"] == "${odd}", "it is the value, and no file"
    assert found["origins"]["upstreams.docker.io.realms"] == "mirror.yaml:15"


def test_what_is_wrong_is_not_shown() -> None:
    write("workers: 0\n")
    result = run("show", "mirror.yaml")
    line = "mirror.yaml:1:10: workers: expected auto or a number from 1 to 256, got 0\n"
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)
    result = run("show", "mirror.yaml", "--json")
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["ok"]


def test_values_that_would_need_several_lines() -> None:
    write('proxy: {url: "http://p:1", username: "a\\nb \\u2028 ü", password: "${HUB_PASSWORD}"}\n')
    Path("again.yaml").write_text(as_yaml(read_config(Path("mirror.yaml"))))
    assert load_config(Path("again.yaml")) == load_config(Path("mirror.yaml"))


# ---- units ----


@given(st.decimals(0, 10**6, places=3) | st.integers(0, 10**9))
def test_durations_read_as_they_were_written(seconds: Any) -> None:
    value = values.duration(float(seconds))
    assert values.duration(units.duration(value)) == value


@given(st.integers(1, 2**63 - 1) | st.builds(lambda n, p: n * 1024**p, st.integers(1, 999), st.integers(0, 5)))
def test_sizes_read_as_they_were_written(size: int) -> None:
    assert values.byte_count(_plain(units.size(size))) == size
    assert values.rate(units.rate(size)) == size


def _plain(text: str) -> int | str:
    return int(text) if text.isdigit() else text


@given(st.integers(0, 10**8))
def test_shares_read_as_they_were_written(millionths: int) -> None:
    part = values.share(f"{millionths / 10**6:.6f}%")
    assert values.share(units.share(part)) == part


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.duration(0.0), "0s"),
        (units.duration(0.5), "500ms"),
        (units.duration(60.0), "60s"),
        (units.duration(120.0), "2m"),
        (units.duration(90.0), "90s"),
        (units.duration(3600.0), "1h"),
        (units.duration(86400.0), "1d"),
        (units.duration(1.25), "1.25s"),
        (units.duration(None), "unlimited"),
        (units.size(1), "1"),
        (units.size(1024), "1KiB"),
        (units.size(1000), "1kB"),
        (units.size(4 * 1024**2), "4MiB"),
        (units.size(256 * 1024**3), "256GiB"),
        (units.size(10**10), "10GB"),
        (units.size(1025), "1025"),
        (units.rate(20_000_000), "20MB/s"),
        (units.rate(None), "unlimited"),
        (units.share(0.0), "0%"),
        (units.share(0.1), "10%"),
        (units.share(1.0), "100%"),
        (units.count(None), "unlimited"),
        (units.count(7), 7),
    ],
)
def test_how_values_are_written(written: Any, expected: Any) -> None:
    assert written == expected


# ---- default ----


def test_the_commented_file_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (PROJECT / "config" / "mirror.yaml").read_text()
    result = run("default")
    assert (result.exit_code, result.stdout, result.stderr) == (0, text, "")
    assert json.loads(run("default", "--json").stdout) == {"text": text}
    assert text.startswith("# yaml-language-server: $schema=mirror.schema.json\n")


def test_the_commented_file_is_a_part_of_what_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    target = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert target == {"config/mirror.yaml": f"{commented.__package__.replace('.', '/')}/{commented.NAME}"}
    assert "config" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    (tmp_path / commented.NAME).write_text("# installed\n")
    monkeypatch.setattr(commented.resources, "files", lambda package: tmp_path)
    assert run("default").stdout == "# installed\n"


# ---- the table ----


def test_the_table_of_settings_is_true() -> None:
    text = (PROJECT / "config" / "README.md").read_text()
    assert text == run("table").stdout == table(), "write it again: mirror config table > config/README.md"


def test_the_table_has_every_setting_with_its_default() -> None:
    found = {row.name: row for row in rows()}
    settings = {name.replace("docker.io", "<name>") for name in as_names(load_config(None).model_dump())}
    assert settings <= {name.removesuffix("[]") for name in found}
    assert {name.partition(".")[0].removesuffix("[]") for name in found} == set(Config.model_fields)
    assert {name.split(".")[2] for name in found if name.startswith("upstreams.<name>.")} == {
        *Upstream.model_fields,
        "mirrors[]",
        "credentials[]",
    }
    assert not [name for name in found if name.startswith("upstream_defaults.")]
    assert set(UpstreamDefaults.model_fields) == set(Upstream.model_fields) - {"url", "names"}
    for name, expected in {
        "listen": "127.0.0.1:5000",
        "limits.blob": "256GiB",
        "upstreams.<name>.minimum_rate": "1KiB/s",
        "upstreams.<name>.tags.stale_for": "unlimited",
        "upstreams.<name>.url": "required",
        "push.session_expires": "1d",
        "access.push": "null",
        "local": '["local/**"]',
        "tls": "null",
        "log.level": "info",
    }.items():
        assert found[name].default == expected
    above = {name.rpartition(".")[0].removesuffix("[]").removesuffix(".<name>") for name in found}
    for row in found.values():
        is_section = row.name in above | {"upstream_defaults"}
        assert ("section" in row.takes) == is_section, f"{row.name}: its type has no Kind"
        assert row.description.endswith(".")


def as_names(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        kept = {key: one for key, one in value.items() if path != "upstreams" or key == "docker.io"}
        kept = {key: one for key, one in kept.items() if f"{path}.{key}" != ".upstream_defaults"}
        return [name for key, one in kept.items() for name in as_names(one, f"{path}.{key}".removeprefix("."))]
    return [path]


def test_a_warning_repeats_nothing_that_is_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELPER", "hunter2")
    file = tmp_path / "mirror.yaml"
    file.write_text("upstreams: {a.test: {url: https://a.test, credentials: {helper: '${HELPER}'}}}\n")
    done = CliRunner().invoke(main, ["config", "check", "--json", str(file)])
    assert "docker-credential-${HELPER} is not in PATH" in done.output
    assert "hunter2" not in done.output
