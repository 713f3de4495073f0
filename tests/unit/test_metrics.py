"""Metrics: one declaration, right across workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import Metrics, method_class, prepare, reset_gauges, status_class


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # A name that would be a pattern if somebody searched for files by one.
    return tmp_path / "[x]*" / "metrics"


@pytest.fixture
def pair(folder: Path) -> Iterator[tuple[Metrics, Metrics]]:
    """Two workers of one service."""
    prepare(folder, 2)
    found = Metrics(folder, 0), Metrics(folder, 1)
    yield found
    for one in found:
        one.close()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Read what is rendered: (name, label values by label name …) → number."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render(metrics.read()).decode())
        for sample in family.samples
    }


def test_any_worker_renders_the_sum_of_all(pair: tuple[Metrics, Metrics]) -> None:
    first, second = pair
    first.served_bytes.labels("blob").inc(1000)
    second.served_bytes.labels("blob").inc(24)
    second.served_bytes.labels("manifest").inc()
    first.downloads.inc()
    second.downloads.inc()
    second.downloads.inc()
    second.downloads.dec()
    for one in pair:
        found = samples(one)
        assert found["mirror_served_bytes_total", "blob"] == 1024
        assert found["mirror_served_bytes_total", "manifest"] == 1
        assert found["mirror_downloads_in_flight",] == 2


def test_what_all_share_is_read_when_somebody_asks(pair: tuple[Metrics, Metrics]) -> None:
    shared = {("docker.io", "1"): 100.0}
    for one in pair:
        one.reading("mirror_left", "What is left.", ("upstream", "account"), lambda: shared.items())
    assert samples(pair[0])["mirror_left", "1", "docker.io"] == 100, "not the sum of all workers'"
    shared |= {("docker.io", "1"): 99.0, ("docker.io", "2"): 7.0}
    for one in pair:
        found = samples(one)
        assert [number for key, number in found.items() if key[0] == "mirror_left"] == [99, 7]
    shared.clear()
    assert not [key for key in samples(pair[0]) if key[0] == "mirror_left"]


def test_build_is_one_however_many_workers(pair: tuple[Metrics, Metrics]) -> None:
    assert [number for key, number in samples(pair[0]).items() if key[0] == "mirror_build_info"] == [1]


def test_successor_goes_on_counting_and_starts_its_gauges_anew(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    dead, other = pair
    dead.token_requests.labels("docker.io").inc(5)
    dead.downloads.inc()
    other.downloads.inc()
    successor = Metrics(folder, 0)
    successor.token_requests.labels("docker.io").inc(2)
    found = samples(other)
    assert found["mirror_token_requests_total", "docker.io"] == 7
    assert found["mirror_downloads_in_flight",] == 1
    successor.close()


def test_gauges_of_a_dead_worker_are_reset_without_a_successor(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    dead, other = pair
    dead.downloads.inc()
    dead.token_requests.labels("docker.io").inc()
    assert samples(other)["mirror_downloads_in_flight",] == 1
    reset_gauges(folder, 0)
    found = samples(other)
    assert found["mirror_downloads_in_flight",] == 0
    assert found["mirror_token_requests_total", "docker.io"] == 1


def test_prepare_forgets_an_earlier_service_and_its_more_workers(folder: Path) -> None:
    prepare(folder, 3)
    earlier = Metrics(folder, 2)
    earlier.token_requests.labels("docker.io").inc()
    earlier.close()
    prepare(folder, 1)
    now = Metrics(folder, 0)
    assert ("mirror_token_requests_total", "docker.io") not in samples(now)
    now.token_requests.labels("docker.io").inc()
    assert samples(now)["mirror_token_requests_total", "docker.io"] == 1
    now.close()


def test_files_have_their_bytes_on_the_disk(folder: Path) -> None:
    prepare(folder, 2)
    files = list(folder.iterdir())
    assert len(files) == 6
    for path in files:
        stat = path.stat()
        assert stat.st_blocks * 512 >= stat.st_size > 0


def test_neither_environment_nor_import_order_matters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package has been imported above without this variable, which its own classes would not notice any more.
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    metrics = Metrics(folder, 0)
    metrics.requests.labels("GET", "blobs", "200").inc()
    assert samples(metrics)["mirror_requests_total", "blobs", "GET", "200"] == 1
    metrics.close()


def test_no_label_grows_with_what_clients_ask(pair: tuple[Metrics, Metrics]) -> None:
    metrics = pair[0]
    metrics.requests.labels("GET", "blobs", "200").inc()
    metrics.hits.labels("blob", "docker.io").inc()
    metrics.misses.labels("tag", "docker.io").inc()
    metrics.served_bytes.labels("blob").inc()
    metrics.fetched_bytes.labels("docker.io").inc()
    metrics.upstream_requests.labels("docker.io", "blob", "2xx").inc()
    metrics.upstream_errors.labels("docker.io", "timeout").inc()
    metrics.token_requests.labels("docker.io").inc()
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert len(families) == 10
    assert all(family.documentation for family in families.values())
    names = {name for family in families.values() for sample in family.samples for name in sample.labels}
    assert names == {"method", "endpoint", "status", "kind", "upstream", "reason", "version", "python"}


def test_values_are_found_again_and_labels_are_checked(pair: tuple[Metrics, Metrics]) -> None:
    requests = pair[0].requests
    assert requests.labels("GET", "blobs", "200") is requests.labels("GET", "blobs", "200")
    assert requests.labels("GET", "blobs", "200") is not requests.labels("GET", "blobs", "206")
    with pytest.raises(ValueError, match=r"method.*endpoint.*status"):
        requests.labels("GET")


def test_threads_lose_nothing(pair: tuple[Metrics, Metrics]) -> None:
    value = pair[0].fetched_bytes.labels("docker.io")
    threads = [threading.Thread(target=lambda: [value.inc() for _ in range(5000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert samples(pair[1])["mirror_fetched_bytes_total", "docker.io"] == 20000


def test_more_series_than_fit_make_room(pair: tuple[Metrics, Metrics]) -> None:
    for number in range(9000):
        pair[0].fetched_bytes.labels(f"upstream-{number}.example.net").inc()
    found = samples(pair[1])
    assert sum(value for key, value in found.items() if key[0] == "mirror_fetched_bytes_total") == 9000


@pytest.mark.parametrize(("method", "label"), [("GET", "GET"), ("HEAD", "HEAD"), ("get", "other"), ("X-1", "other")])
def test_method_class(method: str, label: str) -> None:
    assert method_class(method) == label


@pytest.mark.parametrize(("status", "label"), [(200, "2xx"), (206, "2xx"), (429, "4xx"), (503, "5xx"), (None, "none")])
def test_status_class(status: int | None, label: str) -> None:
    assert status_class(status) == label
