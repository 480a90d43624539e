"""Rules and routes, judged by the programs that will load them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.template import Templar

from lib.debian13 import program
from lib.fleet import REPOSITORY
from rules.environments import ENVIRONMENTS, Environment, copy_inventories, load_plugin

RULES = REPOSITORY / "monitoring" / "rules"
FILES = sorted(RULES.glob("*.yml"))
ALERTS = sorted(
    rule["alert"]
    for file in FILES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """promtool of the hosts' Debian."""
    line = [program("promtool", "promtool"), *arguments]
    return subprocess.run(line, cwd=RULES / "tests", capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def tested() -> dict[str, list[bool]]:
    """Whether each alert was expected to fire, for every time that a unit test asks."""
    found: dict[str, list[bool]] = {}
    for file in sorted((RULES / "tests").glob("*.yml")):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for asked in case.get("alert_rule_test", []):
                found.setdefault(asked["alertname"], []).append(bool(asked.get("exp_alerts")))
    return found


def test_rules_are_understood() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", [file.name for file in FILES])
def test_rules_do_what_their_tests_say(file: str) -> None:
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_seen_firing_and_not_firing(alert: str, tested: dict[str, list[bool]]) -> None:
    # What always fires has no time at which it does not.
    wanted = {True} if alert == "Watchdog" else {True, False}
    assert set(tested.get(alert, [])) >= wanted, f"monitoring/rules/tests: {alert} was seen {tested.get(alert)}"


def test_a_rule_with_a_typo_is_refused_with_its_place(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("groups: [{name: a, rules: [{alert: A, expr: 'sum(rate(x[5m])'}]}]")
    done = promtool("check", "rules", bad)
    assert done.returncode != 0
    assert "bad.yml" in done.stderr
    assert "parse error" in done.stderr


@pytest.fixture(scope="module")
def inventories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of all inventories with dummy secrets."""
    return copy_inventories(tmp_path_factory.mktemp("routes"))


def rendered(environment: Environment, role: str, template: str) -> Iterator[str]:
    """A role's template on every host that has the role."""
    action = load_plugin("action", "template_tree")
    source = REPOSITORY / "roles" / role / "templates" / template
    for host in environment.hosts("ops"):
        variables: dict[str, Any] = environment.variables(role, host, {})
        templar = Templar(loader=environment.loader, variables=variables)
        yield action.render(templar, environment.loader, str(source), template, variables, [str(source.parent)])


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name != "dev"])
def test_routes_are_understood(name: str, inventories: Path, tmp_path: Path) -> None:
    for content in rendered(Environment(inventories / name), "alertmanager", "etc/prometheus/alertmanager.yml.j2"):
        # The one secret that must look like an address.
        (tmp_path / "alertmanager.yml").write_text(content.replace('api_url: "dummy', 'api_url: "https://dummy'))
        amtool = program("prometheus-alertmanager", "amtool")
        checked = subprocess.run(
            [amtool, "check-config", tmp_path / "alertmanager.yml"], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr
        for labels, receiver in {
            ("severity=page", "alertname=HostDown"): "page",
            ("severity=ticket", "alertname=UnitFailed"): "ticket",
            ("severity=none", "alertname=Watchdog"): "watchdog",
            ("severity=none", "alertname=Other"): "nobody",
        }.items():
            line = [amtool, "config", "routes", "test", f"--config.file={tmp_path / 'alertmanager.yml'}", *labels]
            routed = subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
            assert routed == receiver, labels


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name != "dev"])
def test_targets_are_understood(name: str, inventories: Path, tmp_path: Path) -> None:
    for content in rendered(Environment(inventories / name), "prometheus", "etc/prometheus/prometheus.yml.j2"):
        (tmp_path / "prometheus.yml").write_text(content)
        done = promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yml")
        assert done.returncode == 0, done.stdout + done.stderr
