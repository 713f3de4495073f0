"""What the first start says: where, what, who may push, what next."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from mirror.cli.banner import lines, next_command, who_may_push
from mirror.config import Config, load_config

LOOPBACK = "http://127.0.0.1:5000"


def config(**settings: Any) -> Config:
    return Config.model_validate(settings)


def test_the_banner(tmp_path: Path) -> None:
    found = lines(config(storage={"root": str(tmp_path)}), [LOOPBACK], config_file=None, moved=False)
    assert found[0].startswith("mirror ")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in found[1:]}
    assert list(rows) == ["listening", "root", "mirrors", "push", "next"]
    assert rows["listening"] == LOOPBACK
    assert rows["root"].startswith(f"{tmp_path} (")
    assert rows["root"].endswith("iB free)")
    assert rows["mirrors"] == "docker.io (default), ghcr.io, quay.io, gcr.io and 4 more"
    assert rows["next"] == "mirror client containerd"


@pytest.mark.parametrize(("upstreams", "said"), [({}, "nothing"), ({"a.io": {"url": "https://a.io"}}, "a.io")])
def test_few_upstreams_are_all_named(upstreams: dict[str, Any], said: str) -> None:
    found = lines(config(upstreams=upstreams, default_upstream=None), [LOOPBACK], config_file=None, moved=False)
    row = next(line for line in found if line.startswith("  mirrors"))
    assert said in row
    assert "more" not in row


def test_offline_is_said() -> None:
    found = lines(config(offline=True), [LOOPBACK], config_file=None, moved=False)
    assert any(line.startswith("  offline") for line in found)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "anybody on this machine may push to local/**"),
        ({"local": ["team/*", "own"]}, "anybody on this machine may push to team/*, own"),
        ({"local": []}, "nobody: no names are local"),
        ({"read_only": True}, "nobody: it is read-only"),
        ({"listen": "0.0.0.0:5000"}, "nobody, until there are users (access.htpasswd_file)"),
        ({"listen": ["127.0.0.1:5000", "10.0.0.1:5000"]}, "nobody, until there are users (access.htpasswd_file)"),
        ({"listen": ["127.0.0.1:5001", "10.0.0.1:5000"]}, "anybody on this machine may push to local/**"),
        (
            {"listen": "0.0.0.0:5000", "access": {"insecure_writes": True}},
            "anybody who reaches it may push to local/**",
        ),
        ({"access": {"htpasswd_file": "/u"}}, "every user who logs in may push to local/**"),
        (
            {"access": {"htpasswd_file": "/u", "push": ["ci"], "admin": ["ops", "ci"]}},
            "ci, ops may push to local/**, with a login",
        ),
        ({"access": {"htpasswd_file": "/u", "push": []}}, "nobody: access.push and access.admin name no users"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_who_may_push(settings: dict[str, Any], said: str) -> None:
    assert who_may_push(config(**settings)) == said


def test_what_to_do_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node-7")
    base = "mirror client containerd"

    def said(listen: list[str], url: str, *, file: Path | None = None, moved: bool) -> str:
        return next_command(config(listen=listen), [url], config_file=file, moved=moved)

    assert said(["127.0.0.1:5000"], LOOPBACK, moved=False) == base
    assert said(["127.0.0.1:5000"], LOOPBACK, moved=True) == base
    assert said(["127.0.0.1:0"], "http://127.0.0.1:40001", moved=True) == f"{base} --url http://127.0.0.1:40001"
    assert said(["0.0.0.0:6000"], "http://0.0.0.0:6000", moved=True) == f"{base} --url http://node-7:6000"
    file = tmp_path / "my mirror.yaml"
    file.write_text("listen: 127.0.0.1:7000\n")
    loaded = load_config(file)
    seven = ["http://127.0.0.1:7000"]
    assert next_command(loaded, seven, config_file=file, moved=False) == f"{base} --config '{file}'"
    assert said(["[::]:0"], "http://[::]:7001", file=file, moved=False) == (
        f"{base} --config '{file}' --url http://node-7:7001"
    )
