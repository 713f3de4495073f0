"""Attack tables: what may be dialled, and who may be given our credentials."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from yarl import URL

from mirror.upstream.guard import (
    AddressGuard,
    AddressRefused,
    Reach,
    reach_by_name,
    reach_of,
    realm_allowed,
    registrable_domain,
)

NEVER = [
    "0.0.0.0", "0.1.2.3", "169.254.169.254", "169.254.0.1", "169.254.170.2", "100.100.100.200", "168.63.129.16",
    "192.0.0.192", "224.0.0.1", "239.255.255.255", "255.255.255.255",
    "::", "fe80::1", "fe80::1%eth0", "febf::1", "fd00:ec2::254", "fd20:ce::254", "ff02::1",
    "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:100.100.100.200", "::ffff:a9fe:a9fe",
    "64:ff9b::a9fe:a9fe", "64:ff9b::169.254.169.254", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1", "::169.254.169.254",
    "2001:0:a9fe:a9fe::1",  # Teredo whose server is the metadata service
    "2001:0:808:808:0:0:5601:5601",  # Teredo whose client is (inverted bits)
]  # fmt: skip
LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"]
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "240.0.0.1", "192.0.2.1",
    "fc00::1", "fd12:3456::1", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:c0a8:101::", "2001:db8::1",
]  # fmt: skip
GLOBAL = ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]

TABLE = [
    (text, reach)
    for reach, texts in (
        (Reach.NEVER, NEVER),
        (Reach.LOOPBACK, LOOPBACK),
        (Reach.PRIVATE, PRIVATE),
        (Reach.GLOBAL, GLOBAL),
    )
    for text in texts
]


@pytest.mark.parametrize(("text", "reach"), TABLE)
def test_how_near_an_address_is(text: str, reach: Reach) -> None:
    assert reach_of(ip_address(text)) is reach


def info(text: str) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    rest = (443, 0, 0) if ":" in text else (443,)
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (text, *rest))


def may(method: Any, text: str) -> bool:
    try:
        method(info(text)).close()
    except AddressRefused:
        return False
    return True


def guard(*redirects_to: Any, origin: str | None = None) -> AddressGuard:
    made = AddressGuard(redirects_to)
    if origin is not None:
        assert may(made.origin_socket, origin)
    return made


@pytest.mark.parametrize("text", NEVER)
def test_some_addresses_are_never_dialled(text: str) -> None:
    everything = guard("0.0.0.0/0", "::/0", origin="127.0.0.1")
    assert not may(everything.origin_socket, text)
    assert not may(everything.other_socket, text)


@pytest.mark.parametrize("text", LOOPBACK + PRIVATE)
def test_a_public_upstream_does_not_lead_to_addresses_near_by(text: str) -> None:
    public = guard(origin="8.8.8.8")
    assert not may(public.other_socket, text)
    assert not may(guard().other_socket, text)
    assert may(guard(f"{text}/{'128' if ':' in text else '32'}", origin="8.8.8.8").other_socket, text)


@pytest.mark.parametrize("text", GLOBAL)
def test_global_addresses_may_be_dialled(text: str) -> None:
    assert may(guard().other_socket, text)
    assert may(guard().origin_socket, text)


@pytest.mark.parametrize("text", LOOPBACK + PRIVATE)
def test_the_configured_host_may_be_near_by_itself(text: str) -> None:
    assert may(guard().origin_socket, text)


def test_a_near_upstream_leads_to_what_is_as_near_and_no_nearer() -> None:
    assert may(guard(origin="10.0.0.1").other_socket, "192.168.0.1")
    assert may(guard(origin="127.0.0.1").other_socket, "127.0.0.2")
    assert may(guard(origin="127.0.0.1").other_socket, "10.0.0.1")
    assert not may(guard(origin="10.0.0.1").other_socket, "127.0.0.1")
    assert not may(guard(origin="10.0.0.1").other_socket, "::ffff:127.0.0.1")


def test_redirects_to_takes_networks_and_sees_through_embedded_addresses() -> None:
    made = guard(ip_network("10.0.0.0/8"), "fd00::/8")
    assert may(made.other_socket, "10.1.2.3")
    assert may(made.other_socket, "::ffff:10.1.2.3")
    assert may(made.other_socket, "fd12::1")
    assert not may(made.other_socket, "192.168.0.1")
    assert not may(made.other_socket, "fd00:ec2::254")
    with pytest.raises(AddressRefused, match=r"192\.168\.0\.1 .* redirects_to"):
        made.other_socket(info("192.168.0.1"))


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(AddressRefused):
        guard().other_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("localhost", 80)))


HUB = "https://registry-1.docker.io"


@pytest.mark.parametrize(
    ("url", "realm", "realms"),
    [
        (HUB, "https://auth.docker.io/token", ()),
        (HUB, "https://AUTH.Docker.IO./token", ()),
        (HUB, "https://auth.docker.io:8443/token", ()),
        (HUB, f"{HUB}/token", ()),
        (HUB, "https://registry-1.docker.io:443/token", ()),
        ("https://registry.a.co.uk", "https://auth.a.co.uk", ()),
        ("http://10.0.0.5:5000", "http://10.0.0.5:5000/token", ()),
        ("http://localhost:5000", "http://localhost:5000/token", ()),
        ("https://[2001:db8::1]", "https://[2001:db8::1]/token", ()),
        (HUB, "https://auth.example.net/token", ("auth.example.net",)),
        (HUB, "https://auth.example.net/token", ("Auth.Example.Net",)),
        (HUB, "https://auth.example.net:8443/token", ("auth.example.net",)),
        (HUB, "https://auth.example.net:8443/token", ("auth.example.net:8443",)),
        (HUB, "https://auth.example.net/token", ("https://auth.example.net",)),
        ("http://10.0.0.5:5000", "http://10.0.0.5:5001/token", ("10.0.0.5:5001",)),
        ("http://[::1]:5000", "http://[::1]:5001/token", ("[::1]:5001",)),
    ],
)
def test_credentials_may_go_to(url: str, realm: str, realms: tuple[str, ...]) -> None:
    assert realm_allowed(URL(url), URL(realm), realms)


@pytest.mark.parametrize(
    ("url", "realm", "realms"),
    [
        # look-alikes
        (HUB, "https://auth.docker.io.evil.com/token", ()),
        (HUB, "https://evildocker.io/token", ()),
        (HUB, "https://auth-docker.io/token", ()),
        (HUB, "https://docker.io.com/token", ()),
        (HUB, "https://io/token", ()),
        (HUB, "https://\u0430uth.d\u043ecker.io/token", ()),
        (HUB, "https://xn--dcker-jua.io/token", ()),
        (HUB, "https://auth.docker.io%2eevil.com/token", ()),
        # userinfo, and what stands where a host might be read
        (HUB, "https://auth.docker.io@evil.com/token", ()),
        (HUB, "https://auth.docker.io:443@evil.com/token", ()),
        (HUB, "https://user@auth.docker.io/token", ()),
        (HUB, "https://user:pass@auth.docker.io/token", ()),
        (HUB, "https://evil.com/..", ()),
        (HUB, "https://evil.com/https://auth.docker.io/", ()),
        (HUB, "https://evil.com?@auth.docker.io/", ()),
        (HUB, "https://evil.com#@auth.docker.io/", ()),
        # schemes and ports
        (HUB, "http://auth.docker.io/token", ()),
        (HUB, "http://registry-1.docker.io/token", ()),
        (HUB, "http://registry-1.docker.io:443/token", ()),
        (HUB, "ftp://auth.docker.io/token", ()),
        (HUB, "file:///etc/passwd", ()),
        (HUB, "//auth.docker.io/token", ()),
        (HUB, "/token", ()),
        ("http://10.0.0.5:5000", "http://10.0.0.5:5001/token", ()),
        ("http://registry.docker.io", "http://auth.docker.io/token", ()),
        # suffixes under which everybody may have a name
        ("https://a.co.uk", "https://b.co.uk/token", ()),
        ("https://a.github.io", "https://b.github.io/token", ()),
        ("https://s3.us-east-1.amazonaws.com", "https://x.s3.us-east-1.amazonaws.com", ()),
        ("https://registry.one.svc.cluster.local", "https://auth.two.svc.cluster.local/token", ()),
        # addresses and single labels share nothing
        ("https://10.0.0.5", "https://10.0.0.6/token", ()),
        ("https://10.0.0.5", "https://20.0.0.5/token", ()),
        ("https://10.0.0.5:5000", "https://10.0.0.5:5001/token", ()),
        ("https://127.0.0.1", "https://2130706433/token", ()),
        ("https://127.0.0.1", "https://0x7f.0.0.1/token", ()),
        ("https://127.0.0.1", "https://0177.0.0.1/token", ()),
        ("https://127.0.0.1", "https://[::ffff:127.0.0.1]/token", ()),
        ("https://1.2.0x3", "https://4.2.0x3/token", ()),
        ("https://registry", "https://auth/token", ()),
        ("https://localhost", "https://auth.localhost/token", ()),
        # the list means what it says
        (HUB, "https://auth.example.net:8443/token", ("auth.example.net:443",)),
        (HUB, "https://evil.auth.example.net/token", ("auth.example.net",)),
        (HUB, "https://example.net/token", ("auth.example.net",)),
        (HUB, "http://auth.example.net/token", ("auth.example.net",)),
        (HUB, "https://user@auth.example.net/token", ("auth.example.net",)),
        (HUB, "https://evil.com/token", ("",)),
        (HUB, "https://evil.com/token", ("*",)),
        (HUB, "https://evil.com/token", ("://",)),
        (HUB, "https://evil.com/token", ("[",)),
    ],
)
def test_credentials_may_not_go_to(url: str, realm: str, realms: tuple[str, ...]) -> None:
    assert not realm_allowed(URL(url), URL(realm), realms)


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("auth.docker.io", "docker.io"),
        ("docker.io", "docker.io"),
        ("docker.io.", "docker.io"),
        ("a.b.co.uk", "b.co.uk"),
        ("co.uk", None),
        ("localhost", None),
        ("10.0.0.1", None),
        ("0x7f.1", None),
        ("::1", None),
        ("", None),
        ("a.b.nosuchsuffix", None),
    ],
)
def test_registrable_domain(host: str, domain: str | None) -> None:
    assert registrable_domain(host) == domain


# ---- behind a proxy, by name ----

NEAR_NAMES = {
    Reach.LOOPBACK: (
        "localhost LocalHost. a.localhost localhost.localdomain 127.0.0.1. ip6-localhost localhost6 x.localdomain.."
    ),
    Reach.PRIVATE: (
        "minio MINIO. registry.internal a.INTERNAL. a.b.local nas.lan x.corp y.home.arpa metadata-db.internal "
        "ip-10-0-0-5.ec2.internal"
    ),
    Reach.NEVER: (
        "metadata metadata.google.internal Metadata.Google.Internal. metadata.goog instance-data "
        "instance-data.ec2.internal metadata.tencentyun.com 169.254.169.254."
    ),
    Reach.GLOBAL: (
        "docker.io auth.docker.io. metadata.example.com a_b.example.com xn--4ca.com 1.2.3.com 0x7f.example.com "
        "localhost.example.com internal.example.com"
    ),
}
BY_NAME = [
    *((text, reach) for reach, texts in NEAR_NAMES.items() for text in texts.split()),
    *((text, reach) for text, reach in TABLE if "%" not in text),
]

NOT_AS_USUAL = [
    "2130706433", "0x7f.1", "0x7f000001", "0X7F.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "1.2.3.4.5",
    "256.1.1.1", "127.0.0.0x1", "a.0x", "example.1", "4294967297", "0", "fe80::1%eth0", "::1%lo", "fe80::1%25eth0",
    "[::1]", "%31%32%37.0.0.1", "127.0.0.1 ", "a b", "local\u00adhost", "\uff11\uff12\uff17.0.0.1", "a..b", ".", "",
    "a/b", "a@b", "a:80",
]  # fmt: skip


@pytest.mark.parametrize(("host", "reach"), BY_NAME)
def test_how_near_a_host_is_by_its_name(host: str, reach: Reach) -> None:
    assert reach_by_name(host) is reach


@pytest.mark.parametrize("host", NOT_AS_USUAL)
def test_what_is_neither_a_name_nor_an_address_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused, match="neither"):
        reach_by_name(host)


def asked(url: str, own: str = "https://hub.test", *redirects_to: str, realms: tuple[str, ...] = ()) -> bool:
    try:
        AddressGuard(redirects_to, url=URL(own), realms=realms).check_name(URL(url))
    except AddressRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("own", "url", "redirects_to", "realms"),
    [
        ("https://hub.test", "https://cdn.test", (), ()),
        ("http://localhost:1", "http://LOCALHOST.:2", (), ()),
        ("http://localhost:1", "http://minio", (), ()),
        ("http://localhost:1", "http://127.0.0.1", (), ()),
        ("http://minio", "http://registry", (), ()),
        ("http://minio", "http://10.0.0.1", (), ()),
        ("http://10.0.0.1", "http://minio", (), ()),
        ("https://hub.test", "https://10.0.0.1", ("10.0.0.0/8",), ()),
        ("https://hub.test", "https://[::ffff:10.0.0.1]", ("10.0.0.0/8",), ()),
        ("https://hub.test", "https://127.0.0.1", ("127.0.0.1/32",), ()),
        ("https://hub.test", "https://auth:5001", (), ("auth:5001",)),
        ("https://hub.test", "https://auth", (), ("auth",)),
    ],
)
def test_a_proxy_may_be_asked_for(own: str, url: str, redirects_to: tuple[str, ...], realms: tuple[str, ...]) -> None:
    assert asked(url, own, *redirects_to, realms=realms)


@pytest.mark.parametrize(
    ("own", "url", "redirects_to", "realms"),
    [
        ("https://hub.test", "https://minio", (), ()),
        ("https://hub.test", "https://localhost", ("127.0.0.0/8",), ()),
        ("https://hub.test", "https://127.0.0.1", ("10.0.0.0/8",), ()),
        ("http://minio", "http://localhost", (), ()),
        ("http://10.0.0.1", "http://127.0.0.1", (), ()),
        ("http://0x7f.1", "http://minio", (), ()),
        ("http://0x7f.1", "http://0x7f.1", (), ()),
        ("https://hub.test", "https://auth:5002", (), ("auth:5001",)),
        ("https://hub.test", "http://auth", (), ("auth",)),
        ("https://hub.test", "https://metadata", (), ("metadata",)),
        ("http://metadata", "http://metadata", (), ()),
        ("http://169.254.169.254", "http://169.254.169.254", ("0.0.0.0/0",), ()),
        ("http://localhost", "http://metadata.google.internal", (), ()),
    ],
)
def test_a_proxy_may_not_be_asked_for(
    own: str, url: str, redirects_to: tuple[str, ...], realms: tuple[str, ...]
) -> None:
    assert not asked(url, own, *redirects_to, realms=realms)


def test_what_was_dialled_directly_counts_for_names_too() -> None:
    made = AddressGuard((), url=URL("https://hub.example"))
    assert may(made.origin_socket, "10.0.0.1")
    made.check_name(URL("https://minio"))
    with pytest.raises(AddressRefused, match=r"localhost is a loopback host .* redirects_to, or its name in realms"):
        made.check_name(URL("https://localhost"))
