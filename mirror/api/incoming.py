"""What clients send: bodies as they arrive, and what headers and parameters say of them."""

from __future__ import annotations

import asyncio
import re

from aiohttp import ClientPayloadError, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from mirror.metadata.base import Condition
from mirror.oci.errors import BlobUploadInvalid, LoopDetected, ParameterInvalid, SizeInvalid
from mirror.upstream import via

_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]+|\*))?")
_ASKED = web.RequestKey("asked", bool)
_COUNT = re.compile(r"[0-9]{1,18}", re.ASCII)

WHOLE_WITHIN = 120.0
"""Seconds for a body that is taken as a whole: who sends no more of it would keep the connection for ever."""


async def expect(request: web.Request) -> None:
    """Let ``Expect: 100-continue`` wait: nobody sends 40 GB only to be told that they may not."""


def unasked(request: web.Request, response: web.StreamResponse) -> None:
    """End the connection after a response to somebody who waits to be asked for the body, and was not.

    What comes next on it would be the body, or the next request, and nobody could tell (RFC 9110 section 10.1.1).
    """
    if _waits(request):
        response.force_close()
        request.content.feed_eof()  # nothing to wait for


def _waits(request: web.Request) -> bool:
    expected = request.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
    return expected and _ASKED not in request and request.can_read_body


class RequestBody:
    """The body of a request, as it arrives. received: bytes so far."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._waits = _waits(request)
        self.received = 0

    @property
    def length(self) -> int | None:
        """Bytes the client says it sends, None when it does not say."""
        return self._request.content_length

    async def read(self) -> bytes:
        """Return the next bytes, none at the end. Raises: BlobUploadInvalid when the connection broke off."""
        try:
            if self._waits:
                self._waits = False
                self._request[_ASKED] = True
                await self._request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._request.writer.output_size = 0
            data = await self._request.content.readany()
        except (ConnectionError, ClientPayloadError, HttpProcessingError) as error:
            raise BlobUploadInvalid(f"the body broke off after {self.received} bytes") from error
        self.received += len(data)
        return data


async def read_all(body: RequestBody, largest: int) -> bytes | None:
    """Return a whole body; None when it is longer than ``largest`` bytes.

    Raises: BlobUploadInvalid when it breaks off, or does not end in time.
    """
    pieces = []
    try:
        async with asyncio.timeout(WHOLE_WITHIN):
            while data := await body.read():
                pieces.append(data)
                if body.received > largest:
                    return None
    except TimeoutError:
        raise BlobUploadInvalid(
            f"the body did not end within {WHOLE_WITHIN:.0f} s; {body.received} bytes came"
        ) from None
    return b"".join(pieces)


def chunk_of(request: web.Request) -> tuple[int, int] | None:
    """Return the first and last byte of a chunk, as ``Content-Range`` says ("Pushing a blob in chunks").

    Raises: BlobUploadInvalid (400) when it cannot be read; SizeInvalid (400) when Content-Length says otherwise.
    """
    header = request.headers.get(hdrs.CONTENT_RANGE)
    if header is None:
        return None
    found = _CONTENT_RANGE.fullmatch(header.strip())
    if not found or int(found[2]) < int(found[1]):
        raise BlobUploadInvalid(f"Content-Range is FIRST-LAST, both inclusive; got {header[:80]!r}")
    first, last = int(found[1]), int(found[2])
    length = request.content_length
    if length is not None and length != last - first + 1:
        raise SizeInvalid(f"Content-Range has {last - first + 1} bytes, Content-Length {length}")
    return first, last


def condition_of(request: web.Request) -> Condition | None:
    """Return what If-Match and If-None-Match ask (RFC 9110 section 13.1), None for nothing."""
    match, none = (_tags(request.headers.getall(name, [])) for name in (hdrs.IF_MATCH, hdrs.IF_NONE_MATCH))
    return Condition(match=match, none=none) if match is not None or none is not None else None


def _tags(headers: list[str]) -> frozenset[str] | None:
    if not headers:
        return None
    return frozenset(tag.strip().removeprefix("W/").strip('"') for header in headers for tag in header.split(","))


def count_of(request: web.Request, name: str = "n") -> int | None:
    """Return a whole number among the parameters, None when it is not given. Raises: ParameterInvalid (400)."""
    given = request.query.get(name)
    if given is None:
        return None
    if not _COUNT.fullmatch(given):
        raise ParameterInvalid(f"{name} is a whole number, not {given[:40]!r}")
    return int(given)


def way(request: web.Request, instance: str) -> str:
    """Return the mirrors a request has passed, as ``Via`` says (RFC 9110 section 7.6.3).

    instance: of this service. Raises: LoopDetected (508) when it has been here before, or nearly everywhere.
    """
    lines = request.headers.getall("Via", ())
    if not lines:
        return ""
    found = ", ".join(lines)
    if len(found) > via.LONGEST:
        raise LoopDetected(
            f"the request has a Via of {len(found)} characters: check the mirrors and urls of upstreams on its way "
            "for a loop"
        )
    if via.names(found, instance):
        raise LoopDetected(
            "the request has come back to this mirror by way of other mirrors: check the mirrors and urls of their "
            "upstreams for a loop"
        )
    # What cannot be sent on is left out: others may wait for what this request begins.
    return found if found.isascii() and found.isprintable() else ""
