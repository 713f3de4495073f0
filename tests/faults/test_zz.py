"""Pushes and everything that can happen to them: connections that drop, processes that die, others at the same thing.

What was acknowledged is there; what was not left nothing but a session. A file under ``blobs/`` is whole and right,
always; one without a row is what a kill between its name and its row leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fake_upstream import random_bytes
from tests.harness import Mirror, make_config, mirrors
from tests.images import until
from tests.lingering import linger, lingered
from tests.service import Service, service, wait_until, write_config

MIB = 1024 * 1024
NAME = "local/team/app"
PROJECT = Path(__file__).parents[2]
IMAGE = "application/vnd.oci.image.manifest.v1+json"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def uploads_path(name: str = NAME) -> str:
    return f"/v2/{name}/blobs/uploads/"


def blob_path(digest: str, name: str = NAME) -> str:
    return f"/v2/{name}/blobs/{digest}"


def manifest_of(*blobs: bytes, note: str = "") -> bytes:
    """Return an image of these blobs, the first its config."""
    described = [
        {"mediaType": "application/octet-stream", "digest": digest_of(blob), "size": len(blob)} for blob in blobs
    ]
    body: dict[str, Any] = {"schemaVersion": 2, "mediaType": IMAGE, "config": described[0], "layers": described[1:]}
    return json.dumps(body | {"annotations": {"note": note}}).encode()


# ---- asking real processes ----


class Reply:
    """A whole response."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def ask(running: Service, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
    """Ask over a connection of its own, which any worker may get."""
    host, _, port = running.netloc.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body or None, headers=given)
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def begin(running: Service) -> str:
    reply = ask(running, "POST", uploads_path())
    assert reply.status == 202
    return str(reply.headers["Location"])


def offset(running: Service, location: str) -> int:
    """Return how many bytes a session has; not for one with one or none."""
    reply = ask(running, "GET", location)
    assert reply.status == 204, reply.body
    return int(reply.headers["Range"].partition("-")[2]) + 1


def put_manifest(running: Service, raw: bytes, reference: str) -> Reply:
    return ask(running, "PUT", f"/v2/{NAME}/manifests/{reference}", raw, Content_Type=IMAGE)


def send_part(running: Service, location: str, data: bytes, start: int, stop: int) -> socket.socket:
    """Send a chunk that is said to be the whole rest, up to ``stop``. Returns the open connection."""
    host, _, port = running.netloc.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = (
        f"PATCH {location} HTTP/1.1\r\nHost: {running.netloc}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(data) - start}\r\nContent-Range: {start}-{len(data) - 1}\r\n\r\n"
    )
    connection.sendall(head.encode() + data[start:stop])
    return connection


def patched(running: Service, location: str, data: bytes, at: int) -> None:
    """Send the rest. What was on its way when the other connection ended may have come in after the question."""
    reply = ask(running, "PATCH", location, data[at:], Content_Range=f"{at}-{len(data) - 1}")
    if reply.status == 416:
        at = int(reply.headers["Range"].partition("-")[2]) + 1
        reply = ask(running, "PATCH", location, data[at:], Content_Range=f"{at}-{len(data) - 1}")
    assert reply.status == 202, reply.body


def drop(connection: socket.socket, how: str) -> None:
    """End a connection. reset: what was not read by the other side is lost."""
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


# ---- looking at a root ----


def rows(root: Path) -> set[str]:
    """Return the digests that any repository of ours has."""
    with contextlib.closing(sqlite3.connect(root / "metadata.db")) as database:
        ours = "repository >= '|' AND repository < '}'"
        found = database.execute(f"SELECT digest FROM link WHERE {ours} UNION SELECT digest FROM pushed WHERE {ours}")
        return {digest for (digest,) in found}


def kept(root: Path) -> set[str]:
    """Return the digests that have a file, after a look at each: whole and right, or the test fails."""
    found = set()
    for path in root.glob("blobs/sha256/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name, "nothing wrong is stored"
        found.add(f"sha256:{path.name}")
    return found


def left(root: Path) -> list[str]:
    """Return what is on its way in, but for the lock file."""
    found = [path for path in root.glob("ingest/**/*") if path.is_file()]
    return sorted(str(path.relative_to(root)) for path in found if path != root / "ingest" / "locks")


def written(root: Path) -> int:
    """Return how many bytes the largest session has."""
    sizes = [0]
    for path in root.glob("ingest/uploads/*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def is_settled(root: Path) -> None:
    """Make sure that there is exactly what is known, and nothing on its way."""
    assert kept(root) == rows(root)
    assert left(root) == []


def holder(running: Service, location: str) -> int | None:
    """Return the worker that has a session's file open for writing."""
    session = location.rpartition("/")[2]
    for pid in running.workers():
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if session in os.readlink(fd):
                    return pid
    return None


def config_of(tmp_path: Path, **settings: Any) -> Path:
    return write_config(tmp_path, {"up": {"url": "http://127.0.0.1:9"}}, **settings)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    with service(config_of(tmp_path)) as found:
        yield found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


# ---- connections that drop ----

SIZE = 9 * MIB


@pytest.mark.parametrize("how", ["closed", "reset", "hanging"])
def test_a_connection_dropped_at_every_tenth_percent_and_resumed(running: Service, root: Path, how: str) -> None:
    """Where to go on is asked, and right: whichever worker answers, however the one before ended."""
    data = random_bytes(SIZE, 1)
    location, at, hanging = begin(running), 0, []
    for tenth in range(1, 10):
        stop = SIZE * tenth // 10
        connection = send_part(running, location, data, at, stop)
        if how == "hanging":
            hanging.append(connection)
            wait_until(lambda start=at: written(root) > start, "it arrives")
        else:
            drop(connection, how)
        got = offset(running, location)
        if got == 1 and how == "reset":
            got = 0  # a reset may take everything with it
        assert at <= got <= stop
        assert how != "hanging" or got == stop, "all that was sent is there"
        at = got
    patched(running, location, data, at)
    assert ask(running, "PUT", f"{location}?digest={digest_of(data)}").status == 201
    assert ask(running, "GET", blob_path(digest_of(data))).body == data
    for connection in hanging:
        connection.close()
    wait_until(lambda: left(root) == [], "nothing is left")
    is_settled(root)


def test_a_put_dropped_and_sent_again(running: Service, root: Path) -> None:
    """Its client asks nothing, and sends all of it again: it is told where the session stands."""
    data = random_bytes(SIZE, 2)
    location = begin(running)
    connection = send_part(running, location, data, 0, SIZE // 2)
    wait_until(lambda: written(root) >= MIB // 2, "it arrives")
    drop(connection, "closed")
    at = offset(running, location)
    assert MIB // 2 < at <= SIZE // 2
    reply = ask(running, "PATCH", location, data, Content_Range=f"0-{SIZE - 1}")
    assert (reply.status, reply.headers["Range"]) == (416, f"0-{at - 1}")
    assert ask(running, "PUT", f"{location}?digest={digest_of(data)}", data[at:]).status == 201
    is_settled(root)


# ---- processes that die ----


def test_a_worker_killed_while_receiving(running: Service, root: Path) -> None:
    data = random_bytes(SIZE, 3)
    location, killed = begin(running), set()
    for quarter in (1, 2, 3):
        start = 0 if quarter == 1 else offset(running, location)
        connection = send_part(running, location, data, start, SIZE * quarter // 4)
        wait_until(lambda start=start: written(root) > start, "it is at it")
        victim = wait_until(lambda: holder(running, location), "somebody has it")
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
        connection.settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b"", "no answer to what was not done"
        connection.close()
        # Until it is gone, connections that are its to accept are reset.
        wait_until(lambda victim=victim: victim not in running.workers(), "it is gone")
        at = offset(running, location)
        assert start < at <= SIZE * quarter // 4
    patched(running, location, data, at)
    assert ask(running, "PUT", f"{location}?digest={digest_of(data)}").status == 201
    assert ask(running, "GET", blob_path(digest_of(data))).body == data
    wait_until(lambda: len(running.workers()) == 4 and not killed & set(running.workers()), "they are replaced")
    is_settled(root)


def test_everything_acknowledged_survives_every_process(tmp_path: Path, root: Path) -> None:
    """Each kind of acknowledged change; killed the moment the last answer is there."""
    config = config_of(tmp_path)
    blobs = [random_bytes(100_000 + number, number) for number in range(12)]
    deleted, raw = blobs.pop(), manifest_of(*blobs)
    with service(config) as first:
        for data in (*blobs, deleted):
            assert ask(first, "POST", f"{uploads_path()}?digest={digest_of(data)}", data).status == 201
        mount = f"{uploads_path('local/other')}?mount={digest_of(blobs[0])}&from={NAME}"
        assert ask(first, "POST", mount).status == 201
        assert put_manifest(first, raw, "old").status == 201
        assert ask(first, "DELETE", f"/v2/{NAME}/manifests/old").status == 202
        assert ask(first, "DELETE", blob_path(digest_of(deleted))).status == 202
        assert put_manifest(first, raw, "v1").status == 201
        first.kill()
    is_settled(root)
    with service(config) as second:
        assert ask(second, "GET", f"/v2/{NAME}/manifests/v1").body == raw
        assert ask(second, "GET", f"/v2/{NAME}/manifests/old").status == 404
        for data in blobs:
            assert ask(second, "GET", blob_path(digest_of(data))).body == data
        assert ask(second, "GET", blob_path(digest_of(blobs[0]), "local/other")).body == blobs[0]
        assert ask(second, "GET", blob_path(digest_of(deleted))).status == 404


def test_every_process_killed_between_the_blobs_and_the_manifest(tmp_path: Path, root: Path) -> None:
    """The client goes on where it was: nothing that was acknowledged has to be sent again."""
    config = config_of(tmp_path)
    data, half = random_bytes(SIZE, 4), random_bytes(SIZE, 5)
    with service(config) as first:
        assert ask(first, "POST", f"{uploads_path()}?digest={digest_of(data)}", data).status == 201
        location = begin(first)
        connection = send_part(first, location, half, 0, SIZE // 2)
        wait_until(lambda: written(root) >= MIB, "the next one arrives")
        first.kill()
        connection.close()
    with service(config) as second:
        raw = manifest_of(data, half)
        reply = put_manifest(second, raw, "v1")
        assert reply.status == 400
        assert [one["digest"] for one in json.loads(reply.body)["errors"][0]["detail"]] == [digest_of(half)]
        assert ask(second, "HEAD", f"/v2/{NAME}/manifests/v1").status == 404
        at = offset(second, location)
        assert at >= MIB, "a session survives too"
        assert ask(second, "PUT", f"{location}?digest={digest_of(half)}", half[at:]).status == 201
        assert put_manifest(second, raw, "v1").status == 201
        assert ask(second, "GET", f"/v2/{NAME}/manifests/v1").body == raw
    is_settled(root)


def test_every_process_killed_again_and_again(tmp_path: Path, root: Path) -> None:
    """Clients that push without a pause, and a power switch: all that was acknowledged, in any life, is there."""
    config, acknowledged = config_of(tmp_path), {}
    for life in range(3):
        with service(config) as one:
            over = threading.Event()

            def push(client: int, life: int = life, one: Service = one, over: threading.Event = over) -> None:
                for number in range(1000):
                    data = random_bytes(30_000, 100_000 * life + 10_000 * client + number)
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        if ask(one, "POST", f"{uploads_path()}?digest={digest_of(data)}", data).status == 201:
                            raw, tag = manifest_of(data), f"t{life}-{client}-{number}"
                            acknowledged[digest_of(data)] = data
                            if put_manifest(one, raw, tag).status == 201:
                                acknowledged[tag] = raw
                    if over.is_set():
                        return

            before = len(acknowledged)
            clients = [threading.Thread(target=push, args=(client,)) for client in range(6)]
            for client in clients:
                client.start()
            wait_until(lambda before=before: len(acknowledged) > before + 60, "they get somewhere")
            over.set()
            one.kill()
            for client in clients:
                client.join(60)
    assert rows(root) <= kept(root), "no row without its file"
    with service(config) as last:
        assert kept(root) >= {key for key in acknowledged if key.startswith("sha256:")}
        for key, data in acknowledged.items():
            path = blob_path(key) if key.startswith("sha256:") else f"/v2/{NAME}/manifests/{key}"
            assert ask(last, "GET", path).body == data, key
        assert [name for name in left(root) if not name.startswith("ingest/uploads/")] == []


# ---- a worker that dies at a named step ----

STEPS = (
    "mirror.store.uploads:UploadFile.append_in_thread",
    "mirror.store.uploads:RunningHash.digest",
    "mirror.store.uploads:UploadFile.sync_in_thread",
    "mirror.store.uploads:UploadStore.keep_in_thread",
    "mirror.store.uploads:sync_folder",
    "mirror.metadata.sqlite:SqliteMetadata.push_blob",
    "mirror.store.uploads:UploadStore.remove_in_thread",
    "mirror.store.lease:FileLease.release",
)
"""What a worker does from the first byte of a PUT on; it ends at the beginning of one of these."""
NAMED = STEPS.index("mirror.store.uploads:sync_folder")
"""From here on the file has its name."""
KNOWN = STEPS.index("mirror.store.uploads:UploadStore.remove_in_thread")
"""From here on there is a row."""

MANIFEST_STEPS = (
    "mirror.store.disk:DiskBlobStore._keep",
    "mirror.store.disk:write_all",
    "mirror.store.disk:sync_folder",
    "mirror.metadata.sqlite:SqliteMetadata.push_manifest",
    "mirror.store.lease:FileLease.release",
)


def victim_main(root: str, step: str) -> None:
    """Be a worker: answer, say where, and die at the beginning of a step."""
    import importlib

    module_name, _, name = step.partition(":")
    where: Any = importlib.import_module(module_name)
    *outer, last = name.split(".")
    for part in outer:
        where = getattr(where, part)

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def main() -> None:
        async with mirrors(make_config(Path(root), {})) as (worker,):
            setattr(where, last, die)
            print(worker.url, flush=True)
            await asyncio.Event().wait()

    asyncio.run(main())


@contextlib.asynccontextmanager
async def victim(tmp_path: Path, step: str) -> AsyncIterator[str]:
    """Run a worker in a process of its own. Gives its url."""
    arguments = (str(tmp_path / "root"), step)
    with (tmp_path / "victim.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import tests.faults.test_pushes as test; test.victim_main(*{arguments!r})"],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout
    try:
        url = (await asyncio.to_thread(process.stdout.readline)).decode().strip()
        assert url, (tmp_path / "victim.log").read_text()
        yield url
        assert await asyncio.to_thread(process.wait, 10) == -signal.SIGKILL, "it came to that step"
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 10)
        process.stdout.close()


async def fails(url: str, method: str, path: str, data: bytes, **headers: str) -> None:
    """Ask a worker that dies over it."""
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            async with session.request(method, url + path, data=io.BytesIO(data), headers=headers):
                pass


async def pushed_after_all(worker: Mirror, location: str, data: bytes) -> str:
    """Do what a client does whose PUT got no answer: repeat it, go on, or begin anew. Returns what worked."""
    digest = digest_of(data)
    status = await worker.get(location)
    if status.status == 404:
        again = await worker.ask("PUT", f"{location}?digest={digest}", data=io.BytesIO(data))
        if again.status == 201:
            return "repeated"
        assert again.status == 404
        answer = await worker.ask("POST", f"{uploads_path()}?digest={digest}", data=io.BytesIO(data))
        assert answer.status == 201
        return "begun anew"
    assert status.status == 204
    last = int(status.headers["Range"].partition("-")[2])
    at = 0 if last == 0 else last + 1
    answer = await worker.ask("PUT", f"{location}?digest={digest}", data=io.BytesIO(data[at:]))
    assert answer.status == 201
    return "gone on"


@pytest.mark.parametrize("there", [False, True], ids=["new", "there already"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.rpartition(":")[2])
async def test_a_worker_killed_between_two_steps_of_a_push(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, there: bool
) -> None:
    linger(monkeypatch)
    data, at = random_bytes(2 * MIB, 6), STEPS.index(step)
    digest = digest_of(data)
    async with mirrors(make_config(root, {}), 2) as workers:
        if there:
            other = f"{uploads_path('local/other')}?digest={digest}"
            assert (await workers[0].ask("POST", other, data=io.BytesIO(data))).status == 201
        location = (await workers[0].ask("POST", uploads_path())).headers["Location"]
        async with victim(tmp_path, step) as url:
            await fails(url, "PUT", f"{location}?digest={digest}", data)
        known = [await worker.head(blob_path(digest)) for worker in workers]
        assert {one.status for one in known} == {200 if at >= KNOWN else 404}
        assert kept(root) == ({digest} if there or at >= NAMED else set())
        assert rows(root) == ({digest} if there or at >= KNOWN else set())
        how = await pushed_after_all(workers[1], location, data)
        if there:  # the session's own file stays up to the end
            assert how == "gone on"
        else:
            assert how == ("repeated" if at >= KNOWN else "begun anew" if at >= NAMED else "gone on")
        for worker in workers:
            assert (await worker.get(blob_path(digest))).body == data
    await lingered()
    is_settled(root)


@pytest.mark.parametrize("step", MANIFEST_STEPS, ids=lambda step: step.rpartition(":")[2])
async def test_a_worker_killed_between_two_steps_of_a_manifest(tmp_path: Path, root: Path, step: str) -> None:
    """All of it or nothing: never a tag without its manifest, nor a manifest without its tag."""
    data = random_bytes(1000, 7)
    raw = manifest_of(data)
    path, headers = f"/v2/{NAME}/manifests/v1", {"Content-Type": IMAGE}
    async with mirrors(make_config(root, {}), 2) as workers:
        answer = await workers[0].ask("POST", f"{uploads_path()}?digest={digest_of(data)}", data=data)
        assert answer.status == 201
        async with victim(tmp_path, step) as url:
            await fails(url, "PUT", path, raw, **headers)
        there = 200 if step == MANIFEST_STEPS[-1] else 404
        by_digest = f"/v2/{NAME}/manifests/{digest_of(raw)}"
        for worker in workers:
            assert [(await worker.head(one)).status for one in (path, by_digest)] == [there] * 2
        assert kept(root) - {digest_of(data)} <= {digest_of(raw)}
        assert rows(root) == {digest_of(data)} | ({digest_of(raw)} if there == 200 else set())
        assert (await workers[1].ask("PUT", path, data=raw, headers=headers)).status == 201
        assert (await workers[0].get(path)).body == raw
    async with mirrors(make_config(root, {})):
        pass  # the worker that replaces the dead one tidies up
    is_settled(root)


# ---- several at the same thing ----


def at_once(*works: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time, in threads. Returns what they return."""
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> Any:
        barrier.wait(20)
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))


def test_two_clients_push_the_same_blob_and_the_same_tag(running: Service, root: Path) -> None:
    """Both are right; the tag is one of the two, and each manifest is there as it was sent."""
    for turn in range(15):
        data = random_bytes(300_000, 1000 + turn)
        raws = [manifest_of(data, note=f"{turn} {client}") for client in "ab"]
        post = f"{uploads_path()}?digest={digest_of(data)}"
        replies = at_once(*[functools.partial(ask, running, "POST", post, data)] * 2)
        assert [reply.status for reply in replies] == [201, 201]
        replies = at_once(*(lambda raw=raw: put_manifest(running, raw, "latest") for raw in raws))
        assert [reply.status for reply in replies] == [201, 201]
        assert {reply.headers["Docker-Content-Digest"] for reply in replies} == {digest_of(raw) for raw in raws}
        seen = {ask(running, "GET", f"/v2/{NAME}/manifests/latest").body for _ in range(8)}
        assert len(seen) == 1, "every worker says the same"
        assert seen <= set(raws)
        for raw in raws:
            assert ask(running, "GET", f"/v2/{NAME}/manifests/{digest_of(raw)}").body == raw
        moves = json.loads(ask(running, "GET", f"/v2/{NAME}/_mirror/tags/history?tag=latest&n=2").body)
        assert {digest_of(raw) for raw in raws} == {move["digest"] for move in next(iter(_lists(moves)))}
    is_settled(root)


def _lists(found: dict[str, Any]) -> list[list[dict[str, Any]]]:
    return [value for value in found.values() if isinstance(value, list)]


def test_one_session_sent_to_by_two_clients(running: Service, root: Path) -> None:
    """Each chunk is taken once, from whoever came first; the other is told where things stand."""
    data, step = random_bytes(MIB, 8), MIB // 8
    location = begin(running)
    for start in range(0, MIB, step):
        said = f"{start}-{start + step - 1}"
        chunk = data[start : start + step]
        replies = at_once(*[lambda c=chunk, s=said: ask(running, "PATCH", location, c, Content_Range=s)] * 3)
        assert sorted(reply.status for reply in replies) == [202, 416, 416]
        assert {reply.headers["Range"] for reply in replies} == {f"0-{start + step - 1}"}
    put = f"{location}?digest={digest_of(data)}"
    assert {reply.status for reply in at_once(*[lambda: ask(running, "PUT", put)] * 4)} == {201}
    assert ask(running, "GET", blob_path(digest_of(data))).body == data
    is_settled(root)


def test_a_push_races_a_delete_and_a_mount_of_the_same_digest(running: Service, root: Path) -> None:
    """What each was told is true afterwards, in every worker; the file is there exactly as long as anybody has it."""
    data = random_bytes(200_000, 9)
    digest, names = digest_of(data), [f"local/r{number}" for number in range(4)]
    for turn in range(40):
        first, second, third, fourth = names[turn % 4 :] + names[: turn % 4]
        assert ask(running, "POST", f"{uploads_path(first)}?digest={digest}", data).status == 201
        deleted, pushed, mounted, found = at_once(
            lambda name=first: ask(running, "DELETE", blob_path(digest, name)),
            lambda name=second: ask(running, "POST", f"{uploads_path(name)}?digest={digest}", data),
            lambda name=third, source=first: ask(running, "POST", f"{uploads_path(name)}?mount={digest}&from={source}"),
            lambda name=fourth: ask(running, "POST", f"{uploads_path(name)}?mount={digest}"),
        )
        assert (deleted.status, pushed.status) == (202, 201)
        assert {mounted.status, found.status} <= {201, 202}
        there = {first: False, second: True, third: mounted.status == 201, fourth: found.status == 201}
        for name, has in there.items():
            for _ in range(3):
                reply = ask(running, "GET", blob_path(digest, name))
                assert (reply.status, reply.body == data) == ((200, True) if has else (404, False)), (turn, name)
        for reply in (mounted, found):
            if reply.status == 202:
                assert ask(running, "DELETE", reply.headers["Location"]).status == 204
        is_settled(root)
        for reply in at_once(
            *(lambda name=name: ask(running, "DELETE", blob_path(digest, name)) for name, has in there.items() if has)
        ):
            assert reply.status == 202
        assert kept(root) == set()


# ---- many ----


class Client:
    """One client of many. acknowledged: what it was told is there, by digest."""

    def __init__(self, url: str, number: int, broken: bool) -> None:
        self.url = url
        self.number = number
        self.acknowledged: dict[str, bytes] = {}
        self.failed = 0
        self._broken = broken
        self._random = random.Random(number)

    async def run(self) -> None:
        size = self._random.choice([1, 1000, 50_000, 600_000, 1_500_000])
        data = random_bytes(size, 5000 + self.number // 2)  # every second one pushes what the one before does
        for _ in range(40):
            try:
                await self._push(data)
                return
            except (aiohttp.ClientError, ConnectionError, _Again):
                assert self._broken, "nothing breaks here"
                self.failed += 1
                await asyncio.sleep(0.05)
        raise AssertionError("never done")

    async def _push(self, data: bytes) -> None:
        digest = digest_of(data)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:

            async def ask(method: str, path: str, expected: int, sent: bytes = b"", **headers: str) -> Any:
                body = io.BytesIO(sent) if sent else None
                async with session.request(method, self.url + path, data=body, headers=headers) as response:
                    if response.status != expected and self._broken:
                        raise _Again
                    assert response.status == expected, await response.text()
                    return response.headers

            kind = self.number % 5
            if kind == 0:
                await ask("POST", f"{uploads_path()}?digest={digest}", 201, data)
            else:
                location = (await ask("POST", uploads_path(), 202))["Location"]
                if kind == 1:
                    await ask("PUT", f"{location}?digest={digest}", 201, data)
                elif kind == 4 and len(data) > 1:  # one that is wrong first, and may not be stored
                    await ask("PUT", f"{location}?digest={digest}", 400, data[:-1])
                    location = (await ask("POST", uploads_path(), 202))["Location"]
                    await ask("PATCH", location, 202, data)
                    await ask("PUT", f"{location}?digest={digest}", 201)
                else:
                    step = max(1, len(data) // 4)
                    for start in range(0, len(data), step):
                        part = data[start : start + step]
                        said = {"Content-Range": f"{start}-{start + len(part) - 1}"} if kind == 2 else {}
                        await ask("PATCH", location, 202, part, **said)
                    await ask("PUT", f"{location}?digest={digest}", 201)
            self.acknowledged[digest] = data


class _Again(Exception):
    """Something happened to the worker, not to the test."""


async def run_clients(running: Service, *, broken: bool, during: Callable[[], None] = lambda: None) -> list[Client]:
    clients = [Client(running.url, number, broken) for number in range(200)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await until(lambda: sum(task.done() for task in tasks) > 20, "they get somewhere", 60)
    await asyncio.to_thread(during)
    await asyncio.gather(*tasks)
    return clients


def test_200_uploads_in_parallel(running: Service, root: Path) -> None:
    clients = asyncio.run(run_clients(running, broken=False))
    acknowledged = {digest: data for client in clients for digest, data in client.acknowledged.items()}
    assert len(acknowledged) >= 95
    assert rows(root) == set(acknowledged)
    is_settled(root)
    for digest, data in acknowledged.items():
        assert ask(running, "GET", blob_path(digest)).body == data


def test_200_uploads_in_parallel_while_workers_die(tmp_path: Path, root: Path) -> None:
    """Sessions of requests that died with their worker are all that is left, and they expire."""
    with service(config_of(tmp_path, push={"session_expires": "6s"})) as running:

        def kill() -> None:
            for _ in range(3):
                victim = wait_until(
                    lambda: next((pid for pid in running.workers() if _writes(pid)), None), "somebody is at it"
                )
                os.kill(victim, signal.SIGKILL)

        clients = asyncio.run(run_clients(running, broken=True, during=kill))
        acknowledged = {digest: data for client in clients for digest, data in client.acknowledged.items()}
        assert sum(client.failed for client in clients) > 0, "somebody noticed"
        assert all(client.acknowledged for client in clients)
        assert rows(root) >= set(acknowledged)
        for digest, data in acknowledged.items():
            assert ask(running, "GET", blob_path(digest)).body == data
        assert rows(root) <= kept(root)
        wait_until(lambda: left(root) == [], "the rest expires", 40)
    assert rows(root) == set(acknowledged), "who got no answer tried again until it was there"
    is_settled(root)


def _writes(pid: int) -> bool:
    """Say whether a process has a session's file open."""
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if "/ingest/uploads/" in os.readlink(fd):
                return True
    return False


# ---- bounds ----


def test_a_large_upload_takes_no_memory(tmp_path: Path, root: Path) -> None:
    """However large it is, and whether it arrives in one request or is hashed again by a worker that did not see it."""
    size = 256 * MIB
    block = random_bytes(MIB, 10)
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(block)

    def send(running: Service, path: str) -> int:
        host, _, port = running.netloc.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            connection.putrequest("POST" if path.startswith("/") and "?digest" in path else "PATCH", path)
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            for _ in range(size // MIB):
                connection.send(block)
            return connection.getresponse().status
        finally:
            connection.close()

    config = config_of(tmp_path, workers=1)
    with service(config) as first:
        (worker,) = first.workers()
        for number in range(20):  # what it needs in any case
            data = random_bytes(MIB, 20 + number)
            assert ask(first, "POST", f"{uploads_path('local/warm')}?digest={digest_of(data)}", data).status == 201
        before = _memory(worker, "VmRSS")
        assert send(first, f"{uploads_path()}?digest=sha256:{digest.hexdigest()}") == 201
        assert _memory(worker, "VmHWM") - before < 30 * MIB
        location = begin(first)
        assert send(first, location) == 202
    with service(config) as second:
        (worker,) = second.workers()
        before = _memory(worker, "VmRSS")
        assert ask(second, "PUT", f"{location}?digest=sha256:{digest.hexdigest()}").status == 201
        assert _memory(worker, "VmHWM") - before < 30 * MIB


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let the service find its root on a file system of its own. Returns its size in bytes."""
    size = 24 * MIB
    mount = f"mount -t tmpfs -o size={size} none {tmp_path}/root"
    (tmp_path / "root").mkdir()
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare")
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    wrapper = tmp_path / "on-a-small-disk"
    wrapper.write_text(f'#!/bin/sh\nexec unshare -rm sh -c \'{mount} && exec "$0" "$@"\' {sys.executable} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("tests.service.sys.executable", str(wrapper))
    return size


def test_a_disk_that_is_full(tmp_path: Path, small_disk: int) -> None:
    """Everything answers by saying so; where sessions stand is right; with room again everything goes on."""
    data = random_bytes(small_disk + 8 * MIB, 11)
    digest = digest_of(data)
    with service(config_of(tmp_path, workers=2)) as running:
        root = Path(f"/proc/{running.pid}/root") / str(tmp_path / "root").lstrip("/")
        small = random_bytes(1000, 12)
        assert ask(running, "POST", f"{uploads_path()}?digest={digest_of(small)}", small).status == 201
        for path in (f"{uploads_path()}?digest={digest}", None):
            location = path or begin(running)
            reply = _send_all(running, "POST" if path else "PATCH", location, data)
            assert reply.status == 507
            assert json.loads(reply.body)["errors"][0]["code"] == "UNAVAILABLE"
        at = offset(running, location)
        assert MIB < at < small_disk
        (session,) = root.glob("ingest/uploads/*")
        assert session.read_bytes() == data[:at]
        while at > 0:  # fill the rest, and then there is no room for rows
            reply = _send_all(running, "PATCH", location, data[at : at + 4096])
            if reply.status != 202:
                break
            at += 4096
        assert reply.status == 507
        assert offset(running, location) == at
        assert ask(running, "GET", blob_path(digest_of(small))).body == small, "what is there is served"
        part = digest_of(data[:at])
        closed = ask(running, "PUT", f"{location}?digest={part}")
        print("CLOSED", closed.status); assert closed.status in (201, 507)  # a row may find room in a page that is there
        if closed.status == 507:
            assert ask(running, "HEAD", blob_path(part)).status == 404
            assert offset(running, location) == at
            assert ask(running, "DELETE", location).status == 204
        else:
            assert ask(running, "DELETE", blob_path(part)).status == 202
        wait_until(lambda: not list(root.glob("ingest/uploads/*")), "nothing is left")
        after = random_bytes(8 * MIB, 13)
        assert ask(running, "POST", f"{uploads_path()}?digest={digest_of(after)}", after).status == 201
        assert ask(running, "GET", blob_path(digest_of(after))).body == after
        copy = tmp_path / "copy"  # a database in another's file system cannot be opened where it is
        shutil.copytree(root, copy)
    is_settled(copy)


def _send_all(running: Service, method: str, path: str, data: bytes) -> Reply:
    """Send a body whose end the other side may not want. Returns its answer all the same."""
    host, _, port = running.netloc.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.putrequest(method, path)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), MIB):
                connection.send(data[start : start + MIB])
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()
