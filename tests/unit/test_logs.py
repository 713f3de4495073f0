"""Logs: whole lines, never waiting, whatever stderr is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pty
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.logs import AccessLog, HumanFormatter, JsonFormatter

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def record(message: str, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("mirror.test", logging.WARNING, __file__, 1, message, (), None)
    made.fields = fields
    return made


def read_all(fd: int) -> bytes:
    """Read what is there now."""
    os.set_blocking(fd, False)
    found = b""
    try:
        while piece := os.read(fd, 65536):
            found += piece
    except BlockingIOError:
        pass
    return found


# ---- records ----


def test_json_record_is_one_object_on_one_line() -> None:
    line = JsonFormatter().format(record('new\nline "quoted"', root="/x", upstreams=["a", "b"]))
    assert "\n" not in line
    found = json.loads(line)
    assert found["message"] == 'new\nline "quoted"'
    assert (found["level"], found["logger"], found["pid"]) == ("warning", "mirror.test", os.getpid())
    assert (found["root"], found["upstreams"]) == ("/x", ["a", "b"])
    assert found["time"].endswith("Z")


def test_json_record_holds_the_traceback() -> None:
    made = record("failed")
    try:
        raise KeyError("here")
    except KeyError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    assert "KeyError: 'here'" in json.loads(JsonFormatter().format(made))["exception"]


def test_human_record_cannot_steer_the_terminal() -> None:
    line = HumanFormatter().format(record("upstream said \x1b[31mred\nfake line", upstreams=["a", "b"]))
    assert "\x1b" not in line
    assert "\n" not in line
    assert line.endswith("warning upstream said \\x1b[31mred\\x0afake line upstreams=a,b")


def test_human_record_says_nothing_twice() -> None:
    message = "docker.io answered 500: library/x:1 (host registry-1.docker.io)"
    made = record(message, upstream="docker.io", host="registry-1.docker.io", cause=None, status=500, root="/x")
    assert HumanFormatter().format(made).endswith(f"warning {message} status=500 root=/x")


# ---- the access log ----


async def test_lines_come_together_within_the_delay(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    log.write({"method": "GET", "path": "/v2/", "status": 200})
    log.write({"method": "GET", "path": Path("/x"), "status": None})
    assert read_all(pipe[0]) == b""  # collected
    deadline = time.monotonic() + 10
    while not (found := read_all(pipe[0])):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    first, second = map(json.loads, found.splitlines())
    assert (first["method"], first["path"], first["status"]) == ("GET", "/v2/", 200)
    assert (second["path"], second["status"]) == ("/x", None)
    assert next(iter(first)) == "time"
    log.close()


async def test_a_full_batch_does_not_wait(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        log = AccessLog(file.fileno())
        log.delay = 3600
        line = {"path": "x" * 1000}
        while log._size + 1100 < log.batch:
            log.write(line)
        assert (tmp_path / "log").stat().st_size == 0
        log.write(line)
        log.write(line)
        assert (tmp_path / "log").stat().st_size >= log.batch
        log.close()


async def test_close_writes_the_rest(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    log.write({"path": "last"})
    log.close()
    assert json.loads(read_all(pipe[0]))["path"] == "last"


async def test_a_reader_that_sleeps_is_not_waited_for_and_gets_whole_lines(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    log.limit, log.patience = 256 * 1024, 0.0
    flags = os.get_blocking(pipe[1])
    for number in range(20_000):  # much more than pipe and limit hold: would block for ever if it could
        log.write({"number": number})
    assert os.get_blocking(pipe[1]) is flags is True  # shared with others: not ours to change
    found = b""
    while piece := read_all(pipe[0]):
        found += piece
        log.flush()
    log.write({"number": "after"})
    log.close()
    found += read_all(pipe[0])
    lines = [json.loads(line) for line in found.splitlines()]
    numbers = [line["number"] for line in lines if "number" in line]
    assert numbers[:-1] == list(range(len(numbers) - 1))
    assert numbers[-1] == "after"
    dropped = [line["lines"] for line in lines if "lines" in line]
    assert dropped == [20_000 - (len(numbers) - 1)]
    assert dropped[0] > 0


_WRITER = """
import sys
from mirror.logs import AccessLog
log = AccessLog(2)
log.patience = 30
for number in range(3000):
    log._lines.append(log._format({"child": int(sys.argv[1]), "number": number, "fill": "y" * (number % 300)}))
sys.stdin.read()
log.close()
"""


def test_processes_sharing_a_pipe_do_not_mix_lines(pipe: tuple[int, int]) -> None:
    with contextlib.ExitStack() as stack:
        go = os.pipe()
        for child in range(3):
            command = [sys.executable, "-c", _WRITER, str(child)]
            environment = os.environ | {"PYTHONPATH": str(PROJECT)}
            stack.enter_context(subprocess.Popen(command, stdin=go[0], stderr=pipe[1], env=environment))
        os.close(pipe[1])
        os.close(go[0])
        os.close(go[1])  # all at once
        found = b""
        while piece := os.read(pipe[0], 16384):
            found += piece
    lines = [json.loads(line) for line in found.splitlines()]
    for child in range(3):
        assert [line["number"] for line in lines if line["child"] == child] == list(range(3000))


async def test_nobody_reading_any_more_is_no_error(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    os.close(pipe[0])
    for _ in range(200):
        log.write({"path": "x" * 1000})
    log.close()


async def test_a_closed_descriptor_is_no_error(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1])
    os.close(pipe[1])
    log.write({"path": "x"})
    log.close()


async def test_a_socket_for_stderr_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = AccessLog(ours.fileno())
        log.patience = 0.0
        for number in range(40_000):
            log.write({"number": number})
        log.close()
        found = read_all(theirs.fileno())
    assert json.loads(found.splitlines()[0])["number"] == 0


async def test_a_file_shared_with_others_is_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb", buffering=0) as file:
        file.write(b"before\n")
        log = AccessLog(file.fileno())
        log.write({"path": "x"})
        log.close()
        file.write(b"after\n")
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert (lines[0], lines[2]) == (b"before", b"after")
    assert json.loads(lines[1])["path"] == "x"


LINE: dict[str, Any] = {
    "client": "10.0.0.7",
    "method": "GET",
    "path": "/v2/library/alpine/manifests/3.20",
    "status": 200,
    "bytes": 1234,
    "ms": 3.21,
    "repository": "docker.io/library/alpine",
    "reference": "3.20",
    "digest": "sha256:" + "ab" * 32,
    "cache": "mirror; hit",
}
BLOB = {"path": "/v2/library/alpine/blobs/sha256:x", "reference": None}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "GET docker.io/library/alpine:3.20 200 hit 1.2 KiB 3.2 ms 10.0.0.7"),
        ({"cache": "mirror; hit; detail=stale"}, "GET docker.io/library/alpine:3.20 200 stale 1.2 KiB 3.2 ms 10.0.0.7"),
        (
            {**BLOB, "cache": "mirror; fwd=uri-miss; stored", "bytes": 34_560_000, "ms": 1234.5},
            "GET docker.io/library/alpine@sha256:abababababab 200 miss 33 MiB 1.2 s 10.0.0.7",
        ),
        (
            {**BLOB, "cache": "mirror; fwd=uri-miss; stored; collapsed", "bytes": 999_600, "ms": 90_000},
            "GET docker.io/library/alpine@sha256:abababababab 200 joined 976 KiB 1.5 min 10.0.0.7",
        ),
        (
            {"status": 404, "failure": "it is not there", "bytes": 0, "cache": None, "user": "me"},
            "GET docker.io/library/alpine:3.20 404 3.2 ms me@10.0.0.7: it is not there",
        ),
        (
            {
                "method": "PATCH",
                "path": "/v2/a/b/blobs/uploads/" + "x" * 200,
                "bytes": 0,
                "received": 10,
                "cache": None,
            },
            "PATCH /v2/a/b/blobs/uploads/" + "x" * 97 + "… 200 10 B 3.2 ms 10.0.0.7",
        ),
        ({"repository": None, "path": "/v2/\x1b[31m", "cache": None}, "GET /v2/\\x1b[31m 200 1.2 KiB 3.2 ms 10.0.0.7"),
    ],
    ids=["tag", "stale", "blob", "joined", "failed", "upload", "escape"],
)
async def test_request_lines_for_people(pipe: tuple[int, int], changes: dict[str, Any], line: str) -> None:
    log = AccessLog(pipe[1], human=True)
    log.write(LINE | changes)
    log.close()
    written = read_all(pipe[0]).decode()
    assert re.fullmatch(r"\d\d:\d\d:\d\d info    " + re.escape(line) + "\n", written), written


async def test_what_the_access_log_says_of_itself_is_a_line_for_people_as_well(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1], human=True)
    log._dropped = 3
    log.close()
    assert read_all(pipe[0]).decode().endswith(" warning access log lines dropped: stderr is not read lines=3\n")


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
    ids=["terminal", "no-color", "no-color-empty", "dumb"],
)
async def test_colours_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int], environment: dict[str, str], coloured: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main, terminal = pty.openpty()
    try:
        for fd in (terminal, pipe[1]):
            log = AccessLog(fd, human=True if fd == pipe[1] else None)
            log.write(LINE | {"path": "/v2/\x1b[31m", "repository": None})
            log.close()
        line = os.read(main, 4096).decode()
        assert ("\x1b[32m200\x1b[0m" in line) == coloured
        assert ("\x1b" in line) == coloured
        assert "/v2/\\x1b[31m" in line, "what a client sent steers nothing"
        assert "\x1b" not in read_all(pipe[0]).decode()
    finally:
        os.close(main)
        os.close(terminal)


def test_human_records_are_coloured_by_level() -> None:
    line = HumanFormatter(colour=True).format(record("upstream said \x1b[31mred"))
    assert "\x1b[33mwarning\x1b[0m upstream said \\x1b[31mred" in line


# ---- the settings ----


async def test_an_access_log_that_is_off_writes_nothing(pipe: tuple[int, int]) -> None:
    log = AccessLog(pipe[1], enabled=False)
    log.write(LINE)
    log.close()
    assert read_all(pipe[0]) == b""


_SPEAKER = """
import logging, sys
from mirror.logs import human_of, level_of, setup_logging
setup_logging(human=human_of(sys.argv[1]), level=level_of(sys.argv[2]))
for name in ("mirror.test", "aiohttp.test"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(f"{name} says {level}")
"""


@pytest.mark.parametrize(
    ("form", "level", "said"),
    [
        ("auto", "debug", ["mirror debug", "info", "warning", "error", "aiohttp info", "warning", "error"]),
        ("json", "info", ["mirror info", "warning", "error", "aiohttp info", "warning", "error"]),
        ("human", "warning", ["mirror warning", "error", "aiohttp warning", "error"]),
        ("json", "error", ["mirror error", "aiohttp error"]),
    ],
)
def test_format_and_level_decide_what_is_said(form: str, level: str, said: list[str]) -> None:
    """Libraries' debug lines are for their developers: they are not shown, and not by "debug" either."""
    done = subprocess.run(
        [sys.executable, "-c", _SPEAKER, form, level],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        text=True,
        check=True,
    )
    wanted, name = [], ""
    for words in said:
        name, level = words.split() if " " in words else (name, words)
        wanted.append(f"{name}.test says {level}")
    lines = done.stderr.splitlines()
    if form == "human":
        assert [line.split(maxsplit=2)[2] for line in lines] == wanted
    else:
        assert [json.loads(line)["message"] for line in lines] == wanted
