"""What is no HTTP, or HTTP that cannot be parsed, is answered at once and in the one shape."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from tests.harness import make_config, mirror

SENT = {
    "a method nobody knows": (b"BREW /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", 405),
    "a hello by TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(200), 400),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "a path of bytes": (b"GET /v2/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a line too long": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a header that is none": (b"GET /v2/ HTTP/1.1\r\nno colon\r\n\r\n", 400),
    "two lengths": (b"PUT /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
}


@pytest.mark.parametrize("name", SENT)
async def test_it_is_refused_in_the_one_shape(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sent, status = SENT[name]
    caplog.set_level(logging.INFO)
    async with mirror(make_config(tmp_path / "root", {})) as one:
        host, port = one.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(sent)
            async with asyncio.timeout(5):
                answer = await reader.read()  # to the end: the connection is over
        finally:
            writer.close()
        assert (await one.get("/v2/")).status == 200  # others notice nothing
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, value in (line.split(": ", 1) for line in lines[1:])}
    assert int(lines[0].split()[1]) == status
    assert headers["content-type"].startswith("application/json")
    (error,) = json.loads(body)["errors"]
    assert error["code"] == "UNSUPPORTED"
    assert error["message"]
    assert ("allow" in headers) == (status == 405)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (said,) = [record.getMessage() for record in caplog.records if record.name == "mirror.server"]
    assert ("tried HTTPS" in said) == (name == "a hello by TLS")


async def test_a_method_it_knows_is_parsed(tmp_path: Path) -> None:
    async with mirror(make_config(tmp_path / "root", {})) as one:
        answer = await one.ask("PROPFIND", "/v2/")
        assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
