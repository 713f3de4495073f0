"""Log records: lines for people on a terminal, JSON lines for everything else."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from mirror.logs.output import Output
from mirror.logs.people import beginning, is_coloured, is_human, plain

Format = Literal["auto", "human", "json"]
Level = Literal["debug", "info", "warning", "error"]

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class JsonFormatter(logging.Formatter):
    """Make one JSON object of a record: time, level, logger, pid, message, ``fields``, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


class HumanFormatter(logging.Formatter):
    """Make one short line of a record, what it does not say of its ``fields`` at the end; a traceback below it."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        text = " ".join([message, *_facts(message, getattr(record, "fields", {}))])
        line = beginning(record.created, record.levelname.lower(), colour=self._colour) + plain(text)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _facts(message: str, fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield fields as key=value: those that there are, and no text that the message has already."""
    for key, value in fields.items():
        text = ",".join(value) if isinstance(value, list) else value
        said = isinstance(text, str) and re.search(rf"(?<![\w./-]){re.escape(text)}(?![\w/-])", message)
        if text is not None and not said:
            yield f"{key}={text}"


def human_of(form: Format) -> bool | None:
    """Return ``log.format`` as what ``setup_logging`` and ``AccessLog`` take: None is what stderr says."""
    return None if form == "auto" else form == "human"


def level_of(level: Level) -> int:
    """Return ``log.level`` as a number of ``logging``."""
    return logging.getLevelNamesMapping()[level.upper()]


def setup_logging(*, human: bool | None = None, level: int = logging.INFO) -> None:
    """Send every log record to stderr: human lines when it is a terminal, else JSON lines.

    level: the least that is shown. What libraries have for their own developers is not, whatever it is.
    A record's further facts come as ``extra={"fields": {…}}``. Calling it again replaces what was set up.
    """
    _open_standard_streams()
    handler = _Handler()
    colour = is_coloured(handler.fd)
    handler.setFormatter(HumanFormatter(colour=colour) if is_human(human, handler.fd) else JsonFormatter())
    logging.basicConfig(level=max(level, logging.INFO), handlers=[handler], force=True)
    logging.getLogger("mirror").setLevel(level)


class _Handler(logging.Handler):
    """Writes records to stderr; one nobody reads costs the record, not the service."""

    fd = 2
    patience = 0.1  # seconds

    def __init__(self) -> None:
        super().__init__()
        self._output = Output(self.fd)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception as error:  # a wrong format string must not end the request that logs
            line = f"a log record of {record.name} could not be formatted: {error}\n".encode()
        rest = self._output.write(line)
        if rest and self._output.wait(self.patience):
            self._output.write(rest)


def _open_standard_streams() -> None:
    """Open /dev/null where a standard descriptor is closed: else the next file we open would get its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _timestamp(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03d}Z"
