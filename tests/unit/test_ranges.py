"""Range and Content-Range, as RFC 9110 section 14 reads them. Over HTTP: tests/api/test_ranges.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.errors import RangeUnsatisfiable
from mirror.oci.ranges import MAX_RANGES, ByteRange, ContentRange, parse_content_range, parse_range

GOOD = [
    ("bytes=0-0", 1, [(0, 0)]),
    ("bytes=0-", 10, [(0, 9)]),
    ("bytes=9-", 10, [(9, 9)]),
    ("bytes=3-5", 10, [(3, 5)]),
    ("bytes=3-99", 10, [(3, 9)]),
    ("bytes=-3", 10, [(7, 9)]),
    ("bytes=-99", 10, [(0, 9)]),
    ("bytes=0-1,5-6", 10, [(0, 1), (5, 6)]),
    ("bytes=5-6,0-1", 10, [(5, 6), (0, 1)]),
    ("bytes=0-1,99-", 10, [(0, 1)]),
    ("bytes=-0,0-1", 10, [(0, 1)]),
    ("bytes=0-1,-1", 10, [(0, 1), (9, 9)]),
    ("bytes=0-1 , 2-3", 10, [(0, 1), (2, 3)]),
    ("bytes=,0-1,", 10, [(0, 1)]),
    ("BYTES=0-1", 10, [(0, 1)]),
    ("bytes=0-,0-", 10, [(0, 9), (0, 9)]),
    ("bytes=00-09", 10, [(0, 9)]),
]
IGNORED = [
    (None, 10),
    ("", 10),
    ("bytes", 10),
    ("bytes=", 10),
    ("bytes=,", 10),
    ("bytes=-", 10),
    ("bytes=x-y", 10),
    ("bytes=1", 10),
    ("bytes=0-1;2-3", 10),
    ("bytes=0--1", 10),
    ("bytes=--1", 10),
    ("bytes=0x0-1", 10),
    ("bytes=0-1=2", 10),
    ("bytes=\u0660-\u0661", 10),
    ("bytes=1_0-2_0", 100),
    ("items=0-1", 10),
    ("0-1", 10),
    ("bytes=0-" + "9" * 10_000, 10),
    ("bytes=0-,0-,0-", 10),
    ("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), 1000),
    ("bytes=-5", 0),
]
REFUSED = [
    ("bytes=10-", 10),
    ("bytes=10-20", 10),
    ("bytes=-0", 10),
    ("bytes=0-", 0),
    ("bytes=0-0", 0),
    ("bytes=10-,11-12", 10),
    ("bytes=2-1", 10),
    ("bytes=0-1,2-1", 10),
]


@pytest.mark.parametrize(("header", "size", "wanted"), GOOD)
def test_ranges(header: str, size: int, wanted: list[tuple[int, int]]) -> None:
    assert parse_range(header, size) == [ByteRange(first, last) for first, last in wanted]


@pytest.mark.parametrize(("header", "size"), IGNORED)
def test_ignored(header: str | None, size: int) -> None:
    assert parse_range(header, size) is None


@pytest.mark.parametrize(("header", "size"), REFUSED)
def test_refused(header: str, size: int) -> None:
    with pytest.raises(RangeUnsatisfiable) as caught:
        parse_range(header, size)
    assert caught.value.size == size
    assert caught.value.status == 416


def test_as_many_as_are_allowed() -> None:
    header = "bytes=" + ",".join(f"{n}-{n}" for n in range(MAX_RANGES))
    assert parse_range(header, 1000) == [ByteRange(n, n) for n in range(MAX_RANGES)]


def test_length() -> None:
    assert len(ByteRange(3, 3)) == 1
    assert len(ByteRange(0, 9)) == 10


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes 0-9/10", ContentRange(0, 9, 10)),
        ("bytes 3-5/*", ContentRange(3, 5, None)),
        (" bytes 3-5/10 ", ContentRange(3, 5, 10)),
        ("bytes 5-3/10", None),
        ("bytes 0-10/10", None),
        ("bytes */10", None),
        ("bytes 0-9", None),
        ("items 0-9/10", None),
        ("bytes=0-9/10", None),
        ("bytes 0-9/\u0661\u0660", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(header: str | None, wanted: ContentRange | None) -> None:
    assert parse_content_range(header) == wanted
    if wanted:
        assert parse_content_range(str(wanted)) == wanted


@given(st.text(alphabet="bytes=0123456789-, *", max_size=60), st.integers(0, 200))
def test_whatever_is_asked_stays_within_the_content(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            ranges = parse_range(text, size)
        except RangeUnsatisfiable:
            continue
        for wanted in ranges or ():
            assert 0 <= wanted.first <= wanted.last < size
        assert ranges is None or sum(map(len, ranges)) <= 2 * size
