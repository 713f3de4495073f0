"""What is counted of upstreams, and what all workers know of them, as metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mirror.metrics import Metrics, status_class
from mirror.upstream.client import RegistryClient
from mirror.upstream.quota import Exported


class UpstreamCounts:
    """Counts what upstreams do (``report.UpstreamMetrics``)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def request(self, upstream: str, kind: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._metrics.upstream_requests.labels(upstream, kind, status_class(status)).inc()
        self._metrics.upstream_seconds.labels(upstream, kind).observe(seconds)

    def token(self, upstream: str, result: str) -> None:
        """Count a request for a token."""
        self._metrics.token_requests.labels(upstream, result).inc()

    def error(self, upstream: str, reason: str) -> None:
        """Count a failure."""
        self._metrics.upstream_errors.labels(upstream, reason).inc()

    def wrong_content(self, upstream: str, kind: str) -> None:
        """Count content of a mirror that is not that of its digest."""
        self._metrics.wrong_content.labels(upstream, kind).inc()

    def fetched(self, upstream: str, nbytes: int) -> None:
        """Count body bytes received."""
        self._metrics.fetched_bytes.labels(upstream).inc(nbytes)


class UpstreamReadings:
    """Shows what all workers know of upstreams: quotas, and who is left alone.

    Those that patterns make are not among them: a worker knows its own only, and clients make up their names.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._clients: dict[str, tuple[RegistryClient, Sequence[RegistryClient]]] = {}
        quota = ("upstream", "account")
        metrics.reading(
            "mirror_upstream_quota_limit",
            "Pulls that an account has in a window, as the registry said.",
            quota,
            lambda: self._quotas(lambda found: found.limit),
        )
        metrics.reading(
            "mirror_upstream_quota_remaining",
            "Pulls that an account has left, as the registry said, less those sent since.",
            quota,
            lambda: self._quotas(lambda found: found.remaining),
        )
        metrics.reading(
            "mirror_upstream_quota_pause_seconds",
            "Seconds until an account is asked again for what counts, 0 for now.",
            quota,
            lambda: self._quotas(lambda found: found.paused),
        )
        metrics.reading(
            "mirror_upstream_breaker_open",
            "1 while a host is left alone, from when it did not answer until somebody finds that it does.",
            ("upstream", "host"),
            self._open,
        )

    def add(self, name: str, registry: RegistryClient, mirrors: Sequence[RegistryClient]) -> None:
        """Show an upstream from now on."""
        self._clients[name] = registry, mirrors

    def _quotas(self, number: Callable[[Exported], float | None]) -> Iterator[tuple[Sequence[str], float]]:
        """Give a number of each account by its place in the settings, from 1; what is not known is left out."""
        for name, (registry, _) in self._clients.items():
            for at, found in enumerate(registry.quotas(), 1):
                if (value := number(found)) is not None:
                    yield (name, str(at)), value

    def _open(self) -> Iterator[tuple[Sequence[str], float]]:
        """Give the state of the registry itself and of its mirrors, by their place in the settings, from 1."""
        for name, (registry, mirrors) in self._clients.items():
            yield (name, "registry"), float(registry.is_left_alone())
            for at, mirror in enumerate(mirrors, 1):
                yield (name, f"mirror {at}"), float(mirror.is_left_alone())
