"""From an open file to a client's socket, whatever it is the file is still growing towards.

Plain connections: pieces are read from the page cache into one buffer that all clients of the process share, and
sent from it at once; what the socket does not take is read again later. So a client costs no memory, a slow one
slows nobody, and a file that is truncated meanwhile is a short read and no SIGBUS. TLS needs the bytes anyway.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from mirror.oci.errors import StorageFailed
from mirror.registry.body import Extent, Extents
from mirror.store.reading import read_at, read_now

PIECE = 256 * 1024
"""Bytes read and sent at a time; small enough to stay in a core's cache."""
TURN = 2 * 1024 * 1024
"""Bytes one client is sent before the others get their turn."""

_BYTES_ACKED = struct.Struct("120xQ")
"""Where ``struct tcp_info`` has ``tcpi_bytes_acked``."""
_buffer = memoryview(bytearray(PIECE))


class ClientTooSlow(ConnectionResetError):
    """The client took nothing for the whole time limit."""


class Sender:
    """Sends parts of a body to one client. timeout: seconds within which the client has to take something.

    Made before the headers are sent, as making it may fail: no descriptor may be left. Then ``begin``.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse, timeout: float):
        self._request = request
        self._response = response
        self._writer: AbstractStreamWriter | None = None
        self._timeout = timeout
        self._transport: asyncio.Transport | None = request.transport
        self._socket: socket.socket | None = None
        self._connection: socket.socket | None = None
        self.sent = 0
        """Body bytes sent."""
        found = self._transport.get_extra_info("socket") if self._transport else None
        if self._transport is None or found is None or found.fileno() < 0:
            return  # the client is gone; writing will say so
        self._connection = found
        if self._transport.get_extra_info("sslcontext") is None and response.content_length is not None:
            # A descriptor of our own: the event loop refuses to watch one that a transport uses.
            self._socket = socket.socket(fileno=os.dup(found.fileno()))
            self._socket.setblocking(False)

    async def begin(self) -> None:
        """Send the headers. Raises: ConnectionError when the client is gone."""
        self._writer = await self._response.prepare(self._request)

    async def send(self, body: Extents, first: int, stop: int | None, extent: Extent | None = None) -> None:
        """Send the bytes of a body from ``first`` up to ``stop``, as they become available.

        extent: those at ``first``, when they were waited for already.
        Raises: what ``Extents.extent`` raises; ConnectionError when the client is gone or too slow.
        """
        position = first
        while stop is None or position < stop:
            if extent is None:
                extent = await body.extent(position, stop)
                if extent is None:
                    if stop is not None:
                        raise StorageFailed("a body ended before what was announced of it")
                    return
            if self._socket is not None:
                await self._send_raw(self._socket, extent)
            else:
                await self._write(extent)
            position += extent.length
            extent = None

    async def write(self, data: bytes) -> None:
        """Send a few bytes that are not of the body, through the response."""
        self._leave_raw()
        await self._within(self._response.write(data))

    def close(self) -> None:
        """Let go of the socket. Before the connection is closed: a second descriptor would keep it open."""
        self._leave_raw()

    def _leave_raw(self) -> None:
        own, self._socket = self._socket, None
        if own is not None:
            own.close()

    async def _send_raw(self, own: socket.socket, extent: Extent) -> None:
        transport = self._transport
        assert transport is not None
        assert self._writer is not None, "begin first"
        self._writer.send_headers()
        if transport.get_write_buffer_size():
            await self._within(self._emptied(transport))
        position, end, turn = extent.offset, extent.offset + extent.length, 0
        view: memoryview | bytes = b""
        while position < end:
            wanted = min(PIECE, end - position)
            count = read_now(extent.fd, _buffer[:wanted], position)
            if count < 0:
                cold = memoryview(bytearray(wanted))  # another client uses the shared one while we wait
                count = await read_at(extent.fd, cold, position)
                view = cold[:count]
            else:
                view = _buffer[:count]
            if not count:
                raise StorageFailed("a stored file is shorter than it was")
            try:
                sent = own.send(view)
            except (BlockingIOError, InterruptedError):
                sent = 0
            position += sent
            self.sent += sent
            turn += sent
            if sent < count:
                await self._writable(own)
                turn = 0
            elif turn >= TURN:
                turn = 0
                await asyncio.sleep(0)
            if transport.is_closing():
                raise ConnectionResetError("the client is gone")

    async def _emptied(self, transport: asyncio.WriteTransport) -> None:
        """Wait until the transport has sent what it holds: the headers, and answers before this one."""
        while transport.get_write_buffer_size():
            if transport.is_closing():
                raise ConnectionResetError("the client is gone")
            await asyncio.sleep(0.005)

    async def _writable(self, own: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(own, _wake, ready)
        try:
            await self._within(ready)
        finally:
            loop.remove_writer(own)

    async def _write(self, extent: Extent) -> None:
        position, end = extent.offset, extent.offset + extent.length
        while position < end:
            piece = memoryview(bytearray(min(PIECE, end - position)))
            count = await read_at(extent.fd, piece, position)
            if not count:
                raise StorageFailed("a stored file is shorter than it was")
            await self._within(self._response.write(piece[:count]))
            position += count
            self.sent += count

    async def _within(self, sending: Awaitable[None]) -> None:
        """Wait for the client to make room; ClientTooSlow when it takes not a byte for the whole time limit.

        Of room we are told late: the kernel waits until a third of its buffer is free. So it is asked.
        """
        loop = asyncio.get_running_loop()
        before = self._taken()
        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal before, timer
            taken = self._taken()
            if taken == before:
                limit.reschedule(loop.time())
            else:
                before, timer = taken, loop.call_later(self._timeout, look)

        timer = loop.call_later(self._timeout, look)
        try:
            async with asyncio.timeout(None) as limit:
                await sending
        except TimeoutError:
            raise ClientTooSlow(f"the client took nothing for {self._timeout:.0f} s") from None
        finally:
            timer.cancel()

    def _taken(self) -> int:
        return 0 if self._connection is None or self._connection.fileno() < 0 else bytes_taken(self._connection)


def bytes_taken(connection: socket.socket) -> int:
    """Return the bytes the other side has acknowledged since the connection began. Source: tcp(7), TCP_INFO."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    return int(_BYTES_ACKED.unpack(info)[0]) if len(info) == _BYTES_ACKED.size else 0


def end_short(request: web.Request) -> None:
    """Close the connection by FIN, short of what was announced: the client may resume. RFC 9112 section 8."""
    if request.transport is not None:
        request.transport.close()


def end_now(request: web.Request) -> None:
    """Close the connection without sending what is left: nobody takes it."""
    if request.transport is not None:
        request.transport.abort()


def end_wrong(request: web.Request) -> None:
    """Reset the connection: what was sent is wrong, and must not be taken for a prefix to resume after."""
    transport = request.transport
    if transport is None:
        return
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()  # without the line above this would still be a FIN


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
