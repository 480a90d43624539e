"""Action ``recovery``: the runner of recovery playbooks (ansible/tasks/recover/run.yml) looks, remembers and says.

    - name: What is meant is clear
      recovery: {step: check, definition: "{{ recovery }}", environment: local, confirm: local}
    - name: What an earlier run has done
      recovery: {step: open, definition: "{{ recovery }}", folder: ..., restart: false, copy: "..."}
    - name: Show the plan
      recovery: {step: plan, definition: ..., folder: ..., environment: ..., plan: ..., restart: ..., more: {lock: ...}}
    - name: The stage begins
      recovery: {step: write, definition: ..., folder: ..., run: ..., event: stage, details: {stage: merge}}
    - name: Say what was done
      recovery: {step: close, definition: ..., folder: ..., run: ...}

Results: check: interactive. open: run (name for `write`), resumes, plan, outcome, done, record. plan: text.
close: text.
"""

import datetime
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

# Ansible offers its module_utils folder to modules only.
sys.path.append(str(Path(__file__).parents[1] / "module_utils"))
from fleet_lock import holder
from recovery import (
    Definition,
    RecoveryError,
    Run,
    append,
    check,
    check_plan,
    merge,
    plan_text,
    resumable,
    runs,
    unfinished,
)

REPOSITORY = Path(__file__).parents[3]
DEFINITION = {
    "incident": {"type": "str", "required": True},
    "arguments": {"type": "dict", "default": {}},
    "stages": {"type": "dict", "required": True},
    "needs_backup": {"type": "bool", "default": False},
}


class ActionModule(ActionBase):
    """It runs on the controller and reaches no host."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Do one step.

        :raises AnsibleActionFail: with a sentence that names the fix.
        """
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, args = self.validate_argument_spec(
            {
                "step": {"choices": ["check", "open", "plan", "write", "close"], "required": True},
                "definition": {"type": "dict", "required": True, "options": DEFINITION},
                "folder": {"type": "path"},
                "environment": {"type": "str"},
                "confirm": {"type": "str"},
                "restart": {"type": "bool", "default": False},
                "copy": {"type": "str", "default": ""},
                "plan": {"type": "raw"},
                "more": {"type": "dict", "default": {}},
                "run": {"type": "str"},
                "event": {"type": "str"},
                "details": {"type": "dict", "default": {}},
            }
        )
        definition = Definition(**args["definition"])
        args["given"] = list(load_extra_vars(self._loader))
        try:
            return result | {"changed": False} | STEPS[args["step"]](definition, args)
        except RecoveryError as error:
            raise AnsibleActionFail(f"{error}.") from error


def record(definition: Definition, args: Mapping[str, Any]) -> Path:
    """Where the record of an incident lies."""
    return Path(args["folder"], f"{definition.incident}.jsonl")


def text_of(file: Path) -> str:
    """The record so far."""
    return file.read_text(errors="replace") if file.exists() else ""


def run_named(file: Path, name: str) -> Run:
    """A run that the record holds."""
    return next(run for run in runs(text_of(file)) if run.id == name)


def step_check(definition: Definition, args: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what cannot be meant; say whether somebody sits at a terminal."""
    check(definition, args["given"], args["environment"], args["confirm"])
    # An action runs in a child of ansible-playbook, without its terminal.
    return {"interactive": os.path.realpath(f"/proc/{os.getppid()}/fd/0").startswith(("/dev/pts/", "/dev/tty"))}


def step_open(definition: Definition, args: Mapping[str, Any]) -> dict[str, Any]:
    """Find the run to go on with, or name a new one."""
    file = record(definition, args)
    merge(file, args["copy"])
    run = resumable(text_of(file), definition, args["restart"])
    name = run.id if run else f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    return {
        "run": name,
        "resumes": run is not None,
        "plan": run.plan if run else {},
        "outcome": run.outcome if run else {},
        "done": list(run.done) if run else [],
        "record": str(file),
    }


def step_plan(definition: Definition, args: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as a text."""
    check_plan(args["plan"])
    run = resumable(text_of(record(definition, args)), definition, args["restart"])
    return {"text": plan_text(definition, args["environment"], args["plan"], run, args["more"])}


def step_write(definition: Definition, args: Mapping[str, Any]) -> dict[str, Any]:
    """Append an event; a run that begins says who, from which commit and with what, and ends the one it replaces."""
    file, now, details = record(definition, args), datetime.datetime.now(datetime.UTC), dict(args["details"])
    if args["event"] == "begun":
        check_plan(details["plan"])
        left = unfinished(text_of(file))
        if left:
            append(file, left.id, "abandoned", now, who=holder())
        details["arguments"] = definition.arguments
    if args["event"] in ("begun", "resumed"):
        details |= {"who": holder(), "commit": commit()}
    if args["event"] == "done":
        begun = datetime.datetime.fromisoformat(run_named(file, args["run"]).stopped_since)
        details["seconds"] = round((now - begun).total_seconds(), 1)
    append(file, args["run"], args["event"], now, **details)
    return {}


def step_close(definition: Definition, args: Mapping[str, Any]) -> dict[str, Any]:
    """What was done, as a text."""
    file = record(definition, args)
    run = run_named(file, args["run"])
    lines = [f"{definition.incident}: recovered and proven in {sum(run.done.values()):.0f} s of work"]
    lines += [f"  {name:<8} {seconds:.1f} s" for name, seconds in run.done.items()]
    lines += [f"  {name:<8} {value}" for name, value in run.outcome.items()]
    return {"text": "\n".join([*lines, f"  record   {file}"])}


def commit() -> str:
    """The commit that acts here; `unknown` outside of git."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--tags"],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return said.stdout.strip() or "unknown"


STEPS = {"check": step_check, "open": step_open, "plan": step_plan, "write": step_write, "close": step_close}
