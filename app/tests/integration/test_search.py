"""Search of large organizations by the index, recall against exact, and search while no vector can be had."""

import asyncio
import math
import random
from collections.abc import Generator
from uuid import UUID

import asyncpg
import pytest
from api_support.embedder import StubEmbedder
from api_support.forwarder import Paths
from api_support.server import Person, Server, serving

from arches_api.lib.embeddings import as_sql
from arches_api.models import artifacts
from arches_api.models.artifacts import Embedding
from lib.waiting import wait_for

MODEL = "clustered"
TENANTS = {"large": 1500, "middle": 300, "small": 30}


def clustered(count: int, seed: int) -> list[list[float]]:
    """Unit vectors around a few dozen centres."""
    chance = random.Random(seed)
    centres = [[chance.gauss(0, 1) for _ in range(384)] for _ in range(40)]
    vectors = []
    for _ in range(count):
        centre = chance.choice(centres)
        vector = [x + chance.gauss(0, 0.6) for x in centre]
        length = math.hypot(*vector)
        vectors.append([x / length for x in vector])
    return vectors


@pytest.fixture(scope="module")
def tenants(admin_url: str) -> dict[str, UUID]:
    """Organizations of different sizes in one table."""
    return asyncio.run(_fill(admin_url))


async def _fill(url: str) -> dict[str, UUID]:
    connection = await asyncpg.connect(url)
    found = {}
    for seed, (name, count) in enumerate(TENANTS.items()):
        organization = await connection.fetchval("INSERT INTO organizations (name) VALUES ($1) RETURNING id", name)
        user = await connection.fetchval(
            "INSERT INTO users (organization_id, email, name, password_hash) VALUES ($1, $2, $2, '') RETURNING id",
            organization,
            name,
        )
        await connection.executemany(
            """
            INSERT INTO artifacts
                   (organization_id, created_by, name, content, embedding, embedding_model, embedding_dimensions)
            VALUES ($1, $2, $3, '', $4::text::halfvec, $5, 384)
            """,
            [
                (organization, user, f"{name} {number}", as_sql(vector), MODEL)
                for number, vector in enumerate(clustered(count, seed))
            ],
        )
        found[name] = organization
    await connection.execute("ANALYZE artifacts")
    await connection.close()
    return found


@pytest.mark.parametrize("name", list(TENANTS))
async def test_the_index_finds_what_comparing_all_finds(admin_url: str, tenants: dict[str, UUID], name: str) -> None:
    connection = await asyncpg.connect(admin_url)
    questions = clustered(10, list(TENANTS).index(name))
    hits = wanted = 0
    for vector in questions:
        near = Embedding(as_sql(vector), MODEL, 384)
        exact = await artifacts.search_exact(connection, tenants[name], near, 10)
        async with connection.transaction():
            by_index = await artifacts.search_index(connection, tenants[name], near, 10)
        assert {hit.name.split()[0] for hit in exact + by_index} == {name}
        assert [hit.score for hit in by_index] == sorted((hit.score for hit in by_index), reverse=True)
        hits += len({hit.id for hit in exact} & {hit.id for hit in by_index})
        wanted += len(exact)
    await connection.close()
    assert wanted == 100
    # The index is meant for the large ones; smaller ones are compared exactly.
    assert hits / wanted >= (0.95 if name == "large" else 0.5)


async def test_each_way_of_searching_uses_its_plan(admin_url: str, tenants: dict[str, UUID]) -> None:
    connection = await asyncpg.connect(admin_url)
    near = Embedding(as_sql(clustered(1, 0)[0]), MODEL, 384)

    class Explaining:
        """Explains each search instead of running it."""

        def __init__(self) -> None:
            self.plan = ""

        async def fetch(self, statement: str, *values: object) -> list[object]:
            rows = await connection.fetch(f"EXPLAIN {statement}", *values)
            self.plan = "\n".join(row[0] for row in rows)
            return []

        async def fetchrow(self, statement: str, *values: object) -> object:
            return await connection.fetchrow(statement, *values)

    explaining = Explaining()
    async with connection.transaction():
        await artifacts.search_index(explaining, tenants["small"], near, 10)  # type: ignore[arg-type]
    assert "artifacts_embedding" in explaining.plan
    await artifacts.search_exact(explaining, tenants["large"], near, 10)  # type: ignore[arg-type]
    assert "artifacts_embedding" not in explaining.plan
    # Nothing that was set for a search is left on the connection.
    assert await connection.fetchval("SHOW enable_sort") == "on"
    await connection.close()


async def test_the_question_is_read_once_and_not_for_every_row(admin_url: str, tenants: dict[str, UUID]) -> None:
    """In a plan for any values, which a connection comes to after some searches, a parameter is no constant."""
    connection = await asyncpg.connect(admin_url, server_settings={"plan_cache_mode": "force_generic_plan"})
    near = Embedding(as_sql(clustered(1, 0)[0]), MODEL, 384)
    plan: list[str] = []

    class Preparing:
        """Explains the plan for any values instead of running a search."""

        async def fetch(self, statement: str, *values: object) -> list[object]:
            await connection.execute(f"PREPARE search AS {statement}")
            given = ", ".join(f"'{value}'" for value in values)
            plan.extend(row[0] for row in await connection.fetch(f"EXPLAIN (VERBOSE) EXECUTE search ({given})"))
            return []

    await artifacts.search_exact(Preparing(), tenants["large"], near, 10)  # type: ignore[arg-type]
    await connection.close()
    assert "\n".join(plan).count("::halfvec") == 1, plan


def test_a_large_organization_is_searched_by_the_index(forwarders: Paths, admin_url: str) -> None:
    with serving(**forwarders.environment, SEARCH_EXACT_ROWS="3") as server:
        person = Person(server.url, "large@example.org")
        for number in range(6):
            person.store(f"number {number}", "the same words again")
        other = Person(server.url, "small@example.org")
        other.store("mine", "the same words again")
        assert len(person.search("the same words", limit=5)["items"]) == 5
        assert [item["name"] for item in other.search("the same words")["items"]] == ["mine"]


@pytest.fixture
def stub() -> Generator[StubEmbedder]:
    """An embedder that can be taken away."""
    service = StubEmbedder()
    yield service
    service.close()


def backlog(server: Server) -> float:
    """What the server's metrics say."""
    text = server.metrics()
    return float(next(line for line in text.splitlines() if line.startswith("arches_embedding_backlog ")).split()[1])


def test_without_the_embedder_artifacts_are_kept_found_by_words_and_embedded_later(
    forwarders: Paths, admin_url: str, stub: StubEmbedder
) -> None:
    environment = {"EMBEDDINGS": "http", "EMBEDDINGS_URL": stub.url, "EMBEDDINGS_RETRY": "100ms"}
    with serving(**forwarders.environment, **environment) as server:
        person = Person(server.url, "patient@example.org")
        stub.status = 503
        stored = person.store("weather report", "Storms are crossing the mountains")
        assert stored["embedded"] is False
        wait_for("the backlog is told", lambda: backlog(server) > 0, 20)
        found = person.search("storm mountain")
        assert found["mode"] == "text"
        assert [item["name"] for item in found["items"]] == ["weather report"]
        assert person.search("the of and")["items"] == []
        stub.status = 200
        path = f"/v1/artifacts/{stored['id']}"
        wait_for("the background task embeds", lambda: person.http.get(path).json()["embedded"], 20)
        wait_for("the backlog is gone", lambda: backlog(server) == 0, 20)
        found = wait_for(
            "search is by meaning again",
            lambda: (answer := person.search("storms"))["mode"] == "semantic" and answer,
            10,
        )
        assert found["items"][0]["name"] == "weather report"


def test_one_text_that_cannot_be_embedded_does_not_hold_up_the_others(
    forwarders: Paths, admin_url: str, stub: StubEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = stub.answer

    def picky(texts: list[str]) -> dict[str, object]:
        stub.status = 422 if any("poison" in text for text in texts) else 200
        return answer(texts)

    environment = {"EMBEDDINGS": "http", "EMBEDDINGS_URL": stub.url, "EMBEDDINGS_RETRY": "100ms"}
    with serving(**forwarders.environment, **environment) as server:
        person = Person(server.url, "mixed@example.org")
        stub.status = 503
        ids = [person.store(name, "text")["id"] for name in ("good", "poison", "fine")]
        monkeypatch.setattr(stub, "answer", picky)

        def embedded() -> list[bool]:
            return [person.http.get(f"/v1/artifacts/{one}").json()["embedded"] for one in ids]

        wait_for("the others are embedded", lambda: embedded() == [True, False, True], 20)


def test_a_slow_embedder_delays_a_request_by_its_share_only(
    forwarders: Paths, admin_url: str, stub: StubEmbedder
) -> None:
    environment = {"EMBEDDINGS": "http", "EMBEDDINGS_URL": stub.url}
    with serving(**forwarders.environment, **environment) as server:
        person = Person(server.url, "hurried@example.org")
        stub.gate.clear()
        answer = person.http.post("/v1/artifacts", json={"name": "late", "text": "text"})
        assert answer.status_code == 201 and answer.json()["embedded"] is False
        assert answer.elapsed.total_seconds() < 3
        assert person.search("late text")["mode"] == "text"


async def test_two_workers_never_take_the_same_job(admin_url: str, forwarders: Paths) -> None:
    first, second = await asyncpg.connect(admin_url), await asyncpg.connect(admin_url)
    await first.execute("DELETE FROM embedding_jobs")
    organization = await first.fetchval("INSERT INTO organizations (name) VALUES ('jobs') RETURNING id")
    user = await first.fetchval(
        "INSERT INTO users (organization_id, email, name, password_hash) VALUES ($1, 'jobs', '', '') RETURNING id",
        organization,
    )
    for number in range(20):
        await artifacts.create(
            first, organization_id=organization, user_id=user, name=f"job {number}", text="", embedding=None
        )
    one, two = first.transaction(), second.transaction()
    await one.start()
    await two.start()
    mine = {job.artifact_id for job in await artifacts.claim_jobs(first, 12, 60)}
    theirs = {job.artifact_id for job in await artifacts.claim_jobs(second, 12, 60)}
    await one.commit()
    await two.rollback()
    assert len(mine) == 12 and len(theirs) == 8 and not mine & theirs
    # What the one that died had claimed is free again; the rest is leased.
    again = {job.artifact_id for job in await artifacts.claim_jobs(second, 100, 60)}
    assert again == theirs
    await first.close()
    await second.close()
