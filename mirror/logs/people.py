"""Lines for people: short, in colours where they help, and never in charge of the terminal."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from typing import Any

from mirror.logs.amounts import size

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_DIGEST = re.compile(r"(sha\d+:[0-9a-f]{12})[0-9a-f]+")
_DIM, _GREEN, _CYAN, _YELLOW, _RED = "2", "32", "36", "33", "31"
_LEVELS = {"debug": _DIM, "warning": _YELLOW, "error": _RED, "critical": _RED}
_STATUSES = {2: _GREEN, 3: _CYAN, 4: _YELLOW, 5: _RED}
_LONGEST = 120
"""Characters of a path that are shown."""


def is_human(human: bool | None, fd: int) -> bool:
    """Say whether lines are for people. human: None asks whether that is a terminal."""
    return os.isatty(fd) if human is None else human


def is_coloured(fd: int) -> bool:
    """Say whether there is to be colour: on a terminal that has it, unless NO_COLOR says no (no-color.org)."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def plain(text: str) -> str:
    """Return text that cannot steer a terminal: what clients and upstreams sent may be quoted in it."""
    return text.translate(_ESCAPES)


def beginning(seconds: float, level: str, *, colour: bool) -> str:
    """Return what each line begins with. seconds: Unix time."""
    stamp = time.strftime("%H:%M:%S", time.localtime(seconds))
    return f"{paint(stamp, _DIM, colour)} {paint(f'{level:7}', _LEVELS.get(level), colour)} "


def paint(text: str, code: str | None, colour: bool) -> str:
    """Return text in a colour, or as it is."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def request_line(seconds: float, fields: Mapping[str, Any], *, colour: bool) -> str:
    """Return the line of a request: what was asked for, what was answered, from where, how much, how long, to whom.

    ``GET docker.io/library/alpine:3.20 200 hit 1.2 KiB 3 ms 10.0.0.7``. fields: as of ``Exchange.line``.
    """
    status = int(fields["status"])
    words = [
        plain(str(fields["method"])),
        plain(_what(fields)),
        paint(str(status), _STATUSES.get(status // 100), colour),
        _cache(fields.get("cache")),
        size(count) if (count := int(fields.get("bytes") or 0) or int(fields.get("received") or 0)) else "",
        _time(float(fields["ms"])),
        paint(plain("@".join(str(fields[key]) for key in ("user", "client") if fields.get(key))), _DIM, colour),
    ]
    line = " ".join(filter(None, words))
    failure = fields.get("failure")
    if failure:
        line += ": " + paint(plain(str(failure)), _RED if status >= 500 or status < 400 else None, colour)
    return beginning(seconds, "info", colour=colour) + line


def _what(fields: Mapping[str, Any]) -> str:
    """Return what was asked for, in the words people use: a name with a tag or the beginning of a digest."""
    path, repository = str(fields["path"]), fields.get("repository")
    wanted = fields.get("reference") or fields.get("digest")
    if repository and wanted and "/uploads" not in path:
        wanted = _DIGEST.sub(r"\1", str(wanted))
        return f"{repository}{'@' if ':' in wanted else ':'}{wanted}"
    return path if len(path) <= _LONGEST else path[: _LONGEST - 1] + "…"


def _cache(status: str | None) -> str:
    """Return a Cache-Status (RFC 9211) in a word."""
    if not status:
        return ""
    said = status.split("; ")
    if "hit" in said:
        return "stale" if "detail=stale" in said else "hit"
    return "joined" if "collapsed" in said else "miss"


def _time(milliseconds: float) -> str:
    if milliseconds >= 60_000:
        return f"{milliseconds / 60_000:.1f} min"
    if milliseconds >= 1000:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
