"""The drills without a fleet: lowered rules, waves, and that everything is undone whatever happens."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from drills import alerts
from lib import drill as library
from lib.drill import (
    ALONE,
    Drill,
    Lowered,
    lowered_rule,
    nothing,
    notice_s,
    rule_file,
    rules_of,
    run_wave,
    seconds,
    waves,
)
from lib.fleet import REPOSITORY, Fleet
from lib.webhook import Notification, Webhook

RULES = """
groups:
  - name: a
    rules:
      - {record: a:b, expr: b}
      - alert: A
        expr: rate(a[5m]) > 0.8 * b and c >= 10 and d < 14 * 86400
        for: 1h30m
        labels: {severity: ticket, subject: a}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "monitoring/rules").mkdir(parents=True)
    (tmp_path / "monitoring/rules/a.yml").write_text(RULES)
    return tmp_path


def drill(*uses: str, **more: Any) -> Drill:
    return Drill(nothing, nothing, uses=frozenset(uses), **more)


@pytest.mark.parametrize(("text", "expected"), [("1h30m", 5400), ("20s", 20), (0, 0), ("0", 0), ("1d", 86400)])
def test_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "20", "1 m", "five", "-1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        seconds(text)


@pytest.mark.parametrize(
    ("lowered", "expression"),
    [
        (Lowered({">": "> -1"}), "rate(a[5m]) > -1 * b and c > -1 and d < 14 * 86400"),
        (Lowered({"<": "< 1e18"}), "rate(a[5m]) > 0.8 * b and c >= 10 and d < 1e18"),
        (Lowered(window="40s"), "rate(a[40s]) > 0.8 * b and c >= 10 and d < 14 * 86400"),
    ],
)
def test_a_lowered_rule_differs_where_it_is_told_to(tree: Path, lowered: Lowered, expression: str) -> None:
    rule = lowered_rule(rules_of("A", tree)[0], lowered)
    assert rule["expr"] == expression
    assert rule["for"] == "10s"
    assert rule["labels"] == {"severity": "ticket", "subject": "a", "drill": "lowered"}


@pytest.mark.parametrize("lowered", [Lowered({"!=": "!= 1"}), Lowered({"==": "== 1"})])
def test_a_rule_without_the_comparison_is_an_error(tree: Path, lowered: Lowered) -> None:
    with pytest.raises(ValueError, match="A: no comparison"):
        lowered_rule(rules_of("A", tree)[0], lowered)


def test_a_rule_without_a_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="A: no window"):
        lowered_rule({"alert": "A", "expr": "a > 1"}, Lowered(window="1m"))


def test_label_matchers_are_no_comparisons() -> None:
    rule = {"alert": "A", "expr": 'up{job!="a", code=~"5.."} == 0'}
    assert lowered_rule(rule, Lowered({"==": "== 1"}))["expr"] == 'up{job!="a", code=~"5.."} == 1'


def test_the_rule_file_loads_copies_and_extras(tree: Path) -> None:
    table = {"A": drill(lowered=Lowered({"<": "< 5"}, always=True)), "B": drill(extra=({"record": "x", "expr": "y"},))}
    rules = yaml.safe_load(rule_file(table, root=tree))["groups"][0]["rules"]
    assert [rule.get("alert", rule.get("record")) for rule in rules] == ["A", "x"]


def test_an_ended_drill_makes_its_rules_false_and_keeps_their_names(tree: Path) -> None:
    extra = ({"record": "x", "expr": "y"}, {"alert": "E", "expr": "vector(1)"})
    table = {"A": drill(lowered=Lowered({"<": "< 5"}, always=True), extra=extra)}
    rules = yaml.safe_load(rule_file(table, over=True, root=tree))["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == ["A", "E"]
    assert all(rule["expr"].endswith(library.NEVER) for rule in rules)


def test_a_lowered_rule_with_a_real_cause_ends_with_it(tree: Path) -> None:
    table = {"A": drill(lowered=Lowered({"<": "< 5"}))}
    assert rule_file(table, over=True, root=tree) == rule_file(table, root=tree)


def test_drills_without_rules_need_no_file(tree: Path) -> None:
    assert rule_file({"A": drill()}, root=tree) == ""


def test_an_unknown_alert_cannot_be_lowered(tree: Path) -> None:
    with pytest.raises(ValueError, match="B: no rule"):
        rule_file({"B": drill(lowered=Lowered())}, root=tree)


def test_a_notice_has_the_rules_for_and_45_seconds(tree: Path) -> None:
    assert notice_s("A", drill(), tree) == 5400 + 45
    assert notice_s("A", drill(lowered=Lowered(for_s=10), begins_s=20), tree) == 20 + 10 + 45


def test_drills_that_disturb_each_other_are_apart() -> None:
    table = {"A": drill("x"), "B": drill("y"), "C": drill("x", "z"), "D": drill(), "E": drill(ALONE), "F": drill("y")}
    assert waves(table) == [["A", "B", "D"], ["C", "F"], ["E"]]


# The runner, with a fleet that only remembers.


class Recorder(Fleet):
    """A fleet on which nothing happens."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.groups = {"ops": ["ops1"], "all": ["ops1"]}
        self.services = {"prometheus": {"hosts": "ops"}}

    def ssh(self, host: str, command: str, *_: Any, **__: Any) -> Any:
        """Remember the command."""
        self.commands.append(command)


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Webhook:
    monkeypatch.setattr(library, "rules_of", lambda *_: [{"alert": "A", "expr": "a > 1", "labels": {}}])
    monkeypatch.setattr(library, "NOTICE_S", 1)
    return Webhook("http://127.0.0.1:0/")


def say(webhook: Webhook, status: str, path: str = "/page", **labels: str) -> None:
    now = time.time()
    labels = {"alertname": "A", "severity": "page", **labels}
    webhook.record([Notification(now, path, status, "f", now, labels)])


def act(fleet: Fleet) -> None:
    """Nothing, but not `nothing`."""


def test_a_wave_that_goes_well_has_no_problems(webhook: Webhook) -> None:
    table = {"A": Drill(lambda _: say(webhook, "firing"), lambda _: say(webhook, "resolved"))}
    assert run_wave(Recorder(), webhook, ["A"], table) == []


def test_a_silent_alert_is_a_problem_and_is_undone(webhook: Webhook) -> None:
    undone: list[str] = []
    table = {"A": Drill(act, lambda _: undone.append("A"))}
    assert run_wave(Recorder(), webhook, ["A"], table) == ["A: no notification within 1 s of its cause"]
    assert undone == ["A"]


def test_an_alert_that_stays_is_a_problem(webhook: Webhook) -> None:
    table = {"A": Drill(lambda _: say(webhook, "firing"), act, resolves_s=1)}
    assert run_wave(Recorder(), webhook, ["A"], table) == ["A: not resolved within 1 s of the end of its cause"]


def test_an_alert_at_the_wrong_receiver_is_a_problem(webhook: Webhook) -> None:
    table = {"A": Drill(lambda _: say(webhook, "firing", "/ticket"), lambda _: say(webhook, "resolved"))}
    assert run_wave(Recorder(), webhook, ["A"], table) == ["A: came to /ticket, not /page"]


def test_a_real_alert_is_not_taken_for_its_lowered_copy(webhook: Webhook) -> None:
    table = {"A": Drill(lambda _: say(webhook, "firing"), act, lowered=Lowered({">": "> 0"}, for_s=0))}
    assert run_wave(Recorder(), webhook, ["A"], table) == ["A: no notification within 1 s of its cause"]


def test_everything_is_undone_when_a_cause_and_an_undo_break(webhook: Webhook) -> None:
    undone: list[str] = []

    def breaks(fleet: Fleet) -> None:
        raise OSError("ssh is away")

    table = {
        "A": Drill(act, breaks),
        "B": Drill(breaks, lambda _: undone.append("B")),
        "C": Drill(act, lambda _: undone.append("C")),
    }
    with pytest.raises(ExceptionGroup, match="not everything was undone"):
        run_wave(Recorder(), webhook, list(table), table)
    assert undone == ["B", "C"]


def test_rules_of_a_drill_are_removed_at_its_end(webhook: Webhook) -> None:
    fleet = Recorder()
    table = {"A": Drill(nothing, nothing, lowered=Lowered({">": "> 0"}, for_s=0, always=True))}
    run_wave(fleet, webhook, ["A"], table)
    assert "promtool check rules" in fleet.commands[0]
    assert fleet.commands[-1].startswith(f"rm -f {library.RULE_FILE}")


# The table.


def test_the_core_is_six_alerts_at_once() -> None:
    assert len(alerts.CORE) == 6
    assert waves(alerts.chosen("")) == [list(alerts.CORE)]


def test_alerts_are_chosen_by_name() -> None:
    assert list(alerts.chosen("EdgeDown HostDown")) == ["EdgeDown", "HostDown"]
    assert list(alerts.chosen("all")) == list(alerts.DRILLS)
    with pytest.raises(KeyError, match="no drill of EdgeUp"):
        alerts.chosen("EdgeUp")


def test_a_rule_that_needs_no_cause_is_always_true() -> None:
    for name, entry in alerts.DRILLS.items():
        without_cause = entry.cause is nothing and not entry.extra
        assert without_cause == bool(entry.lowered and entry.lowered.always), name


@pytest.mark.parametrize("name", [name for name in alerts.DRILLS if rules_of(name)])
def test_the_rule_of_the_tree_can_be_lowered(name: str) -> None:
    rule_file({name: alerts.DRILLS[name]})
    assert notice_s(name, alerts.DRILLS[name]) <= 420, "a drill is no place to wait: lower the rule's `for`"


def test_the_runbooks_say_how_each_alert_is_caused() -> None:
    text = (REPOSITORY / "docs/runbooks/README.md").read_text()
    for name, entry in alerts.DRILLS.items():
        row = f"| {name} | {entry.way} |"
        assert (row in text) == (entry.way != "as it is"), f"docs/runbooks/README.md: write `{row} why |`"
