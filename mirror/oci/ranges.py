"""Byte ranges: what a client asks (``Range``) and what is sent (``Content-Range``). RFC 9110 section 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mirror.oci.errors import RangeUnsatisfiable

MAX_RANGES = 32
"""More ranges than this in one request are answered with the whole (RFC 9110 section 17.15)."""

_SPEC = re.compile(r"([0-9]*)-([0-9]*)")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+|\*)")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes first to last, both inclusive, of something whose size is known."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a 206 says it holds. size: of the whole, None when it is not said."""

    first: int
    last: int
    size: int | None

    def __str__(self) -> str:
        return f"bytes {self.first}-{self.last}/{'*' if self.size is None else self.size}"


def parse_range(header: str | None, size: int) -> list[ByteRange] | None:
    """Read a ``Range`` header against a size in bytes.

    Returns the ranges in the order asked, cut to the size, or None when the header is absent, does not
    parse, has another unit or asks for too much at once: it is then ignored (section 14.2).
    Raises: RangeUnsatisfiable (416) when it parses and no byte of it exists; and for one that ends before it begins,
    which a server may ignore or reject (section 14.2): the specification's own conformance program takes a 200 for
    "ranges are not supported".
    """
    if not header:
        return None
    unit, equals, specs = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    ranges: list[ByteRange] = []
    count = 0
    for spec in specs.split(","):
        spec = spec.strip()
        if not spec:
            continue
        found = _SPEC.fullmatch(spec)
        if not found or len(spec) > 64:  # the length, as turning digits into a number is slow
            return None
        first, last = found[1], found[2]
        count += 1
        if not first and not last:
            return None
        if not first:
            suffix = int(last)
            if suffix and not size:
                return None  # satisfiable by section 14.1.2, but no Content-Range can say "nothing"
            if suffix:
                ranges.append(ByteRange(max(0, size - suffix), size - 1))
        else:
            if last and int(last) < int(first):
                raise RangeUnsatisfiable(f"{header[:80]!r} ends before it begins", size=size)
            if int(first) < size:
                ranges.append(ByteRange(int(first), min(int(last), size - 1) if last else size - 1))
    if not count:
        return None
    if not ranges:
        raise RangeUnsatisfiable(f"no byte of {header[:80]!r} exists: the content has {size} bytes", size=size)
    if len(ranges) > MAX_RANGES or sum(map(len, ranges)) > 2 * size:
        return None
    return ranges


def parse_content_range(header: str | None) -> ContentRange | None:
    """Read the ``Content-Range`` of a 206; None when it is absent or nonsense."""
    found = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if not found:
        return None
    first, last = int(found[1]), int(found[2])
    size = None if found[3] == "*" else int(found[3])
    if last < first or (size is not None and last >= size):
        return None
    return ContentRange(first, last, size)
