"""What an upstream that does not answer costs the others: hits beside fifty clients a second that ask it for more."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.processes import PROJECT, ask
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Mirror, Upstream, blob_path
from tests.bench.settings import Settings, one_core_each, workspace

HITS, MISSES = 200, 50
"""Clients a second."""
WINDOW, TIMEOUT = 2, 1
"""Seconds a host that does not answer is left alone, and seconds it has."""
TARGET = 1.3
ROUNDS = 5


def run(settings: Settings) -> Result:
    """Ask for what is here, in turn alone, beside clients of a dead upstream, and beside clients of a living one."""
    result = Result(name="outage", beside="alone")
    server, others = one_core_each()
    with workspace() as folder, Upstream(folder) as upstream, dead() as (port, arrived):
        limits = {"breaker_window": f"{WINDOW}s", "timeouts": {"headers": f"{TIMEOUT}s", "connect": f"{TIMEOUT}s"}}
        living = {"url": f"http://127.0.0.1:{upstream.port}", "tags": {"fresh_for": "0s"}}
        more = {
            "upstreams": {"living": living, "dead": {"url": f"http://127.0.0.1:{port}"} | limits},
            "default_upstream": "living",
            "local": [],
        }
        with Mirror(folder, workers=4, pinned=server, more=more, log=folder / "mirror.log") as mirror:
            digest = upstream.blob(4096, 1)
            hit = blob_path(digest)
            ask(mirror.port, "GET", hit)
            seconds = settings.pick(8, 2)
            found: dict[str, list[float]] = {"alone": [], "dead": [], "living": []}
            answers: Counter[str] = Counter()
            others_saw: dict[str, Counter[str]] = {"dead": Counter(), "living": Counter()}
            open_it(mirror)
            before = arrived()
            begun = time.monotonic()
            for _ in range(settings.pick(ROUNDS, 1)):
                for name, p99s in found.items():
                    asked = f"/v2/{name}/x/manifests/{os.urandom(4).hex()}-{{n}}" if name != "alone" else None
                    took, statuses, beside = _round(mirror.port, hit, asked, seconds, others)
                    p99s.append(percentile(took, 0.99))
                    answers += statuses
                    if beside is not None:
                        others_saw[name] += beside
            probes, windows = arrived() - before, (time.monotonic() - begun) / WINDOW + 1
    alone, beside_dead, beside_living = (1000 * median(found[name]) for name in ("alone", "dead", "living"))
    result.rows += [
        Row(
            what="p99 of hits beside a dead upstream",
            mirror=beside_dead,
            beside=alone,
            unit="ms",
            target=f"<= {TARGET:.2f}",
            met=beside_dead <= TARGET * alone,
        ),
        Row(what="p99 of hits beside a living one that has nothing", mirror=beside_living, beside=alone, unit="ms"),
        count("hits without a good answer", sum(answers.values()) - answers["200"], 0),
        count("answers 404 of the living one", others_saw["living"]["404"], sum(others_saw["living"].values())),
        Row(what="answers 503 of the dead one", mirror=others_saw["dead"]["503"], unit=""),
        Row(what="answers 504 of the dead one", mirror=others_saw["dead"]["504"], unit=""),
    ]
    result.rows.append(
        Row(
            what="requests that reached the dead one",
            mirror=probes,
            unit="",
            target=f"<= {windows:.0f}, one a window",
            met=probes <= windows,
            counted=True,
        )
    )
    result.notes.append(f"{HITS} hits a second, {MISSES} misses a second; medians of {len(found['alone'])} rounds")
    return result


def open_it(mirror: Mirror) -> None:
    """Let one client find out that the upstream is dead."""
    ask(mirror.port, "GET", "/v2/dead/x/manifests/first")


def percentile(values: Collection[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def dead() -> Iterator[tuple[int, Any]]:
    """Give the port of what takes connections and never answers, and what counts those."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield server.getsockname()[1], lambda: len(taken)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for one in taken:
        one.close()


def _round(
    port: int, hit: str, asked: str | None, seconds: int, pinned: Collection[int]
) -> tuple[list[float], Counter[str], Counter[str] | None]:
    beside = _visitors(port, asked, MISSES, seconds, pinned) if asked else None
    hits = _visitors(port, hit, HITS, seconds, pinned)
    for visitors in (beside, hits):
        if visitors is not None:
            assert visitors.stdin is not None
            visitors.stdin.write("come\n")
            visitors.stdin.flush()
    found = _seen(hits)
    return found[0], found[1], _seen(beside)[1] if beside else None


def _visitors(port: int, path: str, rate: int, seconds: int, pinned: Collection[int]) -> subprocess.Popen[str]:
    found = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.visitors", str(port), path, str(rate), str(seconds)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    assert found.stdout is not None
    found.stdout.readline()
    return found


def _seen(visitors: subprocess.Popen[str]) -> tuple[list[float], Counter[str]]:
    output, _ = visitors.communicate(timeout=120)
    found = json.loads(output)
    return found["took"], Counter(found["statuses"])
