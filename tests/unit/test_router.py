"""Which repository a request means: the closed world, as a table."""

from __future__ import annotations

import pytest

from mirror.config import Upstream
from mirror.oci.errors import NameInvalid, NameUnknown
from mirror.upstream.router import Router

UPSTREAMS = {
    "docker.io": Upstream(url="https://registry-1.docker.io"),
    "quay.io": Upstream(url="https://quay.io", names=("quay.example.net:8443",)),
    "gcr.io": Upstream(url="https://gcr.io"),
    "corp": Upstream(url="https://registry.corp.example", names=("registry.corp.example",)),
    "127.0.0.1:5001": Upstream(url="http://127.0.0.1:5001"),
    "[::1]:5001": Upstream(url="http://[::1]:5001"),
}


@pytest.fixture
def router() -> Router:
    return Router(UPSTREAMS, "docker.io", ["local/**", "team-*/app", "deep/**/leaf"])


def ask(router: Router, name: str, ns: str | None = None, host: str | None = None, prefix: str | None = None) -> str:
    found = router.route(ns=ns, host=host, prefix=prefix, name=name)
    return f"{found.source or '(local)'} {found.name}"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"name": "library/alpine"}, "docker.io library/alpine"),
        ({"name": "alpine"}, "docker.io library/alpine"),
        ({"name": "a/b/c"}, "docker.io a/b/c"),
        # ns
        ({"ns": "quay.io", "name": "x/y"}, "quay.io x/y"),
        ({"ns": "quay.io", "name": "x"}, "quay.io x"),
        ({"ns": "QUAY.io", "name": "x"}, "quay.io x"),
        ({"ns": "quay.example.net:8443", "name": "x"}, "quay.io x"),
        ({"ns": "index.docker.io", "name": "alpine"}, "docker.io library/alpine"),
        ({"ns": "registry-1.docker.io", "name": "a/b"}, "docker.io a/b"),
        ({"ns": "127.0.0.1:5001", "name": "x"}, "127.0.0.1:5001 x"),
        ({"ns": "[::1]:5001", "name": "x"}, "[::1]:5001 x"),
        ({"ns": "docker.io", "name": "docker.io/alpine"}, "docker.io library/alpine"),
        ({"ns": "docker.io", "name": "index.docker.io/a/b"}, "docker.io a/b"),
        ({"ns": "gcr.io", "name": "google.com/sdk/x"}, "gcr.io google.com/sdk/x"),
        ({"ns": "gcr.io", "name": "quay.io/x"}, "gcr.io quay.io/x"),
        ({"ns": "docker.io", "name": "local/x"}, "docker.io local/x"),
        ({"ns": "", "name": "x/y"}, "docker.io x/y"),
        # ns before Host before prefix before the name
        ({"ns": "quay.io", "host": "gcr.io", "prefix": "corp", "name": "docker.io/x/y"}, "quay.io docker.io/x/y"),
        ({"host": "gcr.io", "prefix": "corp", "name": "x/y"}, "gcr.io x/y"),
        ({"prefix": "corp", "name": "quay.io/y"}, "corp quay.io/y"),
        # Host
        ({"host": "quay.io", "name": "x"}, "quay.io x"),
        ({"host": "quay.io:5000", "name": "x"}, "quay.io x"),
        ({"host": "Quay.IO", "name": "quay.io/x"}, "quay.io x"),
        ({"host": "quay.example.net:8443", "name": "x"}, "quay.io x"),
        ({"host": "127.0.0.1:5001", "name": "x"}, "127.0.0.1:5001 x"),
        ({"host": "[::1]:5001", "name": "x"}, "[::1]:5001 x"),
        ({"host": "mirror.example.org:5000", "name": "x/y"}, "docker.io x/y"),
        ({"host": "mirror.example.org:5000", "name": "quay.io/y"}, "quay.io y"),
        ({"host": "quay.example.net", "name": "x/y"}, "docker.io x/y"),
        # prefix
        ({"prefix": "docker.io", "name": "alpine"}, "docker.io library/alpine"),
        ({"prefix": "corp", "name": "alpine"}, "corp alpine"),
        ({"prefix": "corp", "name": "local/x"}, "corp local/x"),
        # the first part of the name
        ({"name": "docker.io/library/alpine"}, "docker.io library/alpine"),
        ({"name": "docker.io/alpine"}, "docker.io library/alpine"),
        ({"name": "quay.io/a/b"}, "quay.io a/b"),
        ({"name": "corp/a/b"}, "corp a/b"),
        ({"name": "127.0.0.1:5001/a"}, "127.0.0.1:5001 a"),
        ({"name": "gcr.io/google.com/sdk/x"}, "gcr.io google.com/sdk/x"),
        ({"name": "quay.io"}, "docker.io library/quay.io"),
        ({"name": "corp"}, "docker.io library/corp"),
        # local
        ({"name": "local/x"}, "(local) local/x"),
        ({"name": "local/x/y/z"}, "(local) local/x/y/z"),
        ({"name": "local"}, "docker.io library/local"),
        ({"name": "localx/y"}, "docker.io localx/y"),
        ({"name": "x/local/y"}, "docker.io x/local/y"),
        ({"name": "team-a/app"}, "(local) team-a/app"),
        ({"name": "team-a/b/app"}, "docker.io team-a/b/app"),
        ({"name": "team-a/app/x"}, "docker.io team-a/app/x"),
        ({"name": "deep/leaf"}, "(local) deep/leaf"),
        ({"name": "deep/a/b/leaf"}, "(local) deep/a/b/leaf"),
        ({"name": "deep/a/leafy"}, "docker.io deep/a/leafy"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_request_means_one_repository(router: Router, asked: dict[str, str], meant: str) -> None:
    assert ask(router, **asked) == meant


@pytest.mark.parametrize(
    "asked",
    [
        {"ns": "ghcr.io", "name": "x/y"},
        {"ns": "nothing", "name": "x/y"},
        {"ns": "quay.io.evil.example", "name": "x/y"},
        {"ns": "quay.io:443", "name": "x/y"},
        {"ns": "quay.example.net", "name": "x/y"},
        {"ns": "169.254.169.254", "name": "latest/meta-data"},
        {"ns": "http://quay.io", "name": "x"},
        {"ns": "ghcr.io", "host": "quay.io", "name": "quay.io/y"},
        {"prefix": "ghcr.io", "name": "x/y"},
        {"prefix": "hub", "name": "x/y"},
        {"name": "ghcr.io/x/y"},
        {"name": "localhost/x"},
        {"name": "LOCALHOST/x"},
        {"name": "localhost:5000/x"},
        {"name": "127.0.0.1/x"},
        {"name": "[::1]:80/x"},
        {"name": "registry:5000/x"},
    ],
    ids=str,
)
def test_a_registry_that_is_not_configured_is_unknown(router: Router, asked: dict[str, str]) -> None:
    with pytest.raises(NameUnknown) as caught:
        ask(router, **asked)
    named = asked.get("ns") or asked.get("prefix") or asked["name"].split("/")[0]
    assert repr(named) in caught.value.message
    assert "upstreams" in caught.value.message


@pytest.mark.parametrize(
    "name",
    ["", "/", "a//b", "A/b", "library/Alpine", "../x", "a/../b", "a/./b", "x/", "/x", "a b", "a%2Fb", "a\n", "é/x",
     "quay.io/", "quay.io/../x", "quay.io//x", "local/../x", "-a/b", "a" * 256, "a\x00b"],
)  # fmt: skip
def test_bad_names_are_invalid(router: Router, name: str) -> None:
    with pytest.raises(NameInvalid):
        ask(router, name)


def test_a_name_is_measured_after_library_was_put_before_it(router: Router) -> None:
    longest = 255 - len("library/")
    assert ask(router, "a" * longest) == "docker.io library/" + "a" * longest
    with pytest.raises(NameInvalid):
        ask(router, "a" * (longest + 1))


def test_local_may_hold_names_that_look_like_hosts() -> None:
    router = Router({"quay.io": UPSTREAMS["quay.io"]}, None, ["**"])
    assert ask(router, "ghcr.io/x") == "(local) ghcr.io/x"
    assert ask(router, "x") == "(local) x"
    assert ask(router, "quay.io/x") == "quay.io x"


def test_without_a_default_a_name_must_say_its_registry() -> None:
    router = Router(UPSTREAMS, None, [])
    with pytest.raises(NameUnknown, match="default_upstream"):
        ask(router, "library/alpine")
    assert ask(router, "docker.io/library/alpine") == "docker.io library/alpine"


def test_library_belongs_to_docker_hub_under_any_name() -> None:
    router = Router(
        {"hub": Upstream(url="http://x.example", names=("docker.io",)), "quay.io": UPSTREAMS["quay.io"]}, "hub", []
    )
    assert ask(router, "alpine") == "hub library/alpine"
    assert ask(router, "alpine", ns="index.docker.io") == "hub library/alpine"
    assert ask(router, "quay.io/alpine") == "quay.io alpine"


def test_one_name_means_one_upstream() -> None:
    with pytest.raises(ValueError, match=r"quay\.io means both"):
        Router({"quay.io": UPSTREAMS["quay.io"], "x": Upstream(url="http://x.example", names=("quay.io",))}, None, [])
    with pytest.raises(ValueError, match="default_upstream"):
        Router(UPSTREAMS, "ghcr.io", [])


# ---- ourselves ----

OURS = ["registry.corp", "registry.corp:5000", "me", "[::1]:5000"]


@pytest.fixture(params=["docker.io", None], ids=["with a default", "without one"])
def named(request: pytest.FixtureRequest) -> Router:
    return Router(UPSTREAMS, request.param, ["local/**", "me/**"], OURS)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"ns": "registry.corp", "name": "local/x"}, "(local) local/x"),
        ({"ns": "Registry.CORP:5000", "name": "local/x"}, "(local) local/x"),
        ({"ns": "[::1]:5000", "name": "local/x"}, "(local) local/x"),
        ({"ns": "registry.corp", "name": "registry.corp/local/x"}, "(local) local/x"),
        ({"ns": "registry.corp", "name": "quay.io/local/x"}, "quay.io local/x"),
        ({"ns": "registry.corp", "prefix": "quay.io", "name": "local/x"}, "quay.io local/x"),
        ({"ns": "registry.corp", "host": "quay.io", "name": "local/x"}, "quay.io local/x"),
        ({"ns": "quay.io", "host": "registry.corp", "name": "local/x"}, "quay.io local/x"),
        ({"host": "registry.corp", "name": "local/x"}, "(local) local/x"),
        ({"host": "registry.corp:443", "name": "local/x"}, "(local) local/x"),
        ({"host": "registry.corp", "prefix": "quay.io", "name": "x"}, "quay.io x"),
        ({"prefix": "registry.corp", "name": "local/x"}, "(local) local/x"),
        ({"prefix": "REGISTRY.corp", "name": "gcr.io/x"}, "gcr.io x"),
        ({"name": "registry.corp/local/x"}, "(local) local/x"),
        ({"name": "registry.corp:5000/local/x/y"}, "(local) local/x/y"),
        ({"name": "registry.corp/gcr.io/x"}, "gcr.io x"),
        ({"name": "me/local/x"}, "(local) local/x"),
        ({"name": "me/x"}, "(local) me/x"),  # a local name, whatever else its first part means
        ({"name": "registry.corp/me/x"}, "(local) me/x"),
    ],
    ids=str,
)
def test_what_names_ourselves_is_as_if_it_named_nobody(named: Router, asked: dict[str, str], meant: str) -> None:
    assert ask(named, **asked) == meant


def test_what_names_ourselves_and_is_not_local_is_the_default_s() -> None:
    router = Router(UPSTREAMS, "docker.io", ["local/**"], OURS)
    for asked in ({"ns": "me"}, {"host": "me"}, {"prefix": "me"}, {"ns": "me", "host": "me", "prefix": "me"}):
        assert ask(router, "x", **asked) == "docker.io library/x"
    assert ask(router, "registry.corp/a/b") == "docker.io a/b"
    with pytest.raises(NameUnknown, match="default_upstream"):
        ask(Router(UPSTREAMS, None, ["local/**"], OURS), "registry.corp/a/b")


@pytest.mark.parametrize("name", ["registry.corp/", "registry.corp//local/x", "registry.corp/local/", "me/../local/x"])
def test_a_name_after_our_own_is_checked_like_any(named: Router, name: str) -> None:
    with pytest.raises((NameInvalid, NameUnknown)):
        ask(named, name)


def test_a_host_that_is_not_among_our_names_is_a_stranger(named: Router) -> None:
    for asked in ({"ns": "registry.corp:80"}, {"prefix": "registry"}, {"ns": "registry.corp.evil"}):
        with pytest.raises(NameUnknown):
            ask(named, "local/x", **asked)


def test_no_name_is_ours_and_an_upstream_s() -> None:
    with pytest.raises(ValueError, match=r"names: QUAY\.io means the upstream quay\.io"):
        Router(UPSTREAMS, None, [], ["QUAY.io"])
    router = Router(UPSTREAMS, "docker.io", ["**"], ["index.docker.io"])  # a name docker.io has when nobody else does
    assert ask(router, "x", host="index.docker.io") == ask(router, "x", ns="index.docker.io") == "(local) x"
    assert ask(router, "x", host="registry-1.docker.io") == "docker.io library/x"


def test_a_registry_as_a_whole(named: Router) -> None:
    """Without a repository as well: ours and those that are configured are known, others are not."""
    for ns, prefix in (
        (None, None),
        ("me", None),
        (None, "registry.corp"),
        ("QUAY.io", None),
        (None, "corp"),
        ("", ""),
    ):
        named.check(ns=ns, prefix=prefix)
    named.check(ns="quay.io", prefix="nowhere")  # what comes first decides
    for ns, prefix in (("nowhere", None), (None, "nowhere"), ("me", "nowhere"), ("nowhere", "me")):
        with pytest.raises(NameUnknown, match="nowhere"):
            named.check(ns=ns, prefix=prefix)


# ---- patterns ----

PATTERNS = {
    "docker.io": Upstream(url="https://registry-1.docker.io"),
    "special-docker.pkg.dev": Upstream(url="https://elsewhere.example"),
    "*-docker.pkg.dev": Upstream(url="https://{host}"),
    "*.pkg.dev": Upstream(url="https://{host}"),
    "*.corp.example:5000": Upstream(url="http://{host}"),
    "*.corp.example": Upstream(url="https://{host}"),
    "*.docker.io": Upstream(url="https://{host}"),
}
EUROPE = "europe-docker.pkg.dev"


@pytest.fixture
def wide() -> Router:
    return Router(PATTERNS, "docker.io", ["local/**", "own.pkg.dev/**"], ["mirror.corp.example", "m.corp.example:5000"])


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ({"ns": EUROPE, "name": "p/x"}, f"{EUROPE} p/x"),
        ({"ns": EUROPE.upper(), "name": "p/x"}, f"{EUROPE} p/x"),
        ({"ns": EUROPE, "name": f"{EUROPE}/p/x"}, f"{EUROPE} p/x"),
        ({"ns": EUROPE, "name": "asia-docker.pkg.dev/p/x"}, f"{EUROPE} asia-docker.pkg.dev/p/x"),
        ({"ns": EUROPE, "name": "x"}, f"{EUROPE} x"),
        ({"host": EUROPE, "name": "p/x"}, f"{EUROPE} p/x"),
        ({"host": f"{EUROPE.title()}:8443", "name": "p/x"}, f"{EUROPE} p/x"),
        ({"prefix": EUROPE, "name": "p/x"}, f"{EUROPE} p/x"),
        ({"prefix": "EUROPE-docker.pkg.dev", "name": "p/x"}, f"{EUROPE} p/x"),
        ({"name": f"{EUROPE}/p/x"}, f"{EUROPE} p/x"),
        ({"name": "Europe-Docker.pkg.dev/p/x"}, f"{EUROPE} p/x"),
        ({"ns": "asia-docker.pkg.dev", "host": EUROPE, "prefix": "a.corp.example", "name": "x"},
         "asia-docker.pkg.dev x"),
        # names win over patterns
        ({"ns": "special-docker.pkg.dev", "name": "x"}, "special-docker.pkg.dev x"),
        ({"name": "index.docker.io/alpine"}, "docker.io library/alpine"),
        ({"ns": "registry-1.docker.io", "name": "alpine"}, "docker.io library/alpine"),
        ({"ns": "mirror.docker.io", "name": "alpine"}, "mirror.docker.io alpine"),
        ({"name": "own.pkg.dev/x"}, "own.pkg.dev x"),
        # a port only when the pattern has one; of a Host it may be ours
        ({"ns": "a.corp.example:5000", "name": "x"}, "a.corp.example:5000 x"),
        ({"ns": "a.corp.example", "name": "x"}, "a.corp.example x"),
        ({"host": "a.corp.example:5000", "name": "x"}, "a.corp.example:5000 x"),
        ({"host": "a.corp.example:5001", "name": "x"}, "a.corp.example x"),
        # what is ours is ours, whatever matches it
        ({"ns": "mirror.corp.example", "name": "local/x"}, "(local) local/x"),
        ({"host": "mirror.corp.example", "name": "local/x"}, "(local) local/x"),
        ({"host": "mirror.corp.example:8080", "name": "local/x"}, "(local) local/x"),
        ({"host": "M.corp.example:5000", "name": "local/x"}, "(local) local/x"),
        ({"prefix": "mirror.corp.example", "name": "local/x"}, "(local) local/x"),
        ({"name": "mirror.corp.example/local/x"}, "(local) local/x"),
        ({"host": "m.corp.example", "name": "local/x"}, "m.corp.example local/x"),
        # what merely looks like it
        ({"host": "pkg.dev", "name": "x/y"}, "docker.io x/y"),
        ({"host": "a.b.pkg.dev", "name": "x/y"}, "docker.io x/y"),
        ({"host": "", "name": "x/y"}, "docker.io x/y"),
        ({"host": "a_b.pkg.dev", "name": "x/y"}, "docker.io x/y"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_pattern_matches_is_an_upstream_of_its_own(wide: Router, asked: dict[str, str], meant: str) -> None:
    assert ask(wide, **asked) == meant


@pytest.mark.parametrize(
    "host",
    [
        "pkg.dev",
        "a.b.pkg.dev",
        ".pkg.dev",
        "a..pkg.dev",
        "-a.pkg.dev",
        "a-.pkg.dev",
        "a_b.pkg.dev",
        "a.pkg.dev.",
        "a.pkg.dev:443",
        "a.pkg.dev:",
        "a.pkg.dev.evil.example",
        "evil.example#.pkg.dev",
        "evil.example?.pkg.dev",
        "evil.example\\.pkg.dev",
        "us@evil.pkg.dev",
        "evil.example/a.pkg.dev",
        "a.pkg.dev\n",
        "a.pkg.dev\x00",
        "a b.pkg.dev",
        "%61.pkg.dev",
        "*.pkg.dev",
        "é.pkg.dev",
        "\u212a.pkg.dev",
        f"{'a' * 64}.pkg.dev",
        "a.corp.example:05000",
        "a.corp.example:50001",
        "[::1].pkg.dev",
        f"{'.'.join(['a' * 60] * 4)}.corp.example",
    ],
    ids=ascii,
)
@pytest.mark.parametrize("by", ["ns", "prefix"])
def test_the_world_stays_closed_for_all_else(wide: Router, host: str, by: str) -> None:
    with pytest.raises(NameUnknown):
        ask(wide, "p/x", **{by: host})
    with pytest.raises(NameUnknown):
        wide.check(ns=host if by == "ns" else None, prefix=host if by == "prefix" else None)


def test_the_longest_names_of_hosts() -> None:
    domain = ".".join(["a" * 61] * 3)
    router = Router({f"*.{domain}": Upstream(url="https://{host}")}, None, [])
    longest = f"{'a' * 63}.{domain}"
    assert len(longest) == 249
    assert ask(router, "x", ns=longest) == f"{longest} x"
    wider = Router({f"*.a.{domain}a.bb": Upstream(url="https://{host}")}, None, [])
    for room, known in ((253, True), (254, False)):
        host = f"{'a' * (room - len(f'.a.{domain}a.bb'))}.a.{domain}a.bb"
        assert len(host) == room
        if known:
            assert ask(wider, "x", ns=host) == f"{host} x"
        else:
            with pytest.raises(NameUnknown):
                ask(wider, "x", ns=host)


def test_without_a_name_docker_hub_matches_a_pattern_as_itself() -> None:
    router = Router({"*.io": Upstream(url="https://{host}")}, None, [])
    assert ask(router, "docker.io/alpine") == "docker.io library/alpine"
    assert ask(router, "quay.io/alpine") == "quay.io alpine"


def test_a_registry_as_a_whole_may_be_a_pattern_s(wide: Router) -> None:
    wide.check(ns=EUROPE, prefix=None)
    wide.check(ns=None, prefix=EUROPE.upper())
