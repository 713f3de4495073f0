"""Load generators on a core of their own: wrk, and ours that reads 64 KiB at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.bench.processes import PROJECT

_REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"requests": %d, "bytes": %d, "microseconds": %d, "failed": %d}\\n',
    summary.requests, summary.bytes, summary.duration, failed))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a load generator saw. per_second: answers; bytes_per_second; failed: requests without a good answer."""

    per_second: float
    bytes_per_second: float
    failed: int


def wrk() -> str | None:
    """Return where wrk is, None when it is not installed."""
    return shutil.which("wrk")


def run_wrk(
    port: int,
    path: str,
    *,
    connections: int,
    seconds: int,
    pinned: Collection[int],
    folder: Path,
    accept: str | None = None,
    authorization: str | None = None,
) -> Load:
    """Ask for one path over and over with wrk, on one thread."""
    script = folder / "report.lua"
    script.write_text(_REPORT)
    accepts = ["-H", f"Accept: {accept}"] if accept else []
    accepts += ["-H", f"Authorization: {authorization}"] if authorization else []
    command = [wrk() or "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", *accepts]
    return _run([*command, "-s", str(script), f"http://127.0.0.1:{port}{path}"], pinned, seconds)


def run_reader(port: int, path: str, *, connections: int, seconds: int, pinned: Collection[int]) -> Load:
    """Ask for one path over and over with our own client."""
    arguments = [str(port), path, str(connections), str(seconds)]
    return _run([sys.executable, "-m", "tests.bench.reader", *arguments], pinned, seconds)


def _run(command: list[str], pinned: Collection[int], seconds: int) -> Load:
    done = subprocess.run(
        command,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: os.sched_setaffinity(0, pinned),
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    duration = found["microseconds"] / 1e6
    return Load(
        per_second=found["requests"] / duration,
        bytes_per_second=found["bytes"] / duration,
        failed=found["failed"],
    )
