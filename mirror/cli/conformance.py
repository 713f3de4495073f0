"""``mirror conformance``: from what people say to a judgement of registries."""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from mirror.conformance import Judgement, Login

PASSWORD = "MIRROR_CONFORMANCE_PASSWORD"
FILE = click.Path(path_type=Path, dir_okay=False)


def _check_urls(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise click.BadParameter(f"{value!r} is not a registry: say http://HOST:PORT or https://HOST.")
        if parts.username is not None:
            raise click.BadParameter("no login in a URL: give --user, and the password apart.")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise click.BadParameter(f"{value!r} has a path: the API is at /v2/ of a host.")
    return tuple(value.rstrip("/") for value in values)


@click.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True, callback=_check_urls)
@click.option(
    "-V",
    "--spec",
    "version",
    type=click.Choice(["1.0", "1.1", "main", "all"]),
    default="1.1",
    show_default=True,
    help="Version of the specification; main is what was merged after 1.1; all shows them side by side.",
)
@click.option(
    "--repository", metavar="NAME", help="Repository to push to, or to pull from. [default: local/conformance]"
)
@click.option(
    "--other-repository",
    metavar="NAME",
    help="Second repository, to mount from. [default: the first with -other]",
)
@click.option("--pull-only", is_flag=True, help="Send nothing that writes; needs --reference.")
@click.option(
    "--reference",
    "references",
    multiple=True,
    metavar="TAG|DIGEST",
    help="Manifest of the repository to pull where nothing can be pushed; what it lists is found by itself. May be "
    "given several times.",
)
@click.option("--blob", "blobs", multiple=True, metavar="DIGEST", help="Blob to pull there, besides those found.")
@click.option("--ns", default="", metavar="HOST", help="What the registry is called in ?ns=. [default: its host]")
@click.option("-u", "--user", metavar="NAME", help="Log in, to all of the registries given.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File with the password.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--ca-file", type=FILE, metavar="FILE", help="Certificates to trust (PEM).")
@click.option("--insecure", is_flag=True, help="Do not check certificates.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Seconds to wait for an answer."
)
@click.option(
    "--new-connections",
    is_flag=True,
    help="Send each request by a connection of its own, so that consecutive ones reach different processes.",
)
@click.option("--seed", metavar="HEX", help="Push the same content as the run that had this seed.")
@click.option("--case", "cases", multiple=True, metavar="NAME", help="Try only this case. May be given several times.")
@click.option(
    "--list",
    "listing",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda *a: _list(*a),
    help="List the cases and exit.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output instead of the summary.")
@click.option("--junit", type=FILE, metavar="FILE", help="Also write a JUnit report.")
@click.option("--html", type=FILE, metavar="FILE", help="Also write a page with every request.")
@click.pass_context
def conformance(
    context: click.Context,
    urls: tuple[str, ...],
    version: str,
    repository: str | None,
    other_repository: str | None,
    pull_only: bool,
    references: tuple[str, ...],
    blobs: tuple[str, ...],
    ns: str,
    user: str | None,
    password_file: Path | None,
    password_stdin: bool,
    ca_file: Path | None,
    insecure: bool,
    timeout: float,
    new_connections: bool,
    seed: str | None,
    cases: tuple[str, ...],
    as_json: bool,
    junit: Path | None,
    html: Path | None,
) -> None:
    """Judge registries by the OCI distribution specification.

    Every MUST and SHOULD that binds a registry is a case. What it takes is pushed to two repositories, and deleted
    again where deletion works. A registry that refuses pushes is judged by what it is asked to pull.

    The password of --user comes from --password-file, --password-stdin, the environment (MIRROR_CONFORMANCE_PASSWORD)
    or the terminal. Exit status: 0 when every MUST holds, 1 when one does not or was not judged, 2 when a registry
    cannot be asked.
    """
    if pull_only and not (references or blobs):
        raise click.UsageError("--pull-only needs content to pull: give --reference, and --repository.")
    if insecure and ca_file:
        raise click.UsageError("--insecure or --ca-file: give one of them.")
    from mirror.conformance import Options, Unreachable, Version, judge
    from mirror.conformance.cases import CASES
    from mirror.conformance.documents import as_html, as_junit
    from mirror.conformance.documents import as_json as json_text
    from mirror.conformance.report import terminal

    if unknown := set(cases) - {case.name for case in CASES}:
        raise click.UsageError(f"no such case: {', '.join(sorted(unknown))}; --list names them.")
    name = repository or Options().repository
    options = Options(
        repository=name,
        other=other_repository or f"{name}-other",
        references=references,
        blobs=blobs,
        pull_only=pull_only,
        ns=ns,
        seed=_seed(seed),
    )
    versions = list(Version) if version == "all" else [Version(version)]
    login = _login(user, password_file, password_stdin)
    tls = _tls(ca_file, insecure)

    async def judge_all() -> list[Judgement]:
        found = []
        for url in urls:
            one = judge(
                url,
                versions,
                options,
                login=login,
                tls=tls,
                timeout=timeout,
                reuse=not new_connections,
                only=cases or None,
            )
            found.append(await one)
        return found

    try:
        judgements = asyncio.run(judge_all())
    except Unreachable as error:
        click.echo(f"mirror: {error}", err=True)
        context.exit(2)
    for path, text in ((junit, as_junit), (html, as_html)):
        if path:
            _write(path, text(judgements))
    click.echo((json_text if as_json else terminal)(judgements), nl=False)
    context.exit(0 if all(judgement.passes_all for judgement in judgements) else 1)


def _list(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Say what cases there are, and end."""
    if not wanted or context.resilient_parsing:
        return
    from mirror.conformance import Version
    from mirror.conformance.cases import CASES

    for case in CASES:
        levels = ", ".join(f"{case.level(version)} {version}" for version in Version if case.level(version))
        click.echo(f"{case.name}\n    {case.section}{f', {case.end}' if case.end else ''}; {case.method}; {levels}")
        click.echo(f"    {case.text}")
    context.exit(0)


def _seed(text: str | None) -> int:
    if text is None:
        return secrets.randbits(32)
    try:
        return int(text, 16) & 0xFFFFFFFF
    except ValueError:
        raise click.BadParameter(f"{text!r} is not hexadecimal.", param_hint="--seed") from None


def _login(user: str | None, file: Path | None, stdin: bool) -> Login | None:
    """Return who asks, with the password from where it was said to be."""
    from mirror.conformance import Login

    if user is None:
        if file or stdin:
            raise click.UsageError("a password is of no use without --user.")
        return None
    if file and stdin:
        raise click.UsageError("--password-file or --password-stdin: give one of them.")
    try:
        if file:
            password = file.read_text().rstrip("\r\n")
        elif stdin:
            password = sys.stdin.readline().rstrip("\r\n")
        elif (found := os.environ.get(PASSWORD)) is not None:
            password = found
        elif _at_terminal():
            password = click.prompt(f"Password of {user}", hide_input=True, err=True)
        else:
            raise click.UsageError(f"no password: give --password-file, --password-stdin or {PASSWORD}.")
    except OSError as error:
        raise click.UsageError(f"the password cannot be read: {error}") from error
    return Login(user=user, password=password)


def _at_terminal() -> bool:
    return sys.stdin.isatty()


def _tls(ca_file: Path | None, insecure: bool) -> ssl.SSLContext | bool:
    """Return how certificates are checked."""
    if insecure:
        return False
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"{ca_file} cannot be read as certificates: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"the report cannot be written: {error}") from error
