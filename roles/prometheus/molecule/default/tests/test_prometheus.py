"""Prometheus with a gateway that demands a certificate."""

import json
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from lib.scenario import play
from lib.waiting import wait_for

API = "http://127.0.0.1:9090/api/v1"
FETCH = "import sys, urllib.request as web; print(web.urlopen(sys.argv[1], timeout=5).read().decode())"


def ask(host: Host, question: str) -> Any:
    """Data of an answer of Prometheus."""
    answer = host.run("python3 -c %s %s", FETCH, f"{API}/{question}")
    return json.loads(answer.stdout)["data"] if answer.rc == 0 else {}


def targets(host: Host) -> dict[str, str]:
    """Health of each target by instance."""
    return {t["labels"]["instance"]: t["health"] for t in ask(host, "targets").get("activeTargets", [])}


def started(host: Host) -> str:
    return str(host.run("systemctl show -p ActiveEnterTimestampMonotonic prometheus").stdout)


def test_it_scrapes_through_the_gateway_with_the_hosts_certificate(host: Host) -> None:
    wait_for("both targets were asked", lambda: targets(host) == {"prom1": "up", "prom1:2": "down"}, timeout_s=30)
    (series,) = ask(host, "query?query=toy_height")["result"]
    assert series["metric"] == {"__name__": "toy_height", "host": "prom1", "instance": "prom1", "job": "toy"}


def test_what_nobody_asks_for_is_not_kept(host: Host) -> None:
    wait_for("a scrape", lambda: ask(host, "query?query=toy_height")["result"], timeout_s=30)
    assert ask(host, "query?query=toy_noise_total")["result"] == []


def test_a_rule_fires_with_its_own_braces_filled_in(host: Host) -> None:
    def firing() -> list[Any]:
        return [a for a in ask(host, "alerts").get("alerts", []) if a["state"] == "firing"]

    wait_for("the alert", firing, timeout_s=30)
    assert firing()[0]["annotations"]["summary"] == "prom1 is 3 high"


def test_new_rules_are_taken_over_without_a_restart(host: Host, tmp_path: Path) -> None:
    before = started(host)
    (tmp_path / "more.yml").write_text(
        "groups: [{name: more, rules: [{record: toy:height:double, expr: toy_height * 2}]}]"
    )
    play(variables={"prometheus_rules": str(tmp_path)})
    wait_for("the new rule's result", lambda: ask(host, "query?query=toy:height:double").get("result"), timeout_s=30)
    play()
    wait_for("the old rules again", lambda: ask(host, "rules")["groups"][0]["name"] == "toy", timeout_s=30)
    assert started(host) == before


def test_a_rule_with_a_typo_is_refused_and_the_old_rules_go_on(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("groups: [{name: bad, rules: [{alert: Bad, expr: 'toy_height >'}]}]")
    with pytest.raises(AssertionError, match=r"arches\.yml"):
        play(variables={"prometheus_rules": str(tmp_path)})
    assert [group["name"] for group in ask(host, "rules")["groups"]] == ["toy"]
    assert host.service("prometheus").is_running


def test_it_listens_on_loopback_only(host: Host) -> None:
    listening = [line for line in host.run("ss -Hltnp").stdout.splitlines() if '"prometheus"' in line]
    assert listening
    assert all("127.0.0.1:9090" in line for line in listening), listening
