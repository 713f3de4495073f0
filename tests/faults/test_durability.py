"""What survives a loss of power is a matter of order, and the order is what the system calls of a push show.

fsync(file) → rename → fsync(folder) → write and sync of the database's log → the answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_upstream import random_bytes
from tests.service import Service, service, wait_until, write_config

NAME = "local/team/app"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
DATA = random_bytes(1_500_000, 1)
CALLS = (
    *("fsync", "fdatasync", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat"),
    *("pwrite64", "pwritev", "pwritev2", "write", "writev", "sendto", "sendmsg"),
)
_BEGINS = re.compile(r"(\d+) +(\w+)\((.*)")
_ENDS = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")


class Call:
    """One system call. text: its arguments, descriptors with their paths. begun, ended: places in the trace."""

    def __init__(self, name: str, text: str, begun: int) -> None:
        self.name = name
        self.text = text
        self.begun = begun
        self.ended = -1

    def __repr__(self) -> str:
        return f"{self.begun}-{self.ended} {self.name}({self.text[:200]}"


def read_trace(path: Path) -> list[Call]:
    """Read what strace wrote. Those that failed are left out."""
    calls: list[Call] = []
    going_on: dict[str, Call] = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines()):
        if found := _ENDS.match(line):
            call, rest = going_on.pop(found[1]), found[3]
            assert call.name == found[2]
        elif found := _BEGINS.match(line):
            call, rest = Call(found[2], found[3], number), found[3]
            if rest.endswith("<unfinished ...>"):
                going_on[found[1]] = call
                continue
        else:
            continue
        if re.search(r"\) += \d", rest):
            call.ended = number
            calls.append(call)
    return calls


class Traced:
    """A service whose system calls are written down."""

    def __init__(self, running: Service, trace: Path) -> None:
        self._running = running
        self._trace = trace

    def ask(self, method: str, path: str, expected: int, body: bytes = b"", **headers: str) -> str:
        """Ask it. Returns the Location it answers with."""
        from tests.faults.test_pushes import ask

        reply = ask(self._running, method, path, body, **headers)
        assert reply.status == expected, reply.body
        return str(reply.headers["Location"])

    def end(self) -> list[Call]:
        """Stop it and return what it did."""
        assert self._running.stop() == 0
        gone = re.compile(rf"^{self._running.pid} +\+\+\+ exited", re.MULTILINE)
        wait_until(lambda: gone.search(self._trace.read_text(errors="replace")), "all of it is written")
        return read_trace(self._trace)


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    """Run the service, one worker of it, under strace."""
    strace, trace = shutil.which("strace"), tmp_path / "trace"
    if not strace:
        pytest.skip("strace is not installed")
    tried = subprocess.run([strace, "-D", "-f", "-y", "-o", tmp_path / "tried", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    # -D: the service is the process that is started, and gets the signals; -y: paths of descriptors
    wrapper = tmp_path / "traced"
    options = f"-D -f -y -s 400 -o {trace} -e trace={','.join(CALLS)} -e signal=none"
    wrapper.write_text(f'#!/bin/sh\nexec {strace} {options} {sys.executable} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    config = write_config(tmp_path, {"up": {"url": "http://127.0.0.1:9"}}, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr("tests.service.sys.executable", str(wrapper))
        with service(config) as running:
            patch.undo()
            yield Traced(running, trace)


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def one(calls: list[Call], names: str, *texts: str, after: Call | None = None) -> Call:
    """Return the only call of these names with all these texts."""
    found = [
        call
        for call in calls
        if call.name in names.split()
        and all(text in call.text for text in texts)
        and (after is None or call.begun > after.ended)
    ]
    assert len(found) == 1, (names, texts, found)
    return found[0]


SYNC = "fsync fdatasync"
RENAME = "rename renameat renameat2"
SEND = "sendto sendmsg write writev"
WRITE = "pwrite64 pwritev pwritev2 write writev"


def in_order(*calls: Call) -> None:
    """Make sure that each had ended before the next one began."""
    for first, second in itertools.pairwise(calls):
        assert first.ended < second.begun, (first, second)


def log_synced(calls: list[Call], after: Call, answer: Call) -> list[Call]:
    """Return the last write to the database's log before an answer, and the sync of it."""
    between = [call for call in calls if after.ended < call.begun < answer.begun and "/metadata.db-wal>" in call.text]
    writes = [call for call in between if call.name in WRITE.split()]
    syncs = [call for call in between if call.name in SYNC.split()]
    assert writes, "the row was written after that"
    assert syncs, "and synced"
    return [writes[-1], syncs[-1]]


def check_named(calls: list[Call], temporary: str, digest: str, answer: Call) -> None:
    """Make sure that content was made durable before its name, and the name before the answer."""
    final = f"/blobs/sha256/{digest[7:]}"
    rename = one(calls, RENAME, temporary, final)
    synced = one(calls, SYNC, temporary)
    writes = [call for call in calls if call.name in WRITE.split() and f"{temporary}" in call.text.partition(">")[0]]
    assert writes, "it was written"
    folder = one([call for call in calls if call.begun < answer.begun], SYNC, "/blobs/sha256>)", after=rename)
    in_order(writes[-1], synced, rename, folder, *log_synced(calls, folder, answer), answer)


@pytest.mark.parametrize("how", ["POST", "PUT", "PATCH"])
def test_a_blob(traced: Traced, how: str) -> None:
    digest = digest_of(DATA)
    location = f"/v2/{NAME}/blobs/uploads/"
    if how == "POST":
        traced.ask("POST", f"{location}?digest={digest}", 201, DATA)
    else:
        location = traced.ask("POST", location, 202)
        if how == "PATCH":
            traced.ask("PATCH", location, 202, DATA)
        traced.ask("PUT", f"{location}?digest={digest}", 201, DATA if how == "PUT" else b"")
    calls = traced.end()
    check_named(calls, "/ingest/uploads/", digest, one(calls, SEND, "HTTP/1.1 201", digest))


def test_a_blob_that_has_a_file_already(traced: Traced) -> None:
    """Whoever made it may have died before the folder was synced."""
    digest, first, second = digest_of(DATA), f"/v2/{NAME}/blobs/uploads/", "/v2/local/second/blobs/uploads/"
    traced.ask("POST", f"{first}?digest={digest}", 201, DATA)
    traced.ask("POST", f"{second}?digest={digest}", 201, DATA)
    calls = traced.end()
    before, answer = (one(calls, SEND, "HTTP/1.1 201", f"/v2/{name}/blobs/{digest}") for name in (NAME, "local/second"))
    one(calls, RENAME, digest[7:])
    folder = one([call for call in calls if call.begun < answer.begun], SYNC, "/blobs/sha256>)", after=before)
    in_order(before, folder, *log_synced(calls, folder, answer), answer)


def test_a_manifest(traced: Traced) -> None:
    traced.ask("POST", f"/v2/{NAME}/blobs/uploads/?digest={digest_of(DATA)}", 201, DATA)
    config = {"mediaType": "application/octet-stream", "digest": digest_of(DATA), "size": len(DATA)}
    raw = json.dumps({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": []}).encode()
    traced.ask("PUT", f"/v2/{NAME}/manifests/v1", 201, raw, Content_Type=IMAGE)
    calls, digest = traced.end(), digest_of(raw)
    check_named(calls, f"/ingest/sha256/{digest[7:]}", digest, one(calls, SEND, "HTTP/1.1 201", digest))


def test_a_mount(traced: Traced) -> None:
    digest = digest_of(DATA)
    traced.ask("POST", f"/v2/{NAME}/blobs/uploads/?digest={digest}", 201, DATA)
    traced.ask("POST", f"/v2/local/second/blobs/uploads/?mount={digest}&from={NAME}", 201)
    calls = traced.end()
    before, answer = (one(calls, SEND, "HTTP/1.1 201", f"/v2/{name}/blobs/{digest}") for name in (NAME, "local/second"))
    in_order(before, *log_synced(calls, before, answer), answer)


def test_a_delete(traced: Traced) -> None:
    """The other way round: a row without a file would be a promise that is not kept."""
    digest = digest_of(DATA)
    traced.ask("POST", f"/v2/{NAME}/blobs/uploads/?digest={digest}", 201, DATA)
    traced.ask("DELETE", f"/v2/{NAME}/blobs/{digest}", 202)
    calls = traced.end()
    before, answer = one(calls, SEND, "HTTP/1.1 201", digest), one(calls, SEND, "HTTP/1.1 202")
    unlinked = one(calls, "unlink unlinkat", f"/blobs/sha256/{digest[7:]}")
    in_order(before, *log_synced(calls, before, unlinked), unlinked, answer)
