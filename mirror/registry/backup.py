"""Everything pushed, into a folder and back: first content, then what names it, both ways.

A backup is consistent whatever is pushed, mounted and deleted meanwhile: the content that the rows of one moment
need is held before they are copied. What is restored is there as a whole or, after a kill, as files that no row
names yet; restoring once more ends right. Everything here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mirror.metadata.backup import PushedCopy, SqliteBackup
from mirror.oci.errors import DigestInvalid, StorageFailed
from mirror.oci.names import Digest
from mirror.store.backup import BackupFolder, Description
from mirror.store.holding import Held
from mirror.store.restoring import RestoreStore

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many bytes of it are done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was done. copied: files that were not there before; copied_bytes: in them.

    problems: what could not be had, and why. tags_moved: tags that pointed elsewhere before a restore.
    """

    backup: Description
    copied: int
    copied_bytes: int
    problems: tuple[str, ...] = ()
    tags_moved: int = 0


class BackupService:
    """Takes backups of one root, which may be served meanwhile. clock: Unix seconds."""

    def __init__(
        self,
        *,
        root: Path,
        rows: SqliteBackup,
        holding: Callable[[], AbstractContextManager[Held]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._rows = rows
        self._holding = holding
        self._clock = clock

    def backup(self, destination: Path, progress: Progress) -> Report:
        """Back up to a new or empty folder, or bring an earlier backup of this root up to date.

        What cannot be read, or has wrong bytes, is a problem in the report; the rest is backed up without what needs
        it. Raises: StorageFailed, StorageFull; an earlier backup is then as it was.
        """
        folder = BackupFolder(destination)
        if folder.path.resolve().is_relative_to(self._root.resolve()):
            raise StorageFailed(f"{destination} is in the folder that is backed up; give one elsewhere")
        with folder.writing(self._rows.identity), self._holding() as held:
            taken_at = self._clock()
            copy = PushedCopy(folder.new_database())
            self._rows.copy_pushed(copy.path, held.hold)
            needed = copy.digests()
            missing, wanted = _compare(folder, held, needed)
            folder.check_space(list(wanted.values()))
            wrong = _copy(folder, held, wanted, progress)
            problems = missing | wrong
            lost = {digest for digest in problems if folder.problem(digest) is not None}
            if lost:
                copy.leave_out(lost)
            counts = copy.counts()
            description = Description(
                taken_at=_text(taken_at),
                source=self._rows.identity,
                database=copy.path.name,
                database_digest=str(folder.seal(copy.path)),
                repositories=counts.repositories,
                manifests=counts.manifests,
                tags=counts.tags,
                blobs=len(needed - lost),
                bytes=sum(folder.size(digest) or 0 for digest in needed - lost),
                left_out=tuple(sorted(map(str, lost))),
            )
            folder.commit(description)
            folder.tidy(description, needed - lost)
        copied = [size for digest, size in wanted.items() if digest not in wrong]
        return Report(
            backup=description,
            copied=len(copied),
            copied_bytes=sum(copied),
            problems=tuple(
                f"{digest}: {what}; {'left out' if digest in lost else 'what an earlier backup has of it is kept'}"
                for digest, what in sorted(problems.items(), key=lambda item: str(item[0]))
            ),
        )


class BackupSource:
    """A backup to restore from."""

    def __init__(self, folder: BackupFolder, description: Description) -> None:
        self.folder = folder
        self.description = description
        self.rows = PushedCopy(folder.path / description.database)
        self.sizes: dict[Digest, int] = {}
        """Content and its size in bytes, known once it is verified."""

    def verify(self, progress: Progress) -> list[str]:
        """Read all of it. Returns what is wrong with it: with anything, nothing of it may be restored."""
        described = self.description
        found = self.folder.database_problem(described) or self.rows.problem()
        if found is not None:
            return [found]
        try:
            needed = sorted(self.rows.digests(), key=str)
        except DigestInvalid as error:
            return [f"{self.rows.path} is damaged: {error.message}"]
        counts = self.rows.counts()
        problems = []
        if (counts.repositories, counts.manifests, counts.tags, len(needed)) != (
            described.repositories,
            described.manifests,
            described.tags,
            described.blobs,
        ):
            problems.append(f"{self.rows.path.name} does not have what backup.json says")
        step = _Steps(progress, "verifying", described.bytes)
        for digest in needed:
            wrong = self.folder.problem(digest, step)
            if wrong is not None:
                problems.append(f"{digest}: {wrong}")
            self.sizes[digest] = self.folder.size(digest) or 0
        return problems


class RestoreService:
    """Restores into one root. The caller owns that, so that no service runs on it. clock: Unix seconds."""

    def __init__(self, *, rows: SqliteBackup, store: RestoreStore, clock: Callable[[], float] = time.time) -> None:
        self._rows = rows
        self._store = store
        self._clock = clock

    def restore(self, source: BackupSource, progress: Progress) -> Report:
        """Put a verified backup into the root, durably. What else is there stays.

        A tag that is in both gets what the backup says. Raises: StorageFailed, StorageFull; no row has changed then.
        """
        self._store.check_space(source.sizes.items())
        step = _Steps(progress, "restoring", sum(source.sizes.values()))
        copied = [
            size for digest, size in source.sizes.items() if self._store.put(digest, source.folder.blob(digest), step)
        ]
        self._store.sync()
        moved = self._rows.merge(source.rows.path, at=self._clock())
        return Report(backup=source.description, copied=len(copied), copied_bytes=sum(copied), tags_moved=moved)


@contextmanager
def open_backup(path: Path) -> Iterator[BackupSource]:
    """Open a backup to restore from. Raises: StorageFailed when it is none, of a newer format, or being written."""
    folder = BackupFolder(path)
    with folder.reading() as description:
        yield BackupSource(folder, description)


def _compare(folder: BackupFolder, held: Held, needed: set[Digest]) -> tuple[dict[Digest, str], dict[Digest, int]]:
    """Return what has no file, and what is to be copied with its size in bytes."""
    missing, wanted = {}, {}
    for digest in sorted(needed, key=str):
        size = held.size(digest)
        if size is None:
            missing[digest] = "the file is missing in the root"
        elif size != folder.size(digest):
            wanted[digest] = size
    return missing, wanted


def _copy(folder: BackupFolder, held: Held, wanted: dict[Digest, int], progress: Progress) -> dict[Digest, str]:
    """Copy content. Returns what of it could not be, and why."""
    step = _Steps(progress, "copying", sum(wanted.values()))
    found = {digest: folder.add(digest, held.path(digest), step) for digest in wanted}
    return {digest: what for digest, what in found.items() if what is not None}


class _Steps:
    """Adds up what is done."""

    def __init__(self, progress: Progress, doing: str, total: int) -> None:
        self._progress = progress
        self._doing = doing
        self._total = total
        self._done = 0
        progress(doing, 0, total)

    def __call__(self, count: int) -> None:
        self._done += count
        self._progress(self._doing, self._done, self._total)


def _text(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
