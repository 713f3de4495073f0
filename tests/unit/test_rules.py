"""What may be pulled, as a table: rules, what is asked, and what is said against it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mirror.config import Upstream
from mirror.oci.errors import Denied
from mirror.oci.names import Digest, Repository, RepositoryName, Tag, parse_digest
from mirror.upstream.rules import Rules

DIGEST = parse_digest("sha256:" + "a" * 64)


def rules_of(name: str = "up.example", **rules: Any) -> Rules:
    return Rules({name: Upstream(url="https://up.example", **rules), "free.example": Upstream(url="https://x.example")})


def repository(name: str, source: str | None = "up.example") -> Repository:
    return Repository(source, RepositoryName(name))


def may(rules: Rules, name: str, target: Tag | Digest | None = None, source: str = "up.example") -> bool:
    try:
        rules.check(repository(name, source), target)
    except Denied:
        return False
    return True


def seen(rules: Rules, name: str, source: str = "up.example") -> str:
    """Say what may be pulled of a repository: by tag ``1`` or ``latest``, by digest, blobs and lists."""
    asked = {"1": Tag("1"), "latest": Tag("latest"), "digest": DIGEST, "rest": None}
    allowed = [what for what, target in asked.items() if may(rules, name, target, source)]
    for tag in ("1", "latest"):
        assert rules.visible(repository(name, source), Tag(tag)) == (tag in allowed)
    return " ".join(allowed)


ALL = "1 latest digest rest"


@pytest.mark.parametrize(
    ("rules", "name", "allowed"),
    [
        ({}, "team/app", ALL),
        # deny
        ({"deny": ["team/app"]}, "team/app", ""),
        ({"deny": ["team/app"]}, "team/app2", ALL),
        ({"deny": ["team/app"]}, "team/app/x", ALL),
        ({"deny": ["team/*"]}, "team/app", ""),
        ({"deny": ["team/*"]}, "team/app/x", ALL),
        ({"deny": ["team/**"]}, "team/app/x", ""),
        ({"deny": ["**"]}, "x", ""),
        ({"deny": ["team/app:latest"]}, "team/app", "1 digest rest"),
        ({"deny": ["team/app:LATEST"]}, "team/app", ALL),
        ({"deny": ["team/app:l*t"]}, "team/app", "1 digest rest"),
        ({"deny": ["team/app:*"]}, "team/app", "digest rest"),
        ({"deny": ["team/app:"  "lat"]}, "team/app", ALL),
        ({"deny": ["x", "team/**:1", "**:latest"]}, "team/app", "digest rest"),
        # allow
        ({"allow": []}, "team/app", ""),
        ({"allow": ["team/app"]}, "team/app", ALL),
        ({"allow": ["team/app"]}, "team/other", ""),
        ({"allow": ["x", "team/**"]}, "team/app/x", ALL),
        ({"allow": ["team/app:1"]}, "team/app", "1 digest rest"),
        ({"allow": ["team/app:1", "team/*:latest"]}, "team/app", ALL),
        ({"allow": ["team/app:1"]}, "team/other", ""),
        ({"allow": ["other/app:latest", "team/app:1"]}, "team/app", "1 digest rest"),
        # both
        ({"allow": ["team/**"], "deny": ["team/secret"]}, "team/secret", ""),
        ({"allow": ["team/secret"], "deny": ["team/**"]}, "team/secret", ""),
        ({"allow": ["team/app:1"], "deny": ["team/app:1"]}, "team/app", "digest rest"),
        ({"allow": ["team/**"], "deny": ["team/**:latest"]}, "team/app", "1 digest rest"),
        ({"allow": ["team/app"], "deny": ["other/**"]}, "team/app", ALL),
    ],
    ids=str,
)  # fmt: skip
def test_a_rule_decides(rules: dict[str, Any], name: str, allowed: str) -> None:
    found = rules_of(**rules)
    assert seen(found, name) == allowed
    assert seen(found, name, "free.example") == ALL, "of another upstream"
    assert may(found, name, source="unheard.example")
    found.check(repository(name, None), Tag("1"))  # our own


@pytest.mark.parametrize(
    ("rule", "name", "covered"),
    [
        ("nginx", "library/nginx", True),
        ("nginx:latest", "library/nginx", True),
        ("*", "library/nginx", True),
        ("ng*", "library/nginx", True),
        ("library/nginx", "library/nginx", True),
        ("library/*", "library/nginx", True),
        ("nginx", "team/nginx", False),
        ("nginx", "library/nginx/x", False),
        ("x/*", "library/x/y", False),
        ("*", "team/nginx", False),
    ],
)
@pytest.mark.parametrize("source", ["docker.io", "hub", "*.docker.io", "up.example"])
def test_official_images_have_two_names(rule: str, name: str, covered: bool, source: str) -> None:
    """``nginx`` of Docker Hub is ``library/nginx``: a rule means it by either. Elsewhere it is another repository."""
    names = ["docker.io"] if source == "hub" else []
    settings = Upstream(url="https://x.example", names=names, deny=[rule])
    asked = source.replace("*", "index")
    expected = covered and (source != "up.example" or rule.startswith("library/"))
    assert may(Rules({source: settings}), name, Tag("latest"), asked) is not expected


def test_the_rules_of_a_pattern_are_those_of_all_it_matches() -> None:
    rules = Rules(
        {
            "free.pkg.dev": Upstream(url="https://free.pkg.dev"),
            "*.pkg.dev": Upstream(url="https://{host}", deny=["team/secret"]),
        }
    )
    assert not may(rules, "team/secret", source="a.pkg.dev")
    assert may(rules, "team/app", source="a.pkg.dev")
    assert may(rules, "team/secret", source="free.pkg.dev"), "it is an upstream by name, with no rules"


@pytest.mark.parametrize(
    ("name", "rules", "asked", "said"),
    [
        (
            "docker.io", {"deny": ["library/nginx:latest"]}, ("library/nginx", Tag("latest")),
            "docker.io/library/nginx:latest may not be pulled: "
            'upstreams.docker.io.deny has "library/nginx:latest"',
        ),
        (
            "docker.io", {"allow": ["library/alpine", "team/**"]}, ("library/nginx", None),
            "docker.io/library/nginx may not be pulled: "
            "nothing in upstreams.docker.io.allow matches (library/alpine, team/**)",
        ),
        (
            "up.example", {"deny": ["x", "team/**"]}, ("team/app", DIGEST),
            f'up.example/team/app@{DIGEST} may not be pulled: upstreams.up.example.deny has "team/**"',
        ),
        (
            "up.example", {"allow": []}, ("x", None),
            "up.example/x may not be pulled: nothing in upstreams.up.example.allow matches (it is empty)",
        ),
        (
            "up.example", {"allow": [f"r{n}" for n in range(13)]}, ("x", None),
            "up.example/x may not be pulled: nothing in upstreams.up.example.allow matches "
            "(r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, and 3 more)",
        ),
        (
            "*.pkg.dev", {"deny": ["x"]}, ("x", None),
            'a.pkg.dev/x may not be pulled: upstreams.*.pkg.dev.deny has "x"',
        ),
    ],
)  # fmt: skip
def test_an_error_says_by_which_rule(name: str, rules: Any, asked: Any, said: str) -> None:
    wanted, target = asked
    with pytest.raises(Denied) as caught:
        rules_of(name, **rules).check(repository(wanted, name.replace("*", "a")), target)
    assert caught.value.message == said
    assert caught.value.detail == {"name": said.partition(" ")[0].partition("@")[0].removesuffix(":latest")}


def test_no_name_and_no_tag_takes_long() -> None:
    rules = rules_of(allow=["a*" * 60 + "b", "**/*a*a*a*a*a*b", "**:" + "a*" * 30 + "b"])
    began = time.process_time()
    assert not may(rules, "a" * 255, Tag("a" * 128))
    assert time.process_time() - began < 5
