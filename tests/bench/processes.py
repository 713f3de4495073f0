"""Servers as real processes: pinned to cores, waited for until they answer, ended by their id."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]


def cores() -> list[int]:
    """Return the cores this run may use."""
    return sorted(os.sched_getaffinity(0))


@contextmanager
def on_cores(pinned: Collection[int]) -> Iterator[None]:
    """Keep this thread, and what it starts unpinned meanwhile, to these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, pinned)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(what: str, condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Poll until a condition holds, and return its value. Raises: TimeoutError naming what did not come."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.005)
    return value


class Process:
    """A process with its output in a file. pinned: the cores it and its children may use, None for all."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, pinned: Collection[int] | None = None) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                command,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the run alone, which then ends its servers itself.
                start_new_session=True,
                preexec_fn=(lambda: os.sched_setaffinity(0, pinned)) if pinned else None,
            )
        self.pid = self._popen.pid

    def wait_ready(self, port: int, path: str) -> None:
        """Wait until a path is answered with 200."""

        def ready() -> bool:
            if self._popen.poll() is not None:
                raise RuntimeError(f"{self.name} ended with {self._popen.returncode}: {self.tail()}")
            with suppress(OSError, http.client.HTTPException):
                return ask(port, "GET", path)[0] == 200
            return False

        wait_until(f"{self.name} is ready", ready)

    def tail(self) -> str:
        with suppress(OSError):
            if self._log.is_file():
                return self._log.read_text(errors="replace")[-2000:]
        return ""

    def stop(self) -> None:
        """End it, kindly at first."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self._popen.kill()
        self._popen.wait()


def ask(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Send one request to a server on loopback. Returns status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()
