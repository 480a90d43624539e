"""Rows of an earlier time are compared with those of now and brought back, on a real Postgres (`make test-app`)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

import row_recovery as rows

SCHEMA = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE people (
    id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email  text NOT NULL CONSTRAINT people_email_key UNIQUE
);
CREATE TABLE things (
    "Owner" uuid NOT NULL REFERENCES people ON DELETE CASCADE,
    "group" text NOT NULL,
    number  integer NOT NULL,
    seen    timestamptz,
    price   double precision,
    mood    mood,
    about   jsonb,
    raw     bytea,
    tags    text[],
    near    vector(3),
    half    halfvec(3),
    words   tsvector GENERATED ALWAYS AS (to_tsvector('english', "group")) STORED,
    PRIMARY KEY (number, "group")
);
CREATE TABLE notes (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    serial serial,
    "group" text NOT NULL, number integer NOT NULL,
    answer_to bigint REFERENCES notes,
    text   text,
    FOREIGN KEY ("group", number) REFERENCES things ("group", number) ON DELETE CASCADE
);
CREATE TABLE keyless (a integer);
CREATE VIEW overview AS SELECT * FROM people;

INSERT INTO people SELECT md5(n::text)::uuid, n || '@example.org' FROM generate_series(1, 20) AS n;
INSERT INTO things ("Owner", "group", number, seen, price, mood, about, raw, tags, near, half)
SELECT md5(n::text)::uuid, 'a, b ' || n, n, '2026-01-01 10:00:00+00'::timestamptz + n * interval '1.000001 s',
       n / 3.0, 'bad',
       jsonb_build_object('n', n, 'deep', jsonb_build_array(n, NULL, E'back\\slash\t"x"')), decode(md5(n::text), 'hex'),
       ARRAY['x,y', NULL, ''], ARRAY[n, 0.1, -1]::vector, ARRAY[n, 0.1, -1]::halfvec
  FROM generate_series(1, 20) AS n WHERE n <> 7;
INSERT INTO things ("Owner", "group", number) VALUES (md5('7')::uuid, 'all empty', 7);
INSERT INTO notes ("group", number, text) SELECT "group", number, E'first\nsecond\\.' FROM things ORDER BY number;
UPDATE notes SET answer_to = 20 WHERE id = 3;
"""
EVERYTHING = ["people", "things", "notes"]


def database(name: str) -> str:
    """A superuser's URL of a database of the server that the environment names."""
    try:
        return urlsplit(os.environ["ARCHES_TEST_DATABASE_URL"])._replace(path=f"/{name}").geturl()
    except KeyError:
        raise pytest.UsageError("these tests need a real Postgres: run `make test-app`") from None


@dataclass
class Times:
    """The same database at two times."""

    past: asyncpg.Connection
    now: asyncpg.Connection

    async def recover(self, *tables: str, **options: Any) -> dict[str, Any]:
        """The findings by table."""
        report = await rows.recover(self.past, self.now, tables, **options)
        return {finding.table: finding for finding in report.tables}

    @staticmethod
    async def contents() -> dict[str, list[str]]:
        """Everything that is in `now`, as texts."""
        connection = await asyncpg.connect(database("rows_now_test"))
        try:
            return {
                table: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY t::text")]
                for table in EVERYTHING
            }
        finally:
            await connection.close()


@pytest.fixture
async def times() -> AsyncIterator[Times]:
    """Two equal databases; the test makes its mistake in `now`."""
    server = await asyncpg.connect(database("postgres"))
    for name in ("rows_past_test", "rows_now_test"):
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await server.execute("CREATE DATABASE rows_past_test")
    past = await asyncpg.connect(database("rows_past_test"))
    await past.execute(SCHEMA)
    await past.close()
    await server.execute("CREATE DATABASE rows_now_test TEMPLATE rows_past_test")
    past, now = [await asyncpg.connect(database(f"rows_{when}_test")) for when in ("past", "now")]
    # What a person's session or the server may be set to must not make equal rows different.
    await now.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'German'; SET bytea_output = 'escape'")
    yield Times(past, now)
    for connection in (past, now):
        await connection.close()
    for name in ("rows_past_test", "rows_now_test"):
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await server.close()


async def test_nothing_happened(times: Times) -> None:
    found = await times.recover(*EVERYTHING, apply=True, overwrite=True)
    assert {name: (f.missing, f.different, f.only_now, f.same) for name, f in found.items()} == {
        "people": (0, 0, 0, 20), "things": (0, 0, 0, 20), "notes": (0, 0, 0, 20),
    }  # fmt: skip


async def test_deleted_rows_of_every_type_come_back_as_they_were(times: Times) -> None:
    before = await times.contents()
    await times.now.execute("DELETE FROM people")
    found = await times.recover("notes", "things", "people", apply=True)
    assert {name: (f.missing, f.brought_back) for name, f in found.items()} == dict.fromkeys(EVERYTHING, (20, 20))
    assert await times.contents() == before


async def test_a_dry_run_says_the_same_and_changes_nothing(times: Times) -> None:
    await times.now.execute("DELETE FROM people WHERE email LIKE '1%'")
    before = await times.contents()
    dry = await times.recover(*EVERYTHING)
    assert await times.contents() == before
    wet = await times.recover(*EVERYTHING, apply=True)
    assert {n: (f.missing, f.sample) for n, f in dry.items()} == {n: (f.missing, f.sample) for n, f in wet.items()}
    assert dry["people"].missing == 11
    assert [f.brought_back for f in dry.values()] == [0, 0, 0]
    assert dry["things"].sample["missing"] == ["1, a, b 1", "10, a, b 10", "11, a, b 11", "12, a, b 12", "13, a, b 13"]


async def test_what_was_written_after_the_mistake_stays(times: Times) -> None:
    await times.now.execute(
        """
        DELETE FROM notes;
        INSERT INTO notes ("group", number, text) VALUES ('a, b 1', 1, 'written since');
        UPDATE things SET price = 99 WHERE number = 1;
        """
    )
    found = await times.recover("notes", "things", apply=True)
    assert (found["notes"].brought_back, found["notes"].only_now) == (20, 1)
    assert (found["things"].different, found["things"].overwritten) == (1, 0)
    assert found["things"].changed == {"price": 1}
    assert await times.now.fetchval("SELECT text FROM notes WHERE id = 21") == "written since"
    assert await times.now.fetchval("SELECT price FROM things WHERE number = 1") == 99


async def test_a_wrong_update_is_undone_only_when_asked(times: Times) -> None:
    before = await times.contents()
    await times.now.execute("UPDATE things SET about = '{}', tags = NULL, near = '[0,0,0]' WHERE number <= 5")
    found = (await times.recover("things"))["things"]
    assert (found.different, found.changed) == (5, {"about": 5, "tags": 5, "near": 5})
    found = (await times.recover("things", apply=True, overwrite=True))["things"]
    assert found.overwritten == 5
    assert await times.contents() == before


async def test_an_empty_value_and_none_differ(times: Times) -> None:
    await times.now.execute("UPDATE things SET tags = '{}' WHERE number = 7; UPDATE notes SET text = '' WHERE id = 3")
    await times.past.execute("UPDATE notes SET text = NULL WHERE id = 3")
    found = await times.recover("things", "notes")
    assert (found["things"].different, found["notes"].different) == (1, 1)


async def test_a_row_that_changes_while_the_rows_are_compared_is_left_alone(times: Times) -> None:
    await times.now.execute("UPDATE things SET price = 1; DELETE FROM notes WHERE id IN (18, 19)")
    other = await asyncpg.connect(database("rows_now_test"))
    staged = rows.Recovery.stage

    async def stage_and_disturb(self: Any, table: Any, most: int | None) -> None:
        await staged(self, table, most)
        if table.name != "notes":
            return
        await other.execute("UPDATE things SET price = 2 WHERE number = 3")
        await other.execute(
            """
            INSERT INTO notes (id, "group", number, text) OVERRIDING SYSTEM VALUE VALUES (19, 'a, b 1', 1, 'first')
            ON CONFLICT DO NOTHING
            """
        )

    rows.Recovery.stage = stage_and_disturb
    try:
        found = await times.recover("things", "notes", apply=True, overwrite=True)
    finally:
        rows.Recovery.stage = staged
        await other.close()
    assert found["things"].overwritten == 19
    assert await times.now.fetchval("SELECT price FROM things WHERE number = 3") == 2
    assert (found["notes"].missing, found["notes"].brought_back) == (2, 1)
    assert await times.now.fetchval("SELECT text FROM notes WHERE id = 19") == "first"


async def test_only_chosen_keys_are_looked_at(times: Times) -> None:
    await times.now.execute("DELETE FROM notes")
    found = (await times.recover("notes", keys="4, 5", apply=True))["notes"]
    assert (found.missing, found.brought_back) == (2, 2)
    assert [row["id"] for row in await times.now.fetch("SELECT id FROM notes ORDER BY id")] == [4, 5]
    with pytest.raises(rows.RecoveryError, match="notes: 1 rows need rows of notes that are not there"):
        await times.recover("notes", keys="3", apply=True)
    found = (await times.recover("things", keys='[[1, "a, b 1"], [2, "a, b 2"], [2, "no"]]'))["things"]
    assert found.same == 2


async def test_numbers_that_came_back_are_not_given_again(times: Times) -> None:
    await times.now.execute("TRUNCATE notes RESTART IDENTITY")
    await times.recover("notes", apply=True)
    row = await times.now.fetchrow("INSERT INTO notes (\"group\", number) VALUES ('a, b 1', 1) RETURNING id, serial")
    assert tuple(row) == (21, 21)


async def test_a_child_without_its_parent_is_refused_with_the_tables_name(times: Times) -> None:
    await times.now.execute("DELETE FROM people WHERE email = '3@example.org'")
    report = await rows.recover(times.past, times.now, ["things", "notes"])
    assert report.obstacles == [
        'things: 1 rows need rows of people that are not there ("things_Owner_fkey"): '
        "name people in tables too, or choose others by keys."
    ]
    with pytest.raises(rows.RecoveryError, match=r"Nothing was brought back\. things: 1 rows need rows of people"):
        await times.recover("things", "notes", apply=True)
    assert await times.now.fetchval("SELECT count(*) FROM things") == 19


async def test_what_was_deleted_along_is_named(times: Times) -> None:
    await times.now.execute("DELETE FROM people WHERE email LIKE '1%'")
    report = await rows.recover(times.past, times.now, ["people"])
    assert report.went_along == {"things": 11, "notes": 11}
    report = await rows.recover(times.past, times.now, EVERYTHING)
    assert report.went_along == {}


async def test_a_place_that_somebody_took_is_named_and_refused(times: Times) -> None:
    await times.now.execute("DELETE FROM people; INSERT INTO people (email) VALUES ('3@example.org')")
    report = await rows.recover(times.past, times.now, ["people"])
    assert report.obstacles == [
        "people: 1 rows cannot return because others have taken their place (people_email_key on email): "
        "leave them out by keys, or change the others first."
    ]
    with pytest.raises(rows.RecoveryError, match="Nothing was brought back"):
        await times.recover("people", apply=True)
    assert await times.now.fetchval("SELECT count(*) FROM people") == 1


async def test_a_refusal_of_the_server_leaves_nothing_half_done(times: Times) -> None:
    await times.now.execute("DELETE FROM people; ALTER TABLE notes ADD CHECK (id <> 20)")
    with pytest.raises(asyncpg.CheckViolationError):
        await times.recover(*EVERYTHING, apply=True)
    assert await times.now.fetchval("SELECT count(*) FROM people") == 0


async def test_columns_that_only_one_time_has_are_named_and_take_their_defaults(times: Times) -> None:
    await times.now.execute(
        "DELETE FROM notes; ALTER TABLE notes DROP COLUMN serial; ALTER TABLE notes ADD colour text DEFAULT 'red'"
    )
    found = (await times.recover("notes", apply=True))["notes"]
    assert list(found.left_out) == ["colour", "serial"]
    assert found.brought_back == 20
    assert await times.now.fetchval("SELECT count(*) FROM notes WHERE colour = 'red'") == 20


@pytest.mark.parametrize(
    ("tables", "keys", "says"),
    [
        (["no_such"], "", "no_such: there is no such table now; there are keyless, notes, people, things"),
        (["no_such; DROP TABLE notes"], "", "no_such; DROP TABLE notes: there is no such table now"),
        (["keyless"], "", "keyless: it has no primary key"),
        (["overview"], "", "overview: this is no table"),
        (["people", "things"], "1", "keys belong to one table"),
        (["things"], "1,2", r"the table's primary key has 2 column\(s\); write keys='\[\[2 values\]"),
        (["people"], "1,2", "keys: invalid input syntax for type uuid"),
        (["people"], "[1", "keys: this is no JSON"),
        (["people"], " , ", "write keys=a,b"),
    ],
)  # fmt: skip
async def test_bad_input_has_one_sentence(times: Times, tables: list[str], keys: str, says: str) -> None:
    with pytest.raises(rows.RecoveryError, match=says):
        await times.recover(*tables, keys=keys, apply=True)


async def test_a_table_that_was_not_there_yet_or_is_gone(times: Times) -> None:
    await times.now.execute("DROP TABLE notes; CREATE TABLE fresh (id integer PRIMARY KEY)")
    with pytest.raises(rows.RecoveryError, match="notes: there is no such table now"):
        await times.recover("notes")
    with pytest.raises(rows.RecoveryError, match="fresh: there is no such table at that time"):
        await times.recover("fresh")


async def test_tables_in_a_circle_are_refused(times: Times) -> None:
    for connection in (times.past, times.now):
        await connection.execute("ALTER TABLE people ADD favourite bigint REFERENCES notes")
    with pytest.raises(rows.RecoveryError, match="notes, people, things: these refer to each other in a circle"):
        await times.recover(*EVERYTHING)
