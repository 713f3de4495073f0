"""Who may do what, over real connections: logins, tokens, the two kinds of challenge, and attacks on them."""

from __future__ import annotations

import asyncio
import base64
import calendar
import contextlib
import hashlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import bcrypt
import jwt
import pytest
import trustme

from mirror.access import users
from mirror.config import Access
from mirror.upstream.challenge import parse_challenges
from tests import harness
from tests.connection import connect
from tests.fake_upstream import FakeUpstream, Image
from tests.harness import Mirror, make_config, mirror, mirrors
from tests.images import blob_path, manifest_path, pull

BLOB = b"what is pushed"
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
UPLOADS = "/v2/local/app/blobs/uploads/"
TOKEN = "/v2/_mirror/auth/token"
FORM = "application/x-www-form-urlencoded"


def write_users(path: Path, cost: int = 4, **users: str) -> None:
    lines = [f"{name}:{bcrypt.hashpw(word.encode(), bcrypt.gensalt(cost)).decode()}\n" for name, word in users.items()]
    path.write_text("".join(lines))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    write_users(path, ci="pässwörd", root="toor", dev="p")
    return path


def basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


CI, ROOT, DEV = basic("ci", "pässwörd"), basic("root", "toor"), basic("dev", "p")
WRONG = basic("ci", "password")


@pytest.fixture
def image(hub: FakeUpstream) -> Image:
    return hub.add_image("some/image", "v1")


@contextlib.asynccontextmanager
async def served(
    root: Path, hub: FakeUpstream, *, listen: str = "127.0.0.1:0", tls: Any = None, **access: Any
) -> AsyncIterator[Mirror]:
    config = make_config(root, {"up": {"url": hub.url}}, access=Access(**access), listen=listen)
    async with mirror(config, ssl=tls) as one:
        yield one


PULL = manifest_path("v1", "up/some/image")


async def push(one: Mirror, headers: dict[str, str] | None = None, name: str = "local/app") -> harness.Answer:
    return await one.ask("POST", f"/v2/{name}/blobs/uploads/?digest={DIGEST}", data=BLOB, headers=headers)


async def delete(one: Mirror, path: str, headers: dict[str, str] | None = None) -> harness.Answer:
    return await one.ask("DELETE", path, headers=headers)


def challenge(answer: harness.Answer) -> tuple[str, dict[str, str]]:
    """Return the one challenge of a 401 in the shape of the specification."""
    assert answer.status == 401, answer
    assert answer.code == "UNAUTHORIZED"
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    (one,) = parse_challenges(answer.headers.getall("WWW-Authenticate"))
    return one.scheme, one.parameters


async def get_token(one: Mirror, headers: dict[str, str] | None = None) -> str:
    answer = await one.get(TOKEN + "?service=mirror&scope=repository:local/app:pull", headers=headers)
    assert answer.status == 200, answer
    assert answer.headers["Cache-Control"] == "no-store"
    body = json.loads(answer.body)
    assert set(body) == {"token", "access_token", "expires_in", "issued_at"}
    assert body["token"] == body["access_token"]
    assert body["expires_in"] >= 60
    assert abs(time.time() - unix_time(body["issued_at"])) < 60
    token: str = body["token"]
    return token


def unix_time(text: str) -> float:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


# ---- without users ----


@pytest.mark.parametrize("headers", [{}, CI, bearer("x"), {"Authorization": "nonsense"}])
async def test_without_users_anybody_does_everything_on_loopback(
    root: Path, hub: FakeUpstream, image: Image, headers: dict[str, str]
) -> None:
    async with served(root, hub) as one:
        assert (await one.get("/v2/", headers=headers)).status == 200
        assert (await one.get(PULL, headers=headers)).status == 200
        assert (await push(one, headers)).status == 201
        assert (await delete(one, f"/v2/local/app/blobs/{DIGEST}", headers)).status == 202
        assert (await delete(one, manifest_path(image.digest, "up/some/image"), headers)).status == 202


@pytest.mark.parametrize(("insecure", "pushed", "refused"), [(False, 403, 403), (True, 201, 202)])
async def test_without_users_nobody_writes_through_other_listeners(
    root: Path, hub: FakeUpstream, image: Image, insecure: bool, pushed: int, refused: int
) -> None:
    async with served(root, hub, listen="0.0.0.0:0", insecure_writes=insecure) as one:
        assert (await one.get("/v2/")).status == 200
        assert (await one.get(PULL)).status == 200
        answer = await push(one)
        assert answer.status == pushed
        assert (await delete(one, manifest_path(image.digest, "up/some/image"))).status == refused
        if not insecure:
            assert answer.code == "DENIED"
            assert "configure access.htpasswd_file, or access.insecure_writes: true" in answer.body.decode()
            assert (await delete(one, f"/v2/local/app/blobs/{DIGEST}")).status == 403
            assert (await one.ask("PATCH", UPLOADS + "some-session", data=b"x")).status == 403
            assert (await one.ask("PUT", "/v2/local/app/manifests/v1", data=b"{}")).status == 403


# ---- logins for all ----


async def test_logins_for_all(root: Path, hub: FakeUpstream, image: Image, file: Path) -> None:
    """``anonymous: none``: Basic on every resource, as containerd never asks /v2/."""
    async with served(root, hub, htpasswd_file=file, anonymous="none") as one:
        everything = [
            ("GET", "/v2/"),
            ("GET", PULL),
            ("GET", blob_path(image.layers[0], "up/some/image")),
            ("GET", "/v2/local/app/tags/list"),
            ("GET", "/v2/_catalog"),
            ("GET", TOKEN),
            ("POST", UPLOADS),
            ("PATCH", UPLOADS + "some-session"),
            ("PUT", UPLOADS + "some-session"),
            ("GET", UPLOADS + "some-session"),
            ("DELETE", UPLOADS + "some-session"),
            ("PUT", "/v2/local/app/manifests/v1"),
            ("DELETE", "/v2/local/app/manifests/v1"),
            ("DELETE", PULL),
        ]
        for wrong in ({}, WRONG, basic("", ""), basic("nobody", "p"), bearer("x"), {"Authorization": "Negotiate x"}):
            for method, path in everything:
                assert challenge(await one.ask(method, path, headers=wrong)) == ("basic", {"realm": "mirror"}), path
        assert not hub.requests(), "nobody has asked for anything yet"
        assert (await one.get("/v2/", headers=CI)).status == 200
        assert (await one.get(PULL, headers=CI)).status == 200
        assert (await push(one, CI)).status == 201
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await one.get(path)).status == 200


async def test_a_head_is_refused_without_a_body(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file, anonymous="none") as one, connect(one.url) as client:
        for _ in range(2):
            answer = await client.ask("HEAD", PULL)
            assert (answer.status, answer.body) == (401, b"")
            assert answer.headers["www-authenticate"] == 'Basic realm="mirror"'


# ---- anonymous pulls beside logins ----


async def test_anonymous_pulls_beside_logins(root: Path, hub: FakeUpstream, image: Image, file: Path) -> None:
    """As docker does it: the challenge of /v2/, a token, then everything by token."""
    async with served(root, hub, htpasswd_file=file) as one:
        scheme, asked = challenge(await one.get("/v2/"))
        assert (scheme, asked) == ("bearer", {"realm": one.url + TOKEN, "service": "mirror"})
        assert (await one.get(PULL)).status == 200, "containerd asks for it without"

        anonymous = bearer(await get_token(one))
        assert (await one.get("/v2/", headers=anonymous)).status == 200
        assert (await one.get(PULL, headers=anonymous)).status == 200
        assert challenge(await push(one, anonymous)) == (
            "bearer",
            {
                "realm": one.url + TOKEN,
                "service": "mirror",
                "scope": "repository:local/app:pull,push",
                "error": "insufficient_scope",
            },
        )
        assert challenge(await push(one))[1].get("error") is None
        for path in (f"/v2/local/app/blobs/{DIGEST}", manifest_path(image.digest, "up/some/image")):
            scheme, asked = challenge(await delete(one, path, anonymous))
            assert asked["scope"].endswith(":delete")

        ci = bearer(await get_token(one, CI))
        assert (await one.get("/v2/", headers=ci)).status == 200
        assert (await push(one, ci)).status == 201
        assert (await delete(one, f"/v2/local/app/blobs/{DIGEST}", ci)).status == 202
        await pull_all(one, image)


async def pull_all(one: Mirror, image: Image) -> None:
    await pull(one, image, "up/some/image")


async def test_basic_is_taken_beside_tokens(root: Path, hub: FakeUpstream, image: Image, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        assert (await one.get("/v2/", headers=CI)).status == 200
        assert (await one.get(PULL, headers=CI)).status == 200
        assert (await push(one, {"Authorization": CI["Authorization"].replace("Basic", "bAsIc")})).status == 201


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        (WRONG, None),
        (basic("nobody", "p"), None),
        (basic("ci", "pässwörd" * 10), None),
        (bearer("nonsense"), "invalid_token"),
        ({"Authorization": "bearer"}, None),
        ({"Authorization": "Basic ü"}, None),
        ({"Authorization": "Basic !"}, None),
        ({"Authorization": "Basic " + "A" * 7000}, None),
        (bearer("A" * 7000), "invalid_token"),
        ({"Authorization": "Basic dTpw dTpw"}, None),
    ],
)
async def test_a_wrong_login_is_told_so_even_where_anybody_may_pull(
    root: Path, hub: FakeUpstream, image: Image, file: Path, headers: dict[str, str], error: str | None
) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        for path in ("/v2/", PULL):
            scheme, asked = challenge(await one.get(path, headers=headers))
            assert (scheme, asked.get("error")) == ("bearer", error)
        assert not hub.requests()
        assert (await one.get(PULL)).status == 200


@pytest.mark.parametrize("headers", [basic("", ""), basic("", "p"), {"Authorization": "Basic"}, {"Authorization": ""}])
async def test_empty_credentials_are_nobodys(
    root: Path, hub: FakeUpstream, image: Image, file: Path, headers: dict[str, str]
) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        assert (await one.get(PULL, headers=headers)).status == 200
        challenge(await one.get("/v2/", headers=headers))
        challenge(await push(one, headers))
        assert jwt.decode(await get_token(one, headers), options={"verify_signature": False}).get("sub") is None


async def test_who_may_push_delete_and_purge(root: Path, hub: FakeUpstream, image: Image, file: Path) -> None:
    purged = manifest_path(image.digest, "up/some/image")
    async with served(root, hub, htpasswd_file=file, push=("ci",), admin=("root",)) as one:
        for who, pushes, purges in ((DEV, False, False), (CI, True, False), (ROOT, True, True)):
            for headers in (who, bearer(await get_token(one, who))):
                assert (await one.get(PULL, headers=headers)).status == 200
                assert (await push(one, headers)).status == (201 if pushes else 403)
                deleted = await delete(one, f"/v2/local/app/blobs/{DIGEST}", headers)
                assert deleted.status == (202 if pushes else 403)
                purge = await delete(one, purged, headers)
                assert purge.status == (202 if purges else 403)
                if not pushes:
                    assert deleted.code == "DENIED"
                    assert "access.push lists those who may" in deleted.body.decode()
                if not purges:
                    assert purge.code == "DENIED"
                    assert "access.admin lists those who may" in purge.body.decode()


# ---- the token endpoint ----


async def test_a_wrong_password_gets_no_token(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        for headers in (WRONG, basic("nobody", "p"), {"Authorization": "Basic !"}, bearer(await get_token(one, CI))):
            assert challenge(await one.get(TOKEN, headers=headers)) == ("basic", {"realm": "mirror"})


async def test_tokens_by_form(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one:

        async def post(raw: bytes | str, kind: str = FORM) -> harness.Answer:
            return await one.ask("POST", TOKEN, data=raw, headers={"Content-Type": kind})

        def form(**fields: str) -> str:
            return urlencode({"service": "mirror", "scope": "repository:local/app:pull,push"} | fields)

        answer = await post(form(grant_type="password", username="ci", password="pässwörd"))
        assert answer.status == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert (await push(one, bearer(json.loads(answer.body)["access_token"]))).status == 201

        answer = await post(form(grant_type="password"))
        challenge(await push(one, bearer(json.loads(answer.body)["access_token"])))

        challenge(await post(form(grant_type="password", username="ci", password="wrong")))
        for wrong in (
            form(grant_type="refresh_token", refresh_token="x"),
            form(grant_type="authorization_code"),
            form(username="ci", password="pässwörd"),
            form(grant_type="password\r\nX-Injected: 1"),
            "",
            "%ff=%ff",
            "\udcff".encode("utf-8", "surrogateescape"),
            "&&&&",
            form(grant_type="password", username="ci", password="pässwörd", more="a" * 20_000),
        ):
            answer = await post(wrong)
            assert (answer.status, answer.code) == (400, "UNSUPPORTED"), wrong
            assert "X-Injected" not in answer.headers
        good = form(grant_type="password", username="ci", password="pässwörd")
        assert (await post(good, "text/plain")).status == 400
        assert (await post(good, FORM + "; charset=utf-8")).status == 200


async def test_a_token_is_of_its_root(root: Path, hub: FakeUpstream, file: Path, tmp_path: Path, image: Image) -> None:
    """All workers take it, also after a restart; another root's service does not."""
    config = make_config(root, {"up": {"url": hub.url}}, access=Access(htpasswd_file=file))
    async with mirrors(config, 2) as (one, other):
        token = bearer(await get_token(one, CI))
        assert (await push(other, token)).status == 201
    async with mirror(config) as later:
        assert (await push(later, token)).status == 201
    async with served(tmp_path / "another", hub, htpasswd_file=file) as stranger:
        assert challenge(await push(stranger, token))[1]["error"] == "invalid_token"
        assert challenge(await stranger.get(PULL, headers=token))[1]["error"] == "invalid_token"


async def test_a_token_that_is_not_signed(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        real = jwt.decode(await get_token(one, ROOT), options={"verify_signature": False})
        assert real["sub"] == "root"
        forged = bearer(jwt.encode(real, None, "none"))
        assert challenge(await push(one, forged))[1]["error"] == "invalid_token"


@pytest.mark.parametrize("by", ["basic", "token"])
async def test_a_user_who_is_removed_or_changed_is_out_at_once(
    root: Path, hub: FakeUpstream, file: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(users, "LOOK_EVERY", 0.0)
    async with served(root, hub, htpasswd_file=file) as one:

        async def credentials(who: dict[str, str]) -> dict[str, str]:
            return who if by == "basic" else bearer(await get_token(one, who))

        ci, dev, removed = await credentials(CI), await credentials(DEV), await credentials(ROOT)
        for headers in (ci, dev, removed):
            assert (await push(one, headers)).status == 201
        kept = next(text for text in file.read_text().splitlines(keepends=True) if text.startswith("dev:"))
        write_users(file, ci="another")
        file.write_text(file.read_text() + kept)
        for headers in (ci, removed):
            challenge(await push(one, headers))
            challenge(await one.get("/v2/", headers=headers))
        assert (await push(one, dev)).status == 201
        assert (await push(one, await credentials(basic("ci", "another")))).status == 201


async def test_a_change_is_seen_within_a_second_or_two(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one:
        assert (await push(one, CI)).status == 201
        write_users(file, dev="p")
        async with asyncio.timeout(10):
            while (await push(one, CI)).status != 401:
                await asyncio.sleep(0.02)
        assert (await push(one, DEV)).status == 201


# ---- addresses ----


@pytest.mark.parametrize("with_users", [False, True])
async def test_only_clients_of_these_networks(
    root: Path, hub: FakeUpstream, image: Image, file: Path, with_users: bool
) -> None:
    more: dict[str, Any] = {"htpasswd_file": file} if with_users else {}
    async with served(root / "a", hub, allow_from=(ip_network("10.0.0.0/8"),), **more) as one:
        for method, path in (
            ("GET", "/v2/"),
            ("GET", PULL),
            ("POST", UPLOADS),
            ("GET", TOKEN),
            ("GET", "/v2/_catalog"),
        ):
            answer = await one.ask(method, path, headers=CI)
            assert (answer.status, answer.code) == (403, "DENIED"), path
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await one.get(path)).status == 200
    async with served(root / "b", hub, allow_from=(ip_network("127.0.0.0/8"),), **more) as one:
        assert (await one.get("/v2/", headers=CI)).status == 200
        assert (await one.get(PULL)).status == 200
        assert (await push(one, CI)).status == 201


async def test_the_address_is_the_clients_own(root: Path, hub: FakeUpstream, image: Image) -> None:
    async with served(root, hub, allow_from=(ip_network("127.0.0.2/32"),)) as one:
        for path in ("/v2/", PULL, TOKEN):
            headers = {"X-Forwarded-For": "127.0.0.2", "Forwarded": "for=127.0.0.2"}
            assert (await one.get(path, headers=headers)).status == 403
            connector = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
            async with aiohttp.ClientSession(connector=connector) as session, session.get(one.url + path) as answer:
                assert answer.status == 200


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("registry.example:5000", True),
        ("[fd00::1]:5000", True),
        ("10.0.0.1", True),
        ('a",error="x', False),
        ("a b", False),
        ("a/v2/../b", False),
        ("user:p@evil", False),
        ("evil#", False),
        ("ä", False),
        ("", False),
        ("x" * 300, False),
    ],
)
async def test_the_realm_repeats_a_host_that_is_one(
    root: Path, hub: FakeUpstream, file: Path, host: str, kept: bool
) -> None:
    async with served(root, hub, htpasswd_file=file) as one, connect(one.url) as client:
        answer = await client.ask("GET", "/v2/", Host=host)
        if answer.status == 400:
            assert not kept, "the parser did not even take it"
            return
        assert answer.status == 401
        expected = f"http://{host}" if kept else one.url
        assert answer.headers["www-authenticate"] == f'Bearer realm="{expected}{TOKEN}",service="mirror"'


@pytest.mark.parametrize("name", ['a"b', "a%22b", "a%0d%0aX:1", "A", "a,b=c"])
async def test_the_scope_repeats_a_name_that_is_one(root: Path, hub: FakeUpstream, file: Path, name: str) -> None:
    async with served(root, hub, htpasswd_file=file) as one, connect(one.url) as client:
        for method, target in (("POST", f"/v2/{name}/blobs/uploads/"), ("GET", f"/v2/{name}/manifests/v1")):
            answer = await client.ask(method, target, Authorization="Basic !")
            assert answer.status in (400, 401, 404)
            assert answer.headers.get("www-authenticate", "").count('"') in (0, 4, 6)
            assert "x" not in answer.headers


async def test_the_realm_says_https(root: Path, hub: FakeUpstream, file: Path) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with served(root / "a", hub, htpasswd_file=file, tls=server) as one:
        assert challenge(await one.get("/v2/", ssl=client))[1]["realm"] == one.url + TOKEN
        assert one.url.startswith("https://")
    async with served(root / "b", hub, htpasswd_file=file) as one:  # nobody is trusted to say that it was https
        answer = await one.get("/v2/", headers={"X-Forwarded-Proto": "https", "Host": "registry.example"})
        assert challenge(answer)[1]["realm"] == "http://registry.example" + TOKEN


async def test_a_header_too_long_for_the_server(root: Path, hub: FakeUpstream, file: Path) -> None:
    async with served(root, hub, htpasswd_file=file) as one, connect(one.url) as client:
        answer = await client.ask("GET", "/v2/", Authorization="Basic " + "A" * 100_000)
        assert answer.status == 400
        assert (await one.get("/v2/", headers=CI)).status == 200


# ---- floods ----


async def test_a_flood_of_guesses_leaves_others_served(root: Path, hub: FakeUpstream, image: Image, file: Path) -> None:
    write_users(file, cost=9, ci="pässwörd")
    async with served(root, hub, htpasswd_file=file) as one:
        token = bearer(await get_token(one, CI))
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def guess(number: int) -> int:
                async with session.get(one.url + "/v2/", headers=basic("ci", f"guess{number}")) as response:
                    return response.status

            flood = [asyncio.create_task(guess(number)) for number in range(100)]
            for headers in (None, CI, token):
                for _ in range(5):
                    assert (await one.get(PULL, headers=headers)).status == 200
            pending = sum(not task.done() for task in flood)
            assert pending > 20, "others did not wait for the flood to end"
            found = await asyncio.gather(*flood)
        assert set(found) == {401, 503}
        assert found.count(401) >= 64
        assert (await one.get("/v2/", headers=CI)).status == 200


async def test_nothing_secret_is_logged(
    root: Path, hub: FakeUpstream, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    async with served(root, hub, htpasswd_file=file) as one:
        token = await get_token(one, CI)
        await push(one, bearer(token))
        await push(one, CI)
        answer = await push(one, basic("ci", "hunter2"))
        written = f"{one.lines} {caplog.text} {answer.body!r} {dict(answer.headers)}"
    assert "401" in written
    for secret in ("hunter2", "pässwörd", token, CI["Authorization"].split()[1], "$2b$"):
        assert secret not in written
