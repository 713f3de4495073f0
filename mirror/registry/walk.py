"""From an image's manifest to all of its content: what of it is here, and what a pull for a platform would fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from mirror.oci.manifest import DOCKER_LIST, OCI_INDEX, Descriptor, Manifest
from mirror.oci.names import Digest, Repository
from mirror.registry.blobs import BlobService
from mirror.registry.explained import Part, Pull, State
from mirror.registry.manifests import ManifestService

DEPTH = 4
"""Indexes within indexes that are followed."""
MOST = 1000
"""Manifests that are looked at."""
_INDEXES = (OCI_INDEX, DOCKER_LIST)


class Entry(Protocol):
    """What an index lists. platform: anything with words for people; None when the index does not say."""

    @property
    def descriptor(self) -> Descriptor: ...
    @property
    def platform(self) -> object | None: ...


E = TypeVar("E", bound=Entry)


class Platforms(Protocol, Generic[E]):
    """The platform a pull is for. ``str`` says which."""

    def listed(self, index: Manifest) -> Sequence[E]:
        """Return what an index lists."""
        ...

    def choose(self, listed: Sequence[E]) -> Sequence[E]:
        """Return what a node of the platform takes of it."""
        ...


class Walk:
    """One walk through one image. parts: what was found of it, from the top down."""

    def __init__(
        self, manifests: ManifestService, blobs: BlobService, repository: Repository, platforms: Platforms[Any]
    ) -> None:
        self.parts: list[Part] = []
        self._manifests = manifests
        self._blobs = blobs
        self._repository = repository
        self._platforms = platforms
        self._known = False
        self._problem: str | None = None

    async def start(self, top: Descriptor) -> None:
        """Walk. top: the manifest; its size is 0 where that is not known."""
        self._known = True
        manifest, state = await self._look(top.digest)
        self._add(top, manifest, state)
        if manifest is None:
            self._known = False
            return
        if not _is_index(manifest):
            self._add_blobs([manifest])
            return
        listed = await self._listed(manifest, depth=1)
        chosen = {entry.descriptor.digest for entry in self._platforms.choose(listed)}
        if not chosen:
            self._problem = f"there is nothing for {self._platforms} in it"
        wanted = []
        for entry in listed[:MOST]:
            digest = entry.descriptor.digest
            found, state = await self._look(digest)
            platform = None if entry.platform is None else str(entry.platform)
            self._add(entry.descriptor, found, state, platform=platform, chosen=digest in chosen)
            if digest in chosen:
                self._known = self._known and found is not None
                wanted += [found] if found is not None else []
        self._add_blobs(wanted)

    def pull(self, *, for_tag: bool) -> Pull:
        """Return what a pull would do. for_tag: it begins with a question about the tag."""
        ours = self._repository.source is None
        needed = [part for part in self.parts if part.chosen]
        missing = [part for part in needed if part.state == "missing"]
        manifests = sum(part.kind in ("index", "manifest") for part in missing)
        unknown_top = not self.parts
        if ours and missing:
            self._problem = self._problem or f"{len(missing)} parts of it were never pushed, or are lost"
        return Pull(
            platform=str(self._platforms),
            known=self._known,
            manifests=0 if ours else manifests + unknown_top,
            blobs=0 if ours else len(missing) - manifests,
            bytes=0 if ours else sum(part.size for part in missing),
            confirmations=sum(part.state == "unconfirmed" for part in needed),
            counted=0 if ours else manifests + unknown_top,
            for_tag=for_tag,
            problem=self._problem,
        )

    async def _listed(self, index: Manifest, *, depth: int) -> list[Entry]:
        """Return what an index lists, that of the indexes in it, as far as they are here, in their place."""
        found: list[Entry] = []
        for entry in self._platforms.listed(index):
            if entry.descriptor.media_type not in _INDEXES or depth >= DEPTH:
                found.append(entry)
                continue
            inner, state = await self._look(entry.descriptor.digest)
            self._add(entry.descriptor, inner, state)
            if inner is None:
                self._known = False
            else:
                found += await self._listed(inner, depth=depth + 1)
        return found

    async def _look(self, digest: Digest) -> tuple[Manifest | None, State]:
        manifest, may_read = await self._manifests.look(self._repository, digest)
        if manifest is None:
            return None, "missing"
        return manifest, "kept" if may_read else "unconfirmed"

    def _blob(self, blob: Descriptor) -> State:
        here, may_read = self._blobs.look(self._repository, blob.digest)
        if not here or (self._repository.source is None and not may_read):
            return "missing"
        return "kept" if may_read else "unconfirmed"

    def _add(
        self,
        descriptor: Descriptor,
        manifest: Manifest | None,
        state: State,
        *,
        platform: str | None = None,
        chosen: bool = True,
    ) -> None:
        part = Part(
            kind="manifest",
            digest=str(descriptor.digest),
            size=descriptor.size if manifest is None else len(manifest.raw),
            state=state,
            platform=platform,
            chosen=chosen,
        )
        if manifest is not None and _is_index(manifest):
            part = replace(part, kind="index")
        elif manifest is not None:
            blobs = {blob.digest: blob for blob in manifest.blobs if not blob.foreign}.values()
            kept = [blob for blob in blobs if self._blob(blob) != "missing"]
            part = replace(
                part,
                blobs=len(blobs),
                blobs_kept=len(kept),
                bytes=sum(blob.size for blob in blobs),
                bytes_kept=sum(blob.size for blob in kept),
            )
        self.parts.append(part)

    def _add_blobs(self, manifests: Sequence[Manifest]) -> None:
        """Add the blobs of the images that are pulled, each once."""
        seen: set[Digest] = set()
        for manifest in manifests:
            for blob in manifest.blobs:
                if blob.foreign or blob.digest in seen:
                    continue
                seen.add(blob.digest)
                self.parts.append(
                    Part(
                        kind="config" if blob is manifest.config else "layer",
                        digest=str(blob.digest),
                        size=blob.size,
                        state=self._blob(blob),
                    )
                )


def _is_index(manifest: Manifest) -> bool:
    return bool(manifest.manifests) or manifest.descriptor.media_type in _INDEXES
