"""How full the disk is, and how much of it is ours.

What is kept for the cache is summed up from its index. Of what was pushed no table knows the size, so its folder is
read; gently, as a registry has many blobs and others use this process. What was found is good for a while: for
``REMEMBER`` seconds, and for longer where finding it out took long, so that measuring never takes more than a
hundredth of the time.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from mirror.oci.names import ALGORITHMS
from mirror.store.root import Root

REMEMBER = 30.0
"""Seconds for which a measurement is good."""
COST = 100
"""How many times longer than measuring took its result is good for."""
STEP = 500
"""Files looked at before others have the interpreter."""

Numbers = Iterable[tuple[Sequence[str], float]]


class DiskUsage:
    """Measures one root. Everything here blocks, and may be called by several threads. clock: seconds."""

    def __init__(self, root: Root, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._good_until = float("-inf")
        self._used: dict[str, float] = {}
        self._sessions = 0.0

    def size(self) -> Numbers:
        """Give the bytes of the file system."""
        return self._file_system(lambda found: found.f_blocks * found.f_frsize)

    def free(self) -> Numbers:
        """Give the bytes of the file system that may still be written by us."""
        return self._file_system(lambda found: found.f_bavail * found.f_frsize)

    def used(self) -> Numbers:
        """Give the bytes of each kind of content: "cache", "blobs" (pushed), "ingest" (arriving), "metadata"."""
        self._measure()
        return [((kind,), number) for kind, number in self._used.items()]

    def sessions(self) -> Numbers:
        """Give how many push sessions are open."""
        self._measure()
        return [((), self._sessions)]

    def _file_system(self, number: Callable[[os.statvfs_result], int]) -> Numbers:
        try:
            return [((), float(number(os.statvfs(self._root.path))))]
        except OSError:
            return []  # a disk that is gone; nothing is better than a wrong number

    def _measure(self) -> None:
        with self._lock:
            began = self._clock()
            if began < self._good_until:
                return
            uploads = self._sizes("ingest/uploads")
            ingest = [size for name in ALGORITHMS for size in self._sizes(f"ingest/{name}")]
            self._used = {
                "blobs": float(sum(sum(self._sizes(f"blobs/{name}")) for name in ALGORITHMS)),
                "ingest": float(sum(ingest) + sum(uploads)),
                "metadata": float(sum(self._sizes(".", beginning="metadata.db"))),
            }
            cache = self._cache()
            if cache is not None:
                self._used["cache"] = float(cache)
            self._sessions = float(len(uploads))
            ended = self._clock()
            self._good_until = ended + max(REMEMBER, COST * (ended - began))

    def _sizes(self, folder: str, beginning: str = "") -> list[int]:
        """Return the length of each file in a folder of the root, in bytes."""
        found = []
        try:
            with os.scandir(self._root.path / folder) as entries:
                for entry in entries:
                    try:
                        ours = entry.name.startswith(beginning) and not entry.name.endswith(".want")
                        if ours and entry.is_file(follow_symlinks=False):
                            found.append(entry.stat(follow_symlinks=False).st_size)
                    except FileNotFoundError:
                        continue  # renamed or deleted meanwhile
                    if len(found) % STEP == STEP - 1:
                        time.sleep(0.001)
        except OSError:
            return []
        return found

    def _cache(self) -> int | None:
        """Return the bytes of what was pulled through, by the index of it; None when that cannot be read."""
        index = self._root.index / "blobs" / "cache.db"
        try:
            with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
                (total,) = connection.execute("SELECT total(value) FROM Cache").fetchone()
        except sqlite3.Error:
            return None
        return int(total)
