"""Cases of the API as a whole: is it there, how errors and warnings look.

The cases about errors and warnings look at every answer of the run so far, and at a few that they provoke themselves.
"""

from __future__ import annotations

import json
import re

from mirror.conformance import expect
from mirror.conformance.case import Category, Failed, case
from mirror.conformance.client import Answer
from mirror.conformance.stage import Stage

API = Category.API
WARNING = re.compile(r'299 - "(?:[^"\\]|\\.)*"(?:\s*,\s*299 - "(?:[^"\\]|\\.)*")*')
WARNING_BYTES = 4096


@case("api-root", API, "Determining Support", "end-1", must="1.0")
async def api_root(stage: Stage) -> None:
    """GET /v2/ answers 200 to who may ask."""
    expect.status(await stage.registry.ask("GET", "/v2/"), 200)


@case("error-format", API, "Error Codes", must="1.0", negative=True)
async def error_format(stage: Stage) -> None:
    """A 4xx body that is JSON is {"errors": [{"code": …}, …]}."""
    for answer in await _refusals(stage):
        expect.error_body(answer)


@case("error-code-spelling", API, "Error Codes", must="1.0", negative=True)
async def error_code_spelling(stage: Stage) -> None:
    """An error's code has only upper-case letters and underscores."""
    for answer in await _refusals(stage):
        for code in _codes(answer):
            if not re.fullmatch("[A-Z_]+", code):
                raise expect.failed(answer, "a code of upper-case letters and underscores", repr(code))


@case("error-code-known", API, "Error Codes", must="1.0", negative=True)
async def error_code_known(stage: Stage) -> None:
    """An error's code is one of the specification's."""
    for answer in await _refusals(stage):
        for code in _codes(answer):
            if code not in expect.CODES | expect.LEGACY_CODES:
                raise expect.failed(answer, "one of the specification's codes", repr(code))


@case("error-message", API, "Error Codes", should="1.0", negative=True)
async def error_message(stage: Stage) -> None:
    """An error's message, where there is one, is a string."""
    for answer in await _refusals(stage):
        try:
            errors = expect.error_body(answer)
        except Failed:
            continue  # error-format says so
        for error in errors:
            if not isinstance(error.get("message", ""), str):
                raise expect.failed(answer, "a message that is a string", repr(error["message"]))


@case("error-too-many-requests", API, "Error Codes", should="main", negative=True)
async def too_many_requests(stage: Stage) -> None:
    """A 429 has a Retry-After header."""
    limited = [answer for answer in await _all(stage) if answer.status == 429]
    for answer in limited:
        expect.header(answer, "Retry-After")
    if not limited:
        stage.note("no 429 was seen")


@case("warning-format", API, "Warnings", must="1.1")
async def warning_format(stage: Stage) -> None:
    """Warning headers are 299 - "text", without a date."""
    for answer in await _all(stage):
        for value in answer.headers.getall("Warning", []):
            if not WARNING.fullmatch(value.strip()):
                raise expect.failed(answer, 'Warning: 299 - "text"', repr(value[:160]))


@case("warning-size", API, "Warnings", must="1.1")
async def warning_size(stage: Stage) -> None:
    """All Warning headers of an answer have no more than 4096 bytes together."""
    for answer in await _all(stage):
        size = sum(len(value.encode()) for value in answer.headers.getall("Warning", []))
        if size > WARNING_BYTES:
            raise expect.failed(answer, f"at most {WARNING_BYTES} bytes of warnings", f"{size} bytes")


async def _all(stage: Stage) -> list[Answer]:
    await _refusals(stage)
    return stage.answers


async def _refusals(stage: Stage) -> list[Answer]:
    """Return all 4xx answers with a body, after provoking some."""

    async def provoke() -> bool:
        await stage.settle()
        unknown = f"{stage.options.repository}/{stage.content.word('unknown')}"
        await stage.get("manifests", stage.content.word("unknown"))
        await stage.get("manifests", stage.content.digest())
        await stage.get("blobs", stage.content.digest())
        await stage.get("tags", "list", name=unknown)
        await stage.get("referrers", "sha256:none")
        if not await stage.no_pushes():
            await stage.registry.ask("PUT", await stage.begin(), query={"digest": "sha256:none"}, body=b"x")
        return True

    await stage.once("refusals", provoke)
    return [answer for answer in stage.answers if 400 <= answer.status < 500 and answer.body]


def _codes(answer: Answer) -> list[str]:
    """Return the codes of an error body; none when its format is wrong, which another case says."""
    try:
        return [error["code"] for error in expect.error_body(answer)]
    except (Failed, json.JSONDecodeError):
        return []
