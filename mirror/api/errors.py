"""The one place where an exception becomes a response. Shape: distribution-spec, "Error Codes"."""

from __future__ import annotations

import json
import logging

from aiohttp import web

from mirror.oci.errors import (
    Busy,
    ChunkOutOfOrder,
    ErrorCode,
    RangeUnsatisfiable,
    RegistryError,
    ShuttingDown,
    StorageFailed,
    Unauthorized,
    UpstreamError,
    UpstreamRateLimited,
)

log = logging.getLogger("mirror.api")

RETRY_AFTER = 10
"""Seconds we suggest when an upstream asks for patience without saying how much."""


def respond(error: Exception) -> web.Response:
    """Return the response for an exception. What is not one of ours is logged and shown as a plain 500."""
    headers: dict[str, str] = {}
    match error:
        case RegistryError():
            status, code, message, detail = error.status, error.code, error.message, error.detail
            if isinstance(error, StorageFailed):
                log.error("%s", message, exc_info=error)
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            status, code, detail = error.status, ErrorCode.UNSUPPORTED, None
            message = f"{error.method[:20]} is not supported at this path; it answers {allowed or 'nothing yet'}"
        case web.HTTPException():
            status, code, message, detail = error.status, ErrorCode.UNSUPPORTED, error.reason, None
        case _:
            log.error("the request failed", exc_info=error)
            status, code, message, detail = 500, ErrorCode.UNAVAILABLE, "an error of this server; see its log", None
    match error:
        case UpstreamRateLimited() | ShuttingDown() | Busy():
            headers["Retry-After"] = str(getattr(error, "retry_after", None) or RETRY_AFTER)
        case UpstreamError(retry_after=int(seconds)):
            headers["Retry-After"] = str(seconds)
        case ChunkOutOfOrder():
            headers |= error.headers
        case RangeUnsatisfiable(size=size):
            headers["Content-Range"] = f"bytes */{size}"
            headers["Accept-Ranges"] = "bytes"
        case Unauthorized(challenge=str(challenge)):
            headers["WWW-Authenticate"] = challenge
    entry: dict[str, object] = {"code": code, "message": message}
    if detail is not None:
        entry["detail"] = detail
    body = json.dumps({"errors": [entry]}).encode() + b"\n"
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
