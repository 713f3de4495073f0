"""What is counted of a request, when it is done. Agrees with the access log: each line is one of these."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mirror.api.exchange import Exchange
from mirror.metrics import Histogram, Metrics, Value, method_class

UNLOGGED = ("healthz", "readyz", "metrics")
"""Endpoints that are asked all the time, by machines: they have no lines and no durations."""
NOT_ANSWERED = 499
"""Status of a request whose client was gone, or that was cancelled, before there was an answer."""


class RequestCounts:
    """The counts of one worker's requests. labels: what each upstream, and our own, is counted as."""

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._known: dict[tuple[str, str, int], tuple[Value, Histogram | None, Histogram | None]] = {}

    def begin(self) -> None:
        """Count a request that begins."""
        self._metrics.answering += 1

    @contextmanager
    def pushing(self) -> Iterator[None]:
        """Count a request as one that pushes, for as long as it does."""
        self._metrics.uploads.inc()
        try:
            yield
        finally:
            self._metrics.uploads.dec()

    def end(self, exchange: Exchange, status: int) -> None:
        """Count a request that is done, whatever became of it."""
        metrics = self._metrics
        metrics.answering -= 1
        method = method_class(exchange.request.method)
        known = self._known.get((method, exchange.endpoint, status)) or self._find(method, exchange.endpoint, status)
        requests, whole, first_byte = known
        requests.inc()
        if whole is not None:
            now = time.monotonic()
            whole.observe(now - exchange.started)
            if first_byte is not None:
                first_byte.observe((exchange.first_byte or now) - exchange.started)
        if exchange.hit is not None and exchange.upstream is not None:
            self._count_cache(exchange, self._labels[exchange.upstream])
        if exchange.sent:
            metrics.served_bytes.labels("blob" if exchange.kind == "blob" else "manifest").inc(exchange.sent)
        if exchange.received:
            metrics.received_bytes.labels().inc(exchange.received)
        if status == 201:
            metrics.pushes.labels("manifest" if exchange.endpoint == "manifests" else "blob").inc()

    def _count_cache(self, exchange: Exchange, upstream: str) -> None:
        metrics, kind = self._metrics, exchange.kind
        if exchange.stale is not None:
            metrics.stale.labels(kind or "list", upstream, exchange.stale).inc()
        if kind is None:
            return  # lists are no content: how often they are asked for would hide how often that is here
        if exchange.hit:
            metrics.hits.labels(kind, upstream).inc()
        else:
            metrics.misses.labels(kind, upstream, exchange.missed).inc()
        if exchange.follows:
            metrics.followers.labels(upstream).inc()

    def _find(self, method: str, endpoint: str, status: int) -> tuple[Value, Histogram | None, Histogram | None]:
        metrics = self._metrics
        timed = endpoint not in UNLOGGED
        found = (
            metrics.requests.labels(method, endpoint, str(status)),
            metrics.request_seconds.labels(method, endpoint) if timed else None,
            metrics.first_byte_seconds.labels(method, endpoint) if timed and status != NOT_ANSWERED else None,
        )
        self._known[method, endpoint, status] = found
        return found
