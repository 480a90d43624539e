"""The workflows only type what a person could, and are what GitHub and the project's rules want of them."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lib.fleet import REPOSITORY
from lib.go_tools import program

FOLDER = REPOSITORY / ".github" / "workflows"
WORKFLOWS = sorted(path.name for path in FOLDER.glob("*.yml"))
VERBS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
# What act cannot prove, and so is a step of its own that does nothing else: docs/workflows.md lists them.
ONLY_GITHUB = {"ansible/bin/github-token", 'make publish VERSION="$VERSION"'}


def document(name: str) -> dict[Any, Any]:
    """A workflow. YAML reads its `on` as true."""
    found: dict[Any, Any] = yaml.safe_load((FOLDER / name).read_text())
    return found


def steps(name: str) -> Iterator[dict[str, Any]]:
    """All steps of a workflow."""
    for job in document(name)["jobs"].values():
        yield from job.get("steps", [])


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run(
        [program("actionlint"), "-no-color"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_actionlint_can_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("on: push\njobs: {a: {runs-on: ubuntu-24.04, steps: [{run: 'echo ${{ nowhere.x }}'}]}}\n")
    done = subprocess.run([program("actionlint"), "-no-color", bad], capture_output=True, text=True, check=False)
    assert "nowhere" in done.stdout


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_step_is_a_verb(name: str) -> None:
    for step in steps(name):
        if "run" not in step:
            continue
        words = step["run"].split()
        known = words[0] == "make" and next(word for word in words[1:] if not word.startswith("-")) in VERBS
        script = (REPOSITORY / words[0]).is_file()
        assert known or script, (
            f"{step['run']}: a workflow types what a person could: a verb of make, or a file that is there"
        )
        assert "\n" not in step["run"].strip(), f"{step['run']}: one verb a step"
        assert "${{" not in step["run"], (
            f"{step['run']}: what comes from outside goes through `env`, or a shell reads it"
        )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_and_rights_are_few(name: str) -> None:
    text = (FOLDER / name).read_text()
    for used in re.findall(r"uses: (\S+.*)", text):
        assert used.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used
    found = document(name)
    assert found["permissions"] == {"contents": "read"}, "rights are given to the job that needs them"
    for job in found["jobs"].values():
        assert set(job.get("permissions", {}).values()) <= {"read", "write"}
        assert "pull_request_target" not in text


@pytest.mark.parametrize("name", WORKFLOWS)
def test_conditions_are_for_what_is_configured_and_never_for_a_test(name: str) -> None:
    allowed = {
        "vars.ARCHES_SSH_ISSUER", "vars.PROMOTE != 'dispatch'", "always()", "github.event_name == 'schedule'",
        "needs.check.outputs.roles != '[]'",
    }  # fmt: skip
    conditions = {job["if"] for job in document(name)["jobs"].values() if "if" in job}
    conditions |= {step["if"] for step in steps(name) if "if" in step}
    assert conditions <= allowed, conditions - allowed
    assert "env.ACT" not in (FOLDER / name).read_text()


def test_what_only_github_can_do_is_listed() -> None:
    page = (REPOSITORY / "docs" / "workflows.md").read_text()
    for verb in ONLY_GITHUB:
        assert verb.split(" VERSION")[0] in page, verb
        assert sum(step.get("run") == verb for name in WORKFLOWS for step in steps(name)) > 0


def test_recover_offers_every_playbook() -> None:
    offered = document("recover.yml")[True]["workflow_dispatch"]["inputs"]["incident"]["options"]
    assert offered == sorted(path.stem for path in (REPOSITORY / "ansible" / "recover").glob("*.yml"))


@pytest.mark.parametrize("name", ["rollback.yml", "recover.yml"])
def test_dispatches_offer_the_environments_that_are_there(name: str) -> None:
    offered = document(name)[True]["workflow_dispatch"]["inputs"]["environment"]["options"]
    assert all((REPOSITORY / "inventories" / environment / "hosts.yml").exists() for environment in offered)
