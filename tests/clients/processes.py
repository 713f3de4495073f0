"""A background process with a log, stopped by its recorded pid and the pids below it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

POLL = 0.02  # seconds between two looks at a condition


class NotReady(AssertionError):
    """A condition did not come true in time."""


def wait_for(what: str, condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Poll until the condition is true; NotReady after so many seconds. OSError counts as not yet."""
    deadline = time.monotonic() + seconds
    last: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError as exc:
            last = exc
        time.sleep(POLL)
    raise NotReady(f"{what}: not within {seconds:g} s ({last!r})")


class Process:
    """One started command: its own session, output appended to a log file."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.name, self.log = name, log
        with log.open("ab") as out:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def wait_until(self, what: str, condition: Callable[[], object], *, seconds: float = 60.0) -> None:
        """Wait for a condition, but no longer than the process lives.

        In vain: the process is killed, as nobody will have it to end it; the log's end is in the error.
        """

        def ready_or_dead() -> bool:
            return not self.alive() or bool(condition())

        try:
            wait_for(f"{self.name}: {what}", ready_or_dead, seconds=seconds)
            if not self.alive():
                raise NotReady(f"{self.name} ended with status {self._popen.returncode}")
        except BaseException as exc:
            self.kill()
            if not isinstance(exc, NotReady):
                raise
            raise NotReady(f"{exc}\n{self.tail()}") from None

    def tail(self, lines: int = 15) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(f"    {self.name}: {line}" for line in text.splitlines()[-lines:])

    def stop(self, *, seconds: float = 15.0) -> int:
        """Ask by SIGTERM, then kill; the exit status (negative: the signal that ended it)."""
        if self.alive():
            self._popen.terminate()
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        return self.kill()

    def kill(self) -> int:
        """SIGKILL the process and everything below it at once; the exit status."""
        if self.alive():
            kill_all([self.pid, *descendants(self.pid)])
        return self._popen.wait(10)


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def descendants(pid: int) -> list[int]:
    """Every process below this one, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # the command in parentheses may hold spaces: fields count from the last ")"
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found
