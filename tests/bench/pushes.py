"""Pushes, each durable when acknowledged: many small blobs and one large, beside CNCF Distribution, one core each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from tests.bench.processes import PROJECT
from tests.bench.procfs import Peak, children, memory
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Distribution, Mirror
from tests.bench.settings import MIB, Settings, one_core_each, workspace

GROWTH = 30_000_000
"""Bytes the worker may grow by while a large blob is pushed to it."""


def run(settings: Settings) -> Result:
    """Push to all in turn, new content each time."""
    result = Result(name="pushes", beside="Distribution")
    server, others = one_core_each()
    log = Path(os.devnull)
    blobs, small = settings.pick(100, 10), 1_000_000
    large = settings.pick(1_000_000_000, 64 * MIB)
    with workspace() as folder, ExitStack() as stack:
        mirror = stack.enter_context(Mirror(folder, workers=1, pinned=server, log=log))
        beside = {
            name: stack.enter_context(Distribution(folder, pinned=server, log=log, program=program))
            for name, program in Distribution.programs().items()
        }
        if not beside:
            result.notes.append("neither registry (Distribution 3) nor docker-registry (2.8) is installed")
        ports = {"mirror": mirror.port} | {name: one.port for name, one in beside.items()}
        seed = 1000
        for what, number, size, rounds in (
            (f"{blobs} blobs of 1 MB", blobs, small, settings.pick(5, 1)),
            (f"one blob of {large // 1_000_000} MB", 1, large, settings.pick(3, 1)),
        ):
            found: dict[str, list[float]] = {name: [] for name in ports}
            taken = 0
            for turn in range(rounds):
                names = list(ports) if turn % 2 == 0 else list(reversed(ports))
                for name in names:
                    seed += number
                    rate, good = _push(ports[name], number, size, seed, others)
                    found[name].append(rate)
                    taken += good
            for name in beside:
                ours, theirs = median(found["mirror"]), median(found[name])
                row = Row(
                    what=f"{what}, {name}", mirror=ours, beside=theirs, unit="MB/s", target=">= 1.0", met=ours >= theirs
                )
                result.rows.append(row)
            if not beside:
                result.rows.append(Row(what=what, mirror=median(found["mirror"]), unit="MB/s"))
            result.rows.append(count(f"{what}: taken", taken, number * rounds * len(ports)))
        _memory(result, mirror, large, seed + 1, others)
    return result


def _memory(result: Result, mirror: Mirror, size: int, seed: int, pinned: Collection[int]) -> None:
    (worker,) = children(mirror.process.pid)
    before = memory(worker, "RssAnon")
    with Peak(worker, "RssAnon") as peak:
        _push(mirror.port, 1, size, seed, pinned)
    result.rows.append(
        Row(
            what=f"growth of the worker, {size // 1_000_000} MB pushed",
            mirror=(peak.value - before) / 1e6,
            beside=GROWTH / 1e6,
            unit="MB (limit)",
            target="< 1.00",
            met=peak.value - before < GROWTH,
            counted=True,
        )
    )


def _push(port: int, blobs: int, size: int, seed: int, pinned: Collection[int]) -> tuple[float, int]:
    """Push with a client on a core of its own. Returns MB/s, and how many blobs were taken."""
    arguments = [str(port), "bench/pushed", str(blobs), str(size), str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.pusher", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    if done.returncode:
        raise RuntimeError(f"the pushing client ended with {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout)
    return blobs * size / found["microseconds"], found["taken"]
