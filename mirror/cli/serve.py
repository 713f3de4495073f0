"""``mirror serve``: from what people say to a running service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5000


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file (YAML). Without one the defaults hold.",
)
@click.option("--host", metavar="HOST", help=f"Address to listen on; 0.0.0.0 is all. [default: {DEFAULT_HOST}]")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help=f"Port to listen on; 0 takes a free one. [default: {DEFAULT_PORT}]",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="HOST:PORT",
    help="Address and port in one; may be given several times to listen on several.",
)
@click.option(
    "--root",
    metavar="DIR",
    help="Folder to keep everything in, on a local disk. [default: oci-mirror in your data home]",
)
@click.option(
    "--workers",
    metavar="N",
    help='Number of worker processes, or "auto": one for each CPU the service may use. [default: auto]',
)
@click.option(
    "--packages",
    metavar="DIR",
    help="Folder of images to serve as they are, under local/: OCI layouts, and archives by docker save.",
)
@click.option("--read-only", is_flag=True, help="Refuse everything that writes.")
def serve(
    config_file: Path | None,
    host: str | None,
    port: int | None,
    listen: tuple[str, ...],
    root: str | None,
    workers: str | None,
    packages: str | None,
    read_only: bool,
) -> None:
    """Run the mirror until it is stopped (Ctrl-C, SIGTERM).

    Options win over the configuration file; --host and --port, or --listen, replace all addresses it has.

    SIGTERM lets a load balancer notice first: /readyz says 503 at once, requests are accepted for another
    shutdown_delay (5 s), then running transfers get drain_timeout (25 s) to finish. Ctrl-C does without the delay.
    A second signal ends it at once.
    """
    if listen and (host is not None or port is not None):
        raise click.UsageError("--listen already has host and port: give it alone, or --host and --port.")
    # Imported here as it takes most of a second, which "mirror --help" and every usage error need not wait for.
    from mirror.config import ConfigError, load_config
    from mirror.logs import setup_logging
    from mirror.server import serve as run
    from mirror.wiring import build_app
    from mirror.worker import StartupError

    overrides: dict[str, Any] = {
        "listen": _addresses(host, port, listen),
        "storage.root": root,
        "workers": int(workers) if workers and workers.isdecimal() else workers,
        "packages": packages,
        "read_only": read_only or None,  # not given: what the file says
    }
    try:
        config = load_config(config_file, overrides)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(str(problem), err=True)
        sys.exit(1)
    setup_logging()
    try:
        code = run(config, build_app)
    except StartupError as error:
        click.echo(f"mirror: {error}", err=True)
        sys.exit(1)
    sys.exit(code)


def _addresses(host: str | None, port: int | None, listen: tuple[str, ...]) -> list[str] | None:
    """Return what ``listen`` is to be, None for what the file or the default says."""
    if listen:
        return list(listen)
    if host is None and port is None:
        return None
    host = DEFAULT_HOST if host is None else host
    bare = ":" in host and not host.startswith("[")
    return [f"{f'[{host}]' if bare else host}:{DEFAULT_PORT if port is None else port}"]
