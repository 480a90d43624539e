"""Queries of the generated dashboards and of the rules: taken out, made runnable, and judged by the answers."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lib.fleet import REPOSITORY

JSON = REPOSITORY / "monitoring/dashboards/json"
RULES = REPOSITORY / "monitoring/rules"
ABSENT = REPOSITORY / "monitoring/absent_metrics.yml"

# What Grafana puts in the place of a variable, for a look at the last minutes of all hosts.
VARIABLES = {"$__rate_interval": "2m", "$host": ".+"}
WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "inf",
    "nan", "atan2", "start", "end",
}  # fmt: skip
PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Query:
    """One query of one panel: where it stands, which data source it asks, and the expression with its variables."""

    board: str
    panel: str
    source: str
    expression: str

    @property
    def place(self) -> str:
        """`dashboard / panel`, for messages."""
        return f"{self.board} / {self.panel}"

    @property
    def runnable(self) -> str:
        """The expression with every variable replaced.

        :raises ValueError: naming a variable that nobody knows.
        """
        text = self.expression
        for name, value in VARIABLES.items():
            text = text.replace(name, value)
        if "$" in re.sub(r'"[^"]*"', "", text) or re.search(r"\$[a-z_]", text):
            raise ValueError(f"{self.place}: a variable of `{self.expression}` is unknown; add it to VARIABLES")
        return text


def boards(folder: Path = JSON) -> list[dict[str, Any]]:
    """Every generated dashboard."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def queries(board: Mapping[str, Any]) -> Iterator[Query]:
    """Queries of a dashboard's panels and annotations."""
    for panel in board["panels"]:
        for target in panel.get("targets") or []:
            yield Query(board["title"], panel["title"], panel["datasource"]["type"], target["expr"])
    for mark in board.get("annotations", {}).get("list") or []:
        yield Query(board["title"], f"marks `{mark['name']}`", "annotation", mark["expr"])


def rule_expressions(folder: Path = RULES) -> Iterator[tuple[str, str]]:
    """(name of the rule, expression) of every alert and recording rule."""
    for file in sorted(folder.glob("*.yml")):
        for group in (yaml.safe_load(file.read_text()) or {}).get("groups") or []:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], str(rule["expr"])


def fault_of(expression: str) -> str:
    """Why an expression can't be PromQL or LogQL: brackets or quotes that do not match. Empty when they do."""
    open_ones: list[str] = []
    for sign in re.sub(r'"(?:\\.|[^"\\])*"|`[^`]*`|\'(?:\\.|[^\'\\])*\'', "", expression):
        if sign in PAIRS.values():
            open_ones.append(sign)
        elif sign in PAIRS and (not open_ones or open_ones.pop() != PAIRS[sign]):
            return f"`{sign}` closes nothing"
        elif sign in "\"'`":
            return f"{sign} is not closed"
    return f"`{open_ones[-1]}` is not closed" if open_ones else ""


def metrics_in(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression."""
    text = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', "", expression)
    text = re.sub(r"#.*", "", text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    found = re.finditer(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\b(?!\s*\()", re.sub(r"\boffset\s+\S+", " ", text))
    return {match[1] for match in found if match[1].lower() not in WORDS}


def absent_metrics(file: Path = ABSENT) -> dict[str, str]:
    """Metrics that a healthy fleet need not have, with the reason."""
    lists: dict[str, dict[str, str]] = yaml.safe_load(file.read_text())
    return {name: reason for names in lists.values() for name, reason in (names or {}).items()}


def missing_metrics(
    used: Iterable[tuple[str, str]], known: Sequence[str] | set[str], absent: Mapping[str, str]
) -> Iterator[str]:
    """A sentence for each metric that is used and nobody exports.

    :param used: (where, expression).
    :param known: every metric name that Prometheus has.
    :param absent: names that may be missing, with the reason.
    """
    places: dict[str, list[str]] = {}
    for place, expression in used:
        for name in metrics_in(expression):
            places.setdefault(name, []).append(place)
    for name in sorted(places.keys() - set(known) - absent.keys()):
        yield f"{name}: no target exports it; used by {', '.join(sorted(set(places[name])))}. Correct the name there"


def unneeded_absences(known: Sequence[str] | set[str], pending: Iterable[str]) -> Iterator[str]:
    """A sentence for each metric that is said to be pending and is there."""
    for name in sorted(set(pending) & set(known)):
        yield f"{name}: Prometheus has it; take it out of `pending` in {ABSENT.relative_to(REPOSITORY)}"


def silent_queries(
    asked: Sequence[Query], answers: Sequence[Mapping[str, Any]], absent: Mapping[str, str]
) -> Iterator[str]:
    """A sentence for each query that was refused or returned no series.

    :param answers: as Prometheus and Loki send them, in the order of `asked`.
    """
    for query, answer in zip(asked, answers, strict=True):
        if answer.get("status") != "success":
            yield f"{query.place}: `{query.runnable}` is refused: {answer.get('error')}"
        elif not answer["data"]["result"] and not metrics_in(query.expression) & absent.keys():
            yield f"{query.place}: `{query.runnable}` returns nothing"
