"""The metrics as they are documented (``config/METRICS.md``), and as the code declares them."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from mirror.logs import AccessLog
from mirror.metrics import Declared, Metrics
from mirror.server import pulse
from mirror.server.board import Board
from mirror.server.doors import show_certificates
from mirror.store.root import open_root
from mirror.store.usage import DiskUsage
from mirror.upstream.counts import UpstreamReadings
from mirror.wiring import show_storage
from mirror.worker import WorkerContext

CONFIG = Path(__file__).parents[1] / "config"
_ROW = re.compile(r"\| `(mirror_\w+)` \| (counter|gauge|histogram) \| ([^|]*) \| ([^|]+) \|")


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of the document."""

    kind: str
    labels: tuple[str, ...]
    text: str


def documented() -> dict[str, Row]:
    """Return what the document says, by name."""
    found = {}
    for line in (CONFIG / "METRICS.md").read_text().splitlines():
        if line.startswith("| `mirror_"):
            match = _ROW.fullmatch(line)
            assert match, line
            name, kind, labels, text = match.groups()
            assert name not in found, name
            found[name] = Row(kind, tuple(re.findall(r"\w+", labels)), text)
    return found


def declared(folder: Path) -> list[Declared]:
    """Return everything a worker declares, without an application."""
    metrics = Metrics(folder / "metrics", 0)
    worker = WorkerContext(slot=0, workers=1, metrics=metrics, stopping=lambda: False, access_log=AccessLog())
    UpstreamReadings(metrics)
    Board().show(metrics)
    show_certificates(metrics, [])
    show_storage(metrics, DiskUsage(open_root(folder / "root")))

    async def show() -> None:
        pulse.show(worker, 0)

    asyncio.run(show())
    metrics.close()
    return list(metrics.declared)
