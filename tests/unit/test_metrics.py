"""Metrics: one declaration, right across workers."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.metrics import (
    Metrics,
    ParentMetrics,
    add_slot,
    counted_since,
    method_class,
    prepare,
    reset_gauges,
    status_class,
)
from mirror.metrics.declared import ANSWERS


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


def test_what_all_share_can_be_a_counter(pair: tuple[Metrics, Metrics]) -> None:
    for one in pair:
        one.reading("mirror_done", "What was done.", ("result",), lambda: [(("good",), 3.0)], counter=True)
    assert samples(pair[0])["mirror_done_total", "good"] == 3
    assert b"# TYPE mirror_done_total counter" in pair[0].render(pair[0].read())


def test_build_is_one_however_many_workers(pair: tuple[Metrics, Metrics]) -> None:
    assert [number for key, number in samples(pair[0]).items() if key[0] == "mirror_build_info"] == [1]


def test_successor_goes_on_counting_and_starts_its_gauges_anew(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    dead, other = pair
    dead.fetched_bytes.labels("docker.io").inc(5)
    dead.downloads.inc()
    other.downloads.inc()
    successor = Metrics(folder, 0)
    successor.fetched_bytes.labels("docker.io").inc(2)
    found = samples(other)
    assert found["mirror_fetched_bytes_total", "docker.io"] == 7
    assert found["mirror_downloads_in_flight",] == 1
    successor.close()


def test_gauges_of_a_dead_worker_are_reset_without_a_successor(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    dead, other = pair
    dead.downloads.inc()
    dead.fetched_bytes.labels("docker.io").inc()
    assert samples(other)["mirror_downloads_in_flight",] == 1
    reset_gauges(folder, 0)
    found = samples(other)
    assert found["mirror_downloads_in_flight",] == 0
    assert found["mirror_fetched_bytes_total", "docker.io"] == 1


def test_prepare_forgets_an_earlier_service_and_its_more_workers(folder: Path) -> None:
    prepare(folder, 3)
    earlier = Metrics(folder, 2)
    earlier.fetched_bytes.labels("docker.io").inc()
    earlier.close()
    prepare(folder, 1)
    now = Metrics(folder, 0)
    assert ("mirror_fetched_bytes_total", "docker.io") not in samples(now)
    now.fetched_bytes.labels("docker.io").inc()
    assert samples(now)["mirror_fetched_bytes_total", "docker.io"] == 1
    now.close()


def test_slot_is_added_while_others_count_and_keeps_what_was_counted_in_it(
    pair: tuple[Metrics, Metrics], folder: Path
) -> None:
    pair[0].token_requests.labels("docker.io", "granted").inc()
    for amount in (4, 5):
        add_slot(folder, 7)
        third = Metrics(folder, 7)
        third.token_requests.labels("docker.io", "granted").inc(amount)
        third.close()
    assert samples(pair[1])["mirror_token_requests_total", "granted", "docker.io"] == 10
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in folder.glob("*_7.db"))
    assert not list(folder.glob("*.new"))


def test_a_reload_counts_on_from_when_it_began(folder: Path) -> None:
    assert counted_since(folder) is None
    prepare(folder, 1)
    began = counted_since(folder)
    assert began is not None
    os.utime(folder / "begun", (began - 60, began - 60))
    add_slot(folder, 1)  # as a reload does
    first = Metrics(folder, 0)
    first.downloads.inc()
    first.close()
    assert counted_since(folder) == began - 60
    prepare(folder, 1)
    assert counted_since(folder) != began - 60


def test_files_have_their_bytes_on_the_disk(folder: Path) -> None:
    prepare(folder, 2)
    files = list(folder.glob("*.db"))
    assert len(files) == 2 * 4 + 1
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


def test_what_was_not_counted_yet_is_declared_all_the_same(pair: tuple[Metrics, Metrics]) -> None:
    """A dashboard finds every name from the start; what has no labels is 0."""
    families = {family.name: family for family in text_string_to_metric_families(pair[0].render().decode())}
    assert set(families) == {declared.family for declared in pair[0].declared}
    for declared in pair[0].declared:
        family = families[declared.family]
        assert (family.type, family.documentation) == (declared.kind, declared.text)
        assert family.samples or declared.labels
    assert samples(pair[0])["mirror_tokens_issued_total",] == 0


def test_names_are_as_prometheus_wants_them(pair: tuple[Metrics, Metrics]) -> None:
    """Source: "Metric and label naming", and what promtool checks."""
    for declared in pair[0].declared:
        assert re.fullmatch(r"mirror(_[a-z]+)+", declared.name)
        assert declared.name.endswith("_total") == (declared.kind == "counter"), declared.name
        assert not declared.name.endswith(("_count", "_sum", "_bucket"))
        assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", declared.name)
        if declared.kind == "histogram":
            assert declared.name.endswith("_seconds")
        assert declared.text.endswith(".")
        assert len(declared.text) > 10
        assert "le" not in declared.labels
        # There is never one for what clients make up.
        assert not set(declared.labels) & {"repository", "tag", "client", "user", "path", "digest"}


def test_a_histogram_is_the_sum_of_all_workers(pair: tuple[Metrics, Metrics]) -> None:
    first, second = pair
    first.request_seconds.labels("GET", "blobs").observe(0.001)  # a bound belongs to its bucket
    first.request_seconds.labels("GET", "blobs").observe(0.0011)
    second.request_seconds.labels("GET", "blobs").observe(0.3)
    second.request_seconds.labels("GET", "blobs").observe(4000)
    for one in pair:
        found = samples(one)
        name = "mirror_request_duration_seconds"
        bucket = {key[2]: number for key, number in found.items() if key[0] == f"{name}_bucket"}
        assert bucket["0.001"] == 1
        assert bucket["0.0025"] == 2
        assert (bucket["0.25"], bucket["0.5"], bucket["600.0"], bucket["+Inf"]) == (2, 3, 3, 4)
        assert len(bucket) == len(ANSWERS) + 1
        assert found[f"{name}_count", "blobs", "GET"] == 4
        assert found[f"{name}_sum", "blobs", "GET"] == pytest.approx(4000.3021)


def test_a_histogram_outlives_its_worker(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    dead, other = pair
    dead.loop_lag.observe(0.5)
    reset_gauges(folder, 0)
    successor = Metrics(folder, 0)
    successor.loop_lag.observe(0.375)  # into the same bucket
    found = samples(other)
    assert found["mirror_event_loop_lag_seconds_count",] == 2
    assert found["mirror_event_loop_lag_seconds_sum",] == 0.875
    successor.close()


def test_what_blocks_is_read_by_render_and_nothing_else(pair: tuple[Metrics, Metrics]) -> None:
    threads: list[str] = []

    def read() -> list[tuple[tuple[str, ...], float]]:
        threads.append(threading.current_thread().name)
        return [(("a",), 7.0)]

    pair[0].reading("mirror_slow", "What takes long.", ("what",), read, counter=True, blocks=True)
    seen = pair[0].read()
    assert threads == []
    rendering = threading.Thread(target=pair[0].render, args=(seen,), name="render")
    rendering.start()
    rendering.join()
    assert threads == ["render"]
    families = {family.name: family for family in text_string_to_metric_families(pair[0].render(seen).decode())}
    assert families["mirror_slow"].type == "counter"
    assert [(one.labels, one.value) for one in families["mirror_slow"].samples] == [({"what": "a"}, 7.0)]


def test_a_name_is_declared_once(pair: tuple[Metrics, Metrics]) -> None:
    with pytest.raises(ValueError, match="mirror_requests_total"):
        pair[0].reading("mirror_requests", "Again.", (), list, counter=True)


def test_workers_that_are_up_and_those_replaced(pair: tuple[Metrics, Metrics], folder: Path) -> None:
    parent = ParentMetrics(folder)
    assert samples(pair[1])["mirror_workers",] == 2
    parent.restarts.labels("signal").inc()
    reset_gauges(folder, 0)
    found = samples(pair[1])
    assert found["mirror_workers",] == 1
    assert found["mirror_worker_restarts_total", "signal"] == 1
    parent.close()


def test_requests_in_flight_are_of_the_last_look(pair: tuple[Metrics, Metrics]) -> None:
    pair[0].answering, pair[1].answering = 3, 4
    pair[0].sample(0.0)
    pair[1].sample(0.0)
    assert samples(pair[0])["mirror_requests_in_flight",] == 7


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


def test_a_slot_that_is_there_is_not_made_anew(folder: Path) -> None:
    prepare(folder, 1)
    first = Metrics(folder, 0)
    first.fetched_bytes.labels("docker.io").inc(3)
    for slot in (0, 1):
        add_slot(folder, slot)
    assert samples(first)["mirror_fetched_bytes_total", "docker.io"] == 3
    second = Metrics(folder, 1)
    second.fetched_bytes.labels("docker.io").inc(4)
    assert samples(first)["mirror_fetched_bytes_total", "docker.io"] == 7
    assert not list(folder.glob("*.new"))
    for one in (first, second):
        one.close()
