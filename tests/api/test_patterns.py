"""Patterns as upstreams: every host they match is an upstream of its own, for as long as somebody asks it."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from prometheus_client.parser import text_string_to_metric_families

import mirror.wiring.service
import mirror.wiring.upstreams
from mirror.config import Credentials
from mirror.upstream.client import RegistryClient
from mirror.upstream.upstreams import Upstreams
from tests.fake_upstream import FakeUpstream, Gate, Request
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.images import NAME, Clock, blob_path, manifest_path, pull, pull_and_keep, until, use_client
from tests.raw_client import Client

DOMAIN = "pkg.test"
PATTERN = f"*.{DOMAIN}"
MIB = 1024 * 1024
A, B = f"a.{DOMAIN}", f"b.{DOMAIN}"


class Loopback(AbstractResolver):
    """A resolver that has one address for every name of the domain, and none for others."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if not host.endswith(f".{DOMAIN}"):
            raise OSError(None, "no such name")
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0),
        ]

    async def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    use_client(monkeypatch, resolver=Loopback())


def config_of(root: Path, hub: FakeUpstream, **settings: Any) -> Any:
    """Return a configuration in which every host of the domain leads to the hub, on its port."""
    url = f"http://{{host}}:{hub.url.rpartition(':')[2]}"
    return make_config(root, {PATTERN: {"url": url} | settings}, default_upstream=None)


def of(host: str) -> Any:
    """Match what the hub is asked under a name."""
    return lambda request: hosts([request]) == [host]


def hosts(log: list[Request]) -> list[str]:
    return [request.headers["Host"].partition(":")[0] for request in log]


@pytest.fixture
async def four(root: Path, hub: FakeUpstream) -> AsyncIterator[list[Mirror]]:
    async with mirrors(config_of(root, hub), 4) as started:
        yield started


WAYS: list[tuple[str, dict[str, str]]] = [
    (f"/v2/{NAME}/manifests/v1?ns={A}", {}),
    (f"/v2/{NAME}/manifests/v1?ns={A.upper()}", {}),
    (f"/v2/{NAME}/manifests/v1", {"Host": A}),
    (f"/v2/{NAME}/manifests/v1", {"Host": f"{A.title()}:8080"}),
    (f"/{A}/v2/{NAME}/manifests/v1", {}),
    (f"/{A.upper()}/v2/{NAME}/manifests/v1", {}),
    (f"/v2/{A}/{NAME}/manifests/v1", {}),
    (f"/v2/{A.title()}/{NAME}/manifests/v1", {}),
]


async def test_a_host_is_found_however_it_is_said(four: list[Mirror], hub: FakeUpstream) -> None:
    image = hub.add_image(NAME, "v1")
    for at, (path, headers) in enumerate(WAYS):
        answer = await four[at % 4].get(path, headers=headers)
        assert (answer.status, answer.body) == (200, image.raw), (path, headers)
        line = four[at % 4].lines[-1]
        assert (line["upstream"], line["repository"]) == (A, f"{A}/{NAME}")
    assert hub.count("GET", "manifests") == 1
    assert set(hosts(hub.log)) == {A}


async def test_the_world_stays_closed(four: list[Mirror], hub: FakeUpstream) -> None:
    hub.add_image(NAME, "v1")
    for host in (DOMAIN, f"a.b.{DOMAIN}", f"{A}:443", f"{A}.evil.example", f"{A}.", f"a_b.{DOMAIN}", PATTERN):
        for path in (f"/v2/{NAME}/manifests/v1?ns={host}", f"/{host}/v2/{NAME}/manifests/v1"):
            answer = await four[0].get(path)
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN"), path
    assert hub.log == []


async def test_nothing_of_two_hosts_is_mixed(root: Path, tmp_path: Path, hub: FakeUpstream) -> None:
    """Tags, rights and lists: what one has is nothing the other has, though both are of one pattern."""
    image = hub.add_image(NAME, "v1")
    hub.auth, hub.users, hub.anonymous = "basic", {"us": "secret"}, False
    (tmp_path / "password").write_text("secret")
    hub.fail(of(B), status=404)
    login = Credentials(username="us", password_file=tmp_path / "password")
    async with mirrors(config_of(root, hub, credentials=(login,)), 2) as workers:
        await pull_and_keep(workers[0], root, image, name=f"{A}/{NAME}")
        for worker in workers:
            assert (await worker.get(f"/v2/{A}/{NAME}/tags/list")).status == 200
            for path in (
                manifest_path("v1", f"{B}/{NAME}"),
                manifest_path(image.digest, f"{B}/{NAME}"),
                *(blob_path(digest, f"{B}/{NAME}") for digest in image.blobs),
                f"/v2/{B}/{NAME}/tags/list",
            ):
                assert (await worker.get(path)).status == 404, path
                assert (await worker.head(path)).status == 404, path
        hub.clear_log()
        await pull(workers[1], image, f"{A}/{NAME}")
        assert hub.log == [], "what is kept is served as that of any upstream"


async def test_the_settings_of_the_pattern_are_those_of_every_host(root: Path, hub: FakeUpstream, clock: Clock) -> None:
    hub.add_image(NAME, "v1")
    config = config_of(root, hub, tags={"fresh_for": 1000}, deny=("secret/**",))
    async with mirrors(config) as (one,):
        await one.get(manifest_path("v1", f"{A}/{NAME}"))
        clock.advance(999)
        hub.clear_log()
        assert (await one.get(manifest_path("v1", f"{A}/{NAME}"))).status == 200
        assert hub.log == []
        clock.advance(2)
        assert (await one.get(manifest_path("v1", f"{A}/{NAME}"))).status == 200
        assert hub.count("HEAD", "/manifests/v1") == 1
        denied = await one.get(manifest_path("v1", f"{A}/secret/app"))
        assert (denied.status, denied.code) == (403, "DENIED")
        assert json.loads(denied.body)["errors"][0]["message"] == (
            f'{A}/secret/app may not be pulled: upstreams.{PATTERN}.deny has "secret/**"'
        )


@pytest.mark.parametrize("unverified", [True, False])
async def test_ranges_are_sent_as_the_pattern_says(root: Path, hub: FakeUpstream, unverified: bool) -> None:
    image, gate = hub.add_image(NAME, "v1", (20 * MIB,)), Gate()
    layer = image.layers[0]
    hub.fault(f"GET /v2/{NAME}/blobs/{layer}", gate=gate, gate_at=MIB, times=1)
    async with mirrors(config_of(root, hub, unverified_ranges=unverified)) as (one,):
        asked = Client(one.url + blob_path(layer, f"{A}/{NAME}"), Range=f"bytes={16 * MIB}-{16 * MIB + 9}")
        await gate.reached()
        if unverified:
            async with asyncio.timeout(10):
                await asked.task  # ahead of the download
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asked.task), 0.3)
        gate.open()
        await asked.task
        assert bytes(asked.body) == image.blobs[layer][16 * MIB : 16 * MIB + 10]
        assert hub.count("GET", layer) == (2 if unverified else 1)


# ---- what they are counted as ----


def upstream_labels(answer: Answer) -> dict[str, set[str]]:
    """Return every label ``upstream`` of /metrics, by the name of what is counted."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            if "upstream" in sample.labels:
                found.setdefault(sample.name, set()).add(sample.labels["upstream"])
    return found


async def test_clients_cannot_make_up_labels(root: Path, hub: FakeUpstream) -> None:
    """Hits, misses, requests, tokens, errors and bytes are the pattern's; the access line has the name."""
    image = hub.add_image(NAME, "v1")
    hub.auth = "token"
    hub.fail(of(B), status=500)
    async with mirrors(config_of(root, hub)) as (one,):
        for host in (A, f"c.{DOMAIN}"):
            for _ in range(2):
                await pull_and_keep(one, root, image, name=f"{host}/{NAME}")
        assert (await one.get(manifest_path("v1", f"{B}/{NAME}"))).status == 503
        found = upstream_labels(await one.get("/metrics"))
        for name in (
            "mirror_cache_hits_total",
            "mirror_cache_misses_total",
            "mirror_upstream_requests_total",
            "mirror_upstream_errors_total",
            "mirror_token_requests_total",
            "mirror_fetched_bytes_total",
        ):
            assert found[name] == {PATTERN}, name
        assert {line["upstream"] for line in one.lines} == {A, B, f"c.{DOMAIN}"}
        assert all(labels == {PATTERN} for labels in found.values())


# ---- more of them than are kept open ----


class Opened(RegistryClient):
    """Clients that are counted. alive: the hosts of those that are not closed."""

    alive: list[str] = []  # noqa: RUF012

    def __init__(self, name: str, *given: Any, **named: Any) -> None:
        super().__init__(name, *given, **named)
        self.alive.append(name)

    async def close(self) -> None:
        self.alive.remove(self.name)
        await super().close()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep at most two of them open."""
    Opened.alive.clear()
    monkeypatch.setattr(mirror.wiring.service, "Upstreams", functools.partial(Upstreams, most=2))
    monkeypatch.setattr(mirror.wiring.upstreams, "RegistryClient", functools.partial(Opened, resolver=Loopback()))


async def test_no_more_are_open_than_may_be(root: Path, hub: FakeUpstream, few: None) -> None:
    image, names = hub.add_image(NAME, "v1"), [f"n{n}.{DOMAIN}" for n in range(8)]
    async with mirrors(config_of(root, hub, tags={"fresh_for": 0})) as (one,):
        assert Opened.alive == [], "none is made before it is asked"
        for name in names:
            await pull_and_keep(one, root, image, name=f"{name}/{NAME}")
            await until(lambda: len(Opened.alive) <= 2, "closed")
        assert Opened.alive == names[-2:]
        hub.clear_log()
        assert (await one.get(manifest_path("v1", f"{names[0]}/{NAME}"))).body == image.raw
        assert hosts(hub.log) == [names[0]], "it is asked again"
    assert Opened.alive == []


async def test_all_of_them_at_once(root: Path, hub: FakeUpstream, few: None) -> None:
    image, names = hub.add_image(NAME, "v1"), [f"n{n}.{DOMAIN}" for n in range(20)]
    async with mirrors(config_of(root, hub, tags={"fresh_for": 0}), 2) as workers:
        for _ in range(3):
            await asyncio.gather(*(pull(worker, image, f"{name}/{NAME}") for name in names for worker in workers))
        await until(lambda: len(Opened.alive) <= 2 * 2, "closed")
    assert Opened.alive == []


async def test_a_transfer_is_not_cut_off_by_others(root: Path, hub: FakeUpstream, few: None) -> None:
    image, gate = hub.add_image(NAME, "v1", (1_000_000, 100)), Gate()
    layer = image.layers[0]
    async with mirrors(config_of(root, hub, tags={"fresh_for": 0})) as (one,):
        hub.fault(f"GET /v2/{NAME}/blobs/{layer}", gate=gate, gate_at=300_000)
        slow = Client(one.url + blob_path(layer, f"{A}/{NAME}"))
        await gate.reached()
        for n in range(6):
            assert (await one.head(manifest_path("v1", f"n{n}.{DOMAIN}/{NAME}"))).status == 200
        await until(lambda: len(Opened.alive) <= 2, "closed")
        assert Opened.alive == [A, f"n5.{DOMAIN}"]
        gate.open()
        await slow.task
        assert (slow.ended, bytes(slow.body)) == ("clean", image.blobs[layer])
        assert hub.count("GET", layer) == 1
