"""``mirror health``: whether the service on this machine answers, for the health checks of container engines."""

from __future__ import annotations

import http.client
import json
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.mistakes import fail, problems_of
from mirror.cli.options import config_option

if TYPE_CHECKING:
    from mirror.config import Config, Listener

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Listening at all addresses → one of them to ask at."""

_PATIENCE = 4.0  # seconds; engines give a check five or more


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output instead of a line.")
def health(config_file: Path | None, as_json: bool) -> None:
    """Ask the service on this machine whether it answers.

    /healthz is asked, at the first address that the configuration has; at one that asks clients for a certificate
    only when all do. Exit status 0: it answers; 1: it does not, or the configuration has errors.
    """
    # Imported here as it takes longer than all the rest, which "mirror --help" need not wait for.
    from mirror.config import ConfigError, load_config

    try:
        config = load_config(config_file)
    except ConfigError as error:
        fail(
            problems_of(error, config_file)[0], as_json=as_json
        )  # not its status: what runs health checks keeps 2 for itself
    listener = _easiest(config)
    if listener is None:
        fail([], "it listens on port 0, which is any: give it a port, so that it can be asked", as_json=as_json)
    url = _url(listener)
    try:
        answer = _ask(listener)
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
        fail([], f"{url} does not answer: {why}", as_json=as_json)
    if not answer.startswith("200"):
        fail([], f"{url} answers {answer}", as_json=as_json)
    click.echo(json.dumps({"url": url, "answer": answer}) if as_json else f"{url} answers {answer}")


def _easiest(config: Config) -> Listener | None:
    """Return where to ask: the first address that wants no certificate of clients, else the first."""
    listeners = [one for one in (*config.listen, *config.admin_listen) if one.address.port]
    return min(listeners, key=_wants_certificate, default=None)


def _wants_certificate(listener: Listener) -> bool:
    return listener.tls is not None and listener.tls.client_ca is not None


def _host(listener: Listener) -> str:
    return _ANY.get(listener.address.host, listener.address.host)


def _url(listener: Listener) -> str:
    host = _host(listener)
    return f"{listener.scheme}://{f'[{host}]' if ':' in host else host}:{listener.address.port}/healthz"


def _ask(listener: Listener) -> str:
    """Return the status line's end. Raises: OSError, http.client.HTTPException."""
    host, port = _host(listener), listener.address.port
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE)
    if listener.tls is not None:
        # Its certificate is for the names that clients know it by, and nothing is told to it here.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE, context=context)
    try:
        try:
            connection.connect()
        except ssl.SSLError as error:
            return _refused(listener, error)
        if _wants_certificate(listener):
            return _ASKED
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        return f"{response.status} {response.reason}"
    finally:
        connection.close()


_ASKED = "200, as far as somebody without a certificate can tell: it asks for one"


def _refused(listener: Listener, error: ssl.SSLError) -> str:
    if _wants_certificate(listener) and "ALERT" in (error.reason or ""):
        return _ASKED
    raise error
