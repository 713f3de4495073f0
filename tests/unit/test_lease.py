"""Leases: exclusive within a process and across processes, gone with their holder, never colliding."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mirror.store.lease import FileLeases

SECRET = b"s" * 32


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    leases = FileLeases(tmp_path / "locks", SECRET)
    held = leases.try_acquire("sha256:a")
    assert held is not None
    assert leases.try_acquire("sha256:a") is None, "granted twice within a process"
    other = leases.try_acquire("sha256:b")
    assert other is not None, "a lease of another key is another lease"
    other.release()
    assert leases.try_acquire("sha256:a") is None, "closing another descriptor of the file dropped the lease"
    held.release()
    held.release()
    again = leases.try_acquire("sha256:a")
    assert again is not None
    again.release()


def test_made_up_digests_do_not_collide(tmp_path: Path) -> None:
    """Ten thousand digests made up beside a held one: every one of them gets its own lease."""
    leases = FileLeases(tmp_path / "locks", SECRET)
    held = leases.try_acquire("sha256:" + "0" * 64)
    assert held is not None
    for number in range(10_000):
        lease = leases.try_acquire(f"sha256:{number:064x}1")
        assert lease is not None
        lease.release()
    assert leases.try_acquire("sha256:" + "0" * 64) is None
    held.release()


def test_the_place_of_a_key_depends_on_the_secret(tmp_path: Path) -> None:
    """Who does not know the secret cannot compute a key that falls on another's byte."""
    one = FileLeases(tmp_path / "locks", SECRET)
    other = FileLeases(tmp_path / "locks", b"t" * 32)
    held = one.try_acquire("key")
    beside = other.try_acquire("key")
    assert held is not None
    assert beside is not None
    held.release()
    beside.release()


HOLDER = """
import sys, time
from pathlib import Path
from mirror.store.lease import FileLeases
lease = FileLeases(Path(sys.argv[1]), b"s" * 32).try_acquire("key")
print("held" if lease else "refused", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_holder_that_dies_loses_its_leases(tmp_path: Path, end: signal.Signals) -> None:
    leases = FileLeases(tmp_path / "locks", SECRET)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "locks")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert leases.try_acquire("key") is None, "granted while another process holds it"
        os.kill(holder.pid, end)
        holder.wait(10)
        lease = leases.try_acquire("key")
        assert lease is not None
        lease.release()
    finally:
        holder.kill()
        holder.communicate()
