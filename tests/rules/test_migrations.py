"""Migrations widen: the release before works on with the new schema, and nothing waits for a lock that a table needs.

Squawk knows what blocks and what breaks clients; a justified exception is a comment `-- squawk-ignore <rule>` with the
reason. What a migration takes away (a file that says `-- requires-code: N`) must be unknown to the release before.
"""

import ast
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from artefact.tag import VERSION, git, order
from rules.repository import Repository, Rule

SOURCES = "app/src/arches_api/"
MIGRATIONS = f"{SOURCES}migrations/"
SQUAWK = Path(sys.executable).with_name("squawk")
# The runner sets both timeouts; `IF NOT EXISTS` would pass over an index that is only half built; the rest is taste.
NOT_ASKED = [
    "require-lock-timeout", "require-statement-timeout", "prefer-robust-stmts", "prefer-bigint-over-int",
    "prefer-bigint-over-smallint", "prefer-text-field", "prefer-identity",
]  # fmt: skip
TAKES_AWAY = ["ban-drop-column", "ban-drop-table"]
CONTRACT = re.compile(r"^-- requires-code: (\d+)$", re.MULTILINE)


def migrations_do_not_block(repository: Repository) -> Iterator[str]:
    """Neither a statement that blocks nor one that breaks those who work."""
    for file in repository.match(f"{MIGRATIONS}*.sql"):
        text = repository.text(file)
        allowed = [*NOT_ASKED, *(TAKES_AWAY if CONTRACT.search(text) else [])]
        command = [str(SQUAWK), "--reporter=json", "--pg-version=17", f"--exclude={','.join(allowed)}"]
        if not text.startswith("-- no-transaction\n"):
            command.append("--assume-in-transaction")
        done = subprocess.run([*command, str(repository.root / file)], capture_output=True, text=True, check=False)
        for found in json.loads(done.stdout):
            yield f"{file}:{found['line'] + 1}: {found['rule_name']}: {found['message']} {found.get('help') or ''}"


def transactions_fit(repository: Repository) -> Iterator[str]:
    """What is built beside the work needs no transaction around it, and then there is nothing to take back."""
    for file in repository.match(f"{MIGRATIONS}*.sql"):
        statements = [part for part in sql(repository, file).split(";") if part.strip()]
        alone = repository.text(file).startswith("-- no-transaction\n")
        if not alone and any(re.search(r"\bconcurrently\b", statement) for statement in statements):
            yield f"{file}: CONCURRENTLY works outside of a transaction only: begin the file with `-- no-transaction`"
        if alone and len(statements) != 1:
            yield f"{file}: has {len(statements)} statements and no transaction: give each a file of its own"


def timeouts_are_the_runners(repository: Repository) -> Iterator[str]:
    """An ALTER that waits for a lock without an end holds up everybody behind it."""
    for file in repository.match(f"{MIGRATIONS}*.sql"):
        for match in re.finditer(
            r"\bset\s+(?:local\s+|session\s+)?((?:lock|statement)_timeout)\b", sql(repository, file)
        ):
            yield f"{file}: sets {match[1]}; leave it to the runner, which gives way after 2 s and tries again"


def what_is_taken_away_is_used_no_more(repository: Repository) -> Iterator[str]:
    """While a release is rolled out, and after it is rolled back, the one before works with the new schema."""
    before = release_before(repository)
    level = sum(file.startswith(MIGRATIONS) for file in before)
    statements = [text for file, source in before.items() if file.endswith(".py") for text in strings(source)]
    for file in repository.match(f"{MIGRATIONS}*.sql"):
        if not before or file in before:
            continue
        needed = CONTRACT.search(repository.text(file))
        if needed and int(needed[1]) > level:
            yield f"{file}: requires-code: {needed[1]}, but the release before ends at {level}: wait for the next one"
        for names in taken_away(sql(repository, file)):
            if any(all(re.search(rf"\b{name}\b", statement) for name in names) for statement in statements):
                yield f"{file}: drops {'.'.join(names)}, which the release before names: wait for the next one"


def sql(repository: Repository, file: str) -> str:
    """A migration without its comments, in lower case."""
    return re.sub(r"--.*", "", repository.text(file)).lower()


def taken_away(text: str) -> Iterator[tuple[str, ...]]:
    """What a migration drops: a table, or a table and its column."""
    name = r'(?:if\s+exists\s+)?(?:"?\w+"?\.)?"?(\w+)"?'
    for match in re.finditer(rf"\bdrop\s+table\s+{name}", text):
        yield (match[1],)
    for table in re.finditer(rf"\balter\s+table\s+(?:only\s+)?{name}([^;]*)", text):
        for column in re.finditer(rf"\bdrop\s+column\s+{name}", table[2]):
            yield table[1], column[1]


def strings(source: str) -> Iterator[str]:
    """The texts in a Python file, in lower case: SQL stands in such."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.lower()


def release_before(repository: Repository) -> Mapping[str, str]:
    """The API's sources in the newest release that this commit follows; empty while there is none (or no tag here)."""
    tags = git(repository.root, "tag", "--merged", "HEAD", "--no-contains", "HEAD").stdout.decode().split()
    versions = sorted((tag for tag in tags if VERSION.fullmatch(tag)), key=order)
    if not versions:
        return {}
    archive = git(repository.root, "archive", "--format=tar", versions[-1], SOURCES).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        streams = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        return {name: stream.read().decode(errors="replace") for name, stream in streams.items() if stream is not None}


RULES = [migrations_do_not_block, transactions_fit, timeouts_are_the_runners, what_is_taken_away_is_used_no_more]
# The release before: one table with a column that it uses and one that it does not.
RELEASED = {
    f"{MIGRATIONS}0001_users.sql": "CREATE TABLE users (id bigint PRIMARY KEY, nick text, shoe text);\n",
    f"{SOURCES}models/users.py": 'SQL = """\nSELECT id, nick FROM users\n"""\nOTHER = "shoe"\n',
}
BROKEN: list[tuple[Rule, str, str]] = [
    (migrations_do_not_block, "CREATE INDEX users_nick ON users (nick);", ":1: require-concurrent-index-creation"),
    (migrations_do_not_block, "-- no-transaction\nCREATE INDEX users_nick ON users (nick);", ":2: require-concurrent"),
    (transactions_fit, "CREATE INDEX CONCURRENTLY i ON users (nick);", "begin the file with `-- no-transaction`"),
    (transactions_fit, "-- no-transaction\nSELECT 1;\nSELECT 2;", "has 2 statements and no transaction"),
    (migrations_do_not_block, "ALTER TABLE users ADD age bigint NOT NULL;", "adding-required-field"),
    (migrations_do_not_block, "ALTER TABLE users ADD CHECK (id > 3);", "constraint-missing-not-valid"),
    (migrations_do_not_block, "ALTER TABLE users ALTER nick TYPE bytea;", "changing-column-type"),
    (migrations_do_not_block, "ALTER TABLE users RENAME nick TO name;", "renaming-column"),
    (migrations_do_not_block, "ALTER TABLE users RENAME TO people;", "renaming-table"),
    (migrations_do_not_block, "ALTER TABLE users DROP COLUMN shoe;", "ban-drop-column"),
    (migrations_do_not_block, "DROP TABLE users;", "ban-drop-table"),
    (timeouts_are_the_runners, "SET lock_timeout = 0;", "sets lock_timeout; leave it to the runner"),
    (timeouts_are_the_runners, "set local Statement_Timeout to '1h';", "sets statement_timeout"),
    (what_is_taken_away_is_used_no_more, "ALTER TABLE users DROP COLUMN nick;", "drops users.nick, which the release"),
    (what_is_taken_away_is_used_no_more, 'ALTER TABLE ONLY "users" ADD x text,\n DROP COLUMN IF EXISTS nick;', "nick"),
    (what_is_taken_away_is_used_no_more, "DROP TABLE IF EXISTS public.users;", "drops users, which the release before"),
    (what_is_taken_away_is_used_no_more, "-- requires-code: 2\nSELECT 1;", "but the release before ends at 1"),
]  # fmt: skip
FINE = [
    "-- no-transaction\nCREATE INDEX CONCURRENTLY users_nick ON users (nick);\n",
    "ALTER TABLE users ADD COLUMN name text;\nALTER TABLE users ADD CONSTRAINT named CHECK (name <> '') NOT VALID;\n",
    "CREATE TABLE hats (id bigint PRIMARY KEY);\nCREATE INDEX hats_id ON hats (id);\n",
    # The release before works without it.
    "-- requires-code: 1\nALTER TABLE users DROP COLUMN shoe;\n",
]


@pytest.fixture
def released(tree: Callable[[Mapping[str, str]], Repository], tmp_path: Path) -> Callable[[str], Repository]:
    """A function that adds a migration after v1.0.0."""

    def commit(files: Mapping[str, str], *tag: str) -> Repository:
        made = tree(files)
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        for words in (["add", "."], [*who, "commit", "--quiet", "--message=x"], *([["tag", *tag]] if tag else [])):
            assert git(tmp_path, *words).returncode == 0
        return made

    def add(migration: str) -> Repository:
        git(tmp_path, "init", "--quiet")
        commit(RELEASED, "v1.0.0")
        return commit({**RELEASED, f"{MIGRATIONS}0002_next.sql": migration})

    return add


@pytest.mark.parametrize("check", RULES)
def test_repository_keeps_the_rule(check: Rule, repository: Repository) -> None:
    found = list(check(repository))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("check", "migration", "says"), BROKEN)
def test_a_bad_migration_is_found(
    check: Rule, migration: str, says: str, released: Callable[[str], Repository]
) -> None:
    found = list(check(released(migration)))
    assert any(says in finding for finding in found), found


@pytest.mark.parametrize("migration", FINE)
def test_a_good_migration_passes(migration: str, released: Callable[[str], Repository]) -> None:
    repository = released(migration)
    assert [finding for rule in RULES for finding in rule(repository)] == []


def test_what_was_released_is_not_asked_again(released: Callable[[str], Repository], tmp_path: Path) -> None:
    """The code may use the name again later; the migration has long been applied."""
    repository = released("-- requires-code: 1\nALTER TABLE users DROP COLUMN nick;\n")
    assert list(what_is_taken_away_is_used_no_more(repository))
    git(tmp_path, "tag", "v1.1.0")
    git(tmp_path, "-c", "user.name=Ada", "-c", "user.email=ada@example.org", "commit", "-q", "--allow-empty", "-mx")
    assert not list(what_is_taken_away_is_used_no_more(repository))
