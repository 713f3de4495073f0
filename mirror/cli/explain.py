"""``mirror explain``: how an image is understood, what is kept of it, and what a pull of it would do now."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirror.cli.mistakes import fail, load
from mirror.cli.options import root_options

if TYPE_CHECKING:
    from mirror.cli.looks import Screen
    from mirror.oci.manifest import Manifest
    from mirror.prefetch.platforms import Entry, Platform
    from mirror.registry.explained import Answer, Explained, Part, UpstreamOf


@click.command(short_help="Say what a mirror would do with an image.")
@click.argument("reference")
@click.option(
    "--platform",
    metavar="OS/ARCH[/VARIANT]",
    help="Platform a pull would be for. [default: this machine's]",
)
@click.option(
    "--ask", is_flag=True, help="Ask the upstream what the tag points at now: by HEAD, which counts as no pull."
)
@root_options
def explain(
    reference: str, platform: str | None, ask: bool, config_file: Path | None, root: str | None, as_json: bool
) -> None:
    """Say what a mirror would do with an image: which upstream it means and why, what is kept, what would be fetched.

    REFERENCE is an image as people write it: alpine, ghcr.io/owner/app:v1, name@sha256:…, local/app; with this
    mirror's own address before it, by names or the port it listens on, it is the path behind that.

    It looks at the folder, whether a service runs on it or not, and changes nothing. Without --ask nobody is asked.
    A service that was just told 404 says so for up to 10 s without asking again; that is not looked at.

    Exit status: 0 when it would be served or asked for, 1 when it would be refused or there are problems, 2 when the
    command cannot be understood.
    """
    # Imported here as it takes most of a second, which "mirror --help" need not wait for.
    from mirror.cli.looks import Screen
    from mirror.logs import setup_logging
    from mirror.oci.errors import RegistryError
    from mirror.prefetch import PlatformInvalid, parse_platform, this_machine
    from mirror.registry.asked import NotAnImage
    from mirror.wiring import build_explain

    try:
        wanted = ForPlatform(parse_platform(platform) if platform else this_machine())
    except PlatformInvalid as error:
        raise click.BadParameter(f"{error}.", param_hint="--platform") from error
    setup_logging(human=True, level=logging.CRITICAL)  # what the services would log is what is said here
    config = load(config_file, {"storage.root": root}, as_json=as_json)
    try:
        found = asyncio.run(build_explain(config).explain(reference, wanted, ask=ask))
    except NotAnImage as error:
        raise click.BadParameter(f"{error}.", param_hint="REFERENCE") from error
    except RegistryError as error:
        fail([], str(error), as_json=as_json)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        _show(Screen(), found)
    refused = found.answer.status is not None and found.answer.status >= 400
    if refused or (found.said is not None and found.said.problem is not None):
        sys.exit(1)


class ForPlatform:
    """What a node of a platform chooses (``registry.walk.Platforms``)."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def __str__(self) -> str:
        return str(self._platform)

    def listed(self, index: Manifest) -> list[Entry]:
        from mirror.prefetch.platforms import entries

        return entries(index)

    def choose(self, listed: Sequence[Entry]) -> list[Entry]:
        from mirror.prefetch.platforms import choose

        return choose(listed, self._platform)


def _show(screen: Screen, found: Explained) -> None:
    meant = found.meant
    screen.field("request", f"GET {found.request.path}" + (f" at {found.request.host}" if found.request.host else ""))
    if meant is None:
        screen.field("answer", f"{found.answer.status} {found.answer.code}: {found.answer.message}")
    else:
        of = f"upstream {meant.upstream}" if meant.upstream else "this registry itself"
        screen.field("means", f"{meant.repository} of {of}: {meant.why}")
        if meant.configured not in (None, meant.upstream):
            screen.field("", f'it is configured by the pattern "{meant.configured}"')
        if meant.official:
            screen.field("", "official images of Docker Hub are below library/")
    for note in found.notes:
        screen.field("note", note)
    if meant is None:
        return
    _show_rules(screen, found)
    _show_answer(screen, found)
    _show_tag(screen, found)
    if found.upstream is not None:
        _show_upstream(screen, found.upstream)
    _show_content(screen, found)
    _show_pull(screen, found)


def _show_rules(screen: Screen, found: Explained) -> None:
    for name, rule in (("by tag", found.by_tag), ("by digest", found.by_digest)):
        if rule is not None and found.meant is not None and found.meant.upstream is not None:
            why = f": {rule.rule}" if rule.rule else ": it has no rules"
            screen.field(name, f"{'allowed' if rule.allowed else 'denied'}{why}")
    screen.field("pulled by", found.who)
    if found.push is not None and (found.push.allowed or found.meant is None or found.meant.upstream is None):
        who = f"{found.push.who}" if found.push.allowed else f"nobody: {found.push.why}"
        screen.field("pushed by", who)


def _show_answer(screen: Screen, found: Explained) -> None:
    screen.field("answer", "the upstream is asked first" if found.answer.asks else _words(found.answer))
    if found.down is not None and found.answer.asks:
        screen.field("when down", _words(found.down))
    if found.said is not None:
        if found.said.problem is not None:
            screen.field("asked", found.said.problem)
        else:
            moved = {None: "", True: ": it moved", False: ": as it is kept"}[found.said.moved]
            screen.field("asked", f"it is {found.said.digest or 'there, but says no digest'} now{moved}")


def _words(answer: Answer) -> str:
    if answer.message is not None:
        return f"{answer.status} {answer.code}: {answer.message}"
    stale = f", with a warning: {answer.stale}" if answer.stale else ""
    return f"{answer.status}, from what is kept{stale}"


def _show_tag(screen: Screen, found: Explained) -> None:
    from mirror.cli.looks import moment, span

    tag, now = found.tag, time.time()
    if tag is None:
        return
    screen.field("tag", f"{tag.tag} is {tag.digest}")
    if tag.fresh_until is not None:
        until = f"until {moment(tag.fresh_until)}"
        state = f"for another {span(tag.fresh_until - now)}" if tag.fresh else f"not for {span(now - tag.fresh_until)}"
        stale = "for ever" if tag.stale_until is None else f"until {moment(tag.stale_until)}"
        screen.field("", f"fresh {until} ({state}); kept for outages {stale}")
    if tag.previous is not None:
        screen.field("", f"before that {tag.previous}, until all of the new one is here")
    if tag.trouble is not None:
        screen.field("", f"the last check failed: {tag.trouble}")
    for move in tag.history:
        screen.field("", f"{moment(move.at)}  {move.digest or 'deleted'} ({move.origin})")


def _show_upstream(screen: Screen, upstream: UpstreamOf) -> None:
    from mirror.cli.looks import size
    from mirror.cli.stats import conditions

    screen.head("Upstream")
    about = upstream.about
    screen.field("registry", f"{about.url}{', never asked: offline' if upstream.offline else ''}")
    for at, mirror in enumerate(upstream.mirrors, 1):
        for_tags = "tags and content by digest" if mirror.tags else "content by digest"
        screen.field(f"mirror {at}", f"{mirror.about.url}, asked before it for {for_tags}")
        for line in (*([_way(mirror.about.proxy)] if mirror.about.proxy else ()), *conditions(mirror.about)):
            screen.field("", line)
    if about.proxy:
        screen.field("", _way(about.proxy))
    screen.field("as", ", ".join(account.name or "nobody: no credentials" for account in about.accounts))
    caps = [f"{about.connections} requests at a time"] if about.connections is not None else []
    caps += [f"{size(about.rate)} a second"] if about.rate is not None else []
    if caps:
        screen.field("at most", ", ".join(caps))
    for line in conditions(about):
        screen.field("", line)


def _way(proxy: str) -> str:
    return f"through the proxy {proxy}"


def _show_content(screen: Screen, found: Explained) -> None:
    from mirror.cli.looks import size

    if not found.parts:
        return
    screen.head("Content")
    rows = []
    for part in found.parts:
        rows.append([part.kind, part.state, size(part.size), part.platform or "", _holds(part), part.digest])
    screen.table(["what", "is", ">bytes", "platform", "its blobs here", "digest"], rows)
    readers = found.readers
    if readers is not None:
        if readers.public:
            screen.say("fetched without credentials: any repository of an upstream may read it")
        elif readers.repositories:
            screen.say(f"may be read through {', '.join(readers.repositories)}")


def _holds(part: Part) -> str:
    from mirror.cli.looks import size

    if part.blobs is None:
        return ""
    return f"{part.blobs_kept} of {part.blobs}, {size(part.bytes_kept or 0)} of {size(part.bytes or 0)}"


def _show_pull(screen: Screen, found: Explained) -> None:
    from mirror.cli.looks import plural, size

    pull = found.pull
    if pull is None:
        return
    screen.head(f"A pull for {pull.platform}")
    asks = ["the tag, by HEAD"] if pull.for_tag else []
    asks += [f"{plural(pull.confirmations, 'part')} that are here, by HEAD"] if pull.confirmations else []
    if asks:
        screen.field("asks about", ", ".join(asks))
    if pull.known:
        what = f"{plural(pull.manifests, 'manifest')} and {plural(pull.blobs, 'blob')}, {size(pull.bytes)}"
        moved = "; more if the tag has moved" if pull.for_tag and found.said is None else ""
        screen.field("fetches", (what if pull.manifests or pull.blobs else "nothing") + moved)
    else:
        least = f"{plural(pull.manifests, 'manifest')}, and what is named there; of that nothing is known yet"
        screen.field("fetches", f"at least {least}")
    if found.upstream is not None:
        limited = any(account.limit is not None for account in found.upstream.about.accounts)
        against = "the pull quota" if limited else "a pull quota, if it has one"
        screen.field("counts", f"{plural(pull.counted, 'request')} against {against}")
        if not found.answer.asks and (pull.manifests or pull.blobs):
            screen.field("when down", "what it fetches cannot be had")
    if pull.problem is not None:
        screen.field("problem", pull.problem)
