"""What a credential helper says: ``docker-credential-<name> get``, a server in, a login out.

Nothing it writes is ever logged or quoted, as helpers print secrets when they fail too: only how it ended is told.
Source: github.com/docker/docker-credential-helpers, README ("Development").
"""

from __future__ import annotations

import json
from typing import Any

from mirror.upstream.logins import IdentityToken, Login, LoginFailed, Password
from mirror.upstream.program import Said, SaidTooMuch, TookTooLong, ask

TIME_LIMIT = 8.0
"""Seconds a helper may take: some ask a cloud; a client gives up at 20."""

ANSWER_LIMIT = 64 * 1024
"""Most that is taken of what a helper writes, in bytes."""

_TOKEN_USER = "<token>"
"""The user name that says that the secret is an identity token."""

_NOTHING = b"credentials not found"


async def get(name: str, server: str, *, setting: str) -> Login | None:
    """Return the login that a helper has for a server; None when it has none.

    name: what follows ``docker-credential-``. setting: the one that named it, for messages. Raises: LoginFailed.
    """
    program = f"docker-credential-{name}"
    try:
        said = await ask([program, "get"], server.encode(), limit=TIME_LIMIT, most=ANSWER_LIMIT)
    except FileNotFoundError as error:
        raise LoginFailed(
            f"the program {program} is not there; install it in the PATH of this service, or change {setting}"
        ) from error
    except OSError as error:
        raise LoginFailed(f"the program {program} cannot be run ({error.strerror}); check {setting}") from error
    except TookTooLong as error:
        raise LoginFailed(
            f"the program {program} did not answer within {TIME_LIMIT:g} s and was ended; {_by_hand(program, server)}"
        ) from error
    except SaidTooMuch as error:
        raise LoginFailed(
            f"the program {program} wrote more than {ANSWER_LIMIT} bytes and was ended; {_by_hand(program, server)}"
        ) from error
    if said.status:
        if _NOTHING in said.output.lower() or _NOTHING in said.errors.lower():
            return None
        raise LoginFailed(f"the program {program} failed ({_ending(said)}); {_by_hand(program, server)}")
    return _login(said.output, program, server)


def _by_hand(program: str, server: str) -> str:
    return f'as the user of this service, run "echo {server} | {program} get" to see why'


def _ending(said: Said) -> str:
    return f"signal {-said.status}" if said.status < 0 else f"exit status {said.status}"


def _login(raw: bytes, program: str, server: str) -> Login | None:
    try:
        answer: Any = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    user, secret = (answer.get("Username"), answer.get("Secret")) if isinstance(answer, dict) else (None, None)
    if not isinstance(user, str) or not isinstance(secret, str):
        raise LoginFailed(
            f"the program {program} answered something that is not JSON with Username and Secret; "
            f"{_by_hand(program, server)}"
        )
    if not secret:
        return None
    return IdentityToken(secret) if user == _TOKEN_USER else Password(user, secret)
