"""Text to vectors: one interface, an HTTP provider (OpenAI-compatible), and a hashing one for tests."""

import asyncio
import hashlib
import math
import re
import time
from collections.abc import Sequence
from typing import Protocol

import httpx
from pydantic import BaseModel

from .settings import Settings
from .tracing import Tracing

# A model reads a few hundred tokens; more text only costs time.
MAX_CHARACTERS = 8000
REST = 1.0  # seconds without a call after a failure


class EmbeddingsAway(Exception):
    """The provider did not give usable vectors in time; another try later may succeed."""


class EmbeddingsRefused(Exception):
    """The provider will not embed this text, now or later."""


class Embeddings(Protocol):
    """A provider. Vectors are `dimensions` long and of length 1."""

    model: str
    dimensions: int

    async def embed(self, texts: Sequence[str], *, patience: float) -> list[list[float]]:
        """One vector for each text within `patience` seconds. Raises EmbeddingsAway or EmbeddingsRefused."""

    async def close(self) -> None:
        """Gives connections back."""


class _Item(BaseModel):
    index: int
    embedding: list[float]


class _Answer(BaseModel):
    data: list[_Item]


class HttpEmbeddings:
    """`POST <url>/embeddings` as OpenAI defined it. After a failure it is left alone for a moment."""

    def __init__(self, url: str, model: str, dimensions: int, key: str | None, tracing: Tracing | None = None) -> None:
        self.model = model
        self.dimensions = dimensions
        self._rest_until = 0.0
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=20, max_keepalive_connections=10),
            trust_env=False,
        )
        if tracing is not None:
            tracing.http(self._client)

    async def embed(self, texts: Sequence[str], *, patience: float) -> list[list[float]]:
        if time.monotonic() < self._rest_until:
            raise EmbeddingsAway("resting after a failure")
        try:
            async with asyncio.timeout(patience):
                response = await self._client.post(
                    "embeddings",
                    json={"model": self.model, "input": [text[:MAX_CHARACTERS] for text in texts]},
                    timeout=patience,
                )
            if response.status_code in (400, 413, 422):
                raise EmbeddingsRefused(f"status {response.status_code}")
            response.raise_for_status()
            return self._vectors(response.content, len(texts))
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            self._rest_until = time.monotonic() + REST
            raise EmbeddingsAway(f"{type(error).__name__}: {error}") from error

    def _vectors(self, body: bytes, count: int) -> list[list[float]]:
        items = sorted(_Answer.model_validate_json(body).data, key=lambda item: item.index)
        vectors = [item.embedding for item in items]
        if len(vectors) != count or any(len(vector) != self.dimensions for vector in vectors):
            raise ValueError(f"not {count} vectors of {self.dimensions} numbers")
        return [_unit(vector) for vector in vectors]

    async def close(self) -> None:
        await self._client.aclose()


def _unit(vector: list[float]) -> list[float]:
    """The vector at length 1, which a column of half floats always holds; cosine does not care."""
    length = math.hypot(*vector)
    if not 0 < length < math.inf:
        raise ValueError("a vector is zero or not finite")
    return [x / length for x in vector]


class HashEmbeddings:
    """Words and their trigrams hashed into a vector: deterministic, no meaning. For tests."""

    def __init__(self, dimensions: int) -> None:
        self.model = "hash"
        self.dimensions = dimensions

    async def embed(self, texts: Sequence[str], *, patience: float) -> list[list[float]]:
        return [self._vector(text[:MAX_CHARACTERS]) for text in texts]

    def _vector(self, text: str) -> list[float]:
        vector = [0.0] * self.dimensions
        vector[0] = 1e-3  # a text without words is not a zero vector
        for word in re.findall(r"\w+", text.lower()):
            for part in (word, *(f" {word} "[i : i + 3] for i in range(len(word)))):
                digest = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest())
                vector[digest % self.dimensions] += 1.0 if digest >> 63 else -1.0
        return _unit(vector)

    async def close(self) -> None:
        return


def create_embeddings(settings: Settings, tracing: Tracing | None = None) -> Embeddings:
    """The provider that the settings name."""
    if settings.embeddings == "hash":
        return HashEmbeddings(settings.embeddings_dimensions)
    return HttpEmbeddings(
        settings.embeddings_url,
        settings.embeddings_model,
        settings.embeddings_dimensions,
        settings.embeddings_key,
        tracing,
    )


def as_sql(vector: Sequence[float]) -> str:
    """The vector as pgvector's text, to be cast by the statement (`$1::text::halfvec`)."""
    return "[" + ",".join(f"{x:.6g}" for x in vector) + "]"
