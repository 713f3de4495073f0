"""Numbers in mapped files: written by one process, read by all, there after a kill.

The format, and the adding up of the files of all processes, are prometheus_client's own (its multiprocess mode). Its
metric classes are not used: they choose between one and many processes by an environment variable read when that
package is first imported by anybody, and take the folder from it as well. Here files are opened by path, so neither
the environment nor the order of imports matters.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from prometheus_client import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A metric as it is exported. name: with its ``_total``. bounds: upper ends of a histogram's buckets."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def family(self) -> str:
        """The name prometheus_client has for it."""
        return self.name.removesuffix("_total") if self.kind == "counter" else self.name


class File(Protocol):
    """What is used of prometheus_client's untyped ``MmapedDict``: key → number, in a mapped file."""

    def read_value(self, key: str) -> tuple[float, float]: ...
    def write_value(self, key: str, value: float, timestamp: float) -> None: ...
    def read_all_values(self) -> Iterable[tuple[str, float, float]]: ...
    def close(self) -> None: ...


open_file: Callable[[str], File] = MmapedDict
merge: Callable[[list[str]], Iterable[Metric]] = MultiProcessCollector.merge
"""Files → the sum of what is in them. A file's kind is the first part of its name."""


class Value:
    """One number of one process, kept in its file so that it survives the process."""

    __slots__ = ("_file", "_key", "_lock", "_number")

    def __init__(self, file: File, key: str, lock: threading.Lock) -> None:
        self._file = file
        self._key = key
        self._lock = lock
        self._number: float = file.read_value(key)[0]

    @property
    def number(self) -> float:
        """What it is now."""
        return self._number

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


class Histogram:
    """How often something was how much.

    An observation writes two numbers: the sum, and the one bucket it falls into. What Prometheus wants besides, each
    bucket with all below it and the count, is made of them by ``merge``.
    """

    __slots__ = ("_bounds", "_counts", "_file", "_keys", "_lock", "_sum", "_sum_key")

    def __init__(
        self, file: File, keys: Sequence[str], sum_key: str, bounds: tuple[float, ...], lock: threading.Lock
    ) -> None:
        """keys: of the buckets, one more than bounds: the last is for what is above all of them."""
        self._file = file
        self._lock = lock
        self._bounds = bounds
        self._keys = keys
        # All are there from the beginning: a rate of what appears later would miss the first observation.
        self._counts = [file.read_value(key)[0] for key in keys]
        self._sum_key = sum_key
        self._sum: float = file.read_value(sum_key)[0]

    def observe(self, number: float) -> None:
        """Note one; any thread may."""
        at = bisect_left(self._bounds, number)
        with self._lock:
            self._sum += number
            self._counts[at] += 1
            self._file.write_value(self._sum_key, self._sum, 0.0)
            self._file.write_value(self._keys[at], self._counts[at], 0.0)


T = TypeVar("T")


class Labelled(Generic[T]):
    """One metric: something that counts for each combination of its labels."""

    def __init__(
        self, declared: Declared, lock: threading.Lock, make: Callable[[Declared, tuple[str, ...]], T]
    ) -> None:
        self.declared = declared
        self._lock = lock
        self._make = make
        self._made: dict[tuple[str, ...], T] = {}
        if not declared.labels:
            self.labels()  # what has none is there from the beginning, as 0

    def labels(self, *labels: str) -> T:
        """Return what counts for these labels, in the order of the declaration; made on first use."""
        made = self._made.get(labels)
        if made is None:
            if len(labels) != len(self.declared.labels):
                raise ValueError(f"{self.declared.name} has the labels {self.declared.labels}, not {len(labels)}")
            with self._lock:
                made = self._made.get(labels)
                if made is None:
                    made = self._made[labels] = self._make(self.declared, labels)
        return made


Family = Labelled[Value]
Histograms = Labelled[Histogram]


def family(file: File, lock: threading.Lock, declared: Declared) -> Family:
    """Return a counter or a gauge. lock: of everything in the file."""
    return Labelled(declared, lock, lambda what, labels: Value(file, _key(what, what.name, labels), lock))


def histograms(file: File, lock: threading.Lock, declared: Declared) -> Histograms:
    """Return a histogram. lock: of everything in the file."""

    def make(what: Declared, labels: tuple[str, ...]) -> Histogram:
        ends = [*map(floatToGoString, what.bounds), "+Inf"]
        keys = [_key(what, f"{what.name}_bucket", labels, end) for end in ends]
        return Histogram(file, keys, _key(what, f"{what.name}_sum", labels), what.bounds, lock)

    return Labelled(declared, lock, make)


def zero(file: File) -> None:
    """Set every number of a file to 0."""
    for key, _, _ in list(file.read_all_values()):
        file.write_value(key, 0.0, 0.0)


def _key(declared: Declared, sample: str, labels: tuple[str, ...], end: str | None = None) -> str:
    names, values = list(declared.labels), list(labels)
    if end is not None:
        names, values = [*names, "le"], [*values, end]
    # Without the text: it would stand beside each number, and be read each time. ``render`` adds it.
    return mmap_key(declared.family, sample, names, values, "")
