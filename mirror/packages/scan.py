"""Walking the folder: what could be an entry, and a signature that changes whenever it does. Reads no content."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mirror.oci.errors import NameInvalid
from mirror.oci.names import ALGORITHMS, RepositoryName, parse_name
from mirror.packages.files import FileId
from mirror.packages.layout import BLOBS, INDEX, MARK

MAX_DEPTH = 64
MAX_FOLDERS = 100_000

TAR = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.lz4")

_NAMELESS = RepositoryName("")


class Kind(Enum):
    LAYOUT = "layout"
    ARCHIVE = "archive"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something in the folder. path: in it. problem: why it cannot be an entry, "" when it can."""

    path: str
    kind: Kind = Kind.ARCHIVE
    name: RepositoryName = _NAMELESS
    problem: str = ""
    signature: tuple[FileId | None, ...] = ()

    @property
    def recent(self) -> bool:
        """Say whether a further change could leave the signature as it is."""
        return any(file is not None and file.recent for file in self.signature)


def scan(folder: Path, prefix: str) -> list[Found]:
    """Find everything in a folder that is an entry, or looks like one and cannot be. Blocks.

    Names that begin with a dot are left alone: tools give them to what they have not finished. Links are followed,
    as the folder is its operator's. prefix: what the names of repositories begin with.
    """
    found: list[Found] = []
    owners: dict[RepositoryName, str] = {}
    for item in sorted(_Walk().entries(str(folder)), key=lambda item: item.path):
        if item.problem:
            found.append(item)
            continue
        path = item.path[: -len(TAR)] if item.kind is Kind.ARCHIVE else item.path
        try:
            name = parse_name(f"{prefix}/{path}" if path else "")
        except NameInvalid as error:
            problem = "is a layout itself; give the folder it is in"
            if path:
                problem = f"cannot be named: {error.message}; rename it"
            found.append(Found(path=item.path, problem=problem, signature=item.signature))
            continue
        owner = owners.setdefault(name, item.path)
        problem = "" if owner == item.path else f"would be the same repository as {owner}; rename one of them"
        found.append(Found(path=item.path, kind=item.kind, name=name, problem=problem, signature=item.signature))
    return found


class _Walk:
    """One walk. Folders that cannot be read are found, too: as problems."""

    def __init__(self) -> None:
        self._folders = 0

    def entries(self, folder: str, path: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[Found]:
        """Give what is in a folder. path: of the folder. above: the folders it is in, by device and inode."""
        self._folders += 1
        if len(above) >= MAX_DEPTH or self._folders == MAX_FOLDERS:
            yield Found(path=path, problem=f"is one folder too many ({MAX_FOLDERS}, {MAX_DEPTH} deep)")
        if len(above) >= MAX_DEPTH or self._folders >= MAX_FOLDERS:
            return
        try:
            own = os.stat(folder)
            identity = (own.st_dev, own.st_ino)
            signature = (FileId.of(own),)
            if identity in above:
                yield Found(path=path, problem="is a link to a folder it is in; remove it", signature=signature)
                return
            names = sorted(os.listdir(folder))
        except OSError as error:
            yield Found(path=path, problem=f"cannot be read ({error.strerror}); give this user the right to")
            return
        if MARK in names:
            yield Found(path=path, kind=Kind.LAYOUT, signature=_layout(folder))
            return
        if INDEX in names and BLOBS in names:
            yield Found(path=path, problem=f"is a layout without its file {MARK}; copy it there anew")
            return
        for name in names:
            if name.startswith("."):
                continue
            yield from self._entry(f"{folder}/{name}", f"{path}/{name}" if path else name, (*above, identity))

    def _entry(self, file: str, path: str, above: tuple[tuple[int, int], ...]) -> Iterator[Found]:
        lower = path.lower()
        wanted = lower.endswith((TAR, *COMPRESSED))
        try:
            found = os.stat(file)
        except OSError as error:
            if wanted:
                yield Found(path=path, problem=f"cannot be read ({error.strerror})")
            return
        signature = (FileId.of(found),)
        if stat.S_ISDIR(found.st_mode):
            yield from self.entries(file, path, above)
        elif lower.endswith(COMPRESSED):
            problem = "is compressed, which cannot be served as it is; decompress it"
            yield Found(path=path, problem=problem, signature=signature)
        elif wanted and not stat.S_ISREG(found.st_mode):
            yield Found(path=path, problem="is no regular file; remove it", signature=signature)
        elif wanted:
            yield Found(path=path, kind=Kind.ARCHIVE, signature=signature)


def _layout(folder: str) -> tuple[FileId | None, ...]:
    """Return the signature of a layout: its index, and its folders, which change with the names in them.

    Blobs are not looked at one by one: each is verified when it is asked for.
    """
    names = (MARK, INDEX, BLOBS, *(f"{BLOBS}/{algorithm}" for algorithm in ALGORITHMS))
    return tuple(_id(f"{folder}/{name}") for name in names)


def _id(path: str) -> FileId | None:
    try:
        return FileId.of(os.stat(path))
    except OSError:
        return None
