"""Reload: SIGHUP has the configuration read again, and new workers take over while nobody is refused or cut off."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.config import ListenAddress
from mirror.server.generations import MOST_LEAVING
from mirror.server.sockets import reserve
from mirror.worker import StartupError
from tests.ports import free_port
from tests.stubbed import Service, alive, eventually, listening

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, PR_SET_PDEATHSIG")

RELOADED = "the configuration is reloaded"
REFUSED = "the configuration is not reloaded"


class Reloadable:
    """A service whose configuration is a file. ``write`` changes it, ``reload`` has it read."""

    def __init__(self, start: Callable[..., Service], folder: Path, **settings: Any) -> None:
        self.file = folder / "mirror.yaml"
        self._base = {
            "listen": ["127.0.0.1:0"],
            "workers": 2,
            "shutdown_delay": 0,
            "drain_timeout": 10,
            "upstreams": {},
            "default_upstream": None,
            "storage": {"root": str(folder / "root")},
        }
        first = settings.pop("config", {})
        self.write(**first)
        self.service = start(reload=str(self.file), config={"workers": 2, **first}, **settings).ready()
        self.pid = self.service.pid

    def write(self, mark: str | None = None, **changes: Any) -> None:
        config = self._base | changes
        if mark:
            config["names"] = [mark]
        self.file.write_text(json.dumps(config))

    def workers(self) -> set[int]:
        """Return the processes there are, of any configuration."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return {int(pid) for pid in children.split() if alive(int(pid))}

    def count(self, start: str) -> int:
        return sum(message.startswith(start) for message in self.service.messages())

    def hup(self) -> None:
        self.service.signal(signal.SIGHUP)

    def reload(self, mark: str | None = None, **changes: Any) -> None:
        """Change the file, and wait until new workers have taken over."""
        self.write(mark, **changes)
        done, refused = self.count(RELOADED), self.count(REFUSED)
        self.hup()
        eventually(lambda: self.count(RELOADED) > done or self.count(REFUSED) > refused)
        assert self.count(RELOADED) > done, self.service.said

    def refused(self) -> str:
        """Have the file read, which is refused, and return the one line that says so."""
        before, refused = len(self.service.said.splitlines()), self.count(REFUSED)
        self.hup()
        eventually(lambda: self.count(REFUSED) > refused)
        [line] = [one for one in self.lines()[before:] if one["level"] == "error"]
        return str(line["message"])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.service.said.splitlines()]

    def mark(self) -> str | None:
        return json.loads(self.service.ask("/who")[1])["mark"]

    def metrics(self) -> dict[str, float]:
        text = self.service.ask("/metrics")[1].decode()
        return {name: float(value) for name, value in re.findall(r"^(mirror_\S+) (\S+)$", text, re.M)}


@pytest.fixture
def run(start: Callable[..., Service], tmp_path: Path) -> Callable[..., Reloadable]:
    return lambda **settings: Reloadable(start, tmp_path, **settings)


@contextlib.contextmanager
def slow(service: Service, gate: Path) -> Iterator[http.client.HTTPResponse]:
    """Give a response that has begun, and ends when there is the file."""
    with contextlib.closing(service.open()) as connection:
        connection.request("GET", f"/slow?until={gate}")
        response = connection.getresponse()
        assert response.readline() == b"started\n"
        yield response


# ---- taking over ----


def test_new_workers_take_over_with_what_the_file_says_now(run: Callable[..., Reloadable]) -> None:
    running = run(config={"workers": 2})
    before = running.workers()
    assert running.mark() is None
    started = running.metrics()
    assert started["mirror_config_last_reload_successful"] == 1
    assert started['mirror_config_reloads_total{result="success"}'] == 0
    began = time.time()
    running.reload("second", workers=3)
    assert running.mark() == "second"
    eventually(lambda: len(running.workers()) == 3)
    assert not running.workers() & before
    after = running.metrics()
    assert after["mirror_config_last_reload_successful"] == 1
    assert after["mirror_config_last_reload_success_timestamp_seconds"] >= began
    assert (
        after["mirror_config_last_reload_success_timestamp_seconds"]
        > started["mirror_config_last_reload_success_timestamp_seconds"]
    )
    assert after['mirror_config_reloads_total{result="success"}'] == 1
    assert running.count("listening on") == 1, "it has not moved"
    assert not [line for line in running.lines() if line["level"] != "info"]


def test_nobody_is_refused_while_it_is_reloaded_ten_times(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    """Connections all the time: new ones, and kept ones until a worker says that this was the last answer."""
    running = run(config={"workers": 2})
    failures: list[str] = []
    answered: Counter[int] = Counter()
    end = threading.Event()

    def ask(*, keep: bool) -> None:
        connection = None
        while not end.is_set():
            try:
                connection = connection or running.service.open()
                connection.request("GET", "/who")
                response = connection.getresponse()
                answered[json.loads(response.read())["pid"]] += 1
                if not keep or response.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection = None
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=ask, kwargs={"keep": at == 0}) for at in range(3)]
    for thread in threads:
        thread.start()
    try:
        counts = [0.0]
        for round, workers in enumerate((3, 1, 2, 4, 2, 2, 1, 3, 2, 2)):
            running.reload(f"round-{round}", workers=workers)
            counts.append(running.metrics()['mirror_requests_total{endpoint="who",method="GET",status="200"}'])
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(answered) >= 10
    assert counts == sorted(counts), "what was counted is not forgotten"
    eventually(lambda: len(running.workers()) == 2)
    total = running.metrics()['mirror_requests_total{endpoint="who",method="GET",status="200"}']
    assert total == sum(answered.values())
    slots = {path.stem.rpartition("_")[2] for path in (tmp_path / "root/run/metrics").glob("*.db")}
    assert len(slots) < 22, "numbers that are free are used again"
    assert set(os.listdir(f"/proc/{running.pid}/fd")) >= {"0"}
    assert len(os.listdir(f"/proc/{running.pid}/fd")) < 30


def test_what_has_begun_goes_on_to_its_end(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    """An answer, an upload, a connection that has not asked yet; one that asked before and is idle is closed."""
    running = run(config={"drain_timeout": 0.1, "workers": 1})
    service, gate = running.service, tmp_path / "gate"
    [before] = running.workers()
    fresh = service.open()
    fresh.connect()
    idle = service.open()
    idle.request("GET", "/who")
    idle.getresponse().read()
    upload = service.open()
    upload.putrequest("POST", "/upload")
    upload.putheader("Content-Length", "200000")
    upload.endheaders(b"x" * 100000)
    with contextlib.closing(fresh), contextlib.closing(idle), contextlib.closing(upload):
        with slow(service, gate) as response:
            running.reload("second")
            fresh.request("GET", "/who")
            first = fresh.getresponse()
            assert json.loads(first.read())["pid"] == before
            assert first.getheader("Connection") == "close"
            assert idle.sock is not None
            assert idle.sock.recv(1) == b""
            assert running.mark() == "second"
            upload.send(b"x" * 100000)
            assert json.loads(upload.getresponse().read()) == {"pid": before, "bytes": 200000}
            assert before in running.workers()
            gate.write_text("")
            assert response.read() == b"finished\n"
        eventually(lambda: before not in running.workers())
    assert not [line for line in running.lines() if line["level"] != "info"]


def test_stopping_ends_what_an_earlier_configuration_has_begun(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    running = run(config={"workers": 1})
    with slow(running.service, tmp_path / "never") as response:
        running.reload("second", drain_timeout=0.3)
        running.service.signal(signal.SIGTERM)
        with pytest.raises(http.client.IncompleteRead):
            response.read()
    assert running.service.wait() == 0
    assert not any("killed" in message for message in running.service.messages())


def test_asked_again_meanwhile_it_is_read_once_more(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.write_text("")
    running = run(gate=str(gate))
    gate.unlink()
    running.write("second")
    running.hup()
    eventually(lambda: len(running.workers()) == 4)
    running.write("third")
    for _ in range(3):
        running.hup()
    assert running.mark() is None, "it is not half of both"
    gate.write_text("")
    eventually(lambda: running.count(RELOADED) == 2)
    assert running.mark() == "third"
    assert running.count("SIGHUP: reading") == 2


def test_clients_that_take_their_time_do_not_pile_up_workers(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    running = run(config={"workers": 1, "drain_timeout": 2})
    with contextlib.ExitStack() as stack:
        held = []
        for number in range(MOST_LEAVING + 2):
            held.append(stack.enter_context(slow(running.service, tmp_path / "gate")))
            running.reload(f"m{number}", workers=1, drain_timeout=2)
        assert len(running.workers()) <= 2 + MOST_LEAVING, "the last one has waited for it"
        for response in held[:2]:
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        (tmp_path / "gate").write_text("")
        for response in held[2:]:
            assert response.read() == b"finished\n"
    assert running.count("workers of more than") == 2


def test_what_takes_longer_than_workers_of_before_may_have_is_cut_off(
    run: Callable[..., Reloadable], tmp_path: Path
) -> None:
    running = run(longest_end=1.0, config={"workers": 1})
    with slow(running.service, tmp_path / "gate") as response:
        [before] = running.workers()
        running.reload("second", workers=1)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    eventually(lambda: before not in running.workers())
    assert running.mark() == "second"


# ---- refusing ----


def test_bad_file_changes_nothing_and_is_one_line(run: Callable[..., Reloadable]) -> None:
    running = run()
    before = running.workers()
    running.write(workers=0, push={"missing_blobs": "perhaps"})
    said = running.refused()
    assert said.startswith(f"{REFUSED}, the one of before stays in force: ")
    assert "workers" in said
    assert "push.missing_blobs" in said
    assert str(running.file) in said
    assert running.workers() == before
    found = running.metrics()
    assert found["mirror_config_last_reload_successful"] == 0
    assert found['mirror_config_reloads_total{result="failure"}'] == 1
    running.reload("mended")
    assert running.metrics()["mirror_config_last_reload_successful"] == 1


def test_what_is_no_file_or_empty_is_refused_at_once(run: Callable[..., Reloadable]) -> None:
    """A pipe would make the parent wait, deaf to every signal; an empty file would mean that nobody needs a login."""
    running = run()
    running.file.unlink()
    os.mkfifo(running.file)
    assert running.refused().endswith("is a pipe, which cannot be read again")
    running.file.unlink()
    running.file.write_text("")
    assert running.refused().endswith("is empty; write {} for the defaults")
    running.reload("mended")
    running.service.signal(signal.SIGTERM)
    assert running.service.wait() == 0


def test_root_whose_path_leads_elsewhere_now_is_refused(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    """The one that is there now may have been served before, and may be somebody else's at this moment."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "one")
    (tmp_path / "one").mkdir()
    running = run(config={"storage": {"root": str(link)}})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    link.unlink()
    link.symlink_to(tmp_path / "two")
    assert "is no longer the folder the service was started with" in running.refused()
    link.unlink()
    link.symlink_to(tmp_path / "one")
    running.reload(storage={"root": str(link)})


def test_whoever_replaces_a_dead_worker_has_the_folder_of_the_others(
    run: Callable[..., Reloadable], tmp_path: Path
) -> None:
    link, one = tmp_path / "link", tmp_path / "one"
    link.symlink_to(one)
    one.mkdir()
    running = run(config={"workers": 1, "storage": {"root": str(link)}})
    shutil.copytree(one, tmp_path / "two")
    link.unlink()
    link.symlink_to(tmp_path / "two")
    [before] = running.workers()
    os.kill(before, signal.SIGKILL)
    after = eventually(running.service.who)
    assert after["pid"] != before
    assert after["root"] == str(one)
    one.rename(tmp_path / "away")
    os.kill(after["pid"], signal.SIGKILL)
    assert running.service.wait() == 1
    assert "one is no longer the folder the service was started with; put that back" in running.service.said


def test_what_cannot_be_had_is_refused(run: Callable[..., Reloadable]) -> None:
    running = run()
    before, descriptors = running.workers(), len(os.listdir(f"/proc/{running.pid}/fd"))
    tls = {"certificate": "mirror.yaml", "key": "mirror.yaml"}
    for changes, says in (
        ({"storage": {"root": "/else/where"}}, "storage.root cannot change from .*/root to /else/where while"),
        ({"listen": ["127.0.0.1:0", "192.0.2.1:80"]}, "cannot listen on 192.0.2.1:80: this machine has no such"),
        ({"tls": tls}, "tls: cannot use certificate .*/mirror.yaml"),
    ):
        running.write("second", **changes)
        assert re.search(says, running.refused())
    assert running.workers() == before
    assert running.mark() is None
    assert len(os.listdir(f"/proc/{running.pid}/fd")) == descriptors


@pytest.mark.parametrize(
    ("fail", "says"),
    [("refuse", "the stub does not like it here"), ("crash", "a worker with it ended: exit code 3")],
)
def test_new_worker_that_cannot_start_leaves_the_old_ones(
    run: Callable[..., Reloadable], tmp_path: Path, fail: str, says: str
) -> None:
    trouble = tmp_path / "trouble"
    running = run(fail=fail, fail_if=str(trouble))
    before, descriptors = running.workers(), len(os.listdir(f"/proc/{running.pid}/fd"))
    trouble.write_text("")
    running.write("second", listen=["127.0.0.1:0", "localhost:0"])
    assert running.refused().endswith(says)
    eventually(lambda: running.workers() == before)
    assert running.mark() is None
    eventually(lambda: len(os.listdir(f"/proc/{running.pid}/fd")) == descriptors)


# ---- addresses ----


def test_addresses_come_and_go(run: Callable[..., Reloadable]) -> None:
    running = run()
    first, second = running.service.port, free_port()
    running.reload("both", listen=["127.0.0.1:0", f"127.0.0.1:{second}"])
    assert listening(first)
    assert running.count(f"listening on http://127.0.0.1:{second}") == 1
    assert running.count("listening on") == 2
    with pytest.raises(StartupError, match=f"in use by pid {running.pid} "):
        reserve(ListenAddress("127.0.0.1", second))
    running.reload("one", listen=[f"127.0.0.1:{second}"])
    eventually(lambda: not listening(first))
    assert running.count(f"no longer listening on http://127.0.0.1:{first}") == 1
    running.service.port = second
    assert running.mark() == "one"
    with reserve(ListenAddress("127.0.0.1", first)).held:
        pass  # it is anybody's


def test_address_that_overlaps_with_one_of_ours_can_be_had() -> None:
    """As 0.0.0.0 with 127.0.0.1: here the two are the same, which is an overlap too."""
    first = reserve(ListenAddress("127.0.0.1", 0))
    with first.held:
        [ours] = first.share(0, 1)
        ours.listen()
        wanted = ListenAddress("127.0.0.1", first.address[1])
        with pytest.raises(StartupError, match="in use"):
            reserve(wanted)
        with reserve(wanted, beside=[first]).held:
            pass
        first.close()


def test_clients_that_wait_for_a_worker_that_is_no_more_are_anybodys() -> None:
    reservation = reserve(ListenAddress("127.0.0.1", 0))
    one, two = reservation.share(0, 2), reservation.share(1, 2)
    assert len(one) == len(two) == 1
    assert set(reservation.share(0, 1)) == {*one, *two}
    reservation.close()


# ---- administrators ----


def test_administrators_have_addresses_of_their_own(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    running = run(config={"admin_listen": ["127.0.0.1:0"]})
    service, gate = running.service, tmp_path / "gate"
    said = "administrators at http://127.0.0.1:"
    [place] = eventually(lambda: [message for message in service.messages() if message.startswith(said)])
    clients, port = service.port, int(place.rpartition(":")[2])
    assert port != clients
    assert service.ask("/admin")[0] == 404
    service.port = port
    assert service.ask("/admin")[0] == 200
    assert service.ask("/who")[0] == 404
    with slow(service, gate) as response:
        running.reload("second", admin_listen=["127.0.0.1:0"])
        assert json.loads(service.ask("/admin")[1])["mark"] == "second"
        gate.write_text("")
        assert response.read() == b"finished\n", "drained as the others are"
    service.port = clients
    running.reload("third")
    eventually(lambda: not listening(port))


# ---- death in the midst of it ----


def test_worker_killed_while_it_is_prepared_means_the_old_ones_go_on(
    run: Callable[..., Reloadable], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.write_text("")
    running = run(gate=str(gate))
    before = running.workers()
    gate.unlink()
    running.write("second")
    running.hup()
    new = eventually(lambda: len(now := running.workers() - before) == 2 and now)
    os.kill(max(new), signal.SIGKILL)
    eventually(lambda: running.count(REFUSED))
    [line] = [line for line in running.lines() if line["level"] == "error"]
    assert line["message"].endswith("a worker with it ended: killed by SIGKILL")
    eventually(lambda: running.workers() == before)
    assert running.mark() is None


def test_old_worker_killed_meanwhile_is_replaced_until_others_take_over(
    run: Callable[..., Reloadable], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.write_text("")
    running = run(gate=str(gate))
    before = running.workers()
    gate.unlink()
    running.write("second")
    running.hup()
    eventually(lambda: len(running.workers()) == 4)
    os.kill(min(before), signal.SIGKILL)
    eventually(lambda: any("ended: killed by SIGKILL; replaced" in one for one in running.service.messages()))
    assert eventually(running.service.who)["mark"] is None
    gate.write_text("")
    eventually(lambda: running.count(RELOADED))
    assert running.mark() == "second"
    eventually(lambda: len(running.workers()) == 2)


def test_worker_of_an_earlier_configuration_that_dies_is_not_replaced(
    run: Callable[..., Reloadable], tmp_path: Path
) -> None:
    running = run(config={"workers": 1})
    [before] = running.workers()
    with slow(running.service, tmp_path / "never") as response:
        running.reload("second", workers=1)
        os.kill(before, signal.SIGKILL)
        with pytest.raises((OSError, http.client.HTTPException)):
            response.read()
    eventually(lambda: any("of an earlier configuration ended: killed" in one for one in running.service.messages()))
    assert len(running.workers()) == 1
    assert running.mark() == "second"


def test_sigterm_in_the_midst_ends_everything_in_order(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    gate, never = tmp_path / "gate", tmp_path / "never"
    never.write_text("")
    running = run(gate=str(never))
    never.unlink()
    with slow(running.service, gate) as response:
        running.write("second")
        running.hup()
        pids = eventually(lambda: len(now := running.workers()) == 4 and now)
        running.service.signal(signal.SIGTERM)
        eventually(lambda: running.count("draining"))
        gate.write_text("")
        assert response.read() == b"finished\n"
    assert running.service.wait() == 0
    assert not any(map(alive, pids))
    assert not [line for line in running.lines() if line["level"] != "info"]


def test_nothing_outlives_a_parent_killed_in_the_midst(run: Callable[..., Reloadable], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.write_text("")
    running = run(gate=str(gate))
    with slow(running.service, tmp_path / "never"):
        running.reload("second")  # so that there are three generations
        gate.unlink()
        running.hup()
        pids = eventually(lambda: len(now := running.workers()) >= 5 and now)
        running.service.signal(signal.SIGKILL)
        eventually(lambda: not any(map(alive, pids)))
    assert not listening(running.service.port)
