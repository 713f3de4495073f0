"""k3s's ``registries.yaml``, from which it makes containerd's files; ``*`` in it is every registry.

An endpoint with a path is the API's root as it stands. Without fallback it takes a setting of k3s itself, which is
given beside. Source: docs.k3s.io, "Private Registry Configuration"; k3s, pkg/agent/containerd/config.go.
"""

from __future__ import annotations

from mirror.clients.place import Place
from mirror.clients.plan import Plan, Setup, login_warning, ours, quoted

FOLDER = "/etc/rancher/k3s"
_CA = f"{FOLDER}/mirror-ca.crt"
_SINCE = "January 2024 (1.26.13, 1.27.10, 1.28.6, 1.29.1)"


def plan(setup: Setup) -> Plan:
    """Return the files."""
    place = setup.place
    names = [one.name for one in setup.registries]
    if setup.everything:
        names.append("*")
    if not place.before and not place.behind and place.domain not in names:
        names.append(place.domain)  # images pushed to the mirror itself
    lines = ["mirrors:"]
    for name in names:
        lines += [f"  {quoted(name)}:", "    endpoint:", f"      - {quoted(_endpoint(place))}"]
    if setup.ca:
        lines += ["configs:"]
        for host in dict.fromkeys((place.authority, place.domain)):
            lines += [f"  {quoted(host)}:", "    tls:", f"      ca_file: {quoted(_CA)}"]
    files = [ours("k3s", f"{FOLDER}/registries.yaml", "\n".join(lines) + "\n")]
    if not setup.fallback:
        files.append(ours("k3s", f"{FOLDER}/config.yaml.d/50-mirror.yaml", "disable-default-registry-endpoint: true\n"))
    if setup.ca:
        files.append(ours("k3s", _CA, setup.ca))
    return Plan(files=tuple(files), steps=_steps(setup), warnings=tuple(_warnings(setup)))


def _endpoint(place: Place) -> str:
    if place.before or place.behind:
        return f"{place.origin}{place.before}/v2{place.behind}"
    return place.origin


def _steps(setup: Setup) -> tuple[str, ...]:
    return (
        "on every node, servers too: systemctl restart k3s (on agents k3s-agent)",
        "RKE2 reads the same files in /etc/rancher/rke2",
    )


def _warnings(setup: Setup) -> list[str]:
    found = []
    if setup.everything:
        found.append(f'"*" needs a k3s of {_SINCE} or later; before, only the registries named are mirrored')
    if not setup.fallback:
        found.append(
            f"disable-default-registry-endpoint needs a k3s of {_SINCE} or later; before, nodes go on to the registry"
        )
    if not setup.everything and setup.patterns:
        found.append(f"{', '.join(setup.patterns)} are not covered: leave out --upstream for that")
    found += login_warning(setup, f"give it in registries.yaml, configs: {quoted(setup.place.authority)}: auth:")
    return found
