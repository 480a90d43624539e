"""The dashboards without a fleet: generated as committed, complete, and found wanting when a metric is not there."""

import json
import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from lib.dashboards import (
    JSON,
    Query,
    absent_metrics,
    boards,
    fault_of,
    metrics_in,
    missing_metrics,
    queries,
    rule_expressions,
    silent_queries,
    unneeded_absences,
)
from lib.fleet import REPOSITORY

GENERATE = REPOSITORY / "monitoring/dashboards/generate.py"
PRINT = "import json, generate; print(json.dumps(generate.documents()))"


def generated(seed: str) -> dict[str, str]:
    """What the generator would write, by file name."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT], cwd=GENERATE.parent, capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(GENERATE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    documents: dict[str, str] = json.loads(done.stdout)
    return documents


def test_committed_json_is_what_python_says() -> None:
    committed = {file.name: file.read_text() for file in JSON.glob("*.json")}
    differing = sorted({name for name, _ in generated("1").items() ^ committed.items()})
    assert not differing, f"{', '.join(differing)}: run `python monitoring/dashboards/generate.py` and commit"


def test_the_same_python_gives_the_same_bytes() -> None:
    assert generated("1") == generated("2")


def test_uids_and_titles_are_unique() -> None:
    made = boards()
    for key in ("uid", "title"):
        assert max(Counter(board[key] for board in made).values()) == 1
    for board in made:
        assert f"{board['uid']}.json" in {file.name for file in JSON.glob("*.json")}
        assert max(Counter(panel["title"] for panel in board["panels"]).values()) == 1, board["title"]


@pytest.mark.parametrize("board", boards(), ids=lambda board: board["uid"])
def test_a_dashboard_is_complete(board: dict[str, Any]) -> None:
    assert board["editable"] is False
    for panel in board["panels"]:
        place = f"{board['title']} / {panel['title']}"
        assert panel["fieldConfig"]["defaults"].get("unit"), f"{place}: no unit"
        assert re.fullmatch(r"[A-Z0-9].{15,}[^.]\.", panel["description"]), f"{place}: describe it in a sentence"
        assert panel["targets"], f"{place}: no query"
        letters = [target["refId"] for target in panel["targets"]]
        assert all(letters) and len(set(letters)) == len(letters), f"{place}: queries need letters of their own"
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24, f"{place}: wider than the screen"


def test_panels_do_not_lie_on_each_other() -> None:
    for board in boards():
        taken: Counter[tuple[int, int]] = Counter()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]
            taken.update(cells)
        assert max(taken.values()) == 1, board["title"]


def test_every_expression_can_be_one() -> None:
    found = [
        f"{query.place}: {fault}"
        for board in boards()
        for query in queries(board)
        if (fault := fault_of(query.runnable))
    ]
    assert not found, "\n".join(found)


def test_a_choice_of_hosts_is_used_where_it_is_offered() -> None:
    for board in boards():
        offered = "host" in {variable["name"] for variable in board.get("templating", {}).get("list") or []}
        used = any("$host" in query.expression for query in queries(board))
        assert offered == used, board["title"]


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("sum(up", "`(` is not closed"),
        ("sum(up))", "`)` closes nothing"),
        ('up{a="b}', '" is not closed'),
        ("rate(x[5m)", "`)` closes nothing"),
        ('up{a="("} or vector(0)', ""),
    ],
)
def test_a_broken_expression_is_seen(expression: str, says: str) -> None:
    assert fault_of(expression) == says


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (le, host) (rate(a_bucket{x="and y"}[5m]))', {"a_bucket"}),
        ("a / on (host) group_left (b) c > 0 or vector(1)", {"a", "c"}),
        ("slo:errors:ratio1h > 14.4 * 0.001", {"slo:errors:ratio1h"}),
        ("x unless x offset 1m", {"x"}),
        ('label_replace(e_total, "class", "${1}xx", "code", "(.).*")', {"e_total"}),
        ("1e3 * time() - process_start_time_seconds", {"process_start_time_seconds"}),
        ("count_over_time(up[1h:1m]) and on () absent(b)", {"up", "b"}),
    ],
)
def test_metrics_are_read_from_an_expression(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


def test_a_dashboard_with_a_missing_metric_is_named() -> None:
    """As the fleet's test does it, with the answers of a Prometheus that knows only `up`."""
    board = {
        "title": "Fleet",
        "panels": [
            {"title": "Good", "datasource": {"type": "prometheus"}, "targets": [{"expr": 'up{host=~"$host"}'}]},
            {
                "title": "Bad",
                "datasource": {"type": "prometheus"},
                "targets": [{"expr": "rate(upp[$__rate_interval])"}],
            },
        ],
    }
    asked = list(queries(board))
    assert [query.runnable for query in asked] == ['up{host=~".+"}', "rate(upp[2m])"]
    series = {"metric": {"host": "a"}, "value": [0, "1"]}
    answers = [
        {"status": "success", "data": {"result": [series]}},
        {"status": "success", "data": {"result": []}},
    ]
    assert list(silent_queries(asked, answers, {})) == ["Fleet / Bad: `rate(upp[2m])` returns nothing"]
    used = [(query.place, query.expression) for query in asked]
    assert list(missing_metrics(used, ["up"], {})) == [
        "upp: no target exports it; used by Fleet / Bad. Correct the name there"
    ]
    assert list(missing_metrics(used, ["up"], {"upp": "later"})) == []
    assert list(silent_queries(asked, answers, {"upp": "later"})) == []


def test_a_refused_query_is_named() -> None:
    query = Query("Fleet", "Bad", "prometheus", "sum(")
    refused = {"status": "error", "error": "unclosed left parenthesis"}
    assert list(silent_queries([query], [refused], {})) == ["Fleet / Bad: `sum(` is refused: unclosed left parenthesis"]


def test_an_unknown_variable_is_named() -> None:
    with pytest.raises(ValueError, match=r"Fleet / Bad: a variable of `up\{a=\"\$databse\"\}`"):
        _ = Query("Fleet", "Bad", "prometheus", 'up{a="$databse"}').runnable


def test_a_pending_metric_that_is_there_is_named() -> None:
    assert list(unneeded_absences({"x_total"}, ["x_total", "y_total"])) == [
        "x_total: Prometheus has it; take it out of `pending` in monitoring/absent_metrics.yml"
    ]


def test_absent_metrics_are_used_somewhere() -> None:
    """A name that nobody uses any more goes; what is pending may be named by rules that come with it."""
    named = {name for board in boards() for query in queries(board) for name in metrics_in(query.expression)}
    named |= {name for _, expression in rule_expressions() for name in metrics_in(expression)}
    pending = {name for name in absent_metrics() if re.match(r"arches_(backup|restore|drift)_", name)}
    assert absent_metrics().keys() - pending <= named
