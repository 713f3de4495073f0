"""Verified content as files under their digest.

A file under ``blobs/`` or ``cache/`` is whole and right: nothing gets such a name before it was verified and
synced. Content that is mounted from an upstream's repository has both names, on one inode.
"""

from __future__ import annotations

import os
import secrets

from mirror.oci.names import ALGORITHMS, Digest
from mirror.store.base import Leases, OpenBlob, kept_lease
from mirror.store.failures import disk_errors
from mirror.store.files import sync_folder, unlink_quietly, write_all
from mirror.store.ingest import Ingest
from mirror.store.residency import Residency
from mirror.store.root import Root
from mirror.store.state import StateReader
from mirror.store.threads import in_thread

KEPT = ".kept"
"""Ending of the file that content gets its kept name from."""


class DiskBlobStore:
    """The blob store of one root."""

    def __init__(self, root: Root, residency: Residency) -> None:
        self.root = root
        self._residency = residency

    def open(self, digest: Digest) -> OpenBlob | None:
        with disk_errors(f"opening {digest}"):
            for path in (self.root.cached(digest), self.root.kept(digest)):
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                return OpenBlob(fd, os.fstat(fd).st_size)
        return None

    def stat(self, digest: Digest) -> int | None:
        with disk_errors(f"looking for {digest}"):
            for path in (self.root.cached(digest), self.root.kept(digest)):
                try:
                    return os.stat(path).st_size
                except FileNotFoundError:
                    continue
        return None

    def touch(self, digest: Digest) -> None:
        self._residency.touch(digest)

    async def put(self, digest: Digest, data: bytes) -> None:
        await self._residency.admit(digest, len(data))
        await in_thread(self._put, digest, data)

    async def keep(self, digest: Digest, data: bytes) -> bool:
        return await in_thread(self._keep, digest, data)

    async def pin(self, digest: Digest) -> bool:
        return await in_thread(self._pin, digest)

    async def unkeep(self, digest: Digest) -> None:
        await in_thread(self._unlink, self.root.kept(digest))

    async def evict(self, digest: Digest) -> None:
        await in_thread(self._unlink, self.root.cached(digest))
        await self._residency.drop(digest)

    async def admit(self, digest: Digest, size: int) -> None:
        await self._residency.admit(digest, size)

    def ingest(self, digest: Digest) -> Ingest:
        return Ingest(self.root, digest)

    def sweep(self, leases: Leases) -> None:
        """Tidy after leaders that died, wherever nobody holds the lease. Blocks; for the start of a process.

        Raises: StorageFailed.
        """
        with disk_errors("tidying ingest"):
            self._sweep(leases)

    def _sweep(self, leases: Leases) -> None:
        for algorithm in ALGORITHMS:
            folder = f"{self.root.path}/ingest/{algorithm}"
            names = os.listdir(folder)
            for name in names:
                if name.endswith(KEPT):  # a manifest that was being stored
                    lease = leases.try_acquire(kept_lease(Digest(algorithm, name.removesuffix(KEPT))))
                    if lease is not None:
                        unlink_quietly(f"{folder}/{name}")
                        lease.release()
            for encoded in {name.partition(".")[0] for name in names}:
                digest = Digest(algorithm, encoded)
                lease = leases.try_acquire(str(digest))
                if lease is not None:
                    try:
                        self.tidy(digest)
                    finally:
                        lease.release()

    def tidy(self, digest: Digest) -> None:
        state = None
        reader = self.follow(digest)
        if reader is not None:
            state = reader.read()
            reader.close()
        if state is None or self.stat(digest) is not None:
            unlink_quietly(self.root.state(digest))
            state = None
        going_on = self.root.part(digest, state.generation) if state is not None else None
        folder = f"{self.root.path}/ingest/{digest.algorithm}"
        for name in os.listdir(folder):
            path = f"{folder}/{name}"
            if name.startswith(f"{digest.encoded}.") and name.endswith(".part") and path != going_on:
                unlink_quietly(path)

    def follow(self, digest: Digest) -> StateReader | None:
        try:
            return StateReader(self.root.state(digest))
        except FileNotFoundError:
            return None

    def open_part(self, digest: Digest, generation: int) -> int | None:
        try:
            return os.open(self.root.part(digest, generation), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    def scratch(self) -> int:
        with disk_errors("making a temporary file"):
            path = f"{self.root.path}/ingest/window.{os.getpid()}.{secrets.token_hex(8)}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            os.unlink(path)
        return fd

    def _put(self, digest: Digest, data: bytes) -> None:
        # The caller holds the lease, so one name is enough; what a kill leaves there is overwritten next time.
        self._write(digest, data, self.root.part(digest, 0), self.root.cached(digest))

    def _keep(self, digest: Digest, data: bytes) -> bool:
        final = self.root.kept(digest)
        with disk_errors(f"looking for {digest}"):
            if _has(final, data):  # what is damaged is made right by pushing it again
                sync_folder(os.path.dirname(final))  # who made it may not have come that far
                return False
        self._write(digest, data, f"{self.root.path}/ingest/{digest.algorithm}/{digest.encoded}{KEPT}", final)
        return True

    def _pin(self, digest: Digest) -> bool:
        final = self.root.kept(digest)
        with disk_errors(f"storing {digest}"):
            try:
                os.link(self.root.cached(digest), final)
            except FileExistsError:
                pass
            except FileNotFoundError:
                if not os.path.exists(final):
                    return False
            sync_folder(os.path.dirname(final))
        return True

    def _unlink(self, path: str) -> None:
        with disk_errors("deleting a file"):
            unlink_quietly(path)

    def _write(self, digest: Digest, data: bytes, path: str, final: str) -> None:
        try:
            with disk_errors(f"storing {digest}"):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    write_all(fd, [data], 0)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(path, final)
                sync_folder(os.path.dirname(final))
        finally:
            unlink_quietly(path)


def _has(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(data) + 1) == data
    except OSError:
        return False
