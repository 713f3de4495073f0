"""Pushing blobs over HTTP: sessions, chunks, whole blobs, mounts. Several workers on one root are several processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Credentials
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed, StorageFull
from mirror.registry import uploads as module
from mirror.store import uploads as files
from mirror.store.disk import DiskBlobStore
from mirror.store.files import write_all
from mirror.store.lease import FileLeases
from mirror.store.uploads import RunningHash, UploadFile, UploadStore, lease_key
from tests.connection import Connection, connect
from tests.fake_upstream import FakeUpstream, random_bytes
from tests.harness import Answer, Mirror, make_config, mirrors
from tests.images import blob_path, cached, get_image, kept, until
from tests.lingering import linger, lingered

MIB = 1024 * 1024
NAME = "local/team/app"
OTHER = "local/other"
DATA = random_bytes(3_000_000, 1)
SMALL = b"a few bytes"
NOWHERE = "00000000-0000-4000-8000-000000000000"


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


DIGEST = digest_of(DATA)


@contextlib.asynccontextmanager
async def workers_on(root: Path, count: int = 2, **settings: Any) -> AsyncIterator[list[Mirror]]:
    async with mirrors(make_config(root, {}, **settings), count) as workers:
        yield workers
    await lingered()


@pytest.fixture(autouse=True)
def _linger_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    linger(monkeypatch)


@pytest.fixture
async def workers(root: Path) -> AsyncIterator[list[Mirror]]:
    async with workers_on(root) as found:
        yield found


def uploads_path(name: str = NAME) -> str:
    return f"/v2/{name}/blobs/uploads/"


def body(data: bytes) -> Any:
    return io.BytesIO(data) if data else b""


async def begin(worker: Mirror, query: str = "", name: str = NAME) -> str:
    answer = await worker.ask("POST", uploads_path(name) + query)
    assert answer.status == 202, answer
    location: str = answer.headers["Location"]
    return location


async def patch(worker: Mirror, location: str, data: bytes, content_range: str | None = None) -> Answer:
    headers = {"Content-Range": content_range} if content_range is not None else {}
    return await worker.ask("PATCH", location, data=body(data), headers=headers)


async def put(worker: Mirror, location: str, digest: str, data: bytes = b"", **headers: str) -> Answer:
    return await worker.ask("PUT", f"{location}?digest={digest}", data=body(data), headers=headers)


async def push(worker: Mirror, data: bytes, name: str = NAME, algorithm: str = "sha256") -> str:
    digest = digest_of(data, algorithm)
    answer = await worker.ask("POST", f"{uploads_path(name)}?digest={digest}", data=body(data))
    assert answer.status == 201, answer
    return digest


async def offset(worker: Mirror, location: str) -> int:
    """Return how many bytes a session has. One byte and none are told alike, so it has some."""
    answer = await worker.get(location)
    assert answer.status == 204, answer
    first, _, last = answer.headers["Range"].partition("-")
    assert first == "0"
    return int(last) + 1


async def holds(worker: Mirror, data: bytes, name: str = NAME, algorithm: str = "sha256") -> None:
    """Make sure that a repository has a blob, whole and right."""
    path = blob_path(digest_of(data, algorithm), name)
    head, answer = await worker.head(path), await worker.get(path)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(data)))
    assert (answer.status, answer.body) == (200, data)


async def answered(connection: Connection) -> Any:
    """Read the head of an answer that has to come soon."""
    async with asyncio.timeout(20):
        return await connection.head()


def sessions(root: Path) -> list[str]:
    return sorted(os.listdir(root / "ingest" / "uploads"))


def files_of(root: Path) -> list[Path]:
    return list((root / "ingest" / "uploads").iterdir())


def held(root: Path, location: str) -> bool:
    """Say whether somebody has a session's lease."""
    secret = bytes.fromhex(json.loads((root / "format").read_text())["secret"])
    lease = FileLeases(root / "ingest" / "locks", secret).try_acquire(lease_key(session_of(location)))
    if lease is not None:
        lease.release()
    return lease is None


def blobs(root: Path) -> list[str]:
    return sorted(name for algorithm in ("sha256", "sha512") for name in os.listdir(root / "blobs" / algorithm))


def session_of(location: str) -> str:
    return location.rpartition("/")[2]


def says(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.code) == (status, code), answer


# ---- end-4a, end-13, end-14: a session ----


async def test_a_session_begins_with_nothing(workers: list[Mirror], root: Path) -> None:
    answer = await workers[0].ask("POST", uploads_path())
    assert (answer.status, answer.body) == (202, b"")
    session = answer.headers["Docker-Upload-UUID"]
    assert answer.headers["Location"] == f"/v2/{NAME}/blobs/uploads/{session}"
    assert answer.headers["Range"] == "0-0"
    assert answer.headers["Content-Length"] == "0"
    assert [name.partition(".")[0] for name in sessions(root)] == [session]
    assert [os.stat(root / "ingest" / "uploads" / name).st_mode & 0o777 for name in sessions(root)] == [0o600]


async def test_sessions_are_many(workers: list[Mirror]) -> None:
    assert len({await begin(worker) for worker in workers for _ in range(3)}) == 6


async def test_the_location_has_the_prefix_the_client_uses(workers: list[Mirror]) -> None:
    answer = await workers[0].ask("POST", "/local/v2/team/app/blobs/uploads/")
    assert answer.status in (202, 405), answer  # whether a prefix may mean our own names is the router's to say
    if answer.status == 202:
        assert answer.headers["Location"].startswith("/local/v2/")


@pytest.mark.parametrize("asked", [0, 1])
async def test_the_status_of_a_session(workers: list[Mirror], asked: int) -> None:
    location = await begin(workers[0])
    empty = await workers[asked].get(location)
    assert (empty.status, empty.headers["Range"]) == (204, "0-0")
    await patch(workers[0], location, DATA[:1000])
    answer = await workers[asked].get(location)
    assert (answer.status, answer.headers["Range"], answer.headers["Location"]) == (204, "0-999", location)
    assert answer.headers["Docker-Upload-UUID"] == session_of(location)
    head = await workers[asked].head(location)
    assert (head.status, head.headers["Range"]) == (204, "0-999")


@pytest.mark.parametrize("cancels", [0, 1])
@pytest.mark.parametrize("sent", [0, 1000])
async def test_a_cancelled_session_is_gone(workers: list[Mirror], root: Path, cancels: int, sent: int) -> None:
    location = await begin(workers[0])
    if sent:
        await patch(workers[0], location, DATA[:sent])
    answer = await workers[cancels].ask("DELETE", location)
    assert (answer.status, answer.body) == (204, b"")
    assert sessions(root) == []
    for worker in workers:
        for method in ("GET", "PATCH", "DELETE"):
            says(await worker.ask(method, location), 404, "BLOB_UPLOAD_UNKNOWN")
        says(await put(worker, location, DIGEST, DATA), 404, "BLOB_UPLOAD_UNKNOWN")


# ---- end-4b: a whole blob in one request ----


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [b"", SMALL, DATA], ids=["empty", "small", "large"])
async def test_a_whole_blob_in_one_request(workers: list[Mirror], root: Path, data: bytes, algorithm: str) -> None:
    digest = digest_of(data, algorithm)
    answer = await workers[0].ask("POST", f"{uploads_path()}?digest={digest}", data=body(data))
    assert (answer.status, answer.body) == (201, b"")
    assert answer.headers["Location"] == blob_path(digest, NAME)
    assert answer.headers["Docker-Content-Digest"] == digest
    for worker in reversed(workers):
        await holds(worker, data, algorithm=algorithm)
    assert sessions(root) == []
    assert blobs(root) == [digest.partition(":")[2]]
    assert os.stat(root / "blobs" / algorithm / digest.partition(":")[2]).st_mode & 0o777 == 0o600


async def test_a_whole_blob_of_a_length_nobody_told(workers: list[Mirror]) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(DATA), 70_000):
            yield DATA[start : start + 70_000]

    answer = await workers[0].ask("POST", f"{uploads_path()}?digest={DIGEST}", data=pieces())
    assert answer.status == 201
    await holds(workers[1], DATA)


@pytest.mark.parametrize(
    ("digest", "sent"),
    [
        pytest.param(digest_of(b"other"), SMALL, id="another"),
        pytest.param(digest_of(SMALL), SMALL + b"!", id="longer"),
        pytest.param(digest_of(SMALL), SMALL[:-1], id="shorter"),
        pytest.param(digest_of(b"other", "sha512"), SMALL, id="another sha512"),
        pytest.param("sha256:abc", SMALL, id="none"),
        pytest.param("md5:" + "0" * 32, SMALL, id="unknown algorithm"),
        pytest.param("", SMALL, id="empty"),
    ],
)
async def test_a_wrong_digest_leaves_nothing(workers: list[Mirror], root: Path, digest: str, sent: bytes) -> None:
    answer = await workers[0].ask("POST", f"{uploads_path()}?digest={digest}", data=sent)
    says(answer, 400, "DIGEST_INVALID")
    assert sessions(root) == blobs(root) == []
    assert (await workers[0].head(blob_path(digest_of(SMALL), NAME))).status == 404
    await push(workers[0], SMALL)
    await holds(workers[1], SMALL)


async def test_the_same_blob_again_is_the_same_file(workers: list[Mirror], root: Path) -> None:
    await push(workers[0], DATA)
    inode = os.stat(root / "blobs" / "sha256" / DIGEST[7:]).st_ino
    await push(workers[1], DATA)
    await push(workers[1], DATA, OTHER)
    assert os.stat(root / "blobs" / "sha256" / DIGEST[7:]).st_ino == inode
    assert sessions(root) == []
    await holds(workers[0], DATA, OTHER)


async def test_a_blob_of_one_repository_is_not_one_of_another(workers: list[Mirror]) -> None:
    await push(workers[0], DATA)
    assert (await workers[0].head(blob_path(DIGEST, OTHER))).status == 404
    assert (await workers[0].head(blob_path(DIGEST, NAME))).status == 200


# ---- end-4c: another algorithm ----


async def test_a_session_for_sha512(workers: list[Mirror], reads: list[int]) -> None:
    location = await begin(workers[0], "?digest-algorithm=sha512")
    await patch(workers[0], location, DATA)
    answer = await put(workers[0], location, digest_of(DATA, "sha512"))
    assert answer.status == 201
    assert sum(reads) == 0, "it was hashed by the right algorithm as it arrived"
    await holds(workers[1], DATA, algorithm="sha512")


@pytest.mark.parametrize("finisher", [0, 1])
async def test_sha512_first_named_at_the_end(workers: list[Mirror], reads: list[int], finisher: int) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    assert (await put(workers[finisher], location, digest_of(DATA, "sha512"))).status == 201
    assert sum(reads) == len(DATA), "read once"
    await holds(workers[1], DATA, algorithm="sha512")


async def test_an_algorithm_said_may_be_another_in_the_end(workers: list[Mirror]) -> None:
    location = await begin(workers[0], "?digest-algorithm=sha512")
    await patch(workers[0], location, DATA)
    assert (await put(workers[0], location, DIGEST)).status == 201
    await holds(workers[1], DATA)


async def test_an_unknown_algorithm_begins_nothing(workers: list[Mirror], root: Path) -> None:
    says(await workers[0].ask("POST", uploads_path() + "?digest-algorithm=md5"), 400, "DIGEST_INVALID")
    assert sessions(root) == []


# ---- end-5: chunks ----


@pytest.mark.parametrize("ranges", [False, True])
async def test_chunks_one_after_the_other_at_any_worker(workers: list[Mirror], root: Path, ranges: bool) -> None:
    location, size = await begin(workers[0]), 0
    for number, end in enumerate((1, 2, 70_000, 70_000, 1_500_000, len(DATA))):
        said = f"{size}-{end - 1}" if ranges and end > size else None
        answer = await patch(workers[number % 2], location, DATA[size:end], said)
        assert (answer.status, answer.headers["Range"]) == (202, f"0-{end - 1}")
        assert answer.headers["Location"] == location
        size = end
    assert (await put(workers[1], location, DIGEST)).status == 201
    await holds(workers[0], DATA)
    assert sessions(root) == []


@pytest.mark.parametrize("form", ["{}-{}", "bytes {}-{}", "{}-{}/*", "bytes {}-{}/3000000"])
async def test_forms_of_content_range(workers: list[Mirror], form: str) -> None:
    location = await begin(workers[0])
    assert (await patch(workers[0], location, DATA[:1000], form.format(0, 999))).status == 202
    assert (await patch(workers[0], location, DATA[1000:], form.format(1000, len(DATA) - 1))).status == 202
    assert (await put(workers[0], location, DIGEST)).status == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("first", [0, 1, 999, 1001, 10**18], ids=lambda first: f"at {first}")
async def test_a_chunk_that_does_not_begin_where_the_session_stands(
    workers: list[Mirror], method: str, first: int
) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA[:1000])
    for worker in workers:
        said = {"Content-Range": f"{first}-{first + 99}"}
        path = location if method == "PATCH" else f"{location}?digest={DIGEST}"
        answer = await worker.ask(method, path, data=b"x" * 100, headers=said)
        says(answer, 416, "BLOB_UPLOAD_INVALID")
        assert (answer.headers["Range"], answer.headers["Location"]) == ("0-999", location)
        assert await offset(worker, location) == 1000
    assert (await patch(workers[1], location, DATA[1000:], f"1000-{len(DATA) - 1}")).status == 202
    assert (await put(workers[0], location, DIGEST)).status == 201


@pytest.mark.parametrize(
    "said", ["", "x", "0", "0-", "-5", "5-0", "0-4-5", "bytes=0-4", "bytes 0-4/x", "-0-4", "0-+4", "0 - 4", "\u0660-4"]
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_content_range_that_is_none(workers: list[Mirror], method: str, said: str) -> None:
    location = await begin(workers[0])
    path = location if method == "PATCH" else f"{location}?digest={digest_of(b'12345')}"
    async with connect(workers[0].url) as connection:
        answer = await connection.ask(method, path, body=b"12345", Content_Range=said.encode())
    assert (answer.status, answer.code) == (400, "BLOB_UPLOAD_INVALID")
    assert (await workers[0].get(location)).headers["Range"] == "0-0", "nothing was written"


@pytest.mark.parametrize("said", ["0-9", "0-11"])
async def test_a_content_length_that_is_not_the_ranges(workers: list[Mirror], said: str) -> None:
    location = await begin(workers[0])
    says(await patch(workers[0], location, SMALL, said), 400, "SIZE_INVALID")
    assert (await workers[0].get(location)).headers["Range"] == "0-0"
    assert (await patch(workers[0], location, SMALL, "0-10")).status == 202


@pytest.mark.parametrize(
    ("said", "stays"), [pytest.param("0-4", 5, id="longer"), pytest.param("0-99", 11, id="shorter")]
)
async def test_a_chunk_of_another_length_than_its_range(workers: list[Mirror], said: str, stays: int) -> None:
    """No Content-Length tells it beforehand. What is within the range is as good as any."""

    async def pieces() -> AsyncIterator[bytes]:
        yield SMALL

    location = await begin(workers[0])
    headers = {"Content-Range": said}
    answer = await workers[0].ask("PATCH", location, data=pieces(), headers=headers)
    says(answer, 400, "SIZE_INVALID")
    assert await offset(workers[1], location) == stays
    assert (await patch(workers[1], location, SMALL[stays:])).status == 202
    assert (await put(workers[0], location, digest_of(SMALL))).status == 201
    await holds(workers[1], SMALL)


async def test_chunked_transfer_coding_with_and_without_a_range(workers: list[Mirror]) -> None:
    async def pieces(start: int, end: int) -> AsyncIterator[bytes]:
        for at in range(start, end, 100_000):
            yield DATA[at : min(at + 100_000, end)]

    location = await begin(workers[0])
    first = await workers[0].ask("PATCH", location, data=pieces(0, 1_000_000))
    assert (first.status, first.headers["Range"]) == (202, "0-999999")
    headers = {"Content-Range": f"1000000-{len(DATA) - 1}"}
    assert (await workers[1].ask("PATCH", location, data=pieces(1_000_000, len(DATA)), headers=headers)).status == 202
    assert (await put(workers[1], location, DIGEST)).status == 201
    await holds(workers[0], DATA)


async def test_what_is_said_to_be_compressed_is_stored_as_it_is(workers: list[Mirror]) -> None:
    location = await begin(workers[0])
    answer = await workers[0].ask("PATCH", location, data=SMALL, headers={"Content-Encoding": "gzip"})
    assert answer.status == 202
    assert (await put(workers[0], location, digest_of(SMALL))).status == 201
    await holds(workers[1], SMALL)


# ---- end-6: the end of a session ----


@pytest.mark.parametrize("before", [0, 1, 1_000_000, 3_000_000])
@pytest.mark.parametrize("ranged", [False, True])
async def test_the_last_chunk_in_the_put(workers: list[Mirror], root: Path, before: int, ranged: bool) -> None:
    location = await begin(workers[0])
    if before:
        await patch(workers[0], location, DATA[:before])
    said = {"Content-Range": f"{before}-{len(DATA) - 1}"} if ranged and before < len(DATA) else {}
    answer = await put(workers[1], location, DIGEST, DATA[before:], **said)
    assert (answer.status, answer.body) == (201, b"")
    assert answer.headers["Location"] == blob_path(DIGEST, NAME)
    assert answer.headers["Docker-Content-Digest"] == DIGEST
    for worker in workers:
        await holds(worker, DATA)
        says(await worker.get(location), 404, "BLOB_UPLOAD_UNKNOWN")
    assert sessions(root) == []


@pytest.mark.parametrize("query", ["", "?digest=", "?digest=sha256:xyz", "?digest=md5:0123456789"])
async def test_a_put_without_a_digest(workers: list[Mirror], query: str) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, SMALL)
    says(await workers[0].ask("PUT", location + query), 400, "DIGEST_INVALID")
    assert await offset(workers[0], location) == len(SMALL), "the session goes on"
    assert (await put(workers[0], location, digest_of(SMALL))).status == 201


async def test_a_put_with_a_wrong_digest_ends_the_session(workers: list[Mirror], root: Path) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, SMALL)
    wrong = digest_of(b"something else")
    answer = await put(workers[1], location, wrong)
    says(answer, 400, "DIGEST_INVALID")
    assert digest_of(SMALL) in answer.body.decode(), "it says what was sent"
    assert (await workers[0].head(blob_path(wrong, NAME))).status == 404
    says(await workers[0].get(location), 404, "BLOB_UPLOAD_UNKNOWN")
    assert sessions(root) == blobs(root) == []


async def test_a_put_repeated_after_its_answer_got_lost(workers: list[Mirror]) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    for worker in (workers[0], workers[1], workers[0]):
        answer = await put(worker, location, DIGEST)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, DIGEST)
    says(await put(workers[1], location, digest_of(b"never sent")), 404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("again", [0, 1])
async def test_a_put_repeated_while_the_first_one_is_between_name_and_row(
    workers: list[Mirror], monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """Its client gave up waiting. There is no session any more, and no blob yet."""
    entered, gate = asyncio.Event(), asyncio.Event()
    real = SqliteMetadata.push_blob

    async def slow(self: SqliteMetadata, *arguments: Any) -> None:
        entered.set()
        await gate.wait()
        await real(self, *arguments)

    monkeypatch.setattr(SqliteMetadata, "push_blob", slow)
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    first = asyncio.create_task(put(workers[0], location, DIGEST))
    await entered.wait()
    assert (await workers[again].get(location)).status == 404
    second = asyncio.create_task(put(workers[again], location, DIGEST))
    await asyncio.wait([second], timeout=0.1)
    assert not second.done(), "it waits"
    gate.set()
    assert [(await one).status for one in (first, second)] == [201, 201]


async def test_a_put_repeated_while_the_first_one_is_at_it(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()
    loop, real = asyncio.get_running_loop(), UploadFile.sync_in_thread

    def slow(self: UploadFile) -> None:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(20)
        real(self)

    monkeypatch.setattr(UploadFile, "sync_in_thread", slow)
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    first = asyncio.create_task(put(workers[0], location, DIGEST))
    await entered.wait()
    second = asyncio.create_task(put(workers[1], location, DIGEST))
    await until(lambda: any(name.endswith(".want") for name in sessions(root)), "it waits")
    gate.set()
    assert [(await one).status for one in (first, second)] == [201, 201]
    await holds(workers[1], DATA)


# ---- whose session it is ----


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
async def test_a_session_of_another_repository_is_unknown(workers: list[Mirror], method: str) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, SMALL)
    session = session_of(location)
    query = f"?digest={digest_of(SMALL)}" if method == "PUT" else ""
    for name in (OTHER, "local/team", "local/team/app/x"):
        for worker in workers:
            answer = await worker.ask(method, uploads_path(name) + session + query)
            assert answer.status == 404
            assert method == "HEAD" or answer.code == "BLOB_UPLOAD_UNKNOWN"
    assert await offset(workers[0], location) == len(SMALL), "it is as it was"
    answer = await workers[1].ask(method, location + query)
    assert answer.status in (201, 202, 204)


@pytest.mark.parametrize(
    "session",
    [
        NOWHERE,
        NOWHERE.upper(),
        NOWHERE + "-sha512",
        NOWHERE + "%00",
        NOWHERE + "%0A",
        "..",
        "%2e%2e",
        "%2e%2e%2f%2e%2e%2fformat",
        "..%2F..%2Fmetadata.db",
        "%2Fetc%2Fpasswd",
        "locks",
        "%FF%FE",
        "x" * 4000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT", "DELETE"])
async def test_sessions_nobody_began(workers: list[Mirror], root: Path, method: str, session: str) -> None:
    before = (root / "format").read_bytes()
    query = f"?digest={digest_of(SMALL)}" if method == "PUT" else ""
    async with connect(workers[0].url) as connection:  # other clients tidy the path up
        answer = await connection.ask(method, uploads_path() + session + query, body=SMALL if method != "GET" else b"")
    assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert (root / "format").read_bytes() == before
    assert sessions(root) == []


@pytest.mark.parametrize("name", ["up/app", "team/app", "UPPER/app", "local/Not/ours", "local//x"])
async def test_names_that_are_not_ours(workers: list[Mirror], root: Path, name: str) -> None:
    for path in (uploads_path(name), f"{uploads_path(name)}?digest={digest_of(SMALL)}"):
        answer = await workers[0].ask("POST", path, data=SMALL)
        assert (answer.status, answer.code) in ((405, "UNSUPPORTED"), (400, "NAME_INVALID")), answer
        assert answer.status == 400 or "local/**" in answer.body.decode(), "it says which names are"
    assert sessions(root) == blobs(root) == []


async def test_read_only_takes_nothing(root: Path) -> None:
    async with workers_on(root, 1, read_only=True) as (worker,):
        says(await worker.ask("POST", uploads_path()), 405, "UNSUPPORTED")
    async with workers_on(root, 1) as (worker,):
        await begin(worker)


# ---- sessions end by themselves ----


async def test_sessions_nobody_sends_to_expire(root: Path) -> None:
    async with workers_on(root, push={"session_expires": 4}) as workers:
        old, new = await begin(workers[0]), await begin(workers[1])
        name = next(name for name in sessions(root) if name.startswith(session_of(old)))
        other = next(name for name in sessions(root) if name.startswith(session_of(new)))
        os.utime(root / "ingest" / "uploads" / other, (time.time() + 30,) * 2)  # however long all this takes
        os.utime(root / "ingest" / "uploads" / name, (time.time() - 5,) * 2)
        await until(lambda: name not in sessions(root), "it expires")
        says(await workers[0].get(old), 404, "BLOB_UPLOAD_UNKNOWN")
        assert (await workers[0].get(new)).status == 204


async def test_a_session_goes_on_after_a_restart(root: Path) -> None:
    async with workers_on(root, 1) as (worker,):
        location = await begin(worker)
        await patch(worker, location, DATA[:1_000_000])
    async with workers_on(root, 1) as (worker,):
        assert await offset(worker, location) == 1_000_000
        await patch(worker, location, DATA[1_000_000:], f"1000000-{len(DATA) - 1}")
        assert (await put(worker, location, DIGEST)).status == 201
        await holds(worker, DATA)


# ---- the hash, between workers ----


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes of sessions were read back to be hashed, read by read."""
    found: list[int] = []
    real = RunningHash.step_in_thread

    def counted(self: RunningHash, fd: int) -> bool:
        before = self.hashed
        more = real(self, fd)
        found.append(self.hashed - before)
        return more

    monkeypatch.setattr(RunningHash, "step_in_thread", counted)
    return found


async def test_a_worker_that_saw_everything_reads_nothing_back(workers: list[Mirror], reads: list[int]) -> None:
    location = await begin(workers[0])
    for start in range(0, len(DATA), 1_000_000):
        await patch(workers[0], location, DATA[start : start + 1_000_000])
    assert (await put(workers[0], location, DIGEST)).status == 201
    assert sum(reads) == 0


async def test_a_worker_that_saw_nothing_reads_everything_once(workers: list[Mirror], reads: list[int]) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    assert (await put(workers[1], location, DIGEST)).status == 201
    assert sum(reads) == len(DATA)


async def test_a_worker_that_takes_over_reads_from_its_first_request_on(
    workers: list[Mirror], reads: list[int]
) -> None:
    """The end must not have to wait for 40 GB to be read: what is there is read while the rest arrives."""
    location, half = await begin(workers[0]), 1_500_000
    await patch(workers[0], location, DATA[:half])
    assert sum(reads) == 0
    async with connect(workers[1].url) as connection:
        connection.send("PATCH", location, Content_Length=str(len(DATA) - half))
        await until(lambda: sum(reads) == half, "it is read before anything arrives")
        connection.writer.write(DATA[half:])
        assert (await answered(connection)).status == 202
    assert (await put(workers[1], location, DIGEST)).status == 201
    assert sum(reads) == half, "and nothing again"


async def test_the_reading_goes_on_after_the_request(workers: list[Mirror], reads: list[int]) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    assert (await patch(workers[1], location, b"")).status == 202
    await until(lambda: sum(reads) == len(DATA), "it is read with no request under way")
    assert (await put(workers[1], location, DIGEST)).status == 201
    assert sum(reads) == len(DATA)


async def test_a_worker_that_missed_a_chunk_reads_only_that(workers: list[Mirror], reads: list[int]) -> None:
    location = await begin(workers[0])
    await patch(workers[0], location, DATA[:MIB])
    await patch(workers[1], location, DATA[MIB : 2 * MIB])
    await until(lambda: sum(reads) >= MIB, "the other one has read the first")
    reads.clear()
    await patch(workers[0], location, DATA[2 * MIB :])
    assert (await put(workers[0], location, DIGEST)).status == 201
    assert MIB <= sum(reads) <= len(DATA) - MIB


async def test_a_hash_in_use_is_not_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]) -> None:
    """A request may take longer than anybody remembers what is not used."""
    sweeps = 0
    real = UploadStore.sweep_in_thread

    def counted(self: UploadStore, *arguments: Any) -> int:
        nonlocal sweeps
        sweeps += 1
        return real(self, *arguments)

    monkeypatch.setattr(UploadStore, "sweep_in_thread", counted)
    monkeypatch.setattr(module, "REMEMBER", 0.7)
    async with workers_on(root, 1, push={"session_expires": 4}) as (worker,):
        location = await begin(worker)
        async with connect(worker.url) as connection:
            connection.send("PATCH", location, Content_Length=str(len(DATA)))
            connection.writer.write(DATA[:MIB])
            await until(lambda: sweeps > 2, "tidied twice meanwhile")
            connection.writer.write(DATA[MIB:])
            assert (await answered(connection)).status == 202
        assert (await put(worker, location, DIGEST)).status == 201
    assert sum(reads) == 0


async def test_a_hash_nobody_uses_is_forgotten(root: Path, monkeypatch: pytest.MonkeyPatch, reads: list[int]) -> None:
    """The twin: memory does not grow with sessions, and what is forgotten is read again."""
    made: list[module.UploadService] = []
    real = module.UploadService.start
    monkeypatch.setattr(module.UploadService, "start", lambda self: (made.append(self), real(self))[1])
    monkeypatch.setattr(module, "REMEMBER", 0.1)
    async with workers_on(root, 1, push={"session_expires": 4}) as (worker,):
        location = await begin(worker)
        await patch(worker, location, DATA)
        assert made[0]._seen
        await until(lambda: not made[0]._seen, "forgotten")
        assert (await put(worker, location, DIGEST)).status == 201
        assert made[0]._seen == {}
    assert sum(reads) == len(DATA)


# ---- an older request of the same session ----


@contextlib.asynccontextmanager
async def hanging(worker: Mirror, location: str, sent: bytes, said: int) -> AsyncIterator[Connection]:
    """Send a part of a chunk and then nothing."""
    async with connect(worker.url) as connection:
        connection.send("PATCH", location, Content_Length=str(said))
        connection.writer.write(sent)
        yield connection


@pytest.mark.parametrize("newer", [0, 1], ids=["same worker", "another worker"])
@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_a_newer_request_takes_over_from_a_client_that_is_gone(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, method: str, newer: int
) -> None:
    monkeypatch.setattr(module, "SILENT", 0.2)  # of the time in which a question waits for it
    location, half = await begin(workers[0]), 1_500_000
    async with hanging(workers[0], location, DATA[:half], len(DATA)) as old:
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        began = time.monotonic()
        if method == "DELETE":
            assert (await workers[newer].ask("DELETE", location)).status == 204
        else:
            assert await offset(workers[newer], location) == half, "everything that arrived is there"
            if method == "PATCH":
                assert (await patch(workers[newer], location, DATA[half:], f"{half}-{len(DATA) - 1}")).status == 202
            rest = b"" if method == "PATCH" else DATA[half:]
            assert (await put(workers[newer], location, DIGEST, rest)).status == 201
            await holds(workers[0], DATA)
        assert time.monotonic() - began < 10, "within seconds, not when the old one times out"
        answer = await answered(old)
        assert answer.status == 409
    assert sessions(root) == []


async def test_a_put_that_hangs_gives_way_too(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT", 0.2)
    location = await begin(workers[0])
    async with connect(workers[0].url) as old:
        old.send("PUT", f"{location}?digest={DIGEST}", Content_Length=str(len(DATA)))
        old.writer.write(DATA[:MIB])
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        assert await offset(workers[1], location) == MIB
        assert (await put(workers[1], location, DIGEST, DATA[MIB:])).status == 201
        assert (await answered(old)).status == 409
    await holds(workers[0], DATA)


@pytest.mark.parametrize("newer", [0, 1], ids=["same worker", "another worker"])
async def test_a_client_that_sends_is_not_thrown_out(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, newer: int
) -> None:
    monkeypatch.setattr(module, "SILENT", 1.2)
    monkeypatch.setattr(module, "TAKE_WITHIN", 1.6)
    location, at, step = await begin(workers[0]), MIB, 10_000
    async with hanging(workers[0], location, DATA[:at], len(DATA)) as old:
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        late = asyncio.create_task(patch(workers[newer], location, b"", None))
        while not late.done():
            old.writer.write(DATA[at : at + step])
            at += step
            await asyncio.sleep(0.05)
        says(late.result(), 409, "BLOB_UPLOAD_INVALID")
        old.writer.write(DATA[at:])
        answer = await answered(old)
        assert (answer.status, answer.headers["range"]) == (202, f"0-{len(DATA) - 1}")
    assert (await put(workers[newer], location, DIGEST)).status == 201


async def test_a_silent_client_nobody_waits_for_may_take_its_time(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where somebody waited who was killed doing so."""
    monkeypatch.setattr(module, "SILENT", 0.05)
    location = await begin(workers[0])
    left = root / "ingest" / "uploads" / f"{session_of(location)}.want"
    async with hanging(workers[0], location, DATA[:MIB], len(DATA)) as old:
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        left.touch()
        os.utime(left, (time.time() - 20,) * 2)
        looked = 0
        real = UploadStore.wanted

        def counted(self: UploadStore, session: str) -> bool:
            nonlocal looked
            looked += 1
            return real(self, session)

        monkeypatch.setattr(UploadStore, "wanted", counted)
        await until(lambda: looked > 3, "it was silent for long")
        old.writer.write(DATA[MIB:])
        assert (await answered(old)).status == 202
    assert (await put(workers[1], location, DIGEST)).status == 201
    assert [name for name in sessions(root) if not name.endswith(".want")] == []


async def test_what_waited_and_was_killed_is_cleared_by_the_next_request(workers: list[Mirror], root: Path) -> None:
    location = await begin(workers[0])
    (root / "ingest" / "uploads" / f"{session_of(location)}.want").touch()
    await patch(workers[0], location, SMALL)
    assert len(sessions(root)) == 1


async def test_a_client_that_is_silent_for_too_long_is_given_up(
    workers: list[Mirror], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENT", 0.05)
    monkeypatch.setattr(module, "RECEIVE_WITHIN", 0.2)
    location = await begin(workers[0])
    async with hanging(workers[0], location, DATA[:1000], len(DATA)) as old:
        assert (await answered(old)).status == 400
    assert await offset(workers[1], location) == 1000, "the session stays"


@pytest.mark.parametrize("method", ["PATCH", "PUT", "DELETE"])
async def test_a_request_after_a_silent_one_needs_no_status(workers: list[Mirror], root: Path, method: str) -> None:
    """Its offset is read after the older one has written what it had, however little that is."""
    location = await begin(workers[0])
    async with hanging(workers[0], location, SMALL[:3], 100) as old:
        await until(lambda: held(root, location), "it is at it")
        match method:
            case "PATCH":
                answer = await patch(workers[1], location, SMALL[3:], f"3-{len(SMALL) - 1}")
                assert (answer.status, answer.headers["Range"]) == (202, f"0-{len(SMALL) - 1}")
                assert (await put(workers[0], location, digest_of(SMALL))).status == 201
            case "PUT":
                assert (await put(workers[1], location, digest_of(SMALL), SMALL[3:])).status == 201
            case _:
                assert (await workers[1].ask("DELETE", location)).status == 204
        assert (await answered(old)).status == 409
    assert sessions(root) == []


async def test_the_status_of_a_session_that_is_sent_to(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits a little, in vain, and stops nobody."""
    monkeypatch.setattr(module, "SILENT", 1.2)
    monkeypatch.setattr(module, "LOOK_WITHIN", 1.6)
    location, at = await begin(workers[0]), MIB
    async with hanging(workers[0], location, DATA[:at], len(DATA)) as old:
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        asked = asyncio.create_task(workers[1].get(location))
        while not asked.done():
            old.writer.write(DATA[at : at + 1000])
            at += 1000
            await asyncio.sleep(0.02)
        assert asked.result().status == 204
        old.writer.write(DATA[at:])
        assert (await answered(old)).status == 202
    assert (await put(workers[1], location, DIGEST)).status == 201


async def test_many_requests_of_one_session_at_once(workers: list[Mirror]) -> None:
    """Each piece is offered to both workers at once: it is taken once, and the other one told where things stand."""
    location, step = await begin(workers[0]), 100_000
    for start in range(0, len(DATA), step):
        said = f"{start}-{start + step - 1}"
        data = DATA[start : start + step]
        answers = await asyncio.gather(*(patch(worker, location, data, said) for worker in workers))
        assert sorted(answer.status for answer in answers) == [202, 416]
        assert {answer.headers["Range"] for answer in answers} == {f"0-{start + step - 1}"}
    answers = await asyncio.gather(*(put(worker, location, DIGEST) for worker in workers * 3))
    assert {answer.status for answer in answers} == {201}
    await holds(workers[1], DATA)


# ---- connections that end ----


async def _closed(connection: Connection) -> None:
    connection.writer.close()


async def _reset(connection: Connection) -> None:
    connection.writer.transport.abort()


async def _half_closed(connection: Connection) -> None:
    connection.writer.write_eof()


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("end", [_closed, _reset, _half_closed], ids=["closed", "reset", "half closed"])
@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST"])
async def test_a_body_that_breaks_off_is_never_taken_for_whole(
    workers: list[Mirror], root: Path, method: str, coding: str, end: Any
) -> None:
    """Even where what arrived is the blob asked for: the client meant to send more."""
    part = DATA[:1_000_000]
    location = await begin(workers[0])
    path = {
        "PATCH": location,
        "PUT": f"{location}?digest={digest_of(part)}",
        "POST": f"{uploads_path()}?digest={digest_of(part)}",
    }[method]
    async with connect(workers[0].url) as connection:
        if coding == "chunked":
            connection.send(method, path, Transfer_Encoding="chunked")
            connection.writer.write(b"%x\r\n" % len(part) + part + b"\r\n")
        else:
            connection.send(method, path, Content_Length=str(len(part) + 1))
            connection.writer.write(part)
        lines = workers[0].lines
        await until(lambda: any(os.stat(path).st_size for path in files_of(root)), "it is at it")
        await connection.writer.drain()
        await end(connection)
        await until(lambda: any(line["method"] == method and line["path"] == path for line in lines), "it is over")
    (line,) = [line for line in lines if line["method"] == method and line["path"] == path]
    assert line["status"] == 400
    assert (await workers[1].head(blob_path(digest_of(part), NAME))).status == 404
    if method == "POST":
        assert len(sessions(root)) == 1, "only the one of this test"
        return
    at = await offset(workers[1], location)
    assert 0 < at <= len(part), "an end may overtake what is on its way"
    assert (await patch(workers[1], location, DATA[at:], f"{at}-{len(DATA) - 1}")).status == 202
    assert (await put(workers[0], location, DIGEST)).status == 201
    await holds(workers[0], DATA)


async def test_garbage_for_a_chunk_is_no_end(workers: list[Mirror]) -> None:
    location = await begin(workers[0])
    async with connect(workers[0].url) as connection:
        connection.send("PUT", f"{location}?digest={digest_of(SMALL)}", Transfer_Encoding="chunked")
        connection.writer.write(b"%x\r\n%b\r\nzz\r\n" % (len(SMALL), SMALL))
        answer = await answered(connection)
    assert answer.status == 400
    assert (await workers[0].head(blob_path(digest_of(SMALL), NAME))).status == 404
    assert (await workers[0].get(location)).status == 204


# ---- limits ----

LIMITS = {"blob": 1000}


@pytest.mark.parametrize("size", [999, 1000])
async def test_the_largest_blob(root: Path, size: int) -> None:
    async with workers_on(root, limits=LIMITS) as workers:
        data = DATA[:size]
        await push(workers[0], data)
        location = await begin(workers[0])
        assert (await patch(workers[0], location, data[:500], "0-499")).status == 202
        assert (await patch(workers[1], location, data[500:], f"500-{size - 1}")).status == 202
        assert (await put(workers[0], location, digest_of(data))).status == 201
        await holds(workers[1], data)


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("how", ["POST", "PATCH", "second PATCH", "PUT"])
async def test_one_byte_too_many(root: Path, how: str, coding: str) -> None:
    async def pieces(data: bytes) -> AsyncIterator[bytes]:
        yield data

    async with workers_on(root, limits=LIMITS) as workers:
        data, location = DATA[:1001], await begin(workers[0])
        if how == "second PATCH":
            await patch(workers[0], location, data[:600])
            data = data[600:]
        path = {"POST": f"{uploads_path()}?digest={digest_of(data)}", "PUT": f"{location}?digest={digest_of(data)}"}
        sent: Any = data if coding == "length" else pieces(data)
        answer = await workers[1].ask(how.rpartition(" ")[2], path.get(how, location), data=sent)
        says(answer, 413, "SIZE_INVALID")
        assert "limits.blob" in answer.body.decode()
        assert blobs(root) == []
        assert max(os.stat(root / "ingest/uploads" / name).st_size for name in sessions(root)) <= 1000
        assert len(sessions(root)) == 1


@pytest.mark.parametrize("header", ["Content-Length", "Content-Range"])
async def test_too_much_is_refused_before_it_is_sent(root: Path, header: str) -> None:
    async with workers_on(root, limits=LIMITS) as workers:
        location = await begin(workers[0])
        said: dict[str, str] = {"Content_Length": "1001"}
        if header == "Content-Range":
            said = {"Content_Range": "0-1000", "Transfer_Encoding": "chunked"}
        async with connect(workers[0].url) as connection:
            connection.send("PATCH", location, **said)
            answer = await answered(connection)
        assert answer.status == 413


# ---- Expect: 100-continue ----


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
async def test_a_body_is_asked_for(workers: list[Mirror], method: str) -> None:
    location = await begin(workers[0])
    path = {
        "POST": f"{uploads_path()}?digest={digest_of(SMALL)}",
        "PATCH": location,
        "PUT": f"{location}?digest={digest_of(SMALL)}",
    }[method]
    async with connect(workers[0].url) as connection:
        connection.send(method, path, Content_Length=str(len(SMALL)), Expect="100-Continue")
        assert (await answered(connection)).status == 100
        connection.writer.write(SMALL)
        assert (await answered(connection)).status == (202 if method == "PATCH" else 201)
        assert (await connection.ask("GET", "/v2/")).status == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("method", "path", "said", "status"),
    [
        ("PATCH", "{location}", {"Content_Range": "5-15"}, 416),
        ("PATCH", "{location}", {"Content_Range": "x"}, 400),
        ("PATCH", "{uploads}" + NOWHERE, {}, 404),
        ("PUT", "{location}", {}, 400),
        ("PUT", "{location}?digest=x", {}, 400),
        ("POST", "{uploads}?digest=x", {}, 400),
        ("POST", "/v2/not/ours/blobs/uploads/?digest=" + digest_of(SMALL), {}, 405),
    ],
)
async def test_a_body_that_is_refused_is_not_asked_for(
    workers: list[Mirror],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    said: dict[str, str],
    status: int,
) -> None:
    """And the client is told that the connection ends, now: what it sends next might be the body, or might not."""
    linger(monkeypatch, 60)
    location = await begin(workers[0])
    target = path.format(location=location, uploads=uploads_path())
    async with connect(workers[0].url) as connection:
        answer = await connection.ask(method, target, Content_Length=str(len(SMALL)), Expect="100-continue", **said)
        assert answer.status == status
        assert answer.headers.get("connection") == "close"
        assert await connection.end() == (b"", "fin")


# ---- the disk ----


def full_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the disk have room for that many bytes of sessions."""
    left = count

    def limited(fd: int, chunks: Sequence[bytes], offset: int) -> int:
        nonlocal left
        data = b"".join(chunks)
        write_all(fd, [data[:left]], offset)
        if len(data) > left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left -= len(data)
        return offset + len(data)

    monkeypatch.setattr(files, "write_all", limited)


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_full_disk_keeps_what_fits(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    location = await begin(workers[0])
    with monkeypatch.context() as limited:
        full_after(limited, 1_300_000)
        if method == "PATCH":
            answer = await patch(workers[0], location, DATA)
        else:
            answer = await put(workers[0], location, DIGEST, DATA)
        says(answer, 507, "UNAVAILABLE")
        assert "disk is full" in answer.body.decode()
    at = await offset(workers[1], location)
    assert 0 < at <= 1_300_000
    (name,) = sessions(root)
    assert (root / "ingest/uploads" / name).read_bytes() == DATA[:at]
    for finisher, begun in ((0, at), (1, at + 10)):
        await patch(workers[finisher], location, DATA[begun : begun + 10], f"{begun}-{begun + 9}")
    assert (await put(workers[0], location, DIGEST, DATA[at + 20 :])).status == 201
    await holds(workers[1], DATA)


async def test_a_full_disk_leaves_nothing_of_a_whole_blob(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as limited:
        full_after(limited, 1_300_000)
        answer = await workers[0].ask("POST", f"{uploads_path()}?digest={DIGEST}", data=body(DATA))
        says(answer, 507, "UNAVAILABLE")
    assert sessions(root) == blobs(root) == []
    await push(workers[0], DATA)


async def test_a_session_for_which_there_is_no_room(workers: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if "/ingest/uploads/" in str(path) and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *more, **named)

    with monkeypatch.context() as limited:
        limited.setattr(files.os, "open", full)
        says(await workers[0].ask("POST", uploads_path()), 507, "UNAVAILABLE")
    await begin(workers[0])


@pytest.mark.parametrize("there", [False, True], ids=["new", "there already"])
async def test_no_room_for_the_row(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The blob is not one of the repository; the session is there, and the same PUT works when there is space."""
    if there:
        await push(workers[0], DATA, OTHER)
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)

    async def full(self: SqliteMetadata, *arguments: Any) -> None:
        raise StorageFull("the disk is full: free some space under storage.root")

    with monkeypatch.context() as limited:
        limited.setattr(SqliteMetadata, "push_blob", full)
        says(await put(workers[0], location, DIGEST), 507, "UNAVAILABLE")
    assert (await workers[1].head(blob_path(DIGEST, NAME))).status == 404
    assert blobs(root) == ([DIGEST[7:]] if there else []), "nothing without a row"
    assert await offset(workers[1], location) == len(DATA)
    assert (await put(workers[1], location, DIGEST)).status == 201
    assert sessions(root) == []
    await holds(workers[0], DATA)


async def test_metadata_that_fail_leave_a_right_file(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a row is there nobody knows then: a file without one does no harm, a row without one does."""

    async def broken(self: SqliteMetadata, *arguments: Any) -> None:
        raise StorageFailed("the metadata failed")

    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteMetadata, "push_blob", broken)
        says(await put(workers[0], location, DIGEST), 500, "UNAVAILABLE")
    assert (root / "blobs" / "sha256" / DIGEST[7:]).read_bytes() == DATA
    assert (await workers[0].head(blob_path(DIGEST, NAME))).status == 404
    await push(workers[1], DATA)
    await holds(workers[0], DATA)


@pytest.mark.parametrize("when", ["at the end", "on the way"])
async def test_a_failed_sync_ends_the_session(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What was written may be lost, and the system says so once only: the next sync would succeed."""
    location, failed = await begin(workers[0]), 0
    real = os.fsync

    def fails_once(fd: int) -> None:
        nonlocal failed
        if not failed and "/uploads/" in os.readlink(f"/proc/self/fd/{fd}"):
            failed += 1
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    if when == "on the way":
        monkeypatch.setattr(module, "SYNC_EVERY", MIB)
    monkeypatch.setattr(files.os, "fsync", fails_once)
    answer = await put(workers[0], location, DIGEST, DATA)
    says(answer, 500, "UNAVAILABLE")
    assert failed == 1
    for worker in workers:
        says(await put(worker, location, DIGEST), 404, "BLOB_UPLOAD_UNKNOWN")
    assert sessions(root) == blobs(root) == []
    await push(workers[0], DATA)


async def test_a_failed_sync_of_a_chunk_ends_the_session(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: UploadFile) -> None:
        while self.size < len(DATA):  # the last piece is being written meanwhile
            time.sleep(0.002)
        self.lost = True
        raise StorageFailed("the disk failed")

    location = await begin(workers[0])
    monkeypatch.setattr(module, "SYNC_EVERY", MIB)
    with monkeypatch.context() as patched:
        patched.setattr(UploadFile, "sync_in_thread", fails)
        says(await patch(workers[0], location, DATA), 500, "UNAVAILABLE")
    says(await put(workers[0], location, DIGEST), 404, "BLOB_UPLOAD_UNKNOWN")
    assert sessions(root) == []


async def test_large_chunks_are_synced_on_their_way(workers: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    """The last sync must not have everything to do."""
    synced: list[int] = []
    real = UploadFile.sync_in_thread

    def noted(self: UploadFile) -> None:
        synced.append(self.size)
        real(self)

    monkeypatch.setattr(UploadFile, "sync_in_thread", noted)
    monkeypatch.setattr(module, "SYNC_EVERY", MIB)
    location = await begin(workers[0])
    await patch(workers[0], location, DATA)
    assert synced
    assert all(size >= MIB for size in synced)


async def test_what_could_not_be_written_is_not_in_any_hash(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece that did not fit was half there for a moment, in which the other worker was reading."""
    location = await begin(workers[0])
    await patch(workers[0], location, DATA[:MIB])
    (name,) = sessions(root)
    path = root / "ingest" / "uploads" / name
    looked, go_on = asyncio.Event(), asyncio.Event()
    loop, real = asyncio.get_running_loop(), RunningHash.step_in_thread

    def slow(self: RunningHash, fd: int) -> bool:
        loop.call_soon_threadsafe(looked.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(20)
        return real(self, fd)

    monkeypatch.setattr(RunningHash, "step_in_thread", slow)
    await patch(workers[1], location, b"")  # it begins to read
    await looked.wait()
    with path.open("ab") as file:
        file.write(b"half of something")  # as a worker does whose disk is about to be full
    go_on.set()
    made = [task for task in asyncio.all_tasks() if task.get_name() == "upload hash"]
    if made:
        await asyncio.wait(made)
    os.truncate(path, MIB)
    await patch(workers[1], location, DATA[MIB:])
    assert (await put(workers[1], location, DIGEST)).status == 201


# ---- mounts ----


@contextlib.asynccontextmanager
async def pulled(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[list[Mirror], FakeUpstream, str]]:
    """Run workers in front of an upstream with credentials, one blob of which was pulled through ``up/team/app``."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    async with FakeUpstream(auth="token", users={"us": "secret"}, anonymous=False) as hub, FakeUpstream() as public:
        image = hub.add_image("team/app", "v1", (100_000,))
        credentials = Credentials(username="us", password_file=password)
        ups = {"up": {"url": hub.url, "credentials": credentials}, "pub": {"url": public.url}}
        config = make_config(tmp_path / "root", ups, **settings)
        async with mirrors(config, 2) as workers:
            await get_image(workers[0], image, "up/team/app")
            (layer,) = image.layers
            await kept(tmp_path / "root", layer)
            yield workers, hub, layer


async def mount(worker: Mirror, digest: str, source: str | None, name: str = NAME) -> Answer:
    query = f"?mount={digest}" + (f"&from={source}" if source is not None else "")
    return await worker.ask("POST", uploads_path(name) + query)


def is_session(answer: Answer) -> None:
    assert answer.status == 202, answer
    assert answer.headers["Range"] == "0-0"
    assert "/blobs/uploads/" in answer.headers["Location"]


def is_mounted(answer: Answer, digest: str, name: str = NAME) -> None:
    assert (answer.status, answer.body) == (201, b""), answer
    assert answer.headers["Location"] == blob_path(digest, name)
    assert answer.headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_a_mount_from_a_repository_that_has_it(workers: list[Mirror], root: Path, algorithm: str) -> None:
    digest = await push(workers[0], DATA, OTHER, algorithm)
    is_mounted(await mount(workers[1], digest, OTHER), digest)
    assert sessions(root) == []
    await holds(workers[0], DATA, algorithm=algorithm)
    assert (await workers[0].ask("DELETE", blob_path(digest, OTHER))).status == 202
    await holds(workers[1], DATA, algorithm=algorithm)


@pytest.mark.parametrize("source", ["local/none", "local/team", "up/other", "no such name", "UPPER", "", "../x", "|"])
async def test_a_mount_from_anywhere_else_is_a_session(workers: list[Mirror], source: str) -> None:
    digest = await push(workers[0], DATA, OTHER)
    answer = await mount(workers[1], digest, source.replace(" ", "%20"))
    is_session(answer)
    assert (await workers[0].head(blob_path(digest, NAME))).status == 404
    location = answer.headers["Location"]
    await patch(workers[0], location, DATA)
    assert (await put(workers[0], location, digest)).status == 201, "which works"


async def test_a_mount_of_what_is_there_already(workers: list[Mirror]) -> None:
    digest = await push(workers[0], DATA)
    for source in (OTHER, NAME, None, "up/none"):
        is_mounted(await mount(workers[1], digest, source), digest)


async def test_a_mount_without_a_source_finds_what_was_pushed(workers: list[Mirror]) -> None:
    is_session(await mount(workers[1], DIGEST, None))
    await push(workers[0], DATA, OTHER)
    is_mounted(await mount(workers[1], DIGEST, None), DIGEST)
    await holds(workers[0], DATA)


async def test_a_mount_never_finds_what_was_deleted(workers: list[Mirror], root: Path) -> None:
    await push(workers[0], DATA, OTHER)
    assert (await workers[0].ask("DELETE", blob_path(DIGEST, OTHER))).status == 202
    assert blobs(root) == []
    for source in (OTHER, None):
        is_session(await mount(workers[1], DIGEST, source))


async def test_a_mount_never_finds_manifests(workers: list[Mirror]) -> None:
    raw = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
    headers = {"Content-Type": "application/vnd.oci.image.index.v1+json"}
    answer = await workers[0].ask("PUT", f"/v2/{OTHER}/manifests/v1", data=raw, headers=headers)
    assert answer.status == 201
    for source in (OTHER, None):
        is_session(await mount(workers[1], digest_of(raw), source))


async def test_a_session_of_a_mount_expects_its_algorithm(workers: list[Mirror], reads: list[int]) -> None:
    location = (await mount(workers[0], digest_of(DATA, "sha512"), OTHER)).headers["Location"]
    await patch(workers[0], location, DATA)
    assert (await put(workers[0], location, digest_of(DATA, "sha512"))).status == 201
    assert sum(reads) == 0


async def test_a_mount_of_no_digest(workers: list[Mirror], root: Path) -> None:
    says(await mount(workers[0], "sha256:x", OTHER), 400, "DIGEST_INVALID")
    assert sessions(root) == []


async def test_what_was_pulled_through_is_mounted_as_a_second_name(tmp_path: Path) -> None:
    async with pulled(tmp_path) as (workers, hub, digest):
        root = tmp_path / "root"
        hub.clear_log()
        is_mounted(await mount(workers[1], digest, "up/team/app"), digest)
        assert os.path.samefile(root / "cache/sha256" / digest[7:], root / "blobs/sha256" / digest[7:])
        assert sessions(root) == []
        assert (await workers[0].ask("DELETE", blob_path(digest, "up/team/app"))).status == 202
        assert digest[7:] not in cached(root)
        answer = await workers[0].get(blob_path(digest, NAME))
        assert (answer.status, digest_of(answer.body)) == (200, digest), "purging the one does not take the other"
        assert hub.log == [], "nobody was asked"


@pytest.mark.parametrize("source", [None, "", "up/team/other", "pub/team/app", "local/team/app", "team/app"])
async def test_what_was_pulled_through_is_not_given_to_who_may_not_read_it_there(
    tmp_path: Path, source: str | None
) -> None:
    async with pulled(tmp_path, default_upstream="pub") as (workers, _, digest):
        is_session(await mount(workers[1], digest, source))
        assert (await workers[1].head(blob_path(digest, NAME))).status == 404
        assert blobs(tmp_path / "root") == []
        is_mounted(await mount(workers[1], digest, "up/team/app"), digest)


async def test_a_mount_whose_file_is_gone_is_a_session(tmp_path: Path) -> None:
    async with pulled(tmp_path) as (workers, _, digest):
        (tmp_path / "root/cache/sha256" / digest[7:]).unlink()
        is_session(await mount(workers[1], digest, "up/team/app"))
        assert (await workers[1].head(blob_path(digest, NAME))).status == 404


async def test_a_mount_without_room_for_its_row_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(self: SqliteMetadata, *arguments: Any) -> None:
        raise StorageFull("the disk is full: free some space under storage.root")

    async with pulled(tmp_path) as (workers, _, digest):
        with monkeypatch.context() as limited:
            limited.setattr(SqliteMetadata, "push_blob", full)
            says(await mount(workers[0], digest, "up/team/app"), 507, "UNAVAILABLE")
        assert blobs(tmp_path / "root") == []
        assert digest[7:] in cached(tmp_path / "root")


@pytest.mark.parametrize("source", [OTHER, None])
async def test_a_delete_during_a_mount_comes_after_it(
    workers: list[Mirror], monkeypatch: pytest.MonkeyPatch, source: str | None
) -> None:
    await push(workers[0], DATA, OTHER)
    entered, gate = asyncio.Event(), asyncio.Event()
    real = DiskBlobStore.pin

    async def slow(self: DiskBlobStore, digest: Any) -> bool:
        entered.set()
        await gate.wait()
        return await real(self, digest)

    monkeypatch.setattr(DiskBlobStore, "pin", slow)
    mounting = asyncio.create_task(mount(workers[0], DIGEST, source))
    await entered.wait()
    deleting = asyncio.create_task(workers[1].ask("DELETE", blob_path(DIGEST, OTHER)))
    await asyncio.wait([deleting], timeout=0.2)
    assert not deleting.done()
    gate.set()
    is_mounted(await mounting, DIGEST)
    assert (await deleting).status == 202
    assert (await workers[0].head(blob_path(DIGEST, OTHER))).status == 404
    await holds(workers[1], DATA)


@pytest.mark.parametrize("racer", ["mount", "push"])
async def test_what_comes_during_a_delete_comes_after_it(
    workers: list[Mirror], root: Path, monkeypatch: pytest.MonkeyPatch, racer: str
) -> None:
    """The row is gone and the file is about to be: a push must not rely on it, a mount finds nothing."""
    await push(workers[0], DATA, OTHER)
    entered, gate = asyncio.Event(), asyncio.Event()
    real = DiskBlobStore.unkeep

    async def slow(self: DiskBlobStore, digest: Any) -> None:
        entered.set()
        await gate.wait()
        await real(self, digest)

    monkeypatch.setattr(DiskBlobStore, "unkeep", slow)
    deleting = asyncio.create_task(workers[1].ask("DELETE", blob_path(DIGEST, OTHER)))
    await entered.wait()
    racing: asyncio.Task[Any]
    if racer == "mount":
        racing = asyncio.create_task(mount(workers[0], DIGEST, OTHER))
    else:
        racing = asyncio.create_task(push(workers[0], DATA))
    await asyncio.wait([racing], timeout=0.2)
    assert not racing.done()
    gate.set()
    assert (await deleting).status == 202
    if racer == "mount":
        is_session(await racing)
        assert blobs(root) == []
    else:
        assert await racing == DIGEST
        await holds(workers[1], DATA)


async def test_pushes_mounts_and_deletes_of_one_digest(workers: list[Mirror], root: Path) -> None:
    """In any order: what is acknowledged last is true, and the file is there exactly when a repository has it."""
    names = [f"local/r{number}" for number in range(4)]
    for turn in range(12):
        first, second, third, fourth = names[turn % 4 :] + names[: turn % 4]
        await push(workers[turn % 2], SMALL, first)
        answers = await asyncio.gather(
            workers[0].ask("DELETE", blob_path(digest_of(SMALL), first)),
            push(workers[1], SMALL, second),
            mount(workers[1], digest_of(SMALL), first, third),
            mount(workers[0], digest_of(SMALL), None, fourth),
        )
        assert answers[0].status == 202
        expected = {first: False, second: True, third: answers[2].status == 201, fourth: answers[3].status == 201}
        for name, there in expected.items():
            for worker in workers:
                answer = await worker.get(blob_path(digest_of(SMALL), name))
                assert (answer.status, answer.body == SMALL) == ((200, True) if there else (404, False)), (turn, name)
        for name, there in expected.items():
            if there:
                assert (await workers[0].ask("DELETE", blob_path(digest_of(SMALL), name))).status == 202
        assert blobs(root) == []
