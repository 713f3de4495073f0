"""Which mirror a pull goes through: the one that is named, the service that has the root, or one of our own.

A root has one owner. When nobody has it, the application runs in this process for as long as it takes. When somebody
has, it is asked where the configuration says that it listens, and has to show that it is on this very root: another
mirror may listen there, while the owner is another pull.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mirror.config import Config, Listener, load_config
from mirror.prefetch import Login, Refused, Service, Trust, Unreachable, fingerprint
from mirror.server.alone import serve_alone
from mirror.server.owner import RootInUse, take_root
from mirror.wiring import build_app, build_proof
from mirror.worker import StartupError

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Listening at all addresses → one of them to ask at."""


@asynccontextmanager
async def named(url: str, login: Login | None, tls: Trust) -> AsyncIterator[tuple[Service, str]]:
    """Give the mirror at a URL, and what to call it."""
    async with Service(url, login=login, tls=tls) as service:
        yield service, f"through {service.url}"


@asynccontextmanager
async def found(config_file: Path | None, root: str | None, login: Login | None) -> AsyncIterator[tuple[Service, str]]:
    """Give the service that has the root, or one of our own when nobody has it; and what to call it.

    Raises: ConfigError; StartupError when the root cannot be used, or its owner cannot be asked.
    """
    config = await asyncio.to_thread(load_config, config_file, {"storage.root": root})
    folder = config.storage.root.absolute()
    try:
        owned = await asyncio.to_thread(take_root, folder)
    except RootInUse as taken:
        async with await _serving(config, login, taken.holder) as service:
            yield service, f"through {service.url}, which serves {folder}"
        return
    try:
        async with (
            serve_alone(config, build_app) as alone,
            Service(alone.url, headers=alone.headers) as service,
        ):
            yield service, f"into {folder}, which no service has"
    finally:
        os.close(owned)


async def _serving(config: Config, login: Login | None, holder: str) -> Service:
    """Return the service that has the root. holder: who owns it, in words. Raises: StartupError."""
    given_here = await asyncio.to_thread(build_proof, config.storage.root)
    tried = []
    for listen in config.listen:
        address = listen.address
        if not address.port:
            continue
        host = _ANY.get(address.host, address.host)
        url = f"{listen.scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"
        tls = await asyncio.to_thread(_own_certificate, listen)
        try:
            async with Service(url, login=login, tls=tls) as service:
                token = await service.token()
        except Unreachable as error:
            tried.append(str(error))
        except Refused as error:
            tried.append(f"{url} answers {error}")
        else:
            if given_here(token):
                return Service(url, login=login, tls=tls)
            tried.append(f"{url} is another mirror")
    why = "; ".join(tried) or "its configuration says no port"
    raise StartupError(
        f"the folder {config.storage.root.absolute()} is in use by {holder}, which cannot be asked: {why}. If that is "
        "another pull, wait until it is done; if it is a service, say where it listens by --url"
    )


def _own_certificate(listen: Listener) -> Trust:
    """Return how to tell the configured service: by its very certificate, whatever names are in it. Blocks."""
    if listen.tls is None:
        return True
    try:
        return fingerprint(listen.tls.certificate.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"tls: cannot read {listen.tls.certificate}: {error}") from error
