"""A folder of images through the API: read like any repository, written to by nobody."""

from __future__ import annotations

import functools
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from mirror.config import Config
from mirror.packages.folder import PackageFolder
from mirror.wiring import service
from tests.harness import Answer, Mirror, make_config, mirror, mirrors
from tests.images import until
from tests.layouts import OCI_MANIFEST, Layout, saved, sha, write_tar
from tests.raw_client import Client

SIGNATURE = "application/vnd.example.signature"
LAYER = os.urandom(200_000)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is looked at more often than outside of tests."""
    monkeypatch.setattr(service, "PackageFolder", functools.partial(PackageFolder, interval=0.02))
    found = tmp_path / "images"
    found.mkdir()
    return found


def config_of(folder: Path, **settings: Any) -> Config:
    return make_config(folder.parent / "root", {}, packages=folder, **settings)


def image(layout: Layout) -> dict[str, Any]:
    return layout.image("1.0", LAYER, b"second")


def write(layout: Layout, folder: Path, form: str) -> None:
    if form == "folder":
        layout.write(folder / "app")
    else:
        layout.write_tar(folder / "app.tar")


async def there(worker: Mirror, name: str, tag: str, *, wanted: int = 200) -> None:
    """Wait until a tag is answered in a certain way."""
    answers: list[Answer] = []

    async def ask() -> bool:
        answers.append(await worker.get(f"/v2/{name}/manifests/{tag}"))
        return answers[-1].status == wanted

    for _ in range(500):
        if await ask():
            return
    pytest.fail(f"never {wanted}: {answers[-1]}")


@pytest.mark.parametrize("form", ["folder", "tar"])
async def test_it_is_read_like_any_repository(folder: Path, form: str) -> None:
    layout = Layout()
    found = image(layout)
    layout.image("2.0")
    first, second = (layout.image(None, data, subject=found, artifactType=SIGNATURE) for data in (b"x", b"y"))
    other = layout.image(None, b"z", subject=found)
    write(layout, folder, form)
    digest, raw = found["digest"], layout.raw(found["digest"])
    async with mirror(config_of(folder)) as worker:
        for reference in ("1.0", digest):
            got = await worker.get(f"/v2/local/app/manifests/{reference}", headers={"Accept": OCI_MANIFEST})
            assert (got.status, got.body) == (200, raw)
            head = await worker.head(f"/v2/local/app/manifests/{reference}")
            assert (head.status, head.body) == (200, b"")
            for answer in (got, head):
                assert answer.headers["Docker-Content-Digest"] == digest
                assert answer.headers["Content-Type"] == OCI_MANIFEST
                assert answer.headers["Content-Length"] == str(len(raw))
        blob = f"/v2/local/app/blobs/{sha(LAYER)}"
        got, head = await worker.get(blob), await worker.head(blob)
        assert (got.status, got.body) == (200, LAYER)
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(LAYER)))
        assert got.headers["Docker-Content-Digest"] == head.headers["Docker-Content-Digest"] == sha(LAYER)
        for wanted, start, stop in (("0-0", 0, 1), ("1000-149999", 1000, 150_000), ("-7", len(LAYER) - 7, len(LAYER))):
            part = await worker.get(blob, headers={"Range": f"bytes={wanted}"})
            assert (part.status, part.body) == (206, LAYER[start:stop]), wanted
            assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(LAYER)}"
        assert (await worker.get(blob, headers={"Range": "bytes=200000-"})).status == 416
        tags = await worker.get("/v2/local/app/tags/list")
        assert json.loads(tags.body) == {"name": "local/app", "tags": ["1.0", "2.0"]}
        page = await worker.get("/v2/local/app/tags/list?n=1")
        assert json.loads(page.body)["tags"] == ["1.0"]
        assert "last=1.0" in page.headers["Link"]
        assert json.loads((await worker.get("/v2/local/app/tags/list?n=1&last=1.0")).body)["tags"] == ["2.0"]
        assert json.loads((await worker.get("/v2/_catalog")).body)["repositories"] == ["local/app"]
        listed = json.loads((await worker.get(f"/v2/local/app/referrers/{digest}")).body)["manifests"]
        every = (first, second, other)
        assert [item["digest"] for item in listed] == sorted(item["digest"] for item in every)
        some = await worker.get(f"/v2/local/app/referrers/{digest}?artifactType={SIGNATURE}")
        expected = sorted(item["digest"] for item in (first, second))
        assert [item["digest"] for item in json.loads(some.body)["manifests"]] == expected
        assert {item["artifactType"] for item in json.loads(some.body)["manifests"]} == {SIGNATURE}


async def test_a_docker_save_is_pulled(folder: Path) -> None:
    layers = [b"base" * 5000, b"top"]
    write_tar(folder / "team/app.tar", saved((["docker.io/team/app:1"], layers)))
    async with mirror(config_of(folder)) as worker:
        manifest = await worker.get("/v2/local/team/app/manifests/1")
        assert manifest.status == 200
        assert sha(manifest.body) == manifest.headers["Docker-Content-Digest"]
        body = json.loads(manifest.body)
        assert manifest.headers["Content-Type"] == body["mediaType"]
        for item in (body["config"], *body["layers"]):
            blob = await worker.get(f"/v2/local/team/app/blobs/{item['digest']}")
            assert (sha(blob.body), len(blob.body)) == (item["digest"], item["size"])
        assert [item["digest"] for item in body["layers"]] == [sha(layer) for layer in layers]


async def test_what_is_not_in_it_is_unknown(folder: Path) -> None:
    layout = Layout()
    image(layout)
    write(layout, folder, "tar")
    async with mirror(config_of(folder)) as worker:
        for path, code in (
            ("/v2/local/app/manifests/none", "MANIFEST_UNKNOWN"),
            (f"/v2/local/app/manifests/{sha(b'none')}", "MANIFEST_UNKNOWN"),
            (f"/v2/local/app/manifests/{sha(LAYER)}", "MANIFEST_UNKNOWN"),
            (f"/v2/local/app/blobs/{sha(b'none')}", "BLOB_UNKNOWN"),
            (f"/v2/local/other/blobs/{sha(LAYER)}", "BLOB_UNKNOWN"),
            ("/v2/local/other/tags/list", "NAME_UNKNOWN"),
        ):
            answer = await worker.get(path)
            assert (answer.status, answer.code) == (404, code), path
            assert (await worker.head(path)).status == 404
        empty = await worker.get(f"/v2/local/app/referrers/{sha(b'none')}")
        assert (empty.status, json.loads(empty.body)["manifests"]) == (200, [])


async def push(worker: Mirror, name: str) -> list[Answer]:
    """Ask for everything that writes to a repository; the blob pushed is there afterwards if that was allowed."""
    layer, config = sha(b"pushed"), sha(b"{}")
    described = {"mediaType": "application/json", "digest": config, "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []}
    headers = {"Content-Type": OCI_MANIFEST}
    found = [
        await worker.ask("POST", f"/v2/{name}/blobs/uploads/?digest={layer}", data=b"pushed"),
        await worker.ask("POST", f"/v2/{name}/blobs/uploads/?digest={config}", data=b"{}"),
        await worker.ask("POST", f"/v2/{name}/blobs/uploads/"),
        await worker.ask("POST", f"/v2/{name}/blobs/uploads/?mount={layer}&from=local/app"),
    ]
    raw = json.dumps(manifest).encode()
    for reference in ("1.0", "new", sha(raw)):
        found.append(await worker.ask("PUT", f"/v2/{name}/manifests/{reference}", data=raw, headers=headers))
    for path in ("manifests/new", f"manifests/{sha(raw)}", f"blobs/{layer}"):
        found.append(await worker.ask("DELETE", f"/v2/{name}/{path}"))
    return found


async def test_writing_to_it_is_unsupported(folder: Path) -> None:
    layout = Layout()
    found = image(layout)
    write(layout, folder, "folder")
    before = sorted(folder.rglob("*"))
    async with mirror(config_of(folder)) as worker:
        for answer in await push(worker, "local/app"):
            assert (answer.status, answer.code) == (405, "UNSUPPORTED"), answer
            assert b"packages folder" in answer.body
        for method, path in (
            ("DELETE", f"manifests/{found['digest']}"),
            ("DELETE", "manifests/1.0"),
            ("DELETE", f"blobs/{sha(LAYER)}"),
            ("PATCH", "blobs/uploads/11111111-1111-1111-1111-111111111111"),
            ("PUT", f"blobs/uploads/11111111-1111-1111-1111-111111111111?digest={sha(LAYER)}"),
        ):
            answer = await worker.ask(method, f"/v2/local/app/{path}", data=b"x")
            assert (answer.status, answer.code) == (405, "UNSUPPORTED"), answer
        assert (await worker.get("/v2/local/app/manifests/1.0")).body == layout.raw(found["digest"])
        for answer in await push(worker, "local/other"):  # and beside it everything goes
            assert answer.status in (201, 202), answer
    assert sorted(folder.rglob("*")) == before


async def test_read_only_refuses_every_write(folder: Path) -> None:
    layout = Layout()
    image(layout)
    write(layout, folder, "tar")
    async with mirror(config_of(folder, read_only=True)) as worker:
        for name in ("local/app", "local/other"):
            for answer in await push(worker, name):
                assert (answer.status, answer.code) == (405, "UNSUPPORTED"), answer
                assert b"read-only" in answer.body
        assert (await worker.get("/v2/local/app/manifests/1.0")).status == 200
        assert json.loads((await worker.get("/v2/_catalog")).body)["repositories"] == ["local/app"]


async def test_pushed_and_packaged_repositories_are_listed_together(folder: Path) -> None:
    Layout().write(folder / "b")
    async with mirror(config_of(folder)) as worker:
        for name in ("local/a", "local/c"):
            layout = Layout()
            raw = layout.raw(layout.image("1")["digest"])
            for item in (json.loads(raw)["config"], *json.loads(raw)["layers"]):
                data = layout.raw(item["digest"])
                await worker.ask("POST", f"/v2/{name}/blobs/uploads/?digest={item['digest']}", data=data)
            headers = {"Content-Type": OCI_MANIFEST}
            put = await worker.ask("PUT", f"/v2/{name}/manifests/1", data=raw, headers=headers)
            assert put.status == 201, put
        assert json.loads((await worker.get("/v2/_catalog")).body)["repositories"] == ["local/a", "local/b", "local/c"]
        page = await worker.get("/v2/_catalog?n=1&last=local/a")
        assert json.loads(page.body)["repositories"] == ["local/b"]
        assert "last=local/b" in page.headers["Link"] or "last=local%2Fb" in page.headers["Link"]


async def test_changes_are_noticed_and_a_bad_entry_is_reported_once_by_all_workers(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "mirror.packages")
    layout = Layout()
    image(layout)
    async with mirrors(config_of(folder), 2) as workers:
        for worker in workers:
            assert (await worker.get("/v2/local/app/manifests/1.0")).status == 404
        (folder / "bad.tar").write_bytes(b"nonsense" * 100)
        write(layout, folder, "tar")
        for worker in workers:
            await there(worker, "local/app", "1.0")
            assert (await worker.get(f"/v2/local/app/blobs/{sha(LAYER)}")).body == LAYER
            assert (await worker.get("/v2/local/bad/manifests/1.0")).status == 404
        await until(lambda: caplog.records, "reported")
        (folder / "app.tar").unlink()
        for worker in workers:
            await there(worker, "local/app", "1.0", wanted=404)
            assert (await worker.get(f"/v2/local/app/blobs/{sha(LAYER)}")).status == 404
    assert [record.getMessage() for record in caplog.records] == [
        f"packages: {folder}/bad.tar is not served: it is no tar archive"
    ]


async def test_wrong_bytes_are_not_sent(folder: Path) -> None:
    layout = Layout()
    image(layout)
    layout.files["blobs/" + sha(LAYER).replace(":", "/")] = LAYER[:-1] + bytes([LAYER[-1] ^ 1])
    write(layout, folder, "tar")
    async with mirror(config_of(folder)) as worker:
        answer = await worker.get(f"/v2/local/app/blobs/{sha(LAYER)}")
        assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")
        assert (await worker.get(f"/v2/local/app/blobs/{sha(b'second')}")).body == b"second"


@pytest.mark.parametrize("change", ["cut", "rewritten", "replaced"])
async def test_a_file_that_changes_while_it_is_sent(folder: Path, change: str) -> None:
    """Nobody takes what is sent of it for the whole; a file that is replaced goes on to be sent as it was."""
    layer = os.urandom(64 * 1024 * 1024)
    path = write_tar(folder / "app.tar", saved((["x:1"], [layer])))
    async with mirror(config_of(folder)) as worker:
        client = Client(f"{worker.url}/v2/local/app/blobs/{sha(layer)}")
        await client.has(1)
        client.resume.clear()
        if change == "cut":
            os.truncate(path, 100_000)
        elif change == "rewritten":
            with path.open("r+b") as file:
                file.seek(-200_000, os.SEEK_END)
                file.write(bytes(100_000))
        else:
            os.replace(write_tar(folder / "other", saved((["x:1"], [b"new"]))), path)
        client.resume.set()
        await client.task
        if change == "replaced":
            assert (client.ended, client.body == layer) == ("clean", True)
        else:
            assert client.ended in ("reset", "short")
            assert len(client.body) < len(layer)
