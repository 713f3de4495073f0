"""Content put into a root that no service runs on, whatever is there already. Everything here blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mirror.oci.errors import StorageFailed
from mirror.oci.names import ALGORITHMS, Digest
from mirror.store.copying import Step, check_space, copy, copy_errors, problem
from mirror.store.disk import KEPT
from mirror.store.files import sync_folder, unlink_quietly
from mirror.store.root import Root


class RestoreStore:
    """The files of one root, for who owns it."""

    def __init__(self, root: Root) -> None:
        self._root = root
        owner = root.path.stat().st_uid
        if owner != os.geteuid():
            raise StorageFailed(
                f"{root.path} belongs to the user with id {owner}; restore as that user, or the service cannot read "
                "what is put there"
            )

    def check_space(self, sizes: Iterable[tuple[Digest, int]]) -> None:
        """Make sure that there is room for what is not here yet. sizes: in bytes. Raises: StorageFull."""
        check_space(self._root.path, [size for digest, size in sizes if not os.path.exists(self._root.kept(digest))])

    def put(self, digest: Digest, source: str, step: Step) -> bool:
        """Give content its kept name, from a file, unless what has it is right. ``sync`` makes the name durable.

        What was pulled through as well is looked at too: readers take that first. Returns whether it was copied.
        Raises: StorageFailed, StorageFull.
        """
        kept, cached = self._root.kept(digest), self._root.cached(digest)
        fresh = f"{self._root.path}/ingest/{digest.algorithm}/{digest.encoded}{KEPT}"
        with copy_errors(f"writing {kept}"):
            copied = problem(kept, digest) is not None
            if copied:
                found = copy(source, fresh, digest, step)
                if found is not None:
                    raise StorageFailed(f"{digest} cannot be restored: {found}; it was right a moment ago")
                os.rename(fresh, kept)
            if os.path.exists(cached) and not os.path.samefile(cached, kept) and problem(cached, digest) is not None:
                unlink_quietly(fresh)
                os.link(kept, fresh)
                os.rename(fresh, cached)
        return copied

    def sync(self) -> None:
        """Make all names durable. Raises: StorageFailed."""
        for algorithm in ALGORITHMS:
            for folder in ("blobs", "cache"):
                path = f"{self._root.path}/{folder}/{algorithm}"
                with copy_errors(f"writing {path}"):
                    sync_folder(path)
