"""template_tree as roles use it: real playbook runs on this machine against a temporary root."""

from __future__ import annotations

import grp
import json
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail

from lib.plugins import load_plugin

action = load_plugin("action", "template_tree")

OWN = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A role with two templates, one of which includes a part."""
    templates = tmp_path / "roles/toy/templates"
    (templates / "etc/toy").mkdir(parents=True)
    (templates / "etc/toy/a.conf.j2").write_text(
        "# {{ ansible_managed }}\n{% if true %}\nport {{ port }}\n{% endif %}\n"
    )
    (templates / "etc/toy/b.conf.j2").write_text("[{% include 'etc/toy/_part.j2' %}]\nsecret {{ word }}\n")
    (templates / "etc/toy/_part.j2").write_text("part of {{ port }}\n")
    (tmp_path / "roles/toy/tasks").mkdir()
    return tmp_path


def tree_task(toy: Path, files: dict[str, Any], **keys: Any) -> None:
    """Write the role's one task."""
    owned = {path: entry if entry is None else {**OWN, **entry} for path, entry in files.items()}
    task = {"name": "Tree", "template_tree": {"owner": "toy", "root": f"{toy}/root", "files": owned, **keys}}
    (toy / "roles/toy/tasks/main.yml").write_text(json.dumps([task]))


VARIABLES = {"port": 6379, "word": "hunter2"}
BOTH = {"etc/toy/a.conf": {"on_change": ["restart"]}, "etc/toy/b.conf": {"secret": True}}


def test_a_role_renders_its_tree_in_one_module_run(toy: Path, run_play: Callable[..., Any]) -> None:
    tree_task(toy, BOTH)
    role = {"ansible.builtin.include_role": {"name": "toy"}}
    play = run_play(
        "-vvv",
        "--diff",
        vars=VARIABLES,
        tasks=[
            {**role, "name": "Check", "ansible.builtin.include_role": {"name": "toy", "apply": {"check_mode": True}}},
            {"name": "Nothing yet", "ansible.builtin.stat": {"path": f"{toy}/root"}},
            role,
        ],
    )
    assert play.code == 0, play.output
    assert not play.tasks["Nothing yet"]["stat"]["exists"]
    for result in play.all_of("Tree"):
        assert result["changed_files"] == ["etc/toy/a.conf", "etc/toy/b.conf"]
        assert result["actions"] == ["restart"]
        assert "port 6379" in result["diff"][0]["after"]
    assert len(play.all_of("Tree")) == 2
    assert "hunter2" not in play.output
    assert (toy / "root/etc/toy/a.conf").read_text() == (
        "# Written by Ansible from roles/toy/templates/etc/toy/a.conf.j2: change it there.\nport 6379\n"
    )
    assert (toy / "root/etc/toy/b.conf").read_text() == "[part of 6379]\nsecret hunter2\n"


def test_a_value_from_outside_is_never_rendered_twice_and_when_false_leaves_alone(
    toy: Path, run_play: Callable[..., Any]
) -> None:
    """Results of modules are data: `{{ }}` in them stays as it is."""
    tree_task(toy, {"etc/toy/a.conf": {}, "etc/toy/b.conf": {"when": "{{ 1 == 2 }}"}})
    echo = {"name": "Ask", "ansible.builtin.command": "printf '{{ '{{ 1 + 1 }}' }}'", "register": "asked"}
    play = run_play(pre_tasks=[echo], roles=["toy"], vars={"port": "{{ asked.stdout }}"})
    assert play.code == 0, play.output
    assert "port {{ 1 + 1 }}\n" in (toy / "root/etc/toy/a.conf").read_text()
    assert not (toy / "root/etc/toy/b.conf").exists()


def test_an_undefined_variable_names_the_template(toy: Path, run_play: Callable[..., Any]) -> None:
    tree_task(toy, BOTH)
    play = run_play(roles=["toy"], vars={"port": 1})
    assert play.code == 2
    assert "roles/toy/templates/etc/toy/b.conf.j2: " in play.tasks["Tree"]["msg"] and "word" in play.output
    assert not (toy / "root").exists()


@pytest.mark.parametrize(
    ("path", "keys", "expected"),
    [
        ("etc/a", {"onchange": []}, "etc/a: unknown key onchange. Known keys: owner"),
        ("etc/a", {"mode": 420}, "Write it quoted"),
        ("etc/a", {"mode": "u=rw"}, "Write it quoted"),
        ("etc/a", {"secret": "yes"}, "Write true or false"),
        ("etc/a", {"on_change": "restart"}, r"Write a list: \[restart\]"),
        ("etc/a", {"validate": "check"}, "Write %s in it"),
        ("etc/a", "0644", "write a mapping"),
        ("/etc/a", {}, "relative to the root"),
        ("../etc/a", {}, "relative to the root"),
    ],
)
def test_a_wrong_entry_names_the_fix(path: str, keys: Any, expected: str) -> None:
    with pytest.raises(AnsibleActionFail, match=expected):
        action.read_keys(path, keys, action.FILE_KEYS)


def test_templates_and_files_must_name_each_other(toy: Path) -> None:
    folder = toy / "roles/toy/templates"
    found = action.find_templates(str(folder))
    assert found == {"etc/toy/a.conf", "etc/toy/b.conf"}
    a, gone = action.read_keys("a", {}, action.FILE_KEYS), action.read_keys("a", {"remove": True}, action.FILE_KEYS)
    action.match_names({"etc/toy/a.conf": a, "etc/toy/b.conf": a, "etc/toy/old": gone}, found, "toy")
    with pytest.raises(AnsibleActionFail, match=r"toy/etc/toy/b\.conf\.j2 is not named in"):
        action.match_names({"etc/toy/a.conf": a}, found, "toy")
    with pytest.raises(AnsibleActionFail, match=r"toy/etc/toy/c\.conf\.j2 does not exist"):
        action.match_names(dict.fromkeys([*found, "etc/toy/c.conf"], a), found, "toy")
    (folder / "plain.conf").write_text("")
    with pytest.raises(AnsibleActionFail, match=r"name it plain\.conf\.j2"):
        action.find_templates(str(folder))
