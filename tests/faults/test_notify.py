"""What the service manager is told, over a real datagram socket."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.server.notify import Manager
from tests.stubbed import PATIENCE, Service, eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, abstract sockets")


@pytest.fixture
def told(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(PATIENCE)
        yield listening


def receive(told: socket.socket) -> dict[str, str]:
    """Return the next message that is not about being alive."""
    while True:
        message = dict(line.split("=", 1) for line in told.recv(65536).decode().split("\n"))
        if "WATCHDOG" not in message:
            return message


def test_service_manager_is_told_what_becomes_of_us(
    start: Callable[..., Service], told: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    file, gate = tmp_path / "mirror.yaml", tmp_path / "gate"
    service = start(config={"workers": 2}, reload=str(file), gate=str(gate))
    eventually(lambda: Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split())
    told.setblocking(False)
    with pytest.raises(BlockingIOError):
        told.recv(1)  # one worker listens, the other does not
    told.settimeout(PATIENCE)
    gate.write_text("")
    service.ready()
    assert receive(told) == {
        "READY": "1",
        "MAINPID": str(service.pid),
        "STATUS": f"2 workers on http://127.0.0.1:{service.port}",
    }
    file.write_text("nonsense: true")
    asked = time.monotonic_ns() // 1000
    service.signal(1)
    reloading = receive(told)
    assert reloading["RELOADING"] == "1"
    assert asked <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    refused = receive(told)
    assert refused["READY"] == "1"
    assert "nonsense" in refused["STATUS"]
    file.write_text(json.dumps(service.config | {"workers": 1}))
    service.signal(1)
    assert receive(told)["RELOADING"] == "1"
    ready = receive(told)
    assert ready["READY"] == "1"
    assert ready["STATUS"].startswith(f"1 worker on http://127.0.0.1:{service.port}")
    assert eventually(lambda: service.who())["workers"] == 1
    service.signal(15)
    while (message := receive(told)).keys() == {"STATUS"}:
        pass  # earlier workers end, or have ended
    assert message["STOPPING"] == "1"
    assert service.wait() == 0


def test_service_manager_hears_that_we_are_alive_while_somebody_is(
    start: Callable[..., Service], told: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    trouble = tmp_path / "trouble"
    service = start(fail="crash", fail_if=str(trouble)).ready()
    for _ in range(3):
        assert b"WATCHDOG=1" in iter(lambda: told.recv(65536), b"")
    trouble.write_text("")  # no worker can start any more
    os.kill(service.workers(1)[0], 9)
    eventually(lambda: any("replaced in 1 s" in message for message in service.messages()))
    told.setblocking(False)
    while True:
        try:
            told.recv(65536)  # from before
        except BlockingIOError:
            break
    eventually(lambda: any("replaced in 2 s" in message for message in service.messages()))
    with pytest.raises(BlockingIOError):
        told.recv(65536)


def test_abstract_socket_and_environment() -> None:
    name = f"mirror-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1", "HOME": "/"}
        manager = Manager.of(environment)
        assert environment == {"HOME": "/"}, "what workers start is not the service"
        assert manager.interval is None, "another process is watched"
        manager.ready("two\nlines")
        assert listening.recv(4096).decode() == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=two lines"
        manager.status("two\nlines")
        manager.status("else")
        assert listening.recv(4096) == b"STATUS=else"
        watched = Manager.of(
            {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
        )
        assert watched.interval == 1.5
        watched.alive()
        watched.alive()
        assert listening.recv(4096) == b"WATCHDOG=1"
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.recv(1)
    manager.ready("nobody is there any more, which is no error")


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_service_manager_nothing_is_said(environment: dict[str, str]) -> None:
    manager = Manager.of(environment | {"WATCHDOG_USEC": "1"})
    manager.ready("up")
    assert manager.interval is None
    assert manager.due() == float("inf")
