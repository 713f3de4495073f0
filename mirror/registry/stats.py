"""What a root has, what it is used for, and what all workers know of its upstreams. Changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mirror.metadata.survey import By, Survey, Surveyed
from mirror.oci.errors import ManifestInvalid
from mirror.oci.manifest import parse_manifest
from mirror.oci.names import try_digest
from mirror.registry.explain import Known
from mirror.store.inventory import Disk, Progress, cached_bytes, disk_of, downloads, pushed_files, uploads
from mirror.upstream.about import About

UNUSED_DAYS = 30
"""Days after which what nobody used counts as unused."""

LARGEST = 4 * 1024**2
"""Bytes of a manifest that is read."""

HITS, MISSES, FETCHED, SERVED = (
    "mirror_cache_hits",
    "mirror_cache_misses",
    "mirror_fetched_bytes",
    "mirror_served_bytes",
)
"""The counters that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What workers counted since the service was started: answers from what was kept, and others; bytes."""

    started_at: float
    hits: int
    misses: int
    served_bytes: int
    fetched_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """An upstream as all workers know it now. mirrors: in the order they are asked."""

    upstream: str
    registry: About
    mirrors: tuple[About, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """All of it. at: Unix seconds. counted: None when no service was ever started here."""

    root: str
    at: float
    unused_days: int
    disk: Disk
    content: Surveyed
    downloads: Progress
    uploads: Progress
    counted: Counted | None
    upstreams: tuple[Condition, ...]


class Upstreams(Protocol):
    """The upstreams, described."""

    def get(self, name: str) -> Known: ...
    async def close(self) -> None: ...


class StatsService:
    """Adds up one root. names: upstreams configured by name. clock: Unix seconds."""

    def __init__(
        self,
        *,
        root: Path,
        survey: Survey,
        counted: Callable[..., Mapping[str, Mapping[str, float]]],
        started_at: Callable[[], float | None],
        known: Callable[[], Upstreams],
        names: Sequence[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._survey = survey
        self._counted = counted
        self._started_at = started_at
        self._known = known
        self._names = names
        self._clock = clock

    def read(self, *, top: int, by: By) -> Statistics:
        """Add up. top: how many repositories and images. Blocks. Raises: StorageFailed."""
        now = self._clock()
        content = self._survey.read(
            lambda: pushed_files(self._root),
            self._named,
            top=top,
            by=by,
            unused_since=now - UNUSED_DAYS * 86_400,
        )
        conditions = asyncio.run(self._conditions(self._known(), content))
        return Statistics(
            root=str(self._root),
            at=now,
            unused_days=UNUSED_DAYS,
            disk=disk_of(self._root),
            content=content,
            downloads=downloads(self._root),
            uploads=uploads(self._root),
            counted=self._counts(),
            upstreams=conditions,
        )

    def _named(self, digest: str) -> list[str]:
        """Return what a manifest that is here names."""
        found = try_digest(digest)
        raw = cached_bytes(self._root, found, limit=LARGEST) if found is not None else None
        try:
            manifest = parse_manifest(raw, content_type=None) if raw is not None else None
        except ManifestInvalid:
            manifest = None
        return [str(child.digest) for child in manifest.children] if manifest is not None else []

    def _counts(self) -> Counted | None:
        started_at = self._started_at()
        if started_at is None:
            return None
        found = self._counted(HITS, MISSES, SERVED, FETCHED)
        hits, misses, served, fetched = (int(sum(found[name].values())) for name in (HITS, MISSES, SERVED, FETCHED))
        return Counted(started_at=started_at, hits=hits, misses=misses, served_bytes=served, fetched_bytes=fetched)

    async def _conditions(self, known: Upstreams, content: Surveyed) -> tuple[Condition, ...]:
        """Describe the upstreams configured by name, and those of patterns that have something here."""
        try:
            found = []
            for name in dict.fromkeys((*self._names, *(one.source for one in content.sources if one.source))):
                try:
                    one = known.get(name)
                except KeyError:
                    continue  # it was configured once
                mirrors = tuple(mirror.about() for mirror, _ in one.mirrors)
                found.append(Condition(upstream=name, registry=one.registry.about(), mirrors=mirrors))
            return tuple(found)
        finally:
            await known.close()
