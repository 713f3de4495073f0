"""TLS that does not come about: both sides are told why, and nobody waits."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from mirror.config.models import Tls
from mirror.server.certificates import Certificate
from tests.harness import Mirror, make_config, mirror


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def one(root: Path, tmp_path: Path, authority: trustme.CA) -> AsyncIterator[Mirror]:
    """Run a mirror that wants to see certificates of clients."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = authority.issue_cert("127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    tls = Tls(certificate=tmp_path / "server.pem", key=tmp_path / "server.pem", client_ca=tmp_path / "ca.pem")
    context = (await asyncio.to_thread(Certificate, tls)).front
    async with mirror(make_config(root, {}), ssl=context) as one:
        yield one


def client(authority: trustme.CA, *, shows: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if shows is not None:
        shows.issue_cert("a.client").configure_cert(context)
    return context


async def talk(one: Mirror, context: ssl.SSLContext | None, data: bytes = b"GET /healthz HTTP/1.0\r\n\r\n") -> bytes:
    """Send this, and return everything that comes until the connection ends."""
    host, _, port = one.url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.transport.abort()


async def test_a_certificate_lets_in(one: Mirror, authority: trustme.CA) -> None:
    assert b"200 OK" in await talk(one, client(authority, shows=authority))


async def test_a_client_is_told_what_it_lacks(
    one: Mirror, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mirror.server")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        await talk(one, client(authority))
    with pytest.raises(ssl.SSLError, match="UNKNOWN_CA"):
        await talk(one, client(authority, shows=trustme.CA()))
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if record.name == "mirror.server"]
    assert said == ["PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED"]


async def test_an_older_client_is_told_as_well(one: Mirror, authority: trustme.CA) -> None:
    context = client(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"HANDSHAKE_FAILURE|CERTIFICATE_REQUIRED"):
        await talk(one, context)


@pytest.mark.parametrize("data", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 200], ids=["http", "nonsense"])
async def test_who_speaks_no_tls_is_not_kept_waiting(one: Mirror, data: bytes) -> None:
    started = asyncio.get_running_loop().time()
    try:
        answer = await talk(one, None, data)
    except ConnectionError:
        answer = b""
    assert b"200 OK" not in answer
    assert asyncio.get_running_loop().time() - started < 15, "the time TLS would have is a minute"
