"""Whether a registry can be asked, and as whom: its ``/v2/`` (end-1), and what came of a login there.

This is for whoever sets a mirror up. So nothing is raised: what went wrong, and what to do, is the result.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum

from yarl import URL

from mirror.oci.errors import UpstreamError, UpstreamRateLimited
from mirror.upstream.asking import Asker, Caller, released
from mirror.upstream.auth import Refused
from mirror.upstream.breaker import BreakerOpen
from mirror.upstream.guard import same_origin
from mirror.upstream.report import FAILURES, cause_of, meaning


class Word(Enum):
    """What the registry said in the end."""

    WELCOME = "welcome"
    """200, or it sent us on to somebody else."""
    SELECTIVE = "selective"
    """Nobody in particular gets no token for nothing in particular: it decides for each repository."""
    LOGIN_WANTED = "login wanted"
    LOGIN_REFUSED = "login refused"
    RATE_LIMITED = "rate limited"
    FAILING = "failing"
    """5xx, or no token can be had."""
    NO_REGISTRY = "no registry"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What became of it.

    user: what the account is called, None for nobody. setting: where its login is from. status: of the last answer,
    None when there was none. did: what happened, after the registry's name; advice: what to do, "" when nothing.
    ahead: seconds that its clock is ahead of ours, None when it does not say.
    """

    word: Word
    user: str | None
    setting: str
    status: int | None = None
    did: str = ""
    advice: str = field(default="")
    ahead: float | None = None


async def greeted(asker: Asker, caller: Caller, *, url: URL, deadline: float) -> Greeting:
    """Greet a registry as one account. url: of the registry. deadline: of the event loop's clock."""
    status: int | None = None
    ahead: float | None = None
    did = advice = ""
    try:
        async with asyncio.timeout_at(deadline):
            response, used = await asker.greet(caller, deadline=deadline)
            with released(response):
                status, ahead = response.status, _ahead(response.headers.get("Date"))
                elsewhere = not same_origin(response.url, url)
        word, did, advice = _judged(status, elsewhere=elsewhere, named=caller.auth.user, sent=used.header is not None)
    except Refused as refused:
        status = refused.status
        word = Word.LOGIN_REFUSED if refused.with_credentials else Word.SELECTIVE
        did = f"answered {refused.status} at its token server {refused.host}"
    except UpstreamError as error:
        word = Word.RATE_LIMITED if isinstance(error, UpstreamRateLimited) else Word.FAILING
        said, _, advice = error.message.partition("; ")
        did = said.partition(": ")[2] or said
    except BreakerOpen as rest:
        word, did = Word.UNREACHABLE, f"{rest.cause} before"
    except FAILURES as error:
        word = Word.UNREACHABLE
        _, did, advice = meaning(error)
        did = f"{did} ({cause_of(error)})"
    return Greeting(
        word=word,
        user=caller.auth.user,
        setting=caller.auth.setting,
        status=status,
        did=did,
        advice=advice,
        ahead=ahead,
    )


def _judged(status: int, *, elsewhere: bool, named: str | None, sent: bool) -> tuple[Word, str, str]:
    """Return what a status means, what the registry did and what to do.

    elsewhere: it is another host's, to which the registry leads. named: our account. sent: a login, or a token, went
    with the request.
    """
    did = f"answered {status}"
    if status == 200 or (elsewhere and status < 500):
        return Word.WELCOME, did, ""
    if status in (401, 403):
        if named is not None:
            return Word.LOGIN_REFUSED, did, ""
        return (Word.SELECTIVE if sent else Word.LOGIN_WANTED), did, ""
    if status == 429:
        return Word.RATE_LIMITED, did, "try again later"
    if status >= 500:
        return Word.FAILING, did, "try again later"
    return Word.NO_REGISTRY, f"{did} at /v2/, as no registry does", "check its url"


def _ahead(date: str | None) -> float | None:
    """Return the seconds that a ``Date`` header (RFC 9110 section 6.6.1) is ahead of our clock."""
    try:
        when = parsedate_to_datetime(date or "")
    except (ValueError, TypeError, IndexError):
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - datetime.now(UTC)).total_seconds()
