"""A tar archive that holds an OCI image layout or what ``docker save`` writes.

Only its table of files is read, and what is small; blobs are served from where they lie in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping

from mirror.oci.names import Digest, try_digest
from mirror.packages.contents import check_version, read_index
from mirror.packages.entry import DAMAGED, MAX_INDEX, Contents, Source
from mirror.packages.files import FileId, OpenBytes, open_file, read_exactly
from mirror.packages.layout import BLOBS, INDEX, MARK
from mirror.packages.problems import Problem
from mirror.packages.saved import MANIFEST, read_saved
from mirror.packages.tar import Member, Table, read_table


class ArchiveSource:
    """The blobs of an archive, as long as it is the file whose table was read. places: where each one is."""

    def __init__(self, path: str, file: FileId, places: Mapping[Digest, Member]) -> None:
        self._path = path
        self._file = file
        self._places = places

    def open(self, digest: Digest) -> OpenBytes | None:
        place = self._places.get(digest)
        if place is None:
            return None
        try:
            fd, file = open_file(self._path)
        except (OSError, Problem):
            return None
        if not file.same_file(self._file):
            os.close(fd)
            return None
        return OpenBytes(fd, place.offset, place.size, file)

    def digests(self) -> Iterable[Digest]:
        return self._places


def read_archive(path: str, limit: int, stopping: Callable[[], bool]) -> tuple[Source, Contents]:
    """Read an archive. limit: bytes of a manifest. Blocks. Raises: Problem; OSError; Stopped.

    With a layout and docker's own ``manifest.json`` in one, as newer versions of docker write, the layout counts.
    """
    fd, file = open_file(path)
    try:
        table = read_table(fd, stopping)
        contents: Contents
        if table.find(MARK):
            check_version(_read(fd, table, MARK))
            problems: list[str] = []
            source = ArchiveSource(path, file, _blobs(table, problems))
            contents = read_index(_read(fd, table, INDEX), source, limit, problems)
        elif table.find(MANIFEST):
            manifest = _read(fd, table, MANIFEST)
            places, contents = read_saved(manifest, table, fd, limit, stopping)
            source = ArchiveSource(path, file, places)
        else:
            raise Problem(_neither(table))
    finally:
        os.close(fd)
    return source, contents


def _blobs(table: Table, problems: list[str]) -> dict[Digest, Member]:
    places: dict[Digest, Member] = {}
    for name in table.names():
        folder, _, rest = name.partition("/")
        digest = try_digest(rest.replace("/", ":")) if folder == BLOBS else None
        if digest is None:
            continue
        try:
            place = table.find(name)
        except Problem as problem:
            problems.append(str(problem))
            continue
        if place is not None:
            places[digest] = place
    return places


def _read(fd: int, table: Table, name: str) -> bytes:
    member = table.find(name)
    if member is None:
        raise Problem(f"has no {name}; {DAMAGED}")
    if member.size > MAX_INDEX:
        raise Problem(f"its {name} has {member.size} bytes, more than {MAX_INDEX}; {DAMAGED}")
    return read_exactly(fd, member.size, member.offset)


def _neither(table: Table) -> str:
    """Say what to do with an archive that is neither, most often one that was packed a folder too high."""
    for name in table.names():
        folder, slash, last = name.rpartition("/")
        if slash and last in (MARK, MANIFEST):
            return f"has its image in the folder {folder[:200]!r}; pack what is in that folder, not the folder"
    return "holds neither an OCI layout nor what docker save writes; move it out of the folder"
