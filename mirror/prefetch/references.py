"""Images as people write them, turned into what a cluster asks a mirror for.

What is left out is what docker and containerd put there: the registry ``docker.io``, its ``library/``, the tag
``latest``. Sources: distribution-spec "Pulling manifests" (name and tag grammar); docker's reference grammar.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mirror.oci.errors import RegistryError
from mirror.oci.names import Digest, RepositoryName, Tag, parse_digest, parse_name, parse_tag
from mirror.upstream.configured import DOCKER_HUB

LATEST = Tag("latest")
HUB = "docker.io"

_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::\d{1,5})?"
)
_COMMENT = re.compile(r"(?:^|\s)#.*")


class ReferenceInvalid(ValueError):
    """What was written is no image. The message says why, not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image at a registry. host: the registry's name, which is an upstream's of the mirror.

    tag: None when only a digest was given. With both, the digest is what is meant.
    """

    host: str
    repository: RepositoryName
    tag: Tag | None
    digest: Digest | None

    @property
    def name(self) -> str:
        """The registry and the repository."""
        return f"{self.host}/{self.repository}"

    @property
    def target(self) -> Tag | Digest:
        """What to ask for."""
        return self.digest or self.tag or LATEST

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse_image(text: str) -> Image:
    """Read ``alpine``, ``ghcr.io/owner/app:v1``, ``name@sha256:…``, ``name:tag@sha256:…``.

    Raises: ReferenceInvalid.
    """
    if "://" in text:
        raise ReferenceInvalid(f"is a URL; leave out {text.partition('://')[0][:20]}://")
    path, at, digest = text.partition("@")
    head, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    host, repository = _split(head + slash + last)
    try:
        return Image(
            host=host,
            repository=parse_name(repository),
            tag=parse_tag(tag) if colon else None if at else LATEST,
            digest=parse_digest(digest) if at else None,
        )
    except RegistryError as error:
        raise ReferenceInvalid(error.message) from error


def read_list(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Give the images a file lists, one a line, with the numbers of their lines; comments begin with #."""
    for number, line in enumerate(lines, 1):
        found = _COMMENT.sub("", line).strip()
        if found:
            yield number, found


def _split(name: str) -> tuple[str, str]:
    """Return registry and repository. The first part is a registry if it could be no part of Docker Hub's names."""
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first.lower() == "localhost"):
        host = first.lower()
        if not _HOST.fullmatch(host):
            raise ReferenceInvalid(f"{first[:120]!r} is not the host, or host:port, of a registry")
    else:
        host, rest = HUB, name
    if host in DOCKER_HUB:
        host = HUB
        rest = rest if "/" in rest else f"library/{rest}"
    return host, rest
