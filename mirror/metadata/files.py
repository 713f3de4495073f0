"""The files a database is: itself, its log and the index of that. SQLite would wait for a pipe in the place of one."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def not_a_file(path: Path) -> Path | None:
    """Return which file of a database is there and is none, such as a folder or a pipe; None when all are files."""
    for ending in ("", "-wal", "-shm"):
        one = path.with_name(path.name + ending)
        try:
            if not stat.S_ISREG(os.stat(one).st_mode):
                return one
        except OSError:
            continue  # it is not there, or cannot be reached: SQLite says so
    return None
