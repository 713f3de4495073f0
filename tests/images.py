"""Pulling images from a mirror under test the way clients do, and looking at what it kept."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mirror.upstream.client
import mirror.wiring.answering
import mirror.wiring.service
import mirror.wiring.upstreams
from mirror.registry.pulled_lists import PulledLists
from mirror.registry.tags import TagResolver
from mirror.upstream.client import RegistryClient
from mirror.upstream.quota import Quota
from mirror.upstream.transport import Timeouts
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import Answer, Mirror, make_config

NAME = "team/app"


class Clock:
    """The time the mirrors of a test read, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def use_clock(patch: pytest.MonkeyPatch) -> Clock:
    """Let mirrors started from now on judge the age of tags, lists and quotas by a clock of the test's."""
    clock = Clock()
    patch.setattr(mirror.wiring.answering, "TagResolver", functools.partial(TagResolver, clock=clock))
    patch.setattr(mirror.wiring.service, "PulledLists", functools.partial(PulledLists, clock=clock))
    patch.setattr(mirror.upstream.client, "Quota", functools.partial(Quota, clock=clock))
    return clock


def use_client(patch: pytest.MonkeyPatch, *, timeouts: Timeouts | None = None, **arguments: Any) -> None:
    """Let mirrors started from now on ask upstreams with other time limits, or another resolver."""
    made = functools.partial(RegistryClient, timeouts=timeouts, **arguments)
    patch.setattr(mirror.wiring.upstreams, "RegistryClient", made)


def config_for(tmp_path: Path, hub: FakeUpstream, *, limits: Any = None, **upstream: Any) -> Any:
    """Return a configuration with the hub as the upstream ``up``."""
    settings = {"limits": limits} if limits else {}
    return make_config(tmp_path / "root", {"up": {"url": hub.url} | upstream}, **settings)


def manifest_path(reference: str, name: str = f"up/{NAME}") -> str:
    return f"/v2/{name}/manifests/{reference}"


def blob_path(digest: str, name: str = f"up/{NAME}") -> str:
    return f"/v2/{name}/blobs/{digest}"


async def pull(worker: Mirror, image: Image, name: str = f"up/{NAME}", *, reference: str | None = None) -> None:
    """Pull an image as containerd does: HEAD of the tag, GET by digest, every blob."""
    head = await worker.head(manifest_path(reference or image.tag or image.digest, name))
    assert head.status == 200, head
    assert head.headers["Docker-Content-Digest"] == image.digest
    await get_image(worker, image, name)


async def get_image(worker: Mirror, image: Image, name: str = f"up/{NAME}") -> None:
    """Get an image's manifest by digest, and every blob."""
    answer = await worker.get(manifest_path(image.digest, name))
    assert (answer.status, answer.body) == (200, image.raw), answer
    for digest, data in image.blobs.items():
        blob = await worker.get(blob_path(digest, name))
        assert (blob.status, blob.body) == (200, data), blob


async def kept(root: Path, *digests: str) -> None:
    """Wait until content has its final name: clients have its last byte a little before."""
    await until(lambda: {digest.partition(":")[2] for digest in digests} <= set(cached(root)), "kept")


async def pull_and_keep(worker: Mirror, root: Path, *images: Image, name: str = f"up/{NAME}") -> None:
    """Pull images by tag, or by digest where they have none, and wait until all of them is kept."""
    for image in images:
        await pull(worker, image, name)
        await kept(root, image.digest, *image.blobs)


def cached(root: Path) -> list[str]:
    """Return the names of everything pulled through, of both algorithms."""
    return sorted(name for algorithm in ("sha256", "sha512") for name in os.listdir(root / "cache" / algorithm))


def ingesting(root: Path) -> list[str]:
    """Return the names of everything that is on its way in, or was left there."""
    return sorted(name for algorithm in ("sha256", "sha512") for name in os.listdir(root / "ingest" / algorithm))


async def until(condition: Callable[[], Any], what: str, seconds: float = 30) -> None:
    """Wait for a condition."""
    try:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"never: {what}")


def requests(hub: FakeUpstream) -> list[str]:
    """Return what was asked of the hub, without hosts and tokens: ``["HEAD manifests/1", …]``."""
    return [
        f"{request.method} {'/'.join(request.path.split('/')[-2:])}"
        for request in list(hub.log)
        if request.server != "token" and request.path not in ("/token", "/v2/")
    ]


def warning(answer: Answer) -> str | None:
    """Return the Warning of an answer, checked for its form (RFC 7234 section 5.5)."""
    text: str | None = answer.headers.get("Warning")
    assert text is None or (text.startswith('299 - "') and text.endswith('"') and text.count('"') == 2), text
    return text
