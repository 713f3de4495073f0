"""What the parent says of a configuration that has come into force: where it listens, and what is seldom meant."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain

from mirror.access.advice import advice
from mirror.config import Config
from mirror.server.doors import Door, certificates
from mirror.upstream.advice import warnings

log = logging.getLogger("mirror.server")


def facts(config: Config, workers: int) -> dict[str, object]:
    """Return what lines about the whole service carry along."""
    return {"root": str(config.storage.root.absolute()), "workers": workers, "upstreams": list(config.upstreams)}


class Saying:
    """Says it; of what was said of the configuration before, nothing again."""

    def __init__(self) -> None:
        self._places: set[str] = set()
        self._advised: set[str] = set()

    def where(self, doors: Sequence[Door], about: dict[str, object]) -> None:
        """Say which addresses are new, and which are no more. about: ``facts``."""
        places = [door.announcement for door in doors]
        for place in places:
            if place not in self._places:
                log.info("%s", place, extra={"fields": about})
        for place in sorted(self._places - set(places)):
            log.info("no longer %s", place)
        self._places = set(places)

    def advise(self, config: Config, doors: Sequence[Door]) -> None:
        """Warn of what is seldom meant; of certificates that expire every time."""
        lines = [
            *advice(config.access, config.upstreams, config.listen, config.trusted_proxies),
            *chain(*(warnings(name, upstream) for name, upstream in config.upstreams.items())),
        ]
        for line in lines:
            if line not in self._advised:
                log.warning("%s", line)
        self._advised = set(lines)
        for certificate in certificates(doors):
            if warning := certificate.warning():
                log.warning("%s", warning)
