"""Workers that stop for a while in the middle of anything, as a machine that swaps or a debugger makes them.

They still have their leases, and go on with what they were at as if nothing had been: nobody may have taken it over.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_upstream import random_bytes
from tests.service import Service, service, wait_until, write_config

IMAGE = "application/vnd.oci.image.manifest.v1+json"
NAMES = ("local/a", "local/b")
DONE = (("POST", 201), ("PUT", 201), ("DELETE", 202), ("GET", 200))
"""What has to have been done several times."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Service]:
    with service(write_config(tmp_path, {"up": {"url": "http://127.0.0.1:9"}})) as started:
        yield started


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def ask(
    running: Service, method: str, path: str, body: bytes | None = None, timeout: float = 60, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Ask over a connection of its own, which any worker may get."""
    host, _, port = running.netloc.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=given)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def ask_others(running: Service, method: str, path: str) -> tuple[int, http.client.HTTPMessage]:
    """Ask over so many connections that a worker which runs gets one of them; return the first answer."""
    answers: list[tuple[int, http.client.HTTPMessage]] = []

    def one() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answers.append(ask(running, method, path)[:2])

    for _ in range(12):
        threading.Thread(target=one, daemon=True).start()
    wait_until(lambda: answers, "somebody answers")
    return answers[0]


def worker_with(running: Service, session: str) -> int | None:
    """Return the worker that has a session's file open."""
    for pid in running.workers():
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if session in os.readlink(fd):
                    return pid
    return None


def stands_still(pid: int) -> bool:
    states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def test_a_worker_that_stands_still_keeps_its_session(running: Service, tmp_path: Path) -> None:
    """Nobody takes it over; what others are told of it meanwhile stays true when it goes on."""
    data = random_bytes(3_000_000, 1)
    status, headers, _ = ask(running, "POST", f"/v2/{NAMES[0]}/blobs/uploads/")
    assert status == 202
    location = str(headers["Location"])
    session = location.rpartition("/")[2]
    (file,) = (tmp_path / "root/ingest/uploads").glob(f"{session}.*")
    host, _, port = running.netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data[:2_000_000])
        wait_until(lambda: file.stat().st_size >= 1_000_000, "it is being written")
        pid = wait_until(lambda: worker_with(running, session), "somebody has it")
        os.kill(pid, signal.SIGSTOP)
        try:
            wait_until(lambda: stands_still(pid), "all its threads stopped")
            size = file.stat().st_size
            status, headers = ask_others(running, "GET", location)
            assert (status, headers["Range"]) == (204, f"0-{size - 1}")
            assert file.stat().st_size == size, "nobody writes to it"
        finally:
            os.kill(pid, signal.SIGCONT)
        with contextlib.suppress(OSError):  # it may have given way to those who asked
            connection.sendall(data[2_000_000:])
            connection.recv(4096)
    status, headers, _ = ask(running, "GET", location)
    at = int(headers["Range"].partition("-")[2]) + 1
    assert at >= size
    span = f"{at}-{len(data) - 1}"
    if at < len(data):
        assert ask(running, "PATCH", location, data[at:], Content_Range=span)[0] == 202
    status, _, body = ask(running, "PUT", f"{location}?digest={digest_of(data)}")
    assert status == 201, body
    assert ask(running, "GET", f"/v2/{NAMES[0]}/blobs/{digest_of(data)}")[2] == data


def test_workers_that_stand_still_in_the_middle_of_anything(running: Service, tmp_path: Path) -> None:
    """What was acknowledged is there and right, and nothing else is, wherever they stopped."""
    seed = 4
    blobs = [random_bytes(size, size) for size in (20, 5_000, 90_000, 400_000)]
    images = [image_of(blobs[n], blobs[n + 1]) for n in range(3)]
    by_digest = {digest_of(data): data for data in (*blobs, *images)}
    begun = time.monotonic()
    seen: Counter[tuple[str, int]] = Counter()
    wrong: list[object] = []

    def over() -> bool:
        """Say whether enough was done, which takes a busy machine longer; 12 s at least."""
        took = time.monotonic() - begun
        return took > 12 and (all(seen[one] > 10 for one in DONE) or took > 120)

    def client(number: int) -> None:
        rng = random.Random(seed + number)
        while not over():
            name, blob, image = rng.choice(NAMES), rng.choice(blobs), rng.choice(images)
            uploads, target = f"/v2/{name}/blobs/uploads/", rng.choice(["v1", "v2", digest_of(image)])
            asked: tuple[str, str, bytes | None]
            match rng.randrange(6):
                case 0:
                    asked = ("POST", f"{uploads}?digest={digest_of(blob)}", blob)
                case 1:
                    asked = ("POST", f"{uploads}?mount={digest_of(blob)}&from={rng.choice(NAMES)}", None)
                case 2:
                    asked = ("DELETE", f"/v2/{name}/blobs/{digest_of(blob)}", None)
                case 3:
                    asked = ("PUT", f"/v2/{name}/manifests/{target}", image)
                case 4:
                    asked = ("DELETE", f"/v2/{name}/manifests/{target}", None)
                case _:
                    path = f"manifests/{target}" if rng.random() < 0.5 else f"blobs/{digest_of(blob)}"
                    asked = ("GET", f"/v2/{name}/{path}", None)
            status, answered, body = ask(running, *asked, Content_Type=IMAGE)
            seen[asked[0], status] += 1
            if status >= 500 or (
                asked[0] == "GET" and status == 200 and by_digest[answered["Docker-Content-Digest"]] != body
            ):
                wrong.append((asked[:2], status, body[:200]))

    def stop_and_go() -> None:
        rng = random.Random(seed)
        while not over():
            pid = rng.choice(running.workers())
            os.kill(pid, signal.SIGSTOP)
            time.sleep(rng.uniform(0.01, 0.8))
            os.kill(pid, signal.SIGCONT)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    threads.append(threading.Thread(target=stop_and_go))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    for done in DONE:
        assert seen[done] > 10, seen
    check(running, tmp_path / "root", by_digest)


def check(running: Service, root: Path, by_digest: dict[str, bytes]) -> None:
    """Make sure that every row has its file, every file a row, and every tag its manifest."""
    with contextlib.closing(sqlite3.connect(root / "metadata.db")) as database:
        links = database.execute("SELECT repository, digest FROM link").fetchall()
        pushed = database.execute("SELECT repository, digest FROM pushed").fetchall()
        tags = database.execute("SELECT repository, tag, digest FROM tag").fetchall()
    files = {f"sha256:{file.name}": file.read_bytes() for file in (root / "blobs/sha256").iterdir()}
    assert files == {digest: by_digest[digest] for _, digest in (*links, *pushed)}
    for key, digest in links:
        assert ask(running, "GET", f"/v2/{key[1:]}/blobs/{digest}")[2] == by_digest[digest]
    for key, tag, digest in tags:
        assert (key, digest) in pushed
        assert ask(running, "GET", f"/v2/{key[1:]}/manifests/{tag}")[2] == by_digest[digest]
    assert os.listdir(root / "ingest/sha256") == []


def image_of(*blobs: bytes) -> bytes:
    described = [
        {"mediaType": "application/octet-stream", "digest": digest_of(blob), "size": len(blob)} for blob in blobs
    ]
    body = {"schemaVersion": 2, "mediaType": IMAGE, "config": described[0], "layers": described[1:]}
    return json.dumps(body).encode()
