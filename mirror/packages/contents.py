"""Finding the manifests of an entry: from its index down, each verified as it is read.

Sources: image-spec image-layout.md ("index.json"), annotations.md ("org.opencontainers.image.ref.name").
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping

from mirror.oci.errors import ManifestInvalid, ManifestUnknown
from mirror.oci.manifest import KNOWN, OCI_INDEX, Descriptor, Manifest, is_manifest_type, parse_manifest
from mirror.oci.names import Digest, Tag, digest_of, parse_target
from mirror.packages.entry import DAMAGED, Contents, Row, Source, parse_json
from mirror.packages.files import read_exactly
from mirror.packages.problems import Problem

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"

MAX_MANIFESTS = 256 * 1024 * 1024
"""Bytes of all manifests of one entry, which are kept in memory."""


class Collector:
    """Collects the manifests and tags of one entry, and what is wrong with it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._tags: dict[Tag, Digest] = {}
        self._rows: dict[Digest, Row] = {}
        self._referrers: defaultdict[Digest, list[Digest]] = defaultdict(list)
        self._size = 0

    def has(self, digest: Digest) -> bool:
        return digest in self._rows

    def add(self, manifest: Manifest, content_type: str) -> None:
        """Take a verified manifest. Raises: Problem when it is one too many."""
        digest = manifest.descriptor.digest
        if digest in self._rows:
            return
        self._size += len(manifest.raw)
        if self._size > MAX_MANIFESTS:
            raise Problem(f"has more than {MAX_MANIFESTS} bytes of manifests; split it")
        self._rows[digest] = Row(raw=manifest.raw, content_type=content_type, descriptor=manifest.descriptor)
        if manifest.subject:
            self._referrers[manifest.subject.digest].append(digest)

    def name(self, tag: Tag, digest: Digest) -> None:
        """Let a tag point at a manifest; the first one has it."""
        if digest not in self._rows:
            self.problems.append(f"the tag {tag} points at {digest}, which is not in it; {DAMAGED}")
        elif self._tags.setdefault(tag, digest) != digest:
            self.problems.append(
                f"the tag {tag} is given to two images, and is served as {self._tags[tag]} (the other is {digest}); "
                "save them to entries of their own"
            )

    def contents(self) -> Contents:
        return Contents(
            tags=dict(sorted(self._tags.items())),
            manifests=self._rows,
            referrers={subject: tuple(sorted(found, key=str)) for subject, found in self._referrers.items()},
            problems=tuple(self.problems),
        )


def read_index(raw: bytes, source: Source, limit: int, problems: Iterable[str] = ()) -> Contents:
    """Find everything an ``index.json`` leads to. limit: bytes of a manifest. Blocks.

    Raises: Problem when the index itself is unusable. What is wrong further down is left out, and noted.
    """
    try:
        index = parse_manifest(raw, content_type=OCI_INDEX)
    except ManifestInvalid as error:
        raise Problem(f"its index.json is unusable ({error.message}); {DAMAGED}") from error
    if not isinstance(parse_json(raw, "index.json").get("manifests"), list):
        raise Problem(f"its index.json has no manifests; {DAMAGED}")
    collector = Collector()
    collector.problems += problems
    waiting, seen = deque(index.manifests), set[Digest]()
    while waiting:
        descriptor = waiting.popleft()
        if descriptor.digest in seen:
            continue
        seen.add(descriptor.digest)
        try:
            manifest = _read(descriptor, source, limit)
        except Problem as problem:
            collector.problems.append(str(problem))
            continue
        if manifest is not None:
            collector.add(manifest, descriptor.media_type)
            waiting.extend(manifest.manifests)
    for descriptor in index.manifests:
        if is_manifest_type(descriptor.media_type):
            _name(collector, descriptor)
    return collector.contents()


def tag_of(text: str, *, reference: bool = False) -> Tag | None:
    """Return the tag of an image's name: ``1.2`` of ``1.2``, ``x:1.2`` or ``docker.io/library/x:1.2``.

    reference: the text is a whole name, whose tag is ``latest`` when it names none (and no digest).
    Raises: ManifestUnknown when it cannot be a tag.
    """
    name, at, _ = text.partition("@")
    last = name.rpartition("/")[2]
    _, colon, tag = last.partition(":")
    if not colon:
        if at:
            return None
        tag = "latest" if reference or "/" in name else last
    found = parse_target(tag) if ":" not in tag else None
    if isinstance(found, Digest) or found is None:
        raise ManifestUnknown(f"{text[:200]!r} has no tag")
    return found


def _name(collector: Collector, descriptor: Descriptor) -> None:
    found: list[Tag] = []
    for key in (REF_NAME, IMAGE_NAME):
        text = descriptor.annotations.get(key)
        if not text:
            continue
        try:
            tag = tag_of(text, reference=key == IMAGE_NAME)
        except ManifestUnknown:
            collector.problems.append(f"{text[:200]!r} of {descriptor.digest} cannot be a tag; rename it")
            continue
        if tag is not None and tag not in found:
            found.append(tag)
    for tag in found:
        collector.name(tag, descriptor.digest)


def _read(descriptor: Descriptor, source: Source, limit: int) -> Manifest | None:
    """Read and verify a manifest; None when it is not here, or is no manifest.

    An index can name anything; what is not of a known type and does not read as a manifest is a blob like others.
    """
    known, digest = descriptor.media_type in KNOWN, descriptor.digest
    if not is_manifest_type(descriptor.media_type):
        return None
    opened = source.open(digest)
    if opened is None:
        return None
    try:
        if opened.size > limit:
            if not known:
                return None
            raise Problem(f"the manifest {digest} has {opened.size} bytes, more than limits.manifest ({limit}) allows")
        raw = read_exactly(opened.fd, opened.size, opened.offset)
    except OSError as error:
        raise Problem(f"the manifest {digest} cannot be read ({error.strerror})") from error
    finally:
        opened.close()
    if digest_of(raw, digest.algorithm) != digest:
        if not known:
            return None
        raise Problem(f"the manifest {digest} has other bytes than its digest says; {DAMAGED}")
    try:
        return parse_manifest(raw, content_type=descriptor.media_type, digest=digest)
    except ManifestInvalid as error:
        if not known:
            return None
        raise Problem(f"{digest}: {error.message}") from error


def check_version(raw: bytes) -> None:
    """Check an ``oci-layout`` file. Raises: Problem."""
    found = parse_json(raw, "oci-layout")
    version = found.get("imageLayoutVersion") if isinstance(found, Mapping) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise Problem(f"its oci-layout says version {version!r}; only 1.x is known")
