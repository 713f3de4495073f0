"""The application in a process of its own: for nobody else, whatever the configuration lets clients do."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiohttp
import bcrypt
import pytest

from mirror.prefetch import Service, parse_image
from mirror.server.alone import Alone, serve_alone
from mirror.server.owner import RootInUse, take_root
from mirror.wiring import build_app, build_proof
from mirror.worker import StartupError
from tests.fake_upstream import FakeUpstream
from tests.harness import make_config, mirror

UP = "up.test"
PATH = "/v2/team/app/manifests/1?ns=up.test"


async def test_only_who_has_the_word_gets_in(tmp_path: Path) -> None:
    """Other users of the machine find the port; they get nothing, and nothing is asked for them."""
    async with (
        FakeUpstream() as hub,
        serve_alone(make_config(tmp_path / "root", {UP: {"url": hub.url}}), build_app) as one,
    ):
        hub.add_image("team/app", "1")
        (header,) = one.headers
        async with aiohttp.ClientSession() as session:
            for headers in ({}, {header: ""}, {header: "guess"}, {"Authorization": one.headers[header]}):
                for path in (PATH, "/v2/", "/metrics", "/healthz"):
                    async with session.get(one.url + path, headers=headers) as response:
                        assert response.status == 403
            assert hub.log == []
            async with session.get(one.url + PATH, headers=one.headers) as response:
                assert response.status == 200
    assert one.headers[header] not in repr(one)
    assert len(one.headers[header]) >= 32


async def test_the_rules_for_clients_do_not_lock_us_out(tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"us:{bcrypt.hashpw(b'x', bcrypt.gensalt(4)).decode()}\n")
    access = {"htpasswd_file": users, "anonymous": "none", "allow_from": ["192.0.2.0/24"]}
    tls = {"certificate": users, "key": users}
    async with FakeUpstream() as hub:
        image = hub.add_image("team/app", "1")
        config = make_config(tmp_path / "root", {UP: {"url": hub.url}}, access=access, tls=tls, packages=tmp_path)
        async with serve_alone(config, build_app) as one, Service(one.url, headers=one.headers) as service:
            found = await service.manifest(parse_image(f"{UP}/team/app:1"), parse_image("a:1").target)
        assert str(found.manifest.descriptor.digest) == image.digest


async def test_what_it_fetched_is_there_for_the_service(tmp_path: Path) -> None:
    async with FakeUpstream() as hub:
        image = hub.add_image("team/app", "1", [200_000])
        config = make_config(tmp_path / "root", {UP: {"url": hub.url}})
        async with serve_alone(config, build_app) as one, aiohttp.ClientSession(headers=one.headers) as session:
            for digest, data in image.blobs.items():
                async with session.get(f"{one.url}/v2/team/app/blobs/{digest}?ns={UP}") as response:
                    assert await response.read() == data
        hub.clear_log()
        async with mirror(config) as worker:
            for digest, data in image.blobs.items():
                assert (await worker.get(f"/v2/{UP}/team/app/blobs/{digest}")).body == data
        assert hub.log == []


async def test_a_root_that_cannot_be_used(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    (root / "run" / "metrics").symlink_to("/proc/nowhere")
    with pytest.raises(StartupError, match=r"cannot write to .*/run/metrics"):
        async with serve_alone(make_config(root, {}), build_app):
            raise AssertionError("not reached")


def test_who_owns_a_root_is_said(tmp_path: Path) -> None:
    owned = take_root(tmp_path)
    try:
        with pytest.raises(RootInUse) as taken:
            take_root(tmp_path)
    finally:
        os.close(owned)
    assert taken.value.holder.startswith(f"pid {os.getpid()}")
    assert taken.value.holder in str(taken.value)


async def test_only_a_service_on_the_root_gives_its_tokens(tmp_path: Path) -> None:
    proofs = [await asyncio.to_thread(build_proof, tmp_path / name) for name in ("root", "other")]
    async with mirror(make_config(tmp_path / "root", {})) as worker, Service(worker.url) as service:
        token = await service.token()
    assert [given_here(token) for given_here in proofs] == [True, False]
    assert not proofs[0](token + "x")
    assert not proofs[0]("")


def test_the_word_is_not_shown() -> None:
    assert "secret" not in repr(Alone(url="http://x", headers={"X": "secret"}))
