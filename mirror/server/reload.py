"""Reading the configuration again: what may not change while the service runs, and what is said of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mirror.config import Config, ConfigError
from mirror.server.owner import still_owned
from mirror.worker import StartupError

log = logging.getLogger("mirror.server")


class NotReloaded(Exception):
    """The configuration cannot be used. The message has every problem, in one line."""


def read_again(read: Callable[[], Config], now: Config, owned: int) -> Config:
    """Read the configuration. now: the one in force. owned: what ``take_root`` gave for it. Raises: NotReloaded."""
    with _one_line():
        config = read()
    was, wanted = now.storage.root.absolute(), config.storage.root.absolute()
    if was != wanted:
        raise NotReloaded(
            f"storage.root cannot change from {was} to {wanted} while the service runs; restart it for that, or set "
            "it back"
        )
    if not still_owned(wanted, owned):
        raise NotReloaded(
            f"storage.root {wanted} is no longer the folder the service was started with; put that back, or restart "
            "the service"
        )
    return config


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise NotReloaded("; ".join(str(problem).replace("\n", " ") for problem in error.problems)) from error
    except (StartupError, OSError) as error:
        raise NotReloaded(str(error)) from error
    except Exception as error:
        # Whatever is wrong with us, the service goes on.
        log.debug("reading the configuration failed", exc_info=True)
        raise NotReloaded(f"reading it failed, which should not happen ({error!r})") from error
