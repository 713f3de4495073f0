"""The mirror judged by every version of the specification: one worker and four, plain and by TLS, with a login.

Nothing fails, and nothing is unsupported but what its configuration explains.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import bcrypt
import pytest
import trustme

from mirror.config import Config
from mirror.conformance import Judgement, Login, Options, Version, judge
from mirror.conformance.case import Category, Outcome
from tests.harness import Mirror, make_config, mirrors

LOGIN = Login(user="pusher", password="a word")
ALL = tuple(Version)


@contextlib.asynccontextmanager
async def in_turn(workers: Sequence[Mirror]) -> AsyncIterator[str]:
    """Hand each connection to the next worker, as the kernel does with processes that share a port. Gives the URL."""
    ports = [int(urlsplit(worker.url).port or 0) for worker in workers]
    number, tasks, writers = 0, set[asyncio.Task[None]](), set[asyncio.StreamWriter]()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            writers.discard(writer)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal number
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
        there, back = await asyncio.open_connection("127.0.0.1", ports[number % len(ports)])
        writers.update((writer, back))
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    scheme = urlsplit(workers[0].url).scheme
    try:
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
        for writer in list(writers):
            writer.close()
        await asyncio.gather(*tasks)
    assert number > 500, "each request had a connection of its own"


async def let_go() -> None:
    """End what aiohttp does for clients that left while they were sending what was refused: it waits for the rest."""
    waiting = [task for task in asyncio.all_tasks() if "RequestHandler.start" in repr(task.get_coro())]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def unwell(judgement: Judgement) -> dict[str, str]:
    """Return what did not pass, and why."""
    return {
        result.case.name: f"{result.outcome.value}: {result.reason or f'expected {result.expected}, got {result.got}'}"
        for result in judgement.results
        if result.outcome is not Outcome.PASSED
    }


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def judged(
    config: Config, count: int, *, authority: trustme.CA | None = None, login: Login | None = None, **options: object
) -> Judgement:
    """Judge so many workers, which take turns."""
    serving: ssl.SSLContext | None = None
    trusting: ssl.SSLContext | bool = True
    if authority:
        serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(serving)
        trusting = ssl.create_default_context()
        authority.configure_trust(trusting)
    try:
        async with mirrors(config, count, ssl=serving) as workers:
            async with in_turn(workers) if count > 1 else contextlib.nullcontext(workers[0].url) as url:
                used = Options(seed=1, **options)  # type: ignore[arg-type]
                return await judge(url, ALL, used, login=login, tls=trusting, reuse=count == 1)
    finally:
        await let_go()


@pytest.mark.parametrize("tls", [False, True], ids=["http", "tls"])
@pytest.mark.parametrize("count", [1, 4], ids=["1-worker", "4-workers"])
async def test_nothing_fails_and_nothing_is_unsupported(
    root: Path, count: int, tls: bool, authority: trustme.CA
) -> None:
    judgement = await judged(make_config(root, {}), count, authority=authority if tls else None)
    assert unwell(judgement) == {}
    assert judgement.passes_all
    assert judgement.left == ()


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """Return a file of one user."""
    path = tmp_path / "users"
    hashed = bcrypt.hashpw(LOGIN.password.encode(), bcrypt.gensalt(4)).decode()
    path.write_text(f"{LOGIN.user}:{hashed}\n")
    return path


@pytest.mark.parametrize("anonymous", ["pull", "none"])
@pytest.mark.parametrize("count", [1, 4], ids=["1-worker", "4-workers"])
async def test_with_a_login_the_same(root: Path, users: Path, count: int, anonymous: str) -> None:
    """By tokens, where others may pull without a login; by the login itself, where nobody may."""
    config = make_config(root, {}, access={"htpasswd_file": users, "anonymous": anonymous})
    judgement = await judged(config, count, login=LOGIN)
    assert unwell(judgement) == {}
    assert judgement.left == ()


async def test_without_a_login_pushing_is_refused(root: Path, users: Path) -> None:
    """The twin: the login is what makes it pass."""
    config = make_config(root, {}, access={"htpasswd_file": users, "anonymous": "pull"})
    judgement = await judged(config, 1)
    assert "answers 401" in judgement.no_pushes
    outcomes = {result.outcome for result in judgement.results if result.case.category is Category.PUSH}
    assert outcomes == {Outcome.UNSUPPORTED}


async def test_deletion_switched_off_is_unsupported_and_nothing_else(root: Path) -> None:
    judgement = await judged(make_config(root, {}, delete=False), 1)
    assert judgement.passes_all
    found = {result.case.name for result in judgement.results if result.outcome is not Outcome.PASSED}
    assert found == {result.case.name for result in judgement.results if result.case.category is Category.MANAGEMENT}


async def test_missing_blobs_accepted_passes_too(root: Path) -> None:
    judgement = await judged(make_config(root, {}, push={"missing_blobs": "accept"}), 1)
    assert unwell(judgement) == {}


async def test_a_name_that_is_not_local_takes_no_pushes(root: Path) -> None:
    judgement = await judged(make_config(root, {}), 1, repository="elsewhere/x", other="elsewhere/y")
    assert judgement.no_pushes == "pushing is refused: POST of an upload answers 405"


async def test_the_name_it_is_called_by_comes_back(root: Path) -> None:
    """With a name of its own, ?ns= finds local content, and the answer says which name it was."""
    config = make_config(root, {}, names=("registry.corp",))
    judgement = await judged(config, 1, ns="registry.corp")
    [found] = [result for result in judgement.results if result.case.name == "ns-header"]
    assert found.outcome is Outcome.PASSED
    assert found.notes == ()
