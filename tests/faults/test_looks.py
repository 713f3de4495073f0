"""``mirror stats`` and ``mirror explain`` beside a service of several processes, and on what a kill -9 left."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mirror.cli import main
from tests.fake_upstream import start_in_thread
from tests.service import Service, service, wait_until, write_config

UP = "up.test"
PULLS = 12


def look(config: Path, *command: str) -> dict[str, Any]:
    """Run a command, in this process, which is none of the service's; return its JSON."""
    done = CliRunner().invoke(main, [*command, "--config", str(config), "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def files(root: Path) -> dict[str, tuple[int, int, int]]:
    """Return what would show that somebody wrote: of each file when, how long, and which it is."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            status = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def blobs_kept(config: Path) -> int:
    return int(look(config, "stats")["content"]["sources"][0]["amount"]["blobs"])


def pulls(config: Path) -> int:
    return sum(one["pulls"] for one in look(config, "stats")["content"]["images"])


def pull(running: Service, path: str, times: int) -> None:
    for _ in range(times):  # each by a connection of its own: any worker may have it
        assert running.get(path)[0] == 200


@pytest.fixture(autouse=True)
def _log_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.logs.setup_logging", lambda **_: None)


def test_a_root_is_looked_at_while_it_is_served_and_after_a_kill(tmp_path: Path) -> None:
    with start_in_thread() as hub:
        image = hub.add_image("team/app", "1", (90_000,))
        config, root = write_config(tmp_path, {UP: {"url": hub.url}}, workers=4), tmp_path / "root"
        path = f"/v2/{UP}/team/app/manifests/{image.digest}"
        with service(config) as running:
            assert running.get(f"/v2/{UP}/team/app/manifests/1", method="HEAD")[0] == 200
            pull(running, path, PULLS)
            for digest in image.blobs:
                assert running.get(f"/v2/{UP}/team/app/blobs/{digest}")[0] == 200
            wait_until(lambda: pulls(config) == PULLS, "the pulls that four processes counted are written", 30)
            wait_until(lambda: blobs_kept(config) == 2, "what clients have had is kept a moment later")
            found = look(config, "stats")
            assert f"pid {running.pid} " in found["service"]
            assert found["counted"]["misses"] + found["counted"]["hits"] == PULLS + 3
            explained = look(config, "explain", f"{UP}/team/app:1")
            assert explained["answer"]["digest"] == image.digest
            assert explained["pull"]["bytes"] == 0
            running.kill()
            assert (root / "metadata.db-wal").exists()
            before = files(root)
            dead = look(config, "stats")
            assert dead["service"] is None
            assert dead["content"] == found["content"] | {"images": dead["content"]["images"]}
            assert look(config, "explain", f"{UP}/team/app:1")["parts"] == explained["parts"]
            assert files(root) == before
        with service(config) as running:
            pull(running, path, 1)
            wait_until(lambda: pulls(config) == PULLS + 1, "what was counted before the kill is still counted", 30)
        hub.clear_log()
        before = files(root)
        assert look(config, "explain", f"{UP}/team/app:1")["tag"]["digest"] == image.digest
        assert files(root) == before  # nobody has it open: no log is made
        assert hub.requests() == []
