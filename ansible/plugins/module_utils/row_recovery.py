"""Rows that were there at an earlier time, compared with what is there now, and brought back by primary key.

`past` is a connection to a restored copy beside production, `now` one to the leader. The comparison happens in the
copy: of the present only keys and digests travel there, and only rows that are to come back travel the other way, into
temporary tables of the leader. There they are checked, and inserted, in one transaction that is either kept or taken
back as a whole. A row that somebody wrote in the meantime is never touched.

Names in the SQL here come from the catalogs, quoted by the server; what a person types is always a parameter.
"""

# ruff: noqa: S608

from __future__ import annotations

import asyncio
import dataclasses
import graphlib
import json
from collections.abc import AsyncIterator, Collection, Sequence

import asyncpg

# Both sides show a value by the same text, whatever their settings are.
SAME_TEXT = (
    "SET datestyle = ISO; SET intervalstyle = postgres; SET timezone = UTC; SET extra_float_digits = 1;"
    " SET bytea_output = hex; SET client_encoding = UTF8"
)
# Keys shown of each kind; rows that are looked at to say which columns differ.
SAMPLE, LOOKED_AT = 5, 1000
CHUNKS = 16


class RecoveryError(Exception):
    """What is wrong and what to do about it."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as it is at both times; every name is quoted where it needs to be.

    :param columns: those that both have and that are stored as they were given, the key's among them.
    :param settable: of these, the ones that an UPDATE may set.
    :param left_out: columns that only one of the two times has.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    settable: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Expression that tells one state of a row from another."""
        return f"md5(ROW({commas(self.columns)})::text)"


@dataclasses.dataclass(frozen=True)
class ForeignKey:
    """`columns` of `child` name a row of `parent` by its `referenced` ones; `cascades`: both are deleted together."""

    name: str
    child: str
    columns: tuple[str, ...]
    parent: str
    referenced: tuple[str, ...]
    cascades: bool


@dataclasses.dataclass
class Finding:
    """What one table looks like, in rows; `sample` holds keys by kind, `changed` counts rows by column."""

    table: str
    missing: int = 0
    different: int = 0
    only_now: int = 0
    same: int = 0
    left_out: Sequence[str] = ()
    sample: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    changed: dict[str, int] = dataclasses.field(default_factory=dict)
    brought_back: int = 0
    overwritten: int = 0


@dataclasses.dataclass
class Report:
    """Findings by table, in the order of insertion; why rows cannot come back; what else went with them."""

    tables: list[Finding] = dataclasses.field(default_factory=list)
    obstacles: list[str] = dataclasses.field(default_factory=list)
    went_along: dict[str, int] = dataclasses.field(default_factory=dict)


def commas(names: Sequence[str], prefix: str = "") -> str:
    """A list of columns for SQL."""
    return ", ".join(prefix + name for name in names)


def parse_keys(text: str, width: int) -> list[list[str]]:
    """Keys as they are typed: `a,b` for a key of one column, JSON (`[["a", 1], ["b", 2]]`) for any.

    :param width: number of columns of the key.
    :raises RecoveryError: when they are something else.
    """
    if text.lstrip().startswith("["):
        try:
            rows = [row if isinstance(row, list) else [row] for row in json.loads(text)]
        except ValueError as error:
            raise RecoveryError(f'keys: this is no JSON ({error}); write keys=\'["a", "b"]\'') from None
    else:
        rows = [[word.strip()] for word in text.split(",") if word.strip()]
    if not rows or any(len(row) != width for row in rows):
        wanted = 'keys=a,b or keys=\'["a", "b"]\'' if width == 1 else f"keys='[[{width} values], [...]]'"
        raise RecoveryError(f"keys: the table's primary key has {width} column(s); write {wanted}")
    return [[value if isinstance(value, str) else json.dumps(value) for value in row] for row in rows]


async def check(now: asyncpg.Connection, names: Sequence[str], keys: str) -> None:
    """Hold names and keys against the present tables. Raises RecoveryError for what cannot be meant."""
    if not names:
        raise RecoveryError("Say whose rows are to come back: -e tables=NAME,NAME")
    widths = [len((await facts(now, name, "now"))[1]) for name in dict.fromkeys(names)]
    if keys:
        if len(widths) != 1:
            raise RecoveryError("keys belong to one table: name one in tables, or leave keys out")
        parse_keys(keys, widths[0])


async def recover(
    past: asyncpg.Connection,
    now: asyncpg.Connection,
    names: Sequence[str],
    keys: str = "",
    *,
    overwrite: bool = False,
    apply: bool = False,
) -> Report:
    """Compare tables at both times; with `apply`, insert missing rows and, with `overwrite`, set the different ones.

    :param names: tables as they are typed, in any order; parents are inserted first.
    :param keys: primary keys of one table to look at (`parse_keys`); all rows without.
    :raises RecoveryError: for a wrong name or key, and with `apply` when a row cannot come back. Nothing is changed.
    :raises asyncpg.PostgresError: when the server refuses. Nothing is changed.
    """
    for connection in (past, now):
        await connection.execute(SAME_TEXT)
    await check(now, names, keys)
    tables = [await describe(past, now, name) for name in dict.fromkeys(names)]
    references = await foreign_keys(now)
    work = Recovery(past, now, in_order(tables, references), references)
    transaction = now.transaction()
    async with past.transaction():
        await transaction.start()
        try:
            report = await work.compare(parse_keys(keys, len(tables[0].key)) if keys else None, overwrite)
            report.went_along = await work.went_along(await foreign_keys(past))
            if apply and report.obstacles:
                raise RecoveryError("Nothing was brought back. " + " ".join(report.obstacles))
            if apply:
                await work.bring_back(report, overwrite)
        except BaseException:
            await transaction.rollback()
            raise
        await (transaction.commit() if apply else transaction.rollback())
    return report


# What the catalogs say


async def describe(past: asyncpg.Connection, now: asyncpg.Connection, name: str) -> Table:
    """The table as both times have it. Raises RecoveryError."""
    shown_now, key, columns = await facts(now, name, "now")
    _, key_then, columns_then = await facts(past, name, "at that time")
    if key != key_then:
        raise RecoveryError(
            f"{name}: its primary key is ({commas(key)}) now and was ({commas(key_then)}) at that time; "
            "bring its rows back by hand from the copy"
        )
    both = [column for column in columns if column in columns_then]
    stored = tuple(c for c in both if not columns[c]["generated"] and not columns_then[c]["generated"])
    return Table(
        name=shown_now,
        key=key,
        columns=stored,
        settable=tuple(c for c in stored if c not in key and columns[c]["identity"] != "a"),
        left_out=tuple(sorted(columns.keys() ^ columns_then.keys())),
    )


async def facts(
    connection: asyncpg.Connection, name: str, when: str
) -> tuple[str, tuple[str, ...], dict[str, asyncpg.Record]]:
    """A table's name as Postgres shows it, its key, its columns. Raises RecoveryError."""
    found = await connection.fetchrow(
        "SELECT oid::regclass::text AS name, relkind IN ('r', 'p') AS is_table"
        " FROM pg_class WHERE oid = to_regclass($1)",
        name,
    )
    if found is None:
        known = await connection.fetchval(
            "SELECT string_agg(oid::regclass::text, ', ' ORDER BY oid::regclass::text) FROM pg_class"
            " WHERE relkind IN ('r', 'p') AND relnamespace = ANY(current_schemas(false)::regnamespace[])"
        )
        raise RecoveryError(
            f"{name}: there is no such table {when}; there are {known or 'none'}. One that was dropped is made again"
            " first, empty, or the cluster is rewound."
        )
    if not found["is_table"]:
        raise RecoveryError(f"{name}: this is no table; name the tables that it reads")
    rows = await connection.fetch(
        """
        SELECT quote_ident(attname) AS name, attgenerated <> '' AS generated, attidentity::text AS identity,
               array_position(indkey::int2[], attnum) AS place
          FROM pg_attribute LEFT JOIN pg_index ON indrelid = attrelid AND indisprimary
         WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        """,
        found["name"],
    )
    key = sorted((row for row in rows if row["place"] is not None), key=lambda row: row["place"])
    if not key:
        raise RecoveryError(
            f"{name}: it has no primary key, so its rows cannot be told apart; rewind the cluster instead"
        )
    return found["name"], tuple(row["name"] for row in key), {row["name"]: row for row in rows}


async def foreign_keys(connection: asyncpg.Connection) -> list[ForeignKey]:
    """Every foreign key of the database."""

    def names(table: str, numbers: str) -> str:
        return (
            "(SELECT array_agg(quote_ident(attname) ORDER BY n)"
            f" FROM unnest({numbers}) WITH ORDINALITY AS k (number, n)"
            f" JOIN pg_attribute ON attrelid = {table} AND attnum = number)"
        )

    rows = await connection.fetch(
        f"""
        SELECT quote_ident(conname) AS name,
               conrelid::regclass::text AS child, {names("conrelid", "conkey")} AS columns,
               confrelid::regclass::text AS parent, {names("confrelid", "confkey")} AS referenced,
               confdeltype = 'c' AS cascades
          FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 ORDER BY conrelid::regclass::text, conname
        """
    )
    return [
        ForeignKey(**{**row, "columns": tuple(row["columns"]), "referenced": tuple(row["referenced"])}) for row in rows
    ]


def in_order(tables: Collection[Table], keys: Collection[ForeignKey]) -> list[Table]:
    """Parents before children. Raises RecoveryError when tables refer to each other in a circle."""
    by_name = {table.name: table for table in tables}
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter({name: set() for name in by_name})
    for key in keys:
        if key.child in by_name and key.parent in by_name and key.child != key.parent:
            sorter.add(key.child, key.parent)
    try:
        return [by_name[name] for name in sorter.static_order()]
    except graphlib.CycleError as error:
        raise RecoveryError(
            f"{', '.join(sorted(set(error.args[1])))}: these refer to each other in a circle; "
            "bring their rows back by hand from the copy"
        ) from None


# The work


class Recovery:
    """Compares, checks and brings back; the caller holds the transaction of `now` and decides its end."""

    def __init__(
        self, past: asyncpg.Connection, now: asyncpg.Connection, tables: list[Table], keys: list[ForeignKey]
    ) -> None:
        self.past, self.now, self.tables, self.foreign_keys = past, now, tables, keys
        self.number = {table.name: number for number, table in enumerate(tables)}

    def temporary(self, kind: str, name: str) -> str:
        """Name of a temporary table that belongs to a table."""
        return f"arches_{kind}_{self.number[name]}"

    async def compare(self, keys: list[list[str]] | None, overwrite: bool) -> Report:
        """Find out what differs, and bring to the leader's temporary tables what would come back."""
        report = Report()
        for table in self.tables:
            if keys is not None:
                await self.want(table, keys)
            finding = await self.judge(table, chosen=keys is not None)
            await self.stage(table, LOOKED_AT if not overwrite else None)
            finding.changed = await self.changed_columns(table)
            report.tables.append(finding)
        for table in self.tables:
            report.obstacles += [sentence async for sentence in self.orphans(table)]
            report.obstacles += [sentence async for sentence in self.taken_places(table, overwrite)]
        return report

    async def want(self, table: Table, keys: list[list[str]]) -> None:
        """Both sides know which keys are looked at. Raises RecoveryError for a value of another type."""
        values = ", ".join(f"${n}::text::{kind}" for n, kind in enumerate(await self.types(table), 1))
        for connection in (self.past, self.now):
            await connection.execute(
                "CREATE TEMPORARY TABLE arches_wanted ON COMMIT DROP AS"
                f" SELECT {commas(table.key)} FROM {table.name} WITH NO DATA"
            )
            try:
                await connection.executemany(f"INSERT INTO arches_wanted VALUES ({values})", keys)
            except asyncpg.DataError as error:
                raise RecoveryError(f"keys: {error.args[0]}") from None

    async def types(self, table: Table) -> list[str]:
        """Types of the key's columns."""
        rows = await self.now.fetch(
            "SELECT quote_ident(attname) AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute"
            " WHERE attrelid = $1::text::regclass AND attnum > 0",
            table.name,
        )
        by_name = {row["name"]: row["type"] for row in rows}
        return [by_name[column] for column in table.key]

    async def judge(self, table: Table, chosen: bool) -> Finding:
        """Count rows by kind, and keep the kinds by key in the past."""
        seen, verdict = self.temporary("seen", table.name), self.temporary("verdict", table.name)
        key = commas(table.key)
        rows = f"SELECT {key}, {table.digest} AS arches_digest FROM {table.name}"
        if chosen:
            rows += f" JOIN arches_wanted USING ({key})"
        await self.past.execute(
            f"CREATE TEMPORARY TABLE {seen} ON COMMIT DROP AS"
            f" SELECT {key}, ''::text AS arches_digest FROM {table.name} WITH NO DATA"
        )
        await pipe(self.now, rows, self.past, seen)
        await self.past.execute(
            f"""
            ANALYZE {seen};
            CREATE TEMPORARY TABLE {verdict} ON COMMIT DROP AS
            SELECT {key}, seen.arches_digest AS arches_now,
                   CASE WHEN seen.arches_digest IS NULL THEN 'missing' WHEN past.arches_digest IS NULL THEN 'only_now'
                        WHEN past.arches_digest = seen.arches_digest THEN 'same' ELSE 'different' END AS arches_kind
              FROM ({rows}) AS past FULL JOIN {seen} AS seen USING ({key});
            ANALYZE {verdict}
            """
        )
        counts = dict(await self.past.fetch(f"SELECT arches_kind, count(*) FROM {verdict} GROUP BY 1"))
        finding = Finding(table.name, **counts, left_out=table.left_out)
        for kind in ("missing", "different", "only_now"):
            shown = await self.past.fetch(
                f"SELECT concat_ws(', ', {key}) FROM {verdict} WHERE arches_kind = $1 ORDER BY {key} LIMIT {SAMPLE}",
                kind,
            )
            finding.sample[kind] = [row[0] for row in shown]
        return finding

    async def stage(self, table: Table, most_different: int | None) -> None:
        """Rows that would come back are in a temporary table of the leader, beside the digest of what they replace."""
        back, verdict = self.temporary("back", table.name), self.temporary("verdict", table.name)
        columns, key = commas(table.columns), commas(table.key)
        await self.now.execute(
            f"CREATE TEMPORARY TABLE {back} ON COMMIT DROP AS"
            f" SELECT {columns}, ''::text AS arches_now FROM {table.name} WITH NO DATA"
        )
        for kind, most in (("missing", None), ("different", most_different)):
            chosen = f"SELECT * FROM {verdict} WHERE arches_kind = '{kind}' ORDER BY {key}"
            chosen += f" LIMIT {most}" if most is not None else ""
            rows = f"SELECT {columns}, arches_now FROM {table.name} JOIN ({chosen}) AS chosen USING ({key})"
            await pipe(self.past, rows, self.now, back)
        await self.now.execute(f"ANALYZE {back}")

    async def changed_columns(self, table: Table) -> dict[str, int]:
        """How many of the different rows that were looked at differ in which column."""
        if not table.settable:
            return {}
        counts = commas(
            [f"count(*) FILTER (WHERE now.{c}::text IS DISTINCT FROM back.{c}::text)" for c in table.settable]
        )
        row = await self.now.fetchrow(
            f"SELECT {counts} FROM {self.temporary('back', table.name)} AS back JOIN {table.name} AS now"
            f" ON {same(table.key, 'now', table.key, 'back')} WHERE back.arches_now IS NOT NULL"
        )
        return {column: count for column, count in zip(table.settable, row, strict=True) if count}

    async def orphans(self, table: Table) -> AsyncIterator[str]:
        """A sentence for each foreign key whose parents are neither there nor come back."""
        for key in self.foreign_keys:
            if key.child != table.name or not set(key.columns) <= set(table.columns):
                continue
            parents = [key.parent]
            if key.parent in self.number:
                parents.append(self.temporary("back", key.parent))
            gone = " AND ".join(
                f"NOT EXISTS (SELECT FROM {parent} AS p WHERE {same(key.referenced, 'p', key.columns, 'back')})"
                for parent in parents
            )
            given = " AND ".join(f"back.{column} IS NOT NULL" for column in key.columns)
            count = await self.now.fetchval(
                f"SELECT count(*) FROM {self.temporary('back', table.name)} AS back WHERE {given} AND {gone}"
            )
            if count:
                yield (
                    f"{table.name}: {count} rows need rows of {key.parent} that are not there ({key.name}): "
                    f"name {key.parent} in tables too, or choose others by keys."
                )

    async def taken_places(self, table: Table, overwrite: bool) -> AsyncIterator[str]:
        """A sentence for each unique index in which another row has a returning row's place by now."""
        indexes = await self.now.fetch(
            """
            SELECT indexrelid::regclass::text AS name,
                   (SELECT array_agg(quote_ident(attname)) FROM pg_attribute
                     WHERE attrelid = indrelid AND attnum = ANY((indkey::int2[])[0:indnkeyatts - 1])) AS columns
              FROM pg_index
             WHERE indrelid = $1::text::regclass AND indisunique AND NOT indisprimary
               AND indexprs IS NULL AND indpred IS NULL
             ORDER BY 1
            """,
            table.name,
        )
        for index in indexes:
            if not set(index["columns"]) <= set(table.columns):
                continue
            count = await self.now.fetchval(
                f"SELECT count(*) FROM {self.temporary('back', table.name)} AS back JOIN {table.name} AS now"
                f" ON {same(index['columns'], 'now', index['columns'], 'back')}"
                f" WHERE NOT ({same(table.key, 'now', table.key, 'back')}) AND (back.arches_now IS NULL OR $1)",
                overwrite,
            )
            if count:
                yield (
                    f"{table.name}: {count} rows cannot return because others have taken their place ({index['name']} "
                    f"on {commas(index['columns'])}): leave them out by keys, or change the others first."
                )

    async def went_along(self, keys_then: list[ForeignKey]) -> dict[str, int]:
        """Rows of tables that were not named and were deleted with missing rows (ON DELETE CASCADE), by table."""
        found: dict[str, int] = {}

        async def follow(parent: str, rows: str) -> None:
            for key in keys_then:
                if key.parent == parent and key.cascades and key.child not in self.number and key.child not in found:
                    children = (
                        f"SELECT child.* FROM {key.child} AS child WHERE ({commas(key.columns, 'child.')}) IN"
                        f" (SELECT {commas(key.referenced)} FROM ({rows}) AS parent)"
                    )
                    found[key.child] = await self.past.fetchval(f"SELECT count(*) FROM ({children}) AS gone")
                    if found[key.child]:
                        await follow(key.child, children)

        for table in self.tables:
            verdict = self.temporary("verdict", table.name)
            missing = f"SELECT * FROM {verdict} WHERE arches_kind = 'missing'"
            await follow(
                table.name, f"SELECT * FROM {table.name} JOIN ({missing}) AS missing USING ({commas(table.key)})"
            )
        return {name: count for name, count in found.items() if count}

    async def bring_back(self, report: Report, overwrite: bool) -> None:
        """Insert and, if wanted, overwrite; counts go into the report."""
        for table, finding in zip(self.tables, report.tables, strict=True):
            back, columns, key = self.temporary("back", table.name), commas(table.columns), commas(table.key)
            done = await self.now.execute(
                f"INSERT INTO {table.name} ({columns}) OVERRIDING SYSTEM VALUE"
                f" SELECT {columns} FROM {back} WHERE arches_now IS NULL ON CONFLICT ({key}) DO NOTHING"
            )
            finding.brought_back = affected(done)
            if overwrite and table.settable:
                # The digest is part of the condition: a row that changed since it was compared stays as it is.
                done = await self.now.execute(
                    f"UPDATE {table.name} AS now SET {commas([f'{c} = back.{c}' for c in table.settable])}"
                    f" FROM {back} AS back WHERE {same(table.key, 'now', table.key, 'back')}"
                    f" AND md5(ROW({commas(table.columns, 'now.')})::text) = back.arches_now"
                )
                finding.overwritten = affected(done)
            await self.advance_sequences(table)

    async def advance_sequences(self, table: Table) -> None:
        """A number that came back is not given a second time."""
        rows = await self.now.fetch(
            """
            SELECT quote_ident(attname) AS name, pg_get_serial_sequence($1, attname) AS sequence FROM pg_attribute
             WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
            """,
            table.name,
        )
        for row in rows:
            if row["sequence"] and row["name"] in table.columns:
                await self.now.execute(
                    f"SELECT setval('{row['sequence']}', newest) FROM {row['sequence']} AS sequence,"
                    f" (SELECT max({row['name']}) AS newest FROM {self.temporary('back', table.name)}) AS back"
                    " WHERE newest >= last_value"
                )


def same(names: Sequence[str], alias: str, others: Sequence[str], other: str) -> str:
    """Condition that columns of one row equal columns of another."""
    return " AND ".join(f"{alias}.{a} = {other}.{b}" for a, b in zip(names, others, strict=True))


def affected(status: str) -> int:
    """Number of rows in a command's tag, such as `INSERT 0 5`."""
    return int(status.rpartition(" ")[2])


async def pipe(source: asyncpg.Connection, query: str, target: asyncpg.Connection, table: str) -> None:
    """Copy the rows of a query into a table elsewhere. Raises asyncpg.PostgresError."""
    queue: asyncio.Queue[bytes | None] = asyncio.Queue(CHUNKS)

    async def chunks() -> AsyncIterator[bytes]:
        while (chunk := await queue.get()) is not None:
            yield chunk

    async def read() -> None:
        await source.copy_from_query(query, output=queue.put)
        await queue.put(None)

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(target.copy_to_table(table, source=chunks()))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
