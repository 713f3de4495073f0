"""What is logged when an upstream fails: one line for each failure, with its cause, whatever it leads to."""

from __future__ import annotations

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.upstream.transport import Timeouts
from tests.fake_upstream import FakeUpstream, random_bytes
from tests.harness import make_config, mirror
from tests.images import NAME, blob_path, kept, manifest_path, use_client

BLOB = random_bytes(300_000)
OTHER = random_bytes(300_000, 1)
CUT: dict[str, Any] = {"cut_after": 100_000, "times": 1}
BROKE_OFF = r"up broke the transfer off \(the body is shorter than announced\): blob"
SENT_WRONG = r"up sent bytes of sha256:[0-9a-f]{64} \(\d+\) for"
BLOBS: dict[str, tuple[list[dict[str, Any]], int | None, list[str]]] = {
    "no answer": ([{"drop": "rst"}], 502, [r"up cannot be reached \(Connection reset by peer\): blob"]),
    "503": ([{"status": 503}], 503, ["up answered 503: blob"]),
    "not there": ([{"status": 404}], 404, []),
    "breaks off": ([CUT], 200, [BROKE_OFF]),
    "breaks off twice": ([CUT | {"times": 2}], 200, [BROKE_OFF] * 2),
    "stops": ([{"hang_after": 100_000, "times": 1}], 200, [r"up stopped sending \(no answer in time\): blob"]),
    "ends short without saying so": ([CUT | {"framing": "close"}], None, [SENT_WRONG]),
    "breaks off, and knows no ranges": ([CUT, {"ignore_range": True, "skip": 1}], 200, [BROKE_OFF]),
    "breaks off, and answers nonsense to a range": (
        [CUT, {"status": 418, "skip": 1, "times": 1}],
        200,
        [BROKE_OFF, "up answered 418, which makes no sense here: blob"],
    ),
    "wrong": ([{"replace": OTHER}], None, [SENT_WRONG]),
}
BY_TAG: dict[str, tuple[list[dict[str, Any]], int, list[str]]] = {
    "no answer": ([{"drop": "rst"}], 502, [r"up cannot be reached \(Connection reset by peer\): team/app:1 "]),
    "503": ([{"status": 503}], 503, ["up answered 503: team/app:1 "]),
    "no HEAD": ([{"status": 405, "times": 1}], 200, ["up answered 405, which makes no sense here: team/app:1 "]),
    "breaks off": ([{"cut_after": 10}], 503, [r"up broke the transfer off \(.*\): team/app@sha256:"]),
    "wrong": ([{"replace": b"{}"}], 502, ["upstream up sent no manifest for team/app@sha256:"]),
    "promised": ([{"status": 404, "skip": 1}], 502, ["upstream up says that team/app:1 is sha256:[0-9a-f]{64}, which"]),
}
MIRRORED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "503": ({"status": 503}, [r"the mirror 127.0.0.1:\d+ of up answered 503: blob"]),
    "not there": ({"status": 404}, []),
    "breaks off": (CUT, [r"the mirror 127.0.0.1:\d+ of up broke the transfer off \(.*\): blob"]),
    "wrong": ({"replace": OTHER}, ["mirror 1 of up sent bytes of sha256:[0-9a-f]{64} for"]),
    "longer": ({"replace": BLOB + b"more"}, ["mirror 1 of up sent bytes of sha256:[0-9a-f]{64} for"]),
    "breaks off, and then says another size": (
        {"replace": BLOB + b"more", "cut_after": 100_000},
        [
            r"the mirror 127.0.0.1:\d+ of up broke the transfer off",
            "up says sha256:[0-9a-f]{64} has 300000 bytes, before it was 300004; starting over",
        ],
    ),
}


def assert_said(caplog: pytest.LogCaptureFixture, patterns: list[str]) -> None:
    said = [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("mirror.")
    ]
    assert len(said) == len(patterns), said
    for line, pattern in zip(said, patterns, strict=True):
        assert re.match(pattern, line), line


@pytest.mark.parametrize("row", BLOBS)
async def test_blob(
    row: str, tmp_path: Path, hub: FakeUpstream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults, status, patterns = BLOBS[row]
    use_client(monkeypatch, timeouts=Timeouts(read=0.3))
    digest = hub.add_blob(NAME, BLOB)
    for fault in faults:
        hub.fault(digest, **fault)
    async with mirror(make_config(tmp_path / "root", {"up": {"url": hub.url}})) as one:
        if status is None:  # clients see that they did not get all of it
            with pytest.raises(aiohttp.ClientPayloadError):
                await one.get(blob_path(digest))
        else:
            answer = await one.get(blob_path(digest))
            assert (answer.status, answer.body == BLOB) == (status, status == 200)
    assert_said(caplog, patterns)


@pytest.mark.parametrize("row", BY_TAG)
async def test_tag(row: str, tmp_path: Path, hub: FakeUpstream, caplog: pytest.LogCaptureFixture) -> None:
    faults, status, patterns = BY_TAG[row]
    image = hub.add_image(NAME, "1", layer_sizes=[10])
    for fault in faults:
        hub.fault("/manifests/", **fault)
    async with mirror(make_config(tmp_path / "root", {"up": {"url": hub.url}})) as one:
        answer = await one.get(manifest_path("1"))
        assert (answer.status, answer.body == image.raw) == (status, status == 200)
    assert_said(caplog, patterns)


@pytest.mark.parametrize("row", MIRRORED)
async def test_blob_of_a_mirror(row: str, tmp_path: Path, hub: FakeUpstream, caplog: pytest.LogCaptureFixture) -> None:
    fault, patterns = MIRRORED[row]
    digest = hub.add_blob(NAME, BLOB)
    async with FakeUpstream() as other:
        other.add_blob(NAME, BLOB)
        other.fault(digest, **fault)
        settings = {"url": hub.url, "mirrors": [{"url": other.url}]}
        async with mirror(make_config(tmp_path / "root", {"up": settings})) as one:
            with contextlib.suppress(aiohttp.ClientPayloadError):  # who has begun with wrong bytes begins anew
                await one.get(blob_path(digest))
            await kept(tmp_path / "root", digest)
            again = await one.get(blob_path(digest))
            assert (again.status, again.body) == (200, BLOB)
    assert_said(caplog, patterns)
