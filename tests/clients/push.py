"""Bring an image into a registry exactly as it is: blobs, then manifests, children first."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from tests.clients.images import Image


def push(image: Image, connection: http.client.HTTPConnection, *, token: str | None) -> None:
    """Push over one connection (to be used in the thread that may open it)."""
    root = f"/v2/{image.repository}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def send(method: str, path: str, expected: int, body: bytes | None = None, **more: str) -> str:
        connection.request(method, path, body, {**headers, **more})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status == expected, f"{method} {path}: {answer.status} {text!r}"
        return answer.headers.get("Location", "")

    for one in image.blobs:
        started = urlsplit(send("POST", f"{root}/blobs/uploads/", 202, b""))
        query = f"{started.query}&digest={one.digest}"
        octets = {"Content-Type": "application/octet-stream"}
        send("PUT", f"{started.path}?{query}", 201, one.data, **octets)
    for manifest in image.manifests:
        name = image.tag if manifest is image.top else manifest.digest
        send("PUT", f"{root}/manifests/{name}", 201, manifest.data, **{"Content-Type": manifest.media_type})
