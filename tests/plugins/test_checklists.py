"""The verbs of workflows: checklists, previews, notes, keys."""

import subprocess
from pathlib import Path

import pytest

import checklist
import preview
from checklist import Failed, Point, Skipped
from lib.plugins import load_script
from reach import Refused

access, publish = load_script("access"), load_script("publish")

CHECK = """\
PLAY [The edge balances] *******************************************************

TASK [nginx : Configure nginx] *************************************************
--- before: /etc/nginx/nginx.conf
+++ after: /etc/nginx/nginx.conf
-worker_connections 512;
+worker_connections 1024;
changed: [edge1]

TASK [nginx : Start nginx] *****************************************************
ok: [edge1]

PLAY RECAP *********************************************************************
api1                       : ok=31   changed=0    unreachable=0    failed=0    skipped=5    rescued=0    ignored=0
edge1                      : ok=16   changed=1    unreachable=0    failed=0    skipped=3    rescued=0    ignored=0
"""


def fails() -> str:
    raise Failed("it is broken: mend it")


def skips() -> str:
    raise Skipped("nobody knows")


def test_a_checklist_tells_each_point_and_fails_when_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert checklist.run([Point("A", lambda: "well"), Point("B", skips)]) == 0
    assert checklist.run([Point("A", lambda: "well"), Point("B", fails), Point("C", lambda: "too")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "pass  A: well", "skip  B: nobody knows", "pass  A: well", "FAIL  B: it is broken: mend it", "pass  C: too",
    ]  # fmt: skip


def test_a_command_that_is_missing_is_no_failure_and_one_that_fails_says_why() -> None:
    with pytest.raises(Skipped, match="no-such-command is not installed"):
        checklist.output("no-such-command")
    with pytest.raises(Failed, match="Needed a single revision"):
        checklist.output("git", "rev-parse", "--verify", "nowhere^{commit}^")


def test_a_preview_shows_what_would_change_and_where() -> None:
    found = preview.read_check(CHECK)
    assert [name for name, _ in found.tasks] == ["nginx : Configure nginx"]
    assert found.changed == {"edge1": 1}
    text = preview.page("staging beside c0ffee", found)
    assert "1 tasks would change something on edge1 (1)" in text and "+worker_connections 1024;" in text
    assert "Nothing would change" in preview.page("x", preview.read_check(CHECK.replace("changed: [", "ok: [")))


def test_a_page_stays_within_what_github_takes() -> None:
    found = preview.Difference([("long", "x" * 100_000)], {"edge1": 1})
    assert len(preview.page("x", found)) < 65_000


def test_notes_tell_what_was_merged_since_the_tag_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--quiet")
    for subject, tag in (("First", "v1.0.0"), ("A search that finds", ""), ("And one more", "v1.1.0")):
        git("commit", "--quiet", "--allow-empty", "-m", subject)
        if tag:
            git("tag", tag)
    monkeypatch.setattr(checklist, "REPOSITORY", tmp_path)
    text = publish.notes("v1.1.0")
    assert text.startswith("Changes since v1.0.0:") and "- A search that finds (" in text and "First" not in text
    assert "- First (" in publish.notes("v1.0.0")
    with pytest.raises(Failed):
        publish.notes("v9.9.9")


def environment(folder: Path, provider: str) -> Path:
    """The files of an environment that `access` reads."""
    inventory = folder / "inventories" / "x"
    (inventory / "group_vars" / "all").mkdir(parents=True)
    (folder / "inventories" / "shared").mkdir()
    (inventory / "hosts.yml").write_text("all: {children: {api: {hosts: {api1: {address: 192.0.2.1}}}}}")
    (folder / "inventories" / "shared" / "services.yml").write_text("services: {}")
    (inventory / "group_vars" / "all" / "main.yml").write_text(f"machine_provider: {provider}")
    (inventory / "group_vars" / "all" / "sizes.yml").write_text("sizes: {}")
    return inventory


def test_access_writes_keys_that_only_this_user_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = environment(tmp_path, "none")
    monkeypatch.setenv("ARCHES_SSH_KNOWN_HOSTS", "192.0.2.1 ssh-ed25519 AAAA")
    monkeypatch.setenv("ARCHES_SSH_KEY", "a key")
    access.let_in(inventory)
    key = inventory / ".state/ssh/id_ed25519"
    assert key.read_text() == "a key\n" and key.stat().st_mode & 0o777 == 0o600
    assert access.let_in(inventory), "once more is fine"


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"ARCHES_SSH_KEY": "k"}, "ARCHES_SSH_KNOWN_HOSTS is empty"),
        ({"ARCHES_SSH_KNOWN_HOSTS": "h"}, "ARCHES_SSH_KEY is empty, and no ARCHES_SSH_ISSUER"),
        ({"ARCHES_SSH_KNOWN_HOSTS": "h", "ARCHES_SSH_ISSUER": "http://x"}, "has to begin with https://"),
    ],
)
def test_access_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str
) -> None:
    for name in ("ARCHES_SSH_KNOWN_HOSTS", "ARCHES_SSH_KEY", "ARCHES_SSH_ISSUER"):
        monkeypatch.setenv(name, variables.get(name, ""))
    with pytest.raises(Refused, match=says):
        access.let_in(environment(tmp_path, "none"))
    assert access.let_in(environment(tmp_path / "local", "nspawn")).startswith("local machines bring keys")
