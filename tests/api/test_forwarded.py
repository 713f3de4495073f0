"""Behind reverse proxies: who asks and by which URL, believed of those that are trusted and of nobody else."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from mirror.config import Access
from tests import harness
from tests.api.test_access import BLOB, CI, DIGEST, TOKEN, WRONG, bearer, challenge, get_token, push, write_users
from tests.fake_upstream import FakeUpstream
from tests.harness import Mirror, make_config, mirror
from tests.images import blob_path, manifest_path
from tests.pushed import Made, make_index

T = TypeVar("T")

US, NOBODY = "127.0.0.1/32", "192.0.2.0/24"
"""Whom a test trusts: itself, as the reverse proxy; or somebody else, so that it is one of many clients."""

OUTSIDE = "198.51.100.7"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    write_users(path, ci="pässwörd")
    return path


@contextlib.asynccontextmanager
async def behind(
    root: Path, trusted: str, upstreams: dict[str, Any] | None = None, *, access: Access | None = None, **more: Any
) -> AsyncIterator[Mirror]:
    config = make_config(
        root, upstreams or {}, listen="127.0.0.1:0", trusted_proxies=[trusted], access=access or Access(), **more
    )
    async with mirror(config) as one:
        yield one


def of(table: list[tuple[str, dict[str, str], T]], trusted: str) -> Iterator[tuple[dict[str, str], T]]:
    """Give the rows of a table for one kind of trust, so that one mirror does for all of them."""
    return ((headers, expected) for whom, headers, expected in table if whom == trusted)


# ---- the client's address ----


CLIENTS: list[tuple[str, dict[str, str], str]] = [
    (US, {}, "127.0.0.1"),
    (US, {"X-Forwarded-For": OUTSIDE}, OUTSIDE),
    (US, {"X-Forwarded-For": f"203.0.113.1, {OUTSIDE}"}, OUTSIDE),
    (US, {"X-Forwarded-For": f"{OUTSIDE}, 127.0.0.1"}, OUTSIDE),
    (US, {"Forwarded": f"for={OUTSIDE}"}, OUTSIDE),
    (US, {"Forwarded": f"for={OUTSIDE}", "X-Forwarded-For": "203.0.113.1"}, OUTSIDE),
    (US, {"Forwarded": 'for="nonsense', "X-Forwarded-For": OUTSIDE}, OUTSIDE),
    (US, {"Forwarded": "proto=https", "X-Forwarded-For": OUTSIDE}, OUTSIDE),
    (US, {"Forwarded": 'for="[2001:db8::7]:99"'}, "2001:db8::7"),
    (US, {"Forwarded": "for=unknown"}, "unknown"),
    (US, {"X-Forwarded-For": "<script>"}, "127.0.0.1"),
    (US, {"X-Forwarded-For": "\u00e9\u20ac"}, "127.0.0.1"),
    (NOBODY, {"X-Forwarded-For": OUTSIDE}, "127.0.0.1"),
    (NOBODY, {"Forwarded": f"for={OUTSIDE}"}, "127.0.0.1"),
]


@pytest.mark.parametrize("trusted", [US, NOBODY])
async def test_the_access_line_has_the_client(root: Path, trusted: str) -> None:
    async with behind(root, trusted) as one:
        for headers, client in of(CLIENTS, trusted):
            assert (await one.get("/v2/", headers=headers)).status == 200
            assert one.lines[-1]["client"] == client, headers


async def test_lines_of_a_header_are_one(root: Path) -> None:
    async with behind(root, US) as one:
        two = [("X-Forwarded-For", OUTSIDE), ("X-Forwarded-For", "127.0.0.1")]
        assert (await one.get("/v2/", headers=two)).status == 200
        assert one.lines[-1]["client"] == OUTSIDE


ALLOWED, OTHER = "10.1.2.3", "10.2.0.1"


NETWORKS: list[tuple[str, dict[str, str], int]] = [
    (US, {"X-Forwarded-For": ALLOWED}, 200),
    (US, {"Forwarded": f"for={ALLOWED}"}, 200),
    (US, {"X-Forwarded-For": OTHER}, 403),
    (US, {"X-Forwarded-For": f"{ALLOWED}, {OTHER}"}, 403),
    (US, {"X-Forwarded-For": "unknown"}, 403),
    (US, {}, 403),  # the proxy itself
    # what cannot be read is nobody's address, and leaves no other in its place
    (US, {"Forwarded": f"for={ALLOWED}", "X-Forwarded-For": "fe80::1%eth0"}, 403),
    (US, {"Forwarded": f"for={ALLOWED}", "X-Forwarded-For": f"{ALLOWED}, <script>"}, 403),
    (US, {"Forwarded": f"for={ALLOWED}", "X-Forwarded-For": ", ,"}, 200),
    # a proxy writes one of the two, and hands on what a client wrote in the other
    (US, {"Forwarded": f"for={ALLOWED}", "X-Forwarded-For": OTHER}, 403),
    (US, {"Forwarded": f"for={OTHER}", "X-Forwarded-For": ALLOWED}, 403),
    (US, {"Forwarded": f"for={ALLOWED}", "X-Forwarded-For": "127.0.0.1"}, 200),
    (NOBODY, {"X-Forwarded-For": ALLOWED}, 403),
    (NOBODY, {"Forwarded": f"for={ALLOWED}"}, 403),
]


@pytest.mark.parametrize("trusted", [US, NOBODY])
async def test_allowed_networks_are_of_the_client(root: Path, trusted: str) -> None:
    async with behind(root, trusted, access=Access(allow_from=("10.1.0.0/16",))) as one:  # type: ignore[arg-type]
        for headers, status in of(NETWORKS, trusted):
            for path in ("/v2/", TOKEN):
                answer = await one.get(path, headers=headers)
                assert answer.status == status, (headers, answer)
                assert status == 200 or answer.code == "DENIED"


async def test_guesses_count_for_the_client_and_not_for_the_proxy(
    root: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    async def verify(_: object, login: object, client: str | None) -> None:
        seen.append(client)

    monkeypatch.setattr("mirror.access.authenticators.Passwords.verify", verify)
    async with behind(root, US, access=Access(htpasswd_file=file)) as one:
        for path in ("/v2/", TOKEN):
            assert (await one.get(path, headers=WRONG | {"X-Forwarded-For": OUTSIDE})).status == 401
        form = {"grant_type": "password", "username": "ci", "password": "x"}
        assert (await one.ask("POST", TOKEN, data=form, headers={"X-Forwarded-For": OUTSIDE})).status == 401
    assert seen == [OUTSIDE] * 3


async def test_headers_that_contradict_each_other_are_warned_of_once(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with behind(root, US) as one:
        await one.get("/v2/", headers={"Forwarded": f"for={OUTSIDE}", "X-Forwarded-For": f"{OUTSIDE}, 127.0.0.1"})
        assert not caplog.records
        for _ in range(2):
            await one.get("/v2/", headers={"Forwarded": f"for={OUTSIDE}", "X-Forwarded-For": ALLOWED})
        (record,) = caplog.records
        assert "the proxy at 127.0.0.1 passes on Forwarded and X-Forwarded-For" in record.getMessage()


# ---- what only this machine may do ----


WRITES: list[tuple[str, dict[str, str], int]] = [
    (US, {}, 201),
    (NOBODY, {}, 201),
    # from this machine, by a proxy on it
    (US, {"X-Forwarded-For": "127.0.0.1"}, 201),
    (US, {"Forwarded": 'for="[::1]"'}, 201),
    (US, {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https", "X-Real-IP": "127.0.0.1"}, 201),
    # from elsewhere, or nobody knows
    (US, {"X-Forwarded-For": OUTSIDE}, 403),
    (US, {"Forwarded": f"for={OUTSIDE}"}, 403),
    (US, {"X-Forwarded-For": "unknown"}, 403),
    (US, {"X-Forwarded-For": "nonsense"}, 403),
    (US, {"X-Forwarded-For": "nonsense, 127.0.0.1"}, 403),
    (US, {"X-Forwarded-Proto": "https"}, 403),
    (US, {"Via": "1.1 somebody"}, 403),
    (US, {"X-Real-IP": "127.0.0.1"}, 403),
    # a client made up what its proxy hands on
    (US, {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": OUTSIDE}, 403),
    (US, {"X-Forwarded-For": "127.0.0.1", "Forwarded": f"for={OUTSIDE}"}, 403),
    (US, {"X-Forwarded-For": OUTSIDE, "Forwarded": "for=127.0.0.1"}, 403),
    (US, {"X-Forwarded-For": "127.0.0.1", "Forwarded": "nonsense"}, 403),
    # by somebody who is not trusted
    *(
        (NOBODY, {name: value}, 403)
        for name, value in {
            "Forwarded": "for=127.0.0.1",
            "X-Forwarded-For": "127.0.0.1",
            "X-Forwarded-Host": "registry.example",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Server": "x",
            "X-Real-IP": "127.0.0.1",
            "Via": "1.1 oci-mirror-0",
            "CF-Connecting-IP": "127.0.0.1",
            "Fastly-Client-IP": "127.0.0.1",
            "X-Original-Forwarded-For": "127.0.0.1",
            "CDN-Loop": "somebody",
        }.items()
    ),
]


@pytest.mark.parametrize("trusted", [US, NOBODY])
async def test_without_users_only_this_machine_writes(root: Path, trusted: str) -> None:
    async with behind(root, trusted) as one:
        for headers, status in of(WRITES, trusted):
            answer = await push(one, headers)
            assert answer.status == status, (headers, answer)
            if status == 403:
                assert answer.code == "DENIED"
                assert b"configure access.htpasswd_file, and list the proxy under trusted_proxies" in answer.body
            assert (await one.get("/v2/", headers=headers)).status == 200
            deleted = await one.ask("DELETE", blob_path(DIGEST, "local/app"), headers=headers)
            assert deleted.status == (202 if status == 201 else 403), headers


async def test_each_line_of_where_it_really_comes_from_counts(root: Path) -> None:
    """A proxy adds its own, and a client's stays before it."""
    async with behind(root, US) as one:
        for real, status in (("127.0.0.1", 202), (OUTSIDE, 403)):
            headers = [("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1"), ("X-Real-IP", real)]
            assert (await one.ask("POST", "/v2/local/app/blobs/uploads/", headers=headers)).status == status, real


async def test_writes_that_are_let_in_anyway_come_by_proxies_too(root: Path) -> None:
    async with behind(root, NOBODY, access=Access(insecure_writes=True)) as one:
        assert (await push(one, {"X-Forwarded-For": OUTSIDE})).status == 201


async def test_with_users_they_write_by_proxies(root: Path, file: Path) -> None:
    async with behind(root, NOBODY, access=Access(htpasswd_file=file)) as one:
        assert (await push(one, CI | {"X-Forwarded-For": OUTSIDE})).status == 201
        assert (await push(one, {"X-Forwarded-For": "127.0.0.1"})).status == 401


# ---- the URL ----


URLS: list[tuple[dict[str, str], str]] = [
    ({"Host": "n.example"}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Proto": "https"}, "https://n.example"),
    ({"Host": "n.example", "X-Forwarded-Proto": "http, https"}, "https://n.example"),
    ({"Host": "inner", "X-Forwarded-Host": "n.example:8443"}, "http://n.example:8443"),
    ({"Host": "inner", "X-Forwarded-Host": "evil, n.example"}, "http://n.example"),
    (
        {"Host": "n.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "8443"},
        "https://n.example:8443",
    ),
    ({"Host": "n.example", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "443"}, "https://n.example"),
    ({"Host": "inner", "Forwarded": "for=1.2.3.4;proto=https;host=n.example"}, "https://n.example"),
    ({"Host": "n.example", "Forwarded": "for=1.2.3.4", "X-Forwarded-Proto": "https"}, "https://n.example"),
    (
        {"Host": "inner", "Forwarded": "proto=https;host=n.example", "X-Forwarded-Host": "other"},
        "https://n.example",
    ),
    (
        {
            "Host": "inner",
            "X-Forwarded-For": "1.2.3.4, 127.0.0.1",
            "X-Forwarded-Proto": "evil, https, http",
            "X-Forwarded-Host": "evil, n.example, middle",
        },
        "https://n.example",
    ),
    ({"Host": "n.example", "X-Forwarded-Prefix": "/hub/"}, "http://n.example/hub"),
    # what is none is not repeated
    ({"Host": "n.example", "X-Forwarded-Proto": 'ftp"'}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Host": 'a",x="b'}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Host": "a/b"}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Port": "99999"}, "http://n.example"),
    ({"Host": "n.example", "Forwarded": 'host="a b"'}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Prefix": "//evil"}, "http://n.example"),
    ({"Host": "n.example", "X-Forwarded-Prefix": '/a"'}, "http://n.example"),
]


@pytest.mark.parametrize("trusted", [US, NOBODY])
async def test_tokens_are_given_where_the_client_reaches_us(root: Path, file: Path, trusted: str) -> None:
    async with behind(root, trusted, access=Access(htpasswd_file=file)) as one:
        for headers, base in URLS:
            expected = base if trusted == US else f"http://{headers['Host']}"
            assert challenge(await one.get("/v2/", headers=headers))[1]["realm"] == expected + TOKEN, headers


async def test_tokens_behind_a_prefix_of_names(root: Path, file: Path) -> None:
    async with behind(root, US, access=Access(htpasswd_file=file)) as one:
        headers = {"Host": "n.example", "X-Forwarded-Prefix": "/v2/hub"}
        realm = challenge(await one.get("/v2/", headers=headers))[1]["realm"]
        assert realm == "http://n.example/v2/hub/_mirror/auth/token"
        assert (await push(one, headers | bearer(await get_token(one, CI)))).status == 201


@pytest.mark.parametrize("headers", [{"X-Forwarded-Host": "other.example"}, {"Forwarded": "host=other.example"}])
async def test_the_host_that_names_an_upstream_is_the_clients(
    root: Path, hub: FakeUpstream, headers: dict[str, str]
) -> None:
    async with FakeUpstream() as other:
        mine, theirs = hub.add_image("some/image", "v1"), other.add_image("some/image", "v1", [77])
        upstreams = {"first.example": {"url": hub.url}, "other.example": {"url": other.url}}
        path = manifest_path("v1", "some/image")
        for trusted, host, expected in (
            (US, "inner", theirs),
            (US, "first.example", theirs),
            (NOBODY, "inner", mine),
            (NOBODY, "first.example", mine),
        ):
            async with behind(root / f"{trusted[:3]}-{host}", trusted, upstreams) as one:
                answer = await one.get(path, headers=headers | {"Host": host})
                assert answer.headers["Docker-Content-Digest"] == expected.digest


# ---- where things are ----

PREFIXES = [
    (US, {}, "/v2"),
    (US, {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "n.example"}, "/v2"),
    (US, {"X-Forwarded-Prefix": "/hub"}, "/hub/v2"),
    (US, {"X-Forwarded-Prefix": "/a, /b/"}, "/b/v2"),
    (US, {"X-Forwarded-Prefix": "/a, /b", "X-Forwarded-For": "1.2.3.4, 127.0.0.1"}, "/a/b/v2"),
    (US, {"X-Forwarded-Prefix": "/v2/hub"}, "/v2/hub"),
    (US, {"X-Forwarded-Prefix": "//evil.example"}, "/v2"),
    (US, {"X-Forwarded-Prefix": "/a b"}, "/v2"),
    (NOBODY, {"X-Forwarded-Prefix": "/hub"}, "/v2"),
]


@pytest.mark.parametrize(("trusted", "headers", "base"), PREFIXES)
async def test_a_push_goes_where_the_location_says(
    root: Path, trusted: str, headers: dict[str, str], base: str
) -> None:
    async with behind(root, trusted, access=Access(insecure_writes=True)) as one:

        async def ask(method: str, path: str, status: int, **arguments: Any) -> harness.Answer:
            """Send what the client sends, as the reverse proxy passes it on."""
            assert path.startswith(base + "/"), path
            more = arguments.pop("headers", {})
            answer = await one.ask(method, "/v2" + path.removeprefix(base), headers=headers | more, **arguments)
            assert answer.status == status, answer
            return answer

        name = f"{base}/local/app"
        session = await ask("POST", f"{name}/blobs/uploads/", 202)
        for where in (0, 1):
            chunk = {"Content-Range": f"{where}-{where}", "Content-Type": "application/octet-stream"}
            part = BLOB[where : where + 1]
            session = await ask("PATCH", session.headers["Location"], 202, data=part, headers=chunk)
        wrong = await ask("PATCH", session.headers["Location"], 416, data=b"x", headers={"Content-Range": "9-9"})
        session = await ask("GET", wrong.headers["Location"], 204)
        done = await ask("PUT", f"{session.headers['Location']}?digest={DIGEST}", 201, data=BLOB[2:])
        assert done.headers["Location"] == f"{name}/blobs/{DIGEST}"
        assert (await ask("GET", done.headers["Location"], 200)).body == BLOB
        made = make_index()
        kind = {"Content-Type": made.media_type}
        kept = await ask("PUT", f"{name}/manifests/v1", 201, data=made.raw, headers=kind)
        assert kept.headers["Location"] == f"{name}/manifests/{made.digest}"
        assert (await ask("GET", kept.headers["Location"], 200)).body == made.raw


async def _fill(one: Mirror) -> Made:
    """Push a manifest under two tags, with two that refer to it, and another repository."""
    headers = {"Content-Type": make_index().media_type}
    subject = make_index()
    for tag in ("a", "b"):
        answer = await one.ask("PUT", manifest_path(tag, "local/app"), data=subject.raw, headers=headers)
        assert answer.status == 201
        note = make_index(subject=subject.descriptor, artifactType=f"application/vnd.test.{tag}")
        answer = await one.ask("PUT", manifest_path(note.digest, "local/app"), data=note.raw, headers=headers)
        assert answer.status == 201
    answer = await one.ask("PUT", manifest_path("a", "local/other"), data=subject.raw, headers=headers)
    assert answer.status == 201
    return subject


@pytest.mark.parametrize(("trusted", "headers", "base"), PREFIXES)
async def test_pages_go_on_where_the_client_knows_them(
    root: Path, trusted: str, headers: dict[str, str], base: str
) -> None:
    async with behind(root, trusted) as one:
        subject = await _fill(one)
        for path in ("/local/app/tags/list", "/_catalog", f"/local/app/referrers/{subject.digest}"):
            answer = await one.get(f"/v2{path}?n=1", headers=headers)
            assert answer.status == 200, answer
            link = answer.headers["Link"].partition(">")[0].removeprefix("<")
            assert urlsplit(link).path == base + path
            further = await one.get(f"/v2{path}?{urlsplit(link).query}", headers=headers)
            assert further.status == 200
            assert further.body != answer.body


async def test_a_blob_is_mounted_by_the_name_the_client_has_for_it(root: Path) -> None:
    async with behind(root, US, access=Access(insecure_writes=True)) as one:
        assert (await push(one)).status == 201
        target = f"/v2/local/two/blobs/uploads/?mount={DIGEST}&from=hub/local/app"
        headers = {"X-Forwarded-Prefix": "/v2/hub"}
        answer = await one.ask("POST", target, headers=headers)
        assert (answer.status, answer.headers["Location"]) == (201, f"/v2/hub/local/two/blobs/{DIGEST}")
        other = await one.ask("POST", target.replace("two", "three"), headers={"X-Forwarded-Prefix": "/hub"})
        assert other.status == 202  # there is no hub/local/app


async def test_upstreams_are_not_told(root: Path, hub: FakeUpstream) -> None:
    image = hub.add_image("some/image", "v1")
    headers = {"X-Forwarded-Prefix": "/hub", "X-Forwarded-For": OUTSIDE, "Forwarded": f"for={OUTSIDE}"}
    async with behind(root, US, {"up": {"url": hub.url}}) as one:
        answer = await one.get(manifest_path("v1", "some/image"), headers=headers)
        assert answer.headers["Docker-Content-Digest"] == image.digest
    assert hub.log
    assert not [name for request in hub.log for name in request.headers if "forwarded" in name.lower()]
