"""What is said of an image: how it is understood, what is kept of it, and what a pull of it would do now.

All of it is plain values, as JSON shows them. Times are Unix seconds, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mirror.upstream.about import About

State = Literal["kept", "unconfirmed", "missing"]
"""Whether content is here for a repository; unconfirmed: it is, and the upstream is asked by HEAD whether it has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks. ns: what it says as ``ns``, host: as Host; None where it does not matter."""

    path: str
    ns: str | None
    host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Meant:
    """What the request means. upstream: None for a repository of our own. by: see ``router.By``; why: in words.

    configured: the name or pattern the upstream has in the configuration. official: ``library/`` was put before it.
    """

    upstream: str | None
    repository: str
    by: str
    why: str
    configured: str | None
    official: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client gets. asks: an upstream is asked first. status: None when that decides. stale: why it may be old.

    code, message: of an error. digest: of the manifest.
    """

    asks: bool
    status: int | None
    code: str | None = None
    message: str | None = None
    digest: str | None = None
    stale: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Whether it may be pulled, and by which rule; None where there is none."""

    allowed: bool
    rule: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorOf:
    """A mirror of the upstream. tags: whether it is asked for them as well."""

    about: About
    tags: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamOf:
    """The upstream. offline: never asked. for_tags, for_digests: who is asked, in order; mirrors by number from 1."""

    about: About
    offline: bool
    mirrors: tuple[MirrorOf, ...]
    for_tags: tuple[str, ...]
    for_digests: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Whether it may be pushed to. who: in words. why: when it may not."""

    allowed: bool
    who: str | None
    why: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of the tag; digest None: it was deleted."""

    at: float
    digest: str | None
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TagKept:
    """What is kept of the tag. stale_until: None is for ever; ours are always fresh. trouble: of the last check."""

    tag: str
    digest: str
    checked_at: float
    fresh: bool
    fresh_until: float | None
    stale_until: float | None
    previous: str | None
    trouble: str | None
    history: tuple[Move, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A manifest or blob of the image. platform: of a manifest in an index. chosen: a pull of the platform gets it.

    blobs, blobs_kept, bytes, bytes_kept: of a manifest that is here, what it names; else None.
    """

    kind: Literal["index", "manifest", "config", "layer"]
    digest: str
    size: int
    state: State
    platform: str | None = None
    chosen: bool = True
    blobs: int | None = None
    blobs_kept: int | None = None
    bytes: int | None = None
    bytes_kept: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """What a pull would fetch. known: all of it can be told, as the manifests are here; else it is at least this.

    confirmations: questions by HEAD about content that is here. counted: requests that count against a pull quota.
    for_tag: the tag is asked about first, by HEAD, which does not count. problem: what it would not find. bytes: what
    a download that broke off has already is not taken off.
    """

    platform: str
    known: bool
    manifests: int
    blobs: int
    bytes: int
    confirmations: int
    counted: int
    for_tag: bool
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Who may read the content. public: every repository of an upstream. repositories: the first of those that may."""

    public: bool
    repositories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamsWord:
    """What the upstream said now of the tag. moved: away from what is kept; None when nothing is, or it said no."""

    digest: str | None
    moved: bool | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """All of it. answer: now. down: if its upstream could not be reached. who: who may pull, in words."""

    reference: str
    root: str
    request: Request
    meant: Meant | None
    notes: tuple[str, ...]
    answer: Answer
    down: Answer | None = None
    who: str = ""
    upstream: UpstreamOf | None = None
    by_tag: Rule | None = None
    by_digest: Rule | None = None
    push: Writing | None = None
    tag: TagKept | None = None
    parts: tuple[Part, ...] = ()
    readers: Readers | None = None
    pull: Pull | None = None
    said: UpstreamsWord | None = None
