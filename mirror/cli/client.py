"""``mirror client``: what a node needs to pull through the mirror, printed or put in place."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.mistakes import fail, load
from mirror.cli.options import config_option

if TYPE_CHECKING:
    from mirror.clients import Place, Plan, Written
    from mirror.config import Config

CLIENTS = ("containerd", "docker", "podman", "cri-o", "buildkit", "k3s")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@click.command(short_help="Have containerd, docker, podman … pull through the mirror.")
@click.argument("name", metavar="CLIENT", type=click.Choice(CLIENTS))
@click.option("--url", metavar="URL", help="Where nodes reach the mirror. [default: where the configuration listens]")
@click.option(
    "--write",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the files below DIR: / for this machine, or a folder to copy from. Without it they are printed.",
)
@click.option("--force", is_flag=True, help="Replace files that somebody else wrote, and keep those as .bak.")
@config_option
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME",
    help="Only this upstream, or a name that a pattern of the configuration matches; may be given several times.",
)
@click.option("--no-fallback", is_flag=True, help="Never go on to the registry itself when the mirror fails.")
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Certificates to trust (PEM) at an https mirror; they go with the files.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output instead.")
def client(
    name: str,
    url: str | None,
    root: Path | None,
    force: bool,
    config_file: Path | None,
    upstreams: tuple[str, ...],
    no_fallback: bool,
    ca_file: Path | None,
    as_json: bool,
) -> None:
    """Say how to have a client pull through the mirror: the exact files, and what to do besides.

    CLIENT is containerd (kubelet, nerdctl), docker, podman (also buildah and skopeo), cri-o, buildkit or k3s (also
    RKE2). Files go to standard output, or below DIR; what to do besides goes to standard error.

    With --write, docker's daemon.json is added to. Other files are written only where there are none, or where this
    command wrote them; --force replaces what is there. It is all of the files or none.

    Exit status: 0 when the files are printed or written, 1 when not, 2 when the command cannot be understood.
    """
    if force and root is None:
        raise click.UsageError("--force is about files that are there: give --write as well.")
    # Imported here as it takes most of a second, which "mirror --help" and usage errors need not wait for.
    from mirror.clients import PLANS, CannotDo, Refusal, Setup, TreeError, mirrored, named, write_tree
    from mirror.upstream.configured import UnknownUpstream

    config = load(config_file, as_json=as_json)
    place, warnings = _place(url, config)
    if ca_file and place.plain:
        raise click.UsageError(f"--ca-file is for an https mirror, and this one is {place}.")
    try:
        registries, patterns = mirrored(config.upstreams, upstreams)
    except UnknownUpstream as error:
        raise click.BadParameter(str(error), param_hint="--upstream") from error
    if not registries and not patterns:
        fail([], "the configuration has no upstreams, so there is nothing to pull through the mirror", as_json=as_json)
    setup = Setup(
        place=place,
        registries=registries,
        patterns=patterns,
        everything=not upstreams,
        fallback=not no_fallback,
        ca=_certificates(ca_file) if ca_file else "",
        default=named(config.upstreams, config.default_upstream),
        logins=config.access.anonymous == "none",
    )
    try:
        plan = PLANS[name](setup)
    except CannotDo as error:
        raise click.UsageError(f"{error}.") from error
    written = None
    if root is not None:
        try:
            written = write_tree(root, plan.files, force=force)
        except Refusal as refused:
            fail(refused.reasons, "nothing was written", as_json=as_json)
        except TreeError as error:
            fail([], str(error), as_json=as_json)
    warnings += plan.warnings
    if as_json:
        document = {
            "client": name,
            "url": str(place),
            "fallback": setup.fallback,
            "files": _files(plan, written),
            "warnings": warnings,
            "steps": list(plan.steps),
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for line in warnings:
        click.echo(f"warning: {line}", err=True)
    if written is None:
        click.echo("\n".join(f"# {file.path}\n{file.text}" for file in plan.files), nl=False)
    for one in written or ():
        kept = f" (as it was: {one.kept})" if one.kept else ""
        click.echo(f"{one.state:9}  {one.path}{kept}")
    click.echo("next:", err=True)
    for line in plan.steps:
        click.echo(f"  - {line}", err=True)


def _place(url: str | None, config: Config) -> tuple[Place, list[str]]:
    """Return where nodes reach the mirror, and what they should know of that."""
    from mirror.clients import PlaceInvalid, parse_place, seen_by_nodes

    assumed = ""
    try:
        if url is None:
            place, assumed = seen_by_nodes(config.listen, socket.gethostname())
        else:
            place = parse_place(url)
    except PlaceInvalid as error:
        raise click.BadParameter(f"{error}.", param_hint="--url") from error
    warnings = [f"{place}: {assumed}; if they do not, say by --url how they reach it"] if assumed else []
    if place.only_here:
        warnings.append(
            f"only this machine reaches {place}: for others, have the mirror listen elsewhere (mirror serve --host "
            "0.0.0.0) and say by --url how they reach it"
        )
    if any(one.tls and one.tls.client_ca for one in config.listen):
        warnings.append("the mirror asks clients for certificates (tls.client_ca), which the files here do not give")
    return place, warnings


def _certificates(file: Path) -> str:
    """Return the certificates of a file, and nothing else that may be in it: a key is not for all nodes."""
    try:
        found = _CERTIFICATE.findall(file.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise click.BadParameter(f"{file} cannot be read: {error.strerror}.", param_hint="--ca-file") from error
    try:
        for one in found:
            ssl.create_default_context(cadata=one)
    except (ssl.SSLError, ValueError):
        found = []
    if not found:
        raise click.BadParameter(f"{file} is no PEM file of certificates.", param_hint="--ca-file")
    return "\n".join(found) + "\n"


def _files(plan: Plan, written: Sequence[Written] | None) -> list[dict[str, str | None]]:
    if written is None:
        return [{"path": file.path, "content": file.text} for file in plan.files]
    return [
        {
            "path": file.path,
            "content": one.text,
            "written_to": str(one.path),
            "state": one.state,
            "kept": str(one.kept) if one.kept else None,
        }
        for file, one in zip(plan.files, written, strict=True)
    ]
