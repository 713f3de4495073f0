"""Metrics of four workers, held against the access log they write: the same requests and bytes, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.api.paths import parse_path
from tests.catalogue import documented
from tests.fake_upstream import FakeUpstream, digest_of, start_in_thread
from tests.ports import free_port
from tests.service import Service, service, wait_until, write_config

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
ENDPOINTS = {
    "Root": "root",
    "ManifestPath": "manifests",
    "BlobPath": "blobs",
    "TagsPath": "tags",
    "UploadsPath": "uploads",
    "SessionPath": "uploads",
    "ReferrersPath": "referrers",
    "HistoryPath": "history",
    "DiscoverPath": "discover",
}
MACHINES = ("healthz", "readyz", "metrics")
Key = tuple[str, ...]


@pytest.fixture
def hub() -> Iterator[FakeUpstream]:
    with start_in_thread() as fake:
        yield fake


@pytest.fixture
def running(tmp_path: Path, hub: FakeUpstream) -> Iterator[Service]:
    upstreams = {"hub": {"url": hub.url, "retries": 0, "breaker_window": 0, "tags": {"fresh_for": "0s"}}}
    with service(write_config(tmp_path, upstreams)) as one:
        yield one


def metrics(one: Service) -> dict[str, dict[Key, float]]:
    """Return what any worker says: sample → label values by label name → number."""
    found: dict[str, dict[Key, float]] = {}
    for family in text_string_to_metric_families(one.get("/metrics")[1].decode()):
        for sample in family.samples:
            labels = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def lines(one: Service) -> list[dict[str, Any]]:
    """Return the lines of requests."""
    return [line for line in one.lines() if "method" in line and "status" in line]


def endpoint_of(path: str) -> str:
    try:
        parsed = parse_path(path.partition("?")[0])
    except Exception:
        return "unknown"
    return ENDPOINTS.get(type(parsed).__name__) or parsed.what  # type: ignore[attr-defined,no-any-return]


def class_of(line: Mapping[str, Any]) -> str:
    return line["method"] if line["method"] in METHODS else "other"


def check_agreement(one: Service, requests: int) -> dict[str, dict[Key, float]]:
    """Make sure that metrics and access log say the same of so many requests; return the metrics."""
    wait_until(lambda: len(lines(one)) >= requests, f"{requests} lines; there are {len(lines(one))}")
    said, found = lines(one), metrics(one)
    assert len(said) == requests

    asked = Counter((endpoint_of(line["path"]), class_of(line), str(line["status"])) for line in said)
    assert {k: n for k, n in found["mirror_requests_total"].items() if k[0] not in MACHINES} == asked
    durations = Counter((endpoint_of(line["path"]), class_of(line)) for line in said)
    assert found["mirror_request_duration_seconds_count"] == durations
    begun = Counter((endpoint_of(line["path"]), class_of(line)) for line in said if line["status"] != 499)
    assert found["mirror_request_first_byte_seconds_count"] == begun
    # Their lines are rounded, and made a moment later.
    seconds = sum(line["ms"] for line in said) / 1000
    assert sum(found["mirror_request_duration_seconds_sum"].values()) == pytest.approx(seconds, abs=0.02 * len(said))

    served: Counter[Key] = Counter()
    for line in said:
        if line["bytes"]:
            served["blob" if endpoint_of(line["path"]) == "blobs" else "manifest",] += line["bytes"]
    assert found["mirror_served_bytes_total"] == served
    assert found["mirror_received_bytes_total"][()] == sum(line.get("received", 0) for line in said)

    answered = [line for line in said if "cache" in line and endpoint_of(line["path"]) in ("blobs", "manifests")]
    hits = [line for line in answered if "hit" in line["cache"].split("; ")]
    assert sum(found["mirror_cache_hits_total"].values()) == len(hits) > 0
    assert sum(found["mirror_cache_misses_total"].values()) == len(answered) - len(hits) > 0
    stale = [line for line in hits if "detail=stale" in line["cache"]]
    assert sum(found.get("mirror_cache_stale_total", {}).values()) == len(stale)
    joined = [line for line in answered if "collapsed" in line["cache"]]
    assert sum(found.get("mirror_download_followers_total", {}).values()) == len(joined)
    pushed = Counter("manifest" if "/manifests/" in line["path"] else "blob" for line in said if line["status"] == 201)
    assert found["mirror_pushes_total"] == {(kind,): n for kind, n in pushed.items()}
    return found


def break_off(one: Service, path: str) -> None:
    """Ask for something large, take a little of it, and reset the connection."""
    host, _, port = one.netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert connection.recv(1000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Traffic:
    """Requests of every kind, from many connections at once. sent: how many so far."""

    def __init__(self, one: Service, hub: FakeUpstream) -> None:
        self._one = one
        self._hub = hub
        self.sent = 0

    def go(self) -> None:
        one, hub, n = self._one, self._hub, self.sent
        image = hub.add_image("team/app", f"t{n}", [300_000, 2_000])
        large = hub.add_random_blob("team/app", 6_000_000)
        base = "/v2/team/app"
        asked: list[tuple[str, str]] = []
        for _ in range(4):
            asked += [("GET", f"{base}/manifests/t{n}"), ("HEAD", f"{base}/manifests/t{n}")]
            asked += [("GET", f"{base}/blobs/{layer}") for layer in image.layers]
            asked += [("HEAD", f"{base}/blobs/{image.layers[0]}"), ("GET", f"{base}/manifests/{image.digest}")]
        asked += [
            ("GET", f"{base}/manifests/none"),
            ("GET", f"{base}/blobs/sha256:{'0' * 64}"),
            ("GET", f"{base}/tags/list"),
            ("GET", f"{base}/tags/list?n=1"),
            ("GET", f"{base}/referrers/{image.digest}"),
            ("GET", "/v2/"),
            ("GET", "/v2/_catalog"),
            ("GET", "/nothing"),
            ("GET", "/v2/team/app/manifests/a b"),
            ("PUT", f"{base}/manifests/t{n}"),
            ("OPTIONS", f"{base}/manifests/t{n}"),
            ("DELETE", f"/v2/local/app/manifests/none{n}"),
            ("POST", "/v2/local/app/blobs/uploads/"),
            ("GET", "/v2/_mirror/auth/token"),
        ]
        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(lambda ask: one.get(ask[1].replace(" ", "%20"), method=ask[0])[0], asked))
            machines = list(pool.map(lambda name: one.get(f"/{name}")[0], ("healthz", "readyz") * 4))
            assert one.get(f"{base}/blobs/{large}")[0] == 200
            list(pool.map(lambda _: break_off(one, f"{base}/blobs/{large}"), range(4)))
        assert machines == [200] * 8
        assert {200, 202, 404, 405} <= set(done), Counter(done)
        for data in (b"a" * 1000, f"number {n}".encode()):
            self._push(f"/v2/local/app/blobs/uploads/?digest={digest_of(data)}", data)
        raw = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
        self._push(f"/v2/local/app/manifests/v{n}", raw, method="PUT")
        self.sent += len(asked) + 1 + 4 + 3

    def _push(self, path: str, data: bytes, *, method: str = "POST") -> None:
        assert self._one.get(path, method=method, body=data)[0] == 201


def test_metrics_say_what_the_access_log_says(running: Service, hub: FakeUpstream) -> None:
    """Also when a worker is killed: its counts stay, its successor goes on with them, and none goes back."""
    traffic = Traffic(running, hub)
    traffic.go()
    before = check_agreement(running, traffic.sent)
    assert before["mirror_workers"] == before["mirror_workers_expected"] == {(): 4}
    assert "mirror_worker_restarts_total" not in before
    assert any(line.get("failure") and line["status"] == 200 for line in lines(running)), "somebody broke off"

    workers = running.workers()
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(running.workers()) - {workers[0]}) == 4, "it is replaced")
    wait_until(lambda: metrics(running)["mirror_workers"] == {(): 4}, "its successor is up")
    after = check_agreement(running, traffic.sent)
    for name in before:
        if name.endswith(("_total", "_bucket", "_count")):
            for key, number in before[name].items():
                assert after[name][key] >= number, f"{name}{key} went back"
    assert after["mirror_worker_restarts_total"] == {("signal",): 1}

    traffic.go()
    check_agreement(running, traffic.sent)


def test_what_is_exported_is_what_is_documented(running: Service) -> None:
    """By a real service: of itself and its processes it says what there is."""
    text = running.get("/metrics")[1].decode()
    exported = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }
    rows = documented()
    assert exported.keys() == rows.keys()
    for name, family in exported.items():
        assert family.type == rows[name].kind, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(rows[name].labels), name
    found = metrics(running)
    (memory,) = found["mirror_process_resident_memory_bytes"].values()
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in running.pids()]
    assert memory == pytest.approx(sum(pages) * os.sysconf("SC_PAGE_SIZE"), rel=0.2)
    (open_now,) = found["mirror_process_open_fds"].values()
    assert open_now == pytest.approx(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in running.pids()), abs=20)
    (most,) = found["mirror_process_max_fds"].values()
    (share,) = found["mirror_process_fds_used_ratio"].values()
    # The parent has our own limit, the workers as much as they may.
    assert open_now / 5 / most <= share <= 1
    (cpu,) = found["mirror_process_cpu_seconds_total"].values()
    assert 0 < cpu < 600
    (started,) = found["mirror_process_start_time_seconds"].values()
    configured = (running.log.parent / "mirror.yaml").stat().st_mtime  # just before; the kernel's clock has whole ticks
    assert configured - 2 < started < time.time() + 2
    assert found["mirror_ready"] == {(): 1}
    wait_until(
        lambda: (
            metrics(running)["mirror_event_loop_lag_seconds_count"][()]
            > found["mirror_event_loop_lag_seconds_count"][()]
        ),
        "each second is looked at",
    )


FAILURE = re.compile(r"answered 500")


def test_one_warning_for_each_failure_of_an_upstream(tmp_path: Path, hub: FakeUpstream) -> None:
    """However many clients wait for it in four processes; and what is served meanwhile is not told twice."""
    hub.add_image("team/other", "1")
    config = write_config(tmp_path, {"hub": {"url": hub.url, "retries": 0, "breaker_window": 0}})
    with service(config) as one, ThreadPoolExecutor(16) as pool:
        hub.fault("team/other/manifests", status=500, delay=0.5)
        asked = list(pool.map(lambda _: one.get("/v2/team/other/manifests/1")[0], range(16)))
        failures = hub.count(part="team/other/manifests")
        hub.clear_faults()
        assert set(asked) == {503}
        wait_until(lambda: len(lines(one)) >= 16, "their lines")
        told = [line for line in one.lines() if line.get("level") in ("warning", "error")]
        assert [bool(FAILURE.search(line["message"])) for line in told] == [True] * failures, told
        assert failures < 16, "they shared it"
        assert all(line["upstream"] == "hub" and line["status"] == 500 and line["host"] for line in told)
        assert metrics(one)["mirror_upstream_errors_total"] == {("failed", "hub"): failures}


@pytest.mark.parametrize(
    ("log", "requests", "asked"),
    [
        ({"level": "warning"}, 0, 0),
        ({"level": "info", "format": "json"}, 2, 0),
        ({"level": "debug"}, 2, 1),
    ],
    ids=["warning", "info", "debug"],
)
def test_log_settings_decide_what_is_written(
    tmp_path: Path, hub: FakeUpstream, log: dict[str, str], requests: int, asked: int
) -> None:
    netloc = f"127.0.0.1:{free_port()}"  # under "info" it does not say where it listens
    config = write_config(tmp_path, {"hub": {"url": hub.url}}, workers=1, log=log, listen=netloc)
    hub.add_image("team/logged", "1")
    with service(config, url=f"http://{netloc}") as one:
        for path in ("/v2/", "/v2/team/logged/manifests/none", "/healthz", "/readyz", "/metrics"):
            one.get(path)
    records = one.lines()
    assert len([line for line in records if "path" in line]) == requests
    debug = [line["message"] for line in records if line.get("level") == "debug"]
    assert len(debug) == asked, debug
    assert all(message == "hub answered 404 to HEAD of team/logged:none" for message in debug)
