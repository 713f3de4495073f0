"""mirror doctor beside a running service, on disks that are full or read-only, and interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.config import load_config
from mirror.doctor import Case, Finding, Outcome, database, ports, root
from tests.doctor import only
from tests.service import Service, service, wait_until, write_config

PROJECT = Path(__file__).parents[2]


# ---- beside the service ----


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    """A service, and the configuration that says where it listens."""
    folder = tmp_path_factory.mktemp("doctor")
    upstreams = {"up.test": {"url": "http://127.0.0.1:9"}}
    file = write_config(folder, upstreams, workers=1)
    with service(file) as started:
        text = file.read_text().replace("127.0.0.1:0", started.netloc)
        known = folder / "known.yaml"
        known.write_text(text)
        yield started, known


def looked(check: Any, file: Path) -> Sequence[Finding]:
    return asyncio.run(check.look(Case(config=load_config(file))))


def test_its_own_service_has_the_port(running: tuple[Service, Path]) -> None:
    started, file = running
    (found,) = looked(ports, file)
    assert (found.outcome, found.name) == (Outcome.OK, f"listen {started.netloc}")
    assert found.text.startswith(f"held by pid {started.pid} (")
    assert found.text.endswith(", which serves the root; it is ready")
    assert found.facts["readyz"] == 200
    assert only(looked(root, file), "root owner").facts["holder"].startswith(f"pid {started.pid} (")
    (metadata,) = looked(database, file)
    assert (metadata.outcome, metadata.facts["complete"]) == (Outcome.OK, True)


@pytest.mark.parametrize("same_root", [True, False])
def test_a_service_that_cannot_be_seen_proves_whose_it_is(
    running: tuple[Service, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_root: bool
) -> None:
    """As in two containers on one volume, where processes of the other are not to be seen."""
    started, file = running
    if not same_root:
        other = write_config(tmp_path, {"up.test": {"url": "http://127.0.0.1:9"}}, workers=1)
        text = other.read_text().replace("127.0.0.1:0", started.netloc)
        other.write_text(text)
        shutil.copytree(file.parent / "root", tmp_path / "root")
        described = json.loads((tmp_path / "root" / "format").read_text())
        (tmp_path / "root" / "format").write_text(json.dumps(described | {"secret": "00" * 32}))
        file = other
    monkeypatch.setattr("mirror.server.neighbours.listener", lambda host, port: None)
    monkeypatch.setattr(ports, "owner_of", lambda path: "another process")
    (found,) = looked(ports, file)
    assert found.outcome is (Outcome.OK if same_root else Outcome.PROBLEM)
    assert ("serves the root" in found.text) is same_root


def test_a_service_that_hangs(running: tuple[Service, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    started, file = running
    monkeypatch.setattr(ports, "PATIENCE", 0.2)
    stopped = started.pids()  # the parent first, which would replace a worker that hangs
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        (found,) = looked(ports, file)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert found.outcome is Outcome.PROBLEM
    assert "which serves the root and does not answer (/healthz: " in found.text
    assert found.advice == "look at its log, and start it anew"


def test_a_service_with_other_addresses(running: tuple[Service, Path], tmp_path: Path) -> None:
    started, file = running
    (tmp_path / "other.yaml").write_text(file.read_text().replace(started.netloc, "127.0.0.2:27999"))
    (found,) = looked(ports, tmp_path / "other.yaml")
    assert found.outcome is Outcome.WARNING
    assert found.text.startswith(f"free, although pid {started.pid} (")


# ---- disks ----

MOUNTED = {
    "ro": "mount -t tmpfs none ro && mount -o remount,ro ro",
    "full": "mount -t tmpfs -o size=1m none full && head -c 1m /dev/zero >full/file",
    "inodes": "mount -t tmpfs -o nr_inodes=2 none inodes && touch inodes/one",
}
LOOK = """
import asyncio, json, sys
from pathlib import Path
from mirror.doctor import disk, root, space
from tests.doctor import case_of

async def look(case):
    return [one for check in (root, disk, space) for one in await check.look(case)]

print(json.dumps([
    {one.name: [one.outcome.value, one.text, one.advice] for one in asyncio.run(look(case_of(Path(folder))))}
    for folder in sys.argv[1:]
]))
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, list[str]]]]:
    """Look at disks of all these kinds, which only the process that looks can see; return what is found of each."""
    folder = tmp_path_factory.mktemp("disks")
    for name in MOUNTED:
        (folder / name).mkdir()
    script = " && ".join([f"cd {folder}", *MOUNTED.values(), f"cd {PROJECT}", 'exec "$0" "$@"'])
    disks = [str(folder / name) for name in MOUNTED]
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, "-c", LOOK, *disks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    assert done.stderr == ""
    return folder, dict(zip(MOUNTED, json.loads(done.stdout), strict=True))


def test_a_disk_that_is_read_only(mounted: tuple[Path, dict[str, dict[str, list[str]]]]) -> None:
    folder, found = mounted
    outcome, text, advice = found["ro"]["root"]
    assert (outcome, text) == ("problem", f"{folder}/ro is mounted read-only")
    assert advice.startswith(f"mount it for writing: mount -o remount,rw {folder}/ro; or ")
    assert found["ro"]["disk"][1].endswith("the service cannot make a folder: Read-only file system")


def test_a_disk_that_is_full(mounted: tuple[Path, dict[str, dict[str, list[str]]]]) -> None:
    _, found = mounted
    assert found["full"]["space"][0] == "problem"
    outcome, text, advice = found["full"]["disk"]
    assert (outcome, text.endswith(": No space left on device")) == ("problem", True)
    assert advice.startswith("free some space there")
    assert found["full"]["root file system"][0] == "warning", "tmpfs"


def test_a_disk_without_inodes(mounted: tuple[Path, dict[str, dict[str, list[str]]]]) -> None:
    _, found = mounted
    assert (found["inodes"]["inodes"][0], found["inodes"]["disk"][0]) == ("problem", "problem")
    assert found["inodes"]["space"][0] != "problem"


# ---- interrupted ----

SLOW = """
import sys, time
from pathlib import Path
from mirror.cli import main
from mirror.store import trial

reached, gate = map(Path, sys.argv[1:3])

def ask(folder):
    reached.touch()
    while not gate.exists():
        time.sleep(0.01)
    return {"flock": True, "lease": True, "map": True}

trial._ask_another = ask
main(sys.argv[3:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted_it_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """It comes while the disk is tried, with a folder in it."""
    disk, reached, gate = tmp_path / "disk", tmp_path / "reached", tmp_path / "gate"
    disk.mkdir()
    command = [sys.executable, "-c", SLOW, str(reached), str(gate), "doctor", "--offline", "--root", str(disk)]
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
    try:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, ours)
    try:
        wait_until(reached.exists, "the disk is tried")
        assert [path.name.startswith(".doctor-") for path in disk.iterdir()] == [True]
        process.send_signal(number)
        gate.touch()
        out, said = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, said) == (128 + number, "mirror: interrupted\n")
    assert "disk:" not in out
    assert list(disk.iterdir()) == []
