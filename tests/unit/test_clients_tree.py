"""Files below a folder: what is written, added to, left alone and refused; nothing of others is lost."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from mirror.clients import File, Refusal, TreeError, Written, write_tree
from mirror.clients.plan import ours

OURS = ours("podman", "/etc/a/our.conf", "x = 1\n")
OTHER = ours("podman", "/etc/b/other.conf", "y = 1\n")
DAEMON = "/etc/docker/daemon.json"
MERGED = File(
    path=DAEMON, form="json", text=json.dumps({"registry-mirrors": ["http://m:1"], "insecure-registries": ["m:1"]})
)


def states(written: list[Written]) -> list[str]:
    return [one.state for one in written]


def everything(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


def test_new_files(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there"
    assert states(write_tree(root, [OURS, OTHER])) == ["written", "written"]
    assert everything(root) == {"etc/a/our.conf": OURS.text, "etc/b/other.conf": OTHER.text}
    assert stat.S_IMODE((root / "etc/a/our.conf").stat().st_mode) == 0o644


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path, [OURS, MERGED])
    before = {path: path.stat() for path in tmp_path.rglob("*")}
    assert states(write_tree(tmp_path, [OURS, MERGED])) == ["unchanged", "unchanged"]
    assert {path: path.stat() for path in tmp_path.rglob("*")} == before


def test_what_we_wrote_is_written_anew(tmp_path: Path) -> None:
    write_tree(tmp_path, [OURS])
    anew = ours("podman", OURS.path, "x = 2\n")
    done = write_tree(tmp_path, [anew])
    assert (states(done), done[0].kept) == (["written"], None)
    assert everything(tmp_path) == {"etc/a/our.conf": anew.text}


def test_what_others_wrote_is_refused_and_then_nothing_is_written(tmp_path: Path) -> None:
    for name in ("etc/a/our.conf", "etc/docker/daemon.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("theirs = true\n")
    before = everything(tmp_path)
    with pytest.raises(Refusal) as refused:
        write_tree(tmp_path, [OTHER, OURS, MERGED])
    assert everything(tmp_path) == before
    assert len(refused.value.reasons) == 2
    assert "--force" in refused.value.reasons[0]
    assert str(tmp_path / "etc/a/our.conf") in refused.value.reasons[0]
    assert "not JSON" in refused.value.reasons[1]


def test_forced_it_is_replaced_and_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "etc/a/our.conf"
    path.parent.mkdir(parents=True)
    for number, kept in ((1, "our.conf.bak"), (2, "our.conf.bak1")):
        path.write_text(f"theirs = {number}\n")
        path.chmod(0o600)
        done = write_tree(tmp_path, [OURS], force=True)
        assert (states(done), done[0].kept) == (["replaced"], path.with_name(kept))
        assert path.read_text() == OURS.text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.with_name(kept).read_text() == f"theirs = {number}\n"


def test_forced_it_is_still_no_json(tmp_path: Path) -> None:
    path = tmp_path / DAEMON[1:]
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(Refusal):
        write_tree(tmp_path, [MERGED], force=True)
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", {"registry-mirrors": ["http://m:1"], "insecure-registries": ["m:1"]}),
        ("{}", {"registry-mirrors": ["http://m:1"], "insecure-registries": ["m:1"]}),
        (
            '{"debug": true, "registry-mirrors": ["http://other"]}',
            {"debug": True, "registry-mirrors": ["http://m:1", "http://other"], "insecure-registries": ["m:1"]},
        ),
        (
            '{"insecure-registries": ["a", "m:1"], "registry-mirrors": []}',
            {"insecure-registries": ["a", "m:1"], "registry-mirrors": ["http://m:1"]},
        ),
    ],
    ids=["empty", "nothing", "others", "some"],
)
def test_json_is_added_to(tmp_path: Path, before: str, after: dict[str, object]) -> None:
    path = tmp_path / DAEMON[1:]
    path.parent.mkdir(parents=True)
    path.write_text(before)
    done = write_tree(tmp_path, [MERGED])
    assert states(done) == ["merged"]
    assert json.loads(path.read_text()) == after
    assert list(json.loads(path.read_text())) == list(after)
    assert done[0].kept is not None
    assert done[0].kept.read_text() == before


def test_json_that_has_it_already_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / DAEMON[1:]
    path.parent.mkdir(parents=True)
    text = '{"insecure-registries":["m:1"],"registry-mirrors":["http://x", "http://m:1"]}'
    path.write_text(text)
    assert states(write_tree(tmp_path, [MERGED])) == ["unchanged"]
    assert path.read_text() == text


@pytest.mark.parametrize("indent", [1, 4, "\t"], ids=repr)
def test_json_keeps_its_indentation(tmp_path: Path, indent: int | str) -> None:
    path = tmp_path / DAEMON[1:]
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"debug": True}, indent=indent))
    write_tree(tmp_path, [MERGED])
    assert path.read_text() == json.dumps(json.loads(path.read_text()), indent=indent) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        *("[]", "x", '{"registry-mirrors": "http://x"}', '{"a": 1, "a": 2}', "\N{BYTE ORDER MARK}{}", b"\xff\xfe"),
        pytest.param("[" * 100_000, id="deep"),
        *('{"a": "\\ud800"}', '{"a": 1e999}', '{"a": NaN}'),  # read, and nothing that can be written
    ],
)
def test_json_that_cannot_be_added_to(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / DAEMON[1:]
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = path.read_bytes()
    with pytest.raises(Refusal, match="repair it first"):
        write_tree(tmp_path, [MERGED])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_file_or_endless_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / OURS.path[1:]
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(TreeError, match="cannot be read: it is not a file"):
        write_tree(tmp_path, [OURS], force=True)
    path.unlink()
    path.mkdir()
    with pytest.raises(TreeError, match="cannot be read: it is not a file"):
        write_tree(tmp_path, [OURS], force=True)
    path.rmdir()
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(TreeError, match="cannot be read: it is longer than"):
        write_tree(tmp_path, [OURS], force=True)


def test_a_link_to_what_is_not_there_yet_stays_one(tmp_path: Path) -> None:
    (tmp_path / "etc/a").mkdir(parents=True)
    (tmp_path / "etc/a/our.conf").symlink_to("../later/our.conf")
    write_tree(tmp_path, [OURS])
    assert (tmp_path / "etc/a/our.conf").is_symlink()
    assert (tmp_path / "etc/later/our.conf").read_text() == OURS.text


def test_nobody_else_may_write_to_new_folders_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_tree(tmp_path, [OURS])
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "etc", tmp_path / "etc/a")} == {0o755}


def test_a_link_is_followed_within_the_folder_and_not_out_of_it(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "etc/a").mkdir(parents=True)
    outside.mkdir()
    (root / "etc/real").write_text(ours("podman", "", "old\n").text)
    (root / "etc/a/our.conf").symlink_to("../real")
    write_tree(root, [OURS])
    assert (root / "etc/a/our.conf").is_symlink()
    assert (root / "etc/real").read_text() == OURS.text
    (root / "etc/b").symlink_to(outside)
    with pytest.raises(Refusal, match="leads out of"):
        write_tree(root, [OTHER])
    assert list(outside.iterdir()) == []


def test_what_cannot_be_written_says_which(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file")
    with pytest.raises(TreeError, match=r"etc/a/our\.conf cannot be (read|written): Not a directory"):
        write_tree(tmp_path, [OURS])


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, [OURS])

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TreeError, match="No space left"):
        write_tree(tmp_path, [ours("podman", OURS.path, "x = 2\n")])
    assert everything(tmp_path) == {"etc/a/our.conf": OURS.text}
