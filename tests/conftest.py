"""What all tests share: nothing blocks the event loop, and nothing outlives its test."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import aioresponses.compat
import aioresponses.core
import blockbuster.blockbuster
import pytest
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def _needs_shim() -> bool:
    parameters = inspect.signature(aiohttp.ClientResponse.__init__).parameters
    return "stream_writer" in parameters and "stream_writer" not in inspect.getsource(aioresponses.core)


@pytest.fixture(scope="session", autouse=True)
def aioresponses_on_this_aiohttp() -> Any:
    """Let aioresponses build responses for newer versions of aiohttp, until it can do so itself.

    It leaves out an argument that ClientResponse now demands, and its stream reader stands on a protocol
    without a parser, which a paused reader would ask to pause.
    """
    if not _needs_shim():
        yield
        return

    class Response(aiohttp.ClientResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
            super().__init__(*args, **kwargs)

    real_factory = aioresponses.core.stream_reader_factory

    def factory(loop: Any = None) -> aiohttp.StreamReader:
        reader = real_factory(loop)
        reader._protocol._parser = SimpleNamespace(
            pause_reading=lambda: None, resume_reading=lambda: (None, False, b""), feed_eof=lambda: None
        )
        return reader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aioresponses.core, "ClientResponse", Response)
        patch.setattr(aioresponses.core, "stream_reader_factory", factory)
        yield


# ---- nothing blocks the event loop ----

ALSO_BLOCKING = (
    *("fsync", "fdatasync", "sync", "truncate", "ftruncate", "posix_fallocate", "lockf", "chmod", "utime", "renames"),
    *("pread", "preadv", "pwrite", "pwritev", "readv", "writev", "copy_file_range", "makedirs", "walk", "system"),
)
"""Functions of ``os`` that block and that blockbuster does not know."""

LOCAL_LOOKS = (("disk.py", {"stat", "scratch"}), ("store/uploads.py", {"size", "wanted", "unwant"}))
"""Where the loop looks at names of local files: one system call each, like ``os.open``, which is not checked."""

PRIMARY_KEY_READS = ("mirror/metadata/database.py", {"one"})
"""The one place that may read the database on the loop: single rows by primary key, from the page cache."""


LOG_LINES = ("mirror/logs/output.py", {"write"})
"""Where lines go out, in batches; pipes and terminals are written to without waiting."""


class _Blocked(BlockingError):
    """Notes the call as well: whoever catches everything catches this too."""

    seen: list[str] = []  # noqa: RUF012

    def __init__(self, func: str) -> None:
        super().__init__(func)
        self.seen.append(f"{func} ({_caller()})")


def _caller() -> str:
    frame = inspect.currentframe()
    while frame and f"{os.sep}mirror{os.sep}" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"


def _from_page_cache(fd: int, buffers: Any, offset: int, flags: int = 0) -> bool:
    return bool(flags & os.RWF_NOWAIT)


def _watched() -> BlockBuster:
    """Return a watch over what code of ours calls on an event loop, directly or through a library."""
    watch = BlockBuster(scanned_modules="mirror")
    for name in ALSO_BLOCKING:
        function = BlockBusterFunction(os, name, scanned_modules="mirror")
        watch.functions[f"os.{name}"] = function
    watch.functions["os.preadv"].can_block_predicate = _from_page_cache
    for name in ("os.stat", "os.unlink"):
        for where in LOCAL_LOOKS:
            watch.functions[name].can_block_in(*where)
    for name in ("sqlite3.Connection.execute", "sqlite3.Cursor.fetchone"):
        watch.functions[name].can_block_in(*PRIMARY_KEY_READS)
    for name in ("os.write", "socket.socket.send"):
        watch.functions[name].can_block_in(*LOG_LINES)
    for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
        watch.functions[name].can_block_in("logging/__init__.py", {"emit", "flush"})  # pytest's own handlers
    return watch


@pytest.fixture(scope="session", autouse=True)
def _watch_for_blocking_calls() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockbuster.blockbuster, "BlockingError", _Blocked)
        watch = _watched()
        watch.activate()
        yield
        watch.deactivate()


@pytest.fixture(autouse=True)
def blocking_calls(_watch_for_blocking_calls: None) -> Iterator[list[str]]:
    """Fail a test in which a call blocked the event loop. Gives the list of them, for the test of this check."""
    _Blocked.seen.clear()
    yield _Blocked.seen
    assert not _Blocked.seen, f"blocking calls on the event loop: {_Blocked.seen}"


# ---- nothing outlives its test ----

THREADS_END = 20.0
"""Seconds that a thread which was told to end may take."""


def _descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass  # the one of listdir itself
    return found


@pytest.fixture(autouse=True)
def no_thread_or_descriptor_survives() -> Iterator[None]:
    """Fail a test that leaves a thread or an open file behind, when its event loop has ended too."""
    threads, before = set(threading.enumerate()), _descriptors()
    yield
    deadline = time.monotonic() + THREADS_END
    while (alive := set(threading.enumerate()) - threads) and time.monotonic() < deadline:
        time.sleep(0.005)  # a thread that was told to end
    assert not alive, f"threads left: {alive}"
    left = _difference(before)
    if left:
        gc.collect()  # what a cycle holds is closed by now, and warned of
        left = _difference(before)
    assert not left, f"descriptors left: {left}"


def _difference(before: dict[int, str]) -> dict[int, str]:
    return {fd: name for fd, name in _descriptors().items() if before.get(fd) != name}


@pytest.fixture(autouse=True)
async def no_task_survives(no_thread_or_descriptor_survives: None) -> AsyncIterator[None]:
    """Fail a test that leaves a task running."""
    yield
    for _ in range(3):
        await asyncio.sleep(0)  # a task that is done needs a turn to be gone
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks left: {left}"
