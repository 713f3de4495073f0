"""A root in which anything stands in the place of its files: looking at it ends, says so, and changes nothing."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mirror.cli import main
from mirror.metadata.database import open_writer
from mirror.metrics import prepare
from mirror.oci.names import parse_digest
from mirror.server.owner import owner_of
from mirror.store.inventory import cached_bytes
from mirror.store.root import open_root

DIGEST = parse_digest("sha256:" + 64 * "a")


def _garbage(path: Path) -> None:
    path.write_bytes(random.Random(7).randbytes(70_000))


def _endless(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)


def _deep(path: Path) -> None:
    path.write_text("[" * 60_000)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "garbage": _garbage,
    "endless": _endless,
    "deep": _deep,
    "loop": _loop,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


FILES = (
    *("format", "metadata.db", "metadata.db-wal", "cache.index/usage.db", "owner.lock", "run/numbers", "run/metrics"),
    "run/metrics/counter_0.db",
)


@pytest.fixture(autouse=True)
def _it_ends() -> Iterator[None]:
    """Have a look that waits fail, and not wait with it."""
    signal.alarm(45)
    yield
    signal.alarm(0)


@pytest.fixture(autouse=True)
def _log_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = open_root(tmp_path / "root")
    open_writer(root.metadata, root.database).close()
    root.metrics.mkdir()
    prepare(root.metrics, 1)
    return root.path


def _state(folder: Path) -> dict[Path, tuple[int, int, int]]:
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (one.st_mode, one.st_size, one.st_mtime_ns) for path, one in found.items()}


@pytest.mark.parametrize("stand_in", STAND_INS)
@pytest.mark.parametrize("name", FILES)
def test_anything_in_the_place_of_a_file(folder: Path, name: str, stand_in: str) -> None:
    path = folder / name
    if path.is_dir():
        for one in path.iterdir():
            one.unlink()
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    STAND_INS[stand_in](path)
    before = _state(folder)
    for command in (["stats"], ["explain", "local/app:1"]):
        done = CliRunner().invoke(main, [*command, "--root", str(folder)])
        assert done.exit_code in (0, 1), (command, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit), (command, done.exception)
        assert _state(folder) == before


def test_a_pipe_for_the_lock_is_nobodys(folder: Path) -> None:
    os.mkfifo(folder / "owner.lock")
    assert owner_of(folder) is None


def test_content_is_a_file_of_the_root(folder: Path, tmp_path: Path) -> None:
    path = folder / "cache" / "sha256" / DIGEST.encoded
    path.write_text("ours")
    assert cached_bytes(folder, DIGEST, limit=9) == b"ours"
    assert cached_bytes(folder, DIGEST, limit=3) is None
    path.unlink()
    (tmp_path / "else").write_text("not ours")
    path.symlink_to(tmp_path / "else")
    assert cached_bytes(folder, DIGEST, limit=9) is None
    path.unlink()
    os.mkfifo(path)
    assert cached_bytes(folder, DIGEST, limit=9) is None
