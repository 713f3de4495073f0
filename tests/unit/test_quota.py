"""Quotas: what headers and 429s say of an account, and whom to ask as."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from multidict import CIMultiDict

from mirror.store.shared import SharedNumbers
from mirror.upstream.numbers import LocalNumbers
from mirror.upstream.quota import LONGEST_WINDOW, MOST, WINDOW, Exported, Quota, Reading, low, pick

START = 1_800_000_000.0
UNKNOWN = Reading()


class Clock:
    """Unix seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quota(clock: Clock) -> Quota:
    return Quota(LocalNumbers(), "docker.io", "0", clock=clock)


@pytest.fixture
def quotas(clock: Clock) -> list[Quota]:
    """Three accounts of one upstream."""
    numbers = LocalNumbers()
    return [Quota(numbers, "docker.io", str(n), clock=clock) for n in range(3)]


def headers(limit: str | None = None, remaining: str | None = None, retry: str | None = None) -> CIMultiDict[str]:
    found = {"RateLimit-Limit": limit, "RateLimit-Remaining": remaining, "Retry-After": retry}
    return CIMultiDict({name: value for name, value in found.items() if value is not None})


async def left(quota: Quota, remaining: int, limit: int = 100) -> None:
    """Let an answer say what is left."""
    await quota.note(headers(f"{limit};w=21600", f"{remaining};w=21600"), 200, counted=True)


async def limited(quota: Quota, *, counted: bool, retry: str | None = None) -> None:
    """Let it be answered 429."""
    await quota.note(headers(retry=retry), 429, counted=counted)


# ---- readings ----


@pytest.mark.parametrize(
    ("limit", "remaining", "known"),
    [
        pytest.param("100;w=21600", "76;w=21600", (100, 76, 21600.0), id="as Docker Hub says it"),
        pytest.param("100", "76", (100, 76, WINDOW), id="bare numbers"),
        pytest.param(" 100 ; w = 60 ", " 76 ;w=60", (100, 76, 60.0), id="spaces"),
        pytest.param("100, 100;w=60", "76", (100, 76, 60.0), id="a list of limits"),
        pytest.param("100;w=60", "76", (100, 76, 60.0), id="the window with the limit only"),
        pytest.param(None, "76;w=60", (None, 76, 60.0), id="no limit"),
        pytest.param("nonsense", "76", (None, 76, WINDOW), id="a limit that is nonsense"),
        pytest.param("0;w=60", "0;w=60", (None, 0, 60.0), id="a limit of nothing"),
        pytest.param("100;w=0", "76;w=0", (100, 76, WINDOW), id="a window of nothing"),
        pytest.param("100;w=x", "76;w=-5", (100, 76, WINDOW), id="a window that is nonsense"),
        pytest.param("9" * 5000, "9" * 5000, (MOST, MOST, WINDOW), id="huge"),
        pytest.param("100", "76;w=" + "9" * 5000, (100, 76, LONGEST_WINDOW), id="a huge window"),
        pytest.param("100", None, None, id="nothing left said"),
        pytest.param(None, None, None, id="nothing said"),
        pytest.param("100", "", None, id="empty"),
        pytest.param("100", "-1", None, id="negative"),
        pytest.param("100", "7.5", None, id="a fraction"),
        pytest.param("100", "76 pulls", None, id="words"),
        pytest.param("100", "\u0667", None, id="a digit of another script"),
        pytest.param("100", ";w=60", None, id="a window of nothing else"),
    ],
)
async def test_what_headers_say(
    quota: Quota, limit: str | None, remaining: str | None, known: tuple[int | None, int, float] | None
) -> None:
    await quota.note(headers(limit, remaining), 200, counted=True)
    if known is None:
        assert quota.reading() == UNKNOWN
        return
    most, rest, window = known
    assert quota.reading() == Reading(limit=most, remaining=rest, at=START, window=window)


async def test_nonsense_does_not_replace_what_is_known(quota: Quota) -> None:
    await left(quota, 50)
    await quota.note(headers("nonsense", "nonsense"), 200, counted=True)
    await quota.note(headers(), 200, counted=True)
    assert quota.reading().remaining == 50
    await quota.note(headers(None, "49"), 200, counted=True)
    assert (quota.reading().limit, quota.reading().remaining) == (100, 49)


async def test_a_reading_is_forgotten_with_its_window(quota: Quota, clock: Clock) -> None:
    await left(quota, 3)
    clock.now += 21599
    assert quota.reading().remaining == 3
    clock.now += 1
    assert quota.reading() == UNKNOWN
    await quota.spend()
    assert quota.reading() == UNKNOWN


async def test_a_reading_of_the_future_is_none(quota: Quota, clock: Clock) -> None:
    await left(quota, 3)
    await limited(quota, counted=True, retry="3600")
    clock.now -= 10
    assert quota.reading() == UNKNOWN, "the clock was set back"


async def test_each_pull_is_taken_off_until_the_next_reading(quota: Quota) -> None:
    await quota.spend()
    assert quota.reading() == UNKNOWN, "nothing to take it off"
    await left(quota, 2)
    for rest in (1, 0, 0):
        await quota.spend()
        assert quota.reading().remaining == rest
    await left(quota, 98)
    assert quota.reading().remaining == 98


async def test_with_none_left_one_a_minute_finds_out(quota: Quota, clock: Clock) -> None:
    await left(quota, 2)
    assert [await quota.spend() for _ in range(5)] == [True, True, True, False, False]
    assert quota.wait(counted=True) == 60
    assert quota.wait(counted=False) == 0
    assert not quota.told_to_rest()
    clock.now += 59
    assert not await quota.spend()
    clock.now += 1
    assert quota.wait(counted=True) == 0
    assert [await quota.spend() for _ in range(2)] == [True, False]
    await left(quota, 1)
    assert quota.wait(counted=True) == 0
    assert [await quota.spend() for _ in range(2)] == [True, False], "somebody found out a moment ago"
    clock.now -= 1000
    assert quota.wait(counted=True) == 0, "the clock was set back"


@pytest.mark.parametrize("counted", [True, False])
async def test_who_was_told_to_rest_says_so_until_it_is_over(quota: Quota, clock: Clock, counted: bool) -> None:
    await limited(quota, counted=counted, retry="40")
    assert quota.told_to_rest()
    clock.now += 41
    assert not quota.told_to_rest()


async def test_accounts_and_upstreams_are_apart(clock: Clock) -> None:
    numbers = LocalNumbers()
    one = Quota(numbers, "docker.io", "0", clock=clock)
    await left(one, 5)
    for upstream, account in (("docker.io", "1"), ("ghcr.io", "0")):
        assert Quota(numbers, upstream, account, clock=clock).reading() == UNKNOWN
    assert Quota(numbers, "docker.io", "0", clock=clock).reading().remaining == 5


# ---- 429 ----

LATER = format_datetime(datetime.fromtimestamp(START, UTC) + timedelta(seconds=90), usegmt=True)


@pytest.mark.parametrize(
    ("counted", "retry", "pulls", "others"),
    [
        pytest.param(True, None, 60, 0, id="a pull"),
        pytest.param(True, "7", 7, 0, id="a pull, told when"),
        pytest.param(True, LATER, 90, 0, id="a pull, told when by date"),
        pytest.param(True, "0", 0, 0, id="a pull, told at once"),
        pytest.param(True, "999999", 3600, 0, id="a pull, told far too long"),
        pytest.param(True, "soon", 60, 0, id="a pull, told nonsense"),
        pytest.param(False, None, 5, 5, id="anything else"),
        pytest.param(False, "120", 120, 120, id="anything else, told when"),
        pytest.param(False, "999999", 3600, 3600, id="anything else, told far too long"),
    ],
)
async def test_a_429_rests_an_account(
    quota: Quota, clock: Clock, counted: bool, retry: str | None, pulls: float, others: float
) -> None:
    await limited(quota, counted=counted, retry=retry)
    assert quota.wait(counted=True) == pulls
    assert quota.wait(counted=False) == others
    assert quota.exported() == Exported(limit=None, remaining=None, paused=pulls)
    clock.now += pulls
    assert quota.wait(counted=True) == quota.wait(counted=False) == 0
    assert quota.reading() == UNKNOWN


async def test_other_statuses_rest_nobody(quota: Quota) -> None:
    for status in (200, 304, 401, 403, 404, 503):
        await quota.note(headers("100", "0", "60"), status, counted=True)
    assert quota.wait(counted=True) == 0


async def test_a_429_is_read_as_well(quota: Quota) -> None:
    await quota.note(headers("100;w=21600", "0;w=21600", "30"), 429, counted=True)
    assert quota.exported() == Exported(limit=100, remaining=0, paused=30)


async def test_a_shorter_rest_does_not_end_a_longer_one(quota: Quota, clock: Clock) -> None:
    await limited(quota, counted=True, retry="100")
    clock.now += 10
    await limited(quota, counted=True, retry="5")
    assert quota.wait(counted=True) == 90
    await limited(quota, counted=True, retry="200")
    assert quota.wait(counted=True) == 200


async def test_a_clock_set_back_does_not_rest_it_for_ever(quota: Quota, clock: Clock) -> None:
    await limited(quota, counted=False, retry="3600")
    clock.now -= 1e6
    assert quota.wait(counted=False) == 0
    await limited(quota, counted=False, retry="7")
    assert quota.wait(counted=False) == 7


# ---- whom to ask as ----


@pytest.mark.parametrize(
    ("known", "order"),
    [
        pytest.param((None, None, None), (0, 1, 2), id="nothing known"),
        pytest.param((5, 50, 20), (1, 2, 0), id="most left first"),
        pytest.param((50, None, 20), (1, 0, 2), id="unknown is tried, and learnt"),
        pytest.param((20, 20, 20), (0, 1, 2), id="ties in the order given"),
        pytest.param((0, 3, 0), (1, 0, 2), id="those with nothing left come last"),
        pytest.param((0, 0, 0), (0, 1, 2), id="nothing left anywhere: the registry says so"),
    ],
)
async def test_who_has_most_left_is_asked_first(
    quotas: list[Quota], known: tuple[int | None, ...], order: tuple[int, ...]
) -> None:
    for quota, remaining in zip(quotas, known, strict=True):
        if remaining is not None:
            await left(quota, remaining)
    assert pick(quotas, counted=True) == (order, 0.0)


async def test_who_rests_is_left_out(quotas: list[Quota], clock: Clock) -> None:
    await left(quotas[0], 90)
    await limited(quotas[0], counted=True, retry="30")
    assert pick(quotas, counted=True).order == (1, 2)
    assert pick(quotas, counted=False).order == (1, 2, 0), "what does not count may go on"
    await limited(quotas[1], counted=False, retry="10")
    assert pick(quotas, counted=True).order == (2,)
    assert pick(quotas, counted=False).order == (2, 0)
    await limited(quotas[2], counted=True, retry="20")
    assert pick(quotas, counted=True) == ((), 10)
    clock.now += 4
    assert pick(quotas, counted=True) == ((), 6)
    clock.now += 6
    assert pick(quotas, counted=True) == ((1,), 0)


def test_without_accounts_nobody_is_asked() -> None:
    assert pick([], counted=True) == ((), 0)
    assert not low([], 1.0)


@pytest.mark.parametrize(
    ("known", "floor", "expected"),
    [
        pytest.param((None, None, None), 0.1, False, id="nothing known"),
        pytest.param((9, 9, 9), 0.1, True, id="under it everywhere"),
        pytest.param((9, 10, 9), 0.1, False, id="at it is enough"),
        pytest.param((9, None, 9), 0.1, False, id="one of which nothing is known"),
        pytest.param((9, 9, "rests"), 0.1, True, id="who rests has nothing"),
        pytest.param(("rests", "rests", "rests"), 0.1, True, id="all rest"),
        pytest.param((0, 0, 0), 0.0, False, id="no floor"),
        pytest.param((99, 99, 99), 1.0, True, id="everything is to be kept"),
        pytest.param((100, 99, 99), 1.0, False, id="nothing was spent"),
    ],
)
async def test_the_floor(
    quotas: list[Quota], known: tuple[int | str | None, ...], floor: float, expected: bool
) -> None:
    for quota, remaining in zip(quotas, known, strict=True):
        if isinstance(remaining, int):
            await left(quota, remaining)
        elif remaining is not None:
            await limited(quota, counted=True)
    assert low(quotas, floor) is expected


async def test_without_a_limit_nothing_left_is_low(quota: Quota) -> None:
    await quota.note(headers(None, "1"), 200, counted=True)
    assert not low([quota], 0.1)
    await quota.note(headers(None, "0"), 200, counted=True)
    assert low([quota], 0.1)


# ---- as many workers as there are ----


@pytest.fixture
def workers(tmp_path: Path, clock: Clock) -> Iterator[list[Quota]]:
    """One account as four workers have it."""
    opened = [SharedNumbers(tmp_path / "numbers", b"s" * 32) for _ in range(4)]
    yield [Quota(numbers, "docker.io", "0", clock=clock) for numbers in opened]
    for numbers in opened:
        numbers.close()


async def test_what_one_worker_is_told_all_know(workers: list[Quota]) -> None:
    await left(workers[0], 50)
    for worker in workers:
        await worker.spend()
    assert [worker.reading().remaining for worker in workers] == [46] * 4
    await left(workers[1], 1)
    assert [await worker.spend() for worker in workers] == [True, True, False, False]
    await limited(workers[2], counted=True, retry="40")
    assert [pick([worker], counted=True) for worker in workers] == [((), 40)] * 4
