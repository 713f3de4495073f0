"""The application for administrators: at addresses of its own, or not there at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mirror.api.app import ADMIN
from mirror.config import Access
from tests.api.test_access import write_users
from tests.connection import Connection, connect
from tests.harness import Mirror, make_config, mirror

OPERATIONS = ("/healthz", "/readyz", "/metrics")


@contextlib.asynccontextmanager
async def apart(root: Path, **settings: Any) -> AsyncIterator[tuple[Mirror, Connection]]:
    """Run a mirror whose administrators have an address of their own, and connect to that."""
    async with mirror(make_config(root, {}, admin_listen="127.0.0.1:1", **settings)) as one:
        runner = web.AppRunner(one.app[ADMIN], access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with connect(f"http://127.0.0.1:{runner.addresses[0][1]}") as administrator:
                yield one, administrator
        finally:
            await runner.cleanup()


async def test_without_an_address_of_their_own_all_is_at_the_others(root: Path) -> None:
    async with mirror(make_config(root, {})) as one:
        assert ADMIN not in one.app
        for path in OPERATIONS:
            assert (await one.get(path)).status == 200


async def test_metrics_are_at_their_address_only(root: Path) -> None:
    async with apart(root) as (one, administrator):
        for path in OPERATIONS:
            assert (await administrator.ask("GET", path)).status == 200
            assert (await administrator.ask("HEAD", path)).status == 200
        answer = await administrator.ask("GET", "/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b"\nmirror_requests_total{" in answer.body
        for path in ("/healthz", "/readyz"):
            assert (await one.get(path)).status == 200
        for method in ("GET", "HEAD"):
            refused = await one.ask(method, "/metrics")
            assert refused.status == 404
        assert b"/metrics is answered at the addresses of admin_listen only" in (await one.get("/metrics")).body


@pytest.mark.parametrize("path", ["/", "/v2/", "/v2/_catalog", "/metrics/", "/x%0A<script>"])
async def test_nothing_else_is_there(root: Path, path: str) -> None:
    async with apart(root) as (_, administrator):
        answer = await administrator.ask("GET", path)
        assert answer.status == 404
        assert "there is /healthz /metrics /readyz" in answer.error["message"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_nothing_is_written_there(root: Path) -> None:
    async with apart(root) as (_, administrator):
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            answer = await administrator.ask(method, "/metrics")
            assert (answer.status, answer.headers["allow"], answer.code) == (405, "GET, HEAD", "UNSUPPORTED")


async def test_it_says_when_the_service_stops(root: Path) -> None:
    async with apart(root) as (one, administrator):
        one.stopping = True
        answer = await administrator.ask("GET", "/readyz")
        assert (answer.status, answer.body) == (503, b"stopping\n")
        assert (await administrator.ask("GET", "/healthz")).status == 200


async def test_rules_for_clients_do_not_hold_there(root: Path, tmp_path: Path) -> None:
    users = tmp_path / "htpasswd"
    write_users(users, ci="p")
    access = Access(htpasswd_file=users, anonymous="none", allow_from=(ip_network("10.0.0.0/8"),))
    async with apart(root, access=access, trusted_proxies=["127.0.0.1"]) as (one, administrator):
        assert (await one.get("/v2/")).status == 403
        for path in OPERATIONS:
            assert (await administrator.ask("GET", path, X_Forwarded_For="198.51.100.7")).status == 200


async def test_it_is_counted_and_not_logged(root: Path) -> None:
    async with apart(root) as (one, administrator):
        await one.get("/v2/")
        for path in ("/readyz", "/readyz", "/nowhere"):
            await administrator.ask("GET", path)
        text = (await administrator.ask("GET", "/metrics")).body.decode()
        counts = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines()}
        (ready,) = (value for name, value in counts.items() if 'endpoint="readyz"' in name and "requests" in name)
        (lost,) = (value for name, value in counts.items() if 'endpoint="unknown"' in name and 'status="404"' in name)
        assert (float(ready), float(lost)) == (2, 1)
        assert [line["path"] for line in one.lines] == ["/v2/"]


async def test_a_failure_there_has_the_shape_of_all_others(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(root) as (one, administrator):

        def fail() -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr("mirror.metrics.Metrics.read", lambda _: fail())
        answer = await administrator.ask("GET", "/metrics")
        assert (answer.status, answer.code) == (500, "UNAVAILABLE")
        assert "the disk is gone" not in json.dumps(answer.error)
        assert not one.lines
