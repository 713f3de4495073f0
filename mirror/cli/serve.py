"""``mirror serve``: from what people say to a running service."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from mirror.cli.mistakes import fail, load
from mirror.cli.options import config_option

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 5000


@contextmanager
def _hangup_waits() -> Iterator[None]:
    """Keep a SIGHUP that comes before the service hears signals until it does: it would end the process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@click.command()
@config_option
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
@click.option(
    "--log-format",
    type=click.Choice(["auto", "human", "json"]),
    help="How log lines look; auto: human on a terminal, JSON elsewhere. [default: auto]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least a log line must matter; under info, requests have no lines. [default: info]",
)
@_hangup_waits()
def serve(
    config_file: Path | None,
    host: str | None,
    port: int | None,
    listen: tuple[str, ...],
    root: str | None,
    workers: str | None,
    packages: str | None,
    read_only: bool,
    log_format: str | None,
    log_level: str | None,
) -> None:
    """Run the mirror until it is stopped (Ctrl-C, SIGTERM).

    Options win over the configuration file; --host and --port, or --listen, replace all addresses it has. On a terminal
    it says, once it listens, what it does and what to do next.

    SIGTERM lets a load balancer notice first: /readyz says 503 at once, requests are accepted for another
    shutdown_delay (5 s), then running transfers get drain_timeout (25 s) to finish. Ctrl-C does without the delay.
    A second signal ends it at once.

    SIGHUP: the configuration file is read again, and new workers take over with it while the old ones finish what they
    have begun. A file that cannot be used changes nothing and is reported. Only storage.root needs a restart.
    """
    if listen and (host is not None or port is not None):
        raise click.UsageError("--listen already has host and port: give it alone, or --host and --port.")
    # Imported here as it takes most of a second, which "mirror --help" and every usage error need not wait for.
    from mirror.cli.banner import greet
    from mirror.config import Config, load_config
    from mirror.logs import human_of, level_of, setup_logging
    from mirror.server import serve as run
    from mirror.wiring import build_app
    from mirror.worker import StartupError

    overrides: dict[str, Any] = {
        "listen": _addresses(host, port, listen),
        "storage.root": root,
        "workers": int(workers) if workers and workers.isdecimal() else workers,
        "packages": packages,
        "read_only": read_only or None,  # not given: what the file says
        "log.format": log_format,
        "log.level": log_level,
    }
    config = load(config_file, overrides)

    def settle(config: Config) -> None:
        setup_logging(human=human_of(config.log.format), level=level_of(config.log.level))

    def reload() -> Config:
        if config_file is None:
            logging.getLogger("mirror.cli").info("there is no configuration file: defaults and options hold")
        return load_config(config_file, overrides, again=True)

    def announce(urls: Sequence[str]) -> None:
        greet(config, urls, config_file=config_file, moved=overrides["listen"] is not None)

    people = human_of(config.log.format) is not False and sys.stderr.isatty()
    settle(config)
    try:
        code = run(config, build_app, reload=reload, settle=settle, announce=announce if people else None)
    except StartupError as error:
        fail([], str(error))
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
