"""Settings of upstreams: accounts, mirrors, quotas, rules, proxies, limits, patterns, and what they have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mirror.config import (
    ClientCertificate,
    Config,
    ConfigError,
    Credentials,
    Mirror,
    Proxy,
    Tags,
    Timeouts,
    Upstream,
    UpstreamDefaults,
    load_config,
)
from tests.settings_schema import refused

SECRET = "s3cr3t"


def load(tmp_path: Path, text: str) -> Config:
    for name in ("hub", "other", "docker.json", "corp.pem", "client.crt", "client.key", "proxy"):
        (tmp_path / name).write_text("x")
    path = tmp_path / "mirror.yaml"
    path.write_text(text)
    config = load_config(path)
    assert refused(text) == [], "what loads is right by the schema"
    return config


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    return [str(problem).removeprefix(f"{tmp_path}/mirror.yaml:") for problem in caught.value.problems]


def test_every_setting_of_an_upstream_is_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
offline: true
proxy: environment
upstreams:
  up:
    url: https://up.example
    mirrors:
      - url: http://near:5000/
        credentials: {helper: pass}
        realms: [auth.near]
        ca_file: corp.pem
        insecure: true
        send_ns: false
        resolve: true
      - {url: "http://far:5000", credentials: [{username: u, password_file: other}]}
    credentials:
      - {username: u, password_file: hub}
      - {docker_config: docker.json}
      - {helper: ecr-login}
    quota_floor: 12.5%
    allow: [library/*, "team/**:v1.*"]
    deny: ["library/nginx:latest"]
    offline: true
    proxy: {url: "http://proxy.corp:3128", username: u, password_file: proxy}
    ca_file: corp.pem
    client_certificate: {certificate: client.crt, key: client.key}
    insecure: true
    connections: 8
    rate: 20MB/s
    minimum_rate: unlimited
    retries: 0
    timeouts: {connect: 1s, headers: 5s, read: 2m}
    breaker_window: 3s
""",
    )
    assert (config.offline, config.proxy) == (True, Proxy(url="environment"))
    assert config.upstreams["up"] == Upstream(
        url="https://up.example",
        mirrors=(
            Mirror(
                url="http://near:5000",
                credentials=Credentials(helper="pass"),
                realms=("auth.near",),
                ca_file=tmp_path / "corp.pem",
                insecure=True,
                send_ns=False,
                resolve=True,
            ),
            Mirror(url="http://far:5000", credentials=Credentials(username="u", password_file=tmp_path / "other")),
        ),
        credentials=(
            Credentials(username="u", password_file=tmp_path / "hub"),
            Credentials(docker_config=tmp_path / "docker.json"),
            Credentials(helper="ecr-login"),
        ),
        quota_floor="12.5%",
        allow=("library/*", "team/**:v1.*"),
        deny=("library/nginx:latest",),
        offline=True,
        proxy=Proxy(url="http://proxy.corp:3128", username="u", password_file=tmp_path / "proxy"),
        ca_file=tmp_path / "corp.pem",
        client_certificate=ClientCertificate(certificate=tmp_path / "client.crt", key=tmp_path / "client.key"),
        insecure=True,
        connections=8,
        rate=20_000_000,
        minimum_rate=None,
        retries=0,
        timeouts=Timeouts(connect=1.0, headers=5.0, read=120.0),
        breaker_window=3.0,
    )
    assert config.upstreams["up"].quota_floor == 0.125


def test_one_account_or_mirror_needs_no_list(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "upstreams: {up: {url: 'http://a', credentials: {helper: x}, mirrors: 'http://b', proxy: none}}",
    )
    up = config.upstreams["up"]
    assert (up.credentials, up.mirrors) == ((Credentials(helper="x"),), (Mirror(url="http://b"),))
    assert up.proxy == Proxy(url="none")


# ---- what holds for all of them ----


def test_defaults_hold_where_an_upstream_says_nothing_else(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
upstream_defaults:
  credentials: {docker_config: docker.json}
  mirrors: [{url: "http://central:5000"}]
  tags: {fresh_for: 5m, on_not_found: keep}
  timeouts: {connect: 2s}
  proxy: {url: "http://p:1", username: u, password_file: proxy}
  deny: ["bad/**"]
  retries: 5
upstreams:
  silent: {url: "http://a"}
  talks:
    url: http://b
    credentials: []
    mirrors: []
    tags: {fresh_for: 1s}
    timeouts: {headers: 9s}
    proxy: {url: "http://q:2"}
    deny: []
    retries: 2
""",
    )
    silent, talks = config.upstreams["silent"], config.upstreams["talks"]
    assert silent.credentials == (Credentials(docker_config=tmp_path / "docker.json"),)
    assert silent.mirrors == (Mirror(url="http://central:5000"),)
    assert silent.tags == Tags(fresh_for=300, on_not_found="keep")
    assert silent.proxy is not None
    assert silent.proxy.username == "u"
    assert (silent.deny, silent.retries) == (("bad/**",), 5)
    assert (talks.credentials, talks.mirrors, talks.deny, talks.retries) == ((), (), (), 2)
    assert talks.tags == Tags(fresh_for=1, on_not_found="keep"), "sections are filled setting by setting"
    assert talks.timeouts == Timeouts(connect=2, headers=9)
    assert talks.proxy == Proxy(url="http://q:2"), "a login of one proxy is nothing for another"


def test_defaults_hold_for_the_builtin_upstreams(tmp_path: Path) -> None:
    config = load(tmp_path, "upstream_defaults: {retries: 7}\n")
    assert {upstream.retries for upstream in config.upstreams.values()} == {7}
    assert config.upstreams["docker.io"].names == ("index.docker.io", "registry-1.docker.io")


def test_defaults_in_code(tmp_path: Path) -> None:
    config = Config(upstream_defaults=UpstreamDefaults(retries=1), upstreams={"a": Upstream(url="http://a")})
    assert config.upstreams["a"].retries == 1
    assert Upstream(url="http://a").retries == 2


# ---- what is wrong ----


def up(text: str) -> str:
    return f"upstreams:\n  up:\n    url: http://up\n    {text}\n"


LOGIN = "give one of: username and password_file, docker_config, helper"
WRONG: dict[str, tuple[str, list[str]]] = {
    "two-ways": (
        up("credentials: {helper: x, docker_config: docker.json}"),
        [f"4:18: upstreams.up.credentials: says several ways to log in; {LOGIN}"],
    ),
    "two-ways-in-a-list": (
        up("credentials: [{helper: x}, {username: u, password_file: hub, helper: y}]"),
        [f"4:32: upstreams.up.credentials[1]: says several ways to log in; {LOGIN}"],
    ),
    "half-a-login-in-a-list": (
        up("credentials: [{username: u}]"),
        ["4:19: upstreams.up.credentials[0].password_file: is required"],
    ),
    "half-a-login-of-a-mirror": (
        up("mirrors: [{url: 'http://m', credentials: {username: u}}]"),
        ["4:33: upstreams.up.mirrors[0].credentials.password_file: is required"],
    ),
    "mirror-without-url": (up("mirrors: [{resolve: true}]"), ["4:15: upstreams.up.mirrors[0].url: is required"]),
    "mirror-as-a-word": (
        up("mirrors: [m]"),
        ['4:15: upstreams.up.mirrors[0]: expected a URL that begins with https:// or http://; write "https://m"'],
    ),
    "mirror-of-itself": (
        up("mirrors: [{url: 'http://up/'}]"),
        ["4:21: upstreams.up.mirrors[0].url: is the url of the upstream itself; leave this mirror out"],
    ),
    "rule-with-the-upstream": (
        up("deny: [library/*, up/library/*]"),
        [
            "4:23: upstreams.up.deny[1]: matches nothing: patterns are of the upstream's own repositories; "
            'leave out "up/": write "library/*"'
        ],
    ),
    "mirror-unknown-key": (
        up("mirrors: [{url: 'http://m', resolv: true}]"),
        ['4:33: upstreams.up.mirrors[0].resolv: unknown key; did you mean "resolve"?'],
    ),
    "helper-with-prefix": (
        up("credentials: {helper: docker-credential-ecr-login}"),
        ['4:27: upstreams.up.credentials.helper: "docker-credential-" is put before the name; write "ecr-login"'],
    ),
    "helper-as-a-path": (
        up("credentials: {helper: ../../bin/sh}"),
        [
            "4:27: upstreams.up.credentials.helper: expected the name of a credential helper, such as ecr-login; "
            "letters, digits, and . _ - only"
        ],
    ),
    "docker-config-missing": (
        up("credentials: {docker_config: nowhere}"),
        [
            "4:34: upstreams.up.credentials.docker_config: no such file; "
            "expected the path of a file such as docker's config.json"
        ],
    ),
    "share-as-a-fraction": (
        up("quota_floor: 0.1"),
        ['4:18: upstreams.up.quota_floor: expected a share such as 10%; write "10%"'],
    ),
    "share-without-percent": (
        up("quota_floor: 10"),
        ['4:18: upstreams.up.quota_floor: expected a share such as 10%; write "10%"'],
    ),
    "share-over-all": (
        up("quota_floor: 101%"),
        ['4:18: upstreams.up.quota_floor: expected a share from 0% to 100%, got "101%"'],
    ),
    "rate-without-unit": (
        up("rate: fast"),
        ['4:11: upstreams.up.rate: expected a rate such as 20MB/s, got "fast"'],
    ),
    "rate-with-half-a-unit": (
        up("rate: 20M/s"),
        [
            '4:11: upstreams.up.rate: the unit M can mean two things; write "20MiB" (20,971,520 bytes) or "20MB" '
            "(20,000,000 bytes)"
        ],
    ),
    "connections-none": (
        up("connections: 0"),
        ["4:18: upstreams.up.connections: expected a number from 1 to 10000, or unlimited, got 0"],
    ),
    "retries": (up("retries: 11"), ["4:14: upstreams.up.retries: expected a number from 0 to 10, got 11"]),
    "headers-too-long": (
        up("timeouts: {headers: 30s}"),
        [
            "4:25: upstreams.up.timeouts.headers: cannot be longer than 18s: clients must have an answer before they "
            "give up"
        ],
    ),
    "connect-zero": (up("timeouts: {connect: 0}"), ["4:25: upstreams.up.timeouts.connect: must be longer than 0s"]),
    "proxy-with-path": (
        up("proxy: http://p:1/x"),
        ["4:12: upstreams.up.proxy: a proxy's URL has a host and a port, and no path"],
    ),
    "proxy-as-a-word": (
        up("proxy: envrionment"),
        [
            "4:12: upstreams.up.proxy: expected environment, none or a URL that begins with https:// or http://; "
            'did you mean "environment"?'
        ],
    ),
    "proxy-with-half-a-login": (
        up("proxy: {url: 'http://p:1', username: u}"),
        ["4:5: upstreams.up.proxy.password_file: is required"],
    ),
    "proxy-at-the-top": (
        "proxy: {url: 'http://p:1', password_file: proxy}\n",
        ["1:1: proxy.username: is required"],
    ),
    "certificate-without-key": (
        up("client_certificate: {certificate: client.crt}"),
        ["4:5: upstreams.up.client_certificate.key: is required"],
    ),
    "allow-of-urls": (
        up("allow: ['https://docker.io/library']"),
        [
            "4:13: upstreams.up.allow[0]: expected a pattern of repositories of the upstream, and perhaps of tags, "
            "such as library/*, team/** or library/alpine:3.*; * stands for any part of one component, ** alone for "
            "any number of components"
        ],
    ),
    "allow-as-text": (
        up("deny: library/*"),
        ["4:11: upstreams.up.deny: expected a list, got text; put it in [ ]"],
    ),
    "pattern-of-everything": (
        'upstreams: {"*": {url: "https://{host}"}}',
        ["1:13: upstreams.*: a pattern needs a domain; write for instance *.example.net: the world stays closed"],
    ),
    "pattern-of-a-domain": (
        'upstreams: {"registry.*": {url: "https://{host}"}}',
        [
            "1:13: upstreams.registry.*: a pattern needs a domain; write for instance *.example.net: "
            "the world stays closed"
        ],
    ),
    "pattern-double": (
        'upstreams: {"**.pkg.dev": {url: "https://{host}"}}',
        [
            '1:13: upstreams.**.pkg.dev: expected a pattern of hosts such as *.pkg.dev, got "**.pkg.dev"; '
            "* stands for any part of one label"
        ],
    ),
    "pattern-without-host": (
        'upstreams: {"*.pkg.dev": {url: "https://pkg.dev"}}',
        ["1:32: upstreams.*.pkg.dev.url: does not say {host}: all that match the pattern would be one registry"],
    ),
    "pattern-with-names": (
        'upstreams: {"*.pkg.dev": {url: "https://{host}", names: [a.io]}}',
        ["1:57: upstreams.*.pkg.dev.names: a pattern cannot have other names; list them as upstreams of their own"],
    ),
    "host-without-pattern": (
        'upstreams: {a.dev: {url: "https://{host}"}}',
        ["1:26: upstreams.a.dev.url: {host} is for patterns such as *.pkg.dev; write the host"],
    ),
    "pattern-as-default": (
        'upstreams: {"*.pkg.dev": {url: "https://{host}"}}\ndefault_upstream: "*.pkg.dev"\n',
        ["2:19: default_upstream: is not one of the upstreams (there are none)"],
    ),
    "defaults-with-url": (
        "upstream_defaults: {url: 'http://a'}",
        ["1:21: upstream_defaults.url: unknown key; url is each upstream's own"],
    ),
    "defaults-said-once": (
        "upstream_defaults: {retries: -1}\nupstreams: {a: {url: 'http://a'}, b: {url: 'http://b'}}\n",
        ["1:30: upstream_defaults.retries: expected a number from 0 to 10, got -1"],
    ),
    "defaults-half-a-login": (
        "upstream_defaults: {credentials: {username: u}}",
        ["1:21: upstream_defaults.credentials.password_file: is required"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), WRONG.values(), ids=WRONG.keys())
def test_what_is_said_about_a_bad_upstream(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"proxy: http://u:{SECRET}@p:1",
        f"proxy: {{url: 'http://p:1', username: u, password_file: {SECRET}}}",
        f"proxy: {{url: 'http://p:1', password: {SECRET}}}",
        up(f"credentials: {{docker_config: {SECRET}}}"),
        up(f"credentials: [{{username: u, password_file: {SECRET}}}]"),
        up(f"mirrors: [{{url: 'http://m', credentials: {{username: u, password_file: {SECRET}}}}}]"),
        up(f"mirrors: [{{url: 'http://u:{SECRET}@m'}}]"),
        f"upstream_defaults: {{credentials: {SECRET}}}",
    ],
)
def test_no_secret_is_ever_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert SECRET not in f"{caught.value} {caught.value!r} {caught.value.problems!r}"


IN_CODE: dict[str, tuple[Any, str]] = {
    "two-ways": ({"credentials": {"helper": "x", "docker_config": "/d"}}, "says several ways"),
    "half": ({"credentials": {"username": "u"}}, "is required"),
    "proxy": ({"proxy": {"url": "http://p", "username": "u"}}, "is required"),
    "host": ({"url": "http://{host}"}, "is for patterns"),
}


@pytest.mark.parametrize(("given", "expected"), IN_CODE.values(), ids=IN_CODE.keys())
def test_models_are_checked_in_code_too(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Config(upstreams={"up": Upstream(**{"url": "http://up", **given})})
    if "url" not in given:
        with pytest.raises(ValidationError, match=expected):
            Config(upstream_defaults=UpstreamDefaults(**given))
