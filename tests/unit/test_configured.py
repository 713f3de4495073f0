"""What each upstream is configured with, by its concrete name."""

from __future__ import annotations

import pytest

from mirror.config import Upstream
from mirror.upstream.configured import ByName, Patterns, concrete

VALUES = {"a.pkg.dev": "named", "*.pkg.dev": "pattern", "*.dev:5000": "port", "a*.pkg.dev": "later"}


def test_names_win_over_patterns_and_earlier_patterns_over_later_ones() -> None:
    found = ByName(VALUES)
    asked = ("a.pkg.dev", "ab.pkg.dev", "b.pkg.dev", "x.dev:5000")
    assert [found[name] for name in asked] == ["named", "pattern", "pattern", "port"]
    turned = ByName(dict(reversed(VALUES.items())))
    assert [turned[name] for name in asked] == ["named", "later", "pattern", "port"]


@pytest.mark.parametrize("name", ["pkg.dev", "x.dev", "x.dev:5001", "a.b.pkg.dev", "", "B.pkg.dev", "local"])
def test_nobody_else_has_anything(name: str) -> None:
    found = ByName(VALUES)
    assert name not in found
    assert found.get(name) is None
    with pytest.raises(KeyError):
        found[name]


def test_only_names_are_counted() -> None:
    found = ByName(VALUES)
    assert list(found) == ["a.pkg.dev"]
    assert len(found) == 1


def test_what_is_empty_is_something() -> None:
    found = ByName({"a.pkg.dev": False, "*.pkg.dev": True})
    assert found["a.pkg.dev"] is False
    assert found["b.pkg.dev"] is True


def test_without_patterns_none_is_found() -> None:
    assert Patterns(["docker.io"]).find("docker.io") is None


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://{host}", "https://a.pkg.dev:5000"),
        ("http://mirror.example/{host}", "http://mirror.example/a.pkg.dev:5000"),
        ("https://mirror.example", "https://mirror.example"),
    ],
)
def test_the_url_of_a_pattern_says_where_each_is(url: str, found: str) -> None:
    settings = Upstream(url=url, retries=7)
    assert concrete(settings, "a.pkg.dev:5000") == Upstream(url=found, retries=7)
