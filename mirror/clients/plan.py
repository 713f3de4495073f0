"""What a client is given: files, what to do besides, and what it will not do. No input, no output."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from mirror.clients.place import Place
from mirror.clients.registries import Registry


class CannotDo(Exception):
    """Something that this client has no setting for. The message says what, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is to be set up.

    place: the mirror. registries: what to pull through it. patterns: of further ones. everything: whether all upstreams
    were asked for, and not some by name. fallback: whether clients go on to the registry when the mirror fails.
    ca: PEM certificates to trust at the mirror, "" for those the machine trusts already. default: what the mirror takes
    a name for that says no registry. logins: whether it lets nobody pull without a login.
    """

    place: Place
    registries: tuple[Registry, ...]
    patterns: tuple[str, ...] = ()
    everything: bool = True
    fallback: bool = True
    ca: str = ""
    default: str | None = "docker.io"
    logins: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file on a node. path: absolute there. form: ours as a whole, or JSON whose other keys are somebody else's."""

    path: str
    text: str
    form: Literal["ours", "json"] = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything for one client. steps: what to do once the files are there. warnings: what will not be as expected."""

    files: tuple[File, ...]
    steps: tuple[str, ...]
    warnings: tuple[str, ...] = ()


MARK = "# Written by mirror client"
"""How a file of ours begins: what begins so may be written anew."""


def ours(client: str, path: str, body: str) -> File:
    """Return a file with the line that says whose it is."""
    return File(path=path, text=f"{MARK} {client}; it is written anew by the same command.\n{body}")


def quoted(value: Any) -> str:
    """Write a text, or a list of them, as TOML and YAML both read it."""
    return json.dumps(value, ensure_ascii=False)


def uncovered(setup: Setup) -> list[str]:
    """Warn of patterns, for a client that needs the name of each registry."""
    if not setup.patterns:
        return []
    patterns = ", ".join(setup.patterns)
    return [
        f"{patterns}: this client has no wildcard that keeps the registry's name; give the registries that you use, "
        "each by --upstream"
    ]


def left_out(setup: Setup, registries: list[Registry]) -> list[str]:
    """Warn of registries that can be no part of an image's path."""
    return [
        f"{one.name} is left out: a port cannot stand within an image's name; give the upstream a further name "
        f"without one (upstreams.{one.name}.names), which the mirror then knows it by"
        for one in registries
    ]


def needs_image_names(client: str, place: Place) -> None:
    """Refuse a mirror that image names cannot say. Raises: CannotDo."""
    if place.before:
        raise CannotDo(
            f"{client} cannot reach {place}: it writes the path of a mirror behind /v2. Serve it there "
            f"({place.origin}/v2{place.before}), or at a host of its own"
        )


def login_warning(setup: Setup, how: str) -> list[str]:
    return [f"the mirror wants a login (access.anonymous: none): {how}"] if setup.logins else []
