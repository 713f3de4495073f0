"""``mirror conformance`` as people and programs meet it: options, what it prints and writes, how it ends."""

from __future__ import annotations

import html.parser
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from mirror.cli import main
from mirror.cli.conformance import PASSWORD
from mirror.conformance import Judgement, Version
from mirror.conformance.case import Outcome
from mirror.conformance.case import Result as CaseResult
from mirror.conformance.cases import CASES
from mirror.conformance.documents import as_html, as_json, as_junit
from mirror.conformance.report import terminal
from tests.conformance_registry import ConformantRegistry, flag, in_thread, status, without

EVIL = '<script>alert("&")</script>\x00\x1b[31m'


def run(*arguments: str, **more: Any) -> Result:
    return CliRunner().invoke(main, ["conformance", *arguments], prog_name="mirror", **more)


@pytest.fixture
def registry() -> Iterator[ConformantRegistry]:
    with in_thread(ConformantRegistry()) as found:
        yield found


@pytest.fixture
def broken() -> Iterator[ConformantRegistry]:
    with in_thread(ConformantRegistry(flag("takes-gaps"), flag("no-referrers"))) as found:
        yield found


# ---- how it ends ----


def test_a_conformant_registry_ends_with_0(registry: ConformantRegistry) -> None:
    result = run(registry.url, "-V", "main")
    assert result.exit_code == 0, result.output
    assert "passes main: 0 of " in result.output
    assert "FAIL" not in result.output


def test_a_must_that_fails_ends_with_1(broken: ConformantRegistry) -> None:
    result = run(broken.url)
    assert result.exit_code == 1
    assert "FAILS 1.1: 2 of " in result.output
    assert "chunk-gap (MUST; Pushing a blob in chunks, end-5, negative)" in result.output
    assert "- expected status 416" in result.output
    assert "- got status 202" in result.output
    assert "unsupported: there is no referrers API: it answers 404" in result.output


def test_a_should_that_fails_ends_with_0() -> None:
    with in_thread(ConformantRegistry(without("blob-get 200", "Docker-Content-Digest"))) as registry:
        older, newer = run(registry.url, "-V", "1.1"), run(registry.url, "-V", "main")
    assert older.exit_code == 0
    assert "1 of " in older.output.splitlines()[-1]
    assert "SHOULD failed" in older.output
    assert newer.exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "URL... is missing"),
        (["registry.example"], "say http://HOST:PORT or https://HOST"),
        (["ftp://registry.example"], "say http://"),
        (["http://user:word@registry.example"], "no login in a URL"),
        (["http://registry.example/v2"], "has a path"),
        (["http://registry.example", "-V", "2.0"], "main or all, got 2.0"),
        (["http://registry.example", "--pull-only"], "give --reference"),
        (["http://registry.example", "--insecure", "--ca-file", "x.pem"], "give one of them"),
        (["http://registry.example", "--ca-file", "/nowhere/x.pem"], "cannot be read as certificates"),
        (["http://registry.example", "--password-stdin"], "without --user"),
        (["http://registry.example", "-u", "x", "--password-stdin", "--password-file", "y"], "give one of them"),
        (["http://registry.example", "-u", "x", "--password-file", "/nowhere/y"], "cannot be read"),
        (["http://registry.example", "-u", "x"], "no password"),
        (["http://registry.example", "--seed", "x"], "not hexadecimal"),
        (["http://registry.example", "--case", "no-such-case"], "no such case: no-such-case"),
    ],
    ids=lambda part: " ".join(part)[:50] if isinstance(part, list) else "",
)
def test_what_cannot_be_meant_ends_with_2(arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_nobody_there_ends_with_2(registry: ConformantRegistry) -> None:
    result = run(registry.url, "http://127.0.0.1:9")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9 does not answer" in result.output


def test_a_report_that_cannot_be_written_ends_with_2(registry: ConformantRegistry, tmp_path: Path) -> None:
    result = run(registry.url, "--case", "api-root", "--junit", str(tmp_path / "none" / "junit.xml"))
    assert result.exit_code == 2
    assert "cannot be written" in result.output


# ---- options ----


def test_the_help_explains_itself() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for word in ("--pull-only", "--reference", "--user", "--junit", "--insecure", PASSWORD, "Exit status"):
        assert word in result.output


def test_the_cases_can_be_listed() -> None:
    result = run("--list")
    assert result.exit_code == 0
    for case in CASES:
        assert f"{case.name}\n" in result.output
    assert "SHOULD 1.0, SHOULD 1.1, MUST main" in result.output


def test_repositories_are_those_named(registry: ConformantRegistry) -> None:
    assert run(registry.url, "--repository", "mine/one", "--case", "mount", "--case", "tags-list").exit_code == 0
    names = {path.split("/blobs/")[0] for method, path, _ in registry.seen if method == "POST"}
    assert names == {"/v2/mine/one", "/v2/mine/one-other"}


def test_the_defaults_are_local_names(registry: ConformantRegistry) -> None:
    assert run(registry.url, "--case", "mount").exit_code == 0
    names = {path.split("/blobs/")[0] for method, path, _ in registry.seen if method == "POST"}
    assert names == {"/v2/local/conformance", "/v2/local/conformance-other"}


def test_a_seed_makes_the_same_content_again(registry: ConformantRegistry) -> None:
    paths = []
    for seed in ("ab", "ab", "cd"):
        registry.seen.clear()
        assert run(registry.url, "--seed", seed, "--case", "blob-get").exit_code == 0
        paths.append([path for method, path, _ in registry.seen if method == "GET" and "sha256" in path])
    assert paths[0] == paths[1] != paths[2]


def test_one_case_alone(registry: ConformantRegistry) -> None:
    result = run(registry.url, "--case", "blob-get", "--json")
    [found] = json.loads(result.output)["registries"][0]["cases"]
    assert found["name"] == "blob-get"


@pytest.fixture
def locked() -> Iterator[ConformantRegistry]:
    with in_thread(ConformantRegistry(login=("somebody", "secret word"))) as found:
        yield found


def test_the_password_comes_from_a_file(locked: ConformantRegistry, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("secret word\n")
    assert run(locked.url, "-u", "somebody", "--password-file", str(path), "--case", "upload-put").exit_code == 0


def test_the_password_comes_from_standard_input(locked: ConformantRegistry) -> None:
    arguments = (locked.url, "-u", "somebody", "--password-stdin", "--case", "upload-put")
    assert run(*arguments, input="secret word\n").exit_code == 0
    assert run(*arguments, input="wrong\n").exit_code == 2


def test_the_password_comes_from_the_environment(locked: ConformantRegistry) -> None:
    result = run(locked.url, "-u", "somebody", "--case", "upload-put", env={PASSWORD: "secret word"})
    assert result.exit_code == 0
    assert "secret" not in result.output


def test_the_password_is_asked_for_at_a_terminal(locked: ConformantRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prompt(text: str, **options: Any) -> str:
        asked.append((text, options["hide_input"]))
        return "secret word"

    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr(sys.modules["mirror.cli.conformance"], "_at_terminal", lambda: True)
    assert run(locked.url, "-u", "somebody", "--case", "upload-put").exit_code == 0
    assert asked == [("Password of somebody", True)]


def test_pulling_only_by_a_tag(registry: ConformantRegistry) -> None:
    assert run(registry.url, "--case", "manifest-put-by-tag", "--seed", "1").exit_code == 0
    registry.behaviours.add("no-deletion")
    assert run(registry.url, "--seed", "1", "--case", "tags-list").exit_code == 0
    [tag, *_] = registry.repositories["local/conformance"].tags
    registry.behaviours.add("no-pushes")
    registry.seen.clear()
    result = run(registry.url, "--pull-only", "--reference", tag)
    assert result.exit_code == 0, result.output
    assert "Push and Content Management are unsupported: left out: pulling only" in result.output
    assert {method for method, _, _ in registry.seen} == {"GET", "HEAD"}
    refused = run(registry.url)
    assert refused.exit_code == 1
    assert "no manifest to pull: name one by --repository and --reference" in refused.output
    assert "UNDECIDED 1.1: 0 of " in refused.output


# ---- several columns ----


def test_all_versions_stand_side_by_side(registry: ConformantRegistry) -> None:
    result = run(registry.url, "-V", "all")
    assert result.exit_code == 0
    head = next(line for line in result.output.splitlines() if line.split() == ["1.0", "1.1", "main"])
    row = next(line for line in result.output.splitlines() if line.strip().startswith("Listing Referrers"))
    assert row[head.index("1.0")] == "-", "1.0 has none"
    assert "pass" in row[head.index("1.1") :]
    for version in ("1.0", "1.1", "main"):
        assert f"passes {version}:" in result.output


def test_registries_stand_side_by_side(registry: ConformantRegistry, broken: ConformantRegistry) -> None:
    result = run(registry.url, broken.url)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert any(line.split() == ["[1]", "1.1", "[2]", "1.1"] for line in lines)
    start = lines.index("Cases that differ")
    rows = [line.split() for line in lines[start + 2 : lines.index("", start)]]
    differing = {row[0]: row[1:] for row in rows}
    assert differing["chunk-gap"] == ["pass", "(MUST)", "FAIL", "(MUST)"]
    assert differing["referrers-list"] == ["pass", "(MUST)", "unsupported", "(MUST)"]
    assert "blob-get" not in differing
    assert f"Failed: {broken.url}" in lines
    assert f"Failed: {registry.url}" not in lines


def test_registries_that_do_not_differ(registry: ConformantRegistry) -> None:
    result = run(registry.url, registry.url)
    assert "comes to the same in all of them" in result.output


# ---- what it writes ----


def test_json_has_it_all(broken: ConformantRegistry) -> None:
    result = run(broken.url, "-V", "all", "--json")
    assert result.exit_code == 1
    [found] = json.loads(result.output)["registries"]
    assert found["url"] == broken.url
    assert {version: state["passes"] for version, state in found["versions"].items()} == {
        "1.0": False,
        "1.1": False,
        "main": False,
    }
    assert found["versions"]["1.1"]["MUST"]["failed"] == 2
    cases = {case["name"]: case for case in found["cases"]}
    assert set(cases) == {case.name for case in CASES}
    assert cases["chunk-gap"]["outcome"] == "failed"
    assert cases["chunk-gap"]["got"] == "status 202"
    assert cases["chunk-gap"]["levels"] == {"1.0": "MUST", "1.1": "MUST", "main": "MUST"}
    assert any("PATCH" in line for line in cases["chunk-gap"]["log"])
    assert cases["referrers-list"]["outcome"] == "unsupported"
    assert cases["blob-get"]["outcome"] == "passed"
    assert cases["blob-get-digest-header"]["levels"] == {"1.0": "SHOULD", "1.1": "SHOULD", "main": "MUST"}


def test_junit_is_well_formed(broken: ConformantRegistry, tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    assert run(broken.url, "-V", "all", "--junit", str(path)).exit_code == 1
    suites = ElementTree.parse(path).getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == [f"{broken.url} {version}" for version in Version]
    for suite in suites:
        cases = suite.findall("testcase")
        assert suite.get("tests") == str(len(cases))
        assert suite.get("failures") == str(sum(case.find("failure") is not None for case in cases))
        assert suite.get("skipped") == str(sum(case.find("skipped") is not None for case in cases))
        assert suite.get("errors") == str(sum(case.find("error") is not None for case in cases))
    failure = next(case for case in suites[1].findall("testcase") if case.get("name") == "chunk-gap").find("failure")
    assert failure is not None
    assert "got status 202" in (failure.get("message") or "")


def test_html_is_a_page(broken: ConformantRegistry, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    run(broken.url, "--html", str(path))
    page = Page(path.read_text())
    assert page.open == []
    assert "chunk-gap" in page.text
    assert "PATCH" in page.text
    assert "http" not in "".join(page.links), "nothing from elsewhere"


@pytest.fixture
def evil() -> list[Judgement]:
    """Return a judgement whose every text wants to be markup."""
    results = tuple(
        CaseResult(
            case=CASES[place],
            outcome=outcome,
            expected=EVIL,
            got=EVIL,
            reason=EVIL,
            notes=(EVIL,) if outcome is Outcome.PASSED else (),
            log=(EVIL,),
        )
        for place, outcome in enumerate(Outcome)
    )
    return [
        Judgement(
            url=f"http://x/{EVIL}",
            seed=1,
            versions=tuple(Version),
            results=results,
            no_pushes=EVIL,
            left=(EVIL,),
            seconds=1.0,
        )
    ]


def test_html_escapes(evil: list[Judgement]) -> None:
    page = Page(as_html(evil))
    assert "script" not in page.tags
    assert '<script>alert("&")</script>' in page.text
    assert page.open == []


def test_junit_escapes(evil: list[Judgement]) -> None:
    text = as_junit(evil)
    root = ElementTree.fromstring(text)
    assert root.find("script") is None
    assert any("<script>" in (element.get("message") or "") for element in root.iter())
    assert "\x00" not in text
    assert "\x1b" not in text


def test_json_and_terminal_hold_it(evil: list[Judgement]) -> None:
    assert json.loads(as_json(evil))["registries"][0]["cases"][1]["got"] == EVIL
    shown = terminal(evil)
    assert "alert" in shown
    assert "\x1b" not in shown, "a registry does not command the terminal"
    assert "\x00" not in shown


def test_junit_makes_a_failure_of_a_must_only() -> None:
    [should] = [case for case in CASES if case.name == "blob-get-digest-header"]
    results = (CaseResult(case=should, outcome=Outcome.FAILED, expected="a", got="b"),)
    judgement = Judgement(
        url="http://x", seed=1, versions=tuple(Version), results=results, no_pushes="", left=(), seconds=1.0
    )
    suites = ElementTree.fromstring(as_junit([judgement])).findall("testsuite")
    assert [suite.get("failures") for suite in suites] == ["0", "0", "1"]
    assert [suite.get("skipped") for suite in suites] == ["1", "1", "0"]


def test_what_was_left_is_said() -> None:
    with in_thread(ConformantRegistry(flag("no-deletion"))) as registry:
        result = run(registry.url)
    assert "left there:" in result.output
    assert "(deletion answers 405)" in result.output


def test_what_is_not_judged_is_said() -> None:
    with in_thread(ConformantRegistry(status("upload-put 201", 500))) as registry:
        result = run(registry.url)
    assert result.exit_code == 1
    assert "not judged: " in result.output
    assert "could not be pushed" in result.output


class Page(html.parser.HTMLParser):
    """What a page says, and whether its tags match."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
