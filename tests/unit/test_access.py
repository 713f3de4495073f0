"""Users, passwords, tokens, rules: each part of the access layer by itself."""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import hmac
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import bcrypt
import jwt
import pytest

from mirror.access import authenticators, recent
from mirror.access import gate as gate_module
from mirror.access.advice import advice, open_upstreams
from mirror.access.authenticators import Passwords
from mirror.access.credentials import Login, Malformed, Token, parse_authorization
from mirror.access.gate import Gate
from mirror.access.identity import ANONYMOUS, Action, Principal
from mirror.access.listeners import through_loopback
from mirror.access.policy import Policy
from mirror.access.tokens import TokenInvalid, Tokens
from mirror.access.users import User, Users, parse_users
from mirror.config import Access, Credentials, ListenAddress, Listener, Tls, Upstream
from mirror.oci.errors import Busy, Denied, Unauthorized
from mirror.worker import StartupError

SECRET = b"the root's secret" * 2


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def hashed(password: str, cost: int = 4, prefix: bytes = b"2b") -> bytes:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).replace(b"$2b$", b"$" + prefix + b"$")


def line(name: str, password: str, **options: Any) -> bytes:
    return name.encode() + b":" + hashed(password, **options) + b"\n"


def basic(text: str | bytes) -> str:
    return "Basic " + base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


# ---- the Authorization header ----


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        (basic("u:p"), Login("u", b"p")),
        (basic("u:p").replace("Basic", "bAsIc"), Login("u", b"p")),
        (basic("u:p").replace(" ", "   "), Login("u", b"p")),
        (basic("u:").rstrip("="), Login("u", b"")),
        (basic("user:p").rstrip("="), Login("user", b"p")),
        (basic("u:p:q:"), Login("u", b"p:q:")),
        (basic("räksmörgås:pässwörd"), Login("räksmörgås", "pässwörd".encode())),
        (basic("u:\udcff".encode("utf-8", "surrogateescape")), Login("u", b"\xff")),
        (basic(":"), None),
        (basic(":p"), None),
        (basic(""), None),
        ("Basic", None),
        ("Bearer abc", Token("abc")),
        ("BEARER  abc", Token("abc")),
    ],
)
def test_authorization_headers(header: str | None, expected: Login | Token | None) -> None:
    assert parse_authorization(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        "Basic !!!!",
        "Basic dTpw dTpw",
        "Basic dTpw=x",
        "Basic d",
        basic("no colon"),
        basic(b"\xff\xfe:p"),
        "Bearer",
        "Bearer ",
        "Negotiate abc",
        "dTpw",
        "Basic ü",
        "Basic \udcff",
        "Bearer \udcff",
        "Basic " + "A" * 9000,
        "Bearer " + "A" * 9000,
        "\x00",
    ],
)
def test_headers_that_cannot_be_read(header: str) -> None:
    with pytest.raises(Malformed):
        parse_authorization(header)


def test_no_secret_is_shown() -> None:
    shown = f"{parse_authorization(basic('u:hunter2'))!r} {Token('hunter2')!r} {User(name='u', hash=b'hunter2')!r}"
    assert "hunter2" not in shown
    assert "'u'" in shown


# ---- the file of users ----


def test_lines_of_the_file() -> None:
    good = {prefix: hashed("p", prefix=prefix.encode()) for prefix in ("2y", "2a", "2b")}
    raw = b"".join(
        [
            b"\xef\xbb\xbf# a comment\n",
            b"\n",
            b"a:" + good["2y"] + b"\n",
            b"b:" + good["2a"] + b"\r\n",
            "räksmörgås:".encode() + good["2b"] + b"  \n",
            b"md5:$apr1$abc$def\n",
            b"sha:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n",
            b"plain:hunter2\n",
            b"no colon\n",
            b":" + good["2b"] + b"\n",
            b"\xff:" + good["2b"] + b"\n",
            b"a:" + good["2b"] + b"\n",
            b"cut:" + good["2b"][:-1] + b"\n",
            b"dear:$2b$31$" + good["2b"][7:] + b"\n",
            b"odd:" + good["2b"][:28] + b"z" + good["2b"][29:] + b"\n",
            b"more:" + good["2b"] + b":1000\n",
        ]
    )
    users, complaints = parse_users(raw)
    assert {user.name: user.hash for user in users.values()} == {
        "a": good["2y"],
        "b": good["2a"],
        "räksmörgås": good["2b"],
    }
    assert {int(text.split(":")[0].removeprefix("line ")) for text in complaints} == set(range(6, 17))
    assert all("hunter2" not in text and "$" not in text for text in complaints)
    assert "line 6: a hash that is not of bcrypt (make it by htpasswd -B); this line is not used" in complaints
    assert "line 12: a name that an earlier line has; this line is not used" in complaints
    assert "line 14: a bcrypt cost that is not 4 to 16; this line is not used" in complaints


def test_every_hash_that_is_taken_can_be_checked() -> None:
    for prefix in (b"2y", b"2a", b"2b"):
        (user,) = parse_users(line("u", "p", prefix=prefix))[0].values()
        assert bcrypt.checkpw(b"p", user.hash)
    for last in b"./AZaz09Oeu":
        raw = bytearray(line("u", "p"))
        raw[len("u:") + 28] = last
        for user in parse_users(bytes(raw))[0].values():
            assert bcrypt.checkpw(b"q", user.hash) is False


@asynccontextmanager
async def users_of(path: Path, clock: Clock) -> AsyncIterator[Users]:
    users = Users(path, clock=clock)
    await users.refresh()
    try:
        yield users
    finally:
        await users.close()


async def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("a", "p") + line("b", "p"))
    caplog.set_level(logging.INFO)
    async with users_of(path, clock) as users:
        assert users.names() == {"a", "b"}
        assert not users.due()
        path.write_bytes(line("a", "p"))
        assert not users.due(), "at most once a second"
        clock.now += 1
        assert users.due()
        await users.refresh()
        assert users.names() == {"a"}
        assert users.get("b") is None
        assert [record.getMessage() for record in caplog.records] == [
            f"access.htpasswd_file: {path} has changed; users: 1"
        ]


async def test_a_change_that_times_and_sizes_do_not_show(tmp_path: Path) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("a", "p"))
    os.utime(path, ns=(1, 1))
    async with users_of(path, clock) as users:
        before = users.get("a")
        path.write_bytes(line("a", "q"))
        os.utime(path, ns=(1, 1))
        clock.now += 1
        await users.refresh()
        assert before is not None
        assert users.get("a") not in (None, before)


@pytest.mark.parametrize("broken", ["gone", "folder", "unusable", "huge", "pipe"])
async def test_a_broken_file_keeps_the_users_and_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    path, clock = tmp_path / "users", Clock()
    good = line("a", "p")
    path.write_bytes(good)
    async with users_of(path, clock) as users:
        path.unlink()
        match broken:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "unusable":
                path.write_bytes(b"hunter2\n")
            case "huge":
                path.write_bytes(b"#" * (1024**2 + 1))
        for _ in range(3):
            clock.now += 1
            await users.refresh()
        assert users.names() == {"a"}
        assert users.failure
        said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len([text for text in said if text.endswith("the users of before stay")]) == 1
        assert len(said) == (2 if broken == "unusable" else 1)
        assert "hunter2" not in caplog.text
        (path.rmdir if broken == "folder" else lambda: path.unlink(missing_ok=True))()
        path.write_bytes(good)
        clock.now += 1
        await users.refresh()
        assert not users.failure
        assert caplog.records[-1].getMessage() == f"access.htpasswd_file: {path} can be used again"


async def test_an_empty_file_has_no_users(tmp_path: Path) -> None:
    """As it is after the last user was removed: that is no accident to protect from."""
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("a", "p"))
    async with users_of(path, clock) as users:
        path.write_bytes(b"# nobody\n")
        clock.now += 1
        await users.refresh()
        assert users.names() == frozenset()
        assert not users.failure


async def test_bad_lines_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("a", "p") + b"b:$apr1$x$y\n")
    async with users_of(path, clock) as users:
        for more in (b"", b"\n", line("c", "p")):
            path.write_bytes(path.read_bytes() + more)
            clock.now += 1
            await users.refresh()
        assert users.names() == {"a", "c"}
    assert len([record for record in caplog.records if "line 2: a hash that is not of bcrypt" in record.message]) == 1


async def test_a_file_in_the_midst_of_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "users", Clock()
    whole = line("a", "p") + line("b", "p")
    path.write_bytes(whole)
    async with users_of(path, clock) as users:
        from_now = whole + line("c", "p")
        path.write_bytes(from_now[:-20])
        real = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (path.write_bytes(from_now), real(seconds))[1])
        clock.now += 1
        await users.refresh()
        assert users.names() == {"a", "b", "c"}


async def test_all_who_ask_wait_for_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("a", "p"))
    async with users_of(path, clock) as users:
        looks: list[int] = []
        real = os.open
        monkeypatch.setattr(os, "open", lambda *a, **k: (looks.append(1), real(*a, **k))[1])
        clock.now += 1
        await asyncio.gather(*(users.refresh() for _ in range(10)))
        assert len(looks) == 1


# ---- passwords ----


class Checks:
    """Counts the checks of bcrypt, and where they ran; may hold them back."""

    def __init__(self) -> None:
        self.made: list[bytes] = []
        self.threads: set[int] = set()
        self.running = self.most = 0
        self.go = threading.Event()
        self.go.set()
        self._lock = threading.Lock()

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        with self._lock:
            self.made.append(hashed)
            self.threads.add(threading.get_ident())
            self.running += 1
            self.most = max(self.most, self.running)
        self.go.wait(10)
        try:
            return REAL_CHECK(password, hashed)
        finally:
            with self._lock:
                self.running -= 1


REAL_CHECK = bcrypt.checkpw


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    made = Checks()
    monkeypatch.setattr(bcrypt, "checkpw", made)
    yield made
    made.go.set()


@asynccontextmanager
async def passwords_of(path: Path, raw: bytes) -> AsyncIterator[tuple[Passwords, Users, Clock]]:
    path.write_bytes(raw)
    clock = Clock()
    async with users_of(path, clock) as users:
        passwords = Passwords(users, secret=SECRET, clock=clock)
        try:
            yield passwords, users, clock
        finally:
            passwords.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def login(name: str, password: str) -> Login:
    return Login(name, password.encode())


async def test_a_login_is_checked_in_a_thread_and_remembered_for_a_while(tmp_path: Path, checks: Checks) -> None:
    async with passwords_of(tmp_path / "users", line("u", "p")) as (passwords, _, clock):
        for _ in range(1000):
            user = await passwords.verify(login("u", "p"), "10.0.0.1")
            assert user is not None
            assert user.name == "u"
        assert len(checks.made) == 1
        assert threading.get_ident() not in checks.threads
        clock.now += authenticators.REMEMBERED + 1
        assert await passwords.verify(login("u", "p"), "10.0.0.1")
        assert len(checks.made) == 2


async def test_a_wrong_login_is_not_hammered(tmp_path: Path, checks: Checks) -> None:
    async with passwords_of(tmp_path / "users", line("u", "p")) as (passwords, _, clock):
        for name in ("u", "nobody"):
            before = len(checks.made)
            for _ in range(100):
                assert await passwords.verify(login(name, "wrong"), None) is None
            assert len(checks.made) == before + 1
        clock.now += authenticators.REFUSED + 1
        assert await passwords.verify(login("u", "wrong"), None) is None
        assert len(checks.made) == 3
        assert await passwords.verify(login("u", "p"), None), "and the right one is still right"


@pytest.mark.parametrize("password", ["", "p", "ö" * 36, "x" * 72, "a\0b", "p:q", "p\n"])
async def test_passwords(tmp_path: Path, password: str) -> None:
    async with passwords_of(tmp_path / "users", line("ü", password)) as (passwords, _, _):
        assert await passwords.verify(login("ü", password), None)
        for other in (password + "x", password[:-1] + "y", "other"):
            assert await passwords.verify(login("ü", other), None) is None
        assert await passwords.verify(login("u", password), None) is None


async def test_what_bcrypt_would_cut_off_is_refused(tmp_path: Path, checks: Checks) -> None:
    async with passwords_of(tmp_path / "users", line("u", "x" * 72)) as (passwords, _, _):
        for extra in ("x", "y", "x" * 4000):
            assert await passwords.verify(login("u", "x" * 72 + extra), None) is None
        assert not checks.made
        assert await passwords.verify(login("u", "x" * 72), None)


async def test_two_logins_that_run_together_are_not_one(tmp_path: Path) -> None:
    """``ab:c`` and ``a:bc`` have the same bytes."""
    same = hashed("c")
    async with passwords_of(tmp_path / "users", b"ab:" + same + b"\na:" + same + b"\n") as (passwords, _, _):
        assert await passwords.verify(login("ab", "c"), None)
        assert await passwords.verify(login("a", "bc"), None) is None
        assert await passwords.verify(login("a", "c"), None)


async def test_a_changed_password_is_forgotten_at_once(tmp_path: Path) -> None:
    path = tmp_path / "users"
    async with passwords_of(path, line("u", "old") + line("v", "p")) as (passwords, users, clock):
        assert await passwords.verify(login("u", "old"), None)
        assert await passwords.verify(login("v", "p"), None)
        assert await passwords.verify(login("u", "new"), None) is None
        path.write_bytes(line("u", "new"))
        clock.now += 1
        await users.refresh()
        assert await passwords.verify(login("u", "old"), None) is None
        assert await passwords.verify(login("v", "p"), None) is None
        assert await passwords.verify(login("u", "new"), None), "though it was refused a moment ago"


async def test_a_user_removed_during_the_check(tmp_path: Path, checks: Checks) -> None:
    path = tmp_path / "users"
    async with passwords_of(path, line("u", "p") + line("v", "p")) as (passwords, users, clock):
        checks.go.clear()
        pending = asyncio.create_task(passwords.verify(login("u", "p"), None))
        await until(lambda: bool(checks.made))
        path.write_bytes(line("v", "p"))
        clock.now += 1
        await users.refresh()
        checks.go.set()
        assert await pending is None


async def test_users_there_are_not_cost_as_much(tmp_path: Path, checks: Checks) -> None:
    """The checks made are the time taken: the same number, of hashes of the same cost."""
    raw = line("a", "p", cost=6) + line("b", "p", cost=6)
    async with passwords_of(tmp_path / "users", raw) as (passwords, _, _):
        for name in ("a", "nobody", "somebody", "räksmörgås"):
            assert await passwords.verify(login(name, "wrong"), None) is None
        assert [made[:7] for made in checks.made] == [b"$2b$06$"] * 4


async def test_a_stranger_seems_to_be_one_of_the_users(tmp_path: Path, checks: Checks) -> None:
    """With different costs each name has one of them, and always the same, in every worker."""
    raw = line("a", "p", cost=4) + line("b", "p", cost=5)
    async with passwords_of(tmp_path / "users", raw) as (passwords, users, clock):
        names = [f"stranger{number}" for number in range(20)]
        for name in names:
            await passwords.verify(login(name, "wrong"), None)
        first = [made[:7] for made in checks.made]
        assert set(first) == {b"$2b$04$", b"$2b$05$"}
        other = Passwords(users, secret=SECRET, clock=clock)
        for name in names:
            await other.verify(login(name, "wrong"), None)
        other.close()
        assert [made[:7] for made in checks.made[20:]] == first


async def test_the_time_of_a_refusal_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured as the CPU time of bcrypt: without the decoy it would be none."""
    spent: dict[str, list[float]] = {"a": [], "nobody": []}

    def measured(password: bytes, hashed: bytes) -> bool:
        began = time.thread_time()
        try:
            return REAL_CHECK(password, hashed)
        finally:
            spent[password.decode().partition(" ")[0]].append(time.thread_time() - began)

    monkeypatch.setattr(bcrypt, "checkpw", measured)
    async with passwords_of(tmp_path / "users", line("a", "p", cost=8)) as (passwords, _, _):
        for attempt in range(5):
            for name in spent:
                assert await passwords.verify(login(name, f"{name} {attempt}"), None) is None
    assert len(spent["a"]) == len(spent["nobody"]) == 5
    assert 0.5 < min(spent["nobody"]) / min(spent["a"]) < 2


async def test_the_decoy_is_nobodys_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: True)
    async with passwords_of(tmp_path / "users", line("u", "p")) as (passwords, _, _):
        assert await passwords.verify(login("u", "p"), None)
        assert await passwords.verify(login("nobody", "p"), None) is None


async def test_a_flood_is_bounded_and_others_are_served(tmp_path: Path, checks: Checks) -> None:
    """One address may wait for so many checks, one at a time; another address has its own turn."""
    async with passwords_of(tmp_path / "users", line("u", "p")) as (passwords, _, _):
        assert await passwords.verify(login("u", "p"), "10.0.0.9")
        assert await passwords.verify(login("u", "known to be wrong"), "10.0.0.9") is None
        checks.made.clear()
        checks.go.clear()
        flood = [
            asyncio.create_task(passwords.verify(login("u", f"guess{number}"), f"fd00::{number:x}"))
            for number in range(authenticators.WAITING)
        ]
        await until(lambda: len(checks.made) == 1)
        with pytest.raises(Busy):
            await passwords.verify(login("u", "one more"), "fd00::ffff")
        async with asyncio.timeout(5):
            assert await passwords.verify(login("u", "p"), "fd00::1"), "what is remembered waits for nothing"
            assert await passwords.verify(login("u", "known to be wrong"), "fd00::1") is None
        other = asyncio.create_task(passwords.verify(login("u", "mistaken"), "10.0.0.2"))
        third = asyncio.create_task(passwords.verify(login("u", "mistaken too"), "10.0.0.3"))
        await until(lambda: len(checks.made) == 2)
        assert checks.running == 2, "one of the flood, one of another address"
        checks.go.set()
        assert await asyncio.gather(*flood, other, third) == [None] * (authenticators.WAITING + 2)
        assert checks.most == authenticators.THREADS
        assert not passwords._lines
        assert await passwords.verify(login("u", "one more"), "fd00::ffff") is None


async def test_the_same_login_many_times_at_once_is_one_check(tmp_path: Path, checks: Checks) -> None:
    async with passwords_of(tmp_path / "users", line("u", "p")) as (passwords, _, _):
        found = await asyncio.gather(*(passwords.verify(login("u", "p"), "10.0.0.1") for _ in range(50)))
        assert all(found)
        assert len(checks.made) == 1


async def test_nothing_remembered_holds_the_password(tmp_path: Path) -> None:
    async with passwords_of(tmp_path / "users", line("u", "hunter2")) as (passwords, users, clock):
        await passwords.verify(login("u", "hunter2"), None)
        await passwords.verify(login("u", "hunter3"), None)
        kept = [*passwords._right, *passwords._wrong]
        assert len(kept) == 2
        user = users.get("u")
        assert user is not None
        for key in kept:
            assert b"hunter" not in key
        other = Passwords(users, secret=SECRET, clock=clock)
        await other.verify(login("u", "hunter2"), None)
        assert not {*other._right} & {*kept}, "each process has a key of its own"
        other.close()


# ---- tokens ----

USER = User(name="räksmörgås", hash=hashed("p"))


def test_a_token_says_who_logged_in_until_it_is_over() -> None:
    clock = Clock()
    tokens = Tokens(SECRET, service="mirror", clock=clock)
    issued = tokens.issue(USER)
    assert (issued.expires_in, issued.issued_at) == (300, int(clock.now))
    claims = tokens.verify(issued.token)
    assert (claims.name, claims.fingerprint) == (USER.name, tokens.fingerprint(USER))
    assert USER.hash not in base64.urlsafe_b64decode(issued.token.split(".")[1] + "==")
    clock.now += 299
    assert tokens.verify(issued.token).name == USER.name
    clock.now += 1
    with pytest.raises(TokenInvalid):
        tokens.verify(issued.token)
    with pytest.raises(TokenInvalid):
        Tokens(SECRET, service="mirror", clock=clock).verify(issued.token)
    clock.now -= 250
    assert Tokens(SECRET, service="mirror", clock=clock).verify(issued.token).name == USER.name, "by another worker"


def test_an_anonymous_token_names_nobody() -> None:
    tokens = Tokens(SECRET, service="mirror")
    issued = tokens.issue(None)
    assert tokens.verify(issued.token).name is None
    assert set(jwt.decode(issued.token, options={"verify_signature": False})) == {"aud", "exp", "iat"}


def test_the_fingerprint_changes_with_the_password() -> None:
    tokens = Tokens(SECRET, service="mirror")
    changed = User(name=USER.name, hash=hashed("p"))
    assert tokens.fingerprint(changed) != tokens.fingerprint(USER)
    assert Tokens(b"another root", service="mirror").fingerprint(USER) != tokens.fingerprint(USER)


def _segment(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def forged() -> Iterator[tuple[str, str]]:
    key = hashlib.blake2b(SECRET, digest_size=32, person=b"mirror tokens").digest()
    now = int(time.time())
    claims = {"aud": "mirror", "iat": now, "exp": now + 300, "sub": "root"}
    yield "none", jwt.encode(claims, None, "none")
    yield "none, cased", f"{_segment({'alg': 'nOnE', 'typ': 'JWT'})}.{_segment(claims)}."
    yield "no algorithm", f"{_segment({'typ': 'JWT'})}.{_segment(claims)}.{_segment(b'x' * 32)}"
    yield "another root", Tokens(b"another root", service="mirror").issue(USER).token
    yield "another service", Tokens(SECRET, service="other").issue(USER).token
    yield "no audience", jwt.encode({k: v for k, v in claims.items() if k != "aud"}, key, "HS256")
    yield "no end", jwt.encode({k: v for k, v in claims.items() if k != "exp"}, key, "HS256")
    yield "an end that is none", jwt.encode({**claims, "exp": "soon"}, key, "HS256")
    yield "over", jwt.encode({**claims, "exp": now - 1}, key, "HS256")
    text = f"{_segment({'alg': 'HS512', 'typ': 'JWT'})}.{_segment(claims)}"
    yield "another algorithm", f"{text}.{_segment(hmac.digest(key, text.encode(), 'sha512'))}"
    good = jwt.encode(claims, key, "HS256")
    head, body, signature = good.split(".")
    yield "another body", f"{head}.{_segment({**claims, 'sub': 'ci'})}.{signature}"
    yield "no signature", f"{head}.{body}."
    yield "cut", good[:-2]
    deep, odd = b'{"a":' + b"[" * 3000, bytes((0xFF, 0xFE))
    for what, first in {
        "deep": deep,
        "a number that is too long": b"9" * 5000,
        "a list": [1],
        "an algorithm that is a list": {"alg": ["HS256"]},
        "a key that is a list": {"alg": "HS256", "kid": [1]},
        "no text": odd,
    }.items():
        yield what, f"{_segment(first)}.{body}.{signature}"
    yield "nothing", "."
    yield "dots", "." * 8000
    yield "no token", "hunter2"


@pytest.mark.filterwarnings("ignore")  # what is refused shall be refused, not warned of
@pytest.mark.parametrize("token", dict(forged()).values(), ids=dict(forged()))
def test_tokens_that_are_none_of_ours(token: str) -> None:
    with pytest.raises(TokenInvalid):
        Tokens(SECRET, service="mirror").verify(token)


def test_the_forgers_key_is_ours() -> None:
    """Else every row above would be refused for its signature alone."""
    key = hashlib.blake2b(SECRET, digest_size=32, person=b"mirror tokens").digest()
    claims = {"aud": "mirror", "iat": 5, "exp": int(time.time()) + 300, "sub": "root"}
    assert Tokens(SECRET, service="mirror").verify(jwt.encode(claims, key, "HS256")).name == "root"


def test_verified_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens(SECRET, service="mirror")
    issued = tokens.issue(USER).token
    asked: list[str] = []
    real = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *a, **k: (asked.append("x"), real(*a, **k))[1])
    for _ in range(10):
        tokens.verify(issued)
    assert len(asked) == 1
    for _ in range(3):
        with pytest.raises(TokenInvalid):
            tokens.verify(issued + "x")
    assert len(asked) == 4


# ---- who may do what ----

FILE = Path("/etc/mirror/htpasswd")
WRITES = (Action.PUSH, Action.DELETE, Action.PURGE)
EVERYTHING = (Action.LOGIN, Action.PULL, *WRITES)


def allowed(settings: Access, name: str | None, *, loopback: bool = False) -> dict[str, str]:
    """Return what somebody may do: "yes", "login" or "no" for each action."""
    policy, found = Policy(settings), {}
    for action in EVERYTHING:
        try:
            found[action.value] = "yes" if policy.check(Principal(name=name), action, loopback=loopback) else "login"
        except Denied:
            found[action.value] = "no"
    return found


def answers(login: str, pull: str, push: str, delete: str, purge: str) -> dict[str, str]:
    return {"login": login, "pull": pull, "push": push, "delete": delete, "purge": purge}


@pytest.mark.parametrize(
    ("settings", "name", "loopback", "expected"),
    [
        (Access(), None, True, answers("yes", "yes", "yes", "yes", "yes")),
        (Access(), None, False, answers("yes", "yes", "no", "no", "no")),
        (Access(insecure_writes=True), None, False, answers("yes", "yes", "yes", "yes", "yes")),
        (Access(htpasswd_file=FILE), None, True, answers("login", "yes", "login", "login", "login")),
        (Access(htpasswd_file=FILE), None, False, answers("login", "yes", "login", "login", "login")),
        (
            Access(htpasswd_file=FILE, insecure_writes=True),
            None,
            True,
            answers("login", "yes", "login", "login", "login"),
        ),
        (
            Access(htpasswd_file=FILE, anonymous="none"),
            None,
            True,
            answers("login", "login", "login", "login", "login"),
        ),
        (Access(htpasswd_file=FILE), "u", False, answers("yes", "yes", "yes", "yes", "no")),
        (Access(htpasswd_file=FILE), "u", True, answers("yes", "yes", "yes", "yes", "no")),
        (Access(htpasswd_file=FILE, anonymous="none"), "u", False, answers("yes", "yes", "yes", "yes", "no")),
        (Access(htpasswd_file=FILE, push=("ci",)), "u", True, answers("yes", "yes", "no", "no", "no")),
        (Access(htpasswd_file=FILE, push=("ci",)), "ci", False, answers("yes", "yes", "yes", "yes", "no")),
        (Access(htpasswd_file=FILE, push=()), "u", False, answers("yes", "yes", "no", "no", "no")),
        (
            Access(htpasswd_file=FILE, push=("ci",), admin=("root",)),
            "root",
            False,
            answers("yes", "yes", "yes", "yes", "yes"),
        ),
        (Access(htpasswd_file=FILE, admin=("root",)), "u", False, answers("yes", "yes", "yes", "yes", "no")),
    ],
)
def test_who_may_do_what(settings: Access, name: str | None, loopback: bool, expected: dict[str, str]) -> None:
    assert allowed(settings, name, loopback=loopback) == expected


def test_a_refusal_says_what_to_do() -> None:
    with pytest.raises(Denied, match=r"configure access\.htpasswd_file, or access\.insecure_writes: true"):
        Policy(Access()).check(ANONYMOUS, Action.PUSH, loopback=False)
    with pytest.raises(Denied, match=r"user u may not push here; access\.push lists"):
        Policy(Access(htpasswd_file=FILE, push=())).check(Principal(name="u"), Action.PUSH, loopback=False)
    with pytest.raises(Denied, match=r"user u may not delete what was pulled through here; access\.admin lists"):
        Policy(Access(htpasswd_file=FILE)).check(Principal(name="u"), Action.PURGE, loopback=True)


@pytest.mark.parametrize(
    ("client", "passes"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("192.168.1.1", True),
        ("fe80::1%eth0", True),
        ("11.0.0.1", False),
        ("::ffff:11.0.0.1", False),
        ("::10.1.2.3", False),
        ("fd00::1", False),
        ("127.0.0.1", False),
        ("", False),
        (None, False),
        ("nonsense", False),
    ],
)
def test_only_clients_of_these_networks(client: str | None, passes: bool) -> None:
    networks = tuple(map(ip_network, ("10.0.0.0/8", "192.168.1.1/32", "fe80::/10")))
    policy = Policy(Access(allow_from=networks))
    for _ in range(2):
        if passes:
            policy.check_client(client)
        else:
            with pytest.raises(Denied):
                policy.check_client(client)
    Policy(Access()).check_client(client)


# ---- listeners ----


@pytest.mark.parametrize(
    ("local", "listen", "expected"),
    [
        (("127.0.0.1", 5000), "127.0.0.1:5000", True),
        (("127.0.0.1", 34567), "127.0.0.1:0", True),
        (("127.0.0.1", 34567), "localhost:0", True),
        (("::1", 5000, 0, 0), "::1:5000", True),
        (("::1", 5000, 0, 0), "127.0.0.1:5000 ::1:5000", True),
        (("127.0.0.1", 5000), "0.0.0.0:5000", False),
        (("::1", 5000, 0, 0), ":::5000", False),
        (("127.0.0.1", 5001), "0.0.0.0:5000 127.0.0.1:5001", True),
        (("127.0.0.1", 5000), "0.0.0.0:5000 127.0.0.1:5001", False),
        (("10.0.0.1", 5000), "0.0.0.0:5000", False),
        (("10.0.0.1", 5000), "10.0.0.1:5000", False),
        (("127.0.0.1", 5000), "10.0.0.1:5001 127.0.0.1:5000", True),
        (("127.0.0.1", 34567), "0.0.0.0:0", False),
        (("127.0.0.1", 34567), "0.0.0.0:0 127.0.0.1:0", False),
        (("127.0.0.1", 5001), "0.0.0.0:0 127.0.0.1:5001", True),
        (("127.0.0.1", 5000), "somehost:5000", False),
        (("::ffff:127.0.0.1", 5000, 0, 0), "127.0.0.1:5000", True),
        (("::ffff:10.0.0.1", 5000, 0, 0), "127.0.0.1:5000", False),
        (None, "127.0.0.1:5000", False),
        ("/run/socket", "127.0.0.1:5000", False),
        ((), "127.0.0.1:5000", False),
        (("nonsense", 1), "127.0.0.1:5000", False),
    ],
)
def test_which_listener_a_connection_came_through(local: object, listen: str, expected: bool) -> None:
    addresses = [ListenAddress(one.rpartition(":")[0], int(one.rpartition(":")[2])) for one in listen.split()]
    assert through_loopback(local, addresses) is expected


# ---- advice ----

OURS = Upstream(url="https://a", credentials=Credentials(username="u", password_file=Path("/secret")))
THEIRS = Upstream(url="https://b")
LOOPBACK, ANY = (Listener(address=ListenAddress(host, 5000)) for host in ("127.0.0.1", "0.0.0.0"))
SAFE = Listener(address=ListenAddress("0.0.0.0", 5443), tls=Tls(certificate="/c", key="/k"))


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (Access(), ["ours"]),
        (Access(htpasswd_file=FILE), ["ours"]),
        (Access(htpasswd_file=FILE, anonymous="none"), []),
    ],
)
def test_upstreams_anybody_reads_by_our_login(access: Access, expected: list[str]) -> None:
    assert open_upstreams(access, {"ours": OURS, "theirs": THEIRS}) == expected
    lines = advice(access, {"ours": OURS, "theirs": THEIRS}, [LOOPBACK])
    assert [text.partition(":")[0] for text in lines] == [f"upstream {name}" for name in expected]
    assert all("anonymous: none" in text and "/secret" not in text for text in lines)
    assert advice(access, {"theirs": THEIRS}, [LOOPBACK]) == []


@pytest.mark.parametrize(
    ("access", "listen", "warned"),
    [
        (Access(htpasswd_file=FILE), [LOOPBACK, SAFE, ANY], True),
        (Access(htpasswd_file=FILE), [SAFE], False),
        (Access(htpasswd_file=FILE), [LOOPBACK], False),
        (Access(), [ANY], False),
    ],
)
def test_passwords_in_the_clear(access: Access, listen: list[Listener], warned: bool) -> None:
    lines = advice(access, {}, listen)
    assert len(lines) == warned
    for text in lines:
        assert text.startswith("passwords cross the network in the clear at 0.0.0.0:5000; set tls")


@pytest.mark.parametrize(
    ("networks", "warned"), [(["0.0.0.0/0"], 1), (["::/0", "10.0.0.1"], 1), (["10.0.0.0/8", "::1"], 0)]
)
def test_everybody_is_a_trusted_proxy(networks: list[str], warned: int) -> None:
    lines = advice(Access(), {}, [LOOPBACK], [ip_network(network) for network in networks])
    assert [line.partition(" is everybody")[0] for line in lines] == [f"trusted_proxies: {networks[0]}"] * warned


# ---- the gate, where the network does not reach ----


def ask(gate: Gate, **arguments: Any) -> Awaitable[Principal]:
    given: dict[str, Any] = {
        "authorization": None,
        "client": "127.0.0.1",
        "loopback": True,
        "realm": "http://here/v2/_mirror/auth/token",
        "action": Action.PULL,
        "scope": None,
    }
    return gate.admit(**(given | arguments))


@pytest.mark.parametrize("raw", [None, b"ci:$apr1$x$y\n", b"hunter2"], ids=["gone", "not bcrypt", "no users"])
async def test_a_start_without_a_file_to_use(tmp_path: Path, raw: bytes | None) -> None:
    path = tmp_path / "users"
    if raw is not None:
        path.write_bytes(raw)
    gate = Gate(Access(htpasswd_file=path), secret=SECRET)
    with pytest.raises(StartupError, match=rf"access\.htpasswd_file: {path} (cannot be read|has no line that can)"):
        await gate.start()
    with pytest.raises(Unauthorized):
        await ask(gate, authorization=basic("ci:p"))
    await gate.close()


async def test_a_start_names_listed_users_there_are_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "users"
    path.write_bytes(line("ci", "p"))
    gate = Gate(Access(htpasswd_file=path, push=("ci", "gone"), admin=("lost",)), secret=SECRET)
    await gate.start()
    await gate.close()
    assert [record.getMessage().split()[2] for record in caplog.records] == ["gone", "lost"]


async def test_without_rules_the_gate_looks_at_nothing() -> None:
    gate = Gate(Access(), secret=SECRET)
    await gate.start()
    assert await ask(gate, authorization="nonsense", client=None, realm='"') is ANONYMOUS
    assert (await gate.issue(authorization="nonsense", client=None)).token
    await gate.close()


@pytest.mark.parametrize(
    ("scope", "shown"),
    [
        ("repository:a/b-c_d.e:pull,push", True),
        ("registry:catalog:*", True),
        ('a",error="x', False),
        ("a b", False),
        ("a\r\nX: 1", False),
        ("a\n", False),
        ("ä", False),
        ("", False),
        ("x" * 2000, False),
    ],
)
async def test_a_scope_that_is_none_is_not_repeated(tmp_path: Path, scope: str, shown: bool) -> None:
    path = tmp_path / "users"
    path.write_bytes(line("ci", "p"))
    gate = Gate(Access(htpasswd_file=path), secret=SECRET)
    await gate.start()
    with pytest.raises(Unauthorized) as caught:
        await ask(gate, action=Action.PUSH, scope=scope)
    expected = 'Bearer realm="http://here/v2/_mirror/auth/token",service="mirror"'
    assert caught.value.challenge == (f'{expected},scope="{scope}"' if shown else expected)
    await gate.close()


async def test_an_anonymous_token_where_nobody_is_served_without_a_login(tmp_path: Path) -> None:
    """Given before the settings changed."""
    path = tmp_path / "users"
    path.write_bytes(line("ci", "p"))
    before, now = (
        Gate(Access(htpasswd_file=path), secret=SECRET),
        Gate(Access(htpasswd_file=path, anonymous="none"), secret=SECRET),
    )
    await before.start()
    await now.start()
    token = f"Bearer {(await before.issue(client=None)).token}"
    for action in (Action.LOGIN, Action.PULL):
        assert await ask(before, authorization=token, action=action) == ANONYMOUS
        with pytest.raises(Unauthorized) as caught:
            await ask(now, authorization=token, action=action)
        assert caught.value.challenge == 'Basic realm="mirror"'
    with pytest.raises(Unauthorized):
        await now.issue(client=None)
    token = f"Bearer {(await now.issue(authorization=basic('ci:p'), client=None)).token}"
    assert await ask(now, authorization=token) == Principal(name="ci")
    await before.close()
    await now.close()


@asynccontextmanager
async def gate_of(path: Path, clock: Clock, patch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[Gate]:
    """Run a gate whose every clock is this one."""
    patch.setattr(gate_module, "Tokens", functools.partial(Tokens, clock=clock))
    gate = Gate(Access(htpasswd_file=path, **settings), secret=SECRET, clock=clock)
    await gate.start()
    try:
        yield gate
    finally:
        await gate.close()


async def test_a_header_that_was_right_is_not_looked_into_for_a_while(
    tmp_path: Path, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("ci", "p") + line("root", "p"))
    looked: list[str] = []
    real = gate_module.parse_authorization
    monkeypatch.setattr(gate_module, "parse_authorization", lambda text: (looked.append(text), real(text))[1])
    async with gate_of(path, clock, monkeypatch, admin=("root",)) as gate:
        ci, root = basic("ci:p"), basic("root:p")
        for _ in range(10):
            assert await ask(gate, authorization=ci) == Principal(name="ci")
            assert await ask(gate, authorization=root, action=Action.PURGE) == Principal(name="root")
            with pytest.raises(Denied):
                await ask(gate, authorization=ci, action=Action.PURGE)
        assert looked == [ci, root]
        clock.now += gate_module.AGAIN
        await ask(gate, authorization=ci)
        assert looked == [ci, root, ci]
        assert len(checks.made) == 2, "bcrypt's word is remembered for longer"


@pytest.mark.parametrize("by", ["basic", "token"])
async def test_what_is_known_of_a_header_ends_with_the_users_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    path, clock = tmp_path / "users", Clock()
    others = line("root", "p")
    path.write_bytes(line("ci", "p") + others)
    async with gate_of(path, clock, monkeypatch) as gate:
        ci, root = basic("ci:p"), basic("root:p")
        if by == "token":
            ci = f"Bearer {(await gate.issue(authorization=ci, client=None)).token}"
            root = f"Bearer {(await gate.issue(authorization=root, client=None)).token}"
        for header in (ci, root):
            await ask(gate, authorization=header, action=Action.PUSH)
        path.write_bytes(line("ci", "q") + others)
        clock.now += 1
        assert await ask(gate, authorization=root, action=Action.PUSH) == Principal(name="root")
        with pytest.raises(Unauthorized) as caught:
            await ask(gate, authorization=ci, action=Action.PUSH)
        assert caught.value.challenge is not None
        assert caught.value.challenge.endswith(',error="invalid_token"') == (by == "token")
        path.write_bytes(others)
        clock.now += 1
        with pytest.raises(Unauthorized):
            await ask(gate, authorization=ci)


async def test_a_token_is_given_to_the_users_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("ci", "old"))
    async with gate_of(path, clock, monkeypatch) as gate:
        await gate.issue(authorization=basic("ci:old"), client=None)
        path.write_bytes(line("ci", "new"))
        clock.now += 1
        with pytest.raises(Unauthorized):
            await gate.issue(authorization=basic("ci:old"), client=None)
        assert (await gate.issue(login=login("ci", "new"), client=None)).token


async def test_a_token_that_is_over_is_not_known_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("ci", "p"))
    async with gate_of(path, clock, monkeypatch) as gate:
        issued = await gate.issue(authorization=basic("ci:p"), client=None)
        token = f"Bearer {issued.token}"
        clock.now += issued.expires_in - 1
        assert await ask(gate, authorization=token) == Principal(name="ci")
        clock.now += 1
        with pytest.raises(Unauthorized, match="is over"):
            await ask(gate, authorization=token)


async def test_known_headers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, clock = tmp_path / "users", Clock()
    path.write_bytes(line("ci", "p"))
    monkeypatch.setattr(recent, "MOST", 5)
    async with gate_of(path, clock, monkeypatch) as gate:
        for number in range(20):
            await ask(gate, authorization="Basic " + " " * number + basic("ci:p").removeprefix("Basic "))
            assert len(gate._recent._known) <= 5
        assert all(len(key) == 24 for key in gate._recent._known)
