"""Several processes write one database as fast as they can, and are killed while they do."""

from __future__ import annotations

import os
import re
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.names import Digest, Repository, RepositoryName, Tag, parse_digest
from tests.service import wait_until

ID = "one-root"
SHARED = Repository(None, RepositoryName("local/shared"))
SECONDS = 60

WRITE = """
import asyncio, json, sys
from pathlib import Path
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.manifest import parse_manifest
from mirror.oci.names import Repository, RepositoryName, Tag, digest_of

async def main(path, me, pushes, together):
    metadata = SqliteMetadata(Path(path), "one-root")
    await metadata.start()
    print("ready", flush=True)
    sys.stdin.readline()
    mine, shared = (Repository(None, RepositoryName(name)) for name in (f"local/w{me}", "local/shared"))

    async def push(n):
        blob = digest_of(f"{me} {n}".encode())
        layer = {"mediaType": "a/b", "digest": str(blob), "size": 1}
        body = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [layer]}
        manifest = parse_manifest(json.dumps(body).encode(), content_type=None)
        digest = manifest.descriptor.digest
        for repository, tags in ((mine, [f"v{n:05}", "latest"]), (shared, [f"w{me}-{n:05}", "latest"])):
            await metadata.push_blob(repository, blob)
            await metadata.push_manifest(
                repository, manifest, tags=[Tag(tag) for tag in tags], required=[blob], condition=None, at=float(n)
            )
        if n % 3 == 0:
            assert await metadata.delete_tag(mine, Tag(f"v{n:05}"), condition=None, at=float(n))
        print(n, blob, digest, flush=True)

    for n in range(0, int(pushes), int(together)):
        if n == int(pushes) * 3 // 5:
            sys.stdin.readline()
        await asyncio.gather(*(push(k) for k in range(n, n + int(together))))
    await metadata.close()
    print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""
"""Pushes images, and says of each that it did: number, blob, manifest. Waits to be told before the last of them."""


class Writer:
    """A process that writes. said: all its lines so far; the last may be half."""

    def __init__(self, path: Path, me: int, pushes: int, together: int) -> None:
        self.me = me
        self.said = b""
        command = [sys.executable, "-W", "error", "-c", WRITE, str(path), str(me), str(pushes), str(together)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def lines(self) -> list[str]:
        return [line.decode() for line in self.said.split(b"\n")[:-1]]

    def acknowledged(self) -> dict[int, tuple[Digest, Digest]]:
        """Return the pushes it said were done: blob and manifest of each."""
        found = [re.fullmatch(r"(\d+) (\S+) (\S+)", line) for line in self.lines()]
        return {int(one[1]): (parse_digest(one[2]), parse_digest(one[3])) for one in found if one}

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


class Writers:
    """Processes that write one database."""

    def __init__(self, path: Path, numbers: range, pushes: int, together: int) -> None:
        self.all = [Writer(path, me, pushes, together) for me in numbers]
        self._ready = selectors.DefaultSelector()
        for one in self.all:
            assert one.process.stdout is not None
            os.set_blocking(one.process.stdout.fileno(), False)
            self._ready.register(one.process.stdout, selectors.EVENT_READ, one)

    def start(self) -> None:
        """Let them begin together."""
        wait_until(lambda: self.listen() or all(one.lines() == ["ready"] for one in self.all), "all are ready")
        self.go()

    def go(self) -> None:
        for one in self.all:
            if one.process.poll() is None:
                one.go()

    def listen(self) -> None:
        """Take in what they say."""
        for key, _ in self._ready.select(0.05):
            said = os.read(key.fd, 1 << 16)
            key.data.said += said
            if not said:
                self._ready.unregister(key.fileobj)

    def wait(self) -> None:
        """Listen until all have ended."""
        deadline = time.monotonic() + SECONDS
        while self._ready.get_map():
            self.listen()
            assert time.monotonic() < deadline, "they do not end"
        for one in self.all:
            one.process.wait(SECONDS)

    def close(self) -> None:
        for one in self.all:
            if one.process.poll() is None:
                one.kill()
            one.process.communicate()
        self._ready.close()

    def errors(self) -> list[bytes]:
        return [one.process.stderr.read() for one in self.all if one.process.stderr is not None]


@contextmanager
def writers(path: Path, *, pushes: int, together: int, first: int = 0) -> Iterator[Writers]:
    running = Writers(path, range(first, first + 4), pushes, together)
    try:
        yield running
    finally:
        running.close()


def pushed_some(running: Writers, these: list[Writer], n: int) -> None:
    """Wait until each of them has pushed ``n``."""
    wait_until(lambda: running.listen() or all(len(one.acknowledged()) >= n for one in these), f"{n} pushes")


async def check(path: Path, running: Writers) -> None:
    """Compare the database with what was acknowledged, and with itself."""
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        # Of no push there is a part: a manifest has its tag and each move its own entry.
        held = "SELECT repository, digest FROM pushed WHERE repository = '|local/shared'"
        tagged = "SELECT repository, digest FROM tag WHERE repository = '|local/shared' AND tag <> 'latest'"
        assert database.execute(f"{held} EXCEPT {tagged}").fetchall() == []
        assert database.execute(f"{tagged} EXCEPT {held}").fetchall() == []
        moved = "SELECT tag, digest FROM history WHERE repository = '|local/shared' AND tag <> 'latest'"
        tags = "SELECT tag, digest FROM tag WHERE repository = '|local/shared' AND tag <> 'latest'"
        assert sorted(database.execute(moved)) == sorted(database.execute(tags))
        latest = "SELECT digest FROM history WHERE repository = ? AND tag = 'latest' ORDER BY number DESC LIMIT 1"
        for (key,) in database.execute("SELECT DISTINCT repository FROM tag").fetchall():
            now = "SELECT digest FROM tag WHERE repository = ? AND tag = 'latest'"
            assert database.execute(latest, (key,)).fetchone() == database.execute(now, (key,)).fetchone()
    metadata = SqliteMetadata(path, ID)
    await metadata.start()
    try:
        for one in running.all:
            mine = Repository(None, RepositoryName(f"local/w{one.me}"))
            for n, (blob, digest) in one.acknowledged().items():
                for repository in (mine, SHARED):
                    assert metadata.may_read(repository, blob), (one.me, n)
                    assert metadata.holds(repository, digest), (one.me, n)
                tag, record = metadata.tag(mine, Tag(f"v{n:05}")), metadata.tag(SHARED, Tag(f"w{one.me}-{n:05}"))
                assert (tag is None) is (n % 3 == 0), (one.me, n)
                assert record is not None, (one.me, n)
                assert record.digest == digest, (one.me, n)
                moves = await metadata.history(mine, Tag(f"v{n:05}"), n=9)
                assert [move.digest for move in moves] == ([None, digest] if n % 3 == 0 else [digest])
    finally:
        await metadata.close()


@pytest.mark.parametrize("together", [1, 5])
async def test_four_processes_write_as_fast_as_they_can(tmp_path: Path, together: int) -> None:
    path, pushes = tmp_path / "metadata.db", 250
    with writers(path, pushes=pushes, together=together) as running:
        running.start()
        running.go()
        running.wait()
        assert running.errors() == [b""] * 4
        assert [one.lines()[-1] for one in running.all] == ["done"] * 4
        assert [len(one.acknowledged()) for one in running.all] == [pushes] * 4
        await check(path, running)


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("killed", [1, 3])
async def test_what_was_acknowledged_survives_kill_9_and_the_others_go_on(
    tmp_path: Path, killed: int, together: int
) -> None:
    path, pushes = tmp_path / "metadata.db", 250
    with writers(path, pushes=pushes, together=together) as running:
        running.start()
        victims, others = running.all[:killed], running.all[killed:]
        for at, victim in enumerate(victims, start=1):
            pushed_some(running, [victim], 15 * at)
            victim.kill()
        for victim in victims:
            victim.process.wait(SECONDS)
        running.go()  # the others have some left
        running.wait()
        assert [one.process.returncode for one in victims] == [-signal.SIGKILL] * killed
        assert all(0 < len(one.acknowledged()) < pushes for one in victims)
        assert [len(one.acknowledged()) for one in others] == [pushes] * len(others)
        assert [one.lines()[-1] for one in others] == ["done"] * len(others)
        assert running.errors() == [b""] * 4
        await check(path, running)


async def test_what_was_acknowledged_survives_kill_9_of_all(tmp_path: Path) -> None:
    """The log they leave is taken up by those who come next, at once by four, who are killed in turn."""
    path = tmp_path / "metadata.db"
    for turn in range(4):
        with writers(path, first=4 * turn, pushes=5000, together=2) as running:
            running.start()
            pushed_some(running, running.all, 20)
            for one in running.all:
                one.kill()
            running.wait()
            assert [one.process.returncode for one in running.all] == [-signal.SIGKILL] * 4
            await check(path, running)
