"""Ways to run the registry under a judge: workers, transport and access, in pairs or all; and a folder of images."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass

from tests.clients.ca import Authority
from tests.clients.images import Image, Images
from tests.clients.layout import Referrer, refer, write_layout
from tests.clients.namespace import Namespace
from tests.clients.registry_process import ACCESSES, Access, Registry


@dataclass(frozen=True, slots=True)
class Combination:
    workers: int
    tls: bool
    access: Access

    def __str__(self) -> str:
        return f"{self.workers}-workers-{'tls' if self.tls else 'http'}-{self.access}"

    def start(self, namespace: Namespace, ca: Authority, *, port: int, **more: object) -> Registry:
        """Start a registry of this kind. more: further settings."""
        return Registry(
            namespace,
            namespace.directory / f"conformance-{port}-{self}",
            port=port,
            access=self.access,
            workers=self.workers,
            tls=ca if self.tls else None,
            **more,
        )


ALL = tuple(itertools.starmap(Combination, itertools.product((1, 4), (False, True), ACCESSES)))
PAIRS = (
    *(Combination(1, False, "open"), Combination(4, True, "open")),
    *(Combination(4, False, "bearer"), Combination(1, True, "bearer")),
    *(Combination(1, False, "basic"), Combination(4, True, "basic")),
)
COMBINATIONS = ALL if os.environ.get("CONFORMANCE_MATRIX") == "all" else PAIRS

PACKAGE, PACKAGE_TAGS = "local/official", ("1", "B", "a", "b")
"""The repository that a folder of images has, and its tags, in their order."""


def note_on(image: Image) -> Referrer:
    """What refers to the image in that folder."""
    return refer(image.top, "application/vnd.test.note", "a note on an image")


def serve_folder(namespace: Namespace, images: Images, *, port: int) -> Registry:
    """Start a registry of nothing but a folder of images, read-only: one image, and a note that refers to it."""
    directory = namespace.directory / f"packages-{port}"
    folder = namespace.directory / f"folder-{port}"
    layout = folder / PACKAGE.removeprefix("local/")
    write_layout(images.multi, layout, tags=PACKAGE_TAGS, referrer=note_on(images.multi))
    return Registry(namespace, directory, port=port, packages=str(folder), read_only=True)
