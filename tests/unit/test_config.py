"""Files, good and bad: what they become, and exactly what is said about them and where."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from mirror.config import (
    Access,
    ClientCertificate,
    Config,
    ConfigError,
    Credentials,
    Limits,
    ListenAddress,
    Listener,
    Log,
    Mirror,
    Proxy,
    Push,
    Section,
    Storage,
    Tags,
    Timeouts,
    Tls,
    Upstream,
    UpstreamDefaults,
    builtin_upstreams,
    load_config,
)
from mirror.config import document as document_module
from mirror.config.values import listen_address
from tests.settings_schema import refused

EXAMPLE = Path(__file__).parents[2] / "config" / "mirror.yaml"
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with libyaml's loader and with the one that is always there: both must say the same."""
    if not hasattr(yaml, request.param):
        pytest.skip(f"this PyYAML has no {request.param}")
    monkeypatch.setattr(document_module, "_LOADER", getattr(yaml, request.param))


def load(tmp_path: Path, text: str | bytes, **overrides: Any) -> Config:
    path = tmp_path / "mirror.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    config = load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})
    assert refused(text) == [], "what loads is right by the schema"
    return config


def problems(tmp_path: Path, text: str | bytes, **overrides: Any) -> list[str]:
    """Return what is said about the file, without the folder it is in."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **overrides)
    assert str(caught.value) == "\n".join(map(str, caught.value.problems))
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


def upstream(text: str) -> str:
    """A file with one upstream, ``r.io``; text: its further settings, which begin in line 4, column 5."""
    return "upstreams:\n  r.io:\n    url: https://r.io\n" + "".join(f"    {line}\n" for line in text.splitlines())


# ---- good files ----


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    config = load_config(None)
    assert config == Config(
        listen=("127.0.0.1:5000",),
        workers="auto",
        tls=None,
        storage=Storage(root=tmp_path / "home" / ".local" / "share" / "oci-mirror"),
        upstreams=builtin_upstreams(),
        default_upstream="docker.io",
        local=("local/**",),
        names=(),
        packages=None,
        read_only=False,
        delete=True,
        push=Push(missing_blobs="reject", session_expires=86400),
        access=Access(htpasswd_file=None, anonymous="pull", push=None, admin=(), allow_from=(), insecure_writes=False),
        limits=Limits(manifest=4_194_304, blob=274_877_906_944, send_timeout=60),
        shutdown_delay=5,
        drain_timeout=25,
    )
    assert config.listen == (Listener(address=ListenAddress("127.0.0.1", 5000)),)


def test_the_builtin_upstreams() -> None:
    found = builtin_upstreams()
    assert {name: (upstream.url, upstream.names, upstream.realms) for name, upstream in found.items()} == {
        "docker.io": ("https://registry-1.docker.io", ("index.docker.io", "registry-1.docker.io"), ()),
        "ghcr.io": ("https://ghcr.io", (), ()),
        "quay.io": ("https://quay.io", (), ()),
        "gcr.io": ("https://gcr.io", (), ()),
        "registry.k8s.io": ("https://registry.k8s.io", (), ()),
        "mcr.microsoft.com": ("https://mcr.microsoft.com", (), ()),
        "public.ecr.aws": ("https://public.ecr.aws", (), ()),
        "nvcr.io": ("https://nvcr.io", (), ("authn.nvidia.com",)),
    }
    assert {upstream.tags for upstream in found.values()} == {
        Tags(fresh_for=60, stale_for=None, revalidate_wait=1, on_not_found="forget")
    }
    assert all(upstream.unverified_ranges and not upstream.redirects_to for upstream in found.values())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        "---\n",
        "{}\n",
        "null\n",
        "storage:\nlimits:\npush:\naccess:\n",
        "\ufeff# with a byte order mark\n",
    ],
    ids=["empty", "comment", "start", "braces", "null", "sections-commented-out", "bom"],
)
def test_an_empty_file_is_the_defaults(tmp_path: Path, loader: None, text: str) -> None:
    assert load(tmp_path, text) == load_config(None)


def test_the_data_home_is_read_when_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert load_config(None).storage.root == tmp_path / "data" / "oci-mirror"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert load_config(None).storage.root == tmp_path / "home/.local/share/oci-mirror"


def test_no_home_is_a_problem_only_when_a_root_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert problems(tmp_path, "workers: 0\n") == [
        "mirror.yaml: storage.root: there is no home folder to make a default of; give the folder to keep things in",
        "mirror.yaml:1:10: workers: expected auto or a number from 1 to 256, got 0",
    ]
    assert load(tmp_path, "storage: {root: /r}\n").storage.root == Path("/r")


def test_every_setting_is_read(tmp_path: Path, loader: None) -> None:
    for name in ("tls.crt", "tls.key", "clients.pem", "b.crt", "key", "corp.pem", "hub", "users"):
        (tmp_path / name).write_text("x")
    (tmp_path / "images").mkdir()
    config = load(
        tmp_path,
        """
listen: [0.0.0.0:5000, {address: "[::1]:5001", tls: null}, {address: localhost:0, tls: {certificate: b.crt, key: key}}]
admin_listen: 127.0.0.1:5002
trusted_proxies: [127.0.0.1, 10.0.0.0/8]
log: {format: json, level: warning}
workers: 4
tls: {certificate: tls.crt, key: tls.key, client_ca: clients.pem}
storage: {root: data}
upstreams:
  docker.io:
    url: HTTPS://Registry-1.docker.io/
    names: [index.docker.io, "127.0.0.1:5001"]
    ca_file: corp.pem
    credentials: {username: u, password_file: hub}
    realms: [auth.example.net, "auth.example.net:8443"]
    redirects_to: [10.0.0.0/8, 192.168.1.1, "fd00::/8"]
    unverified_ranges: no
    tags: {fresh_for: 2m, stale_for: 1d, revalidate_wait: 500ms, on_not_found: keep}
default_upstream: docker.io
local: [local/**, "team-*/tools", mine]
names: [registry.corp, "registry.corp:5000"]
packages: images
read_only: true
delete: no
push: {missing_blobs: accept, session_expires: 2h}
access:
  htpasswd_file: users
  anonymous: none
  push: [ci, "räksmörgås"]
  admin: [root]
  allow_from: [10.0.0.0/8, "fe80::/10", 192.168.1.1]
  insecure_writes: true
limits: {manifest: 8MiB, blob: 10GB, send_timeout: 30}
shutdown_delay: 0
drain_timeout: 1.5m
""",
    )
    tls = Tls(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "clients.pem")
    assert config == Config(
        listen=(
            Listener(address=ListenAddress("0.0.0.0", 5000), tls=tls),
            Listener(address=ListenAddress("::1", 5001), tls=None),
            Listener(
                address=ListenAddress("localhost", 0), tls=Tls(certificate=tmp_path / "b.crt", key=tmp_path / "key")
            ),
        ),
        admin_listen=(Listener(address=ListenAddress("127.0.0.1", 5002), tls=tls),),
        trusted_proxies=(ip_network("127.0.0.1/32"), ip_network("10.0.0.0/8")),
        log=Log(format="json", level="warning"),
        workers=4,
        tls=tls,
        storage=Storage(root=tmp_path / "data"),
        upstreams={
            "docker.io": Upstream(
                url="https://registry-1.docker.io",
                names=("index.docker.io", "127.0.0.1:5001"),
                ca_file=tmp_path / "corp.pem",
                credentials=Credentials(username="u", password_file=tmp_path / "hub"),
                realms=("auth.example.net", "auth.example.net:8443"),
                redirects_to=(ip_network("10.0.0.0/8"), ip_network("192.168.1.1/32"), ip_network("fd00::/8")),
                unverified_ranges=False,
                tags=Tags(fresh_for=120.0, stale_for=86400.0, revalidate_wait=0.5, on_not_found="keep"),
            )
        },
        default_upstream="docker.io",
        local=("local/**", "team-*/tools", "mine"),
        names=("registry.corp", "registry.corp:5000"),
        packages=tmp_path / "images",
        read_only=True,
        delete=False,
        push=Push(missing_blobs="accept", session_expires=7200.0),
        access=Access(
            htpasswd_file=tmp_path / "users",
            anonymous="none",
            push=("ci", "räksmörgås"),
            admin=("root",),
            allow_from=(ip_network("10.0.0.0/8"), ip_network("fe80::/10"), ip_network("192.168.1.1/32")),
            insecure_writes=True,
        ),
        limits=Limits(manifest=8 * 1024**2, blob=10**10, send_timeout=30.0),
        shutdown_delay=0.0,
        drain_timeout=90.0,
    )
    assert [str(listener.address) for listener in config.listen] == ["0.0.0.0:5000", "[::1]:5001", "localhost:0"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("60s", 60),
        ("1m", 60),
        ("2h", 7200),
        ("1d", 86400),
        ("1.5 h", 5400),
        ("7", 7),
        ("0.25", 0.25),
        ("'7'", 7),
        ("0", 0),
        ("36500d", 36500 * 86400),
    ],
)
def test_durations(tmp_path: Path, written: str, seconds: float) -> None:
    config = load(tmp_path, f"drain_timeout: {written}\n" + upstream(f"tags: {{stale_for: {written}}}"))
    assert config.drain_timeout == seconds
    assert config.upstreams["r.io"].tags.stale_for == seconds


@pytest.mark.parametrize("written", ["unlimited", "null", ""])
def test_unlimited_is_none(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, upstream(f"tags:\n  stale_for: {written}")).upstreams["r.io"].tags.stale_for is None


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("4096B", 4096),
        ("10kB", 10_000),
        ("10 KB", 10_000),
        ("4MiB", 4 * 1024**2),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("10GB", 10**10),
        ("2TiB", 2 * 1024**4),
        ("1PB", 10**15),
        ("0x10", 16),
        ("1_000", 1000),
        ("010", 8),
    ],
)
def test_sizes(tmp_path: Path, written: str, size: int) -> None:
    assert load(tmp_path, f"limits: {{blob: {written}}}").limits.blob == size


@pytest.mark.parametrize(
    ("text", "default"),
    [
        ("", "docker.io"),
        ("upstreams: {r.io: {url: https://r.io}}", None),
        ("upstreams: {docker.io: {url: https://mine}}", "docker.io"),
        ("upstreams: {r.io: {url: https://r.io}}\ndefault_upstream: r.io", "r.io"),
        ("upstreams: {}", None),
        ("default_upstream: null", None),
        ("default_upstream: quay.io", "quay.io"),
    ],
)
def test_the_default_upstream(tmp_path: Path, text: str, default: str | None) -> None:
    assert load(tmp_path, text).default_upstream == default


def test_given_upstreams_replace_the_builtin_ones(tmp_path: Path) -> None:
    assert list(load(tmp_path, upstream("")).upstreams) == ["r.io"]
    assert load(tmp_path, "upstreams: {}").upstreams == {}


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("https://r.io/", "https://r.io"),
        ("http://r.io:5000", "http://r.io:5000"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
        ("https://r.io/some/Prefix//", "https://r.io/some/Prefix"),
        ("https://r.io/v2/prefix", "https://r.io/v2/prefix"),
    ],
)
def test_urls(tmp_path: Path, written: str, url: str) -> None:
    assert load(tmp_path, f"upstreams: {{r.io: {{url: '{written}'}}}}").upstreams["r.io"].url == url


def test_anchors_and_merges(tmp_path: Path, loader: None) -> None:
    config = load(
        tmp_path,
        """
upstreams:
  a.io: &base
    url: https://a.io
    realms: &realms [auth.io]
    tags: &tags {fresh_for: 5m, on_not_found: keep}
  b.io: {<<: *base, url: https://b.io}
  c.io: {url: https://c.io, realms: *realms, tags: {<<: [{fresh_for: 1m}, *tags], stale_for: 1h}}
""",
    )
    common = {"realms": ("auth.io",)}
    kept = Tags(fresh_for=300, on_not_found="keep")
    assert config.upstreams == {
        "a.io": Upstream(url="https://a.io", tags=kept, **common),
        "b.io": Upstream(url="https://b.io", tags=kept, **common),
        "c.io": Upstream(url="https://c.io", tags=Tags(fresh_for=60, stale_for=3600, on_not_found="keep"), **common),
    }


# ---- what the command line says ----


def test_overrides_win_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    text = "listen: 0.0.0.0:1\nworkers: 2\nstorage: {root: there}\ndrain_timeout: 3\n"
    plain = load(tmp_path, text)
    assert (plain.workers, plain.storage.root) == (2, tmp_path / "there")
    config = load(tmp_path, text, listen=["[::1]:2", "h:3"], workers=5, storage__root="here", drain_timeout=None)
    assert [one.address for one in config.listen] == [ListenAddress("::1", 2), ListenAddress("h", 3)]
    assert config.workers == 5
    assert config.storage.root == tmp_path / "cwd" / "here"
    assert config.drain_timeout == 3
    assert load(tmp_path, text, storage__root=Path("p")).storage.root == tmp_path / "cwd" / "p"


def test_overrides_without_a_file(tmp_path: Path) -> None:
    config = load_config(None, {"storage.root": str(tmp_path), "listen": "0.0.0.0:7", "workers": "auto"})
    assert (config.storage.root, config.listen[0].address) == (tmp_path, ListenAddress("0.0.0.0", 7))


def test_problems_of_overrides_are_at_the_command_line(tmp_path: Path) -> None:
    assert problems(tmp_path, "storge: 1\nlimits: 5\n", workers=999, storage__rot="x", limits__blob=1) == [
        "command line: workers: expected auto or a number from 1 to 256, got 999",
        'command line: storage.rot: unknown key; did you mean "root"?',
        'mirror.yaml:1:1: storge: unknown key; did you mean "storage"?',
        "mirror.yaml:2:9: limits: expected a mapping, got a number",
    ]


# ---- bad files ----

DURATION = "expected a duration such as 500ms, 60s, 5m, 2h or 1d"
HOST_PORT = "expected HOST:PORT"
BAD: dict[str, tuple[str, list[str]]] = {
    # keys
    "unknown-top": ("storag: {root: /r}\n", ['1:1: storag: unknown key; did you mean "storage"?']),
    "unknown-nested": ("storage:\n  root: /r\n  rooot: x\n", ['3:3: storage.rooot: unknown key; did you mean "root"?']),
    "unknown-no-idea": ("colour: blue\n", ["1:1: colour: unknown key"]),
    "unknown-belongs-deeper": (
        upstream("fresh_for: 5m"),
        ['4:5: upstreams.r.io.fresh_for: unknown key; did you mean "tags.fresh_for"?'],
    ),
    "unknown-belongs-deeper-still": ("root: /r\n", ['1:1: root: unknown key; did you mean "storage.root"?']),
    "unknown-odd": ('"a b": 1\n', ['1:1: "a b": unknown key']),
    "twice": ("workers: 1\nlocal: []\nworkers: 2\n", ["3:1: workers: given twice, first on line 1"]),
    "twice-nested": (
        "upstreams:\n  r.io: {url: https://a}\n  r.io: {url: https://b}\n",
        ["3:3: upstreams.r.io: given twice, first on line 2"],
    ),
    "key-not-text": (
        "upstreams:\n  no: {url: https://a}\n",
        ["2:3: upstreams: expected a key that is text; put it in quotes"],
    ),
    "key-a-list": ("? [a]\n: b\n", ["1:3: expected a key that is text; put it in quotes"]),
    # shapes
    "top-is-a-list": ("- listen\n", ["1:1: expected a mapping of settings, got a list"]),
    "top-is-text": ("listen\n", ["1:1: expected a mapping of settings, got text"]),
    "section-is-text": ("storage: /r\n", ["1:10: storage: expected a mapping, got text"]),
    "upstreams-is-a-list": (
        "upstreams: [docker.io]\n",
        ["1:12: upstreams: expected a mapping, got a list; write each as NAME: {url: …}"],
    ),
    "upstreams-is-null": (
        "upstreams:\n",
        [
            "1:11: upstreams: expected a mapping, got nothing; "
            "leave the key out for the built-in upstreams, or write {} for none"
        ],
    ),
    "upstream-is-null": ("upstreams:\n  r.io:\n", ["2:8: upstreams.r.io: expected a mapping, got nothing"]),
    "local-is-text": ("local: mine/**\n", ["1:8: local: expected a list, got text; put it in [ ]"]),
    "names-is-a-mapping": (upstream("names: {a: b}"), ["4:12: upstreams.r.io.names: expected a list, got a mapping"]),
    "required": ("upstreams:\n  r.io:\n    names: []\n", ["2:3: upstreams.r.io.url: is required"]),
    "required-tls": (
        "tls: {}\n",
        ["1:1: tls.certificate: is required", "1:1: tls.key: is required"],
    ),
    "tag": ("workers: !!binary aGk=\n", ["1:10: workers: expected plain text, a number, true, false or null"]),
    "python-tag": (
        "workers: !!python/object/apply:os.getcwd []\n",
        ["1:10: workers: expected auto or a number from 1 to 256, got a list"],
    ),
    "tag-at-the-top": ("!secret x\n", ["1:1: expected plain text, a number, true, false or null"]),
    "merge-of-text": ("storage: {<<: text}\n", ["1:15: storage: expected << to bring in a mapping"]),
    # listen
    "listen-number": (
        "listen: 5000\n",
        [f'1:9: listen: {HOST_PORT}, got a number; write "127.0.0.1:5000", or "0.0.0.0:5000" for all'],
    ),
    "listen-no-host": (
        "listen: ':5000'\n",
        [f'1:9: listen: {HOST_PORT}, got no host; write "127.0.0.1:5000", or "0.0.0.0:5000" for all'],
    ),
    "listen-no-port": ("listen: 10.0.0.1\n", [f'1:9: listen: {HOST_PORT}, got no port; write "10.0.0.1:5000"']),
    "listen-port": ("listen: h:65536\n", ["1:9: listen: expected a port from 0 to 65535"]),
    "listen-host": (
        "listen: 1.2.3.400:5000\n",
        [f'1:9: listen: {HOST_PORT} such as 127.0.0.1:5000 or [::1]:5000, got "1.2.3.400:5000"'],
    ),
    "listen-v6": (
        "listen: ::1:5000\n",
        [f'1:9: listen: {HOST_PORT} with an IPv6 address in brackets; write "[::1]:5000"'],
    ),
    "listen-none": ("listen: []\n", ["1:9: listen: expected at least one HOST:PORT"]),
    "listen-item": ("listen:\n  - h:1\n  - {}\n", ["3:5: listen[1].address: is required"]),
    "listen-twice": ("listen: [h:1, h:2, H:1]\n", ["1:9: listen: h:1 is given twice"]),
    # workers, units
    "workers-zero": ("workers: 0\n", ["1:10: workers: expected auto or a number from 1 to 256, got 0"]),
    "workers-many": ("workers: 257\n", ["1:10: workers: expected auto or a number from 1 to 256, got 257"]),
    "workers-text": ("workers: all\n", ['1:10: workers: expected auto or a number from 1 to 256, got "all"']),
    "workers-true": ("workers: true\n", ["1:10: workers: expected auto or a number from 1 to 256, got true or false"]),
    "duration-unit": ("drain_timeout: 5 years\n", [f'1:16: drain_timeout: {DURATION}, got "5 years"']),
    "duration-unlimited": (
        "drain_timeout: unlimited\n",
        [f'1:16: drain_timeout: {DURATION}, got "unlimited"; it cannot be unlimited'],
    ),
    "duration-negative": ("drain_timeout: -1\n", ["1:16: drain_timeout: a duration cannot be negative"]),
    "duration-nan": ("drain_timeout: .nan\n", [f"1:16: drain_timeout: {DURATION}, got nan"]),
    "duration-inf": ("drain_timeout: .inf\n", ["1:16: drain_timeout: a duration cannot be longer than 36500d"]),
    "duration-null": ("drain_timeout:\n", [f"1:15: drain_timeout: {DURATION}, got nothing"]),
    "duration-true": ("drain_timeout: yes\n", [f"1:16: drain_timeout: {DURATION}, got true or false"]),
    "duration-zero": ("limits: {send_timeout: 0s}\n", ["1:24: limits.send_timeout: must be longer than 0s"]),
    "duration-or-unlimited": (
        upstream("tags: {stale_for: forever}"),
        [f'4:23: upstreams.r.io.tags.stale_for: {DURATION}, or unlimited, got "forever"'],
    ),
    "size-letter": (
        "limits: {blob: 4M}\n",
        [
            '1:16: limits.blob: the unit M can mean two things; write "4MiB" (4,194,304 bytes) or "4MB" '
            "(4,000,000 bytes)"
        ],
    ),
    "size-unit": (
        "limits: {blob: 4 apples}\n",
        ['1:16: limits.blob: expected a size such as 512KiB, 4MiB or 10GB, got "4 apples"'],
    ),
    "size-float": (
        "limits: {blob: 1.5}\n",
        ["1:16: limits.blob: expected a size such as 512KiB, 4MiB or 10GB, got 1.5"],
    ),
    "size-part": ("limits: {blob: 1.0001kB}\n", ["1:16: limits.blob: expected a whole number of bytes"]),
    "size-zero": ("limits: {blob: 0}\n", ["1:16: limits.blob: expected a size from 1 to 9223372036854775807 bytes"]),
    "size-huge": (
        "limits: {blob: 9999999PB}\n",
        ["1:16: limits.blob: expected a size from 1 to 9223372036854775807 bytes"],
    ),
    "number-huge": (
        f"limits: {{blob: {'9' * 5000}}}\n",
        ["1:16: limits.blob: expected plain text, a number, true, false or null"],
    ),
    # upstreams
    "name-upper": (
        "upstreams: {Docker.io: {url: https://a}}\n",
        ['1:13: upstreams.Docker.io: expected a host in lower case; did you mean "docker.io"?'],
    ),
    "name-url": (
        "upstreams: {'https://r.io/': {url: https://a}}\n",
        ['1:13: upstreams.https://r.io/: expected host or host:port, got a URL; did you mean "r.io"?'],
    ),
    "name-path": (
        "upstreams: {r.io/x: {url: https://a}}\n",
        [
            "1:13: upstreams.r.io/x: expected host or host:port such as docker.io or registry.example.net:5000, "
            'got "r.io/x"'
        ],
    ),
    "names-port": (
        upstream("names: ['a:0']"),
        [
            "4:13: upstreams.r.io.names[0]: expected host or host:port such as docker.io or "
            'registry.example.net:5000, got "a:0"'
        ],
    ),
    "names-v6": (
        upstream("names: ['fd00::1']"),
        ['4:13: upstreams.r.io.names[0]: expected an IPv6 address in brackets; did you mean "[fd00::1]"?'],
    ),
    "names-number": (
        upstream("names: [5]"),
        ["4:13: upstreams.r.io.names[0]: expected text, got a number; put it in quotes"],
    ),
    "names-of-two": (
        "upstreams:\n  a: {url: https://a, names: [x, b]}\n  b: {url: https://b, names: [b, x]}\n",
        [
            '2:34: upstreams.a.names[1]: "b" already means the upstream b',
            '3:34: upstreams.b.names[1]: "x" already means the upstream a',
        ],
    ),
    "default-unknown": (
        "default_upstream: docker.oi\nupstreams: {docker.io: {url: https://a}}\n",
        ['1:19: default_upstream: is not one of the upstreams (docker.io); did you mean "docker.io"?'],
    ),
    "default-other-name": (
        "default_upstream: hub\nupstreams: {docker.io: {url: https://a, names: [hub]}}\n",
        ['1:19: default_upstream: is not one of the upstreams (docker.io); did you mean "docker.io"?'],
    ),
    "default-of-none": (
        "default_upstream: docker.io\nupstreams: {}\n",
        ["1:19: default_upstream: is not one of the upstreams (there are none)"],
    ),
    "default-number": (
        "default_upstream: 5\n",
        ["1:19: default_upstream: expected text, got a number; put it in quotes"],
    ),
    "realm": (
        upstream("realms: ['https://auth.io/token']"),
        ['4:14: upstreams.r.io.realms[0]: expected host or host:port, got a URL; did you mean "auth.io"?'],
    ),
    "network": (
        upstream("redirects_to: [cdn.io]"),
        ['4:20: upstreams.r.io.redirects_to[0]: expected a network such as 10.0.0.0/8 or fd00::/8, got "cdn.io"'],
    ),
    "network-bits": (
        upstream("redirects_to: [10.1.2.3/8]"),
        [
            "4:20: upstreams.r.io.redirects_to[0]: the address has bits set beyond the length of its network; "
            'did you mean "10.0.0.0/8"?'
        ],
    ),
    "network-link-local": (
        upstream("redirects_to: [169.254.169.254]"),
        ["4:20: upstreams.r.io.redirects_to[0]: link-local addresses are never asked, whatever is listed here"],
    ),
    "switch": (
        upstream("unverified_ranges: 'yes'"),
        ['4:24: upstreams.r.io.unverified_ranges: expected true or false, got "yes"; write it without quotes'],
    ),
    "choice": (
        upstream("tags: {on_not_found: forgt}"),
        ['4:26: upstreams.r.io.tags.on_not_found: expected forget or keep; did you mean "forget"?'],
    ),
    "glob-parts": (
        "local: [a/**b]\n",
        [
            "1:9: local[0]: expected a pattern of repository names such as local/** or team-*/tools: lower-case "
            "letters, digits, and . _ - /; * stands for any part of one component, ** alone for any number of "
            "components"
        ],
    ),
    "credentials-empty": (
        upstream("credentials: {}"),
        [
            "4:18: upstreams.r.io.credentials: says no way to log in; "
            "give one of: username and password_file, docker_config, helper"
        ],
    ),
    # files
    "file-missing": (
        "tls: {certificate: nowhere.crt, key: ''}\n",
        [
            '1:20: tls.certificate: "nowhere.crt": no such file',
            "1:38: tls.key: expected a path, got none",
        ],
    ),
    "file-is-a-device": (
        upstream("ca_file: /dev/null"),
        ['4:14: upstreams.r.io.ca_file: "/dev/null": is a pipe or a device, not a file'],
    ),
    "file-is-a-folder": (upstream("ca_file: /"), ['4:14: upstreams.r.io.ca_file: "/": is a folder, not a file']),
    "file-below-a-file": (
        upstream("ca_file: mirror.yaml/x"),
        ['4:14: upstreams.r.io.ca_file: "mirror.yaml/x": cannot be read (Not a directory)'],
    ),
    "file-of-nobody": (
        "storage: {root: ~no-such-user-here/x}\n",
        ["1:17: storage.root: the home folder that ~ stands for is not known; write the path in full"],
    ),
    "path-number": ("storage: {root: 5}\n", ["1:17: storage.root: expected a path, got a number"]),
    # names, pushes, access
    "own-name-of-an-upstream": (
        upstream("names: [x]") + "names: [mine, x, r.io]\n",
        [
            '5:15: names[1]: "x" already means the upstream r.io; a name means one registry only',
            '5:18: names[2]: "r.io" already means the upstream r.io; a name means one registry only',
        ],
    ),
    "own-name-of-a-builtin-upstream": (
        "names: [docker.io]\n",
        ['1:9: names[0]: "docker.io" already means the upstream docker.io; a name means one registry only'],
    ),
    "own-name-a-url": (
        "names: ['https://registry.corp']\n",
        ['1:9: names[0]: expected host or host:port, got a URL; did you mean "registry.corp"?'],
    ),
    "packages-missing": ("packages: nowhere\n", ['1:11: packages: "nowhere": no such folder']),
    "packages-a-file": ("packages: mirror.yaml\n", ['1:11: packages: "mirror.yaml": is no folder']),
    "missing-blobs": (
        "push: {missing_blobs: acept}\n",
        ['1:23: push.missing_blobs: expected reject or accept; did you mean "accept"?'],
    ),
    "session-zero": ("push: {session_expires: 0s}\n", ["1:25: push.session_expires: must be longer than 0s"]),
    "anonymous": (
        "access: {anonymous: pul}\n",
        ['1:21: access.anonymous: expected pull or none; did you mean "pull"?'],
    ),
    "anonymous-none-without-users": (
        "access: {anonymous: none}\n",
        ["1:21: access.anonymous: with no users, nobody could do anything; give access.htpasswd_file, or pull"],
    ),
    "users-without-a-file": (
        "access:\n  push: [ci]\n  admin: [root]\n",
        [
            "2:9: access.push: lists users, but there are none; give access.htpasswd_file",
            "3:10: access.admin: lists users, but there are none; give access.htpasswd_file",
        ],
    ),
    "nobody-without-a-file": (
        "access: {push: [], admin: []}\n",
        ["1:16: access.push: lists users, but there are none; give access.htpasswd_file"],
    ),
    "users-file-missing": (
        "access: {htpasswd_file: nowhere, push: [ci]}\n",
        ["1:25: access.htpasswd_file: no such file; expected the path of a file of users, made by htpasswd -B"],
    ),
    "user-number": (
        "access: {admin: [5]}\n",
        [
            "1:17: access.admin: lists users, but there are none; give access.htpasswd_file",
            "1:18: access.admin[0]: expected text, got a number; put it in quotes",
        ],
    ),
    "allow-from": (
        "access: {allow_from: [corp]}\n",
        ['1:23: access.allow_from[0]: expected a network such as 10.0.0.0/8 or fd00::/8, got "corp"'],
    ),
    "allow-from-bits": (
        "access: {allow_from: [10.1.2.3/8]}\n",
        [
            "1:23: access.allow_from[0]: the address has bits set beyond the length of its network; "
            'did you mean "10.0.0.0/8"?'
        ],
    ),
    # YAML
    "yaml-tab": ("storage:\n\troot: /r\n", ["2:1: not valid YAML: found a tab; indent by spaces"]),
    "yaml-at": (
        "listen: @x\n",
        ["1:9: not valid YAML: found a character that cannot begin a value; put the text in quotes"],
    ),
    "yaml-quote": ("listen: 'x\n", ["2:1: not valid YAML: found unexpected end of stream"]),
    "yaml-two": ("workers: 1\n---\nworkers: 2\n", ["2:1: not valid YAML: but found another document"]),
    "yaml-alias": (
        "workers: *x\n",
        ["1:10: not valid YAML: found an alias of nothing; put text that begins with * in quotes"],
    ),
    "yaml-alias-of-itself": ("local: &a [*a]\n", ["1:8: local[0]: an alias of something it is part of"]),
    "yaml-merge-of-itself": ("storage: &a {<<: *a}\n", ["1:10: storage: an alias of something it is part of"]),
    "yaml-control": ("# ä\nworkers: \x07\n", ["2:10: not valid YAML: a control character"]),
    "yaml-deep": ("local: " + "[" * 900, ["1:39: nested more than 32 levels deep"]),
    "yaml-deep-block": ("- " * 5000 + "a", ["1:65: nested more than 32 levels deep"]),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_what_is_said_about_a_bad_file(tmp_path: Path, loader: None, text: str, expected: list[str]) -> None:
    said = problems(tmp_path, text)
    assert [line.removeprefix("mirror.yaml:") for line in said] == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (
            "registry-1.docker.io",
            'expected a URL that begins with https:// or http://; write "https://registry-1.docker.io"',
        ),
        ("oci://r.io", "expected a URL that begins with https:// or http://"),
        ("https://", "expected a URL with a host, or host and port"),
        ("https://r.io:x", "expected a URL with a host, or host and port"),
        ("https://r.io:0", "expected a URL with a host, or host and port"),
        ("https://[::1", "expected a URL with a host, or host and port"),
        (
            "https://u:p@r.io",
            "a URL must not hold credentials; put them under credentials: username and password_file",
        ),
        ("https://r.io/?a=b", "a registry's URL has no query and no fragment"),
        ("https://r.io/#a", "a registry's URL has no query and no fragment"),
        ("https://r.io/v2/", '"/v2" is added to the URL with each request; leave out the "/v2" at its end'),
        ("https://r.io/a b", "a URL has only printable ASCII characters without spaces"),
        ("https://räksmörgås.se", "a URL has only printable ASCII characters without spaces"),
        ("", "expected text, got an empty one"),
    ],
)
def test_what_is_said_about_a_bad_url(tmp_path: Path, written: str, expected: str) -> None:
    said = problems(tmp_path, f"upstreams:\n  r.io:\n    url: '{written}'\n")
    assert said == [f"mirror.yaml:3:10: upstreams.r.io.url: {expected}"]


def test_a_file_deeper_than_the_parser_goes(tmp_path: Path, loader: None) -> None:
    (said,) = problems(tmp_path, "local: " + "[" * 5000)
    assert said.endswith(": nested more than 32 levels deep")


def test_an_ipv6_address_without_quotes(tmp_path: Path, loader: None) -> None:
    for text in ("listen: [::1]:5000\n", "listen: [fd00::1]:5000\n"):
        (said,) = problems(tmp_path, text)  # what PyYAML says of it differs between its loaders
        assert re.fullmatch(
            r'mirror\.yaml:1:\d+: not valid YAML: .+; put an IPv6 address in quotes: "\[::1\]:5000"', said
        )


def test_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    assert problems(tmp_path, b"# a\n# \xc3\xa4 \xff\n") == ["mirror.yaml:2:5: not valid UTF-8 text"]


def test_a_byte_order_mark_is_no_column(tmp_path: Path, loader: None) -> None:
    assert problems(tmp_path, "\ufeffcolour: blue\nworkers: 1\n") == ["mirror.yaml:1:1: colour: unknown key"]
    assert problems(tmp_path, "\ufeffworkers: \x07\n") == ["mirror.yaml:1:10: not valid YAML: a control character"]


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path, loader: None) -> None:
    text = """listen: 5000
storage:
  cache_sise: 5
workers: 0
workers: 1
upstreams:
  docker.io:
    url: ftp://x
    names: [a, A]
    tags: {fresh_for: soon, on_not_found: kep}
    credentials: {username: 5}
  quay.io:
    url: https://quay.io
    names: [a]
default_upstream: ghcr.io
names: [a]
access:
  anonymous: none
  admn: [root]
  push: [ci]
"""
    assert problems(tmp_path, text) == [
        'mirror.yaml:1:9: listen: expected HOST:PORT, got a number; write "127.0.0.1:5000", or "0.0.0.0:5000" for all',
        "mirror.yaml:3:3: storage.cache_sise: unknown key",
        "mirror.yaml:4:10: workers: expected auto or a number from 1 to 256, got 0",
        "mirror.yaml:5:1: workers: given twice, first on line 4",
        "mirror.yaml:8:10: upstreams.docker.io.url: expected a URL that begins with https:// or http://",
        'mirror.yaml:9:16: upstreams.docker.io.names[1]: expected a host in lower case; did you mean "a"?',
        f'mirror.yaml:10:23: upstreams.docker.io.tags.fresh_for: {DURATION}, got "soon"',
        'mirror.yaml:10:43: upstreams.docker.io.tags.on_not_found: expected forget or keep; did you mean "keep"?',
        "mirror.yaml:11:5: upstreams.docker.io.credentials.password_file: is required",
        "mirror.yaml:11:29: upstreams.docker.io.credentials.username: expected text, got a number; put it in quotes",
        'mirror.yaml:14:13: upstreams.quay.io.names[0]: "a" already means the upstream docker.io',
        "mirror.yaml:15:19: default_upstream: is not one of the upstreams (docker.io, quay.io)",
        'mirror.yaml:16:9: names[0]: "a" already means the upstream docker.io; a name means one registry only',
        "mirror.yaml:18:14: access.anonymous: with no users, nobody could do anything; "
        "give access.htpasswd_file, or pull",
        'mirror.yaml:19:3: access.admn: unknown key; did you mean "admin"?',
        "mirror.yaml:20:9: access.push: lists users, but there are none; give access.htpasswd_file",
    ]


def test_a_problem_tells_its_parts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "storage:\n  rot: 5\n")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.column) == (str(tmp_path / "mirror.yaml"), 2, 3)
    assert (problem.path, problem.message, problem.suggestion) == ("storage.rot", "unknown key", 'did you mean "root"?')


@pytest.mark.parametrize(
    ("path", "expected"),
    [("nowhere.yaml", "nowhere.yaml: no such file"), (".", ".: is a folder, not a file")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(Path(path))
    assert str(caught.value) == expected


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Give up the right to read everything, if we have it."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_files_without_the_right_to_read_them() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        base = Path(folder)
        for name, mode in (("tls.crt", 0o644), ("tls.key", 0o000), ("mirror.yaml", 0o644)):
            (base / name).write_text("tls: {certificate: tls.crt, key: tls.key}\n")
            (base / name).chmod(mode)
        with _as_nobody(), pytest.raises(ConfigError) as caught:
            load_config(base / "mirror.yaml")
        assert str(caught.value) == (
            f'{base}/mirror.yaml:1:34: tls.key: "{base}/tls.key": cannot be read (Permission denied)'
        )
        (base / "mirror.yaml").chmod(0o000)
        with _as_nobody(), pytest.raises(ConfigError) as caught:
            load_config(base / "mirror.yaml")
        assert str(caught.value) == f"{base}/mirror.yaml: cannot be read (Permission denied)"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")
    assert problems(tmp_path, upstream("credentials: {username: u, password_file: secret}")) == [
        "mirror.yaml:4:47: upstreams.r.io.credentials.password_file: is a pipe or a device, not a file; "
        "expected the path of a file that holds the password"
    ]


def _bomb(leaf: str, level: str) -> str:
    lines = [f"a0: &a0 {leaf}"] + [level.format(n=n, p=f"*a{n - 1}") for n in range(1, 30)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        _bomb("[x, x]", "a{n}: &a{n} [{p}, {p}, {p}, {p}, {p}, {p}, {p}, {p}]"),
        _bomb("{x: y}", "a{n}: &a{n} {{<<: [{p}, {p}, {p}, {p}, {p}, {p}]}}"),
        _bomb("{x: y}", "a{n}: &a{n} {{b: {p}, c: {p}, d: {p}, e: {p}}}"),
    ],
    ids=["lists", "merges", "mappings"],
)
def test_a_file_that_becomes_huge(tmp_path: Path, loader: None, text: str) -> None:
    (said,) = problems(tmp_path, text)
    assert re.fullmatch(r"mirror\.yaml:\d+:\d+: more than 50000 values, with aliases written out", said)


def test_aliases_within_reason_are_written_out(tmp_path: Path, loader: None) -> None:
    names = ", ".join(f'"192.168.{n}.0/24"' for n in range(200))
    more = "".join(f"  r{n}.io: {{<<: *base, url: https://r{n}.io}}\n" for n in range(50))
    config = load(tmp_path, f"upstreams:\n  r.io: &base\n    url: https://r.io\n    redirects_to: [{names}]\n{more}")
    assert {len(upstream.redirects_to) for upstream in config.upstreams.values()} == {200}


def test_a_chain_of_aliases_is_not_followed_for_ever(tmp_path: Path, loader: None) -> None:
    text = "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))
    (said,) = problems(tmp_path, text)
    assert said.endswith(": nested more than 32 levels deep")


def test_a_file_that_is_huge(tmp_path: Path) -> None:
    assert load(tmp_path, "#" * 1024**2) == load_config(None)
    assert problems(tmp_path, "#" * (1024**2 + 1)) == ["mirror.yaml: is larger than 1048576 bytes"]


@pytest.mark.parametrize(
    "text",
    [
        upstream(f"password: {SECRET}"),
        upstream(f"credentials: {SECRET}"),
        upstream(f"credentials: u:{SECRET}"),
        upstream(f"credentials: [u, {SECRET}]"),
        upstream(f"credentials: {{username: u, password: {SECRET}}}"),
        upstream(f"credentials: {{username: u, password_file: {SECRET}}}"),
        upstream(f"credentials: {{username: u, password_file: [{SECRET}]}}"),
        upstream(f"credentials: {{username: [{SECRET}], password_file: /dev/null}}"),
        upstream(f"credentials:\n  username: u\n  password_file: *{SECRET}"),
        upstream(f"realms: ['u:{SECRET}@auth.io', 'https://u:{SECRET}@auth.io/', 'U:{SECRET}@auth.io']"),
        upstream(f"names: ['u:{SECRET}@r.io']"),
        f"upstreams: {{r.io: {{url: 'https://u:{SECRET}@r.io'}}}}",
        f"upstreams: {{r.io: {{url: 'u:{SECRET}@r.io'}}}}",
        f"upstreams: {{r.io: {{url: 'https:/u:{SECRET}@r.io'}}}}",
        f"upstreams: {{r.io: {{url: 'https://r.io/?token={SECRET}'}}}}",
        f"upstreams: {{'https://u:{SECRET}@r.io': {{url: 'https://r.io'}}}}",
        f"tls: {{certificate: /dev/null, key: [{SECRET}]}}",
        f"access: {{htpasswd_file: 'ci:{SECRET}'}}",
        f"access: {{users: {{ci: {SECRET}}}}}",
    ],
)
def test_no_secret_is_ever_said(tmp_path: Path, loader: None, text: str) -> None:
    assert SECRET in text
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert caught.value.problems
    error: BaseException | None = caught.value
    assert SECRET not in f"{error} {error!r} {caught.value.problems!r}"
    assert error is not None
    assert error.__suppress_context__ or error.__context__ is None, "a traceback would show the error below it"


def test_what_is_said_about_a_password_in_the_place_of_its_file(tmp_path: Path) -> None:
    assert problems(tmp_path, upstream("credentials: {username: u, password_file: nowhere}")) == [
        "mirror.yaml:4:47: upstreams.r.io.credentials.password_file: no such file; "
        "expected the path of a file that holds the password"
    ]
    (tmp_path / "file").touch()
    assert problems(tmp_path, upstream(f"credentials: {{username: u, password_file: file, password: {SECRET}}}")) == [
        "mirror.yaml:4:47: upstreams.r.io.credentials.password_file: is a second password; "
        "give password or password_file, not both",
        "mirror.yaml:4:63: upstreams.r.io.credentials.password: a password is never written into this file; "
        "give password_file, or ${NAME} of the environment",
    ]


# ---- models made in code ----


def test_models_are_checked_in_code_too() -> None:
    assert Config(storage=Storage(root="/r"), upstreams={"a": Upstream(url="http://a")}).default_upstream is None
    assert Tls(certificate="/nowhere.crt", key="/nowhere.key").key == Path("/nowhere.key"), (
        "only loading looks at files"
    )
    with pytest.raises(ValidationError, match="is not one of the upstreams"):
        Config(storage=Storage(root="/r"), default_upstream="nobody")
    with pytest.raises(ValidationError, match="already means the upstream b"):
        Config(upstreams={"b": Upstream(url="http://b"), "a": Upstream(url="http://a", names=("b",))})
    with pytest.raises(ValidationError, match="already means the upstream b"):
        Config(upstreams={"b": Upstream(url="http://b")}, names=("b",))
    with pytest.raises(ValidationError, match="nobody could do anything"):
        Config(access=Access(anonymous="none"))
    with pytest.raises(ValidationError, match="lists users, but there are none"):
        Config(access=Access(push=("ci",)))
    assert Config(access=Access(anonymous="none", push=("ci",), htpasswd_file="/nowhere")).access.push == ("ci",)
    with pytest.raises(ValidationError) as caught:
        Upstream(url=f"http://u:{SECRET}@a")
    assert SECRET not in str(caught.value)
    with pytest.raises(ValidationError, match="frozen"):
        Limits().blob = 5


def _sections(section: type[Section] = Config) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from _sections(inner)


OFF = {"mirrors", "credentials", "allow", "proxy", "ca_file", "client_certificate"}
"""Settings of an upstream that the commented file has no value for."""


def test_every_setting_has_a_description() -> None:
    upstreams = {Upstream, UpstreamDefaults, Mirror, Credentials, ClientCertificate, Proxy, Timeouts, Tags}
    assert set(_sections()) == {Config, Tls, Listener, Log, Storage, Limits, Push, Access} | upstreams
    for section in _sections():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            assert field.description.endswith("."), f"{section.__name__}.{name}"


def test_importing_reads_no_environment_and_nothing_else_of_ours() -> None:
    code = """
import os, sys
import pydantic, yaml
class Warm(pydantic.BaseModel): pass  # what pydantic reads to make its first model is its own affair
class Watched(dict):
    def get(self, key, default=None):
        read.add(key)
        return super().get(key, default)
    def __contains__(self, key):
        read.add(key)
        return super().__contains__(key)
    def __getitem__(self, key):
        read.add(key)
        return super().__getitem__(key)
read, os.environ = set(), Watched(os.environ)
import mirror.config
allowed = ("mirror.config", "mirror.oci")
print(sorted(m for m in sys.modules if m.startswith("mirror.") and not m.startswith(allowed)))
print(sorted(read & {"HOME", "XDG_DATA_HOME"}))
mirror.config.load_config(None)
print(sorted(read & {"HOME", "XDG_DATA_HOME"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=EXAMPLE.parents[1], check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == (["[]", "[]", "['HOME', 'XDG_DATA_HOME']"], "")


# ---- config/mirror.yaml ----

_OFF = re.compile(r"^( *)#(?=[^ #\n])", re.MULTILINE)
"""A setting that is commented out: "#" and no space after it."""


def test_the_commented_file_is_the_defaults() -> None:
    assert load_config(EXAMPLE) == load_config(None)


def test_the_commented_file_says_its_defaults_in_full() -> None:
    """Every default is written there, not left out: a default that changes in the code fails the test above."""
    given = load_config(EXAMPLE)
    docker = given.upstreams["docker.io"]
    assert set(Config.model_fields) - given.model_fields_set == {"tls", "packages", "proxy"}
    assert set(Upstream.model_fields) - docker.model_fields_set == OFF
    assert docker.tags.model_fields_set == set(Tags.model_fields)
    assert docker.timeouts.model_fields_set == set(Timeouts.model_fields)
    assert given.limits.model_fields_set == set(Limits.model_fields)
    assert given.push.model_fields_set == set(Push.model_fields)
    assert set(Access.model_fields) - given.access.model_fields_set == {"htpasswd_file", "push"}


def test_the_commented_file_has_every_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_PASSWORD", "of the hub")
    text, count = _OFF.subn(r"\1", EXAMPLE.read_text())
    assert count == 34
    # two-space comments under a heading that was commented out stand where they are: they are comments
    for name in (
        "/etc/mirror/tls.crt",
        "/etc/mirror/tls.key",
        "/etc/mirror/clients.pem",
        "/etc/ssl/corp.pem",
        "/etc/ssl/mirror.pem",
        "/etc/mirror/client.crt",
        "/etc/mirror/client.key",
        "/run/secrets/hub",
        "/run/secrets/mirror",
        "/run/secrets/proxy",
        "/etc/mirror/htpasswd",
    ):
        assert text.count(name) == 1
        text = text.replace(name, str(tmp_path / Path(name).name))
        (tmp_path / Path(name).name).write_text("x")
    (tmp_path / "images").mkdir()
    (tmp_path / "docker.json").write_text("{}")
    text = text.replace("/srv/images", str(tmp_path / "images"))
    text = text.replace("- docker_config: /etc/mirror/docker.json", f"- docker_config: {tmp_path / 'docker.json'}")
    config = load(tmp_path, text)
    docker = config.upstreams["docker.io"]
    sections = (config, config.tls, config.storage, docker, docker.tags, docker.timeouts, docker.client_certificate)
    for section in (*sections, docker.proxy, *docker.mirrors, config.log, config.limits, config.push, config.access):
        assert section is not None
        assert section.model_fields_set == set(type(section).model_fields) - {"password"}
    assert config.storage.root == Path("/var/lib/mirror")
    assert docker.credentials == (
        Credentials(username="someone", password_file=tmp_path / "hub"),
        Credentials(username="other", password="of the hub"),
        Credentials(docker_config=tmp_path / "docker.json"),
        Credentials(helper="ecr-login"),
    )


def test_the_commented_file_explains_every_setting() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for section in _sections():
        for name in section.model_fields:
            at = next((i for i, line in enumerate(lines) if re.match(rf" *#?(- )?{name}:", line)), None)
            assert at is not None, f"{name} is not in the file"
            above = lines[at - 1].strip()
            inside = lines[at + 1].strip() if at + 1 < len(lines) else ""
            grouped = above.startswith("# ") or (lines[at].rstrip().endswith(":") and inside.startswith("#"))
            assert grouped or lines[at].strip() in ("limits:", "tags:", "log:"), f"{name} has no comment"


# ---- listeners ----


def test_tls_holds_for_listeners_that_say_nothing_else(tmp_path: Path) -> None:
    for name in ("crt", "key"):
        (tmp_path / name).write_text("x")
    config = load(
        tmp_path,
        "tls: {certificate: crt, key: key}\nadmin_listen: [h:2, {address: h:3, tls: null}]\n",
    )
    tls = Tls(certificate=tmp_path / "crt", key=tmp_path / "key")
    assert [one.tls for one in (*config.listen, *config.admin_listen)] == [tls, tls, None]
    assert [one.scheme for one in (*config.listen, *config.admin_listen)] == ["https", "https", "http"]


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("0.0.0.0:1", "127.0.0.1:1", True),
        ("[::]:1", "[::1]:1", True),
        ("h:1", "h:1", True),
        ("0.0.0.0:1", "[::]:1", False),
        ("0.0.0.0:1", "[::1]:1", False),
        ("0.0.0.0:1", "127.0.0.1:2", False),
        ("127.0.0.1:1", "127.0.0.2:1", False),
        ("0.0.0.0:0", "127.0.0.1:0", False),
        ("0.0.0.0:1", "six.corp:1", False),
    ],
)
def test_addresses_that_meet(one: str, other: str, meet: bool) -> None:
    first, second = (listen_address(written) for written in (one, other))
    assert first.meets(second) == second.meets(first) == meet


def test_what_is_said_about_listeners(tmp_path: Path) -> None:
    text = "listen: [h:1, {address: h:2, tsl: null}]\nadmin_listen: [h:3, h:3]\ntrusted_proxies: [nginx]\n"
    assert problems(tmp_path, text) == [
        'mirror.yaml:1:30: listen[1].tsl: unknown key; did you mean "tls"?',
        "mirror.yaml:2:15: admin_listen: h:3 is given twice",
        'mirror.yaml:3:19: trusted_proxies[0]: expected a network such as 10.0.0.0/8 or fd00::/8, got "nginx"',
    ]
    assert problems(tmp_path, "listen: h:1\nadmin_listen: h:1\n") == [
        "mirror.yaml:2:15: admin_listen: h:1 is in listen already; give administrators a port of their own"
    ]
