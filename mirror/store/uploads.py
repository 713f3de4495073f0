"""Push sessions as files: what a session has is what its file holds, in any process and after any kill.

``ingest/uploads/<session>.<owner>``    the bytes so far; its length is the session's offset
``ingest/uploads/<session>.want``       somebody newer waits for the session

A session's id is a UUID, with the algorithm after a dash when it is not sha256. ``owner`` is a hash of its
repository: another repository does not find it. Who writes holds the session's lease. The methods named
``…_in_thread`` block and belong into one.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

from mirror.oci.names import ALGORITHMS, Digest, Repository
from mirror.store.base import Leases
from mirror.store.failures import disk_errors
from mirror.store.files import sync_folder, unlink_quietly, write_all
from mirror.store.root import Root

_SESSION = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:-(sha512))?")
_HASH_STEP = 4 * 1024 * 1024
_WANT = 5.0
"""Seconds after which who waited for a session, and does not say so again, is gone."""
_WANT_KEPT = 60.0
"""Seconds after which what he left is removed."""


class RunningHash:
    """The hash of a session's first ``hashed`` bytes, kept by one process. Used in threads, one at a time.

    known: bytes that whoever held the session's lease wrote or found. What is beyond may be cut off again when the
    disk is full, and is not hashed.
    """

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self.hashed = 0
        self.known = 0
        self._hash: Any = Digest(algorithm, "").hasher()
        self._lock = threading.Lock()

    def add_in_thread(self, chunks: Sequence[bytes], offset: int) -> None:
        """Hash what is written at an offset, if everything before it is hashed."""
        with self._lock:
            self.known = offset + sum(map(len, chunks))
            if self.hashed == offset:
                for chunk in chunks:
                    self._hash.update(chunk)
                    self.hashed += len(chunk)

    def step_in_thread(self, fd: int) -> bool:
        """Hash a step of what is known of the file and was not hashed yet. Returns whether there was any."""
        with self._lock, disk_errors("reading an upload"):
            data = os.pread(fd, max(min(_HASH_STEP, self.known - self.hashed), 0), self.hashed)
            self._hash.update(data)
            self.hashed += len(data)
            return bool(data)

    def digest(self) -> Digest:
        with self._lock:
            return Digest(self.algorithm, self._hash.hexdigest())


class UploadFile:
    """The open file of a session. size: bytes it has. lost: what was written may never reach the disk."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.lost = False
        self.size = os.fstat(fd).st_size

    def append_in_thread(self, chunks: Sequence[bytes]) -> None:
        """Write chunks at the end. What could not be written whole is cut off: what follows would not fit it."""
        start = self.size
        try:
            with disk_errors("writing an upload"):
                self.size = write_all(self.fd, chunks, start)
        except BaseException:
            with suppress(OSError):  # the first one says what is wrong
                os.ftruncate(self.fd, start)
            raise

    def sync_in_thread(self) -> None:
        """Make what was written durable. A failure is told once: to sync again would succeed, and mean nothing."""
        with disk_errors("writing an upload"):
            try:
                os.fsync(self.fd)
            except OSError:
                self.lost = True
                raise

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class UploadStore:
    """The sessions of one root. The calls that are not in a thread are a few system calls on local files."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._folder = f"{root.path}/ingest/uploads"

    def create(self, repository: Repository, algorithm: str) -> str:
        """Begin a session. Returns its id."""
        session = str(uuid.uuid4()) + ("" if algorithm == "sha256" else f"-{algorithm}")
        with disk_errors("beginning an upload"):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._path(repository, session), flags, 0o600))
        return session

    def open(self, repository: Repository, session: str) -> UploadFile | None:
        """Open a session's file; None when the repository has no such session."""
        if not is_session(session):
            return None
        path = self._path(repository, session)
        with disk_errors("opening an upload"):
            try:
                return UploadFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
            except FileNotFoundError:
                return None

    def size(self, repository: Repository, session: str) -> int | None:
        """Return how many bytes a session has; None when the repository has no such session."""
        if not is_session(session):
            return None
        with disk_errors("looking for an upload"):
            try:
                return os.stat(self._path(repository, session)).st_size
            except FileNotFoundError:
                return None

    def remove_in_thread(self, repository: Repository, session: str) -> None:
        """End a session. The caller holds its lease."""
        with disk_errors("removing an upload"):
            unlink_quietly(self._path(repository, session))

    def is_anyones_in_thread(self, session: str) -> bool:
        """Say whether any repository has a session."""
        with disk_errors("looking for an upload"):
            names = os.listdir(self._folder)
        return any(name.startswith(f"{session}.") and not name.endswith(".want") for name in names)

    def want(self, session: str) -> None:
        """Say that somebody waits for the session; again every now and then, who died says nothing any more."""
        with disk_errors("claiming an upload"):
            # To truncate it is what changes its time.
            os.close(os.open(self._want(session), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))

    def wanted(self, session: str) -> bool:
        """Say whether somebody waits for the session."""
        try:
            return os.stat(self._want(session)).st_mtime > time.time() - _WANT
        except FileNotFoundError:
            return False

    def unwant(self, session: str) -> None:
        with disk_errors("claiming an upload"):
            unlink_quietly(self._want(session))

    def sweep_in_thread(self, leases: Leases, age: float) -> int:
        """Remove sessions that nobody has sent to for ``age`` seconds. Returns how many there were."""
        removed = 0
        with disk_errors("tidying uploads"), os.scandir(self._folder) as entries:
            for entry in entries:
                session, _, kind = entry.name.rpartition(".")
                if kind == "want":
                    if _older(entry.path, _WANT_KEPT):
                        unlink_quietly(entry.path)
                    continue
                if not _older(entry.path, age):
                    continue
                lease = leases.try_acquire(lease_key(session))
                if lease is not None:
                    try:
                        if _older(entry.path, age):  # still: somebody may have sent to it meanwhile
                            unlink_quietly(entry.path)
                            removed += 1
                    finally:
                        lease.release()
        return removed

    def keep_in_thread(self, upload: UploadFile, digest: Digest) -> bool:
        """Give verified, synced bytes their kept name. The caller holds the lease of the digest's kept name.

        Returns False when they had it before: the session's own file is still there then.
        """
        final = self._root.kept(digest)
        with disk_errors(f"storing {digest}"):
            fresh = not _same_size(final, upload.size)
            if fresh:
                os.rename(upload.path, final)
            sync_folder(os.path.dirname(final))  # also when it was there: who made it may not have come that far
        return fresh

    def take_back_in_thread(self, upload: UploadFile, digest: Digest) -> None:
        """Make a session again of what has just got its kept name. The caller holds the lease of that name."""
        with disk_errors(f"storing {digest}"):
            os.rename(self._root.kept(digest), upload.path)

    def _path(self, repository: Repository, session: str) -> str:
        return f"{self._folder}/{session}.{blake2b(repository.key.encode(), digest_size=8).hexdigest()}"

    def _want(self, session: str) -> str:
        return f"{self._folder}/{session}.want"


def is_session(text: str) -> bool:
    """Say whether a text can be the id of a session."""
    return _SESSION.fullmatch(text) is not None


def lease_key(session: str) -> str:
    """Return the key of the lease that whoever writes to a session holds."""
    return f"upload {session}"


def algorithm_of(session: str) -> str:
    """Return the algorithm a session was begun for."""
    found = _SESSION.fullmatch(session)
    return (found[2] if found else None) or next(iter(ALGORITHMS))


def _same_size(path: str, size: int) -> bool:
    try:
        return os.stat(path).st_size == size
    except FileNotFoundError:
        return False


def _older(path: str, age: float) -> bool:
    try:
        return os.stat(path).st_mtime < time.time() - age
    except FileNotFoundError:
        return False
