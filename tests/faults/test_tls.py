"""TLS of the service: by listener, with clients' certificates, and read again when the files change."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.stubbed import PATIENCE, Service, eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc, PR_SET_PDEATHSIG")

LOOK = 0.2


def write_pair(authority: trustme.CA, folder: Path, **options: Any) -> dict[str, str]:
    """Write a certificate of localhost and its key, as ``tls`` of the configuration has them."""
    folder.mkdir(exist_ok=True)
    made = authority.issue_cert("localhost", **options)
    made.private_key_pem.write_to_path(folder / "key")
    (folder / "crt").write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
    return {"certificate": str(folder / "crt"), "key": str(folder / "key")}


def trusting(authority: trustme.CA, client: trustme.CA | None = None) -> ssl.SSLContext:
    """Return what a client uses. client: who signed its own certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client is not None:
        client.issue_cert("somebody@localhost").configure_cert(context)
    return context


class Client:
    """Asks over TLS, each time over a connection of its own. session: of the last one."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.port = port
        self.context = context
        self.session: ssl.SSLSession | None = None
        self.reused: bool | None = None
        self.serial = 0

    def ask(self, session: ssl.SSLSession | None = None) -> dict[str, Any] | None:
        """Return what /who says, None when the handshake is refused."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as plain:
                with self.context.wrap_socket(plain, server_hostname="localhost", session=session) as secure:
                    secure.sendall(b"GET /who HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    response = http.client.HTTPResponse(secure)
                    response.begin()
                    found = json.loads(response.read())
                    self.session, self.reused = secure.session, secure.session_reused
                    self.serial = int(secure.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]
                    return dict(found)
        except (ssl.SSLError, ConnectionError, http.client.BadStatusLine):
            return None


def messages(service: Service, level: str) -> list[str]:
    lines = [json.loads(line) for line in service.said.splitlines()]
    return [line["message"] for line in lines if line["level"] == level]


@contextlib.contextmanager
def kept(service: Service) -> Iterator[http.client.HTTPConnection]:
    with contextlib.closing(service.open()) as connection:
        connection.request("GET", "/who")
        connection.getresponse().read()
        yield connection


def test_each_listener_speaks_its_own(start: Callable[..., Service], tmp_path: Path) -> None:
    one, other = trustme.CA(), trustme.CA()
    listen = [
        {"address": "127.0.0.1:0", "tls": None},
        {"address": "localhost:0"},
        {"address": "127.0.0.2:0", "tls": write_pair(other, tmp_path / "other")},
    ]
    service = start(config={"listen": listen, "tls": write_pair(one, tmp_path / "one")}).ready()
    urls = service.urls
    assert [url.rpartition(":")[0] for url in urls] == ["http://127.0.0.1", "https://127.0.0.1", "https://127.0.0.2"]
    assert json.loads(service.ask("/who")[1])["secure"] is False
    found = Client(int(urls[1].rpartition(":")[2]), trusting(one)).ask()
    assert found is not None
    assert found["secure"] is True
    assert Client(int(urls[1].rpartition(":")[2]), trusting(other)).ask() is None
    expiries = re.findall(
        r'^mirror_certificate_expiry\S+{certificate="(\S+)"} (\S+)$', service.ask("/metrics")[1].decode(), re.M
    )
    assert [name for name, _ in expiries] == [url.partition("//")[2] for url in urls[1:]]
    assert all(float(number) > time.time() for _, number in expiries)


def test_changed_files_are_used_without_being_told(start: Callable[..., Service], tmp_path: Path) -> None:
    """As Kubernetes changes them: by a link to another folder, behind links. In between they do not belong together."""
    authority = trustme.CA()
    soon = datetime.now(UTC) + timedelta(days=5)
    write_pair(authority, tmp_path / "first")
    write_pair(authority, tmp_path / "second", not_after=soon)
    (tmp_path / "now").symlink_to("first")
    (tmp_path / "mounted").mkdir()
    for name in ("crt", "key"):
        (tmp_path / "mounted" / name).symlink_to(f"../now/{name}")
    tls = {"certificate": str(tmp_path / "mounted/crt"), "key": str(tmp_path / "mounted/key")}
    service = start(config={"tls": tls, "workers": 2}, look_every=LOOK, trust=trusting(authority)).ready()
    client = Client(service.port, trusting(authority))
    assert client.ask()
    first = client.serial

    def switch(folder: str) -> None:
        (tmp_path / "next").symlink_to(folder)
        (tmp_path / "next").rename(tmp_path / "now")

    def serials() -> set[int]:
        found = set()
        for _ in range(8):  # each of both workers
            assert client.ask()
            found.add(client.serial)
        return found

    with kept(service) as connection:
        before = connection.sock
        (tmp_path / "half").mkdir()
        (tmp_path / "half/crt").write_bytes((tmp_path / "second/crt").read_bytes())
        (tmp_path / "half/key").write_bytes((tmp_path / "first/key").read_bytes())
        switch("half")
        eventually(lambda: messages(service, "error"))
        assert serials() == {first}
        switch("second")
        eventually(lambda: any("is in use" in message for message in messages(service, "info")))
        eventually(lambda: len(serials()) == 1 and first not in serials())
        connection.request("GET", "/who")
        assert connection.getresponse().read()
        assert connection.sock is before, "who was connected stays so"
    [error] = messages(service, "error")
    assert error.startswith(f"tls: cannot use certificate {tls['certificate']} with key {tls['key']}: ")
    assert error.endswith("; the one of before stays in use")
    assert messages(service, "info")[1:] == [f"tls: certificate {tls['certificate']} has changed and is in use"]
    [warning] = messages(service, "warning")
    assert f"tls: certificate {tls['certificate']} expires soon: {soon:%Y-%m-%d}" in warning
    # who takes the place of a dead worker has it too, at once
    os.kill(eventually(client.ask)["pid"], 9)
    eventually(lambda: any("replaced in" in message for message in messages(service, "error")))
    assert first not in serials()


def test_key_that_becomes_a_pipe_keeps_nobody_waiting(start: Callable[..., Service], tmp_path: Path) -> None:
    """Neither the parent, which looks at it before it replaces a worker, nor a worker that is to end."""
    authority = trustme.CA()
    tls = write_pair(authority, tmp_path)
    service = start(config={"tls": tls, "workers": 2}, look_every=LOOK, trust=trusting(authority)).ready()
    client = Client(service.port, trusting(authority))
    before = {pid for _, pid in service.workers(2).items()}
    os.rename(tls["key"], tmp_path / "kept")
    os.mkfifo(tls["key"])
    eventually(lambda: any("it is not a file" in message for message in messages(service, "error")))
    os.kill(min(before), signal.SIGKILL)
    eventually(lambda: set(service.workers(2).values()) - before)
    assert client.ask()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert not any("killed" in message for message in messages(service, "warning"))


def test_expired_certificate_is_warned_of(start: Callable[..., Service], tmp_path: Path) -> None:
    authority = trustme.CA()
    past = datetime.now(UTC) - timedelta(days=2)
    tls = write_pair(authority, tmp_path, not_before=past - timedelta(days=1), not_after=past)
    service = start(config={"tls": tls, "workers": 2}).ready()
    [warning] = eventually(lambda: messages(service, "warning"))
    assert warning.startswith(f"tls: certificate {tls['certificate']} has expired: {past:%Y-%m-%d}")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_show_a_certificate_of_who_is_trusted_now(
    start: Callable[..., Service], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Also when they resume a session that they had when another authority was trusted."""
    authority, trusted, other = trustme.CA(), trustme.CA(), trustme.CA()
    ca = tmp_path / "clients"
    trusted.cert_pem.write_to_path(ca)
    tls = write_pair(authority, tmp_path) | {"client_ca": str(ca)}
    service = start(config={"tls": tls, "workers": 1}, look_every=LOOK).ready()
    contexts = [trusting(authority, client) for client in (trusted, other, None)]
    for context in contexts:
        context.minimum_version = context.maximum_version = version
    good, wrong, none = [Client(service.port, context) for context in contexts]
    assert good.ask()
    assert good.reused is False
    assert good.ask(good.session)
    assert good.reused is True, "it can be resumed while nothing changes"
    assert wrong.ask() is None
    assert none.ask() is None
    session = good.session
    other.cert_pem.write_to_path(ca)
    eventually(wrong.ask)
    assert good.ask(session) is None
    assert good.ask() is None
    assert messages(service, "error") == messages(service, "warning") == []
    said = [line for line in service.said.splitlines() if "do not agree on TLS" not in line]
    assert len(said) == 2, "where it listens, and that the certificate has changed"


def test_failed_handshakes_are_one_quiet_line_each(start: Callable[..., Service], tmp_path: Path) -> None:
    authority = trustme.CA()
    service = start(config={"tls": write_pair(authority, tmp_path)}, level="debug").ready()
    quiet = [line for line in service.said.splitlines() if "asyncio" not in line]
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as plain:
            plain.sendall(sent)
            plain.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while plain.recv(4096):
                    pass
    assert Client(service.port, trusting(authority)).ask()
    eventually(lambda: any("do not agree on TLS" in message for message in messages(service, "info")))
    later = [line for line in service.said.splitlines() if "asyncio" not in line][len(quiet) :]
    assert len(later) <= 2
    assert all(json.loads(line)["level"] == "info" for line in later)
    assert "Traceback" not in service.said
