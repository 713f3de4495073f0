"""A page of a long list: 100 of 100,000 tags, and 100 of 10,000 repositories, beside CNCF Distribution, one core each.

Both are filled on disk, in the form each of them has there: pushing so much would take an hour.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import ExitStack
from pathlib import Path

from tests.bench.load import Load, run_wrk, wrk
from tests.bench.processes import ask
from tests.bench.result import Result, Row, count, median
from tests.bench.servers import Distribution, Mirror
from tests.bench.settings import Settings, one_core_each, workspace

DIGEST = "sha256:" + "ab" * 32
PAGE = 100
REPOSITORY = "bench/many"


def run(settings: Settings) -> Result:
    """Fill, check one page of each, and load them in turn."""
    result = Result(name="lists", beside="Distribution")
    server, others = one_core_each()
    log = Path(os.devnull)
    if not wrk():
        result.notes.append("wrk is not installed: nothing was measured")
        return result
    tags, names = settings.pick(100_000, 2_000), settings.pick(10_000, 500)
    with workspace() as folder, ExitStack() as stack:
        mirror = stack.enter_context(Mirror(folder, workers=1, pinned=server, log=log))
        _fill_mirror(mirror.root, tags, names)
        ports = {"mirror": mirror.port}
        for name, program in Distribution.programs().items():
            beside = stack.enter_context(Distribution(folder, pinned=server, log=log, program=program))
            _fill_distribution(beside.root, tags, names)
            ports[name] = beside.port
        if len(ports) == 1:
            result.notes.append("neither registry (Distribution 3) nor docker-registry (2.8) is installed")

        def load(port: int, path: str) -> Load:
            seconds = settings.pick(4, 1)
            return run_wrk(port, path, connections=4, seconds=seconds, pinned=others, folder=folder)

        for what, path, key, last in (
            (f"{PAGE} of {tags:,} tags", f"/v2/{REPOSITORY}/tags/list", "tags", f"v{tags // 2:06}"),
            (f"{PAGE} of {names:,} repositories", "/v2/_catalog", "repositories", f"bench/r{names // 2:06}"),
        ):
            query = f"{path}?n={PAGE}&last={last}"
            found: dict[str, list[float]] = {name: [] for name in ports}
            for name, port in ports.items():
                entries = json.loads(ask(port, "GET", query)[2])[key]
                whole = name.endswith("2.8") and key == "tags"  # it knows no pages of tags
                result.rows.append(count(f"{what}: entries of {name}'s page", len(entries), tags if whole else PAGE))
            for turn in range(settings.pick(3, 1)):
                for name in list(ports) if turn % 2 == 0 else list(reversed(ports)):
                    found[name].append(load(ports[name], query).per_second)
            first = median(found["mirror"])
            for name in list(ports)[1:]:
                theirs = median(found[name])
                result.rows.append(
                    Row(what=f"{what}, {name}", mirror=first, beside=theirs, unit="pages/s", target=">= 20",
                        met=first >= 20 * theirs)
                )  # fmt: skip
            few = load(mirror.port, f"/v2/bench/few/tags/list?n={PAGE}")
            if key == "tags":
                row = Row(
                    what=f"{what}, beside {PAGE} of {PAGE} tags here",
                    mirror=first,
                    beside=few.per_second,
                    unit="pages/s",
                )
                result.rows.append(row)
    return result


def _fill_mirror(root: Path, tags: int, names: int) -> None:
    database = sqlite3.connect(root / "metadata.db", timeout=30)
    with database:
        for repository, number in ((REPOSITORY, tags), ("bench/few", PAGE)):
            database.executemany(
                "INSERT INTO tag (repository, tag, digest, media_type, size, origin, checked_at, fresh_until, retry_at)"
                " VALUES (?, ?, ?, 'application/vnd.oci.image.manifest.v1+json', 500, 'pushed', 0, 0, 0)",
                ((f"|{repository}", f"v{at:06}", DIGEST) for at in range(number)),
            )
            database.execute("INSERT INTO repository (name, key) VALUES (?, ?)", (repository, f"|{repository}"))
        database.executemany(
            "INSERT INTO repository (name, key) VALUES (?, ?)",
            ((f"bench/r{at:06}", f"|bench/r{at:06}") for at in range(names)),
        )
    database.close()


def _fill_distribution(root: Path, tags: int, names: int) -> None:
    repositories = root / "docker" / "registry" / "v2" / "repositories"
    manifests = repositories / REPOSITORY / "_manifests"
    for at in range(tags):
        current = manifests / "tags" / f"v{at:06}" / "current"
        current.mkdir(parents=True)
        (current / "link").write_text(DIGEST)
    for name in (REPOSITORY, *(f"bench/r{at:06}" for at in range(names))):
        for part in ("_layers", "_uploads", "_manifests/tags", "_manifests/revisions"):
            (repositories / name / part).mkdir(parents=True, exist_ok=True)
