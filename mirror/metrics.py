"""Every Prometheus metric, declared once; right across workers.

Each worker slot has three files of values that it alone writes and everybody may read:

    <root>/run/metrics/counter_<slot>.db   gauge_sum_<slot>.db   gauge_max_<slot>.db

The format and the adding up are prometheus_client's own (its multiprocess mode). Its metric classes are not used:
they choose between one and many processes by an environment variable read when that package is first imported by
anybody, and take the folder from it as well. Here the files are opened by path when ``Metrics`` is constructed, so
neither the environment nor the order of imports matters. The identifier in a file's name is the slot, not the
process id: a worker that replaces a dead one goes on counting where that one stopped.

What all workers share anyway is not kept here: whichever worker answers reads it then (``reading``).

Labels have few values by construction. There is never one for a repository, a tag or a client.
"""

from __future__ import annotations

import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from mirror import __version__

_FILES = {"counter": 1024 * 1024, "gauge_sum": 64 * 1024, "gauge_max": 64 * 1024}
"""Kind of file → its size in bytes, room for some five thousand counters."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class _File(Protocol):
    """What is used of prometheus_client's untyped ``MmapedDict``: key → number, in a mapped file."""

    def read_value(self, key: str) -> tuple[float, float]: ...
    def write_value(self, key: str, value: float, timestamp: float) -> None: ...
    def read_all_values(self) -> Iterable[tuple[str, float, float]]: ...
    def close(self) -> None: ...


_open_file: Callable[[str], _File] = MmapedDict
_merge: Callable[[list[str]], Iterable[Metric]] = MultiProcessCollector.merge


Read = Callable[[], Iterable[tuple[Sequence[str], float]]]
"""Gives the values of labels, in the order of the declaration, and the number for each."""


class Value:
    """One number of one worker, kept in its file so that it survives the worker."""

    __slots__ = ("_file", "_key", "_lock", "_number")

    def __init__(self, file: _File, key: str, lock: threading.Lock) -> None:
        self._file = file
        self._key = key
        self._lock = lock
        self._number: float = file.read_value(key)[0]

    def inc(self, amount: float = 1) -> None:
        """Add; any thread may."""
        with self._lock:
            self._number += amount
            self._file.write_value(self._key, self._number, 0.0)

    def dec(self, amount: float = 1) -> None:
        """Take away: for gauges."""
        self.inc(-amount)

    def set(self, number: float) -> None:
        """Replace: for gauges."""
        with self._lock:
            self._number = number
            self._file.write_value(self._key, number, 0.0)


class Family:
    """One metric: a value for each combination of its labels."""

    def __init__(self, file: _File, lock: threading.Lock, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._file = file
        self._lock = lock
        self._name = name
        self._text = text
        self._names = labels
        self._values: dict[tuple[str, ...], Value] = {}

    def labels(self, *labels: str) -> Value:
        """Return the value for these labels, in the order of the declaration; made on first use."""
        value = self._values.get(labels)
        if value is None:
            if len(labels) != len(self._names):
                raise ValueError(f"{self._name} has the labels {self._names}, not {len(labels)} of them")
            family = self._name.removesuffix("_total")
            key = mmap_key(family, self._name, list(self._names), list(labels), self._text)
            with self._lock:
                value = self._values.setdefault(labels, Value(self._file, key, self._lock))
        return value


class Metrics:
    """The metrics of one worker, and the sum of all workers'.

    Made in the worker, never at import. folder: shared by all workers, created when absent. slot: of this worker.
    """

    def __init__(self, folder: Path, slot: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._readings: list[tuple[str, str, tuple[str, ...], Read]] = []
        self._open = {kind: _open_file(str(folder / f"{kind}_{slot}.db")) for kind in _FILES}
        for kind in ("gauge_sum", "gauge_max"):
            _zero(self._open[kind])  # they say what is, and the worker before us is no more

        self.requests = self._counter("mirror_requests", "Requests answered.", "method", "endpoint", "status")
        """method: of ``method_class``; endpoint: the name of an entry of the endpoint table; status: "200" …"""
        self.hits = self._counter("mirror_cache_hits", "Answers from what was kept.", "kind", "upstream")
        """kind: "manifest", "tag" or "blob"; upstream: its configured name, "local" for our own repositories."""
        self.misses = self._counter("mirror_cache_misses", "Answers that needed an upstream.", "kind", "upstream")
        """Labels as for hits."""
        self.served_bytes = self._counter("mirror_served_bytes", "Body bytes sent to clients.", "kind")
        """kind: "manifest" or "blob"."""
        self.received_bytes = self._counter("mirror_received_bytes", "Body bytes that clients pushed.")
        self.fetched_bytes = self._counter("mirror_fetched_bytes", "Body bytes got from upstreams.", "upstream")
        self.upstream_requests = self._counter(
            "mirror_upstream_requests", "Requests sent to upstreams.", "upstream", "kind", "status"
        )
        """kind: "manifest", "blob", "tags", "referrers" or "ping"; status: of ``status_class``."""
        self.upstream_errors = self._counter("mirror_upstream_errors", "Failures of upstreams.", "upstream", "reason")
        """reason: "unreachable", "failed", "timeout", "ratelimited", "resting" (left alone, not asked), "busy" (all
        connections in use), "denied", "tokenfailed" or "invalid".
        """
        self.token_requests = self._counter("mirror_token_requests", "Tokens asked for.", "upstream")
        self._downloads = self._gauge("mirror_downloads_in_flight", "Downloads led by a worker now.")
        self.downloads = self._downloads.labels()
        """inc() when a download starts to be led here, dec() when it ends."""
        self._gauge("mirror_build_info", "Always 1.", "version", "python", mode="max").labels(
            __version__, platform.python_version()
        ).set(1)

    def reading(self, name: str, text: str, labels: tuple[str, ...], read: Read) -> None:
        """Declare a gauge of what all workers share. read: called when somebody asks, on the event loop."""
        self._readings.append((name, text, labels, read))

    def read(self) -> Sequence[Metric]:
        """Return the gauges that are read now, for ``render``. Call it on the event loop."""
        found = []
        for name, text, labels, read in self._readings:
            metric = GaugeMetricFamily(name, text, labels=labels)
            for values, number in read():
                metric.add_metric(values, number)
            found.append(metric)
        return found

    def render(self, read: Sequence[Metric] = ()) -> bytes:
        """Return the sum of all workers, and what was read, as Prometheus' text. Reads files: call it in a thread."""
        registry = CollectorRegistry()
        registry.register(_Sum(self._folder, read))
        return generate_latest(registry)

    def close(self) -> None:
        """Close the files. What was counted stays."""
        for file in self._open.values():
            file.close()

    def _counter(self, name: str, text: str, *labels: str) -> Family:
        return Family(self._open["counter"], self._lock, f"{name}_total", text, labels)

    def _gauge(self, name: str, text: str, *labels: str, mode: str = "sum") -> Family:
        return Family(self._open[f"gauge_{mode}"], self._lock, name, text, labels)


class _Sum(Collector):
    def __init__(self, folder: Path, more: Sequence[Metric]) -> None:
        self._folder = folder
        self._more = more

    def collect(self) -> Iterable[Metric]:
        # Not the collector's own search: it would read a folder called "[x]" as a pattern.
        files = sorted(str(path) for path in self._folder.iterdir() if path.suffix == ".db")
        yield from _merge(files)
        yield from self._more


def prepare(folder: Path, workers: int) -> None:
    """Make the files of all slots anew, all counts zero. For the parent, before there are workers.

    Their bytes are allocated on the disk: a store into a hole of a mapped file kills the process by SIGBUS when
    the disk is full, which for a cache is an ordinary day. Also no reader ever meets a file half made.
    Raises: OSError when the disk does not let us.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for slot in range(workers):
        for kind, size in _FILES.items():
            path = folder / f"{kind}_{slot}.db"
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            _open_file(str(path)).close()


def reset_gauges(folder: Path, slot: int) -> None:
    """Set the gauges of a worker that died to zero. For the parent; the one who follows may never come."""
    for kind in ("gauge_sum", "gauge_max"):
        file = _open_file(str(folder / f"{kind}_{slot}.db"))
        _zero(file)
        file.close()


def method_class(method: str) -> str:
    """Return the method as a label: a client may send any word, and a label may not grow with them."""
    return method if method in _METHODS else "other"


def status_class(status: int | None) -> str:
    """Return "2xx" … "5xx", or "none" when no answer came."""
    return f"{status // 100}xx" if status else "none"


def _zero(file: _File) -> None:
    for key, _, _ in list(file.read_all_values()):
        file.write_value(key, 0.0, 0.0)
