"""What is here: requests per second and bytes per second beside CNCF Distribution, on one core each.

Server on one core, load generator on the other; rounds alternate between the two servers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.client import Puller, run_all, wait_all
from tests.bench.content import Content
from tests.bench.load import Load, run_reader, run_wrk, wrk
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Distribution, Mirror, Upstream, blob_path, manifest_path
from tests.bench.settings import Settings, one_core_each, workspace

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
TAG = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """One row: how to load a server at a port, which number of the load counts, and the target ratio."""

    what: str
    unit: str
    load: Callable[[int], Load]
    number: Callable[[Load], float]
    target: float | None = None


def run(settings: Settings) -> Result:
    """Fill both servers with one image, check what they answer, and load them in turn."""
    result = Result(name="hits", beside="Distribution")
    server, others = one_core_each()
    log = Path(os.devnull)  # both write an access log; nobody reads it
    with workspace() as folder, ExitStack() as stack:
        image = _Image(settings.pick(50_000_000, 8_000_000))
        with Upstream(folder) as upstream:
            mirror = stack.enter_context(Mirror(folder, upstream, workers=1, pinned=server, log=log))
            image.give(upstream)
            image.check(result, "the mirror, filling", mirror.port)
        # From here on the upstream is gone: what follows is served without it.
        image.check(result, "the mirror", mirror.port)
        ports = [mirror.port]
        if Distribution.program():
            distribution = stack.enter_context(Distribution(folder, pinned=server, log=log))
            image.push(distribution)
            image.check(result, "Distribution", distribution.port)
            ports.append(distribution.port)
        else:
            result.notes.append("docker-registry is not installed: nothing beside the mirror")
        if not wrk():
            result.notes.append("wrk is not installed: only the client that reads 64 KiB was run")
        failed = 0
        for measure in _measures(settings, image, others, folder):
            found: dict[int, list[float]] = {port: [] for port in ports}
            for turn in range(settings.pick(3, 1)):
                for port in ports if turn % 2 == 0 else reversed(ports):
                    load = measure.load(port)
                    failed += load.failed
                    found[port].append(measure.number(load))
            ours, theirs = median(found[ports[0]]), median(found[ports[1]]) if ports[1:] else None
            target = "" if measure.target is None else f">= {measure.target:.1f}"
            met = ours >= measure.target * theirs if measure.target and theirs else None
            result.rows.append(
                Row(what=measure.what, mirror=ours, beside=theirs, unit=measure.unit, target=target, met=met)
            )
        result.rows.append(count("requests without a good answer", failed, 0))
    return result


def _measures(settings: Settings, image: _Image, pinned: list[int], folder: Path) -> list[_Measure]:
    seconds = settings.pick(4, 1)

    def small(path: str, accept: str | None = None) -> Callable[[int], Load]:
        return lambda port: run_wrk(
            port, path, connections=32, seconds=seconds, pinned=pinned, folder=folder, accept=accept
        )

    def requests(load: Load) -> float:
        return load.per_second

    def gigabytes(load: Load) -> float:
        return load.bytes_per_second / 1e9

    by_tag, by_digest = small(manifest_path(TAG), MANIFEST), small(manifest_path(image.digest), MANIFEST)
    large = blob_path(image.large.digest)
    megabytes = f"{image.large.size // 1_000_000} MB blob"
    with_wrk = [
        _Measure(what="manifest by tag", unit="requests/s", load=by_tag, number=requests, target=5.0),
        _Measure(what="manifest by digest", unit="requests/s", load=by_digest, number=requests),
        _Measure(what="4 KiB blob", unit="requests/s", load=small(blob_path(image.small.digest)), number=requests),
        _Measure(
            what=f"{megabytes}, wrk",
            unit="GB/s",
            load=lambda port: run_wrk(port, large, connections=8, seconds=seconds, pinned=pinned, folder=folder),
            number=gigabytes,
            target=1.0,
        ),
    ]
    reading = _Measure(
        what=f"{megabytes}, 64 KiB reads",
        unit="GB/s",
        load=lambda port: run_reader(port, large, connections=8, seconds=seconds, pinned=pinned),
        number=gigabytes,
        target=1.0,
    )
    return [*(with_wrk if wrk() else []), reading]


class _Image:
    """An image of one small and one large layer."""

    def __init__(self, large: int) -> None:
        self.config, self.small, self.large = Content(512, 1), Content(4096, 2), Content(large, 3)
        self.blobs = (self.config, self.small, self.large)
        self.raw = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _descriptor(CONFIG, self.config),
                "layers": [_descriptor(LAYER, self.small), _descriptor(LAYER, self.large)],
            },
            indent=3,
        ).encode()
        self.digest = ""

    def give(self, upstream: Upstream) -> None:
        for blob in self.blobs:
            upstream.blob(blob.size, blob.seed)
        self.digest = upstream.manifest(TAG, self.raw, MANIFEST)

    def push(self, distribution: Distribution) -> None:
        for blob in self.blobs:
            distribution.push_blob(blob)
        distribution.push_manifest(TAG, self.raw, MANIFEST)

    def check(self, result: Result, who: str, port: int) -> None:
        """Pull everything once, and take the digests."""
        wanted = [(manifest_path(TAG), self.digest), (manifest_path(self.digest), self.digest)]
        wanted += [(blob_path(blob.digest), blob.digest) for blob in self.blobs]
        right = 0
        for path, digest in wanted:
            puller = Puller(port, path, accept=MANIFEST)
            run_all([puller])
            wait_all([puller])
            right += puller.failure is None and puller.digest == digest
        result.rows.append(count(f"{who}: digests right", right, len(wanted)))


def _descriptor(media_type: str, content: Content) -> dict[str, object]:
    return {"mediaType": media_type, "digest": content.digest, "size": content.size}
