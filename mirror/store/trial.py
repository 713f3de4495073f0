"""What a folder must be able to do to be a root, tried out in a folder of our own in it, which is removed again.

Files that are synced and read back, hard links and renames; locks that exclude another process, and memory that it
shares: without these, content is lost, or two processes write one file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import secrets
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirror.store import second
from mirror.store.files import sync_folder, write_all

SIZE = 1024 * 1024
"""Bytes of the file that is written and synced."""
PREFIX = ".doctor-"
"""What the name of our folder begins with: no part of the service looks at it."""

_PATIENCE = 20.0  # seconds the other process may take
_BYTE = 7
_FLOCK = struct.Struct("hhqqi4x")


class TrialFailed(Exception):
    """The folder cannot do something. doing: what, in a word. full: for want of space."""

    def __init__(self, doing: str, reason: str, *, full: bool = False) -> None:
        super().__init__(f"{doing}: {reason}")
        self.doing = doing
        self.reason = reason
        self.full = full


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What was measured. sync: seconds until a file and its name were durable."""

    sync: float


def try_folder(folder: Path) -> Tried:
    """Try everything in a folder that is there. Leaves nothing behind. Blocks.

    Raises: TrialFailed at the first thing it cannot do.
    """
    with _failures("make a folder"):
        inner = tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder)
    with inner as name, contextlib.ExitStack() as stack:
        sync = _write(Path(name, "content"))
        _name(Path(name))
        _share(Path(name), stack)
    return Tried(sync=sync)


def _write(path: Path) -> float:
    """Write a file, make it durable, read it back; return the seconds that making it durable took."""
    content = secrets.token_bytes(SIZE)
    with _failures("write"), _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        write_all(fd, [content], 0)
        begun = time.monotonic()
        with _failures("sync"):
            os.fsync(fd)
            sync_folder(str(path.parent))
        took = time.monotonic() - begun
    with _failures("read back"), _opened(path, os.O_RDONLY) as fd:
        if os.pread(fd, SIZE + 1, 0) != content:
            raise TrialFailed("read back", "what was written is not what is read")
    return took


def _name(folder: Path) -> None:
    """Give the file a second name, and another one."""
    with _failures("make a hard link"):
        os.link(folder / "content", folder / "linked")
        if os.stat(folder / "linked").st_nlink != 2:
            raise TrialFailed("make a hard link", "the second name is another file")
    with _failures("rename"):
        os.rename(folder / "linked", folder / "renamed")
        sync_folder(str(folder))


def _share(folder: Path, stack: contextlib.ExitStack) -> None:
    """Hold locks and map memory, and let another process find out about it."""
    with _failures("lock a file (flock)"):
        flocked = stack.enter_context(_opened(folder / "flocked", os.O_RDWR | os.O_CREAT))
        fcntl.flock(flocked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with _failures("lock a part of a file"):
        leased = stack.enter_context(_opened(folder / "leased", os.O_RDWR | os.O_CREAT))
        fcntl.fcntl(leased, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _BYTE, 1, 0))
    with _failures("map a file"):
        mapped = stack.enter_context(_opened(folder / "mapped", os.O_RDWR | os.O_CREAT))
        os.ftruncate(mapped, mmap.PAGESIZE)
        shared = stack.enter_context(mmap.mmap(mapped, mmap.PAGESIZE))
    found = _ask_another(folder)
    if not found["flock"]:
        raise TrialFailed("lock a file (flock)", "another process gets the same lock")
    if not found["lease"]:
        raise TrialFailed("lock a part of a file", "another process gets the same lock")
    if shared[0] != second.WRITTEN:
        raise TrialFailed("map a file", "what another process writes is not seen")


def _ask_another(folder: Path) -> dict[str, bool]:
    """Run the other process, and return what it found."""
    names = (str(folder / name) for name in ("flocked", "leased", "mapped"))
    command = [sys.executable, "-I", "-S", second.__file__, *names, str(_BYTE)]
    doing = "ask another process"
    with _failures(doing):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        except subprocess.TimeoutExpired:
            raise TrialFailed(doing, f"it did not end within {_PATIENCE:g} s") from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise TrialFailed(doing, reason[:200] or f"it ended with {done.returncode}")
    found: dict[str, bool] = json.loads(done.stdout)
    return found


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _failures(doing: str) -> Iterator[None]:
    """Turn an OSError into TrialFailed."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise TrialFailed(doing, error.strerror or type(error).__name__, full=full) from error
