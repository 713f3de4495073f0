"""Lists of upstreams' repositories: got as a whole, remembered (``remembered.py``), and paged here as ours are.

Tags are the upstream's and those kept here. Referrers are the upstream's, by its API or, where it has none, from the
index under the fallback tag: a list of them is believed as the upstream gives it, and says nothing of what may be
read. When the upstream fails and nothing is remembered, the tags kept here are answered, with a warning that they
may not be all; referrers are never guessed: "none" would mean "not signed".
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from mirror.config import Tags
from mirror.metadata.base import MetadataStore
from mirror.oci.errors import ManifestUnknown, NameUnknown, Unknown, UpstreamError, UpstreamFailed, UpstreamInvalid
from mirror.oci.manifest import OCI_INDEX, Descriptor, parse_descriptor
from mirror.oci.names import Digest, Reference, Repository, RepositoryName, Tag, referrers_tag, try_tag
from mirror.registry.errors import reason_of
from mirror.registry.lists import (
    AT_ONCE,
    Page,
    counted,
    counted_referrers,
    descriptor_json,
    fitting,
    page_of,
)
from mirror.registry.manifests import ManifestService
from mirror.registry.remembered import INLINE_ENTRIES, Given, Recalled, RememberedLists, Wanted, said
from mirror.store.base import Leases, Memo
from mirror.store.threads import in_thread
from mirror.upstream.base import Upstream

log = logging.getLogger("mirror.lists")
T = TypeVar("T")

PAGE = 1_000
"""Tags of one page an upstream is asked for."""
MOST_PAGES = 200
"""Pages of tags of one repository that are asked for."""
MOST_TAGS = 200_000
"""Tags of one repository that are taken from an upstream."""


class PulledLists:
    """Lists of every upstream's repositories. settings: upstream name → its ``tags`` section. clock: Unix seconds."""

    def __init__(
        self,
        *,
        leases: Leases,
        metadata: MetadataStore,
        memo: Memo,
        manifests: ManifestService,
        upstreams: Mapping[str, Upstream],
        settings: Mapping[str, Tags],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._metadata = metadata
        self._manifests = manifests
        self._upstreams = upstreams
        self._settings = settings
        self._clock = clock
        self._tags: RememberedLists[Tag] = RememberedLists(
            leases=leases, memo=memo, settings=settings, encode=str, decode=Tag, clock=clock
        )
        self._referrers: RememberedLists[Descriptor] = RememberedLists(
            leases=leases,
            memo=memo,
            settings=settings,
            encode=descriptor_json,
            decode=partial(parse_descriptor, where="a remembered referrer"),
            clock=clock,
        )

    async def tags(self, repository: Repository, *, n: int | None, last: str) -> Page[Tag]:
        """Return a page of tags in ASCII order (end-8a, end-8b).

        Raises: NameUnknown (404 NAME_UNKNOWN); UpstreamError when the upstream fails and no tag is kept.
        """
        upstream, count = self._upstream(repository), counted(n)
        if count == 0:
            return Page((), more=False)
        kept = await self._metadata.tags(repository, n=count + 1, last=last)
        wanted = Wanted("tags", repository, partial(_ask_tags, upstream, repository.name))
        try:
            found = await self._tags.get(wanted, otherwise=bool(kept))
        except (NameUnknown, UpstreamError) as error:
            if isinstance(error, NameUnknown) and self._settings[upstream.name].on_not_found == "forget":
                raise
            usable = await self._usable(repository, count + 1, last)
            if not usable and not await self._usable(repository, 1, ""):
                raise
            page = page_of(usable, count)
            warning = f"only the tags kept here: {said(error)}"
            return Page(page.entries, page.more, hit=True, warning=warning, stale=reason_of(error))
        listed = found.entries[bisect_right(found.entries, last) :][: count + 1]
        page = page_of(list(dict.fromkeys(heapq.merge(listed, kept))), count)
        return _page(page, found)

    async def referrers(
        self, repository: Repository, subject: Digest, *, artifact_type: str | None, n: int | None, last: str
    ) -> Page[Descriptor]:
        """Return a page of the manifests that have a subject (end-12a, end-12b), in the order of digests.

        Raises: NameUnknown (404 NAME_UNKNOWN); UpstreamError when the upstream fails and nothing is remembered.
        """
        upstream, count = self._upstream(repository), counted_referrers(n)
        if count == 0:
            return Page((), more=False)
        ask = partial(self._ask_referrers, upstream, repository, subject)
        found = await self._referrers.get(Wanted(f"referrers of {subject}", repository, ask))
        after = found.entries[bisect_right(found.entries, last, key=_digest) :]
        matching = (descriptor for descriptor in after if artifact_type in (None, descriptor.artifact_type))
        listed = list(islice(matching, count + 1))
        page = page_of(listed, min(count, fitting(listed)))
        return _page(page, found)

    async def close(self) -> None:
        await self._tags.close()
        await self._referrers.close()

    def _upstream(self, repository: Repository) -> Upstream:
        upstream = self._upstreams.get(repository.source or "")
        if upstream is None:
            raise NameUnknown(f"{repository} is not known here", detail={"name": repository.name})
        return upstream

    async def _usable(self, repository: Repository, count: int, last: str) -> Sequence[Tag]:
        """Return up to ``count`` kept tags after ``last`` that are answered while the upstream cannot be asked."""
        stale_for = self._settings[repository.source or ""].stale_for
        if stale_for is None:
            return await self._metadata.tags(repository, n=count, last=last)
        found: list[Tag] = []
        while len(found) < count and (some := await self._metadata.tags(repository, n=AT_ONCE, last=last)):
            last = some[-1]
            records = (self._metadata.tag(repository, tag) for tag in some)
            found += [record.tag for record in records if record and self._clock() < record.fresh_until + stale_for]
        return found[:count]

    async def _ask_referrers(self, upstream: Upstream, repository: Repository, subject: Digest) -> Given[Descriptor]:
        """Get the referrers from the upstream: sorted, each digest once, as it was listed first."""
        listed: Sequence[Descriptor] | None = await upstream.referrers(repository.name, subject)
        warning = None
        if listed is None:
            listed, warning = await self._tagged(repository, subject)
        ordered = _ordered(listed) if len(listed) <= INLINE_ENTRIES else await in_thread(_ordered, listed)
        return Given(ordered, warning)

    async def _tagged(self, repository: Repository, subject: Digest) -> tuple[Sequence[Descriptor], str | None]:
        """Return what the index under the fallback tag lists ("Referrers Tag Schema"), and why that is stale."""
        try:
            answer = await self._manifests.get(Reference(repository, referrers_tag(subject)))
        except ManifestUnknown:
            return (), None
        index = answer.manifest
        if index is None or index.descriptor.media_type != OCI_INDEX:
            return (), answer.warning
        return [child for child in index.manifests if child.media_type], answer.warning


def _page(page: Page[T], found: Recalled[T]) -> Page[T]:
    """Return a page with what is to be said of the list it is of."""
    return Page(page.entries, page.more, hit=found.hit, warning=found.warning, stale=found.stale)


async def _ask_tags(upstream: Upstream, repository: RepositoryName) -> Given[Tag]:
    """Get all tags from the upstream, page by page; sorted, each once, without what cannot be a tag.

    Raises: NameUnknown (404) when it has no such repository; UpstreamInvalid (502) when the pages do not end;
    UpstreamError.
    """
    found: set[Tag] = set()
    dropped, example = 0, ""
    marks: set[str] = set()
    n, last = PAGE, None
    for at in range(MOST_PAGES):
        try:
            page = await upstream.tags(repository, n=n, last=last)
        except Unknown as error:
            if at == 0:
                raise
            raise UpstreamFailed(
                f"upstream {upstream.name} has no tags of {repository} any more after {at} pages; try again",
                upstream=upstream.name,
            ) from error
        tags, others = _tags(page.tags) if len(page.tags) <= INLINE_ENTRIES else await in_thread(_tags, page.tags)
        dropped += len(others)
        example = example or next(iter(others), "")[:80]
        known = len(found)
        found |= tags
        if len(found) > MOST_TAGS:
            raise _endless(upstream, repository, f"lists more than {MOST_TAGS} tags")
        if page.next_last is None:
            break
        if page.next_last in marks or (tags and len(found) == known):
            raise _endless(upstream, repository, "gives the same page of tags again and again")
        marks.add(page.next_last)
        n, last = page.next_n or PAGE, page.next_last
        await asyncio.sleep(0)
    else:
        raise _endless(upstream, repository, f"has more than {MOST_PAGES} pages of tags")
    if dropped:
        log.warning(
            "upstream %s lists %d tags of %s that cannot be tags, such as %r; left out",
            upstream.name,
            dropped,
            repository,
            example,
        )
    ordered = sorted(found) if len(found) <= INLINE_ENTRIES else await in_thread(sorted, found)
    return Given(tuple(ordered))


def _tags(listed: Sequence[str]) -> tuple[set[Tag], list[str]]:
    """Return what can be tags, and what cannot."""
    tags = {text: try_tag(text) for text in listed}
    return {tag for tag in tags.values() if tag is not None}, [text for text, tag in tags.items() if tag is None]


def _endless(upstream: Upstream, repository: RepositoryName, what: str) -> UpstreamInvalid:
    message = f"upstream {upstream.name} {what}; none of the tags of {repository} was used"
    log.error("%s", message)
    return UpstreamInvalid(message, upstream=upstream.name)


def _ordered(listed: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    first = {_digest(descriptor): descriptor for descriptor in reversed(listed)}
    return tuple(first[text] for text in sorted(first))


def _digest(descriptor: Descriptor) -> str:
    return str(descriptor.digest)
