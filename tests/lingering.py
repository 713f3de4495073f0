"""Connections whose client left in the middle of a body nobody wants: the library waits long for the rest of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp.web_protocol import RequestHandler

from tests.images import until


def linger(patch: pytest.MonkeyPatch, seconds: float = 0.3) -> None:
    """Let servers wait that long, on connections made from now on."""
    defaults: Any = RequestHandler.__init__.__kwdefaults__
    patch.setitem(defaults, "lingering_time", seconds)


async def lingered() -> None:
    """Wait until the last one is gone."""
    await until(lambda: not any(_of_a_connection(task) for task in asyncio.all_tasks()), "nobody is waited for", 20)


def _of_a_connection(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "") == "RequestHandler.start"
