"""BuildKit's ``buildkitd.toml``: mirrors for each registry, and a table for the mirror's own host.

A path of a mirror is put behind ``/v2``, and ``?ns=`` says the registry as well; the path is what older versions have.
Which scheme and which certificates, the table of the mirror's host says. The registry itself always comes last.
Source: moby/buildkit, util/resolver/resolver.go.
"""

from __future__ import annotations

from mirror.clients.plan import CannotDo, Plan, Setup, login_warning, needs_image_names, ours, quoted, uncovered

CONFIG = "/etc/buildkit/buildkitd.toml"
_CA = "/etc/buildkit/mirror-ca.crt"


def plan(setup: Setup) -> Plan:
    """Return the configuration. Raises: CannotDo."""
    place = setup.place
    needs_image_names("buildkit", place)
    if not setup.fallback:
        raise CannotDo(
            "BuildKit always goes on to the registry itself when its mirrors fail, and has no setting against it; "
            "keep it from the registries in the network instead"
        )
    base = f"{place.domain}{place.behind}"
    tables = [
        f"[registry.{quoted(one.name)}]\n  mirrors = {quoted([f'{base}/{one.part or one.name}'])}\n"
        for one in setup.registries
    ]
    if place.plain:
        tables.append(f"[registry.{quoted(place.domain)}]\n  http = true\n")
    elif setup.ca:
        tables.append(f"[registry.{quoted(place.domain)}]\n  ca = {quoted([_CA])}\n")
    files = [ours("buildkit", CONFIG, "\n".join(tables))]
    if setup.ca:
        files.append(ours("buildkit", _CA, setup.ca))
    steps = (
        "restart buildkitd (systemctl restart buildkit)",
        f"docker buildx: docker buildx create --driver docker-container --buildkitd-config {CONFIG}"
        " (--config before buildx 0.13)",
        "the BuildKit within docker goes by docker's own mirrors: mirror client docker",
    )
    warnings = [*uncovered(setup), *login_warning(setup, f"docker login {place.domain}, where the build is started")]
    return Plan(files=tuple(files), steps=steps, warnings=tuple(warnings))
