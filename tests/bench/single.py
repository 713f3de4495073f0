"""One transfer per digest: 24 clients at once over 4 workers on a blob that is not here.

The mirror's column is the bytes its upstream sent, the other one the size of the blob.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

from tests.bench.client import Puller, run_all, wait_all
from tests.bench.processes import wait_until
from tests.bench.procfs import children, part_holders
from tests.bench.result import Result, Row, count
from tests.bench.servers import Mirror, Upstream, blob_path
from tests.bench.settings import MIB, Settings, workspace

CLIENTS = 24
WORKERS = 4
LEAVING = 3
SLOW = 2


def run(settings: Settings) -> Result:
    """Run the three scenarios on one mirror, a blob each."""
    size = settings.pick(64 * MIB, 8 * MIB)
    rate = settings.pick(20_000_000, 8_000_000)
    result = Result(name="single", beside="the blob")
    with workspace() as folder, Upstream(folder, rate=rate) as upstream:
        with Mirror(folder, upstream, workers=WORKERS) as mirror:
            scenarios = _Scenarios(result, upstream, mirror, size, rate)
            scenarios.together()
            scenarios.leaving_and_slow()
            scenarios.leader_killed()
    return result


class _Scenarios:
    def __init__(self, result: Result, upstream: Upstream, mirror: Mirror, size: int, rate: int) -> None:
        self._result, self._upstream, self._mirror, self._size, self._rate = result, upstream, mirror, size, rate

    def together(self) -> None:
        """All at once, all to the end."""
        direct_digest = self._upstream.blob(self._size, seed=1)
        direct = Puller(self._upstream.port, blob_path(direct_digest))
        run_all([direct])
        wait_all([direct])

        digest = self._upstream.blob(self._size, seed=2)
        clients = [Puller(self._mirror.port, blob_path(digest)) for _ in range(CLIENTS)]
        run_all(clients)
        self._midway(digest)
        workers = len(self._holders(digest))
        wait_all(clients)
        self._bytes("24 clients", digest)
        self._digests("24 clients", digest, clients)
        self._result.rows.append(Row(what="24 clients: workers they met", mirror=workers, beside=WORKERS))
        self._result.rows.append(
            Row(
                what="24 clients: until the last is done, beside one direct pull",
                mirror=max(client.seconds for client in clients),
                beside=direct.seconds,
                unit="s",
            )
        )

    def leaving_and_slow(self) -> None:
        """Three leave midway, the one that began the download among them; two read at half the upstream's rate."""
        digest = self._upstream.blob(self._size, seed=3)
        path, port = blob_path(digest), self._mirror.port
        leaving = [Puller(port, path, leave_at=self._size // 3 + number * MIB) for number in range(LEAVING)]
        slow = [Puller(port, path, rate=self._rate // 2) for _ in range(SLOW)]
        others = [Puller(port, path) for _ in range(CLIENTS - LEAVING - SLOW)]
        run_all(leaving[:1])
        wait_until("the first client's download has begun", lambda: self._upstream.gets(digest))
        run_all([*leaving[1:], *slow, *others])
        wait_all([*leaving, *slow, *others])
        name = "3 of 24 leave, 2 are slow"
        self._result.rows.append(count(f"{name}: left", sum(client.left for client in leaving), LEAVING))
        self._bytes(name, digest)
        self._digests(name, digest, [*slow, *others])

    def leader_killed(self) -> None:
        """The worker that leads the transfer gets SIGKILL at half; its clients resume by Range."""
        digest = self._upstream.blob(self._size, seed=4)
        clients = [Puller(self._mirror.port, blob_path(digest), resumes=5) for _ in range(CLIENTS)]
        run_all(clients)
        self._midway(digest)
        leaders = [pid for pid, writes in self._holders(digest).items() if writes]
        at = self._upstream.sent(digest)
        for pid in leaders:
            os.kill(pid, signal.SIGKILL)
        wait_all(clients)
        name = "leader killed at half"
        rows = self._result.rows
        rows.append(count(f"{name}: leaders found", len(leaders), 1))
        rows.append(Row(what=f"{name}: bytes by then", mirror=at, beside=self._size, met=at < self._size, counted=True))
        sent = self._upstream.sent(digest)
        rows.append(
            Row(
                what=f"{name}: upstream bytes",
                mirror=sent,
                beside=self._size,
                target="<= 1.30",
                met=sent <= 1.3 * self._size,
                counted=True,
            )
        )
        gets = self._upstream.gets(digest)
        rows.append(Row(what=f"{name}: upstream GETs", mirror=len(gets), beside=2))
        rows.append(Row(what=f"{name}: clients cut off", mirror=sum(client.cut > 0 for client in clients)))
        self._digests(name, digest, clients)

    def _midway(self, digest: str) -> None:
        wait_until("the upstream has sent half", lambda: self._upstream.sent(digest) >= self._size // 2)

    def _holders(self, digest: str) -> dict[int, bool]:
        return part_holders(children(self._mirror.process.pid), digest.partition(":")[2])

    def _bytes(self, name: str, digest: str) -> None:
        self._result.rows.append(count(f"{name}: upstream bytes", self._upstream.sent(digest), self._size))
        self._result.rows.append(count(f"{name}: upstream GETs", len(self._upstream.gets(digest)), 1))

    def _digests(self, name: str, digest: str, clients: Sequence[Puller]) -> None:
        right = sum(client.failure is None and client.digest == digest for client in clients)
        self._result.rows.append(count(f"{name}: digests right", right, len(clients)))
        for failure in sorted({client.failure for client in clients if client.failure}):
            self._result.notes.append(f"{name}: {failure}")
