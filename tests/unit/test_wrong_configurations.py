"""Configurations that people really write, and all that ``mirror config check`` says of each: the operator's view."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner

from mirror.cli import main

SECRET = "hunter2"
"""What the variable SET and the file ``hub`` hold: it may only be said where it is written in the file itself."""

TABLE = r"""
== tab
storage:
	root: /srv/mirror
-> 2:1: not valid YAML: found a tab; indent by spaces

== unknown key
storge:
  root: /srv/mirror
-> 1:1: storge: unknown key; did you mean "storage"?

== key of a section inside
cache_size: 5GB
root: /srv/mirror
-> 1:1: cache_size: unknown key
-> 2:1: root: unknown key; did you mean "storage.root"?

== dash in a key
default-upstream: docker.io
-> 1:1: default-upstream: unknown key; did you mean "default_upstream"?

== key twice
workers: 2
offline: true
workers: 4
-> 3:1: workers: given twice, first on line 1

== no space after the colon
workers:4
-> 1:1: expected a mapping of settings, got text; write a space after each colon

== a list for a mapping
- listen: 127.0.0.1:5000
-> 1:1: expected a mapping of settings, got a list

== port alone
listen: 5000
-> 1:9: listen: expected HOST:PORT, got a number; write "127.0.0.1:5000", or "0.0.0.0:5000" for all

== port without host
listen: ':5000'
-> 1:9: listen: expected HOST:PORT, got no host; write "127.0.0.1:5000", or "0.0.0.0:5000" for all

== host without port
listen: 0.0.0.0
-> 1:9: listen: expected HOST:PORT, got no port; write "0.0.0.0:5000"

== ipv6 without brackets
listen: '::1:5000'
-> 1:9: listen: expected HOST:PORT with an IPv6 address in brackets; write "[::1]:5000"

== ipv6 without quotes
listen: [::1]:5000
-> 1:10: not valid YAML: found what begins as a list; put an IPv6 address in quotes: "[::1]:5000"

== listen empty
listen: []
-> 1:9: listen: expected at least one HOST:PORT

== address twice
listen: [0.0.0.0:5000, 0.0.0.0:5000]
-> 1:9: listen: 0.0.0.0:5000 is given twice

== address in another
listen: [127.0.0.1:5000, 0.0.0.0:5000]
-> 1:9: listen: 0.0.0.0:5000 and 127.0.0.1:5000 have addresses in common; leave one of them out, or give it a port of its own

== admin on the same port
listen: 0.0.0.0:5000
admin_listen: 127.0.0.1:5000
-> 2:15: admin_listen: 127.0.0.1:5000 has addresses in common with 0.0.0.0:5000 in listen; give administrators a port of their own

== workers zero
workers: 0
-> 1:10: workers: expected auto or a number from 1 to 256, got 0

== workers in quotes
workers: "4"
-> 1:10: workers: expected auto or a number from 1 to 256, got "4"; write it without quotes

== duration in words
shutdown_delay: 5 minutes
-> 1:17: shutdown_delay: expected a duration such as 500ms, 60s, 5m, 2h or 1d, got "5 minutes"

== duration in weeks
upstream_defaults:
  tags: {fresh_for: 1w}
-> 2:21: upstream_defaults.tags.fresh_for: expected a duration such as 500ms, 60s, 5m, 2h or 1d, got "1w"

== size of one letter
limits:
  blob: 5G
-> 2:9: limits.blob: the unit G can mean two things; write "5GiB" (5,368,709,120 bytes) or "5GB" (5,000,000,000 bytes)

== rate in bits
upstream_defaults:
  rate: 100Mbit
-> 2:9: upstream_defaults.rate: expected a rate such as 20MB/s, got "100Mbit"

== switch in quotes
offline: "yes"
-> 1:10: offline: expected true or false, got "yes"; write it without quotes

== switch misspelt
read_only: ture
-> 1:12: read_only: expected true or false, got "ture"; did you mean "true"?

== url with v2
upstreams:
  docker.io: {url: https://registry-1.docker.io/v2/}
-> 2:20: upstreams.docker.io.url: "/v2" is added to the URL with each request; leave out the "/v2" at its end

== url without scheme
upstreams:
  docker.io: {url: registry-1.docker.io}
-> 2:20: upstreams.docker.io.url: expected a URL that begins with https:// or http://; write "https://registry-1.docker.io"

== url of the website
upstreams:
  docker.io: {url: https://hub.docker.com}
-> 2:20: upstreams.docker.io.url: hub.docker.com is a website and not the registry of Docker Hub; write "https://registry-1.docker.io"

== url of the website, bare
upstreams:
  docker.io: {url: https://docker.io}
-> 2:20: upstreams.docker.io.url: docker.io is a website and not the registry of Docker Hub; write "https://registry-1.docker.io"

== url with a password
upstreams:
  docker.io: {url: 'https://ci:hunter2@registry-1.docker.io'}
-> 2:20: upstreams.docker.io.url: a URL must not hold credentials; put them under credentials: username and password_file

== url in the place of the upstream
upstreams:
  docker.io: https://registry-1.docker.io
-> 2:14: upstreams.docker.io: expected a mapping, got text; give the URL as url: in it

== url missing
upstreams:
  docker.io:
    credentials: {helper: pass}
-> 2:3: upstreams.docker.io.url: is required

== url of all
upstream_defaults:
  url: https://registry-1.docker.io
-> 2:3: upstream_defaults.url: unknown key; url is each upstream's own

== upstreams as a list
upstreams: [docker.io, ghcr.io]
-> 1:12: upstreams: expected a mapping, got a list; write each as NAME: {url: …}

== upstreams null
upstreams:
-> 1:11: upstreams: expected a mapping, got nothing; leave the key out for the built-in upstreams, or write {} for none

== upstream with a scheme
upstreams:
  https://ghcr.io: {url: https://ghcr.io}
-> 2:3: upstreams.https://ghcr.io: expected host or host:port, got a URL; did you mean "ghcr.io"?

== upstream in capitals
upstreams:
  Ghcr.io: {url: https://ghcr.io}
-> 2:3: upstreams.Ghcr.io: expected a host in lower case; did you mean "ghcr.io"?

== upstream twice
upstreams:
  ghcr.io: {url: https://ghcr.io}
  ghcr.io: {url: https://ghcr.io}
-> 3:3: upstreams.ghcr.io: given twice, first on line 2

== name of two upstreams
upstreams:
  a.io: {url: https://a.io, names: [hub]}
  b.io: {url: https://b.io, names: [hub]}
-> 3:37: upstreams.b.io.names[0]: "hub" already means the upstream a.io

== unknown default
default_upstream: dokcer.io
-> 1:19: default_upstream: is not one of the upstreams (docker.io, ghcr.io, quay.io, gcr.io, registry.k8s.io, mcr.microsoft.com, public.ecr.aws, nvcr.io); did you mean "docker.io"?

== pattern of the world
upstreams:
  "*": {url: "https://{host}"}
-> 2:3: upstreams.*: a pattern needs a domain; write for instance *.example.net: the world stays closed

== password in the file
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {username: ci, password: hunter2}
-> 4:43: upstreams.docker.io.credentials.password: a password is never written into this file; give password_file, or ${NAME} of the environment

== password as a default
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials:
      username: ci
      password: ${NO_SUCH:-hunter2}
-> 6:17: upstreams.docker.io.credentials.password: a password is never written into this file; give password_file, or ${NAME} of the environment

== password beside the account
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    username: ci
    password: hunter2
-> 4:5: upstreams.docker.io.username: unknown key; did you mean "credentials.username"?
-> 5:5: upstreams.docker.io.password: unknown key; did you mean "credentials.password"?

== password in the place of its file
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {username: ci, password_file: hunter2}
-> 4:48: upstreams.docker.io.credentials.password_file: no such file; expected the path of a file that holds the password

== two passwords
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {username: ci, password_file: hub, password: '${SET}'}
-> 4:48: upstreams.docker.io.credentials.password_file: is a second password; give password or password_file, not both

== no password
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {username: ci}
-> 4:5: upstreams.docker.io.credentials.password_file: is required

== no way to log in
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {}
-> 4:18: upstreams.docker.io.credentials: says no way to log in; give one of: username and password_file, docker_config, helper

== several ways to log in
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: {username: ci, password_file: hub, helper: pass}
-> 4:18: upstreams.docker.io.credentials: says several ways to log in; give one of: username and password_file, docker_config, helper

== helper with its prefix
upstream_defaults:
  credentials: {helper: docker-credential-pass}
-> 2:25: upstream_defaults.credentials.helper: "docker-credential-" is put before the name; write "pass"

== variable not set
workers: ${NO_SUCH}
-> 1:10: workers: NO_SUCH is not set in the environment; set it where the mirror runs, or write ${NO_SUCH:-default}

== password not set
proxy:
  url: http://proxy.corp:3128
  username: ci
  password: ${NO_SUCH}
-> 4:13: proxy.password: NO_SUCH is not set in the environment; set it where the mirror runs

== variable without quotes
listen: [${SET}]
-> 1:11: not valid YAML: found ${ within [ ] or { }; put it in quotes: "${NAME}"

== variable without an end
names: ['${SET']
-> 1:9: names[0]: ${ without a } after it; a literal ${ is written $${

== variable as a shell has it
workers: ${SET:?}
-> 1:10: workers: expected ${NAME} or ${NAME:-default}; a literal ${ is written $${

== variable with a wrong value
workers: ${SET}
-> 1:10: workers: expected auto or a number from 1 to 256; check SET of the environment

== file of a value missing
upstreams:
  docker.io: {url_file: /run/secrets/no-such}
-> 2:25: upstreams.docker.io.url_file: no such file; expected the path of a file that holds the value, and nothing else

== value and its file
workers: 4
workers_file: hub
-> 2:15: workers_file: gives workers a second time; give workers or workers_file, not both

== file of two lines
default_upstream_file: tls.crt
-> 1:24: default_upstream_file: the file has more than one line; expected the path of a file that holds the value, and nothing else

== file of a wrong value
workers_file: hub
-> 1:15: workers_file: expected auto or a number from 1 to 256; check what the file holds

== certificate as _file
tls: {certificate_file: tls.crt, key_file: tls.key}
-> 1:25: tls.certificate_file: the file has more than one line; did you mean "certificate"?
-> 1:44: tls.key_file: the file has more than one line; did you mean "key"?

== key missing
tls:
  certificate: tls.crt
-> 1:1: tls.key: is required

== certificate missing
tls: {certificate: no-such.crt, key: tls.key}
-> 1:20: tls.certificate: "no-such.crt": no such file

== key of another certificate
tls: {certificate: tls.crt, key: other.key}
-> 1:6: tls: cannot use certificate tls.crt with key other.key: KEY_VALUES_MISMATCH

== authorities that are none
upstreams:
  r.corp:
    url: https://r.corp
    ca_file: hub
-> 4:14: upstreams.r.corp.ca_file: cannot be used: no certificate or crl found

== client certificate of another key
upstreams:
  r.corp:
    url: https://r.corp
    client_certificate: {certificate: tls.crt, key: other.key}
-> 4:39: upstreams.r.corp.client_certificate.certificate: cannot be used: key values mismatch

== password in an empty file
upstreams:
  r.corp:
    url: https://r.corp
    credentials: {username: ci, password_file: empty}
-> 4:48: upstreams.r.corp.credentials.password_file: cannot be used: it is empty
-> warning: upstream r.corp: what its credentials can read, clients read without logging in; set access.htpasswd_file and anonymous: none, or take the credentials away

== docker config that is none, and one without an entry
upstreams:
  r.corp:
    url: https://r.corp
    credentials: [{username: ci, password_file: hub}, {docker_config: hub}]
    mirrors:
      - url: https://near
        credentials: {docker_config: empty.json}
-> 4:71: upstreams.r.corp.credentials[1].docker_config: cannot be used: it is not JSON
-> warning: upstream r.corp: what its credentials can read, clients read without logging in; set access.htpasswd_file and anonymous: none, or take the credentials away

== users missing
access:
  htpasswd_file: no-such
-> 2:18: access.htpasswd_file: no such file; expected the path of a file of users, made by htpasswd -B

== users that are not bcrypt
access:
  htpasswd_file: md5
-> 2:18: access.htpasswd_file: has no line that can be used; make its lines by htpasswd -B
-> warning: access.htpasswd_file: line 1: a hash that is not of bcrypt (make it by htpasswd -B); this line is not used

== push without users
access:
  push: [ci]
-> 2:9: access.push: lists users, but there are none; give access.htpasswd_file

== nobody may do anything
access:
  anonymous: none
-> 2:14: access.anonymous: with no users, nobody could do anything; give access.htpasswd_file, or pull

== a list as text
local: mine/**
-> 1:8: local: expected a list, got text; put it in [ ]

== a pattern of text
upstream_defaults:
  deny: [docker.io/library/*:latest, Bad]
-> 2:38: upstream_defaults.deny[1]: expected a pattern of repositories of the upstream, and perhaps of tags, such as library/*, team/** or library/alpine:3.*; * stands for any part of one component, ** alone for any number of components

== rule with the upstream
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    deny: [docker.io/library/*]
-> 4:12: upstreams.docker.io.deny[0]: matches nothing: patterns are of the upstream's own repositories; leave out "docker.io/": write "library/*"

== network with bits
trusted_proxies: [10.1.2.3/8]
-> 1:19: trusted_proxies[0]: the address has bits set beyond the length of its network; did you mean "10.0.0.0/8"?

== a proxy by name
trusted_proxies: [nginx]
-> 1:19: trusted_proxies[0]: expected a network such as 10.0.0.0/8 or fd00::/8, got "nginx"

== proxy with a password
proxy: http://ci:hunter2@proxy.corp:3128
-> 1:8: proxy: a URL must not hold credentials; give the proxy as a section: url, username and password_file

== proxy by a word
proxy: env
-> 1:8: proxy: expected environment, none or a URL that begins with https:// or http://; did you mean "environment"?

== packages missing
packages: images
-> 1:11: packages: "images": no such folder

== log level
log: {level: warn, format: text}
-> 1:14: log.level: expected debug, info, warning or error; did you mean "warning"?
-> 1:28: log.format: expected auto, human or json

== share as a number
upstream_defaults: {quota_floor: 10}
-> 1:34: upstream_defaults.quota_floor: expected a share such as 10%; write "10%"

== several at once
listen: 5000
storage: {rot: /srv}
upstreams:
  ghcr.io: {url: ghcr.io}
default_upstream: docker.io
-> 1:9: listen: expected HOST:PORT, got a number; write "127.0.0.1:5000", or "0.0.0.0:5000" for all
-> 2:11: storage.rot: unknown key; did you mean "root"?
-> 4:18: upstreams.ghcr.io.url: expected a URL that begins with https:// or http://; write "https://ghcr.io"
-> 5:19: default_upstream: is not one of the upstreams (ghcr.io)
"""  # noqa: E501
"""Behind ``==`` is what is wrong; then comes the file; behind ``->`` is all that is said, less ``mirror.yaml:``."""


def rows() -> Iterator[tuple[str, str, str]]:
    """Give of each row what is wrong, the file, and what is said."""
    for row in re.split(r"^== ", TABLE, flags=re.MULTILINE)[1:]:
        name, _, rest = row.partition("\n")
        lines = rest.rstrip("\n").split("\n")
        said = [line.removeprefix("-> ") for line in lines if line.startswith("-> ")]
        text = [line for line in lines if not line.startswith("-> ")]
        assert said
        assert lines == text + [f"-> {line}" for line in said]
        yield name, "\n".join(text) + "\n", "".join(f"{_named(line)}\n" for line in said)


def _named(line: str) -> str:
    return line if line.startswith("warning: ") else f"mirror.yaml:{line}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the files name: a certificate and its key, a key of another, a password, users."""
    folder = tmp_path_factory.mktemp("etc")
    authority = trustme.CA()
    pair, other = authority.issue_cert("mirror.corp"), authority.issue_cert("other.corp")
    pair.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    pair.private_key_pem.write_to_path(str(folder / "tls.key"))
    other.private_key_pem.write_to_path(str(folder / "other.key"))
    (folder / "hub").write_text(f"{SECRET}\n")
    (folder / "empty").touch()
    (folder / "empty.json").write_text("{}")
    (folder / "md5").write_text("ci:$apr1$x$y\n")
    return folder


ROWS = list(rows())


def test_there_are_many() -> None:
    assert len(ROWS) > 70
    assert len({name for name, _, _ in ROWS}) == len({text for _, text, _ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(("text", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_is_said(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("SET", SECRET)
    monkeypatch.delenv("NO_SUCH", raising=False)
    Path("mirror.yaml").write_text(text)
    before = sorted(files.iterdir())
    result = CliRunner().invoke(main, ["config", "check", "mirror.yaml"], prog_name="mirror")
    assert result.stderr.replace(f"{files}/", "") == said
    assert (result.exit_code, result.stdout) == (1, "")
    assert SECRET not in result.output
    assert sorted(files.iterdir()) == before
    assert not any(tmp_path.iterdir()), "checking makes nothing"
