"""The grammars of the specification: names, tags, digests."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.errors import DigestInvalid, ManifestInvalid, ManifestUnknown, NameInvalid
from mirror.oci.names import (
    MAX_NAME,
    Digest,
    Reference,
    Repository,
    RepositoryName,
    Tag,
    digest_of,
    parse_algorithm,
    parse_digest,
    parse_name,
    parse_tag,
    parse_target,
    referrers_tag,
    try_digest,
    try_tag,
)

HEX = "0123456789abcdef" * 4

NAMES = [
    "a",
    "0",
    "library/alpine",
    "a/b/c/d/e/f",
    "a.b",
    "a_b",
    "a__b",
    "a-b",
    "a--b",
    "a----b",
    "a.b_c__d-e",
    "blobs",
    "manifests/tags/list/blobs/uploads",
    "v2",
    "0/1/2",
    "a" * MAX_NAME,
]
NOT_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    "A",
    "a/B",
    "a.",
    ".a",
    "a..b",
    "a___b",
    "a_.b",
    "-a",
    "a-",
    "_a",
    "a/../b",
    "..",
    ".",
    "a/./b",
    "a b",
    " a",
    "a\n",
    "a\r\nX: y",
    "a\0",
    "ä",
    "\u0661",  # a digit, elsewhere
    "a:b",
    "a@b",
    "a%2fb",
    "a?b",
    "a\\b",
    "a" * (MAX_NAME + 1),
    "/".join(["a"] * 200),
]
TAGS = ["latest", "1", "_", "_a", "v1.2.3-rc_1", "A" * 128, "0.0", "a.", "a-"]
NOT_TAGS = ["", ".a", "-a", "a" * 129, "a/b", "a b", "a\n", "ä", "a@b", "a+b", "..", "\u0661"]
DIGESTS = [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"]
NOT_DIGESTS = [
    "",
    "sha256",
    "sha256:",
    f"sha256:{HEX[:-1]}",
    f"sha256:{HEX}0",
    f"sha256:{HEX.upper()}",
    f"sha256:{HEX}\n",
    f" sha256:{HEX}",
    f"SHA256:{HEX}",
    f"sha512:{HEX}",
    f"sha256:{HEX}{HEX}",
    f"md5:{HEX[:32]}",
    f"sha384:{HEX}{HEX[:32]}",
    f"sha256:{HEX[:-1]}g",
    f"sha256:{HEX[:-2]}..",
    f"sha256:../{HEX[3:]}",
    f"sha256-{HEX}",
    f"sha256:{HEX[:-1]}\u0661",
    HEX,
]


@pytest.mark.parametrize("text", NAMES)
def test_names(text: str) -> None:
    assert parse_name(text) == text


@pytest.mark.parametrize("text", NOT_NAMES)
def test_not_names(text: str) -> None:
    with pytest.raises(NameInvalid) as caught:
        parse_name(text)
    assert (caught.value.status, caught.value.code) == (400, "NAME_INVALID")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("text", DIGESTS)
def test_digests(text: str) -> None:
    digest = parse_digest(text)
    assert str(digest) == text
    assert (digest.algorithm, digest.encoded) == tuple(text.split(":"))
    assert try_digest(text) == digest
    assert digest.hasher().name == digest.algorithm


@pytest.mark.parametrize("text", NOT_DIGESTS)
def test_not_digests(text: str) -> None:
    assert try_digest(text) is None
    with pytest.raises(DigestInvalid) as caught:
        parse_digest(text)
    assert (caught.value.status, caught.value.code) == (400, "DIGEST_INVALID")


def test_no_digest_is_none() -> None:
    assert try_digest(None) is None


@pytest.mark.parametrize("text", TAGS)
def test_tags(text: str) -> None:
    assert parse_target(text) == text


@pytest.mark.parametrize("text", NOT_TAGS)
def test_a_bad_tag_is_a_manifest_nobody_has(text: str) -> None:
    with pytest.raises(ManifestUnknown) as caught:
        parse_target(text)
    assert (caught.value.status, caught.value.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("text", TAGS)
def test_tags_to_write(text: str) -> None:
    assert parse_tag(text) == text == try_tag(text)


@pytest.mark.parametrize("text", [*NOT_TAGS, *DIGESTS])
def test_a_bad_tag_to_write_is_a_bad_manifest(text: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        parse_tag(text)
    assert try_tag(text) is None
    assert (caught.value.status, caught.value.code) == (400, "MANIFEST_INVALID")
    assert len(caught.value.message) < 1000


def test_algorithms() -> None:
    assert [parse_algorithm(name) for name in ("sha256", "sha512")] == ["sha256", "sha512"]
    for text in ("", "md5", "SHA256", "sha256 ", "sha384"):
        with pytest.raises(DigestInvalid, match="sha256, sha512"):
            parse_algorithm(text)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_tag_of_referrers(algorithm: str) -> None:
    """As "Referrers Tag Schema" has it: the algorithm, a dash, and 64 characters at most."""
    subject = digest_of(b"x", algorithm)
    assert referrers_tag(subject) == parse_tag(f"{algorithm}-{subject.encoded[:64]}")
    assert len(referrers_tag(subject)) == len(algorithm) + 1 + 64


@pytest.mark.parametrize("text", [text for text in NOT_DIGESTS if ":" in text])
def test_a_target_with_a_colon_is_a_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        parse_target(text)
    assert parse_target(DIGESTS[0]) == parse_digest(DIGESTS[0])


def test_digest_of() -> None:
    assert digest_of(b"a") == Digest("sha256", hashlib.sha256(b"a").hexdigest())
    assert digest_of(b"a", "sha512") == Digest("sha512", hashlib.sha512(b"a").hexdigest())


@pytest.mark.parametrize("source", [None, "docker.io", "host:5000"])
def test_a_repository_by_its_key(source: str | None) -> None:
    repository = Repository(source, RepositoryName("library/alpine"))
    assert Repository.from_key(repository.key) == repository
    assert str(repository) == ("library/alpine" if source is None else f"{source}/library/alpine")


def test_references_as_people_write_them() -> None:
    repository = Repository("docker.io", RepositoryName("library/alpine"))
    assert str(Reference(repository, Tag("3"))) == "docker.io/library/alpine:3"
    assert str(Reference(repository, parse_digest(DIGESTS[0]))) == f"docker.io/library/alpine@{DIGESTS[0]}"


@given(st.text(max_size=40))
def test_nothing_else_gets_through(text: str) -> None:
    """Whatever passes is safe as a part of a path, a key, a header and a URL."""
    for parse in (parse_name, parse_target, parse_digest, parse_tag):
        try:
            value = str(parse(text))
        except (NameInvalid, ManifestUnknown, ManifestInvalid, DigestInvalid):
            continue
        assert value == text
        assert value.isascii()
        assert value.isprintable()
        assert not set(value) & set(" \\%?#|\"'<>")
        assert ".." not in value.split("/")
