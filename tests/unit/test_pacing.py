"""Connections, rates and paces: as much as is allowed, by all workers together, and no less."""

from __future__ import annotations

import asyncio
import heapq
import os
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.store.lease import FileLeases
from mirror.store.shared import SharedNumbers
from mirror.upstream.base import Numbers
from mirror.upstream.numbers import LocalNumbers
from mirror.upstream.pacing import BURST_BYTES, LOOKS, Connections, Lease, Pace, Rate, TooSlow

# ---- connections ----


def workers(path: Path, most: int, count: int = 4) -> list[Connections]:
    """Return the connections of one upstream as so many workers have them."""
    return [Connections(FileLeases(path / "locks", b"s" * 32).try_acquire, "a", most) for _ in range(count)]


@pytest.mark.parametrize("most", [1, 3, 40])
async def test_all_workers_together_hold_so_many(tmp_path: Path, most: int) -> None:
    now = highest = 0
    full = asyncio.Event()

    async def ask(connections: Connections) -> None:
        nonlocal now, highest
        async with connections:
            now += 1
            highest = max(highest, now)
            if now == most:
                full.set()
            await full.wait()
            await asyncio.sleep(0.005)
            now -= 1

    async with asyncio.timeout(30):
        await asyncio.gather(*(ask(one) for one in workers(tmp_path, most) for _ in range(15)))
    assert highest == most


async def test_upstreams_are_apart(tmp_path: Path) -> None:
    leases = FileLeases(tmp_path / "locks", b"s" * 32)
    async with asyncio.timeout(10), Connections(leases.try_acquire, "a", 1), Connections(leases.try_acquire, "b", 1):
        pass


def never(key: str) -> Lease | None:
    raise AssertionError(f"{key} was asked for")


@pytest.mark.parametrize(
    "connections",
    [Connections(never, "a", None), Connections(None, "a", None), Connections(None, "a", 1)],
    ids=["any number", "nothing at all", "nobody to share with"],
)
async def test_where_there_is_no_limit_nothing_is_asked(connections: Connections) -> None:
    async with connections, connections, connections:
        pass


async def test_who_waits_too_long_gives_up(tmp_path: Path) -> None:
    one, other, third, _ = workers(tmp_path, 1)
    async with one:
        for waiting in (other, one):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), waiting:
                    raise AssertionError("it is held")
    async with asyncio.timeout(10), third:
        pass


async def test_an_error_gives_it_back(tmp_path: Path) -> None:
    one, other, *_ = workers(tmp_path, 1)
    with pytest.raises(ValueError, match="no"):
        async with one:
            raise ValueError("no")
    async with asyncio.timeout(10), other:
        pass


async def test_in_one_worker_first_come_is_first_served(tmp_path: Path) -> None:
    one = workers(tmp_path, 1)[0]
    served: list[int] = []

    async def ask(n: int) -> None:
        async with one:
            served.append(n)
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        async with one:
            tasks = [asyncio.create_task(ask(n)) for n in range(10)]
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
    assert served == list(range(10))


async def test_who_has_just_let_go_does_not_take_it_again_before_who_waits(tmp_path: Path) -> None:
    busy, other, *_ = workers(tmp_path, 1)
    turns = 0
    done = asyncio.Event()

    async def ask() -> None:
        async with other:
            done.set()

    async with busy:
        task = asyncio.create_task(ask())
        await asyncio.sleep(0.03)
    while not done.is_set() and turns < 100:
        turns += 1
        async with busy:
            await asyncio.sleep(0.005)
    await asyncio.wait_for(task, 10)
    assert turns < 5


async def test_who_is_stopped_while_first_in_line_holds_nobody_up(tmp_path: Path) -> None:
    stopped = FileLeases(tmp_path / "locks", b"s" * 32).try_acquire("connection a next")
    assert stopped is not None
    async with asyncio.timeout(10), workers(tmp_path, 1)[0]:
        pass
    stopped.release()


class Held:
    """A lease of nothing."""

    def release(self) -> None: ...


async def test_a_look_at_very_many_lets_others_have_their_turn() -> None:
    turns = looks = 0

    def try_acquire(key: str) -> Lease | None:
        nonlocal looks
        looks += 1
        return Held() if key.endswith("next") or looks > 5000 else None

    async def others() -> None:
        nonlocal turns
        while looks <= 5000:
            turns += 1
            await asyncio.sleep(0)

    async def ask() -> None:
        async with Connections(try_acquire, "a", 10_000):
            pass

    await asyncio.gather(ask(), others())
    assert turns >= 5000 // LOOKS


async def test_an_error_of_the_leases_is_passed_on() -> None:
    def broken(key: str) -> Lease | None:
        raise OSError(24, os.strerror(24))

    connections = Connections(broken, "a", 1)
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            async with asyncio.timeout(10), connections:
                pass


# ---- rate ----


@types.coroutine
def nap(seconds: float) -> Generator[float, None, None]:
    """Sleep in the time of a ``World``."""
    yield seconds


@dataclass
class World:
    """Time for workers that take bytes, moved to whoever wakes next. late: seconds each sleeps too long."""

    late: float = 0.0
    now: float = 1_800_000_000.0
    step: float = 0.0
    granted: list[tuple[float, int, int]] = field(default_factory=list)
    """When, who, how many bytes; in true time."""

    def clock(self) -> float:
        """Return what the machine's clock says; it may be set anew by ``step``."""
        return self.now + self.step

    def run(self, jobs: Sequence[tuple[float, Callable[[int], Generator[float, None, None]]]]) -> None:
        """Run jobs until all are done. Each begins after some seconds."""
        waiting = [(self.now + begins, n, job(n)) for n, (begins, job) in enumerate(jobs)]
        heapq.heapify(waiting)
        while waiting:
            self.now, n, job = heapq.heappop(waiting)
            try:
                seconds = job.send(None)
            except StopIteration:
                continue
            heapq.heappush(waiting, (self.now + seconds + self.late, n, job))

    def taker(
        self, rate: Rate, sizes: Sequence[int], between: float = 0.0
    ) -> Callable[[int], Generator[float, None, None]]:
        """Return a job that takes one size after the other."""

        async def job(n: int) -> None:
            for size in sizes:
                await rate.take(size)
                self.granted.append((self.now, n, size))
                if between:
                    await nap(between)

        return lambda n: job(n).__await__()  # type: ignore[return-value]

    def bytes_between(self, first: float, last: float) -> int:
        return sum(size for at, _, size in self.granted if first <= at <= last)


def rates(world: World, per_second: int, count: int, numbers: Sequence[Numbers] | None = None) -> list[Rate]:
    """Return one upstream's rate as so many workers have it."""
    shared = numbers or [LocalNumbers()] * count
    return [Rate(shared[n], "a", per_second, clock=world.clock, sleep=nap) for n in range(count)]


@pytest.mark.parametrize("late", [0.0, 0.001, 0.02, 0.1], ids=str)
@pytest.mark.parametrize("per_second", [100_000, 1_000_000, 100_000_000], ids=str)
def test_one_worker_alone_has_the_full_rate(per_second: int, late: float) -> None:
    """However late its sleeps end."""
    world = World(late=late)
    size = min(65_536, per_second // 20)
    total = 20 * per_second
    world.run([(0, world.taker(rates(world, per_second, 1)[0], [size] * (total // size)))])
    burst = max(per_second / 4, BURST_BYTES)
    took = world.granted[-1][0] - world.granted[0][0]
    assert (total - burst) / per_second - 0.2 <= took <= total / per_second + 0.2


def test_four_workers_share_it() -> None:
    world = World()
    jobs = [(0.0, world.taker(rate, [65_536] * 200)) for rate in rates(world, 4_000_000, 4)]
    world.run(jobs)
    begun = world.granted[0][0]
    for seconds in (1, 2, 5, 10):
        got = [sum(size for at, n, size in world.granted if n == who and at < begun + seconds) for who in range(4)]
        assert max(got) - min(got) <= 1_000_000 + 2 * 65_536, "who was first had the burst, all the rest is shared"
        assert sum(got) <= 4_000_000 * seconds + 1_000_000


def test_workers_that_do_not_take_all_leave_it_to_others() -> None:
    world = World()
    slow, fast = rates(world, 1_000_000, 2)
    world.run([(0, world.taker(slow, [10_000] * 50, between=0.1)), (0, world.taker(fast, [50_000] * 100))])
    end = max(at for at, n, _ in world.granted if n == 1) - world.granted[0][0]
    assert end == pytest.approx(5.0 + 0.5 - 0.25, rel=0.1)


def test_after_a_pause_there_is_one_burst_and_no_more() -> None:
    world = World()
    rate = rates(world, 1_000_000, 1)[0]
    world.run([(0, world.taker(rate, [50_000] * 40))])
    world.now += 3600
    world.granted.clear()
    world.run([(0, world.taker(rate, [50_000] * 40))])
    begun = world.granted[0][0]
    assert world.bytes_between(begun, begun) == 250_000
    assert world.bytes_between(begun, begun + 1) <= 1_250_000


def test_a_slow_rate_lets_one_piece_of_a_connection_through() -> None:
    world = World()
    world.run([(0, world.taker(rates(world, 10_000, 1)[0], [BURST_BYTES, 10_000, 10_000]))])
    assert [at - world.granted[0][0] for at, *_ in world.granted] == pytest.approx([0, 1, 2])


def test_very_many_bytes_are_taken_in_pieces() -> None:
    """Who takes little does not wait for all of somebody's 10 MB."""
    world = World()
    much, little = rates(world, 1_000_000, 2)
    world.run([(0, world.taker(much, [10_000_000])), (1, world.taker(little, [1000]))])
    when = {n: at - 1_800_000_000 for at, n, _ in world.granted}
    assert when[1] == pytest.approx(1.0, abs=0.3)
    assert when[0] == pytest.approx(9.75, abs=0.1)


@pytest.mark.parametrize("step", [-3600.0, -0.5, 0.5, 3600.0], ids=str)
def test_a_clock_that_is_set_changes_little(step: float) -> None:
    """Nobody waits for an hour to pass again; a clock set forward is a pause."""
    world = World()
    first, second = rates(world, 1_000_000, 2)
    world.run([(0, world.taker(first, [50_000] * 100))])
    middle = world.now
    world.step = step
    world.run([(0, world.taker(second, [50_000] * 100))])
    assert 4.7 <= world.now - middle <= 5.1


async def test_no_rate_is_no_wait() -> None:
    class Never(LocalNumbers):
        def read(self, key: str) -> Sequence[float]:
            raise AssertionError(f"{key} was read")

    await Rate(Never(), "a", None).take(1 << 40)


def test_upstreams_have_rates_of_their_own() -> None:
    world = World()
    numbers = LocalNumbers()
    for name in ("a", "b"):
        rate = Rate(numbers, name, 1_000_000, clock=world.clock, sleep=nap)
        world.run([(0, world.taker(rate, [250_000]))])
    assert world.granted[0][0] == world.granted[1][0]


TAKERS = st.lists(
    st.tuples(
        st.floats(0, 5),
        st.lists(st.integers(1, BURST_BYTES), min_size=1, max_size=15),
        st.sampled_from([0.0, 0.01, 1.0]),
    ),
    min_size=1,
    max_size=5,
)


@given(TAKERS, st.sampled_from([20_000, 1_000_000, 50_000_000]))
@settings(max_examples=100, deadline=None)
def test_in_no_time_more_than_the_rate_and_a_burst(
    takers: list[tuple[float, list[int], float]], per_second: int
) -> None:
    """Whoever takes what and when: in each stretch of time, and everybody is served in the end."""
    world = World()
    rate = rates(world, per_second, 1)[0]
    world.run([(begins, world.taker(rate, sizes, between)) for begins, sizes, between in takers])
    assert len(world.granted) == sum(len(sizes) for _, sizes, _ in takers)
    burst = max(per_second / 4, BURST_BYTES)
    for first in range(len(world.granted)):
        total = 0
        for at, _, size in world.granted[first:]:
            total += size
            assert total <= per_second * (at - world.granted[first][0]) + burst + 100, "times are no more exact"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[list[SharedNumbers]]:
    """The numbers of four workers in one file."""
    opened = [SharedNumbers(tmp_path / "numbers", b"s" * 32) for _ in range(4)]
    yield opened
    for numbers in opened:
        numbers.close()


def test_the_numbers_of_all_workers_are_one_rate(shared: list[SharedNumbers]) -> None:
    world = World()
    world.run([(0, world.taker(rate, [50_000] * 50)) for rate in rates(world, 1_000_000, 4, shared)])
    begun = world.granted[0][0]
    assert world.now - begun == pytest.approx(10 - 0.25, abs=0.01)


async def test_it_really_sleeps() -> None:
    loop = asyncio.get_running_loop()
    rate = Rate(LocalNumbers(), "a", 1_000_000)
    begun = loop.time()
    for _ in range(7):
        await rate.take(50_000)
    assert 0.09 <= loop.time() - begun < 5


# ---- pace ----


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def watched(pace: Pace, clock: Clock, arrivals: Sequence[tuple[float, int]]) -> float | None:
    """Let bytes arrive, each after so many seconds; return when they were found too slow, None for never."""
    begun, received = clock.now, 0
    for after, size in arrivals:
        clock.now += after
        received += size
        try:
            pace.check(received)
        except TooSlow:
            return clock.now - begun
    return None


@pytest.mark.parametrize(
    ("arrivals", "found"),
    [
        pytest.param([(1.0, 1000)] * 100, None, id="just fast enough"),
        pytest.param([(1.0, 900)] * 100, (30, 31), id="a little too slow"),
        pytest.param([(1.0, 1)] * 29, None, id="too slow, but not for long enough"),
        pytest.param([(1.0, 1)] * 100, (30, 31), id="drops"),
        pytest.param([(29.0, 1), (1.0, 30_000)] + [(1.0, 1000)] * 100, None, id="slow at first, in time"),
        pytest.param([(1.0, 10**9)] + [(1.0, 1)] * 100, (31, 36), id="fast at first"),
        pytest.param([(1.0, 5000)] * 100 + [(1.0, 1)] * 100, (124, 131), id="slow in the end"),
        pytest.param([(10.0, 10_000)] * 20, None, id="in large pieces"),
        pytest.param([(45.0, 100)], (45, 45), id="after a long silence"),
        pytest.param([(0.0, 1)] * 1000, None, id="no time passes"),
    ],
)
def test_how_slow_is_too_slow(arrivals: list[tuple[float, int]], found: tuple[float, float] | None) -> None:
    """1000 bytes a second, over 30 s."""
    clock = Clock()
    when = watched(Pace(1000, 30.0, clock), clock, arrivals)
    if found is None:
        assert when is None
    else:
        assert when is not None
        assert found[0] <= when <= found[1]


def test_it_says_how_slow() -> None:
    clock = Clock()
    pace = Pace(1024, 30.0, clock)
    clock.now += 31
    with pytest.raises(TooSlow, match=r"^500 bytes in 31 s, less than 1024 bytes a second$") as told:
        pace.check(500)
    assert (told.value.received, told.value.seconds, told.value.minimum) == (500, 31, 1024)


def test_without_a_minimum_nothing_is_too_slow() -> None:
    clock = Clock()
    assert watched(Pace(None, 30.0, clock), clock, [(60.0, 0)] * 100) is None


def test_time_in_which_nobody_read_does_not_count() -> None:
    """A disk that takes a minute for each piece, and a source that is fast enough between."""
    clock = Clock()
    pace = Pace(1000, 30.0, clock)
    received = 0
    for _ in range(60):
        clock.now += 1
        received += 1000
        pace.pause()
        pace.check(received)
        clock.now += 30
        pace.pause()
        clock.now += 30
        pace.check(received)
        pace.resume()
        pace.resume()
        pace.check(received)
    for _ in range(40):
        clock.now += 1
        pace.pause()
        clock.now += 60
        pace.resume()
        received += 100
        try:
            pace.check(received)
        except TooSlow as error:
            slow = error
            break
    else:
        raise AssertionError("the source's own time counts still")
    assert slow.seconds <= 35
