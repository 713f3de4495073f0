"""What a connection does beside passing on requests: it answers what cannot be parsed, and it can be left.

What is no HTTP, or HTTP that cannot be parsed, aiohttp would answer in plain text, and log an error for each of them:
anybody could fill the log. And it would end connections in the midst of what clients send.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod
from aiohttp.web_protocol import RequestHandler

from mirror.oci.errors import ErrorCode

log = logging.getLogger("mirror.server")

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
_METHOD = re.compile(r"b'[A-Z-]{1,30} ")
"""How aiohttp shows a line that begins with a method, if with one it does not know."""
_TLS = "HTTPS traffic"
"""What aiohttp says of the first bytes of TLS. docker and podman try it before plain HTTP."""


class Protocol(RequestHandler):
    """A connection whose errors have the shape of all others ("Error Codes" of the specification)."""

    __slots__ = ()

    def leave(self) -> None:
        """Answer requests as ever, but say with each that it is the last."""
        handler = self._request_handler
        if handler is not None and not isinstance(handler, _Last):
            self._request_handler = _Last(handler)

    @property
    def begun(self) -> bool:
        """Whether there ever was a request."""
        return self._request_count > 0

    @property
    def idle_since(self) -> float | None:
        """When it began to wait for a request, as the loop tells the time; None when it is answering one."""
        if self._waiter is None or self._messages or self._unsent:
            return None
        return self._next_keepalive_close_time - self._keepalive_timeout

    @property
    def ended(self) -> bool:
        """Whether it answers nothing any more, and everything has been handed to the kernel.

        It is still there when the client has not said goodbye in its turn, as it should with TLS.
        """
        return self.transport is None or (self.transport.is_closing() and not self._unsent)

    @property
    def _unsent(self) -> bool:
        """Whether bytes wait in our memory: they would go with the process."""
        if self.transport is None:
            return False
        # below TLS there is another transport, with bytes of its own
        below = getattr(getattr(self.transport, "_ssl_protocol", None), "_transport", None)
        return bool(self.transport.get_write_buffer_size() or (below and below.get_write_buffer_size()))

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
        if isinstance(exc, BadHttpMethod) and _TLS in str(exc):
            log.info("%s tried HTTPS where only HTTP is spoken; docker and podman then try HTTP", request.remote)
        else:
            log.info("what %s sent cannot be parsed: %s", request.remote, type(exc).__name__)
        headers, text = {}, "the request is not HTTP that can be parsed"
        if isinstance(exc, BadHttpMethod) and _METHOD.search(str(exc)):
            status, text = 405, f"this method is not supported; the API has {', '.join(METHODS)}"
            headers["Allow"] = ", ".join(METHODS)
        body = json.dumps({"errors": [{"code": ErrorCode.UNSUPPORTED, "message": text}]}).encode() + b"\n"
        response = web.Response(status=status, body=body, content_type="application/json", headers=headers)
        response.force_close()
        return response


class _Last:
    """Answers a request, the last one of its connection."""

    __slots__ = ("_handler",)

    def __init__(self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        self._handler = handler

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        request._message = request._message._replace(should_close=True)
        return await self._handler(request)


class _Server(web.Server):
    def __call__(self) -> Protocol:
        return Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application whose connections are ours."""

    async def setup(self) -> None:
        await super().setup()
        assert self.server is not None
        self.server.__class__ = _Server  # there is no other way to say which protocol a server speaks
