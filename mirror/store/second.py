"""The other process of a trial: what a folder must be able to do between two processes.

Run as a program of its own, in an interpreter with nothing but the standard library. What it finds is a line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import sys

WRITTEN = 42
"""What it writes into the shared file."""


def main(flocked: str, leased: str, mapped: str, start: str) -> dict[str, bool]:
    """Try what the first process has excluded us from, and write where it looks.

    flocked: a file it holds by flock. leased: one of which it holds the byte ``start``. mapped: one it has mapped.
    """
    return {"flock": _excluded_by_flock(flocked), "lease": _excluded_by_lease(leased, int(start)), "map": _map(mapped)}


def _excluded_by_flock(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _excluded_by_lease(path: str, start: int) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _map(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        with mmap.mmap(fd, 0) as shared:
            shared[0] = WRITTEN
    finally:
        os.close(fd)
    return True


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
