"""Two small expiring indexes all processes share, kept with diskcache; and the batches in which they are written.

``cache.index/blobs``: digest → size of what was pulled through, in least-recently-used order (a touch is a
delete and a set in one transaction, so the oldest row is the first). ``cache.index/memo``: small answers worth
remembering for seconds. Neither is opened on the way of a hit: touches are collected in memory and written in
one batch, and with them what is counted (``tally.py``). diskcache would pickle values it does not know, and
unpickle what it finds (CVE-2025-69872): the ``Disk`` below refuses both.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diskcache

from mirror.oci.errors import StorageFailed
from mirror.oci.names import Digest
from mirror.store.tally import FILE, Counted, Tally

log = logging.getLogger("mirror.store")
T = TypeVar("T")

MOST_TOUCHES = 100_000
"""Touches kept in memory while they cannot be written."""

INDEX = "blobs/cache.db"
"""Where, in the folder, the index of what was pulled through is."""
ROWS = "SELECT key AS digest, value AS size, store_time AS used FROM {schema}.Cache"
"""What is in it: digest, size in bytes, when it was used last (Unix seconds). Each use stores its row anew."""
NO_ROWS = "SELECT '' AS digest, 0 AS size, 0.0 AS used WHERE 0"
"""The same, where there is no index."""

_MODE_PICKLE = 4


class PlainDisk(diskcache.Disk):  # type: ignore[misc]
    """Keys are text; values are text, bytes or whole numbers; nothing is ever pickled."""

    def put(self, key: object) -> tuple[object, bool]:
        if type(key) is not str:
            raise TypeError(f"keys are text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: bool) -> object:
        if not raw:
            raise ValueError("a pickled key was found in the index; move cache.index away to rebuild it")
        return key

    def store(self, value: object, read: bool, key: object = diskcache.UNKNOWN) -> Any:
        if read or type(value) not in (str, bytes, int):
            raise TypeError(f"values are text, bytes or whole numbers, not {type(value).__name__}")
        return super().store(value, False, key)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        if mode == _MODE_PICKLE:
            raise ValueError("a pickled value was found in the index; move cache.index away to rebuild it")
        return super().fetch(mode, filename, value, read)


class Residency:
    """The two indexes. Everything that opens them runs in one thread of its own.

    tally: what is counted of repositories, written in the same batches.
    """

    FLUSH_EVERY = 3.0
    """Seconds between batches of touches."""

    def __init__(self, folder: Path) -> None:
        self.tally = Tally(folder / FILE)
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="residency")
        self._touched: dict[str, int | None] = {}
        self._blobs: Any = None
        self._memo: Any = None
        self._flusher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        try:
            await self._run(self._open)
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise StorageFailed(f"{self._folder} is damaged ({error}); move it away, it is made anew") from error
        self._flusher = asyncio.create_task(self._flush_forever(), name="residency flush")

    async def close(self) -> None:
        if self._flusher:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.flush()
        await self._run(self._close)
        self._thread.shutdown(wait=False)  # it is idle: all it did was waited for

    def touch(self, digest: Digest) -> None:
        """Note a use. Costs one dictionary entry; written with the next batch."""
        self._touched.setdefault(str(digest), None)

    async def admit(self, digest: Digest, size: int) -> None:
        """Note that content is about to get its final name. size: bytes."""
        try:
            await self._run(self._write, {str(digest): size})
        except (sqlite3.Error, diskcache.Timeout) as error:
            raise StorageFailed(f"the index of what is kept cannot be written: {error}; see the log") from error

    async def drop(self, digest: Digest) -> None:
        """Note that content is not here any more."""
        self._touched.pop(str(digest), None)
        try:
            await self._run(lambda: self._blobs.pop(str(digest)))
        except (sqlite3.Error, diskcache.Timeout) as error:
            log.error("the index of what is kept cannot be written: %s", error)  # a row without a file does no harm

    async def flush(self) -> None:
        """Write the touches and counts collected so far."""
        touched, self._touched = self._touched, {}
        if touched:
            try:
                await self._run(self._write, touched)
            except (sqlite3.Error, diskcache.Timeout) as error:
                # A full disk, most likely. What was used when matters less than serving.
                log.error("the index of what was used cannot be written: %s", error)
                self._touched = touched | self._touched if len(touched) < MOST_TOUCHES else self._touched
        counted = self.tally.take()
        if counted is not None:
            await self._add(counted)

    async def _add(self, counted: Counted) -> None:
        try:
            await self._run(self.tally.add, counted)
        except sqlite3.Error as error:
            log.error("what was counted of pulls cannot be written, and is lost: %s", error)

    async def recall(self, key: str) -> str | None:
        """Return a remembered answer that has not expired."""
        try:
            return await self._run(lambda: self._memo.get(key))
        except (sqlite3.Error, diskcache.Timeout) as error:
            log.error("the memo cannot be read: %s", error)  # it only spares a question
            return None

    async def remember(self, key: str, answer: str, seconds: float) -> None:
        try:
            await self._run(lambda: self._memo.set(key, answer, expire=seconds))
        except (sqlite3.Error, diskcache.Timeout) as error:
            log.error("the memo cannot be written: %s", error)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _open(self) -> None:
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        os.chmod(self._folder, 0o700)
        never = {"eviction_policy": "none", "cull_limit": 0, "statistics": 0, "tag_index": 0}
        self._blobs = diskcache.Cache(str(self._folder / "blobs"), disk=PlainDisk, **never)
        # Expired memo rows are removed as new ones are written.
        self._memo = diskcache.Cache(str(self._folder / "memo"), disk=PlainDisk, **{**never, "cull_limit": 8})
        self.tally.open()

    def _close(self) -> None:
        self.tally.close()
        self._blobs.close()
        self._memo.close()

    def _write(self, rows: Mapping[str, int | None]) -> None:
        with self._blobs.transact(retry=True):
            for key, size in rows.items():
                known = self._blobs.pop(key)
                if size is not None or known is not None:
                    self._blobs.set(key, known if size is None else size)

    async def _flush_forever(self) -> None:
        while True:
            await asyncio.sleep(self.FLUSH_EVERY)
            await self.flush()
