"""An upstream that does not answer, under many clients: what it costs, who notices, and how it comes back."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_upstream import FakeUpstream, start_in_thread
from tests.service import Service, service, wait_until, write_config

PER_SECOND = 50
SECONDS = 6.0
WINDOW, TIMEOUT = 2.0, 1.0
NOTICED = 0.5
"""Seconds that all workers are given to see what one has noticed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client. begun: on the clock of ``time.monotonic``. took: seconds."""

    begun: float
    took: float
    status: int


class Crowd:
    """Clients that come at a steady rate and each ask for something nobody has."""

    def __init__(self, running: Service, stack: ExitStack) -> None:
        self._running = running
        self._pool = stack.enter_context(ThreadPoolExecutor(2 * PER_SECOND))
        self._futures: list[Future[Asked]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._come)
        self._thread.start()
        stack.callback(self.leave)

    def _come(self) -> None:
        while not self._over.wait(1 / PER_SECOND):
            self._futures.append(self._pool.submit(self._ask, len(self._futures)))

    def _ask(self, n: int) -> Asked:
        begun = time.monotonic()
        status, _ = self._running.get(f"/v2/dead/team/app/manifests/t{n}")
        return Asked(begun, time.monotonic() - begun, status)

    def answered(self) -> list[Asked]:
        return [future.result() for future in list(self._futures) if future.done()]

    def saw(self, status: int, *, since: float = 0.0) -> Asked | None:
        """Return the first answer with this status to a request begun since then."""
        return next((one for one in self.answered() if one.status == status and one.begun >= since), None)

    def leave(self) -> list[Asked]:
        """Let nobody come any more; return all that was answered."""
        self._over.set()
        self._thread.join()
        return [future.result() for future in self._futures]


@contextmanager
def silence(hub: FakeUpstream) -> Iterator[Callable[[], None]]:
    """Let a hub take requests and never answer. Gives what ends that."""
    hub.fault(hang_headers=True)
    yield hub.clear_faults


@contextmanager
def black_hole(hub: FakeUpstream) -> Iterator[Callable[[], None]]:
    """Put something in the place of a hub that lets no connection come about: its queue of them is full."""
    hub.call(hub.stop())
    with ExitStack() as stack:
        hole = stack.enter_context(socket.socket())
        hole.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        hole.bind(("127.0.0.1", hub.port))
        hole.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", hub.port))

        def end() -> None:
            stack.close()
            hub.call(hub.start())

        yield end


@pytest.mark.parametrize("how", [silence, black_hole], ids=["never answers", "no connection comes about"])
def test_a_dead_upstream_is_noticed_once_a_window(
    tmp_path: Path, how: Callable[[FakeUpstream], Iterator[Callable[[], None]]]
) -> None:
    with start_in_thread() as dead, start_in_thread() as other, ExitStack() as stack:
        image = other.add_image("team/app", "1", [100_000])
        settings = {"breaker_window": f"{WINDOW}s", "timeouts": {"headers": f"{TIMEOUT}s", "connect": f"{TIMEOUT}s"}}
        config = write_config(tmp_path, {"other": {"url": other.url}, "dead": {"url": dead.url} | settings})
        running = stack.enter_context(service(config))
        hits = [f"/v2/other/team/app/manifests/{image.digest}", f"/v2/other/team/app/blobs/{image.layers[0]}"]
        for path in hits:
            assert running.get(path)[0] == 200
        recover = stack.enter_context(how(dead))  # type: ignore[arg-type]
        crowd = Crowd(running, stack)
        first = wait_until(lambda: crowd.saw(504), "the first runs into the time limit")
        opened = first.begun + first.took
        until = opened + SECONDS
        dead.clear_log()
        while time.monotonic() < until or len(crowd.answered()) < SECONDS * PER_SECOND:
            for path in hits:
                assert running.get(path)[0] == 200
        probes = dead.count()
        recovered = time.monotonic()
        recover()
        back = wait_until(lambda: crowd.saw(404, since=recovered), "it is back", 30)
        assert back.begun - recovered < WINDOW + 2 * TIMEOUT + 1
        time.sleep(1)
        everybody = crowd.leave()
        # whoever came before it was known had its own time limit; after that there is one a window
        later = [one for one in everybody if opened + NOTICED < one.begun and one.begun + one.took < recovered]
        assert len(later) > SECONDS * PER_SECOND / 2
        statuses = Counter(one.status for one in later)
        windows = (recovered - opened) / (WINDOW + TIMEOUT) + 1
        assert set(statuses) == {503, 504}
        assert statuses[504] <= windows
        assert probes <= windows
        waited = [one for one in later if one.status == 503 and one.took >= TIMEOUT]
        assert len(waited) <= len(later) / 10, waited  # none, but where the machine stood still
        # one probe finds out that it is back, and then everybody is answered
        after = Counter(one.status for one in everybody if one.begun > back.begun + back.took)
        assert set(after) == {404}
