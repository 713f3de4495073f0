"""A folder of images, watched: its entries as repositories, and their blobs once they are verified.

Nothing of it is copied, so what an operator does to the files shows:

- A new, changed or removed entry is noticed within seconds by its signature (``scan.py``). What cannot be read is
  tried once more before it is reported, as it may still be being copied; the rest is served meanwhile.
- The blobs of an archive that was replaced or rewritten are gone at once, as their places are: until it has been read
  anew. Those of a layout are files of their own and stay.
- A blob is verified before it is given out, in the state its file has; a file in another state is verified anew.
- A file that is rewritten in place while it is being sent can spoil that one transfer: ``PackageBlob.intact`` tells.
  Files that are replaced by renaming others onto them never do; who was reading the old one gets all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cachetools import LRUCache

from mirror.oci.manifest import Descriptor, Manifest, parse_manifest
from mirror.oci.names import Digest, RepositoryName, Tag
from mirror.packages.archive import read_archive
from mirror.packages.base import PackageBlob
from mirror.packages.entry import DAMAGED, Entry
from mirror.packages.files import FileId
from mirror.packages.layout import read_layout
from mirror.packages.problems import Problem, Stopped
from mirror.packages.scan import Found, Kind, scan
from mirror.packages.verdicts import Verdicts
from mirror.packages.verify import Verifier, in_pool

INTERVAL = 2.0
"""Seconds between two looks at the folder."""

SHARE = 10
"""Times as long as walking through the folder takes, and no less, it is left alone afterwards."""

FIRST_ROUND = 10.0
"""Seconds a start waits for the folder to be read; what takes longer is there later."""

ATTEMPTS = 3
"""How often a blob is opened whose file changes while it is verified."""

SHOWN = 3
"""Problems of one entry that are told in full."""

PARSED = 1024
"""Manifests kept parsed."""

logger = logging.getLogger("mirror.packages")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found at a path the last time. settled: it need not be read again unless it changes."""

    found: Found
    settled: bool
    entry: Entry | None


class PackageFolder:
    """Serves a folder. Belongs to one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        prefix: str = "local",
        limit: int = 4 * 1024 * 1024,
        leading: bool = True,
        retired: Callable[[], bool] = lambda: False,
        verdicts: Path | None = None,
        interval: float = INTERVAL,
    ) -> None:
        """prefix: what the names of its repositories begin with. limit: bytes of a manifest.

        leading: this worker, one among several, reports problems and verifies blobs before anybody asks for them;
        until it is retired, as there is another one then.
        verdicts: a file through which the workers tell each other what they verified; None for none.
        interval: seconds between two looks at the folder.
        """
        self._folder = folder
        self._prefix = prefix
        self._limit = limit
        self._leading = leading
        self._retired = retired
        self._interval = interval
        self._walked = 0.0
        self._known: dict[str, _Known] = {}
        self._owned: set[RepositoryName] = set()
        self._entries: dict[RepositoryName, Entry] = {}
        self._names: tuple[RepositoryName, ...] | None = None
        self._parsed: LRUCache[tuple[Digest, str], Manifest] = LRUCache(PARSED)
        self._verdicts = Verdicts(verdicts)
        self._verifier = Verifier(self._verdicts)
        self._wrong: dict[str, set[Digest]] = {}
        self._unverified: deque[Entry] = deque()
        self._more = asyncio.Event()
        self._stopping = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="packages-scan")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the folder, and go on watching it. What takes long to read is there later."""
        await in_pool(self._pool, self._start_verdicts)
        first = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._watch(first)))
        if self._leading:
            self._tasks.append(asyncio.create_task(self._verify_all()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROUND):
                await first.wait()

    async def close(self) -> None:
        """Stop watching."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._verifier.close()
        await asyncio.to_thread(self._pool.shutdown)

    # ---- what the protocol asks ----

    def owns(self, name: RepositoryName) -> bool:
        return name in self._owned  # also while it cannot be read: nobody is to push there meanwhile

    def names(self) -> Sequence[RepositoryName]:
        if self._names is None:
            self._names = tuple(sorted(self._entries))
        return self._names

    def tags(self, name: RepositoryName) -> Sequence[Tag]:
        entry = self._entries.get(name)
        return tuple(entry.contents.tags) if entry else ()

    def tag(self, name: RepositoryName, tag: Tag) -> Descriptor | None:
        entry = self._entries.get(name)
        digest = entry.contents.tags.get(tag) if entry else None
        return entry.contents.manifests[digest].descriptor if entry and digest else None

    def manifest(self, name: RepositoryName, digest: Digest) -> Manifest | None:
        entry = self._entries.get(name)
        row = entry.contents.manifests.get(digest) if entry else None
        if row is None:
            return None
        key = (digest, row.content_type)
        found = self._parsed.get(key)
        if found is None:
            found = self._parsed[key] = parse_manifest(row.raw, content_type=row.content_type, digest=digest)
        return found

    def referrers(self, name: RepositoryName, subject: Digest) -> Sequence[Manifest]:
        entry = self._entries.get(name)
        digests = entry.contents.referrers.get(subject, ()) if entry else ()
        return [found for digest in digests if (found := self.manifest(name, digest)) is not None]

    def size(self, name: RepositoryName, digest: Digest) -> int | None:
        entry = self._entries.get(name)
        opened = entry.source.open(digest) if entry else None
        if opened is None:
            return None
        try:
            return None if self._verifier.known(opened, digest) is False else opened.size
        finally:
            opened.close()

    async def open(self, name: RepositoryName, digest: Digest) -> PackageBlob | None:
        for _ in range(ATTEMPTS):
            entry = self._entries.get(name)
            opened = entry.source.open(digest) if entry else None
            if entry is None or opened is None:
                return None
            try:
                verdict = await self._verifier.check(opened, digest)
                if verdict is False:
                    self._report_blob(entry, digest)
                    return None
                if verdict and FileId.of(os.fstat(opened.fd)) == opened.file:
                    blob = PackageBlob(opened.fd, opened.offset, opened.size, opened.file)
                    opened.fd = -1  # the caller's now
                    return blob
            finally:
                opened.close()
        return None

    # ---- watching ----

    def _start_verdicts(self) -> None:
        self._verdicts.start(leading=self._leading)

    async def _watch(self, first: asyncio.Event) -> None:
        while True:
            try:
                await self._look()
            except Exception:  # whatever it is, what was read before is served, and the next look may succeed
                logger.exception("packages: looking through %s failed; it is tried again", self._folder)
            if not first.is_set():
                logger.info("packages: %d repositories in %s", len(self._entries), self._folder)
                first.set()
            await asyncio.sleep(max(self._interval, SHARE * self._walked))

    async def _look(self) -> None:
        """Look once: read what has changed, forget what has gone."""
        self._verdicts.add(await in_pool(self._pool, self._verdicts.read), True)
        began = time.monotonic()
        listed = await in_pool(self._pool, scan, self._folder, self._prefix)
        self._walked = time.monotonic() - began
        self._owned = {found.name for found in listed if found.name}
        paths = {found.path for found in listed}
        for path in [path for path in self._known if path not in paths]:
            self._replace(path, None)
            self._wrong.pop(path, None)
        for found in listed:
            known = self._known.get(found.path)
            if known is None or not known.settled or known.found != found:
                await self._read(found, known)

    async def _read(self, found: Found, known: _Known | None) -> None:
        """Read an entry, and report what is wrong with it when it has been the same twice."""
        again = known is not None and known.found == found
        old = known.entry if known else None
        if not again:
            self._wrong.pop(found.path, None)
        try:
            entry = await in_pool(self._pool, self._entry, found)
        except Problem as problem:
            # a layout whose index is just being rewritten is served as it was; places in an archive are void
            kept = old if found.kind is Kind.LAYOUT and not (again or found.problem) else None
            self._replace(found.path, _Known(found, again, kept))
            if again:
                self._report("%s is not served: it %s", found.path, problem)
            return
        settled = again or not found.recent
        self._replace(found.path, _Known(found, settled, entry))
        if not settled:
            return
        self._unverified.append(entry)
        self._more.set()
        if problems := entry.contents.problems:
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            self._report("%s is served in part: %s", found.path, "; ".join(problems[:SHOWN]) + more)

    def _entry(self, found: Found) -> Entry:
        """Read an entry. Blocks. Raises: Problem, Stopped."""
        if self._stopping:
            raise Stopped
        if found.problem:
            raise Problem(found.problem)
        path = str(self._folder / found.path)
        try:
            if found.kind is Kind.LAYOUT:
                source, contents = read_layout(path, self._limit)
            else:
                source, contents = read_archive(path, self._limit, lambda: self._stopping)
        except OSError as error:
            raise Problem(f"cannot be read ({error.strerror}); give this user the right to, or remove it") from error
        except (Problem, Stopped):
            raise
        except Exception as error:  # whatever one entry does, the others are served
            logger.debug("packages: reading %s failed", path, exc_info=True)
            raise Problem(f"cannot be understood ({error!r}), which should not happen; remove it") from error
        return Entry(name=found.name, path=found.path, source=source, contents=contents)

    def _replace(self, path: str, known: _Known | None) -> None:
        """Note what is at a path now, None for nothing; serve that instead of what was there."""
        old, entry = self._known.pop(path, None), known.entry if known else None
        if old and old.entry and self._entries.get(old.entry.name) is old.entry:
            del self._entries[old.entry.name]
        if known:
            self._known[path] = known
        if entry:
            self._entries[entry.name] = entry
        self._names = None

    # ---- verifying before anybody asks ----

    async def _verify_all(self) -> None:
        """Verify the blobs of each entry, one after the other."""
        while True:
            while self._unverified:
                entry = self._unverified.popleft()
                try:
                    await self._verify(entry)
                except Exception:  # the others are verified all the same; this one when it is asked for
                    logger.exception("packages: verifying %s failed", entry.path)
            self._more.clear()
            await self._more.wait()

    async def _verify(self, entry: Entry) -> None:
        for digest in await in_pool(self._pool, list[Digest], entry.source.digests()):
            if self._entries.get(entry.name) is not entry or self._retired():
                return  # it has been read anew, or is gone; or another worker does this now
            opened = entry.source.open(digest)
            if opened is None:
                continue
            try:
                if await self._verifier.check(opened, digest, urgent=False) is False:
                    self._report_blob(entry, digest)
            finally:
                opened.close()
            await asyncio.sleep(0)  # what has been verified already costs no waiting

    def _report_blob(self, entry: Entry, digest: Digest) -> None:
        """Say that a blob is wrong, once as long as its entry does not change."""
        wrong = self._wrong.setdefault(entry.path, set())
        if digest not in wrong:
            wrong.add(digest)
            what = f"its blob {digest} has other bytes than its digest says; {DAMAGED}"
            self._report("%s is served in part: %s", entry.path, what)

    def _report(self, message: str, path: str, what: object) -> None:
        """Say what is wrong, in one line. One worker does so for all."""
        if self._leading and not self._retired():
            logger.error(f"packages: {message}", self._folder / path, what)
