"""Rules and routes, judged by the programs that will load them."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.template import Templar

from lib.debian13 import program
from lib.fleet import REPOSITORY
from rules.environments import ENVIRONMENTS, Environment, copy_inventories, load_plugin

RULES = REPOSITORY / "monitoring" / "rules"
FILES = sorted(RULES.glob("*.yml"))


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """promtool of the hosts' Debian."""
    line = [program("promtool", "promtool"), *arguments]
    return subprocess.run(line, cwd=RULES / "tests", capture_output=True, text=True, check=False)


def test_rules_are_understood() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(file.name for file in (RULES / "tests").glob("*.yml")))
def test_rules_do_what_their_tests_say(file: str) -> None:
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


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
