"""Numbers under keys: one contract, and what it takes for them to be shared by processes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.errors import StorageFailed, StorageFull
from mirror.store import shared
from mirror.store.root import open_root
from mirror.store.shared import BUCKETS, SIZE, SLOTS, SharedNumbers
from mirror.upstream.base import NUMBERS, Numbers
from mirror.upstream.numbers import LocalNumbers

SECRET = b"s" * 32
ZEROS = (0.0,) * NUMBERS

Open = Callable[..., SharedNumbers]


@pytest.fixture
def open_shared(tmp_path: Path) -> Iterator[Open]:
    """Open the file of this test, as a worker does."""
    opened: list[SharedNumbers] = []

    def open_it(**changes: Any) -> SharedNumbers:
        numbers = SharedNumbers(tmp_path / "numbers", SECRET, **changes)
        opened.append(numbers)
        return numbers

    yield open_it
    for numbers in opened:
        numbers.close()


@pytest.fixture
def workers(open_shared: Open) -> list[SharedNumbers]:
    """The same file as four workers have it."""
    return [open_shared() for _ in range(4)]


def add(amount: float, at: int = 0) -> Callable[[list[float]], float]:
    """Return a change that adds to a number, and gives the sum."""

    def change(numbers: list[float]) -> float:
        numbers[at] += amount
        return numbers[at]

    return change


# ---- the contract ----


@pytest.fixture(params=["local", "shared"])
def numbers(request: pytest.FixtureRequest, open_shared: Open) -> Numbers:
    return LocalNumbers() if request.param == "local" else open_shared()


async def test_numbers_are_zeros_at_first(numbers: Numbers) -> None:
    assert tuple(numbers.read("key")) == ZEROS
    assert await numbers.update("key", lambda found: tuple(found)) == ZEROS


async def test_an_update_returns_its_result_and_is_read_by_all(numbers: Numbers) -> None:
    assert await numbers.update("key", add(1.5)) == 1.5
    assert await numbers.update("key", add(2.0)) == 3.5
    assert await numbers.update("key", add(7.0, at=NUMBERS - 1)) == 7.0
    assert tuple(numbers.read("key")) == (3.5, *(0.0,) * (NUMBERS - 2), 7.0)


async def test_keys_are_apart(numbers: Numbers) -> None:
    for n in range(100):
        await numbers.update(f"key {n}", add(n + 1))
    assert [numbers.read(f"key {n}")[0] for n in range(100)] == [n + 1 for n in range(100)]
    assert tuple(numbers.read("key")) == ZEROS


async def test_a_change_that_raises_alters_nothing(numbers: Numbers) -> None:
    await numbers.update("key", add(1))

    def change(found: list[float]) -> None:
        found[0] = 99
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await numbers.update("key", change)
    assert numbers.read("key")[0] == 1
    assert await numbers.update("key", add(1)) == 2, "and the next may go on"


async def test_what_was_read_does_not_change(numbers: Numbers) -> None:
    await numbers.update("key", add(1))
    found = numbers.read("key")
    await numbers.update("key", add(1))
    assert found[0] == 1


async def test_updates_of_one_process_at_a_time_lose_nothing(numbers: Numbers) -> None:
    await asyncio.gather(*(numbers.update("key", add(1)) for _ in range(200)))
    assert numbers.read("key")[0] == 200


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, 1e308, 0.1])
async def test_any_number_comes_back_as_it_was(numbers: Numbers, value: float) -> None:
    await numbers.update("key", lambda found: found.__setitem__(0, value))
    assert struct.pack("d", numbers.read("key")[0]) == struct.pack("d", value)


# ---- shared ----


def test_there_are_as_many_numbers_as_the_protocol_says() -> None:
    assert shared.NUMBERS == NUMBERS


async def test_what_one_worker_writes_all_read_at_once(workers: list[SharedNumbers]) -> None:
    for n, one in enumerate(workers, start=1):
        assert await one.update("key", add(1)) == n
        assert [other.read("key")[0] for other in workers] == [n] * 4


async def test_numbers_survive_a_restart(open_shared: Open) -> None:
    first = await asyncio.to_thread(open_shared)
    await first.update("key", add(5))
    first.close()
    second = await asyncio.to_thread(open_shared)
    assert second.read("key")[0] == 5


async def test_many_more_keys_than_there_is_room_for(workers: list[SharedNumbers]) -> None:
    """Keys made up by clients take the place of what was changed longest ago, and never another's numbers."""
    await workers[0].update("old", add(1))
    for n in range(2000):
        await workers[n % 4].update(f"made up {n}", add(n + 1))
        if n % 50 == 0:
            await workers[0].update("used", add(1))
    assert workers[1].read("used")[0] == 40, "who is in use stays"
    assert workers[1].read("old")[0] == 0, "who is not goes, in the end"
    found = [workers[2].read(f"made up {n}")[0] for n in range(2000)]
    assert all(value in (0, n + 1) for n, value in enumerate(found))
    kept = [n for n, value in enumerate(found) if value]
    assert BUCKETS * SLOTS * 0.9 < len(kept) <= BUCKETS * SLOTS
    assert sum(n >= 2000 - 500 for n in kept) == 500, "the last ones are all there"
    assert await workers[3].update(f"made up {kept[0]}", add(1)) == kept[0] + 2
    assert await workers[3].update("old", add(3)) == 3, "and who went may come back"


def place_of(numbers: SharedNumbers, key: str) -> int:
    """Return where a key's bucket begins."""
    return numbers._place(key)[1]


def test_who_does_not_know_the_secret_cannot_choose_a_bucket(open_shared: Open, tmp_path: Path) -> None:
    numbers, other = open_shared(), SharedNumbers(tmp_path / "other", b"t" * 32)
    keys = [f"key {n}" for n in range(50)]
    assert [place_of(numbers, key) for key in keys] != [place_of(other, key) for key in keys]
    assert len({place_of(numbers, key) for key in keys}) > 20, "they are all over the place"
    other.close()


async def test_a_clock_set_back_does_not_bring_old_numbers_back(
    workers: list[SharedNumbers], monkeypatch: pytest.MonkeyPatch
) -> None:
    await workers[0].update("key", add(1))
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    for n in range(2, 6):
        assert await workers[1].update("key", add(1)) == n
        assert workers[2].read("key")[0] == n


# ---- torn, cut, wrong ----


async def test_a_process_killed_at_any_byte_of_an_update_leaves_a_record(
    workers: list[SharedNumbers], tmp_path: Path
) -> None:
    """Write the first bytes of the next record only, as if the process had ended there."""
    one, other = workers[:2]
    await one.update("key", add(1))
    await one.update("key", add(1))
    path = tmp_path / "numbers"
    before = path.read_bytes()
    await one.update("key", add(1))
    after = path.read_bytes()
    changed = [at for at in range(SIZE) if before[at] != after[at]]
    first, last = changed[0], changed[-1]
    assert last - first < 128, "one copy of the two"
    seen = set()
    for cut in range(first, last + 2):
        with path.open("r+b") as file:
            file.write(after[:cut] + before[cut:])
        assert other.read("key")[0] in (2, 3), f"after {cut - first} bytes"
        seen.add(other.read("key")[0])
        assert await other.update("key", add(10)) in (12, 13)
        assert one.read("key")[0] in (12, 13)
        assert await one.update("key", add(10)) in (22, 23), "both copies are whole again"
    assert seen == {2, 3}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: os.truncate(path, 5000), id="cut"),
        pytest.param(lambda path: path.write_bytes(b"\xff" * SIZE), id="something else"),
        pytest.param(lambda path: path.write_bytes(bytes(SIZE)), id="zeros"),
        pytest.param(lambda path: path.unlink(), id="gone"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes().replace(b"numbers 1", b"numbers 2", 1)), id="another layout"
        ),
    ],
)
async def test_a_wrong_file_begins_anew(open_shared: Open, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    path = tmp_path / "numbers"
    first = await asyncio.to_thread(open_shared)
    await first.update("key", add(5))
    first.close()
    damage(path)
    one, other = await asyncio.to_thread(open_shared), await asyncio.to_thread(open_shared)
    assert path.stat().st_size == SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert one.read("key")[0] == 0
    await one.update("key", add(1))
    assert other.read("key")[0] == 1


async def test_a_file_is_repaired_in_place_under_those_who_have_it(open_shared: Open, tmp_path: Path) -> None:
    """A worker that starts again finds it wrong: it must not take it away from the others."""
    path = tmp_path / "numbers"
    first = await asyncio.to_thread(open_shared)
    await first.update("key", add(5))
    with path.open("r+b") as file:
        file.write(b"nonsense")
    second = await asyncio.to_thread(open_shared)
    await second.update("key", add(1))
    assert first.read("key")[0] == second.read("key")[0] == 1


def test_every_block_is_there_before_it_is_mapped(open_shared: Open, tmp_path: Path) -> None:
    """Also when a copy of the root has holes in it."""
    path = tmp_path / "numbers"
    open_shared().close()
    body = path.read_bytes()
    path.unlink()
    with path.open("xb") as file:
        file.write(body[:4096].rstrip(b"\0"))
        file.truncate(SIZE)
    assert path.stat().st_blocks * 512 < SIZE, "this file system makes holes"
    open_shared()
    assert path.stat().st_blocks * 512 >= SIZE


def test_a_full_disk_is_an_error_before_anything_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageFull, match="numbers"):
        SharedNumbers(tmp_path / "numbers", SECRET)


def test_a_file_that_may_not_be_as_long_is_an_error_before_anything_is_mapped(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.raises(StorageFailed, match="preparing"):
            SharedNumbers(tmp_path / "numbers", SECRET)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_root_has_a_place_for_it(tmp_path: Path) -> None:
    root = open_root(tmp_path / "root")
    numbers = SharedNumbers(root.numbers, root.secret)
    numbers.close()
    numbers.close()
    assert root.numbers.stat().st_size == SIZE


# ---- exclusion ----

_FLOCK = struct.Struct("hhqqi4x")


def hold(path: Path, place: int) -> int:
    """Hold a bucket's lock, as a process does that was stopped in the middle of an update. Returns a descriptor."""
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, place, 1, 0))
    return fd


async def test_an_update_waits_for_another(open_shared: Open, tmp_path: Path) -> None:
    numbers = await asyncio.to_thread(open_shared, patience=60)
    fd = hold(tmp_path / "numbers", place_of(numbers, "key"))
    update = asyncio.create_task(numbers.update("key", add(1)))
    await asyncio.sleep(0.02)
    assert not update.done()
    assert numbers.read("key")[0] == 0, "to read nobody waits"
    os.close(fd)
    assert await asyncio.wait_for(update, 10) == 1


async def test_who_holds_a_lock_for_ever_holds_nobody_up(open_shared: Open, tmp_path: Path) -> None:
    numbers = await asyncio.to_thread(open_shared)
    fd = hold(tmp_path / "numbers", place_of(numbers, "key"))
    try:
        begun = asyncio.get_running_loop().time()
        assert await asyncio.wait_for(numbers.update("key", add(1)), 10) == 1
        assert asyncio.get_running_loop().time() - begun >= 0.05, "it did wait first"
        assert await numbers.update("key", add(1)) == 2
    finally:
        os.close(fd)


async def test_the_lock_is_given_back(open_shared: Open, tmp_path: Path) -> None:
    """Also by an update that failed."""
    numbers = await asyncio.to_thread(open_shared)

    def change(_: list[float]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await numbers.update("key", change)
    await numbers.update("key", add(1))
    os.close(hold(tmp_path / "numbers", place_of(numbers, "key")))


async def test_a_worker_stopped_in_an_update_spoils_nothing_when_it_goes_on(workers: list[SharedNumbers]) -> None:
    """It writes what it had made of numbers long gone; others have gone on without its lock."""
    stopped, other = workers[:2]
    await stopped.update("key", add(1))
    kept: list[float] = []

    def change(numbers: list[float]) -> None:
        numbers[0] += 1
        # Others write meanwhile, straight past the lock.
        for _ in range(5):
            other._flock = lambda *_: True  # type: ignore[method-assign]
            coroutine = other.update("key", add(100))
            with pytest.raises(StopIteration) as done:
                coroutine.send(None)
            kept.append(done.value.value)

    await stopped.update("key", change)
    assert kept == [101, 201, 301, 401, 501]
    assert workers[2].read("key")[0] in (401, 501), "at most the last is lost"
