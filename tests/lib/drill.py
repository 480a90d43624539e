"""Drills of alerts: cause, see the notification, undo, see it resolve; several at once where none disturbs another."""

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lib.fleet import REPOSITORY, Fleet
from lib.waiting import wait_for
from lib.webhook import Notification, Webhook

type Act = Callable[[Fleet], None]
type RuleData = dict[str, Any]

# Rules of a drill, on the monitoring host; site.yml removes this file and the one below.
RULE_FILE = "/etc/prometheus/rules/drill.yml"
# Series of a drill, on any host.
TEXTFILE = "/var/lib/prometheus/node-exporter/drill.prom"
# A notification has this long besides the rule's `for`, and as long to be resolved after the cause is gone.
NOTICE_S = 45
RESOLVED_S = 90
# What makes any rule false and keeps its state, so that its alerts are resolved at once instead of timing out.
NEVER = "and on () (vector(0) > 1)"
# A drill that leaves room for no other.
ALONE = "alone"

_COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)\s*(-?[\d.]+(?:e\d+)?(?:\s*[*/]\s*[\d.]+(?:e\d+)?)*)(?![\w.(])")
_OPERATOR = {">=": ">", "<=": "<"}
_WINDOW = re.compile(r"\[(?:\d+[smhdw])+(:\w*)?\]")
_DURATION = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def nothing(fleet: Fleet) -> None:
    """Where the lowered rule is cause enough."""


@dataclass(frozen=True)
class Lowered:
    """A copy of the rule in the tree with other numbers.

    :param compare: operator to comparison: ``{">": "> 0"}`` for every comparison with a number by ``>`` or ``>=``.
    :param window: range instead of every range of the expression, e.g. ``1m``.
    :param for_s: seconds instead of the rule's ``for``.
    :param always: whether the copy fires without a cause, so that undoing means making it false.
    """

    compare: Mapping[str, str] = field(default_factory=dict)
    window: str | None = None
    for_s: int = 10
    always: bool = False


@dataclass(frozen=True)
class Drill:
    """How one alert is caused and how that is undone; both may be done twice.

    :param uses: what it disturbs; drills with a common word do not run at once.
    :param labels: labels that the notification must carry.
    :param lowered: the rule's copy that fires instead of the rule.
    :param injected: whether the cause is a series that the drill writes.
    :param needs: makes sure of what the rule speaks of, which stays: a metric that a new fleet does not have yet.
    :param extra: rules that are loaded as long as the cause lasts.
    :param begins_s: seconds until the cause is what the expression asks for (a window, a threshold in seconds).
    :param resolves_s: seconds after undoing in which the notification must be resolved; 0: nobody is told.
    """

    cause: Act
    undo: Act
    uses: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    lowered: Lowered | None = None
    injected: bool = False
    needs: Act = nothing
    extra: tuple[RuleData, ...] = ()
    begins_s: int = 0
    resolves_s: int = RESOLVED_S

    @property
    def way(self) -> str:
        """How it differs from the real thing, for the table of the runbooks."""
        words = ["lowered"] * (self.lowered is not None) + ["injected"] * self.injected
        return " and ".join(words) or "as it is"


def rules_of(alert: str, root: Path = REPOSITORY) -> list[RuleData]:
    """The rules of the tree with this alert's name."""
    found = []
    for file in sorted((root / "monitoring" / "rules").glob("*.yml")):
        for group in (yaml.safe_load(file.read_text()) or {}).get("groups") or []:
            found += [rule for rule in group["rules"] if rule.get("alert") == alert]
    return found


def seconds(duration: str | int) -> int:
    """Prometheus' duration (``1h30m``) in seconds.

    :raises ValueError: when it is none.
    """
    text = str(duration)
    if not re.fullmatch(r"0|(\d+[smhd])+", text):
        raise ValueError(f"{duration!r} is no duration such as 90s or 1h30m")
    return sum(int(number) * _DURATION[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


def lowered_rule(rule: RuleData, lowered: Lowered, over: bool = False) -> RuleData:
    """The copy of a rule that a drill loads; ``over`` makes it false.

    :raises ValueError: when the expression has nothing of what is to be changed.
    """
    expression = str(rule["expr"])
    changed = expression
    if lowered.compare:
        changed = _COMPARISON.sub(
            lambda match: lowered.compare.get(_OPERATOR.get(match[1], match[1]), match[0]), changed
        )
        if changed == expression:
            raise ValueError(f"{rule['alert']}: no comparison by {', '.join(lowered.compare)} in `{expression}`")
    if lowered.window:
        changed, count = _WINDOW.subn(lambda match: f"[{lowered.window}{match[1] or ''}]", changed)
        if not count:
            raise ValueError(f"{rule['alert']}: no window in `{expression}`")
    copy = {key: value for key, value in rule.items() if key != "keep_firing_for"}
    return copy | {
        "expr": f"({changed}) {NEVER}" if over else changed,
        "for": f"{lowered.for_s}s",
        "labels": {**rule.get("labels", {}), "drill": "lowered"},
    }


def rule_file(drills: Mapping[str, Drill], over: bool = False, root: Path = REPOSITORY) -> str:
    """The rule file of a wave; empty when none of its drills needs one.

    :raises ValueError: when a rule to be lowered is not in the tree, or has nothing to lower.
    """
    rules: list[RuleData] = []
    for name, drill in drills.items():
        if drill.lowered:
            originals = rules_of(name, root)
            if not originals:
                raise ValueError(f"{name}: no rule in monitoring/rules")
            rules += [lowered_rule(rule, drill.lowered, over and drill.lowered.always) for rule in originals]
        rules += [_ended(rule) if over else rule for rule in drill.extra if "alert" in rule or not over]
    return yaml.safe_dump({"groups": [{"name": "drill", "rules": rules}]}, sort_keys=False) if rules else ""


def _ended(rule: RuleData) -> RuleData:
    return rule | {"expr": f"({rule['expr']}) {NEVER}"}


def notice_s(name: str, drill: Drill, root: Path = REPOSITORY) -> int:
    """Seconds within which the notification must arrive."""
    holds = [drill.lowered.for_s] if drill.lowered else [seconds(rule.get("for", 0)) for rule in rules_of(name, root)]
    return drill.begins_s + max(holds, default=0) + NOTICE_S


def waves(drills: Mapping[str, Drill]) -> list[list[str]]:
    """Names of drills in groups that may run at once, each as early as possible."""
    found: list[tuple[set[str], list[str]]] = []
    for name, drill in drills.items():
        uses = set(drill.uses)
        for taken, names in found:
            if not taken & uses and ALONE not in taken | uses:
                taken |= uses
                names.append(name)
                break
        else:
            found.append((uses, [name]))
    return [names for _, names in found]


# On the fleet


def monitoring_host(fleet: Fleet) -> str:
    """The host that runs Prometheus."""
    return str(fleet.groups[fleet.services["prometheus"]["hosts"]][0])


def load_rules(fleet: Fleet, text: str) -> None:
    """Put a drill's rules in place of the ones before, checked by promtool; no text removes them.

    :raises subprocess.CalledProcessError: when promtool refuses them or Prometheus does not reload.
    """
    host = monitoring_host(fleet)
    if text:
        check = f"cat > {RULE_FILE}.new && promtool check rules {RULE_FILE}.new >&2 && mv {RULE_FILE}.new {RULE_FILE}"
        fleet.ssh(host, f"{check} && systemctl reload prometheus", stdin=text)
    else:
        fleet.ssh(host, f"rm -f {RULE_FILE} {RULE_FILE}.new && systemctl reload prometheus")


def write_series(fleet: Fleet, host: str, metric: str, value: float, labels: Mapping[str, str] | None = None) -> None:
    """Write one series to a host's textfile directory, beside those of other drills."""
    pairs = ",".join(f"{key}={json.dumps(text)}" for key, text in (labels or {}).items())
    keep = f"if test -e {TEXTFILE}; then sed '/^{metric}[{{ ]/d' {TEXTFILE}; fi; cat"
    # The whole file appears at once: node_exporter may read at any time.
    fleet.ssh(
        host, f"({keep}) > {TEXTFILE}.new && mv {TEXTFILE}.new {TEXTFILE}", stdin=f"{metric}{{{pairs}}} {value}\n"
    )


def remove_series(fleet: Fleet, host: str, metric: str) -> None:
    """Take the series of a drill away."""
    fleet.ssh(host, f"if test -e {TEXTFILE}; then sed -i '/^{metric}[{{ ]/d' {TEXTFILE}; fi")


def sweep(fleet: Fleet) -> None:
    """Remove what an interrupted run left: rules, series, units, and cut ways of every host."""
    for host in fleet.groups["all"]:
        fleet.ssh(
            host,
            f"rm -f {TEXTFILE} {TEXTFILE}.new; nft destroy table inet drill; "
            "systemctl stop 'drill-*'; systemctl reset-failed 'drill-*'",
            check=False,
        )
    load_rules(fleet, "")


@dataclass
class _Running:
    drill: Drill
    caused_at: float
    limit_s: int
    notification: Notification | None = None
    undone_at: float = 0


def run_wave(fleet: Fleet, webhook: Webhook, names: Sequence[str], table: Mapping[str, Drill]) -> list[str]:
    """Cause some alerts, see them, undo them, see them resolved. Whatever happens, everything is undone.

    :return: a sentence for each alert that did not do what it must.
    """
    drills = {name: table[name] for name in names}
    running: dict[str, _Running] = {}
    problems: list[str] = []
    text = rule_file(drills)
    for drill in drills.values():
        drill.needs(fleet)
    try:
        loaded_at = time.time()
        if text:
            load_rules(fleet, text)
        for name, drill in drills.items():
            # A slow cause may have worked before it returns; and for some the rules are cause enough.
            started = loaded_at if drill.cause is nothing else time.time()
            drill.cause(fleet)
            limit = notice_s(name, drill) + (0 if drill.cause is nothing else int(time.time() - started))
            running[name] = _Running(drill, started, limit)
        for name, run in running.items():
            problems += _wait_for_notice(webhook, name, run)
    finally:
        _undo(fleet, drills, running)
        if text:
            load_rules(fleet, rule_file(drills, over=True))
    for name, run in running.items():
        problems += _wait_for_end(webhook, name, run)
    if text:
        load_rules(fleet, "")
    return problems


def _wait_for_notice(webhook: Webhook, name: str, run: _Running) -> list[str]:
    left = run.caused_at + run.limit_s - time.time()
    try:
        notification = wait_for(
            f"{name} is notified",
            lambda: webhook.fired(name, run.caused_at, _labels(run.drill)),
            timeout_s=max(left, 1),
        )
    except TimeoutError:
        return [f"{name}: no notification within {run.limit_s} s of its cause"]
    if notification is None:
        return [f"{name}: no notification"]
    run.notification = notification
    took = notification.at - run.caused_at
    print(f"{name}: notified after {took:.0f} s (at most {run.limit_s} s)")
    wanted = {"page": "/page", "ticket": "/ticket", "none": "/watchdog"}[notification.labels["severity"]]
    wrong = [f"{name}: came to {notification.path}, not {wanted}"] if notification.path != wanted else []
    return wrong + ([f"{name}: notified after {took:.0f} s, not {run.limit_s} s"] if took > run.limit_s else [])


def _labels(drill: Drill) -> dict[str, str]:
    return {**drill.labels, **({"drill": "lowered"} if drill.lowered else {})}


def _undo(fleet: Fleet, drills: Mapping[str, Drill], running: Mapping[str, _Running]) -> None:
    errors: list[Exception] = []
    for name, drill in drills.items():
        try:
            drill.undo(fleet)
        except Exception as error:  # the others must be undone, too
            errors.append(error)
        if name in running:
            running[name].undone_at = time.time()
    if errors:
        raise ExceptionGroup("not everything was undone; the next run and site.yml do it", errors)


def _wait_for_end(webhook: Webhook, name: str, run: _Running) -> list[str]:
    if run.notification is None or not run.drill.resolves_s:
        return []
    fingerprint = run.notification.fingerprint

    def resolved() -> bool:
        last = webhook.last(fingerprint)
        return last is not None and last.status == "resolved"

    left = run.undone_at + run.drill.resolves_s - time.time()
    try:
        wait_for(f"{name} is resolved", resolved, timeout_s=max(left, 1))
    except TimeoutError:
        return [f"{name}: not resolved within {run.drill.resolves_s} s of the end of its cause"]
    return []


def undo_all(fleet: Fleet, drills: Iterable[Drill]) -> None:
    """Undo everything an interrupted run may have caused."""
    for drill in drills:
        drill.undo(fleet)
    sweep(fleet)
