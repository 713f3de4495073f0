"""Where a repository's blobs come from."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from mirror.oci.names import Digest, Repository
from mirror.oci.ranges import ByteRange
from mirror.upstream.base import BlobSource, Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A repository's own way to get a blob. expected: size in bytes a manifest gave, used when the upstream is silent.

    unverified_ranges: whether ranges may be sent before the verdict over the whole.
    """

    repository: Repository
    upstream: Upstream
    digest: Digest
    expected: int | None = None
    unverified_ranges: bool = True

    def open(self, offset: int, window: ByteRange | None = None) -> AbstractAsyncContextManager[BlobSource]:
        return self.upstream.blob(self.repository.name, self.digest, offset=offset, window=window)

    def distrust(self) -> str | None:
        """Take note that the bytes it gave are wrong. Returns which mirror did it: there is somebody else to ask."""
        return self.upstream.distrust(self.digest)
