"""One upstream registry: what it has, asked over HTTP, and what its answers mean.

The meanings are in one place, ``_limited`` and ``_expect``: 404 is an answer, everything else that is not the content
is a failure of the upstream; and 401 or 403 mean "not there" to us if we have no credentials, "denied" if we have.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Container, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror import config
from mirror.oci.errors import (
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    Unknown,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamRateLimited,
    UpstreamResting,
    UpstreamSpared,
)
from mirror.oci.manifest import ACCEPT, OCI_INDEX, Descriptor, media_type_of
from mirror.oci.names import Digest, RepositoryName, Tag, try_digest
from mirror.oci.ranges import ByteRange, parse_content_range
from mirror.upstream import via
from mirror.upstream.about import About, Resting
from mirror.upstream.asking import Answer, Asker, Caller, Question, Rejected, released, time_for
from mirror.upstream.auth import Authenticator
from mirror.upstream.base import FetchedManifest, Numbers, Resolved, TagPage
from mirror.upstream.body import Body
from mirror.upstream.breaker import Breaker, BreakerOpen, Phase
from mirror.upstream.credentials import Account, account_of
from mirror.upstream.greeting import Greeting, greeted
from mirror.upstream.listing import (
    LIST_LIMIT,
    NO_REFERRERS,
    PARSED_INLINE,
    REFERRERS_LIMIT,
    REFERRERS_PAGES,
    next_page,
    next_query,
    parse_referrers,
    parse_tags,
)
from mirror.upstream.numbers import LocalNumbers
from mirror.upstream.pacing import Connections, Pace, Rate, TryAcquire
from mirror.upstream.quota import Exported, Quota
from mirror.upstream.report import FAILURES, NoMetrics, Reporter, UpstreamMetrics, retry_after
from mirror.upstream.transport import Timeouts, Transport, place_of

log = logging.getLogger("mirror.upstream")

BUSY_FOR = 10
"""Seconds after which a client may ask again when every connection we may have is in use."""

PROBE_LASTS = 1.5
"""Times the time for headers after which a probe nobody heard of any more is made anew: a busy worker may be late."""


class RegistryClient:
    """One registry over HTTP: the upstream itself, or a mirror of it. Used on one event loop, which need not run yet.

    An ``Upstream`` (see ``base``); ``chain.Chain`` makes one of several.
    """

    def __init__(
        self,
        name: str,
        settings: config.Upstream,
        *,
        limits: config.Limits | None = None,
        timeouts: Timeouts | None = None,
        metrics: UpstreamMetrics | None = None,
        resolver: AbstractResolver | None = None,
        clock: Callable[[], float] = time.monotonic,
        proxy: config.Proxy | None = None,
        numbers: Numbers | None = None,
        leases: TryAcquire | None = None,
        mirror_of: str | None = None,
        send_ns: bool = False,
        instance: str | None = None,
        label: str | None = None,
    ) -> None:
        """Prepare; nothing is asked yet.

        name: the one the upstream is configured under. resolver: None for the system's. clock: seconds, ages tokens.
        proxy: for an upstream that says nothing of one. numbers, leases: what all workers share; None when there is
        one alone. mirror_of: the upstream this is a mirror of. send_ns: whether requests say the upstream's name.
        instance: of this service, for ``Via``. label: of the upstream in the counts.
        """
        self.name = name
        self._base = settings.url.rstrip("/")
        self._url = URL(self._base)
        self._host = self._url.host or ""
        self._limits = limits or config.Limits()
        self._timeouts = timeouts or Timeouts.of(settings.timeouts)
        self._metrics: UpstreamMetrics = metrics or NoMetrics()
        self._instance = instance
        self._settings = settings
        numbers = numbers or LocalNumbers()
        place = f"{self._host}:{self._url.port}"
        counted = label or name
        self._report = Reporter(
            upstream=name,
            metrics=self._metrics,
            host=self._host,
            subject=f"the mirror {place} of {name}" if mirror_of else name,
            label=f"{counted} via {place}" if mirror_of else counted,
            place=f'upstreams."{counted}"' if "*" in counted else f"upstreams.{counted}",
        )
        self._breaker = Breaker(numbers, window=settings.breaker_window, probe=PROBE_LASTS * self._timeouts.headers)
        self._transport = Transport(
            settings,
            url=self._url,
            timeouts=self._timeouts,
            resolver=resolver,
            proxy=settings.proxy or proxy,
            breaker=self._breaker,
        )
        self._asker = Asker(
            url=self._url,
            base=self._base,
            transport=self._transport,
            report=self._report,
            metrics=self._metrics,
            within=0.9 * self._timeouts.headers,
            retries=settings.retries,
            floor=settings.quota_floor,
            query={"ns": name} if send_ns else {},
            headers=self._own_headers,
        )
        given: list[Account | None] = [account_of(one, self._url, clock=clock) for one in settings.credentials]
        self._asker.callers = [
            Caller(
                Authenticator(
                    url=self._url,
                    realms=settings.realms,
                    account=account,
                    send=self._asker.ask_realm,
                    report=self._report,
                    # a little before its waiters' own limit, so that they can say it was the token
                    timeout=0.9 * self._timeouts.headers,
                    clock=clock,
                ),
                # By its label as well: who takes another's place in the settings has a quota of its own.
                Quota(numbers, f"{name} {place}", f"{at} {account.label if account else ''}"),
                account.label if account else None,
            )
            for at, account in enumerate(given or [None])
        ]
        self._connections = Connections(leases, f"{name} {place}", settings.connections if leases else None)
        self._rate = Rate(numbers, f"{name} {place}", settings.rate)

    async def resolve(self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a manifest by HEAD (end-3)."""
        question = Question(
            kind="manifest",
            method="HEAD",
            repository=repository,
            path=f"manifests/{target}",
            of=_manifest(repository, target),
            headers={"Accept": ACCEPT},
        )
        async with self._limited(question, ManifestUnknown) as deadline:
            answer = await self._asker.ask(question, deadline=deadline)
            with released(answer.response):
                self._expect(answer, question, ManifestUnknown, 200)
                return _resolved(answer)

    async def manifest(
        self, repository: RepositoryName, target: Tag | Digest, *, confirming: bool = False
    ) -> FetchedManifest:
        """Get a manifest (end-3). Raises UpstreamInvalid when it is over the limit."""
        question = Question(
            kind="manifest",
            method="GET",
            repository=repository,
            path=f"manifests/{target}",
            of=_manifest(repository, target),
            headers={"Accept": ACCEPT},
        )
        async with self._limited(question, ManifestUnknown) as deadline:
            raw, answer = await self._fetch(question, ManifestUnknown, self._limits.manifest, deadline)
            return FetchedManifest(
                raw=raw,
                content_type=answer.response.headers.get("Content-Type"),
                digest=try_digest(answer.response.headers.get("Docker-Content-Digest")),
                anonymous=answer.used.anonymous,
            )

    async def stat_blob(self, repository: RepositoryName, digest: Digest, *, confirming: bool = False) -> Resolved:
        """Ask for a blob by HEAD (end-2)."""
        question = self._of_blob("HEAD", repository, digest, {})
        async with self._limited(question, BlobUnknown) as deadline:
            answer = await self._asker.ask(question, deadline=deadline)
            with released(answer.response):
                self._expect(answer, question, BlobUnknown, 200)
                return _resolved(answer)

    @asynccontextmanager
    async def blob(
        self, repository: RepositoryName, digest: Digest, *, offset: int = 0, window: ByteRange | None = None
    ) -> AsyncIterator[Body]:
        """Get a blob (end-2), from ``offset`` on, or just the bytes of ``window``."""
        headers = {}
        if window is not None:
            headers["Range"] = f"bytes={window.first}-{window.last}"
        elif offset:
            headers["Range"] = f"bytes={offset}-"
        question = self._of_blob("GET", repository, digest, headers)
        async with AsyncExitStack() as stack:
            async with self._limited(question, BlobUnknown, connection=stack) as deadline:
                answer = await self._asker.ask(question, deadline=deadline)
                stack.callback(answer.response.release)
                self._expect(answer, question, BlobUnknown, 200, 206)
                body = self._body(answer, question.of, offset=offset, window=window)
            yield body

    async def tags(self, repository: RepositoryName, *, n: int | None, last: str | None) -> TagPage:
        """Get one page of the repository's tags (end-8a, end-8b)."""
        asked = {key: str(value) for key, value in (("n", n), ("last", last)) if value is not None}
        question = Question(
            kind="tags",
            method="GET",
            repository=repository,
            path=f"tags/list?{urlencode(asked)}" if asked else "tags/list",
            of=f"the tags of {repository}",
            headers={"Accept": "application/json"},
        )
        async with self._limited(question, NameUnknown) as deadline:
            raw, answer = await self._fetch(question, NameUnknown, LIST_LIMIT, deadline)
            if len(raw) > PARSED_INLINE:
                tags = await asyncio.to_thread(parse_tags, raw)
            else:
                tags = parse_tags(raw)
        if tags is None:
            raise self._invalid(answer.response, "answered something that is no list", of=question.of)
        next_n, next_last = next_page(answer.response.headers.getall("Link", []), tags)
        return TagPage(tags=tags, next_n=next_n, next_last=next_last)

    async def referrers(self, repository: RepositoryName, subject: Digest) -> tuple[Descriptor, ...] | None:
        """Get every manifest that has a subject (end-12a). Descriptors that are malformed are left out.

        Raises UpstreamInvalid when the answer is no index, or its pages do not end.
        """
        of = f"the referrers of {repository}@{subject}"
        found: list[Descriptor] = []
        room, query, seen = REFERRERS_LIMIT, "", {""}
        for_page = partial(
            Question, kind="referrers", method="GET", repository=repository, of=of, headers={"Accept": OCI_INDEX}
        )
        async with self._limited(for_page(path=""), NameUnknown) as deadline:
            for _ in range(REFERRERS_PAGES):
                page = for_page(path=f"referrers/{subject}?{query}" if query else f"referrers/{subject}")
                try:
                    raw, answer = await self._fetch(page, NameUnknown, REFERRERS_LIMIT, deadline, gone=NO_REFERRERS)
                except (_Gone, Rejected) as error:
                    if query:
                        raise self._report.failure(
                            UpstreamInvalid, "names a page that is not there", of=of, advice="try again"
                        ) from error
                    if isinstance(error, _Gone):
                        return None
                    raise
                room -= len(raw)
                inline = len(raw) <= PARSED_INLINE
                parsed = parse_referrers(raw) if inline else await asyncio.to_thread(parse_referrers, raw)
                if parsed is None:
                    raise self._invalid(answer.response, "answered something that is no index", of=of)
                listed, dropped = parsed
                if dropped:
                    log.warning("%s: %s: %d descriptors are malformed; left out", self.name, of, dropped)
                found += listed
                following = next_query(answer.response.headers.getall("Link", []))
                if room < 0 or following in seen:
                    break
                if following is None:
                    return tuple(found)
                query = following
                seen.add(query)
        raise self._report.failure(
            UpstreamInvalid, f"answered pages that do not end, or have more than {REFERRERS_LIMIT} bytes,", of=of
        )

    async def greet(self) -> list[Greeting]:
        """Ask for the API itself (end-1) as each account, or as nobody; one after the other, counted by no quota."""
        found = []
        for caller in self._asker.callers:
            deadline = asyncio.get_running_loop().time() + self._timeouts.headers
            found.append(await greeted(self._asker, caller, url=self._url, deadline=deadline))
        return found

    def saving(self) -> UpstreamError | None:
        """Say why requests that count against a quota should not be spent on what can be answered stale."""
        did = self._asker.saving()
        if did is None:
            return None
        return UpstreamSpared(f"{self.name} {did}; {self._asker.advice()}", upstream=self.name)

    def quotas(self) -> Sequence[Exported]:
        """Return what is left of each account's pulls, in the order of the settings; the same in all workers."""
        return self._asker.quotas()

    def about(self) -> About:
        """Return how it is asked, and what all workers know of it now. Nothing is asked."""
        place = place_of(self._url)
        condition = self._breaker.state(place)
        cause = condition.cause
        return About(
            url=self._base,
            proxy=self._transport.way(),
            accounts=tuple(caller.about() for caller in self._asker.callers),
            connections=self._settings.connections,
            rate=self._settings.rate,
            resting=None
            if cause is None
            else Resting(cause=cause.words, since=condition.seconds, wait=self._breaker.wait(place)),
        )

    def is_left_alone(self) -> bool:
        """Say whether its own host is left alone because it does not answer; the same in all workers."""
        return self._breaker.state(place_of(self._url)).phase is not Phase.CLOSED

    def distrust(self, digest: Digest) -> None:
        """Say that there is nobody else to ask."""

    async def close(self) -> None:
        """Close every connection."""
        for caller in self._asker.callers:
            await caller.auth.close()
        await self._transport.close()

    # ---- asking ----

    def _own_headers(self) -> Mapping[str, str]:
        """Return what goes with every request to the registry: the way it took."""
        return {"Via": via.sent(self._instance)} if self._instance else {}

    def _of_blob(self, method: str, repository: RepositoryName, digest: Digest, headers: Mapping[str, str]) -> Question:
        return Question(
            kind="blob",
            method=method,
            repository=repository,
            path=f"blobs/{digest}",
            of=f"blob {digest} of {repository}",
            headers=headers,
        )

    @asynccontextmanager
    async def _limited(
        self, question: Question, unknown: type[Unknown], *, connection: AsyncExitStack | None = None
    ) -> AsyncIterator[float]:
        """Give the block the time of the headers phase, and its failures our meanings.

        Gives the deadline, of the event loop's clock. connection: what keeps the connection slot beyond the block.
        """
        deadline = asyncio.get_running_loop().time() + self._timeouts.headers
        waiting = True
        try:
            async with asyncio.timeout_at(deadline), AsyncExitStack() as stack:
                await (connection or stack).enter_async_context(self._connections)
                waiting = False
                yield deadline
        except Rejected as rejected:
            raise self._not_allowed(rejected, question, unknown) from rejected
        except BreakerOpen as rest:
            wait = max(1, math.ceil(rest.wait))
            raise self._report.failure(
                UpstreamResting,
                f"is left alone, because it {rest.cause} {_ago(rest.since)},",
                of=question.of,
                advice=f"it is asked again in {wait} s",
                host=URL(rest.host).host,
                retry_after=wait,
            ) from rest
        except FAILURES as error:
            if waiting and isinstance(error, TimeoutError):
                raise self._report.failure(
                    UpstreamBusy,
                    f"is asked {self._settings.connections} things at once, which is all connections allows,",
                    of=question.of,
                    advice="try again later",
                    retry_after=BUSY_FOR,
                ) from error
            host = error.host if isinstance(error, aiohttp.ClientConnectorError) else self._host
            raise self._report.translated(error, question.of, host=host) from error

    async def _fetch(
        self,
        question: Question,
        unknown: type[Unknown],
        limit: int,
        deadline: float,
        *,
        gone: Container[int] = (),
    ) -> tuple[bytes, Answer]:
        """Ask for something short and read it; once more when its body breaks off.

        gone: statuses that are answered by _Gone.
        """
        for last in (False, True):
            answer = await self._asker.ask(question, deadline=deadline)
            with released(answer.response):
                if answer.response.status in gone:
                    raise _Gone
                self._expect(answer, question, unknown, 200)
                try:
                    return await self._read(answer.response, question.of, limit), answer
                except UpstreamFailed:
                    if last or not self._settings.retries or not time_for(0, deadline):
                        raise
        raise AssertionError("the last time ends it")

    # ---- what answers mean ----

    def _expect(self, answer: Answer, question: Question, unknown: type[Unknown], *statuses: int) -> None:
        """Pass when the status is one of these, else raise what it means."""
        response = answer.response
        status, host = response.status, response.url.host or ""
        if status in statuses:
            return
        if status == 404:
            raise unknown(f"{self._report.subject} does not have {question.of}")
        if status >= 500 or status in (401, 403, 429):
            # 401, 403 and 429 are of another origin: where it redirects to does not accept its own redirect.
            loop = status == via.LOOP
            raise self._report.failure(
                UpstreamRateLimited if status == 429 else UpstreamFailed,
                f"answered {status}" + (": the request came back to a mirror it had passed" if loop else ""),
                of=question.of,
                advice="check url and mirrors for a loop" if loop else "try again later",
                host=host,
                status=status,
                retry_after=retry_after(response.headers.get("Retry-After")),
            )
        raise self._invalid(response, f"answered {status}, which makes no sense here,", of=question.of)

    def _not_allowed(self, rejected: Rejected, question: Question, unknown: type[Unknown]) -> RegistryError:
        if rejected.user is None:
            return unknown(f"{self._report.subject} does not have {question.of}, or not for those without credentials")
        return self._report.failure(
            UpstreamDenied,
            f"answered {rejected.status} to {rejected.user!r}",
            of=question.of,
            advice=f"check its rights there, and {rejected.setting} under {self._report.place}",
            host=rejected.host,
            status=rejected.status,
        )

    def _invalid(self, response: aiohttp.ClientResponse, did: str, *, of: str) -> UpstreamInvalid:
        host, status = response.url.host or "", response.status
        return self._report.failure(UpstreamInvalid, did, of=of, advice="check its url", host=host, status=status)

    # ---- bodies ----

    async def _read(self, response: aiohttp.ClientResponse, of: str, limit: int) -> bytes:
        """Read a whole body of at most ``limit`` bytes, and not one chunk more."""
        raw = bytearray()
        announced = response.content_length
        try:
            if announced is None or announced <= limit:
                async for chunk in response.content.iter_any():
                    self._metrics.fetched(self._report.label, len(chunk))
                    raw += chunk
                    if len(raw) > limit:
                        break
                else:
                    return bytes(raw)
        except TimeoutError:
            raise
        except FAILURES as error:
            host = response.url.host or ""
            raise self._report.translated(error, of, host=host, body=True) from error
        raise self._invalid(response, f"answered with more than {limit} bytes, the limit,", of=of)

    def _body(self, answer: Answer, of: str, *, offset: int, window: ByteRange | None) -> Body:
        """Check the announced range and size of a blob's answer against what was asked."""
        response = answer.response
        announced = response.content_length
        size: int | None
        if response.status == 200:
            if window is not None:
                raise self._invalid(response, "ignores Range", of=of)
            first, size, length = 0, announced, announced
        else:
            found = parse_content_range(response.headers.get("Content-Range"))
            first = window.first if window else offset
            wrong = (
                found is None
                or found.first != first
                or (announced is not None and announced != found.last - found.first + 1)
            )
            if found is not None and window is not None:
                end = window.last if found.size is None else min(window.last, found.size - 1)
                wrong = wrong or found.last > end or (found.size is not None and found.last < end)
            if wrong or found is None:
                raise self._invalid(response, "sent another range than the one asked for", of=of)
            size = found.size
            length = found.last + 1 - first
            if window is None and size is not None:
                length = size - first
        if (size if size is not None else first + (length or 0)) > self._limits.blob:
            raise self._invalid(response, f"sends more than {self._limits.blob} bytes, the limit,", of=of)
        return Body(
            self._report,
            self._metrics,
            response,
            of,
            offset=first,
            size=size,
            length=length,
            limit=self._limits.blob,
            anonymous=answer.used.anonymous,
            pace=Pace(self._settings.minimum_rate, over=self._timeouts.read),
            rate=self._rate,
        )


def _manifest(repository: RepositoryName, target: Tag | Digest) -> str:
    return f"{repository}{'@' if isinstance(target, Digest) else ':'}{target}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds >= 1 else "just now"


class _Gone(Exception):
    """What was asked for is not there, in the sense its caller gave."""


def _resolved(answer: Answer) -> Resolved:
    response, used = answer.response, answer.used
    return Resolved(
        digest=try_digest(response.headers.get("Docker-Content-Digest")),
        media_type=media_type_of(response.headers.get("Content-Type")),
        size=response.content_length,
        anonymous=used.anonymous,
    )
