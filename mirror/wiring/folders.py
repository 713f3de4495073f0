"""What works on a root beside a service, or without one: backups, and the proof of a token."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from mirror.access.gate import SERVICE
from mirror.access.tokens import TokenInvalid, Tokens
from mirror.metadata.backup import SqliteBackup
from mirror.oci.errors import StorageFailed
from mirror.registry.backup import BackupService, RestoreService
from mirror.store.holding import holding
from mirror.store.restoring import RestoreStore
from mirror.store.root import open_root


def build_backup(path: Path) -> BackupService:
    """Make what backs up a root, which may be served meanwhile. Blocks.

    Raises: StorageFailed when there is none, or it cannot be used.
    """
    if not all(os.path.exists(path / name) for name in ("format", "metadata.db")):
        raise StorageFailed(f"{path} is no root of a mirror: nothing to back up; give the right one by --root")
    root = open_root(path)
    rows = SqliteBackup(root.metadata, root.database)
    return BackupService(root=root.path, rows=rows, holding=functools.partial(holding, root))


def build_restore(path: Path) -> RestoreService:
    """Make what restores into a root, laying it out when it is new. The caller owns it. Blocks.

    Raises: StorageFailed when it cannot be used.
    """
    root = open_root(path)
    return RestoreService(rows=SqliteBackup(root.metadata, root.database), store=RestoreStore(root))


def build_proof(path: Path) -> Callable[[str], bool]:
    """Make what tells whether a token was given by a service on this root: its key is the root's. Blocks.

    Raises: StorageFailed when the root cannot be used.
    """
    tokens = Tokens(open_root(path).secret, service=SERVICE)

    def given_here(token: str) -> bool:
        try:
            tokens.verify(token)
        except TokenInvalid:
            return False
        return True

    return given_here
