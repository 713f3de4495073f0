"""What reverse proxies say in headers: whom they are believed, and where that ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.caller import Caller
from mirror.api.forwarded import (
    HOST,
    Way,
    prefix_of,
    said,
    way_by_forwarded,
    way_by_x_forwarded_for,
    with_port,
)

PROXIES = ("10.0.0.1", "10.0.0.2", "127.0.0.1", "::1")


def trusted(address: str) -> bool:
    return address in PROXIES


@pytest.mark.parametrize(
    ("header", "client", "proxies"),
    [
        ("192.0.2.1", "192.0.2.1", 1),
        ("192.0.2.1:4711", "192.0.2.1", 1),
        ("2001:db8::1", "2001:db8::1", 1),
        ("[2001:DB8::1]:443", "2001:db8::1", 1),
        ("[2001:db8::1]", "2001:db8::1", 1),
        ("::ffff:192.0.2.1", "192.0.2.1", 1),
        # whoever is not trusted says nothing of who came before
        ("198.51.100.9, 192.0.2.1", "192.0.2.1", 1),
        ("rubbish, 127.0.0.1, 192.0.2.1", "192.0.2.1", 1),
        ("192.0.2.1, 10.0.0.2", "192.0.2.1", 2),
        ("192.0.2.1, 10.0.0.2, 10.0.0.1", "192.0.2.1", 3),
        ("198.51.100.9,192.0.2.1,::ffff:10.0.0.2", "192.0.2.1", 2),
        (",192.0.2.1,, 10.0.0.2, ", "192.0.2.1", 2),
        # a proxy that asks for itself
        ("10.0.0.2, 10.0.0.1", "10.0.0.2", 2),
        # hidden, as far as that is believed
        ("unknown", "unknown", 1),
        ("192.0.2.1, UNKNOWN, 10.0.0.1", "unknown", 2),
        ("192.0.2.1, _hidden", "_hidden", 1),
        # what cannot be read
        ("", None, 1),
        (" , ,", None, 1),
        ("nonsense", None, 1),
        ("192.0.2.256", None, 1),
        ("192.0.2.1:port", None, 1),
        ("[2001:db8::1", None, 1),
        ("fe80::1%eth0", None, 1),
        ('192.0.2.1"', None, 1),
        ("192.0.2.1, <script>", None, 1),
        ("<script>, 10.0.0.2", "10.0.0.2", 1),
    ],
)
def test_who_asks_by_x_forwarded_for(header: str, client: str | None, proxies: int) -> None:
    way = way_by_x_forwarded_for(header, trusted)
    assert (way.client, way.proxies) == (client, proxies)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("for=192.0.2.1", Way(client="192.0.2.1")),
        ('For="[2001:db8:cafe::17]:4711"', Way(client="2001:db8:cafe::17")),
        ("for=192.0.2.1:4711", Way(client="192.0.2.1")),  # should be quoted, and often is not
        ("for=[2001:db8::1]", Way(client="2001:db8::1")),
        (
            "for=192.0.2.1;proto=https;host=registry.example:5443;by=203.0.113.43",
            Way(client="192.0.2.1", scheme="https", host="registry.example:5443"),
        ),
        (
            ' for="192.0.2.1" ; Proto="HTTPS" ; HOST="a.example" ',
            Way(client="192.0.2.1", scheme="https", host="a.example"),
        ),
        (r'for="\1\9\2.0.2.1"', Way(client="192.0.2.1")),
        ("for=198.51.100.9;host=evil, for=192.0.2.1", Way(client="192.0.2.1")),
        (
            "for=192.0.2.1;proto=https;host=outer, for=10.0.0.2;proto=http;host=inner",
            Way(client="192.0.2.1", proxies=2, scheme="https", host="outer"),
        ),
        ("for=192.0.2.1, for=10.0.0.2;proto=https", Way(client="192.0.2.1", proxies=2, scheme="https")),
        ("for=unknown;proto=https", Way(client="unknown", scheme="https")),
        ("for=192.0.2.1, for=_proxy1", Way(client="_proxy1")),
        ("proto=https;host=a.example", Way(scheme="https", host="a.example")),
        ('for=192.0.2.1;host="a.example, for=127.0.0.1"', Way(client="192.0.2.1")),
        ("for=192.0.2.1;extension=1", Way(client="192.0.2.1")),
        # a quote left open does not hide what comes behind it
        ('for="127.0.0.1, for=192.0.2.1', Way(client="192.0.2.1")),
        ('for="x, for="[2001:db8::1]"', Way(client="2001:db8::1")),
        ('for=127.0.0.1;x=", for="192.0.2.1:80";proto=https', Way(client="192.0.2.1", scheme="https")),
        # what cannot be read
        ("", Way()),
        (",,", Way()),
        ("for", Way()),
        ("for=", Way()),
        ('for="192.0.2.1', Way()),
        ("for=192.0.2.1;for=192.0.2.2", Way()),
        ("for=192.0.2.1;;proto=https", Way()),
        ("for=192.0.2.1 proto=https", Way()),
        ("for = 192.0.2.1", Way()),
        ('for=192.0.2.1;host="a\tb"', Way()),
        ("x, for=10.0.0.2;proto=https", Way(client="10.0.0.2", scheme="https")),
        ("for=192.0.2.1;proto=ftp;host=a/b", Way(client="192.0.2.1")),
        ("for=192.0.2.1;host=user:word@evil", Way(client="192.0.2.1")),
    ],
)
def test_who_asks_by_forwarded(header: str, expected: Way) -> None:
    assert way_by_forwarded(header, trusted) == expected


def test_entries_without_end_are_not_looked_at() -> None:
    asked: list[str] = []

    def noted(address: str) -> bool:
        asked.append(address)
        return True

    for read, entry in ((way_by_x_forwarded_for, "127.0.0.1"), (way_by_forwarded, "for=127.0.0.1")):
        asked.clear()
        assert read(f"{entry}," * 10_000, noted).local is False
        assert 0 < len(asked) < 100
        assert read("," * 10_000, noted).client is None
        assert read(f"{entry}{',' * 10_000}", noted).client is None, "behind more commas than are looked at"
        assert read(f"{entry}," * 60, noted) == Way(client="127.0.0.1", proxies=60, local=True)


@pytest.mark.parametrize(
    ("addresses", "local"),
    [
        (["127.0.0.1"], True),
        (["::1"], True),
        (["127.0.0.9"], True),
        (["::1", "127.0.0.1"], True),
        (["127.0.0.1", "10.0.0.1"], False),  # another machine's
        (["192.0.2.1", "127.0.0.1"], False),
        (["10.0.0.1"], False),
        (["unknown"], False),
        (["unknown", "127.0.0.1"], False),
        (["<script>", "127.0.0.1"], False),
        ([], False),
    ],
)
def test_a_way_within_this_machine(addresses: list[str], local: bool) -> None:
    assert way_by_x_forwarded_for(", ".join(addresses), trusted).local is local
    assert way_by_forwarded(", ".join(f'for="{address}"' for address in addresses), trusted).local is local


@given(st.text('for="\\,;:[] \t_.1aF%unknow0\x00é', max_size=60), st.sampled_from(PROXIES))
def test_nothing_makes_it_fail_and_nothing_before_hides_the_last(text: str, proxy: str) -> None:
    way_by_x_forwarded_for(text, trusted)
    way_by_forwarded(text, trusted)
    assert way_by_x_forwarded_for(f"{text}, 192.0.2.1", trusted) == Way(client="192.0.2.1")
    assert way_by_forwarded(f"{text}, for=192.0.2.1", trusted) == Way(client="192.0.2.1")
    assert way_by_forwarded(f'{text},for="[2001:db8::1]:80"', trusted) == Way(client="2001:db8::1")
    assert way_by_x_forwarded_for(f"{text}, 192.0.2.1, {proxy}", trusted).client == "192.0.2.1"


@pytest.mark.parametrize(
    ("header", "proxies", "expected"),
    [
        ("https", 1, "https"),
        ("https", 3, "https"),
        ("http, https", 1, "https"),
        ("evil, https , http", 2, "https"),
        ("", 1, ""),
    ],
)
def test_what_the_outermost_proxy_said(header: str, proxies: int, expected: str) -> None:
    assert said(header, proxies) == expected


@pytest.mark.parametrize(
    ("host", "port", "scheme", "expected"),
    [
        ("a.example", "8443", "https", "a.example:8443"),
        ("a.example", "443", "https", "a.example"),
        ("a.example", "80", "http", "a.example"),
        ("a.example", "80", "https", "a.example:80"),
        ("a.example:5000", "8443", "https", "a.example:5000"),
        ("[::1]", "8443", "https", "[::1]:8443"),
        ("[::1]:1", "8443", "https", "[::1]:1"),
        ("a.example", "", "https", "a.example"),
        ("a.example", "65536", "https", "a.example"),
        ("a.example", "x", "https", "a.example"),
        ("", "8443", "https", ""),
    ],
)
def test_a_port_that_is_said_apart(host: str, port: str, scheme: str, expected: str) -> None:
    assert with_port(host, port, scheme) == expected


@pytest.mark.parametrize(
    ("header", "proxies", "expected"),
    [
        ("/hub", 1, "/hub"),
        ("/hub/", 1, "/hub"),
        ("/a/b.c/~d_e-f", 1, "/a/b.c/~d_e-f"),
        ("/v2/hub", 1, "/v2/hub"),
        ("/", 1, ""),
        ("", 1, ""),
        # each proxy takes away one
        ("/a, /b", 2, "/a/b"),
        ("/evil, /a, /b", 2, "/a/b"),
        ("/evil, /b", 1, "/b"),
        # nothing that leads elsewhere, or out of a header
        ("hub", 1, ""),
        ("//evil.example", 1, ""),
        ("/hub//x", 1, ""),
        ("/../x", 1, ""),
        ("/a/./b", 1, ""),
        ("/.hidden", 1, ""),
        ("https://evil.example/hub", 1, ""),
        ("/hub?x=1", 1, ""),
        ('/hub"', 1, ""),
        ("/hub>; rel=next", 1, ""),
        ("/h%2fb", 1, ""),
        ("/h b", 1, ""),
        ("/hüb", 1, ""),
        ("/" + "a" * 300, 1, ""),
    ],
)
def test_a_prefix(header: str, proxies: int, expected: str) -> None:
    assert prefix_of(header, proxies) == expected


@pytest.mark.parametrize(
    ("prefix", "path", "outside"),
    [
        ("", "/v2/local/app/blobs/x", "/v2/local/app/blobs/x"),
        ("/hub", "/v2/local/app/blobs/x", "/hub/v2/local/app/blobs/x"),
        ("/hub", "/quay.io/v2/app", "/hub/quay.io/v2/app"),
        ("/hub/v2x", "/v2/app", "/hub/v2x/v2/app"),
        ("/v2/hub", "/v2/local/app/blobs/x", "/v2/hub/local/app/blobs/x"),
        ("/v2/hub", "/v2/_mirror/auth/token", "/v2/hub/_mirror/auth/token"),
        ("/a/v2/hub", "/v2/app/v2/x", "/a/v2/hub/app/v2/x"),
        ("/v2", "/v2/app", "/v2/app"),
    ],
)
def test_a_path_as_clients_know_it(prefix: str, path: str, outside: str) -> None:
    assert Caller(client=None, scheme="http", host="", prefix=prefix).outside(path) == outside


@pytest.mark.parametrize(
    ("prefix", "name", "inside"),
    [
        ("", "hub/app", "hub/app"),
        ("/hub", "hub/app", "hub/app"),
        ("/v2/hub", "hub/app", "app"),
        ("/v2/hub", "hub/hub/app", "hub/app"),
        ("/v2/hub", "other/app", "other/app"),
        ("/v2/a/b", "a/b/app", "app"),
        ("/v2", "app", "app"),
    ],
)
def test_a_name_as_it_is_here(prefix: str, name: str, inside: str) -> None:
    assert Caller(client=None, scheme="http", host="", prefix=prefix).inside(name) == inside


@given(st.text(max_size=40))
def test_a_host_is_safe_in_a_challenge(text: str) -> None:
    if HOST.fullmatch(text):
        assert not set(text) & set("\"\\/@?#<>,; \r\n\t'")
