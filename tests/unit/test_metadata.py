"""The contract of the metadata, as the SQLite implementation keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirror.metadata import database as database_module
from mirror.metadata.schema import VERSION
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.names import Tag, digest_of
from tests.metadata import ELSEWHERE, HERE, ID, LOCAL, TAG, THERE, Open, some_digest, some_manifest, some_tag

# ---- tags ----


async def test_a_tag_reads_back_as_it_was_written(open_metadata: Open) -> None:
    metadata = await open_metadata()
    assert metadata.tag(HERE, TAG) is None
    for record in (
        some_tag(),
        some_tag(retry_at=7.25, trouble='{"long": "' + "ü" * 5000 + '"}', previous=some_digest(2)),
        some_tag(digest=digest_of(b"x", "sha512"), origin="pushed", media_type="", size=0),
    ):
        await metadata.put_tag(record)
        assert metadata.tag(HERE, TAG) == record
    assert metadata.tag(THERE, TAG) is None
    assert metadata.tag(HERE, Tag("v2")) is None
    assert metadata.tag(LOCAL, TAG) is None


async def test_trouble_is_noted_whole_and_beside_the_rest(open_metadata: Open) -> None:
    metadata = await open_metadata()
    await metadata.put_tag(some_tag())
    trouble = json.dumps({"kind": "UpstreamFailed", "message": "m" * 900})
    await metadata.note_trouble(HERE, TAG, retry_at=1234.5, trouble=trouble)
    assert metadata.tag(HERE, TAG) == some_tag(retry_at=1234.5, trouble=trouble)
    await metadata.note_trouble(THERE, TAG, retry_at=1.0, trouble="{}")  # of no tag: nothing happens
    assert metadata.tag(THERE, TAG) is None


async def test_a_forgotten_tag_is_gone_and_its_content_may_still_be_read(open_metadata: Open) -> None:
    metadata = await open_metadata()
    await metadata.put_tag(some_tag())
    await metadata.put_tag(some_tag(tag=Tag("v2")))
    await metadata.grant(HERE, some_digest(), public=False)
    await metadata.forget_tag(HERE, TAG)
    await metadata.forget_tag(HERE, TAG)
    assert metadata.tag(HERE, TAG) is None
    assert metadata.tag(HERE, Tag("v2")) is not None
    assert metadata.may_read(HERE, some_digest())


# ---- rights ----


async def test_a_right_is_a_repository_s_own(open_metadata: Open) -> None:
    metadata = await open_metadata()
    digest = some_digest()
    assert not metadata.may_read(HERE, digest)
    await metadata.grant(HERE, digest, public=False)
    await metadata.grant(HERE, digest, public=False)
    assert metadata.may_read(HERE, digest)
    for other in (THERE, ELSEWHERE, LOCAL):
        assert not metadata.may_read(other, digest)
    assert not metadata.may_read(HERE, some_digest(2))


async def test_what_is_public_is_for_every_upstream_s_repository_and_no_local_one(open_metadata: Open) -> None:
    metadata = await open_metadata()
    digest = some_digest()
    await metadata.grant(HERE, digest, public=True)
    for other in (HERE, THERE, ELSEWHERE):
        assert metadata.may_read(other, digest)
    assert not metadata.may_read(LOCAL, digest)
    await metadata.grant(LOCAL, digest, public=False)
    assert metadata.may_read(LOCAL, digest)
    await metadata.grant(THERE, digest, public=False)  # does not take it back
    assert metadata.may_read(ELSEWHERE, digest)


async def test_a_tag_gives_no_right(open_metadata: Open) -> None:
    """It is no more than what an upstream says, and the digest may be that of somebody's private blob."""
    metadata = await open_metadata()
    await metadata.put_tag(some_tag())
    assert not metadata.may_read(HERE, some_digest())
    await metadata.grant(HERE, some_digest(), public=False)
    assert metadata.may_read(HERE, some_digest())


@pytest.mark.parametrize("public", [False, True])
async def test_a_manifest(open_metadata: Open, public: bool) -> None:
    metadata = await open_metadata()
    manifest = some_manifest((some_digest(1), 10), (some_digest(2), 2**63 - 1))
    digest = manifest.descriptor.digest
    assert metadata.media_type(digest) is None
    for _ in range(2):
        await metadata.put_manifest(HERE, manifest, public=public)
        assert metadata.media_type(digest) == manifest.descriptor.media_type
        assert metadata.may_read(HERE, digest)
        assert metadata.may_read(THERE, digest) is public
        assert metadata.expected_size(HERE, some_digest(1)) == 10
        assert metadata.expected_size(HERE, some_digest(2)) == 2**63 - 1
    assert metadata.expected_size(THERE, some_digest(1)) is None
    assert metadata.media_type(some_digest(1)) is None
    # A manifest's list alone proves nothing.
    assert not metadata.may_read(HERE, some_digest(1))


# ---- several processes ----


async def test_what_one_has_committed_all_others_see_at_once(open_metadata: Open) -> None:
    one, other = await open_metadata(), await open_metadata()
    for n in range(50):
        writer, reader = (one, other) if n % 2 else (other, one)
        assert reader.tag(HERE, TAG) != some_tag(size=n)
        await writer.put_tag(some_tag(size=n))
        assert reader.tag(HERE, TAG) == some_tag(size=n)
        await writer.grant(THERE, some_digest(n), public=False)
        assert reader.may_read(THERE, some_digest(n))
        await writer.forget_tag(HERE, TAG)
        assert reader.tag(HERE, TAG) is None
        manifest = some_manifest((some_digest(n), n))
        await writer.put_manifest(HERE, manifest, public=False)
        assert reader.media_type(manifest.descriptor.digest) is not None


async def test_what_was_acknowledged_is_there_after_a_restart(open_metadata: Open) -> None:
    first = await open_metadata()
    await first.put_tag(some_tag())
    await first.close()
    second = await open_metadata()
    assert second.tag(HERE, TAG) == some_tag()


START = """
import asyncio, sys
from pathlib import Path
from mirror.metadata.sqlite import SqliteMetadata
from mirror.oci.names import Repository, RepositoryName, digest_of

async def main(path, me):
    print("ready", flush=True)
    sys.stdin.readline()
    metadata = SqliteMetadata(Path(path), "one-root")
    await metadata.start()
    repository = Repository("up", RepositoryName("team/app"))
    for n in range(20):
        await metadata.grant(repository, digest_of(f"{me} {n}".encode()), public=False)
    await metadata.close()
    print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_four_processes_may_start_on_a_new_database_at_once(tmp_path: Path) -> None:
    for attempt in range(3):
        path = tmp_path / f"{attempt}.db"
        command = [sys.executable, "-W", "error", "-c", START, str(path)]
        running = [
            subprocess.Popen(
                [*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for n in range(4)
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            out, error = process.communicate(timeout=60)
            assert (process.returncode, out, error) == (0, "done\n", "")
        database = sqlite3.connect(path)
        assert database.execute("SELECT count(*) FROM link").fetchone() == (80,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()


def test_those_who_switch_a_new_database_to_wal_at_once_do_not_fail(tmp_path: Path) -> None:
    """SQLite refuses some of them without waiting: about every eighth time that eight do."""
    for attempt in range(40):
        together = threading.Barrier(8)

        def switch(path: Path = tmp_path / f"{attempt}.db", together: threading.Barrier = together) -> None:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
                together.wait(30)
                database_module._enable_wal(connection)
                assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)

        with ThreadPoolExecutor(8) as threads:
            for switched in [threads.submit(switch) for _ in range(8)]:
                switched.result(60)


# ---- what it is refused for ----


async def test_the_database_of_another_root_is_refused(open_metadata: Open) -> None:
    await (await open_metadata()).put_tag(some_tag())
    with pytest.raises(StorageFailed) as caught:
        await open_metadata("another-id")
    assert ID in caught.value.message
    assert "another-id" in caught.value.message
    assert (await open_metadata()).tag(HERE, TAG) == some_tag()  # nothing of it was changed


async def test_the_database_of_a_newer_version_is_refused_and_left_alone(open_metadata: Open, tmp_path: Path) -> None:
    await (await open_metadata()).close()
    database = sqlite3.connect(tmp_path / "metadata.db")
    database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    with pytest.raises(StorageFailed) as caught:
        await open_metadata()
    assert "newer version" in caught.value.message
    database = sqlite3.connect(tmp_path / "metadata.db")
    assert database.execute("PRAGMA user_version").fetchone() == (VERSION + 1,)
    database.execute(f"PRAGMA user_version = {VERSION}")
    database.close()
    await open_metadata()


async def test_what_is_no_database_is_refused(open_metadata: Open, tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StorageFailed):
        await open_metadata()


async def test_only_its_owner_may_read_it(open_metadata: Open, tmp_path: Path) -> None:
    await (await open_metadata()).put_tag(some_tag())
    for path in tmp_path.glob("metadata.db*"):
        assert path.stat().st_mode & 0o077 == 0, path


# ---- group commit ----


class Commits:
    """Counts the transactions of an instance."""

    def __init__(self, metadata: SqliteMetadata, patch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        real = metadata._database._commit

        def commit(writes: list[Any]) -> Any:
            self.sizes.append(len(writes))
            return real(writes)

        patch.setattr(metadata._database, "_commit", commit)


async def test_what_is_asked_while_a_transaction_runs_goes_into_the_next_one_together(
    open_metadata: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = await open_metadata()
    commits = Commits(metadata, monkeypatch)
    await asyncio.gather(*(metadata.grant(HERE, some_digest(n), public=False) for n in range(200)))
    assert sum(commits.sizes) == 200
    assert len(commits.sizes) <= 3
    assert all(metadata.may_read(HERE, some_digest(n)) for n in range(200))
    await metadata.grant(HERE, some_digest(777), public=False)
    assert commits.sizes[-1] == 1


async def test_writes_of_one_tag_keep_their_order(open_metadata: Open) -> None:
    metadata = await open_metadata()
    await asyncio.gather(*(metadata.put_tag(some_tag(size=n)) for n in range(100)))
    assert metadata.tag(HERE, TAG) == some_tag(size=99)


async def test_a_write_nobody_waits_for_any_more_disturbs_no_other(open_metadata: Open) -> None:
    metadata = await open_metadata()
    writes = [asyncio.create_task(metadata.grant(HERE, some_digest(n), public=False)) for n in range(10)]
    await asyncio.sleep(0)
    writes[3].cancel()
    async with asyncio.timeout(20):
        done = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for n, result in enumerate(done) if n != 3] == [type(None)] * 9
    assert all(metadata.may_read(HERE, some_digest(n)) for n in range(10) if n != 3)


async def test_a_write_that_cannot_be_done_fails_alone(open_metadata: Open) -> None:
    metadata = await open_metadata()
    bad = some_tag(repository=THERE, size=2**70)
    results = await asyncio.gather(
        metadata.grant(HERE, some_digest(1), public=False),
        metadata.put_tag(bad),
        metadata.grant(HERE, some_digest(2), public=False),
        return_exceptions=True,
    )
    assert results[0] is None
    assert results[2] is None
    assert isinstance(results[1], OverflowError)
    assert metadata.tag(THERE, TAG) is None
    assert metadata.may_read(HERE, some_digest(1))
    assert metadata.may_read(HERE, some_digest(2))


# ---- a disk that fails ----


async def test_a_full_disk(open_metadata: Open) -> None:
    metadata = await open_metadata()
    await metadata.put_tag(some_tag())
    loop = asyncio.get_running_loop()

    def limit(pages: int) -> None:
        metadata._database._writer.execute(f"PRAGMA max_page_count = {pages}")

    await loop.run_in_executor(metadata._database._writing, limit, 1)  # as many as there are already

    async def fill() -> None:
        for n in range(1000):
            children = [(some_digest(1000 * n + k), 1) for k in range(50)]
            await metadata.put_manifest(HERE, some_manifest(*children), public=False)

    with pytest.raises(StorageFull) as caught:
        await fill()
    assert caught.value.status == 507
    assert "full" in caught.value.message
    assert metadata.tag(HERE, TAG) == some_tag()  # reading goes on
    await loop.run_in_executor(metadata._database._writing, limit, 10**6)
    await metadata.put_tag(some_tag(size=2))  # and so does writing, when there is room again
    assert metadata.tag(HERE, TAG) == some_tag(size=2)


async def test_a_database_locked_by_something_else_is_a_storage_failure(
    open_metadata: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = await open_metadata()
    await metadata.put_tag(some_tag())

    def hurry() -> None:
        metadata._database._writer.execute("PRAGMA busy_timeout = 20")

    await asyncio.get_running_loop().run_in_executor(metadata._database._writing, hurry)
    other = sqlite3.connect(tmp_path / "metadata.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StorageFailed) as caught:
            await metadata.put_tag(some_tag(size=2))
        assert not isinstance(caught.value, StorageFull)
        assert caught.value.status == 500
        assert metadata.tag(HERE, TAG) == some_tag()  # a reader waits for no writer
    finally:
        other.execute("ROLLBACK")
        other.close()
    await metadata.put_tag(some_tag(size=2))
    assert metadata.tag(HERE, TAG) == some_tag(size=2)


async def test_a_damaged_database_is_a_storage_failure(open_metadata: Open, tmp_path: Path) -> None:
    metadata = await open_metadata()
    for n in range(500):
        await metadata.grant(HERE, some_digest(n), public=True)
    await metadata.close()
    path = tmp_path / "metadata.db"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(os.sysconf("SC_PAGE_SIZE"))
        file.write(b"\xff" * (size - file.tell()))

    async def read() -> None:
        again = await open_metadata()
        for n in range(500):
            again.may_read(HERE, some_digest(n))

    with pytest.raises(StorageFailed):
        await read()


async def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    metadata = SqliteMetadata(tmp_path / "missing" / "metadata.db", ID)
    with pytest.raises(StorageFailed):
        await metadata.start()
    await metadata.close()
