"""Gives vectors to artifacts: at once when that is quick, otherwise later in the background."""

import asyncio
import random
import time
from uuid import UUID

import structlog

from ..models import artifacts, idempotency, sessions
from ..models.artifacts import Embedding, Job
from .database import Database, DatabaseAway, OutcomeUnknown
from .embeddings import Embeddings, EmbeddingsAway, EmbeddingsRefused, as_sql
from .metrics import Metrics
from .tracing import Tracing

NOW_PATIENCE = 1.5  # seconds a request waits for its vector
NOW_CALLS = 4  # requests that may wait at once; under load the rest is left to the background
QUERY_PATIENCE = 1.0
BATCH = 16
BATCH_PATIENCE = 30.0
LEASE = 60.0
REFUSED_DELAY = 86400.0
SLOWEST = 6  # times the retry setting: the longest pause while the provider is away
CLEANUP_EVERY = 600.0
CLEANUP_BATCH = 1000

log = structlog.get_logger()


class EmbeddingTask:
    """The only place that calls the provider; never inside a database transaction."""

    def __init__(
        self, database: Database, provider: Embeddings, metrics: Metrics, tracing: Tracing, *, retry: float
    ) -> None:
        """`retry` is the pause, in seconds, between looks at the outbox."""
        self._database = database
        self._provider = provider
        self._metrics = metrics
        self._tracing = tracing
        self._retry = retry
        self._calls = 0
        self._cleaned = time.monotonic()

    async def now(self, name: str, text: str) -> Embedding | None:
        """The vector of a new artifact, or None when it cannot be had quickly."""
        if self._calls >= NOW_CALLS:
            self._metrics.embedded.labels("create", "busy").inc()
            return None
        self._calls += 1
        try:
            return await self._one("create", f"{name}\n{text}", NOW_PATIENCE)
        finally:
            self._calls -= 1

    async def query(self, question: str) -> Embedding | None:
        """The vector of a question, or None when it cannot be had quickly."""
        return await self._one("query", question, QUERY_PATIENCE)

    async def run(self) -> None:
        """Works through the outbox until cancelled."""
        pause = self._retry
        while True:
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 (jitter, no secret)
            try:
                while await self.work_once() == BATCH:
                    pass
                await self._clean_up()
                pause = self._retry
            except (EmbeddingsAway, DatabaseAway, OutcomeUnknown) as error:
                log.warning("embedding later", reason=str(error))
                pause = min(pause * 2, self._retry * SLOWEST)
            except Exception as error:
                log.error("embedding failed", exc_info=error)

    async def work_once(self) -> int:
        """Embeds one batch; returns how many it claimed. Raises EmbeddingsAway, DatabaseAway, OutcomeUnknown."""
        async with self._database.transaction() as connection:
            jobs = await artifacts.claim_jobs(connection, BATCH, LEASE)
            waiting = await artifacts.count_jobs(connection)
        self._metrics.embedding_backlog.set(waiting)
        if not jobs:
            return 0
        with self._tracing.work("embed"):
            await self._work_on(jobs)
        self._metrics.embedding_backlog.set(max(waiting - len(jobs), 0))
        return len(jobs)

    async def _work_on(self, jobs: list[Job]) -> None:
        try:
            done = await self._embed(jobs)
        except EmbeddingsAway:
            await self._postpone([job.artifact_id for job in jobs], self._retry, failed=False)
            raise
        except EmbeddingsRefused:
            # One text spoils the batch: take them one by one.
            done = []
            for job in jobs:
                try:
                    done += await self._embed([job])
                except EmbeddingsRefused as error:
                    log.error("text cannot be embedded", artifact=str(job.artifact_id), reason=str(error))
                    await self._postpone([job.artifact_id], REFUSED_DELAY, failed=True)
        async with self._database.transaction() as connection:
            await artifacts.finish_jobs(connection, done)

    async def _embed(self, jobs: list[Job]) -> list[tuple[UUID, Embedding]]:
        texts = [f"{job.name}\n{job.text}" for job in jobs]
        vectors = await self._vectors("background", texts, BATCH_PATIENCE)
        return [(job.artifact_id, vector) for job, vector in zip(jobs, vectors, strict=True)]

    async def _one(self, purpose: str, text: str, patience: float) -> Embedding | None:
        try:
            return (await self._vectors(purpose, [text], patience))[0]
        except (EmbeddingsAway, EmbeddingsRefused):
            return None

    async def _vectors(self, purpose: str, texts: list[str], patience: float) -> list[Embedding]:
        outcome = "away"
        try:
            vectors = await self._provider.embed(texts, patience=patience)
            outcome = "ok"
        except EmbeddingsRefused:
            outcome = "refused"
            raise
        finally:
            self._metrics.embedded.labels(purpose, outcome).inc()
        provider = self._provider
        return [Embedding(as_sql(vector), provider.model, provider.dimensions) for vector in vectors]

    async def _postpone(self, artifact_ids: list[UUID], delay: float, *, failed: bool) -> None:
        async with self._database.transaction() as connection:
            await artifacts.postpone_jobs(connection, artifact_ids, delay, failed=failed)

    async def _clean_up(self) -> None:
        if time.monotonic() - self._cleaned < CLEANUP_EVERY:
            return
        self._cleaned = time.monotonic()
        for delete_expired in (sessions.delete_expired, idempotency.delete_expired):
            deleted = CLEANUP_BATCH
            while deleted == CLEANUP_BATCH:
                async with self._database.transaction() as connection:
                    deleted = await delete_expired(connection, CLEANUP_BATCH)
