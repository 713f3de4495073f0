"""``mirror stats`` and ``mirror explain`` as they are typed: mistakes, what comes out, the status they end with."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from mirror.cli import looks, main
from mirror.server.owner import owner_of, take_root
from tests.fake_upstream import FakeUpstream, Image, start_in_thread

UP = "up.test"


@pytest.fixture(autouse=True)
def _log_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


@pytest.fixture
def config(tmp_path: Path, hub: FakeUpstream) -> Path:
    return write(tmp_path, hub.url)


@pytest.fixture
def image(config: Path, hub: FakeUpstream) -> Image:
    """Have an image kept."""
    found = hub.add_image("team/" + 12 * "long-name-" + "app", "v1", (70_000, 9_000))
    done = run("pull", f"{UP}/{found.repo}:v1", "--config", config)
    assert done.exit_code == 0, done.output
    hub.clear_log()
    return found


def write(tmp_path: Path, url: str, **settings: Any) -> Path:
    file = tmp_path / "mirror.yaml"
    password = tmp_path / "password"
    password.write_text("hunter2")
    upstream = {"url": url, "deny": ["secret/**"], "credentials": {"username": "ci", "password_file": str(password)}}
    values = {"storage": {"root": str(tmp_path / "root")}, "upstreams": {UP: upstream}}
    file.write_text(yaml.safe_dump(values | settings))
    return file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)), prog_name="mirror")


def line(result: Result, start: str) -> str:
    return next(line for line in result.stdout.splitlines() if line.startswith(start))


# ---- what cannot be understood, or done ----


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["stats", "--top", "-1"], 2, "--top"),
        (["stats", "--by", "name"], 2, "pulls or age, got name"),
        (["stats", "--nonsense"], 2, "No such option"),
        (["explain"], 2, "REFERENCE is missing"),
        (["explain", "a b"], 2, "an image is written without spaces"),
        (["explain", "https://quay.io/x"], 2, "it is a URL; leave out https://"),
        (["explain", "alpine@sha256:12"], 2, "is not a digest"),
        (["explain", "alpine:a b"], 2, "an image is written without spaces"),
        (["explain", "alpine:-x"], 2, "cannot be a tag"),
        (["explain", "alpine", "--platform", "linux"], 2, "'linux' is not a platform"),
        (["stats", "--config", "/nowhere.yaml"], 2, "command line: --config: /nowhere.yaml: no such file"),
        (["explain", "alpine", "--config", "/nowhere.yaml"], 2, "command line: --config: /nowhere.yaml: no such file"),
        (["stats", "--root", "{root}"], 1, "is no root of a mirror; give the right one by --root"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_said_and_nothing_is_made(tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    root = tmp_path / "none"
    done = run(*(one.format(root=root) for one in arguments))
    assert (done.exit_code, done.stdout) == (status, "")
    assert said in done.stderr
    assert not root.exists()


def test_problems_are_json_too(tmp_path: Path) -> None:
    done = run("stats", "--root", tmp_path / "none", "--json")
    assert done.exit_code == 1
    assert "is no root of a mirror" in json.loads(done.stdout)["problems"][0]
    (tmp_path / "file").touch()
    for command in (["stats"], ["explain", "alpine"]):
        done = run(*command, "--root", tmp_path / "file", "--json")
        assert done.exit_code == 1
        assert json.loads(done.stdout)["problems"] == [
            f"{tmp_path}/file is no folder; give the right one by --root or --config"
        ]
    (tmp_path / "format").write_text("{}")
    for command in (["stats"], ["explain", "alpine"]):
        done = run(*command, "--root", tmp_path, "--json")
        assert done.exit_code == 1
        assert "is damaged" in json.loads(done.stdout)["problems"][0]


# ---- stats ----


def test_stats_say_what_is_there(config: Path, image: Image, tmp_path: Path) -> None:
    done = run("stats", "--config", config)
    assert done.exit_code == 0, done.output
    assert line(done, "folder") == f"folder     {tmp_path / 'root'}, no service has it"
    assert line(done, "kept") == "kept       78 KiB: 78 KiB pulled through, 0 B pushed"
    assert re.fullmatch(rf"{UP} +1 +1 +1 +3 +78 KiB +1 +0 % \(0 %\) +\d s", line(done, UP))
    assert re.search(rf"^ *78 KiB .* {UP}/{image.repo}$", done.stdout, re.MULTILINE)  # on one line, to be searched
    assert re.search(rf"^ *1 .* {UP}/{image.repo}:v1$", done.stdout, re.MULTILINE)
    assert "none is known, and no host is left alone" in done.stdout
    assert "\x1b" not in done.stdout


def test_stats_of_nothing_have_no_empty_tables(config: Path, hub: FakeUpstream) -> None:
    assert run("pull", f"{UP}/none:v1", "--config", config).exit_code == 1
    found = run("stats", "--config", config)
    assert (found.exit_code, found.stderr) == (0, "")
    assert "kept       0 B: 0 B pulled through, 0 B pushed" in found.stdout
    assert [line for line in found.stdout.splitlines() if re.match("Upstreams|upstream|answers", line)] == []


def test_stats_as_json(config: Path, image: Image) -> None:
    found = json.loads(run("stats", "--config", config, "--json").stdout)
    assert found["service"] is None
    assert found["content"]["repositories"][0]["name"] == f"{UP}/{image.repo}"
    assert found["content"]["images"][0] | {"last": 0} == {
        "repository": {"source": UP, "name": image.repo},
        "name": f"{UP}/{image.repo}",
        "digest": image.digest,
        "tags": ["v1"],
        "before": [],
        "pulls": 1,
        "last": 0,
    }
    whole = len(image.raw) + sum(map(len, image.blobs.values()))
    assert found["content"]["pulled"]["bytes"] == found["content"]["sources"][0]["amount"]["bytes"] == whole
    assert found["counted"]["fetched_bytes"] == whole
    nothing = json.loads(run("stats", "--config", config, "--json", "--top", 0).stdout)
    assert nothing["content"]["repositories"] == nothing["content"]["images"] == []


def test_who_has_the_root_is_seen_without_a_lock(config: Path, image: Image, tmp_path: Path) -> None:
    assert owner_of(tmp_path / "root") is None
    owned = take_root(tmp_path / "root")
    try:
        assert f"pid {os.getpid()}" in (owner_of(tmp_path / "root") or "")
        assert f"served by pid {os.getpid()}" in line(run("stats", "--config", config), "folder")
    finally:
        os.close(owned)
    os.close(take_root(tmp_path / "root"))  # nothing of it was left


def test_tables_fit_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = looks.Screen()
    screen._console = Console(file=io.StringIO(), width=80, highlight=False)
    lines: list[str] = []
    monkeypatch.setattr(looks.click, "echo", lines.append)
    screen.table([*(7 * [">pulls"]), "r"], [[*(7 * ["1,234,567"]), 4 * "long-"]])
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:7] == 7 * ["1,234,567"]  # numbers are never cut
    assert "".join(line[77:].strip() for line in lines[1:]) == 4 * "long-"


# ---- explain ----


def test_explain_says_what_would_be_done(config: Path, image: Image, hub: FakeUpstream) -> None:
    done = run("explain", f"{UP}/{image.repo}:v1", "--config", config, "--platform", "linux/amd64")
    assert done.exit_code == 0, done.output
    assert line(done, "request") == f"request    GET /v2/{image.repo}/manifests/v1?ns={UP}"
    assert line(done, "means") == f"means      {image.repo} of upstream {UP}: ?ns={UP} names it"
    assert line(done, "answer") == "answer     200, from what is kept"
    assert line(done, "by tag") == f"by tag     allowed: nothing in upstreams.{UP}.deny matches"
    assert line(done, "tag") == f"tag        v1 is {image.digest}"
    assert line(done, "as") == "as         ci"
    assert line(done, "fetches") == "fetches    nothing"
    assert re.search(rf"^layer +kept +68 KiB +{image.layers[0]}$", done.stdout, re.MULTILINE)
    assert hub.requests() == []
    assert "hunter2" not in done.output


def test_explain_knows_of_a_quota_when_it_has_been_seen(config: Path, hub: FakeUpstream) -> None:
    hub.add_image("team/app", "v1", (100,))
    explain = ("explain", f"{UP}/team/app:v2", "--config", config)
    assert run("pull", f"{UP}/team/app:v1", "--config", config).exit_code == 0
    assert line(run(*explain), "counts") == "counts     1 request against a pull quota, if it has one"
    hub.fault("/manifests/", headers={"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "98;w=21600"})
    hub.add_image("team/app", "v3", (100,))
    assert run("pull", f"{UP}/team/app:v3", "--config", config).exit_code == 0
    assert line(run(*explain), "counts") == "counts     1 request against the pull quota"


def test_explain_asks_only_when_told_to(config: Path, image: Image, hub: FakeUpstream) -> None:
    done = run("explain", f"{UP}/{image.repo}:v1", "--config", config, "--ask")
    assert done.exit_code == 0, done.output
    assert line(done, "asked") == f"asked      it is {image.digest} now: as it is kept"
    assert [request.method for request in hub.requests(server="registry")] == ["HEAD"]
    hub.call(hub.stop())
    done = run("explain", f"{UP}/{image.repo}:v1", "--config", config, "--ask")
    assert done.exit_code == 1
    assert f"{UP} cannot be reached" in line(done, "asked")
    assert line(done, "fetches") == "fetches    nothing"


@pytest.mark.parametrize(
    ("reference", "status", "said"),
    [
        (
            "ghcr.io/x/y",
            1,
            "answer     404 NAME_UNKNOWN: 'ghcr.io' is not a registry this mirror is configured for: add",
        ),
        ("alpine", 1, "answer     404 NAME_UNKNOWN: 'alpine' says no registry, and there is no default"),
        (f"{UP}/secret/a:1", 1, f'by tag     denied: upstreams.{UP}.deny has "secret/**"'),
        (f"{UP}/new/a:1", 0, "answer     the upstream is asked first"),
        ("local/app:1", 1, "pushed by  everybody on this machine, through loopback"),
        ("127.0.0.1:5000/local/app:1", 1, "means      local/app of this registry itself"),
        ("mirror:5000/local/app:1", 1, "note       mirror:5000 is taken for this mirror, which listens on port 5000"),
    ],
)
def test_explain_ends_with_whether_it_would_be_served(config: Path, reference: str, status: int, said: str) -> None:
    done = run("explain", reference, "--config", config)
    assert done.exit_code == status, done.output
    assert said in done.stdout
    found = json.loads(run("explain", reference, "--config", config, "--json").stdout)
    assert found["reference"] == reference
    assert (found["answer"]["status"] or 200) < 400 or status == 1


def test_explain_says_the_way_there(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "https://registry.example",
        proxy={"url": "http://proxy.example:3128", "username": "me", "password_file": str(tmp_path / "password")},
        upstream_defaults={"connections": 7, "rate": "2MiB", "mirrors": [{"url": "http://near:5000", "resolve": True}]},
        access={"htpasswd_file": None, "insecure_writes": True},
    )
    done = run("explain", f"{UP}/a/b:1", "--config", file)
    assert "mirror 1   http://near:5000, asked before it for tags and content by digest" in done.stdout
    assert "           through the proxy proxy.example:3128" in done.stdout
    assert line(done, "at most") == "at most    7 requests at a time, 2.0 MiB a second"
    assert line(done, "registry") == "registry   https://registry.example"
    assert "hunter2" not in done.output
    found = json.loads(run("explain", f"{UP}/a/b:1", "--config", file, "--json").stdout)
    assert found["upstream"]["for_tags"] == ["mirror 1", "the registry"]
    assert not (tmp_path / "root").exists()
