"""The closed chain of alerts: rule -> unit test -> page -> playbook -> drill; what later work owns is pending."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rules.repository import Repository, Rule

SEVERITIES = ("page", "ticket", "none")
LINKS = ("playbook", "drill", "metric")
PENDING = "monitoring/pending.yml"
DRILLS = "tests/drills/alerts.py"
INDEX = "docs/runbooks/README.md"
HEADINGS = ("How bad", "First look", "What to do", "It is over when")
# Where a metric would come from: not the rules, pages and drills that only speak of it.
SOURCES = ("app/src/*", "app/embedder/src/*", "roles/*", "ansible/*", "monitoring/mtail/*")
# Lines of a page before its first command: one screen.
SCREEN = 24


@dataclass(frozen=True)
class Alert:
    """One alerting rule and where it stands."""

    file: str
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the alert; two rules may share one (variants of the same alert)."""
        return str(self.data["alert"])

    @property
    def page(self) -> str:
        """Path of its runbook."""
        return f"docs/runbooks/{self.name}.md"

    @property
    def place(self) -> str:
        """`file:line: name`."""
        return f"{self.file}:{self.data['__lines__'][0]}: {self.name}"


def alerts(repository: Repository) -> list[Alert]:
    """Every alerting rule."""
    return [
        Alert(file, rule)
        for file in repository.match("monitoring/rules/*.yml")
        if not file.startswith("monitoring/rules/tests/")
        for group in (repository.yaml(file) or {}).get("groups") or []
        for rule in group.get("rules") or []
        if "alert" in rule
    ]


def pending(repository: Repository) -> list[dict[str, Any]]:
    """Entries of the list of links that later work owns."""
    return list(repository.data(PENDING).get("pending") or [])


def is_pending(repository: Repository, alert: str, link: str) -> bool:
    """Whether later work owns this link."""
    return any(entry.get("alert") == alert and entry.get("link") == link for entry in pending(repository))


def table(repository: Repository, name: str) -> set[str]:
    """Keys of a dictionary that is written out in the drills' file, without running it."""
    if DRILLS not in repository.files:
        return set()
    for node in ast.parse(repository.text(DRILLS)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.Dict) and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
    return set()


def section(text: str, heading: str) -> str:
    """What stands below a heading of a page."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def alerts_say_what_they_are(repository: Repository) -> Iterator[str]:
    """Severity and subject decide who hears of it; the summary is what that person reads first."""
    for alert in alerts(repository):
        labels, notes = alert.data.get("labels") or {}, alert.data.get("annotations") or {}
        if labels.get("severity") not in SEVERITIES:
            yield f"{alert.place}: `severity` is {labels.get('severity')!r}; write one of {', '.join(SEVERITIES)}"
        if not labels.get("subject"):
            yield f"{alert.place}: no label `subject`; write the name of the rules' file"
        if not notes.get("summary"):
            yield f"{alert.place}: no annotation `summary`; write one sentence with host and value"
        if notes.get("runbook") != alert.page:
            yield f"{alert.place}: `runbook` is {notes.get('runbook')!r}; write {alert.page}"


def alerts_have_pages(repository: Repository) -> Iterator[str]:
    """An alert has a page of the fixed shape, with a command on its first screen, in the index."""
    for alert in alerts(repository):
        if alert.page not in repository.files:
            yield f"{alert.place}: {alert.page} is missing"
        if f"({alert.name}.md)" not in (repository.text(INDEX) if INDEX in repository.files else ""):
            yield f"{alert.place}: {INDEX} does not name its page"
    for file in pages(repository):
        lines = repository.text(file).splitlines()
        headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
        if headings != list(HEADINGS):
            yield f"{file}: its headings are {', '.join(headings)}; write {', '.join(HEADINGS)}"
        if "```sh" not in lines[:SCREEN]:
            yield f"{file}: no command in the first {SCREEN} lines"
        if "`" not in section(repository.text(file), HEADINGS[-1]):
            yield f"{file}: `{HEADINGS[-1]}` names no command and no metric"


def pages(repository: Repository) -> list[str]:
    """Pages of alerts."""
    return [file for file in repository.match("docs/runbooks/*.md") if file != INDEX]


def pages_belong_to_alerts(repository: Repository) -> Iterator[str]:
    """A page whose alert is gone sends people the wrong way."""
    known = {alert.page for alert in alerts(repository)}
    for file in pages(repository) if known else []:
        if file not in known:
            yield f"{file}: no rule in monitoring/rules has this alert; remove the page or write the rule"


def pages_name_playbooks(repository: Repository) -> Iterator[str]:
    """What to do is a playbook that exists, or the page says why there is none, or later work owns it."""
    for alert in alerts(repository):
        if alert.page not in repository.files:
            continue
        text = section(repository.text(alert.page), "What to do")
        named = re.findall(r"ansible-playbook (?:-i \S+ )?([\w./-]+\.yml)", text)
        if (
            not any(name in repository.files for name in named)
            and "No playbook: " not in text
            and not is_pending(repository, alert.name, "playbook")
        ):
            yield (
                f"{alert.page}: `What to do` names no playbook; name one, write `No playbook: ` and why, "
                f"or put the alert into {PENDING}"
            )


def alerts_have_unit_tests(repository: Repository) -> Iterator[str]:
    """promtool sees it fire, and sees it not fire; a heartbeat (severity none) always fires."""
    fires: set[str] = set()
    silent: set[str] = set()
    for file in repository.match("monitoring/rules/tests/*.yml"):
        for test in (repository.yaml(file) or {}).get("tests") or []:
            for case in test.get("alert_rule_test") or []:
                (fires if case.get("exp_alerts") else silent).add(str(case.get("alertname")))
    for alert in alerts(repository):
        for seen, what in ((fires, "fires"), (silent, "does not fire (`exp_alerts: []`)")):
            heartbeat = (alert.data.get("labels") or {}).get("severity") == "none" and seen is silent
            if alert.name not in seen and not heartbeat:
                yield f"{alert.place}: no test in monitoring/rules/tests in which it {what}"


def alerts_have_drills(repository: Repository) -> Iterator[str]:
    """Somebody causes it on a running fleet, or the table says why nobody can, or later work owns it."""
    drilled, exempt = table(repository, "DRILLS"), table(repository, "WITHOUT_DRILL")
    known = {alert.name for alert in alerts(repository)}
    for alert in alerts(repository):
        if alert.name not in drilled | exempt and not is_pending(repository, alert.name, "drill"):
            yield f"{alert.place}: no drill; add it to DRILLS in {DRILLS}"
    for name in sorted((drilled | exempt) - known) if known else []:
        yield f"{DRILLS}: {name} is no alert of monitoring/rules"
    for name in sorted(drilled & exempt):
        yield f"{DRILLS}: {name} has a drill and stands in WITHOUT_DRILL"


def pending_links_are_owed(repository: Repository) -> Iterator[str]:
    """An entry names an alert, a link that cannot be made yet, what it waits for, and why."""
    known = {alert.name for alert in alerts(repository)}
    for number, entry in enumerate(pending(repository), 1):
        place = f"{PENDING}: entry {number} ({entry.get('alert')})"
        link, awaits = entry.get("link"), str(entry.get("awaits") or "")
        if link not in LINKS or not entry.get("reason") or not awaits or set(entry) - ENTRY:
            yield f"{place}: write {', '.join(sorted(ENTRY))}; link is one of {', '.join(LINKS)}"
        if known and entry.get("alert") not in known:
            yield f"{place}: no rule in monitoring/rules has this alert"
        if link == "playbook" and awaits in repository.files:
            yield f"{place}: {awaits} exists; name it on the page, remove the entry"
        if link == "drill" and entry.get("alert") in table(repository, "DRILLS"):
            yield f"{place}: the drill exists; remove the entry"
        if link == "metric" and (file := exporter(repository, awaits)):
            yield f"{place}: {file} exports {awaits}; remove the entry"


ENTRY = {"alert", "link", "awaits", "reason"}


def exporter(repository: Repository, metric: str) -> str | None:
    """A file from which a metric comes."""
    candidates = (f for f in repository.match(*SOURCES) if "/molecule/" not in f and not f.endswith(".md"))
    return next((file for file in candidates if metric in repository.text(file)), None)


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    found = list(rule(tree(files)))
    assert any(says in finding for finding in found), found


def test_a_whole_chain_is_content(rule: Rule, tree: Any) -> None:
    assert list(rule(tree(WHOLE))) == []


def test_there_are_alerts_to_look_at(repository: Repository) -> None:
    assert alerts(repository)


RULES = "monitoring/rules/a.yml"
RULE = """
groups:
  - name: a
    rules:
      - {record: a:b, expr: b}
      - alert: AWrong
        expr: a > 1
        labels: {severity: page, subject: a}
        annotations: {summary: A is wrong, runbook: docs/runbooks/AWrong.md}
"""
PAGE = """# AWrong

Nothing yet.

## How bad

Page.

## First look

```sh
make status
```

## What to do

```sh
ansible-playbook site.yml -i inventories/$ENV
```

## It is over when

`a` is 0.
"""
UNIT_TESTS = """
tests:
  - alert_rule_test:
      - {eval_time: 1m, alertname: AWrong, exp_alerts: []}
      - {eval_time: 2m, alertname: AWrong, exp_alerts: [{exp_labels: {a: b}}]}
"""
WHOLE = {
    RULES: RULE,
    "monitoring/rules/tests/a.yml": UNIT_TESTS,
    "docs/runbooks/AWrong.md": PAGE,
    INDEX: "[AWrong](AWrong.md)",
    DRILLS: "DRILLS: dict[str, int] = {'AWrong': 1}",
    "site.yml": "[]",
}
OWED = "pending: [{alert: AWrong, link: LINK, awaits: WHAT, reason: later}]"


def owed(link: str, awaits: str) -> str:
    """A list of pending links with one entry."""
    return OWED.replace("LINK", link).replace("WHAT", awaits)


def without(file: str) -> dict[str, str]:
    """The whole chain, less one file."""
    return {name: content for name, content in WHOLE.items() if name != file}


BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (alerts_say_what_they_are, {RULES: RULE.replace("page,", "urgent,")}, "a.yml:6: AWrong: `severity` is 'urgent'"),
    (alerts_say_what_they_are, {RULES: RULE.replace("subject: a", "s: a")}, "no label `subject`"),
    (alerts_say_what_they_are, {RULES: RULE.replace("summary", "text")}, "no annotation `summary`"),
    (alerts_say_what_they_are, {RULES: RULE.replace("AWrong.md", "B.md")}, "`runbook` is 'docs/runbooks/B.md'"),
    (alerts_have_pages, without("docs/runbooks/AWrong.md"), "docs/runbooks/AWrong.md is missing"),
    (alerts_have_pages, without(INDEX), "does not name its page"),
    (alerts_have_pages, {"docs/runbooks/A.md": PAGE.replace("How bad", "Bad")}, "its headings are Bad, First look"),
    (alerts_have_pages, {"docs/runbooks/A.md": "\n" * 30 + PAGE}, "no command in the first"),
    (alerts_have_pages, {"docs/runbooks/A.md": PAGE.replace("`a`", "a")}, "names no command and no metric"),
    (pages_belong_to_alerts, {RULES: RULE, "docs/runbooks/B.md": PAGE}, "docs/runbooks/B.md: no rule"),
    (pages_name_playbooks, without("site.yml"), "`What to do` names no playbook"),
    (alerts_have_unit_tests, {RULES: RULE}, "no test in monitoring/rules/tests in which it fires"),
    (alerts_have_unit_tests, {**WHOLE, "monitoring/rules/tests/a.yml": UNIT_TESTS.replace("[]", "[{}]")}, "not fire"),
    (alerts_have_drills, without(DRILLS), "AWrong: no drill"),
    (alerts_have_drills, {**WHOLE, DRILLS: "DRILLS = {'AWrong': 1, 'B': 2}"}, "B is no alert"),
    (alerts_have_drills, {**WHOLE, DRILLS: WHOLE[DRILLS] + "\nWITHOUT_DRILL = {'AWrong': 'why'}"}, "has a drill and"),
    (pending_links_are_owed, {PENDING: owed("later", "x")}, "link is one of"),
    (pending_links_are_owed, {PENDING: owed("drill", "")}, "write alert, awaits, link, reason"),
    (pending_links_are_owed, {RULES: RULE, PENDING: owed("drill", "x").replace("AWrong", "B")}, "no rule in"),
    (pending_links_are_owed, {PENDING: owed("playbook", "site.yml"), "site.yml": "[]"}, "site.yml exists"),
    (pending_links_are_owed, {**WHOLE, PENDING: owed("drill", "x")}, "the drill exists"),
    (pending_links_are_owed, {PENDING: owed("metric", "a_b"), "app/src/a.py": "a_b"}, "app/src/a.py exports a_b"),
]  # fmt: skip
