"""The breaker: what opens it, what closes it, and that one probe finds out for all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.store.shared import SharedNumbers
from mirror.upstream.base import T
from mirror.upstream.breaker import Breaker, BreakerOpen, Cause, Condition, Phase, Trial
from mirror.upstream.numbers import LocalNumbers

HOST = "https://registry.test:443"
WINDOW, PROBE = 10.0, 18.0
START = 1_800_000_000.0


class Clock:
    """Unix seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class CountingNumbers(LocalNumbers):
    """Numbers that count what is written, and let others read before they write."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0

    async def update(self, key: str, change: Callable[[list[float]], T]) -> T:
        self.updates += 1
        await asyncio.sleep(0)  # as for a lock
        return await super().update(key, change)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def numbers() -> CountingNumbers:
    return CountingNumbers()


@pytest.fixture
def breaker(numbers: CountingNumbers, clock: Clock) -> Breaker:
    return Breaker(numbers, window=WINDOW, probe=PROBE, clock=clock)


async def down(breaker: Breaker) -> None:
    """Open it by a time-out."""
    await (await breaker.enter(HOST)).failed(Cause.TIMEOUT)


async def refused(breaker: Breaker) -> BreakerOpen:
    """Be refused."""
    with pytest.raises(BreakerOpen) as told:
        await breaker.enter(HOST)
    return told.value


async def enter_or_not(breaker: Breaker) -> Trial | None:
    """Begin a trial; None when there is none to be had, and then a time is told that makes sense."""
    try:
        return await breaker.enter(HOST)
    except BreakerOpen as error:
        told = error
    assert 0 <= told.wait <= max(WINDOW, PROBE)
    assert told.since >= 0
    return None


CAUSES = {"T": Cause.TIMEOUT, "U": Cause.UNREACHABLE, "B": Cause.BROKEN, "5": Cause.STATUS}


@pytest.mark.parametrize(
    ("happened", "cause"),
    [
        pytest.param("", None, id="nothing yet"),
        pytest.param("T", Cause.TIMEOUT, id="one time-out"),
        pytest.param("sT", Cause.TIMEOUT, id="a time-out after it last answered"),
        pytest.param("U", None, id="one refused connection"),
        pytest.param("UU", None, id="two"),
        pytest.param("UUU", Cause.UNREACHABLE, id="three"),
        pytest.param("BBB", Cause.BROKEN, id="three without an answer"),
        pytest.param("UBU", Cause.UNREACHABLE, id="three of both kinds"),
        pytest.param("UUsUU", None, id="a success between starts anew"),
        pytest.param("UUsUUU", Cause.UNREACHABLE, id="and three after it open"),
        pytest.param("UUaU", Cause.UNREACHABLE, id="one that was given up says nothing"),
        pytest.param("U5U5", None, id="server errors are not refusals"),
        pytest.param("U5U5U", Cause.UNREACHABLE, id="nor do they excuse them"),
        pytest.param("555555555", None, id="nine server errors"),
        pytest.param("5555555555", Cause.STATUS, id="ten"),
        pytest.param("55555s5555555", None, id="a success between them"),
        pytest.param("55555555UU", Cause.UNREACHABLE, id="ten failures of two kinds"),
        pytest.param("UU5T", Cause.TIMEOUT, id="a time-out needs no company"),
    ],
)
async def test_what_opens_it(breaker: Breaker, clock: Clock, happened: str, cause: Cause | None) -> None:
    """T time-out, U unreachable, B broken, 5 server error, s success, a given up; one after the other."""
    for one in happened:
        trial = await breaker.enter(HOST)
        clock.now += 0.5
        match one:
            case "s":
                await trial.succeeded()
            case "a":
                await trial.abandon()
            case _:
                await trial.failed(CAUSES[one])
        clock.now += 0.001
    if cause is None:
        await (await breaker.enter(HOST)).abandon()
        assert breaker.state(HOST) == Condition(phase=Phase.CLOSED)
    else:
        told = await refused(breaker)
        assert told.cause == cause.words
        assert breaker.state(HOST).phase is Phase.OPEN
        assert breaker.state(HOST).cause is cause
        await (await breaker.enter("https://another.test:443")).abandon()


async def test_a_time_out_means_nothing_while_others_are_answered(breaker: Breaker, clock: Clock) -> None:
    slow = await breaker.enter(HOST)
    clock.now += 5
    await (await breaker.enter(HOST)).succeeded()
    clock.now += 13
    await slow.failed(Cause.TIMEOUT)
    await (await breaker.enter(HOST)).abandon()
    later = await breaker.enter(HOST)
    clock.now += 18
    await later.failed(Cause.TIMEOUT)
    await refused(breaker)


async def test_it_tells_what_the_host_did_and_how_long_it_is_left_alone(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now += 4
    told = await refused(breaker)
    assert (told.host, told.cause, told.since, told.wait) == (HOST, "did not answer in time", 4, 6)
    assert str(told) == f"{HOST} did not answer in time 4 s ago; it is left alone for another 6 s"


async def test_after_the_window_one_probe_finds_out(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now += WINDOW - 0.01
    await refused(breaker)
    clock.now += 0.02
    probe = await breaker.enter(HOST)
    assert breaker.state(HOST).phase is Phase.PROBING
    clock.now += 3
    told = await refused(breaker)
    assert told.wait == pytest.approx(PROBE - 3)
    await probe.succeeded()
    assert breaker.state(HOST) == Condition(phase=Phase.CLOSED)
    for _ in range(3):
        await (await breaker.enter(HOST)).abandon()


@pytest.mark.parametrize("cause", list(Cause), ids=lambda cause: cause.name)
async def test_a_probe_that_fails_opens_it_for_another_window(breaker: Breaker, clock: Clock, cause: Cause) -> None:
    await down(breaker)
    clock.now += WINDOW
    probe = await breaker.enter(HOST)
    clock.now += 2
    await probe.failed(cause)
    told = await refused(breaker)
    assert (told.cause, told.since, told.wait) == (cause.words, 0, WINDOW)
    assert breaker.state(HOST) == Condition(phase=Phase.OPEN, cause=cause, seconds=WINDOW + 2)
    clock.now += WINDOW
    await (await breaker.enter(HOST)).succeeded()
    assert breaker.state(HOST).phase is Phase.CLOSED


async def test_a_dead_host_costs_one_trial_a_window(breaker: Breaker, clock: Clock) -> None:
    """Asked four times a second for ten windows and time-outs; each time-out takes 5 s."""
    under_way: list[tuple[float, Trial]] = []
    trials = 0
    await down(breaker)
    while clock.now < START + 10 * (WINDOW + 5):
        clock.now += 0.25
        for ends, trial in [one for one in under_way if one[0] <= clock.now]:
            await trial.failed(Cause.TIMEOUT)
            under_way.remove((ends, trial))
        try:
            under_way.append((clock.now + 5, await breaker.enter(HOST)))
            trials += 1
        except BreakerOpen:
            pass
    assert trials == 10


async def test_a_probe_that_is_given_up_is_anothers(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now += WINDOW
    first = await breaker.enter(HOST)
    await refused(breaker)
    await first.abandon()
    second = await breaker.enter(HOST)
    await refused(breaker)
    await first.abandon()
    await first.succeeded()
    await refused(breaker)
    await second.succeeded()
    await (await breaker.enter(HOST)).abandon()


@pytest.mark.parametrize("end", ["fails", "is given up"])
async def test_a_probe_whose_process_died_is_made_again(breaker: Breaker, clock: Clock, end: str) -> None:
    await down(breaker)
    clock.now += WINDOW
    lost = await breaker.enter(HOST)
    clock.now += PROBE - 0.01
    await refused(breaker)
    clock.now += 0.02
    second = await breaker.enter(HOST)
    await refused(breaker)
    # The first was only slow; but it is not the probe any more.
    if end == "fails":
        await lost.failed(Cause.TIMEOUT)
    else:
        await lost.abandon()
    assert breaker.state(HOST).phase is Phase.PROBING
    await refused(breaker)
    await second.succeeded()
    assert breaker.state(HOST).phase is Phase.CLOSED


async def test_of_many_who_see_the_window_end_one_is_the_probe(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now += WINDOW
    answers = await asyncio.gather(*(enter_or_not(breaker) for _ in range(50)))
    assert sum(answer is not None for answer in answers) == 1


async def test_who_saw_it_open_is_let_in_when_it_has_closed_meanwhile(breaker: Breaker, clock: Clock) -> None:
    lucky = await breaker.enter(HOST)
    await down(breaker)
    clock.now += WINDOW
    _, *answers = await asyncio.gather(lucky.succeeded(), *(enter_or_not(breaker) for _ in range(5)))
    assert None not in answers
    assert [answer.probe for answer in answers if answer] == [0] * 5


async def test_what_was_under_way_does_not_prolong_it(breaker: Breaker, clock: Clock) -> None:
    others = [await breaker.enter(HOST) for _ in range(20)]
    clock.now += 5
    await down(breaker)
    for n, trial in enumerate(others):
        clock.now += 0.4
        await trial.failed([Cause.TIMEOUT, Cause.UNREACHABLE, Cause.STATUS][n % 3])
    assert (await refused(breaker)).wait == pytest.approx(2)
    assert breaker.state(HOST).seconds == pytest.approx(8)


async def test_what_was_under_way_closes_it_by_an_answer(breaker: Breaker, clock: Clock) -> None:
    lucky = await breaker.enter(HOST)
    late = await breaker.enter(HOST)
    await down(breaker)
    clock.now += 1
    await lucky.succeeded()
    await (await breaker.enter(HOST)).abandon()
    clock.now += 1
    await late.failed(Cause.TIMEOUT)
    await (await breaker.enter(HOST)).abandon()


async def test_it_writes_nothing_while_all_is_well(breaker: Breaker, clock: Clock, numbers: CountingNumbers) -> None:
    for _ in range(1000):
        trial = await breaker.enter(HOST)
        clock.now += 0.001
        await trial.succeeded()
    assert 8 <= numbers.updates <= 11, "one a tenth of a second"
    await (await breaker.enter(HOST)).failed(Cause.UNREACHABLE)
    before = numbers.updates
    await (await breaker.enter(HOST)).succeeded()
    assert numbers.updates == before + 1, "but a failure is forgotten at once"


async def test_a_refusal_writes_nothing(breaker: Breaker, numbers: CountingNumbers) -> None:
    await down(breaker)
    before = numbers.updates
    for _ in range(100):
        await refused(breaker)
    assert numbers.updates == before


async def test_a_window_of_nothing_switches_it_off(numbers: CountingNumbers, clock: Clock) -> None:
    await down(Breaker(numbers, window=WINDOW, probe=PROBE, clock=clock))
    before = numbers.updates
    breaker = Breaker(numbers, window=0.0, probe=PROBE, clock=clock)
    for cause in list(Cause) * 5:
        await (await breaker.enter(HOST)).failed(cause)
    await (await breaker.enter(HOST)).succeeded()
    await (await breaker.enter(HOST)).abandon()
    assert breaker.state(HOST) == Condition(phase=Phase.CLOSED)
    assert numbers.updates == before


# ---- a clock that is set back ----


async def test_a_clock_set_back_does_not_keep_it_open(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now -= 3600
    probe = await breaker.enter(HOST)
    await refused(breaker)
    await probe.failed(Cause.TIMEOUT)
    assert (await refused(breaker)).wait == WINDOW
    assert breaker.state(HOST).seconds == 0


async def test_a_clock_set_back_during_a_probe_does_not_keep_it_open(breaker: Breaker, clock: Clock) -> None:
    await down(breaker)
    clock.now += WINDOW
    await breaker.enter(HOST)
    clock.now -= 3600
    await (await breaker.enter(HOST)).succeeded()
    assert breaker.state(HOST).phase is Phase.CLOSED


async def test_a_clock_set_back_does_not_keep_it_closed(breaker: Breaker, clock: Clock) -> None:
    await (await breaker.enter(HOST)).succeeded()
    clock.now -= 3600
    await down(breaker)
    await refused(breaker)


async def test_a_clock_set_back_does_not_make_a_success_look_new(
    breaker: Breaker, clock: Clock, numbers: CountingNumbers
) -> None:
    await (await breaker.enter(HOST)).succeeded()
    clock.now -= 3600
    slow = await breaker.enter(HOST)
    clock.now += 1
    await (await breaker.enter(HOST)).succeeded()
    clock.now += 10
    await slow.failed(Cause.TIMEOUT)
    await (await breaker.enter(HOST)).abandon()


# ---- as many workers as there are ----


@pytest.fixture
def workers(tmp_path: Path, clock: Clock) -> Iterator[list[Breaker]]:
    """The breakers of four workers, which share one file."""
    opened = [SharedNumbers(tmp_path / "numbers", b"s" * 32) for _ in range(4)]
    yield [Breaker(numbers, window=WINDOW, probe=PROBE, clock=clock) for numbers in opened]
    for numbers in opened:
        numbers.close()


async def test_four_workers_make_one_probe(workers: list[Breaker], clock: Clock) -> None:
    await down(workers[0])
    for worker in workers:
        await refused(worker)
    for _ in range(5):
        clock.now += WINDOW
        answers = await asyncio.gather(
            *(worker.enter(HOST) for worker in workers for _ in range(25)), return_exceptions=True
        )
        probes = [answer for answer in answers if isinstance(answer, Trial)]
        assert len(probes) == 1
        assert sum(isinstance(answer, BreakerOpen) for answer in answers) == 99
        assert {worker.state(HOST).phase for worker in workers} == {Phase.PROBING}
        await probes[0].failed(Cause.TIMEOUT)
        for worker in workers:
            await refused(worker)
    clock.now += WINDOW
    await (await workers[3].enter(HOST)).succeeded()
    for worker in workers:
        await (await worker.enter(HOST)).abandon()


async def test_four_workers_count_together(workers: list[Breaker]) -> None:
    for worker in workers[:2]:
        await (await worker.enter(HOST)).failed(Cause.UNREACHABLE)
        await (await workers[3].enter(HOST)).abandon()
    await (await workers[2].enter(HOST)).failed(Cause.UNREACHABLE)
    for worker in workers:
        await refused(worker)


STEPS = st.one_of(
    st.tuples(st.just("enter"), st.just(0)),
    st.tuples(st.sampled_from(["succeed", "abandon", *CAUSES]), st.integers(0, 9)),
    st.tuples(st.just("pass"), st.sampled_from([0, 1, 5, 10, 18, 40])),
    st.tuples(st.just("back"), st.sampled_from([1, 100])),
)


@given(st.lists(STEPS, max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_it_never_stays_shut_and_never_has_two_probes(steps: list[tuple[str, int]]) -> None:
    """In any order: within a probe's time at most one probe is under way; after window and probe it lets one in."""

    async def run() -> None:
        clock = Clock()
        breaker = Breaker(LocalNumbers(), window=WINDOW, probe=PROBE, clock=clock)
        under_way: list[Trial] = []
        probes: list[Trial] = []
        for step, amount in steps:
            match step:
                case "enter":
                    trial = await enter_or_not(breaker)
                    under_way += [trial] if trial else []
                    probes += [trial] if trial and trial.probe else []
                case "pass":
                    clock.now += amount
                case "back":
                    clock.now -= amount
                case _ if under_way:
                    trial = under_way.pop(amount % len(under_way))
                    probes = [one for one in probes if one is not trial]
                    if step == "succeed":
                        await trial.succeeded()
                        assert breaker.state(HOST).phase is Phase.CLOSED
                    elif step == "abandon":
                        await trial.abandon()
                    else:
                        await trial.failed(CAUSES[step])
            if breaker.state(HOST).phase is Phase.CLOSED:
                probes = []  # what they say does not matter any more
            if not any(step == "back" for step, _ in steps):
                assert sum(clock.now - one.begun < PROBE for one in probes) <= 1
        clock.now += WINDOW + PROBE
        await (await breaker.enter(HOST)).succeeded()
        assert breaker.state(HOST).phase is Phase.CLOSED

    asyncio.run(run())
