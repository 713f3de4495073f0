"""Random sequences of pushes, mounts, deletions and lists at two workers on one root, against a model in memory."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import tempfile
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.fake_upstream import CONFIG, INDEX, digest_of
from tests.harness import Answer, Mirror, make_config, mirrors, start_mirror
from tests.images import blob_path, manifest_path
from tests.pushed import ODD, Made, kept, make_artifact, make_image, make_index, mount_blob, pages, put_manifest

T = TypeVar("T")

NAMES = ("local/a", "local/a/b", "local/z")
TAGS = ("v1", "v2", "A", "latest")
SBOM = "application/vnd.example.sbom"
BLOBS = {digest_of(data): data for data in (b"{}", b"one", b"two", b"three", b"artifact 1", b"artifact 2")}

IMAGES = [make_image(b"one", b"two"), make_image(b"two", b"three", b"two"), make_image(b"three", config=b"one")]
MANIFESTS = [
    *IMAGES,
    make_index(*IMAGES[:2]),
    make_index(),
    Made(b'{"anything": 1}', ODD),
    make_artifact(IMAGES[0], SBOM, 1),
    make_artifact(IMAGES[0], None, 2, a="b"),
    make_index(IMAGES[2], subject=IMAGES[0].descriptor),
    make_artifact(make_index(), SBOM, 2),
]
BY_DIGEST = {made.digest: made for made in MANIFESTS}

workers = st.integers(0, 1)
names = st.sampled_from(NAMES)
tags = st.sampled_from(TAGS)
blobs = st.sampled_from(sorted(BLOBS))
manifests = st.sampled_from(sorted(BY_DIGEST))
pages_of = st.sampled_from([None, 1, 2, 3])
picks = st.integers(0, 999)
"""Which one of what there is; now and then one that may not be there."""


def about(digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BY_DIGEST[digest].raw)
    return found


def needed(digest: str) -> list[str]:
    """Return the blobs a manifest needs, each once, in its order."""
    body = about(digest)
    entries = ([body["config"]] if "config" in body else []) + body.get("layers", [])
    return list(dict.fromkeys(entry["digest"] for entry in entries))


def listed(digest: str) -> dict[str, Any]:
    """Return a manifest as a list of referrers has to show it."""
    body, made = about(digest), BY_DIGEST[digest]
    kind = body.get("artifactType") or (CONFIG if made.media_type != INDEX else None)
    shown = made.descriptor | ({"artifactType": kind} if kind else {})
    return shown | ({"annotations": body["annotations"]} if "annotations" in body else {})


def code_of(answer: Answer) -> tuple[int, str | None]:
    return answer.status, answer.code if answer.status >= 400 else None


class Registry(RuleBasedStateMachine):
    """The model: what each repository has. moves: of each tag, the newest last."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: dict[str, set[str]] = {name: set() for name in NAMES}
        self.manifests: dict[str, set[str]] = {name: set() for name in NAMES}
        self.tags: dict[str, dict[str, str]] = {name: {} for name in NAMES}
        self.moves: dict[tuple[str, str], list[str | None]] = {}
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "root"
        self.config = make_config(self.root, {})
        self.runner = asyncio.Runner()
        self.open = contextlib.AsyncExitStack()
        self.workers: list[Mirror] = self.run(self.open.enter_async_context(mirrors(self.config, 2)))

    def teardown(self) -> None:
        try:
            self.run(self._everything())
        finally:
            self.run(self.open.aclose())
            self.runner.close()
            self.folder.cleanup()

    def run(self, doing: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(doing)

    def ask(self, worker: int, method: str, path: str, **arguments: Any) -> Answer:
        return self.run(self.workers[worker].ask(method, path, **arguments))

    # ---- what changes something ----

    @initialize(name=names, some=st.lists(manifests, min_size=2, max_size=5, unique=True))
    def begin(self, name: str, some: list[str]) -> None:
        """Begin with something: an empty registry is left slowly."""
        for digest, tag in zip(some, itertools.cycle(TAGS), strict=False):
            self.push_all_of_it(0, name, digest, tag)

    @rule(worker=workers, other=workers, name=names, digest=blobs, way=st.sampled_from(["whole", "put", "chunks"]))
    def push_blob(self, worker: int, other: int, name: str, digest: str, way: str) -> None:
        data = BLOBS[digest]
        begin = f"/v2/{name}/blobs/uploads/"
        if way == "whole":
            answer = self.ask(worker, "POST", f"{begin}?digest={digest}", data=data)
        else:
            session = self.ask(worker, "POST", begin).headers["Location"]
            if way == "chunks":
                assert self.ask(other, "PATCH", session, data=data[:1]).status == 202
                data = data[1:]
            answer = self.ask(other, "PUT", f"{session}?digest={digest}", data=data)
        assert code_of(answer) == (201, None)
        self.blobs[name].add(digest)

    @rule(worker=workers, name=names, digest=blobs, source=st.sampled_from([*NAMES, "local/never", None]))
    def mount(self, worker: int, name: str, digest: str, source: str | None) -> None:
        answer = self.run(mount_blob(self.workers[worker], name, digest, source))
        places = self.blobs if source is None else {source: self.blobs.get(source, set())}
        if any(digest in place for place in (self.blobs[name], *places.values())):
            assert answer.status == 201
            self.blobs[name].add(digest)
        else:
            assert answer.status == 202
            assert self.ask(1 - worker, "DELETE", answer.headers["Location"]).status == 204

    @rule(worker=workers, name=names, digest=manifests, to=st.sets(tags), new=st.booleans())
    def push_manifest(self, worker: int, name: str, digest: str, to: set[str], new: bool) -> None:
        """new: only if none of the tags, or without any the manifest, is there yet."""
        there = any(tag in self.tags[name] for tag in to) if to else digest in self.manifests[name]
        parameters = "&".join(f"tag={tag}" for tag in sorted(to))
        reference = next(iter(to)) if len(to) == 1 else f"{digest}?{parameters}"
        headers = {"If_None_Match": "*"} if new else {}
        answer = self.run(put_manifest(self.workers[worker], name, reference, BY_DIGEST[digest], **headers))
        missing = [blob for blob in needed(digest) if blob not in self.blobs[name]]
        if new and there:
            assert code_of(answer) == (412, "DENIED")
        elif missing:
            assert code_of(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
            assert json.loads(answer.body)["errors"][0]["detail"] == [{"digest": blob} for blob in missing]
        else:
            assert code_of(answer) == (201, None)
            assert answer.headers.get("OCI-Subject") == about(digest).get("subject", {}).get("digest")
            self.manifests[name].add(digest)
            for tag in to:
                self._move(name, tag, digest)

    @rule(worker=workers, name=names, digest=manifests, tag=tags)
    def push_all_of_it(self, worker: int, name: str, digest: str, tag: str) -> None:
        """Push as clients do, so that there is something to list and to delete."""
        for blob in needed(digest):
            if self.ask(worker, "HEAD", blob_path(blob, name)).status == 404:
                self.push_blob(worker, worker, name, blob, "put")
        self.push_manifest(1 - worker, name, digest, {tag}, False)
        assert self.tags[name][tag] == digest

    @rule(worker=workers, name=names, pick=picks)
    def delete_tag(self, worker: int, name: str, pick: int) -> None:
        tag = _one_of(self.tags[name], TAGS, pick)
        answer = self.ask(worker, "DELETE", manifest_path(tag, name))
        assert code_of(answer) == ((202, None) if tag in self.tags[name] else (404, "MANIFEST_UNKNOWN"))
        self._move(name, tag, None)

    @rule(worker=workers, name=names, pick=picks)
    def delete_manifest(self, worker: int, name: str, pick: int) -> None:
        digest = _one_of(self.manifests[name], BY_DIGEST, pick)
        answer = self.ask(worker, "DELETE", manifest_path(digest, name))
        assert code_of(answer) == ((202, None) if digest in self.manifests[name] else (404, "MANIFEST_UNKNOWN"))
        self.manifests[name].discard(digest)
        for tag in [tag for tag, pointed in self.tags[name].items() if pointed == digest]:
            self._move(name, tag, None)

    @rule(worker=workers, name=names, pick=picks)
    def delete_blob(self, worker: int, name: str, pick: int) -> None:
        digest = _one_of(self.blobs[name], BLOBS, pick)
        answer = self.ask(worker, "DELETE", blob_path(digest, name))
        assert code_of(answer) == ((202, None) if digest in self.blobs[name] else (404, "BLOB_UNKNOWN"))
        self.blobs[name].discard(digest)

    @rule(worker=workers)
    def restart(self, worker: int) -> None:
        """A worker that comes back knows what the other one does."""
        self.run(self.workers[worker].stop())
        self.workers[worker] = self.run(start_mirror(self.config, slot=worker))

    def _move(self, name: str, tag: str, digest: str | None) -> None:
        if self.tags[name].get(tag) == digest:
            return
        if digest is None:
            del self.tags[name][tag]
        else:
            self.tags[name][tag] = digest
        self.moves.setdefault((name, tag), []).append(digest)

    # ---- what only looks ----

    @rule(worker=workers, name=names, pick=picks, method=st.sampled_from(["GET", "HEAD"]))
    def read_tag(self, worker: int, name: str, pick: int, method: str) -> None:
        tag = _one_of(self.tags[name], TAGS, pick)
        self._is(self.ask(worker, method, manifest_path(tag, name)), method, self.tags[name].get(tag))

    @rule(worker=workers, name=names, pick=picks, method=st.sampled_from(["GET", "HEAD"]))
    def read_manifest(self, worker: int, name: str, pick: int, method: str) -> None:
        digest = _one_of(self.manifests[name], BY_DIGEST, pick)
        here = digest if digest in self.manifests[name] else None
        self._is(self.ask(worker, method, manifest_path(digest, name)), method, here)

    @rule(worker=workers, name=names, pick=picks)
    def read_blob(self, worker: int, name: str, pick: int) -> None:
        digest = _one_of(self.blobs[name], BLOBS, pick)
        answer = self.ask(worker, "GET", blob_path(digest, name))
        if digest in self.blobs[name]:
            assert (answer.status, answer.body) == (200, BLOBS[digest])
        else:
            assert code_of(answer) == (404, "BLOB_UNKNOWN")

    def _is(self, answer: Answer, method: str, digest: str | None) -> None:
        if digest is None:
            assert answer.status == 404
            return
        made = BY_DIGEST[digest]
        assert answer.status == 200
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["Content-Type"] == made.media_type
        assert answer.body == (made.raw if method == "GET" else b"")

    @rule(worker=workers, name=names, n=pages_of)
    def list_tags(self, worker: int, name: str, n: int | None) -> None:
        self.run(self._tags(worker, name, n))

    @rule(worker=workers, name=names, pick=picks, kind=st.sampled_from([None, SBOM, CONFIG]), n=pages_of)
    def list_referrers(self, worker: int, name: str, pick: int, kind: str | None, n: int | None) -> None:
        subjects = {subject for digest in self.manifests[name] if (subject := _subject(digest))}
        digest = _one_of(subjects, BY_DIGEST, pick)
        self.run(self._referrers(worker, name, digest, kind, n))

    @rule(worker=workers, n=pages_of)
    def list_repositories(self, worker: int, n: int | None) -> None:
        self.run(self._catalog(worker, n))

    @rule(worker=workers, name=names, tag=tags, n=pages_of)
    def list_history(self, worker: int, name: str, tag: str, n: int | None) -> None:
        self.run(self._history(worker, name, tag, n))

    async def _tags(self, worker: int, name: str, n: int | None = None) -> None:
        path = f"/v2/{name}/tags/list"
        if self._exists(name):
            found = await self._list(worker, path, n, "tags")
            assert found == sorted(self.tags[name])
        else:
            assert code_of(await self.workers[worker].get(path)) == (404, "NAME_UNKNOWN")

    async def _referrers(self, worker: int, name: str, digest: str, kind: str | None, n: int | None) -> None:
        everything = [listed(one) for one in sorted(self.manifests[name]) if _subject(one) == digest]
        wanted = [entry for entry in everything if kind is None or entry.get("artifactType") == kind]
        query = "" if kind is None else f"artifactType={kind.replace('+', '%2B')}"
        assert await self._list(worker, f"/v2/{name}/referrers/{digest}", n, "manifests", query) == wanted

    async def _catalog(self, worker: int, n: int | None = None) -> None:
        wanted = [name for name in NAMES if self._exists(name)]
        assert await self._list(worker, "/v2/_catalog", n, "repositories") == wanted

    async def _history(self, worker: int, name: str, tag: str, n: int | None = None) -> None:
        path = f"/v2/{name}/_mirror/tags/history"
        moves = self.moves.get((name, tag))
        if moves is None:
            assert code_of(await self.workers[worker].get(f"{path}?tag={tag}")) == (404, "MANIFEST_UNKNOWN")
        else:
            found = await self._list(worker, path, n, "history", f"tag={tag}")
            assert [move["digest"] for move in found] == moves[::-1]

    async def _list(self, worker: int, path: str, n: int | None, field: str, query: str = "") -> list[Any]:
        parameters = "&".join(filter(None, (query, f"n={n}" if n else "")))
        found = await pages(self.workers[worker], f"{path}?{parameters}", field)
        assert n is None or all(len(page) == n for page in found[:-1])
        return [entry for page in found for entry in page]

    def _exists(self, name: str) -> bool:
        return bool(self.blobs[name] or self.manifests[name])

    # ---- what always holds ----

    @invariant()
    def every_file_has_a_row_and_every_row_a_file(self) -> None:
        assert kept(self.root) == set().union(*self.blobs.values(), *self.manifests.values())
        for folder in ("sha256", "sha512", "uploads"):
            assert not list((self.root / "ingest" / folder).iterdir())

    async def _everything(self) -> None:
        """Compare all there is, at both workers."""
        for worker, mirror in enumerate(self.workers):
            await self._catalog(worker)
            for name in NAMES:
                await self._tags(worker, name)
                for tag in TAGS:
                    await self._history(worker, name, tag)
                    self._is(await mirror.get(manifest_path(tag, name)), "GET", self.tags[name].get(tag))
                for digest in BY_DIGEST:
                    here = digest if digest in self.manifests[name] else None
                    self._is(await mirror.get(manifest_path(digest, name)), "GET", here)
                    await self._referrers(worker, name, digest, None, None)
                for digest, data in BLOBS.items():
                    answer = await mirror.get(blob_path(digest, name))
                    assert answer.status == (200 if digest in self.blobs[name] else 404)
                    assert answer.status == 404 or answer.body == data


def _subject(digest: str) -> str | None:
    found: str | None = about(digest).get("subject", {}).get("digest")
    return found


def _one_of(there: Iterable[str], possible: Iterable[str], pick: int) -> str:
    some = sorted(there) if pick % 6 else []
    return (some or sorted(possible))[pick // 6 % len(some or list(possible))]


def test_whatever_is_done_in_whatever_order() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Registry,
        settings=settings(
            max_examples=30,
            stateful_step_count=50,
            derandomize=True,
            phases=[Phase.generate],  # a failure at once: each step of making it smaller starts two workers
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
