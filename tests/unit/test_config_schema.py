"""The JSON Schema of the file: it is what the code says, and it agrees with the loader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from mirror.cli import main
from mirror.config import ConfigError, load_config
from tests.settings_schema import COMMITTED, PROJECT, refused, refused_data

SCHEMA: dict[str, Any] = json.loads(COMMITTED.read_text())


def test_it_is_what_is_printed() -> None:
    result = CliRunner().invoke(main, ["config", "schema"])
    assert result.exit_code == 0
    assert result.stdout == COMMITTED.read_text(), "write it again: mirror config schema > config/mirror.schema.json"
    assert CliRunner().invoke(main, ["config", "schema", "--json"]).stdout == result.stdout


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def _objects() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "the file", SCHEMA
    yield from ((name, one) for name, one in SCHEMA["$defs"].items() if "properties" in one)


def test_every_setting_is_described_in_plain_words() -> None:
    for name, section in _objects():
        assert section["additionalProperties"] is False, name
        for setting, one in section["properties"].items():
            assert one["description"], f"{name}.{setting}"
            assert "`" not in one["description"]
    assert "`" not in json.dumps(SCHEMA)


def test_every_default_is_one_that_may_be_written() -> None:
    count = 0
    for name, section in _objects():
        for setting, one in section["properties"].items():
            if "default" in one:
                count += 1
                validator = Draft202012Validator({"$defs": SCHEMA["$defs"], **one})
                assert not list(validator.iter_errors(one["default"])), f"{name}.{setting}"
    assert count > 60
    tags = SCHEMA["$defs"]["Tags"]["properties"]
    assert (tags["fresh_for"]["default"], tags["stale_for"]["default"]) == ("60s", "unlimited")
    assert SCHEMA["$defs"]["Limits"]["properties"]["blob"]["default"] == "256GiB"
    assert SCHEMA["properties"]["listen"]["default"] == [{"address": "127.0.0.1:5000"}]


def _examples() -> list[Path]:
    """Return the files beside the commented one that are configurations: they say so, or have nothing but settings."""
    found = sorted((PROJECT / "config").rglob("*.yaml"))
    return [path for path in found if COMMITTED.name in path.read_text() or _has_settings_only(path)]


def _has_settings_only(path: Path) -> bool:
    documents = list(yaml.safe_load_all(path.read_text()))
    return len(documents) == 1 and isinstance(documents[0], dict) and set(documents[0]) <= set(SCHEMA["properties"])


@pytest.mark.parametrize("path", _examples(), ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_examples_are_right_by_it(path: Path) -> None:
    assert refused(path.read_text()) == []


def test_the_commented_file_is_right_by_it_in_full() -> None:
    text = re.sub(r"^( *)#(?=[^ #\n])", r"\1", (PROJECT / "config" / "mirror.yaml").read_text(), flags=re.MULTILINE)
    assert yaml.safe_load(text)["upstreams"]["docker.io"]["mirrors"], "what is commented out is looked at"
    assert refused(text) == []


GOOD = {
    "empty": "",
    "null": "null",
    "sections that are commented out": (
        "log:\nstorage:\nupstream_defaults: {tags: , timeouts: }\npush:\naccess:\nlimits:\ntls:\n"
    ),
    "lists that are commented out": (
        "listen:\nlocal:\nnames:\nupstream_defaults: {mirrors: , deny: , allow: , realms: }\n"
    ),
    "an address": "listen: 0.0.0.0:5000\n",
    "addresses": (
        "listen: [0.0.0.0:5000, '[::]:5000', localhost:0, {address: 'H:1', tls: null}]\nadmin_listen: {address: h:2}\n"
    ),
    "numbers": "workers: 4\nshutdown_delay: 0\ndrain_timeout: 1.5\nlimits: {blob: 5, manifest: 8}\n",
    "units": "shutdown_delay: 0s\ndrain_timeout: 2 m\nlimits: {blob: 10GB, manifest: 4 mib, send_timeout: 500ms}\n",
    "unlimited": (
        "upstream_defaults: {rate: unlimited, connections: unlimited, minimum_rate: , tags: {stale_for: unlimited}}\n"
    ),
    "rates": "upstream_defaults: {rate: 20MB/s, minimum_rate: 5KiB, quota_floor: 12.5%, connections: 8, retries: 0}\n",
    "no share": "upstream_defaults: {quota_floor: 0}\n",
    "upstreams": (
        "upstreams: {a.io: {url: 'HTTPS://A.io/x/'}, 'b:5000': {url: 'http://b:5000'}, "
        "'[fd00::1]': {url: 'http://[fd00::1]'}}\n"
    ),
    "a pattern": "upstreams: {'*.pkg.dev': {url: 'https://{host}'}}\n",
    "no upstreams": "upstreams: {}\ndefault_upstream: null\n",
    "one account": "upstream_defaults: {credentials: {helper: ecr-login}}\n",
    "accounts": (
        "upstream_defaults: {credentials: [{helper: a}, {username: u, password: '${SET}'}, {docker_config: f}]}\n"
    ),
    "a mirror": "upstream_defaults: {mirrors: 'http://m'}\n",
    "mirrors": (
        "upstream_defaults: {mirrors: ['http://m', {url: 'http://n', send_ns: false, credentials: {helper: a}}]}\n"
    ),
    "proxies": "proxy: none\nupstream_defaults: {proxy: {url: environment, username: u, password_file: f}}\n",
    "a proxy": "proxy: http://p:3128\n",
    "rules": "upstream_defaults: {allow: ['library/*', 'team/**:v1.*'], deny: []}\nlocal: [mine, 'team-*/x']\n",
    "networks": "trusted_proxies: [127.0.0.1, 10.0.0.0/8, '::1', 'fd00::/8']\naccess: {allow_from: [10.0.0.0/8]}\n",
    "users": "access: {htpasswd_file: f, push: [ci, 'räksmörgås'], anonymous: none}\n",
    "variables": (
        "workers: ${N}\noffline: ${OFF}\nlisten: ${SET}:1\nlog: {level: '${LEVEL}'}\nlimits: {blob: '${N}MiB'}\n"
    ),
    "variables in lists": "local: ['${SET}/**', '${SET}']\nnames: ['${SET}.corp']\nproxy: ${URL}\n",
    "variables with defaults": "shutdown_delay: ${NO_SUCH:-5s}\nupstream_defaults:\n  retries: ${NO_SUCH:-3}\n",
    "files": (
        "workers_file: n\n"
        "upstreams: {a.io: {url_file: url, tags: {fresh_for_file: t}}}\n"
        "listen: {address_file: address}\n"
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for name, value in {"SET": "set", "N": "4", "OFF": "true", "LEVEL": "info", "URL": "http://p:1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_SUCH", raising=False)
    for name, held in {"f": "x", "n": "3", "url": "http://a", "t": "5m", "address": "h:1"}.items():
        (tmp_path / name).write_text(held)
    return tmp_path


def _load(folder: Path, text: str) -> None:
    (folder / "mirror.yaml").write_text(text)
    load_config(folder / "mirror.yaml")


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_loads_is_right_by_it(folder: Path, text: str) -> None:
    _load(folder, text)
    assert refused(text) == []


WRONG = {
    "a list": "- listen\n",
    "an unknown key": "storag: {root: /r}\n",
    "an unknown key inside": "storage: {rot: /r}\n",
    "an unknown file": "local_file: f\n",
    "a key of an upstream": "upstreams: {a.io: {url: 'http://a', fresh_for: 5m}}\n",
    "a port alone": "listen: 5000\n",
    "no port": "listen: 0.0.0.0\n",
    "no host": "listen: ':5000'\n",
    "a number in a list of addresses": "listen: [h:1, 5000]\n",
    "workers of zero": "workers: 0\n",
    "many workers": "workers: 257\n",
    "workers in words": "workers: four\n",
    "workers in quotes": "workers: '4'\n",
    "a unit there is not": "shutdown_delay: 1w\n",
    "a duration in words": "shutdown_delay: soon\n",
    "a duration below zero": "shutdown_delay: -1\n",
    "a duration of nothing": "shutdown_delay:\n",
    "no time at all": "limits: {send_timeout: 0s}\n",
    "no time at all, as a number": "limits: {send_timeout: 0}\n",
    "unlimited that cannot be": "drain_timeout: unlimited\n",
    "headers too long": "upstream_defaults: {timeouts: {headers: 30}}\n",
    "a size of one letter": "limits: {blob: 5G}\n",
    "no size": "limits: {blob: 0}\n",
    "a switch in quotes": "offline: 'yes'\n",
    "a switch as a number": "offline: 1\n",
    "a word there is not": "log: {level: warn}\n",
    "no url": "upstreams: {a.io: {}}\n",
    "a url without scheme": "upstreams: {a.io: {url: a.io}}\n",
    "a url with a login": "upstreams: {a.io: {url: 'https://u:p@a.io'}}\n",
    "a url with a query": "upstreams: {a.io: {url: 'https://a.io?x'}}\n",
    "a url for an upstream": "upstreams: {a.io: 'https://a.io'}\n",
    "upstreams in a list": "upstreams: [a.io]\n",
    "upstreams of nothing": "upstreams:\n",
    "a name in capitals": "upstreams: {A.io: {url: 'https://a.io'}}\n",
    "a name with a path": "upstreams: {a.io/x: {url: 'https://a.io'}}\n",
    "url of all": "upstream_defaults: {url: 'https://a.io'}\n",
    "text for a list": "local: mine\n",
    "a pattern in capitals": "local: [Mine]\n",
    "a share as a number": "upstream_defaults: {quota_floor: 10}\n",
    "a rate in words": "upstream_defaults: {rate: fast}\n",
    "too often": "upstream_defaults: {retries: 11}\n",
    "no connections": "upstream_defaults: {connections: 0}\n",
    "a password": "proxy: {url: 'http://p', username: u, password: hunter2}\n",
    "a password with a default": "proxy: {url: 'http://p', username: u, password: '${NO_SUCH:-hunter2}'}\n",
    "a helper with its prefix": "upstream_defaults: {credentials: {helper: docker-credential-pass}}\n",
    "a network by name": "trusted_proxies: [nginx]\n",
    "a user by number": "access: {htpasswd_file: f, admin: [5]}\n",
    "no key": "tls: {certificate: f}\n",
    "a mirror without url": "upstream_defaults: {mirrors: [{resolve: true}]}\n",
    "a proxy by a word": "proxy: env\n",
    "a name of nothing": "default_upstream: ''\n",
    "half a variable": "workers: ${N\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_by_both(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        _load(folder, text)
    assert refused_data(yaml.safe_load(text))
