"""What README, and what lies in config/, says can be typed, written into a file or opened."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import click
import pytest
import yaml

from mirror.cli import main
from mirror.config import Config
from tests.settings_schema import COMMITTED, refused_data

PROJECT = Path(__file__).parents[2]
EXAMPLES = {path.name: path.read_text() for path in sorted((PROJECT / "config").glob("*.*"))}
TEXT = (PROJECT / "README.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?:^ {4}.*\n)+", TEXT, re.M)]
WORDS = set(re.findall(r"`([^`\n]+)`", TEXT))


def commands() -> list[str]:
    lines = [line for block in BLOCKS for line in block.splitlines()] + sorted(WORDS)
    lines += [line for text in EXAMPLES.values() for line in re.findall(r"^#? {4,5}(mirror .*)", text, re.M)]
    found = [re.sub(r"^sudo ", "", line.partition("  #")[0].strip()).removeprefix(".venv/bin/") for line in lines]
    return [line for line in found if line.startswith("mirror ") and not re.match(r"mirror \d", line)]


def settings() -> list[str]:
    """Return the blocks that are pieces of a configuration file."""
    fields = "|".join(Config.model_fields)
    return [block for block in BLOCKS if re.match(rf"(?:{fields}):", block)]


@pytest.mark.parametrize("line", commands())
def test_a_command_can_be_typed(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    command: click.Command = main
    context = click.Context(main, info_name="mirror")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command, context = found, click.Context(found, info_name=name, parent=context)
    _, left, _ = command.make_parser(context).parse_args(words)  # values are not looked at: they name files of others
    assert left == []


def test_there_are_commands_and_settings() -> None:
    assert len(commands()) > 20
    assert len(settings()) == 5


@pytest.mark.parametrize("block", settings())
def test_settings_can_be_written(block: str) -> None:
    assert refused_data(yaml.safe_load(block)) == []


def test_names_of_settings_are_names_of_settings() -> None:
    known = set(re.findall(r'"([a-z_]+)": \{', COMMITTED.read_text()))
    named = {name for word in WORDS for name in re.findall(r"^([a-z_.]+):(?: |$)", word)} - {"ci"}  # which is a user
    dotted = {word for word in WORDS if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", word) and word.split(".")[0] in known}
    assert len(named) > 20
    assert {part for name in named | dotted for part in name.split(".")} - known == set()


def test_settings_that_explanations_name_are_there() -> None:
    known = set(re.findall(r'"([a-z_]+)": \{', COMMITTED.read_text()))
    comments = "\n".join(re.findall(r"# .*", EXAMPLES["mirror.yaml"]))
    named = set(re.findall(r"(?<![\w./-])([a-z_]+\.[a-z_]+)(?![\w/-]|\.\w)", comments))
    named = {one for one in named if one.split(".")[0] in known} - {"tls.crt"}  # which is a file
    quoted = re.findall(r"`([a-z]+(?:_[a-z]+)+)(?::[^`]*)?`", EXAMPLES["METRICS.md"])
    named |= {one for one in quoted if not one.startswith("mirror_")}
    assert len(named) > 4
    assert {part for one in named for part in one.split(".")} - known == set()


def test_metrics_are_there() -> None:
    documented = (PROJECT / "config" / "METRICS.md").read_text()
    named = re.findall(r"`(mirror_[a-z_]+)`", TEXT)
    assert named
    assert [name for name in named if f"`{name}`" not in documented] == []


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) > 10
    assert [link for link in links if not (PROJECT / link).exists()] == []
