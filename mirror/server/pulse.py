"""How a worker is doing, looked at each second; and what else there is to show of the service."""

from __future__ import annotations

import asyncio

from mirror.metrics import Metrics
from mirror.server.processes import Processes
from mirror.worker import WorkerContext

EVERY = 1.0
"""Seconds between two looks."""


def show(worker: WorkerContext, parent: int) -> None:
    """Have the worker's metrics show the service as a whole, and begin to look. On its event loop.

    parent: the process id of who started the workers.
    """
    metrics = worker.metrics
    metrics.reading(
        "mirror_ready",
        "1 while the service wants clients, 0 once it is stopping; what /readyz says.",
        (),
        lambda: [((), 0.0 if worker.stopping() else 1.0)],
    )
    metrics.reading("mirror_workers_expected", "Workers there should be.", (), lambda: [((), float(worker.workers))])
    Processes(parent).declare(metrics)
    _look_later(metrics)


def _look_later(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    loop.call_later(EVERY, _look, metrics, loop.time() + EVERY)


def _look(metrics: Metrics, due: float) -> None:
    metrics.sample(max(0.0, asyncio.get_running_loop().time() - due))
    _look_later(metrics)
