"""Reading files from the event loop: at once what the page cache has, in a thread what it has not."""

from __future__ import annotations

import errno
import os

from mirror.store.threads import in_thread

_NOWAIT = getattr(os, "RWF_NOWAIT", 0)
_NOT_HERE = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def read_now(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer with what the page cache has at an offset.

    Returns the number of bytes, 0 at the end of the file, -1 when the disk would have to be waited for.
    """
    try:
        return os.preadv(fd, [buffer], offset, _NOWAIT)
    except OSError as error:
        if error.errno in _NOT_HERE:
            return -1
        raise


async def read_at(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill the buffer from an offset, in a thread when the disk has to be waited for.

    Returns the number of bytes, 0 at the end of the file.
    """
    count = read_now(fd, buffer, offset)
    if count >= 0:
        return count
    return await in_thread(os.preadv, fd, [buffer], offset)
