"""Which files are run, and which are refused."""

from pathlib import Path

import pytest

from arches_api.migrate import Migration, MigrationError, newest_level, pending, read_migrations

ONE, TWO, THREE = (Migration(n, f"000{n}_step", f"SELECT {n}") for n in (1, 2, 3))


def applied(*migrations: Migration) -> dict[int, tuple[str, str]]:
    """What the database would say."""
    return {migration.version: (migration.name, migration.checksum) for migration in migrations}


def test_what_is_new_is_pending_in_order() -> None:
    assert pending([ONE, TWO, THREE], applied(ONE)) == [TWO, THREE]
    assert pending([ONE, TWO], applied(ONE, TWO)) == []


def test_a_database_ahead_of_the_release_is_fine() -> None:
    assert pending([ONE, TWO], applied(ONE, TWO, THREE)) == []


def test_a_changed_file_is_refused() -> None:
    with pytest.raises(MigrationError, match=r"0001_step.sql was changed .* write a new migration"):
        pending([Migration(1, "0001_step", "SELECT 42"), TWO], applied(ONE))


def test_a_late_file_is_refused() -> None:
    with pytest.raises(MigrationError, match="comes before migration 3, which is applied: give it the next number"):
        pending([ONE, TWO, THREE], applied(ONE, THREE))


def test_a_lost_file_is_refused() -> None:
    with pytest.raises(MigrationError, match="has migration 0001_step, this release has no such file"):
        pending([TWO, THREE], applied(ONE))


def test_numbers_follow_each_other(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text("SELECT 1")
    (tmp_path / "0003_b.sql").write_text("SELECT 1")
    with pytest.raises(MigrationError, match="0002"):
        read_migrations(tmp_path)


def test_headers_are_read() -> None:
    assert ONE.in_transaction and ONE.requires_code == 0
    outside = Migration(4, "0004_index", "-- no-transaction\nCREATE INDEX CONCURRENTLY x ON y (z)")
    assert not outside.in_transaction
    assert Migration(5, "0005_drop", "-- Contract.\n-- requires-code: 4\nDROP TABLE x").requires_code == 4


def test_our_own_files_are_in_order_and_carry_no_grants() -> None:
    migrations = read_migrations()
    assert len(migrations) == newest_level() >= 2
    assert all("GRANT" not in migration.sql for migration in migrations)
