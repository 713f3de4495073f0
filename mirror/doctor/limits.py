"""What the operating system lets the service have: descriptors, processes, memory, processors."""

from __future__ import annotations

import resource
from collections.abc import Sequence

from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.threads import in_thread
from mirror.logs.amounts import size
from mirror.server.cpus import worker_count
from mirror.server.groups import memory_limit

DESCRIPTORS, PROCESSES, MEMORY, WORKERS = "descriptors", "processes", "memory", "workers"
FEW, TOO_FEW = 4096, 1024
"""Descriptors of one worker below which there is a warning, or a problem. A client takes three."""

_MORE = (
    "raise it: LimitNOFILE=1048576 in the systemd unit, --ulimit nofile=1048576 for a container, ulimit -Hn in a shell"
)


async def look(case: Case) -> Sequence[Finding]:
    """Judge the limits of this process, which those of a service started here would be."""
    workers = await in_thread(worker_count, case.config.workers)
    memory = await in_thread(memory_limit)
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    processes = None if most == resource.RLIM_INFINITY else most
    return [
        judge_descriptors(_descriptors()),
        ok(PROCESSES, f"up to {processes} for this user" if processes is not None else "unlimited", most=processes),
        ok(MEMORY, f"up to {size(memory)}" if memory is not None else "unlimited", bytes=memory),
        ok(WORKERS, f"{workers} ({'as set' if case.config.workers != 'auto' else 'one for each CPU'})", count=workers),
    ]


def _descriptors() -> int | None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if most == resource.RLIM_INFINITY else most


def judge_descriptors(most: int | None) -> Finding:
    """Judge the hard limit, which each worker takes as its own. most: None for none."""
    text, facts = f"up to {most} for each worker" if most is not None else "unlimited", {"most": most}
    if most is not None and most < TOO_FEW:
        return problem(DESCRIPTORS, text, _MORE, **facts)
    if most is not None and most < FEW:
        return warning(DESCRIPTORS, f"{text}: enough for about {most // 3} clients", _MORE, **facts)
    return ok(DESCRIPTORS, text, **facts)
