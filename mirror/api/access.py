"""The gate's questions answered from a request; and the endpoint that gives tokens."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import parse_qs

from aiohttp import web

from mirror.access.credentials import Login
from mirror.access.gate import TOKEN_PATH, Gate
from mirror.access.identity import ANONYMOUS, Action, Principal
from mirror.api.caller import Caller, base_url, was_passed_on
from mirror.api.incoming import RequestBody, read_all
from mirror.oci.errors import Denied

__all__ = ["TOKEN_PATH", "admit", "token"]

_MAX_FORM = 16 * 1024
_FORM_WITHIN = 10.0
"""Seconds for the body of a token request."""
_READS = (Action.PULL, Action.LOGIN)


async def admit(request: web.Request, caller: Caller, gate: Gate, action: Action, scope: str | None) -> Principal:
    """Let a request through.

    caller: who sent it. scope: what a token for it would be asked for, ``repository:<name>:pull,push``; None for
    nothing in particular.
    Raises: Unauthorized (401 UNAUTHORIZED), Denied (403 DENIED), Busy (503 UNAVAILABLE).
    """
    if gate.admits_anybody(action):
        return ANONYMOUS
    if action not in _READS and not gate.has_users and "Origin" in request.headers:
        # A browser sends it, and no client of registries does: any page could have it write to this machine.
        raise Denied("web pages may not write to a registry without users; set access.htpasswd_file")
    writes = action not in _READS
    transport = request.transport if writes else None
    local = transport.get_extra_info("sockname") if transport is not None else None
    passed_on = writes and not caller.local and was_passed_on(request)
    _check_others(caller, gate)
    return await gate.admit(
        authorization=request.headers.get("Authorization"),
        client=caller.client,
        loopback=gate.through_loopback(local) and not passed_on,
        passed_on=passed_on,
        realm=base_url(request, caller) + caller.outside(TOKEN_PATH),
        action=action,
        scope=scope,
    )


async def token(request: web.Request, caller: Caller, gate: Gate) -> web.Response:
    """Give a token: GET with Basic or without a login, POST as of OAuth2 (RFC 6749 section 4.3).

    Source: "Token Authentication Specification" and "Oauth2 Token Authentication" of CNCF Distribution.
    Raises: Unauthorized (401 UNAUTHORIZED), Denied (403 DENIED), Busy (503 UNAVAILABLE); HTTPBadRequest.
    """
    _check_others(caller, gate)
    if request.method == "POST":
        issued = await gate.issue(login=await _posted_login(request), client=caller.client)
    else:
        issued = await gate.issue(authorization=request.headers.get("Authorization"), client=caller.client)
    body = {
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": issued.expires_in,
        "issued_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(issued.issued_at)),
    }
    return web.json_response(body, headers={"Cache-Control": "no-store"})


def _check_others(caller: Caller, gate: Gate) -> None:
    """Let nobody through who may be at an address that is not allowed. Raises: Denied (403 DENIED)."""
    for other in caller.others:
        gate.check_client(other)


async def _posted_login(request: web.Request) -> Login | None:
    if request.content_type != "application/x-www-form-urlencoded":
        raise _bad("a token request is a form: application/x-www-form-urlencoded")
    try:
        async with asyncio.timeout(_FORM_WITHIN):
            raw = await read_all(RequestBody(request), _MAX_FORM)
        if raw is None:
            raise _bad("the form is too large")
        form = parse_qs(raw.decode("ascii"), keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
    except TimeoutError:
        raise _bad("the form did not come in time") from None
    except ValueError:
        raise _bad("the form cannot be read") from None
    if (grant := form.get("grant_type", [""])[-1]) != "password":
        raise _bad("grant_type: expected password" + (", refresh tokens are not given" if "refresh" in grant else ""))
    name, password = form.get("username", [""])[-1], form.get("password", [""])[-1]
    return Login(name, password.encode()) if name else None


def _bad(reason: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(reason=reason)
