"""Everything that can go wrong, by meaning; and the code and status each meaning has on the wire.

Modules raise the classes below and never pick a status. ``api/errors.py`` alone turns them into
responses, by the class attributes ``code`` and ``status``. 4xx answers use only the 14 codes of the
distribution specification ("Error Codes"); 5xx answers use ``UNAVAILABLE``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class ErrorCode(StrEnum):
    """The codes of the distribution specification, and ``UNAVAILABLE`` for every 5xx."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    UNAVAILABLE = "UNAVAILABLE"


class RegistryError(Exception):
    """Base of every error that reaches a client.

    message: what, which, and what to do; shown to clients, so never a secret.
    detail: anything JSON can hold, or None.
    """

    code: ClassVar[ErrorCode] = ErrorCode.UNAVAILABLE
    status: ClassVar[int] = 500

    def __init__(self, message: str, *, detail: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


# ---- what the client asked for is wrong, unknown or not allowed (4xx) ----


class NameInvalid(RegistryError):
    code, status = ErrorCode.NAME_INVALID, 400


class DigestInvalid(RegistryError):
    code, status = ErrorCode.DIGEST_INVALID, 400


class ManifestInvalid(RegistryError):
    code, status = ErrorCode.MANIFEST_INVALID, 400


class BlobUploadInvalid(RegistryError):
    code, status = ErrorCode.BLOB_UPLOAD_INVALID, 400


class SessionBusy(RegistryError):
    """Another request is sending to the upload session, and its client is alive."""

    code, status = ErrorCode.BLOB_UPLOAD_INVALID, 409


class ChunkOutOfOrder(RegistryError):
    """A chunk does not begin where the session stands. offset: bytes the session has. headers: what says so."""

    code, status = ErrorCode.BLOB_UPLOAD_INVALID, 416

    def __init__(self, message: str, *, offset: int) -> None:
        super().__init__(message)
        self.offset = offset
        self.headers: dict[str, str] = {}


class ParameterInvalid(RegistryError):
    """A parameter of the query cannot be understood."""

    code, status = ErrorCode.UNSUPPORTED, 400


class SizeInvalid(RegistryError):
    code, status = ErrorCode.SIZE_INVALID, 400


class BlobTooLarge(RegistryError):
    code, status = ErrorCode.SIZE_INVALID, 413


class ManifestTooLarge(RegistryError):
    code, status = ErrorCode.MANIFEST_INVALID, 413


class ManifestBlobUnknown(RegistryError):
    """A pushed manifest names blobs that are not in its repository."""

    code, status = ErrorCode.MANIFEST_BLOB_UNKNOWN, 400


class PreconditionFailed(RegistryError):
    """If-Match or If-None-Match does not hold (RFC 9110 section 13). The specification has no code of its own."""

    code, status = ErrorCode.DENIED, 412


class Unsupported(RegistryError):
    """What was asked is not done here: by configuration, or for this kind of repository."""

    code, status = ErrorCode.UNSUPPORTED, 405


class Unauthorized(RegistryError):
    """A login is needed, or the one given is wrong. challenge: what to log in by (WWW-Authenticate)."""

    code, status = ErrorCode.UNAUTHORIZED, 401

    def __init__(self, message: str, *, challenge: str | None = None) -> None:
        super().__init__(message)
        self.challenge = challenge


class Denied(RegistryError):
    """Who asks is known, and may not."""

    code, status = ErrorCode.DENIED, 403


class Unknown(RegistryError):
    """Base of the "it is not there" answers. A 404 is an answer, not an outage."""

    status = 404


class NameUnknown(Unknown):
    code = ErrorCode.NAME_UNKNOWN


class ManifestUnknown(Unknown):
    code = ErrorCode.MANIFEST_UNKNOWN


class BlobUnknown(Unknown):
    code = ErrorCode.BLOB_UNKNOWN


class BlobUploadUnknown(Unknown):
    code = ErrorCode.BLOB_UPLOAD_UNKNOWN


class PathUnknown(Unknown):
    """A path outside the API. The specification has no code for it; NAME_UNKNOWN is the nearest."""

    code = ErrorCode.NAME_UNKNOWN


class RangeUnsatisfiable(RegistryError):
    """No byte of the requested range exists (RFC 9110 section 15.5.17). ``size``: of the whole, in bytes."""

    code, status = ErrorCode.SIZE_INVALID, 416

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size


# ---- an upstream did not do its part; each knows which upstream it was ----


class UpstreamError(RegistryError):
    """Base of every failure of an upstream that is not the answer "unknown".

    With something kept, the kept content is served stale; with nothing, this goes to the client.
    upstream: its configured name. retry_after: seconds the upstream asked us to wait, or None. brief: what it did,
    without what that means for this client: for warnings, beside content that is kept.
    """

    status = 503

    def __init__(
        self, message: str, *, upstream: str, retry_after: int | None = None, brief: str | None = None
    ) -> None:
        super().__init__(message)
        self.upstream = upstream
        self.retry_after = retry_after
        self.brief = brief or message


class UpstreamUnreachable(UpstreamError):
    """Connection, DNS or TLS failed, or the address may not be dialled."""

    status = 502


class UpstreamFailed(UpstreamError):
    """The upstream answered 5xx, or its body broke off and could not be continued."""

    status = 503


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer within the time limit."""

    status = 504


class UpstreamRateLimited(UpstreamError):
    """The upstream answered 429. We answer 503: containerd repeats a 429 at once, a 503 makes it go on."""

    status = 503


class UpstreamSpared(UpstreamRateLimited):
    """What is left of its pull quota is not spent on what can be answered without it."""


class UpstreamResting(UpstreamError):
    """The upstream did not answer a moment ago and is left alone for a while: its breaker is open."""

    status = 503


class UpstreamBusy(UpstreamError):
    """As many requests to the upstream are under way as it may have, for as long as a client can wait."""

    status = 503


class UpstreamOffline(UpstreamError):
    """The upstream is never asked, by configuration."""

    status = 503


class UpstreamDenied(UpstreamError):
    """The upstream refused *our credentials* (401 or 403)."""

    code, status = ErrorCode.DENIED, 403


class UpstreamTokenFailed(UpstreamError):
    """No token could be had for our credentials: its endpoint failed, or may not be given them."""

    status = 503


class UpstreamInvalid(UpstreamError):
    """The upstream answered something wrong: bytes, length, digest, media type, garbage, too large."""

    status = 502


# ---- our own side ----


class StorageFailed(RegistryError):
    """The disk failed."""

    status = 500


class StorageFull(StorageFailed):
    """The disk is full."""

    status = 507


class ContentChanged(StorageFailed):
    """A file was rewritten while it was being sent: what was sent of it is void."""


class Busy(RegistryError):
    """Others are at it."""

    status = 503


class LoopDetected(RegistryError):
    """A request came back to us by way of other mirrors (RFC 5842 section 7.2)."""

    status = 508


class ShuttingDown(RegistryError):
    """This process is stopping."""

    status = 503
