"""What an operator should know of an upstream's settings before something happens: said once, at the start."""

from __future__ import annotations

import shutil
from ipaddress import ip_address

from yarl import URL

from mirror import config


def warnings(name: str, settings: config.Upstream) -> list[str]:
    """Return a line for each thing that is allowed and is seldom meant: what, which, and what to do.

    name: the upstream's configured one.
    """
    lines = _of_host(f"upstream {name}", settings)
    for mirror in settings.mirrors:
        lines += _of_host(f"upstream {name}: mirror {URL(mirror.url).host_port_subcomponent}", mirror)
    return lines


def _of_host(who: str, settings: config.Upstream | config.Mirror) -> list[str]:
    url = URL(settings.url.replace("{host}", "host.invalid"))
    plain = url.scheme == "http"
    lines = []
    if plain and not _is_loopback(url.host or ""):
        if settings.credentials:
            lines.append(
                f"{who}: its credentials cross the network in the clear, as its url is plain http, and whoever reads "
                "them there can use them; give it an https url"
            )
        else:
            lines.append(
                f"{who}: its url is plain http: tags and what is not asked for by digest can be changed on the way; "
                "give it an https url"
            )
    for account in settings.credentials:
        if account.helper is not None and shutil.which(f"docker-credential-{account.helper}") is None:
            lines.append(
                f"{who}: its credential helper docker-credential-{account.helper} is not in PATH, so nothing can be "
                "fetched from it; install it, or correct credentials.helper"
            )
    if settings.insecure and not plain:
        risk = "reads the credentials and " if settings.credentials else ""
        lines.append(
            f"{who}: insecure: the certificate of its host is not checked, so whoever stands in the way {risk}says "
            "what tags point at; give its authority as ca_file"
        )
    return lines


def _is_loopback(host: str) -> bool:
    name = host.lower().rstrip(".")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
