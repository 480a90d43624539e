"""A secret is replaced once, whatever interrupts it, and its former value is known until it is forgotten."""

from pathlib import Path

import pytest

from lib.plugins import load_plugin

rotation = load_plugin("action", "secret_rotation")
SECRETS = {"jwt_secret": "jwt", "postgres_app_password": "postgres_app"}
USERS = {"postgres_app_user": ["app", "app2"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Secrets as they were drawn at first use."""
    for name in SECRETS.values():
        (tmp_path / name).write_text(f"old {name}\n")
    return tmp_path


def test_a_secret_is_moved_and_the_other_user_takes_over(folder: Path) -> None:
    assert rotation.draw(folder, SECRETS, USERS)
    assert not (folder / "jwt").exists()
    assert (folder / "former" / "jwt_secret").read_text() == "old jwt\n"
    assert (folder / "former" / "jwt_secret").stat().st_mode & 0o777 == 0o600
    assert (folder / "postgres_app_user").read_text() == "app2"


def test_a_second_time_draws_nothing(folder: Path) -> None:
    rotation.draw(folder, SECRETS, USERS)
    (folder / "jwt").write_text("new\n")
    assert not rotation.draw(folder, SECRETS, USERS)
    assert (folder / "jwt").read_text() == "new\n" and (folder / "postgres_app_user").read_text() == "app2"


def test_an_interrupted_one_is_finished(folder: Path) -> None:
    (folder / "former").mkdir()
    (folder / "former" / "jwt_secret").write_text("old jwt\n")
    assert rotation.draw(folder, SECRETS, USERS)
    assert not (folder / "jwt").exists()


def test_users_take_turns(folder: Path) -> None:
    for user in ("app2", "app", "app2"):
        rotation.draw(folder, {}, USERS)
        assert (folder / "postgres_app_user").read_text() == user
        assert rotation.forget(folder)
    assert not rotation.forget(folder)
    assert list((folder / "former").iterdir()) == []


def test_a_secret_that_was_never_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="jwt"):
        rotation.draw(tmp_path, SECRETS, {})
