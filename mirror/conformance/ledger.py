"""What a run left in the registry, so that it can be taken away again."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from mirror.conformance.case import Failed
from mirror.conformance.client import Answer, Registry
from mirror.conformance.content import digest_of

_MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/")


class Ledger:
    """Watches the answers of a registry; knows what was accepted and not deleted since."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._tags: dict[str, None] = {}
        self._manifests: dict[str, None] = {}
        self._blobs: dict[str, None] = {}
        self._sessions: dict[str, tuple[str, str]] = {}
        registry.observers.append(self.observe)

    def observe(self, answer: Answer, body: bytes) -> None:
        """Note what this answer says there is now."""
        path, query = urlsplit(answer.url).path, parse_qs(urlsplit(answer.url).query)
        accepted = answer.status in (200, 201)
        if answer.method == "PUT" and (found := _MANIFEST.fullmatch(path)):
            if accepted:
                self._note_manifest(found[1], found[2], query.get("tag", []), body)
        elif answer.method == "DELETE":
            for kept in (self._tags, self._manifests, self._blobs):
                if answer.status == 202:
                    kept.pop(path, None)
            self._sessions.pop(_session(answer.url), None)
        elif answer.method in ("POST", "PUT", "PATCH"):
            self._note_upload(answer, path, query)

    def _note_manifest(self, name: str, reference: str, tags: list[str], body: bytes) -> None:
        algorithm, colon, _ = reference.partition(":")
        digest = digest_of(body, algorithm) if colon and algorithm in ("sha256", "sha512") else digest_of(body)
        self._manifests[f"/v2/{name}/manifests/{digest}"] = None
        for tag in [*tags, *([] if colon else [reference])]:
            self._tags[f"/v2/{name}/manifests/{tag}"] = None

    def _note_upload(self, answer: Answer, path: str, query: dict[str, list[str]]) -> None:
        upload = _UPLOAD.match(path)
        digest = (query.get("digest") or query.get("mount") or [""])[0]
        session = _session(answer.url)
        if answer.status == 201 and digest:
            name = upload[1] if upload else self._sessions.get(session, ("", ""))[1]
            self._sessions.pop(session, None)
            if name:
                self._blobs[f"/v2/{name}/blobs/{digest}"] = None
        elif answer.status == 202 and (location := answer.headers.get("Location")):
            url = self._registry.absolute(location, answer.url)
            name = upload[1] if upload else self._sessions.get(session, ("", ""))[1]
            self._sessions.pop(session, None)
            self._sessions[_session(url)] = (url, name)

    async def clean(self) -> tuple[str, ...]:
        """Delete all of it where deletion works, and return what is left, in words."""
        for url, _ in list(self._sessions.values()):
            await self._delete(url)
        left = []
        for what, kept in (("tag", self._tags), ("manifest", self._manifests), ("blob", self._blobs)):
            refused = ""
            gone = 0
            paths = list(reversed(kept))
            for path in paths:
                status = await self._delete(path)
                if status in (400, 401, 403, 405, 501):
                    refused = f" (deletion answers {status})"
                    break
                gone += status in (200, 202, 204, 404)
            if gone < len(paths) and not (what == "tag" and self._manifests):
                left.append(f"{len(paths) - gone} {what}{'' if len(paths) - gone == 1 else 's'}{refused}")
        return tuple(left)

    async def _delete(self, path: str) -> int:
        try:
            return (await self._registry.ask("DELETE", path)).status
        except Failed:
            return 0


def _session(url: str) -> str:
    """Return what one session's URLs have in common: the path, as registries keep state in the query."""
    return urlsplit(url).path
