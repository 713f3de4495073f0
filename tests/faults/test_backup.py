"""Backups of a registry that is served and pushed to, and commands killed at every step of the way."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fake_upstream import FakeUpstream, start_in_thread
from tests.service import Service, service, wait_until, write_config

PROJECT = Path(__file__).parents[2]
IMAGE = "application/vnd.oci.image.manifest.v1+json"
NOWHERE = {"up": {"url": "http://127.0.0.1:9"}}
HOLDERS = ("link", "pushed", "tag")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Client:
    """Somebody who pushes and pulls, over one connection. netloc: of the service. answered: requests so far."""

    def __init__(self, netloc: str) -> None:
        self.answered = 0
        self._connection = http.client.HTTPConnection(netloc, timeout=60)

    def close(self) -> None:
        self._connection.close()

    def send(self, method: str, path: str, *expected: int, body: bytes = b"", **headers: str) -> bytes:
        """Ask, and return the body of the answer, whose status must be one of those expected."""
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read()
        self.answered += 1
        assert answer.status in expected, f"{method} {path}: {answer.status} {text!r}"
        return text

    def push_blob(self, name: str, data: bytes) -> str:
        digest = digest_of(data)
        self.send("POST", f"/v2/{name}/blobs/uploads/?digest={digest}", 201, body=data)
        return digest

    def push(self, name: str, tag: str, *blobs: bytes) -> str:
        """Push an image of these blobs; return its digest."""
        for blob in blobs:
            self.push_blob(name, blob)
        layers = [{"mediaType": "a/b", "digest": digest_of(blob), "size": len(blob)} for blob in blobs]
        raw = json.dumps({"schemaVersion": 2, "mediaType": IMAGE, "layers": layers}).encode()
        self.send("PUT", f"/v2/{name}/manifests/{tag}", 201, body=raw, **{"Content-Type": IMAGE})
        return digest_of(raw)

    def mount(self, name: str, digest: str, source: str) -> None:
        """Mount a blob; when it has just been deleted there, cancel the upload that is begun instead."""
        self._connection.request("POST", f"/v2/{name}/blobs/uploads/?mount={digest}&from={source}", b"")
        answer = self._connection.getresponse()
        answer.read()
        assert answer.status in (201, 202)
        if answer.status == 202:
            self.send("DELETE", answer.headers["Location"], 204)

    def get(self, path: str) -> bytes:
        return self.send("GET", path, 200)

    def listed(self, path: str, what: str) -> list[str]:
        found: list[str] = json.loads(self.get(path))[what]
        return found


@contextmanager
def client(running: Service) -> Iterator[Client]:
    made = Client(running.netloc)
    try:
        yield made
    finally:
        made.close()


def store(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Run ``mirror store``; return what it says in JSON."""
    command = [sys.executable, "-m", "mirror", "store", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def config_in(folder: Path, root: Path, upstreams: dict[str, Any] = NOWHERE, workers: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    return write_config(folder, upstreams, workers=workers, storage={"root": str(root)})


def serves(folder: Path, root: Path) -> dict[tuple[str, str], str]:
    """Serve a root, and make sure that all of it is right: each tag, its manifest, its blobs; each blob of any
    repository. Returns the digest of each tag."""
    tags = {}
    with service(config_in(folder, root, workers=1)) as running, client(running) as who:
        for name in who.listed("/v2/_catalog?n=1000", "repositories"):
            for tag in who.listed(f"/v2/{name}/tags/list?n=10000", "tags"):
                raw = who.get(f"/v2/{name}/manifests/{tag}")
                tags[name, tag] = digest_of(raw)
                for layer in json.loads(raw)["layers"]:
                    assert digest_of(who.get(f"/v2/{name}/blobs/{layer['digest']}")) == layer["digest"]
        with closing(sqlite3.connect(root / "metadata.db")) as database:
            for key, digest in database.execute("SELECT repository, digest FROM link").fetchall():
                assert digest_of(who.get(f"/v2/{key.lstrip('|')}/blobs/{digest}")) == digest
            for key, digest in database.execute("SELECT repository, digest FROM pushed").fetchall():
                assert digest_of(who.get(f"/v2/{key.lstrip('|')}/manifests/{digest}")) == digest
    return tags


# ---- while it is pushed to ----


class Pusher(threading.Thread):
    """Pushes, mounts and deletes without a pause. kept: tags it never deletes."""

    def __init__(self, netloc: str, me: int) -> None:
        super().__init__()
        self._who = Client(netloc)
        self._name = f"local/own-{me}"
        self._random = random.Random(me)
        self.stopping = False
        self._rounds = 0
        self.kept: dict[tuple[str, str], str] = {}
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stopping:
                self._round(self._who, self._rounds)
                self._rounds += 1
        except BaseException as error:
            self.error = error
        finally:
            self._who.close()

    @property
    def answered(self) -> int:
        """Requests so far."""
        return self._who.answered

    def _round(self, who: Client, n: int) -> None:
        name, base = self._name, b"in every image of all"
        short_lived, contested = self._random.randbytes(20_000), f"contested {n % 3}".encode()
        digest = who.push(name, "latest", base, short_lived)
        if n % 10 == 0:
            keep = self._random.randbytes(1000)
            self.kept[name, f"keep-{n}"] = who.push(name, f"keep-{n}", base, keep)
        who.push_blob("local/contested", contested)
        who.mount("local/mounted", digest_of(contested), "local/contested")
        for repository in ("local/contested", "local/mounted"):
            who.send("DELETE", f"/v2/{repository}/blobs/{digest_of(contested)}", 202, 404)
        who.send("DELETE", f"/v2/{name}/manifests/{digest}", 202)
        who.send("DELETE", f"/v2/{name}/blobs/{digest_of(short_lived)}", 202)


@contextmanager
def pushers(running: Service, count: int) -> Iterator[list[Pusher]]:
    made = [Pusher(running.netloc, me) for me in range(count)]
    for one in made:
        one.start()
    try:
        yield made
    finally:
        for one in made:
            one.stopping = True
        for one in made:
            one.join(60)
    for one in made:
        assert one.error is None, repr(one.error)


def test_each_backup_taken_while_others_push_and_delete_is_whole(tmp_path: Path, command: Command) -> None:
    """Into new folders, and again and again into one."""
    root = tmp_path / "root"
    taken: list[tuple[Path, dict[tuple[str, str], str]]] = []
    with service(config_in(tmp_path, root)) as running, pushers(running, 3) as busy:
        wait_until(lambda: all(one.kept for one in busy) or any(one.error for one in busy), "all have pushed")
        for n in range(8):
            if n == 7:
                wait_until(lambda: sum(len(one.kept) for one in busy) > len(taken[0][1]), "more was pushed", 60)
            acknowledged = {tag: digest for one in busy for tag, digest in list(one.kept.items())}
            before = [one.answered for one in busy]
            target = tmp_path / ("again" if n % 2 else f"backup-{n}")
            said = store("backup", target, "--root", root)
            assert said["problems"] == []
            assert all(one.answered > was for one, was in zip(busy, before, strict=True)), "they did not wait for it"
            # As it is now: the next one changes it. It is restored when nobody is in the way.
            taken.append((shutil.copytree(target, tmp_path / f"taken-{n}"), acknowledged))
    for n, (backup, acknowledged) in enumerate(taken):
        copy = tmp_path / f"restored-{n}"
        assert command("restore", backup, "--root", copy) == 0
        tags = serves(tmp_path / f"serving-{n}", copy)
        assert acknowledged.items() <= tags.items()
        assert not list(copy.glob("ingest/backup.*"))
    assert len(taken[-1][1]) > len(taken[0][1])
    assert not list(root.glob("ingest/backup.*"))


def test_backed_up_and_restored_a_root_serves_the_same(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "backup"
    with service(config_in(tmp_path, root)) as running, client(running) as who:
        expected = {
            (f"local/{name}", tag): who.push(f"local/{name}", tag, b"base", f"{name} {tag}".encode())
            for name in ("a", "b/c")
            for tag in ("v1", "v2")
        }
        store("backup", target, "--root", root)
    assert serves(tmp_path / "second", root) == expected
    store("restore", target, "--root", tmp_path / "new")
    assert serves(tmp_path / "third", tmp_path / "new") == expected


def test_restoring_is_refused_while_it_is_served(tmp_path: Path) -> None:
    root, target = tmp_path / "root", tmp_path / "backup"
    config = config_in(tmp_path, root)
    with service(config) as running, client(running) as who:
        first = who.push("local/a", "v1", b"one")
        store("backup", target, "--root", root)
        second = who.push("local/a", "v1", b"two")
        (problem,) = store("restore", target, "--config", config, code=1)["problems"]
        assert problem.startswith(f"the folder {root} is in use by another mirror, pid {running.pid} ")
        assert digest_of(who.get("/v2/local/a/manifests/v1")) == second
    assert store("restore", target, "--config", config)["tags_moved"] == 1
    with service(config) as running, client(running) as who:
        assert digest_of(who.get("/v2/local/a/manifests/v1")) == first
        history = json.loads(who.get("/v2/local/a/_mirror/tags/history?tag=v1"))
    digests = [move["digest"] for move in next(value for value in history.values() if isinstance(value, list))]
    assert digests == [first, second, first]


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


def test_what_was_pulled_through_stays(tmp_path: Path, hub: FakeUpstream) -> None:
    """A root with something of an upstream and pushes of its own gets the pushes of another one."""
    image = hub.add_image("team/app", "v1")
    upstream = {"up": {"url": hub.url}}
    config = config_in(tmp_path / "here", tmp_path / "root", upstream)
    with service(config_in(tmp_path / "there", tmp_path / "other")) as running, client(running) as who:
        theirs = who.push("local/a", "v1", b"theirs")
    store("backup", tmp_path / "backup", "--root", tmp_path / "other")

    def pull(who: Client) -> None:
        assert who.get("/v2/up/team/app/manifests/v1") == image.raw
        for digest, data in image.blobs.items():
            assert who.get(f"/v2/up/team/app/blobs/{digest}") == data

    with service(config) as running, client(running) as who:
        mine = who.push("local/b", "v1", b"mine")
        pull(who)
        names = {digest[7:] for digest in (image.digest, *image.blobs)}
        wait_until(lambda: {path.name for path in (tmp_path / "root").glob("cache/*/*")} == names, "it is kept")
    store("restore", tmp_path / "backup", "--config", config)
    hub.clear_log()
    with service(config) as running, client(running) as who:
        pull(who)
        assert hub.count("GET") == 0
        assert digest_of(who.get("/v2/local/a/manifests/v1")) == theirs
        assert digest_of(who.get("/v2/local/b/manifests/v1")) == mine
        assert who.listed("/v2/_catalog", "repositories") == ["local/a", "local/b", "up/team/app"]


def test_links_a_killed_backup_left_are_removed_when_the_service_starts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with service(config_in(tmp_path, root)) as running, client(running) as who:
        digest = who.push_blob("local/a", b"blob")[7:]
    folder = root / "ingest" / "backup.0123456789abcdef"
    (folder / "sha256").mkdir(parents=True)
    os.link(root / "blobs" / "sha256" / digest, folder / "sha256" / digest)
    with service(config_in(tmp_path, root)):
        wait_until(lambda: not folder.exists(), "they are gone")
    assert (root / "blobs" / "sha256" / digest).exists()


# ---- killed ----


KILLED = """
import itertools, json, os, signal, sqlite3, sys
import mirror.config, mirror.wiring
from mirror.cli import main

calls = itertools.count(1)

def step():
    if next(calls) == at:
        os.kill(os.getpid(), number)

def counted(name):
    real = getattr(os, name)
    def call(*arguments, **more):
        step()
        return real(*arguments, **more)
    setattr(os, name, call)

def connect(*arguments, real=sqlite3.connect, **more):
    connection = real(*arguments, **more)
    if number == signal.SIGKILL:  # what a handler raises in there would be lost
        connection.set_trace_callback(lambda statement: "IF NOT EXISTS" in statement or step())
    return connection

for line in sys.stdin:
    at, number, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
        for name in ("fsync", "rename", "link", "unlink", "mkdir", "rmdir", "close"):
            counted(name)
        sqlite3.connect = connect
        code = 99
        try:
            main(["store", *arguments])
        except SystemExit as error:
            code = error.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs commands, each ended by a signal at a step that is said: a change of a folder, a sync, an SQL statement."""

Command = Callable[..., int]


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    """Run ``mirror store`` and return its exit code. at: the step at which it gets a signal; 0 is never."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=PROJECT, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None

    def run(*arguments: object, at: int = 0, number: int = signal.SIGKILL) -> int:
        process.stdin.write(json.dumps([at, number, [*map(str, arguments)]]).encode() + b"\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield run
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a root, a backup of it, and what was pushed and deleted since: as ``root`` and ``backup``."""
    folder = tmp_path_factory.mktemp("pushed")
    with service(config_in(folder, folder / "root")) as running, client(running) as who:
        old = who.push("local/a", "v1", b"base", b"old")
        store("backup", folder / "backup", "--root", folder / "root")
        who.push("local/a", "v1", b"base", b"new")
        who.push("local/b", "v1", b"base", b"another")
        who.send("DELETE", f"/v2/local/a/manifests/{old}", 202)
        who.send("DELETE", f"/v2/local/a/blobs/{digest_of(b'old')}", 202)
    return folder


def state(root: Path) -> tuple[dict[str, list[tuple[Any, ...]]], dict[str, bytes]]:
    """Return the rows of a root, and the content they need, all of which must be there and right."""
    with closing(sqlite3.connect(root / "metadata.db")) as database:
        rows = {
            table: database.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
            for table in ("link", "pushed", "tag", "repository")
        }
        moves = "SELECT repository, tag, digest, origin FROM history ORDER BY repository, tag, number"
        rows["history"] = database.execute(moves).fetchall()
        query = " UNION ".join(f"SELECT digest FROM {table}" for table in HOLDERS)
        needed = [digest for (digest,) in database.execute(query)]
    content = {digest: (root / "blobs" / "sha256" / digest[7:]).read_bytes() for digest in needed}
    assert all(digest_of(data) == digest for digest, data in content.items())
    return rows, content


def restored(command: Command, source: Path, root: Path) -> Any:
    assert command("restore", source, "--root", root) == 0
    found = state(root)
    shutil.rmtree(root)
    return found


def steps(run: Callable[[int], int], code: int = -signal.SIGKILL) -> Iterator[int]:
    """Give each step at which a command was ended, until it gets to its own end."""
    for at in range(1, 1000):
        done = run(at)
        if done == 0:
            return
        assert done == code
        yield at
    raise AssertionError("it does not end")


def copied(source: Path, target: Path) -> Path:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize("earlier", [True, False], ids=["brought-up-to-date", "the-first"])
def test_a_backup_killed_at_any_step_leaves_the_earlier_or_the_new_one(
    tmp_path: Path, pushed: Path, command: Command, earlier: bool
) -> None:
    root, target, new = copied(pushed / "root", tmp_path / "root"), tmp_path / "backup", tmp_path / "new"
    assert command("backup", tmp_path / "whole", "--root", root) == 0
    after = restored(command, tmp_path / "whole", new)
    before = restored(command, pushed / "backup", new)
    assert before != after
    seen = []

    def killed(at: int) -> int:
        if earlier:
            copied(pushed / "backup", target)
        elif target.exists():
            shutil.rmtree(target)
        return command("backup", target, "--root", root, at=at)

    for _ in steps(killed):
        if earlier or (target / "backup.json").exists():
            found = restored(command, target, new)
            assert found in (before, after)
            seen.append(found == after)
        elif target.exists():
            assert command("restore", target, "--root", new) == 1
            assert not new.exists()
    assert seen == sorted(seen), "first the earlier one, then the new one"
    assert True in seen
    assert (False in seen) is earlier
    assert restored(command, target, new) == after
    assert not list(root.glob("ingest/backup.*")), "each one tidies what the one before left"


def test_a_backup_continues_what_a_killed_one_began(tmp_path: Path, pushed: Path, command: Command) -> None:
    """Killed again and again, a step later each time, it gets to its end."""
    root, target = pushed / "root", tmp_path / "backup"
    ends = list(steps(lambda at: command("backup", target, "--root", root, at=at)))
    assert len(ends) > 10
    assert len(list(target.glob("metadata-*"))) == 1
    assert not list(target.rglob("*.part"))
    assert restored(command, target, tmp_path / "new")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_backup_that_is_told_to_end_leaves_nothing_in_the_root(
    tmp_path: Path, pushed: Path, command: Command, number: signal.Signals
) -> None:
    root, target, new = copied(pushed / "root", tmp_path / "root"), tmp_path / "backup", tmp_path / "new"
    before = restored(command, pushed / "backup", new)
    ended = 0
    while True:
        ended += 1
        copied(pushed / "backup", target)
        done = command("backup", target, "--root", root, at=ended, number=number)
        if restored(command, target, new) != before:
            break
        assert done == (143 if number == signal.SIGTERM else 1)
        assert not list(root.glob("ingest/backup.*"))
    assert ended > 20


def test_a_restore_killed_at_any_step_ends_right_the_next_time(tmp_path: Path, pushed: Path, command: Command) -> None:
    """Into a root that has another tag there, and something of its own."""
    root = tmp_path / "root"
    with service(config_in(tmp_path, tmp_path / "other")) as running, client(running) as who:
        who.push("local/a", "v1", b"base", b"somebody else's")
        who.push("local/c", "v1", b"mine")
    before = state(tmp_path / "other")
    assert command("restore", pushed / "backup", "--root", copied(tmp_path / "other", root)) == 0
    tags = serves(tmp_path / "serving", root)
    assert set(tags) == {("local/a", "v1"), ("local/c", "v1")}
    after = state(root)
    assert before != after
    seen = []
    run = lambda at: command("restore", pushed / "backup", "--root", copied(tmp_path / "other", root), at=at)  # noqa: E731
    for _ in steps(run):
        found = state(root)
        assert found in (before, after), "all rows or none"
        seen.append(found == after)
        assert command("restore", pushed / "backup", "--root", root) == 0
        assert state(root) == after
        assert not list(root.glob("ingest/**/*.kept"))
    assert seen == sorted(seen)
    assert False in seen
    assert True in seen
    assert serves(tmp_path / "serving", root) == tags
