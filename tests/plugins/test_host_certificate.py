"""The actions around certificates as playbooks use them: real runs on this machine in a temporary folder."""

from __future__ import annotations

import grp
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lib.plugins import load_plugin

environment_ca = load_plugin("action", "environment_ca")
host_certificate = load_plugin("action", "host_certificate")
EDGE = {"name": "edge", "common_name": "b", "names": ["b"]}


@pytest.fixture
def tasks(tmp_path: Path) -> list[dict[str, Any]]:
    """The CA is made, then the certificates of a host; paths are in tmp_path."""
    ca = {"key": f"{tmp_path}/state/ca.key", "certificate": f"{tmp_path}/state/ca.crt", "name": "test"}
    host = {
        "folder": f"{tmp_path}/tls",
        "group": grp.getgrgid(os.getegid()).gr_name,
        "ca_key": f"{{{{ lookup('ansible.builtin.file', '{ca['key']}') }}}}",
        "ca_certificate": f"{{{{ lookup('ansible.builtin.file', '{ca['certificate']}') }}}}",
        "signed": [{"name": "host", "common_name": "a", "names": ["a", "127.0.0.1"]}],
    }
    return [{"name": "CA", "environment_ca": ca}, {"name": "Host", "host_certificate": host}]


def test_checked_then_made_then_left_alone(
    tasks: list[dict[str, Any]], run_play: Callable[..., Any], tmp_path: Path
) -> None:
    ca, host = tasks
    folder = host["host_certificate"]["folder"]
    more = {**host["host_certificate"], "signed": [*host["host_certificate"]["signed"], EDGE]}
    play = run_play(
        "-vvv",
        "--diff",
        tasks=[
            ca,
            {**host, "name": "Checked", "check_mode": True},
            {"name": "Nothing yet", "ansible.builtin.stat": {"path": folder}},
            host,
            {"name": "Modes", "ansible.builtin.command": f"stat -c '%n %a' {folder}/host.key {folder}/host.crt"},
            {**host, "name": "Again"},
            {"name": "Spoil", "ansible.builtin.file": {"path": f"{folder}/host.key", "mode": "0644"}},
            {**host, "name": "One more", "host_certificate": more},
            {**ca, "name": "CA again"},
        ],
    )
    assert play.code == 0, play.output
    assert "PRIVATE KEY" not in play.output
    assert {name: task["changed"] for name, task in play.tasks.items() if "diff" in task or "CA" in name} == {
        "CA": True,
        "Checked": True,
        "Host": True,
        "Again": False,
        "Spoil": True,
        "One more": True,
        "CA again": False,
    }
    assert "new certificate for a, 127.0.0.1, because there is none" in str(play.tasks["Checked"]["diff"])
    assert not play.tasks["Nothing yet"]["stat"]["exists"]
    assert play.tasks["Modes"]["stdout"].split() == [f"{folder}/host.key", "640", f"{folder}/host.crt", "644"]
    assert "host.crt" not in str(play.tasks["One more"]["diff"]) and "edge.crt" in str(play.tasks["One more"]["diff"])
    assert stat.S_IMODE((tmp_path / "tls/host.key").stat().st_mode) == 0o640
    assert (tmp_path / "tls/ca.crt").read_text() == (tmp_path / "state/ca.crt").read_text()


def test_a_given_certificate_wins_over_a_signed_one(
    tasks: list[dict[str, Any]], run_play: Callable[..., Any], tmp_path: Path
) -> None:
    key = environment_ca.new_key()
    now = host_certificate.datetime.datetime.now(host_certificate.datetime.UTC)
    given = {"name": "host", "key": key, "certificate": environment_ca.new_authority(key, "elsewhere", 90, now)}
    tasks[1]["host_certificate"]["given"] = [given]
    play = run_play("-vvv", tasks=[*tasks, {**tasks[1], "name": "Again"}])
    assert play.code == 0 and play.tasks["Host"]["changed"] and not play.tasks["Again"]["changed"], play.output
    assert (tmp_path / "tls/host.crt").read_text() == given["certificate"]
    assert (tmp_path / "tls/host.key").read_text() == key
    # The play's own text carries the key (json of the tasks); what Ansible prints about it must not.
    assert key.splitlines()[1] not in play.output


def test_a_ca_that_lost_its_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    paths = tmp_path / "state/ca.key", tmp_path / "state/ca.crt"
    assert environment_ca.ensure(*paths, "test", 10) and not environment_ca.ensure(*paths, "test", 10)
    assert stat.S_IMODE(paths[0].stat().st_mode) == 0o600 and stat.S_IMODE(paths[0].parent.stat().st_mode) == 0o700
    certificate = paths[1].read_text()
    paths[1].unlink()  # cut off between the two: the key is kept
    assert environment_ca.ensure(*paths, "test", 10)
    assert json.dumps(certificate) != json.dumps(paths[1].read_text())
    paths[0].unlink()
    with pytest.raises(environment_ca.PkiError, match="has lost its key"):
        environment_ca.ensure(*paths, "test", 10)


def test_one_ca_follows_another_in_three_steps_that_can_be_repeated(tmp_path: Path) -> None:
    key, certificate = tmp_path / "ca.key", tmp_path / "ca.crt"
    environment_ca.ensure(key, certificate, "test", 10)
    old = key.read_text()

    def signer() -> tuple[int, int | None]:
        bundle = certificate.read_text()
        return environment_ca.authorities(bundle), environment_ca.signer(key.read_text(), bundle)

    assert environment_ca.trust(key, certificate, "test", 10)
    assert not environment_ca.trust(key, certificate, "test", 10)
    assert signer() == (2, 0) and key.read_text() == old
    assert environment_ca.sign(key, certificate)
    assert not environment_ca.sign(key, certificate)
    assert signer() == (2, 1) and (tmp_path / "ca.key.former").read_text() == old
    assert environment_ca.forget(key.read_text(), key, certificate)
    assert not environment_ca.forget(key.read_text(), key, certificate)
    assert signer() == (1, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ca.crt", "ca.key"]
    assert key.stat().st_mode & 0o777 == 0o600
    environment_ca.Authority(key.read_text(), certificate.read_text())


def test_a_new_ca_that_is_gone_signs_nothing(tmp_path: Path) -> None:
    key, certificate = tmp_path / "ca.key", tmp_path / "ca.crt"
    environment_ca.ensure(key, certificate, "test", 10)
    environment_ca.trust(key, certificate, "test", 10)
    (tmp_path / "ca.key.next").unlink()
    with pytest.raises(environment_ca.PkiError, match="step trust"):
        environment_ca.sign(key, certificate)
    assert environment_ca.signer(environment_ca.new_key(), certificate.read_text()) is None


def test_readers_are_grouped_by_owner() -> None:
    readers = [
        {"owner": "redis", "action": "a"},
        {"owner": "etcd", "action": "b"},
        {"owner": "redis", "action": "c"},
    ]
    assert host_certificate.owed_actions(readers) == {"redis": ["a", "c"], "etcd": ["b"]}
