"""nginx in front of a mirror, with the very files of ``config/nginx``: only addresses and paths are put in."""

from __future__ import annotations

import http.client
import ssl
from contextlib import closing
from pathlib import Path

from tests.clients.ca import Authority
from tests.clients.namespace import OUTSIDE, PROJECT, Namespace
from tests.clients.processes import Process

NAME = "registry.test"
OWN, SHARED = f"{NAME}:6443", f"{NAME}:6444"
"""The server that is the mirror's own; the one it shares, where it is below /hub/ and /v2/hub/."""
FILES = PROJECT / "config" / "nginx"
MAIN = """\
daemon off;
master_process off;
pid {d}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log {d}/access.log;
  client_body_temp_path {d}/body;
  proxy_temp_path {d}/proxy;
  fastcgi_temp_path {d}/fastcgi;
  uwsgi_temp_path {d}/uwsgi;
  scgi_temp_path {d}/scgi;
  include {d}/mirror.conf;
}}
"""


class Nginx:
    """``mirror``: HOST:PORT that it passes requests on to. It asks from 127.0.0.1, and is asked at OUTSIDE."""

    def __init__(self, namespace: Namespace, directory: Path, mirror: str, authority: Authority) -> None:
        directory.mkdir()
        self._directory = directory
        (directory / "nginx.conf").write_text(MAIN.format(d=directory))
        (directory / "mirror_proxy.conf").write_text((FILES / "mirror_proxy.conf").read_text())
        text = (FILES / "mirror.conf").read_text()
        for given, ours in {
            "    server 127.0.0.1:5000;": f"    server {mirror};",
            "    listen 443 ssl;": f"    listen {OUTSIDE}:{OWN.partition(':')[2]} ssl;",
            "    listen 444 ssl;": f"    listen {OUTSIDE}:{SHARED.partition(':')[2]} ssl;",
            "server_name registry.example.net;": f"server_name {NAME};",
            "server_name shared.example.net;": f"server_name {NAME};",
            "/etc/ssl/registry.pem": str(authority.server),
            "/etc/ssl/registry.key": str(authority.server),
            "/etc/nginx/mirror_proxy.conf": str(directory / "mirror_proxy.conf"),
        }.items():
            assert given in text, given
            text = text.replace(given, ours)
        (directory / "mirror.conf").write_text(text)
        command = ("nginx", "-c", str(directory / "nginx.conf"), "-e", "stderr")
        self._process: Process = namespace.start("nginx", *command, log=directory / "nginx.log")

        self._trust = ssl.create_default_context(cafile=str(authority.ca))

        def answers() -> bool:
            with closing(self.connection(OWN)) as connection:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200

        self._process.wait_until("answering", lambda: namespace.inside(answers))

    def connection(self, host: str) -> http.client.HTTPSConnection:
        """Return a connection to one of the servers, for a thread inside, where names are not known."""
        port = int(host.partition(":")[2])
        return http.client.HTTPSConnection(OUTSIDE, port, timeout=30, context=self._trust)

    def tail(self) -> str:
        return self._process.tail()

    def close(self) -> None:
        self._process.kill()
