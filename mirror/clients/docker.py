"""dockerd's ``daemon.json``, which has mirrors for Docker Hub alone; what else is there stays.

dockerd asks a mirror as if it were Docker Hub: it does not say whose images it means. And it always goes on to Docker
Hub itself. Source: moby, registry/config.go.
"""

from __future__ import annotations

import json
from typing import Any

from mirror.clients.plan import CannotDo, File, Plan, Setup, login_warning, ours
from mirror.clients.registries import DOCKER_HUB

CONFIG = "/etc/docker/daemon.json"


def plan(setup: Setup) -> Plan:
    """Return the keys of ``daemon.json``. Raises: CannotDo."""
    place = setup.place
    if place.before or place.behind:
        raise CannotDo(f"docker takes no path in the URL of a mirror: {place}; give the mirror a host of its own")
    if not setup.fallback:
        raise CannotDo(
            "docker always goes on to Docker Hub when its mirror fails, and has no setting against it; keep it from "
            "registry-1.docker.io in the network instead, or pull by the mirror's own name: "
            f"{place.domain}/{DOCKER_HUB}/library/alpine"
        )
    if not any(one.is_hub for one in setup.registries):
        raise CannotDo(f"docker has mirrors for {DOCKER_HUB} alone, which is not among the upstreams")
    if setup.default != DOCKER_HUB:
        raise CannotDo(
            f"docker does not tell a mirror which registry it means, and this one takes that for {setup.default}: "
            f"set default_upstream: {DOCKER_HUB}"
        )
    settings: dict[str, Any] = {"registry-mirrors": [place.origin]}
    if place.plain:
        settings["insecure-registries"] = [place.authority]
    files = [File(path=CONFIG, text=json.dumps(settings, indent=2) + "\n", form="json")]
    if setup.ca:
        files += [
            ours("docker", f"/etc/docker/certs.d/{name}/ca.crt", setup.ca)
            for name in dict.fromkeys((place.authority, place.domain))
        ]
    return Plan(files=tuple(files), steps=_steps(setup), warnings=tuple(_warnings(setup)))


def _steps(setup: Setup) -> tuple[str, ...]:
    others = [one for one in setup.registries if not one.is_hub and one.part]
    steps = ["systemctl reload docker, which takes new mirrors over while containers run on"]
    if others:
        steps.append(
            f"images of {', '.join(one.name for one in others)} come through the mirror under its own name: "
            f"docker pull {setup.place.domain}/{others[0].part}/OWNER/IMAGE"
        )
    return tuple(steps)


def _warnings(setup: Setup) -> list[str]:
    found = [f"docker mirrors {DOCKER_HUB} alone; other registries are reached directly, unless pulled as said below"]
    found += login_warning(setup, "docker never shows a login to a mirror, and will go on to Docker Hub")
    return found
