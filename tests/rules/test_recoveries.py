"""A recovery playbook is what docs/recovery.md says, so that on-call finds the same in each."""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from rules.repository import Repository, Rule

RUNNER = "../tasks/recover/run.yml"
KEYS = {"incident", "arguments", "stages", "needs_backup"}


def recoveries_use_the_runner(repository: Repository) -> Iterator[str]:
    """Its last play is on all hosts and hands itself to the runner; there is a file for the plan and for each stage.

    Plays before it are for what must be there before any host can be asked.
    """
    for file in repository.match("ansible/recover/*.yml"):
        path = PurePath(file)
        if path.parent.name != "recover":
            continue
        plays = repository.data(file)
        play = plays[-1] if isinstance(plays, list) and plays else {}
        tasks = play.get("tasks") or []
        if not repository.text(file).startswith("---\n#"):
            yield f"{file}: begins without a comment that says when this is the right playbook"
        if play.get("hosts") != "all" or play.get("any_errors_fatal") is not True or len(tasks) != 1:
            yield f"{file}: must end with a play on `hosts: all` with `any_errors_fatal: true` and one task"
            continue
        recovery = (tasks[0].get("vars") or {}).get("recovery") or {}
        if tasks[0].get("ansible.builtin.include_tasks") != RUNNER or not recovery.keys() <= KEYS:
            yield f"{file}: its task must include {RUNNER} with `recovery` ({', '.join(sorted(KEYS))})"
        if recovery.get("incident") != path.stem:
            yield f"{file}: `incident` must be the file's name, {path.stem}"
        folder = f"ansible/recover/{path.stem}"
        present = {PurePath(name).stem for name in repository.match(f"{folder}/*.yml")}
        stages = recovery.get("stages")
        # Stages that depend on an argument are a template.
        for name in ["plan", *(stages if isinstance(stages, dict) else [])]:
            if name not in present:
                yield f"{file}: {folder}/{name}.yml is missing"


def test_repository_keeps_the_rule(rule: Rule, repository: Repository) -> None:
    found = list(rule(repository))
    assert not found, "\n" + "\n".join(found)


def test_rule_can_fail(rule: Rule, files: dict[str, str], says: str, tree: Any) -> None:
    found = list(rule(tree(files)))
    assert any(says in finding for finding in found), found


GOOD = """---
# When x is broken.
- hosts: all
  any_errors_fatal: true
  tasks:
    - ansible.builtin.include_tasks: ../tasks/recover/run.yml
      vars: {recovery: {incident: x, stages: {mend: Mend it}}}
"""
FILES = {"ansible/recover/x.yml": GOOD, "ansible/recover/x/plan.yml": "[]", "ansible/recover/x/mend.yml": "[]"}


def test_a_good_one_passes(tree: Any) -> None:
    assert list(recoveries_use_the_runner(tree(FILES))) == []


def broken(old: str, new: str) -> dict[str, str]:
    """The good one with a change."""
    return FILES | {"ansible/recover/x.yml": GOOD.replace(old, new)}


BROKEN: list[tuple[Rule, dict[str, str], str]] = [
    (recoveries_use_the_runner, broken("# When x is broken.\n", ""), "begins without a comment"),
    (recoveries_use_the_runner, broken("hosts: all", "hosts: data"), "must end with a play on `hosts: all`"),
    (recoveries_use_the_runner, broken("any_errors_fatal: true", "serial: 1"), "must end with a play on `hosts: all`"),
    (recoveries_use_the_runner, broken("run.yml", "walk.yml"), "its task must include"),
    (recoveries_use_the_runner, broken("stages:", "stagse:"), "its task must include"),
    (recoveries_use_the_runner, broken("incident: x", "incident: y"), "`incident` must be the file's name, x"),
    (recoveries_use_the_runner, broken("mend: Mend", "end: Mend"), "ansible/recover/x/end.yml is missing"),
    (recoveries_use_the_runner, {"ansible/recover/x.yml": GOOD}, "ansible/recover/x/plan.yml is missing"),
]  # fmt: skip
