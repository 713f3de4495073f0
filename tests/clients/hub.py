"""The offline hub's lifetime, switches and log, as the tests see them."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.ca import Authority
from tests.clients.hub_server import CLIENTS, Entry
from tests.clients.images import MEDIA, Image
from tests.clients.namespace import CDN_NAME, CONTROL, GHCR, HUB, PROJECT, Namespace
from tests.clients.processes import Process
from tests.clients.push import push
from tests.clients.tokens import ISSUER, SERVICE, Signer

REALM = "https://auth.docker.io/token"
DISTRIBUTION_PORT = 5000
SHORTENED = re.compile(r"([0-9a-f]{12})[0-9a-f]{52}")
SHOWN = 60  # requests in a test's message
ACCEPT = ", ".join(style[kind] for style in MEDIA.values() for kind in ("index", "manifest"))


def docker_io(namespace: Namespace) -> dict[str, object]:
    """Return the settings of docker.io as an upstream, inside."""
    return {
        "url": "https://registry-1.docker.io",
        "names": ["index.docker.io", "registry-1.docker.io"],
        "ca_file": str(namespace.ca_file),
    }


@dataclass(frozen=True, slots=True)
class Log:
    """Requests as the hub received them, in the order they were answered."""

    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def at(self, *sites: str) -> Log:
        return Log(tuple(entry for entry in self.entries if entry.site in sites))

    def that(self, method: str, part: str) -> Log:
        """Requests with this method whose path contains this."""
        return Log(tuple(e for e in self.entries if e.method == method and part in e.path))

    def past_challenges(self) -> Log:
        """Without the 401s by which somebody learns where to get a token."""
        return Log(tuple(e for e in self.entries if e.status != 401))

    def counted(self) -> Log:
        """Requests that were taken off somebody's pull limit."""
        return Log(tuple(e for e in self.entries if e.counted))

    def served(self) -> Log:
        """Content that was given out: manifests and blobs, by any server."""
        kinds = ("/manifests/", "/blobs/", "/data")
        return Log(tuple(e for e in self.entries if (e.status or 999) < 400 and any(k in e.path for k in kinds)))

    def to_clients(self) -> Log:
        """Answers to container clients, not to a mirror."""
        return Log(tuple(e for e in self.entries if CLIENTS.match(e.user_agent) and "/pushed/" not in e.path))

    def __str__(self) -> str:
        shown = self.entries[-SHOWN:]
        lines = [f"(the last {len(shown)} of {len(self)})"] if len(shown) < len(self) else []
        for e in shown:
            path = SHORTENED.sub(r"\1..", e.path) + (f"?{e.query}" if e.query else "")
            part = f", {e.range}" if e.range else ""
            counted = ", counted" if e.counted else ""
            lines.append(f"{e.site} {e.method} {path} -> {e.status} ({e.bytes} bytes{part}{counted}) {e.user_agent}")
        return "\n".join(lines) or "(nothing)"


class Hub:
    """docker.io (tokens, CDN) and ghcr.io (open), each in front of CNCF Distribution 2.8."""

    def __init__(self, namespace: Namespace, authority: Authority, directory: Path) -> None:
        self._namespace, self.authority, self._directory = namespace, authority, directory
        directory.mkdir(parents=True)
        self._log = directory / "requests.jsonl"
        self._log.touch()
        self._signer = Signer(authority.token)
        self._front: Process | None = None
        self._registries = [
            self._registry(
                "hub-registry",
                HUB,
                auth={
                    "token": {
                        "realm": REALM,
                        "service": SERVICE,
                        "issuer": ISSUER,
                        "rootcertbundle": str(authority.ca),
                    }
                },
                middleware={"storage": [{"name": "redirect", "options": {"baseurl": f"https://{CDN_NAME}"}}]},
            ),
            self._registry("ghcr-registry", GHCR),
        ]
        self._settings = directory / "settings.json"
        settings = {
            "log": str(self._log),
            "server": str(authority.server),
            "token": str(authority.token),
            "files": str(directory / "hub-registry"),
            "hub": f"http://{HUB}:{DISTRIBUTION_PORT}",
            "ghcr": f"http://{GHCR}:{DISTRIBUTION_PORT}",
        }
        self._settings.write_text(json.dumps(settings))

    def _registry(self, name: str, address: str, **sections: object) -> Process:
        config = self._directory / f"{name}.json"
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._directory / name)},
                "delete": {"enabled": True},
            },
            "http": {
                "addr": f"{address}:{DISTRIBUTION_PORT}",
                "secret": "not a secret",
                "relativeurls": True,  # TLS ends in front of it
            },
            **sections,
        }
        config.write_text(json.dumps(settings))  # JSON is YAML
        log = self._directory / f"{name}.log"
        process = self._namespace.start(name, "docker-registry", "serve", str(config), log=log)
        self._until_listening(process, address, DISTRIBUTION_PORT)
        return process

    # ---- lifetime -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Answer (again), refusing container clients."""
        assert self._front is None
        command = (sys.executable, "-m", "tests.clients.hub_server", str(self._settings))
        env = {"PYTHONPATH": str(PROJECT)}
        self._front = self._namespace.start("hub", *command, env=env, log=self._directory / "hub_server.log")
        self._until_listening(self._front, CONTROL, 80)  # the last one it opens

    def stop(self) -> None:
        """The outage: connections to the hub, its tokens, its CDN and ghcr.io are refused from now on."""
        if self._front is not None:
            self._idle()
            self._front.kill()
            self._front = None

    def close(self) -> None:
        if self._front is not None:
            self._front.kill()
        for process in self._registries:
            process.kill()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    # ---- switches -------------------------------------------------------------------------------------

    @contextmanager
    def open_to_clients(self) -> Iterator[None]:
        """Container clients are not refused inside this block."""
        self._set(refuse=False)
        try:
            yield
        finally:
            self._set()

    @contextmanager
    def slow_heads(self, seconds: float) -> Iterator[None]:
        """HEADs of manifests take this much longer inside this block."""
        self._set(head_delay=seconds)
        try:
            yield
        finally:
            self._set()

    @contextmanager
    def limited(self, pulls: int) -> Iterator[None]:
        """Inside this block docker.io lets each account, and each address without one, pull so often."""
        self._control(f"/limit?pulls={pulls}")
        try:
            yield
        finally:
            self._control("/limit")

    def use_up(self, image: Image) -> int:
        """Pull as somebody else behind the same address does, until that is told to stop; how often it was not."""
        access = [{"type": "repository", "name": image.repository, "actions": ["pull"]}]
        headers = {"Authorization": f"Bearer {self._signer.token('', access)}", "Accept": image.top.media_type}
        trust = ssl.create_default_context(cafile=str(self.authority.ca))
        trust.check_hostname = False  # threads inside know the hub by its address alone

        def pull() -> int:
            path = f"/v2/{image.repository}/manifests/{image.digest}"
            with closing(http.client.HTTPSConnection(HUB, timeout=30, context=trust)) as connection:
                for pulls in itertools.count():
                    connection.request("GET", path, headers=headers)
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status == 429:
                        return pulls
                    assert answer.status == 200, f"{path}: {answer.status}"
            raise AssertionError("not reached")

        return self._namespace.inside(pull)

    def _set(self, *, refuse: bool = True, head_delay: float = 0.0) -> None:
        self._control(f"/set?refuse={int(refuse)}&head_delay={head_delay}")

    def _control(self, path: str) -> None:
        def ask() -> int:
            with closing(http.client.HTTPConnection(CONTROL, 80, timeout=30)) as connection:
                connection.request("POST", path)
                return connection.getresponse().status

        assert self._namespace.inside(ask) == 200

    # ---- content and log ------------------------------------------------------------------------------

    def push(self, image: Image) -> None:
        """Push straight into the registry behind the front: not in the log."""
        address, token = GHCR, None
        if image.registry == "docker.io":
            access = [{"type": "repository", "name": image.repository, "actions": ["pull", "push"]}]
            address, token = HUB, self._signer.token("test", access)

        def send() -> None:
            with closing(http.client.HTTPConnection(address, DISTRIBUTION_PORT, timeout=60)) as connection:
                push(image, connection, token=token)

        self._namespace.inside(send)

    def stored_at_ghcr(self, repository: str, kind: str, reference: str) -> bytes:
        """What the ghcr.io registry itself holds: ``kind`` is manifests or blobs. Not in the log."""

        def get() -> bytes:
            with closing(http.client.HTTPConnection(GHCR, DISTRIBUTION_PORT, timeout=60)) as connection:
                path = f"/v2/{repository}/{kind}/{reference}"
                connection.request("GET", path, headers={"Accept": ACCEPT})
                answer = connection.getresponse()
                assert answer.status == 200, f"ghcr.io has no {path}: {answer.status}"
                return answer.read()

        return self._namespace.inside(get)

    def mark(self) -> int:
        """A place in the log, for ``log``."""
        return len(self.log())

    def log(self, since: int = 0) -> Log:
        """What was asked since the mark, once nothing is being answered any more."""
        if self._front is not None:
            self._idle()
        lines = self._log.read_text().splitlines()[since:]
        return Log(tuple(Entry(**json.loads(line)) for line in lines))

    def _idle(self) -> None:
        self._control("/idle")

    def _until_listening(self, process: Process, address: str, port: int) -> None:
        def listening() -> bool:
            with socket.create_connection((address, port), timeout=2):
                return True

        process.wait_until("listening", lambda: self._namespace.inside(listening))
