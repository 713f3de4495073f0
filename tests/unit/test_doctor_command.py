"""``mirror doctor`` as it is typed: what comes out for people and for programs, and the status it ends with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.doctor import Outcome
from mirror.doctor.finding import Finding
from tests.fake_upstream import FakeUpstream, start_in_thread

UP = "up.test"


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _log_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)


def write(tmp_path: Path, hub: FakeUpstream, **settings: Any) -> Path:
    file = tmp_path / "mirror.yaml"
    values = {
        "listen": "127.0.0.1:0",
        "storage": {"root": str(tmp_path / "root")},
        "upstreams": {UP: {"url": hub.url}},
    }
    file.write_text(yaml.safe_dump(values | settings))
    return file


def doctor(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)], prog_name="mirror")


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say of the disk and of descriptors that there is enough, as of this machine nothing is known."""
    monkeypatch.setattr("mirror.doctor.space._look", lambda root: [])
    monkeypatch.setattr("mirror.doctor.limits._descriptors", lambda: None)
    monkeypatch.setattr("mirror.doctor.root.file_system", lambda path: "ext4")
    monkeypatch.setattr("mirror.doctor.disk.SLOW", float("inf"))


def test_for_people(tmp_path: Path, hub: FakeUpstream, roomy: None) -> None:
    result = doctor("--config", write(tmp_path, hub))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"ok       configuration: {tmp_path}/mirror.yaml; 1 upstream"
    assert f"ok       root: {tmp_path}/root is made at the first start, in {tmp_path}" in lines
    assert f"ok       upstream {UP}: reachable at 127.0.0.1, as nobody" in lines
    assert "skipped  metadata: there is none yet" in lines
    assert lines[-1] == f"{len(lines) - 1} checks: {len(lines) - 2} ok, 1 skipped"
    assert [path.name for path in tmp_path.iterdir()] == ["mirror.yaml"]


def test_problems_and_what_to_do(tmp_path: Path, hub: FakeUpstream, roomy: None) -> None:
    hub.call(hub.stop())
    file = write(tmp_path, hub, upstreams={UP: {"url": hub.url, "retries": 0}, "a.test": {"url": "http://up.invalid"}})
    result = doctor("--config", file, "--upstream", UP)
    assert (result.exit_code, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    (at,) = [at for at, line in enumerate(lines) if line.startswith(f"problem  upstream {UP}: cannot be reached ")]
    assert lines[at + 1] == f"         do: check that its host is up and can be reached from here: upstreams.{UP}"
    assert "skipped  upstream a.test: not among those named by --upstream" in lines
    assert lines[-1].endswith(" ok, 1 warning, 1 problem, 2 skipped")


def test_for_programs(tmp_path: Path, hub: FakeUpstream, roomy: None) -> None:
    result = doctor("--config", write(tmp_path, hub), "--offline", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert (document["ok"], document["interrupted"]) == (True, False)
    checks = {check["name"]: check for check in document["checks"]}
    assert set(checks["disk"]) == {"name", "outcome", "text", "advice", "facts"}
    assert checks["disk"]["facts"]["sync_seconds"] > 0
    assert checks[f"upstream {UP}"]["outcome"] == "skipped"
    assert hub.log == []


def test_the_status_and_ok_agree(tmp_path: Path, hub: FakeUpstream, roomy: None) -> None:
    hub.fail("GET /v2/", status=404)
    result = doctor("--config", write(tmp_path, hub), "--json")
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (1, False)


def test_warnings_alone_are_no_failure(tmp_path: Path, hub: FakeUpstream, roomy: None) -> None:
    hub.auth, hub.anonymous = "basic", False
    result = doctor("--config", write(tmp_path, hub))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith(" ok, 1 warning, 1 skipped")


def test_every_problem_of_a_configuration_is_said(tmp_path: Path, hub: FakeUpstream) -> None:
    file = write(tmp_path, hub, workerz=1, lokal=2)
    result = doctor("--config", file)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("problem")] == [
        f"problem  configuration: {file}:2:1: lokal: unknown key",
        f"problem  configuration: {file}:8:1: workerz: unknown key",
    ]
    assert '         do: did you mean "workers"?' in lines
    assert "skipped  everything else: not looked at without a configuration" in lines
    document = json.loads(doctor("--config", file, "--json").stdout)
    assert document["ok"] is False
    assert [check["facts"].get("setting") for check in document["checks"]] == ["lokal", "workerz", None]
    assert hub.log == []


def test_a_terminal_is_not_steered(
    tmp_path: Path, hub: FakeUpstream, roomy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look(*_: Any) -> list[Finding]:
        return [Finding(name="n", outcome=Outcome.PROBLEM, text="a\x1b[2Jb\nok  all: well", advice="c\rd")]

    monkeypatch.setattr("mirror.doctor.going._looked", look)
    lines = doctor("--config", write(tmp_path, hub)).stdout.splitlines()
    assert lines[0] == "problem  n: a\\x1b[2Jb\\x0aok  all: well"
    assert lines[1] == "         do: c\\x0dd"
