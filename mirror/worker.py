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

    slot: where it counts, no other living worker's; one that replaces a dead one has its slot. workers: how many
    there are of its configuration. leading: it is the one among them to do what is to be done once.
    stopping: says whether the service is going to stop, for ``/readyz``; costs nothing, true in all workers at once.
    retired: says whether workers of a newer configuration have taken over, and this one only ends what it has begun.
    """

    slot: int
    workers: int
    metrics: Metrics
    stopping: Callable[[], bool]
    access_log: AccessLog = field(default_factory=AccessLog)
    leading: bool = False
    retired: Callable[[], bool] = lambda: False
