"""Ingest: what a leader that died left is continued, wrong bytes never get a name, commit leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.oci.names import Digest, digest_of
from mirror.store.disk import DiskBlobStore
from mirror.store.files import write_all
from mirror.store.ingest import TAIL, Ingest
from mirror.store.lease import FileLeases
from mirror.store.residency import Residency
from mirror.store.root import Root, open_root
from mirror.store.state import Phase

DATA = bytes(range(256)) * 4096  # 1 MiB
DIGEST = digest_of(DATA)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return open_root(tmp_path / "root")


def leftovers(root: Root) -> list[str]:
    return sorted(os.listdir(root.path / "ingest" / "sha256"))


def receive(ingest: Ingest, data: bytes, offset: int = 0) -> None:
    end = ingest.append_in_thread([data], offset)
    ingest.publish(phase=Phase.RUNNING, size=len(DATA), written=end, committed=max(0, end - TAIL))


def test_commit_gives_the_name_and_leaves_nothing(root: Root) -> None:
    ingest = Ingest(root, DIGEST)
    assert not ingest.begin()
    receive(ingest, DATA)
    assert ingest.verify()
    ingest.sync_in_thread()
    ingest.finish_in_thread()
    ingest.close()
    assert Path(root.cached(DIGEST)).read_bytes() == DATA
    assert leftovers(root) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(DATA[:-1] + b"!", id="last byte"),
        pytest.param(b"!" + DATA[1:], id="first byte"),
        pytest.param(DATA[:-1], id="short"),
        pytest.param(DATA + b"!", id="long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_wrong_bytes_do_not_verify(root: Root, wrong: bytes, algorithm: str) -> None:
    ingest = Ingest(root, digest_of(DATA, algorithm))
    ingest.begin()
    receive(ingest, wrong)
    assert not ingest.verify()
    ingest.publish(size=len(wrong))  # nor when the size is what the upstream said
    assert not ingest.verify()
    ingest.discard(Phase.WRONG)
    ingest.close()


def test_bytes_behind_the_recorded_end_do_not_verify(root: Root) -> None:
    """The file is longer than recorded: whatever is behind must not come into the store."""
    ingest = Ingest(root, DIGEST)
    ingest.begin()
    receive(ingest, DATA)
    assert ingest.verify()
    os.pwrite(ingest.fd, b"!", len(DATA))
    assert not ingest.verify()
    ingest.discard(Phase.WRONG)
    ingest.close()


def test_a_new_leader_continues_the_recorded_prefix(root: Root) -> None:
    first = Ingest(root, DIGEST)
    first.begin()
    receive(first, DATA[:500_000])
    write_all(first.fd, [b"garbage"], 700_000)  # written, but never recorded: not progress
    generation = first.state.generation
    first.close()
    second = Ingest(root, DIGEST)
    assert second.begin()
    assert (second.state.generation, second.state.written) == (generation, 500_000)
    assert second.state.phase is Phase.OPENING
    second.append_in_thread([DATA[500_000:]], 500_000)
    second.publish(written=len(DATA))
    assert not second.verify(), "the prefix was not hashed"
    while second.hash_step_in_thread(len(DATA)):
        pass
    assert second.verify()
    second.discard(Phase.FAILED)
    second.close()


@pytest.mark.parametrize("damage", ["no part", "short part", "wrong"])
def test_what_cannot_be_continued_is_a_new_generation(root: Root, damage: str) -> None:
    first = Ingest(root, DIGEST)
    first.begin()
    receive(first, DATA[:500_000])
    generation = first.state.generation
    part = root.part(DIGEST, generation)
    if damage == "no part":
        os.unlink(part)
    elif damage == "short part":
        os.truncate(part, 400_000)
    else:
        first.publish(phase=Phase.WRONG)
    first.close()
    second = Ingest(root, DIGEST)
    assert not second.begin()
    assert second.state.generation > generation
    assert second.state.written == second.state.committed == 0
    second.discard(Phase.FAILED)
    second.close()
    assert leftovers(root) == [], "the old generation's file is gone as well"


def test_each_generation_has_a_file_of_its_own(root: Root) -> None:
    """Who still reads the old file must never see bytes of the new one."""
    ingest = Ingest(root, DIGEST)
    ingest.begin()
    receive(ingest, b"old bytes")
    reader = os.open(root.part(DIGEST, ingest.state.generation), os.O_RDONLY)
    ingest.restart()
    receive(ingest, b"new bytes")
    assert os.pread(reader, 100, 0) == b"old bytes"
    os.close(reader)
    ingest.discard(Phase.WRONG)
    ingest.close()
    assert leftovers(root) == []


def test_digests_are_names_of_files_and_nothing_else(root: Root) -> None:
    assert root.cached(Digest("sha256", "a" * 64)) == f"{root.path}/cache/sha256/{'a' * 64}"


def test_a_sweep_takes_what_nobody_will_continue_and_nothing_else(root: Root, tmp_path: Path) -> None:
    leases = FileLeases(root.locks, root.secret)
    store = DiskBlobStore(root, Residency(root.index))

    def begun(data: bytes) -> Ingest:
        ingest = Ingest(root, digest_of(data))
        ingest.begin()
        ingest.append_in_thread([data], 0)
        ingest.publish(phase=Phase.RUNNING, size=len(data) + 1, written=len(data))
        ingest.close()
        return ingest

    goes_on, here, held = (begun(data) for data in (b"goes on", b"is here", b"is held"))
    Path(root.cached(here.digest)).write_bytes(b"is here")
    Path(root.part(goes_on.digest, 5)).write_bytes(b"of a void generation")
    Path(root.part(digest_of(b"x"), 7)).write_bytes(b"its state was never written")
    lease = leases.try_acquire(str(held.digest))
    assert lease is not None
    Path(root.part(held.digest, 9)).write_bytes(b"whose leader just begins")
    store.sweep(leases)
    lease.release()
    left = {name.partition(".")[0]: 0 for name in leftovers(root)}
    for name in leftovers(root):
        left[name.partition(".")[0]] += 1
    assert left == {goes_on.digest.encoded: 2, held.digest.encoded: 3}
    again = Ingest(root, goes_on.digest)
    assert again.begin(), "it can still be continued"
    again.close()
