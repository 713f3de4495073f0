"""The group of commands, in the order a newcomer needs them."""

from __future__ import annotations

import click

from mirror.cli.mistakes import Understanding

SECTIONS = {
    "Start": ("serve", "client"),
    "Use": ("pull", "store"),
    "Look": ("config", "doctor", "stats", "explain", "health", "conformance"),
}
"""Headings of the help, with what stands below them, in this order."""
OTHERS = "More"


class Commands(Understanding):
    """A group whose help is in sections."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of the help; those of no section come last."""
        known = [name for names in SECTIONS.values() for name in names if name in self.commands]
        return [*known, *(name for name in self.commands if name not in known)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        names = self.list_commands(ctx)
        width = formatter.width - 6 - max(map(len, names), default=0)
        sectioned = {name for inside in SECTIONS.values() for name in inside}
        for heading, inside in {**SECTIONS, OTHERS: tuple(name for name in names if name not in sectioned)}.items():
            commands = [(name, self.commands[name]) for name in inside if name in self.commands]
            rows = [(name, one.get_short_help_str(width)) for name, one in commands if not one.hidden]
            if rows:
                with formatter.section(heading):
                    # one column for all sections: click would make one of each
                    formatter.write_dl([(f"{name:{max(map(len, names))}}", text) for name, text in rows])
