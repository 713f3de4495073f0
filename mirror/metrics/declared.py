"""Every metric that is counted, declared once; right across workers.

Each worker slot has files of values that it alone writes and everybody may read; the parent has one of its own:

    <root>/run/metrics/counter_<slot>.db   gauge_sum_<slot>.db   gauge_max_<slot>.db   histogram_<slot>.db
                       counter_parent.db

The identifier in a file's name is the slot, not the process id: a worker that replaces a dead one goes on counting
where that one stopped. What all workers share anyway is not kept here: whichever worker answers reads it then
(``reading``).

Labels have few values by construction. There is never one for a repository, a tag or a client.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from mirror import __version__
from mirror.metrics.values import Declared, Family, Histograms, family, histograms, merge, open_file, zero
from mirror.oci.errors import StorageFailed

_FILES = {
    "counter": 1024 * 1024,
    "gauge_sum": 64 * 1024,
    "gauge_max": 64 * 1024,
    "histogram": 1024 * 1024,
}
"""Kind of file → its size in bytes, room for some five thousand counters and three hundred histograms."""
_BEGUN = "begun"
"""A file that nobody writes to: its time is when counting began."""
_PARENT = "counter_parent.db"
_PARENT_SIZE = 64 * 1024
_LARGEST_FILE = 64 * 1024 * 1024
"""Bytes of a file that is read without knowing who made it; files grow when they are full."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})

ANSWERS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Bounds of answers, in seconds: from what is in memory to a large layer over a slow line."""
WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
"""Bounds of waits for an upstream's headers, in seconds: 18 is as long as that may take."""
LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of how late the event loop is, in seconds: a worker that is 10 late is replaced."""

_RESTARTS = Declared(
    name="mirror_worker_restarts_total",
    kind="counter",
    text="Workers that ended and were replaced, by how they ended: signal, exit or hung.",
    labels=("reason",),
)

Read = Callable[[], Iterable[tuple[Sequence[str], float]]]
"""Gives the values of labels, in the order of the declaration, and the number for each."""


@dataclass(frozen=True, slots=True)
class _Reading:
    declared: Declared
    read: Read
    blocks: bool

    def metric(self) -> Metric:
        """Read it now."""
        found = _empty(self.declared)
        for values, number in self.read():
            found.add_sample(self.declared.name, dict(zip(self.declared.labels, values, strict=True)), number)
        return found


class Metrics:
    """The metrics of one worker, and the sum of all workers'.

    Made in the worker, never at import. folder: shared by all workers, created when absent. slot: of this worker.
    """

    def __init__(self, folder: Path, slot: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._declared: dict[str, Declared] = {}
        self._readings: list[_Reading] = []
        self._open = {kind: open_file(str(folder / f"{kind}_{slot}.db")) for kind in _FILES}
        for kind in ("gauge_sum", "gauge_max"):
            zero(self._open[kind])  # they say what is, and the worker before us is no more
        self._declare(_RESTARTS)

        # ---- requests ----
        self.requests = self._counter("mirror_requests", "Requests answered.", "method", "endpoint", "status")
        """method: of ``method_class``; endpoint: the name of an entry of the endpoint table; status: "200" …"""
        self.request_seconds = self._histogram(
            "mirror_request_duration_seconds",
            "Seconds from a request's headers to the end of its answer; health checks are left out.",
            ANSWERS,
            "method",
            "endpoint",
        )
        """Labels as for requests."""
        self.first_byte_seconds = self._histogram(
            "mirror_request_first_byte_seconds",
            "Seconds from a request's headers to those of its answer; health checks are left out.",
            ANSWERS,
            "method",
            "endpoint",
        )
        self.answering = 0
        """Requests being answered by this worker now: a plain number, as it changes twice with each. See ``sample``."""
        self._in_flight = self._gauge("mirror_requests_in_flight", "Requests being answered now.").labels()
        self.served_bytes = self._counter("mirror_served_bytes", "Body bytes sent to clients.", "kind")
        """kind: "manifest" or "blob"."""
        self.received_bytes = self._counter("mirror_received_bytes", "Body bytes that clients pushed.")

        # ---- what is kept ----
        self.hits = self._counter("mirror_cache_hits", "Answers from what was kept, stale ones too.", *_CACHED)
        """kind: "manifest", "tag" or "blob"; upstream: its configured name, "local" for our own."""
        self.misses = self._counter("mirror_cache_misses", "Answers that needed an upstream.", *_CACHED, "reason")
        """reason: "absent" (not kept), "expired" (no longer fresh, and the same) or "moved" (it was another)."""
        self.stale = self._counter(
            "mirror_cache_stale",
            "Answers from what was kept that the upstream should have been asked about, by why it did not say.",
            *_CACHED,
            "reason",
        )
        """kind: also "list"; reason: as of upstream_errors, and "offline", "slow" (did not say in time), "quota" (not
        spent on this), "notfound" (gone there, kept here by on_not_found), "storage" (its answer could not be noted).
        """

        # ---- downloads ----
        self.downloads = self._gauge("mirror_downloads_in_flight", "Downloads led by a worker now.").labels()
        """inc() when a download starts to be led here, dec() when it ends."""
        self.downloads_ended = self._counter(
            "mirror_downloads", "Downloads of blobs that ended, by how.", "upstream", "result"
        )
        """result: "completed", "failed", "missing" (nobody has it), "wrong" (what came cannot be it), "storage" (the
        disk failed) or "interrupted" (the worker stopped; another goes on).
        """
        self.followers = self._counter(
            "mirror_download_followers", "Clients that joined a download which another had begun.", "upstream"
        )
        self.fetched_bytes = self._counter("mirror_fetched_bytes", "Body bytes got from upstreams.", "upstream")
        self.wrong_content = self._counter(
            "mirror_wrong_content",
            "Content from upstreams and their mirrors that was not that of its digest; none of it was kept.",
            "upstream",
            "kind",
        )
        """kind: "manifest" or "blob"."""

        # ---- upstreams ----
        self.upstream_requests = self._counter(
            "mirror_upstream_requests", "Requests to upstreams that were answered.", "upstream", "kind", "status"
        )
        """kind: "manifest", "blob", "tags", "referrers" or "ping"; status: of ``status_class``."""
        self.upstream_seconds = self._histogram(
            "mirror_upstream_request_duration_seconds",
            "Seconds until an upstream's headers were here, redirects included.",
            WAITS,
            "upstream",
            "kind",
        )
        self.upstream_errors = self._counter("mirror_upstream_errors", "Failures of upstreams.", "upstream", "reason")
        """reason: "unreachable", "failed", "timeout", "ratelimited", "resting" (left alone, not asked), "busy" (all
        connections in use), "denied", "tokenfailed" or "invalid".
        """
        self.token_requests = self._counter(
            "mirror_token_requests", "Tokens asked for, by what came of it.", "upstream", "result"
        )
        """result: "granted", "refused" or "failed"."""

        # ---- who asks us, and pushes ----
        self.logins = self._counter("mirror_logins", "Passwords and tokens of clients looked at, by outcome.", "result")
        """result: "accepted" or "refused"."""
        self.tokens_issued = self._counter("mirror_tokens_issued", "Tokens given to clients.").labels()
        self.pushes = self._counter("mirror_pushes", "Blobs and manifests pushed, mounted ones too.", "kind")
        """kind: "manifest" or "blob"."""
        self.uploads = self._gauge("mirror_uploads_in_flight", "Requests that push something now.").labels()

        # ---- the service ----
        self._gauge("mirror_workers", "Workers that are up.").labels().set(1)
        self.loop_lag = self._histogram(
            "mirror_event_loop_lag_seconds",
            "How late a worker's event loop was, looked at each second.",
            LAGS,
        ).labels()
        self._gauge("mirror_build_info", "Always 1: what runs here.", "version", "python", mode="max").labels(
            __version__, platform.python_version()
        ).set(1)

    @property
    def declared(self) -> Sequence[Declared]:
        """Everything that ``render`` shows."""
        return tuple(self._declared.values())

    def reading(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Read,
        *,
        counter: bool = False,
        blocks: bool = False,
    ) -> None:
        """Declare what all workers share. read: called when somebody asks, on the event loop.

        counter: it only grows, and is shown with ``_total`` after its name. blocks: it is called in a thread instead,
        perhaps in several at once.
        """
        shown = f"{name}_total" if counter else name
        declared = Declared(name=shown, kind="counter" if counter else "gauge", text=text, labels=labels)
        self._declare(declared)
        self._readings.append(_Reading(declared, read, blocks))

    def sample(self, lag: float) -> None:
        """Write down how it goes; called each second. lag: seconds the event loop is late."""
        self.loop_lag.observe(lag)
        self._in_flight.set(self.answering)

    def read(self) -> Sequence[Metric]:
        """Return what is read on the event loop, for ``render``. Call it there."""
        return [reading.metric() for reading in self._readings if not reading.blocks]

    def render(self, read: Sequence[Metric] = ()) -> bytes:
        """Return the sum of all workers, and what was read, as Prometheus' text. Blocks: call it in a thread."""
        found = {metric.name: metric for metric in merge(_files(self._folder))}
        blocking = (reading.metric() for reading in self._readings if reading.blocks)
        found |= {metric.name: metric for metric in (*read, *blocking)}
        shown = []
        for declared in sorted(self._declared.values(), key=lambda one: one.name):
            metric = found.get(declared.family) or _empty(declared)
            metric.documentation = declared.text
            shown.append(metric)
        registry = CollectorRegistry()
        registry.register(_Found(shown))
        return generate_latest(registry)

    def close(self) -> None:
        """Close the files. What was counted stays."""
        for file in self._open.values():
            file.close()

    def _declare(self, declared: Declared) -> Declared:
        if declared.name in self._declared:
            raise ValueError(f"{declared.name} is declared already")
        self._declared[declared.name] = declared
        return declared

    def _counter(self, name: str, text: str, *labels: str) -> Family:
        declared = self._declare(Declared(name=f"{name}_total", kind="counter", text=text, labels=labels))
        return family(self._open["counter"], self._lock, declared)

    def _gauge(self, name: str, text: str, *labels: str, mode: str = "sum") -> Family:
        declared = self._declare(Declared(name=name, kind="gauge", text=text, labels=labels))
        return family(self._open[f"gauge_{mode}"], self._lock, declared)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Histograms:
        declared = self._declare(Declared(name=name, kind="histogram", text=text, labels=labels, bounds=bounds))
        return histograms(self._open["histogram"], self._lock, declared)


_CACHED = ("kind", "upstream")


class ParentMetrics:
    """What the parent counts. It has no gauges: those of dead workers are reset by it."""

    def __init__(self, folder: Path) -> None:
        """folder: as ``prepare`` left it."""
        self._file = open_file(str(folder / _PARENT))
        self.restarts = family(self._file, threading.Lock(), _RESTARTS)
        """reason: "signal", "exit" or "hung"."""

    def close(self) -> None:
        self._file.close()


class _Found(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def counted(folder: Path, *names: str) -> dict[str, dict[str, float]]:
    """Return the sums of counters of all workers, by counter and by the label "upstream", from the files as they are.

    names: of counters, without ``_total``. For who looks from outside; nothing is changed. Blocks.
    Raises: StorageFailed when the files are not what a service made.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    if not folder.is_dir():
        return found
    try:
        merged = list(merge([path for path in _files(folder) if _is_ours(path)]))
    except Exception as error:  # the reader trusts its files: anything may come of others
        raise StorageFailed(f"{folder} is damaged: start the service anew, which makes it anew") from error
    for metric in merged:
        for sample in metric.samples:
            sums = found.get(sample.name.removesuffix("_total"))
            if sums is not None:
                label = sample.labels.get("upstream", "")
                sums[label] = sums.get(label, 0.0) + sample.value
    return found


def counted_since(folder: Path) -> float | None:
    """Return since when it is counted there, in Unix seconds: a reload counts on. None when nothing is. Blocks."""
    try:
        return os.stat(folder / _BEGUN).st_mtime
    except OSError:
        return None


def _files(folder: Path) -> list[str]:
    # Not the collector's own search: it would read a folder called "[x]" as a pattern.
    return sorted(str(path) for path in folder.iterdir() if path.suffix == ".db")


def _is_ours(path: str) -> bool:
    """Say whether what is there can be a file of values: no link, no pipe, nothing endless."""
    found = os.lstat(path)
    return stat.S_ISREG(found.st_mode) and found.st_size <= _LARGEST_FILE


def prepare(folder: Path, workers: int) -> None:
    """Make the files of all slots anew, all counts zero. For the parent, before there are workers.

    Raises: OSError when the disk does not let us.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _BEGUN).touch()
    _make(folder / _PARENT, _PARENT_SIZE)
    for slot in range(workers):
        add_slot(folder, slot)


def add_slot(folder: Path, slot: int) -> None:
    """Make the files of a slot, unless there are some: then what was counted stays. For the parent.

    Raises: OSError when the disk does not let us.
    """
    for kind, size in _FILES.items():
        path = folder / f"{kind}_{slot}.db"
        if not path.exists():
            _make(path, size)


def _make(path: Path, size: int) -> None:
    """Make a file of values. It gets its name when it is whole: nobody who adds up meets it half made.

    Its bytes are allocated on the disk: a store into a hole of a mapped file kills the process by SIGBUS when the
    disk is full, which for a cache is an ordinary day.
    """
    made = path.with_suffix(".new")
    try:
        with made.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        open_file(str(made)).close()
        made.rename(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def reset_gauges(folder: Path, slot: int) -> None:
    """Set the gauges of a worker that died to zero. For the parent; the one who follows may never come."""
    for kind in ("gauge_sum", "gauge_max"):
        file = open_file(str(folder / f"{kind}_{slot}.db"))
        zero(file)
        file.close()


def method_class(method: str) -> str:
    """Return the method as a label: a client may send any word, and a label may not grow with them."""
    return method if method in _METHODS else "other"


def status_class(status: int | None) -> str:
    """Return "2xx" … "5xx", or "none" when no answer came."""
    return f"{status // 100}xx" if status else "none"


def _empty(declared: Declared) -> Metric:
    return Metric(declared.family, declared.text, declared.kind)
