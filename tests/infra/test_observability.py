"""Alerts and dashboards: promtool's own checks, expressions that parse, metrics that rayvec or Ray do export."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed; `make setup` installs it")

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "infra" / "prometheus"
BOARDS = sorted((ROOT / "infra" / "grafana").glob("*.json"))
#: What Grafana puts in for its own variables.
VARIABLES = {"$__rate_interval": "5m", "$__interval": "1m"}
SUFFIXES = ("_total", "_bucket", "_sum", "_count")


def promtool(*arguments: str) -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    result = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the rules, the panels and the variables, by where it stands."""
    for rule in rules():
        yield f"rules.yml {rule['alert']}", rule["expr"]
    for file in BOARDS:
        board = json.loads(file.read_text(encoding="utf-8"))
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{file.name} {panel['title']}", target["expr"]
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                (metric,) = re.findall(r"^label_values\((\w+), \w+\)$", variable["query"]["query"])
                yield f"{file.name} ${variable['name']}", metric


EXPRESSIONS = list(expressions())


def plain(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\w+", "x", expression)


def metrics(node: Any) -> Iterator[str]:
    """The metrics that an expression reads."""
    if isinstance(node, promql.VectorSelector):
        yield node.name or next(m.value for m in node.matchers.matchers if m.name == "__name__")
    for name in ("vector_selector", "expr", "lhs", "rhs", "vs", "arg"):
        child = getattr(node, name, None)
        if child is not None and not callable(child):
            yield from metrics(child)
    for child in getattr(node, "args", None) or []:
        yield from metrics(child)


@cache
def exported() -> frozenset[str]:
    """Names that our gateway and our embedding runs export, and the names in Ray's own dashboards."""
    import ray.dashboard.modules.metrics.dashboards as dashboards

    from rayvec.serving.batcher import Batched
    from rayvec.serving.metrics import Metrics
    from rayvec.training.metrics import GAUGES

    gateway = Metrics()
    gateway.answered("/v1/search", 200, 0.1)
    gateway.stage("search", 0.1)
    gateway.encoded(1)
    gateway.cached(1, 1)
    gateway.in_flight(1)
    gateway.index("v1")
    gateway.looked(0.9, refused=False)
    gateway.incomplete()
    gateway.wrote({"added": 1}, {"total": 0.1})
    gateway.batched(Batched(items=1, tokens=1, waited_seconds=0.1))
    ours = set(re.findall(r"(?m)^(rayvec_\w+)", gateway.render().decode()))
    source = (ROOT / "platform" / "rayvec" / "encoding" / "metrics.py").read_text(encoding="utf-8")
    runs = {f"ray_rayvec_embed_{name}_total" for name in re.findall(r'_counter\("(\w+)"', source)}
    runs |= {f"ray_{name}" for name in re.findall(r'Gauge\("(\w+)"', source)}
    runs |= {f"ray_rayvec_train_{name}" for name in GAUGES}
    panels_of_ray = "".join(file.read_text() for file in Path(dashboards.__path__[0]).glob("*.py"))
    return frozenset(ours | runs | set(re.findall(r"\bray_\w+", panels_of_ray)) | {"up"})


@cache
def named_in_ray(name: str) -> bool:
    """Whether Ray's Python or its compiled parts hold this name of a metric."""
    import ray

    folder = Path(ray.__path__[0])
    files = itertools.chain(
        (folder / "serve").rglob("*.py"), (folder / "data").rglob("*.py"), (folder / "train").rglob("*.py"),
        (folder / "core" / "src" / "ray").glob("*/*"), [folder / "_raylet.so"],
    )  # fmt: skip
    return any(name.encode() in file.read_bytes() for file in files if file.is_file())


def test_there_are_the_four_dashboards() -> None:
    assert [file.stem for file in BOARDS] == ["embedding", "index", "serving", "training"]


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_an_expression_parses_and_reads_what_is_exported(where: str, expression: str) -> None:
    read = set(metrics(promql.parse(plain(expression))))
    assert read, f"{where} reads nothing"
    for name in read - exported():
        assert name.startswith("ray_"), f"{where}: nothing exports {name}"
        base = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
        assert named_in_ray(base.removeprefix("ray_")), f"{where}: Ray has no {name}"


def test_everything_that_is_exported_is_drawn_or_watched() -> None:
    read = {name for _, expression in EXPRESSIONS for name in metrics(promql.parse(plain(expression)))}
    read = {re.sub("_(total|bucket|sum|count)$", "", name) for name in read}
    ours = {re.sub("_(total|bucket|sum|count|created)$", "", name) for name in exported() if "rayvec_" in name}
    assert ours - read == set()


def test_a_name_that_nobody_exports_is_found() -> None:
    (name,) = metrics(promql.parse("sum(rate(ray_no_such_metric_total[5m]))"))
    assert name not in exported() and not named_in_ray("no_such_metric")


@pytest.mark.parametrize("file", BOARDS, ids=lambda file: file.stem)
def test_a_board_is_whole(file: Path) -> None:
    board = json.loads(file.read_text(encoding="utf-8"))
    assert board["uid"] == f"rayvec-{file.stem}" and board["title"] == f"rayvec: {file.stem}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    names = {variable["name"] for variable in board["templating"]["list"]}
    text = json.dumps(board["panels"])
    used = set(re.findall(r"\$\{?(\w+)", text)) - {name.removeprefix("$") for name in VARIABLES}
    assert used <= names
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells


def test_promtool_takes_the_rules_and_its_tests_of_them_pass() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(PROMETHEUS / "rules.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(PROMETHEUS / "rules.test.yml"))


def test_every_alert_is_tested_and_explained() -> None:
    tests = yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in rules()}
    guide = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if rule["alert"] not in guide] == []


@pytest.mark.parametrize("name", ["prometheus.yml", "kubernetes.yml"])
def test_promtool_takes_the_scrapes(name: str, tmp_path: Path) -> None:
    config = yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8"))
    for scrape in config["scrape_configs"]:
        # Debian's promtool is built without Kubernetes.
        for discovery in scrape.pop("kubernetes_sd_configs", []):
            assert discovery == {"role": "pod", "namespaces": {"names": ["rayvec"]}}
            scrape["static_configs"] = [{"targets": ["127.0.0.1:1"]}]
    (tmp_path / name).write_text(yaml.safe_dump(config), encoding="utf-8")
    promtool("check", "config", "--syntax-only", str(tmp_path / name))
