"""The description of the API, held against the application: what it names is what is answered, and as it says."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup

from mirror.api.app import _allowed
from mirror.api.openapi import document
from mirror.api.paths import Path as ApiPath
from mirror.api.paths import parse_path
from tests.service import Service, service

OPENAPI = "/v2/_mirror/openapi/openapi.json"
IMAGE = "application/vnd.oci.image.manifest.v1+json"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
load_all_checks()
CONFORMS = [
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
]
DIGEST = "sha256:" + "0" * 64
EXAMPLES = {"name": "a/b", "reference": "latest", "digest": DIGEST, "session": "1-2-3"}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# ---- the document itself ----


def test_it_is_openapi() -> None:
    validate(document())


def described() -> set[tuple[str, str]]:
    return {
        (path, method.upper())
        for path, item in document()["paths"].items()
        for method in item
        if method.upper() in METHODS
    }


def test_it_names_the_methods_that_are_answered() -> None:
    answered = {
        (path, method) for path in document()["paths"] for method in _allowed(parse_path(path.format(**EXAMPLES)))
    }
    assert described() == answered


def test_it_names_every_path_there_is() -> None:
    """A kind of path that is parsed and not described is found by its type."""
    parsed = {type(parse_path(path.format(**EXAMPLES))) for path in document()["paths"]}
    assert parsed == set(ApiPath.__args__)
    registry = {parse_path(path).what for path in document()["paths"] if "/_" in path and "{" not in path}
    assert registry == {"catalog", "discover", "openapi", "token"}


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document())))
    assert names == set(document()["components"]["schemas"])


# ---- the running server ----


@dataclass
class Registry:
    """A running registry with something in it. seen: the answers it gave, by operation."""

    running: Service
    blob: bytes = b"a blob of a few bytes"
    seen: set[tuple[str, str, int]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return self.running.url

    def fill(self) -> None:
        """Push a blob, two manifests of which one refers to the other, and tags."""
        for data in (self.blob, b"{}"):
            answer = self.ask("POST", f"/v2/one/blobs/uploads/?digest={digest_of(data)}", data)
            assert answer.status_code == 201, answer.text
        self.manifest = self.image({})
        self.artifact = self.image(
            {
                "artifactType": "application/x",
                "subject": {"mediaType": IMAGE, "digest": digest_of(self.manifest), "size": 1},
            }
        )
        for tag, raw in (("v1", self.manifest), ("v2", self.manifest), ("a1", self.artifact)):
            answer = self.ask("PUT", f"/v2/one/manifests/{tag}", raw, {"Content-Type": IMAGE})
            assert answer.status_code == 201, answer.text

    def image(self, more: dict[str, Any]) -> bytes:
        config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
        layer = {"mediaType": "application/x", "digest": digest_of(self.blob), "size": len(self.blob)}
        body = {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer], **more}
        return json.dumps(body).encode()

    def session(self) -> str:
        answer = self.ask("POST", "/v2/one/blobs/uploads/")
        return str(answer.headers["Docker-Upload-UUID"])

    def ask(self, method: str, path: str, data: Any = None, headers: Any = None) -> requests.Response:
        return requests.request(method, self.url + path, data=data, headers=headers, timeout=30)

    def note(self, method: str, path: str, status: int) -> None:
        self.seen.add((path, method, status))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("openapi")
    config = folder / "mirror.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "listen": "127.0.0.1:0",
                "workers": 1,
                "storage": {"root": str(folder / "root")},
                "upstreams": {},
                "local": ["**"],
                "shutdown_delay": 0,
            }
        )
    )
    with service(config) as running:
        filled = Registry(running)
        filled.fill()
        yield filled


schema = schemathesis.openapi.from_dict(document())
OPERATIONS = [result.ok() for result in schema.get_all_operations()]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: f"{operation.method} {operation.path}")
def test_whatever_is_asked_the_answer_is_described(operation: Any, registry: Registry) -> None:
    statuses: set[int] = set()
    known = {
        "name": ["one", "none"],
        "reference": ["v1", "v9", digest_of(registry.manifest), DIGEST],
        "digest": [digest_of(registry.blob), digest_of(registry.manifest), DIGEST],
    }
    known["session"] = [registry.session()] if "{session}" in operation.path else []

    @settings(
        max_examples=12,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), data=st.data())
    def check(case: Any, data: st.DataObject) -> None:
        # What is there is never found by chance.
        for name in case.path_parameters or {}:
            if known.get(name) and (operation.method != "delete" or name == "session") and data.draw(st.booleans()):
                case.path_parameters[name] = data.draw(st.sampled_from(known[name]))
        response = case.call(base_url=registry.url)
        registry.note(operation.method.upper(), operation.path, response.status_code)
        statuses.add(response.status_code)
        case.validate_response(response, checks=CONFORMS)

    check()
    assert statuses


def test_every_good_answer_is_as_described(registry: Registry) -> None:
    """What chance does not find: each status below 400 that is described was given, and was as described."""
    blob, manifest = digest_of(registry.blob), digest_of(registry.manifest)
    extra = registry.image({"annotations": {"n": "extra"}})
    one = {"name": "one"}
    session: dict[str, Any] = {"path_parameters": {**one, "session": registry.session()}}
    last: dict[str, Any] = {"path_parameters": {**one, "session": registry.session()}}
    tagged: dict[str, Any] = {"path_parameters": {**one, "reference": "v1"}}
    extras: dict[str, Any] = {"path_parameters": {**one, "reference": digest_of(extra)}}
    held: dict[str, Any] = {"path_parameters": {**one, "digest": blob}}
    binary = {"Content-Type": "application/octet-stream"}
    has_blob, has_manifest = ({"headers": {"If-None-Match": f'"{digest}"'}} for digest in (blob, manifest))
    etag = {"headers": {"If-None-Match": registry.ask("GET", OPENAPI).headers["ETag"]}}
    put = {"body": extra, "headers": {"Content-Type": IMAGE}, "media_type": "*/*"}
    requested: list[tuple[str, str, int, dict[str, Any]]] = [
        *[("GET", path, 200, {}) for path in ("/v2/", "/v2/_catalog", "/v2/_oci/ext/discover", OPENAPI)],
        *[("GET", path, 200, {}) for path in ("/healthz", "/readyz", "/metrics", "/v2/_mirror/auth/token")],
        ("GET", OPENAPI, 304, etag),
        ("POST", "/v2/_mirror/auth/token", 200, {"body": {"grant_type": "password", "username": "u", "password": "p"}}),
        ("GET", "/v2/{name}/manifests/{reference}", 200, tagged),
        ("GET", "/v2/{name}/manifests/{reference}", 304, {**tagged, **has_manifest}),
        ("PUT", "/v2/{name}/manifests/{reference}", 201, {**extras, **put, "query": {"tag": ["x", "y"]}}),
        ("GET", "/v2/{name}/blobs/{digest}", 200, held),
        ("GET", "/v2/{name}/blobs/{digest}", 206, {**held, "headers": {"Range": "bytes=1-3"}}),
        ("GET", "/v2/{name}/blobs/{digest}", 304, {**held, **has_blob}),
        ("GET", "/v2/{name}/tags/list", 200, {"path_parameters": one, "query": {"n": 1}}),
        ("GET", "/v2/{name}/referrers/{digest}", 200, {"path_parameters": {**one, "digest": manifest}}),
        ("GET", "/v2/{name}/_mirror/tags/history", 200, {"path_parameters": one, "query": {"tag": "v1"}}),
        ("GET", "/v2/{name}/_oci/ext/discover", 200, {"path_parameters": one}),
        ("POST", "/v2/{name}/blobs/uploads/", 202, {"path_parameters": one}),
        ("POST", "/v2/{name}/blobs/uploads/", 201, {"path_parameters": {"name": "two"}, "query": {"mount": blob}}),
        ("PATCH", "/v2/{name}/blobs/uploads/{session}", 202, {**session, "body": b"abc", "headers": binary}),
        ("GET", "/v2/{name}/blobs/uploads/{session}", 204, session),
        ("PUT", "/v2/{name}/blobs/uploads/{session}", 201, {**session, "query": {"digest": digest_of(b"abc")}}),
        ("DELETE", "/v2/{name}/blobs/uploads/{session}", 204, last),
        ("DELETE", "/v2/{name}/manifests/{reference}", 202, extras),
        ("DELETE", "/v2/{name}/blobs/{digest}", 202, {"path_parameters": {**one, "digest": digest_of(b"abc")}}),
    ]
    heads = [("HEAD", path, status, how) for method, path, status, how in requested if method == "GET"]
    heads = [head for head in heads if (head[1], "HEAD") in described()]
    got = set()
    # A session has to be looked at before it ends.
    for method, path, status, how in sorted(heads, key=lambda head: "{session}" in head[1]) + requested:
        case = schema[path][method].Case(**copy.deepcopy(how))
        response = case.call(base_url=registry.url)
        assert response.status_code == (200 if (method, status) == ("HEAD", 206) else status), (
            method,
            path,
            response.text,
        )
        case.validate_response(response, checks=CONFORMS)
        got.add((path, method, status))
    good = {
        (path, method.upper(), int(status))
        for path, item in document()["paths"].items()
        for method, operation in item.items()
        if method.upper() in METHODS
        for status in operation["responses"]
        if int(status) < 400
    }
    assert good - got == set()


def test_methods_that_are_not_described_are_refused(registry: Registry) -> None:
    for path in document()["paths"]:
        for method in (*METHODS, "OPTIONS", "PROPFIND"):
            if (path, method) not in described():
                answer = registry.ask(method, path.format(**EXAMPLES))
                assert answer.status_code == 405, (method, path)
                wanted = {method for other, method in described() if other == path}
                assert set(answer.headers["Allow"].split(", ")) == wanted


# ---- that the checks can fail ----


@pytest.mark.parametrize(
    ("path", "status", "change"),
    [
        ("/v2/{name}/tags/list", "200", {"content": {"text/html": {}}}),
        ("/v2/{name}/tags/list", "200", {"content": {"application/json": {"schema": {"required": ["colour"]}}}}),
        ("/v2/{name}/tags/list", "200", {"headers": {"X-Missing": {"required": True, "schema": {"type": "string"}}}}),
        ("/v2/{name}/tags/list", "200", None),
    ],
    ids=["content type", "schema", "header", "status"],
)
def test_an_answer_that_is_not_as_described_is_seen(
    registry: Registry, path: str, status: str, change: dict[str, Any] | None
) -> None:
    wrong = copy.deepcopy(document())
    responses = wrong["paths"][path]["get"]["responses"]
    if change is None:
        del responses[status]
    else:
        responses[status].update(change)
    case = schemathesis.openapi.from_dict(wrong)[path]["GET"].Case(path_parameters={"name": "one"})
    response = case.call(base_url=registry.url)
    with pytest.raises(FailureGroup):
        case.validate_response(response, checks=CONFORMS)


def test_it_is_served(registry: Registry) -> None:
    answer = registry.ask("GET", OPENAPI)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json() == json.loads(json.dumps(document()))
