"""Where cases are played: the registry, the names they may use, and content that several of them share.

What is pushed here is pushed leniently: whether an answer was right in every detail is for the cases to say that are
about it, and only what cannot be had at all makes others "not judged".
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from mirror.conformance.case import Failed, NotJudged, Unsupported, Verdict
from mirror.conformance.client import Answer, Registry
from mirror.conformance.content import ACCEPTED, OCTETS, Blob, Content, Document, digest_of
from mirror.conformance.expect import failed
from mirror.conformance.ledger import Ledger

T = TypeVar("T")

LARGEST = 64 * 1024 * 1024
"""Largest blob, in bytes, that is pulled from a registry whose content is not ours."""

ENOUGH = 4
"""How many manifests, and how many blobs, of such a registry are looked at."""

REFUSALS = (401, 403, 404, 405, 501)
"""What a registry for pulling only answers to the start of an upload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run may use.

    repository, other: names for pushing, the second to mount from. references: tags and digests of ``repository`` to
    pull when nothing can be pushed; blobs: digests likewise. pull_only: send nothing that writes. ns: what the
    registry is called in ``?ns=``, empty for its host. seed: of the content.
    """

    repository: str = "local/conformance"
    other: str = "local/conformance-other"
    references: tuple[str, ...] = ()
    blobs: tuple[str, ...] = ()
    pull_only: bool = False
    ns: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Content to pull. data: its bytes where known. tag, media_type: of a manifest, where known."""

    digest: str
    data: bytes | None = field(default=None, repr=False)
    tag: str | None = None
    media_type: str | None = None


class Stage:
    """What a case is given."""

    def __init__(self, registry: Registry, options: Options) -> None:
        self.registry = registry
        self.options = options
        self.content = Content(options.seed)
        self.ledger = Ledger(registry)
        self.answers: list[Answer] = []
        self.notes: list[str] = []
        self._memory: dict[str, Any] = {}
        registry.observers.append(lambda answer, _: self.answers.append(answer))

    # ---- asking ----

    def path(self, kind: str, what: str, name: str | None = None) -> str:
        """Return ``/v2/<name>/<kind>/<what>``."""
        return f"/v2/{name or self.options.repository}/{kind}/{what}"

    async def get(self, kind: str, what: str, *, name: str | None = None, **more: Any) -> Answer:
        """GET something of the repository."""
        return await self.ask("GET", kind, what, name=name, **more)

    async def head(self, kind: str, what: str, *, name: str | None = None, **more: Any) -> Answer:
        """HEAD something of the repository."""
        return await self.ask("HEAD", kind, what, name=name, **more)

    async def ask(self, method: str, kind: str, what: str, *, name: str | None = None, **more: Any) -> Answer:
        """Send a request about something of the repository, with an Accept header for manifests."""
        headers = {"Accept": ACCEPTED} if kind == "manifests" and method in ("GET", "HEAD") else {}
        headers |= more.pop("headers", None) or {}
        return await self.registry.ask(method, self.path(kind, what, name), headers=headers, **more)

    def note(self, text: str) -> None:
        """Say something about a case that passes."""
        self.notes.append(text)

    async def once(self, key: str, make: Callable[[], Awaitable[T]]) -> T:
        """Return what ``make`` gives, made once; what kept it from being made is raised to all who ask."""
        if key not in self._memory:
            try:
                self._memory[key] = await make()
            except Failed as error:
                self._memory[key] = NotJudged(f"what it needs could not be had: {error}")
            except Verdict as verdict:
                self._memory[key] = verdict
        found = self._memory[key]
        if isinstance(found, Verdict):
            raise found
        return found  # type: ignore[no-any-return]  # what make() of this key returned

    # ---- pushing ----

    async def no_pushes(self) -> str:
        """Return why nothing can be pushed; empty when it can."""

        async def find() -> str:
            if self.options.pull_only:
                return "left out: pulling only"
            answer = await self.registry.ask("POST", self.path("blobs", "uploads/"))
            if answer.status not in REFUSALS:
                return ""
            advice = " (log in by --user)" if answer.status == 401 else ""
            return f"pushing is refused: POST of an upload answers {answer.status}{advice}"

        return await self.once("no pushes", find)

    async def begin(self, name: str | None = None, query: Mapping[str, str] | None = None) -> str:
        """Begin an upload; return its URL. Raises: NotJudged."""
        answer = await self.registry.ask("POST", self.path("blobs", "uploads/", name), query=query)
        location = answer.headers.get("Location")
        if answer.status // 100 != 2 or not location:
            raise NotJudged(f"no upload could be begun: {answer.asked} answers {answer.status}")
        return self.registry.absolute(location, answer.url)

    async def chunk(self, location: str, data: bytes, first: int, **more: Any) -> Answer:
        """PATCH a chunk that begins at this byte of the blob."""
        headers = {"Content-Type": OCTETS, "Content-Range": f"{first}-{first + len(data) - 1}"}
        return await self.registry.ask("PATCH", location, headers=headers, body=data, **more)

    async def accepted_chunk(self, location: str, data: bytes, first: int) -> str:
        """PATCH a chunk and return where the next one goes. Raises: NotJudged when it is refused."""
        answer = await self.chunk(location, data, first)
        if answer.status // 100 != 2:
            raise NotJudged(f"a chunk in order is refused: {answer.asked} answers {answer.status}")
        return self.next_location(answer, location)

    def next_location(self, answer: Answer, before: str) -> str:
        """Return where the upload goes on: the Location given, or the one before."""
        location = answer.headers.get("Location")
        return self.registry.absolute(location, answer.url) if location else before

    async def finish(self, location: str, digest: str, data: bytes = b"", first: int | None = None) -> Answer:
        """PUT the end of an upload. first: the place of ``data`` in the blob, when it is its last chunk."""
        headers = {"Content-Type": OCTETS}
        if first is not None:
            headers["Content-Range"] = f"{first}-{first + len(data) - 1}"
        return await self.registry.ask("PUT", location, query={"digest": digest}, headers=headers, body=data)

    async def put_blob(self, blob: Blob, name: str | None = None) -> None:
        """Push a blob. Raises: NotJudged."""
        answer = await self.finish(await self.begin(name), blob.digest, blob.data)
        if answer.status // 100 != 2:
            raise NotJudged(f"a blob could not be pushed: {answer.asked} answers {answer.status}")

    async def send_document(
        self, document: Document, reference: str | None = None, *, name: str | None = None, **more: Any
    ) -> Answer:
        """Push its blobs, then PUT the document under a tag, or under its digest; return the answer."""
        for blob in document.blobs:
            await self.put_blob(blob, name)
        return await self.put_manifest(document, reference, name=name, **more)

    async def put_manifest(
        self, document: Document, reference: str | None = None, *, name: str | None = None, **more: Any
    ) -> Answer:
        """PUT the document alone; return the answer."""
        headers = {"Content-Type": document.media_type, **(more.pop("headers", None) or {})}
        return await self.ask(
            "PUT", "manifests", reference or document.digest, name=name, headers=headers, body=document.data, **more
        )

    async def put_document(self, document: Document, *references: str, name: str | None = None) -> Document:
        """Push blobs and document under these tags, or under its digest. Raises: NotJudged."""
        for blob in document.blobs:
            await self.put_blob(blob, name)
        for reference in references or (document.digest,):
            answer = await self.put_manifest(document, reference, name=name)
            if answer.status // 100 != 2:
                raise NotJudged(f"a manifest could not be pushed: {answer.asked} answers {answer.status}")
        return document

    async def image(self) -> tuple[Document, str]:
        """Return an image that has been pushed, and its tag."""

        async def make() -> tuple[Document, str]:
            tag = self.content.word("image")
            image = self.content.image(layers=2)
            await self.put_document(image, tag)
            return image, tag

        return await self.once("image", make)

    # ---- pulling ----

    async def settle(self) -> None:
        """See to it that there is a repository, where that can be done: what is asked for next is missing in it."""
        try:
            await self.manifests()
        except Verdict:
            pass  # what is missing is missing all the same

    async def manifests(self) -> tuple[Target, ...]:
        """Return manifests to pull: ours, or of the references that were given. Raises: NotJudged."""

        async def make() -> tuple[Target, ...]:
            if await self.no_pushes():
                return tuple(target for target, _ in await self._given())
            image, tag = await self.image()
            return (Target(digest=image.digest, data=image.data, tag=tag, media_type=image.media_type),)

        found = await self.once("manifests", make)
        if not found:
            raise NotJudged("there is no manifest to pull: name one by --repository and --reference")
        return found

    async def tagged(self) -> tuple[Target, ...]:
        """Return manifests to pull that have a tag. Raises: NotJudged."""
        found = tuple(target for target in await self.manifests() if target.tag)
        if not found:
            raise NotJudged("there is no tag to pull: name one by --repository and --reference")
        return found

    async def blobs(self) -> tuple[Target, ...]:
        """Return blobs to pull, the smallest ones of what was given. Raises: NotJudged."""

        async def make() -> tuple[Target, ...]:
            if not await self.no_pushes():
                image, _ = await self.image()
                return tuple(Target(digest=blob.digest, data=blob.data) for blob in image.blobs[-2:])
            named = [Target(digest=digest) for digest in self.options.blobs]
            sizes: dict[str, int] = {}
            for _, document in await self._given():
                for one in [document.get("config"), *_list(document.get("layers"))]:
                    if isinstance(one, dict) and isinstance(one.get("size"), int) and not one.get("urls"):
                        sizes[str(one.get("digest"))] = one["size"]
            small = sorted((size, digest) for digest, size in sizes.items() if size <= LARGEST)
            return (*named, *(Target(digest=digest) for _, digest in small[:ENOUGH]))

        found = await self.once("blobs", make)
        if not found:
            raise NotJudged(
                "there is no blob to pull: name an image by --repository and --reference, or a blob by --blob"
            )
        return found

    async def _given(self) -> list[tuple[Target, dict[str, Any]]]:
        """Pull the manifests that were given, and some that they list; with their JSON."""

        async def make() -> list[tuple[Target, dict[str, Any]]]:
            found: list[tuple[Target, dict[str, Any]]] = []
            queue = list(self.options.references)
            while queue and len(found) < max(ENOUGH, len(self.options.references)):
                reference = queue.pop(0)
                answer = await self.get("manifests", reference)
                if answer.status != 200 and reference not in self.options.references:
                    continue  # an index may list what is not here
                if answer.status != 200:
                    raise NotJudged(f"the content given is not there: {answer.asked} answers {answer.status}")
                try:
                    value = json.loads(answer.body)
                except ValueError:
                    value = {}
                value = value if isinstance(value, dict) else {}
                by_digest = ":" in reference
                target = Target(
                    digest=reference if by_digest else digest_of(answer.body),
                    data=None if by_digest else answer.body,
                    tag=None if by_digest else reference,
                )
                found.append((target, value))
                children = [str(one.get("digest")) for one in _list(value.get("manifests")) if isinstance(one, dict)]
                queue += children[:ENOUGH]
            return found

        return await self.once("given", make)

    async def has_referrers(self) -> None:
        """Return when the registry has the referrers API. Raises: Unsupported when it has not.

        Asked of a manifest that something refers to, where one can be pushed: that it answers 404 when nothing does is
        a mistake of an API that is there.
        """

        async def find() -> bool:
            if await self.no_pushes():
                digests = [target.digest for target in await self.manifests()]
            else:
                subject = await self.put_document(self.content.image())
                await self.put_document(self.content.image(subject=subject.descriptor()))
                digests = [subject.digest]
            return any([(await self.get("referrers", digest)).status != 404 for digest in digests])

        if not await self.once("referrers", find):
            raise Unsupported("there is no referrers API: it answers 404")

    async def is_absent(self, kind: str, what: str, *, name: str | None = None) -> None:
        """Demand that a GET answers 404."""
        answer = await self.get(kind, what, name=name)
        if answer.status != 404:
            raise failed(answer, "status 404", f"status {answer.status}")

    @property
    def ns(self) -> str:
        """Return what the registry is called in ``?ns=``."""
        return self.options.ns or urlsplit(self.registry.url).netloc


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
