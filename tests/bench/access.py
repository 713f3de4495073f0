"""What logging in costs: the same manifest, by Basic and by a token, beside a mirror without users."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import bcrypt

from tests.bench.content import Content
from tests.bench.load import Load, run_wrk, wrk
from tests.bench.processes import ask
from tests.bench.procfs import children, cpu_seconds
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Mirror, Upstream, manifest_path
from tests.bench.settings import Settings, one_core_each, workspace

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TAG = "v1"
USER, PASSWORD = "bench", "a password"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TARGET = 1.1


@dataclass(slots=True)
class _Way:
    """One way to ask. authorization: its header. found: answers per second and CPU seconds per answer, by round."""

    what: str
    mirror: Mirror
    authorization: str | None
    found: list[tuple[float, float]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return median(rate for rate, _ in self.found)

    @property
    def microseconds(self) -> float:
        return median(cpu for _, cpu in self.found) * 1e6


def run(settings: Settings) -> Result:
    """Fill two mirrors with one manifest, and ask them for it in turn."""
    result = Result(name="access", beside="without")
    if not wrk():
        result.notes.append("wrk is not installed: nothing was measured")
        return result
    server, others = one_core_each()
    with workspace() as folder, ExitStack() as stack:
        users = folder / "htpasswd"
        users.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()}\n")
        with Upstream(folder) as upstream:
            upstream.manifest(TAG, _manifest(), MANIFEST)
            open_one = stack.enter_context(_mirror(folder / "open", upstream, server, {}))
            closed = stack.enter_context(_mirror(folder / "closed", upstream, server, {"htpasswd_file": str(users)}))
            token = json.loads(ask(closed.port, "GET", "/v2/_mirror/auth/token", headers={"Authorization": BASIC})[2])
            ways = [
                _Way("without users", open_one, None),
                _Way("login by Basic", closed, BASIC),
                _Way("login by token", closed, f"Bearer {token['token']}"),
                _Way("users, and no login", closed, None),
            ]
            right = sum(_status(way.mirror, way.authorization) == 200 for way in ways)
        result.rows.append(count("answers right", right, len(ways)))
        wrong = base64.b64encode(f"{USER}:wrong".encode()).decode()
        result.rows.append(count("a wrong login's answer", _status(closed, f"Basic {wrong}"), 401))
        failed = _measure(ways, settings, others, folder)
        beside, *logins = ways
        for way in logins:
            met = way.microseconds <= TARGET * beside.microseconds
            result.rows += [
                Row(
                    what=way.what,
                    mirror=way.microseconds,
                    beside=beside.microseconds,
                    unit="µs of CPU a request",
                    target=f"<= {TARGET:.2f}",
                    met=met,
                ),
                Row(what="", mirror=way.per_second, beside=beside.per_second, unit="requests/s"),
            ]
        result.rows.append(count("requests without a good answer", failed, 0))
    return result


def _mirror(folder: Path, upstream: Upstream, pinned: Collection[int], access: dict[str, str]) -> Mirror:
    folder.mkdir()
    return Mirror(folder, upstream, workers=1, pinned=pinned, log=Path(os.devnull), more={"access": access})


def _measure(ways: list[_Way], settings: Settings, pinned: list[int], folder: Path) -> int:
    """Ask in turn, the order reversed each round; return how many requests got no good answer."""
    failed = 0
    for turn in range(settings.pick(5, 1)):
        for way in ways if turn % 2 == 0 else reversed(ways):
            before = _cpu(way.mirror)
            load = _load(way, settings.pick(3, 1), pinned, folder)
            spent = _cpu(way.mirror) - before
            failed += load.failed
            way.found.append((load.per_second, spent / max(1, load.per_second * settings.pick(3, 1))))
    return failed


def _load(way: _Way, seconds: int, pinned: list[int], folder: Path) -> Load:
    return run_wrk(
        way.mirror.port,
        manifest_path(TAG),
        connections=32,
        seconds=seconds,
        pinned=pinned,
        folder=folder,
        accept=MANIFEST,
        authorization=way.authorization,
    )


def _cpu(mirror: Mirror) -> float:
    return sum(cpu_seconds(pid) for pid in children(mirror.process.pid))


def _status(mirror: Mirror, authorization: str | None) -> int:
    headers = {"Accept": MANIFEST, **({"Authorization": authorization} if authorization else {})}
    return ask(mirror.port, "GET", manifest_path(TAG), headers=headers)[0]


def _manifest() -> bytes:
    def described(kind: str, content: Content) -> dict[str, object]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": content.digest, "size": content.size}

    config, layer = described("config.v1+json", Content(512, 1)), described("layer.v1.tar", Content(4096, 2))
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    return json.dumps(body, indent=3).encode()
