"""A node that pulls over HTTP as containerd does, so that many nodes can pull a great deal in a moment."""

from __future__ import annotations

import hashlib
import http.client
import json
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.clients.images import MEDIA, Image

ACCEPT = ", ".join((*(style[kind] for style in MEDIA.values() for kind in ("manifest", "index")), "*/*"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer. ``warning``: what it says of being stale, ``wait``: when to come again; empty for nothing."""

    path: str
    status: int
    digest: str
    warning: str
    wait: str
    body: bytes

    @property
    def message(self) -> str:
        """What went wrong, in the words of the registry."""
        (error,) = json.loads(self.body)["errors"]
        said: str = error["message"]
        return said


class Node:
    """One connection to a mirror, kept open. Made and used in a thread inside the namespace."""

    def __init__(self, mirror: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(mirror).netloc, timeout=60)

    def ask(self, method: str, image: Image, path: str) -> Answer:
        """Send one request about an image's repository, and read the answer."""
        path = f"/v2/{image.repository}/{path}?ns={image.registry}"
        self._connection.request(method, path, headers={"Accept": ACCEPT, "User-Agent": "a-node/1"})
        answer = self._connection.getresponse()
        return Answer(
            path=path,
            status=answer.status,
            digest=answer.headers.get("Docker-Content-Digest", ""),
            warning=answer.headers.get("Warning", ""),
            wait=answer.headers.get("Retry-After", ""),
            body=answer.read(),
        )

    def resolve(self, image: Image) -> Answer:
        """Ask what the image's tag points at."""
        return self.ask("HEAD", image, f"manifests/{image.tag}")

    def pull(self, image: Image) -> list[Answer]:
        """Resolve the tag, get the manifest it points at and everything that names; the answers, each of them good."""
        answers = [self.resolve(image)]
        for kind, one in (("manifests", image.top), *(("blobs", blob) for blob in (image.config, *image.layers))):
            answers.append(self.ask("GET", image, f"{kind}/{one.digest}"))
        statuses = [(answer.path, answer.status) for answer in answers if answer.status != 200]
        assert not statuses, f"{image.reference}: {statuses}: {answers[-1].body[:300]!r}"
        assert answers[0].digest == image.digest
        found = ["sha256:" + hashlib.sha256(answer.body).hexdigest() for answer in answers[1:]]
        assert found == [image.digest, image.config.digest, *(layer.digest for layer in image.layers)]
        return answers

    def close(self) -> None:
        self._connection.close()


def pull_all(mirror: str, images: list[Image]) -> list[Answer]:
    """Pull these one after the other as a new node; all its answers."""
    with closing(Node(mirror)) as node:
        return [answer for image in images for answer in node.pull(image)]
