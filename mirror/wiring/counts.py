"""What is counted of logins, downloads and the disk: the words of other layers, as metrics."""

from __future__ import annotations

from collections.abc import Mapping

from mirror.metrics import Metrics
from mirror.store.usage import DiskUsage


def show_storage(metrics: Metrics, usage: DiskUsage) -> None:
    """Have the metrics show how full the disk is."""
    size, free = "mirror_storage_size_bytes", "mirror_storage_free_bytes"
    metrics.reading(size, "Size of the file system of the root.", (), usage.size, blocks=True)
    metrics.reading(free, "Bytes of it that may still be written.", (), usage.free, blocks=True)
    metrics.reading(
        "mirror_storage_used_bytes",
        "Bytes kept in the root: cache, blobs (pushed), ingest (arriving), metadata. What was mounted from an "
        "upstream's repository counts as cache and as blobs.",
        ("kind",),
        usage.used,
        blocks=True,
    )
    metrics.reading("mirror_upload_sessions", "Push sessions that are open.", (), usage.sessions, blocks=True)


class LoginCounts:
    """Counts logins (``gate.LoginCounts``)."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def login(self, result: str) -> None:
        self._metrics.logins.labels(result).inc()

    def token_issued(self) -> None:
        self._metrics.tokens_issued.inc()


class DownloadCounts:
    """Counts downloads, and content that was wrong (``inflight.Observer``). labels: what upstreams are counted as."""

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        self._metrics = metrics
        self._labels = labels

    def download_started(self) -> None:
        self._metrics.downloads.inc()

    def download_ended(self, upstream: str | None, result: str) -> None:
        self._metrics.downloads.dec()
        if upstream is not None:
            self._metrics.downloads_ended.labels(self._labels[upstream], result).inc()

    def wrong_content(self, upstream: str, kind: str) -> None:
        self._metrics.wrong_content.labels(self._labels[upstream], kind).inc()
