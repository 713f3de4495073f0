"""Globs of names: what they match, held against the plainest way to find out; and that they cannot be made slow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror.upstream.globs import compile_glob


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("a/b", ["a/b"], ["a", "a/b/c", "b", "xa/b", "a/bx", "a/b/", "A/b"]),
        ("a.b", ["a.b"], ["axb"]),
        ("a/*", ["a/b", "a/bc"], ["a", "a/b/c", "b/a/b"]),
        ("*", ["a", "abc"], ["a/b"]),
        ("*/*", ["a/b"], ["a", "a/b/c"]),
        ("a-*", ["a-", "a-b"], ["a", "a-b/c", "xa-b"]),
        ("*-a", ["-a", "b-a", "b-a-a"], ["a", "b-ab", "b/c-a"]),
        ("a*b*c", ["abc", "axbxc", "abcbc"], ["ab", "acb", "axbxcx", "ab/c"]),
        ("a*a", ["aa", "aba"], ["a", "ab"]),
        ("**", ["a", "a/b", "a/b/c"], [""]),
        ("a/**", ["a/b", "a/b/c"], ["a", "ab/c", "x/a/b"]),
        ("**/a", ["a", "b/a", "b/c/a"], ["ab", "b/ab", "a/b"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/b/b"], ["a", "a/xb", "a/b/x"]),
        ("**/a/**", ["a/b", "x/a/b", "a/a"], ["a", "x/a"]),
        ("a/**/b*/**/c", ["a/b/c", "a/x/b1/y/c", "a/b/b/c/c"], ["a/c", "a/b", "a/x/c/b"]),
        ("a/**/b/**/c/**", ["a/b/c/x", "a/b/c/b/x"], ["a/b/c", "a/c/b/x"]),
        ("**/**", ["a", "a/b"], [""]),
        ("a/**/**/b", ["a/b", "a/x/y/b"], ["a"]),
        ("a/**/**", ["a/b", "a/b/c"], ["a"]),
        ("3.*", ["3.", "3.19"], ["3", "13.1", "v3.1"]),
    ],
)
def test_a_glob_matches(glob: str, matching: list[str], others: list[str]) -> None:
    found = compile_glob(glob)
    assert [name for name in matching if not found.fullmatch(name)] == []
    assert [name for name in others if found.fullmatch(name)] == []


def test_components_may_be_separated_by_anything() -> None:
    host = compile_glob("*-docker.*.dev", ".")
    assert host.fullmatch("eu-docker.pkg.dev")
    assert host.fullmatch("eu-docker.p/k.dev")
    assert not host.fullmatch("eu-docker.pkg.x.dev")
    assert not host.fullmatch("eu-docker-pkg-dev")


# ---- the plainest way ----


def fits(glob: Sequence[str], name: Sequence[str]) -> bool:
    """Say whether components match, trying every place of every star."""
    if not glob:
        return not name
    first, rest = glob[0], glob[1:]
    if first == "**":
        return any(fits(rest, name[at:]) for at in range(0 if rest else 1, len(name) + 1))
    return bool(name) and component_fits(first, name[0]) and fits(rest, name[1:])


def component_fits(glob: str, part: str) -> bool:
    if not glob:
        return not part
    if glob[0] == "*":
        return any(component_fits(glob[1:], part[at:]) for at in range(len(part) + 1))
    return bool(part) and glob[0] == part[0] and component_fits(glob[1:], part[1:])


_components = st.text("ab*", min_size=1, max_size=5).filter(lambda part: "**" not in part)


@given(
    st.lists(_components | st.just("**"), min_size=1, max_size=5).filter(
        lambda glob: ("**", "**") not in pairwise(glob)
    ),
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5),
)
@example(["**", "a*", "b", "**", "a"], ["a", "b", "ab", "b", "a"])
@example(["*ab*ab"], ["abab"])
def test_it_matches_what_trying_everything_matches(glob: list[str], name: list[str]) -> None:
    assert bool(compile_glob("/".join(glob)).fullmatch("/".join(name))) == fits(glob, name)


SLOW = [
    ("a*" * 20 + "b", "a" * 255),
    ("*a" * 20 + "*b", "a" * 255),
    ("**/a/" * 20 + "b", "a/" * 127 + "a"),
    ("**/*a*a*a*a/" * 10 + "b", "aaaaaa/" * 36 + "a"),
    ("**/" + "*a" * 20 + "*b", "a" * 8000),
    ("a*" * 60 + "b", "a" * 8000),
]


@pytest.mark.parametrize(("glob", "name"), SLOW, ids=[glob[:16] for glob, _ in SLOW])
def test_no_name_takes_long(glob: str, name: str) -> None:
    """Going back over the places of all these stars would take longer than anybody has."""
    found = compile_glob(glob)
    began = time.process_time()
    assert not found.fullmatch(name)
    assert time.process_time() - began < 5
