"""The shared state of a download: whole records or none, in every process, on any disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.oci.errors import StorageFailed, StorageFull
from mirror.oci.names import digest_of
from mirror.store.ingest import Ingest
from mirror.store.root import open_root
from mirror.store.state import SIZE, Phase, State, StateReader, StateWriter, decode, encode

FULL = State(
    generation=7,
    tenure=3,
    phase=Phase.RUNNING,
    size=1 << 40,
    written=12345,
    committed=1234,
    public=True,
    sources=("docker.io|library/alpine",),
    failures={"ghcr.io|a/b": {"kind": "BlobUnknown", "message": "no"}},
)


def test_a_record_survives_the_way_through_the_file() -> None:
    assert decode(encode(FULL).ljust(SIZE, b"\0")) == FULL
    assert decode(encode(State()).ljust(SIZE, b"\0")) == State()


def test_a_torn_record_is_no_record() -> None:
    record = encode(FULL)
    for at in range(0, len(record), 7):
        torn = record[:at] + bytes([record[at] ^ 0x55]) + record[at + 1 :]
        assert decode(torn.ljust(SIZE, b"\0")) is None, f"a flipped byte at {at} went unnoticed"
    assert decode(bytes(SIZE)) is None


def test_failures_too_long_for_the_file_are_dropped_rather_than_cut(tmp_path: Path) -> None:
    writer = StateWriter(str(tmp_path / "state"))
    writer.publish(failures={f"r|{number}": {"message": "x" * 600} for number in range(100)}, written=5)
    reader = StateReader(str(tmp_path / "state"))
    found = reader.read()
    assert found is not None
    assert found.written == 5
    reader.close()
    writer.close()


WRITER = """
import sys
from mirror.store.state import StateWriter, Phase
writer = StateWriter(sys.argv[1])
print("ready", flush=True)
for number in range(60_000):
    writer.publish(phase=Phase.RUNNING, written=number, committed=number, size=number, sources=("x" * (number % 50),))
"""


def test_a_reader_in_another_process_never_sees_half_a_record(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        reader = StateReader(path)
        seen = set()
        while writer.poll() is None:
            state = reader.read()
            if state is not None and state.size is not None:
                assert state.written == state.committed == state.size
                assert len(state.sources[0]) == state.written % 50
                seen.add(state.written)
        assert len(seen) > 10, "the reader saw the writer's progress"
        reader.close()
    finally:
        writer.kill()
        writer.communicate()


def test_a_full_disk_is_an_error_before_anything_is_mapped(tmp_path: Path) -> None:
    """A store into a hole of a full disk would end the process by SIGBUS."""
    root = open_root(tmp_path / "root")
    digest = digest_of(b"x")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        with pytest.raises(StorageFailed, match="preparing the download"):
            Ingest(root, digest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    ingest = Ingest(root, digest)  # and afterwards everything is as if nothing had been
    assert not ingest.begin()
    ingest.discard(Phase.FAILED)
    ingest.close()


def test_enospc_is_told_as_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = open_root(tmp_path / "root")
    ingest = Ingest(root, digest_of(b"hello"))
    ingest.begin()

    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        with pytest.raises(StorageFull, match="disk is full"):
            ingest.append_in_thread([b"hello"], 0)
    assert ingest.append_in_thread([b"hello"], 0) == 5
    ingest.discard(Phase.FAILED)
    ingest.close()


def test_the_file_has_no_holes(tmp_path: Path) -> None:
    """What is stored into the map later needs no space that a full disk might not have."""
    writer = StateWriter(str(tmp_path / "state"))
    assert os.stat(tmp_path / "state").st_blocks * 512 >= SIZE
    writer.close()
