"""Cases of listing tags: order, pages, links."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from mirror.conformance import expect
from mirror.conformance.case import Category, NotJudged, case
from mirror.conformance.client import Answer
from mirror.conformance.stage import Stage

DISCOVERY = Category.DISCOVERY
TAGS = "Listing Tags"
PAGES = 1000
"""Most pages that are followed."""


@case("tags-list", DISCOVERY, TAGS, "end-8a", must="1.0")
async def tags_list(stage: Stage) -> None:
    """The list of tags answers 200 with name and tags, and has every tag that was pushed, once."""
    pushed = await _pushed(stage)
    answer = await stage.get("tags", "list")
    value = expect.json_object(answer)
    if value.get("name") != stage.options.repository:
        raise expect.failed(answer, f'"name": "{stage.options.repository}"', repr(value.get("name")))
    tags = await _walk(stage, answer)
    if missing := set(pushed) - set(tags):
        raise expect.failed(answer, f"the tags {expect.one_of(pushed)}", f"none of {expect.one_of(missing)}")
    if len(set(tags)) != len(tags):
        raise expect.failed(answer, "each tag once", "some tags repeatedly")


@case("tags-order", DISCOVERY, TAGS, "end-8a", must="1.0")
async def tags_order(stage: Stage) -> None:
    """Tags are in lexical (case-insensitive) or ASCII order."""
    await _pushed(stage)
    answer = await stage.get("tags", "list")
    _ordered(answer, await _walk(stage, answer))


@case("tags-page", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_page(stage: Stage) -> None:
    """n=2 answers the first two tags; fewer only with a Link."""
    everything = await _everything(stage)
    answer = await stage.get("tags", "list", query={"n": "2"})
    _is_page(answer, everything[:2])


@case("tags-page-larger", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_page_larger(stage: Stage) -> None:
    """n greater than the number of tags answers all of them; fewer only with a Link."""
    everything = await _everything(stage)
    _is_page(await stage.get("tags", "list", query={"n": str(len(everything) + 10)}), everything)


@case("tags-page-order", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_page_order(stage: Stage) -> None:
    """The tags of a page are in order."""
    await _pushed(stage)
    for query in ({"n": "4"}, {"n": "4", "last": (await _everything(stage))[0]}):
        answer = await stage.get("tags", "list", query=query)
        _ordered(answer, _tags(answer))


@case("tags-page-zero", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_page_zero(stage: Stage) -> None:
    """n=0 answers an empty list without a Link."""
    await _pushed(stage)
    answer = await stage.get("tags", "list", query={"n": "0"})
    if tags := _tags(answer):
        raise expect.failed(answer, "no tags", expect.one_of(tags[:5]))
    if "Link" in answer.headers:
        raise expect.failed(answer, "no Link", repr(answer.headers["Link"]))


@case("tags-last", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_last(stage: Stage) -> None:
    """n and last answer the tags after last, without it."""
    everything = await _everything(stage)
    answer = await stage.get("tags", "list", query={"n": "2", "last": everything[0]})
    _is_page(answer, everything[1:3])


@case("tags-last-alone", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_last_alone(stage: Stage) -> None:
    """last without n answers all tags after it."""
    everything = await _everything(stage)
    place = len(everything) // 2
    _is_page(await stage.get("tags", "list", query={"last": everything[place]}), everything[place + 1 :])


@case("tags-last-of-all", DISCOVERY, TAGS, "end-8b", must="1.0")
async def tags_last_of_all(stage: Stage) -> None:
    """After the last tag there are none: 200 with an empty list."""
    everything = await _everything(stage)
    _is_page(await stage.get("tags", "list", query={"n": "5", "last": everything[-1]}), [])


@case("tags-link", DISCOVERY, TAGS, "end-8b", must="1.1")
async def tags_link(stage: Stage) -> None:
    """A Link, where there is one, has rel="next", and following the links gives every tag once."""
    everything = await _everything(stage)
    answer = await stage.get("tags", "list", query={"n": "2"})
    if "Link" not in answer.headers:
        stage.note("no Link is answered")
        return
    found = await _walk(stage, answer)
    if found != everything:
        raise expect.failed(answer, f"{len(everything)} tags by following Link", f"{len(found)}, or others")


@case("tags-unknown-repository", DISCOVERY, TAGS, "end-8a", should="1.0", negative=True)
async def tags_unknown_repository(stage: Stage) -> None:
    """Listing the tags of a repository that does not exist answers 404."""
    name = f"{stage.options.repository}/{stage.content.word('unknown')}"
    expect.refused(await stage.get("tags", "list", name=name), 404)


def next_link(answer: Answer) -> str | None:
    """Return the target of a Link; demand that it is rel="next" (RFC 5988). None when there is none."""
    lines = answer.headers.getall("Link", [])
    if not lines:
        return None
    for target, parameters in re.findall(r"<([^>]*)>((?:\s*;\s*[^,;]+)*)", ", ".join(lines)):
        if re.search(r';\s*rel\s*=\s*"?next"?\s*(?:;|$)', parameters, re.IGNORECASE):
            return str(target)
    raise expect.failed(answer, 'Link: <…>; rel="next"', repr(lines[0][:160]))


async def _pushed(stage: Stage) -> Sequence[str]:
    """Return tags that are there: pushed for this, or given."""

    async def make() -> tuple[str, ...]:
        if await stage.no_pushes():
            return tuple(target.tag for target in await stage.manifests() if target.tag)
        image, words = stage.content.image(), stage.content.word("")
        tags = [f"{start}{words}" for start in ("B", "a", "C", "_", "0", "b", "A")]
        await stage.put_document(image, *tags)
        return tuple(tags)

    return await stage.once("tags", make)


async def _everything(stage: Stage) -> list[str]:
    """Return all tags, three at least, in the order of the registry. Raises: NotJudged."""
    await _pushed(stage)
    tags = await _walk(stage, await stage.get("tags", "list"))
    if len(tags) < 3:
        raise NotJudged(f"paging takes three tags, the repository has {len(tags)}")
    return tags


async def _walk(stage: Stage, answer: Answer) -> list[str]:
    """Return the tags of an answer and of all that its Link leads to."""
    found = _tags(answer)
    seen = set()
    for _ in range(PAGES):
        target = next_link(answer)
        if target is None:
            return found
        url = stage.registry.absolute(target, answer.url)
        if url in seen:
            raise expect.failed(answer, "links that come to an end", "one that leads back")
        seen.add(url)
        path = urlsplit(url)
        answer = await stage.registry.ask("GET", f"{path.path}?{path.query}" if path.query else path.path)
        found += _tags(answer)
    raise NotJudged(f"the repository has more than {PAGES} pages of tags")


def _tags(answer: Answer) -> list[str]:
    """Demand 200 with a list of tags, and return it."""
    tags: Any = expect.json_object(answer).get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise expect.failed(answer, '"tags" to be a list of strings', repr(tags)[:160])
    return tags


def _is_page(answer: Answer, wanted: list[str]) -> None:
    """Demand these tags, or with a Link the first of them."""
    tags = _tags(answer)
    linked = next_link(answer) is not None
    if tags != wanted and not (linked and tags == wanted[: len(tags)]):
        raise expect.failed(answer, f"the tags {wanted[:10]}", str(tags[:10]))


def _ordered(answer: Answer, tags: list[str]) -> None:
    lower = [tag.lower() for tag in tags]
    if tags != sorted(tags) and lower != sorted(lower):
        raise expect.failed(answer, "tags in lexical or ASCII order", str(tags[:10]))
