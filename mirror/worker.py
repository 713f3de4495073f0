"""What a worker process is given, and how it says that it cannot start. Seen by wiring, api and server alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirror.logs import AccessLog
from mirror.metrics import Metrics


class StartupError(Exception):
    """The service cannot start, for a reason its operator can mend.

    The message is one line: what, which, and what to do. It is shown without a traceback, and the exit code is 1.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerContext:
    """One worker process among its equals.

    slot: 0 to workers - 1; a worker that replaces a dead one has its slot. workers: how many there are.
    stopping: says whether the service is going to stop, for ``/readyz``; costs nothing, true in all workers at once.
    """

    slot: int
    workers: int
    metrics: Metrics
    stopping: Callable[[], bool]
    access_log: AccessLog = field(default_factory=AccessLog)
