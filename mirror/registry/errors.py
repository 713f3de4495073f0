"""Errors that travel: from the process where an upstream failed to the others that wait for the same."""

from __future__ import annotations

from typing import Any

from mirror.oci import errors
from mirror.oci.errors import RegistryError, UpstreamError

_CLASSES: dict[str, type[RegistryError]] = {
    kind.__name__: kind
    for kind in (
        errors.NameUnknown,
        errors.ManifestUnknown,
        errors.BlobUnknown,
        errors.UpstreamUnreachable,
        errors.UpstreamFailed,
        errors.UpstreamTimeout,
        errors.UpstreamRateLimited,
        errors.UpstreamSpared,
        errors.UpstreamResting,
        errors.UpstreamBusy,
        errors.UpstreamOffline,
        errors.UpstreamDenied,
        errors.UpstreamTokenFailed,
        errors.UpstreamInvalid,
        errors.StorageFailed,
        errors.StorageFull,
    )
}


def reason_of(error: RegistryError) -> str:
    """Return why an upstream did not say something, as a label: one of few words."""
    match error:
        case errors.UpstreamSpared():
            return "quota"
        case UpstreamError():
            return type(error).__name__.removeprefix("Upstream").lower()
        case errors.Unknown():
            return "notfound"
        case _:
            return "storage"


def to_record(error: RegistryError) -> dict[str, Any]:
    """Write an error as what JSON can hold."""
    record: dict[str, Any] = {"kind": type(error).__name__, "message": error.message[:600]}
    if isinstance(error, UpstreamError):
        record |= {"upstream": error.upstream, "retry_after": error.retry_after, "brief": error.brief[:600]}
    return record


def from_record(record: dict[str, Any]) -> RegistryError:
    """Read what ``to_record`` wrote; a kind this version does not know becomes StorageFailed."""
    kind = _CLASSES.get(str(record.get("kind")), errors.StorageFailed)
    message = str(record.get("message", "failed"))
    if issubclass(kind, UpstreamError):
        upstream, brief = str(record.get("upstream", "")), record.get("brief")
        return kind(message, upstream=upstream, retry_after=record.get("retry_after"), brief=brief)
    return kind(message)
