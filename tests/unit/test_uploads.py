"""Push sessions as files: their hash, their end on a full or failing disk, who may find them, when they go."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.names import Repository, RepositoryName, digest_of
from mirror.store import uploads as module
from mirror.store.files import write_all
from mirror.store.lease import FileLeases
from mirror.store.root import Root, open_root
from mirror.store.uploads import RunningHash, UploadFile, UploadStore, algorithm_of, lease_key

HERE = Repository(None, RepositoryName("local/app"))
DATA = bytes(range(256)) * 40
DIGEST = digest_of(DATA)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return open_root(tmp_path / "root")


@pytest.fixture
def store(root: Root) -> UploadStore:
    return UploadStore(root)


@pytest.fixture
def leases(root: Root) -> FileLeases:
    return FileLeases(root.locks, root.secret)


def sessions(root: Root) -> list[str]:
    return sorted(os.listdir(root.path / "ingest" / "uploads"))


def opened(store: UploadStore, session: str) -> UploadFile:
    upload = store.open(HERE, session)
    assert upload is not None
    return upload


def filled(store: UploadStore, data: bytes = DATA) -> UploadFile:
    upload = opened(store, store.create(HERE, "sha256"))
    upload.append_in_thread([data])
    return upload


def age(path: str, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# ---- the running hash ----


def hashed(running: RunningHash, fd: int) -> int:
    """Hash all there is. Returns how many steps had something."""
    steps = 0
    while running.step_in_thread(fd):
        steps += 1
    return steps


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_hash_of_what_arrives_and_one_of_what_is_there_are_the_same(store: UploadStore, algorithm: str) -> None:
    arriving, later = RunningHash(algorithm), RunningHash(algorithm)
    upload = opened(store, store.create(HERE, algorithm))
    for start in range(0, len(DATA), 1000):
        offset = upload.size
        upload.append_in_thread([DATA[start : start + 600], DATA[start + 600 : start + 1000]])
        arriving.add_in_thread([DATA[start : start + 600], DATA[start + 600 : start + 1000]], offset)
    later.known = upload.size
    hashed(later, upload.fd)
    upload.close()
    assert arriving.digest() == later.digest() == digest_of(DATA, algorithm)
    assert arriving.hashed == later.hashed == len(DATA)


def test_what_arrives_after_something_unseen_is_not_hashed_before_it(store: UploadStore) -> None:
    upload = filled(store)
    running = RunningHash("sha256")
    running.add_in_thread([DATA[100:]], 100)
    assert running.hashed == 0
    hashed(running, upload.fd)
    upload.close()
    assert running.digest() == DIGEST


def test_nothing_is_hashed_that_may_be_cut_off_again(store: UploadStore) -> None:
    """Another worker is writing a piece that will not fit the disk: what follows it will be other bytes."""
    running = RunningHash("sha256")
    upload = filled(store, DATA[:5000])
    running.known = 5000
    os.pwrite(upload.fd, b"half of a piece", 5000)
    hashed(running, upload.fd)
    assert running.hashed == 5000
    os.ftruncate(upload.fd, 5000)
    upload.append_in_thread([DATA[5000:]])
    running.known = upload.size
    hashed(running, upload.fd)
    upload.close()
    assert running.digest() == DIGEST


def test_a_file_is_hashed_in_steps(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HASH_STEP", 1024)
    upload, running = filled(store), RunningHash("sha256")
    running.known = len(DATA)
    assert hashed(running, upload.fd) == len(DATA) // 1024
    assert hashed(running, upload.fd) == 0
    upload.close()
    assert running.digest() == DIGEST


def test_what_cannot_be_read_is_the_disks_failure(store: UploadStore) -> None:
    upload, running = filled(store), RunningHash("sha256")
    upload.close()
    running.known = 5
    with pytest.raises(StorageFailed):
        running.step_in_thread(upload.fd)


# ---- a session's file ----


@pytest.mark.parametrize(
    ("number", "meaning"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, StorageFailed)]
)
def test_a_piece_is_written_whole_or_not_at_all(
    store: UploadStore, monkeypatch: pytest.MonkeyPatch, number: int, meaning: type[Exception]
) -> None:
    upload = filled(store, b"before")

    def fails(fd: int, chunks: Sequence[bytes], offset: int) -> int:
        write_all(fd, [b"ab"], offset)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_all", fails)
        with pytest.raises(meaning) as error:
            upload.append_in_thread([b"abcdef"])
    assert type(error.value) is meaning
    assert upload.size == os.stat(upload.path).st_size == 6
    upload.append_in_thread([b" and after"])
    upload.close()
    assert Path(upload.path).read_bytes() == b"before and after"


def test_a_failed_sync_is_remembered(store: UploadStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells it once: the next sync of the same file succeeds, with bytes that are not there."""
    upload = filled(store)
    upload.sync_in_thread()
    assert not upload.lost

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", fails)
        with pytest.raises(StorageFailed):
            upload.sync_in_thread()
    assert upload.lost
    upload.close()


def test_a_session_is_found_by_its_repository_only(store: UploadStore) -> None:
    session = store.create(HERE, "sha256")
    for other in (
        Repository(None, RepositoryName("local/other")),
        Repository("local", RepositoryName("app")),
        Repository("up", RepositoryName("local/app")),
    ):
        assert store.size(other, session) is None
        assert store.open(other, session) is None
    assert store.size(HERE, session) == 0


@pytest.mark.parametrize(
    "session",
    [
        "",
        ".",
        "..",
        "../../format",
        "locks",
        "x" * 5000,
        "00000000-0000-0000-0000-000000000000\n",
        "00000000-0000-0000-0000-000000000000\0",
        "00000000-0000-0000-0000-000000000000-sha256",
        "00000000-0000-0000-0000-000000000000-md5",
        "00000000-0000-0000-0000-00000000000G",
        "00000000-0000-0000-0000-000000000000/../x",
        "\u06600000000-0000-0000-0000-000000000000",
    ],
)
def test_what_is_no_session_is_none(store: UploadStore, root: Root, session: str) -> None:
    """Not even where there is a file of that name."""
    if len(session) < 200 and "\0" not in session:
        (root.path / "ingest" / "uploads" / "00000000-0000-0000-0000-000000000000").mkdir()
        Path(store._path(HERE, session)).touch()
    assert store.size(HERE, session) is None
    assert store.open(HERE, session) is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_session_says_its_algorithm(store: UploadStore, algorithm: str) -> None:
    session = store.create(HERE, algorithm)
    assert algorithm_of(session) == algorithm
    assert store.size(HERE, session) == 0


# ---- who waits ----


def test_who_waits_says_so_until_he_does_not(store: UploadStore, root: Root) -> None:
    session = store.create(HERE, "sha256")
    assert not store.wanted(session)
    store.want(session)
    assert store.wanted(session)
    store.unwant(session)
    store.unwant(session)
    assert not store.wanted(session)
    assert len(sessions(root)) == 1


def test_who_died_waiting_waits_no_more(store: UploadStore, root: Root) -> None:
    session = store.create(HERE, "sha256")
    store.want(session)
    age(f"{root.path}/ingest/uploads/{session}.want", 30)
    assert not store.wanted(session)
    store.want(session)
    assert store.wanted(session), "said again, it counts again"


# ---- sessions that expired ----


def test_sessions_expire_by_when_they_were_sent_to(store: UploadStore, root: Root, leases: FileLeases) -> None:
    old, new, busy = filled(store), filled(store), filled(store)
    waiting = store.create(HERE, "sha256")
    store.want(waiting)
    for upload in (old, busy):
        age(upload.path, 100)
    age(f"{root.path}/ingest/uploads/{waiting}.want", 100)
    held = leases.try_acquire(lease_key(os.path.basename(busy.path).rpartition(".")[0]))
    assert held is not None
    assert store.sweep_in_thread(leases, 50) == 1
    kept = {os.path.basename(upload.path) for upload in (new, busy)}
    assert kept <= set(sessions(root))
    assert len(sessions(root)) == 3, "and the one with nothing sent yet"
    held.release()
    assert store.sweep_in_thread(leases, 50) == 1
    assert store.sweep_in_thread(leases, 50) == 0
    for upload in (old, new, busy):
        upload.close()


def test_a_session_sent_to_while_it_is_looked_at_stays(store: UploadStore, leases: FileLeases) -> None:
    upload = filled(store)
    age(upload.path, 100)

    class Late:
        def try_acquire(self, key: str) -> object:
            os.utime(upload.path)  # a request came and went
            return leases.try_acquire(key)

    assert store.sweep_in_thread(Late(), 50) == 0  # type: ignore[arg-type]
    assert os.path.exists(upload.path)
    upload.close()


# ---- the kept name ----


def test_a_session_becomes_the_file(store: UploadStore, root: Root) -> None:
    upload = filled(store)
    assert store.keep_in_thread(upload, DIGEST)
    upload.close()
    assert Path(root.kept(DIGEST)).read_bytes() == DATA
    assert sessions(root) == []


def test_a_file_that_is_there_stays(store: UploadStore, root: Root) -> None:
    Path(root.kept(DIGEST)).write_bytes(DATA)
    inode = os.stat(root.kept(DIGEST)).st_ino
    upload = filled(store)
    assert not store.keep_in_thread(upload, DIGEST)
    upload.close()
    assert os.stat(root.kept(DIGEST)).st_ino == inode
    assert len(sessions(root)) == 1, "until the row is there too"


def test_a_file_of_another_size_is_replaced(store: UploadStore, root: Root) -> None:
    Path(root.kept(DIGEST)).write_bytes(DATA[:-1])
    upload = filled(store)
    assert store.keep_in_thread(upload, DIGEST)
    upload.close()
    assert hashlib.sha256(Path(root.kept(DIGEST)).read_bytes()).hexdigest() == DIGEST.encoded


def test_what_has_no_row_is_a_session_again(store: UploadStore, root: Root) -> None:
    upload = filled(store)
    session = sessions(root)[0].rpartition(".")[0]
    store.keep_in_thread(upload, DIGEST)
    store.take_back_in_thread(upload, DIGEST)
    upload.close()
    assert not os.path.exists(root.kept(DIGEST))
    assert store.size(HERE, session) == len(DATA)


@pytest.mark.parametrize("there", [False, True])
def test_the_folder_is_synced_after_the_name(
    store: UploadStore, root: Root, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """Also for a file that has it already: who made it may have died before he came to that."""
    if there:
        Path(root.kept(DIGEST)).write_bytes(DATA)
    seen: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "sync_folder", lambda path: seen.append((path, os.path.exists(root.kept(DIGEST)))))
    upload = filled(store)
    store.keep_in_thread(upload, DIGEST)
    upload.close()
    assert seen == [(os.path.dirname(root.kept(DIGEST)), True)]
