"""Platforms, and which manifests of an index are theirs: chosen as containerd chooses on a node.

The best match of what was asked wins: the platform itself, then older variants, then what its processors also run
(386 on amd64, 32-bit arm on arm64). Sources: image-spec image-index.md ("platform"); containerd's platforms package.
"""

from __future__ import annotations

import json
import platform as this
import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirror.oci.manifest import Descriptor, Manifest

_PART = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5l": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
"""What kernels and distributions call an architecture → what images call it, and its variant."""

_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
"""Architecture → the variant that is meant when none is said."""

_OLDEST = {"amd64": 1, "arm": 5, "arm64": 8}


class PlatformInvalid(ValueError):
    """What was written is no platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image runs on. variant: empty for the usual one of the architecture."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}{f'/{self.variant}' if self.variant else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A manifest that an index lists. platform: None when the index does not say."""

    descriptor: Descriptor
    platform: Platform | None


def parse_platform(text: str) -> Platform:
    """Read ``os/arch[/variant]``. Raises: PlatformInvalid."""
    parts = text.strip().lower().split("/")
    if not 2 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
        raise PlatformInvalid(f"{text[:80]!r} is not a platform: write os/arch or os/arch/variant, or all")
    return _platform(*parts)


def this_machine() -> Platform:
    """Return the platform of this machine's images: they are Linux ones wherever containers run."""
    return _platform("linux", this.machine().lower())


def entries(index: Manifest) -> list[Entry]:
    """Return what an index lists, in its order."""
    listed = json.loads(index.raw.decode()).get("manifests")
    found: defaultdict[str, deque[Platform | None]] = defaultdict(deque)
    for item in listed if isinstance(listed, list) else ():
        if isinstance(item, dict):
            found[str(item.get("digest"))].append(_read(item.get("platform")))
    # By digest, in order: of types that are not the specifications' some items may have been no descriptors.
    return [
        Entry(descriptor=child, platform=found[str(child.digest)].popleft() if found[str(child.digest)] else None)
        for child in index.manifests
    ]


def choose(listed: Sequence[Entry], wanted: Platform) -> list[Entry]:
    """Return the manifests of a platform: one, but for Windows, where each node takes that of its own version.

    Entries whose platform nobody says are taken when no other matches. Empty when there is nothing.
    """
    for option in _options(wanted):
        matching = [entry for entry in listed if entry.platform == option]
        if matching:
            return matching if wanted.os == "windows" else matching[:1]
    return [entry for entry in listed if entry.platform is None]


def suits(platform: Platform, wanted: Platform) -> bool:
    """Say whether something for one platform could be chosen for another."""
    return platform in _options(wanted)


def _options(wanted: Platform) -> list[Platform]:
    """Return what could be chosen for a platform, the best first."""
    found = _older(wanted)
    if wanted.architecture == "amd64":
        found.append(Platform(os=wanted.os, architecture="386"))
    elif wanted.architecture == "arm64":
        found += _older(_platform(wanted.os, "arm", "v8"))
    return found


def _older(wanted: Platform) -> list[Platform]:
    """Return a platform and those of its architecture's older variants."""
    found = [wanted]
    variant = wanted.variant or _VARIANTS.get(wanted.architecture, "")
    if variant[1:].isdecimal() and wanted.architecture in _OLDEST:
        oldest = _OLDEST[wanted.architecture]
        numbers = range(int(variant[1:]) - 1, oldest - 1, -1)
        found += [_platform(wanted.os, wanted.architecture, f"v{number}") for number in numbers]
    return found


def _platform(os: str, architecture: str, variant: str = "") -> Platform:
    """Return a platform with the names images use."""
    os = "darwin" if os == "macos" else os
    architecture, usual = _ARCHITECTURES.get(architecture, (architecture, ""))
    variant = variant or usual
    if variant.isdecimal() and architecture in _VARIANTS:
        variant = f"v{variant}"
    return Platform(os=os, architecture=architecture, variant="" if variant == _VARIANTS.get(architecture) else variant)


def _read(given: Any) -> Platform | None:
    if not isinstance(given, dict):
        return None
    os, architecture, variant = (str(given.get(key) or "").lower() for key in ("os", "architecture", "variant"))
    return _platform(os, architecture, variant) if os and architecture else None
