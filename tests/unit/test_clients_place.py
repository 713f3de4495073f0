"""Where nodes reach a mirror: URLs read and refused, the forms clients need, what listening addresses mean."""

from __future__ import annotations

import pytest

from mirror.clients import PlaceInvalid, parse_place, seen_by_nodes
from mirror.config import Config, ListenAddress, Listener


@pytest.mark.parametrize(
    ("url", "said", "authority", "domain"),
    [
        ("http://mirror:5000", "http://mirror:5000", "mirror:5000", "mirror:5000"),
        ("HTTP://Mirror:5000/", "http://mirror:5000", "mirror:5000", "mirror:5000"),
        ("https://mirror.corp", "https://mirror.corp", "mirror.corp", "mirror.corp"),
        ("https://mirror", "https://mirror", "mirror", "mirror:443"),
        ("http://mirror", "http://mirror", "mirror", "mirror:80"),
        ("http://localhost", "http://localhost", "localhost", "localhost"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80", "10.0.0.1:80", "10.0.0.1:80"),
        ("https://[2001:DB8::1]:5000", "https://[2001:db8::1]:5000", "[2001:db8::1]:5000", "[2001:db8::1]:5000"),
        ("https://h.corp/v2/", "https://h.corp", "h.corp", "h.corp"),
        ("https://h.corp/hub/", "https://h.corp/hub", "h.corp", "h.corp"),
        ("https://h.corp/hub/v2", "https://h.corp/hub", "h.corp", "h.corp"),
        ("https://h.corp/v2/hub/two", "https://h.corp/v2/hub/two", "h.corp", "h.corp"),
    ],
)
def test_urls(url: str, said: str, authority: str, domain: str) -> None:
    place = parse_place(url)
    assert (str(place), place.authority, place.domain) == (said, authority, domain)


@pytest.mark.parametrize(
    "url",
    [
        *("", "mirror:5000", "ftp://mirror", "http://", "http://:5000", "http://mirror:0", "http://mirror:99999"),
        *("http://mirror:x", "http://mir ror", "http://-mirror", 'http://mirror"]', "http://mirror/?x=1"),
        *("http://mirror/#x", "http://mirror/Hub", 'http://mirror/a"b', "http://mirror/a/v2/b", "http://[::1"),
        *("http://mirror/../etc", "http://mirror/%2e%2e", "http://mirror\nx"),
    ],
)
def test_what_no_mirror_has(url: str) -> None:
    with pytest.raises(PlaceInvalid):
        parse_place(url)


@pytest.mark.parametrize("before", ["https://", "https:/", "", "ftp://", "//", "https://mirror.corp?x="])
def test_a_login_in_a_url_is_not_repeated(before: str) -> None:
    with pytest.raises(PlaceInvalid) as refused:
        parse_place(f"{before}somebody:secret@mirror.corp")
    assert "login" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "only_here"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True), ("10.0.0.1", False), ("m", False)],
)
def test_loopback_is_known(host: str, only_here: bool) -> None:
    assert parse_place(f"http://{host}:5000").only_here is only_here


def listening(*addresses: str) -> tuple[Listener, ...]:
    return Config.model_validate({"listen": list(addresses)}).listen


@pytest.mark.parametrize(
    ("addresses", "seen", "assumes"),
    [
        (["127.0.0.1:5000"], "http://127.0.0.1:5000", False),
        (["127.0.0.1:5000", "10.0.0.1:6000"], "http://10.0.0.1:6000", False),
        (["0.0.0.0:5000"], "http://node-7:5000", True),
        (["127.0.0.1:1", "[::]:5000"], "http://node-7:5000", True),
        (["10.0.0.1:80"], "http://10.0.0.1", False),
        (["10.0.0.1:0", "10.0.0.2:5000"], "http://10.0.0.2:5000", False),
        (["[2001:db8::1]:5000"], "http://[2001:db8::1]:5000", False),
    ],
    ids=lambda value: str(value),
)
def test_listening_addresses_as_nodes_see_them(addresses: list[str], seen: str, assumes: bool) -> None:
    place, assumed = seen_by_nodes(listening(*addresses), "Node-7")
    assert str(place) == seen
    assert ("Node-7" in assumed) is assumes
    assert bool(assumed) is assumes


def test_a_listener_with_tls_is_https() -> None:
    tls = Listener(address=ListenAddress("10.0.0.1", 443)).model_copy(update={"tls": object()})
    place, _ = seen_by_nodes([tls], "node")
    assert str(place) == "https://10.0.0.1"


@pytest.mark.parametrize(("addresses", "name"), [(["0.0.0.0:0"], "node"), (["0.0.0.0:5000"], "my node")])
def test_addresses_that_do_not_say_are_refused(addresses: list[str], name: str) -> None:
    with pytest.raises(PlaceInvalid, match="--url"):
        seen_by_nodes(listening(*addresses), name)
