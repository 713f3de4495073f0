"""The service under test as it really runs: processes of its own, real signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


def whole_lines(log: Path, start: int = 0) -> list[dict[str, Any]]:
    """Return the lines of a log, in JSON, from a place on. One that is being written is not there yet."""
    return [json.loads(line) for line in log.read_bytes()[start:].split(b"\n")[:-1]]


class Service:
    """One running service. url: where it answers; to be given when it is not told to say so."""

    def __init__(self, config: Path, log: Path, url: str | None = None) -> None:
        self.log = log
        with log.open("ab") as output:
            start = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mirror", "serve", "--config", str(config)], stdout=output, stderr=output
            )
        self.pid = self._process.pid

        def listening() -> str | None:
            assert self._process.poll() is None, log.read_text()
            messages = (line.get("message", "") for line in whole_lines(log, start))
            return next((str(one.split()[2]) for one in messages if one.startswith("listening on ")), None)

        self.netloc = (url or wait_until(listening, "the service listens")).removeprefix("http://")
        self.url = f"http://{self.netloc}"
        if url is not None:
            wait_until(self._answers, "the service answers")

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return whole_lines(self.log)

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def pids(self) -> list[int]:
        return [self.pid, *self.workers()]

    def leader_of(self, digest: str) -> int | None:
        """Return the worker that writes a digest's part file."""
        for pid in self.workers():
            for fd in Path(f"/proc/{pid}/fdinfo").glob("*"):
                with contextlib.suppress(OSError):
                    target = os.readlink(f"/proc/{pid}/fd/{fd.name}")
                    if digest.split(":")[1] in target and target.endswith(".part"):
                        flags = int(next(line for line in fd.read_text().splitlines() if "flags" in line).split()[1], 8)
                        if flags & os.O_RDWR:
                            return pid
        return None

    def kill(self) -> None:
        """End every process by SIGKILL, as a power cut would."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """End it by SIGTERM; return the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(40)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return self._process.returncode

    def ended(self) -> int:
        """Wait until it has ended as it was told to; return the exit code."""
        return self._process.wait(40)

    def get(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> tuple[int, bytes]:
        """Ask over a connection of its own; return the status and what came of the body."""
        host, _, port = self.netloc.partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            try:
                return response.status, response.read()
            except http.client.IncompleteRead as error:
                return response.status, error.partial
        finally:
            connection.close()


def write_config(folder: Path, upstreams: dict[str, Any], *, workers: int = 4, **settings: Any) -> Path:
    """Write a configuration with a root in ``folder``, for a free port."""
    path = folder / "mirror.yaml"
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "workers": workers,
        "storage": {"root": str(folder / "root")},
        "shutdown_delay": 0,
        "drain_timeout": "10s",
        "upstreams": upstreams,
        "default_upstream": next(iter(upstreams)),
        **settings,
    }
    path.write_text(yaml.safe_dump(values))
    return path


@contextlib.contextmanager
def service(config: Path, *, url: str | None = None) -> Iterator[Service]:
    """Run the service, and end it whatever happens. url: as of ``Service``."""
    running = Service(config, config.parent / "mirror.log", url)
    try:
        yield running
    finally:
        running.stop()
