"""What answers are held against: each function returns quietly, or raises ``Failed`` with what was expected and got."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from mirror.conformance.case import Failed
from mirror.conformance.client import Answer
from mirror.conformance.content import matches

CODES = frozenset(
    (
        *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
        *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
        *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
    )
)
LEGACY_CODES = frozenset(("TAG_INVALID", "MANIFEST_UNVERIFIED"))
"""Codes of the older protocol that the specification lets clients meet."""


def failed(answer: Answer, expected: str, got: str) -> Failed:
    """Return the failure this answer shows."""
    return Failed(expected=f"{expected} ({answer.asked})", got=got)


def status(answer: Answer, *allowed: int) -> None:
    """Demand one of these statuses."""
    if answer.status not in allowed:
        raise failed(answer, "status " + " or ".join(map(str, allowed)), f"status {answer.status}{_why(answer)}")


def header(answer: Answer, name: str) -> str:
    """Demand a header, and return its value."""
    value = answer.header(name)
    if not value:
        raise failed(answer, f"a {name} header", "none")
    return value


def same(answer: Answer, data: bytes | None, digest: str) -> None:
    """Demand 200 with exactly these bytes; with ``data`` None, with bytes of this digest."""
    status(answer, 200)
    whole_body(answer, data, digest)


def whole_body(answer: Answer, data: bytes | None, digest: str) -> None:
    """Demand these bytes, whatever the status."""
    if data is not None and answer.body != data:
        raise failed(answer, f"the {len(data)} bytes of {digest}", f"{len(answer.body)} other bytes")
    if data is None and not matches(answer.body, digest):
        raise failed(answer, f"the bytes of {digest}", f"{len(answer.body)} bytes with another digest")


def digest_header(answer: Answer, data: bytes, name: str = "Docker-Content-Digest") -> None:
    """Demand that the digest header, where there is one, is a digest of these bytes."""
    value = answer.header(name)
    if value is not None and not matches(data, value):
        raise failed(answer, f"{name} to be a digest of the content", repr(value))


def refused(answer: Answer, *allowed: int) -> None:
    """Demand one of these statuses (none given: any 4xx), with a body that is compliant."""
    if allowed:
        status(answer, *allowed)
    elif not 400 <= answer.status < 500:
        raise failed(answer, "a refusal: status 4xx", f"status {answer.status}{_why(answer)}")
    error_body(answer)


def error_body(answer: Answer) -> list[dict[str, Any]]:
    """Return the errors of a 4xx body; demand the specification's format of it when it is JSON."""
    value = json_of(answer)
    if value is None:
        return []
    if not isinstance(value, dict) or not isinstance(value.get("errors"), list):
        raise failed(answer, 'a JSON error body {"errors": […]}', _short(value))
    for error in value["errors"]:
        if not isinstance(error, dict) or not isinstance(error.get("code"), str):
            raise failed(answer, 'errors that have a "code"', _short(error))
    found: list[dict[str, Any]] = value["errors"]
    return found


def json_of(answer: Answer) -> Any:
    """Return the JSON of an answer, None when its body is something else."""
    text = answer.body.strip()
    claims = "json" in answer.content_type
    if not text or not (claims or text.startswith(b"{")):
        return None
    try:
        return json.loads(text)
    except ValueError:
        if claims:
            raise failed(answer, "JSON, as Content-Type says", _short(text.decode(errors="replace"))) from None
        return None


def json_object(answer: Answer) -> dict[str, Any]:
    """Demand 200 with a JSON object, and return it."""
    status(answer, 200)
    try:
        value = json.loads(answer.body)
    except ValueError:
        raise failed(answer, "a JSON body", _short(answer.body.decode(errors="replace"))) from None
    if not isinstance(value, dict):
        raise failed(answer, "a JSON object", _short(value))
    return value


def uploaded(answer: Answer, field: str = "Range") -> int:
    """Demand ``Range: 0-<last>`` of an upload, and return the last byte's place."""
    value = header(answer, field)
    found = re.fullmatch(r"(?:bytes=)?0-(\d+)", value.strip())
    if not found or value.startswith("bytes="):
        raise failed(answer, f"{field}: 0-<end-of-range>", repr(value))
    return int(found[1])


def one_of(names: Iterable[str]) -> str:
    """Return a list for a message."""
    return ", ".join(sorted(names)) or "none"


def _why(answer: Answer) -> str:
    """Return the codes and messages of an error body, for a message."""
    try:
        errors = error_body(answer) if answer.status >= 400 else []
    except Failed:
        return ""
    said = "; ".join(f"{error['code']}: {error.get('message', '')}" for error in errors)
    return f" ({said[:200]})" if said else ""


def _short(value: Any) -> str:
    return repr(value)[:160]
