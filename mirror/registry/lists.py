"""What there is: tags, repositories, referrers, the history of tags. A page at a time, whatever there is in all."""

from __future__ import annotations

import asyncio
import heapq
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mirror.metadata.base import MetadataStore, TagMove
from mirror.oci.errors import ManifestUnknown, NameUnknown, StorageFailed
from mirror.oci.manifest import OCI_INDEX, Descriptor
from mirror.oci.names import Digest, Reference, Repository, Tag, referrers_tag
from mirror.packages.base import Packages
from mirror.registry.manifests import ManifestService

T = TypeVar("T")

MOST = 10_000
"""Entries of one page, whatever is asked for; the rest follows by Link."""
MOST_REFERRERS = 1_000
"""Referrers of one page; it has to stay an index of a size that clients take."""
MOST_BYTES = 4 * 1024 * 1024 - 1024
"""Bytes of the descriptors of one page of referrers, whose annotations are whatever was pushed."""
AT_ONCE = 100
"""Referrers read, or children of an index looked up, before others have their turn."""


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some entries of a list. more: whether there are others after them.

    Of an upstream's list: hit: what was remembered is the answer; warning: why it is stale, when it is; stale: the
    same in a word.
    """

    entries: Sequence[T]
    more: bool
    hit: bool | None = None
    warning: str | None = None
    stale: str | None = None


class ListService:
    """Lists of our own repositories, and of all names."""

    def __init__(self, *, metadata: MetadataStore, manifests: ManifestService, packages: Packages | None) -> None:
        self._metadata = metadata
        self._manifests = manifests
        self._packages = packages

    async def tags(self, repository: Repository, *, n: int | None, last: str) -> Page[Tag]:
        """Return a page of tags in ASCII order (end-8a, end-8b). Raises: NameUnknown (404) for no such repository."""
        packages = self._packages
        if packages is not None and packages.owns(repository.name):
            if repository.name not in packages.names():
                raise NameUnknown(f"{repository} cannot be read; see the log", detail={"name": repository.name})
            every = packages.tags(repository.name)
            found = list(every[bisect_right(every, last) :][: counted(n) + 1])
        else:
            if not self._metadata.exists(repository):
                raise NameUnknown(f"{repository} is not known here", detail={"name": repository.name})
            found = await self._metadata.tags(repository, n=counted(n) + 1, last=last) if n != 0 else []
        return page_of(found, counted(n))

    async def repositories(self, *, n: int | None, last: str) -> Page[str]:
        """Return a page of repository names in ASCII order; an upstream's begin with its name."""
        count = counted(n)
        found = await self._metadata.repositories(n=count + 1, last=last) if count else []
        if self._packages is not None and count:
            every: Sequence[str] = self._packages.names()
            others = every[bisect_right(every, last) :][: count + 1]
            found = list(dict.fromkeys(heapq.merge(found, others)))
        return page_of(found, count)

    async def referrers(
        self, repository: Repository, subject: Digest, *, artifact_type: str | None, n: int | None, last: str
    ) -> Page[Descriptor]:
        """Return a page of the manifests that have a subject (end-12a, end-12b), in the order of digests.

        What clients of registries without this API listed under a tag is among them. None is an answer as well:
        the page is empty, also of a repository that is not here.
        """
        count = counted_referrers(n)
        others = await self._listed(repository, subject, artifact_type, count + 1, last)
        if self._packages is not None and self._packages.owns(repository.name):
            pushed = []
            others += [manifest.descriptor for manifest in self._packages.referrers(repository.name, subject)]
        else:
            pushed = await self._pushed(repository, subject, artifact_type, count + 1, last)
        merged = {
            str(descriptor.digest): descriptor
            for descriptor in others
            if str(descriptor.digest) > last and artifact_type in (None, descriptor.artifact_type)
        }
        merged |= {str(descriptor.digest): descriptor for descriptor in pushed}
        found = [merged[digest] for digest in sorted(merged)]
        return page_of(found, min(count, fitting(found)))

    async def history(self, repository: Repository, tag: Tag, *, n: int | None, before: int | None) -> Page[TagMove]:
        """Return a page of a tag's moves, the newest first. Raises: ManifestUnknown (404) when it never was one."""
        count = counted(n)
        found = await self._metadata.history(repository, tag, n=count + 1, before=before) if count else []
        if not found and before is None and count:
            raise ManifestUnknown(f"{repository} never had a tag {tag}", detail={"tag": tag})
        return page_of(found, count)

    async def _pushed(
        self, repository: Repository, subject: Digest, artifact_type: str | None, count: int, last: str
    ) -> list[Descriptor]:
        """Return up to ``count`` descriptors after a digest, fewer when those are more than a page can hold."""
        found: list[Descriptor] = []
        room = MOST_BYTES
        # Two at least: with one alone that fills the page nobody would know that others follow.
        while len(found) < count and (room >= 0 or len(found) < 2):
            wanted = min(count - len(found), AT_ONCE)
            after = str(found[-1].digest) if found else last
            some = await self._metadata.referrers(
                repository, subject, artifact_type=artifact_type, n=wanted, last=after, room=room
            )
            found += some
            room -= sum(map(_length, some))
            if not some or (len(some) < wanted and room >= 0):
                break
        return found

    async def _listed(
        self, repository: Repository, subject: Digest, artifact_type: str | None, count: int, last: str
    ) -> list[Descriptor]:
        """Return what the index under the fallback tag lists, as far as it is here and says nothing else itself.

        Of those no more than a page needs: an index can list tens of thousands, here or not.
        """
        try:
            reference = Reference(repository, referrers_tag(subject))
            index = (await self._manifests.get(reference)).manifest
        except (ManifestUnknown, StorageFailed):
            return []
        if index is None or index.descriptor.media_type != OCI_INDEX:
            return []
        packaged = self._packages is not None and self._packages.owns(repository.name)
        children = {text: child.digest for child in index.manifests if (text := str(child.digest)) > last}
        found: list[Descriptor] = []
        room = MOST_BYTES
        for at, text in enumerate(sorted(children)):
            if len(found) == count or (room < 0 and len(found) > 1):
                break
            if at % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
            if not packaged and self._metadata.holds(repository, children[text]) is None:
                continue
            try:
                manifest = (await self._manifests.get(Reference(repository, children[text]))).manifest
            except (ManifestUnknown, StorageFailed):
                continue
            if manifest is None or (manifest.subject is not None and manifest.subject.digest != subject):
                continue
            if artifact_type in (None, manifest.descriptor.artifact_type):
                found.append(manifest.descriptor)
                room -= _length(manifest.descriptor)
        return found


def descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    """Return a descriptor as an index lists it (image-spec descriptor.md)."""
    found: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.artifact_type:
        found["artifactType"] = descriptor.artifact_type
    if descriptor.annotations:
        found["annotations"] = dict(descriptor.annotations)
    return found


def fitting(descriptors: Sequence[Descriptor]) -> int:
    """Return how many descriptors one page can hold; of one that is too large alone, that one."""
    room = MOST_BYTES
    for at, descriptor in enumerate(descriptors):
        room -= _length(descriptor)
        if room < 0:
            return max(at, 1)
    return len(descriptors)


def _length(descriptor: Descriptor) -> int:
    """Return the bytes of a descriptor in an index, with what separates it from the next."""
    return len(json.dumps(descriptor_json(descriptor))) + 2


def counted(n: int | None) -> int:
    """Return how many entries a page has at most. n: as many as were asked for, None when nobody said."""
    return MOST if n is None else min(n, MOST)


def counted_referrers(n: int | None) -> int:
    """Return how many referrers a page has at most. n: as in ``counted``."""
    return min(counted(n), MOST_REFERRERS)


def page_of(found: Sequence[T], count: int) -> Page[T]:
    """Return the first entries as a page. found: one more than ``count`` when there are others after them."""
    return Page(found[:count], len(found) > count)
