"""Test images, made by hand: small, deterministic, and runnable on the machine that tests.

``/hello`` is an ELF file of a few hundred bytes that prints one line; layers of random bytes do not
compress. Contents depend on names only, so that two runs make the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import random
import struct
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
MEDIA = {
    "oci": {
        "index": OCI + "index.v1+json",
        "manifest": OCI + "manifest.v1+json",
        "config": OCI + "config.v1+json",
        "layer": OCI + "layer.v1.tar+gzip",
    },
    "docker": {
        "index": DOCKER + "distribution.manifest.list.v2+json",
        "manifest": DOCKER + "distribution.manifest.v2+json",
        "config": DOCKER + "container.image.v1+json",
        "layer": DOCKER + "image.rootfs.diff.tar.gzip",
    },
}
HELLO = "hello from a scratch image"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OTHERS = [name for name in ("amd64", "arm64", "s390x") if name != ARCHITECTURE]


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes with their digest; manifests are blobs with a manifest's media type."""

    media_type: str
    data: bytes = field(repr=False)
    digest: str

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What was pushed under one name, and what a client on this machine must end up with."""

    registry: str
    repository: str
    tag: str
    manifests: tuple[Blob, ...]  # children first, the tagged one last
    blobs: tuple[Blob, ...]
    own: Blob  # the manifest of this machine's platform
    config: Blob
    layers: tuple[Blob, ...]
    diff_ids: tuple[str, ...]

    @property
    def top(self) -> Blob:
        return self.manifests[-1]

    @property
    def digest(self) -> str:
        """The digest its tag resolves to."""
        return self.top.digest

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        return f"{self.name}:{self.tag}"

    @property
    def pulled(self) -> frozenset[str]:
        """The blobs a pull for this machine's platform needs."""
        return frozenset(blob.digest for blob in (self.config, *self.layers))

    def at(self, registry: str, repository: str, tag: str = "1") -> Image:
        return replace(self, registry=registry, repository=repository, tag=tag)


@dataclass(frozen=True, slots=True)
class Layer:
    blob: Blob
    diff_id: str


def blob(media_type: str, data: bytes | dict[str, Any]) -> Blob:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return Blob(media_type=media_type, data=raw, digest="sha256:" + hashlib.sha256(raw).hexdigest())


def layer(files: dict[str, tuple[bytes, int]], *, style: str, level: int = 6) -> Layer:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (data, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    diff_id = "sha256:" + hashlib.sha256(raw.getvalue()).hexdigest()
    return Layer(blob(MEDIA[style]["layer"], gzip.compress(raw.getvalue(), level, mtime=0)), diff_id)


def noise(seed: str, size: int, *, style: str = "oci") -> Layer:
    """A layer of so many random bytes, the same for the same seed."""
    data = random.Random(seed).randbytes(size)
    return layer({f"data/{seed}": (data, 0o644)}, style=style, level=0)


def image(
    repository: str,
    *,
    base: Iterable[Layer] = (),
    more: Iterable[Layer] = (),
    architectures: Iterable[str] = (ARCHITECTURE,),
    attestation: bool = False,
    style: str = "oci",
    registry: str = "docker.io",
    tag: str = "1",
) -> Image:
    """An image with /hello on ``base``, and ``more`` layers above; several architectures or an attestation
    make an index.
    """
    names, platforms, manifests, blobs = MEDIA[style], [], [], []
    own: tuple[Blob, Blob, tuple[Layer, ...]] | None = None
    for architecture in architectures:
        about = f"{repository} {architecture}\n".encode()
        first = layer({"hello": (hello(architecture), 0o755), "etc/arch": (about, 0o644)}, style=style)
        layers = (*base, first, *more)
        config = blob(names["config"], _config(architecture, layers))
        manifest = blob(names["manifest"], _manifest(names["manifest"], config, [one.blob for one in layers]))
        manifests.append(manifest)
        blobs += [config, *(one.blob for one in layers)]
        platforms.append({**manifest.descriptor, "platform": {"architecture": architecture, "os": "linux"}})
        if architecture == ARCHITECTURE:
            own = manifest, config, layers
    assert own is not None, "an image for this machine's platform is part of every index"
    if attestation:
        manifest, parts = _attestation(own[0])
        manifests.append(manifest)
        blobs += parts
        platforms.append(
            {
                **manifest.descriptor,
                "platform": {"architecture": "unknown", "os": "unknown"},
                "annotations": {
                    "vnd.docker.reference.type": "attestation-manifest",
                    "vnd.docker.reference.digest": own[0].digest,
                },
            }
        )
    if len(manifests) > 1:
        index = {"schemaVersion": 2, "mediaType": names["index"], "manifests": platforms}
        manifests.append(blob(names["index"], index))
    return Image(
        registry=registry,
        repository=repository,
        tag=tag,
        manifests=tuple(manifests),
        blobs=tuple({one.digest: one for one in blobs}.values()),
        own=own[0],
        config=own[1],
        layers=tuple(one.blob for one in own[2]),
        diff_ids=tuple(one.diff_id for one in own[2]),
    )


def _config(architecture: str, layers: Iterable[Layer]) -> dict[str, Any]:
    layers = list(layers)
    return {
        "architecture": architecture,
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/hello"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [one.diff_id for one in layers]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(layers))],
    }


def _manifest(media_type: str, config: Blob, layers: Iterable[Blob]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.descriptor,
        "layers": [one.descriptor for one in layers],
    }


def _attestation(subject: Blob) -> tuple[Blob, list[Blob]]:
    """The child of platform unknown/unknown that BuildKit adds to its indexes."""
    names = MEDIA["oci"]
    statement = blob("application/vnd.in-toto+json", {"_type": "https://in-toto.io/Statement/v0.1"})
    config = blob(
        names["config"],
        {
            "architecture": "unknown",
            "os": "unknown",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [statement.digest]},
        },
    )
    return blob(names["manifest"], _manifest(names["manifest"], config, [statement])), [config, statement]


def hello(architecture: str) -> bytes:
    """A static ELF file: write(1, HELLO), exit(0). For other architectures just some bytes."""
    text = (HELLO + "\n").encode()
    if architecture == "amd64":
        machine = 62
        code = (
            b"\xb8\x01\x00\x00\x00"  # mov eax, 1 (write)
            b"\xbf\x01\x00\x00\x00"  # mov edi, 1
            + b"\x48\x8d\x35" + struct.pack("<i", 16)  # lea rsi, [rip + 16]: the text, after this code
            + b"\xba" + struct.pack("<I", len(text))  # mov edx, length
            + b"\x0f\x05"  # syscall
            b"\xb8\x3c\x00\x00\x00"  # mov eax, 60 (exit)
            b"\x31\xff"  # xor edi, edi
            b"\x0f\x05"  # syscall
        )  # fmt: skip
    elif architecture == "arm64":
        machine = 183
        words = (
            _movz(8, 64),  # write
            _movz(0, 1),
            0x10000000 | (24 >> 2) << 5 | 1,  # adr x1, text: six words on
            _movz(2, len(text)),
            0xD4000001,  # svc 0
            _movz(8, 93),  # exit
            _movz(0, 0),
            0xD4000001,
        )
        code = struct.pack(f"<{len(words)}I", *words)
    else:
        return f"not a program for {architecture}\n".encode()
    base, headers = 0x400000, 64 + 56
    size = headers + len(code) + len(text)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    file_header = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x10000)
    return ident + file_header + segment + code + text


def _movz(register: int, value: int) -> int:
    return 0xD2800000 | value << 5 | register


class Images:
    """The images of the suite, by what each is about."""

    def __init__(self) -> None:
        several = [noise("several-1", 300_000), noise("several-2", 1_000_000)]
        every = [ARCHITECTURE, *OTHERS]
        # at the bottom: dockerd knows a layer again only on the same layers below it
        shared = [noise("shared", 2_000_000)]
        self.hello = image("test/hello")
        self.library = image("library/tiny", tag="latest")
        self.several = image("test/several", more=several)
        self.multi = image("test/multi", more=[noise("multi", 100_000)], architectures=every)
        self.attested = image("test/attested", architectures=every[:2], attestation=True)
        self.schema2 = image("docker/hello", style="docker")
        self.schema2_list = image("docker/multi", style="docker", architectures=every)
        self.shared_a = image("test/shared-a", base=shared, more=[noise("only-a", 50_000)])
        self.shared_b = image("test/shared-b", base=shared, more=[noise("only-b", 50_000)])
        self.large = image("test/large", more=[noise("large-1", 60_000_000), noise("large-2", 40_000_000)])
        self.ghcr = image("test/elsewhere", registry="ghcr.io", more=[noise("elsewhere", 10_000)])

    def all(self) -> list[Image]:
        return list(vars(self).values())
