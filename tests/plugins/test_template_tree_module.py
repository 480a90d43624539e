"""The target side of template_tree: comparing, validating, writing, and being interrupted."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lib.plugins import load_plugin

tree = load_plugin("modules", "template_tree")
USER = pwd.getpwuid(os.geteuid()).pw_name
GROUP = grp.getgrgid(os.getegid()).gr_name


def entry(path: str, content: str = "", **keys: Any) -> Any:
    """An entry that the user who runs the tests may write."""
    raw = {"owner": USER, "group": GROUP, "mode": "0644", "on_change": [], "validate": None, "kind": "file"}
    return tree.entry_from({"path": path, "content": content, **raw, "secret": False, "seed": False, **keys})


def run(words: list[str]) -> tuple[int, str, str]:
    """Run a validator as the module does."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def apply(root: Path, *entries: Any, check: bool = False) -> dict[str, Any]:
    """One run of the module's heart."""
    result: dict[str, Any] = tree.apply("toy", list(entries), str(root), check, run)
    return result


def leftovers(root: Path) -> list[Path]:
    """Temporary files that a run forgot."""
    return [path for path in root.rglob("*") if path.name.endswith(".arches-new")]


def test_writes_with_mode_and_missing_parents_then_changes_nothing(tmp_path: Path) -> None:
    files = [entry("etc/a/b/one.conf", "1\n", mode="0640", on_change=["restart", "reload"])]
    first = apply(tmp_path, *files)
    assert first["changed"] and first["changed_files"] == ["etc/a/b/one.conf"]
    assert first["actions"] == ["reload", "restart"]
    target = tmp_path / "etc/a/b/one.conf"
    assert target.read_text() == "1\n" and stat.S_IMODE(target.stat().st_mode) == 0o640
    assert stat.S_IMODE(target.parent.stat().st_mode) == 0o755
    (tmp_path / "var/lib/arches/pending/toy").unlink()
    before = target.stat()
    second = apply(tmp_path, *files)
    assert not second["changed"] and second["diff"] == [] and second["actions"] == []
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not leftovers(tmp_path)


def test_actions_are_owed_until_the_marker_goes(tmp_path: Path) -> None:
    apply(tmp_path, entry("a", "1", on_change=["restart"]))
    again = apply(tmp_path, entry("a", "1", on_change=["restart"]))
    assert again["changed"] and again["actions"] == ["restart"] and again["changed_files"] == []
    assert again["pending"] == ["restart"]
    more = apply(tmp_path, entry("a", "2", on_change=["reload"]), check=True)
    assert more["actions"] == ["reload", "restart"]
    (tmp_path / "var/lib/arches/pending/toy").unlink()
    assert not apply(tmp_path, entry("a", "1", on_change=["restart"]))["changed"]


@pytest.mark.parametrize("step", range(1, 5))
def test_a_run_cut_off_anywhere_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Die at the n-th rename (the first is the marker's): what was changed is always still owed."""
    files = [entry(name, name, on_change=[f"restart-{name}"]) for name in ("a", "b", "c")]
    real, calls = os.replace, []

    def dying(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == step:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        apply(tmp_path, *files)
    monkeypatch.setattr(os, "replace", real)
    result = apply(tmp_path, *files)
    assert result["actions"] == ["restart-a", "restart-b", "restart-c"]
    assert [(tmp_path / name).read_text() for name in ("a", "b", "c")] == ["a", "b", "c"]
    assert not leftovers(tmp_path)


def test_a_change_makes_others_owe_their_action(tmp_path: Path) -> None:
    (tmp_path / "var/lib/arches/pending").mkdir(parents=True)
    (tmp_path / "var/lib/arches/pending/redis").write_text('["restart"]')
    others = {"redis": ["reload"], "etcd": ["restart"]}
    tree.apply("toy", [entry("a", "1")], str(tmp_path), False, run, others)
    markers = {path.name: path.read_text() for path in (tmp_path / "var/lib/arches/pending").iterdir()}
    assert markers == {"redis": '["reload", "restart"]', "etcd": '["restart"]'}
    (tmp_path / "var/lib/arches/pending/etcd").unlink()
    assert not tree.apply("toy", [entry("a", "1")], str(tmp_path), False, run, others)["changed"]
    assert not (tmp_path / "var/lib/arches/pending/etcd").exists()


def test_check_mode_touches_nothing_even_without_user_or_validator(tmp_path: Path) -> None:
    result = apply(
        tmp_path,
        entry("etc/new/a", "1\n", owner="no-such-user", group="no-such-group", validate="no-such-checker %s"),
        entry("srv/dir", kind="directory", owner="no-such-user"),
        check=True,
    )
    assert result["changed_files"] == ["etc/new/a", "srv/dir"]
    assert list(tmp_path.iterdir()) == []


def test_missing_user_or_validator_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    for wrong, word in ({"owner": "no-such-user"}, "no-such-user"), ({"validate": "no-such-checker %s"}, "no-such-ch"):
        with pytest.raises(tree.TreeError, match=word):
            apply(tmp_path, entry("a", "fine"), entry("b", "bad", **wrong))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("check", [False, True])
def test_one_refused_file_stops_all_of_them(tmp_path: Path, check: bool) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(tree.TreeError, match="refused the new content"):
        apply(
            tmp_path,
            entry("a", "new", validate="grep -q new %s", on_change=["restart"]),
            entry("z", "bad", validate="grep -q good %s"),
            check=check,
        )
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_validator_sees_the_files_own_name_and_mode(tmp_path: Path) -> None:
    seen = []

    def look(words: list[str]) -> tuple[int, str, str]:
        seen.append((Path(words[-1]).name, stat.S_IMODE(os.stat(words[-1]).st_mode)))
        return 0, "", ""

    tree.apply("toy", [entry("etc/x.service", "1", mode="0600", validate="true %s")], str(tmp_path), False, look)
    assert seen == [("x.service", 0o600)]


def test_a_secret_is_in_no_diff_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old hunter1")
    result = apply(tmp_path, entry("a", "hunter2", secret=True))
    assert "hunter" not in str(result) and "secret" in str(result["diff"])
    with pytest.raises(tree.TreeError) as error:
        apply(tmp_path, entry("a", "hunter3", secret=True, validate="grep . /dev/null %s --no-such-option"))
    assert "hunter" not in str(error.value)
    assert (tmp_path / "a").read_text() == "hunter2"


def test_seed_writes_once_and_keeps_what_the_product_wrote(tmp_path: Path) -> None:
    assert apply(tmp_path, entry("a", "seed", seed=True))["changed"]
    (tmp_path / "a").write_text("rewritten")
    (tmp_path / "a").chmod(0o600)
    assert not apply(tmp_path, entry("a", "seed", seed=True))["changed"]
    assert (tmp_path / "a").read_text() == "rewritten" and stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_remove_takes_only_the_named_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    result = apply(tmp_path, entry("a", kind="absent", on_change=["reload"]), entry("gone/x", kind="absent"))
    assert result["changed_files"] == ["a"] and result["actions"] == ["reload"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["b", "var"]


def test_mode_alone_is_a_change_with_a_diff(tmp_path: Path) -> None:
    apply(tmp_path, entry("a", "1"))
    inode = (tmp_path / "a").stat().st_ino
    result = apply(tmp_path, entry("a", "1", mode="0600"))
    assert result["diff"][0]["before"] == f"{USER}:{GROUP} 0644\n"
    assert result["diff"][0]["after"] == f"{USER}:{GROUP} 0600\n"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600 and (tmp_path / "a").stat().st_ino == inode


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a").symlink_to("victim")
    assert apply(tmp_path, entry("a", "precious"))["changed"]
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "victim").read_text() == "precious"


def test_directories_get_owner_and_mode_and_keep_their_content(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    (tmp_path / "d/kept").write_text("1")
    result = apply(tmp_path, entry("d", kind="directory", mode="0700"), entry("e/f", kind="directory", mode="0750"))
    assert result["changed_files"] == ["d", "e/f"]
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700 and (tmp_path / "d/kept").exists()
    assert stat.S_IMODE((tmp_path / "e/f").stat().st_mode) == 0o750


def test_a_folder_where_a_file_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(tree.TreeError, match="is a directory on this host"):
        apply(tmp_path, entry("a", "1"))


def test_no_room_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tree.write_copy

    def full(path: str, change: Any) -> None:
        real(path, change)
        if change.entry.path == "x/b":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tree, "write_copy", full)
    with pytest.raises(tree.TreeError, match="/x/b: No space left on device"):
        apply(tmp_path, entry("x/a", "1"), entry("x/b", "2"))
    assert list(tmp_path.iterdir()) == []


def test_a_marker_that_is_not_ours_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "var/lib/arches/pending/toy"
    marker.parent.mkdir(parents=True)
    marker.write_text("restart")
    with pytest.raises(tree.TreeError, match="Delete it"):
        apply(tmp_path, entry("a", "1"))
