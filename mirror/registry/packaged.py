"""Blobs that lie in the packages folder, sent from where they are."""

from __future__ import annotations

from mirror.oci.errors import ContentChanged
from mirror.oci.ranges import ByteRange
from mirror.packages.base import PackageBlob
from mirror.registry.body import Extent, Part

TAIL = 64 * 1024
"""Bytes at the end of which it is made sure that the file is still the one that was verified."""


class PackagedBody:
    """Verified bytes inside a file of the operator's, who may rewrite it meanwhile: nobody gets a wrong end then."""

    verified = True

    def __init__(self, blob: PackageBlob) -> None:
        self._blob = blob
        self.size = blob.size

    async def extent(self, position: int, stop: int | None) -> Extent | None:
        end = self.size if stop is None else min(stop, self.size)
        if position >= end:
            return None
        if not self._blob.intact():
            raise ContentChanged("the file of the packages folder changed while it was being sent")
        if end - position > TAIL:
            end = max(end - TAIL, position + 1)
        return Extent(self._blob.fd, self._blob.offset + position, end - position)

    def part(self, wanted: ByteRange) -> Part:
        return self

    def close(self) -> None:
        self._blob.close()
