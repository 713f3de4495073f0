"""containerd's registry folder: a ``hosts.toml`` for each registry, and ``_default`` for all others.

containerd tries the ``[host]`` tables in order and then ``server``, and says by ``?ns=`` which registry it means to
whoever is not that registry. So one address serves all of them; and where ``server`` is the mirror, nobody else is
asked. A path it puts before ``/v2``, unless ``override_path`` says that the API is at the path itself.
Source: containerd, docs/hosts.md.
"""

from __future__ import annotations

from mirror.clients.plan import File, Plan, Setup, login_warning, ours, quoted

FOLDER = "/etc/containerd/certs.d"
_CA = "mirror-ca.crt"
_NO_OTHERS = ("", "# Empty, but it has to be here: without it containerd 1.x ignores the file.", "[host]")


def plan(setup: Setup) -> Plan:
    """Return the files, by registry."""
    place = setup.place
    files = [_hosts(setup, one.name, one.server) for one in setup.registries]
    if setup.everything:
        files.append(_hosts(setup, "_default", ""))
    if not place.before:
        # images pushed to the mirror itself: without this, containerd expects HTTPS there
        files.append(ours("containerd", f"{FOLDER}/{place.domain}/hosts.toml", _own(setup)))
    if setup.ca:
        files.append(ours("containerd", f"{FOLDER}/{_CA}", setup.ca))
    return Plan(files=tuple(files), steps=_steps(), warnings=tuple(_warnings(setup)))


def _hosts(setup: Setup, name: str, server: str) -> File:
    lines = ['capabilities = ["pull", "resolve"]', *_trust(setup)]
    if setup.place.behind:
        lines.append("override_path = true")
    if setup.fallback:
        lines = [f"[host.{quoted(str(setup.place))}]", *(f"  {line}" for line in lines)]
        if server:
            lines = [f"server = {quoted(server)}", "", *lines]
    else:
        lines = [f"server = {quoted(str(setup.place))}", *lines, *_NO_OTHERS]
    return ours("containerd", f"{FOLDER}/{name}/hosts.toml", "\n".join(lines) + "\n")


def _own(setup: Setup) -> str:
    return "\n".join([f"server = {quoted(setup.place.origin)}", *_trust(setup), *_NO_OTHERS]) + "\n"


def _trust(setup: Setup) -> list[str]:
    return [f'ca = "../{_CA}"'] if setup.ca else []  # from the folder of the file it stands in


def _steps() -> tuple[str, ...]:
    return (
        f'containerd 1.x: /etc/containerd/config.toml needs [plugins."io.containerd.grpc.v1.cri".registry] '
        f'config_path = "{FOLDER}"',
        f'containerd 2.x: [plugins."io.containerd.cri.v1.images".registry] config_path = "{FOLDER}" (its default, '
        "unless something else is there)",
        "systemctl restart containerd, when config.toml was changed; for the files here that is not needed",
        f"ctr does not read config.toml: ctr images pull --hosts-dir {FOLDER} IMAGE",
    )


def _warnings(setup: Setup) -> list[str]:
    found = []
    if not setup.fallback and setup.everything:
        found.append(
            "without fallback, registries that the mirror is not configured for cannot be pulled from; give each that "
            f"may be reached a folder of its own in {FOLDER}"
        )
    if not setup.everything and setup.patterns:
        found.append(f"{', '.join(setup.patterns)} are not covered: leave out --upstream for that")
    found += login_warning(
        setup,
        f'kubelets need it in config.toml ([plugins."…".registry.configs.{quoted(setup.place.authority)}.auth]); '
        "pull secrets of pods are for the registry, not for a mirror",
    )
    return found
