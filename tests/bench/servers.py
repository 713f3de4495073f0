"""The three servers of a benchmark: the mirror, the upstream behind it, and CNCF Distribution beside it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

from tests.bench.content import Content
from tests.bench.processes import Process, ask, free_port

REPOSITORY = "bench/image"


def blob_path(digest: str) -> str:
    return f"/v2/{REPOSITORY}/blobs/{digest}"


def manifest_path(reference: str) -> str:
    return f"/v2/{REPOSITORY}/manifests/{reference}"


class _Server:
    process: Process
    port: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stop()


class Upstream(_Server):
    """The rate-limited, counting upstream, and the remote control of it. rate: bytes per second, 0 for no limit."""

    def __init__(self, folder: Path, *, rate: int = 0, pinned: Collection[int] | None = None) -> None:
        self.port = free_port()
        command = (sys.executable, "-m", "tests.bench.upstream", str(self.port))
        self.process = Process("the upstream", command, log=folder / "upstream.log", pinned=pinned)
        self.process.wait_ready(self.port, "/v2/")
        self.limit(rate)

    def limit(self, rate: int) -> None:
        self._control("POST", f"/bench/rate?bytes={rate}")

    def blob(self, size: int, seed: int) -> str:
        """Make a blob, and return its digest."""
        answer = self._control("POST", f"/bench/blob?size={size}&seed={seed}")
        digest: str = answer["digest"]
        return digest

    def manifest(self, tag: str, raw: bytes, media_type: str) -> str:
        """Take a manifest under a tag, and return its digest."""
        answer = self._control("PUT", f"/bench/manifest/{tag}", raw, {"Content-Type": media_type})
        digest: str = answer["digest"]
        return digest

    def gets(self, digest: str) -> list[dict[str, Any]]:
        """Return every GET of a blob so far: its ``range`` and the body bytes ``sent``."""
        log = self._control("GET", "/bench/log")
        return [entry for entry in log if entry["method"] == "GET" and entry["path"].endswith(f"/blobs/{digest}")]

    def sent(self, digest: str) -> int:
        """Return the body bytes sent of a blob so far."""
        return sum(entry["sent"] for entry in self.gets(digest))

    def _control(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        return json.loads(ask(self.port, method, path, body, headers)[2])


class Mirror(_Server):
    """``mirror serve`` on an empty root of its own.

    log: where its log goes, the access log included. more: settings besides.
    """

    def __init__(
        self,
        folder: Path,
        upstream: Upstream | None = None,
        *,
        workers: int,
        pinned: Collection[int] | None = None,
        log: Path | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.port = free_port()
        self.root = folder / "root"
        config = folder / "mirror.yaml"
        settings = {
            "listen": f"127.0.0.1:{self.port}",
            "workers": workers,
            "storage": {"root": str(self.root)},
            "upstreams": {},
            "local": ["bench/**"],
            "shutdown_delay": "0s",
            "drain_timeout": "1s",
            **(more or {}),
        }
        if upstream is not None:
            # Fresh for the whole run: a hit is a hit.
            there = {"url": f"http://127.0.0.1:{upstream.port}", "tags": {"fresh_for": "1h"}}
            settings |= {"upstreams": {"upstream.bench": there}, "default_upstream": "upstream.bench", "local": []}
        config.write_text(json.dumps(settings, indent=2))  # JSON is YAML
        command = (sys.executable, "-m", "mirror", "serve", "--config", str(config))
        self.process = Process("the mirror", command, log=log or folder / "mirror.log", pinned=pinned)
        self.process.wait_ready(self.port, "/readyz")

    def has(self, digest: str) -> bool:
        """Say whether a blob has its final name."""
        algorithm, _, encoded = digest.partition(":")
        return (self.root / "cache" / algorithm / encoded).exists()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        shutil.rmtree(self.root, ignore_errors=True)  # a gigabyte each would add up


class Distribution(_Server):
    """CNCF Distribution as a local registry with its in-memory descriptor cache, everything else as it comes."""

    def __init__(
        self,
        folder: Path,
        *,
        pinned: Collection[int] | None = None,
        log: Path | None = None,
        program: str | None = None,
    ) -> None:
        self.port = free_port()
        name = Path(program or "distribution").name
        self.root = folder / f"{name}-data"
        config = folder / f"{name}.yml"
        settings = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {
                "cache": {"blobdescriptor": "inmemory"},
                "filesystem": {"rootdirectory": str(self.root)},
            },
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "bench"},
        }
        config.write_text(json.dumps(settings, indent=2))
        command = (program or self.program() or "docker-registry", "serve", str(config))
        self.process = Process("Distribution", command, log=log or folder / f"{name}.log", pinned=pinned)
        self.process.wait_ready(self.port, "/v2/")

    @staticmethod
    def program() -> str | None:
        """Return where it is, None when it is not installed."""
        return shutil.which("docker-registry")

    @staticmethod
    def programs() -> dict[str, str]:
        """Return the versions that are installed, by name: Debian's 2.8, and 3 as its own build calls itself."""
        found = {"Distribution 3": shutil.which("registry"), "Distribution 2.8": shutil.which("docker-registry")}
        return {name: program for name, program in found.items() if program}

    def push_blob(self, content: Content) -> None:
        _, headers, _ = self._push("POST", f"/v2/{REPOSITORY}/blobs/uploads/", None, {})
        location = headers["Location"]
        path = location[location.index("/v2/") :]
        path += f"{'&' if '?' in path else '?'}digest={content.digest}"
        length = {"Content-Length": str(content.size), "Content-Type": "application/octet-stream"}
        self._push("PUT", path, content.pieces(), length)

    def push_manifest(self, tag: str, raw: bytes, media_type: str) -> None:
        self._push("PUT", manifest_path(tag), raw, {"Content-Type": media_type})

    def _push(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        answer = ask(self.port, method, path, body, headers)
        if answer[0] not in (201, 202):
            raise RuntimeError(f"Distribution answered {answer[0]} to {method} {path}: {answer[2][:500]!r}")
        return answer
