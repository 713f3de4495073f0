"""mirror doctor: the clock, limits, users, certificates, images, addresses; and going through the checks."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bcrypt
import pytest
import trustme
from cryptography import x509

from mirror.config import Config, Listener, Tls, Upstream
from mirror.config.values import ListenAddress
from mirror.doctor import (
    Case,
    Finding,
    Outcome,
    StandsForMany,
    certificates,
    chosen,
    clock,
    configuration,
    examine,
    limits,
    packages,
    ports,
    settings,
    users,
)
from mirror.doctor.checks import CHECKS, Check
from mirror.doctor.finding import ok
from mirror.doctor.threads import in_thread
from mirror.server.owner import take_root
from mirror.store.root import open_root
from mirror.upstream.configured import UnknownUpstream
from tests.doctor import case_of, only
from tests.ports import free_port

DAY = 86_400
NOW = datetime(2030, 6, 1, tzinfo=UTC)


# ---- the clock ----


@pytest.mark.parametrize(
    ("now", "installed", "moved", "outcome"),
    [
        (clock.RELEASED + DAY, clock.RELEASED, 0.0, Outcome.OK),
        (clock.RELEASED - 1, 0.0, 0.0, Outcome.PROBLEM),
        (clock.RELEASED + DAY, clock.RELEASED + 3 * DAY, 0.0, Outcome.PROBLEM),
        (clock.RELEASED + 2.5 * DAY, clock.RELEASED + 3 * DAY, 0.0, Outcome.OK),
        (clock.RELEASED + DAY, clock.RELEASED, 1.5, Outcome.WARNING),
        (clock.RELEASED + DAY, clock.RELEASED, -1.5, Outcome.WARNING),
    ],
    ids=["right", "before-any-version", "before-it-was-installed", "a-time-zone-off", "set-forward", "set-back"],
)
def test_our_own_clock(now: float, installed: float, moved: float, outcome: Outcome) -> None:
    found = clock.judge(now, installed=installed, moved=moved)
    assert (found.outcome, bool(found.advice)) == (outcome, outcome is not Outcome.OK)


async def test_our_clock_as_it_is() -> None:
    (found,) = await clock.look(case_of(Path("/x")))
    assert found.outcome is Outcome.OK
    assert abs(found.facts["time"] - time.time()) < 60


@pytest.mark.parametrize(
    ("ahead", "outcome", "said"),
    [
        ({"a": 61.0}, Outcome.WARNING, "61 s ahead of ours"),
        ({"a": -3600.0, "b": -3600.4}, Outcome.WARNING, "3600 s behind ours"),
        ({"a": 59.0}, Outcome.OK, "as ours, within 59 s"),
        ({"a": 0.0, "b": 5000.0, "c": 0.5}, Outcome.OK, "as ours, within 1 s"),
    ],
    ids=["ahead", "behind", "near", "one-of-them-wrong"],
)
def test_the_clocks_of_others(ahead: dict[str, float], outcome: Outcome, said: str) -> None:
    (found,) = clock.compared(ahead)
    assert found.outcome is outcome
    assert found.text == said


def test_no_clock_of_others() -> None:
    assert clock.compared({}) == []


# ---- limits ----


@pytest.mark.parametrize(
    ("most", "outcome"),
    [(None, Outcome.OK), (4096, Outcome.OK), (4095, Outcome.WARNING), (1024, Outcome.WARNING), (1023, Outcome.PROBLEM)],
)
def test_descriptors(most: int | None, outcome: Outcome) -> None:
    found = limits.judge_descriptors(most)
    assert (found.outcome, "LimitNOFILE" in found.advice) == (outcome, outcome is not Outcome.OK)


async def test_limits_as_they_are() -> None:
    found = await limits.look(case_of(Path("/x"), workers=3))
    assert only(found, "workers").text == "3 (as set)"
    assert only(found, "descriptors").facts["most"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert {one.outcome for one in found if one.name != "descriptors"} == {Outcome.OK}


# ---- users ----


@pytest.fixture(scope="module")
def line() -> str:
    return bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()


def judged_users(file: Path, text: str, **access: object) -> Sequence[Finding]:
    file.write_text(text)
    return asyncio.run(users.look(case_of(Path("/x"), access={"htpasswd_file": file, **access})))


def test_no_users() -> None:
    (found,) = asyncio.run(users.look(case_of(Path("/x"))))
    assert (found.outcome, found.facts) == (Outcome.OK, {"count": 0})


def test_users_that_are_there(tmp_path: Path, line: str) -> None:
    (found,) = judged_users(tmp_path / "users", f"ci:{line}\n", push=["ci"], admin=["ci"])
    assert (found.outcome, found.facts["count"]) == (Outcome.OK, 1)


def test_users_with_rights_and_no_line(tmp_path: Path, line: str) -> None:
    found = judged_users(tmp_path / "users", f"jenkins:{line}\n", push=["jenkin"], admin=["root"])
    assert [(one.outcome, one.text) for one in found] == [
        (Outcome.PROBLEM, f"access.push: 'jenkin' is not in {tmp_path}/users; did you mean \"jenkins\"?"),
        (Outcome.PROBLEM, f"access.admin: 'root' is not in {tmp_path}/users"),
    ]
    assert f"htpasswd -B {tmp_path}/users jenkin;" in found[0].advice
    assert line not in str(found)


def test_a_file_of_users_with_a_bad_line(tmp_path: Path, line: str) -> None:
    (found,) = judged_users(tmp_path / "users", f"ci:{line}\nold:$apr1$secret\n")
    assert found.outcome is Outcome.WARNING
    assert "line 2: a hash that is not of bcrypt" in found.text
    assert "apr1" not in str(found)


@pytest.mark.parametrize(
    ("text", "outcome", "said"),
    [
        ("ci:plain\n", Outcome.PROBLEM, "has no line that can be used: nobody can log in"),
        ("# nobody yet\n", Outcome.WARNING, "has no users"),
    ],
)
def test_a_file_without_users(tmp_path: Path, text: str, outcome: Outcome, said: str) -> None:
    (found,) = judged_users(tmp_path / "users", text)
    assert (found.outcome, said in found.text) == (outcome, True)
    assert found.advice.endswith(f"htpasswd -B {tmp_path}/users NAME")


# ---- certificates ----


class Authority:
    """An authority, and files of what it issues. chain: one of it to show clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def issue(self, name: str, *hosts: str, expires: datetime | None = None) -> Tls:
        issued = self.ca.issue_cert(*hosts, not_after=expires)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_bytes(issued.cert_chain_pems[0].bytes())
        issued.private_key_pem.write_to_path(key)
        return Tls(certificate=certificate, key=key)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def judged_tls(tls: Tls, names: Sequence[str] = ()) -> Sequence[Finding]:
    case = case_of(Path("/x"), names=names)
    listen = (Listener(address=ListenAddress("127.0.0.1", 0), tls=tls),)
    config = case.config.model_copy(update={"listen": listen, "admin_listen": listen})
    return asyncio.run(certificates.look(Case(config=config)))


def test_a_certificate_as_it_should_be(authority: Authority) -> None:
    """Of two addresses with the same one it is said once."""
    tls = authority.issue("own", "mirror.corp", "*.k8s.corp", "10.0.0.1")
    (found,) = judged_tls(tls, ["mirror.corp", "mirror.corp:5000", "a.k8s.corp", "10.0.0.1"])
    assert found.outcome is Outcome.OK
    assert found.facts["names"] == ["mirror.corp", "*.k8s.corp", "10.0.0.1"]


def test_names_that_it_is_not_for(authority: Authority) -> None:
    tls = authority.issue("own", "mirror.corp", "*.k8s.corp")
    found = judged_tls(tls, ["mirror.corp", "k8s.corp", "a.b.k8s.corp"])
    assert [one.outcome for one in found] == [Outcome.OK, Outcome.WARNING]
    assert found[1].facts == {"missing": ["k8s.corp", "a.b.k8s.corp"]}


@pytest.mark.parametrize(
    ("days", "outcome", "said"),
    [(-1, Outcome.PROBLEM, "expired on "), (13, Outcome.WARNING, "expires on "), (15, Outcome.OK, ", until ")],
)
def test_a_certificates_end(authority: Authority, days: int, outcome: Outcome, said: str) -> None:
    tls = authority.issue("own", "mirror.corp", expires=datetime.now(UTC) + timedelta(days=days, hours=1))
    (found,) = judged_tls(tls)
    assert (found.outcome, said in found.text) == (outcome, True)
    assert bool(found.advice) is (outcome is not Outcome.OK)


def test_a_certificate_of_the_future(authority: Authority) -> None:
    """That is how a clock that stands in the past looks."""
    tls = authority.issue("own", "mirror.corp")
    certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    found = certificates.judge_time(certificate, "it", certificate.not_valid_before_utc - timedelta(hours=1))
    assert (found.outcome, found.advice) == (Outcome.PROBLEM, "set the clock right, or wait until then")


def test_a_key_of_another_certificate(authority: Authority) -> None:
    one, other = authority.issue("one", "a"), authority.issue("other", "a")
    (found,) = judged_tls(Tls(certificate=one.certificate, key=other.key))
    assert found.outcome is Outcome.PROBLEM
    assert "KEY_VALUES_MISMATCH" in found.text
    assert found.advice == "give the key that one.pem was made with as tls.key; both are renewed together"


def test_authorities_of_clients(authority: Authority) -> None:
    tls = authority.issue("own", "a")
    assert [one.outcome for one in judged_tls(tls.model_copy(update={"client_ca": authority.file}))] == [Outcome.OK]
    empty = authority.folder / "empty.pem"
    empty.write_text("nothing\n")
    (found,) = judged_tls(tls.model_copy(update={"client_ca": empty}))
    assert (found.outcome, found.advice) == (
        Outcome.PROBLEM,
        "give a PEM file of certificate authorities as tls.client_ca",
    )


def test_no_certificates() -> None:
    (found,) = asyncio.run(certificates.look(case_of(Path("/x"))))
    assert (found.outcome, found.text) == (Outcome.OK, "no address has it: plain HTTP")


# ---- a folder of images ----


def test_images_that_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "good.tar").touch()
    (tmp_path / "packed.tar.gz").touch()
    found = asyncio.run(packages.look(case_of(Path("/x"), packages=tmp_path)))
    assert [(one.outcome, one.text) for one in found] == [
        (Outcome.OK, f"1 entry in {tmp_path}"),
        (Outcome.WARNING, found[1].text),
    ]
    assert found[1].text.startswith(f"{tmp_path}/packed.tar.gz ")
    assert found[1].advice


# ---- addresses ----


def judged_port(address: str, **settings: object) -> Finding:
    (found,) = asyncio.run(ports.look(case_of(Path("/x"), listen=[address], **settings)))
    return found


def test_a_port_that_is_free() -> None:
    address = f"127.0.0.1:{free_port()}"
    found = judged_port(address)
    assert (found.name, found.outcome, found.text) == (f"listen {address}", Outcome.OK, "free")
    assert judged_port("127.0.0.1:0").text == "a free port is taken at each start"


def test_a_port_that_somebody_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = judged_port(f"127.0.0.1:{taken.getsockname()[1]}")
    assert found.outcome is Outcome.PROBLEM
    assert found.text.startswith("in use by pid ")
    assert found.advice == "stop it, or choose another address with listen"


def test_our_own_port_that_wants_certificates_of_clients(authority: Authority, tmp_path: Path) -> None:
    """Its service is known by its process, and we have no certificate to ask it with."""
    path = tmp_path / "root"
    open_root(path)
    tls = authority.issue("own", "localhost").model_copy(update={"client_ca": authority.file})
    owned = take_root(path)
    try:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listener = Listener(address=ListenAddress(*taken.getsockname()), tls=tls)
            config = case_of(path).config.model_copy(update={"listen": (listener,)})
            (found,) = asyncio.run(ports.look(Case(config=config)))
    finally:
        os.close(owned)
    assert found.outcome is Outcome.OK
    assert found.text.endswith("which serves the root; it asks for certificates, so it was not asked how it is")


def test_an_address_of_another_machine() -> None:
    found = judged_port("192.0.2.1:5000")
    assert found.outcome is Outcome.PROBLEM
    assert found.text == "cannot be listened on: this machine has no such address"
    assert found.advice == "0.0.0.0 means all it has"


def test_a_port_that_is_not_ours_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mirror.server.sockets.socket.socket", type("S", (socket.socket,), {"bind": bind}))
    found = judged_port("127.0.0.1:443")
    assert found.outcome is Outcome.PROBLEM
    assert "ports below 1024 need root or CAP_NET_BIND_SERVICE" in found.text + found.advice


# ---- what is configured ----


async def test_what_is_seldom_meant_is_said_with_what_to_do() -> None:
    upstreams = {"up.test": {"url": "http://up.test"}}
    found = await configuration.look(case_of(Path("/x"), upstreams=upstreams))
    assert [one.outcome for one in found] == [Outcome.OK, Outcome.WARNING]
    assert found[0].facts["upstreams"] == ["up.test"]
    assert found[1].text.startswith("upstream up.test: its url is plain http")
    assert found[1].advice == "give it an https url"


def judged_settings(**upstream: object) -> Sequence[Finding]:
    case = case_of(Path("/x"))
    made = Upstream.model_validate({"url": "https://{host}", **upstream})
    return asyncio.run(settings.look(Case(config=case.config.model_copy(update={"upstreams": {"*.up.test": made}}))))


def test_files_of_upstreams(authority: Authority, tmp_path: Path) -> None:
    """A pattern's as well, which nobody is asked by."""
    password = tmp_path / "password"
    password.write_text("secret")
    own = authority.issue("own", "client")
    good = judged_settings(
        ca_file=authority.file,
        client_certificate={"certificate": own.certificate, "key": own.key},
        credentials={"username": "ci", "password_file": password},
    )
    assert [(one.outcome, one.name) for one in good] == [(Outcome.OK, "upstream settings")]


def test_files_of_upstreams_that_cannot_be_used(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    one, other = authority.issue("one", "client"), authority.issue("other", "client")
    late = authority.issue("late", "client", expires=datetime.now(UTC) - timedelta(days=1))
    place = 'upstreams."*.up.test"'
    for given, said, advice in (
        ({"ca_file": tmp_path / "empty"}, "its ca_file cannot be used: ", f"correct {place}.ca_file"),
        (
            {"client_certificate": {"certificate": one.certificate, "key": other.key}},
            "its client_certificate cannot be used: key values mismatch",
            f"correct {place}.client_certificate",
        ),
        (
            {"client_certificate": {"certificate": late.certificate, "key": late.key}},
            f"client_certificate {tmp_path}/late.pem expired on ",
            f"renew it, or set the clock right: {place}.client_certificate",
        ),
        (
            {"credentials": {"username": "ci", "password_file": tmp_path / "gone"}},
            "its password_file cannot be used: No such file or directory",
            f"correct {place}.credentials.password_file",
        ),
        (
            {"credentials": {"username": "ci", "password_file": tmp_path / "empty"}},
            "its password_file cannot be used: it is empty",
            f"correct {place}.credentials.password_file",
        ),
        (
            {"credentials": {"docker_config": tmp_path / "empty"}},
            "its docker_config cannot be used: it is not JSON",
            f"correct {place}.credentials.docker_config",
        ),
        (
            {"mirrors": [{"url": "https://near", "ca_file": tmp_path / "empty"}]},
            "the mirror near of *.up.test: its ca_file cannot be used",
            f"correct {place}.mirrors[0].ca_file",
        ),
    ):
        (found,) = judged_settings(**given)
        assert (found.outcome, said in found.text, found.advice) == (Outcome.PROBLEM, True, advice), found


# ---- which upstreams ----


def configured(*names: str) -> Config:
    upstreams = {name: {"url": "https://{host}" if "*" in name else f"https://{name}"} for name in names}
    return Config.model_validate({"storage": {"root": "/x"}, "upstreams": upstreams})


def test_upstreams_that_are_chosen() -> None:
    config = configured("a.test", "b.test", "*.pkg.dev")
    assert list(chosen(config, [])) == ["a.test", "b.test"]
    assert list(chosen(config, ["b.test"])) == ["b.test"]
    assert chosen(config, ["eu.pkg.dev"])["eu.pkg.dev"].url == "https://eu.pkg.dev"
    with pytest.raises(UnknownUpstream, match=r"no upstream is called 'a.tset'; did you mean \"a.test\"\?"):
        chosen(config, ["a.tset"])
    with pytest.raises(StandsForMany, match=r"'\*.pkg.dev' stands for many registries; name one of them"):
        chosen(config, ["*.pkg.dev"])
    with pytest.raises(UnknownUpstream, match="there are none"):
        chosen(configured(), ["a.test"])


# ---- going through them ----


async def said(*checks: Check, limit: float = 30.0) -> list[Finding]:
    return [finding async for finding in examine(case_of(Path("/x")), checks, limit=limit)]


async def test_checks_are_told_in_their_order_and_upstreams_are_asked_meanwhile() -> None:
    asked = asyncio.Event()

    async def upstreams(case: Case) -> list[Finding]:
        asked.set()
        return [ok("late", "")]

    async def local(case: Case) -> list[Finding]:
        await asked.wait()
        return [ok("local", "")]

    found = await said(Check(name="a", look=local), Check(name="b", look=upstreams, beside=True))
    assert [one.name for one in found] == ["local", "late"]


async def test_a_check_that_fails_itself_hides_no_other() -> None:
    async def broken(case: Case) -> list[Finding]:
        raise ZeroDivisionError("a secret")

    async def good(case: Case) -> list[Finding]:
        return [ok("good", "")]

    found = await said(Check(name="broken", look=broken), Check(name="good", look=good))
    assert [(one.name, one.outcome) for one in found] == [("broken", Outcome.PROBLEM), ("good", Outcome.OK)]
    assert found[0].text == "the check itself failed (ZeroDivisionError)"


async def test_a_disk_that_hangs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its thread is not waited for for ever."""
    monkeypatch.setattr("mirror.doctor.threads.CLEAN_UP", 0.01)
    free = threading.Event()

    async def hang(case: Case) -> list[Finding]:
        await in_thread(free.wait)
        return []

    try:
        (found,) = await said(Check(name="disk", look=hang), limit=0.01)
    finally:
        free.set()
    assert (found.outcome, found.text) == (Outcome.PROBLEM, "no end within 0.01 s: the disk does not answer")
    assert "storage.root" in found.advice


async def test_a_look_that_is_given_up_may_clean_up() -> None:
    cleaned = threading.Event()
    began = threading.Event()

    def look() -> None:
        began.set()
        time.sleep(0.05)
        cleaned.set()

    task = asyncio.create_task(in_thread(look))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned.is_set()


def test_every_check_has_a_name_of_its_own() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


async def test_no_passwords_come_to_the_addresses_of_administrators(tmp_path: Path) -> None:
    """What is answered there asks for no login."""
    users = {"access": {"htpasswd_file": str(tmp_path / "users")}, "admin_listen": "0.0.0.0:9090"}
    found = await configuration.look(case_of(tmp_path, upstreams={}, **users))
    assert [one.outcome.value for one in found] == ["ok"]
