"""What is answered before there is a request: to what is no HTTP, or HTTP that cannot be parsed.

aiohttp would answer in plain text, and log an error for each of them: anybody could fill the log.
"""

from __future__ import annotations

import json
import logging
import re

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod
from aiohttp.web_protocol import RequestHandler

from mirror.oci.errors import ErrorCode

log = logging.getLogger("mirror.server")

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_METHOD = re.compile(r"b'[A-Z-]{1,30} ")
"""How aiohttp shows a line that begins with a method, if with one it does not know."""


class Protocol(RequestHandler):
    """A connection whose errors have the shape of all others ("Error Codes" of the specification)."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to what could not be parsed; the connection ends with it."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        log.info("what %s sent cannot be parsed: %s", request.remote, type(exc).__name__)
        headers, text = {}, "the request is not HTTP that can be parsed"
        if isinstance(exc, BadHttpMethod) and _METHOD.search(str(exc)):
            status, text = 405, f"this method is not supported; the API has {', '.join(METHODS)}"
            headers["Allow"] = ", ".join(METHODS)
        body = json.dumps({"errors": [{"code": ErrorCode.UNSUPPORTED, "message": text}]}).encode() + b"\n"
        response = web.Response(status=status, body=body, content_type="application/json", headers=headers)
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application whose connections are ours."""

    async def setup(self) -> None:
        await super().setup()
        assert self.server is not None
        self.server.__class__ = _Server  # there is no other way to say which protocol a server speaks
