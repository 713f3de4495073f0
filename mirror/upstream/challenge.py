"""What a registry answers when it wants to know who asks: ``WWW-Authenticate`` (RFC 9110 section 11)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))', re.DOTALL)
_SCHEME = re.compile(_TOKEN)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|\Z))")
_SPACE = re.compile(r"[\s,]*")
_BLANK = re.compile(r"[ \t]*")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate. scheme: in lower case; parameters: by name in lower case."""

    scheme: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        return self.parameters.get("realm", "")

    @property
    def service(self) -> str:
        return self.parameters.get("service", "")


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read all challenges of all ``WWW-Authenticate`` lines, in order; what cannot be read is left out."""
    return [challenge for header in headers for challenge in _parse(header[:8192])]


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the challenge to answer: Bearer before Basic, None when there is neither."""
    found = list(challenges)
    for scheme in ("bearer", "basic"):
        for challenge in found:
            if challenge.scheme == scheme and (scheme == "basic" or challenge.realm):
                return challenge
    return None


def _parse(text: str) -> list[Challenge]:
    found: list[Challenge] = []
    at = 0
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        scheme = _SCHEME.match(text, at)
        if not scheme:
            return found
        challenge = Challenge(scheme[0].lower())
        found.append(challenge)
        at = _BLANK.match(text, scheme.end()).end()  # type: ignore[union-attr]
        if (token68 := _TOKEN68.match(text, at)) and at > scheme.end():
            at = token68.end()
            continue
        while parameter := _PARAMETER.match(text, at):
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            challenge.parameters.setdefault(parameter[1].lower(), value)
            at = _SPACE.match(text, parameter.end()).end()  # type: ignore[union-attr]
