"""Where logins come from: password files, docker's config.json, credential helpers; and programs run within bounds."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from mirror.config import Credentials
from mirror.upstream import helper
from mirror.upstream.credentials import ASKED_AGAIN, FILE_LIMIT, HELPER_KEPT, Account, Helper, account_of
from mirror.upstream.docker_config import HUB, Malformed, find, server_of
from mirror.upstream.logins import IdentityToken, Login, LoginFailed, Password, RegistryToken
from mirror.upstream.program import SaidTooMuch, TookTooLong, ask
from mirror.upstream.transport import Timeouts
from tests.helpers import Helpers
from tests.images import Clock, until

SECRET = "hunter2-never-shown"
QUAY = URL("https://quay.io")
DOCKER_HUB = URL("https://registry-1.docker.io")


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENTRY = {"auth": packed(f"robot:{SECRET}")}
ROBOT = Password("robot", SECRET)


# ---- docker's config.json ----


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://quay.io", "quay.io"),
        ("https://quay.io/prefix", "quay.io"),
        ("https://QUAY.io:443", "quay.io"),
        ("http://quay.io:80", "quay.io"),
        ("https://quay.io:80", "quay.io:80"),
        ("http://[::1]:5000", "[::1]:5000"),
        ("https://docker.io", HUB),
        ("https://index.docker.io", HUB),
        ("https://registry-1.docker.io", HUB),
        ("https://registry-1.docker.io:444", "registry-1.docker.io:444"),
        ("https://registry-1.docker.io.evil.com", "registry-1.docker.io.evil.com"),
    ],
)
def test_the_name_a_login_is_kept_under(url: str, server: str) -> None:
    assert server_of(URL(url)) == server


@pytest.mark.parametrize(
    ("url", "key", "found"),
    [
        ("https://quay.io", "quay.io", True),
        ("https://quay.io", "https://quay.io", True),
        ("https://quay.io", "https://quay.io/v2/", True),
        ("https://quay.io", "quay.io/team", True),
        ("https://quay.io", "QUAY.IO", True),
        ("https://quay.io", "quay.io:443", True),
        ("https://quay.io:443", "quay.io", True),
        ("https://quay.io", "quay.io:80", False),
        ("https://quay.io:8443", "quay.io", False),
        ("https://quay.io:8443", "quay.io:8443", True),
        ("http://127.0.0.1:5000", "127.0.0.1:5000", True),
        ("https://quay.io", "notquay.io", False),
        ("https://quay.io", "quay.io.evil.com", False),
        ("https://quay.io", "https://evil.com/quay.io", False),
        ("https://quay.io", "https://quay.io@evil.com", False),
        ("https://quay.io", "io", False),
        ("https://quay.io", "", False),
        ("https://quay.io", "https://[", False),
        ("https://registry-1.docker.io", HUB, True),
        ("https://registry-1.docker.io", "docker.io", True),
        ("https://registry-1.docker.io", "index.docker.io", True),
        ("https://registry-1.docker.io", "https://registry-1.docker.io", True),
        ("https://docker.io", HUB, True),
        ("https://registry-1.docker.io", "auth.docker.io", False),
        ("https://quay.io", HUB, False),
    ],
)
def test_keys_of_auths(url: str, key: str, found: bool) -> None:
    raw = json.dumps({"auths": {key: ENTRY}}).encode()
    assert find(raw, URL(url)) == (ROBOT if found else None)
    raw = json.dumps({"credHelpers": {key: "cloud"}}).encode()
    assert find(raw, URL(url)) == ("cloud" if found else None)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("url", "keys"),
    [
        (QUAY, ["quay.io", "https://quay.io", "https://quay.io/v2/"]),
        (QUAY, ["quay.io", "quay.io/team"]),
        (QUAY, ["https://quay.io", "quay.io/team"]),
        (DOCKER_HUB, [HUB, "docker.io"]),
        (DOCKER_HUB, ["docker.io", "https://index.docker.io/v2/team"]),
    ],
)
def test_of_several_keys_the_closest_counts(url: URL, keys: list[str], backwards: bool) -> None:
    auths = {key: {"auth": packed(f"{at}:x")} for at, key in enumerate(keys)}
    if backwards:
        auths = dict(reversed(auths.items()))
    assert find(json.dumps({"auths": auths}).encode(), url) == Password("0", "x")


@pytest.mark.parametrize(
    ("entry", "login"),
    [
        (ENTRY, ROBOT),
        ({"auth": packed("robot:a:b:c")}, Password("robot", "a:b:c")),
        ({"auth": packed("rübe:pässwort")}, Password("rübe", "pässwort")),
        ({"auth": packed(f"robot:{SECRET}\0\0")}, ROBOT),
        ({"username": "robot", "password": SECRET}, ROBOT),
        ({"username": "other", "password": "x", **ENTRY}, ROBOT),
        ({"auth": packed("_json_key:{\n}")}, Password("_json_key", "{\n}")),
        ({"identitytoken": SECRET}, IdentityToken(SECRET)),
        (
            {"auth": packed("00000000-0000-0000-0000-000000000000:"), "identitytoken": SECRET},
            IdentityToken(SECRET),
        ),
        ({"registrytoken": SECRET}, RegistryToken(SECRET)),
        ({"registrytoken": SECRET, "identitytoken": "x", **ENTRY}, RegistryToken(SECRET)),
        ({"auth": "", "username": "", "identitytoken": None, "email": "a@b"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_entries_of_auths(entry: Any, login: Login | None) -> None:
    assert find(json.dumps({"auths": {"quay.io": entry}}).encode(), QUAY) == login


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"credHelpers": {"quay.io": "one"}, "credsStore": "two", "auths": {"quay.io": ENTRY}}, "one"),
        ({"credHelpers": {"ghcr.io": "one"}, "credsStore": "two", "auths": {"quay.io": ENTRY}}, "two"),
        ({"credHelpers": {"ghcr.io": "one"}, "credsStore": "", "auths": {"quay.io": ENTRY}}, ROBOT),
        ({"credHelpers": {"quay.io": ""}, "credsStore": "two", "auths": {"quay.io": ENTRY}}, ROBOT),
        ({"credHelpers": None, "auths": None}, None),
        ({}, None),
    ],
)
def test_helper_of_the_host_then_of_all_then_the_file(config: Any, found: Any) -> None:
    assert find(json.dumps(config).encode(), QUAY) == found


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        f'"{SECRET}'.encode(),
        json.dumps({"auths": SECRET}).encode(),
        json.dumps({"auths": {"quay.io": SECRET}}).encode(),
        json.dumps({"auths": {"quay.io": {"auth": SECRET}}}).encode(),
        json.dumps({"auths": {"quay.io": {"auth": packed(SECRET)}}}).encode(),
        json.dumps({"auths": {"quay.io": {"auth": base64.b64encode(b"\xff:" + SECRET.encode()).decode()}}}).encode(),
        json.dumps({"auths": {"quay.io": {"auth": [SECRET]}}}).encode(),
        json.dumps({"auths": {"quay.io": {"username": SECRET}}}).encode(),
        json.dumps({"auths": {"quay.io": {"password": SECRET}}}).encode(),
        json.dumps({"auths": {"quay.io": {"username": f"a:{SECRET}", "password": "x"}}}).encode(),
        json.dumps({"auths": {"quay.io": {"identitytoken": [SECRET]}}}).encode(),
        json.dumps({"auths": {"quay.io": {"registrytoken": f"{SECRET}\r\nX: y"}}}).encode(),
        json.dumps({"credHelpers": {"quay.io": [SECRET]}}).encode(),
        json.dumps({"credHelpers": {"quay.io": f"../{SECRET}"}}).encode(),
        json.dumps({"credHelpers": [SECRET]}).encode(),
        json.dumps({"credsStore": f"/bin/{SECRET}"}).encode(),
    ],
    ids=range(20),
)
async def test_a_malformed_file_is_told_without_its_content(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        find(raw, QUAY)
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(LoginFailed, match=r"docker_config config\.json .* check credentials\.docker_config") as caught:
        await account_of(Credentials(docker_config=path), QUAY).login()
    told: BaseException | None = caught.value
    while told is not None:
        assert SECRET not in str(told) + repr(vars(told))
        told = told.__cause__


def test_what_is_said_of_other_registries_need_make_no_sense() -> None:
    raw = json.dumps({"auths": {"ghcr.io": [], "quay.io": ENTRY}, "credHelpers": {"ghcr.io": 5}, "HttpHeaders": 1})
    assert find(raw.encode(), QUAY) == ROBOT


# ---- passwords of the settings ----


async def test_a_password_of_the_settings_stays() -> None:
    account = account_of(Credentials(username="robot", password=SECRET), QUAY)
    assert await account.login() == Password("robot", SECRET)
    account.refused()
    assert await account.login() == Password("robot", SECRET)
    assert (account.label, account.setting) == ("robot", "credentials.password")
    assert SECRET not in f"{account!r} {vars(account)!r}"
    await account.close()


# ---- files ----


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("one\n")
    account = account_of(Credentials(username="robot", password_file=path), QUAY)
    assert await account.login() == Password("robot", "one")
    path.write_text("two\r\n")  # of the same size, and maybe in the same tick of the file system's clock
    assert await account.login() == Password("robot", "two")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": {}}))
    account = account_of(Credentials(docker_config=path), QUAY)
    assert await account.login() is None
    other = tmp_path / "other"
    other.write_text(json.dumps({"auths": {"quay.io": ENTRY}}))
    other.rename(path)
    assert await account.login() == ROBOT


@pytest.mark.parametrize("way", ["password_file", "docker_config"])
@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "not a file"),
        (lambda path: os.mkfifo(path), "not a file"),
        (lambda path: path.write_bytes(b"a" * (FILE_LIMIT + 1)), "longer than"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8|not JSON"),
    ],
    ids=["gone", "folder", "pipe", "long", "binary"],
)
async def test_files_that_cannot_be_used(
    tmp_path: Path, way: str, prepare: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    user = {"username": "robot"} if way == "password_file" else {}
    account = account_of(Credentials(**{way: path}, **user), QUAY)
    path.unlink()
    prepare(path)
    with pytest.raises(LoginFailed, match=f"(?:{reason}).*credentials\\.{way}") as caught:
        await account.login()
    assert str(tmp_path) not in caught.value.message


# ---- helpers ----


@pytest.fixture
def helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helpers:
    return Helpers(tmp_path / "bin", monkeypatch)


@pytest.fixture
async def account() -> AsyncIterator[Callable[..., Helper]]:
    made: list[Account] = []

    def build(clock: Clock | None = None) -> Helper:
        one = Helper("cloud", "quay.io", setting="credentials.helper", clock=clock or Clock())
        made.append(one)
        return one

    yield build
    for one in made:
        await one.close()


Make = Callable[..., Helper]


@pytest.mark.parametrize(
    ("user", "secret", "login"),
    [
        ("AWS", SECRET, Password("AWS", SECRET)),
        ("_json_key", '{"a": "b\n"}', Password("_json_key", '{"a": "b\n"}')),
        ("<token>", SECRET, IdentityToken(SECRET)),
        ("", "", None),
    ],
)
async def test_what_a_helper_says(helpers: Helpers, account: Make, user: str, secret: str, login: Login | None) -> None:
    helpers.answering("cloud", user, secret)
    assert await account().login() == login
    assert helpers.questions("cloud") == ["get quay.io"]


@pytest.mark.parametrize("stream", [1, 2], ids=["output", "errors"])
async def test_a_helper_that_has_nothing(helpers: Helpers, account: Make, stream: int) -> None:
    helpers.write("cloud", f"echo 'Credentials not found in native keychain' >&{stream}; exit 1")
    assert await account().login() is None


@pytest.mark.parametrize("url", ["https://registry-1.docker.io", "https://docker.io"])
async def test_docker_hub_has_a_name_of_its_own(helpers: Helpers, url: str, tmp_path: Path) -> None:
    helpers.answering("cloud", "robot", SECRET)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "cloud"}))
    for one in (Credentials(helper="cloud"), Credentials(docker_config=path)):
        assert await account_of(one, URL(url)).login() == ROBOT
    assert helpers.questions("cloud") == [f"get {HUB}"] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 1", "failed (exit status 1)"),
        (f"echo {SECRET} >&2; kill -9 $$", "failed (signal 9)"),
        (f"echo {SECRET}", "not JSON"),
        (f"echo '[\"{SECRET}\"]'", "not JSON"),
        (f'echo \'{{"Username": 1, "Secret": "{SECRET}"}}\'', "not JSON"),
        (f'echo \'{{"ServerURL": "{SECRET}", "Username": "robot"}}\'', "not JSON"),
        ("", "not JSON"),
        (f"while :; do echo {SECRET}; done", "wrote more than 65536 bytes"),
        (f"while :; do echo {SECRET} >&2; done", "wrote more than 65536 bytes"),
    ],
    ids=["status", "signal", "garbage", "list", "user", "no-secret", "silence", "much-output", "much-errors"],
)
async def test_a_helper_that_fails_is_told_without_what_it_said(
    helpers: Helpers, account: Make, body: str, reason: str
) -> None:
    helpers.write("cloud", body)
    with pytest.raises(LoginFailed) as caught:
        await account().login()
    message = caught.value.message
    assert message.startswith("the program docker-credential-cloud ")
    assert reason in message
    assert 'run "echo quay.io | docker-credential-cloud get"' in message
    assert SECRET not in message
    helpers.assert_gone("cloud")


async def test_a_helper_that_is_not_there(helpers: Helpers, account: Make) -> None:
    with pytest.raises(LoginFailed, match=r"docker-credential-cloud is not there; install it .* credentials\.helper"):
        await account().login()
    helpers.write("cloud", "").chmod(0o644)
    with pytest.raises(LoginFailed, match="cannot be run"):
        await account().login()
    path = helpers.write("cloud", "")
    path.write_bytes(b"\0\0\0\0")
    with pytest.raises(LoginFailed, match="cannot be run"):
        await account().login()


async def test_a_helper_that_hangs_is_ended_with_all_it_started(
    helpers: Helpers, account: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helper, "TIME_LIMIT", 1.5)
    # the second one holds the pipes when the first has gone
    helpers.write("cloud", "trap '' TERM; sleep 1000 & echo $! >>$0.pids; wait; wait")
    with pytest.raises(LoginFailed, match=r"did not answer within 1\.5 s and was ended"):
        await account().login()
    assert len(helpers.pids("cloud")) == 2
    await until(lambda: helpers.gone("cloud"), "the helper and its child are gone")
    helpers.assert_gone("cloud")
    helpers.write("cloud", "sleep 1000 & echo $! >>$0.pids")
    with pytest.raises(LoginFailed, match="did not answer"):
        await account().login()
    await until(lambda: helpers.gone("cloud"), "what a helper left behind is gone")


async def test_one_question_for_all_who_wait(helpers: Helpers, account: Make) -> None:
    opened = helpers.gated("cloud", "robot", SECRET)
    one = account()
    waiters = [asyncio.create_task(one.login()) for _ in range(20)]
    await until(lambda: helpers.questions("cloud"), "the helper was asked")
    waiters[0].cancel()  # the one who began it
    await asyncio.wait([waiters[0]])
    opened()
    assert await asyncio.gather(*waiters[1:]) == [ROBOT] * 19
    assert len(helpers.questions("cloud")) == 1


async def test_what_a_helper_said_is_remembered_for_a_while(helpers: Helpers, account: Make) -> None:
    clock = Clock()
    one = account(clock)
    helpers.answering("cloud", "robot", SECRET)
    await one.login()
    helpers.answering("cloud", "robot", "new")
    clock.advance(HELPER_KEPT - 1)
    assert await one.login() == ROBOT
    clock.advance(2)
    assert await one.login() == Password("robot", "new")
    assert len(helpers.questions("cloud")) == 2


async def test_a_refused_answer_is_forgotten_but_not_all_the_time(helpers: Helpers, account: Make) -> None:
    clock = Clock()
    one = account(clock)
    for at in range(3):
        helpers.answering("cloud", "robot", f"{at}")
        assert await one.login() == Password("robot", f"{min(at, 1)}")
        one.refused()
        clock.advance(0.4 * ASKED_AGAIN)
    clock.advance(ASKED_AGAIN)
    one.refused()
    assert await one.login() == Password("robot", "2")
    assert len(helpers.questions("cloud")) == 3


async def test_a_failure_is_remembered_for_a_moment(helpers: Helpers, account: Make) -> None:
    clock = Clock()
    one = account(clock)
    helpers.write("cloud", "exit 3")
    for _ in range(2):
        with pytest.raises(LoginFailed, match="exit status 3"):
            await one.login()
        one.refused()
    assert len(helpers.questions("cloud")) == 1
    helpers.answering("cloud", "robot", SECRET)
    clock.advance(ASKED_AGAIN)
    assert await one.login() == ROBOT


@pytest.mark.parametrize("way", ["helper", "docker_config"])
async def test_closing_ends_a_helper_that_runs(helpers: Helpers, tmp_path: Path, way: str) -> None:
    helpers.gated("cloud", "robot", SECRET)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": {"quay.io": "cloud"}}))
    given = Credentials(docker_config=path) if way == "docker_config" else Credentials(helper="cloud")
    one = account_of(given, QUAY)
    waiting = asyncio.create_task(one.login())
    await until(lambda: helpers.questions("cloud"), "the helper was asked")
    await one.close()
    helpers.assert_gone("cloud")
    assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_a_helper_of_a_docker_config_follows_the_file(helpers: Helpers, tmp_path: Path) -> None:
    helpers.answering("one", "robot", "1")
    helpers.answering("two", "robot", "2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credHelpers": {"quay.io": "one"}, "credsStore": "two"}))
    account = account_of(Credentials(docker_config=path), QUAY)
    assert [await account.login() for _ in range(2)] == [Password("robot", "1")] * 2
    path.write_text(json.dumps({"credHelpers": {}, "credsStore": "two"}))
    assert await account.login() == Password("robot", "2")
    helpers.answering("two", "robot", "3")
    assert await account.login() == Password("robot", "2")
    account.refused()
    assert await account.login() == Password("robot", "3")
    assert (len(helpers.questions("one")), len(helpers.questions("two"))) == (1, 2)


async def test_a_helper_of_a_docker_config_that_fails_names_that_setting(helpers: Helpers, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "nowhere", "auths": {"quay.io": ENTRY}}))
    with pytest.raises(LoginFailed, match=r"docker-credential-nowhere .* change credentials\.docker_config"):
        await account_of(Credentials(docker_config=path), QUAY).login()


# ---- programs ----


async def test_a_program_is_asked_and_answers() -> None:
    said = await ask(["sh", "-c", "cat; echo two >&2; exit 3"], b"one", limit=10, most=100)
    assert (said.status, said.output, said.errors) == (3, b"one", b"two\n")
    assert b"one" not in repr(said).encode()


async def test_a_program_need_not_read_its_question() -> None:
    said = await ask(["sh", "-c", "exec <&-; echo fine"], b"x" * 1000, limit=10, most=100)
    assert (said.status, said.output) == (0, b"fine\n")


async def test_a_program_has_a_session_of_its_own() -> None:
    said = await ask(["sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat"], b"", limit=10, most=100)
    pid, group, session = said.output.split()
    assert pid == group == session
    assert int(session) != os.getsid(0)


async def test_as_much_as_is_taken_and_not_one_byte_more() -> None:
    for stream in ("", ">&2"):
        command = ["sh", "-c", f"printf %0100d 1 {stream}"]
        assert (await ask(command, b"", limit=10, most=100)).status == 0
        with pytest.raises(SaidTooMuch):
            await ask(command, b"", limit=10, most=99)


@pytest.mark.parametrize("script", ["sleep 20", "exec >&- 2>&-; sleep 20", "while :; do echo; sleep 0.01; done"])
async def test_a_program_has_a_time_limit(script: str) -> None:
    with pytest.raises(TookTooLong):
        await ask(["sh", "-c", script], b"", limit=0.2, most=10_000)


async def test_who_no_longer_waits_ends_the_program(tmp_path: Path) -> None:
    asking = asyncio.create_task(
        ask(["sh", "-c", f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; sleep 1000"],
            b"", limit=60, most=100)
    )  # fmt: skip
    await until((tmp_path / "pid").exists, "it runs")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with pytest.raises(ProcessLookupError):  # not even a zombie is left
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


def test_helpers_have_less_time_than_a_client_has_patience() -> None:
    assert Timeouts().headers > helper.TIME_LIMIT
