"""What all tests share."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import aiohttp
import aioresponses.compat
import aioresponses.core
import pytest


def _needs_shim() -> bool:
    parameters = inspect.signature(aiohttp.ClientResponse.__init__).parameters
    return "stream_writer" in parameters and "stream_writer" not in inspect.getsource(aioresponses.core)


@pytest.fixture(scope="session", autouse=True)
def aioresponses_on_this_aiohttp() -> Any:
    """Let aioresponses build responses for newer versions of aiohttp, until it can do so itself.

    It leaves out an argument that ClientResponse now demands, and its stream reader stands on a protocol
    without a parser, which a paused reader would ask to pause.
    """
    if not _needs_shim():
        yield
        return

    class Response(aiohttp.ClientResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
            super().__init__(*args, **kwargs)

    real_factory = aioresponses.core.stream_reader_factory

    def factory(loop: Any = None) -> aiohttp.StreamReader:
        reader = real_factory(loop)
        reader._protocol._parser = SimpleNamespace(
            pause_reading=lambda: None, resume_reading=lambda: (None, False, b""), feed_eof=lambda: None
        )
        return reader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aioresponses.core, "ClientResponse", Response)
        patch.setattr(aioresponses.core, "stream_reader_factory", factory)
        yield
