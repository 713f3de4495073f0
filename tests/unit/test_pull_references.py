"""What people write as an image, a list of images and a platform; and what is chosen from an index."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from mirror.prefetch import PlatformInvalid, ReferenceInvalid, parse_image, parse_platform, read_list, this_machine
from mirror.prefetch.platforms import choose, entries, suits

DIGEST = "sha256:" + "a" * 64
LONG = "sha512:" + "b" * 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/library/alpine:1", "docker.io/library/alpine:1"),
        ("registry-1.docker.io/alpine", "docker.io/library/alpine:latest"),
        ("ghcr.io/owner/app:v1", "ghcr.io/owner/app:v1"),
        ("GHCR.io/owner/app", "ghcr.io/owner/app:latest"),
        ("quay.io/one", "quay.io/one:latest"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/a/b/c:d", "localhost:5000/a/b/c:d"),
        ("reg:5000/app", "reg:5000/app:latest"),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        (f"docker.io/library/alpine@{DIGEST}", f"docker.io/library/alpine@{DIGEST}"),
        (f"alpine@{LONG}", f"docker.io/library/alpine@{LONG}"),
        (f"ghcr.io/o/a:v1@{DIGEST}", f"ghcr.io/o/a:v1@{DIGEST}"),
        (f"reg:5000/app@{DIGEST}", f"reg:5000/app@{DIGEST}"),
    ],
)
def test_images(text: str, expected: str) -> None:
    image = parse_image(text)
    assert str(image) == expected
    assert parse_image(expected) == image, "its own name means itself"


def test_of_tag_and_digest_the_digest_is_meant() -> None:
    image = parse_image(f"alpine:3@{DIGEST}")
    assert (image.tag, str(image.target)) == ("3", DIGEST)
    assert parse_image("alpine:3").target == "3"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a repository name"),
        ("Alpine", "is not a repository name"),
        ("team//app", "is not a repository name"),
        ("/app", "is not a repository name"),
        ("ghcr.io/", "is not a repository name"),
        ("a b", "is not a repository name"),
        ("alpine:", "cannot be a tag"),
        ("alpine:.x", "cannot be a tag"),
        ("alpine:3:4", "cannot be a tag"),
        ("alpine@", "is not a digest"),
        ("alpine@sha256:abc", "is not a digest"),
        (f"alpine@{DIGEST.upper()}", "is not a digest"),
        ("https://ghcr.io/o/a", "is a URL; leave out https://"),
        ("a_b.c/app", "is not the host"),
        ("ghcr.io:port/app", "is not the host"),
        ("Team/app", "is not a repository name"),
        ("x/" * 200 + "y", "longer than"),
    ],
)
def test_what_is_no_image(text: str, why: str) -> None:
    with pytest.raises(ReferenceInvalid, match=why):
        parse_image(text)


def test_a_list() -> None:
    text = "# ours\n\n  alpine:3.20  # the base\nquay.io/x/y\t#z\r\n#\nghcr.io/a/b#c\n"
    assert list(read_list(text.splitlines())) == [(3, "alpine:3.20"), (4, "quay.io/x/y"), (6, "ghcr.io/a/b#c")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/i686", "linux/386"),
        ("windows/amd64", "windows/amd64"),
        ("macos/arm64", "darwin/arm64"),
    ],
)
def test_platforms(text: str, expected: str) -> None:
    assert str(parse_platform(text)) == expected


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux,amd64"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(PlatformInvalid, match="write os/arch or os/arch/variant, or all"):
        parse_platform(text)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm"), ("riscv64", "linux/riscv64")],
)
def test_this_machine(monkeypatch: pytest.MonkeyPatch, machine: str, expected: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert str(this_machine()) == expected


def index(*platforms: Any) -> Any:
    """Return an index of manifests for platforms: texts, parts of JSON, or None for none said."""
    listed = []
    for number, one in enumerate(platforms):
        if isinstance(one, str):
            parts = one.split("/")
            one = dict(zip(("os", "architecture", "variant"), parts, strict=False))
        item = {"mediaType": OCI_MANIFEST, "digest": f"sha256:{number:064x}", "size": 1}
        listed.append(item if one is None else item | {"platform": one})
    raw = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    return parse_manifest(raw, content_type=OCI_INDEX)


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], [1]),
        ("linux/amd64", ["linux/amd64/v1"], [0]),
        ("linux/amd64", ["linux/386", "linux/amd64"], [1]),
        ("linux/amd64", ["linux/386"], [0]),
        ("linux/amd64", ["linux/amd64/v2"], []),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], [1]),
        ("linux/amd64", ["linux/amd64", "linux/amd64"], [0]),
        ("linux/arm64", ["linux/arm64/v8"], [0]),
        ("linux/arm64", ["linux/arm/v7"], [0]),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64"], [1]),
        ("linux/arm", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], [2]),
        ("linux/arm/v6", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], [1]),
        ("linux/arm/v6", ["linux/arm/v7"], []),
        ("linux/arm/v6", ["linux/arm/v5"], [0]),
        ("linux/s390x", ["linux/amd64", "unknown/unknown"], []),
        ("linux/s390x", [None, "linux/amd64"], [0]),
        ("linux/amd64", [None, "linux/amd64"], [1]),
        ("linux/amd64", ["windows/amd64"], []),
        (
            "windows/amd64",
            [
                {"os": "windows", "architecture": "amd64", "os.version": "10.0.1"},
                {"os": "windows", "architecture": "amd64", "os.version": "10.0.2"},
            ],
            [0, 1],
        ),
        ("linux/amd64", [{"os": 1}, {"os": "linux"}, "linux/amd64"], [2]),
    ],
)
def test_what_is_chosen(wanted: str, there: list[Any], chosen: list[int]) -> None:
    listed = entries(index(*there))
    found = choose(listed, parse_platform(wanted))
    assert [int(entry.descriptor.digest.encoded, 16) for entry in found] == chosen


def test_one_manifest_listed_for_two_platforms() -> None:
    found = index("linux/amd64", "linux/arm64")
    raw = found.raw.replace(b"0" * 63 + b"1", b"0" * 64)
    listed = entries(parse_manifest(raw, content_type=OCI_INDEX))
    assert [str(entry.platform) for entry in listed] == ["linux/amd64", "linux/arm64"]


def test_items_that_are_no_descriptors_move_no_platform() -> None:
    """In an index of a type nobody knows, what cannot be read is left out."""
    raw = json.dumps(
        {
            "mediaType": "application/vnd.other.index.v1+json",
            "manifests": [
                {"platform": {"os": "linux", "architecture": "s390x"}},
                "text",
                {"digest": DIGEST, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
            ],
        }
    ).encode()
    listed = entries(parse_manifest(raw, content_type=None))
    assert [str(entry.platform) for entry in listed] == ["linux/amd64"]


def test_what_suits() -> None:
    assert suits(parse_platform("linux/386"), parse_platform("linux/amd64"))
    assert not suits(parse_platform("linux/amd64"), parse_platform("linux/386"))
