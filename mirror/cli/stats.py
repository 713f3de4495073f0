"""``mirror stats``: what a root has, how much it is used, and how its upstreams are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirror.cli.mistakes import fail, load
from mirror.cli.options import root_options

if TYPE_CHECKING:
    from mirror.cli.looks import Screen
    from mirror.metadata.survey import By, ImageRow, Traffic
    from mirror.registry.stats import Statistics
    from mirror.upstream.about import About


@click.command(short_help="Show what is kept, how much it is used, and how upstreams are.")
@click.option(
    "--top",
    type=click.IntRange(0, 100_000),
    default=10,
    show_default=True,
    metavar="N",
    help="How many repositories and images to show.",
)
@click.option(
    "--by",
    type=click.Choice(["size", "pulls", "age"]),
    default="size",
    show_default=True,
    help="Which repositories: those with most bytes, most pulls, or longest not used.",
)
@root_options
def stats(top: int, by: By, config_file: Path | None, root: str | None, as_json: bool) -> None:
    """Show what a mirror keeps, how much it is used, and how its upstreams are.

    It looks at the folder, whether a service runs on it or not, and changes nothing.

    Content that several repositories have counts in each of them, once in their upstream, and once in the whole, so
    the parts can add up to more. A pull is a GET of a manifest: a client sends one for each image, besides the one for
    its platform, which is not counted; "mirror pull" is such a client. Pulls and hits are counted across restarts; what
    the last seconds before a kill -9 added is lost.

    Exit status: 0 when all went well, 1 when there are problems, 2 when the command cannot be understood.
    """
    # Imported here as it takes most of a second, which "mirror --help" need not wait for.
    from mirror.cli.looks import Screen
    from mirror.oci.errors import RegistryError
    from mirror.server.owner import owner_of
    from mirror.store.failures import disk_errors
    from mirror.wiring import build_stats

    config = load(config_file, {"storage.root": root}, as_json=as_json)
    try:
        found = build_stats(config).read(top=top, by=by)
        with disk_errors("looking at who has the folder"):
            owner = owner_of(config.storage.root)
    except RegistryError as error:
        fail([], str(error), as_json=as_json)
    if as_json:
        click.echo(json.dumps({"service": owner, **_document(found)}, indent=2))
    else:
        _show(Screen(), found, owner, by)


def _document(found: Statistics) -> dict[str, Any]:
    """Return all of it for JSON, with repositories and images under one name as well."""
    document = asdict(found)
    for key in ("repositories", "images"):
        for row, one in zip(document["content"][key], getattr(found.content, key), strict=True):
            row["name"] = str(one.repository)
    return document


def _show(screen: Screen, found: Statistics, owner: str | None, by: str) -> None:
    from mirror.cli.looks import age, moment, percent, plural, size

    content, now = found.content, found.at
    pulled, pushed = content.pulled, content.pushed
    screen.field("folder", f"{found.root}, {f'served by {owner}' if owner else 'no service has it'}")
    screen.field("disk", f"{size(found.disk.free)} free of {size(found.disk.size)}")
    whole = pulled.bytes + pushed.bytes - content.both_bytes
    both = f", {size(content.both_bytes)} of it in both, once on disk" if content.both_bytes else ""
    screen.field("kept", f"{size(whole)}: {size(pulled.bytes)} pulled through, {size(pushed.bytes)} pushed{both}")
    if found.downloads.count or found.uploads.count:
        screen.field(
            "on its way",
            f"{plural(found.downloads.count, 'download')} with {size(found.downloads.bytes)}, "
            f"{plural(found.uploads.count, 'upload')} with {size(found.uploads.bytes)}",
        )
    if pulled.newest is not None:
        screen.field("used", f"last {age(pulled.newest, now)} ago; least recently, {age(pulled.oldest, now)} ago")
    if pulled.unused:
        what = plural(pulled.unused, "manifest or blob", "manifests and blobs")
        screen.field("unused", f"{size(pulled.unused_bytes)} in {what} for {found.unused_days} days")
    if content.nobodys.bytes:
        screen.field("nobody's", f"{size(content.nobodys.bytes)} that no repository has any more")
    if found.counted is not None and (found.counted.hits or found.counted.misses):
        one = found.counted
        screen.field(
            "answers",
            f"{plural(one.hits + one.misses, 'answer')} since the service started ({moment(one.started_at)}), "
            f"{percent(one.hits, one.hits + one.misses)} from what was kept; "
            f"{size(one.served_bytes)} sent, {size(one.fetched_bytes)} fetched",
        )
    if content.counted_since is not None:
        since = moment(content.counted_since)
        screen.field("counted", f"pulls and hits since {since}; hits as a share of answers (of bytes)")
    _show_upstreams(screen, found)
    _show_repositories(screen, found, by)
    if content.images:
        screen.head("Images by pulls")
        rows = [[str(one.pulls), age(one.last, now), _called(one)] for one in content.images]
        screen.table([">pulls", ">last", "image"], rows)
    _show_conditions(screen, found)


def _show_upstreams(screen: Screen, found: Statistics) -> None:
    from mirror.cli.looks import age, size

    if not found.content.sources:
        return
    screen.head("Upstreams")
    rows = []
    for one in found.content.sources:
        rows.append(
            [
                one.source or "(our own)",
                f"{one.repositories:,}",
                f"{one.tags:,}",
                f"{one.amount.manifests:,}",
                f"{one.amount.blobs:,}",
                size(one.amount.bytes),
                f"{one.pulls:,}",
                _ratios(one.traffic),
                age(one.amount.newest, found.at),
            ]
        )
    heads = ["upstream", ">repos", ">tags", ">man.", ">blobs", ">bytes", ">pulls", ">hits", ">used"]
    screen.table(heads, rows)


def _show_repositories(screen: Screen, found: Statistics, by: str) -> None:
    from mirror.cli.looks import age, size

    if not found.content.repositories:
        return
    order = {"size": "by bytes", "pulls": "by pulls", "age": "longest not used"}[by]
    screen.head(f"Repositories, {order}")
    rows = []
    for one in found.content.repositories:
        rows.append(
            [
                size(one.amount.bytes),
                f"{one.tags:,}",
                f"{one.amount.manifests:,}",
                f"{one.amount.blobs:,}",
                f"{one.pulls:,}",
                _ratios(one.traffic),
                age(one.amount.newest, found.at),
                size(one.amount.unused_bytes),
                str(one.repository),
            ]
        )
    heads = [">bytes", ">tags", ">man.", ">blobs", ">pulls", ">hits", ">used", ">unused", "repository"]
    screen.table(heads, rows)


def _show_conditions(screen: Screen, found: Statistics) -> None:
    """Show what there is to say of upstreams: quotas that are known, pauses, hosts that are left alone."""
    lines = []
    for one in found.upstreams:
        lines += [f"{one.upstream}: {line}" for line in conditions(one.registry)]
        for at, mirror in enumerate(one.mirrors, 1):
            lines += [f"mirror {at} of {one.upstream}: {line}" for line in conditions(mirror)]
    screen.head("Quotas and troubles")
    for line in lines or ["none is known, and no host is left alone"]:
        screen.say(line)


def conditions(about: About) -> list[str]:
    """Return what there is to say of a registry now, in words."""
    from mirror.cli.looks import span

    lines = []
    for account in about.accounts:
        who = account.name or "anonymous"
        if account.remaining is not None:
            of = f" of {account.limit:,}" if account.limit is not None else ""
            lines.append(f"{account.remaining:,}{of} pulls left ({who})")
        if account.paused:
            lines.append(f"rests for another {span(account.paused)} ({who})")
    if about.resting is not None:
        rest = about.resting
        wait = f"asked again in {span(rest.wait)}" if rest.wait else "the next request finds out"
        lines.append(f"{about.url} {rest.cause} and has been left alone for {span(rest.since)}; {wait}")
    return lines


def _ratios(traffic: Traffic) -> str:
    """Return the share of answers, and of bytes, that came from what was kept."""
    from mirror.cli.looks import percent

    answers, nbytes = traffic.hits + traffic.misses, traffic.hit_bytes + traffic.miss_bytes
    return f"{percent(traffic.hits, answers)} ({percent(traffic.hit_bytes, nbytes)})" if answers else "-"


def _called(image: ImageRow) -> str:
    """Return what people call an image."""
    if image.tags:
        return f"{image.repository}:{', '.join(image.tags)}"
    was = f" (was {', '.join(image.before)})" if image.before else ""
    return f"{image.repository}@{image.digest}{was}"
