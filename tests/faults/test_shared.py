"""What all workers share, between real processes: nothing lost, nothing torn, whoever is killed or stopped."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.store.lease import FileLeases
from mirror.store.shared import SharedNumbers
from mirror.upstream.breaker import Breaker, BreakerOpen, Cause
from mirror.upstream.pacing import Connections
from tests.service import wait_until

SECRET = b"s" * 32
SECONDS = 60
START, WINDOW, PROBE = 1_800_000_000.0, 10.0, 18.0

BEGIN = """
import asyncio, os, signal, sys
from pathlib import Path
from mirror.store.lease import FileLeases
from mirror.store.shared import SharedNumbers
from mirror.upstream.breaker import Breaker, BreakerOpen
from mirror.upstream.pacing import Connections, Rate

folder = Path(sys.argv[1])
numbers = SharedNumbers(folder / "numbers", b"s" * 32, patience=float(sys.argv[2]))
leases = FileLeases(folder / "locks", b"s" * 32)

def say(*what):
    print(*what, flush=True)

def add(found):
    found[:] = [found[0] + 1] * len(found)
    return found[0]

"""


class Worker:
    """A process that shares what there is in a folder. patience: seconds it waits for a lock."""

    def __init__(self, folder: Path, program: str, *, patience: float = SECONDS) -> None:
        command = [sys.executable, "-W", "error", "-c", BEGIN + program, str(folder), str(patience)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def hear(self) -> str:
        """Wait for the next line it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(SECONDS)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Worker] = []

    def start_one(program: str, **changes: float) -> Worker:
        started.append(Worker(tmp_path, program, **changes))
        return started[-1]

    yield start_one
    for worker in started:
        worker.close()


@pytest.fixture
def numbers(tmp_path: Path) -> Iterator[SharedNumbers]:
    """The numbers as this process has them."""
    opened = SharedNumbers(tmp_path / "numbers", SECRET)
    yield opened
    opened.close()


def add(found: list[float]) -> float:
    found[:] = [found[0] + 1] * len(found)
    return found[0]


COUNT = """
async def main():
    say("ready")
    sys.stdin.readline()
    for _ in range(2000):
        await numbers.update("key", add)
    say("done")

asyncio.run(main())
"""


def test_four_processes_count_and_no_update_is_lost(start: Start, numbers: SharedNumbers) -> None:
    """Meanwhile nobody reads half a record: all its numbers are always the same."""
    running = [start(COUNT) for _ in range(4)]
    assert [one.hear() for one in running] == ["ready"] * 4
    for one in running:
        one.go()
    seen = [0.0]
    deadline = time.monotonic() + SECONDS
    while seen[-1] < 8000:
        assert time.monotonic() < deadline, f"{seen[-1]} of 8000"
        found = numbers.read("key")
        assert len(set(found)) == 1, found
        assert found[0] >= seen[-1], "numbers went back"
        seen.append(found[0])
    assert [one.hear() for one in running] == ["done"] * 4
    assert numbers.read("key")[0] == 8000
    assert len(set(seen)) > 100, "it was read while it was written"


FOR_EVER = """
async def main():
    say("ready")
    while True:
        await numbers.update("key", add)

asyncio.run(main())
"""


async def test_kill_9_leaves_a_record_and_no_lock(start: Start, numbers: SharedNumbers) -> None:
    """Twenty processes killed while they write as fast as they can."""
    counted = 0.0
    for _ in range(5):
        running = [await asyncio.to_thread(start, FOR_EVER) for _ in range(4)]
        for one in running:
            assert await asyncio.to_thread(one.hear) == "ready"
        here = numbers.read("key")[0]
        await asyncio.to_thread(wait_until, lambda at=here: numbers.read("key")[0] > at + 50, "they count")
        for one in running:
            await asyncio.to_thread(one.kill)
            found = numbers.read("key")
            assert len(set(found)) == 1, found
            assert found[0] >= counted, "numbers went back"
            counted = found[0]
        assert counted > here
        assert await numbers.update("key", add) == counted + 1, "of an update that was not finished there is nothing"
        counted += 1


IN_THE_MIDDLE = """
def change(found):
    found[:] = [-1.0] * len(found)
    os.kill(os.getpid(), signal.{name})
    return found[0]

async def main():
    await numbers.update("key", change)
    say("done")

asyncio.run(main())
"""


async def test_a_process_killed_within_an_update_has_changed_nothing(start: Start, numbers: SharedNumbers) -> None:
    await numbers.update("key", add)
    for n in range(2, 5):
        one = await asyncio.to_thread(start, IN_THE_MIDDLE.format(name="SIGKILL"))
        assert await asyncio.to_thread(one.process.wait, SECONDS) == -signal.SIGKILL
        begun = time.monotonic()
        assert await numbers.update("key", add) == n
        assert time.monotonic() - begun < 10


async def test_a_process_stopped_within_an_update_holds_nobody_up(start: Start, numbers: SharedNumbers) -> None:
    await numbers.update("key", add)
    one = await asyncio.to_thread(start, IN_THE_MIDDLE.format(name="SIGSTOP"))
    await asyncio.to_thread(wait_until, lambda: _state(one.process.pid) == "T", "it has stopped")
    for n in range(2, 12):
        assert await asyncio.wait_for(numbers.update("key", add), 10) == n
    one.process.send_signal(signal.SIGCONT)
    assert await asyncio.to_thread(one.hear) == "done"
    found = numbers.read("key")
    assert len(set(found)) == 1, found
    assert found[0] in (10, 11), "what it had made of numbers long gone is not believed"
    assert await numbers.update("key", add) == found[0] + 1


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


HOSTS = [f"https://registry-{n}.test:443" for n in range(300)]

PROBES = f"""
async def enter(breaker, host):
    try:
        return await breaker.enter(host)
    except BreakerOpen:
        return None

async def main():
    breaker = Breaker(numbers, window={WINDOW}, probe={PROBE}, clock=lambda: {START + WINDOW + 1})
    say("ready")
    sys.stdin.readline()
    say(*[host for host in {HOSTS} if await enter(breaker, host)])

asyncio.run(main())
"""


async def test_four_processes_make_one_probe(start: Start, numbers: SharedNumbers) -> None:
    """Of each of many hosts, so that they come to see a window end at the same moment."""
    breaker = Breaker(numbers, window=WINDOW, probe=PROBE, clock=lambda: START)
    for host in HOSTS:
        await (await breaker.enter(host)).failed(Cause.TIMEOUT)
    running = [await asyncio.to_thread(start, PROBES) for _ in range(4)]
    for one in running:
        assert await asyncio.to_thread(one.hear) == "ready"
    for one in running:
        one.go()
    probed = [(await asyncio.to_thread(one.hear)).split() for one in running]
    assert sorted(host for hosts in probed for host in hosts) == sorted(HOSTS)
    later = Breaker(numbers, window=WINDOW, probe=PROBE, clock=lambda: START + WINDOW + 2)
    for host in HOSTS:
        with pytest.raises(BreakerOpen):
            await later.enter(host)


HOLD = """
async def main():
    async with Connections(leases.try_acquire, "a", 2):
        say("held")
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def test_connections_of_a_process_that_dies_are_free(start: Start, tmp_path: Path) -> None:
    connections = Connections(FileLeases(tmp_path / "locks", SECRET).try_acquire, "a", 2)
    running = [await asyncio.to_thread(start, HOLD) for _ in range(2)]
    for one in running:
        assert await asyncio.to_thread(one.hear) == "held"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1), connections:
            raise AssertionError("both are held")
    await asyncio.to_thread(running[0].kill)
    async with asyncio.timeout(10), connections:
        pass


TAKE = """
async def main():
    rate = Rate(numbers, "a", 1_000_000)
    say("ready")
    sys.stdin.readline()
    for _ in range(20):
        await rate.take(25_000)
    say("done")

asyncio.run(main())
"""


def test_four_processes_keep_to_one_rate(start: Start) -> None:
    """2 MB at 1 MB/s, of which the first quarter of a second's worth may come at once."""
    running = [start(TAKE) for _ in range(4)]
    assert [one.hear() for one in running] == ["ready"] * 4
    begun = time.monotonic()
    for one in running:
        one.go()
    assert [one.hear() for one in running] == ["done"] * 4
    assert 1.7 <= time.monotonic() - begun < 20
