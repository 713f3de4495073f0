"""What the registry layer asks of a folder of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.packages.files import FileId


@dataclass(slots=True)
class PackageBlob:
    """Verified bytes inside an open file; the reader closes it. offset, size: bytes.

    Nobody can stop an operator from rewriting the file while it is being sent: ask ``intact`` before the last
    bytes go out, and a short read is a failure.
    """

    fd: int
    offset: int
    size: int
    verified: FileId | None = field(default=None, repr=False)

    def intact(self) -> bool:
        """Say whether the file still is the one that was verified. One system call."""
        try:
            return self.verified is None or FileId.of(os.fstat(self.fd)).same_file(self.verified)
        except OSError:
            return False

    def close(self) -> None:
        """Close it; doing so twice is harmless."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Packages(Protocol):
    """The repositories of a folder. The calls that are not ``async`` are a few system calls on local files.

    Every one of them answers as for something unknown when what it needs has changed or gone meanwhile.
    """

    def owns(self, name: RepositoryName) -> bool:
        """Say whether the repository is one of the folder's."""
        ...

    def names(self) -> Sequence[RepositoryName]:
        """Return all repositories in ASCII order."""
        ...

    def tags(self, name: RepositoryName) -> Sequence[Tag]:
        """Return the tags of a repository in ASCII order."""
        ...

    def tag(self, name: RepositoryName, tag: Tag) -> Descriptor | None:
        """Return what a tag points at, None when there is no such tag."""
        ...

    def manifest(self, name: RepositoryName, digest: Digest) -> Manifest | None:
        """Return a verified manifest, None when it is not here."""
        ...

    def referrers(self, name: RepositoryName, subject: Digest) -> Sequence[Manifest]:
        """Return the manifests whose subject it is, in the order of their digests."""
        ...

    def size(self, name: RepositoryName, digest: Digest) -> int | None:
        """Return the size of a blob in bytes, None when it is not here."""
        ...

    async def open(self, name: RepositoryName, digest: Digest) -> PackageBlob | None:
        """Open a blob whose bytes have been verified, None when it is not here or its bytes are wrong."""
        ...
