"""mirror doctor asks upstreams as the service does: what each kind of answer means, and what it says to do."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.doctor import Case, Finding, Outcome, chosen, upstreams
from tests.doctor import case_of, only
from tests.fake_proxy import FakeProxy
from tests.fake_upstream import FakeUpstream
from tests.ports import free_port

UP = "up.test"
NAME = f"upstream {UP}"
PLACE = f"upstreams.{UP}"
SECRET = "a-very-secret-password"


async def asked(
    url: str, *, named: tuple[str, ...] = (), timeout: float = 5.0, online: bool = True, **settings: Any
) -> list[Finding]:
    """Return what is found of an upstream with these settings; ``top`` among them is for the top."""
    top = settings.pop("top", {})
    others = settings.pop("others", {})
    config = case_of(Path("/x"), **{"upstreams": {UP: {"url": url, **settings}, **others}, **top}).config
    case = Case(config=config, upstreams=chosen(config, named), timeout=timeout, online=online)
    found = list(await upstreams.look(case))
    assert SECRET not in str(found)
    return found


@pytest.fixture
def login(tmp_path: Path) -> Mapping[str, Any]:
    """A login as an upstream's settings have it."""
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    return {"username": "ci", "password_file": str(file)}


# ---- whom it lets in ----


async def test_one_that_asks_for_nothing(hub: FakeUpstream) -> None:
    found = only(await asked(hub.url), NAME)
    assert (found.outcome, found.text) == (Outcome.OK, "reachable at 127.0.0.1, as nobody")
    assert found.facts["addresses"] == ["127.0.0.1"]
    assert [str(request).split(" (")[0] for request in hub.log] == ["registry GET /v2/ -> 200"]


async def test_nobody_gets_a_token(hub: FakeUpstream) -> None:
    hub.auth = "token"
    found = only(await asked(hub.url), NAME)
    assert (found.outcome, found.text) == (Outcome.OK, "reachable at 127.0.0.1, as nobody")
    assert hub.count("GET", "/token") == 1
    assert hub.requests("GET", "/token")[0].query == {"service": "fake.registry"}


@pytest.mark.parametrize("auth", ["token", "basic"])
async def test_a_login_that_is_right(hub: FakeUpstream, login: Mapping[str, Any], auth: str) -> None:
    hub.auth, hub.users, hub.anonymous = auth, {"ci": SECRET}, False
    found = only(await asked(hub.url, credentials=login), NAME)
    assert (found.outcome, found.text) == (Outcome.OK, "reachable at 127.0.0.1, as ci")
    assert (found.facts["user"], found.facts["status"]) == ("ci", 200)


@pytest.mark.parametrize("auth", ["token", "basic"])
async def test_a_login_that_is_refused(hub: FakeUpstream, login: Mapping[str, Any], auth: str) -> None:
    hub.auth, hub.users, hub.anonymous = auth, {"ci": "another"}, False
    found = only(await asked(hub.url, credentials=login), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("reachable at 127.0.0.1; it refuses the credentials of 'ci' (answered 401")
    assert found.advice == f"check that they are right and not expired: {PLACE}.credentials.password_file"


async def test_each_account_is_tried(hub: FakeUpstream, login: Mapping[str, Any]) -> None:
    hub.auth, hub.users = "token", {"ci": SECRET}
    found = await asked(hub.url, credentials=[login, {**login, "username": "gone"}])
    judged = [(one.facts["user"], one.outcome) for one in found if one.name == NAME]
    assert judged == [("ci", Outcome.OK), ("gone", Outcome.PROBLEM)]


async def test_a_registry_that_wants_a_login(hub: FakeUpstream) -> None:
    hub.auth, hub.anonymous = "basic", False
    found = only(await asked(hub.url), NAME)
    assert found.outcome is Outcome.WARNING
    assert found.text == "reachable at 127.0.0.1; it wants a login and none is configured (answered 401)"
    assert found.advice == f"give one under {PLACE}.credentials"


async def test_a_registry_that_decides_for_each_repository(hub: FakeUpstream) -> None:
    hub.auth = "token"
    hub.fail("token", status=403)
    hub.fail("/token", status=403)
    found = only(await asked(hub.url), NAME)
    assert found.outcome is Outcome.OK
    assert "what nobody in particular may pull it says for each repository" in found.text


async def test_a_password_file_that_cannot_be_read(hub: FakeUpstream, login: Mapping[str, Any]) -> None:
    hub.auth = "token"
    Path(login["password_file"]).unlink()
    found = only(await asked(hub.url, credentials=login), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert "the password of 'ci' cannot be read" in found.text
    assert found.advice.startswith("check credentials.password_file")


# ---- what is in the way ----


async def test_a_host_that_is_down() -> None:
    found = only(await asked(f"http://127.0.0.1:{free_port()}", retries=0), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert "cannot be reached (no connection to 127.0.0.1:" in found.text
    assert "Connection refused)" in found.text
    assert found.advice == f"check that its host is up and can be reached from here: {PLACE}"


async def test_a_name_that_nobody_knows() -> None:
    found = only(await asked("http://registry.invalid", retries=0), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("cannot be reached (registry.invalid cannot be resolved: ")
    assert found.facts["addresses"] == []


async def test_a_host_that_hangs(hub: FakeUpstream) -> None:
    hub.fault("GET /v2/", hang_headers=True)
    found = only(await asked(hub.url, timeout=0.3), NAME)
    assert (found.outcome, found.text) == (Outcome.PROBLEM, "does not answer (no answer in time) at 127.0.0.1")


async def test_a_token_server_that_is_down(hub: FakeUpstream) -> None:
    hub.auth = "token"
    hub.realm = f"http://127.0.0.1:{free_port()}/token"
    found = only(await asked(hub.url, retries=0), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("reachable at 127.0.0.1, but no token from 127.0.0.1: no connection to 127.0.0.1:")


async def test_a_token_server_that_hangs(hub: FakeUpstream) -> None:
    hub.auth = "token"
    hub.fault("/token", hang_headers=True)
    found = only(await asked(hub.url, timeout=0.3), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert "does not answer" in found.text


async def test_a_registry_that_fails(hub: FakeUpstream) -> None:
    hub.fail("GET /v2/", status=503)
    found = only(await asked(hub.url, retries=0), NAME)
    assert (found.outcome, found.text) == (Outcome.PROBLEM, "reachable at 127.0.0.1, but answered 503")


async def test_what_is_no_registry(hub: FakeUpstream) -> None:
    found = only(await asked(f"{hub.url}/somewhere"), NAME)
    assert (found.outcome, found.advice) == (Outcome.PROBLEM, f"check its url: {PLACE}")
    assert found.text == "reachable at 127.0.0.1, but answered 404 at /v2/, as no registry does"


async def test_a_registry_that_limits_our_rate(hub: FakeUpstream) -> None:
    hub.fail("GET /v2/", status=429)
    found = only(await asked(hub.url, retries=0), NAME)
    assert (found.outcome, found.advice) == (Outcome.WARNING, "try again later")


# ---- TLS ----


@pytest.fixture
async def secure(authority: trustme.CA) -> AsyncIterator[FakeUpstream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    async with FakeUpstream(ssl=context) as fake:
        yield fake


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def test_the_authority_that_is_configured(secure: FakeUpstream, authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    found = only(await asked(secure.url, ca_file=tmp_path / "ca.pem"), NAME)
    assert found.outcome is Outcome.OK


async def test_another_authority(secure: FakeUpstream, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    found = only(await asked(secure.url, ca_file=tmp_path / "ca.pem"), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("cannot be trusted (the certificate is not accepted: ")
    assert found.advice == f"check its certificate and ca_file: {PLACE}"


async def test_a_certificate_that_expired(authority: trustme.CA, tmp_path: Path) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)).configure_cert(context)
    async with FakeUpstream(ssl=context) as fake:
        found = only(await asked(fake.url, ca_file=tmp_path / "ca.pem"), NAME)
    assert (found.outcome, "certificate has expired" in found.text) == (Outcome.PROBLEM, True)


async def test_https_where_http_is_spoken(hub: FakeUpstream) -> None:
    found = only(await asked(hub.url.replace("http:", "https:")), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("does not speak TLS")
    assert found.advice == f"check its url: is it http?: {PLACE}"


# ---- proxies ----


async def test_by_way_of_a_proxy(hub: FakeUpstream) -> None:
    async with FakeProxy(names={"hub.test": "127.0.0.1"}) as proxy:
        found = only(await asked(f"http://hub.test:{hub.port}", proxy={"url": proxy.url}), NAME)
        assert found.text == f"reachable by way of the proxy 127.0.0.1:{proxy.port}, as nobody"
        assert proxy.targets() == [f"GET http://hub.test:{hub.port}/v2/"]
    assert found.facts["proxy"] == f"127.0.0.1:{proxy.port}"
    assert "addresses" not in found.facts, "a name that the proxy looks up"


async def test_a_proxy_that_wants_a_login(hub: FakeUpstream) -> None:
    async with FakeProxy(names={"hub.test": "127.0.0.1"}, login="me:x") as proxy:
        top = {"proxy": {"url": proxy.url}}
        found = only(await asked(f"http://hub.test:{hub.port}", retries=0, top=top), NAME)
    assert found.outcome is Outcome.PROBLEM
    assert "it asks for a login (407)" in found.text
    assert found.advice == f"check proxy: {PLACE}"


# ---- mirrors of it ----


async def test_mirrors_are_asked_as_mirrors(hub: FakeUpstream) -> None:
    async with FakeUpstream() as near:
        down = f"http://127.0.0.1:{free_port()}"
        found = await asked(hub.url, mirrors=[{"url": near.url}, {"url": down}], retries=0)
        assert [(one.name, one.outcome) for one in found if "clock" not in one.name] == [
            (NAME, Outcome.OK),
            (f"mirror {near.netloc} of {UP}", Outcome.OK),
            (f"mirror {down.removeprefix('http://')} of {UP}", Outcome.WARNING),
        ]
        assert near.requests("GET", "/v2/")[0].query == {"ns": UP}
        assert hub.requests("GET", "/v2/")[0].query == {}
    assert found[2].advice.endswith(f": {PLACE}.mirrors[1]")


# ---- quotas, clocks ----


async def test_what_is_left_of_docker_hubs_pulls_costs_none(hub: FakeUpstream, login: Mapping[str, Any]) -> None:
    hub.auth, hub.users, hub.pulls = "token", {"ci": SECRET}, {"ci": 200}
    hub.add_image("ratelimitpreview/test", "latest")
    found = only(await asked(hub.url, credentials=login, names=["docker.io"]), NAME)
    assert found.text == "reachable at 127.0.0.1, as ci, 200 of 200 pulls left"
    assert found.facts["quota_remaining"] == 200
    assert hub.count("GET", "/manifests/") == 0
    hub.clear_log()
    assert "quota_remaining" not in only(await asked(hub.url, credentials=login), NAME).facts
    assert hub.count(None, "/manifests/") == 0, "only there is it known to be free"


@pytest.mark.parametrize(("seconds", "outcome"), [(0, Outcome.OK), (3600, Outcome.WARNING)])
async def test_its_clock_and_ours(hub: FakeUpstream, seconds: int, outcome: Outcome) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
    hub.fault("GET /v2/", headers={"Date": date})
    found = only(await asked(hub.url), "clock of others")
    assert found.outcome is outcome
    assert abs(found.facts["ahead_seconds"][UP] - seconds) < 60


# ---- who is asked ----


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ({"online": False}, "not asked: --offline"),
        ({"offline": True}, f"not asked: upstreams.{UP}.offline is true"),
        ({"top": {"offline": True}}, "not asked: offline is true"),
        ({"named": ("other.test",), "others": {"other.test": {"url": "http://127.0.0.1:1", "offline": True}}},
         "not among those named by --upstream"),
    ],
    ids=["option", "its-own-setting", "setting", "another-named"],
)  # fmt: skip
async def test_who_is_not_asked(hub: FakeUpstream, what: dict[str, Any], why: str) -> None:
    found = only(await asked(hub.url, **what), NAME)
    assert (found.outcome, found.text) == (Outcome.SKIPPED, why)
    assert hub.log == []


async def test_patterns_are_asked_when_one_is_named(hub: FakeUpstream) -> None:
    pattern = {"*.localhost": {"url": f"http://{{host}}:{hub.port}"}}
    found = only(await asked(hub.url, others=pattern), "upstream *.localhost")
    assert (found.outcome, found.text.partition(":")[0]) == (Outcome.SKIPPED, "a pattern")
    async with FakeProxy(names={"eu.localhost": "127.0.0.1"}) as proxy:
        pattern["*.localhost"]["proxy"] = proxy.url
        pattern["*.localhost"]["realms"] = ["eu.localhost"]
        found = only(await asked(hub.url, named=("eu.localhost",), others=pattern), "upstream eu.localhost")
    assert found.outcome is Outcome.OK
    assert found.facts["url"] == f"http://eu.localhost:{hub.port}"


async def test_some_are_asked_at_a_time(hub: FakeUpstream) -> None:
    """All at once would look like an attack, and one after the other would take for ever."""
    hub.fault("GET /v2/", delay=0.05)
    most = now = 0
    real = upstreams._ask

    async def counted(*arguments: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        try:
            return await real(*arguments)
        finally:
            now -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstreams, "_ask", counted)
        others = {f"up{number}.test": {"url": hub.url} for number in range(19)}
        found = await asked(hub.url, others=others)
    assert most == upstreams.AT_ONCE
    assert len([one for one in found if one.outcome is Outcome.OK]) == 21
