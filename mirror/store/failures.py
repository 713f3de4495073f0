"""The seam to the disk: what the operating system said, as one of our meanings."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mirror.oci.errors import StorageFailed, StorageFull


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into StorageFull or StorageFailed. doing: "writing sha256:…", for the message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"the disk is full: {doing}; free some space under storage.root") from error
        raise StorageFailed(f"the disk failed: {doing}: {error.strerror}; see the log") from error
