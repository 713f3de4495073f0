"""A blob that is not here: its first byte and its last one, beside a pull straight from the upstream.

Mirror on one core, upstream and client on the other. Rounds alternate; every pull is of new content.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.client import pull
from tests.bench.processes import on_cores
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Mirror, Upstream, blob_path
from tests.bench.settings import MIB, Settings, one_core_each, workspace

RATE = 20_000_000


@dataclass
class _Times:
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)


def run(settings: Settings) -> Result:
    """Pull at 20 MB/s and without a limit."""
    result = Result(name="cold", beside="direct")
    size = settings.pick(64 * MIB, 8 * MIB)
    server, others = one_core_each()
    with workspace() as folder, Upstream(folder, pinned=others) as upstream:
        with Mirror(folder, upstream, workers=1, pinned=server) as mirror, on_cores(others):
            bench = _Cold(result, upstream, mirror, size)
            bench.first_ever()
            bench.rounds("20 MB/s", RATE, settings.pick(5, 2))
            bench.rounds("no limit", 0, settings.pick(7, 3))
            bench.alone(folder)
            result.rows.append(count("digests right", bench.right, bench.pulls))
    return result


class _Cold:
    def __init__(self, result: Result, upstream: Upstream, mirror: Mirror, size: int) -> None:
        self._result, self._upstream, self._mirror = result, upstream, mirror
        self._buffer = memoryview(bytearray(size))
        self._seed = 0
        self.pulls = self.right = 0

    def first_ever(self) -> None:
        """The first pull of a new process, which also imports and connects, once."""
        through, direct = self._pull(self._mirror.port, MIB), self._pull(self._upstream.port, MIB)
        self._result.rows.append(
            Row(
                what="first byte, first pull after the start",
                mirror=through[0] * 1000,
                beside=direct[0] * 1000,
                unit="ms",
            )
        )

    def rounds(self, name: str, rate: int, number: int) -> None:
        self._upstream.limit(rate)
        direct, through = _Times(), _Times()
        ways = [(self._upstream.port, direct), (self._mirror.port, through)]
        for _ in range(number):
            for port, times in ways:
                first, whole = self._pull(port, len(self._buffer))
                times.first.append(first * 1000)
                times.whole.append(whole * 1000)
            ways.reverse()
        self._result.rows.append(
            Row(
                what=f"{name}: first byte",
                mirror=median(through.first),
                beside=median(direct.first),
                unit="ms",
                target="+ a few ms",
            )
        )
        ours, theirs = median(through.whole), median(direct.whole)
        self._result.rows.append(
            Row(
                what=f"{name}: whole blob of {len(self._buffer) // MIB} MiB",
                mirror=ours,
                beside=theirs,
                unit="ms",
                # Without a limit there is nothing to hide the hash and the disk behind.
                target="<= 1.15" if rate else "",
                met=ours <= 1.15 * theirs if rate else None,
            )
        )

    def alone(self, folder: Path) -> None:
        """Note the cost of what no mirror that verifies and keeps can do without."""
        begun = time.perf_counter()
        hashlib.sha256(self._buffer)
        hashed = time.perf_counter()
        with (folder / "alone").open("wb", buffering=0) as file:
            for at in range(0, len(self._buffer), MIB):
                file.write(self._buffer[at : at + MIB])
        written = time.perf_counter()
        self._result.notes.append(
            f"alone, on this machine: one sha256 of the blob {(hashed - begun) * 1000:.0f} ms, "
            f"writing it to a new file {(written - hashed) * 1000:.0f} ms"
        )

    def _pull(self, port: int, size: int) -> tuple[float, float]:
        self._seed += 1
        digest = self._upstream.blob(size, seed=self._seed)
        body = self._buffer[:size]
        times = pull(port, blob_path(digest), body)
        self.pulls += 1
        self.right += f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
        return times
