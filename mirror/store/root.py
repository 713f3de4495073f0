"""The folder everything is kept in, and the proof that it can hold what it must.

<root>/
  format                            layout version, id of the database, key of the leases
  owner.lock                        held by the one service that runs here
  blobs/<algorithm>/<hex>           kept: pushed or pinned
  cache/<algorithm>/<hex>           evictable: pulled through
  cache.index/                      which of them were used when, and what was pulled how often
  ingest/<algorithm>/<hex>.<n>.part     a download in flight, generation n
  ingest/<algorithm>/<hex>.state        its state, written by its leader only
  ingest/uploads/<session>.<owner>      a push session; its length is the session's offset
  ingest/locks                      leases
  run/numbers                       a few numbers that all workers share
  packages.verified                 which files of the packages folder were read through and right
  metadata.db                       repositories, tags, manifests, rights
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from mirror.config.plain import read_plain
from mirror.oci.errors import StorageFailed
from mirror.oci.names import ALGORITHMS, Digest

LAYOUT = 1
_LONGEST_FORMAT = 64 * 1024


class RootAbsent(StorageFailed):
    """There is no root in a folder."""


NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs",
            "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.ceph", "ncpfs", "gfs2", "ocfs2"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """An opened root. database: id the metadata must carry. secret: key of the leases."""

    path: Path
    database: str
    secret: bytes = field(repr=False)

    @property
    def instance(self) -> str:
        """A name no other root has, which gives nothing of the secret away."""
        return hashlib.blake2b(b"instance", key=self.secret, digest_size=8).hexdigest()

    @property
    def locks(self) -> Path:
        return self.path / "ingest" / "locks"

    @property
    def numbers(self) -> Path:
        return self.path / "run" / "numbers"

    @property
    def metadata(self) -> Path:
        return self.path / "metadata.db"

    @property
    def index(self) -> Path:
        return self.path / "cache.index"

    @property
    def metrics(self) -> Path:
        return self.path / "run" / "metrics"

    def kept(self, digest: Digest) -> str:
        return f"{self.path}/blobs/{digest.algorithm}/{digest.encoded}"

    def cached(self, digest: Digest) -> str:
        return f"{self.path}/cache/{digest.algorithm}/{digest.encoded}"

    def part(self, digest: Digest, generation: int) -> str:
        return f"{self.path}/ingest/{digest.algorithm}/{digest.encoded}.{generation}.part"

    def state(self, digest: Digest) -> str:
        return f"{self.path}/ingest/{digest.algorithm}/{digest.encoded}.state"


def open_root(path: Path) -> Root:
    """Open a root, laying it out when it is new. Several processes may do so at once.

    Raises: StorageFailed when it is on a network file system, of a newer layout, or cannot be written.
    """
    path = path.absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        kind = file_system(path)
        if kind in NETWORK:
            raise StorageFailed(
                f"storage.root {path} is on a network file system ({kind}), whose locks and links cannot be "
                "relied on; choose a folder on a local disk"
            )
        for folder in ("blobs", "cache", "ingest"):
            for algorithm in ALGORITHMS:
                (path / folder / algorithm).mkdir(mode=0o700, parents=True, exist_ok=True)
        (path / "ingest" / "uploads").mkdir(mode=0o700, exist_ok=True)
        (path / "run").mkdir(mode=0o700, exist_ok=True)
        found = _read_format(path / "format")
    except OSError as error:
        raise StorageFailed(
            f"storage.root {path} cannot be used: {error.strerror}; choose a folder this user can write"
        ) from error
    return Root(path=path, database=found["database"], secret=bytes.fromhex(found["secret"]))


def find_root(path: Path) -> Root:
    """Open a root that is there, to look at it: nothing is made or changed.

    Raises: RootAbsent when there is none; StorageFailed when it is of a newer layout, or cannot be read.
    """
    path = path.absolute()
    try:
        found = _parse_format(path / "format")
    except NotADirectoryError:
        raise StorageFailed(f"{path} is no folder; give the right one by --root or --config") from None
    except FileNotFoundError:
        raise RootAbsent(
            f"{path} is no root of a mirror; give the right one by --root or --config, or start the service once"
        ) from None
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read: {error.strerror}; look as the user the service runs as") from error
    return Root(path=path, database=found["database"], secret=bytes.fromhex(found["secret"]))


def _read_format(path: Path) -> dict[str, str]:
    if not path.exists():
        fresh = path.with_name(f"format.{os.getpid()}.{secrets.token_hex(4)}")
        body = {"layout": LAYOUT, "database": str(uuid.uuid4()), "secret": secrets.token_hex(32)}
        with open(fresh, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(body, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)  # unlike a rename this never replaces what another process made first
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return _parse_format(path)


def _parse_format(path: Path) -> dict[str, str]:
    try:
        found = json.loads(read_plain(path, _LONGEST_FORMAT))
        layout = int(found["layout"])
        result = {"database": str(found["database"]), "secret": str(found["secret"])}
        bytes.fromhex(result["secret"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageFailed(
            f"{path} is damaged ({error!r}); restore it from a backup, or move the whole folder away"
        ) from error
    if layout > LAYOUT:
        raise StorageFailed(
            f"{path.parent} was written by a newer version (layout {layout}, this one knows {LAYOUT}); "
            "run the newer version, or choose another storage.root"
        )
    return result


def file_system(path: Path) -> str:
    """Return the type of the file system a folder is on, "" when that cannot be known."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return ""
