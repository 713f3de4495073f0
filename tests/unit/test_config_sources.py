"""Values that are not written in the file: out of the environment, out of files; and where each setting comes from."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.config import (
    Config,
    ConfigError,
    Credentials,
    Listener,
    Proxy,
    Section,
    Tls,
    Upstream,
    UpstreamDefaults,
    load_config,
    read_config,
    shapes,
    values,
)
from mirror.config import document as document_module
from mirror.config.environment import substitute
from mirror.config.values import ListenAddress
from tests.settings_schema import refused

SECRET = "hunter2-s3cr3t"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("NO_SUCH", raising=False)


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with libyaml's loader and with the one that is always there: both must say the same."""
    if not hasattr(yaml, request.param):
        pytest.skip(f"this PyYAML has no {request.param}")
    monkeypatch.setattr(document_module, "_LOADER", getattr(yaml, request.param))


def load(tmp_path: Path, text: str, **environ: str) -> Config:
    (tmp_path / "mirror.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        config = load_config(tmp_path / "mirror.yaml")
    assert refused(text) == [], "what loads is right by the schema"
    return config


def problems(tmp_path: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    return [str(problem).removeprefix(f"{tmp_path}/mirror.yaml:") for problem in caught.value.problems]


# ---- ${NAME} ----


@pytest.mark.parametrize(
    ("text", "becomes", "names"),
    [
        ("${A}", "a", ("A",)),
        ("x-${A}-${_b2}-y", "x-a-b-y", ("A", "_b2")),
        ("${A}${A}", "aa", ("A",)),
        ("${EMPTY}", "", ("EMPTY",)),
        ("${EMPTY:-d}", "d", ("EMPTY",)),
        ("${UNSET:-d}", "d", ("UNSET",)),
        ("${UNSET:-}", "", ("UNSET",)),
        ("${UNSET:-a:-b $c}", "a:-b $c", ("UNSET",)),
        ("${A:-d}", "a", ("A",)),
        ("${BRACES}", "${A}", ("BRACES",)),
        ("$${A}", "${A}", ()),
        ("$${", "${", ()),
        ("$$${A}", "$${A}", ()),
        ("$${A} ${A}", "${A} a", ("A",)),
        ("$A $$ {A} ${A}", "$A $$ {A} a", ("A",)),
        ("no more", "no more", ()),
    ],
)
def test_substitution(text: str, becomes: str, names: tuple[str, ...]) -> None:
    found = substitute(text, {"A": "a", "_b2": "b", "EMPTY": "", "BRACES": "${A}"})
    assert (found.text, found.names, found.problems) == (becomes, names, ())
    assert found.alone == (text in ("${A}", "${EMPTY}", "${BRACES}"))


LITERAL = "a literal ${ is written $${"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "${UNSET}",
            ("UNSET is not set in the environment", "set it where the mirror runs, or write ${UNSET:-default}"),
        ),
        ("${A", ("${ without a } after it", LITERAL)),
        ("${", ("${ without a } after it", LITERAL)),
        ("${}", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${1A}", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${A-d}", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${A:?needed}", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${ A }", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${Ä}", ("expected ${NAME} or ${NAME:-default}", LITERAL)),
        ("${UNSET:-${A}}", ("${ within ${ }", "a default is plain text")),
        ("${BYTES}", ("BYTES of the environment is not UTF-8 text", "")),
    ],
)
def test_what_cannot_be_substituted(text: str, problem: tuple[str, str]) -> None:
    assert substitute(text, {"A": "a", "BYTES": os.fsdecode(b"\xff")}).problems[0] == problem


def test_a_value_without_quotes_is_what_it_would_be_in_the_file(tmp_path: Path, loader: None) -> None:
    config = load(
        tmp_path,
        """
workers: ${N}
offline: ${OFF:-true}
shutdown_delay: ${SECONDS}
default_upstream: ${NOTHING:-null}
local: ["a/${GLOB}", mine]
read_only: ${NO}
limits:
  manifest: ${SIZE}MiB
  blob: "${N}"
upstream_defaults:
  proxy: ${PROXY}
  ca_file: ${EMPTY}
  retries: ${N}
listen: ${ADDRESS}
""",
        N="4",
        SECONDS="1.5",
        GLOB="b/**",
        NO=" no\n",
        SIZE="8",
        PROXY="http://p:1",
        EMPTY="",
        ADDRESS="127.0.0.1:7000",
    )
    assert (config.workers, config.offline, config.shutdown_delay, config.default_upstream) == (4, True, 1.5, None)
    assert (config.read_only, config.local) == (False, ("a/b/**", "mine"))
    assert (config.limits.manifest, config.limits.blob) == (8 * 1024**2, 4)
    up = config.upstreams["ghcr.io"]
    assert (up.proxy, up.ca_file, up.retries) == (Proxy(url="http://p:1"), None, 4)
    assert config.listen == (Listener(address=ListenAddress("127.0.0.1", 7000)),)


def test_a_value_with_a_tag_is_what_the_tag_says(tmp_path: Path, loader: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N", "4")
    path = tmp_path / "mirror.yaml"
    path.write_text("upstream_defaults: {retries: !!int '${N}'}\nlimits:\n  blob: !!str ${N}\n")
    config = load_config(path)
    assert (config.upstreams["ghcr.io"].retries, config.limits.blob) == (4, 4)
    path.write_text("workers: !!str ${N}\noffline: &a !!str ${N}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(caught.value.problems) == 2


def test_text_stays_text(tmp_path: Path, loader: None) -> None:
    """A user may be called 007, and a password may be ``null``: what is meant is what the variable holds."""
    text = """
upstream_defaults:
  credentials:
    - username: ${USER_NAME}
      password: ${PASSWORD}
    - {username: "${USER_NAME}", password: "${TOKEN}"}
storage:
  root: /srv/${USER_NAME}
names:
  - ${USER_NAME}.corp
"""
    config = load(tmp_path, text, USER_NAME="007", PASSWORD="null", TOKEN="0x1f")
    first, second = config.upstreams["ghcr.io"].credentials
    assert first.password is not None
    assert (first.username, first.password.get_secret_value()) == ("007", "null")
    assert second.password is not None
    assert (second.username, second.password.get_secret_value()) == ("007", "0x1f")
    assert config.storage.root == Path("/srv/007")
    assert config.names == ("007.corp",)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("[h:1, h:2]", "1:9: listen: expected HOST:PORT such as 127.0.0.1:5000 or [::1]:5000; check LISTEN of"),
        ("{address: h:1}", "1:9: listen: expected HOST:PORT with an IPv6 address in brackets; check LISTEN of"),
        ("h:1\nworkers: 4", "1:9: listen: expected HOST:PORT with an IPv6 address in brackets; check LISTEN of"),
        ("&a h:1", "1:9: listen: expected HOST:PORT such as 127.0.0.1:5000 or [::1]:5000; check LISTEN of"),
    ],
    ids=["list", "mapping", "lines", "anchor"],
)
def test_a_variable_is_no_structure(tmp_path: Path, loader: None, value: str, expected: str) -> None:
    assert problems(tmp_path, "listen: ${LISTEN}\n", LISTEN=value) == [f"{expected} the environment"]


def test_keys_and_comments_are_left_alone(tmp_path: Path, loader: None) -> None:
    assert load(tmp_path, "# ${NO_SUCH}\nworkers: 3 # ${NO_SUCH\n").workers == 3
    assert problems(tmp_path, "${NO_SUCH}: 3\n") == ["1:1: ${NO_SUCH}: unknown key"]


def test_every_variable_that_is_not_set_is_said_at_its_place(tmp_path: Path, loader: None) -> None:
    text = "workers: ${NO_SUCH}\nnames: [a, '${NO_SUCH}.${NOT_EITHER}', '${']\nlocal: &l ['${NO_SUCH}']\nstorge: 1\n"
    hint = "is not set in the environment; set it where the mirror runs, or write"
    assert problems(tmp_path, text) == [
        f"1:10: workers: NO_SUCH {hint} ${{NO_SUCH:-default}}",
        f"2:12: names[1]: NO_SUCH {hint} ${{NO_SUCH:-default}}",
        f"2:12: names[1]: NOT_EITHER {hint} ${{NOT_EITHER:-default}}",
        f"2:40: names[2]: ${{ without a }} after it; {LITERAL}",
        f"3:12: local[0]: NO_SUCH {hint} ${{NO_SUCH:-default}}",
        '4:1: storge: unknown key; did you mean "storage"?',
    ]


def test_the_environment_is_read_when_loading(tmp_path: Path) -> None:
    assert load(tmp_path, "workers: ${N}\n", N="2").workers == 2
    assert load(tmp_path, "workers: ${N}\n", N="3").workers == 3


# ---- NAME_file ----


def test_a_setting_may_be_given_by_a_file(tmp_path: Path, loader: None) -> None:
    held = {
        "workers": "4\n",
        "off": "true",
        "url": "https://r.corp\r\n",
        "user": "\ufeff0815\n",
        "fresh": "5m\n",
        "address": "127.0.0.1:7000\n",
        "proxy": "http://proxy.corp:3128\n",
        "token": "t\n",
        "dollar": "${HOME}x\n",
    }
    for name, content in held.items():
        (tmp_path / name).write_text(content)
    text = """
workers_file: workers
offline_file: ${WHERE}/off
listen: {address_file: address}
proxy: {url_file: proxy, username_file: user, password_file: token}
upstreams:
  r.corp:
    url_file: url
    tags: {fresh_for_file: fresh}
    credentials: [{username_file: user, password_file: token}]
    mirrors: {url_file: proxy}
"""
    config = load(tmp_path, text, WHERE=str(tmp_path))
    assert (config.workers, config.offline) == (4, True)
    assert config.listen == (Listener(address=ListenAddress("127.0.0.1", 7000)),)
    assert config.proxy == Proxy(url="http://proxy.corp:3128", username="0815", password_file=tmp_path / "token")
    up = config.upstreams["r.corp"]
    assert (up.url, up.tags.fresh_for, up.mirrors[0].url) == ("https://r.corp", 300, "http://proxy.corp:3128")
    assert up.credentials == (Credentials(username="0815", password_file=tmp_path / "token"),)
    with pytest.raises(ConfigError, match="default_upstream_file: is not one of the upstreams") as caught:
        load(tmp_path, "default_upstream_file: dollar\n")  # it is text, and no place for variables
    assert "HOME" not in str(caught.value)


NOTHING_ELSE = "expected the path of a file that holds the value, and nothing else"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, f"no such file; {NOTHING_ELSE}"),
        (b"", f"the file is empty; {NOTHING_ELSE}"),
        (b" \n", f"the file is empty; {NOTHING_ELSE}"),
        (b"4\n5\n", f"the file has more than one line; {NOTHING_ELSE}"),
        (b"\xff", f"the file is not UTF-8 text; {NOTHING_ELSE}"),
        (b"4" * 65537, f"the file is larger than 65536 bytes; {NOTHING_ELSE}"),
        (b"9" * 5000, "expected plain text, a number, true, false or null"),
        (b"400", "expected auto or a number from 1 to 256; check what the file holds"),
    ],
    ids=["missing", "empty", "blank", "lines", "bytes", "huge", "digits", "wrong"],
)
def test_what_is_said_about_a_file_with_a_value(tmp_path: Path, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / "held").write_bytes(content)
    assert problems(tmp_path, "workers_file: held\n") == [f"1:15: workers_file: {expected}"]


def test_a_file_with_a_value_may_be_as_long_as_is_said(tmp_path: Path) -> None:
    (tmp_path / "held").write_text(f"{'x' * 65535}\n")
    (said,) = problems(tmp_path, "default_upstream_file: held\n")
    assert said.startswith("1:24: default_upstream_file: is not one of the upstreams")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers_file: .\n", f"1:15: workers_file: is not a file; {NOTHING_ELSE}"),
        ("workers_file: pipe\n", f"1:15: workers_file: is not a file; {NOTHING_ELSE}"),
        ("workers_file: mirror.yaml/x\n", f"1:15: workers_file: cannot be read (Not a directory); {NOTHING_ELSE}"),
        ("workers_file: 4\n", "1:15: workers_file: expected the path of a file that holds the value"),
        ("workers_file: ''\n", "1:15: workers_file: expected the path of a file that holds the value"),
        ("workers_file: [a]\n", "1:15: workers_file: expected the path of a file that holds the value"),
        ("local_file: a\n", '1:1: local_file: unknown key; did you mean "local"?'),
        ("storage: {rooot_file: a}\n", '1:11: storage.rooot_file: unknown key; did you mean "root_file"?'),
        ("tls: {client_ca_file: pipe, certificate: file, key: file}\n", None),
        (
            "workers: 4\nworkers_file: pipe\n",
            "2:15: workers_file: gives workers a second time; give workers or workers_file, not both",
        ),
        ("upstreams: {a: {url_file: pipe}}\n", f"1:27: upstreams.a.url_file: is not a file; {NOTHING_ELSE}"),
        ("upstreams: {a: {}}\n", "1:13: upstreams.a.url: is required"),
    ],
)
def test_what_is_said_about_the_name_of_a_file(tmp_path: Path, loader: None, text: str, expected: str | None) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    said = problems(tmp_path, text)
    assert said == [expected or '1:23: tls.client_ca_file: is not a file; did you mean "client_ca"?']


def test_null_for_a_file_is_as_not_given(tmp_path: Path) -> None:
    assert load(tmp_path, "workers_file:\nworkers: 2\n").workers == 2


def test_which_settings_may_be_given_by_a_file() -> None:
    assert dict(shapes.from_files(Credentials)) == {
        "username_file": "username",
        "docker_config_file": "docker_config",
        "helper_file": "helper",
    }
    found = dict(shapes.from_files(Upstream))
    assert {"url_file", "retries_file", "rate_file"} <= set(found)
    assert not {"ca_file_file", "names_file", "tags_file", "proxy_file", "mirrors_file"} & set(found)


# ---- passwords ----


def test_a_password_comes_out_of_the_environment(tmp_path: Path, loader: None) -> None:
    text = """
proxy: {url: "http://p:1", username: u, password: "${PROXY_PASSWORD}"}
upstream_defaults:
  credentials:
    username: ci
    password: ${HUB_PASSWORD}
"""
    config = load(tmp_path, text, PROXY_PASSWORD="a b ", HUB_PASSWORD=SECRET)
    assert config.proxy is not None
    assert config.proxy.password is not None
    assert config.proxy.password.get_secret_value() == "a b "
    (account,) = config.upstreams["docker.io"].credentials
    assert account.password is not None
    assert account.password.get_secret_value() == SECRET
    for shown in (repr(config), str(config), config.model_dump_json(), repr(account), str(account.password)):
        assert SECRET not in shown


NEVER = "a password is never written into this file; give password_file, or ${NAME} of the environment"


@pytest.mark.parametrize(
    "written",
    [SECRET, "12345", "${NO_SUCH:-hunter2}", "${SET:-hunter2}", "x${SET}", "$${SET}", "${SET}${SET}", "[a]", "$SET"],
)
def test_a_password_is_never_written_into_the_file(tmp_path: Path, loader: None, written: str) -> None:
    text = f"proxy:\n  url: http://p:1\n  username: u\n  password: {written}\n"
    assert problems(tmp_path, text, SET=SECRET) == [f"4:13: proxy.password: {NEVER}"]
    assert problems(tmp_path, text.replace(written, f"'{written}'"), SET=SECRET) == [f"4:13: proxy.password: {NEVER}"]


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ("username: u", "password_file: is required"),
        ("password: '${SET}'", "username: is required"),
        ("password_file: mirror.yaml", "username: is required"),
        (
            "username: u, password: '${SET}', password_file: mirror.yaml",
            "password_file: is a second password; give password or password_file, not both",
        ),
        (
            "username: u, password: '${EMPTY}'",
            "password: expected text, got an empty one; check EMPTY of the environment",
        ),
        (
            "username: u, password: '${NO_SUCH}'",
            "password: NO_SUCH is not set in the environment; set it where the mirror runs",
        ),
    ],
    ids=["no-password", "no-user", "no-user-of-file", "two", "empty", "unset"],
)
def test_half_a_login(tmp_path: Path, login: str, expected: str) -> None:
    for text, path in (
        (f"proxy: {{url: 'http://p:1', {login}}}\n", "proxy"),
        (f"upstream_defaults:\n  credentials: [{{{login}}}]\n", "upstream_defaults.credentials[0]"),
    ):
        (said,) = problems(tmp_path, text, SET=SECRET, EMPTY="")
        assert said.partition(": ")[2] == f"{path}.{expected}"


# ---- nothing is repeated ----

WRONG: dict[str, str] = {
    "listen": "nine:ninety-nine",
    "workers": "hundreds",
    "storage.root": "~no-such-user/zzz",
    "offline": "perhaps",
    "shutdown_delay": "sometime",
    "limits.blob": "99M",
    "limits.manifest": "lots",
    "default_upstream": "elsewhere",
    "proxy": "socks5://zzz",
    "packages": "/zzz/packages",
    "tls.certificate": "/zzz/certificate",
    "access.htpasswd_file": "/zzz/users",
    "access.anonymous": "zzz",
    "log.level": "loud",
    "upstreams.r.io.url": "ftp://zzz",
    "upstreams.r.io.rate": "77G/s",
    "upstreams.r.io.minimum_rate": "swift",
    "upstreams.r.io.quota_floor": "77",
    "upstreams.r.io.connections": "77777",
    "upstreams.r.io.retries": "77",
    "upstreams.r.io.timeouts.headers": "77h",
    "upstreams.r.io.timeouts.connect": "zzz",
    "upstreams.r.io.tags.stale_for": "always",
    "upstreams.r.io.tags.on_not_found": "zzz",
    "upstreams.r.io.insecure": "zzz",
    "upstreams.r.io.credentials.helper": "docker-credential-zzz",
    "upstreams.r.io.credentials.docker_config": "/zzz/config.json",
    "upstreams.r.io.mirrors.url": "https://hub.docker.com",
    "upstreams.r.io.names.0": "ZZZ.io",
    "upstreams.r.io.names.1": "docker.zzz:0",
    "upstreams.r.io.realms.0": "https://zzz.io/token",
    "upstreams.r.io.redirects_to.0": "77.77.77.77/8",
    "upstreams.r.io.deny.0": "r.io/zzz/*",
    "upstreams.r.io.allow.0": "Zzz",
    "local.0": "Zzz/**",
    "names.0": "ZZZ.corp",
    "trusted_proxies.0": "zzz-proxy",
    "access.allow_from.0": "zzz-net",
    "access.admin.0": "nobody-zzz",
}
"""A value that is wrong for each kind of setting; 0 and 1 are places in a list."""


def _file(path: str, value: str) -> str:
    """Return a file with one more setting than an upstream; it is given in quotes only where YAML needs them."""
    data: dict[str, Any] = {"upstreams": {"r.io": {"url": "https://r.io"}}}
    keys = path.replace("r.io", "r/io").split(".")
    section: Any = data
    for key, after in zip(keys, [*keys[1:], ""], strict=True):
        key = key.replace("r/io", "r.io")
        if key.isdigit():
            section.append(value)
        elif not after:
            section[key] = value
        else:
            section = section.setdefault(key, [] if after.isdigit() else {})
    if path.endswith("url_file"):
        del data["upstreams"]["r.io"]["url"]
    return yaml.safe_dump(data, width=1000)


@pytest.mark.parametrize(("path", "value"), WRONG.items(), ids=WRONG)
@pytest.mark.parametrize("way", ["environment", "file"])
def test_what_is_not_in_the_file_is_never_repeated(tmp_path: Path, path: str, value: str, way: str) -> None:
    literal = problems(tmp_path, _file(path, value))
    assert literal, "it is wrong"
    if way == "environment":
        said = problems(tmp_path, _file(path, "${WRONG}"), WRONG=value)
    elif path.endswith((".0", ".1", "_file")) or path in ("listen", "proxy"):
        return  # no setting with one value
    else:
        (tmp_path / "held").write_text(value)
        said = problems(tmp_path, _file(f"{path}_file", "held"))
    assert said
    tokens = {value, value.lower(), value.rstrip("M/sGh"), value.removeprefix("docker-credential-")} - {"77"}
    for line in said:
        assert not [token for token in tokens if token in line], line
    assert any("; check " in line or "admin" in path for line in said)


def test_every_message_has_a_form_that_repeats_nothing() -> None:
    """``wrong`` is given another message wherever the first one is made of something."""
    calls = [
        node
        for source in (Path(values.__file__), Path(values.__file__).with_name("models.py"))
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("wrong", "values.wrong")
    ]
    assert len(calls) > 40
    for call in calls:
        message = call.args[0]
        made = [
            ast.unparse(part.value)
            for part in ast.walk(message)
            if isinstance(part, ast.FormattedValue) and not ast.unparse(part.value).startswith(("kind(", "MAX_"))
        ]
        quiet = any(keyword.arg == "quiet" for keyword in call.keywords)
        known = isinstance(message, ast.Constant | ast.JoinedStr) or ast.unparse(message) == "reason"
        assert quiet or (known and not made), ast.unparse(call)


def test_names_that_mean_two_upstreams(tmp_path: Path) -> None:
    text = "upstreams:\n  a.io: {url: 'http://a', names: [x]}\n  b.io: {url: 'http://b', names: ['${NAME}']}\n"
    assert problems(tmp_path, text, NAME="x") == [
        "3:35: upstreams.b.io.names[0]: already means the upstream a.io; check NAME of the environment"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen: ['${A}', 'h:77']\n", "1:9: listen: an address is given twice"),
        (
            "listen: ['${B}', '0.0.0.0:77']\n",
            "1:9: listen: two of them have addresses in common; leave one of them out, or give it a port of its own",
        ),
        ("listen: h:77\nadmin_listen: ${A}\n", "2:15: admin_listen: is in listen already; check A of the environment"),
        (
            "listen: 0.0.0.0:77\nadmin_listen: ['${B}', 'h:1']\n",
            "2:15: admin_listen: has addresses in common with those in listen; give administrators a port of their own",
        ),
    ],
)
def test_what_is_said_of_a_list_repeats_nothing_that_is_in_it(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text, A="h:77", B="127.0.0.1:77") == [expected]


def test_a_suggestion_that_repeats_nothing_stays(tmp_path: Path) -> None:
    assert problems(tmp_path, "workers: '${N}'\noffline: '${OFF}'\n", N="4", OFF="true") == [
        "1:10: workers: expected auto or a number from 1 to 256; write it without quotes",
        "2:10: offline: expected true or false; write it without quotes",
    ]


# ---- null for a list ----


def test_null_for_a_list_is_as_not_given(tmp_path: Path, loader: None) -> None:
    text = """
listen:
admin_listen:
trusted_proxies:
local:
names:
access: {admin: , allow_from: , push: }
upstream_defaults:
  deny: [bad/**]
  credentials: {helper: pass}
  realms: null
upstreams:
  r.io:
    url: https://r.io
    names:
    mirrors:
    credentials:
    deny:
    realms:
    redirects_to:
    allow:
"""
    config = load(tmp_path, text)
    expected = Config(
        upstream_defaults=UpstreamDefaults(deny=("bad/**",), credentials=Credentials(helper="pass")),
        upstreams={"r.io": Upstream(url="https://r.io")},
    )
    assert config == expected
    assert config.upstreams["r.io"].deny == ("bad/**",)


# ---- where settings come from ----


def origins(tmp_path: Path, text: str, overrides: dict[str, Any] | None = None, **environ: str) -> dict[str, str]:
    (tmp_path / "mirror.yaml").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        loaded = read_config(tmp_path / "mirror.yaml", overrides or {})
    return {name: str(origin).replace(f"{tmp_path}/", "") for name, origin in loaded.origins.items()}


def settings_of(value: Any, path: str = "") -> list[str]:
    """Return the dotted name of every single setting; of a list of plain values, as a whole."""
    if isinstance(value, Section):
        return [name for key in type(value).model_fields for name in settings_of(getattr(value, key), f"{path}.{key}")]
    if isinstance(value, dict) and value:
        return [name for key, one in value.items() for name in settings_of(one, f"{path}.{key}")]
    if isinstance(value, tuple) and value and isinstance(value[0], Section):
        return [name for at, one in enumerate(value) for name in settings_of(one, f"{path}[{at}]")]
    return [path.removeprefix(".")]


def test_without_a_file_all_is_default_or_built_in() -> None:
    loaded = read_config(None)
    assert sorted(loaded.origins) == sorted(settings_of(loaded.config))
    found = {name: str(origin) for name, origin in loaded.origins.items()}
    assert {name for name, origin in found.items() if origin == "built-in list"} == {
        *(f"upstreams.{name}.url" for name in loaded.config.upstreams),
        "upstreams.docker.io.names",
        "upstreams.nvcr.io.realms",
    }
    assert {origin for origin in found.values() if origin != "built-in list"} == {"default"}


def test_origins(tmp_path: Path, loader: None) -> None:
    for name in ("tls.crt", "tls.key", "hub"):
        (tmp_path / name).write_text("x")
    (tmp_path / "url").write_text("https://b.io\n")
    text = """tls: {certificate: tls.crt, key: tls.key}
listen:
  - h:1
  - {address: h:2, tls: null}
admin_listen: h:3
workers: 2
read_only: ${READ_ONLY}
local: [a, "${GLOB}", "${GLOB}/${OTHER}"]
proxy: environment
storage:
  root: data
upstream_defaults:
  retries: ${RETRIES:-5}
  realms: [x.io]
  tags: {fresh_for: 5m}
  mirrors: http://near:5000
  client_certificate: {certificate: tls.crt, key: tls.key}
upstreams:
  a.io:
    url: https://a.io
    realms: []
    tags: {stale_for: 1d}
    credentials: {username: u, password_file: hub}
    mirrors:
      - http://m:1
      - {url: "http://m:2", resolve: true}
  b.io:
    url_file: url
    tags:
    credentials: [{helper: pass}, {username: u, password: "${PASSWORD}"}]
limits:
"""
    environ = {"READ_ONLY": "true", "GLOB": "g", "OTHER": "o", "PASSWORD": SECRET}
    found = origins(tmp_path, text, {"workers": 3, "packages": None, "access.anonymous": "pull"}, **environ)
    expected = {
        "tls.certificate": "mirror.yaml:1",
        "tls.client_ca": "default",
        "listen[0].address": "mirror.yaml:3",
        "listen[0].tls.key": "tls (mirror.yaml:1)",
        "listen[0].tls.client_ca": "default",
        "listen[1].address": "mirror.yaml:4",
        "listen[1].tls": "mirror.yaml:4",
        "admin_listen[0].address": "mirror.yaml:5",
        "admin_listen[0].tls.certificate": "tls (mirror.yaml:1)",
        "workers": "command line",
        "access.anonymous": "command line",
        "access.admin": "default",
        "packages": "default",
        "read_only": "mirror.yaml:7 (${READ_ONLY})",
        "local": "mirror.yaml:8 (${GLOB}, ${OTHER})",
        "proxy.url": "mirror.yaml:9",
        "proxy.username": "default",
        "storage.root": "mirror.yaml:11",
        "default_upstream": "default",
        "upstream_defaults.retries": "mirror.yaml:13 (${RETRIES})",
        "upstream_defaults.offline": "default",
        "upstreams.a.io.url": "mirror.yaml:20",
        "upstreams.a.io.retries": "upstream_defaults (mirror.yaml:13 (${RETRIES}))",
        "upstreams.a.io.realms": "mirror.yaml:21",
        "upstreams.a.io.tags.fresh_for": "upstream_defaults (mirror.yaml:15)",
        "upstreams.a.io.tags.stale_for": "mirror.yaml:22",
        "upstreams.a.io.tags.on_not_found": "default",
        "upstreams.a.io.credentials[0].username": "mirror.yaml:23",
        "upstreams.a.io.credentials[0].helper": "default",
        "upstreams.a.io.mirrors[0].url": "mirror.yaml:25",
        "upstreams.a.io.mirrors[0].resolve": "default",
        "upstreams.a.io.mirrors[1].url": "mirror.yaml:26",
        "upstreams.a.io.mirrors[1].resolve": "mirror.yaml:26",
        "upstreams.a.io.client_certificate.key": "upstream_defaults (mirror.yaml:17)",
        "upstreams.b.io.url": "mirror.yaml:28 (file url)",
        "upstreams.b.io.realms": "upstream_defaults (mirror.yaml:14)",
        "upstreams.b.io.tags.fresh_for": "upstream_defaults (mirror.yaml:15)",
        "upstreams.b.io.mirrors[0].url": "upstream_defaults (mirror.yaml:16)",
        "upstreams.b.io.mirrors[0].insecure": "default",
        "upstreams.b.io.credentials[0].helper": "mirror.yaml:30",
        "upstreams.b.io.credentials[1].password": "mirror.yaml:30 (${PASSWORD})",
        "upstreams.b.io.names": "default",
        "limits.blob": "default",
    }
    assert {name: found.get(name) for name in expected} == expected
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        assert sorted(found) == sorted(settings_of(load_config(tmp_path / "mirror.yaml")))


def test_defaults_of_built_in_upstreams_have_origins(tmp_path: Path) -> None:
    found = origins(tmp_path, "upstream_defaults: {retries: 7}\n")
    assert found["upstreams.ghcr.io.retries"] == "upstream_defaults (mirror.yaml:1)"
    assert found["upstreams.ghcr.io.url"] == "built-in list"
    assert found["upstreams.ghcr.io.deny"] == "default"


def test_no_upstreams_is_a_setting(tmp_path: Path) -> None:
    assert origins(tmp_path, "upstreams: {}\n")["upstreams"] == "mirror.yaml:1"


def test_what_the_command_line_replaces_is_its_own(tmp_path: Path) -> None:
    """Also what is said of it: the file may have it out of the environment."""
    (tmp_path / "mirror.yaml").write_text("workers: ${N}\nlisten: ${L}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N", "4")
        patch.setenv("L", "h:1")
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "mirror.yaml", {"workers": 500})
    assert str(caught.value) == "command line: workers: expected auto or a number from 1 to 256, got 500"


def test_a_problem_found_later_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "mirror.yaml").write_text(
        "upstream_defaults:\n  ca_file: mirror.yaml\nstorage: {root: '${ROOT}'}\nupstreams:\n  a.io: {url: 'http://a'}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROOT", "/zzz")
        loaded = read_config(tmp_path / "mirror.yaml")
    said = [
        loaded.problem(("upstreams", "a.io", "ca_file"), "is no good"),
        loaded.problem(("storage", "root"), "/zzz is full", quiet="is full"),
        loaded.problem(("workers",), "are tired"),
    ]
    assert [str(one).replace(f"{tmp_path}/", "") for one in said] == [
        "mirror.yaml:2:12: upstream_defaults.ca_file: is no good",
        "mirror.yaml:3:17: storage.root: is full; check ROOT of the environment",
        "mirror.yaml: workers: are tired",
    ]


def test_equal_sections_stay_equal() -> None:
    """What holds a password can be compared and hashed, as a reload needs."""
    one, other = (Credentials(username="u", password=SECRET) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Credentials(username="u", password="other")
    assert hash(Tls(certificate="a", key="b")) == hash(Tls(certificate="a", key="b"))
