"""Search by meaning in one large tenant, measured at an API host with the API's own code.

Two halves in one file. `run` sits on the controller: it makes a tenant and sends this very file to the host's Python.
There, `main` fills the tenant, asks, and takes everything away again; it prints one JSON object.

The tenant's 100,000 vectors are seeded and clustered, like texts about a thousand subjects. They arrive by COPY while
the vector index is away, which is then built over all of them: one transaction, so that an interrupted run leaves the
table as it was.
"""

import asyncio
import json
import math
import operator
import os
import random
import statistics
import struct
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

if TYPE_CHECKING:
    from lib.fleet import Fleet

ARTIFACTS, SUBJECTS, DIMENSIONS = 100_000, 1000, 384
SPREAD = 0.6  # length of what a text adds to its subject, whose length is 1
WARM_UP, SEARCHES, COMPARED, REQUESTS, LIMIT = 50, 500, 100, 200, 10
MODEL = "all-MiniLM-L6-v2"  # what the API asks for; these vectors only bear its name
INDEX = "artifacts_embedding"
COLUMNS = [
    "organization_id", "created_by", "name", "content", "embedding", "embedding_model", "embedding_dimensions",
]  # fmt: skip
TARGET_MS, TARGET_RECALL = 25, 0.95


def vectors(seed: int) -> Iterator[list[float]]:
    """Endless vectors of length 1 about the same subjects for every seed; made without a library for numbers."""
    subjects, texts = random.Random(0), random.Random(seed)
    centres = [[subjects.gauss(0, DIMENSIONS**-0.5) for _ in range(DIMENSIONS)] for _ in range(SUBJECTS)]
    # What a text adds to its subject is a window at a random place of this long noise.
    noise = [texts.gauss(0, SPREAD * DIMENSIONS**-0.5) for _ in range(1 << 20)]
    while True:
        start = texts.randrange(len(noise) - DIMENSIONS)
        vector = list(map(operator.add, texts.choice(centres), noise[start : start + DIMENSIONS]))
        length = math.hypot(*vector)
        yield [x / length for x in vector]


def copy_rows(organization: uuid.UUID, user: uuid.UUID, count: int) -> Iterator[bytes]:
    """Artifacts with the columns COLUMNS in the binary format of COPY."""
    yield b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    for number, vector in zip(range(count), vectors(seed=1), strict=False):
        text = f"Artifact {number} about subject {number % SUBJECTS}".encode()
        half = struct.pack(f"!hh{DIMENSIONS}e", DIMENSIONS, 0, *vector)
        fields = (
            organization.bytes,
            user.bytes,
            b"artifact",
            text,
            half,
            MODEL.encode(),
            struct.pack("!h", DIMENSIONS),
        )
        yield struct.pack("!h", len(fields)) + b"".join(struct.pack("!i", len(field)) + field for field in fields)
    yield struct.pack("!h", -1)


async def in_chunks(rows: Iterable[bytes], size: int = 500) -> AsyncIterator[bytes]:
    """Several rows at a time."""
    pending: list[bytes] = []
    for row in rows:
        pending.append(row)
        if len(pending) == size:
            yield b"".join(pending)
            pending.clear()
    yield b"".join(pending)


async def fill(connection: Any, organization: uuid.UUID, user: uuid.UUID, count: int) -> dict[str, float]:
    """Load the tenant. Returns seconds."""
    rows = in_chunks(copy_rows(organization, user, count))
    started = time.monotonic()
    async with connection.transaction():
        await connection.execute("SET LOCAL maintenance_work_mem = '256MB'")
        definition = await connection.fetchval("SELECT pg_get_indexdef($1::regclass)", INDEX)
        await connection.execute(f"DROP INDEX {INDEX}")
        await connection.copy_to_table("artifacts", source=rows, columns=COLUMNS, format="binary")
        loaded = time.monotonic()
        await connection.execute(definition)
    built = time.monotonic()
    await connection.execute("VACUUM (ANALYZE) artifacts")
    return {"load_s": round(loaded - started, 1), "index_build_s": round(built - loaded, 1)}


async def clear(connection: Any, organization: uuid.UUID) -> dict[str, float]:
    """Take the tenant's artifacts away and leave an index without their traces."""
    started = time.monotonic()
    await connection.execute("DELETE FROM artifacts WHERE organization_id = $1", organization)
    # Before VACUUM, which would else mend the graph around each of the dead.
    await connection.execute(f"REINDEX INDEX {INDEX}")
    await connection.execute("VACUUM (ANALYZE) artifacts")
    return {"clear_s": round(time.monotonic() - started, 1)}


async def milliseconds[T](items: Iterable[T], action: Callable[[T], Awaitable[object]]) -> list[float]:
    """Wall time of an action on each item, one after the other."""
    taken = []
    for item in items:
        started = time.perf_counter()
        await action(item)
        taken.append((time.perf_counter() - started) * 1000)
    return taken


async def measure(organization: uuid.UUID, token: str) -> dict[str, Any]:
    """Ask as the API does: its settings, its pool, its SQL, its choice between index and exact comparison."""
    import httpx

    from arches_api.lib.database import Database
    from arches_api.lib.embedding_task import EmbeddingTask
    from arches_api.lib.embeddings import as_sql, create_embeddings
    from arches_api.lib.metrics import Metrics
    from arches_api.lib.settings import load_settings
    from arches_api.lib.tenants import TenantSizes
    from arches_api.lib.tracing import Tracing
    from arches_api.models import artifacts

    settings, metrics = load_settings(os.environ), Metrics("bench")
    database = Database(settings.database_url, max_connections=1, wait=3, release="bench", metrics=metrics)
    provider = create_embeddings(settings)
    task = EmbeddingTask(database, provider, metrics, Tracing(settings, metrics), retry=1)
    sizes = TenantSizes(settings.search_exact_rows)
    asked = [
        artifacts.Embedding(as_sql(vector), MODEL, DIMENSIONS)
        for vector, _ in zip(vectors(seed=2), range(SEARCHES + WARM_UP), strict=False)
    ]
    words = [f"what the harbour office knows about subject {number}" for number in range(REQUESTS)]

    async def search(near: artifacts.Embedding) -> list[artifacts.Hit]:
        async with database.transaction() as connection:
            if await sizes.is_large(connection, organization):
                return await artifacts.search_index(connection, organization, near, LIMIT)
            return await artifacts.search_exact(connection, organization, near, LIMIT)

    async def recall(near: artifacts.Embedding) -> float:
        async with database.transaction() as connection:
            right = await artifacts.search_exact(connection, organization, near, LIMIT)
        return len({hit.id for hit in right} & {hit.id for hit in await search(near)}) / len(right)

    async def select_1(_: object) -> None:
        async with database.transaction() as connection:
            await connection.fetchval("SELECT 1")

    async def request(question: str) -> None:
        answer = await http.get("/v1/artifacts/search", params={"q": question, "limit": LIMIT})
        found = answer.raise_for_status().json()
        if found["mode"] != "semantic" or len(found["items"]) != LIMIT:
            raise AssertionError(f"not {LIMIT} found by meaning: {answer.text[:200]}")

    await database.open()
    base, headers = f"http://{settings.host}:{settings.port}", {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=30) as http:
        # Warm, like a tenant that is asked all the time.
        await milliseconds(asked[SEARCHES:], search)
        seen = {
            "search": await milliseconds(asked[:SEARCHES], search),
            "floor": await milliseconds(asked[:SEARCHES], select_1),
            "embedding": await milliseconds(words, task.query),
            "request": await milliseconds(words, request),
            "recall": statistics.fmean([await recall(near) for near in asked[:COMPARED]]),
        }
    await provider.close()
    await database.close()
    return seen


async def main(step: str, organization: str, argument: str) -> dict[str, Any]:
    """One step on the API host: `fill ORGANIZATION USER`, `measure ORGANIZATION TOKEN` or `clear ORGANIZATION -`."""
    tenant = uuid.UUID(organization)
    if step == "measure":
        return await measure(tenant, argument)
    connection = await asyncpg.connect(os.environ["MIGRATION_DATABASE_URL"])
    try:
        await connection.execute("SET statement_timeout = 0")
        if owner := os.environ.get("MIGRATION_ROLE"):
            await connection.execute(f'SET ROLE "{owner}"')
        if step == "fill":
            return await fill(connection, tenant, uuid.UUID(argument), ARTIFACTS)
        return await clear(connection, tenant)
    finally:
        await connection.close()


def on_host(fleet: "Fleet", host: str, environment: str, *arguments: str) -> dict[str, Any]:
    """Run this file on an API host: the release's Python, the API's user, one of the API's environment files.

    :raises RuntimeError: with the end of what it said, when it fails.
    """
    command = (
        "systemd-run --quiet --wait --pipe --collect --property=User=arches"
        f" --property=EnvironmentFile=/etc/arches/{environment} --property=WorkingDirectory=/opt/arches/current"
        f" /usr/bin/env ./bin/python3 -I - {' '.join(arguments)}"
    )
    done = fleet.ssh(host, command, check=False, timeout_s=900, stdin=Path(__file__).read_text())
    if done.returncode:
        raise RuntimeError(f"{host}: {arguments[0]} failed\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def run(fleet: "Fleet") -> dict[str, Any]:
    """The figure for `make bench`: p95 of a search at an API host in milliseconds, and what stands beside it.

    :raises AssertionError: recall misses its target: a fast wrong answer is no figure.
    """
    from lib.client import edge_client, register_and_login

    host = fleet.groups["api"][0]
    with edge_client(fleet) as client:
        user = register_and_login(client)
        account = client.get("/v1/me", headers=user).raise_for_status().json()
    tenant = account["organization_id"]
    try:
        loaded = on_host(fleet, host, "api-migrate.env", "fill", tenant, account["id"])
        seen = on_host(fleet, host, "api.env", "measure", tenant, user["Authorization"].split()[1])
    finally:
        cleared = on_host(fleet, host, "api-migrate.env", "clear", tenant, "-")
    return figure_of(seen) | loaded | cleared


def figure_of(seen: dict[str, Any]) -> dict[str, Any]:
    """The figure from what `measure` saw."""
    if seen["recall"] < TARGET_RECALL:
        raise AssertionError(f"recall@{LIMIT} is {seen['recall']:.3f}, its target {TARGET_RECALL}")
    search = seen["search"]
    return {
        "value": p95(search),
        "unit": "ms",
        "target": TARGET_MS,
        "floor": p95(seen["floor"]),
        "floor_is": "p95 of SELECT 1 in a transaction on the same path",
        "repeats": len(search),
        "spread": [round(min(search), 2), round(max(search), 2)],
        "p50": round(statistics.median(search), 2),
        "recall_at_10": round(seen["recall"], 4),
        "query_embedding_p95": p95(seen["embedding"]),
        "whole_request_p95": p95(seen["request"]),
    }


def p95(values: list[float]) -> float:
    """The value that 95 of 100 do not exceed."""
    return round(sorted(values)[math.ceil(0.95 * len(values)) - 1], 2)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:4]))))
