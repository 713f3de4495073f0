"""A backup as a folder on any file system: content under its digest, and one file that says what belongs to it.

<backup>/
  backup.json                   what the backup is; renamed into place last, which is what makes it one
  backup.lock                   held while it is written or read, where the file system has locks
  metadata-<id>.db              the rows; the one backup.json names
  blobs/<algorithm>/<hex>       content; what no row names any more is removed after the rename

Writing another one into the same folder adds content and a second database beside what is there, so that a kill at
any instant leaves the earlier backup, or the new one. Everything here blocks.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mirror.oci.errors import DigestInvalid, StorageFailed
from mirror.oci.names import ALGORITHMS, Digest, parse_digest
from mirror.store.copying import Step, check_space, copy, copy_errors, problem
from mirror.store.files import sync_folder, unlink_quietly, write_all

FORMAT = 1

_DATABASE = re.compile(r"metadata-[0-9a-f]{16}\.db")
_ENCODED = re.compile(r"[0-9a-f]+")
_DESCRIPTION, _LOCK, _BLOBS = "backup.json", "backup.lock", "blobs"
_NOT_OURS_BUT_EMPTY = {"lost+found"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What backup.json says. taken_at: RFC 3339. source: id of the database it was taken of.

    database: file name; database_digest: of its bytes. blobs: how many files there are; bytes: in them.
    left_out: content that could not be had, whose rows are not in the database.
    """

    taken_at: str
    source: str
    database: str
    database_digest: str
    repositories: int
    manifests: int
    tags: int
    blobs: int
    bytes: int
    left_out: tuple[str, ...] = ()


class BackupFolder:
    """A backup: made, taken once more, or read."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    # ---- the whole ----

    @contextmanager
    def writing(self, source: str) -> Iterator[None]:
        """Have the folder to write a backup of a root to, made if need be.

        source: id of the root's database. Raises: StorageFailed when it has anything but a backup of the same root,
        or another backup is being written.
        """
        with copy_errors(f"using {self.path}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = set(os.listdir(self.path)) - _NOT_OURS_BUT_EMPTY
            if names and not names & {_DESCRIPTION, _LOCK}:
                raise StorageFailed(f"{self.path} has something else in it: give a new or empty folder, or a backup")
            self._check_no_links()
            lock = self._lock(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        try:
            earlier = self.description()
            if earlier is not None and earlier.source != source:
                raise StorageFailed(
                    f"{self.path} is a backup of another root (with id {earlier.source}, this one has {source}); "
                    "give another folder"
                )
            with copy_errors(f"using {self.path}"):
                for algorithm in ALGORITHMS:
                    Path(self.path, _BLOBS).mkdir(mode=0o700, exist_ok=True)
                    Path(self.path, _BLOBS, algorithm).mkdir(mode=0o700, exist_ok=True)
                self._tidy(earlier.database if earlier else None)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def reading(self) -> Iterator[Description]:
        """Have a backup to read. Raises: StorageFailed when there is none, or it is of a newer version."""
        with copy_errors(f"reading {self.path}"):
            self._check_no_links()
            try:
                lock = self._lock(os.O_RDONLY, fcntl.LOCK_SH)
            except FileNotFoundError:
                lock = -1  # copied without it: nobody writes it
        try:
            found = self.description()
            if found is None:
                raise StorageFailed(f"{self.path} is not a backup: it has no {_DESCRIPTION}, or never got one")
            yield found
        finally:
            if lock >= 0:
                os.close(lock)

    def description(self) -> Description | None:
        """Read what the backup says of itself, None when there is none.

        Raises: StorageFailed when that is damaged, or of a newer version.
        """
        path = self.path / _DESCRIPTION
        with copy_errors(f"reading {path}"):
            try:
                text = path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
        try:
            found: dict[str, Any] = json.loads(text)
            version = int(found.pop("format"))
            if version > FORMAT:
                raise StorageFailed(
                    f"{self.path} is of a newer format ({version}, this version of mirror knows {FORMAT}); "
                    "use the version that wrote it"
                )
            described = Description(**{**found, "left_out": tuple(found["left_out"])})
            if not _DATABASE.fullmatch(described.database):
                raise ValueError(described.database)
            parse_digest(described.database_digest)
        except (ValueError, KeyError, TypeError, AttributeError, DigestInvalid) as error:
            raise StorageFailed(f"{path} is damaged ({error!r}); take another backup") from error
        return described

    def commit(self, description: Description) -> None:
        """Make everything written so far the backup, durably; then remove what it does not need.

        Raises: StorageFailed, StorageFull.
        """
        path = self.path / _DESCRIPTION
        fresh = f"{path}.part"
        with copy_errors(f"writing {path}"):
            for folder in (*(self.path / _BLOBS / algorithm for algorithm in ALGORITHMS), self.path / _BLOBS):
                sync_folder(str(folder))
            sync_folder(str(self.path))
            fd = _create(fresh)
            try:
                text = json.dumps({"format": FORMAT, **asdict(description)}, indent=2)
                write_all(fd, [text.encode() + b"\n"], 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(fresh, path)
            sync_folder(str(self.path))
            sync_folder(str(self.path.parent))

    def tidy(self, description: Description, needed: set[Digest]) -> None:
        """Remove what only an earlier backup needed. Raises: StorageFailed."""
        with copy_errors(f"tidying {self.path}"):
            self._tidy(description.database, needed)

    # ---- the rows ----

    def new_database(self) -> Path:
        """Return where to put the rows of a new backup."""
        return self.path / f"metadata-{secrets.token_hex(8)}.db"

    def seal(self, database: Path) -> Digest:
        """Sync a database that is complete. Returns the digest of its bytes. Raises: StorageFailed, StorageFull."""
        hasher = Digest("sha256", "").hasher()
        with copy_errors(f"writing {database}"):
            fd = os.open(database, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                while data := os.read(fd, 1024 * 1024):
                    hasher.update(data)
            finally:
                os.close(fd)
        return Digest("sha256", hasher.hexdigest())

    def database_problem(self, description: Description) -> str | None:
        """Return what is wrong with the database of a backup, None when its bytes are those it was sealed with."""
        found = problem(str(self.path / description.database), parse_digest(description.database_digest))
        return None if found is None else f"{description.database}: {found}"

    # ---- the content ----

    def blob(self, digest: Digest) -> str:
        """Return where content is."""
        return f"{self.path}/{_BLOBS}/{digest.algorithm}/{digest.encoded}"

    def size(self, digest: Digest) -> int | None:
        """Return the size in bytes of content, None when it is not there. Raises: StorageFailed."""
        with copy_errors(f"looking for {digest}"):
            try:
                found = os.lstat(self.blob(digest))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def add(self, digest: Digest, source: str, step: Step) -> str | None:
        """Copy content from a file. Returns what is wrong with that, None when it is done.

        Raises: StorageFailed, StorageFull.
        """
        final = self.blob(digest)
        with copy_errors(f"writing {final}"):
            found = copy(source, f"{final}.part", digest, step)
            if found is None:
                os.rename(f"{final}.part", final)
        return found

    def problem(self, digest: Digest, step: Step | None = None) -> str | None:
        """Read content; return what is wrong with it, None when it is right."""
        return problem(self.blob(digest), digest, (lambda data: step(len(data))) if step else None)

    def check_space(self, sizes: list[int]) -> None:
        """Make sure that files of these sizes, in bytes, can be written. Raises: StorageFull."""
        check_space(self.path, sizes)

    # ---- inside ----

    def _check_no_links(self) -> None:
        """Make sure that everything below is the folder's own: what is a link may lead anywhere."""
        blobs = Path(self.path, _BLOBS)
        names = (_DESCRIPTION, _LOCK, _BLOBS)
        for path in (*(self.path / name for name in names), *(blobs / algorithm for algorithm in ALGORITHMS)):
            if path.is_symlink():
                raise StorageFailed(f"{path} is a symbolic link; a backup has none")

    def _lock(self, flags: int, kind: int) -> int:
        fd = os.open(self.path / _LOCK, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise StorageFailed(
                f"{self.path} is in use: a backup is being written to it, or restored from it"
            ) from None
        except OSError:
            pass  # a file system without locks
        return fd

    def _tidy(self, database: str | None, needed: set[Digest] | None = None) -> None:
        """Remove parts, databases but one, and when it is said what is needed all other content."""
        for name in os.listdir(self.path):
            if name == f"{_DESCRIPTION}.part" or (_database_of(name) and _database_of(name) != database):
                unlink_quietly(f"{self.path}/{name}")
        for algorithm in ALGORITHMS:
            folder = f"{self.path}/{_BLOBS}/{algorithm}"
            for name in os.listdir(folder):
                encoded, _, ending = name.partition(".")
                if not _ENCODED.fullmatch(encoded) or ending not in ("", "part"):
                    continue  # not of our making
                if ending or (needed is not None and Digest(algorithm, encoded) not in needed):
                    unlink_quietly(f"{folder}/{name}")


def _database_of(name: str) -> str | None:
    """Return the database a file is, or is the journal of; None when it is neither."""
    found = _DATABASE.match(name)
    return found[0] if found else None


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
