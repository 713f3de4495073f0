"""Which proxy a URL is reached by; and what the operator is told of an upstream's settings."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from yarl import URL

from mirror import config
from mirror.upstream.advice import warnings
from mirror.upstream.proxies import Exceptions, Proxy, ProxyFailed, proxies
from mirror.upstream.transport import Timeouts

SECRET = "hunter2-never-shown"


def way(url: str, environ: dict[str, str], setting: str = "environment") -> str | None:
    found = proxies(config.Proxy(url=setting), environ).way_to(URL(url))
    return None if found is None else f"{found.url.scheme}://{found.name}"


# ---- which variable ----


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        pytest.param("https://hub.test/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128", id="upper case"),
        pytest.param("https://hub.test/", {"https_proxy": "http://p:3128"}, "http://p:3128", id="lower case"),
        pytest.param(
            "https://hub.test/",
            {"https_proxy": "http://lower:1", "HTTPS_PROXY": "http://upper:2"},
            "http://lower:1",
            id="lower case wins",
        ),
        pytest.param(
            "https://hub.test/", {"https_proxy": " ", "HTTPS_PROXY": "http://p:2"}, "http://p:2", id="empty is as none"
        ),
        pytest.param("https://hub.test/", {"HTTP_PROXY": "http://p:3128"}, None, id="the other scheme's"),
        pytest.param("http://hub.test/", {"HTTPS_PROXY": "http://p:3128"}, None, id="the other scheme's, of http"),
        pytest.param("http://hub.test/", {"HTTP_PROXY": "http://p:3128"}, "http://p:3128", id="http"),
        pytest.param("http://hub.test/", {"ALL_PROXY": "http://p:3128"}, "http://p:3128", id="all"),
        pytest.param(
            "https://hub.test/", {"all_proxy": "http://all:1", "HTTPS_PROXY": "http://own:2"}, "http://own:2", id="own"
        ),
        pytest.param("https://hub.test/", {"HTTPS_PROXY": "p.corp:3128"}, "http://p.corp:3128", id="without a scheme"),
        pytest.param("https://hub.test/", {"HTTPS_PROXY": "http://p.corp"}, "http://p.corp:80", id="without a port"),
        pytest.param("https://hub.test/", {"HTTPS_PROXY": "https://p.corp/"}, "https://p.corp:443", id="a TLS one"),
        pytest.param("https://hub.test/", {"HTTPS_PROXY": "http://[::1]:1/"}, "http://[::1]:1", id="an IPv6 address"),
        pytest.param("https://hub.test/", {}, None, id="nothing"),
        pytest.param("https://localhost/", {"HTTPS_PROXY": "http://p:1"}, None, id="this machine by name"),
        pytest.param("https://127.0.0.2:5000/", {"HTTPS_PROXY": "http://p:1"}, None, id="this machine by address"),
        pytest.param("https://[::1]:5000/", {"HTTPS_PROXY": "http://p:1"}, None, id="this machine by IPv6 address"),
        pytest.param(
            "https://hub.test/", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a, hub.test"}, None, id="an exception"
        ),
        pytest.param(
            "https://hub.test/",
            {"HTTPS_PROXY": "http://p:1", "no_proxy": "a", "NO_PROXY": "hub.test"},
            "http://p:1",
            id="lower case wins of exceptions too",
        ),
    ],
)
def test_what_the_environment_says(url: str, environ: dict[str, str], expected: str | None) -> None:
    assert way(url, environ) == expected


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("none", None),
        ("http://proxy.corp:3128", "http://proxy.corp:3128"),
        ("https://proxy.corp", "https://proxy.corp:443"),
    ],
)
def test_a_proxy_that_is_set_asks_no_environment(setting: str, expected: str | None) -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}
    assert way("https://hub.test/", environ, setting) == expected
    assert way("http://localhost/", environ, setting) == expected


def test_no_setting_is_no_proxy() -> None:
    assert proxies(None, {"HTTPS_PROXY": "http://p:1"}).way_to(URL("https://hub.test/")) is None


@pytest.mark.parametrize(
    "value",
    ["socks5://p:1080", f"http://u:{SECRET}@", f"http://u:{SECRET}@p:99999", "http://[p", "ftp://p", "http://p:0"],
)
def test_what_is_no_proxy_is_an_error_that_does_not_show_it(value: str) -> None:
    with pytest.raises(ProxyFailed, match="HTTPS_PROXY of the environment") as caught:
        way("https://hub.test/", {"https_proxy": value})
    assert SECRET not in str(caught.value)
    assert way("http://hub.test/", {"https_proxy": value}) is None


# ---- what is reached directly ----


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        ("*", "https://hub.test/"),
        ("hub.test", "https://hub.test/"),
        ("hub.test", "https://HUB.test./"),
        ("Hub.Test.", "https://hub.test/"),
        ("hub.test", "https://a.b.hub.test/"),
        (".hub.test", "https://a.hub.test/"),
        ("*.hub.test", "https://a.hub.test/"),
        ("x y\thub.test", "https://hub.test/"),
        ("x,,y , hub.test", "https://hub.test/"),
        ("hub.test:5000", "https://hub.test:5000/"),
        ("hub.test:443", "https://hub.test/"),
        ("10.0.0.5", "http://10.0.0.5:5000/"),
        ("10.0.0.5:5000", "http://10.0.0.5:5000/"),
        ("10.0.0.0/8", "http://10.9.9.9:5000/"),
        ("10.1.2.3/8", "http://10.9.9.9:5000/"),
        ("2001:db8::/32", "http://[2001:db8::1]:5000/"),
        ("2001:db8::1", "http://[2001:db8::1]:5000/"),
        ("[2001:db8::1]", "http://[2001:db8::1]:5000/"),
        ("[2001:db8::1]:5000", "http://[2001:db8::1]:5000/"),
    ],
)
def test_exceptions_hold(entries: str, url: str) -> None:
    assert Exceptions(entries).hold(URL(url))


@pytest.mark.parametrize(
    ("entries", "url"),
    [
        ("", "https://hub.test/"),
        (",", "https://hub.test/"),
        ("ub.test", "https://hub.test/"),
        (".hub.test", "https://hub.test/"),
        ("*.hub.test", "https://hub.test/"),
        (".", "https://hub.test/"),
        ("*x", "https://hub.test/"),
        ("hub.test:5000", "https://hub.test/"),
        ("hub.test:", "https://hub.test/"),
        ("hub.test.evil.com", "https://hub.test/"),
        ("hub.test", "https://hub.test.evil.com/"),
        ("10.0.0.0/8", "http://11.0.0.1/"),
        ("10.0.0.0/8", "http://10.example.com/"),
        ("0.5", "http://10.0.0.5/"),
        ("10.0.0.5:80", "http://10.0.0.5:5000/"),
        ("10.0.0.0/99", "http://10.0.0.1/"),
        ("[2001:db8::1]:5000", "http://[2001:db8::1]:5001/"),
    ],
)
def test_exceptions_do_not_hold(entries: str, url: str) -> None:
    assert not Exceptions(entries).hold(URL(url))


# ---- who we are to it ----


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


async def test_logins(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pässword\n")
    url = URL("http://proxy.corp:3128")
    assert await Proxy(url).authorization() is None
    assert await Proxy(url, username="u", password="p:w").authorization() == basic("u:p:w")
    assert await Proxy(url, username="u", password_file=path).authorization() == basic("u:pässword")


async def test_a_login_in_the_environment_comes_before_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("of the file")
    settings = config.Proxy(url="environment", username="robot", password_file=path)
    for value, expected in (
        ("http://u%40x:p%3a%2f@p:1", "u@x:p:/"),
        ("http://u@p:1", "u:"),
        ("http://p:1", "robot:of the file"),
    ):
        found = proxies(settings, {"HTTPS_PROXY": value}).way_to(URL("https://hub.test/"))
        assert found is not None
        assert await found.authorization() == basic(expected)
        assert str(found.url) == "http://p:1"


@pytest.mark.parametrize("url", ["http://p:1", "environment"])
async def test_a_password_of_the_settings(url: str) -> None:
    settings = config.Proxy(url=url, username="robot", password="p:w")
    found = proxies(settings, {"HTTPS_PROXY": "http://p:1"}).way_to(URL("https://hub.test/"))
    assert found is not None
    assert await found.authorization() == basic("robot:p:w")


@pytest.mark.parametrize("raw", [None, b"\xff\xfe"], ids=["gone", "not text"])
async def test_a_password_that_cannot_be_read(tmp_path: Path, raw: bytes | None) -> None:
    path = tmp_path / "password"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(ProxyFailed, match=r"the proxy proxy\.corp:3128 cannot be read") as caught:
        await Proxy(URL("http://proxy.corp:3128"), username="u", password_file=path).authorization()
    assert caught.value.proxy == "proxy.corp:3128"


# ---- what the operator is told ----


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        pytest.param({"url": "https://hub.test"}, [], id="as it should be"),
        pytest.param({"url": "http://127.0.0.1:5000"}, [], id="plain http on this machine"),
        pytest.param({"url": "http://localhost:5000", "credentials": ...}, [], id="with credentials on this machine"),
        pytest.param({"url": "http://hub.test"}, [("upstream up: its url is plain http",)], id="plain http"),
        pytest.param(
            {"url": "http://hub.test", "credentials": ...},
            [("upstream up: its credentials cross", "clear")],
            id="login",
        ),
        pytest.param({"url": "http://hub.test", "insecure": True}, [("plain http",)], id="once"),
        pytest.param({"url": "https://hub.test", "insecure": True}, [("up: insecure", "ca_file")], id="insecure"),
        pytest.param(
            {"url": "https://hub.test", "insecure": True, "credentials": ...},
            [("insecure", "reads the credentials")],
            id="insecure with credentials",
        ),
        pytest.param({"url": "http://{host}", "insecure": True}, [("plain http",)], id="a pattern"),
        pytest.param(
            {
                "url": "https://hub.test",
                "mirrors": [
                    {"url": "http://one.test:5000"},
                    {"url": "https://two.test", "insecure": True, "credentials": ...},
                    {"url": "https://three.test"},
                ],
            },
            [
                ("upstream up: mirror one.test:5000: its url is plain http",),
                ("mirror two.test: insecure", "credentials"),
            ],
            id="mirrors",
        ),
    ],
)
def test_warnings(tmp_path: Path, settings: dict[str, object], parts: list[tuple[str, ...]]) -> None:
    path = tmp_path / "password"
    path.write_text(SECRET)

    def filled(given: object) -> object:
        if isinstance(given, dict):
            return {key: filled(value) for key, value in given.items()}
        if isinstance(given, list):
            return [filled(value) for value in given]
        return {"username": "robot", "password_file": path} if given is ... else given

    lines = warnings("up", config.Upstream.model_validate(filled(settings)))
    assert len(lines) == len(parts)
    for line, expected in zip(lines, parts, strict=True):
        for part in expected:
            assert part in line
        assert SECRET not in line


def test_time_limits_are_those_of_the_settings() -> None:
    found = Timeouts.of(config.Timeouts(connect=1.0, headers=2.0, read=3.0))
    assert (found.connect, found.headers, found.read) == (1.0, 2.0, 3.0)
