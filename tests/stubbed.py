"""A service of real processes around a small application (``faults/stub_service.py``)."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

PROJECT = Path(__file__).parents[1]
STUB = Path(__file__).with_name("faults") / "stub_service.py"
PATIENCE = 60.0

T = TypeVar("T")


def eventually(get: Callable[[], T], *, seconds: float = PATIENCE) -> T:
    """Return what ``get`` gives as soon as that is true; fail after the time."""
    deadline = time.monotonic() + seconds
    while True:
        found = get()
        if found:
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {seconds} s"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False  # the second: it ended while we were reading


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answers(port: int) -> bool:
    """Say whether a request is answered within a moment."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=0.3)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Service:
    """A stub service. Its last words are in ``said``."""

    def __init__(self, root: Path, log: Path, **settings: Any) -> None:
        config = {"listen": ["127.0.0.1:0"], "workers": 1, "shutdown_delay": 0, "drain_timeout": 10}
        config |= {"upstreams": {}, "default_upstream": None, "storage": {"root": str(root)}}
        config |= settings.pop("config", {})
        self.config = config
        self._log = log
        self._tls: ssl.SSLContext | None = settings.pop("trust", None)
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, str(STUB), json.dumps({"config": config, **settings})],
                cwd=PROJECT,
                env=os.environ | {"PYTHONPATH": str(PROJECT)},
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        """What it has said: whole lines, not one that is being written."""
        text = self._log.read_text()
        return text[: text.rfind("\n") + 1]

    def messages(self) -> list[str]:
        return [json.loads(line).get("message", "") for line in self.said.splitlines() if line.startswith("{")]

    def ready(self) -> Service:
        """Wait until it listens everywhere."""

        def announced() -> bool:
            assert self.process.poll() is None, self.said
            return len(self.urls) >= len(self.config["listen"])

        eventually(announced)
        self.port = int(self.urls[0].rpartition(":")[2])
        return self

    @property
    def urls(self) -> list[str]:
        """Where it has said that it listens."""
        return [message.split()[2] for message in self.messages() if message.startswith("listening on ")]

    def open(self) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection("localhost", self.port, timeout=PATIENCE, context=self._tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Ask over a new connection."""
        with contextlib.closing(self.open()) as connection:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()

    def try_ask(self, path: str) -> bytes | None:
        """Ask, None when the process that accepted ends before it answers."""
        try:
            return self.ask(path)[1]
        except (OSError, http.client.HTTPException):
            return None

    def who(self) -> dict[str, int] | None:
        body = self.try_ask("/who")
        return json.loads(body) if body else None

    def workers(self, count: int) -> dict[int, int]:
        """Return slot → pid when that many different slots have answered."""
        found: dict[int, int] = {}

        def all_seen() -> bool:
            if answer := self.who():
                found[answer["slot"]] = answer["pid"]
            return len(found) == count

        eventually(all_seen)
        return found

    def metric(self, name: str) -> float:
        body = self.ask("/metrics")[1].decode()
        return sum(float(line.rpartition(" ")[2]) for line in body.splitlines() if line.startswith(name))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def refused(self) -> str:
        """Return the one line it ended with; it must have ended with code 1 and no traceback."""
        assert self.wait() == 1, self.said
        lines = self.said.splitlines()
        assert "Traceback" not in self.said
        assert len(lines) == 1, self.said
        return lines[0]

    def end(self) -> None:
        """End whatever is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
