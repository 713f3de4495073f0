"""Hashing blobs before they are given out: once each, in threads, those that somebody waits for first."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mirror.oci.names import Digest
from mirror.packages.files import FileId, OpenBytes, hash_bytes
from mirror.packages.problems import Problem
from mirror.packages.verdicts import Verdicts

STEP = 32 * 1024 * 1024
"""Bytes hashed in one go: some tens of milliseconds, after which one that is more urgent comes first."""

THREADS = 3
"""One for what nobody waits for yet, the others for what somebody does."""

T = TypeVar("T")


async def in_pool(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> T:
    """Run a function that blocks in a thread of the pool; a cancelled caller waits for its end all the same."""
    running = asyncio.get_running_loop().run_in_executor(pool, function, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


class Verifier:
    """Says whether bytes are what their digest says. Belongs to one event loop."""

    def __init__(self, verdicts: Verdicts) -> None:
        self._verdicts = verdicts
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="packages-verify")
        self._hashing: dict[bytes, _Hashing] = {}

    def known(self, opened: OpenBytes, digest: Digest) -> bool | None:
        """Return the verdict over bytes when there is one."""
        return self._verdicts.get(self._verdicts.key(opened, digest))

    async def check(self, opened: OpenBytes, digest: Digest, *, urgent: bool = True) -> bool | None:
        """Hash bytes unless that has been done; whoever asks meanwhile waits for the same hashing.

        urgent: somebody waits for it. Returns None when the file was changed or failed while it was read.
        """
        key = self._verdicts.key(opened, digest)
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return verdict
        hashing = self._hashing.get(key)
        if hashing is None:
            hashing = self._hashing[key] = _Hashing(opened, digest)
            hashing.task = asyncio.create_task(self._run(key, hashing))
        hashing.urgent = hashing.urgent or urgent
        return await asyncio.shield(hashing.task)

    async def close(self) -> None:
        """End all hashing."""
        tasks = [hashing.task for hashing in self._hashing.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown)

    async def _run(self, key: bytes, hashing: _Hashing) -> bool | None:
        try:
            recent = hashing.bytes.file.recent
            while not hashing.done:
                while not hashing.urgent and any(other.urgent for other in self._hashing.values()):
                    await asyncio.sleep(0.02)
                if not await in_pool(self._pool, hashing.step, STEP):
                    return None
            verdict = hashing.right
            if not recent:  # else it could change once more and look the same
                self._verdicts.add([key], verdict)
                if verdict:
                    await in_pool(self._pool, self._verdicts.share, key)
            return verdict
        finally:
            hashing.bytes.close()
            self._hashing.pop(key, None)


class _Hashing:
    """One blob being hashed, on a descriptor of its own."""

    task: asyncio.Task[bool | None]

    def __init__(self, opened: OpenBytes, digest: Digest) -> None:
        self.bytes = OpenBytes(os.dup(opened.fd), opened.offset, opened.size, opened.file)
        self.urgent = False
        self._digest = digest
        self._hasher = digest.hasher()
        self._done = 0

    @property
    def done(self) -> bool:
        return self._done == self.bytes.size

    @property
    def right(self) -> bool:
        return bool(self._hasher.hexdigest() == self._digest.encoded)

    def step(self, size: int) -> bool:
        """Hash some more; False when the file is not the same any more. Blocks."""
        size = min(size, self.bytes.size - self._done)
        with contextlib.suppress(OSError, Problem):
            hash_bytes(self.bytes.fd, self.bytes.offset + self._done, size, self._hasher)
            self._done += size
            return FileId.of(os.fstat(self.bytes.fd)) == self.bytes.file
        return False
