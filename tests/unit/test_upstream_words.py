"""What is said of upstreams: at the start, and when they fail."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mirror.config import Credentials, Upstream
from mirror.oci.errors import UpstreamUnreachable
from mirror.upstream.advice import warnings
from mirror.upstream.report import NoMetrics, Reporter


def test_a_helper_that_is_not_in_path_is_said_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    upstream = Upstream(url="https://up", credentials=Credentials(helper="some"))
    (line,) = warnings("up", upstream)
    assert "docker-credential-some is not in PATH" in line
    program = tmp_path / "docker-credential-some"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert warnings("up", upstream) == []


def test_plain_http_behind_an_https_url_is_said() -> None:
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    told = Reporter(upstream="up", metrics=NoMetrics()).translated(error, "a:1", host="up")
    assert isinstance(told, UpstreamUnreachable)
    assert "does not speak TLS" in told.message
    assert told.message.endswith("; check its url: is it http?")
