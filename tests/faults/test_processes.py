"""Processes: real ones, real signals, real kill -9. The application is a stub; what minds it is not."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.config import ListenAddress
from mirror.server.neighbours import overlap
from mirror.server.owner import take_root
from mirror.server.sockets import make_socket, reserve
from mirror.worker import StartupError
from tests.ports import free_port
from tests.stubbed import PATIENCE, Service, alive, answers, eventually, listening

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, PR_SET_PDEATHSIG")


@contextlib.contextmanager
def holding(fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has inherited the descriptor and nothing else to do."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[fd]) as process:
        try:
            yield process
        finally:
            process.kill()


def config(service: Service, **more: Any) -> dict[str, Any]:
    """Return the settings that make another service want the same port."""
    return {"listen": [f"127.0.0.1:{service.port}"], **more}


# ---- starting ----


def test_four_workers_share_the_port_that_0_found(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 4}).ready()
    assert service.port != 0
    pids = service.workers(4)
    assert set(pids) == {0, 1, 2, 3}
    assert len(set(pids.values())) == 4
    assert service.pid not in pids.values()


def test_says_where_it_listens_and_with_what_once(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(config={"workers": 2, "listen": ["127.0.0.1:0", "localhost:0"]}).ready()
    lines = [json.loads(line) for line in service.said.splitlines()]
    assert [line["message"].rpartition(":")[0] for line in lines] == ["listening on http://127.0.0.1"] * 2
    assert all((line["workers"], line["root"]) == (2, str(tmp_path / "root")) for line in lines)


def test_says_so_only_when_all_workers_listen(start: Callable[..., Service], tmp_path: Path) -> None:
    port = free_port()
    gate = tmp_path / "gate"
    service = start(config={"workers": 2, "listen": [f"127.0.0.1:{port}"]}, gate=str(gate))
    eventually(lambda: answers(port))
    assert service.messages() == []
    gate.write_text("")
    assert service.ready().port == port


def test_root_is_made_for_its_owner_alone(start: Callable[..., Service], tmp_path: Path) -> None:
    start(root="some/deeper/root").ready()
    assert (tmp_path / "some/deeper/root").stat().st_mode & 0o777 == 0o700


def test_root_that_cannot_be_made_is_one_line(start: Callable[..., Service], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = start(root="file/root").refused()
    assert str(tmp_path / "file/root") in line
    assert "--root" in line


def test_second_service_on_a_port_is_refused(start: Callable[..., Service]) -> None:
    first = start(config={"workers": 2}).ready()
    line = start(root="other", config=config(first)).refused()
    assert f"127.0.0.1:{first.port}: the port is in use by pid {first.pid} (" in line
    assert "stub_service.py" in line
    assert first.ask("/healthz") == (200, b"ok")


def test_second_service_on_a_root_is_refused(start: Callable[..., Service], tmp_path: Path) -> None:
    first = start().ready()
    line = start().refused()
    assert f"{tmp_path / 'root'} is in use by another mirror, pid {first.pid} (" in line
    assert first.ask("/healthz") == (200, b"ok")


def test_both_are_free_again_after_it_stopped(start: Callable[..., Service]) -> None:
    first = start().ready()
    # The side that closes first keeps the connection in TIME_WAIT: this time the server.
    with socket.create_connection(("127.0.0.1", first.port)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        while client.recv(4096):
            pass

    def in_time_wait() -> bool:
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(line[1].endswith(f":{first.port:04X}") and line[3] == "06" for line in lines)

    eventually(in_time_wait)
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    second = start(config=config(first)).ready()
    assert second.port == first.port
    assert second.ask("/healthz") == (200, b"ok")


@pytest.mark.parametrize("options", [[], [socket.SO_REUSEADDR], [socket.SO_REUSEADDR, socket.SO_REUSEPORT]])
def test_port_of_another_program_names_it(start: Callable[..., Service], options: list[int]) -> None:
    script = (
        "import socket, sys, time\ns = socket.socket()\n"
        "for option in sys.argv[1:]: s.setsockopt(socket.SOL_SOCKET, int(option), 1)\n"
        "s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            port = int(other.stdout.readline())
            line = start(config={"listen": [f"127.0.0.1:{port}"]}).refused()
            assert f"in use by pid {other.pid} (python" in line
            assert "socket.socket()" not in line  # options of another's command are nobody's business
        finally:
            other.kill()


def test_reserved_address_is_refused_before_anybody_listens() -> None:
    first = reserve(ListenAddress("127.0.0.1", 0))
    with first.held:
        port = first.address[1]
        with pytest.raises(StartupError, match=f"127.0.0.1:{port}: the port is in use"):
            reserve(ListenAddress("127.0.0.1", port))
        with first.open() as ours:
            ours.listen()  # while our own workers may
    with reserve(ListenAddress("127.0.0.1", port)).held:
        pass


def test_address_is_ours_although_another_server_left_connections_behind() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            listener.accept()[0].close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))  # they are there
    reservation = reserve(ListenAddress("127.0.0.1", port))
    with reservation.held, pytest.raises(StartupError, match="in use"):
        reserve(ListenAddress("127.0.0.1", port))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "127.0.0.1", False),
    ],
)
def test_who_has_the_port_is_whose_address_is_in_the_way(one: str, other: str, expected: bool) -> None:
    assert overlap(one, other) is expected


@pytest.mark.parametrize(
    ("host", "says"),
    [("192.0.2.1", "this machine has no such address"), ("no-such-name.invalid", "not an address or name")],
    ids=["not-ours", "unknown"],
)
def test_address_that_cannot_be_had_is_said(host: str, says: str) -> None:
    with pytest.raises(StartupError, match=f"cannot listen on {host}:5000: .*{says}"):
        reserve(ListenAddress(host, 5000))


def test_ipv4_and_ipv6_of_one_port_go_together() -> None:
    try:
        first = reserve(ListenAddress("::1", 0))
    except StartupError:
        pytest.skip("no IPv6 loopback here")
    # What makes it so for the unspecified addresses too, which a test does not listen on.
    with make_socket(socket.AF_INET6) as unbound:
        assert unbound.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    with first.held, reserve(ListenAddress("127.0.0.1", first.address[1])).held:
        assert first.name == f"[::1]:{first.address[1]}"


@pytest.mark.parametrize(
    ("fail", "says"),
    [
        ("refuse", "mirror: the stub does not like it here"),
        ("oserror", "mirror: [Errno 13] Permission denied: '/some/where'"),
    ],
)
def test_worker_that_cannot_start_ends_the_service_with_its_line(
    start: Callable[..., Service], fail: str, says: str
) -> None:
    assert start(fail=fail, config={"workers": 3}).refused() == says


def test_workers_that_crash_at_start_end_the_service(start: Callable[..., Service]) -> None:
    service = start(fail="crash")
    assert service.wait() == 1
    assert sum("ended: exit code 3" in message for message in service.messages()) == 2
    assert service.said.splitlines()[-1].startswith("mirror: the workers end as soon as they start")


# ---- TLS ----


def test_tls(start: Callable[..., Service], tmp_path: Path) -> None:
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(tmp_path / "key")
    for at, pem in enumerate(made.cert_chain_pems):
        pem.write_to_path(tmp_path / "crt", append=at > 0)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    tls = {"certificate": str(tmp_path / "crt"), "key": str(tmp_path / "key")}
    service = start(config={"tls": tls, "workers": 2}, trust=trust).ready()
    assert service.messages()[0].startswith("listening on https://127.0.0.1:")
    assert service.ask("/healthz") == (200, b"ok")


def test_tls_key_of_another_certificate_is_one_line(start: Callable[..., Service], tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(tmp_path / "crt")
    authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key")
    line = start(config={"tls": {"certificate": str(tmp_path / "crt"), "key": str(tmp_path / "key")}}).refused()
    assert line.startswith("mirror: tls: cannot use certificate")
    assert "MISMATCH" in line


# ---- replacing ----


def test_dead_worker_is_replaced(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}).ready()
    before = service.workers(2)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: not alive(before[0]))
    after = eventually(lambda: (now := service.workers(2))[0] != before[0] and now)
    assert after[1] == before[1]
    assert any(f"(pid {before[0]}) ended: killed by SIGKILL" in message for message in service.messages())


def test_only_worker_killed_again_and_again_comes_back(start: Callable[..., Service]) -> None:
    service = start().ready()
    seen = set()
    for _ in range(3):
        pid = eventually(service.who)["pid"]
        seen.add(pid)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: not alive(pid))
    assert eventually(service.who)["pid"] not in seen
    pauses = [message.rpartition("replaced in ")[2] for message in service.messages() if "replaced in" in message]
    assert pauses == ["0 s", "0.5 s", "1 s"]


def test_hung_worker_is_killed_and_replaced(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}, hang_limit=1.0).ready()
    before = service.workers(2)
    hung = None
    while hung is None:
        # Which worker gets a connection is the kernel's choice: the one that answers /who over it is known.
        with contextlib.closing(service.open()) as connection:
            connection.request("GET", "/who")
            answer = json.loads(connection.getresponse().read())
            if answer["slot"] == 1:
                hung = answer["pid"]
                connection.request("GET", "/block")
                with pytest.raises((OSError, http.client.HTTPException)):
                    connection.getresponse()
    eventually(lambda: not alive(hung))
    after = eventually(lambda: (now := service.workers(2))[1] != before[1] and now)
    assert after[0] == before[0]  # its sibling ticked all the time
    assert any(f"(pid {hung}) has hung for 1 s and is killed" in message for message in service.messages())


def test_stopped_and_continued_service_keeps_its_workers(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}, hang_limit=1.0, reload="/nowhere").ready()
    before = service.workers(2)
    os.killpg(service.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() > stopped + 1.5)
    os.killpg(service.pid, signal.SIGCONT)
    for round in (1, 2):  # the parent answers the second one after it has looked at its workers
        service.signal(signal.SIGHUP)
        eventually(lambda round=round: sum("not reloaded" in message for message in service.messages()) == round)
    assert service.workers(2) == before


def test_replacement_that_cannot_start_does_not_end_a_service_others_serve(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    trouble = tmp_path / "trouble"
    service = start(config={"workers": 2}, fail="refuse", fail_if=str(trouble)).ready()
    before = service.workers(2)
    trouble.write_text("")
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: any("ended: the stub does not like it here" in message for message in service.messages()))
    assert eventually(service.who)["pid"] == before[1]
    trouble.unlink()
    assert service.workers(2)[1] == before[1]


# ---- ending ----


def test_workers_end_with_their_parent_and_leave_root_and_port(start: Callable[..., Service]) -> None:
    first = start(config={"workers": 3}).ready()
    pids = first.workers(3).values()
    assert all(map(alive, pids))
    first.signal(signal.SIGKILL)
    # At once, as a service manager would, while the last of them may still be there.
    second = start(config=config(first, workers=3)).ready()
    assert not any(map(alive, pids))
    assert not set(second.workers(3).values()) & set(pids)


@pytest.mark.parametrize(
    ("end_parent", "prepare"),
    [("kernel", "/block"), ("pipe", "/orphan")],
    ids=["although-its-loop-hangs", "although-the-kernel-does-not-tell"],
)
def test_worker_ends_with_its_parent(start: Callable[..., Service], end_parent: str, prepare: str) -> None:
    service = start().ready()
    worker = service.workers(1)[0]
    with contextlib.closing(service.open()) as connection:
        connection.request("GET", prepare)
        if end_parent == "pipe":
            connection.getresponse().read()
        else:
            # It hangs when it does not answer another connection any more.
            eventually(lambda: not answers(service.port))
        service.signal(signal.SIGKILL)
        eventually(lambda: not alive(worker))


def test_root_is_owned_until_the_last_process_with_it_is_gone(tmp_path: Path) -> None:
    fd = take_root(tmp_path / "root")
    with holding(fd) as worker:
        os.close(fd)  # this process, named in the file, lives on: so nobody waits for the worker
        with pytest.raises(StartupError, match=f"in use by another mirror, pid {os.getpid()} "):
            take_root(tmp_path / "root")
        assert worker.poll() is None
    os.close(take_root(tmp_path / "root"))


def test_last_workers_of_a_parent_that_is_gone_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    fd = take_root(tmp_path / "root")
    os.pwrite(fd, f"{gone.pid}\n".encode(), 0)
    os.ftruncate(fd, len(f"{gone.pid}\n"))
    waits = []
    with holding(fd) as worker:
        os.close(fd)

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            worker.kill()
            worker.wait()

        monkeypatch.setattr("mirror.server.owner.time.sleep", sleep)
        os.close(take_root(tmp_path / "root"))
    assert waits


def test_sigterm_makes_it_unready_for_a_while(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2, "shutdown_delay": 600}).ready()
    assert service.ask("/readyz")[0] == 200
    service.signal(signal.SIGTERM)
    eventually(lambda: any(message.startswith("SIGTERM") for message in service.messages()))
    assert {service.ask("/readyz")[0] for _ in range(12)} == {503}  # each over a new connection: both workers
    assert service.ask("/healthz") == (200, b"ok")


def test_sigterm_then_draining_then_gone(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(config={"workers": 2, "shutdown_delay": 0.3}).ready()
    gate = tmp_path / "gate"
    with contextlib.closing(service.open()) as running, contextlib.closing(service.open()) as idle:
        running.request("GET", f"/slow?until={gate}")
        response = running.getresponse()
        assert response.readline() == b"started\n"
        idle.request("GET", "/healthz")
        idle.getresponse().read()
        service.signal(signal.SIGTERM)
        eventually(lambda: any(message.startswith("draining") for message in service.messages()))
        assert [message.partition(":")[0] for message in service.messages()[1:]] == ["SIGTERM", "draining"]
        eventually(lambda: service.try_ask("/healthz") is None)  # not accepting any more
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""  # nothing to wait for there
        assert service.process.poll() is None
        gate.write_text("")
        assert response.read() == b"finished\n"
    assert service.wait() == 0
    assert service.messages()[-1] == "stopped"
    assert "cut off" not in service.said


def test_interrupt_from_the_terminal_drains_without_delay(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(config={"workers": 2, "shutdown_delay": 600}).ready()
    gate = tmp_path / "gate"
    with contextlib.closing(service.open()) as running:
        running.request("GET", f"/slow?until={gate}")
        response = running.getresponse()
        assert response.readline() == b"started\n"
        os.killpg(service.pid, signal.SIGINT)  # a terminal sends it to every process
        eventually(lambda: any(message.startswith("draining") for message in service.messages()))
        gate.write_text("")
        assert response.read() == b"finished\n"
    assert service.wait() == 0
    assert "SIGINT again" not in service.said


def test_requests_that_do_not_end_are_cut_off_at_the_limit(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start(config={"drain_timeout": 0.3}).ready()
    with contextlib.closing(service.open()) as running:
        running.request("GET", f"/slow?until={tmp_path / 'never'}")
        response = running.getresponse()
        assert response.readline() == b"started\n"
        service.signal(signal.SIGTERM)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert service.wait() == 0
    assert any("did not end within drain_timeout" in message for message in service.messages())
    assert not any("did not end in time and is killed" in message for message in service.messages())


def test_last_bytes_of_a_finished_response_are_waited_for(start: Callable[..., Service], tmp_path: Path) -> None:
    service = start().ready()
    worker = service.workers(1)[0]
    done = tmp_path / "done"
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        client.connect(("127.0.0.1", service.port))
        client.sendall(f"GET /large?done={done} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
        eventually(lambda: done.exists() and done.read_text())
        service.signal(signal.SIGTERM)
        eventually(lambda: not listening(service.port))
        # Long enough for a worker that does not wait to be gone.
        before = time.monotonic()
        eventually(lambda: not alive(worker) or time.monotonic() > before + 1)
        assert alive(worker)
        response = http.client.HTTPResponse(client)
        response.begin()
        assert len(response.read()) == int(done.read_text())
    assert service.wait() == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_it_at_once(start: Callable[..., Service], tmp_path: Path, second: signal.Signals) -> None:
    service = start(config={"workers": 2, "shutdown_delay": 600, "drain_timeout": 600}).ready()
    pids = service.workers(2).values()
    service.signal(signal.SIGTERM)
    eventually(lambda: any(message.startswith("SIGTERM") for message in service.messages()))
    service.signal(second)
    assert service.wait() == 128 + second
    assert not any(map(alive, pids))


def test_workers_obey_their_parent_alone(start: Callable[..., Service]) -> None:
    service = start(reload="/nowhere").ready()
    worker = service.workers(1)[0]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker, number)
    assert service.workers(1)[0] == worker
    assert not any("SIGHUP" in message for message in service.messages())
    service.signal(signal.SIGHUP)
    eventually(lambda: any("is not reloaded" in message for message in service.messages()))
    assert service.workers(1)[0] == worker


# ---- counting ----


def test_metrics_are_summed_over_workers_and_survive_one(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}).ready()
    before = service.workers(2)
    asked = service.metric("mirror_requests_total")
    assert asked >= 2
    held = json.loads(service.ask("/hold")[1])["pid"]
    assert service.metric("mirror_downloads_in_flight") == 1
    assert service.metric("mirror_build_info") == 1
    os.kill(held, signal.SIGKILL)
    eventually(lambda: not alive(held))
    eventually(lambda: held not in service.workers(2).values())
    assert before != service.workers(2)
    assert service.metric("mirror_requests_total") > asked
    assert service.metric("mirror_downloads_in_flight") == 0


def test_a_dead_workers_gauges_do_not_wait_for_its_successor(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}).ready()
    for pause in ("0 s", "0.5 s"):  # so that the next one will be replaced after a while only
        pid = service.workers(2)[0]
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda pid=pid, pause=pause: any(
                f"(pid {pid}) ended" in message and message.endswith(f"replaced in {pause}")
                for message in service.messages()
            )
        )
        eventually(lambda pid=pid: service.workers(2)[0] != pid)
    pid, others = service.workers(2)[0], 0
    while json.loads(service.ask("/hold")[1])["pid"] != pid:
        others += 1
    assert service.metric("mirror_downloads_in_flight") == others + 1
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: any(f"(pid {pid}) ended" in message for message in service.messages()))
    assert service.metric("mirror_downloads_in_flight") == others


def test_counts_start_anew_with_the_service(start: Callable[..., Service]) -> None:
    first = start(config={"workers": 3}).ready()
    first.workers(3)
    assert first.metric("mirror_requests_total") >= 3
    first.signal(signal.SIGTERM)
    assert first.wait() == 0
    second = start().ready()
    assert second.metric("mirror_requests_total") == 0


def test_access_log_is_written_while_running_and_at_the_end(start: Callable[..., Service]) -> None:
    service = start(config={"workers": 2}).ready()
    service.ask("/log?mark=one")
    eventually(lambda: '"path":"one"' in service.said)
    for _ in range(8):
        service.ask("/log?mark=last")
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert service.said.count('"path":"last"') == 8
