"""The API as HTTP: which repository a request means, methods, errors, headers, and the signs of life."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.api import app
from tests.connection import Answer, Connection, connect
from tests.fake_upstream import FakeUpstream, Image, digest_of
from tests.harness import Mirror, make_config, mirror

MISSING = "sha256:" + "0" * 64
RAW = b'{"schemaVersion": 2, "manifests": []}'


@pytest.fixture
async def quay() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def one(tmp_path: Path, hub: FakeUpstream, quay: FakeUpstream) -> AsyncIterator[Mirror]:
    """A mirror of a Docker Hub, its default, and of a registry with a port in its name."""
    upstreams = {
        "docker.io": {"url": hub.url, "names": ["index.docker.io"]},
        "quay.example:8443": {"url": quay.url, "names": ["quay.alias"]},
    }
    async with mirror(make_config(tmp_path / "root", upstreams)) as running:
        yield running


@pytest.fixture
async def client(one: Mirror) -> AsyncIterator[Connection]:
    async with connect(one.url) as connection:
        yield connection


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every name that was looked up."""
    names: list[Any] = []
    real = socket.getaddrinfo

    def lookup(host: Any, *arguments: Any, **named: Any) -> Any:
        names.append(host)
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# ---- which repository is meant ----

HUB = [
    ("/v2/library/alpine/manifests/latest", {}),
    ("/v2/alpine/manifests/latest", {}),
    ("/v2/docker.io/library/alpine/manifests/latest", {}),
    ("/v2/docker.io/alpine/manifests/latest", {}),
    ("/v2/index.docker.io/library/alpine/manifests/latest", {}),
    ("/v2/registry-1.docker.io/library/alpine/manifests/latest", {}),
    ("/docker.io/v2/library/alpine/manifests/latest", {}),
    ("/docker.io/v2/alpine/manifests/latest", {}),
    ("/v2/library/alpine/manifests/latest?ns=docker.io", {}),
    ("/v2/library/alpine/manifests/latest?ns=registry-1.docker.io", {}),
    ("/v2/library/alpine/manifests/latest?x=1&ns=docker.io&ns=nowhere.example", {}),
    ("/v2/library/alpine/manifests/latest?ns=", {}),
    ("/v2/docker.io/library/alpine/manifests/latest?ns=docker.io", {}),
    ("/v2/library/alpine/manifests/latest", {"Host": "docker.io"}),
    ("/v2/library/alpine/manifests/latest", {"Host": "INDEX.docker.io:443"}),
    ("/v2/library/alpine/manifests/latest", {"Host": "somebody.example"}),
    ("/v2/library/alpine/manifests/latest?unknown=1", {}),
    ("/v2/library/%61lpine/manifests/latest", {}),
]
QUAY = [
    ("/v2/quay.example:8443/team/app/manifests/1", {}),
    ("/v2/quay.example%3A8443/team/app/manifests/1", {}),
    ("/v2/quay.alias/team/app/manifests/1", {}),
    ("/quay.example:8443/v2/team/app/manifests/1", {}),
    ("/v2/team/app/manifests/1?ns=quay.example%3A8443", {}),
    ("/v2/team/app/manifests/1?ns=quay.example:8443", {}),
    ("/v2/team/app/manifests/1", {"Host": "quay.example:8443"}),
    ("/v2/team/app/manifests/1?ns=quay.alias", {"Host": "docker.io"}),
]


@pytest.mark.parametrize(("target", "headers"), HUB)
async def test_these_mean_the_hub(
    client: Connection, hub: FakeUpstream, quay: FakeUpstream, target: str, headers: dict[str, str]
) -> None:
    image = hub.add_image("library/alpine", "latest")
    answer = await client.ask("GET", target, **headers)
    assert (answer.status, answer.body) == (200, image.raw)
    assert {request.path for request in hub.log} <= {
        "/v2/library/alpine/manifests/latest",
        f"/v2/library/alpine/manifests/{image.digest}",
    }
    assert hub.log
    assert quay.log == []


@pytest.mark.parametrize(("target", "headers"), QUAY)
async def test_these_mean_the_other(
    client: Connection, hub: FakeUpstream, quay: FakeUpstream, target: str, headers: dict[str, str]
) -> None:
    image = quay.add_image("team/app", "1")
    answer = await client.ask("GET", target, **headers)
    assert (answer.status, answer.body) == (200, image.raw)
    assert quay.log
    assert hub.log == []


STRANGERS = [
    "/v2/library/alpine/manifests/latest?ns=nowhere.example",
    "/v2/library/alpine/manifests/latest?ns=127.0.0.1",
    "/v2/library/alpine/manifests/latest?ns=docker.io.evil.example",
    "/v2/library/alpine/manifests/latest?ns=docker.io%2Fx",
    "/v2/library/alpine/manifests/latest?ns=docker.io%00",
    "/v2/library/alpine/manifests/latest?ns=http%3A%2F%2Fdocker.io",
    "/v2/local/x/manifests/latest?ns=nowhere.example",
    "/v2/nowhere.example/library/alpine/manifests/latest",
    "/v2/localhost/alpine/manifests/latest",
    "/v2/localhost:5000/alpine/manifests/latest",
    "/v2/127.0.0.1:1/alpine/manifests/latest",
    "/v2/quay.example/team/app/manifests/1",
    "/nowhere.example/v2/library/alpine/manifests/latest",
    "/hub/v2/library/alpine/manifests/latest",
    "/nowhere.example/v2/",
]


@pytest.mark.parametrize("target", STRANGERS)
async def test_strangers_are_neither_dialled_nor_looked_up(
    client: Connection, hub: FakeUpstream, quay: FakeUpstream, looked_up: list[Any], target: str
) -> None:
    hub.add_image("library/alpine", "latest")
    looked_up.clear()
    for method in ("GET", "HEAD"):
        answer = await client.ask(method, target)
        assert answer.status == 404
        if method == "GET":
            assert answer.code == "NAME_UNKNOWN"
    for other in (target.replace("manifests/latest", f"blobs/{MISSING}"), target.replace("manifests/1", "tags/list")):
        assert (await client.ask("GET", other)).code == "NAME_UNKNOWN"
    assert hub.log == quay.log == []
    assert looked_up == []


async def test_a_lookup_would_be_seen(tmp_path: Path, hub: FakeUpstream, looked_up: list[Any]) -> None:
    hub.add_image("library/alpine", "latest")
    upstreams = {"docker.io": {"url": f"http://localhost:{hub.port}"}}
    async with mirror(make_config(tmp_path / "root", upstreams)) as one:
        assert (await one.get("/v2/alpine/manifests/latest")).status == 200
    assert "localhost" in looked_up


@pytest.mark.parametrize(
    "name", ["blobs", "manifests/tags/list", "a/blobs", "a/manifests/b", "tags/list", "v2", "v2/v2"]
)
async def test_names_may_hold_the_words_of_the_api(client: Connection, quay: FakeUpstream, name: str) -> None:
    image = quay.add_image(name, "manifests")
    path = f"/v2/quay.alias/{name}"
    assert (await client.ask("GET", f"{path}/manifests/manifests")).body == image.raw
    assert (await client.ask("GET", f"{path}/manifests/{image.digest}")).body == image.raw
    blob = await client.ask("GET", f"{path}/blobs/{quote(image.layers[0], safe='')}")
    assert blob.body == image.blobs[image.layers[0]]
    assert json.loads((await client.ask("GET", f"{path}/tags/list")).body)["tags"] == ["manifests"]


@pytest.mark.parametrize(
    "target",
    [
        f"/v2/local/app/blobs/{MISSING}",
        "/v2/local/app/manifests/latest",
        f"/v2/local/app/manifests/{MISSING}",
        "/v2/local/a/b/c/manifests/latest",
        "/v2/local/app/tags/list",
    ],
)
async def test_our_own_names_never_go_upstream(
    client: Connection, hub: FakeUpstream, looked_up: list[Any], target: str
) -> None:
    hub.add_image("local/app", "latest")
    hub.add_image("local/a/b/c", "latest")
    looked_up.clear()
    for method in ("GET", "HEAD"):
        assert (await client.ask(method, target)).status == 404
    assert hub.log == []
    assert looked_up == []
    through = await client.ask("GET", "/v2/local/app/manifests/latest?ns=docker.io")
    assert through.status == 200, "whoever names the upstream means the upstream"


# ---- names, digests, tags that are none ----

BAD = [
    ("/v2/Upper/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a//b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2//a/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/../manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a/../../etc/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a/%2e%2e/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a%2Fb/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a%00b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/a%0d%0aX-Evil:%20y/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/%ff%fe/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/%c3%a4/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/" + "a" * 256 + "/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/" + "a/" * 2000 + "b/manifests/latest", 400, "NAME_INVALID"),
    ("/v2/A/tags/list", 400, "NAME_INVALID"),
    (f"/v2/A/blobs/{MISSING}", 400, "NAME_INVALID"),
    ("/docker.io/v2/A/tags/list", 400, "NAME_INVALID"),
    ("/v2/a/tags/list?ns=docker.io", 404, "NAME_UNKNOWN"),
    ("/v2/a/blobs/sha256:0", 400, "DIGEST_INVALID"),
    ("/v2/a/blobs/latest", 400, "DIGEST_INVALID"),
    ("/v2/a/blobs/", 400, "DIGEST_INVALID"),
    (f"/v2/a/blobs/{MISSING.upper()}", 400, "DIGEST_INVALID"),
    ("/v2/a/blobs/md5:" + "0" * 32, 400, "DIGEST_INVALID"),
    ("/v2/a/blobs/sha256:..%2f..%2f" + "0" * 58, 400, "DIGEST_INVALID"),
    ("/v2/a/manifests/sha256:0", 400, "DIGEST_INVALID"),
    ("/v2/a/manifests/-x", 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/", 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/..", 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/" + "x" * 129, 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/%0d%0aX-Evil%3a%20y", 400, "DIGEST_INVALID"),
    ("/v2/a/manifests/x%0d%0aX-Evil", 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/" + quote("ä"), 404, "MANIFEST_UNKNOWN"),
    ("/v2/a/manifests/x%2Fy", 404, "MANIFEST_UNKNOWN"),
    ("/", 404, "NAME_UNKNOWN"),
    ("/v1/x", 404, "NAME_UNKNOWN"),
    ("/v2/_catalogs", 404, "NAME_UNKNOWN"),
    ("/v2/a/referrers/sha256:0", 400, "DIGEST_INVALID"),
    ("/v2/local/a/referrers/latest", 400, "DIGEST_INVALID"),
    ("/v2/local/A/tags/list", 400, "NAME_INVALID"),
    ("/v2/local/nobody/tags/list", 404, "NAME_UNKNOWN"),
    ("/v2/local/a/_mirror/tags/history", 400, "UNSUPPORTED"),
    ("/v2/local/a/_mirror/tags/history?tag=never", 404, "MANIFEST_UNKNOWN"),
    ("/v2/_mirror/tags/history?tag=x", 400, "NAME_INVALID"),
    ("/v2/a", 404, "NAME_UNKNOWN"),
    ("//v2/a/manifests/x", 404, "NAME_UNKNOWN"),
]


@pytest.mark.parametrize(("target", "status", "code"), BAD)
async def test_what_cannot_be(client: Connection, hub: FakeUpstream, target: str, status: int, code: str) -> None:
    answer = await client.ask("GET", target)
    assert (answer.status, answer.code) == (status, code)
    assert "x-evil" not in answer.headers
    head = await client.ask("HEAD", target)
    assert (head.status, head.headers["content-length"]) == (status, answer.headers["content-length"])
    assert (await client.ask("GET", "/v2/")).body == b"{}", "and no body came with the HEAD"
    if code != "NAME_UNKNOWN":
        assert hub.log == []


async def test_a_name_of_bytes_that_are_no_text(client: Connection) -> None:
    answer = await client.ask("GET", "/v2/\udcff\udcfe/manifests/latest")
    assert answer.status == 400
    assert answer.code in ("NAME_INVALID", "UNSUPPORTED")  # told by the grammar of names, or not parsed at all


@pytest.mark.parametrize("target", ["*", "example.com:443", "http://docker.io/v2/library/alpine/manifests/latest"])
@pytest.mark.parametrize("method", ["GET", "OPTIONS", "CONNECT"])
async def test_request_lines_of_other_forms(one: Mirror, hub: FakeUpstream, method: str, target: str) -> None:
    """Whatever the line, the answer is one, and no page of a framework's own error."""
    hub.add_image("library/alpine", "latest")
    async with connect(one.url) as client:
        answer = await client.ask(method, target, Connection="close")
        assert answer.status in (200, 400, 404, 405)
        assert b"Traceback" not in answer.body
        assert b"<html" not in answer.body


# ---- methods ----


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
ENDPOINTS = [
    ("/v2/", "GET, HEAD"),
    ("/v2/_catalog", "GET, HEAD"),
    ("/v2/_oci/ext/discover", "GET, HEAD"),
    ("/v2/_mirror/auth/token", "GET, POST"),
    ("/v2/local/a/_oci/ext/discover", "GET, HEAD"),
    ("/v2/local/a/_mirror/tags/history", "GET, HEAD"),
    ("/v2/local/a/tags/list", "GET, HEAD"),
    ("/v2/a/tags/list", "GET, HEAD"),
    (f"/v2/local/a/referrers/{MISSING}", "GET, HEAD"),
    ("/v2/local/a/manifests/latest", "DELETE, GET, HEAD, PUT"),
    ("/v2/a/manifests/latest?ns=docker.io", "DELETE, GET, HEAD, PUT"),
    (f"/v2/local/a/blobs/{MISSING}", "DELETE, GET, HEAD"),
    ("/v2/local/a/blobs/uploads/", "POST"),
    ("/v2/local/a/blobs/uploads", "POST"),
    ("/v2/local/a/blobs/uploads/1-2", "DELETE, GET, HEAD, PATCH, PUT"),
    ("/healthz", "GET, HEAD"),
    ("/metrics", "GET, HEAD"),
]


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [(method, *endpoint) for endpoint in ENDPOINTS for method in METHODS if method not in endpoint[1].split(", ")],
)
async def test_other_methods(client: Connection, hub: FakeUpstream, method: str, target: str, allow: str) -> None:
    answer = await client.ask(
        method, target, body=b"x" * 1000 if method in ("POST", "PUT", "PATCH", "PROPFIND") else b""
    )
    assert (answer.status, answer.headers["allow"]) == (405, allow)
    if method == "HEAD":
        assert answer.body == b""
    else:
        assert answer.code == "UNSUPPORTED"
        assert method in answer.error["message"]
    assert hub.log == []
    assert (await client.ask("GET", "/v2/")).body == b"{}", "and nothing of it is in the way of what comes next"


@pytest.mark.parametrize(
    ("method", "target"),
    [(method, target) for target, allow in ENDPOINTS for method in allow.split(", ") if method in METHODS],
)
async def test_the_methods_it_names_are_answered(client: Connection, method: str, target: str) -> None:
    assert (await client.ask(method, target)).headers.get("allow") is None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
async def test_a_path_that_is_nothing_is_not_there_for_any_method(client: Connection, method: str) -> None:
    answer = await client.ask(method, "/v2/a/nothing/x")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert "allow" not in answer.headers


# ---- headers ----


@pytest.mark.parametrize("target", ["/v2/", "/docker.io/v2/"])
async def test_the_root(client: Connection, target: str) -> None:
    answer = await client.ask("GET", target)
    assert (answer.status, answer.body) == (200, b"{}")
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    assert answer.headers["content-type"].startswith("application/json")
    head = await client.ask("HEAD", target)
    assert (head.status, head.headers["content-length"]) == (200, "2")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v2/library/alpine/manifests/latest", 200),
        (f"/v2/library/alpine/blobs/{MISSING}", 404),
        ("/v2/library/alpine/tags/list", 200),
        ("/v2/A/manifests/latest", 400),
        ("/v2/library/alpine/blobs/x", 400),
    ],
)
@pytest.mark.parametrize("ns", ["docker.io", "index.docker.io", "DOCKER.io"])
async def test_ns_comes_back(client: Connection, hub: FakeUpstream, target: str, status: int, ns: str) -> None:
    hub.add_image("library/alpine", "latest")
    for method in ("GET", "HEAD"):
        answer = await client.ask(method, f"{target}?ns={ns}")
        assert (answer.status, answer.headers["oci-namespace"]) == (status, ns)
        assert "oci-namespace" not in (await client.ask(method, target)).headers


async def test_ns_comes_back_when_it_is_unknown_too(client: Connection) -> None:
    answer = await client.ask("GET", "/v2/a/manifests/b?ns=nowhere.example")
    assert (answer.status, answer.headers["oci-namespace"]) == (404, "nowhere.example")


@pytest.mark.parametrize(
    "ns", ["x\r\nX-Evil: y", "x\nX-Evil: y", "x\rX-Evil: y", "x\0", "ä", "\u212a", "a b", "x" * 300, "\U0001f600"]
)
async def test_nothing_gets_into_the_headers_through_ns(client: Connection, ns: str) -> None:
    """Not by being echoed, and not by an answer that could not be written."""
    encoded = quote(ns)
    answer = await client.ask("GET", f"/v2/a/manifests/b?ns={encoded}")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert "x-evil" not in answer.headers
    assert "oci-namespace" not in answer.headers
    assert (await client.ask("GET", "/v2/")).body == b"{}"


async def test_a_name_that_only_looks_configured_is_not(client: Connection, hub: FakeUpstream) -> None:
    """The Kelvin sign is a small k in lower case."""
    answer = await client.ask("GET", "/v2/a/manifests/b?ns=" + quote("doc\u212aer.io"))
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert hub.log == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"abc-123", True),
        (b"a" * 128, True),
        (b"a" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"\xff\xfe", False),
        ("ä".encode(), False),
        (b"a\tb", False),
        (b'"quoted"', False),
    ],
)
async def test_request_ids(one: Mirror, client: Connection, given: bytes, kept: bool) -> None:
    answer = await client.ask("GET", "/v2/", X_Request_Id=given)
    answered = answer.headers["x-request-id"]
    assert (answered.encode() == given) is kept
    assert answered
    assert one.lines[-1]["request_id"] == answered


async def test_request_ids_of_our_own_differ(client: Connection) -> None:
    ids = {(await client.ask("GET", target)).headers["x-request-id"] for target in ("/v2/", "/x", "/healthz", "/v2/")}
    assert len(ids) == 4


async def test_a_manifest_is_what_it_is(client: Connection, hub: FakeUpstream) -> None:
    image = hub.add_image("library/alpine", "latest")
    for target in ("latest", image.digest):
        for accept in ("text/html", "application/vnd.oci.image.index.v1+json", None):
            path = f"/v2/library/alpine/manifests/{target}"
            answer = await client.ask("GET", path, Accept=accept, Accept_Encoding="gzip")
            assert (answer.status, answer.body) == (200, image.raw)
            assert answer.headers["content-type"] == image.media_type
            assert answer.headers["docker-content-digest"] == image.digest
            assert answer.headers["etag"] == f'"{image.digest}"'
            assert "content-encoding" not in answer.headers
            head = await client.ask("HEAD", path, Accept=accept)
            same = ("content-type", "docker-content-digest", "etag", "content-length")
            assert [head.headers[name] for name in same] == [answer.headers[name] for name in same]


# ---- tags ----


def link_of(answer: Answer) -> str:
    target, _, relation = answer.headers["link"].partition(">; ")
    assert relation == 'rel="next"'
    return target.removeprefix("<")


@pytest.mark.parametrize(
    ("base", "query"),
    [
        ("/v2/team/app/tags/list", {"n": "2", "ns": "docker.io"}),
        ("/v2/team/app/tags/list", {"n": "2"}),
        ("/docker.io/v2/team/app/tags/list", {"n": "2"}),
        ("/v2/docker.io/team/app/tags/list", {"n": "2"}),
    ],
)
async def test_pages_of_tags(client: Connection, hub: FakeUpstream, base: str, query: dict[str, str]) -> None:
    image = hub.add_image("team/app", None)
    tags = [f"v{n}" for n in range(5)]
    for tag in tags:
        hub.set_tag("team/app", tag, image.digest)
    target: str | None = f"{base}?{urlencode(query)}"
    seen: list[str] = []
    pages = 0
    while target:
        answer = await client.ask("GET", target)
        found = json.loads(answer.body)
        assert answer.status == 200
        assert found["name"] == base.split("/v2/")[1].removesuffix("/tags/list")
        seen += found["tags"]
        pages += 1
        target = link_of(answer) if "link" in answer.headers else None
        if target:
            assert target.startswith(f"{base}?"), "on us, by the way the client came"
            assert ("ns=docker.io" in target) is ("ns" in query)
    assert seen == tags
    assert pages == 3


async def test_a_page_of_no_tags(client: Connection, hub: FakeUpstream) -> None:
    hub.add_image("team/app", "latest")
    answer = await client.ask("GET", "/v2/team/app/tags/list?n=0")
    assert json.loads(answer.body) == {"name": "team/app", "tags": []}
    assert "link" not in answer.headers
    assert hub.log == []


@pytest.mark.parametrize("n", ["x", "-1", "", "1.5", "\u0661", "9" * 30, " 1", "+1", "0x1", "1e3"])
@pytest.mark.parametrize(
    "target", ["/v2/team/app/tags/list", "/v2/local/a/tags/list", f"/v2/local/a/referrers/{MISSING}", "/v2/_catalog"]
)
async def test_a_number_that_is_none(client: Connection, hub: FakeUpstream, target: str, n: str) -> None:
    hub.add_image("team/app", "latest")
    answer = await client.ask("GET", f"{target}?n={quote(n)}")
    assert (answer.status, answer.code) == (400, "UNSUPPORTED")
    assert "whole number" in answer.error["message"]
    assert hub.log == []


async def test_tags_of_a_name_nobody_has(client: Connection) -> None:
    answer = await client.ask("GET", "/v2/team/nothing/tags/list")
    assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


# ---- errors ----


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ({"status": 404}, 404, None),
        ({"status": 500}, 503, "UNAVAILABLE"),
        ({"status": 429, "headers": {"Retry-After": "7"}}, 503, "UNAVAILABLE"),
        ({"drop": "rst"}, 502, "UNAVAILABLE"),
        ({"status": 401}, 404, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("what", ["manifests/latest", f"blobs/{MISSING}"])
async def test_upstream_errors_have_the_one_shape(
    client: Connection, hub: FakeUpstream, fault: dict[str, Any], status: int, code: str | None, what: str
) -> None:
    hub.fault("", **fault)
    answer = await client.ask("GET", f"/v2/team/app/{what}")
    assert answer.status == status
    assert answer.code == (code or ("BLOB_UNKNOWN" if "blobs" in what else "MANIFEST_UNKNOWN"))
    if status == 503 and fault["status"] == 429:
        assert answer.headers["retry-after"] == "7"
    head = await client.ask("HEAD", f"/v2/team/app/{what}")
    assert head.status == status
    assert (await client.ask("GET", "/v2/")).body == b"{}"


async def test_an_error_of_our_own_has_it_too(
    one: Mirror, client: Connection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it is, and without its text, which may hold anything."""

    def fail(*_: Any) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(app, "parse_path", fail)
    answer = await client.ask("GET", "/v2/")
    assert (answer.status, answer.code) == (500, "UNAVAILABLE")
    assert b"secret" not in answer.body
    assert one.lines[-1]["failure"] == "KeyError"
    assert "the request failed" in caplog.text


# ---- signs of life ----


def numbers(text: bytes) -> dict[tuple[str, ...], float]:
    """Read /metrics as Prometheus does: (name, label values in the order of their names) → number."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[(sample.name, *(sample.labels[name] for name in sorted(sample.labels)))] = sample.value
    return found


async def test_health(one: Mirror, client: Connection, hub: FakeUpstream) -> None:
    await hub.stop()
    for target, text in (("/healthz", b"ok\n"), ("/readyz", b"ready\n")):
        answer = await client.ask("GET", target)
        assert (answer.status, answer.body) == (200, text)
        assert (await client.ask("HEAD", target)).status == 200
    one.stopping = True
    answer = await client.ask("GET", "/readyz")
    assert (answer.status, answer.body) == (503, b"stopping\n")
    assert (await client.ask("GET", "/healthz")).status == 200
    assert one.lines == [], "probes are not worth a line each"


async def test_metrics_say_what_was_done(tmp_path: Path, client: Connection, hub: FakeUpstream) -> None:
    image = hub.add_image("library/alpine", "latest", [200_000])
    layer = image.layers[0]
    base = "/v2/library/alpine"
    for _ in range(3):
        await client.ask("GET", f"{base}/manifests/latest")
    await client.ask("HEAD", f"{base}/manifests/{image.digest}")
    await client.ask("GET", f"{base}/blobs/{layer}")
    await until((tmp_path / "root" / "cache" / "sha256" / layer[7:]).exists)
    await client.ask("GET", f"{base}/blobs/{layer}")
    await client.ask("GET", f"{base}/blobs/{layer}", Range="bytes=0-99")
    await client.ask("GET", f"{base}/blobs/{layer}", Range="bytes=0-99,200-299")
    await client.ask("GET", f"{base}/blobs/{MISSING}")
    await client.ask("PUT", f"{base}/manifests/latest")
    await client.ask("GET", f"{base}/tags/list")
    await client.ask("GET", "/nothing")
    await client.ask("GET", "/v2/")
    answer = await client.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = numbers(answer.body)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "mirror_requests_total"}
    assert requests == {  # endpoint, method, status
        ("manifests", "GET", "200"): 3,
        ("manifests", "HEAD", "200"): 1,
        ("manifests", "PUT", "405"): 1,
        ("blobs", "GET", "200"): 2,
        ("blobs", "GET", "206"): 2,
        ("blobs", "GET", "404"): 1,
        ("tags", "GET", "200"): 1,
        ("unknown", "GET", "404"): 1,
        ("root", "GET", "200"): 1,
    }
    hits = {key[1:]: value for key, value in found.items() if key[0] == "mirror_cache_hits_total"}
    assert hits == {("tag", "docker.io"): 2, ("manifest", "docker.io"): 1, ("blob", "docker.io"): 3}
    misses = {key[1:]: value for key, value in found.items() if key[0] == "mirror_cache_misses_total"}
    assert misses == {  # kind, reason, upstream
        ("tag", "absent", "docker.io"): 1,
        ("blob", "absent", "docker.io"): 1,
    }
    assert ("mirror_cache_stale_total",) not in [key[:1] for key in found]
    timed = {key[1:]: value for key, value in found.items() if key[0] == "mirror_request_duration_seconds_count"}
    assert timed == {
        ("manifests", "GET"): 3,
        ("manifests", "HEAD"): 1,
        ("manifests", "PUT"): 1,
        ("blobs", "GET"): 5,
        ("tags", "GET"): 1,
        ("unknown", "GET"): 1,
        ("root", "GET"): 1,
    }
    begun = {key[1:]: value for key, value in found.items() if key[0] == "mirror_request_first_byte_seconds_count"}
    assert begun == timed
    assert found["mirror_served_bytes_total", "manifest"] == 3 * len(image.raw)
    assert found["mirror_served_bytes_total", "blob"] == 2 * 200_000 + 300
    assert found["mirror_fetched_bytes_total", "docker.io"] == hub.bytes_sent()
    sent = sum(value for key, value in found.items() if key[0] == "mirror_upstream_requests_total")
    assert sent == len(hub.log)
    async with asyncio.timeout(10):  # a download ends a moment after its last client has its answer
        while found["mirror_downloads_in_flight",]:
            found = numbers((await client.ask("GET", "/metrics")).body)


async def test_access_lines_say_what_was_done(
    tmp_path: Path, one: Mirror, client: Connection, hub: FakeUpstream
) -> None:
    image: Image = hub.add_image("library/alpine", "latest", [200_000])
    layer = image.layers[0]
    await client.ask("GET", "/v2/alpine/manifests/latest", X_Request_Id="one", User_Agent="test/1")
    await client.ask("GET", f"/docker.io/v2/library/alpine/blobs/{layer}", X_Request_Id="two")
    await until((tmp_path / "root" / "cache" / "sha256" / layer[7:]).exists)
    await client.ask("GET", f"/v2/library/alpine/blobs/{layer}?ns=docker.io", Range="bytes=0-99", X_Request_Id="three")
    await client.ask("HEAD", f"/v2/library/alpine/blobs/{MISSING}", X_Request_Id="four")
    await client.ask("GET", "/v2/a/../manifests/x", X_Request_Id="five")
    await client.ask("DELETE", "/v2/local/x/manifests/y", X_Request_Id="six")
    await client.ask("PUT", "/v2/local/x/manifests/y", body=RAW, X_Request_Id="seven")
    common = {"client": "127.0.0.1", "upstream": "docker.io", "repository": "docker.io/library/alpine"}
    first, second, third, fourth, fifth, sixth, seventh = one.lines
    for line in (second, third):
        assert 0 <= line.pop("first_byte_ms") <= line["ms"]
    for line in one.lines:
        assert line.pop("ms") >= 0
        assert "first_byte_ms" not in line, "the rest goes out at once"
    assert first == {
        **common,
        "request_id": "one",
        "method": "GET",
        "path": "/v2/alpine/manifests/latest",
        "status": 200,
        "bytes": len(image.raw),
        "reference": "latest",
        "digest": image.digest,
        "cache": "mirror; fwd=uri-miss; stored",
        "user_agent": "test/1",
    }
    assert second == {
        **common,
        "request_id": "two",
        "method": "GET",
        "path": f"/docker.io/v2/library/alpine/blobs/{layer}",
        "status": 200,
        "bytes": 200_000,
        "digest": layer,
        "cache": "mirror; fwd=uri-miss; stored",
    }
    assert third == {
        **common,
        "request_id": "three",
        "method": "GET",
        "path": f"/v2/library/alpine/blobs/{layer}?ns=docker.io",
        "status": 206,
        "bytes": 100,
        "digest": layer,
        "cache": "mirror; hit",
    }
    assert fourth["failure"]
    assert (fourth["status"], fourth["bytes"], fourth["digest"]) == (404, 0, MISSING)
    assert (fifth["request_id"], fifth["status"], fifth["path"]) == ("five", 400, "/v2/a/../manifests/x")
    assert "upstream" not in fifth
    assert (sixth["method"], sixth["status"], sixth["reference"]) == ("DELETE", 404, "y")
    assert "y" in sixth["failure"]
    assert seventh == {
        "client": "127.0.0.1",
        "upstream": "local",
        "repository": "local/x",
        "request_id": "seven",
        "method": "PUT",
        "path": "/v2/local/x/manifests/y",
        "status": 201,
        "bytes": 0,
        "received": len(RAW),
        "reference": "y",
        "digest": digest_of(RAW),
    }
