"""The description of the API in OpenAPI 3.1."""

from __future__ import annotations

from typing import Any

from aiohttp import web


def document() -> dict[str, Any]:
    """Return the description."""
    return {"openapi": "3.1.0", "info": {"title": "mirror", "version": "1"}, "paths": {}}


def get_openapi() -> web.Response:
    """Answer ``/v2/_mirror/openapi/openapi.json``."""
    return web.json_response(document())
