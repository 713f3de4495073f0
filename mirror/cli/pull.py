"""``mirror pull``: from what people write to images that are there before a cluster asks for them."""

from __future__ import annotations

import json
import logging
import ssl
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from mirror.cli.interrupted import run
from mirror.cli.mistakes import fail, problems_of
from mirror.cli.options import config_option, json_option, root_option

if TYPE_CHECKING:
    from mirror.cli.progress import Report
    from mirror.prefetch import Image, Login, Platform

FILE = click.Path(path_type=Path, dir_okay=False)
STDIN = "-"
ALL = "all"


def _check_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"{value!r} is not a mirror: say http://HOST:PORT or https://HOST.")
    if parts.username is not None:
        raise click.BadParameter("no login in a URL: give --user and --password-file.")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise click.BadParameter(f"{value!r} has a path: the API is at /v2/ of a host.")
    return value.rstrip("/")


@click.command(short_help="Fetch images ahead of time.")
@click.argument("references", metavar="[REFERENCE]...", nargs=-1)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH[/VARIANT]",
    help='Platform to fetch, or "all"; may be given several times. [default: this machine\'s]',
)
@click.option(
    "--from",
    "files",
    multiple=True,
    metavar="FILE",
    help="File of images, one a line, comments after #; - is standard input. May be given several times.",
)
@click.option("--url", metavar="URL", callback=_check_url, help="Mirror to fetch through, wherever it runs.")
@config_option
@root_option
@click.option("-u", "--user", metavar="NAME", help="Log in to the mirror.")
@click.option("--password-file", type=FILE, metavar="FILE", help="File with the password.")
@click.option("--ca-file", type=FILE, metavar="FILE", help="Certificates to trust (PEM) at the URL.")
@click.option(
    "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, metavar="N", help="Transfers at the same time."
)
@json_option
def pull(
    references: tuple[str, ...],
    platforms: tuple[str, ...],
    files: tuple[str, ...],
    url: str | None,
    config_file: Path | None,
    root: str | None,
    user: str | None,
    password_file: Path | None,
    ca_file: Path | None,
    jobs: int,
    as_json: bool,
) -> None:
    """Fetch images into the mirror, so that they are there before anybody asks.

    A REFERENCE is an image as docker and containerd write it: alpine, ghcr.io/owner/app:v1, name@sha256:…. Without a
    host, which has a dot or a port, it is one of docker.io. Of an index, only the manifests of the wanted platforms are
    fetched. What is already there costs nothing; interrupted, give the same command again, and it goes on where it
    ended.

    It goes through the mirror at --url, or through the service that has the folder; when no service has it, into the
    folder itself.

    Exit status: 0 when all images are there, 1 when there are problems, 2 when the command cannot be understood.
    """
    if not references and not files:
        raise click.UsageError("nothing to pull: give images, or files of them by --from.")
    if url and (config_file or root):
        raise click.UsageError("--url already says which mirror: give it alone, or --config and --root.")
    if ca_file and not (url and url.startswith("https:")):
        raise click.UsageError("--ca-file is for an https --url.")
    wanted = _platforms(platforms)
    login = _login(user, password_file)
    tls = _trusting(ca_file)
    images = _images(references, files)
    # Imported here as it takes most of a second, which "mirror --help" need not wait for.
    from mirror.cli.places import found, named
    from mirror.cli.progress import reporting
    from mirror.logs import setup_logging
    from mirror.prefetch import Puller

    setup_logging(human=True, level=logging.ERROR)  # what our own application warns of, the images it hits say
    with _problems(as_json, config_file), reporting(len(images)) as report:
        through: list[str] = []

        async def work() -> None:
            place = named(url, login, tls) if url else found(config_file, root, login)
            async with place as (service, where):
                through.append(where)
                report.say(f"pulling {where}")
                await service.reach()
                await Puller(service, wanted, watcher=report, jobs=jobs).run(images)

        ended = run(work())
    _say(report, images, through[0] if through else "", ended, as_json)


# ---- what is to be pulled ----


def _platforms(given: Sequence[str]) -> list[Platform] | None:
    """Return the platforms that are meant, None for all."""
    from mirror.prefetch import PlatformInvalid, parse_platform, this_machine

    if ALL in given:
        return None
    try:
        return list(dict.fromkeys(parse_platform(text) for text in given)) or [this_machine()]
    except PlatformInvalid as error:
        raise click.BadParameter(f"{error}.", param_hint="--platform") from error


def _images(references: Sequence[str], files: Sequence[str]) -> list[Image]:
    """Return what is to be pulled, each once. Says every mistake, and ends with 2, when there are any."""
    from mirror.prefetch import ReferenceInvalid, parse_image

    images: dict[Image, None] = {}
    mistakes = []
    for place, text in [*(("command line", one) for one in references), *_listed(files)]:
        try:
            images[parse_image(text)] = None
        except ReferenceInvalid as error:
            mistakes.append(f"{place}: {text[:200]!r}: {error}")
    if mistakes:
        for line in (*mistakes, f"mirror: nothing was pulled: {_number(len(mistakes), 'mistake')}"):
            click.echo(line, err=True)
        sys.exit(2)
    if not images:
        raise click.UsageError(f"nothing to pull: there are no images in {', '.join(files)}.")
    return list(images)


def _listed(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give the lines of the files with their places, FILE:LINE."""
    from mirror.prefetch import read_list

    for file in files:
        try:
            raw = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
            lines = raw.decode().splitlines()
        except OSError as error:
            raise click.UsageError(f"{file} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{file} is not text: write one image a line.") from error
        for number, text in read_list(lines):
            yield f"{'standard input' if file == STDIN else file}:{number}", text


def _login(user: str | None, file: Path | None) -> Login | None:
    from mirror.prefetch import Login

    if user is None and file is None:
        return None
    if user is None or file is None:
        raise click.UsageError("a login is --user and --password-file: give both.")
    try:
        return Login(user=user, password=file.read_text().rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"the password cannot be read: {error}") from error


def _trusting(ca_file: Path | None) -> ssl.SSLContext | bool:
    """Return how the certificate of a URL is checked."""
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"{ca_file} cannot be read as certificates: {error}") from error


# ---- how it ends ----


@contextmanager
def _problems(as_json: bool, config_file: Path | None) -> Iterator[None]:
    """Say what keeps the command from being done, and end with 1; with 2 when it was typed."""
    from mirror.config import ConfigError
    from mirror.oci.errors import RegistryError
    from mirror.prefetch import Refused, Unreachable
    from mirror.worker import StartupError

    try:
        yield
    except (ConfigError, RegistryError, StartupError, Refused, Unreachable) as error:
        problems, status = problems_of(error, config_file) if isinstance(error, ConfigError) else ([], 1)
        said = "" if problems else str(error)
        fail(problems, said, status=status, as_json=as_json, beside={"images": []})


def _say(report: Report, images: Sequence[Image], through: str, ended: int | None, as_json: bool) -> None:
    """Say what was done, and end with the status that says so too."""
    from mirror.cli.progress import amounts

    pulled = report.pulled
    good = [one for one in pulled if not one.problems]
    fetched, here = sum(one.fetched for one in pulled), sum(one.here for one in pulled)
    if as_json:
        document: dict[str, Any] = {
            "through": through,
            "fetched_bytes": fetched,
            "here_bytes": here,
            "interrupted": ended is not None,
            "remaining": [str(image) for image in images if image not in {one.image for one in pulled}],
            "problems": [f"{one.image}: {problem}" for one in pulled for problem in one.problems],
            "images": [
                {
                    "reference": str(one.image),
                    "digest": str(one.digest) if one.digest else None,
                    "fetched_bytes": one.fetched,
                    "here_bytes": one.here,
                    "problems": list(one.problems),
                    "warning": one.warning,
                }
                for one in pulled
            ],
        }
        click.echo(json.dumps(document, indent=2))
    else:
        count = _number(len(images), "image")
        done = f"{count}:" if len(good) == len(images) else f"{len(good)} of {count}:"
        click.echo(f"{done} {amounts(fetched, here)}")
    if ended is not None:
        click.echo("mirror: interrupted; nothing is lost, the same command goes on from here", err=True)
        sys.exit(128 + ended)
    if len(good) < len(images):
        sys.exit(1)


def _number(count: int, one: str) -> str:
    return f"{count} {one if count == 1 else one + 's'}"
