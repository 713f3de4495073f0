"""Reload of the real service: what it serves changes, and what it is fetching goes on."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_upstream import FakeUpstream, Gate, start_in_thread
from tests.service import Service, service, wait_until, write_config

MIB = 1024 * 1024
SIZE = 8 * MIB
NAME = "team/app"
PROJECT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


def reload(running: Service, expected: str) -> dict[str, Any]:
    """Have the configuration read again; return the line that says what came of it."""
    before = len(running.lines())
    os.kill(running.pid, signal.SIGHUP)

    def found() -> dict[str, Any] | None:
        return next((line for line in running.lines()[before:] if line.get("message", "").startswith(expected)), None)

    line: dict[str, Any] = wait_until(found, expected)
    return line


class Pull(threading.Thread):
    """Pulls a blob in the background. begun: its answer has begun."""

    def __init__(self, running: Service, path: str) -> None:
        super().__init__()
        host, _, port = running.netloc.partition(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self._path = path
        self.body = b""
        self.begun = threading.Event()
        self.start()

    def run(self) -> None:
        try:
            self._connection.request("GET", self._path)
            response = self._connection.getresponse()
            self.begun.set()
            self.body = response.read()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # it left
        finally:
            self._connection.close()

    def leave(self) -> None:
        assert self._connection.sock is not None
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(30)


def test_downloads_go_on_led_by_an_old_worker_and_followed_by_new_ones(tmp_path: Path, hub: FakeUpstream) -> None:
    """Of two blobs: one that its first client stays with, one that this client leaves. Each is fetched once."""
    gates = [Gate(), Gate()]
    digests = [hub.add_random_blob(NAME, SIZE, seed=at) for at in (1, 2)]
    for digest, gate in zip(digests, gates, strict=True):
        hub.fault(digest, times=1, gate=gate, gate_at=SIZE // 2)
    paths = [f"/v2/{NAME}/blobs/{digest}" for digest in digests]
    config = write_config(tmp_path, {"up": {"url": hub.url}}, workers=2)
    with service(config) as running:
        before = set(running.workers())
        first = [Pull(running, path) for path in paths]
        for gate in gates:
            gate.wait_reached()
        leaders = [wait_until(lambda digest=digest: running.leader_of(digest), "somebody leads") for digest in digests]
        assert set(leaders) <= before
        assert running.get(f"/v2/{NAME}/tags/list?ns=other")[0] == 404

        write_config(tmp_path, {"up": {"url": hub.url}, "other": {"url": hub.url}}, workers=2)
        reload(running, "the configuration is reloaded")
        assert running.get(f"/v2/{NAME}/tags/list?ns=other")[0] == 200
        second = [Pull(running, path) for path in paths]
        for pull in second:
            assert pull.begun.wait(20), "it has joined"
        first[1].leave()
        wait_until(lambda: len(running.workers()) == 2 + len(set(leaders)), "workers that lead nothing are gone")
        assert [running.leader_of(digest) for digest in digests] == leaders
        for gate in gates:
            gate.open()
        for pull in (first[0], *second):
            pull.join(60)
        for pull, digest in ((first[0], digests[0]), *zip(second, digests, strict=True)):
            assert f"sha256:{hashlib.sha256(pull.body).hexdigest()}" == digest
        assert [hub.count("GET", digest) for digest in digests] == [1, 1]
        wait_until(lambda: len(running.workers()) == 2, "old workers end")
        assert not set(running.workers()) & before


def test_users_file_that_cannot_be_used_is_refused(tmp_path: Path, hub: FakeUpstream) -> None:
    hub.add_image(NAME, "1")
    users = tmp_path / "users"
    users.write_text("somebody:{SHA}notbcrypt\n")
    with service(write_config(tmp_path, {"up": {"url": hub.url}}, workers=1)) as running:
        write_config(tmp_path, {"up": {"url": hub.url}}, workers=1, access={"htpasswd_file": str(users)})
        line = reload(running, "the configuration is not reloaded")
        assert line["level"] == "error"
        assert f"access.htpasswd_file: {users} has no line that can be used" in line["message"]
        assert "notbcrypt" not in running.log.read_text()
        assert running.get(f"/v2/{NAME}/manifests/1")[0] == 200
        text = running.get("/metrics")[1].decode()
        assert "\nmirror_config_last_reload_successful 0.0" in text
        assert '\nmirror_config_reloads_total{result="failure"} 1.0' in text


HELD = """
import sys, time
from pathlib import Path
import mirror.server
from mirror.cli import main

reached, gate = map(Path, sys.argv[1:3])

def held(*arguments, real=mirror.server.serve, **more):
    reached.touch()
    while not gate.exists():
        time.sleep(0.01)
    return real(*arguments, **more)

mirror.server.serve = held
main(sys.argv[3:])
"""
"""The command, held where it has read its configuration and does not hear signals yet."""


def test_what_comes_while_it_starts_is_done_when_it_has_started(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"hub.example": {"url": "http://127.0.0.1:9"}}, workers=1)
    log, reached, gate = tmp_path / "log", tmp_path / "reached", tmp_path / "gate"
    command = [sys.executable, "-c", HELD, str(reached), str(gate), "serve", "--config", str(config)]
    with log.open("wb") as output:
        starting = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output)
    try:
        wait_until(lambda: starting.poll() is not None or reached.exists(), "it has begun")
        assert starting.poll() is None, log.read_text()
        assert waits(starting.pid, signal.SIGHUP)
        starting.send_signal(signal.SIGHUP)
        gate.touch()
        wait_until(lambda: starting.poll() is not None or "configuration is reloaded" in log.read_text(), "a reload")
    finally:
        starting.terminate()
        code = starting.wait(20)
    assert code == 0, log.read_text()


def waits(pid: int, number: int) -> bool:
    """Say whether a signal would wait, and not reach the process."""
    [line] = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("SigBlk:")]
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_what_is_being_pushed_when_it_stops_arrives_whole(tmp_path: Path) -> None:
    config = write_config(tmp_path, {"hub.example": {"url": "http://127.0.0.1:9"}}, workers=1)
    data = os.urandom(MIB)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with service(config) as running:
        host, _, port = running.netloc.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.putrequest("POST", f"/v2/local/app/blobs/uploads/?digest={digest}")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        connection.send(data[: MIB // 2])
        uploads = tmp_path / "root/ingest/uploads"
        wait_until(lambda: any(one.stat().st_size for one in uploads.iterdir()), "it has begun to arrive")
        os.kill(running.pid, signal.SIGTERM)
        wait_until(lambda: any(line.get("message", "").startswith("draining") for line in running.lines()), "a drain")
        connection.send(data[MIB // 2 :])
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, digest), answer.read()
        connection.close()
        assert running.ended() == 0
    assert not [line for line in running.lines() if line.get("level") == "warning"]
