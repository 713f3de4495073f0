"""A folder of images: what is served of it, what is reported, and that nothing wrong is given out."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.names import Digest, RepositoryName, Tag, parse_digest
from mirror.packages import contents, files, verify
from mirror.packages import folder as folder_module
from mirror.packages.base import PackageBlob, Packages
from mirror.packages.folder import PackageFolder
from tests.images import until
from tests.layouts import OCI_INDEX, OCI_MANIFEST, REF_NAME, Layout, saved, saved_config, sha, write_tar

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
A, GOOD = RepositoryName("local/a"), RepositoryName("local/good")
ONE = Tag("1")


@contextlib.asynccontextmanager
async def serving(folder: Path, **settings: Any) -> AsyncIterator[PackageFolder]:
    packages = PackageFolder(folder, **({"interval": 0.01} | settings))
    await packages.start()
    try:
        yield packages
    finally:
        await packages.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "images"
    found.mkdir()
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files that have only just been written for old ones: what is found out about them is remembered."""
    monkeypatch.setattr(files, "RECENT", 0.0)


@pytest.fixture
def reports(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "mirror.packages")
    return lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the size of everything that is hashed before it is given out."""
    sizes: list[int] = []

    def watch(fd: int, offset: int, size: int, hasher: Any) -> None:
        sizes.append(size)
        files.hash_bytes(fd, offset, size, hasher)

    monkeypatch.setattr(verify, "hash_bytes", watch)
    return sizes


async def blob(packages: Packages, name: str, digest: str) -> bytes | None:
    opened = await packages.open(RepositoryName(name), parse_digest(digest))
    if opened is None:
        return None
    try:
        return content(opened)
    finally:
        opened.close()


def content(opened: PackageBlob) -> bytes:
    with open(f"/proc/self/fd/{opened.fd}", "rb", buffering=0) as file:
        return os.pread(file.fileno(), opened.size, opened.offset) if opened.size else b""


def raw(packages: Packages, name: str, digest: str) -> bytes | None:
    found = packages.manifest(RepositoryName(name), parse_digest(digest))
    return found.raw if found else None


def tag(packages: Packages, name: str, wanted: str) -> str | None:
    found = packages.tag(RepositoryName(name), Tag(wanted))
    return str(found.digest) if found else None


# ---- what is served ----


@pytest.mark.parametrize("form", ["folder", "tar", "tar-with-dots"])
async def test_a_layout_is_served(folder: Path, reports: Callable[[], list[str]], form: str) -> None:
    layout = Layout()
    image = layout.image("1.0", b"first", b"second", b"")
    child = layout.image(None, b"child", listed=False)
    missing = {"mediaType": OCI_MANIFEST, "digest": sha(b"not here"), "size": 8}
    index = layout.manifest(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child, missing]}, "multi", algorithm="sha512"
    )
    untagged = layout.image(None, b"untagged")
    outer = layout.manifest({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [index]}, "outer")
    if form == "folder":
        layout.write(folder / "team/app")
    else:
        layout.write_tar(folder / "team/app.tar", "./" if form == "tar-with-dots" else "")
    name = RepositoryName("local/team/app")
    async with serving(folder) as packages:
        assert packages.names() == (name,)
        assert (packages.owns(name), packages.owns(RepositoryName("local/team"))) == (True, False)
        assert packages.tags(name) == ("1.0", "multi", "outer")
        assert [tag(packages, name, t) for t in packages.tags(name)] == [d["digest"] for d in (image, index, outer)]
        assert tag(packages, name, "2.0") is None
        for descriptor in (image, child, index, untagged, outer):
            digest = descriptor["digest"]
            manifest = packages.manifest(name, parse_digest(digest))
            assert manifest is not None
            assert (manifest.raw, str(manifest.descriptor.digest)) == (layout.raw(digest), digest)
            assert manifest.descriptor.media_type == descriptor["mediaType"]
        assert packages.manifest(name, parse_digest(missing["digest"])) is None
        for data in (b"first", b"second", b"", b"child"):
            assert await blob(packages, name, sha(data)) == data
            assert packages.size(name, parse_digest(sha(data))) == len(data)
        assert await blob(packages, name, missing["digest"]) is None
        assert packages.size(name, parse_digest(missing["digest"])) is None
        assert packages.manifest(name, parse_digest(sha(b"first"))) is None
        for other in ("local/team", "local/other"):  # nothing of it in any other repository
            assert (packages.tags(RepositoryName(other)), tag(packages, other, "1.0")) == ((), None)
            assert raw(packages, other, image["digest"]) is None
            assert await blob(packages, other, sha(b"first")) is None
    assert reports() == []


@pytest.mark.parametrize(
    ("annotations", "tags"),
    [
        ({REF_NAME: "1.2"}, ("1.2",)),
        ({REF_NAME: "docker.io/library/x:1.2"}, ("1.2",)),
        ({REF_NAME: "localhost:5000/x"}, ("latest",)),
        ({REF_NAME: "x@sha256:" + "0" * 64}, ()),
        ({REF_NAME: "x:1.2@sha256:" + "0" * 64}, ("1.2",)),
        ({contents.IMAGE_NAME: "docker.io/library/x:1.2", REF_NAME: "1.2"}, ("1.2",)),
        ({contents.IMAGE_NAME: "docker.io/library/x:1.2"}, ("1.2",)),
        ({contents.IMAGE_NAME: "x"}, ("latest",)),
        ({contents.IMAGE_NAME: "x:b", REF_NAME: "a"}, ("a", "b")),
        ({}, ()),
    ],
)
async def test_names_of_images(folder: Path, annotations: dict[str, str], tags: tuple[str, ...]) -> None:
    layout = Layout()
    layout.image()
    layout.listed[0]["annotations"] = annotations
    layout.write(folder / "a")
    async with serving(folder) as packages:
        assert packages.tags(A) == tags


async def test_tags_are_in_ascii_order(folder: Path) -> None:
    layout = Layout()
    for name in ("b", "_", "B", "a", "1"):
        layout.image(name)
    layout.write(folder / "a")
    async with serving(folder) as packages:
        assert packages.tags(A) == ("1", "B", "_", "a", "b")


async def test_referrers(folder: Path) -> None:
    layout = Layout()
    subject = layout.image("1")
    found = [layout.image(None, data, subject=subject) for data in (b"x", b"y", b"z")]
    orphan = layout.image(None, subject={"mediaType": OCI_MANIFEST, "digest": sha(b"gone"), "size": 4})
    layout.write_tar(folder / "a.tar")
    async with serving(folder) as packages:
        listed = packages.referrers(A, parse_digest(subject["digest"]))
        assert [str(m.descriptor.digest) for m in listed] == sorted(d["digest"] for d in found)
        gone = packages.referrers(A, parse_digest(sha(b"gone")))
        assert [str(m.descriptor.digest) for m in gone] == [orphan["digest"]]
        assert packages.referrers(A, parse_digest(orphan["digest"])) == []
        assert packages.referrers(GOOD, parse_digest(subject["digest"])) == []


async def test_an_index_can_list_what_is_no_manifest(folder: Path, reports: Callable[[], list[str]]) -> None:
    layout = Layout()
    xml = layout.blob(b"<xml/>", "application/xml")
    odd = layout.blob(b"not json", "application/vnd.example.odd")
    theirs = layout.manifest({"mediaType": "application/vnd.example.theirs", "layers": []}, "theirs")
    layout.listed += [xml, odd]
    layout.write(folder / "a")
    async with serving(folder) as packages:
        assert raw(packages, A, theirs["digest"]) == layout.raw(theirs["digest"])
        assert await blob(packages, A, xml["digest"]) == b"<xml/>"
        assert raw(packages, A, xml["digest"]) is raw(packages, A, odd["digest"]) is None
        await settle(packages)
    assert reports() == []


async def test_docker_save(folder: Path, reports: Callable[[], list[str]]) -> None:
    """Layers that are links included; what is made for it is the same each time, and of the layers' own digests."""
    base, top, other = b"base" * 300, b"top", b"other"
    images = saved((["docker.io/x/app:1", "x:2"], [base, top]), (None, [base, other]))
    for at in range(2):
        write_tar(folder / f"{at}/app.tar", dict(images))
    async with serving(folder) as packages:
        name = RepositoryName("local/0/app")
        assert packages.names() == (name, "local/1/app")
        assert packages.tags(name) == ("1", "2")
        digest = tag(packages, name, "1")
        assert digest is not None
        assert tag(packages, name, "2") == tag(packages, "local/1/app", "1") == digest
        manifest = json.loads(raw(packages, name, digest) or b"")
        assert manifest["mediaType"] == DOCKER_MANIFEST
        found = packages.tag(name, ONE)
        assert found is not None
        assert found.media_type == DOCKER_MANIFEST
        layer = "application/vnd.docker.image.rootfs.diff.tar"
        assert manifest["layers"] == [
            {"mediaType": layer, "size": len(data), "digest": sha(data)} for data in (base, top)
        ]
        config = saved_config([base, top], author="0")
        assert (manifest["config"]["digest"], manifest["config"]["size"]) == (sha(config), len(config))
        for data in (base, top, other, config):
            assert await blob(packages, name, sha(data)) == data
    assert reports() == []


async def test_docker_save_with_compressed_layers(folder: Path) -> None:
    layers = [b"one" * 99, b"two"]
    packed = gzip.compress(layers[0])
    config = saved_config(layers)
    listed = [{"Config": "config.json", "RepoTags": ["x:1"], "Layers": ["a.tar.gz", "b.tar"]}]
    named: dict[str, bytes | tarfile.TarInfo] = {"config.json": config, "a.tar.gz": packed, "b.tar": layers[1]}
    write_tar(folder / "a.tar", named | {"manifest.json": json.dumps(listed).encode()})
    async with serving(folder) as packages:
        manifest = json.loads(raw(packages, A, tag(packages, A, "1") or "") or b"")
        assert [layer["digest"] for layer in manifest["layers"]] == [sha(packed), sha(layers[1])]
        assert [layer["mediaType"].rpartition("diff.")[2] for layer in manifest["layers"]] == ["tar.gzip", "tar"]
        assert await blob(packages, A, sha(packed)) == packed


async def test_of_layout_and_docker_save_in_one_the_layout_counts(folder: Path) -> None:
    layout = Layout()
    image = layout.image("new")
    write_tar(folder / "a.tar", saved((["x:old"], [b"l"])) | layout.all_files())
    async with serving(folder) as packages:
        assert packages.tags(A) == ("new",)
        assert tag(packages, A, "new") == image["digest"]


async def test_links_of_the_operator_are_followed_and_hidden_names_are_not_looked_at(
    folder: Path, tmp_path: Path, reports: Callable[[], list[str]]
) -> None:
    layout = Layout()
    image = layout.image("1", b"layer")
    layout.write(tmp_path / "elsewhere/a")
    layout.write_tar(tmp_path / "elsewhere/b.tar")
    (folder / "all").symlink_to(tmp_path / "elsewhere")
    (folder / "c.tar").symlink_to(tmp_path / "elsewhere/b.tar")
    (folder / "d").symlink_to(tmp_path / "elsewhere/a")
    layout.write(folder / ".hidden")
    layout.write_tar(folder / ".x.tar.Xyz.tar")
    (folder / "README").write_text("no image")
    (folder / "nothing").symlink_to("nowhere")
    async with serving(folder) as packages:
        assert packages.names() == ("local/all/a", "local/all/b", "local/c", "local/d")
        for name in packages.names():
            assert tag(packages, name, "1") == image["digest"]
            assert await blob(packages, name, sha(b"layer")) == b"layer"
        await settle(packages)
    assert reports() == []


async def test_links_between_the_blobs_of_a_layout(folder: Path) -> None:
    layout = Layout()
    layout.image("1", b"layer")
    layout.write(folder / "a")
    path = folder / "a/blobs" / sha(b"layer").replace(":", "/")
    path.rename(folder / "a/shared")
    path.symlink_to("../../shared")
    async with serving(folder) as packages:
        assert await blob(packages, A, sha(b"layer")) == b"layer"
        assert packages.size(A, parse_digest(sha(b"layer"))) == 5


# ---- what is reported ----


async def settle(packages: PackageFolder) -> None:
    """Look at everything in the folder as often as it takes to report it, and see that nobody is still looking."""
    await until(lambda: all(known.settled for known in packages._known.values()), "settled")
    await packages._look()
    await packages._look()


def _truncated(folder: Path) -> None:
    os.truncate(good_tar(folder / "bad.tar"), 3000)


def good_tar(path: Path) -> Path:
    layout = Layout()
    layout.image("1", b"layer" * 1000)
    return layout.write_tar(path)


def _with(**changed: bytes | None) -> Callable[[Path], None]:
    """Return what writes a layout with files of it replaced, or left out."""

    def write(folder: Path) -> None:
        layout = Layout()
        layout.image("1")
        layout.write(folder / "bad")
        for name, data in changed.items():
            path = folder / "bad" / {"mark": "oci-layout", "index": "index.json"}[name]
            path.unlink()
            if data is not None:
                path.write_bytes(data)

    return write


def _saved(**changed: Any) -> Callable[[Path], None]:
    """Return what writes a docker save whose only image says something else of itself."""

    def write(folder: Path) -> None:
        found = saved((["x:1"], [b"layer"]))
        listed = json.loads(found["manifest.json"])  # type: ignore[arg-type]
        config = {"config.json": json.dumps(changed.pop("config")).encode()} if "config" in changed else {}
        listed[0] |= changed
        write_tar(folder / "bad.tar", found | config | {"manifest.json": json.dumps(listed).encode()})

    return write


def _outside(folder: Path) -> None:
    layout = Layout()
    layout.image("1")
    layout.write(folder / "bad")
    (folder / "index.json").write_bytes((folder / "bad/index.json").read_bytes())
    (folder / "bad/index.json").unlink()
    (folder / "bad/index.json").symlink_to("../index.json")


def _device(folder: Path) -> None:
    os.mkfifo(folder / "bad.tar")


def _circle(folder: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad/up").symlink_to("..")


def _same_name(folder: Path) -> None:
    Layout().write(folder / "bad")
    Layout().write_tar(folder / "bad.tar")


def _bad_name(folder: Path) -> None:
    good_tar(folder / "My bad image.tar")


def _plain(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


BAD: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "truncated": (_truncated, "bad.tar", "is cut off"),
    "empty": (_plain("bad.tar", b""), "bad.tar", "is cut off"),
    "no-tar": (_plain("bad.tar", b"x" * 2000), "bad.tar", "no tar archive"),
    "compressed-inside": (_plain("bad.tar", gzip.compress(os.urandom(2000))), "bad.tar", "compressed (gzip)"),
    "compressed": (_plain("bad.tar.gz", gzip.compress(b"x")), "bad.tar.gz", "decompress it"),
    "tgz": (_plain("bad.tgz", gzip.compress(b"x")), "bad.tgz", "decompress it"),
    "index-no-json": (_with(index=b"{"), "bad", "index.json is unusable"),
    "index-list": (_with(index=b"[]"), "bad", "index.json is unusable"),
    "index-empty": (_with(index=b"{}"), "bad", "has no manifests"),
    "index-malformed": (_with(index=b'{"manifests":[{"digest":"x"}]}'), "bad", "manifests[0].digest"),
    "index-missing": (_with(index=None), "bad", "has no index.json"),
    "mark-missing": (_with(mark=None), "bad", "without its file oci-layout"),
    "mark-no-json": (_with(mark=b"x"), "bad", "oci-layout is not JSON"),
    "mark-other": (_with(mark=b'{"imageLayoutVersion":"2.0.0"}'), "bad", "'2.0.0'"),
    "index-outside": (_outside, "bad", "leads out of the layout"),
    "pipe": (_device, "bad.tar", "no regular file"),
    "circle": (_circle, "bad/up", "is a link to a folder it is in"),
    "dangling": (lambda folder: (folder / "bad.tar").symlink_to("nowhere"), "bad.tar", "No such file"),
    "same-name": (_same_name, "bad.tar", "the same repository as bad;"),
    "bad-name": (_bad_name, "My bad image.tar", "rename it"),
    "other-tar": (
        lambda folder: write_tar(folder / "bad.tar", {"x": b"1"}) and None,
        "bad.tar",
        "holds neither",
    ),
    "a-folder-too-high": (
        lambda folder: Layout().write_tar(folder / "bad.tar", "app/") and None,
        "bad.tar",
        "in the folder 'app'",
    ),
    "tar-without-index": (
        lambda folder: write_tar(folder / "bad.tar", dict(Layout().files)) and None,
        "bad.tar",
        "has no index.json",
    ),
    "saved-no-list": (
        lambda folder: write_tar(folder / "bad.tar", {"manifest.json": b"{}"}) and None,
        "bad.tar",
        "no list of images",
    ),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_entry_is_reported_once_and_the_rest_served(
    folder: Path, reports: Callable[[], list[str]], bad: str
) -> None:
    write, path, reason = BAD[bad]
    write(folder)
    good_tar(folder / "good.tar")
    async with serving(folder) as packages:
        assert tag(packages, GOOD, "1")
        assert await blob(packages, GOOD, sha(b"layer" * 1000)) == b"layer" * 1000
        assert packages.names() == (("local/bad", GOOD) if bad == "same-name" else (GOOD,))
        await settle(packages)
        (line,) = reports()
        assert line.startswith(f"packages: {folder}/{path} is not served: it ")
        assert reason in line
        assert "\n" not in line
        await settle(packages)
        assert len(reports()) == 1


def _wrong_manifest(layout: Layout) -> str:
    digest: str = layout.image("bad")["digest"]
    layout.files["blobs/" + digest.replace(":", "/")] += b" "
    return f"the manifest {digest} has other bytes"


def _large_manifest(layout: Layout) -> str:
    layout.image("bad", annotations={"x": "y" * 20_000})
    return "more than limits.manifest (10000) allows"


def _two_readings(layout: Layout) -> str:
    layout.image("bad", manifests=[])
    return "both layers and manifests"


def _missing(layout: Layout) -> str:
    digest: str = layout.image("bad")["digest"]
    del layout.files["blobs/" + digest.replace(":", "/")]
    return f"the tag bad points at {digest}, which is not in it"


def _no_tag(layout: Layout) -> str:
    layout.image("a b")
    return "'a b' of sha256:"


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("spoil", [_wrong_manifest, _large_manifest, _two_readings, _missing, _no_tag])
async def test_a_bad_manifest_is_left_out_and_reported(
    folder: Path, reports: Callable[[], list[str]], spoil: Callable[[Layout], str], form: str
) -> None:
    layout = Layout()
    image = layout.image("1")
    reason = spoil(layout)
    path = layout.write(folder / "a") if form == "folder" else layout.write_tar(folder / "a.tar")
    async with serving(folder, limit=10_000) as packages:
        await settle(packages)
        assert packages.tags(A) == ("1",)
        assert raw(packages, A, image["digest"]) == layout.raw(image["digest"])
        bad = layout.listed[1]["digest"]
        if spoil is not _no_tag:
            assert raw(packages, A, bad) is None
        lines = [line for line in reports() if "its blob" not in line]
        assert len(lines) == 1
        assert lines[0].startswith(f"packages: {path} is served in part: ")
        assert reason in lines[0]


async def test_a_tag_of_two_images_is_the_first_ones_and_reported(
    folder: Path, reports: Callable[[], list[str]]
) -> None:
    layout = Layout()
    first, second = layout.image("1", b"first"), layout.image("1", b"second")
    layout.write(folder / "a")
    async with serving(folder) as packages:
        await settle(packages)
        assert tag(packages, A, "1") == first["digest"]
        assert raw(packages, A, second["digest"])
    assert ["the tag 1 is given to two images" in line for line in reports()] == [True]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_saved(Config="none.json"), "the configuration 'none.json' is not in it"),
        (_saved(Config="../x.json"), "leads outside"),
        (_saved(Layers=[]), "an image has 0 layers, its configuration 1"),
        (_saved(Layers=["none/layer.tar"]), "the layer 'none/layer.tar' is not in it"),
        (_saved(Layers="x"), "malformed"),
        (_saved(Config="config.json", config={"rootfs": {"diff_ids": ["x"]}}), "rootfs.diff_ids"),
        (_saved(Config="config.json", config=[]), "rootfs.diff_ids"),
    ],
    ids=["no-config", "config-outside", "too-few-layers", "no-layer", "malformed", "bad-diff-id", "odd-config"],
)
async def test_a_bad_image_of_a_docker_save_is_left_out_and_reported(
    folder: Path, reports: Callable[[], list[str]], spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(folder)
    async with serving(folder) as packages:
        await settle(packages)
        assert packages.tags(RepositoryName("local/bad")) == ()
        (line,) = reports()
        assert line.startswith(f"packages: {folder}/bad.tar is served in part: ")
        assert reason in line


async def test_links_out_of_a_layout_are_not_followed(
    folder: Path, tmp_path: Path, reports: Callable[[], list[str]]
) -> None:
    """Neither one blob nor a folder of them, though what is there is right."""
    layout = Layout()
    layout.image("1", b"inside", b"outside")
    layout.write(folder / "a")
    layout.write(folder / "b")
    outside = tmp_path / "outside"
    path = folder / "a/blobs" / sha(b"outside").replace(":", "/")
    path.rename(outside)
    path.symlink_to(outside)
    (folder / "b/blobs/sha256").rename(tmp_path / "sha256")
    (folder / "b/blobs/sha256").symlink_to(tmp_path / "sha256")
    async with serving(folder) as packages:
        await settle(packages)
        assert await blob(packages, A, sha(b"inside")) == b"inside"
        assert await blob(packages, A, sha(b"outside")) is None
        assert packages.size(A, parse_digest(sha(b"outside"))) is None
        assert await blob(packages, "local/b", sha(b"inside")) is None
    first, second = sorted(reports())
    assert f"{sha(b'outside')} leads out of the layout" in first
    assert "blobs/sha256 leads out of the layout" in second


async def test_a_folder_that_is_a_layout_itself_is_reported(folder: Path, reports: Callable[[], list[str]]) -> None:
    Layout().write(folder)
    async with serving(folder) as packages:
        await settle(packages)
        assert packages.names() == ()
    assert len(reports()) == 1
    assert "is a layout itself" in reports()[0]


async def test_unreadable_folders_and_files_are_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reports: Callable[[], list[str]]
) -> None:
    """Refused by hand, as the tests may run as root."""
    good_tar(folder / "good.tar")
    good_tar(folder / "closed/a.tar")
    good_tar(folder / "bad.tar")
    listdir, opened = os.listdir, os.open

    def refuse_folder(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listdir(path)

    def refuse_file(path: Any, *rest: Any, **more: Any) -> int:
        if str(path).endswith("bad.tar"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "listdir", refuse_folder)
    monkeypatch.setattr(os, "open", refuse_file)
    async with serving(folder) as packages:
        await settle(packages)
        assert packages.names() == (GOOD,)
        lines = sorted(reports())
        assert [line.split()[1] for line in lines] == [f"{folder}/bad.tar", f"{folder}/closed"]
        assert all("cannot be read (Permission denied)" in line for line in lines)
        monkeypatch.setattr(os, "listdir", listdir)
        await until(lambda: packages.names() == (RepositoryName("local/closed/a"), GOOD), "readable again")


async def test_an_entry_this_program_cannot_cope_with_stops_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reports: Callable[[], list[str]]
) -> None:
    good_tar(folder / "bad.tar")
    good_tar(folder / "good.tar")
    real = folder_module.read_archive

    def read(path: str, *rest: Any) -> Any:
        return {}["none"] if path.endswith("bad.tar") else real(path, *rest)

    monkeypatch.setattr(folder_module, "read_archive", read)
    async with serving(folder) as packages:
        await settle(packages)
        assert packages.names() == (GOOD,)
    assert [line.split(" is ")[0] for line in reports()] == [f"packages: {folder}/bad.tar"]


async def test_a_folder_that_goes_away_is_reported_and_comes_back(
    folder: Path, reports: Callable[[], list[str]]
) -> None:
    good_tar(folder / "good.tar")
    async with serving(folder) as packages:
        assert packages.names() == (GOOD,)
        folder.rename(folder.with_name("away"))
        await until(lambda: packages.names() == (), "gone")
        await until(lambda: len(reports()) == 1, "reported")
        folder.with_name("away").rename(folder)
        await until(lambda: packages.names() == (GOOD,), "back")


# ---- what changes ----


async def test_new_changed_and_removed_entries_are_noticed(folder: Path) -> None:
    async with serving(folder) as packages:
        assert packages.names() == ()
        first, second = Layout(), Layout()
        one, two = first.image("1", b"first"), second.image("1", b"second")
        first.write_tar(folder / "a.tar")
        first.write(folder / "b")
        names = ("local/a", "local/b")
        await until(lambda: [tag(packages, name, "1") for name in names] == [one["digest"]] * 2, "there")
        second.write_tar(folder / "a.tar")
        second.write(folder / "b")
        await until(lambda: [tag(packages, name, "1") for name in names] == [two["digest"]] * 2, "changed")
        for name in names:
            assert await blob(packages, name, sha(b"second")) == b"second"
        assert await blob(packages, "local/a", sha(b"first")) is None
        assert await blob(packages, "local/b", sha(b"first")) == b"first"  # it still is in the folder
        (folder / "a.tar").rename(folder / "c.tar")
        await until(lambda: packages.names() == ("local/b", "local/c"), "renamed")
        (folder / "b/oci-layout").unlink()
        await until(lambda: packages.names() == ("local/c",), "removed")
        assert tag(packages, "local/b", "1") is None


async def test_blobs_of_a_file_that_is_gone_or_another_are_gone_before_it_is_noticed(folder: Path) -> None:
    layout = Layout()
    layout.image("1", b"layer")
    layout.write_tar(folder / "a.tar")
    layout.write(folder / "b")
    digest = sha(b"layer")
    async with serving(folder, interval=3600) as packages:
        assert await blob(packages, "local/a", digest) == b"layer"
        assert await blob(packages, "local/b", digest) == b"layer"
        os.replace(good_tar(folder / "other"), folder / "a.tar")
        (folder / "b/blobs" / digest.replace(":", "/")).unlink()
        for name in ("local/a", "local/b"):
            assert await blob(packages, name, digest) is None
            assert packages.size(RepositoryName(name), parse_digest(digest)) is None


async def test_a_file_being_copied_is_not_reported(folder: Path, reports: Callable[[], list[str]]) -> None:
    """It is longer at each look: only what stays bad is reported."""
    files = good_tar(folder.with_name("whole.tar")).read_bytes().rstrip(b"\0")
    async with serving(folder, interval=3600) as packages:
        with (folder / "good.tar").open("wb", buffering=0) as file:
            for start in range(0, len(files), 1000):
                file.write(files[start : start + 1000])
                await packages._look()
                assert packages.names() == ()
            file.write(bytes(-len(files) % 512 + 1024))
            await packages._look()
        assert packages.names() == (GOOD,)
        assert reports() == []
        os.truncate(folder / "good.tar", 1024)
        await packages._look()
        assert (packages.names(), reports()) == ((), [])
        await packages._look()
        assert len(reports()) == 1
        assert packages.owns(GOOD)  # nobody is to push there while it is put right
        (folder / "good.tar").unlink()
        await packages._look()
        assert not packages.owns(GOOD)


async def test_what_is_reported_is_reported_again_when_it_changes_and_is_still_bad(
    folder: Path, reports: Callable[[], list[str]]
) -> None:
    (folder / "bad.tar").write_bytes(b"x" * 600)
    async with serving(folder) as packages:
        await settle(packages)
        assert len(reports()) == 1
        (folder / "bad.tar").write_bytes(b"x" * 700)
        await until(lambda: len(reports()) == 2, "reported again")
        os.replace(good_tar(folder / "other"), folder / "bad.tar")
        await until(lambda: packages.names() == ("local/bad",), "served")
        await settle(packages)
    assert len(reports()) == 2


async def test_a_layout_stays_while_its_index_is_rewritten(folder: Path, reports: Callable[[], list[str]]) -> None:
    layout = Layout()
    image = layout.image("1")
    index = layout.write(folder / "a") / "index.json"
    async with serving(folder, interval=3600) as packages:
        index.write_bytes(b"{")
        await packages._look()
        assert (tag(packages, A, "1"), reports()) == (image["digest"], [])
        await packages._look()
        assert (packages.names(), len(reports())) == ((), 1)
        layout.write(folder / "a")
        await packages._look()
        assert tag(packages, A, "1") == image["digest"]


async def test_what_has_just_been_changed_is_read_once_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed again at once it can have the same times; later on it cannot."""
    layout = Layout()
    images = [layout.image("1", bytes([at])) for at in range(3)]
    every = layout.listed

    def write(at: int) -> None:
        layout.listed = [every[at]]
        layout.write(folder / "a")

    write(0)
    async with serving(folder, interval=3600) as packages:
        found = packages._known["a"].found
        monkeypatch.setattr(folder_module, "scan", lambda *_: [found])
        seen = []
        for at in (1, 2):
            write(at)
            await packages._look()
            seen.append(tag(packages, A, "1"))
    assert seen == [images[1]["digest"]] * 2


# ---- nothing wrong is given out ----


@pytest.mark.parametrize("form", ["folder", "tar", "saved"])
async def test_a_wrong_blob_is_not_given_out_and_reported_once(
    folder: Path, reports: Callable[[], list[str]], form: str
) -> None:
    if form == "saved":
        found = saved((["x:1"], [b"right", b"claimed"]))
        name = next(name for name, data in found.items() if data == b"claimed")
        path = write_tar(folder / "a.tar", found | {name: b"wrong!!"})
    else:
        layout = Layout()
        layout.image("1", b"right", b"claimed")
        layout.files["blobs/" + sha(b"claimed").replace(":", "/")] = b"wrong!!"
        path = layout.write(folder / "a") if form == "folder" else layout.write_tar(folder / "a.tar")
    async with serving(folder) as packages:
        assert await blob(packages, A, sha(b"claimed")) is None
        assert await blob(packages, A, sha(b"right")) == b"right"
        await until(lambda: len(reports()) == 1, "reported")
        await settle(packages)
        assert await blob(packages, A, sha(b"claimed")) is None
    (line,) = reports()
    assert line.startswith(f"packages: {path} is served in part: its blob {sha(b'claimed')} has other bytes")


async def test_it_is_reported_before_anybody_asks(
    folder: Path, reports: Callable[[], list[str]], settled: None
) -> None:
    layout = Layout()
    layout.image("1", b"claimed")
    layout.files["blobs/" + sha(b"claimed").replace(":", "/")] = b"wrong!!"
    layout.write(folder / "a")
    async with serving(folder) as packages:
        await until(lambda: len(reports()) == 1, "reported")
        assert packages.size(A, parse_digest(sha(b"claimed"))) is None


@pytest.mark.parametrize("touched", [True, False], ids=["", "with-its-old-time"])
@pytest.mark.parametrize("form", ["folder", "tar"])
async def test_a_file_changed_in_place_is_verified_anew(folder: Path, settled: None, form: str, touched: bool) -> None:
    layout = Layout()
    layout.image("1", b"layer")
    if form == "folder":
        path = layout.write(folder / "a") / "blobs" / sha(b"layer").replace(":", "/")
    else:
        path = layout.write_tar(folder / "a.tar")
    digest = parse_digest(sha(b"layer"))
    async with serving(folder, interval=3600) as packages:
        opened = await packages.open(A, digest)
        assert opened is not None
        assert content(opened) == b"layer"
        before, offset = path.stat(), opened.offset
        opened.close()
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), b"wrong", offset)
        if not touched:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert await packages.open(A, digest) is None


async def test_a_verdict_over_a_file_that_has_just_been_changed_is_not_kept(folder: Path, hashed: list[int]) -> None:
    """Its next change could leave it the same times."""
    layout = Layout()
    layout.image("1", b"layer-of-17-bytes")
    layout.write(folder / "a")
    async with serving(folder, leading=False) as packages:
        for _ in range(2):
            assert await blob(packages, A, sha(b"layer-of-17-bytes"))
    assert hashed.count(17) == 2


async def test_an_open_blob_knows_whether_its_file_is_still_the_same(folder: Path) -> None:
    path = good_tar(folder / "a.tar")
    digest = parse_digest(sha(b"layer" * 1000))
    async with serving(folder) as packages:
        opened = await packages.open(A, digest)
        assert opened is not None
        assert opened.intact()
        os.link(path, folder / "same")
        assert opened.intact()
        os.replace(good_tar(folder / "other"), path)
        assert opened.intact()  # who was reading the old one gets all of it
        assert content(opened) == b"layer" * 1000
        os.truncate(folder / "same", 100)
        assert not opened.intact()
        opened.close()
        assert not opened.intact()
        opened.close()


async def test_a_file_that_shrinks_while_it_is_verified_is_not_given_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = good_tar(folder / "a.tar")
    real, cut = verify.hash_bytes, []

    def hash_bytes(*arguments: Any) -> None:
        if not cut:
            cut.append(os.truncate(path, 1000))
        real(*arguments)

    async with serving(folder, interval=3600, leading=False) as packages:
        monkeypatch.setattr(verify, "hash_bytes", hash_bytes)
        assert await packages.open(A, parse_digest(sha(b"layer" * 1000))) is None
        assert cut


async def test_a_file_that_changes_while_it_is_verified_is_begun_anew_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reports: Callable[[], list[str]]
) -> None:
    layer, steps = os.urandom(20_000), []
    layout = Layout()
    layout.image("1", layer)
    path = layout.write(folder / "a") / "blobs" / sha(layer).replace(":", "/")
    real = verify.hash_bytes

    def hash_bytes(*arguments: Any) -> None:
        steps.append(arguments[2])
        if len(steps) == 1:
            path.write_bytes(layer)
        real(*arguments)

    async with serving(folder, interval=3600, leading=False) as packages:
        monkeypatch.setattr(verify, "STEP", 1000)
        monkeypatch.setattr(verify, "hash_bytes", hash_bytes)
        assert await blob(packages, A, sha(layer)) == layer
    assert len(steps) == 1 + 20


async def test_a_file_that_changes_after_it_was_hashed_is_verified_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the verdict and giving it out: the descriptor is looked at once more."""
    layout = Layout()
    layout.image("1", b"layer")
    path = layout.write(folder / "a") / "blobs" / sha(b"layer").replace(":", "/")
    async with serving(folder, interval=3600, leading=False) as packages:
        check, rounds = packages._verifier.check, []

        async def spoil(*arguments: Any, **more: Any) -> bool | None:
            verdict = await check(*arguments, **more)
            rounds.append(verdict)
            if len(rounds) == 1:
                await asyncio.to_thread(path.write_bytes, b"wrong")
            return verdict

        monkeypatch.setattr(packages._verifier, "check", spoil)
        assert await packages.open(A, parse_digest(sha(b"layer"))) is None
        assert rounds == [True, False]


# ---- how often, and in which order ----


async def test_a_blob_is_hashed_once(folder: Path, settled: None, hashed: list[int]) -> None:
    layer = os.urandom(123_457)
    layout = Layout()
    layout.image("1", layer)
    layout.write(folder / "a")
    async with serving(folder) as packages:
        found = await asyncio.gather(*(blob(packages, A, sha(layer)) for _ in range(20)))
        assert found == [layer] * 20
        assert await blob(packages, A, sha(layer)) == layer
        await until(lambda: len(hashed) == 3, "config and manifest too, before anybody asks")
    assert hashed.count(len(layer)) == 1


async def test_in_steps(folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], settled: None) -> None:
    monkeypatch.setattr(verify, "STEP", 1000)
    layer = os.urandom(3500)
    layout = Layout()
    layout.image("1", layer)
    layout.write_tar(folder / "a.tar")
    async with serving(folder, leading=False) as packages:
        assert await blob(packages, A, sha(layer)) == layer
    assert hashed == [1000, 1000, 1000, 500]


class Stuck:
    """Lets the hashing of blobs of one size begin, and go on only when told to. steps: what was begun, by size."""

    def __init__(self, patch: pytest.MonkeyPatch, size: int) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.steps: list[int] = []
        self._size = size
        patch.setattr(verify, "STEP", 1000)
        patch.setattr(verify, "hash_bytes", self._hash)

    def _hash(self, fd: int, offset: int, size: int, hasher: Any) -> None:
        self.steps.append(size)
        if size == self._size:
            self.begun.set()
            self.go.wait(60)
        files.hash_bytes(fd, offset, size, hasher)


async def test_what_nobody_asked_for_waits_for_what_somebody_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    stuck = Stuck(monkeypatch, 999)
    asked, other = os.urandom(999), os.urandom(20_000)
    write_tar(folder / "a.tar", saved((None, [asked])))
    async with serving(folder) as packages, asyncio.timeout(30):
        waiting = asyncio.create_task(blob(packages, A, sha(asked)))
        await until(stuck.begun.is_set, "hashing")
        write_tar(folder / "good.tar", saved((None, [other])))
        opened = None
        while opened is None:
            await asyncio.sleep(0.005)
            entry = packages._entries.get(GOOD)
            opened = entry.source.open(parse_digest(sha(other))) if entry else None
        calm = asyncio.create_task(packages._verifier.check(opened, parse_digest(sha(other)), urgent=False))
        await asyncio.sleep(0.2)
        assert stuck.steps.count(1000) == 0
        stuck.go.set()
        assert await waiting == asked
        assert await calm is True
        assert stuck.steps.count(1000) == 20
        opened.close()


async def test_what_somebody_asks_for_at_last_does_not_wait(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    """One that nobody had asked for becomes urgent, and goes on from where it is."""
    stuck = Stuck(monkeypatch, 999)
    asked, other = os.urandom(999), os.urandom(20_000)
    write_tar(folder / "a.tar", saved((None, [asked, other])))
    async with serving(folder, leading=False) as packages, asyncio.timeout(30):
        waiting = asyncio.create_task(blob(packages, A, sha(asked)))
        await until(stuck.begun.is_set, "hashing")
        opened = packages._entries[A].source.open(parse_digest(sha(other)))
        assert opened is not None
        calm = asyncio.create_task(packages._verifier.check(opened, parse_digest(sha(other)), urgent=False))
        await asyncio.sleep(0)
        assert await blob(packages, A, sha(other)) == other
        assert await calm is True
        assert not waiting.done()
        assert stuck.steps.count(1000) == 20
        opened.close()
        stuck.go.set()
        assert await waiting == asked


async def test_who_leaves_stops_nothing(folder: Path, hashed: list[int], settled: None) -> None:
    layer = os.urandom(3_000_000)
    write_tar(folder / "a.tar", saved((None, [layer])))
    async with serving(folder, leading=False) as packages:
        first = asyncio.create_task(blob(packages, A, sha(layer)))
        await asyncio.sleep(0)
        second = asyncio.create_task(blob(packages, A, sha(layer)))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == layer
        with pytest.raises(asyncio.CancelledError):
            await first
    assert hashed == [len(layer)]


async def test_stopping_ends_hashing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "STEP", 1)
    write_tar(folder / "a.tar", saved((None, [os.urandom(100_000)])))
    async with asyncio.timeout(5):
        async with serving(folder) as packages:
            await until(lambda: packages._verifier._hashing, "hashing")


# ---- several workers ----


async def test_workers_tell_each_other_what_they_verified(
    folder: Path, tmp_path: Path, settled: None, hashed: list[int], reports: Callable[[], list[str]]
) -> None:
    layer = os.urandom(5000)
    layout = Layout()
    layout.image("1", layer, b"claimed")
    layout.files["blobs/" + sha(b"claimed").replace(":", "/")] = b"wrong!!"
    layout.write_tar(folder / "a.tar")
    verdicts = tmp_path / "verdicts"
    async with serving(folder, verdicts=verdicts, leading=False) as second:
        await settle(second)
        assert hashed == []  # this one hashes what it is asked for
        async with serving(folder, verdicts=verdicts):
            await until(lambda: len(hashed) == 4, "layers, config and manifest")
        await until(lambda: len(second._verdicts._known) == 3, "those that are right are read")
        assert await blob(second, A, sha(layer)) == layer
        assert len(hashed) == 4
        assert await blob(second, A, sha(b"claimed")) is None
        assert len(hashed) == 5  # that one is not believed of others
    assert len(reports()) == 1
    async with serving(folder, verdicts=verdicts, leading=False) as third:  # nor after a new start
        assert await blob(third, A, sha(layer)) == layer
    assert len(hashed) == 5
    assert verdicts.stat().st_mode & 0o777 == 0o600


async def test_verdicts_do_not_outlive_the_machine(
    folder: Path, tmp_path: Path, settled: None, hashed: list[int]
) -> None:
    write_tar(folder / "a.tar", saved((None, [b"layer"])))
    for at in range(2):
        async with serving(folder, verdicts=tmp_path / "verdicts", leading=False) as packages:
            packages._verdicts._boot = str(at).encode()
            assert await blob(packages, A, sha(b"layer")) == b"layer"
    assert hashed == [5, 5]


async def test_a_damaged_file_of_verdicts_costs_hashing_only(
    folder: Path, tmp_path: Path, settled: None, hashed: list[int]
) -> None:
    write_tar(folder / "a.tar", saved((None, [b"layer"])))
    verdicts = tmp_path / "verdicts"
    async with serving(folder, verdicts=verdicts, leading=False) as packages:
        assert await blob(packages, A, sha(b"layer")) == b"layer"
    line = verdicts.read_bytes()
    verdicts.write_bytes(b"\0" * 40 + b"\n" + line[:20] + b"\n" + line + b"torn")
    async with serving(folder, verdicts=verdicts, leading=False) as packages:
        assert await blob(packages, A, sha(b"layer")) == b"layer"
    assert hashed == [5]
    verdicts.write_bytes(b"\0" * 9 * 1024 * 1024)
    async with serving(folder, verdicts=verdicts) as packages:
        assert await blob(packages, A, sha(b"layer")) == b"layer"
        await until(lambda: verdicts.stat().st_size == 66, "begun anew")
    async with serving(folder, verdicts=tmp_path / "no/such/folder") as packages:
        assert await blob(packages, A, sha(b"layer")) == b"layer"


async def test_only_the_leading_worker_reports(folder: Path, reports: Callable[[], list[str]]) -> None:
    (folder / "bad.tar").write_bytes(b"x")
    async with serving(folder, leading=False) as packages:
        await settle(packages)
    assert reports() == []


async def test_a_leading_worker_that_is_retired_reports_and_verifies_no_more(
    folder: Path, reports: Callable[[], list[str]], settled: None, hashed: list[int]
) -> None:
    retired = False
    async with serving(folder, retired=lambda: retired) as packages:
        good_tar(folder / "one.tar")
        await until(lambda: len(hashed) > 0, "the leading worker verifies")
        retired = True
        await settle(packages)
        before = len(hashed)
        (folder / "bad.tar").write_bytes(b"x")
        layout = Layout()
        layout.image("1", b"another layer")
        layout.write_tar(folder / "two.tar")
        await settle(packages)
        assert RepositoryName("local/two") in packages.names()
        assert len(hashed) == before
    assert reports() == []


def test_what_it_is() -> None:
    """The class has what the protocol asks."""
    asked = {name for name in vars(Packages) if not name.startswith("_")}
    assert asked == {"owns", "names", "tags", "tag", "manifest", "referrers", "size", "open"}
    assert asked <= set(vars(PackageFolder))


async def test_digests_of_both_algorithms(folder: Path) -> None:
    layout = Layout()
    layout.image("1")
    layout.blob(b"other", algorithm="sha512")
    layout.write_tar(folder / "a.tar")
    async with serving(folder) as packages:
        assert await blob(packages, A, sha(b"other", "sha512")) == b"other"
        assert await packages.open(A, Digest("sha256", "0" * 64)) is None
