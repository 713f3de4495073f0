"""The files of podman, buildah, skopeo and CRI-O, which share a library: ``registries.conf.d`` and ``certs.d``.

It rewrites the names of images: what a prefix matched is replaced by a location, and a location may have a path. So a
mirror of many registries is told the registry as the first part of the path. A prefix with a wildcard is replaced as a
whole, host and all, so it is of no use here. Source: containers-registries.conf(5).
"""

from __future__ import annotations

from urllib.parse import urlsplit

from mirror.clients.plan import Plan, Setup, left_out, login_warning, needs_image_names, ours, quoted, uncovered
from mirror.clients.registries import Registry

CONFIG = "/etc/containers/registries.conf.d/50-mirror.conf"


def podman(setup: Setup) -> Plan:
    """Return the files of podman, buildah and skopeo. Raises: CannotDo."""
    steps = (
        "nothing to restart: podman, buildah and skopeo read it with each command",
        "somebody's own ~/.config/containers/registries.conf takes its place; it needs the same lines then",
    )
    return _plan(setup, "podman", steps)


def cri_o(setup: Setup) -> Plan:
    """Return the files of CRI-O. Raises: CannotDo."""
    return _plan(setup, "cri-o", ("systemctl reload crio, which has it read the file",))


def _plan(setup: Setup, client: str, steps: tuple[str, ...]) -> Plan:
    needs_image_names(client, setup.place)
    place = setup.place
    can = [one for one in setup.registries if one.part]
    tables = [_table(setup, one) for one in can]
    if place.plain:
        # images pushed to the mirror itself
        tables.append(f"[[registry]]\nlocation = {quoted(place.domain)}\ninsecure = true\n")
    files = [ours(client, CONFIG, "\n".join(tables))]
    if setup.ca:
        files.append(ours(client, f"/etc/containers/certs.d/{place.domain}/ca.crt", setup.ca))
    warnings = [*uncovered(setup), *left_out(setup, [one for one in setup.registries if not one.part])]
    if not setup.fallback:
        warnings.append("registries that are not in the file are reached directly, as before")
    warnings += login_warning(setup, f"podman login {place.domain}" if client == "podman" else _crio_login(setup))
    return Plan(files=tuple(files), steps=steps, warnings=tuple(warnings))


def _crio_login(setup: Setup) -> str:
    return f"CRI-O finds it in the file of global_auth_file (crio.conf), under {setup.place.domain}"


def _table(setup: Setup, registry: Registry) -> str:
    mirror = f"location = {quoted(f'{setup.place.domain}{setup.place.behind}/{registry.part}')}\n"
    if setup.place.plain:
        mirror += "insecure = true\n"
    prefix = f"[[registry]]\nprefix = {quoted(registry.name)}\n"
    if not setup.fallback:
        return prefix + mirror
    return prefix + _itself(registry) + f"\n[[registry.mirror]]\n{mirror}"


def _itself(registry: Registry) -> str:
    """Return where the registry itself is."""
    server = urlsplit(registry.server)
    # what a path there would mean cannot be said; and Docker Hub's API is found by the library
    if registry.is_hub or server.path.strip("/") or not server.netloc:
        return f"location = {quoted(registry.name)}\n"
    return f"location = {quoted(server.netloc)}\n" + ("insecure = true\n" if server.scheme == "http" else "")
