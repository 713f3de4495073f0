"""What ``mirror serve`` says to people once it listens: where, what it has, who may push, and what to do next.

Only to a terminal; whatever else reads the log gets log lines and nothing else.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from mirror import __version__
from mirror.access.listeners import is_loopback, through_loopback
from mirror.clients import PlaceInvalid, parse_place, seen_by_nodes
from mirror.config import Config
from mirror.logs.amounts import size

_DEFAULT = "http://127.0.0.1:5000"
_NAMED = 4  # upstreams that are named; more would hide the rest


def greet(config: Config, urls: Sequence[str], *, config_file: Path | None, moved: bool) -> None:
    """Write it to stderr. urls: where clients are answered. moved: whether options replaced the file's addresses."""
    text = "\n".join(lines(config, urls, config_file=config_file, moved=moved))
    with suppress(OSError):  # a terminal that has gone is no reason to stop serving
        click.echo(f"\n{text}\n", err=True)


def lines(config: Config, urls: Sequence[str], *, config_file: Path | None, moved: bool) -> list[str]:
    """Return the banner, line by line."""
    rows = [
        ("listening", ", ".join(urls)),
        ("root", _root(config.storage.root.absolute())),
        ("mirrors", _upstreams(config)),
        ("push", who_may_push(config)),
    ]
    if config.offline:
        rows.append(("offline", "no upstream is asked; what is kept is served"))
    rows.append(("next", next_command(config, urls, config_file=config_file, moved=moved)))
    return [f"mirror {__version__}", *(f"  {name:10}{text}" for name, text in rows)]


def _root(root: Path) -> str:
    try:
        status = os.statvfs(root)
    except OSError:
        return str(root)
    return f"{root} ({size(status.f_bavail * status.f_frsize)} free)"


def _upstreams(config: Config) -> str:
    names = [f"{name} (default)" if name == config.default_upstream else name for name in config.upstreams]
    if not names:
        return "nothing: no upstreams are configured"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def who_may_push(config: Config) -> str:
    """Say in a sentence who may push, and what."""
    access = config.access
    if config.read_only:
        return "nobody: it is read-only"
    if not config.local:
        return "nobody: no names are local"
    names = ", ".join(config.local)
    if access.htpasswd_file is not None:
        if access.push is None:
            return f"every user who logs in may push to {names}"
        users = list(dict.fromkeys((*access.push, *access.admin)))
        if not users:
            return "nobody: access.push and access.admin name no users"
        return f"{', '.join(users)} may push to {names}, with a login"
    if access.insecure_writes:
        return f"anybody who reaches it may push to {names}"
    addresses = [one.address for one in config.listen]
    if any(is_loopback(one.host) and through_loopback((one.host, one.port), addresses) for one in addresses):
        return f"anybody on this machine may push to {names}"
    return "nobody, until there are users (access.htpasswd_file)"


def next_command(config: Config, urls: Sequence[str], *, config_file: Path | None, moved: bool) -> str:
    """Return the command that says how clients are pointed here."""
    command = ["mirror", "client", "containerd"]
    if config_file is not None:
        command += ["--config", str(config_file)]
    if moved or (config_file is not None and any(one.address.port == 0 for one in config.listen)):
        with suppress(PlaceInvalid):
            command += _by_url(config, urls)
    return shlex.join(command)


def _by_url(config: Config, urls: Sequence[str]) -> list[str]:
    """Return the option for an address that neither the default nor the file says."""
    seen = [parse_place(url) for url in urls]
    known = [
        one.model_copy(update={"address": type(one.address)(place.host, place.port or one.address.port)})
        for one, place in zip(config.listen, seen, strict=False)  # further ones are for administrators
    ]
    place, _ = seen_by_nodes(known, socket.gethostname())
    return [] if str(place) == _DEFAULT else ["--url", str(place)]
