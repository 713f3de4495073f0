"""The table of a tar: as tarfile reads it, but nothing damaged passes for an end."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.packages.problems import Problem, Stopped
from mirror.packages.tar import Table, plain, read_table
from tests.layouts import link, write_tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def table_of(path: Path) -> Table:
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_table(fd)
    finally:
        os.close(fd)


def content(path: Path, name: str) -> bytes | None:
    member = table_of(path).find(name)
    return None if member is None else path.read_bytes()[member.offset :][: member.size]


@pytest.mark.parametrize("format", FORMATS)
def test_it_finds_what_was_written(tmp_path: Path, format: str) -> None:
    long = "a" * 90 + "/" + "b" * 60  # more than fits in one field of a header
    files = {"one": b"1", "empty": b"", "./dotted/two": b"22" * 700, long: b"3", "ü/ß": b"4", "last": b"x" * 512}
    path = write_tar(tmp_path / "a.tar", dict(files), format=FORMATS[format])
    assert {name: content(path, name) for name in files} == files
    assert content(path, "dotted/two") == files["./dotted/two"]
    assert content(path, "none") is None


@pytest.mark.parametrize("format", FORMATS)
def test_links_are_followed_within_the_archive(tmp_path: Path, format: str) -> None:
    far = "f" * 120
    files = {
        "a/file": b"bytes",
        "b/soft": link("b/soft", "../a/file"),
        "c/again": link("c/again", "../b/./soft"),
        "d/hard": link("d/hard", "a/file", tarfile.LNKTYPE),
        "top": link("top", "a/file"),
    } | ({} if format == "ustar" else {far: b"far", "e": link("e", far)})
    path = write_tar(tmp_path / "a.tar", files, format=FORMATS[format])
    for name in ("b/soft", "c/again", "d/hard", "top"):
        assert content(path, name) == b"bytes", name
    if format != "ustar":
        assert content(path, "e") == b"far"


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (link("x", "../outside"), "leads outside"),
        (link("x", "/etc/passwd"), "leads outside"),
        (link("x", "x"), "in a circle"),
        (link("x", "../outside", tarfile.LNKTYPE), "leads outside"),
        (link("x", "", tarfile.FIFOTYPE), "is no regular file"),
        (link("x", "", tarfile.CHRTYPE), "is no regular file"),
    ],
    ids=["relative", "absolute", "circle", "hard", "pipe", "device"],
)
def test_what_cannot_be_served_is_a_problem_when_asked_for(
    tmp_path: Path, member: tarfile.TarInfo, reason: str
) -> None:
    path = write_tar(tmp_path / "a.tar", {"x": member, "good": b"good"})
    assert content(path, "good") == b"good"
    with pytest.raises(Problem, match=reason):
        table_of(path).find("x")


def test_a_link_to_nothing_is_nothing_and_a_folder_is_no_file(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    path = write_tar(tmp_path / "a.tar", {"x": link("x", "none"), "folder": folder, "good": b"good"})
    table = table_of(path)
    assert (table.find("x"), table.find("folder")) == (None, None)
    assert table.find("good") is not None


def test_the_last_of_several_with_one_name_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x": b"first", "./x": b"second"})
    assert content(path, "x") == b"second"


@pytest.mark.parametrize("version", ["0.0", "1.0", "old"])
def test_a_sparse_file_is_a_problem_when_asked_for(tmp_path: Path, version: str) -> None:
    member = tarfile.TarInfo("x" if version != "1.0" else "GNUSparseFile.0/x")
    if version == "old":
        member.type = tarfile.GNUTYPE_SPARSE
    else:
        member.pax_headers = {"GNU.sparse.size": "4096", "GNU.sparse.name": "x"}
    path = write_tar(tmp_path / "a.tar", {"x": member, "good": b"good"})
    assert content(path, "good") == b"good"
    with pytest.raises(Problem, match="sparse"):
        table_of(path).find("x")


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_a_file_larger_than_eight_gibibytes(tmp_path: Path, format: str) -> None:
    """Its size does not fit in octal digits. The archive is a file with a hole."""
    size = 9 * 1024**3 + 5
    path, member = tmp_path / "a.tar", tarfile.TarInfo("large")
    member.size = size
    header = member.tobuf(format=FORMATS[format])
    after = tarfile.TarInfo("after")
    after.size = 3
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + -(-size // 512) * 512)
        file.write(after.tobuf() + b"abc".ljust(512, b"\0") + bytes(1024))
    found = table_of(path).find("large")
    assert found is not None
    assert (found.offset, found.size) == (len(header), size)
    last = table_of(path).find("after")
    assert last is not None
    assert last.size == 3


def test_cut_off_anywhere_it_is_a_problem(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"one": b"1" * 700, "n" * 150: b"2", "three": b""})
    whole = path.read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the end mark begins
    assert table_of(path).find("three") is not None
    for length in [*range(0, end, 256), end]:
        path.write_bytes(whole[:length])
        with pytest.raises(Problem, match=r"cut off|no tar archive"):
            table_of(path)
    path.write_bytes(whole[: end + 512])  # one block of zeros will do
    assert table_of(path).find("three") is not None


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"one": b"1", "two": b"2", "three": b"3"})
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Problem, match="is damaged: there is no header at byte 1024"):
        table_of(path)


def test_old_signed_checksums_pass(tmp_path: Path) -> None:
    member = tarfile.TarInfo("ü")
    header = bytearray(member.tobuf(format=tarfile.USTAR_FORMAT))
    signed = sum(byte - 256 * (byte > 127) for byte in header[:148] + b" " * 8 + header[156:])
    header[148:156] = b"%06o\0 " % signed
    path = tmp_path / "a.tar"
    path.write_bytes(header + bytes(1024))
    assert table_of(path).find("ü") is not None


@pytest.mark.parametrize("format", ["gnu", "pax"])
@pytest.mark.parametrize("size", [2**62, 2**63 - 1, 2**63, 2**70])
def test_sizes_that_nothing_has(tmp_path: Path, format: str, size: int) -> None:
    member = tarfile.TarInfo("x")
    member.size = size
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(format=FORMATS[format]) + bytes(1024))
    with pytest.raises(Problem, match=r"is damaged|cut off"):
        table_of(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(os.urandom(2000)), "compressed .gzip."),
        (b"\x28\xb5\x2f\xfd".ljust(600, b"\1"), "compressed .zstd."),
        (b"\xfd7zXZ\0".ljust(600, b"\1"), "compressed .xz."),
        (b"BZh9".ljust(600, b"\1"), "compressed .bzip2."),
        (b"hello".ljust(600, b"\1"), "no tar archive"),
        (b"", "cut off"),
    ],
    ids=["gzip", "zstd", "xz", "bzip2", "text", "empty"],
)
def test_what_is_no_tar_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(Problem, match=reason):
        table_of(path)


def test_a_huge_extended_header_is_not_read(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.pax_headers = {"comment": "c" * 2 * 1024 * 1024}
    with pytest.raises(Problem, match="extended header"):
        table_of(write_tar(tmp_path / "a.tar", {"x": member}))


def test_it_stops_when_told_to(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x": b"1"})
    with path.open("rb") as file, pytest.raises(Stopped):
        read_table(file.fileno(), lambda: True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_a_problem_or_changes_names_only(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are wrong: every place that is found lies within the file, and nothing else is raised."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("n" * 120)
        member.size = 600
        archive.addfile(member, io.BytesIO(b"y" * 600))
        archive.addfile(link("soft", "n" * 120))
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 4095))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):  # with a checksum that is right again
        for at in range(0, 4096, 512):
            header = raw[at : at + 512]
            raw[at + 148 : at + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    path.write_bytes(raw)
    try:
        table = table_of(path)
        places = [table.find(name) for name in table.names()]
    except Problem:
        return
    assert all(place.offset + place.size <= len(raw) for place in places if place)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("./a//b/", "a/b"), ("a/../b", "b"), ("../a", None), ("/a", None), ("a/../../b", None), (".", "")],
)
def test_plain_names(name: str, expected: str | None) -> None:
    assert plain(name) == expected
