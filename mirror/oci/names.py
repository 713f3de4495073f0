"""Digests, repository names, tags and references, with the grammars of the specification.

Text becomes a value here, at the door; nothing deeper sees a raw string.
Sources: image-spec descriptor.md ("Digests"), distribution-spec "Pulling manifests" (name and tag grammar).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, NewType

from mirror.oci.errors import DigestInvalid, ManifestInvalid, ManifestUnknown, NameInvalid

RepositoryName = NewType("RepositoryName", str)
Tag = NewType("Tag", str)

ALGORITHMS = {"sha256": 64, "sha512": 128}
"""Algorithm → length of its hexadecimal form."""

MAX_NAME = 255
"""Longest repository name. The specification leaves it open; clients limit host and name to 255 together."""

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"(sha256):([a-f0-9]{64})|(sha512):([a-f0-9]{128})")


@dataclass(frozen=True, slots=True)
class Digest:
    """A content identifier. algorithm: "sha256" or "sha512"; encoded: lower-case hexadecimal."""

    algorithm: str
    encoded: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

    def hasher(self) -> Any:
        """Return a new hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository. source: the name of the configured upstream it belongs to, None for our own."""

    source: str | None
    name: RepositoryName

    def __str__(self) -> str:
        return f"{self.source}/{self.name}" if self.source else self.name

    @property
    def key(self) -> str:
        """A text that ``from_key`` reads back: neither part can hold the bar."""
        return f"{self.source or ''}|{self.name}"

    @classmethod
    def from_key(cls, key: str) -> Repository:
        source, _, name = key.partition("|")
        return cls(source or None, RepositoryName(name))


@dataclass(frozen=True, slots=True)
class Reference:
    """A manifest in a repository, by tag or by digest."""

    repository: Repository
    target: Tag | Digest

    def __str__(self) -> str:
        return f"{self.repository}{'@' if isinstance(self.target, Digest) else ':'}{self.target}"


def parse_name(text: str) -> RepositoryName:
    """Check a repository name.

    Raises: NameInvalid (400 NAME_INVALID).
    """
    if len(text) > MAX_NAME:
        raise NameInvalid(f"the repository name is longer than {MAX_NAME} characters", detail={"name": text[:80]})
    if not _NAME.fullmatch(text):
        raise NameInvalid(
            f"{text[:80]!r} is not a repository name: lower-case letters and digits, separated by one of . _ __ - /",
            detail={"name": text[:80]},
        )
    return RepositoryName(text)


def parse_digest(text: str) -> Digest:
    """Read ``sha256:…`` or ``sha512:…``.

    Raises: DigestInvalid (400 DIGEST_INVALID), also for algorithms this registry does not know.
    """
    found = _DIGEST.fullmatch(text)
    if not found:
        raise DigestInvalid(
            f"{text[:160]!r} is not a digest: sha256 with 64 or sha512 with 128 lower-case hexadecimal digits",
            detail={"digest": text[:160]},
        )
    return Digest(found[1] or found[3], found[2] or found[4])


def try_digest(text: str | None) -> Digest | None:
    """Read a digest an upstream sent; None when there is none that can be understood."""
    found = _DIGEST.fullmatch(text) if text else None
    return Digest(found[1] or found[3], found[2] or found[4]) if found else None


def parse_target(text: str) -> Tag | Digest:
    """Read the ``<reference>`` of a manifest path: a digest when it has a colon, else a tag.

    Raises: DigestInvalid (400) for a bad digest; ManifestUnknown (404 MANIFEST_UNKNOWN) for a bad tag,
    as no such manifest can exist.
    """
    if ":" in text:
        return parse_digest(text)
    if not _TAG.fullmatch(text):
        raise ManifestUnknown(f"{text[:140]!r} cannot be a tag", detail={"tag": text[:140]})
    return Tag(text)


def parse_tag(text: str) -> Tag:
    """Check a tag to write. Raises: ManifestInvalid (400 MANIFEST_INVALID)."""
    if not _TAG.fullmatch(text):
        raise ManifestInvalid(
            f"{text[:140]!r} cannot be a tag: letters, digits, . _ - (not first: . -), 128 at most",
            detail={"tag": text[:140]},
        )
    return Tag(text)


def try_tag(text: str) -> Tag | None:
    """Read a tag an upstream sent; None when it cannot be one."""
    return Tag(text) if _TAG.fullmatch(text) else None


def parse_algorithm(text: str) -> str:
    """Check a digest algorithm. Raises: DigestInvalid (400 DIGEST_INVALID)."""
    if text not in ALGORITHMS:
        raise DigestInvalid(f"{text[:80]!r} is not an algorithm this registry knows: {', '.join(ALGORITHMS)}")
    return text


def referrers_tag(subject: Digest) -> Tag:
    """Return the tag under which clients of registries without the API keep referrers ("Referrers Tag Schema")."""
    return Tag(f"{subject.algorithm}-{subject.encoded[:64]}")


def digest_of(data: bytes, algorithm: str = "sha256") -> Digest:
    """Return the digest of the bytes."""
    return Digest(algorithm, hashlib.new(algorithm, data).hexdigest())
