"""What is shipped for those who watch it says what there is: metrics documented, shown, and alerted on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.metrics import Metrics, prepare
from tests.catalogue import CONFIG, declared, documented
from tests.promql import used

ADDED = {"job", "instance", "le"}
"""Labels that scraping adds, or a histogram."""
NOT_SHOWN: set[str] = set()
"""Metrics that are on no panel, and why: there are none."""
ALERTS: list[dict[str, Any]] = yaml.safe_load((CONFIG / "alerts.yaml").read_text())["groups"][0]["rules"]
DASHBOARD: dict[str, Any] = json.loads((CONFIG / "grafana.json").read_text())
SEVERITIES = {"warning", "critical"}
EVERY_ALERT = Path(__file__).with_name("alerts.test.yaml")


@pytest.fixture
def promtool() -> None:
    """Skip where it is missing; where everything has to run, that is a failure."""
    if shutil.which("promtool") is None:
        reason = "promtool (Debian: prometheus) is not here"
        if os.environ.get("CI") or os.environ.get("MIRROR_REQUIRE_CLIENTS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def family_of(name: str, kinds: dict[str, str]) -> str:
    """Return the metric that a name of an expression is of."""
    if name in kinds:
        return name
    short = re.sub(r"_(bucket|sum|count)$", "", name)
    assert kinds.get(short) == "histogram", f"there is no metric {name}"
    return short


def check_expression(expression: str) -> set[str]:
    """Make sure that there is everything an expression uses; return the metrics."""
    rows = documented()
    kinds = {name: row.kind for name, row in rows.items()}
    kinds["up"] = "gauge"  # Prometheus' own
    found = used(expression)
    available = set(ADDED)
    for name, labels in found.selected.items():
        family = family_of(name, kinds)
        own = set(rows[family].labels) if family in rows else set()
        assert labels <= own | ADDED, f"{name} has no {labels - own}"
        available |= own
        counted = re.search(rf"(rate|increase|changes)\({name}\b", expression)
        grows = kinds[family] == "counter" or (kinds[family] == "histogram" and name != family)
        assert bool(counted) == grows, f"{name} is a {kinds[family]}: {expression}"
    assert found.grouped <= available, f"{found.grouped - available}: {expression}"
    return {family_of(name, kinds) for name in found.selected}


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", ())


def expressions() -> list[tuple[str, str]]:
    """Return the expressions of the dashboard, with where they are."""
    found = [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in panels()
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
    return found + [(one["name"], one["expr"]) for one in DASHBOARD["annotations"]["list"]]


# ---- the document ----


def test_every_metric_is_documented_as_it_is_declared(tmp_path: Path) -> None:
    found = {one.name: one for one in declared(tmp_path)}
    rows = documented()
    assert rows.keys() == found.keys()
    for name, one in found.items():
        row = rows[name]
        assert (row.kind, row.labels, row.text) == (one.kind, one.labels, one.text)


def test_every_label_is_explained() -> None:
    text = (CONFIG / "METRICS.md").read_text().partition("## Labels")[2]
    explained = set(re.findall(r"^\| (\w+) \|", text, re.MULTILINE)) - {"label"}
    labels = {label for row in documented().values() for label in row.labels}
    assert explained | {"version", "python"} == labels


# ---- the dashboard ----


def test_the_dashboard_can_be_imported() -> None:
    """By Grafana 9 and later: with a data source to choose, and nothing that belongs to one installation."""
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert set(variables) == {"datasource", "job", "instance"}
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids) > 40
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_the_dashboard_has_a_row_for_each_matter() -> None:
    rows = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert rows == [
        "At a glance",
        "Traffic",
        "What is kept",
        "How long it takes",
        "Downloads",
        "Upstreams",
        "The disk",
        "The service",
    ]


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=[where for where, _ in expressions()])
def test_a_panel_uses_what_there_is(where: str, expression: str) -> None:
    check_expression(expression)
    assert 'job=~"$job"' in expression, "of the chosen services alone"
    assert expression.count("mirror_") == expression.count('instance=~"$instance"')


def test_legends_name_labels_that_are_left() -> None:
    for panel in panels():
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            found = used(target["expr"])
            if found.grouped:
                assert named <= found.grouped, target
            elif named:
                assert not re.match(r"(sum|min|max|count)\(", target["expr"]), target
                rows = documented()
                assert all(named <= set(rows[name].labels) | {"instance"} for name in found.selected), target


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for _, expression in expressions() for name in check_expression(expression)}
    assert documented().keys() - shown == NOT_SHOWN


# ---- the alerts ----


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_uses_what_there_is_and_says_what_to_do(rule: dict[str, Any]) -> None:
    check_expression(rule["expr"])
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(rule["annotations"]) == {"summary", "description"}
    assert re.fullmatch(r"Mirror[A-Za-z]+", rule["alert"])
    assert rule["annotations"]["summary"].endswith(".")
    assert len(rule["annotations"]["description"]) > 80
    rows, found = documented(), used(rule["expr"])
    own = found.grouped or {label for name in found.selected if name in rows for label in rows[name].labels}
    text = rule["annotations"]["summary"] + rule["annotations"]["description"]
    assert set(re.findall(r"\$labels\.(\w+)", text)) <= own | {"instance"}


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert len(set(names)) == len(names)


def test_every_alert_has_a_case_where_it_fires() -> None:
    cases = yaml.safe_load(EVERY_ALERT.read_text())["tests"]
    fired = {one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]}
    quiet = {one["alertname"] for case in cases for one in case["alert_rule_test"] if not one.get("exp_alerts")}
    assert fired == quiet == {rule["alert"] for rule in ALERTS}


# ---- by Prometheus' own tool ----


@pytest.mark.usefixtures("promtool")
def test_promtool_takes_the_alerts(tmp_path: Path) -> None:
    """They fire when they should, and do not when they should not."""
    check(["check", "rules", str(CONFIG / "alerts.yaml")])
    bare = [{key: rule[key] for key in rule if key != "annotations"} for rule in ALERTS]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "mirror", "rules": bare}]}))
    case = yaml.safe_load(EVERY_ALERT.read_text()) | {"rule_files": ["alerts.yaml"]}
    (tmp_path / "alerts.test.yaml").write_text(yaml.safe_dump(case, sort_keys=False))
    check(["test", "rules", str(tmp_path / "alerts.test.yaml")])


@pytest.mark.usefixtures("promtool")
def test_promtool_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{at}", "expr": expression.replace("$__rate_interval", "5m")}
        for at, (_, expression) in enumerate(expressions())
    ]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    check(["check", "rules", str(tmp_path / "panels.yaml")])


@pytest.mark.usefixtures("promtool")
def test_promtool_takes_the_metrics(tmp_path: Path) -> None:
    prepare(tmp_path / "metrics", 1)
    metrics = Metrics(tmp_path / "metrics", 0)
    metrics.requests.labels("GET", "blobs", "200").inc()
    metrics.request_seconds.labels("GET", "blobs").observe(0.1)
    check(["check", "metrics"], metrics.render())
    metrics.close()


def check(command: list[str], given: bytes | None = None) -> None:
    done = subprocess.run(["promtool", *command], input=given, capture_output=True, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
