"""The ``mirror`` command: speaks to people. One file per subcommand."""

from __future__ import annotations

import click

from mirror import __version__
from mirror.cli.client import client
from mirror.cli.commands import Commands
from mirror.cli.config import config
from mirror.cli.conformance import conformance
from mirror.cli.doctor import doctor
from mirror.cli.explain import explain
from mirror.cli.health import health
from mirror.cli.pull import pull
from mirror.cli.serve import serve
from mirror.cli.stats import stats
from mirror.cli.store import store

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Commands, context_settings=CONTEXT, invoke_without_command=True)
@click.version_option(__version__, prog_name="mirror")
@click.pass_context
def main(context: click.Context) -> None:
    """A pull-through caching mirror and registry for container images.

    Start it with "mirror serve". It needs no configuration: it then listens on 127.0.0.1:5000 and fetches from the
    well-known public registries what it does not have yet. What it has, it serves without asking anybody. "mirror
    client" says how nodes are made to use it; each command has --help.

    Completion in bash: eval "$(_MIRROR_COMPLETE=bash_source mirror)"; zsh_source and fish_source likewise.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(serve)
main.add_command(doctor)
main.add_command(conformance)
main.add_command(store)
main.add_command(pull)
main.add_command(config)
main.add_command(client)
main.add_command(stats)
main.add_command(explain)
main.add_command(health)
