"""Asking one registry: as whom, how often, and after what pause.

Accounts are tried in turn: first the one with most of its pull quota left, the next when one is refused or rate
limited. What all of them together were told is the most hopeful of it: an account that has to wait might be let in
later, so nobody else's refusal is the answer then. Failures that pass by themselves (no connection, 5xx, a short 429)
are repeated after growing pauses, as long as the time for the answer lasts. A host that does not answer is left alone
for a while (``breaker.py``).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from asyncio import sleep
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp
from cachetools import TTLCache
from yarl import URL

from mirror.oci.errors import UpstreamRateLimited, UpstreamTokenFailed
from mirror.oci.names import RepositoryName
from mirror.upstream.about import AccountState
from mirror.upstream.auth import Authenticator, Authorization, Refused
from mirror.upstream.breaker import BreakerOpen
from mirror.upstream.guard import AddressRefused, same_origin
from mirror.upstream.quota import Exported, Quota, low, pick
from mirror.upstream.report import Reporter, UpstreamMetrics, retry_after, tls_failure
from mirror.upstream.transport import Transport

log = logging.getLogger("mirror.upstream")

REPEATED = frozenset({500, 502, 503, 504})
"""Statuses that may be gone the next time."""
FIRST_PAUSE, GROWS = 0.1, 3.0
"""Seconds before the first repeat, and what each further pause is multiplied by; each is up to a half longer."""
PATIENCE = 3.0
"""Longest ``Retry-After`` in seconds that is waited for; a longer one is the client's to wait for."""
REFUSED_FOR = 60.0
"""Seconds for which an account that a repository was refused to is asked last."""
MARGIN = 0.5
"""Seconds that have to be left for a repeat to make sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request. kind: for the counts. path: below the repository. of: what is asked for, in words.

    repository: None for the API itself.
    """

    kind: str
    method: str
    repository: RepositoryName | None
    path: str
    of: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Return the path below ``/v2/``."""
        return self.path if self.repository is None else f"{self.repository}/{self.path}"

    @property
    def counts(self) -> bool:
        """Say whether it is one of those that pull quotas count: GETs of manifests, and no others."""
        return self.kind == "manifest" and self.method == "GET"


GREETING = Question(kind="ping", method="GET", repository=None, path="", of="the API")


class Rejected(Exception):
    """An account was refused (401 or 403), by the registry or a token endpoint.

    user: who it is, None for nobody. setting: where its login is from.
    """

    def __init__(self, auth: Authenticator, *, host: str, status: int) -> None:
        super().__init__(f"{host} answered {status}")
        self.host = host
        self.status = status
        self.user = auth.user
        self.setting = auth.setting


class _Limited(Exception):
    """An account has to wait. answered: the registry said so now; else it said so before, and was not asked."""

    def __init__(self, *, answered: bool) -> None:
        super().__init__("429" if answered else "rests")
        self.answered = answered


_Refusal = Rejected | UpstreamTokenFailed | UpstreamRateLimited | _Limited
"""What one account may be told, while another may be let in."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: nobody, or an account; and what is left of its quota. label: what to call the account."""

    auth: Authenticator
    quota: Quota
    label: str | None = None

    def about(self) -> AccountState:
        """Return what is known of it now."""
        found = self.quota.exported()
        return AccountState(name=self.label, limit=found.limit, remaining=found.remaining, paused=found.paused)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is no refusal; the caller releases it. used: what went with the request."""

    response: aiohttp.ClientResponse
    used: Authorization


class Asker:
    """Everything between a question and the answer to take. Used on one event loop."""

    def __init__(
        self,
        *,
        url: URL,
        base: str,
        transport: Transport,
        report: Reporter,
        metrics: UpstreamMetrics,
        within: float,
        retries: int,
        floor: float,
        query: Mapping[str, str],
        headers: Callable[[], Mapping[str, str]],
    ) -> None:
        """Prepare. ``callers`` is set by who makes this, and them with this as their way to send.

        url: of the registry, base: its text. within: seconds for an answer of a token endpoint. floor: share of a
        quota that is to be left. query, headers: what goes with every request to the registry.
        """
        self.callers: Sequence[Caller] = ()
        self._url = url
        self._base = base
        self._transport = transport
        self._report = report
        self._metrics = metrics
        self._within = within
        self._retries = retries
        self._floor = floor
        self._query = query
        self._headers = headers
        self._refused: TTLCache[tuple[RepositoryName | None, int], bool] = TTLCache(4096, REFUSED_FOR)

    async def ask(self, question: Question, *, deadline: float) -> Answer:
        """Ask until there is an answer to take. deadline: of the event loop's clock, for everything together.

        Raises: what transport raises; Rejected; UpstreamRateLimited, without asking while every account has to wait;
        what ``Authenticator`` raises.
        """
        patient = self._retries > 0
        while True:
            try:
                return await self._ask_in_turn(question, deadline)
            except _Limited as limited:
                wait = pick(self._quotas, counted=question.counts).wait
                if not patient or wait > PATIENCE or not time_for(wait, deadline):
                    raise self._rate_limited(question, limited, wait) from None
            patient = False
            await sleep(wait + random.uniform(0.01, 0.1))

    async def greet(self, caller: Caller, *, deadline: float) -> tuple[aiohttp.ClientResponse, Authorization]:
        """Ask for the API itself (end-1) as one account, which is how a login is proved. It counts nowhere.

        Returns the last word, whatever it is, to be released by the caller; and what went with the request.
        Raises: what transport raises; ``auth.Refused``; what ``Authenticator`` raises.
        """
        return await self._introduced(caller, GREETING, deadline)

    def saving(self) -> str | None:
        """Say that what is left of every account's quota is not to be spent on what can be answered stale."""
        if not self._floor or not low(self._quotas, self._floor):
            return None
        left = self._left()
        return f"has {left}, which is under quota_floor" if left else self._limits(answered=False)

    def quotas(self) -> Sequence[Exported]:
        """Return what is known of each account, in the order of the settings."""
        return [quota.exported() for quota in self._quotas]

    @asynccontextmanager
    async def ask_realm(
        self, url: URL, *, authorization: str | None, form: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask a token endpoint (``auth.Sender``)."""
        deadline = asyncio.get_running_loop().time() + self._within
        method = "GET" if form is None else "POST"

        def send() -> Awaitable[aiohttp.ClientResponse]:
            return self._transport.open(method, url, authorization=authorization, form=form, deadline=deadline)

        with released(await self._repeated(send, deadline, limited=True)) as response:
            yield response

    # ---- one account after the other ----

    async def _ask_in_turn(self, question: Question, deadline: float) -> Answer:
        """Ask as one account after the other, until one gets more than a refusal."""
        refusals: list[_Refusal] = []
        order = pick(self._quotas, counted=question.counts).order
        if self._refused:
            order = tuple(sorted(order, key=lambda at: (question.repository, at) in self._refused))
        for at in order:
            try:
                return await self._ask_as(self.callers[at], question, deadline)
            except (Rejected, UpstreamTokenFailed) as error:
                if len(self.callers) > 1:
                    self._refused[question.repository, at] = True
                refusals.append(error)
            except (UpstreamRateLimited, _Limited) as error:
                refusals.append(error)
        if len(order) < len(self.callers):
            refusals.append(_Limited(answered=False))
        raise max(refusals, key=_hope)

    @property
    def _quotas(self) -> Sequence[Quota]:
        return [caller.quota for caller in self.callers]

    def _rate_limited(self, question: Question, limited: _Limited, wait: float) -> UpstreamRateLimited:
        """Return the failure that every account has to wait. wait: seconds until one may be asked."""
        return self._report.failure(
            UpstreamRateLimited,
            self._limits(answered=limited.answered),
            of=question.of,
            advice=self.advice(),
            status=429 if limited.answered else None,
            retry_after=max(1, math.ceil(wait)),
        )

    def _limits(self, *, answered: bool) -> str:
        """Say how it limits our rate. answered: by a 429 just now; else perhaps by one before."""
        left = self._left()
        if answered or any(quota.told_to_rest() for quota in self._quotas):
            return f"answered 429 ({left})" if left else "answered 429"
        return f"has {left or 'no pulls left'}"

    def _left(self) -> str:
        """Say how many pulls are left, of all accounts together; empty when that is not known."""
        known = [reading for quota in self._quotas if (reading := quota.reading()).limit is not None]
        if not known:
            return ""
        remaining, limit = sum(one.remaining or 0 for one in known), sum(one.limit or 0 for one in known)
        return f"{remaining} of {limit} pulls left"

    def advice(self) -> str:
        """Say what can be done about a rate limit."""
        place = self._report.place
        if all(caller.auth.user is None for caller in self.callers):
            return f"add credentials under {place}"
        return f"try again later, or add an account under {place}.credentials"

    # ---- as one of them ----

    async def _ask_as(self, caller: Caller, question: Question, deadline: float) -> Answer:
        """Ask; when the registry wants to know who asks, say so and ask once more. Raises: a refusal."""
        try:
            response, used = await self._introduced(caller, question, deadline)
        except Refused as refused:
            raise Rejected(caller.auth, host=refused.host, status=refused.status) from refused
        if same_origin(response.url, self._url) and response.status in (401, 403, 429):
            response.release()
            if response.status == 429:
                raise _Limited(answered=True)
            raise Rejected(caller.auth, host=response.url.host or "", status=response.status)
        return Answer(response, used)

    async def _introduced(
        self, caller: Caller, question: Question, deadline: float
    ) -> tuple[aiohttp.ClientResponse, Authorization]:
        """Ask with what the registry wants to see. Returns its last word, and what went with the request."""
        auth, repository = caller.auth, question.repository
        url = self._url_of(question.place)
        used = await auth.known(repository)
        if question.counts and not await caller.quota.spend():
            raise _Limited(answered=False)
        response = await self._request(question, url, used, caller, deadline)
        if response.status not in (401, 403) or not same_origin(response.url, self._url):
            return response, used
        with released(response):
            if response.status == 403:
                answer = await auth.denied(repository, used=used)
            else:
                lines = response.headers.getall("WWW-Authenticate", []) or await self._challenge(deadline)
                answer = await auth.challenged(lines, repository, used=used)
        if answer is None:
            return response, used
        return await self._request(question, url, answer, caller, deadline), answer

    async def _request(
        self, question: Question, url: URL, used: Authorization, caller: Caller, deadline: float
    ) -> aiohttp.ClientResponse:
        headers = {**self._headers(), **question.headers}

        async def send() -> aiohttp.ClientResponse:
            began = time.monotonic()
            response = await self._transport.open(
                question.method, url, headers=headers, authorization=used.header, deadline=deadline
            )
            try:
                self._answered(question.kind, response, began)
                said = "%s answered %d to %s of %s"
                log.debug(said, self._report.subject, response.status, question.method, question.of)
                if same_origin(response.url, self._url):
                    await caller.quota.note(response.headers, response.status, counted=question.counts)
            except BaseException:
                response.release()
                raise
            return response

        return await self._repeated(send, deadline)

    def _answered(self, kind: str, response: aiohttp.ClientResponse, began: float) -> None:
        self._metrics.request(self._report.label, kind, response.status, time.monotonic() - began)

    def _url_of(self, path: str) -> URL:
        """Return the URL of a path below ``/v2/``. A query it has goes out as it is."""
        query = ("&" if "?" in path else "?") + urlencode(self._query) if self._query else ""
        return URL(f"{self._base}/v2/{path}{query}", encoded=True)

    async def _challenge(self, deadline: float) -> list[str]:
        """Return the challenges of ``/v2/`` (end-1): gcr.io sometimes leaves them out elsewhere."""
        url = self._url_of("")
        headers = self._headers()

        async def send() -> aiohttp.ClientResponse:
            began = time.monotonic()
            response = await self._transport.open("GET", url, headers=headers, deadline=deadline)
            self._answered("ping", response, began)
            return response

        response = await self._repeated(send, deadline)
        with released(response):
            if response.status != 401 or not same_origin(response.url, self._url):
                return []
            return response.headers.getall("WWW-Authenticate", [])

    async def _repeated(
        self, send: Callable[[], Awaitable[aiohttp.ClientResponse]], deadline: float, *, limited: bool = False
    ) -> aiohttp.ClientResponse:
        """Send, and send again after a failure that may pass, while there is time.

        limited: a 429 that names a short time passes as well.
        """
        failure: aiohttp.ClientError | OSError | None = None
        for repeat in range(self._retries + 1):
            pause = FIRST_PAUSE * GROWS**repeat * random.uniform(1, 1.5)
            again = repeat < self._retries and time_for(pause, deadline)
            try:
                response = await send()
            except BreakerOpen:
                if failure is None:
                    raise
                raise failure from None  # it is what opened it, or is like it
            except (aiohttp.ClientError, OSError) as error:
                if not again or not may_pass(error):
                    raise
                failure = error
            else:
                wait = retry_after(response.headers.get("Retry-After"))
                passes = response.status in REPEATED or (limited and response.status == 429 and wait is not None)
                pause = max(pause, float(wait or 0))
                if not passes or not again or (wait or 0) > PATIENCE or not time_for(pause, deadline):
                    return response
                response.release()
            await sleep(pause)
        raise AssertionError("the last time ends it")


def time_for(pause: float, deadline: float) -> bool:
    """Say whether after a pause there is time left for an answer."""
    return asyncio.get_running_loop().time() + pause + MARGIN < deadline


def may_pass(error: BaseException) -> bool:
    """Say whether a failure of a connection may be gone the next time; a time-out has had its time."""
    if tls_failure(error) is not None:
        return False
    if isinstance(error, aiohttp.ClientConnectorError):
        return not isinstance(error.os_error, AddressRefused)
    return isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError))


def _hope(refusal: _Refusal) -> int:
    """Rank what accounts were told: the more another time may change, the more."""
    match refusal:
        case Rejected(user=None):
            return 0
        case Rejected():
            return 1
        case UpstreamTokenFailed():
            return 2
        case _:
            return 3


@contextmanager
def released(response: aiohttp.ClientResponse) -> Iterator[aiohttp.ClientResponse]:
    """Give a response, and its connection back in the end."""
    try:
        yield response
    finally:
        response.release()
