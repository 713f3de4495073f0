"""``mirror pull`` as it is typed: mistakes, what comes out, the status it ends with, and whose root it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.server.owner import take_root
from tests.fake_upstream import FakeUpstream, digest_of, start_in_thread

UP = "up.test"


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


@pytest.fixture(autouse=True)
def _log_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)


@pytest.fixture
def config(tmp_path: Path, hub: FakeUpstream) -> Path:
    return write(tmp_path, hub)


def write(tmp_path: Path, hub: FakeUpstream, **settings: Any) -> Path:
    file = tmp_path / "mirror.yaml"
    values = {"storage": {"root": str(tmp_path / "root")}, "upstreams": {UP: {"url": hub.url}}}
    file.write_text(yaml.safe_dump(values | settings))
    return file


def pull(*arguments: str | Path, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["pull", *map(str, arguments)], prog_name="mirror", input=given)


# ---- what cannot be understood ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to pull: give images, or files of them by --from."),
        (["a", "--nonsense"], "No such option"),
        (["a", "--platform", "linux"], "'linux' is not a platform: write os/arch or os/arch/variant, or all."),
        (["a", "--platform", "all", "--jobs", "0"], "--jobs"),
        (["a", "--url", "mirror:5000"], "say http://HOST:PORT or https://HOST"),
        (["a", "--url", "http://me:secret@mirror"], "no login in a URL"),
        (["a", "--url", "http://mirror/v2/"], "has a path: the API is at /v2/ of a host"),
        (["a", "--url", "http://mirror", "--root", "/x"], "--url already says which mirror"),
        (["a", "--url", "http://mirror", "--config", "/x"], "--url already says which mirror"),
        (["a", "--user", "me"], "a login is --user and --password-file: give both."),
        (["a", "--password-file", "/x"], "a login is --user and --password-file: give both."),
        (["a", "--user", "me", "--password-file", "/no/such"], "the password cannot be read: "),
        (["a", "--ca-file", "/x"], "--ca-file is for an https --url."),
        (["a", "--url", "https://mirror", "--ca-file", "/no/such"], "cannot be read as certificates"),
        (["--from", "/no/such"], "/no/such cannot be read: No such file or directory."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors(arguments: list[str], said: str) -> None:
    result = pull(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "Usage: mirror pull" in result.stderr
    assert result.stdout == ""
    assert "secret" not in result.stderr


def test_mistakes_are_all_said_with_their_places(tmp_path: Path, config: Path, hub: FakeUpstream) -> None:
    hub.add_image("team/app", "1")
    file = tmp_path / "images"
    file.write_text(f"# ours\n{UP}/team/app:1\nAlpine:3\n\nghcr.io/a:b:c # twice\n")
    result = pull(f"{UP}/team/app:1", "https://x/y", "--from", file, "--from", "-", "--config", config, given="x@y\n")
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        "command line",
        f"{file}:3",
        f"{file}:5",
        "standard input:1",
        "mirror",
    ]
    assert lines[0] == "command line: 'https://x/y': is a URL; leave out https://"
    assert lines[1].startswith(f"{file}:3: 'Alpine:3': 'library/Alpine' is not a repository name: ")
    assert lines[-1] == "mirror: nothing was pulled: 4 mistakes"
    assert result.stdout == ""
    assert hub.log == []
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("raw", [b"", b"# nothing yet\n"], ids=["empty", "comments"])
def test_a_file_without_images(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "images").write_bytes(raw)
    result = pull("--from", tmp_path / "images")
    assert result.exit_code == 2
    assert "there are no images in" in result.stderr


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(b"\xff\xfe\n")
    result = pull("--from", tmp_path / "images")
    assert result.exit_code == 2
    assert "is not text: write one image a line." in result.stderr


def test_problems_of_the_configuration_are_all_said(tmp_path: Path, hub: FakeUpstream) -> None:
    file = write(tmp_path, hub, workerz=1, lokal=2)
    result = pull("alpine", "--config", file, "--json")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 2
    problems = json.loads(result.stdout)["problems"]
    assert problems == result.stderr.splitlines()
    assert [problem.split(": ")[1] for problem in problems] == ["lokal", "workerz"]


# ---- what comes out ----


def test_into_a_root_nobody_serves(tmp_path: Path, config: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1", [3_000_000])
    nbytes = len(image.raw) + sum(map(len, image.blobs.values()))
    first = pull(f"{UP}/team/app:1", f"{UP}/team/app:1", "--config", config)
    assert first.exit_code == 0, first.output
    assert first.stderr.splitlines() == [
        f"pulling into {tmp_path / 'root'}, which no service has",
        f"{UP}/team/app:1 {image.digest} 2.9 MiB fetched, 0 B already here",
    ]
    assert first.stdout == "1 image: 2.9 MiB fetched, 0 B already here\n"
    hub.clear_log()
    again = pull("--from", "-", "--config", config, "--json", given=f"{UP}/team/app:1\n")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == {
        "through": f"into {tmp_path / 'root'}, which no service has",
        "fetched_bytes": 0,
        "here_bytes": nbytes,
        "interrupted": False,
        "remaining": [],
        "problems": [],
        "images": [
            {
                "reference": f"{UP}/team/app:1",
                "digest": image.digest,
                "fetched_bytes": 0,
                "here_bytes": nbytes,
                "problems": [],
                "warning": None,
            }
        ],
    }
    assert hub.count("GET") == 0
    os.close(take_root(tmp_path / "root"))  # nobody has it any more


def test_problems_are_named_and_the_status_says_so(config: Path, hub: FakeUpstream) -> None:
    hub.add_image("team/app", "1")
    missing = f"{UP}/team/app@{digest_of(b'')}"
    result = pull(f"{UP}/team/app:1", missing, "--config", config)
    assert result.exit_code == 1
    assert [line for line in result.stderr.splitlines() if line.startswith(f"{missing}: 404 MANIFEST_UNKNOWN: ")]
    assert result.stdout.startswith("1 of 2 images: ")
    found = json.loads(pull(f"{UP}/team/app:1", missing, "--config", config, "--json").stdout)
    (bad,) = (one for one in found["images"] if one["problems"])
    assert found["problems"] == [f"{missing}: {bad['problems'][0]}"]
    assert {one["reference"]: one["digest"] is None for one in found["images"]} == {
        f"{UP}/team/app:1": False,
        missing: True,
    }


def test_platforms_are_passed_on(config: Path, hub: FakeUpstream) -> None:
    images = [hub.add_image("team/app", None) for _ in range(3)]
    hub.add_index("team/app", "1", images)
    one = pull(f"{UP}/team/app:1", "--config", config, "--platform", "linux/arm64", "--platform", "linux/s390x")
    assert one.exit_code == 0, one.output
    assert [hub.count("GET", image.config) for image in images] == [0, 1, 1]
    everything = pull(f"{UP}/team/app:1", "--config", config, "--platform", "all", "--platform", "linux/arm64")
    assert everything.exit_code == 0, everything.output
    assert [hub.count("GET", image.config) for image in images] == [1, 1, 1]


def test_without_a_platform_it_is_this_machines(
    config: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    images = [hub.add_image("team/app", None) for _ in range(3)]
    hub.add_index("team/app", "1", images)
    assert pull(f"{UP}/team/app:1", "--config", config).exit_code == 0
    assert [hub.count("GET", image.config) for image in images] == [0, 0, 1]


def test_a_url_nobody_answers_at(hub: FakeUpstream) -> None:
    hub.call(hub.stop())
    result = pull("a", "--url", hub.url, "--json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"mirror: {hub.url} does not answer: ")
    assert json.loads(result.stdout)["problems"][0].startswith(f"{hub.url} does not answer: ")


def test_a_url_that_is_no_mirrors(hub: FakeUpstream) -> None:
    """What was meant is the mirror's URL: pulling from the registry itself would keep nothing."""
    hub.add_image("library/a", "1")
    result = pull("a:1", "--url", hub.url)
    assert result.exit_code == 1
    assert f"docker.io/library/a:1: {hub.url} is no mirror: its answers have no Cache-Status" in result.stderr


# ---- a root that somebody has ----


def test_a_root_that_another_pull_has(tmp_path: Path, config: Path, hub: FakeUpstream) -> None:
    """Where the service would listen there may be nobody, or something else: neither is taken for it."""
    owned = take_root(tmp_path / "root")
    try:
        nowhere = pull("a", "--config", write(tmp_path, hub, listen="127.0.0.1:9"))
        any_port = pull("a", "--config", write(tmp_path, hub, listen="127.0.0.1:0"))
        stranger = pull("a", "--config", write(tmp_path, hub, listen=hub.netloc))
    finally:
        os.close(owned)
    for result in (nowhere, any_port, stranger):
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"mirror: the folder {tmp_path / 'root'} is in use by pid {os.getpid()}")
        assert (
            "If that is another pull, wait until it is done; if it is a service, say where it listens by --url" in line
        )
    assert "http://127.0.0.1:9 does not answer: " in nowhere.stderr
    assert "its configuration says no port" in any_port.stderr
    assert f"{hub.url} answers " in stranger.stderr
    assert {request.path for request in hub.log} == {"/v2/_mirror/auth/token"}


def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    result = pull("a", "--root", tmp_path / "root")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"mirror: cannot use the folder {tmp_path / 'root'}: ")
