"""Memory of one worker while 50 clients follow a download of 1 GB that comes as fast as it can.

The mirror's column is the worker, the other one the limit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.client import Puller, run_all, wait_all
from tests.bench.processes import wait_until
from tests.bench.procfs import Peak, children, memory
from tests.bench.result import Result, Row, count
from tests.bench.servers import Mirror, Upstream, blob_path
from tests.bench.settings import MIB, Settings, workspace

CLIENTS = 50
HASHED = 5
"""Clients that take the digest too; the others count their bytes, as fifty hashes would be all there is to measure."""
LIMIT = 150_000_000
SLOW_RATE = 1_000_000


def run(settings: Settings) -> Result:
    """Run both scenarios, each on a mirror of its own, as a peak never goes down."""
    result = Result(name="memory", beside="limit")
    size = settings.pick(1_000_000_000, 128 * MIB)
    with workspace() as folder, Upstream(folder) as upstream:
        _follow(result, folder, upstream, upstream.blob(size, seed=1), size)
        _slow(result, folder, upstream, upstream.blob(size, seed=2), size)
    return result


def _follow(result: Result, folder: Path, upstream: Upstream, digest: str, size: int) -> None:
    """All read as fast as they can."""

    def clients(mirror: Mirror) -> None:
        pullers = [Puller(mirror.port, blob_path(digest), hashed=number < HASHED) for number in range(CLIENTS)]
        run_all(pullers)
        wait_all(pullers)
        whole = sum(puller.failure is None and puller.received == size for puller in pullers)
        right = sum(puller.digest == digest for puller in pullers[:HASHED])
        result.rows.append(count("50 clients: whole", whole, CLIENTS))
        result.rows.append(count("50 clients: digests right of those that took them", right, HASHED))
        result.notes += sorted({f"50 clients: {puller.failure}" for puller in pullers if puller.failure})

    _measure(result, "50 clients", folder, upstream, digest, size, clients)


def _slow(result: Result, folder: Path, upstream: Upstream, digest: str, size: int) -> None:
    """All read at 1 MB/s, and leave when the download is done."""

    def clients(mirror: Mirror) -> None:
        pullers = [Puller(mirror.port, blob_path(digest), hashed=False, rate=SLOW_RATE) for _ in range(CLIENTS)]
        run_all(pullers)
        wait_until("the blob has its final name", lambda: mirror.has(digest), 300)
        behind = sum(puller.received < size and puller.is_alive() for puller in pullers)
        for puller in pullers:
            puller.leave()
        wait_all(pullers)
        result.rows.append(count("50 slow clients: still reading when it was done", behind, CLIENTS))

    _measure(result, "50 slow clients", folder, upstream, digest, size, clients)


def _measure(
    result: Result,
    name: str,
    folder: Path,
    upstream: Upstream,
    digest: str,
    size: int,
    clients: Callable[[Mirror], None],
) -> None:
    with Mirror(folder, upstream, workers=1) as mirror:
        (worker,) = children(mirror.process.pid)
        before = memory(worker, "VmRSS")
        with Peak(worker, "RssAnon") as anonymous:
            clients(mirror)
        peak = memory(worker, "VmHWM")
    sent = upstream.sent(digest)
    result.rows.append(count(f"{name}: upstream bytes, beside the blob", sent / 1e6, size / 1e6, "MB"))
    result.rows.append(Row(what=f"{name}: resident before", mirror=before / 1e6, beside=LIMIT / 1e6, unit="MB"))
    for what, value in (("resident, peak", peak), ("anonymous, peak of samples", anonymous.value)):
        result.rows.append(
            Row(
                what=f"{name}: {what}",
                mirror=value / 1e6,
                beside=LIMIT / 1e6,
                unit="MB",
                target="< 1.00",
                met=value < LIMIT,
                counted=True,
            )
        )
