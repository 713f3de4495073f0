"""What an application holds for who runs it, by key: known without importing the rest of the API."""

from __future__ import annotations

from aiohttp import web

ADMIN = web.AppKey("admin", web.Application)
"""Where the application has the one for administrators, to be answered at the addresses of ``admin_listen``."""
