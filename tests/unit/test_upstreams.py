"""Upstreams of patterns: made when they are asked, closed when there are too many, and never while in use."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mirror.config import Upstream as Settings
from mirror.oci.errors import UpstreamFailed
from mirror.oci.names import RepositoryName, Tag, parse_digest
from mirror.oci.ranges import ByteRange
from mirror.upstream.upstreams import Upstreams

REPOSITORY = RepositoryName("team/app")
DIGEST = parse_digest("sha256:" + "a" * 64)
CONFIGURED = {
    "named.pkg.dev": Settings(url="https://elsewhere.example"),
    "*.pkg.dev": Settings(url="https://{host}/base"),
}


@dataclass
class Asked:
    """What asks an upstream: notes what it is asked, and waits at the gate when there is one."""

    name: str
    url: str
    calls: list[Any] = field(default_factory=list)
    gate: asyncio.Event | None = None
    closed: int = 0
    fails: bool = False

    async def _answer(self, *call: Any) -> Any:
        assert not self.closed
        self.calls.append(call)
        if self.gate is not None:
            await self.gate.wait()
        assert not self.closed, "while it was asked"
        if self.fails:
            raise UpstreamFailed("no", upstream=self.name)
        return call

    async def resolve(self, *given: Any, **named: Any) -> Any:
        return await self._answer("resolve", *given, named)

    async def manifest(self, *given: Any, **named: Any) -> Any:
        return await self._answer("manifest", *given, named)

    async def stat_blob(self, *given: Any, **named: Any) -> Any:
        return await self._answer("stat_blob", *given, named)

    @asynccontextmanager
    async def blob(self, *given: Any, **named: Any) -> AsyncIterator[Any]:
        yield await self._answer("blob", *given, named)
        assert not self.closed, "while its body was read"

    async def tags(self, *given: Any, **named: Any) -> Any:
        return await self._answer("tags", *given, named)

    async def referrers(self, *given: Any) -> Any:
        return await self._answer("referrers", *given)

    def saving(self) -> Any:
        return f"{self.name} is saving"

    def distrust(self, *given: Any) -> Any:
        return f"{self.name} is distrusted", *given

    async def close(self) -> None:
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        self.closed += 1


class World:
    """Upstreams, and everything that was made to ask them, in order."""

    def __init__(self, most: int = 2) -> None:
        self.made: list[Asked] = []
        self.upstreams = Upstreams(CONFIGURED, self._make, most=most)

    def _make(self, name: str, settings: Settings) -> Any:
        self.made.append(Asked(name, settings.url))
        return self.made[-1]

    def last(self, name: str) -> Asked:
        return next(asked for asked in reversed(self.made) if asked.name == name)

    def open(self) -> list[str]:
        return [asked.name for asked in self.made if not asked.closed]

    async def ask(self, name: str) -> None:
        await self.upstreams[name].resolve(REPOSITORY, Tag("1"))

    async def settle(self) -> None:
        """Let what is being closed be closed."""
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.upstreams.close()
    assert [asked.closed for asked in made.made] == [1] * len(made.made), "each is closed once"


async def test_only_named_ones_are_made_at_the_start(world: World) -> None:
    assert [(asked.name, asked.url) for asked in world.made] == [("named.pkg.dev", "https://elsewhere.example")]
    assert world.upstreams["named.pkg.dev"] is world.made[0]
    assert list(world.upstreams) == ["named.pkg.dev"]
    assert len(world.upstreams) == 1
    handle = world.upstreams["a.pkg.dev"]
    assert handle.name == "a.pkg.dev"
    assert len(world.made) == 1, "nobody has asked it yet"
    await world.ask("a.pkg.dev")
    await world.ask("a.pkg.dev")
    assert [(asked.name, asked.url) for asked in world.made[1:]] == [("a.pkg.dev", "https://a.pkg.dev/base")]


@pytest.mark.parametrize("name", ["", "pkg.dev", "*.pkg.dev", "a.b.pkg.dev", "A.pkg.dev", "docker.io"])
async def test_nobody_else_is_there(world: World, name: str) -> None:
    assert world.upstreams.get(name) is None
    assert name not in world.upstreams


async def test_everything_is_passed_on(world: World) -> None:
    handle: Any = world.upstreams["a.pkg.dev"]
    window = ByteRange(1, 2)
    answers = [
        await handle.resolve(REPOSITORY, Tag("1")),
        await handle.resolve(REPOSITORY, DIGEST, confirming=True),
        await handle.manifest(REPOSITORY, DIGEST, confirming=True),
        await handle.stat_blob(REPOSITORY, DIGEST, confirming=True),
        await handle.tags(REPOSITORY, n=7, last="x"),
        await handle.referrers(REPOSITORY, DIGEST),
    ]
    async with handle.blob(REPOSITORY, DIGEST, offset=3, window=window) as source:
        answers.append(source)
    assert answers == [
        ("resolve", REPOSITORY, Tag("1"), {"confirming": False}),
        ("resolve", REPOSITORY, DIGEST, {"confirming": True}),
        ("manifest", REPOSITORY, DIGEST, {"confirming": True}),
        ("stat_blob", REPOSITORY, DIGEST, {"confirming": True}),
        ("tags", REPOSITORY, {"n": 7, "last": "x"}),
        ("referrers", REPOSITORY, DIGEST),
        ("blob", REPOSITORY, DIGEST, {"offset": 3, "window": window}),
    ]
    assert world.last("a.pkg.dev").calls == answers
    assert handle.saving() == "a.pkg.dev is saving"
    assert handle.distrust(DIGEST) == ("a.pkg.dev is distrusted", DIGEST)
    world.last("a.pkg.dev").fails = True
    with pytest.raises(UpstreamFailed):
        await handle.manifest(REPOSITORY, DIGEST)


async def test_the_one_that_nobody_asked_for_longest_is_closed(world: World) -> None:
    for name in ("a", "b", "a", "c"):
        await world.ask(f"{name}.pkg.dev")
    await world.settle()
    assert world.open() == ["named.pkg.dev", "a.pkg.dev", "c.pkg.dev"]


async def test_a_handle_stays_good_when_what_it_asked_is_closed(world: World) -> None:
    handle = world.upstreams["a.pkg.dev"]
    for name in ("a", "b", "c"):
        await world.ask(f"{name}.pkg.dev")
    await world.settle()
    assert "a.pkg.dev" not in world.open()
    await handle.manifest(REPOSITORY, DIGEST)
    assert [asked.closed for asked in world.made if asked.name == "a.pkg.dev"] == [1, 0]
    assert world.last("a.pkg.dev").calls == [("manifest", REPOSITORY, DIGEST, {"confirming": False})]


@pytest.mark.parametrize("what", ["resolve", "blob", "body"])
async def test_none_is_closed_while_it_is_asked(world: World, what: str) -> None:
    gate = asyncio.Event()
    handle: Any = world.upstreams["a.pkg.dev"]
    await world.ask("a.pkg.dev")
    asked = world.last("a.pkg.dev")
    asked.gate = None if what == "body" else gate

    async def use() -> None:
        if what == "resolve":
            await handle.resolve(REPOSITORY, DIGEST)
        else:
            async with handle.blob(REPOSITORY, DIGEST):
                await gate.wait()

    using = asyncio.create_task(use())
    while len(asked.calls) < 2:
        await asyncio.sleep(0)
    for name in ("b", "c", "d", "e"):
        await world.ask(f"{name}.pkg.dev")
    await world.settle()
    assert not asked.closed
    assert world.open() == ["named.pkg.dev", "a.pkg.dev", "e.pkg.dev"], "others make room for it"
    gate.set()
    await using
    await world.settle()
    assert not asked.closed, "there is room for it"
    await world.ask("f.pkg.dev")
    await world.settle()
    assert asked.closed, "it is idle now"


async def test_more_may_be_open_while_all_are_in_use(world: World) -> None:
    gate, names = asyncio.Event(), [f"{name}.pkg.dev" for name in "abcd"]

    async def use(name: str) -> None:
        async with world.upstreams[name].blob(REPOSITORY, DIGEST):
            await gate.wait()

    using = [asyncio.create_task(use(name)) for name in names]
    await world.settle()
    assert world.open() == ["named.pkg.dev", *names]
    using[0].cancel()
    await world.settle()
    assert world.open() == ["named.pkg.dev", *names[1:]], "the first that is given back, by whatever way"
    gate.set()
    await asyncio.gather(*using, return_exceptions=True)
    await world.settle()
    assert len(world.open()) == 1 + 2


async def test_a_handle_is_the_same_for_all_who_hold_it_and_no_longer(world: World) -> None:
    """Some ask whether two of them are one upstream; and there is no end to the names."""
    first = world.upstreams["a.pkg.dev"]
    assert world.upstreams["a.pkg.dev"] is first
    assert world.upstreams["b.pkg.dev"] is not first
    kept = weakref.ref(first)
    del first
    gc.collect()
    assert kept() is None
    for n in range(100):
        assert world.upstreams[f"n{n}.pkg.dev"].saving()
    await world.settle()
    assert len(world.open()) == 1 + 2


async def test_closing_waits_for_what_is_being_closed() -> None:
    world = World(most=1)
    for name in ("a", "b"):
        await world.ask(f"{name}.pkg.dev")
    world.last("a.pkg.dev").gate = gate = asyncio.Event()
    closing = asyncio.create_task(world.upstreams.close())
    await world.settle()
    assert world.open() == ["a.pkg.dev"]
    assert not closing.done()
    gate.set()
    await closing
    assert world.open() == []
