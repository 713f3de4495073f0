"""All the checks, in the order they are shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mirror.doctor import certificates, clock, configuration, database, disk, limits, packages, ports, space, users
from mirror.doctor import root as root_check
from mirror.doctor import settings as upstream_settings
from mirror.doctor import upstreams as upstream_check
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding

_DISK = "look at the disk (dmesg, mount), or choose another folder with storage.root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. look: returns what is found; it raises nothing on purpose.

    beside: it waits for others, so it runs while the rest does, and bounds its own time. hangs, unhang: what it means
    that another one does not end, and what to do then.
    """

    name: str
    look: Callable[[Case], Awaitable[Sequence[Finding]]]
    beside: bool = False
    hangs: str = "the disk does not answer"
    unhang: str = _DISK


CHECKS = (
    Check(name="configuration", look=configuration.look),
    Check(name="root", look=root_check.look),
    Check(name="disk", look=disk.look),
    Check(name="space", look=space.look),
    Check(name="metadata", look=database.look),
    Check(name="limits", look=limits.look),
    Check(name="listen", look=ports.look, hangs="who listens does not answer", unhang="stop it"),
    Check(name="tls", look=certificates.look),
    Check(name="users", look=users.look),
    Check(name="packages", look=packages.look),
    Check(name="upstream settings", look=upstream_settings.look),
    Check(name="upstreams", look=upstream_check.look, beside=True),
    Check(name="clock", look=clock.look),
)
