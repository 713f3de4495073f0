"""Thirty images pulled ahead of time by real processes that are killed: nothing is fetched twice, nothing is missing.

What counts is what the upstream sent. A request that was under way when its asker was killed may be made once more,
from where the disk had got to; all others are made once.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.fake_upstream import FakeUpstream, Gate, Image, Request, random_bytes, start_in_thread
from tests.ports import free_port
from tests.service import Service, service, wait_until, write_config

MIB = 1024 * 1024
UP = "up.test"
RATE = 4 * MIB
"""Bytes a second of each of the upstream's bodies."""
ON_ITS_WAY = MIB
"""Most bytes of a body that the upstream counts as sent and a killed process had not written: what sockets hold, and
a quarter of a second at that rate."""


@dataclass(frozen=True, slots=True)
class Kill:
    """When somebody was killed, and what was kept by then: bytes and the row that lets them be read."""

    at: float
    kept: frozenset[str]

    @classmethod
    def of(cls, root: Path) -> Kill:
        """Look at the root of somebody who was killed just now."""
        files = {f"sha256:{path.name}" for path in (root / "cache" / "sha256").iterdir()}
        with closing(sqlite3.connect(root / "metadata.db")) as database:
            rows = {digest for (digest,) in database.execute("SELECT digest FROM link UNION SELECT digest FROM public")}
        return cls(time.monotonic(), frozenset(files & rows))


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread(rate=RATE, sndbuf=65536) as fake:
        yield fake


class Cluster:
    """What a cluster runs: 30 images of 6 repositories, on 4 bases of 3 MiB that all of them share."""

    def __init__(self, hub: FakeUpstream, folder: Path) -> None:
        self.hub = hub
        self.images: list[Image] = []
        bases = [random_bytes(3 * MIB, 100 + at) for at in range(4)]
        middles = [random_bytes(150_000, 200 + at) for at in range(6)]
        for at in range(30):
            layers = [bases[at % 4], middles[at % 6], random_bytes(20_000 + at, 300 + at)]
            self.images.append(hub.add_image(f"team/app{at % 6}", f"v{at}", layers=layers))
        self.sizes = {digest: len(data) for image in self.images for digest, data in image.blobs.items()}
        self.total = sum(self.sizes.values())
        self.list = folder / "images"
        self.list.write_text("\n".join(f"{UP}/{image.repo}:{image.tag}" for image in self.images) + "\n")

    def sent(self) -> int:
        return self.hub.bytes_sent("/blobs/")

    def wait_for(self, share: float, process: subprocess.Popen[str]) -> bool:
        """Wait until a share of all bytes was sent; False when the process ended before."""
        wait_until(lambda: self.sent() >= share * self.total or process.poll() is not None, "further", 60)
        return process.poll() is None

    def check_fetched_once(self, kills: list[Kill]) -> None:
        """Hold the upstream's log against the rule at the top."""
        repeated = []
        for digest, requests in self._by_digest("/manifests/sha256:").items():
            assert {request.method for request in requests} == {"GET"}, digest
            repeated += self._needlessly(digest, requests, kills)
        for digest, requests in self._by_digest("/blobs/").items():
            size, reached = self.sizes[digest], 0
            for request in requests:
                start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                assert reached - start <= ON_ITS_WAY, (
                    f"{digest} of {size} bytes was at {reached}, and asked from {start}"
                )
                reached = start + request.sent
            assert reached == size, digest
            repeated += self._needlessly(digest, requests, kills)
        assert [str(request) for request in repeated] == []
        again = self.sent() - self.total
        print(f"{again} of {self.total} bytes were sent again after {len(kills)} kills")
        assert again <= len(kills) * 4 * ON_ITS_WAY

    def _by_digest(self, part: str) -> dict[str, list[Request]]:
        found: defaultdict[str, list[Request]] = defaultdict(list)
        for request in self.hub.requests("GET", part):
            found[request.path.rpartition("/")[2]].append(request)
        assert len(found) == (30 if "manifests" in part else len(self.sizes))
        return found

    def _needlessly(self, digest: str, requests: list[Request], kills: list[Kill]) -> list[Request]:
        """Return the requests that were made again although nobody was killed before what they brought was kept."""
        return [
            request
            for request, again in pairwise(requests)
            if not any(request.at <= kill.at <= again.at and digest not in kill.kept for kill in kills)
        ]

    def check_all_there(self, config: Path) -> None:
        """Pull everything from the mirror, with the upstream off."""
        self.hub.call(self.hub.stop())
        self.hub.clear_log()
        with service(config) as running:
            for image in self.images:
                base = f"/v2/{UP}/{image.repo}"
                assert running.get(f"{base}/manifests/{image.tag}") == (200, image.raw)
                assert running.get(f"{base}/manifests/{image.digest}") == (200, image.raw)
                for digest, data in image.blobs.items():
                    assert running.get(f"{base}/blobs/{digest}") == (200, data)


def start(*arguments: str | Path, log: Path | None = None) -> subprocess.Popen[str]:
    """Start ``mirror pull``; its output goes to a file, or through pipes."""
    output: Any = log.open("a") if log else subprocess.PIPE
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit it ignored
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "mirror", "pull", *map(str, arguments)], stdout=output, stderr=output, text=True
        )
    finally:
        signal.signal(signal.SIGINT, ours)
        if log:
            output.close()


@contextmanager
def pulling(*arguments: str | Path, log: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    process = start(*arguments, log=log)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


POINTS = (0.1, 0.5, 0.9)
"""Shares of all bytes at which somebody is killed."""


def test_into_a_root_killed_again_and_again(tmp_path: Path, hub: FakeUpstream) -> None:
    cluster = Cluster(hub, tmp_path)
    config = write_config(tmp_path, {UP: {"url": hub.url}}, workers=2)
    log, kills = tmp_path / "pull.log", []
    for point in POINTS:
        with pulling("--from", cluster.list, "--config", config, log=log) as process:
            assert cluster.wait_for(point, process), log.read_text()
            process.kill()
            process.wait()
            kills.append(Kill.of(tmp_path / "root"))
    with pulling("--from", cluster.list, "--config", config, log=log) as process:
        assert process.wait(60) == 0, log.read_text()
    cluster.check_fetched_once(kills)
    cluster.check_all_there(config)


def test_through_a_service_the_puller_killed_again_and_again(tmp_path: Path, hub: FakeUpstream) -> None:
    """The downloads are the service's: here nothing is sent twice at all."""
    cluster = Cluster(hub, tmp_path)
    config = write_config(tmp_path, {UP: {"url": hub.url}}, workers=4)
    log = tmp_path / "pull.log"
    with service(config) as running:
        for point in POINTS:
            with pulling("--from", cluster.list, "--url", running.url, log=log) as process:
                assert cluster.wait_for(point, process), log.read_text()
        with pulling("--from", cluster.list, "--url", running.url, log=log) as process:
            assert process.wait(60) == 0, log.read_text()
    cluster.check_fetched_once([])
    assert cluster.sent() == cluster.total
    cluster.check_all_there(config)


def test_through_a_service_that_is_killed_again_and_again(tmp_path: Path, hub: FakeUpstream) -> None:
    """The puller goes on by itself when the service is back soon, and is given again when it is not."""
    cluster = Cluster(hub, tmp_path)
    listen = f"127.0.0.1:{free_port()}"
    config = write_config(tmp_path, {UP: {"url": hub.url}}, workers=4, listen=listen)
    log, kills = tmp_path / "pull.log", []
    arguments = ("--from", cluster.list, "--url", f"http://{listen}")
    with pulling(*arguments, log=log) as process:
        assert process.wait(60) == 1, "nobody listens yet"
    running = Service(config, tmp_path / "mirror.log")
    process = start(*arguments, log=log)
    try:
        for point in POINTS:
            while not cluster.wait_for(point, process):
                process = _once_more(process, arguments, log)
            running.kill()
            kills.append(Kill.of(tmp_path / "root"))
            running = Service(config, tmp_path / "mirror.log")
        while process.wait(60) != 0:
            process = _once_more(process, arguments, log)
    finally:
        process.kill()
        process.wait()
        running.stop()
    cluster.check_fetched_once(kills)
    cluster.check_all_there(config)


def _once_more(process: subprocess.Popen[str], arguments: tuple[str | Path, ...], log: Path) -> subprocess.Popen[str]:
    """Give the command again that ended as its mirror was gone for too long."""
    assert process.returncode == 1, log.read_text()
    assert "does not answer any more" in log.read_text()
    return start(*arguments, log=log)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"])
def test_interrupted_it_says_what_is_done_and_loses_nothing(
    tmp_path: Path, hub: FakeUpstream, number: int, code: int
) -> None:
    cluster = Cluster(hub, tmp_path)
    config, gate = write_config(tmp_path, {UP: {"url": hub.url}}, workers=2), Gate()
    hub.fault(cluster.images[-1].layers[-1], times=1, gate_headers=gate)  # so that it does not get to its end
    with pulling("--from", cluster.list, "--config", config, "--json") as process:
        assert cluster.wait_for(0.6, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    stopped = Kill.of(tmp_path / "root")
    gate.open()
    assert process.returncode == code, stderr
    assert stderr.splitlines()[-1] == "mirror: interrupted; nothing is lost, the same command goes on from here"
    assert "Traceback" not in stderr
    found = json.loads(stdout)
    assert found["interrupted"] is True
    done = [one["reference"] for one in found["images"]]
    assert sorted(done + found["remaining"]) == sorted(cluster.list.read_text().split())
    assert done
    assert found["remaining"]
    with pulling("--from", cluster.list, "--config", config) as process:
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert stdout.startswith("30 images: ")
    cluster.check_fetched_once([stopped])
    cluster.check_all_there(config)


def test_two_pulls_of_one_root_at_once(tmp_path: Path, hub: FakeUpstream) -> None:
    """The second finds nobody to ask, though another mirror listens where the service would: it says what to do."""
    image = hub.add_image("team/app", "1", [MIB])
    gate = Gate()
    hub.fault(image.layers[0], gate=gate, gate_at=1000)
    other = tmp_path / "other"
    other.mkdir()
    with service(write_config(other, {UP: {"url": hub.url}}, workers=1)) as stranger:
        config = write_config(tmp_path, {UP: {"url": hub.url}}, workers=2, listen=stranger.netloc)
        with pulling(f"{UP}/team/app:1", "--config", config) as first:
            gate.wait_reached()
            with pulling(f"{UP}/team/app:1", "--config", config) as second:
                _, said = second.communicate(timeout=60)
            assert second.returncode == 1
            assert said == (
                f"mirror: the folder {tmp_path / 'root'} is in use by pid {first.pid} ({Path(sys.executable).name} -m "
                f"mirror pull {UP}/team/app:1), which cannot be asked: {stranger.url} is another mirror. If that is "
                "another pull, wait until it is done; if it is a service, say where it listens by --url\n"
            )
            gate.open()
            _, said = first.communicate(timeout=60)
            assert first.returncode == 0, said
    assert hub.count("GET", image.layers[0]) == 1


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_root_that_is_served_is_pulled_into_through_its_service(
    tmp_path: Path, hub: FakeUpstream, secure: bool
) -> None:
    image = hub.add_image("team/app", "1")
    port = free_port()
    settings: dict[str, Any] = {"listen": f"0.0.0.0:{port}"}
    if secure:
        issued = trustme.CA().issue_cert("mirror.example")
        issued.private_key_pem.write_to_path(tmp_path / "key")
        for pem in issued.cert_chain_pems:
            pem.write_to_path(tmp_path / "crt", append=True)
        settings["tls"] = {"certificate": str(tmp_path / "crt"), "key": str(tmp_path / "key")}
    config = write_config(tmp_path, {UP: {"url": hub.url}}, workers=2, **settings)
    with service(config), pulling(f"{UP}/team/app:1", "--config", config) as process:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    url = f"{'https' if secure else 'http'}://127.0.0.1:{port}"
    assert stderr.splitlines()[0] == f"pulling through {url}, which serves {tmp_path / 'root'}"
    assert hub.count("GET", image.layers[0]) == 1


def test_on_a_terminal_there_is_a_bar(tmp_path: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("team/app", "1", [2 * MIB])
    config = write_config(tmp_path, {UP: {"url": hub.url}})
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side is closed
                return
            if not piece:
                return
            shown.extend(piece)

    reader = threading.Thread(target=read)
    command = [sys.executable, "-m", "mirror", "pull", f"{UP}/team/app:1", "--config", str(config)]
    try:
        process = subprocess.Popen(
            command, stderr=theirs, stdout=subprocess.PIPE, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}
        )
        os.close(theirs)
        reader.start()
        stdout, _ = process.communicate(timeout=60)
        reader.join(10)
    finally:
        os.close(ours)
    assert process.returncode == 0
    assert stdout == b"1 image: 2.0 MiB fetched, 0 B already here\n"
    text = shown.decode()
    assert "0/1 images" in text
    assert re.search(r"\d\.\d/2\.0 MiB", text)
    assert f"{UP}/team/app:1 {image.digest} 2.0 MiB fetched, 0 B already here" in text
