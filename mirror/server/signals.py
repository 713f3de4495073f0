"""Signals as they reach the parent: noted, in order, and a pipe that becomes readable."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Signals:
    """What came. wakeup: a descriptor to wait for; the end of a child makes it readable too."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self.wakeup = -1

    def take(self) -> signal.Signals | None:
        """Return the next one, None when there is none."""
        return signal.Signals(self._came.pop(0)) if self._came else None

    def awake(self) -> None:
        """Make ``wakeup`` unreadable until the next one."""
        with suppress(BlockingIOError):
            os.read(self.wakeup, 4096)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Have them noted, instead of what they did before."""

        def note(number: int, frame: FrameType | None) -> None:
            if number != signal.SIGCHLD:
                self._came.append(number)

        self.wakeup, end = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(end, False)
        before = {one: signal.signal(one, note) for one in SIGNALS}
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # who starts us may keep them until here
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for one, handler in before.items():
                signal.signal(one, handler)
            os.close(self.wakeup)
            os.close(end)

    def unheard(self) -> None:
        """Undo it in a forked process, which is not told what to do by signals."""
        end = signal.set_wakeup_fd(-1)
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Not SIG_IGN: programs a worker starts would inherit that.
            signal.signal(one, lambda *_: None)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(end)
        os.close(self.wakeup)


@contextmanager
def held_back() -> Iterator[None]:
    """Let none come: one that reached a new process while it still has our handlers would be told to us as our own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
