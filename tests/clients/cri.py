"""Pull through containerd's CRI service, as a kubelet does.

One unary gRPC call over a unix socket: HTTP/2 with literal headers and two small protobuf messages,
written by hand so that the suite needs no gRPC library. Errors come as Huffman-coded trailers, which are
not read: containerd's log has them.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM = ACK = 0x1
END_HEADERS = 0x4


class CriFailed(AssertionError):
    """The call ended without a message."""


def pull_image(address: Path, reference: str, *, seconds: float = 120.0) -> str:
    """PullImage of the CRI's ImageService; the image's id ("sha256:…" of its config)."""
    image = _bytes_field(1, reference.encode())  # ImageSpec.image
    answer = _call(address, "/runtime.v1.ImageService/PullImage", _bytes_field(1, image), seconds)
    return dict(_fields(answer))[1].decode()  # PullImageResponse.image_ref


def _call(address: Path, method: str, request: bytes, seconds: float) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(_literal(name, value) for name, value in headers.items())
    message = b"\0" + struct.pack(">I", len(request)) + request
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(address))
        connection.sendall(PREFACE + _frame(SETTINGS, 0, 0, b"") + _frame(HEADERS, END_HEADERS, 1, block))
        connection.sendall(_frame(DATA, END_STREAM, 1, message))
        body, ended = b"", False
        with connection.makefile("rb") as incoming:
            while not ended:
                head = incoming.read(9)
                if len(head) < 9:
                    raise CriFailed(f"{method}: connection closed")
                length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
                payload = incoming.read(length)
                if kind in (RST_STREAM, GOAWAY):
                    raise CriFailed(f"{method}: refused by the server")
                if kind in (SETTINGS, PING) and not flags & ACK:
                    echo = payload if kind == PING else b""
                    connection.sendall(_frame(kind, ACK, 0, echo))
                if kind == DATA:
                    body += payload
                ended = kind in (DATA, HEADERS) and bool(flags & END_STREAM)
    if len(body) < 5:
        raise CriFailed(f"{method}: an error instead of a message")
    return body[5:]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field that is neither indexed nor compressed (RFC 7541 section 6.2.2)."""
    assert max(len(name), len(value)) < 127
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message that has no others."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        key = varint()
        assert key & 7 == 2, "only strings and messages are expected"
        size = varint()
        yield key >> 3, data[position : position + size]
        position += size
