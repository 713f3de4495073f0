"""What a mirror would do with an image, found out without doing it.

Nothing here knows how a mirror decides. The router is asked which repository is meant, the rules whether it may be
pulled; then the very services that answer clients answer once, from what is kept, with upstreams that note what they
would be asked and cannot be reached. Nothing is written, and nobody is asked but by ``ask``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mirror.access.identity import Action
from mirror.access.policy import Policy
from mirror.config import Tags
from mirror.metadata.base import MetadataStore, TagRecord
from mirror.oci.errors import RegistryError, StorageFailed
from mirror.oci.manifest import Descriptor
from mirror.oci.names import Digest, Reference, Repository, Tag, try_digest
from mirror.registry.asked import Asked, read_asked
from mirror.registry.blobs import BlobService
from mirror.registry.errors import from_record
from mirror.registry.explained import (
    Answer,
    Explained,
    Meant,
    MirrorOf,
    Move,
    Readers,
    Request,
    Rule,
    TagKept,
    UpstreamOf,
    UpstreamsWord,
    Writing,
)
from mirror.registry.listening import Listening
from mirror.registry.manifests import ManifestService
from mirror.registry.pushes import PushService
from mirror.registry.walk import Platforms, Walk
from mirror.upstream.about import About
from mirror.upstream.base import Upstream
from mirror.upstream.router import Meaning, Router
from mirror.upstream.rules import Rules

MOVES, READERS = 5, 5
"""How many moves of a tag, and how many repositories that may read something, are told."""
HUB = "docker.io"
_ANY = Digest("sha256", 64 * "0")
_ATTEMPTS = 5


class Describable(Protocol):
    """One registry that can be described."""

    def about(self) -> About: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An upstream, for who explains it. order: as of ``Chain``. mirrors: each, and whether it is asked for tags."""

    upstream: Upstream
    order: Callable[[Tag | Digest], Sequence[int | None]]
    registry: Describable
    mirrors: Sequence[tuple[Describable, bool]]
    offline: bool

    def rests(self, target: Tag | Digest | None) -> str | None:
        """Say why nobody is asked now; None when somebody is. target: of a list it is None."""
        found = []
        for at in self.order(Tag("latest") if target is None else target):
            resting = (self.registry if at is None else self.mirrors[at][0]).about().resting
            if resting is None or not resting.wait:
                return None
            found.append(resting)
        return f"{self.upstream.name} {found[-1].cause} and is left alone" if found else None


class Metadata(MetadataStore, Protocol):
    """The metadata, looked at."""

    async def unchanged(self) -> bool: ...
    def is_public(self, digest: Digest) -> bool: ...
    async def readers(self, digest: Digest, *, n: int) -> list[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What answers clients, with upstreams that cannot be reached. known: by the upstream's name."""

    metadata: Metadata
    manifests: ManifestService
    blobs: BlobService
    pushes: PushService
    router: Router
    listening: Listening
    known: Callable[[str], Known]
    notes: tuple[str, ...] = ()


class Explainer:
    """Explains images. root: the folder, for people. ports: those the service listens on. clock: Unix seconds.

    tags: the settings of each upstream. configured: what each is configured as.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractAsyncContextManager[Parts]],
        *,
        root: str,
        rules: Rules,
        policy: Policy,
        tags: Mapping[str, Tags],
        configured: Mapping[str, str],
        ports: Collection[int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._opened = opened
        self._root = root
        self._rules = rules
        self._policy = policy
        self._tags = tags
        self._configured = configured
        self._ports = ports
        self._clock = clock

    async def explain(self, text: str, platforms: Platforms[Any], *, ask: bool = False) -> Explained:
        """Explain an image. ask: the upstream what its tag points at now.

        Raises: NotAnImage; StorageFailed when what is kept cannot be read.
        """
        for _ in range(_ATTEMPTS):
            async with self._opened() as parts:
                found = await self._explain(parts, text, platforms, ask)
                if await parts.metadata.unchanged():
                    return found
        raise StorageFailed("the metadata is opened and closed all the time; try again")

    async def _explain(self, parts: Parts, text: str, platforms: Platforms[Any], ask: bool) -> Explained:
        asked = read_asked(text, parts.router, ports=self._ports)
        notes = [*parts.notes, *([asked.guess] if asked.guess else ())]
        base = Explained(
            reference=text,
            root=self._root,
            request=Request(path=asked.path, ns=asked.ns, host=asked.host),
            meant=None,
            notes=tuple(notes),
            answer=Answer(asks=False, status=None),
            who=self._policy.who(Action.PULL),
        )
        try:
            meaning = parts.router.explain(ns=asked.ns, host=asked.host, prefix=None, name=asked.name)
        except RegistryError as error:
            return replace(base, answer=_error(error))
        repository = meaning.repository
        base = replace(
            base,
            meant=self._meant(meaning, asked),
            notes=(*notes, *_hub(parts.router, asked, repository)),
            by_tag=self._rule(repository, asked.tag) if asked.tag else None,
            by_digest=self._rule(repository, None),
            upstream=self._upstream(parts, repository, asked),
            push=self._writing(parts, repository, asked),
        )
        record = parts.metadata.tag(repository, asked.tag) if asked.tag else None
        base = replace(base, tag=await self._kept(parts, record) if record else None)
        try:
            self._rules.check(repository)
            self._rules.check(repository, asked.target)
        except RegistryError as error:
            return replace(base, answer=_error(error), down=_error(error))
        now, down = await self._answers(parts, repository, asked)
        said = await self._ask(parts, repository, asked, record) if ask else None
        base = replace(base, answer=now, down=down, said=said)
        return await self._with_content(parts, base, repository, asked, record, platforms)

    # ---- what it means ----

    def _meant(self, meaning: Meaning, asked: Asked) -> Meant:
        repository = meaning.repository
        source = repository.source
        said = {
            "ns": f"?ns={meaning.said} names it",
            "host": f"the Host header, {meaning.said}, names it",
            "prefix": f"{meaning.said} stands before /v2",
            "path": f"the first part of the path, {meaning.said}, names it",
            "local": f'the name matches "{meaning.said}" of local: it is our own',
            "packages": "it is in the packages folder: it is our own",
            "default": "nothing names an upstream, so it is default_upstream",
        }
        official = repository.name.startswith("library/") and not asked.name.endswith(repository.name)
        return Meant(
            upstream=source,
            repository=repository.name,
            by=meaning.by,
            why=said[meaning.by],
            configured=self._configured.get(source) if source is not None else None,
            official=source is not None and official,
        )

    def _rule(self, repository: Repository, tag: Tag | None) -> Rule:
        ruling = self._rules.ruling(repository)
        if ruling.allowed and tag is not None:
            ruling = self._rules.ruling(repository, tag)
        return Rule(allowed=ruling.allowed, rule=ruling.why)

    def _upstream(self, parts: Parts, repository: Repository, asked: Asked) -> UpstreamOf | None:
        if repository.source is None:
            return None
        known = parts.known(repository.source)

        def words(target: Tag | Digest) -> tuple[str, ...]:
            return tuple("the registry" if at is None else f"mirror {at + 1}" for at in known.order(target))

        return UpstreamOf(
            about=known.registry.about(),
            offline=known.offline,
            mirrors=tuple(MirrorOf(about=mirror.about(), tags=resolve) for mirror, resolve in known.mirrors),
            for_tags=words(asked.tag or Tag("latest")),
            for_digests=words(_ANY),
        )

    def _writing(self, parts: Parts, repository: Repository, asked: Asked) -> Writing:
        try:
            parts.pushes.check_writable(repository, asked.name)
        except RegistryError as error:
            return Writing(allowed=False, who=None, why=error.message)
        return Writing(allowed=True, who=self._policy.who(Action.PUSH), why=None)

    async def _kept(self, parts: Parts, record: TagRecord) -> TagKept:
        source, now = record.repository.source, self._clock()
        settings = self._tags.get(source) if source is not None else None
        stale_for = settings.stale_for if settings else None
        moves = await parts.metadata.history(record.repository, record.tag, n=MOVES)
        failed = record.trouble is not None and now < record.retry_at
        return TagKept(
            tag=record.tag,
            digest=str(record.digest),
            checked_at=record.checked_at,
            fresh=source is None or now < record.fresh_until,
            fresh_until=None if source is None else record.fresh_until,
            stale_until=None if stale_for is None else record.fresh_until + stale_for,
            previous=str(record.previous) if record.previous else None,
            trouble=from_record(json.loads(record.trouble)).message if failed and record.trouble else None,
            history=tuple(
                Move(at=move.at, digest=str(move.digest) if move.digest else None, origin=move.origin) for move in moves
            ),
        )

    # ---- what is answered ----

    async def _answers(self, parts: Parts, repository: Repository, asked: Asked) -> tuple[Answer, Answer]:
        """Return what a client gets now, and what it would if the upstream could not be reached."""
        try:
            found = await parts.manifests.get(Reference(repository, asked.target))
        except RegistryError as error:
            down = _error(error)
        else:
            digest = str(found.descriptor.digest)
            down = Answer(asks=False, status=200, digest=digest, stale=found.warning)
        return (Answer(asks=True, status=None) if parts.listening.asked else down), down

    async def _ask(
        self, parts: Parts, repository: Repository, asked: Asked, record: TagRecord | None
    ) -> UpstreamsWord | None:
        """Ask the upstream what the tag points at now, or whether it has the digest: by HEAD, which does not count."""
        if repository.source is None:
            return None
        try:
            found = await parts.known(repository.source).upstream.resolve(repository.name, asked.target)
        except RegistryError as error:
            return UpstreamsWord(digest=None, moved=None, problem=error.message)
        before = asked.target if isinstance(asked.target, Digest) else record.digest if record else None
        moved = None if before is None or found.digest is None else found.digest != before
        return UpstreamsWord(digest=str(found.digest) if found.digest else None, moved=moved, problem=None)

    # ---- what it is made of ----

    async def _with_content(
        self,
        parts: Parts,
        base: Explained,
        repository: Repository,
        asked: Asked,
        record: TagRecord | None,
        platforms: Platforms[Any],
    ) -> Explained:
        """Add what is known of the content, and what a pull of it would do."""
        top = _top(asked, base, record)
        for_tag = f"HEAD manifests/{asked.target}" in parts.listening.asked and not isinstance(asked.target, Digest)
        walk = Walk(parts.manifests, parts.blobs, repository, platforms)
        if top is None:
            return base if repository.source is None else replace(base, pull=walk.pull(for_tag=for_tag))
        size = record.size if record is not None and record.digest == top else 0
        await walk.start(Descriptor(media_type="", digest=top, size=size))
        if walk.parts[0].state != "missing":
            readers = Readers(
                public=parts.metadata.is_public(top),
                repositories=tuple(await parts.metadata.readers(top, n=READERS)),
            )
            base = replace(base, readers=readers)
        return replace(base, parts=tuple(walk.parts), pull=walk.pull(for_tag=for_tag))


def _top(asked: Asked, base: Explained, record: TagRecord | None) -> Digest | None:
    """Return the manifest a client would be given, as far as that is known."""
    if isinstance(asked.target, Digest):
        return asked.target
    if base.said is not None and base.said.digest is not None:
        return try_digest(base.said.digest)
    return record.digest if record is not None else try_digest(base.answer.digest)


def _hub(router: Router, asked: Asked, repository: Repository) -> list[str]:
    """Say when clients that name Docker Hub, where no registry is written, mean something else."""
    if asked.ns is not None or asked.host is not None:
        return []
    try:
        theirs: Repository | None = router.route(ns=HUB, host=None, prefix=None, name=asked.name)
    except RegistryError:
        theirs = None
    if theirs == repository:
        return []
    means = "which this mirror does not know" if theirs is None else f"which is {theirs}"
    return [f"containerd says ?ns={HUB} where no registry is written, {means}; write one to be clear"]


def _error(error: RegistryError) -> Answer:
    return Answer(asks=False, status=error.status, code=str(error.code), message=error.message)
