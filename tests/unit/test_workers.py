"""How many workers "auto" is, by affinity and the limits of control groups; and how much memory these leave."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.server.cpus import worker_count
from mirror.server.groups import memory_limit


def v1(folder: str, quota: str) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("membership", "files", "affinity", "expected"),
    [
        ("", {}, 6, 6),
        ("0::/\n", {}, 6, 6),
        ("0::/\n", {"cpu.max": "max 100000"}, 6, 6),
        ("0::/\n", {"cpu.max": "200000 100000"}, 6, 2),
        ("0::/\n", {"cpu.max": "150000 100000"}, 6, 2),
        ("0::/\n", {"cpu.max": "20000 100000"}, 6, 1),
        ("0::/\n", {"cpu.max": "900000 100000"}, 6, 6),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 6, 3),
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "300000 100000"}, 6, 2),
        ("0::/../..\n", {"cpu.max": "200000 100000"}, 6, 2),
        ("0::/\n", {"cpu.max": "nonsense"}, 6, 6),
        ("4:cpu,cpuacct:/\n", v1("cpu,cpuacct", "250000"), 6, 3),
        ("4:cpu:/\n", v1("cpu", "-1"), 6, 6),
        ("4:cpu:/docker/1f\n", v1("cpu", "200000"), 6, 2),
        ("4:cpu,cpuacct:/x\n0::/x\n", v1("cpu/x", "400000") | {"unified/x/cpu.max": "500000 100000"}, 6, 4),
        ("4:cpu:/x\n0::/x\n", v1("cpu/x", "400000") | {"unified/x/cpu.max": "300000 100000"}, 6, 3),
        ("3:cpuset:/\n", v1("cpuset", "100000"), 6, 6),
    ],
    ids=[
        "no-groups", "v2-root", "v2-max", "v2-two", "v2-rounded-up", "v2-at-least-one", "v2-more-than-cpus",
        "v2-of-parent", "v2-own-smaller", "v2-outside-namespace", "v2-nonsense", "v1", "v1-none", "v1-in-container",
        "both-versions", "both-unified-less", "other-controller",
    ],
)  # fmt: skip
def test_auto(tmp_path: Path, membership: str, files: dict[str, str], affinity: int, expected: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    found = worker_count("auto", affinity=affinity, proc=tmp_path / "proc", cgroups=tmp_path / "groups")
    assert found == expected


def test_auto_follows_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed in ({3}, {1, 4, 5}):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: allowed)
        assert worker_count("auto", proc=tmp_path, cgroups=tmp_path) == len(allowed)


def test_number_is_taken_as_it_is(tmp_path: Path) -> None:
    assert worker_count(7, affinity=2, proc=tmp_path, cgroups=tmp_path) == 7


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, None),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "1000", "memory.max": "2000"}, 1000),
        ("0::/\n", {"memory.max": "max"}, None),
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "3000"}, 3000),
        ("5:memory:/x\n", {"memory/x/memory.limit_in_bytes": "9223372036854771712"}, None),
        ("5:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "3000"}, None),
    ],
    ids=["no-groups", "v2-of-parent", "v2-none", "v1", "v1-none", "other-controller"],
)
def test_memory(tmp_path: Path, membership: str, files: dict[str, str], expected: int | None) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert memory_limit(tmp_path / "proc", tmp_path / "groups") == expected
