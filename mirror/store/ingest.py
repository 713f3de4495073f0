"""A download on its way to disk: the leader's part file and hash, and the only way in.

Bytes → part file → size and digest right → fsync → rename → fsync of the folder. Whoever uses an ``Ingest``
holds the lease of its digest. The methods named ``…_in_thread`` block and belong into one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from mirror.oci.names import Digest
from mirror.store.failures import disk_errors
from mirror.store.files import sync_folder, unlink_quietly, write_all
from mirror.store.root import Root
from mirror.store.state import Phase, StateWriter

TAIL = 64 * 1024
"""Bytes at the end of content that nobody gets before it is verified."""

_HASH_STEP = 4 * 1024 * 1024


class Ingest:
    """One digest's download. ``state`` is shared with every process; ``fd`` is the part file."""

    def __init__(self, root: Root, digest: Digest) -> None:
        self._root = root
        self.digest = digest
        self.fd = -1
        self._hash: Any = digest.hasher()
        self._hashed = 0
        with disk_errors(f"preparing the download of {digest}"):
            self._shared = StateWriter(root.state(digest))
        self.state = self._shared.state

    def publish(self, **changes: Any) -> None:
        """Change fields of the shared state."""
        self._shared.publish(**changes)
        self.state = self._shared.state

    def begin(self) -> bool:
        """Open the part file: the one a leader before left if it can be continued, else a new generation.

        Returns whether there is something to continue, ``state.written`` bytes of it.
        """
        state = self.state
        if state.generation and state.written and state.phase is not Phase.WRONG:
            try:
                fd = os.open(self._root.part(self.digest, state.generation), os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                fd = -1
            if fd >= 0:
                if os.fstat(fd).st_size >= state.written:
                    self.fd = fd
                    self.publish(tenure=state.tenure + 1, phase=Phase.OPENING, failures={})
                    return True
                os.close(fd)
        self.restart()
        return False

    def restart(self) -> None:
        """Start a new generation in a new file. What was sent of the old one is void."""
        state = self.state
        self._close_part(unlink=True)
        generation = max(state.generation + 1, time.time_ns())
        with disk_errors(f"preparing the download of {self.digest}"):
            self.fd = os.open(
                self._root.part(self.digest, generation),
                os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                0o600,
            )
        self._hash = self.digest.hasher()
        self._hashed = 0
        self.publish(
            generation=generation,
            tenure=state.tenure + 1,
            phase=Phase.OPENING,
            size=None,
            written=0,
            committed=0,
            public=False,
            sources=(),
            failures={},
        )

    def append_in_thread(self, chunks: Sequence[bytes], offset: int) -> int:
        """Write chunks at an offset; hash them when everything before is hashed. Returns the new end."""
        with disk_errors(f"writing {self.digest}"):
            end = write_all(self.fd, chunks, offset)
        if self._hashed == offset:
            for chunk in chunks:
                self._hash.update(chunk)
            self._hashed = end
        return end

    def hash_step_in_thread(self, end: int) -> bool:
        """Hash a step of what is on disk and not hashed yet, up to ``end``. Returns whether there is more."""
        if self._hashed >= end:
            return False
        with disk_errors(f"reading {self.digest}"):
            data = os.pread(self.fd, min(_HASH_STEP, end - self._hashed), self._hashed)
        if not data:
            return False  # shorter than recorded; verify() will say so
        self._hash.update(data)
        self._hashed += len(data)
        return self._hashed < end

    def verify(self) -> bool:
        """Say whether what was written is the content: size, hash and file length agree."""
        state = self.state
        return (
            state.written == state.size == self._hashed == os.fstat(self.fd).st_size
            and self._hash.hexdigest() == self.digest.encoded
        )

    def actual(self) -> str:
        """Return the digest the bytes have, for messages."""
        return f"{self.digest.algorithm}:{self._hash.hexdigest()}"

    def sync_in_thread(self) -> None:
        with disk_errors(f"writing {self.digest}"):
            os.fsync(self.fd)

    def finish_in_thread(self) -> None:
        """Give verified, synced bytes their final name, and remove the state."""
        final = self._root.cached(self.digest)
        with disk_errors(f"storing {self.digest}"):
            os.rename(self._root.part(self.digest, self.state.generation), final)
            sync_folder(os.path.dirname(final))
        self.publish(phase=Phase.DONE)
        self._remove_state()

    def discard(self, phase: Phase) -> None:
        """End with nothing kept; followers learn it from ``phase``."""
        self.publish(phase=phase)
        self._close_part(unlink=True)
        self._remove_state()

    def close(self) -> None:
        """Close the files. What is on disk stays to be continued."""
        self._close_part(unlink=False)
        self._shared.close()

    def _close_part(self, *, unlink: bool) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
        if unlink and self.state.generation:
            unlink_quietly(self._root.part(self.digest, self.state.generation))

    def _remove_state(self) -> None:
        unlink_quietly(self._root.state(self.digest))
