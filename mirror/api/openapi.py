"""The description of the API in OpenAPI 3.1: every endpoint, what it takes and each answer it gives.

A repository name may have slashes, which no path template can say: ``{name}`` stands for all of it, unescaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from typing import Any

from aiohttp import web

from mirror import __version__
from mirror.oci.errors import ErrorCode
from mirror.oci.manifest import OCI_INDEX

Json = dict[str, Any]

_NAME = r"^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$"
_TAG = r"^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$"
_DIGEST = r"^(?:sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$"
_REFERENCE = rf"{_TAG}|{_DIGEST}"
_BYTES = "application/octet-stream"

_ERRORS = {
    "400": "What was asked cannot be understood, or is not what its digest, size or type says.",
    "401": "A login is needed, or the one given is wrong.",
    "403": "Who asks may not, or nobody may pull this; or our own credentials were refused by the upstream.",
    "404": "It is not here, nor at the upstream.",
    "405": "This is not done here: by configuration, or for this kind of repository.",
    "409": "Another request is sending to this session.",
    "412": "If-Match or If-None-Match does not hold.",
    "413": "It is larger than is taken.",
    "416": "No byte of the range exists; or the chunk does not begin where the session stands.",
    "500": "The disk failed, or this server did.",
    "502": "The upstream could not be reached, or sent something wrong.",
    "503": "The upstream failed or limits us, or others are at it; try again.",
    "504": "The upstream did not answer in time.",
    "507": "The disk is full.",
    "508": "The request has been here before: a loop of mirrors.",
}
_READ = ("400", "401", "403", "404", "405", "500", "502", "503", "504", "507", "508")
_WRITE = ("400", "401", "403", "404", "405", "500", "503", "507", "508")
"""What a request may fail with; each adds its own."""


def _parameter(where: str, name: str, text: str, **schema: Any) -> Json:
    return {
        "name": name,
        "in": where,
        "required": where == "path",
        "description": text,
        "schema": {"type": "string"} | schema,
    }


def _query(name: str, text: str, **schema: Any) -> Json:
    return _parameter("query", name, text, **schema)


def _header(name: str, text: str, **schema: Any) -> Json:
    return _parameter("header", name, text, **schema)


_PATH_NAME = _parameter("path", "name", "The repository; may have slashes.", pattern=_NAME, maxLength=255)
_PATH_REFERENCE = _parameter("path", "reference", "A tag or a digest.", pattern=_REFERENCE)
_PATH_DIGEST = _parameter("path", "digest", "The digest of the content.", pattern=_DIGEST)
_PATH_SESSION = _parameter("path", "session", "The id of the upload session, as Location gave it.")
_NS = _query("ns", "The registry the client means: a configured upstream, or this one.")
_N = _query("n", "How many entries at most.", type="integer", minimum=0)
_LAST = _query("last", "The entry after which to begin.")
_RANGE = _header("Range", "Which bytes; several are answered as multipart/byteranges.")
_IF_NONE_MATCH = _header("If-None-Match", "Digests in quotes, or *: what the client has, or what must not be there.")
_IF_MATCH = _header("If-Match", "Digests in quotes, or *: what the tag or manifest must be for it to be changed.")
_CONTENT_RANGE = _header("Content-Range", "FIRST-LAST of the chunk, both inclusive.", pattern="^[0-9]+-[0-9]+$")

_HEADERS: dict[str, Json] = {
    "Docker-Content-Digest": {"pattern": _DIGEST},
    "Content-Length": {"type": "integer", "minimum": 0},
    "Content-Range": {},
    "ETag": {},
    "Location": {},
    "Link": {"description": 'The next page, rel="next".'},
    "Range": {"pattern": "^0-[0-9]+$", "description": "What the session has; of nothing 0-0."},
    "Docker-Upload-UUID": {},
    "OCI-Subject": {"pattern": _DIGEST},
    "OCI-Tag": {"description": "Each tag that was moved."},
    "OCI-Filters-Applied": {},
    "OCI-Namespace": {"description": "The ns that was asked."},
    "Cache-Status": {"description": "RFC 9211."},
    "Warning": {"description": "Why the answer is stale."},
    "WWW-Authenticate": {},
    "Allow": {},
    "Retry-After": {},
}
_REQUIRED = {
    "Docker-Content-Digest",
    "Location",
    "Docker-Upload-UUID",
    "WWW-Authenticate",
    "Allow",
}
"""Headers that an answer which lists them always has."""


def _answer(text: str, *headers: str, content: Mapping[str, Json] | None = None) -> Json:
    """Describe a response. A header that ends in "?" may be missing."""
    found: Json = {"description": text}
    if headers:
        found["headers"] = {
            name.rstrip("?"): {
                "schema": {"type": "string"} | _HEADERS[name.rstrip("?")],
                "required": name in _REQUIRED,
            }
            for name in headers
        }
    if content is not None:
        found["content"] = {kind: {"schema": schema} for kind, schema in content.items()}
    return found


def _failures(*statuses: str, head: bool = False) -> dict[str, Json]:
    found = {}
    for status in statuses:
        headers = {"401": ("WWW-Authenticate?",), "405": ("Allow?",), "416": ("Content-Range?", "Location?", "Range?")}
        answer = _answer(_ERRORS[status], *headers.get(status, ()), "Retry-After?")
        if not head:
            answer["content"] = {"application/json": {"schema": {"$ref": "#/components/schemas/Errors"}}}
        found[status] = answer
    return found


def _operation(
    text: str,
    answers: Mapping[str, Json],
    *,
    end: str = "",
    parameters: list[Json] | None = None,
    body: Mapping[str, Json] | None = None,
    needed: bool = False,
) -> Json:
    """Describe a method of a path. end: its numbers in the specification. body: media type → schema."""
    found: Json = {"summary": text, "responses": dict(answers), "parameters": parameters or []}
    if end:
        found["description"] = f"{end} of the distribution specification."
    if body is not None:
        found["requestBody"] = {"required": needed, "content": {kind: {"schema": each} for kind, each in body.items()}}
    return found


def _both(text: str, ok: Mapping[str, Json], *failures: str, **more: Any) -> Json:
    """Describe GET, and HEAD, which is the same without bodies."""
    head = {status: {key: value for key, value in answer.items() if key != "content"} for status, answer in ok.items()}
    return {
        "get": _operation(text, {**ok, **_failures(*failures)}, **more),
        "head": _operation(f"{text}: the headers alone.", {**head, **_failures(*failures, head=True)}, **more),
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_ANY: Json = {}
_KNOWN = ("Docker-Content-Digest", "ETag", "OCI-Namespace?", "Cache-Status?")
_LISTED = ("Link?", "OCI-Namespace?", "Cache-Status?", "Warning?")
_SESSION = ("Location", "Range", "Docker-Upload-UUID")


def _repositories() -> Json:
    manifest = {"*/*": _ANY}
    blob = {_BYTES: {"type": "string", "contentEncoding": "binary"}, "multipart/byteranges": _ANY}
    return {
        "/v2/{name}/manifests/{reference}": {
            "parameters": [_PATH_NAME, _PATH_REFERENCE, _NS],
            **_both(
                "A manifest, exactly as it was pushed or fetched.",
                {
                    "200": _answer("The manifest.", *_KNOWN, "Content-Length", "Warning?", content=manifest),
                    "304": _answer("The client has it.", *_KNOWN),
                },
                *_READ,
                end="end-3",
                parameters=[_IF_NONE_MATCH],
            ),
            "put": _operation(
                "Push a manifest, by tag, or by digest with any number of tags.",
                {
                    "201": _answer("It is durable.", "Location", "Docker-Content-Digest", "OCI-Subject?", "OCI-Tag?"),
                    **_failures(*_WRITE, "412", "413"),
                },
                end="end-7a, end-7b",
                parameters=[
                    _query("tag", "Tags to move to it; with a digest only.", type="array", items={"type": "string"}),
                    _IF_MATCH,
                    _IF_NONE_MATCH,
                ],
                body=manifest,
                needed=True,
            ),
            "delete": _operation(
                "Delete a tag, or a manifest with its tags; purge what was pulled through.",
                {"202": _answer("It is gone."), **_failures(*_WRITE, "412")},
                end="end-9",
                parameters=[_IF_MATCH],
            ),
        },
        "/v2/{name}/blobs/{digest}": {
            "parameters": [_PATH_NAME, _PATH_DIGEST, _NS],
            **_both(
                "A blob.",
                {
                    "200": _answer("All of it.", *_KNOWN, "Content-Length?", content={_BYTES: blob[_BYTES]}),
                    "206": _answer("Parts of it.", *_KNOWN, "Content-Range?", "Content-Length", content=blob),
                    "304": _answer("The client has it.", *_KNOWN),
                },
                *_READ,
                "416",
                end="end-2",
                parameters=[_RANGE, _header("If-Range", "Ranges only of this ETag."), _IF_NONE_MATCH],
            ),
            "delete": _operation(
                "Take a blob out of a repository; purge what was pulled through.",
                {"202": _answer("It is gone."), **_failures(*_WRITE)},
                end="end-10",
            ),
        },
        "/v2/{name}/blobs/uploads/": {
            "parameters": [_PATH_NAME, _NS],
            "post": _operation(
                "Begin an upload, push a whole blob at once, or mount one from another repository.",
                {
                    "201": _answer("The blob is durable, or mounted.", "Location", "Docker-Content-Digest"),
                    "202": _answer("A session has begun.", *_SESSION),
                    **_failures(*_WRITE, "409", "413"),
                },
                end="end-4a, end-4b, end-4c, end-11",
                parameters=[
                    _query("digest", "The digest of the body, which is the whole blob.", pattern=_DIGEST),
                    _query("digest-algorithm", "What the blob's digest will be of.", enum=["sha256", "sha512"]),
                    _query("mount", "The digest of a blob to mount.", pattern=_DIGEST),
                    _query("from", "The repository to mount it from."),
                ],
                body={_BYTES: _ANY},
            ),
        },
        "/v2/{name}/blobs/uploads/{session}": {
            "parameters": [_PATH_NAME, _PATH_SESSION, _NS],
            **_both(
                "Where an upload stands.",
                {"204": _answer("It goes on.", *_SESSION)},
                *_WRITE,
                end="end-13",
            ),
            "patch": _operation(
                "Add a chunk to an upload.",
                {"202": _answer("It was taken.", *_SESSION), **_failures(*_WRITE, "409", "413", "416")},
                end="end-5",
                parameters=[_CONTENT_RANGE],
                body={_BYTES: _ANY},
            ),
            "put": _operation(
                "Close an upload, with its last chunk if there is one.",
                {
                    "201": _answer("The blob is durable.", "Location", "Docker-Content-Digest"),
                    **_failures(*_WRITE, "409", "413", "416"),
                },
                end="end-6",
                parameters=[
                    {**_query("digest", "The digest of the whole blob.", pattern=_DIGEST), "required": True},
                    _CONTENT_RANGE,
                ],
                body={_BYTES: _ANY},
            ),
            "delete": _operation(
                "Cancel an upload.", {"204": _answer("It is gone."), **_failures(*_WRITE, "409")}, end="end-14"
            ),
        },
        "/v2/{name}/tags/list": {
            "parameters": [_PATH_NAME, _NS],
            **_both(
                "The tags of a repository in ASCII order.",
                {"200": _answer("A page.", *_LISTED, content={"application/json": _ref("Tags")})},
                *_READ,
                end="end-8a, end-8b",
                parameters=[_N, _LAST],
            ),
        },
        "/v2/{name}/referrers/{digest}": {
            "parameters": [_PATH_NAME, _PATH_DIGEST, _NS],
            **_both(
                "The manifests that have a subject.",
                {"200": _answer("A page.", *_LISTED, "OCI-Filters-Applied?", content={OCI_INDEX: _ref("Index")})},
                *_READ,
                end="end-12a, end-12b",
                parameters=[_query("artifactType", "Only those of this type."), _N, _LAST],
            ),
        },
        "/v2/{name}/_mirror/tags/history": {
            "parameters": [_PATH_NAME, _NS],
            **_both(
                "Where a tag has been, the newest first.",
                {"200": _answer("A page.", "Link?", content={"application/json": _ref("History")})},
                *_READ,
                parameters=[
                    {**_query("tag", "Which one.", pattern=_TAG), "required": True},
                    _N,
                    _query("before", "The number of the move before which to begin.", type="integer", minimum=0),
                ],
            ),
        },
        "/v2/{name}/_oci/ext/discover": {
            "parameters": [_PATH_NAME, _NS],
            **_both("The extensions there are.", _extensions(), *_READ),
        },
    }


def _registry() -> Json:
    text = {"text/plain": {"type": "string"}}
    token = {"200": _answer("A token.", content={"application/json": _ref("Token")})}
    form = {
        "type": "object",
        "properties": {
            "grant_type": {"const": "password"},
            "username": {"type": "string"},
            "password": {"type": "string"},
            "service": {"type": "string"},
            "scope": {"type": "string"},
        },
        "required": ["grant_type", "username", "password"],
    }
    return {
        "/v2/": {
            **_both(
                "Whether this is a registry, and whether a login is needed.",
                {"200": _answer("It is.", content={"application/json": {"type": "object"}})},
                *_READ,
                end="end-1",
                parameters=[_NS],
            )
        },
        "/v2/_catalog": {
            **_both(
                "The repositories in ASCII order, those pulled through with their upstream before them.",
                {"200": _answer("A page.", "Link?", content={"application/json": _ref("Catalog")})},
                *_READ,
                parameters=[_N, _LAST, _NS],
            )
        },
        "/v2/_oci/ext/discover": {**_both("The extensions there are.", _extensions(), *_READ, parameters=[_NS])},
        "/v2/_mirror/openapi/openapi.json": {
            **_both(
                "This description.",
                {
                    "200": _answer("It.", "ETag", content={"application/json": {"type": "object"}}),
                    "304": _answer("The client has it.", "ETag"),
                },
                *_READ,
                parameters=[_NS, _IF_NONE_MATCH],
            )
        },
        "/v2/_mirror/auth/token": {
            "get": _operation(
                "A token, for a login by Basic; without one it is good for pulling.",
                {**token, **_failures("400", "401", "403", "405", "500", "503")},
                parameters=[_query("service", "Ignored."), _query("scope", "Ignored.")],
            ),
            "post": _operation(
                "A token, by OAuth2.",
                {**token, **_failures("400", "401", "403", "405", "413", "500", "503")},
                body={"application/x-www-form-urlencoded": form},
                needed=True,
            ),
        },
        "/healthz": _both("Whether the process answers.", {"200": _answer("It does.", content=text)}, "405"),
        "/readyz": _both(
            "Whether to send it clients.",
            {"200": _answer("Do.", content=text), "503": _answer("It is stopping.", content=text)},
            "405",
        ),
        "/metrics": _both(
            "Counters of all workers, for Prometheus; not here when administrators have addresses of their own.",
            {"200": _answer("They.", content=text)},
            "404",
            "405",
        ),
    }


def _extensions() -> dict[str, Json]:
    return {"200": _answer("They.", content={"application/json": _ref("Extensions")})}


def _object(required: Mapping[str, Json], optional: Mapping[str, Json] | None = None) -> Json:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _list_of(items: Json) -> Json:
    return {"type": "array", "items": items}


_TEXT: Json = {"type": "string"}
_SCHEMAS: Json = {
    "Errors": _object(
        {
            "errors": _list_of(
                _object(
                    {"code": {"enum": [code.value for code in ErrorCode]}, "message": _TEXT},
                    {"detail": {"description": "Whatever helps."}},
                )
            )
        }
    ),
    "Tags": _object({"name": _TEXT, "tags": _list_of({"type": "string", "pattern": _TAG})}),
    "Catalog": _object({"repositories": _list_of(_TEXT)}),
    "Descriptor": _object(
        {"mediaType": _TEXT, "digest": {"type": "string", "pattern": _DIGEST}, "size": {"type": "integer"}},
        {"artifactType": _TEXT, "annotations": {"type": "object", "additionalProperties": _TEXT}},
    ),
    "Index": _object(
        {"schemaVersion": {"const": 2}, "mediaType": {"const": OCI_INDEX}, "manifests": _list_of(_ref("Descriptor"))}
    ),
    "History": _object(
        {
            "name": _TEXT,
            "tag": _TEXT,
            "history": _list_of(
                _object(
                    {
                        "digest": {"type": ["string", "null"], "description": "null: it was deleted."},
                        "time": {"type": "string", "format": "date-time"},
                        "origin": {"enum": ["pushed", "pulled"]},
                    }
                )
            ),
        }
    ),
    "Extensions": _object(
        {
            "extensions": _list_of(
                _object({"name": _TEXT, "url": _TEXT, "endpoints": _list_of(_TEXT)}, {"description": _TEXT})
            )
        }
    ),
    "Token": _object({"token": _TEXT, "access_token": _TEXT, "expires_in": {"type": "integer"}, "issued_at": _TEXT}),
}


@cache
def document() -> Json:
    """Return the description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mirror",
            "version": __version__,
            "description": "A pull-through caching mirror and OCI registry. A repository name may have slashes: they "
            "are sent as they are. Every answer has X-Request-Id and Docker-Distribution-Api-Version.",
        },
        "paths": {**_registry(), **_repositories()},
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "token": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"basic": []}, {"token": []}],
    }


@cache
def _encoded() -> tuple[bytes, str]:
    raw = json.dumps(document(), separators=(",", ":")).encode()
    return raw, f'"{sha256(raw).hexdigest()}"'


def get_openapi(request: web.Request) -> web.Response:
    """Answer ``/v2/_mirror/openapi/openapi.json``."""
    raw, etag = _encoded()
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    return web.Response(body=raw, content_type="application/json", headers={"ETag": etag})
