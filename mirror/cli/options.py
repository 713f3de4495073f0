"""The options that several commands have: which configuration, which folder, JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file (YAML) of the mirror. Without one the defaults hold.",
)
root_option = click.option(
    "--root", metavar="DIR", help="Folder of the mirror. [default: what the configuration, or serve, has]"
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to standard output instead of a summary."
)


def root_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what commands have that look at a root: which one is meant, and JSON."""
    return config_option(root_option(json_option(command)))
