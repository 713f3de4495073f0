"""A folder that is an OCI image layout. Source: image-spec image-layout.md.

Its files are opened anew each time they are asked for: what they hold is verified by digest then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from mirror.oci.names import ALGORITHMS, Digest, try_digest
from mirror.packages.contents import check_version, read_index
from mirror.packages.entry import DAMAGED, MAX_INDEX, Contents, Source
from mirror.packages.files import OpenBytes, open_file, read_exactly
from mirror.packages.problems import Problem

MARK, INDEX, BLOBS = "oci-layout", "index.json", "blobs"
_OUTSIDE = "leads out of the layout; put the file itself there"


class LayoutSource:
    """The blobs of a layout. folders: algorithm → folder. links: the blobs that are links, and where those lead."""

    def __init__(self, folders: Mapping[str, str], links: Mapping[Digest, str]) -> None:
        self._folders = folders
        self._links = links

    def open(self, digest: Digest) -> OpenBytes | None:
        folder = self._folders.get(digest.algorithm)
        if folder is None:
            return None
        path = self._links.get(digest) or f"{folder}/{digest.encoded}"
        try:
            fd, file = open_file(path, follow=False)
        except (OSError, Problem):
            return None
        return OpenBytes(fd, 0, file.size, file)

    def digests(self) -> Iterable[Digest]:
        for algorithm, folder in self._folders.items():
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            yield from filter(None, (try_digest(f"{algorithm}:{name}") for name in names))


def read_layout(path: str, limit: int) -> tuple[Source, Contents]:
    """Read a layout. limit: bytes of a manifest. Blocks. Raises: Problem; OSError."""
    root = os.path.realpath(path)
    check_version(_read(root, MARK))
    problems: list[str] = []
    folders: dict[str, str] = {}
    links: dict[Digest, str] = {}
    for algorithm in ALGORITHMS:
        folder = _inside(root, f"{BLOBS}/{algorithm}")
        if folder is None:
            problems.append(f"{BLOBS}/{algorithm} {_OUTSIDE}")
        elif os.path.isdir(folder):
            folders[algorithm] = folder
            links.update(_links(root, folder, algorithm, problems))
    source = LayoutSource(folders, links)
    return source, read_index(_read(root, INDEX), source, limit, problems)


def _links(root: str, folder: str, algorithm: str, problems: list[str]) -> Iterator[tuple[Digest, str]]:
    """Find the blobs that are links, which is done by tools that share blobs between layouts."""
    with os.scandir(folder) as found:
        for item in found:
            digest = try_digest(f"{algorithm}:{item.name}")
            if digest is None or not item.is_symlink():
                continue
            path = _inside(root, f"{folder}/{item.name}")
            if path is None:
                problems.append(f"{digest} {_OUTSIDE}")
            else:
                yield digest, path


def _inside(root: str, name: str) -> str | None:
    """Return where a name of the layout leads, None when that is outside of it."""
    path = os.path.realpath(os.path.join(root, name))
    return path if path.startswith(root.rstrip("/") + "/") else None


def _read(root: str, name: str) -> bytes:
    path = _inside(root, name)
    if path is None:
        raise Problem(f"its {name} {_OUTSIDE}")
    try:
        fd, file = open_file(path, follow=False)
    except FileNotFoundError:
        raise Problem(f"has no {name}: it is no whole layout, or still being copied") from None
    except Problem as problem:
        raise Problem(f"its {name} {problem}") from problem
    try:
        if file.size > MAX_INDEX:
            raise Problem(f"its {name} has {file.size} bytes, more than {MAX_INDEX}; {DAMAGED}")
        return read_exactly(fd, file.size, 0)
    finally:
        os.close(fd)
