"""A registry to push to, inside the namespace: ``mirror serve`` without upstreams, and what it holds, read by hand."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import json
import re
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bcrypt
import pytest

from tests.clients.ca import Authority
from tests.clients.images import MEDIA, Blob, Image
from tests.clients.namespace import PROJECT, CommandFailed, Namespace
from tests.clients.processes import Process
from tests.service import whole_lines

Access = Literal["open", "basic", "bearer"]
"""open: no logins. basic: logins for all. bearer: anonymous pulls beside logged-in pushes."""
ACCESSES: tuple[Access, ...] = ("open", "basic", "bearer")
ACCEPT = ", ".join(style[kind] for style in MEDIA.values() for kind in ("index", "manifest"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    user: str
    password: str

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


AUTHOR = Login(user="author", password="correct horse")
WRONG = (
    Login(user=AUTHOR.user, password="battery staple"),
    Login(user="nobody", password=AUTHOR.password),
)
REFUSAL = re.compile(
    "(?i)unauthorized|denied|authentication required|authorization failed|invalid username"
    "|no basic auth credentials|basic credential not found|requires a token"
)


def refused(doing: Callable[[], object]) -> None:
    """Assert that a client fails, and says that it is for want of a right."""
    with pytest.raises(CommandFailed) as caught:
        doing()
    assert REFUSAL.search(caught.value.output), caught.value.output


class Registry:
    """One running registry. host: HOST:PORT as clients say it. access: who may do what; AUTHOR is the only user.

    tls: certificates to serve HTTPS with. more: further settings.
    """

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        port: int,
        access: Access = "open",
        workers: int = 2,
        tls: Authority | None = None,
        **more: object,
    ) -> None:
        self._namespace, self._directory = namespace, directory
        directory.mkdir(parents=True)
        self.access, self.tls = access, tls
        self.host = f"127.0.0.1:{port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        settings: dict[str, object] = {
            "listen": self.host,
            "workers": workers,
            "storage": {"root": str(directory / "root")},
            "upstreams": {},
            "shutdown_delay": "0s",
            **more,
        }
        if tls:
            settings["tls"] = {"certificate": str(tls.server), "key": str(tls.server)}
        if access != "open":
            users = directory / "htpasswd"
            hashed = bcrypt.hashpw(AUTHOR.password.encode(), bcrypt.gensalt(5)).decode()
            users.write_text(f"{AUTHOR.user}:{hashed}\n")
            users.chmod(0o600)
            anonymous = "none" if access == "basic" else "pull"
            settings["access"] = {"htpasswd_file": str(users), "anonymous": anonymous}
        self._config = directory / "mirror.yaml"
        self._config.write_text(json.dumps(settings, indent=2))  # JSON is YAML
        self._process = self._start()

    def _start(self) -> Process:
        command = (sys.executable, "-m", "mirror", "serve", "--config", str(self._config))
        env, log = {"PYTHONPATH": str(PROJECT)}, self._directory / "registry.log"
        process = self._namespace.start("registry", *command, env=env, log=log)
        process.wait_until("ready", lambda: self.ask("GET", "/readyz")[0] == 200)
        return process

    # ---- what it holds --------------------------------------------------------------------------------

    def ask(self, method: str, path: str, login: Login | None = AUTHOR) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request; its status, headers and body. The login goes along unless there are none."""
        headers = {"Accept": ACCEPT}
        if login and self.access != "open":
            headers["Authorization"] = login.basic

        def ask() -> tuple[int, http.client.HTTPMessage, bytes]:
            with closing(self._connection()) as connection:
                connection.request(method, path, headers=headers)
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read()

        return self._namespace.inside(ask)

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls:
            trust = ssl.create_default_context(cafile=str(self.tls.ca))
            return http.client.HTTPSConnection(self.host, timeout=30, context=trust)
        return http.client.HTTPConnection(self.host, timeout=30)

    def manifest(self, repository: str, reference: str) -> tuple[str, dict[str, Any]]:
        """The digest of a manifest here, by its bytes and as the answer says, and what it says."""
        status, headers, data = self.ask("GET", f"/v2/{repository}/manifests/{reference}")
        assert status == 200, f"{repository} has no manifest {reference}: {status} {data!r}"
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        assert headers["Docker-Content-Digest"] == digest
        said: dict[str, Any] = json.loads(data)
        return digest, said

    def blob(self, repository: str, digest: str) -> bytes:
        """The bytes of a blob here, which have this digest."""
        status, _, data = self.ask("GET", f"/v2/{repository}/blobs/{digest}")
        assert status == 200, f"{repository} has no blob {digest}: {status} {data!r}"
        assert "sha256:" + hashlib.sha256(data).hexdigest() == digest
        return data

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository; none when it is not known here."""
        status, _, data = self.ask("GET", f"/v2/{repository}/tags/list")
        if status == 404:
            return []
        assert status == 200, f"{status} {data!r}"
        found: list[str] = json.loads(data)["tags"]
        return found

    def referrers(self, repository: str, digest: str) -> list[dict[str, Any]]:
        """The descriptors of what refers to a manifest here."""
        status, _, data = self.ask("GET", f"/v2/{repository}/referrers/{digest}")
        assert status == 200, f"{status} {data!r}"
        found: list[dict[str, Any]] = json.loads(data)["manifests"]
        return found

    def tag(self, manifest: Blob, repository: str, tags: Sequence[str]) -> None:
        """Give a manifest that is here these tags, all by one request. For a registry without logins."""
        path = f"/v2/{repository}/manifests/{manifest.digest}?" + "&".join(f"tag={tag}" for tag in tags)

        def put() -> int:
            with closing(self._connection()) as connection:
                connection.request("PUT", path, manifest.data, {"Content-Type": manifest.media_type})
                return connection.getresponse().status

        assert self._namespace.inside(put) == 201

    def assert_holds(self, image: Image, repository: str, tag: str) -> None:
        """Every platform of an image is here, byte for byte."""
        assert self.manifest(repository, tag)[0] == image.digest
        for one in image.manifests:
            status, headers, data = self.ask("GET", f"/v2/{repository}/manifests/{one.digest}")
            assert (status, headers["Content-Type"], data) == (200, one.media_type, one.data)
            assert headers["Docker-Content-Digest"] == one.digest
        for one in image.blobs:
            assert self.blob(repository, one.digest) == one.data

    def assert_holds_contents(self, image: Image, repository: str, tag: str) -> str:
        """An image of one platform is here with its config as it was; layers may be compressed anew. Its digest."""
        digest, manifest = self.manifest(repository, tag)
        assert self.blob(repository, manifest["config"]["digest"]) == image.config.data
        layers = (self.blob(repository, layer["digest"]) for layer in manifest["layers"])
        unpacked = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in layers)
        assert tuple("sha256:" + hashlib.sha256(data).hexdigest() for data in unpacked) == image.diff_ids
        return digest

    def lines(self) -> list[dict[str, Any]]:
        """The lines of requests in its log so far."""
        return [line for line in whole_lines(self._directory / "registry.log") if "client" in line]

    # ---- the end --------------------------------------------------------------------------------------

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A failure inside this block shows the end of the log."""
        try:
            yield
        except Exception as exc:
            exc.add_note(f"the registry's log:\n{self._process.tail(12)}")
            raise

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Nothing answers here inside this block."""
        self._process.kill()
        try:
            yield
        finally:
            self._process = self._start()

    def close(self) -> None:
        """End it and delete its root."""
        self._process.kill()
        shutil.rmtree(self._directory)
