"""One service per root: a lock its parent takes and every worker inherits.

It is a lock of the open file, not of the process (flock): the root stays owned until the last process that got
the descriptor by fork has ended.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from mirror.server import neighbours
from mirror.worker import StartupError

_PATIENCE = 5.0  # seconds the last workers of a parent that is gone are given to end


class RootInUse(StartupError):
    """Another process owns the root. holder: in words, ``pid 123 (mirror serve)``."""

    def __init__(self, message: str, *, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


def take_root(root: Path) -> int:
    """Make the root if need be, own it, and return the descriptor that holds the lock.

    Raises: StartupError when it cannot be made or written; RootInUse when another process owns it.
    """
    path = root / "owner.lock"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartupError(
            f"cannot use the folder {root}: {error.strerror}; "
            "choose one this user may write, with --root or storage.root"
        ) from error
    deadline = time.monotonic() + _PATIENCE
    while not _try_lock(fd):
        holder = _holder(fd)
        if (holder is None or neighbours.alive(holder)) or time.monotonic() >= deadline:
            os.close(fd)
            who = neighbours.describe(holder) if holder else "another process"
            raise RootInUse(
                f"the folder {root} is in use by another mirror, {who}; stop it, or choose another folder with "
                "--root or storage.root",
                holder=who,
            )
        time.sleep(0.02)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # a full disk: the number only serves a message
    return fd


def still_owned(root: Path, fd: int) -> bool:
    """Say whether a root is the folder that was taken. fd: of ``take_root``.

    It is another one when a link in its path was changed, when it was moved away, or is not mounted any more.
    """
    try:
        return os.path.samestat(os.stat(root / "owner.lock"), os.fstat(fd))
    except OSError:
        return False


def owner_of(root: Path) -> str | None:
    """Say who owns a root, as ``pid 123 (mirror serve)``; None when nobody does. Changes nothing.

    Raises: OSError when the lock file is there and cannot be looked at.
    """
    try:
        fd = os.open(root / "owner.lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
    except FileNotFoundError:
        return None
    try:
        # Shared and for a moment, so that two who look do not see each other.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(fd)
        return neighbours.describe(holder) if holder else "another process"
    finally:
        os.close(fd)
    return None


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int | None:
    text = os.pread(fd, 32, 0).strip()
    return int(text) if text.isdigit() else None
