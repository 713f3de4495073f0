"""The rows of the outcome table: what an upstream does, what that means, and the code that says so.

What is expected of a row is written as one sentence: the answer with nothing kept, what a stale one becomes, and what
one question costs the upstream; ``but`` has the cells that are different. The code that decides a row is a function
that takes it away from the application, and nothing else: what is "well" stays so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import pytest

import mirror.upstream.asking
import mirror.upstream.auth
import mirror.upstream.chain
import mirror.upstream.client
import mirror.upstream.report
from mirror.oci.errors import (
    ManifestInvalid,
    RegistryError,
    UpstreamFailed,
    UpstreamInvalid,
    UpstreamTokenFailed,
    UpstreamUnreachable,
)
from mirror.oci.manifest import OCI_MANIFEST, Descriptor, Manifest, parse_manifest
from mirror.oci.names import Digest
from mirror.registry import manifests
from mirror.store.ingest import Ingest
from mirror.upstream.asking import Asker
from mirror.upstream.breaker import Breaker, Trial
from mirror.upstream.chain import Chain
from mirror.upstream.client import RegistryClient
from tests.api.outcome_stage import KINDS, PASSWORD, USER, WELL, Cell, Stage

QUESTIONS = {
    "tag": "HEAD tag",
    "digest": "GET digest",
    "blob": "GET blob",
    "tags": "GET tags",
    "referrers": "GET referrers",
}
"""What is asked first of an upstream about a kind of content."""
STORED = {
    "tag": ("+manifest", "tag"),
    "digest": ("+manifest",),
    "blob": ("+blob",),
    "tags": ("list",),
    "referrers": ("list",),
}
"""What is kept of a right answer."""
NOT_THERE = {
    "tag": "MANIFEST_UNKNOWN",
    "digest": "MANIFEST_UNKNOWN",
    "blob": "BLOB_UNKNOWN",
    "tags": "NAME_UNKNOWN",
    "referrers": "NAME_UNKNOWN",
}
SOME = -1
"""Any ``Retry-After``."""
AGES = ("tag", "tags", "referrers")
"""What is kept of these becomes stale; the others are good for ever."""
CONTENT = ("tag", "digest", "blob")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What clients see, and what becomes of it. asked, stored: in words of the table; None for whatever."""

    status: int
    code: str = ""
    content: str = ""
    warned: bool = False
    retry_after: int | None = None
    says: str = ""
    asked: tuple[str, ...] | None = ()
    stored: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Deciding:
    """The code that decides a row. what: it is; away: takes it away."""

    what: str
    away: Callable[[pytest.MonkeyPatch], None]


But = Mapping[tuple[str, str], Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What an upstream does, and what that means.

    begin: makes the trouble. before: what is so from the start. none: status with nothing kept. stale: what a stale
    answer becomes, "old" (with a warning), "new" or "gone". costs: how often the question is asked; more: what is
    asked besides. arrives: whether a request gets there. but: what is different in cells, None for those that there
    are not.
    """

    begin: Callable[[Stage], Awaitable[None]]
    decides: Deciding
    before: Callable[[Stage], None] = lambda stage: None
    registry: Mapping[str, Any] = field(default_factory=dict)
    tls: bool = False
    none: int = 200
    stale: str = "old"
    costs: int = 1
    more: tuple[str, ...] = ()
    arrives: Callable[[str], bool] = lambda word: True
    retry_after: int | None = None
    says: str = ""
    but: But = field(default_factory=dict)

    def expected(self, cell: Cell) -> Outcome | None:
        """Return what a cell is to be; None when there is no such cell."""
        usual = self._usual(cell)
        for key in ((cell.kept, cell.kind), (cell.kept, "*"), ("*", cell.kind)):
            if key in self.but and cell.kept in ("none", "stale"):
                changes = self.but[key]
                return None if changes is None else replace(usual, **changes)
        return usual

    def _usual(self, cell: Cell) -> Outcome:
        kind = cell.kind
        asked = tuple(sorted((QUESTIONS[kind],) * self.costs + self.more))
        if cell.kept == WELL:
            right = right_of(kind)
            return right if not self.registry else replace(right, asked=None)  # and as many tokens as it takes
        if cell.kept == "fresh" or (cell.kept == "stale" and kind not in AGES):
            return Outcome(status=200, content="old")
        if cell.kept == "stale" and self.stale == "old":
            return Outcome(status=200, content="old", warned=True, says=self.says, asked=asked)
        if self.none == 200:
            return replace(right_of(kind), asked=tuple(sorted((*(right_of(kind).asked or ()), *asked))))
        code = {403: "DENIED", 404: NOT_THERE[kind]}.get(self.none, "UNAVAILABLE")
        stored: tuple[str, ...] = ()
        if self.none == 404:
            stored = {"tag": ("no tag",), "tags": ("no list",), "referrers": ("no list",)}.get(kind, ())
            if cell.kept == "stale" and kind == "tag":
                stored = ("-tag", "no tag")
        return Outcome(
            status=self.none, code=code, retry_after=self.retry_after, says=self.says, asked=asked, stored=stored
        )


def right_of(kind: str) -> Outcome:
    """Return the outcome of a question nothing is wrong with."""
    asked = ("GET digest", "HEAD tag") if kind == "tag" else (QUESTIONS[kind],)
    return Outcome(status=200, content="new", asked=asked, stored=STORED[kind])


# ---- what an upstream does ----


def answers(status: int, **headers: str) -> Callable[[Stage], Awaitable[None]]:
    async def begin(stage: Stage) -> None:
        stage.fault(stage.hub, status=status, headers={key.replace("_", "-"): text for key, text in headers.items()})

    return begin


async def answers_429_once(stage: Stage) -> None:
    stage.fault(stage.hub, times=1, status=429, headers={"Retry-After": "1"})


def in_trouble(stage: Stage, request: Any) -> bool:
    return not stage.cell_of(request).startswith(WELL)


async def private_now(stage: Stage) -> None:
    stage.hub.private = {cell.repo for cell in stage.troubled()}
    stage.hub.expire_tokens()


async def token_500(stage: Stage) -> None:
    stage.hub.fault(lambda request: request.path == "/token" and in_trouble(stage, request), status=500)


async def token_refused(stage: Stage) -> None:
    here, there = f"{{host}}:{stage.hub.port}", f"{{host}}:{stage.closed}"
    realm = f'Bearer realm="http://{there}/token",service="s"'
    assert stage.hub.realm is not None
    assert here in stage.hub.realm
    for cell in stage.troubled():
        stage.hub.fault(
            f"/v2/{cell.repo}/",
            status=401,
            headers={"WWW-Authenticate": realm.replace("{host}", f"{cell.name}.hub.test")},
        )


def with_login(stage: Stage) -> None:
    (stage.path / "password").write_text(PASSWORD)
    stage.settings["credentials"] = {"username": USER, "password_file": stage.path / "password"}


def elsewhere(stage: Stage) -> None:
    stage.trouble["port"] = stage.closed


def no_names(stage: Stage) -> None:
    stage.lost = lambda host: host.endswith(".nowhere.test")


async def loses_its_name(stage: Stage) -> None:
    stage.lost = lambda host: not host.startswith(WELL)


async def nothing(stage: Stage) -> None:
    """Leave it at what the settings do."""


def untrusted(stage: Stage) -> None:
    stage.trouble["ca_file"] = None


AS_USUAL = {"revalidate_wait": "1s"}
"""How long clients wait for a check by default; else they wait long enough here to see what comes of it."""


def clients_wait_as_usual(stage: Stage) -> None:
    stage.trouble["tags"] = AS_USUAL


def impatient(stage: Stage) -> None:
    stage.trouble |= {"timeouts": {"headers": "2s", "connect": "2s", "read": "2s"}, "tags": AS_USUAL}


async def hangs(stage: Stage) -> None:
    stage.fault(stage.hub, hang_headers=True)


def broken_before(stage: Stage) -> None:
    stage.opening = True
    stage.trouble["breaker_window"] = 60


def offline(stage: Stage) -> None:
    stage.trouble["offline"] = True


def small_limits(stage: Stage) -> None:
    stage.limits = {"manifest": 2000, "blob": 20_000}
    stage.patch.setattr(mirror.upstream.client, "LIST_LIMIT", 2000)
    stage.patch.setattr(mirror.upstream.client, "REFERRERS_LIMIT", 2000)


async def grows(stage: Stage) -> None:
    """Have something right that is too large, everywhere: as content has its own digest, it is replaced as a whole."""
    for cell in stage.troubled():
        cell.new = replace(
            cell.new,
            image=stage.hub.add_image(
                cell.repo, "v1", layers=[bytes(30_000) + cell.name.encode()], annotations={"note": "a" * 3000}
            ),
        )
    stage.spoil(stage.hub, ["tags", "referrers"], lambda body: {"replace": body + b" " * 3000})


async def is_garbage(stage: Stage) -> None:
    """Have manifests that are right by their digest and none all the same."""
    for cell in stage.troubled():
        raw = b"no manifest of " + cell.name.encode()
        digest = stage.hub.add_manifest(cell.repo, raw, "v1")
        cell.new = replace(cell.new, image=replace(cell.new.image, digest=digest, raw=raw))
    stage.spoil(stage.hub, ["tags", "referrers"], lambda body: {"replace": b"<html>"})


def _other(body: bytes) -> Mapping[str, Any]:
    """Return something as long as a body, and as well formed."""
    changed = body.replace(b"aaaaa", b"bbbbb", 1)
    return {"replace": changed if changed != body else bytes([body[0] ^ 1]) + body[1:]}


def spoiled(where: str, kinds: tuple[str, ...], change: Callable[[bytes], Mapping[str, Any]]) -> Any:
    async def begin(stage: Stage) -> None:
        stage.spoil(stage.hub if where == "hub" else stage.near, kinds, change)

    return begin


def mirrored(stage: Stage) -> None:
    stage.mirrored = True


def mirrored_by_nobody(stage: Stage) -> None:
    stage.mirrored = True
    stage.near_trouble["port"] = stage.closed


def mirrored_impatiently(stage: Stage) -> None:
    stage.mirrored = True
    stage.trouble |= {"timeouts": {"headers": "4s", "connect": "4s", "read": "4s"}, "tags": AS_USUAL}


def near(**what: Any) -> Callable[[Stage], Awaitable[None]]:
    async def begin(stage: Stage) -> None:
        stage.fault(stage.near, **what)

    return begin


# ---- the code that decides ----


def no_branch_for(*statuses: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Let ``_expect`` go on to what it says of a status that makes no sense."""

    def away(patch: pytest.MonkeyPatch) -> None:
        expect = RegistryClient._expect

        def other(client: RegistryClient, answer: Any, question: Any, unknown: Any, *accepted: int) -> None:
            if answer.response.status in statuses:
                raise client._invalid(answer.response, "answered with no sense", of=question.of)
            expect(client, answer, question, unknown, *accepted)

        patch.setattr(RegistryClient, "_expect", other)

    return away


def asked_as(user: str | None) -> Callable[[pytest.MonkeyPatch], None]:
    """Let ``_not_allowed`` believe that it was always this user who asked."""

    def away(patch: pytest.MonkeyPatch) -> None:
        not_allowed = RegistryClient._not_allowed

        def other(client: RegistryClient, rejected: Any, question: Any, unknown: Any) -> Any:
            rejected.user = user
            return not_allowed(client, rejected, question, unknown)

        patch.setattr(RegistryClient, "_not_allowed", other)

    return away


def token_failures_are_no_different(patch: pytest.MonkeyPatch) -> None:
    """Let a token endpoint that fails be like one that says no."""
    exchange = mirror.upstream.auth.Authenticator._exchange

    async def other(auth: Any, *arguments: Any) -> Any:
        try:
            return await exchange(auth, *arguments)
        except UpstreamTokenFailed as error:
            raise mirror.upstream.auth.Refused(host="", status=401, with_credentials=False) from error

    patch.setattr(mirror.upstream.auth.Authenticator, "_exchange", other)


def rate_limits_make_no_sense(patch: pytest.MonkeyPatch) -> None:
    def other(asker: Asker, question: Any, *_: Any) -> Any:
        return asker._report.failure(UpstreamInvalid, "answered with no sense", of=question.of)

    patch.setattr(Asker, "_rate_limited", other)


def no_patience(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror.upstream.asking, "PATIENCE", 0.0)


def means_nothing(which: type[BaseException], instead: type[RegistryError]) -> Callable[[pytest.MonkeyPatch], None]:
    """Let ``meaning`` take a kind of failure for something else."""

    def away(patch: pytest.MonkeyPatch) -> None:
        meaning = mirror.upstream.report.meaning

        def other(error: BaseException, *, body: bool) -> Any:
            return (instead, "failed", "") if isinstance(error, which) else meaning(error, body=body)

        patch.setattr(mirror.upstream.report, "meaning", other)

    return away


def breakers_let_all_through(patch: pytest.MonkeyPatch) -> None:
    async def enter(breaker: Breaker, host: str) -> Trial:
        return Trial(breaker, host, breaker._clock(), probe=0.0)

    patch.setattr(Breaker, "enter", enter)


def no_limit(patch: pytest.MonkeyPatch) -> None:
    read = RegistryClient._read

    async def other(client: RegistryClient, response: Any, of: str, limit: int) -> bytes:
        return await read(client, response, of, 1 << 30)

    patch.setattr(RegistryClient, "_read", other)


def anything_is_a_manifest(patch: pytest.MonkeyPatch) -> None:
    read = manifests._read_now

    def other(raw: bytes, content_type: str | None, digest: Digest, parse: Any) -> Manifest:
        try:
            return read(raw, content_type, digest, parse)
        except ManifestInvalid:
            descriptor = Descriptor(media_type=OCI_MANIFEST, digest=digest, size=len(raw))
            return Manifest(raw=raw, descriptor=descriptor)

    patch.setattr(manifests, "_read_now", other)


def digests_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    def read(raw: bytes, content_type: str | None, digest: Digest, parse: Any = parse_manifest) -> Manifest:
        found: Manifest = parse(raw, content_type=content_type, digest=digest)
        return found

    patch.setattr(manifests, "_read_now", read)
    patch.setattr(Ingest, "verify", lambda ingest: True)


def all_of(*aways: Callable[[pytest.MonkeyPatch], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Take several things away: for what is found out by one of them, which one being a matter of luck."""

    def away(patch: pytest.MonkeyPatch) -> None:
        for one in aways:
            one(patch)

    return away


def mirrors_have_the_last_word(patch: pytest.MonkeyPatch) -> None:
    """Let an upstream be its first mirror, and nobody after it."""
    make = Chain.__init__

    def other(chain: Chain, name: str, registry: Any, mirrors: Any = (), **settings: Any) -> None:
        make(chain, name, mirrors[0].upstream if mirrors else registry, **settings)

    patch.setattr(Chain, "__init__", other)


def mirrors_are_believed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mirror.upstream.chain, "_is", lambda found, digest: True)


def nobody_is_offline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Chain, "_check_online", lambda chain, of: None)


# ---- the rows ----

TOKEN: dict[str, Any] = {"auth": "token"}
LOGIN: dict[str, Any] = {"auth": "token", "users": {USER: PASSWORD}, "anonymous": False}
LISTS_HAVE_NO_DIGEST: But = {("*", "tags"): None, ("*", "referrers"): None}
HEAD_IS_RIGHT: But = {("*", "tag"): {"asked": ("GET digest", "HEAD tag")}}
"""What is wrong with content is not seen before all of it is there."""


def of_mirror(
    tag: tuple[str, ...] = ("HEAD tag", "GET digest"),
    hub_tag: tuple[str, ...] = ("HEAD tag", "GET digest"),
    more: tuple[str, ...] = (),
    but: But | None = None,
    lists: bool = True,
) -> dict[str, Any]:
    """Return what is so in every row about a mirror that gives nothing right: the upstream itself is asked.

    tag, hub_tag: what a tag takes of each. more: what the mirror is asked besides, each time. lists: whether it can be
    said of lists.
    """
    cells: dict[tuple[str, str], Mapping[str, Any] | None] = {}
    for kind in KINDS:
        theirs, own = (tag, hub_tag) if kind == "tag" else ((QUESTIONS[kind],), (QUESTIONS[kind],))
        asked = tuple(sorted((*own, *(f"mirror: {word}" for word in (*theirs, *more * len(theirs))))))
        for kept in ("none", "stale"):
            if kept == "none" or kind in AGES:
                cells[kept, kind] = {"asked": asked, **((but or {}).get((kept, kind)) or {})}
    return {"stale": "new", "but": cells if lists else {**LISTS_HAVE_NO_DIGEST, **only(cells, CONTENT)}}


def only(cells: But, kinds: tuple[str, ...]) -> But:
    """Return the cells of these kinds."""
    return {key: changes for key, changes in cells.items() if key[1] in kinds}


LATE: Mapping[str, Any] = {"content": "old", "warned": True, "says": "has not answered yet"}
"""What a client gets of a check that takes longer than clients wait; it goes on without them."""
HEAD_AT_MIRROR: dict[str, Any] = {"hub_tag": ("GET digest",)}

MEANING = "report.meaning"
EXPECT = "RegistryClient._expect"
NEXT = Deciding(what="Chain goes on to the next", away=mirrors_have_the_last_word)
DIGESTS = Deciding(what="digests of manifests and blobs are checked", away=digests_are_not_checked)

ROWS: dict[str, Row] = {
    "404": Row(
        begin=answers(404),
        none=404,
        stale="gone",
        but={
            ("*", "referrers"): {
                "status": 200,
                "code": "",
                "content": "none",
                "asked": ("GET referrers", "HEAD fallback"),
                "stored": ("list", "no tag"),
            }
        },
        decides=Deciding(what=f"{EXPECT}: 404", away=no_branch_for(404)),
    ),
    "401 to nobody's token": Row(
        begin=private_now,
        registry=TOKEN,
        none=404,
        stale="gone",
        costs=2,
        more=("/token",),
        says="without credentials",
        decides=Deciding(what="_not_allowed: nobody asked", away=asked_as("somebody")),
    ),
    "403 to nobody": Row(
        begin=answers(403),
        none=404,
        stale="gone",
        says="without credentials",
        decides=Deciding(what="_not_allowed: nobody asked", away=asked_as("somebody")),
    ),
    "401 to our login": Row(
        begin=answers(401),
        before=with_login,
        registry=LOGIN,
        none=403,
        costs=2,
        more=("/token", "/v2/"),
        says="'u'",
        decides=Deciding(what="_not_allowed: an account asked", away=asked_as(None)),
    ),
    "403 to our login": Row(
        begin=answers(403),
        before=with_login,
        registry=LOGIN,
        none=403,
        says="'u'",
        decides=Deciding(what="_not_allowed: an account asked", away=asked_as(None)),
    ),
    "token endpoint 500": Row(
        begin=token_500,
        registry=TOKEN,
        none=503,
        more=("/token",) * 3,
        says="no token",
        decides=Deciding(what="token endpoints that fail", away=token_failures_are_no_different),
    ),
    "token endpoint 500, login": Row(
        begin=token_500,
        before=with_login,
        registry=LOGIN,
        none=503,
        more=("/token",) * 3,
        says="no token",
        decides=Deciding(what="token endpoints that fail", away=token_failures_are_no_different),
    ),
    "token endpoint unreachable": Row(
        begin=token_refused,
        registry=TOKEN,
        none=503,
        more=("/token",) * 3,
        arrives=lambda word: word != "/token",
        says="no token",
        decides=Deciding(what="token endpoints that fail", away=token_failures_are_no_different),
    ),
    "429, 30 s": Row(
        begin=answers(429, Retry_After="30"),
        none=503,
        retry_after=30,
        says="429",
        decides=Deciding(what="Asker._rate_limited", away=rate_limits_make_no_sense),
    ),
    "429, 1 s": Row(
        begin=answers_429_once,
        before=clients_wait_as_usual,
        stale="new",
        but={
            ("stale", "tag"): {**LATE, "asked": ("HEAD tag", "HEAD tag"), "stored": ("tag",)},
            ("stale", "tags"): LATE,
            ("stale", "referrers"): LATE,
        },
        decides=Deciding(what="asking.PATIENCE", away=no_patience),
    ),
    "connect": Row(
        begin=nothing,
        before=elsewhere,
        none=502,
        costs=3,
        arrives=lambda word: False,
        says="cannot be reached",
        decides=Deciding(what=MEANING, away=means_nothing(aiohttp.ClientConnectorError, UpstreamFailed)),
    ),
    "DNS": Row(
        begin=loses_its_name,
        none=502,
        costs=3,
        arrives=lambda word: False,
        says="cannot be resolved",
        decides=Deciding(what=MEANING, away=means_nothing(aiohttp.ClientConnectorDNSError, UpstreamFailed)),
    ),
    "TLS": Row(
        begin=nothing,
        before=untrusted,
        tls=True,
        none=502,
        arrives=lambda word: False,
        says="certificate",
        decides=Deciding(what=MEANING, away=means_nothing(aiohttp.ClientSSLError, UpstreamFailed)),
    ),
    "500": Row(
        begin=answers(500),
        none=503,
        costs=3,
        says="500",
        decides=Deciding(what=f"{EXPECT}: 5xx", away=no_branch_for(500)),
    ),
    "timeout": Row(
        begin=hangs,
        before=impatient,
        none=504,
        says="answer",
        decides=Deciding(what=MEANING, away=means_nothing(TimeoutError, UpstreamUnreachable)),
    ),
    "breaker open": Row(
        begin=nothing,
        before=broken_before,
        none=503,
        costs=0,
        retry_after=SOME,
        says="left alone",
        decides=Deciding(what="Breaker.enter", away=breakers_let_all_through),
    ),
    "over the limit": Row(
        begin=grows,
        before=small_limits,
        none=502,
        but=HEAD_IS_RIGHT,
        decides=Deciding(what="RegistryClient._read: limit", away=no_limit),
    ),
    "garbage": Row(
        begin=is_garbage,
        none=502,
        but={**HEAD_IS_RIGHT, ("*", "blob"): None},
        decides=Deciding(what="manifests are parsed", away=anything_is_a_manifest),
    ),
    "wrong digest": Row(
        begin=spoiled("hub", CONTENT, _other), none=502, but={**HEAD_IS_RIGHT, **LISTS_HAVE_NO_DIGEST}, decides=DIGESTS
    ),
    "longer than announced": Row(
        # What is too much comes together with the rest, or too late to be seen.
        begin=spoiled("hub", KINDS, lambda body: {"length": len(body) - 10}),
        none=502,
        but=HEAD_IS_RIGHT,
        decides=Deciding(
            what=f"{MEANING}, and digests are checked",
            away=all_of(means_nothing(aiohttp.ClientResponseError, UpstreamFailed), digests_are_not_checked),
        ),
    ),
    "shorter than announced": Row(
        # It may as well be an outage, so it is asked for once more; the rest of a blob is, until there is none.
        begin=spoiled("hub", KINDS, lambda body: {"length": len(body) + 10}),
        none=503,
        costs=2,
        but={
            ("none", "tag"): {"asked": ("GET digest", "GET digest", "HEAD tag"), "stored": ("tag",)},
            ("stale", "tag"): {"asked": ("GET digest", "GET digest", "HEAD tag")},
            ("none", "blob"): {"status": 502, "asked": ("GET blob",) * 3},
        },
        decides=Deciding(what=MEANING, away=means_nothing(aiohttp.ClientPayloadError, UpstreamInvalid)),
    ),
    "mirror: 401": Row(begin=near(status=401), before=mirrored, decides=NEXT, **of_mirror(more=("/v2/",))),
    "mirror: 403": Row(begin=near(status=403), before=mirrored, decides=NEXT, **of_mirror()),
    "mirror: 404": Row(begin=near(status=404), before=mirrored, decides=NEXT, **of_mirror()),
    "mirror: 429": Row(
        begin=near(status=429, headers={"Retry-After": "30"}),
        before=mirrored,
        decides=NEXT,
        **of_mirror(tag=("HEAD tag",)),  # then it is left alone for that long
    ),
    "mirror: 500": Row(begin=near(status=500), before=mirrored, decides=NEXT, **of_mirror()),
    "mirror: connect": Row(
        begin=nothing,
        before=mirrored_by_nobody,
        decides=NEXT,
        arrives=lambda word: not word.startswith("mirror"),
        **of_mirror(),
    ),
    "mirror: timeout": Row(
        begin=near(hang_headers=True),
        before=mirrored_impatiently,
        decides=NEXT,
        **of_mirror(
            tag=("HEAD tag",),  # then its breaker is open
            but={
                ("stale", "tag"): {**LATE, "asked": ("HEAD tag", "mirror: HEAD tag"), "stored": ("tag",)},
                ("stale", "tags"): LATE,
                ("stale", "referrers"): LATE,
            },
        ),
    ),
    "mirror: garbage": Row(
        begin=spoiled("near", KINDS, lambda body: {"replace": b"<html>"}),
        before=mirrored,
        decides=NEXT,
        **of_mirror(**HEAD_AT_MIRROR),
    ),
    "mirror: wrong digest": Row(
        begin=spoiled("near", CONTENT, _other),
        before=mirrored,
        decides=Deciding(what="chain._is", away=mirrors_are_believed),
        **of_mirror(**HEAD_AT_MIRROR, lists=False),
    ),
    "mirror: longer than announced": Row(
        begin=spoiled("near", KINDS, lambda body: {"length": len(body) - 10}),
        before=mirrored,
        decides=NEXT,
        **of_mirror(**HEAD_AT_MIRROR),
    ),
    "mirror: shorter than announced": Row(
        begin=spoiled("near", KINDS, lambda body: {"length": len(body) + 10}),
        before=mirrored,
        decides=NEXT,
        **of_mirror(
            **HEAD_AT_MIRROR,
            # the rest, of which nobody has any; the whole, which is shorter; and that from its start
            but={("none", "blob"): {"asked": (*("GET blob",) * 3, *("mirror: GET blob",) * 2)}},
        ),
    ),
    "offline": Row(
        begin=nothing,
        before=offline,
        none=503,
        costs=0,
        says="offline",
        decides=Deciding(what="Chain._check_online", away=nobody_is_offline),
    ),
}
