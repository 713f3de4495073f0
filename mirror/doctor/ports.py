"""The addresses to listen on: free, or held by the very service of this root, which is then asked how it is."""

from __future__ import annotations

import errno
import http.client
import ssl
from collections.abc import Sequence

from mirror.config import Listener
from mirror.doctor.case import Case
from mirror.doctor.finding import Finding, ok, problem, warning
from mirror.doctor.threads import in_thread
from mirror.oci.errors import StorageFailed
from mirror.prefetch import Refused, Service, Unreachable, fingerprint
from mirror.server import neighbours
from mirror.server.owner import owner_of
from mirror.server.sockets import reserve
from mirror.store.root import find_root
from mirror.wiring import build_proof
from mirror.worker import StartupError

PATIENCE = 5.0
"""Seconds that who listens there is given to answer."""
_LONGEST = 4096
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


async def look(case: Case) -> Sequence[Finding]:
    """Judge every address of the configuration."""
    holder = await in_thread(_holder, case)
    found = []
    for setting, listeners in (("listen", case.config.listen), ("admin_listen", case.config.admin_listen)):
        found += [await _of(case, setting, one, holder) for one in listeners]
    return found


async def _of(case: Case, setting: str, listener: Listener, holder: str | None) -> Finding:
    """Judge one address. holder: who has the root."""
    name, facts = f"{setting} {listener.address}", {"address": str(listener.address)}
    if not listener.address.port:
        return ok(name, "a free port is taken at each start", **facts)
    try:
        await in_thread(_try, listener)
    except StartupError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            return await _taken(case, name, listener, holder)
        said = str(error).partition(": ")[2]
        text, _, advice = said.partition("; ")
        return problem(
            name, f"cannot be listened on: {text}", advice or f"choose another address with {setting}", **facts
        )
    if holder is None:
        return ok(name, "free", **facts)
    return warning(
        name,
        f"free, although {holder} serves the root: it is starting, ends, or was started with other addresses",
        "start it anew with this configuration, or examine the one it was started with",
        **facts,
    )


def _try(listener: Listener) -> None:
    """Take the address for a moment. Raises: StartupError."""
    reserve(listener.address).close()


async def _taken(case: Case, name: str, listener: Listener, holder: str | None) -> Finding:
    """Judge an address that somebody has."""
    address = listener.address
    who = await in_thread(neighbours.listener, address.host, address.port)
    ours = holder is not None and (who == holder or await _is_on_root(case, listener))
    facts: dict[str, str | int | None] = {"address": str(address), "by": who}
    if not ours:
        advice = f"stop it, or choose another address with {name.partition(' ')[0]}"
        return problem(name, f"in use by {who or 'a process that cannot be seen from here'}", advice, **facts)
    if listener.tls is not None and listener.tls.client_ca is not None:
        text = f"held by {holder}, which serves the root; it asks for certificates, so it was not asked how it is"
        return ok(name, text, **facts)
    health, ready = [await in_thread(_ask, listener, path) for path in ("/healthz", "/readyz")]
    facts |= {"healthz": health, "readyz": ready}
    if health == 200 and ready == 200:
        return ok(name, f"held by {holder}, which serves the root; it is ready", **facts)
    if health == 200:
        text = f"held by {holder}, which serves the root; it is not ready (/readyz: {ready})"
        return warning(name, text, "it starts or ends; ask again, and look at its log if it stays so", **facts)
    return problem(
        name,
        f"held by {holder}, which serves the root and does not answer (/healthz: {health})",
        "look at its log, and start it anew",
        **facts,
    )


async def _is_on_root(case: Case, listener: Listener) -> bool:
    """Say whether who listens there shows a token that only a service of this root can make."""
    try:
        given_here = await in_thread(build_proof, case.root)
        pem = await in_thread(listener.tls.certificate.read_text) if listener.tls else ""
        async with Service(_url(listener), tls=fingerprint(pem) if pem else True) as service:
            return given_here(await service.token())
    except (StorageFailed, Unreachable, Refused, OSError, ValueError):
        return False


def _ask(listener: Listener, path: str) -> int | str:
    """Return the status that a path is answered with, or why there is no answer."""
    host = _ANY.get(listener.address.host, listener.address.host)
    connection: http.client.HTTPConnection
    if listener.tls is None:
        connection = http.client.HTTPConnection(host, listener.address.port, timeout=PATIENCE)
    else:
        context = ssl.create_default_context()
        # It is our own, known by the process that has the address; what it is called matters to clients only.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, listener.address.port, timeout=PATIENCE, context=context)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read(_LONGEST)
        return response.status
    except ssl.SSLError as error:
        return f"TLS: {error.reason or 'failed'}"
    except (OSError, http.client.HTTPException) as error:
        return getattr(error, "strerror", None) or type(error).__name__
    finally:
        connection.close()


def _url(listener: Listener) -> str:
    host = _ANY.get(listener.address.host, listener.address.host)
    return f"{listener.scheme}://{f'[{host}]' if ':' in host else host}:{listener.address.port}"


def _holder(case: Case) -> str | None:
    try:
        find_root(case.root)
        return owner_of(case.root)
    except (OSError, StorageFailed):
        return None
