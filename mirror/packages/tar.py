"""The members of a tar archive and where their bytes are, read from its headers alone.

Strict where others guess: a damaged header or a missing end is a problem, not the end of the list. What is kept in
memory is the table of names. Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Interchange Format"; GNU
tar manual, "Basic Tar Format".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mirror.packages.files import read_exactly
from mirror.packages.problems import Problem, Stopped

BLOCK = 512
MAX_MEMBERS = 1_000_000
MAX_EXTENSION = 1024 * 1024
"""Bytes: the longest name or extended header that is read."""
MAX_SIZE = 2**62
"""Bytes: more than any file has, and few enough to be added to."""
MAX_LINKS = 16
"""Links that are followed from one name."""

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}
"""First bytes → what has been compressed with."""

_REGULAR, _HARD_LINK, _SYMLINK, _OLD_SPARSE = b"0\x007", b"1", b"2", b"S"
_WITHOUT_DATA = b"123456"
_SPARSE = "is stored as a sparse file, without the holes; write the archive without --sparse"


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of a regular file are. offset, size: bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Link:
    target: str


@dataclass(frozen=True, slots=True)
class _Unusable:
    reason: str


class Table:
    """The files of an archive by name; of several with one name the last counts, as when unpacking."""

    def __init__(self) -> None:
        self._members: dict[str, Member | _Link | _Unusable] = {}

    def find(self, name: str) -> Member | None:
        """Find a regular file, through links within the archive.

        Raises: Problem when it is there and cannot be served.
        """
        path = plain(name)
        if path is None:
            raise Problem(f"{name[:200]!r} leads outside of the archive")
        for _ in range(MAX_LINKS):
            found = self._members.get(path)
            if isinstance(found, _Unusable):
                raise Problem(f"{name[:200]!r} {found.reason}")
            if not isinstance(found, _Link):
                return found
            path = found.target
        raise Problem(f"{name[:200]!r} is a link that leads in a circle")

    def names(self) -> Iterator[str]:
        """Give the name of every file and link."""
        return iter(self._members)

    def add(self, name: str, kind: bytes, member: Member, link: str, *, sparse: bool) -> None:
        """Note a member. Folders, devices and names outside of the archive are of no use here."""
        path = plain(name)
        if not path or name.endswith("/"):
            return
        if len(self._members) >= MAX_MEMBERS:
            raise Problem(f"has more than {MAX_MEMBERS} members, which no image has; move it out of the folder")
        if sparse:
            self._members[path] = _Unusable(_SPARSE)
        elif kind in _REGULAR:
            self._members[path] = member
        elif kind in (_HARD_LINK, _SYMLINK):
            above = path.rpartition("/")[0] if kind == _SYMLINK else ""
            target = None if kind == _SYMLINK and link.startswith("/") else plain(f"{above}/{link}", rooted=True)
            self._members[path] = _Link(target) if target else _Unusable("is a link that leads outside of the archive")
        else:
            self._members[path] = _Unusable("is no regular file")


def plain(name: str, *, rooted: bool = False) -> str | None:
    """Return a name without ``.``, ``..`` and doubled slashes; None when it leads outside.

    rooted: a leading slash means the top of the archive, not of the machine.
    """
    if name.startswith("/") and not rooted:
        return None
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def read_table(fd: int, stopping: Callable[[], bool] = lambda: False) -> Table:
    """Read the headers of an archive.

    Raises: Problem when it is no archive, damaged or cut off; OSError; Stopped.
    """
    table = Table()
    offset = 0
    long_name = long_link = None
    extended: dict[str, str] = {}
    while True:
        if stopping():
            raise Stopped
        header = read_exactly(fd, BLOCK, offset)
        if not any(header):
            return table
        _check(header, offset)
        kind = header[156:157]
        stored = _number(header[124:136], offset)
        if kind in b"xLKg":  # about the member that follows; g: about all that follow, which no image needs
            data = _extension(fd, stored, offset) if kind != b"g" else b""
            if kind == b"x":
                extended = _records(data, offset)
            elif kind == b"L":
                long_name = _text(data)
            elif kind == b"K":
                long_link = _text(data)
            offset += BLOCK + _padded(stored)
            continue
        start = offset + BLOCK
        if kind == _OLD_SPARSE and header[482]:
            while read_exactly(fd, BLOCK, start)[504]:
                start += BLOCK
            start += BLOCK
        if "size" in extended:
            stored = _decimal(extended["size"], offset)
        length = 0 if kind in _WITHOUT_DATA else stored
        table.add(
            extended.get("GNU.sparse.name") or extended.get("path") or long_name or _name(header),
            kind,
            Member(start, length),
            extended.get("linkpath") or long_link or _text(header[157:257]),
            sparse=kind == _OLD_SPARSE or any(key.startswith("GNU.sparse.") for key in extended),
        )
        offset = start + _padded(length)
        long_name = long_link = None
        extended = {}


def compression(start: bytes) -> str | None:
    """Say by its first bytes what something is compressed with; None when it is not."""
    return next((name for magic, name in COMPRESSED.items() if start.startswith(magic)), None)


def _check(header: bytes, offset: int) -> None:
    """Compare a header with its checksum. Some old programs added signed bytes."""
    try:
        expected = _number(header[148:156], offset)
    except Problem:
        expected = -1
    rest = header[:148] + b" " * 8 + header[156:]
    if expected in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest)):
        return
    if offset:
        raise Problem(f"is damaged: there is no header at byte {offset}; copy it there anew")
    if method := compression(header):
        raise Problem(f"is compressed ({method}), which cannot be served as it is; decompress it")
    raise Problem("is no tar archive")


def _number(field: bytes, offset: int) -> int:
    """Read a number: octal digits, or bytes of a large one (GNU) after a first byte of 128."""
    if field[0] == 0x80 and (number := int.from_bytes(field[1:], "big")) <= MAX_SIZE:
        return number
    digits = field.strip(b" \0")
    if any(digit not in b"01234567" for digit in digits):
        raise Problem(f"is damaged: the header at byte {offset} has no number where one must be; copy it there anew")
    return int(digits or b"0", 8)


def _decimal(text: str, offset: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_SIZE):
        raise Problem(f"is damaged: the extended header before byte {offset} has no size; copy it there anew")
    return int(text)


def _extension(fd: int, length: int, offset: int) -> bytes:
    if length > MAX_EXTENSION:
        raise Problem(f"has an extended header of {length} bytes at byte {offset}, which no image needs")
    return read_exactly(fd, length, offset + BLOCK)


def _records(data: bytes, offset: int) -> dict[str, str]:
    """Read the records of an extended header: ``<length> <key>=<value>\\n``."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 8].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[at : at + length]
        if length <= len(digits) + 1 or not record.endswith(b"\n") or len(record) != length:
            raise Problem(f"is damaged: the extended header at byte {offset} is malformed; copy it there anew")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        found[_text(key)] = _text(value)
        at += length
    return found


def _name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name  # GNU has times there


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
