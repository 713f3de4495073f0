"""``mirror health``: asks where the configuration says that the service is, and says what came of it."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from click.testing import CliRunner, Result

from mirror.cli import main
from tests.ports import free_port


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class Server(HTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a handshake that was broken off


@contextmanager
def serving(*, status: int = 200, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Answer everything with a status, at a free port of 127.0.0.1."""
    with Server(("127.0.0.1", 0), Answer) as server:
        server.status, server.asked = status, []  # type: ignore[attr-defined]
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def health(folder: Path, *options: str, **settings: Any) -> Result:
    path = folder / "mirror.yaml"
    path.write_text(yaml.safe_dump(settings))
    return CliRunner().invoke(main, ["health", "--config", str(path), *options])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_it_answers(tmp_path: Path, host: str) -> None:
    with serving() as server:
        port = server.server_port
        result = health(tmp_path, listen=f"{host}:{port}")
    assert (result.exit_code, result.output) == (0, f"http://127.0.0.1:{port}/healthz answers 200 OK\n")
    assert server.asked == ["/healthz"]  # type: ignore[attr-defined]


def test_an_error_is_not_healthy(tmp_path: Path) -> None:
    with serving(status=503) as server:
        result = health(tmp_path, listen=f"127.0.0.1:{server.server_port}")
    assert result.exit_code == 1
    assert result.stderr.endswith("/healthz answers 503 Service Unavailable\n")


def test_as_json(tmp_path: Path) -> None:
    with serving() as server:
        url = f"http://127.0.0.1:{server.server_port}/healthz"
        good = health(tmp_path, "--json", listen=f"127.0.0.1:{server.server_port}")
        server.status = 503  # type: ignore[attr-defined]
        bad = health(tmp_path, "--json", listen=f"127.0.0.1:{server.server_port}")
    assert (good.exit_code, json.loads(good.stdout)) == (0, {"url": url, "answer": "200 OK"})
    assert (bad.exit_code, json.loads(bad.stdout)) == (1, {"problems": [f"{url} answers 503 Service Unavailable"]})


def test_nobody_there(tmp_path: Path) -> None:
    port = free_port()
    result = health(tmp_path, listen=f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stderr == f"mirror: http://127.0.0.1:{port}/healthz does not answer: Connection refused\n"


def test_an_address_of_ipv6_is_written_as_one(tmp_path: Path) -> None:
    port = free_port()
    result = health(tmp_path, listen=f"[::]:{port}")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"mirror: http://[::1]:{port}/healthz does not answer: ")


@pytest.fixture
def tls(tmp_path: Path) -> tuple[dict[str, str], ssl.SSLContext]:
    """A certificate for a name that nobody here uses: as settings, and for a server."""
    issued = trustme.CA().issue_cert("registry.example.net")
    files = {"certificate": str(tmp_path / "tls.crt"), "key": str(tmp_path / "tls.key")}
    issued.cert_chain_pems[0].write_to_path(files["certificate"])
    issued.private_key_pem.write_to_path(files["key"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certificate"], files["key"])
    return files, context


def test_tls_whatever_names_the_certificate_has(tmp_path: Path, tls: tuple[dict[str, str], ssl.SSLContext]) -> None:
    files, context = tls
    with serving(tls=context) as server:
        port = server.server_port
        result = health(tmp_path, listen=f"127.0.0.1:{port}", tls=files)
    assert (result.exit_code, result.output) == (0, f"https://127.0.0.1:{port}/healthz answers 200 OK\n")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_where_all_addresses_want_certificates_being_asked_for_one_is_an_answer(
    tmp_path: Path, tls: tuple[dict[str, str], ssl.SSLContext], version: ssl.TLSVersion
) -> None:
    files, context = tls
    context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(files["certificate"])
    with serving(tls=context) as server:
        listen = f"127.0.0.1:{server.server_port}"
        wanted = health(tmp_path, listen=listen, tls={**files, "client_ca": files["certificate"]})
    assert (wanted.exit_code, "it asks for one" in wanted.output) == (0, True)
    assert server.asked == []  # type: ignore[attr-defined]


def test_an_address_that_wants_no_certificate_is_preferred(
    tmp_path: Path, tls: tuple[dict[str, str], ssl.SSLContext]
) -> None:
    files, _ = tls
    mutual = {"address": f"127.0.0.1:{free_port()}", "tls": {**files, "client_ca": files["certificate"]}}
    with serving() as server:
        plain = f"127.0.0.1:{server.server_port}"
        result = health(tmp_path, listen=[mutual], admin_listen=[plain])
    assert (result.exit_code, result.output) == (0, f"http://{plain}/healthz answers 200 OK\n")


def test_what_does_not_speak_tls_is_not_healthy_where_it_should(
    tmp_path: Path, tls: tuple[dict[str, str], ssl.SSLContext]
) -> None:
    with serving() as server:
        result = health(tmp_path, listen=f"127.0.0.1:{server.server_port}", tls=tls[0])
    assert result.exit_code == 1
    assert "does not answer: " in result.stderr


def test_port_0_cannot_be_asked(tmp_path: Path) -> None:
    result = health(tmp_path, listen="127.0.0.1:0")
    assert (result.exit_code, "give it a port" in result.stderr) == (1, True)


def test_a_wrong_configuration_is_said(tmp_path: Path) -> None:
    result = health(tmp_path, lissten="127.0.0.1:1")
    assert result.exit_code == 1
    assert 'lissten: unknown key; did you mean "listen"?' in result.stderr
